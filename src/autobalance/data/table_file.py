"""Tables that stay in their file: columns are read one at a time, and encoded rows go to another file.

A column is small beside its table. So what a fit holds of a large one is a column, then some rows, and at
last the pages of the encoded file that its batches touch, which the system takes back where memory is short.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from autobalance._validation import InputError
from autobalance.data.columns import Table
from autobalance.data.stored import StoredRows
from autobalance.data.table_encoder import BLOCK, TableEncoder, warn_of
from autobalance.data.tables import (
    check_header,
    csv_size,
    infer_column,
    memory_size,
    read_table,
    table_path,
)
from autobalance.records import free_bytes

LARGE_TABLE = 2**26
"""Bytes of values from which a table is read column by column; below, reading it whole is faster."""
LARGE_ROW_GROUP = 2**30
"""Bytes of a row group from which a user is told that smaller ones take less memory."""
COLUMN_COPIES = 4
"""Copies of a column, of the size of its values, that reading and encoding it takes at most."""
CSV_BLOCK = 2**20
_FOLDER = "parts-"
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

Tell = Callable[[int, int], None]
"""Told how many columns and blocks of rows are done, and of how many."""


@dataclass(frozen=True)
class TableFile:
    """A table whose columns stay in a file; it takes the place of a DataFrame in `AutoBalanceClassifier.fit`.

    Parameters
    ----------
    names : tuple of str
        Its columns.
    rows : int
        How many rows it has.
    read : callable
        From a column's name to its values, a Series ``(n,)``.
    folder : Path
        Where what is made of it is kept for as long as there is a `TableFile` of it.
    """

    names: tuple[str, ...]
    rows: int
    read: Callable[[str], pd.Series]
    folder: Path

    @property
    def columns(self) -> pd.Index:
        """The names."""
        return pd.Index(self.names)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.rows, len(self.names)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, name: Any) -> Any:
        """One column by its name, read now; several, by a list of names, stay in the file."""
        if isinstance(name, list):
            return replace(self, names=tuple(name))
        return _with_shared_texts(self.read(name))

    def drop(self, *, columns: Sequence[str]) -> TableFile:
        """The table without these columns."""
        return replace(self, names=tuple(n for n in self.names if n not in columns))

    def head(self) -> pd.DataFrame:
        """No row of the table, under its columns."""
        return pd.DataFrame(columns=self.columns)

    def as_lazy_table(self) -> Table:
        """The columns as an encoder takes them, each read when it is looked at."""
        return Table([*self.names], _Columns(self), self.rows)


class _Columns(Sequence[pd.Series]):
    """The columns of a `TableFile`, read one by one."""

    def __init__(self, file: TableFile) -> None:
        self.file = file

    def __len__(self) -> int:
        return len(self.file.names)

    def __getitem__(self, i: Any) -> Any:
        return self.file.read(self.file.names[i])


def open_table(
    path: str | Path, *, text: Iterable[str] = (), folder: str | Path | None = None
) -> pd.DataFrame | TableFile:
    """`read_table`, but of a table of `LARGE_TABLE` bytes and more a `TableFile`.

    Values are the same either way. A large CSV is written once to a file by columns, in `folder` or by
    default in the system's folder for temporary files.

    Raises
    ------
    InputError
        As for `read_table`; if a column is larger than memory; or if the disk has no room.

    Warns
    -----
    TableWarning
        If a Parquet file has all its rows in large groups.
    """
    path = table_path(path)
    if path.suffix.lower() == ".parquet":
        sizes = _parquet_sizes(path)
        if sum(sizes.values()) >= LARGE_TABLE:
            return _open_parquet(path, sizes, folder)
    elif ".csv" in [s.lower() for s in path.suffixes[-2:]] and _size_of_csv(path) >= LARGE_TABLE:
        check_header(path)
        workspace = _make_folder(folder)
        try:
            return _open_csv(path, {*text}, workspace)
        except (pa.ArrowException, UnicodeError):
            # What pyarrow refuses pandas may read, and says better why not.
            shutil.rmtree(workspace, ignore_errors=True)
    return read_table(path, text=text)


def encode_in_parts(
    table: TableFile,
    encoder: TableEncoder,
    target: np.ndarray | None,
    weight: np.ndarray | None,
    sampled: np.ndarray,
    tell: Tell | None = None,
) -> tuple[StoredRows, np.ndarray]:
    """Fit an encoder on a table, and encode it to a file: `TableEncoder.fit_raw` and `encode` in parts.

    Returns the encoded rows ``(n, num_features)``, float32, and `TableEncoder.raw` of the rows `sampled`.

    Raises
    ------
    InputError
        If a column cannot be used, or the disk has no room.
    """
    folder, blocks = table.folder, -(-table.rows // BLOCK)
    steps = len(table.names) + blocks
    kinds: list[type] = []
    sample = np.empty((len(sampled), len(table.names)))
    _check_disk(folder, table.rows * len(table.names) * 8)
    for i, raw in enumerate(encoder.fit_columns(table, target, weight)):
        # Codes of at most 100 categories fit into a byte.
        kinds.append(np.int8 if table.names[i] in encoder.categories else np.float64)
        raw.astype(kinds[i]).tofile(folder / f"{i}.raw")
        sample[:, i] = raw[sampled]
        if tell is not None:
            tell(i + 1, steps)
    _check_disk(folder, table.rows * encoder.num_features * 4)
    encoded = folder / "encoded.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (table.rows, encoder.num_features)}
    with encoded.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block in range(blocks):
            encoder.encode(_read_block(folder, kinds, block)).astype("<f4", copy=False).tofile(
                stream
            )
            if tell is not None:
                tell(len(table.names) + block + 1, steps)
    for i in range(len(kinds)):
        (folder / f"{i}.raw").unlink()
    return StoredRows([encoded]), sample


def _read_block(folder: Path, kinds: Sequence[type], block: int) -> np.ndarray:
    """Rows of the columns that were written one by one, as `TableEncoder.raw` has them."""
    columns = []
    for i, kind in enumerate(kinds):
        at = block * BLOCK * np.dtype(kind).itemsize
        columns.append(np.fromfile(folder / f"{i}.raw", kind, BLOCK, offset=at))
    return np.column_stack([column.astype(np.float64, copy=False) for column in columns])


def _parquet_sizes(path: Path) -> dict[str, int]:
    """Bytes of each column's values, as its metadata say; nothing of what is no Parquet file."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except pa.ArrowException:
        return {}
    # What is written as codes of a dictionary takes at least a pointer a row once it is read.
    sizes = {
        str(name): 8 * int(metadata.num_rows) for name in metadata.schema.to_arrow_schema().names
    }
    stored = dict.fromkeys(sizes, 0)
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            name = str(group.column(j).path_in_schema)
            name = name if name in stored else name.split(".")[0]
            stored[name] += int(group.column(j).total_uncompressed_size)
    return {name: max(size, int(stored[name])) for name, size in sizes.items()}


def _largest_row_group(path: Path) -> int:
    metadata: Any = pyarrow.parquet.read_metadata(path)
    return max(int(metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups))


def _open_parquet(path: Path, columns: dict[str, int], folder: str | Path | None) -> TableFile:
    """A Parquet file as it is; what its metadata say of its size is told before anything is read."""
    largest = max(columns, key=lambda name: columns[name])
    memory = memory_size()
    if COLUMN_COPIES * columns[largest] > memory:
        raise InputError(
            f"The column {largest!r} of {path} holds {columns[largest] / 1e9:,.1f} GB of values, and reading "
            f"it takes {COLUMN_COPIES} times as much, where this machine has {memory / 1e9:,.1f} GB of "
            "memory. Drop the column, or give a sample of the rows."
        )
    largest_group = _largest_row_group(path)
    if largest_group > LARGE_ROW_GROUP:
        warn_of(
            [
                f"{path} has a row group of {largest_group / 1e9:,.1f} GB: it is read column by column, the "
                f"largest of {columns[largest] / 1e9:,.1f} GB, and takes about {COLUMN_COPIES} times that"
            ]
        )
    return _table_of(path, None, _make_folder(folder))


def _open_csv(path: Path, text: set[str], folder: Path) -> TableFile:
    """A CSV, written to a Parquet file of texts block by block."""
    names = [str(name) for name in pd.read_csv(path, nrows=0).columns]
    columns = folder / "texts.parquet"
    with _open_bytes(path) as stream:
        options = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(_header(path), pa.string()), strings_can_be_null=False
        )
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=options,
        )
        schema = pa.schema([(str(i), pa.string()) for i in range(len(names))])
        with pyarrow.parquet.ParquetWriter(columns, schema) as writer:
            for batch in reader:
                writer.write_batch(pa.record_batch(batch.columns, schema=schema))
                _check_disk(folder, CSV_BLOCK)
    pa.default_memory_pool().release_unused()
    return _table_of(columns, names, folder, text)


def _table_of(
    path: Path, names: list[str] | None, folder: Path, text: Iterable[str] = ()
) -> TableFile:
    """The columns of a Parquet file, or under `names` those of the texts of a CSV."""
    with pyarrow.parquet.ParquetFile(path) as file:
        rows = file.metadata.num_rows
        own = [*map(str, file.schema_arrow.empty_table().to_pandas().columns)]

    def read(name: str) -> pd.Series:
        if name not in position:
            raise KeyError(name)
        with pyarrow.parquet.ParquetFile(path) as file:
            column = file.read(columns=[own[position[name]]], use_threads=False)
        if names is None:
            return column.to_pandas().iloc[:, 0].reset_index(drop=True).rename(name)
        return infer_column(column.column(0), as_text=name in text).rename(name)

    names_of_all = own if names is None else names
    position = {name: i for i, name in enumerate(names_of_all)}
    table = TableFile(tuple(names_of_all), rows, read, folder)
    # The function is all that the copies of a table without some columns share.
    weakref.finalize(read, shutil.rmtree, folder, ignore_errors=True)
    return table


def _with_shared_texts(series: pd.Series) -> pd.Series:
    """The column with one object for all rows of one text, in place of one for each row."""
    if not isinstance(series.dtype, pd.StringDtype):
        return series
    codes, different = pd.factorize(series)
    texts = np.array([*different, np.nan], dtype=object)  # missing as pandas has it
    return pd.Series(texts[codes], name=series.name, dtype=object)


def _header(path: Path) -> list[str]:
    """Names of the columns as pyarrow has them, without the numbers that pandas gives."""
    with _open_bytes(path) as stream:
        reader = pyarrow.csv.open_csv(
            stream, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
        )
        return reader.schema.names


def _open_bytes(path: Path) -> Any:
    opened = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opened is None else opened(path, "rb")


def _size_of_csv(path: Path) -> int:
    """Bytes of a CSV's values; 0 where pandas reads it whole: a zip archive, or a small compressed file."""
    compressed = path.suffix.lower() in _OPENERS
    if path.suffix.lower() == ".zip" or (compressed and 20 * path.stat().st_size < LARGE_TABLE):
        return 0
    return csv_size(path)


def _make_folder(folder: str | Path | None) -> Path:
    """A new folder in this one, from which those of runs that were killed are removed."""
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for left in Path(folder).glob(f"{_FOLDER}*"):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_FOLDER, dir=folder))


def _check_disk(folder: Path, size: int) -> None:
    free = free_bytes(folder)
    if size > free:
        raise InputError(
            f"Encoding the table takes {size / 1e9:,.1f} GB in {folder}, where {free / 1e9:,.1f} GB are "
            "free. Make room, give another --out, or set TMPDIR to another disk."
        )
