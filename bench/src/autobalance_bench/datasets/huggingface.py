"""Datasets of Hugging Face's `datasets`: images or embeddings, with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autobalance._validation import InputError, whole
from autobalance.data import ArrayData, Labelled, numbered, plural, shortened
from autobalance_bench.datasets.photographs import Photographs, pillow, scaled


def from_hugging_face(
    dataset: Any,
    *,
    inputs: str = "image",
    target: str = "label",
    groups: str | None = None,
    size: int = 224,
    square: bool = True,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
) -> Labelled:
    """A dataset of images or embeddings in memory.

    Parameters
    ----------
    dataset : datasets.Dataset or path
        One split, ``load_dataset(...)["train"]``; or the folder that ``save_to_disk`` wrote it to,
        for which `datasets` must be installed.
    inputs : str
        Column of images, or of equally long lists of numbers.
    target, groups : str
        Columns of labels. The names and order of a ``ClassLabel`` are kept.
    size, square
        How images are scaled, as in `class_folders`; images take ``12 * n * size * size`` bytes, for
        larger sets see `hugging_face_images`.
    class_names, group_names : sequence of str, optional
        How to number labels that are no ``ClassLabel``, for test data those of the training data.

    Returns
    -------
    Labelled
        ``data`` with inputs ``(n, 3, size, size)`` in [0, 1] or ``(n, d)``, float32, and the names.

    Raises
    ------
    InputError
        If this is no such dataset or has several splits, a column is absent or empty, an image
        cannot be decoded, a label is missing (-1, in test splits without labels), or `datasets`
        is needed and not installed.
    """
    whole("size", size, least=1)
    rows, labels = _read(dataset, inputs, target, groups, class_names, group_names)
    if _is_image(_cell(rows, inputs, 0)):
        images = _photographs(rows, inputs, labels, size, square)
        return Labelled(images.load(), labels.classes, labels.sets)
    data = ArrayData.of(
        _vectors(_cells(rows, inputs), inputs, len(rows)),
        labels.target,
        groups=labels.groups,
        num_classes=len(labels.classes),
        num_groups=len(labels.sets) if labels.sets else None,
    )
    return Labelled(data, labels.classes, labels.sets)


def hugging_face_images(
    dataset: Any,
    *,
    image: str = "image",
    target: str = "label",
    groups: str | None = None,
    size: int = 224,
    square: bool = True,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
) -> Photographs:
    """A dataset of images, which are decoded as they are needed: `load`, `stored`, `batches`.

    Parameters are those of `from_hugging_face`, `image` being the column of images.

    Raises
    ------
    InputError
        As there; if the column holds no images. A broken image is told when it is decoded.
    """
    whole("size", size, least=1)
    rows, labels = _read(dataset, image, target, groups, class_names, group_names)
    if not _is_image(_cell(rows, image, 0)):
        raise InputError(
            f"The column {image!r} holds no images. Read its numbers by from_hugging_face."
        )
    return _photographs(rows, image, labels, size, square)


class _Labels(NamedTuple):
    """Class and group indices ``(n,)``, and their names."""

    target: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray | None
    sets: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    """One cell of a column of images."""

    rows: Any
    column: str
    row: int

    def __str__(self) -> str:
        return f"in row {self.row + 1} of the column {self.column!r}"

    @property
    def identity(self) -> str:
        return f"{getattr(self.rows, '_fingerprint', '')} {self.column} {self.row}"

    def scaled(self, size: int, square: bool) -> np.ndarray:
        cell, images = self.rows[self.row][self.column], pillow()
        if isinstance(cell, Mapping):
            found = cell.get("bytes")
            image = images.open(BytesIO(found) if found is not None else cell["path"])
        elif hasattr(cell, "convert"):
            image = cell
        else:
            image = images.fromarray(np.asarray(cell, dtype=np.uint8))
        return scaled(image, size, square)


def _read(
    dataset: Any,
    inputs: str,
    target: str,
    groups: str | None,
    class_names: Sequence[str] | None,
    group_names: Sequence[str] | None,
) -> tuple[Any, _Labels]:
    """The rows with their inputs alone, undecoded where that can be, and the labels."""
    if isinstance(dataset, (str, Path)):
        dataset = _from_disk(Path(dataset).expanduser())
    columns = _columns(dataset)
    for name in (inputs, target, *([groups] if groups is not None else [])):
        if name not in columns:
            raise InputError(f"The dataset has no column {name!r}; it has: {shortened(columns)}.")
    if len(dataset) == 0:
        raise InputError("The dataset has no row.")
    if hasattr(dataset, "with_format"):  # as tensors images would lose their kind
        dataset = dataset.with_format(None)
    y, classes = _labels(dataset, target, class_names, what="class")
    g: np.ndarray | None = None
    sets: tuple[str, ...] = ()
    if groups is not None:
        g, sets = _labels(dataset, groups, group_names, what="group")
    # Other columns may hold images, too, which are decoded with the row.
    rows = dataset.select_columns([inputs]) if hasattr(dataset, "select_columns") else dataset
    feature = dataset.features[inputs]
    if hasattr(rows, "cast_column") and hasattr(feature, "decode"):
        rows = rows.cast_column(inputs, type(feature)(decode=False))  # in the threads, not here
    return rows, _Labels(y, classes, g, sets)


def _photographs(rows: Any, column: str, labels: _Labels, size: int, square: bool) -> Photographs:
    return Photographs(
        files=tuple(_Image(rows, column, row) for row in range(len(rows))),
        target=labels.target,
        groups=labels.groups,
        class_names=labels.classes,
        group_names=labels.sets,
        size=size,
        square=square,
        source="",
    )


def _from_disk(folder: Path) -> Any:
    try:
        from datasets import load_from_disk  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"To read {folder}, Hugging Face's datasets must be installed: pip install datasets. "
            "Or pass the dataset itself."
        ) from None
    try:
        return load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} cannot be read as a dataset of Hugging Face: {error}."
        ) from None


def _columns(dataset: Any) -> list[str]:
    if isinstance(dataset, Mapping):  # a DatasetDict
        raise InputError(
            f"This dataset has splits: {shortened(list(dataset))}. Give one, such as "
            f"dataset[{next(iter(dataset), 'train')!r}]."
        )
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping) or not hasattr(dataset, "__len__"):
        raise InputError(
            "A Hugging Face dataset with features, length and columns was expected; got "
            f"{type(dataset).__name__}. A streaming dataset must be taken into memory first, with "
            "Dataset.from_list(list(stream))."
        )
    return [str(name) for name in features]


def _labels(
    dataset: Any, name: str, names: Sequence[str] | None, *, what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    values = list(dataset[name])
    where = f"The column {name!r}"
    declared = getattr(dataset.features[name], "names", None)
    if declared is None:
        return numbered(values, names, what=what, where=where)
    if names is not None and list(names) != list(declared):
        raise InputError(
            f"{where} has {plural(what)} of its own, {shortened(declared)}; {what}_names must be "
            "these or be left out."
        )
    for row, value in enumerate(values, 1):
        if value is None or not 0 <= value < len(declared):
            raise InputError(
                f"{where} has {value} in row {row}, but labels are 0 to {len(declared) - 1}. Splits "
                "for tests often come without labels; take another."
            )
    return np.array(values, dtype=np.int64), tuple(map(str, declared))


def _cell(dataset: Any, name: str, row: int) -> Any:
    try:
        return dataset[row][name]
    except Exception as error:  # Pillow's and datasets' own, where an image is broken
        raise InputError(
            f"Row {row + 1} of the column {name!r} cannot be decoded: {error}."
        ) from None


def _cells(rows: Any, name: str) -> Iterator[Any]:
    for row in range(len(rows)):
        yield _cell(rows, name, row)


def _is_image(cell: Any) -> bool:
    if isinstance(cell, Mapping):
        return "bytes" in cell or "path" in cell
    return hasattr(cell, "convert") or np.ndim(cell) >= 2


def _vectors(cells: Iterator[Any], name: str, n: int) -> np.ndarray:
    inputs: np.ndarray | None = None
    for i, cell in enumerate(cells):
        try:
            vector = np.asarray(cell, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.empty((0, 0), np.float32)
        if inputs is None and vector.ndim == 1 and len(vector):
            inputs = np.empty((n, len(vector)), np.float32)
        if inputs is None or vector.shape != inputs.shape[1:]:
            raise InputError(
                f"The column {name!r} must hold images, or lists of numbers of one length; row "
                f"{i + 1} does not."
            )
        inputs[i] = vector
    assert inputs is not None  # there is a row
    return inputs
