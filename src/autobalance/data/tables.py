"""Reading tables from files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from autobalance._validation import InputError, path_of

LARGEST_EXPANSION, LARGE = 200, 2**28


def read_table(path: str | Path, *, text: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV (also .gz, .bz2, .xz, .zip) or Parquet file.

    Parameters
    ----------
    path : path
        The file.
    text : iterable of str
        Columns of a CSV that are text even where all their values look like numbers. Columns with
        codes such as 007 are text without that.

    Returns
    -------
    DataFrame
        Shape ``(n, d)``; its column names are text, none twice.

    Raises
    ------
    InputError
        If the file is missing, empty, without rows or columns, or not of the kind its name says.
    """
    path = table_path(path)
    suffixes = [s.lower() for s in path.suffixes]
    try:
        if suffixes[-1:] == [".parquet"]:
            _check_memory(path)
            table = pd.read_parquet(path)
        elif ".csv" in suffixes[-2:]:
            csv_size(path)
            check_header(path)
            table = _read_csv(lambda: path, set(text))
            if not isinstance(table.index, pd.RangeIndex):
                raise InputError(
                    f"{path} has rows with more fields than its header, which has {table.shape[1]}. "
                    "Name every column in the first line."
                )
        else:
            raise InputError(f"{path.name} must end in .csv, .csv.gz, .csv.xz or .parquet.")
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow and the decompressors raise dozens of kinds
        raise InputError(f"{path} cannot be read as a table: {_reason(error)}.") from None
    if table.empty:
        raise InputError(f"{path} has no rows. Give a table with a header and at least one row.")
    table.columns = table.columns.map(str)
    _check_unique(table.columns, path)
    return table


def table_path(path: str | Path) -> Path:
    """The path of a table's file.

    Raises
    ------
    InputError
        If there is no file, or nothing in it.
    """
    path = path_of("The table", path).expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give the path of a CSV or Parquet table.")
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give the path of a CSV or Parquet table.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty. Give a table with a header and at least one row.")
    return path


def _check_memory(path: Path) -> None:
    """Refuse a Parquet file that is larger than the memory, before it is read."""
    groups = pyarrow.parquet.read_metadata(path)
    size = sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
    memory = memory_size()
    if size > memory:
        raise InputError(
            f"{path} holds {size / 1e9:,.1f} GB of values, and this machine has {memory / 1e9:,.1f} GB of "
            "memory. Give a sample of its rows, or fewer columns."
        )


def memory_size() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _read_csv(opened: Callable[[], Any], text: set[str]) -> pd.DataFrame:
    """A CSV in which numbers with a leading zero stay text, as they are codes and no quantities."""
    table = pd.read_csv(opened(), low_memory=False, dtype=dict.fromkeys(text, str))
    # Floats too: integers next to missing values. Numbers with a fraction are no codes.
    whole = [
        i for i, kind in enumerate(table.dtypes)
        if pd.api.types.is_integer_dtype(kind)
        or (pd.api.types.is_float_dtype(kind) and (table.iloc[:, i].dropna() % 1 == 0).all())
    ]  # fmt: skip
    if whole and isinstance(table.index, pd.RangeIndex):
        texts = pd.read_csv(opened(), dtype=str, usecols=whole)
        for i, name in zip(whole, texts.columns, strict=True):
            if texts[name].str.fullmatch(r"\s*[+-]?0\d+\s*").any():
                table[table.columns[i]] = texts[name]
    return table


def infer_column(texts: pa.ChunkedArray, *, as_text: bool) -> pd.Series:
    """The column ``(n,)`` that `read_table` makes of a CSV's texts."""
    lines = io.BytesIO()
    pyarrow.csv.write_csv(pa.table({"x": texts}), lines)
    content = lines.getvalue()
    return _read_csv(lambda: io.BytesIO(content), {"x"} if as_text else set())["x"]


def csv_size(path: Path) -> int:
    """Bytes in a CSV, also in a compressed one.

    Raises
    ------
    InputError
        If a small compressed file would fill the memory: nobody's table shrinks so far.
    """
    kind = path.suffix.lower()
    if kind == ".zip":
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        check_expansion(path, size)
        return size
    opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(kind)
    if opened is None:
        return path.stat().st_size
    size = 0
    with opened(path, "rb") as stream:
        while part := stream.read(2**20):
            size += len(part)
            check_expansion(path, size)
    return size


def check_expansion(path: Path, size: int) -> None:
    """Refuse a compressed file with so many bytes in it."""
    if size > max(LARGE, LARGEST_EXPANSION * path.stat().st_size):
        raise InputError(
            f"{path} is compressed more than {LARGEST_EXPANSION} times, as no table is. If it is "
            "yours, unpack it first."
        )


def check_header(path: Path) -> None:
    """Refuse the first line of a CSV that pandas would read, but not as the user means it."""
    names = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
    separator = next((s for s in (";", "\t", "|") if s in str(names.iloc[0])), None)
    if len(names) == 1 and separator is not None:
        raise InputError(
            f"{path} looks separated by {separator!r}. Save it with commas (and points in numbers)."
        )
    _check_unique(pd.Index(names.dropna()), path)  # pandas numbers twins: a, a.1


def _check_unique(names: pd.Index, path: Path) -> None:
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise InputError(
            f"{path} has the column {twice!r} more than once. Give each a name of its own."
        )


def _reason(error: Exception) -> str:
    """What went wrong with a file, on one line."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8. Save it as UTF-8, or as Parquet"
    if "Parquet magic bytes" in str(error):
        return "it is not in Parquet's format"
    ragged = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
    if ragged:
        expected, line, count = ragged.groups()
        return f"line {line} has {count} fields, the lines before it have {expected}"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].removesuffix(".")


def column(
    table: pd.DataFrame,
    name: str,
    role: str,
    *,
    missing_values: bool = False,
    remedy: str = "Fill them, or drop these rows",
) -> pd.Series:
    """A column by name; refused where it is absent or has missing values, unless it may."""
    if name not in table.columns:
        names = ", ".join(map(str, table.columns[:20])) + (", ..." if table.shape[1] > 20 else "")
        raise InputError(f"The {role} column {name!r} is not in the table, which has: {names}.")
    values = table[name]
    if isinstance(values, pd.DataFrame):
        raise InputError(f"The {role} column {name!r} appears more than once in the table.")
    missing = int(values.isna().sum())
    if missing and not missing_values:
        first = int(np.flatnonzero(values.isna())[0])
        raise InputError(
            f"The {role} column {name!r} has {missing} missing value{'s' * (missing > 1)} (the first in "
            f"row {first + 1}). {remedy}. In a CSV empty cells count as missing, and texts such as NA or "
            "None."
        )
    return values
