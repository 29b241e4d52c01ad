"""The rows of a dataset's files, whatever their kind: a table, and inputs where they are arrays."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autobalance import InputError
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition
from autobalance_bench.comparison.dataset_readers import FILES, READERS, Request, Rows

if TYPE_CHECKING:
    import pandas as pd

    from autobalance.data import StoredRows

__all__ = ["Rows", "read_rows"]

DATA_FOLDER = "Name the data folder by --data DIR or the environment variable AUTOBALANCE_DATA"


def read_rows(definition: DatasetDefinition, data: str | Path | None, device: str) -> Rows:
    """Read all rows that a definition names.

    Parameters
    ----------
    definition : DatasetDefinition
        What to read.
    data : path or None
        The data folder; None will do where the definition's paths are absolute.
    device : str
        Where a backbone turns images into features.

    Raises
    ------
    InputError
        If a file is missing, or is not of the layout that the definition names.
    """
    paths = []
    for name in filter(None, (definition.path, definition.test_path)):
        path = _locate(definition, name, data)
        paths.append((path, path.stat().st_mtime_ns, path.stat().st_size))
    options = {
        key: str(_locate(definition, value, data)) if key in ("lists", "folder") else value
        for key, value in definition.options.items()
    }
    form = Form(
        columns=definition.columns,
        inputs=definition.inputs,
        class_names=definition.class_names,
        layout=definition.layout,
        request=json.dumps(
            {
                "target": definition.target,
                "groups": definition.groups,
                "size": definition.image_size,
                "limit": definition.limit,
                "options": options,
                "backbone": definition.backbone,
                "allowed_broken": definition.allowed_broken,
                "store": _store_folder(definition, data),
                "published": definition.validation == "published",
                "device": device,
            }
        ),
    )
    try:
        return _read(tuple(paths), form)
    except InputError as error:
        where = "" if str(error).startswith(f"{definition.name}: ") else f"{definition.name}: "
        raise InputError(f"{where}{error}") from None


def _store_folder(definition: DatasetDefinition, data: str | Path | None) -> str | None:
    """The folder of decoded photographs, which need not be there."""
    if definition.store is None:
        return None
    return str(Path(data or "").expanduser() / Path(definition.store).expanduser())


def _locate(definition: DatasetDefinition, name: str, data: str | Path | None) -> Path:
    path = Path(str(name)).expanduser()
    if data is None and not path.is_absolute():
        raise InputError(f"{definition.name} needs {name}. {DATA_FOLDER}.")
    path = Path(data or "") / path
    if not path.exists():
        origin = f"It comes from: {definition.source}. " if definition.source else ""
        raise InputError(
            f"{definition.name} needs {path}, which is not there. {origin}{DATA_FOLDER}; the file's "
            f"place in it is {name}."
        )
    return path


@dataclass(frozen=True)
class Form:
    """The part of a definition that decides how its files are read; equal forms share the rows."""

    columns: tuple[str, ...]
    inputs: str
    class_names: str | None
    layout: str
    request: str  # as JSON, since it must be hashable


@lru_cache(maxsize=1)  # seeds and variants of one dataset follow one another
def _read(paths: tuple[tuple[Path, int, int], ...], form: Form) -> Rows:
    """All rows of a file, or of two; the times and sizes tell files that were replaced."""
    import pandas as pd

    parts = [_read_one(path, form) for path, *_ in paths]
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    if (first.inputs is None) != (second.inputs is None) or first.num_test:
        raise InputError(f"{paths[0][0].name} and {paths[1][0].name} must be of one kind.")
    inputs = None
    if first.inputs is not None and second.inputs is not None:
        if first.inputs.shape[1:] != second.inputs.shape[1:]:
            raise InputError(f"{paths[0][0].name} and {paths[1][0].name} differ in input shape.")
        inputs = _join(first.inputs, second.inputs)
    absent = [c for c in first.table.columns if c not in second.table.columns]
    if absent:
        raise InputError(f"{paths[1][0]} lacks the column {absent[0]!r} of {paths[0][0].name}.")
    table = pd.concat([first.table, second.table[list(first.table.columns)]], ignore_index=True)
    return Rows(table, inputs, len(second.table), first.names)


def _join(
    first: np.ndarray | StoredRows, second: np.ndarray | StoredRows
) -> np.ndarray | StoredRows:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second])
    assert not isinstance(first, np.ndarray)
    assert not isinstance(second, np.ndarray)
    return first.joined(second)


def _read_one(path: Path, form: Form) -> Rows:
    from autobalance.data import read_table

    if path.is_dir() or form.layout in FILES:
        return READERS[form.layout](path, Request(**json.loads(form.request)))
    if json.loads(form.request)["backbone"] is not None:
        raise InputError(f"A backbone is for images in one of the layouts; {path.name} has none.")
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] == [".npz"]:
        return _read_arrays(path, form.inputs, form.class_names)
    if ".tsv" in suffixes[-2:]:
        return Rows(_read_delimited(path, "\t", form.columns))
    if form.columns and ".csv" in suffixes[-2:]:
        return Rows(_read_delimited(path, ",", form.columns))
    return Rows(read_table(path))


def _read_arrays(path: Path, inputs: str, names: str | None) -> Rows:
    """The inputs, and every one-dimensional array of their length as a column."""
    import pandas as pd

    try:
        with np.load(path, allow_pickle=False) as stream:
            arrays = {key: stream[key] for key in stream.files}
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise InputError(f"{path} cannot be read as .npz: {error}.") from None
    for key in filter(None, (inputs, names)):
        if key not in arrays:
            raise InputError(f"{path} has no array {key!r}; it has: {', '.join(arrays)}.")
    images = arrays[inputs]
    if images.ndim not in (2, 3, 4) or len(images) == 0:
        raise InputError(
            f"{path}: the array {inputs!r} must be (n, d), (n, h, w) or (n, c, h, w); got shape "
            f"{images.shape}."
        )
    table = {k: v for k, v in arrays.items() if v.shape == images.shape[:1] and k != names}
    return Rows(
        pd.DataFrame(table, index=pd.RangeIndex(len(images))),
        images,
        names=arrays[names] if names else None,
    )


def _read_delimited(path: Path, separator: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table whose first line is no header, if `columns` names them; empty fields are missing."""
    import pandas as pd

    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    try:
        table = pd.read_csv(
            path,
            sep=separator,
            header=None if columns else 0,
            quoting=quoting,
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
        )
    except Exception as error:  # pandas and the decompressors raise dozens of kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
        raise InputError(f"{path} cannot be read as a table: {reason}.") from None
    if columns:
        if table.shape[1] != len(columns):
            raise InputError(
                f"{path} has {table.shape[1]} columns, but `columns` names {len(columns)}. Name each."
            )
        table.columns = list(columns)
    return table
