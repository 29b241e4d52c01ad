"""Datasets of Hugging Face's `datasets`: images or vectors of numbers, with their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from autobalance import InputError
from autobalance.data import ArrayData, shortened
from autobalance_bench.datasets._optional import import_optional
from autobalance_bench.datasets.images import LabelledImages
from autobalance_bench.datasets.numbering import Labelled, numbered


def read_hugging_face(
    dataset: Any,
    *,
    split: str = "train",
    image: str = "image",
    target: str = "label",
    groups: str | None = None,
    size: int = 224,
    square: bool = True,
) -> LabelledImages:
    """Index a dataset of images, which are decoded when they are needed.

    Parameters
    ----------
    dataset : datasets.Dataset, datasets.DatasetDict or path
        The dataset; or a folder, one that ``save_to_disk`` wrote or any other that
        ``load_dataset`` reads.
    split : str
        Which part is taken where there are several.
    image : str
        Column of images.
    target, groups : str
        Columns of labels. The names and order of a ``ClassLabel`` are kept.
    size, square
        How images are scaled, as in `read_class_folders`.

    Raises
    ------
    InputError
        If `datasets` is not installed or cannot read the folder; a split or a column is absent or
        empty, a label is missing (-1, in test splits without labels), or the column holds no
        images. A broken image is told when it is decoded.
    """
    rows = _open(dataset, split, [image, target, groups])
    images = rows.select_columns([image])  # other columns may hold images that would be decoded too
    if type(images.features[image]).__name__ != "Image":
        raise InputError(
            f"The column {image!r} holds no images. Name a column of images with image=, or of "
            "numbers with inputs=."
        )
    targets, class_names = _read_labels(rows, target, what="class")
    cells, group_names = (None, ()) if groups is None else _read_labels(rows, groups, what="group")
    return LabelledImages(
        images=_Column(images, image),
        names=tuple(f"in row {row + 1} of the column {image!r}" for row in range(len(rows))),
        targets=targets,
        class_names=class_names,
        groups=cells,
        group_names=group_names,
        size=size,
        square=square,
        fingerprint=images._fingerprint,
    )


def read_hugging_face_vectors(
    dataset: Any,
    *,
    inputs: str,
    split: str = "train",
    target: str = "label",
    groups: str | None = None,
) -> Labelled:
    """Load a dataset of equally long lists of numbers, such as embeddings.

    Parameters
    ----------
    dataset, split, target, groups
        As for `read_hugging_face`.
    inputs : str
        Column of lists of d numbers.

    Returns
    -------
    Labelled
        ``data`` with inputs ``(n, d)``, float32, and the names of classes and groups.

    Raises
    ------
    InputError
        As for `read_hugging_face`; if the lists are no numbers or differ in length.
    """
    rows = _open(dataset, split, [inputs, target, groups])
    vectors = rows.select_columns([inputs]).with_format("numpy")[:][inputs]
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or vectors.shape[1] == 0:
        raise InputError(
            f"The column {inputs!r} must hold lists of numbers of one length; got "
            f"{rows.features[inputs]}, which differ in length or are no lists of numbers."
        )
    targets, class_names = _read_labels(rows, target, what="class")
    cells, group_names = (None, ()) if groups is None else _read_labels(rows, groups, what="group")
    data = ArrayData.of(
        vectors.astype(np.float32),
        targets,
        groups=cells,
        num_classes=len(class_names),
        num_groups=len(group_names) or None,
    )
    return Labelled(data, class_names, group_names)


class _Column(Dataset[Any]):
    """The cells of one column."""

    def __init__(self, rows: Any, name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index][self.name]


def _open(dataset: Any, split: str, columns: list[str | None]) -> Any:
    """The rows of one split, as Python objects, after a check of the columns' names."""
    library = import_optional("datasets", "Reading datasets of Hugging Face")
    if isinstance(dataset, (str, Path)):
        folder = Path(dataset).expanduser()
        saved = any((folder / f).is_file() for f in ("state.json", "dataset_dict.json"))
        load = library.load_from_disk if saved else library.load_dataset
        try:
            dataset = load(str(folder))
        except Exception as error:  # the library's, pyarrow's and the file system's own kinds
            reason = " ".join(str(error).split()).removesuffix(".")
            raise InputError(
                f"{folder} cannot be read as a dataset of Hugging Face: {reason}."
            ) from None
    if isinstance(dataset, Mapping):  # a DatasetDict
        if split not in dataset:
            raise InputError(f"There is no split {split!r}; there are: {shortened([*dataset])}.")
        dataset = dataset[split]
    if not isinstance(dataset, library.Dataset):
        raise InputError(
            f"A datasets.Dataset was expected; got {type(dataset).__name__}. A streaming dataset "
            "must be taken into memory first, with Dataset.from_list(list(stream))."
        )
    for name in columns:
        if name is not None and name not in dataset.column_names:
            raise InputError(
                f"The dataset has no column {name!r}; it has: {shortened(dataset.column_names)}."
            )
    if len(dataset) == 0:
        raise InputError("The dataset has no row.")
    return dataset.with_format(None)  # formatted as tensors, images would not be recognised


def _read_labels(dataset: Any, name: str, *, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class or group indices ``(n,)``, int64, and their names."""
    values = list(dataset[name])
    where = f"The column {name!r}"
    declared = getattr(dataset.features[name], "names", None)
    if declared is None:
        return numbered(values, None, what=what, where=where)
    for row, value in enumerate(values, 1):
        if value is None or not 0 <= value < len(declared):
            raise InputError(
                f"{where} has {value} in row {row}, but labels are 0 to {len(declared) - 1}. Splits "
                "for tests often come without labels; take another."
            )
    return np.array(values, dtype=np.int64), tuple(map(str, declared))
