"""Embeddings (features of a frozen network) with their labels, from Parquet or .npz."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autobalance import InputError
from autobalance.data import ArrayData, check_expansion, shortened
from autobalance_bench._checks import check_path
from autobalance_bench.datasets.numbering import Labelled, numbered

INPUTS = ("inputs", "embedding", "embeddings", "features")
"""Names of the column or array that is taken for the embeddings where none is given."""


def read_embeddings(
    path: str | Path,
    *,
    target: str = "target",
    inputs: str | None = None,
    groups: str | None = None,
    sample_weight: str | None = None,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
) -> Labelled:
    """Read embeddings, for `search_head` and `retrain_head`.

    Parameters
    ----------
    path : path
        A Parquet file with one column of lists, all equally long, or with one numeric column for
        each dimension; or an .npz file with an array ``(n, d)``. No pickle is read.
    target, groups, sample_weight : str
        Names of the column or array of labels (names, or whole numbers with gaps or without), and
        if wanted those of groups and weights.
    inputs : str, optional
        Name of the column of lists or of the array. By default the first of `INPUTS` that is
        there; without one, of a Parquet file all its other columns, in their order.
    class_names, group_names : sequence of str, optional
        How to number them, for test data those of the training data.

    Returns
    -------
    Labelled
        ``data`` with inputs ``(n, d)``, float32, ``class_names`` and ``group_names``.

    Raises
    ------
    InputError
        If the file cannot be read or lacks a column, lists differ in length, a number is missing
        or not finite, a label is missing or none of the names given, or there is only one class.
    """
    path = check_path("The file", path).expanduser()
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give the path of a Parquet or .npz file.")
    labels = [name for name in (target, groups, sample_weight) if name is not None]
    if path.suffix.lower() == ".npz":
        x, columns = _read_npz(path, inputs, labels)
    elif path.suffix.lower() == ".parquet":
        x, columns = _read_parquet(path, inputs, labels)
    else:
        raise InputError(f"{path.name} must end in .parquet or .npz.")
    y, classes = numbered(columns[target], class_names, what="class", where=str(path))
    g: np.ndarray | None = None
    sets: tuple[str, ...] = ()
    if groups is not None:
        g, sets = numbered(columns[groups], group_names, what="group", where=str(path))
    data = ArrayData.of(
        x,
        y,
        groups=g,
        sample_weight=None if sample_weight is None else columns[sample_weight],
        num_classes=len(classes),
        num_groups=len(sets) if sets else None,
    )
    return Labelled(data, classes, sets)


def _read_npz(
    path: Path, inputs: str | None, labels: list[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(path, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as stream:
            names = list(stream.files)
            name = _choose_inputs(path, inputs, names, labels)
            arrays = {key: stream[key] for key in (name, *labels)}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise InputError(f"{path} cannot be read as .npz: {error}.") from None
    x = arrays.pop(name)
    if x.ndim != 2 or x.dtype.kind not in "fiu" or 0 in x.shape:
        raise InputError(
            f"{path}: the array {name!r} must hold numbers, shape (n, d); got {x.dtype} of shape "
            f"{x.shape}."
        )
    for key, array in arrays.items():
        if array.shape != x.shape[:1]:
            raise InputError(
                f"{path}: the array {key!r} must have shape ({len(x)},), one entry for each row of "
                f"{name!r}; got {array.shape}."
            )
    return x.astype(np.float32), arrays


def _read_parquet(
    path: Path, inputs: str | None, labels: list[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].removesuffix(".")
        raise InputError(f"{path} cannot be read as Parquet: {reason}.") from None
    others = [name for name in table.column_names if name not in labels]
    if inputs is None and not set(INPUTS) & set(others):
        for name in labels:
            _choose_inputs(path, name, table.column_names, [])
        if not others or table.num_rows == 0:
            raise InputError(f"{path} has no {'row' if others else 'column of numbers'}.")
        x = np.column_stack([_read_numbers(path, name, table[name]) for name in others])
    else:
        name = _choose_inputs(path, inputs, table.column_names, labels)
        x = _read_lists(path, name, table[name])
    return x, {name: table[name].to_pandas() for name in labels}


def _choose_inputs(path: Path, inputs: str | None, names: list[str], labels: list[str]) -> str:
    """The name of the embeddings; refused where it or a label's is absent."""
    name = inputs or next((n for n in INPUTS if n in names), INPUTS[0])
    absent = [n for n in (name, *labels) if n not in names]
    if absent:
        raise InputError(f"{path} has no {absent[0]!r}; it has: {shortened(names, 20)}.")
    return name


def _read_numbers(path: Path, name: str, column: Any) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise InputError(
            f"{path}: the column {name!r} holds {kind}, no numbers. Name the column of lists with "
            "inputs=, or leave this one out of the file."
        )
    if column.null_count:
        raise InputError(f"{path}: the column {name!r} has {column.null_count} missing values.")
    return column.to_numpy().astype(np.float32)


def _read_lists(path: Path, name: str, column: Any) -> np.ndarray:
    """A column of lists of one length as a matrix, without a Python object for each number."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise InputError(f"{path}: the column {name!r} must hold lists of numbers; got {kind}.")
    if column.null_count or len(column) == 0:
        problem = f"{column.null_count} missing values" if len(column) else "no row"
        raise InputError(f"{path}: the column {name!r} has {problem}.")
    values = _read_numbers(path, name, pa.chunked_array([c.flatten() for c in column.chunks]))
    count: Any = compute.list_value_length  # pyright: ignore[reportAttributeAccessIssue]
    lengths = np.unique(count(column).to_numpy())
    if len(lengths) > 1 or lengths[0] == 0:
        raise InputError(
            f"{path}: the lists of {name!r} must be equally long and not empty; they have "
            f"{lengths[0]} to {lengths[-1]} numbers."
        )
    return values.reshape(len(column), int(lengths[0]))
