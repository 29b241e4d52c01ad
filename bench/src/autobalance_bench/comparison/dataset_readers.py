"""Readers of image sets and embeddings, for the layouts that a dataset's definition may name."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autobalance import InputError
from autobalance_bench._checks import check_int

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from autobalance.data import StoredRows
    from autobalance_bench.datasets.images import LabelledImages
    from autobalance_bench.datasets.numbering import Labelled


@dataclass(frozen=True)
class Rows:
    """All rows of a dataset: those for training, then those for validation, then those for testing.

    Attributes
    ----------
    table : DataFrame
        Labels and other columns, n rows.
    inputs : ndarray or StoredRows or None
        Images or numbers ``(n, ...)``; None where the table holds the features.
    num_test, num_validation : int
        Rows of the test set and of the validation set that the data come with; 0 where they come
        without.
    names : ndarray or None
        Names that the target's numbers index.
    """

    table: pd.DataFrame
    inputs: np.ndarray | StoredRows | None = None
    num_test: int = 0
    names: np.ndarray | None = None
    num_validation: int = 0


@dataclass(frozen=True)
class Request:
    """What a definition asks of a reader; `DatasetDefinition` explains each attribute."""

    target: str
    groups: Sequence[str]
    size: int
    limit: int | None
    options: Mapping[str, Any]
    backbone: Mapping[str, Any] | None
    allowed_broken: int = 0
    store: str | None = None
    published: bool = False
    device: str = "cpu"

    def group(self) -> str | None:
        """Return the one column of groups, if any; raises InputError where several are named."""
        if len(self.groups) > 1:
            raise InputError(
                f"This layout reads one column of groups; got {', '.join(self.groups)}. Join them "
                "in the file."
            )
        return self.groups[0] if self.groups else None


def _fashion(folder: Path, request: Request) -> Rows:
    from autobalance.data import CLASSES
    from autobalance_bench.datasets.fashion import load_fashion_mnist

    train, test = load_fashion_mnist(folder)
    names = np.array(CLASSES)[np.concatenate([train.target, test.target])]
    images = np.concatenate([train.images, test.images])
    padding = check_int("padding", request.options.get("padding", 0), least=0)
    if padding:
        images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    return _array_rows({"label": names}, images, request, num_test=len(test.target))


def _textures(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.textures import OBJECTS, TEXTURES, build_fashion_textures

    train, test = build_fashion_textures(folder)
    target = np.concatenate([train.target, test.target])
    groups = np.concatenate([train.groups, test.groups])
    table = {"object": np.array(OBJECTS)[target], "background": np.array(TEXTURES)[groups]}
    images = np.concatenate([train.images, test.images])
    return _array_rows(table, images, request, num_test=len(test.target))


def _waterbirds(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.waterbirds import load_waterbirds

    return _image_rows(load_waterbirds(folder, **_options(request)), request, "bird", "place")


def _celeba(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.celeba import load_celeba

    return _image_rows(load_celeba(folder, **_options(request)), request, "hair", "sex")


def _imagenet_lt(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.imagenet_lt import load_imagenet_lt

    return _image_rows(load_imagenet_lt(folder, **_options(request)), request)


def _inaturalist(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.inaturalist import load_inaturalist_2018

    return _image_rows(load_inaturalist_2018(folder, **_options(request)), request)


def _options(request: Request) -> dict[str, Any]:
    """Keywords of a loader of published image files."""
    return {"size": request.size, "limit": request.limit, **request.options}


def _class_folders(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.own_images import read_class_folders

    return _image_rows([read_class_folders(folder, **_options(request))], request)


def _image_table(path: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.own_images import read_image_table

    _refuse_folder(path, "a CSV or Parquet file that lists images")
    images = read_image_table(
        path,
        target=request.target,
        groups=request.group(),
        **_options(request),
    )
    return _image_rows([images], request, request.target, request.group() or "")


def _cifar(num_classes: int, long_tailed: bool) -> Callable[[Path, Request], Rows]:
    def read(folder: Path, request: Request) -> Rows:
        from autobalance_bench.datasets.cifar import load_cifar, load_cifar_lt

        load = load_cifar_lt if long_tailed else load_cifar
        train, test, names = load(folder, num_classes, **request.options)
        target = np.concatenate([train.target.numpy(), test.target.numpy()])
        images = np.concatenate([part.in_memory().numpy() for part in (train, test)])
        return _array_rows({"class": np.array(names)[target]}, images, request, num_test=len(test))

    return read


def _hugging_face(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.hugging_face import read_hugging_face, read_hugging_face_vectors

    labels: dict[str, Any] = {"target": request.target, "groups": request.group()}
    if "inputs" in request.options:  # a column of numbers
        return _labelled_rows(
            read_hugging_face_vectors(folder, **labels, **request.options), request
        )
    images = read_hugging_face(folder, size=request.size, **labels, **request.options)
    return _image_rows(
        [images.limited(request.limit)], request, request.target, request.group() or ""
    )


def _embeddings(path: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.embeddings import read_embeddings

    _refuse_folder(path, "a Parquet or .npz file of embeddings")
    if request.backbone is not None:
        raise InputError("embeddings are features already; leave the backbone out.")
    labelled = read_embeddings(
        path, target=request.target, groups=request.group(), **request.options
    )
    return _labelled_rows(labelled, request)


READERS: Mapping[str, Callable[[Path, Request], Rows]] = {
    "fashion": _fashion,
    "fashion-textures": _textures,
    "waterbirds": _waterbirds,
    "celeba": _celeba,
    "cifar10": _cifar(10, long_tailed=False),
    "cifar100": _cifar(100, long_tailed=False),
    "cifar10_lt": _cifar(10, long_tailed=True),
    "cifar100_lt": _cifar(100, long_tailed=True),
    "imagenet_lt": _imagenet_lt,
    "inaturalist_2018": _inaturalist,
    "class_folders": _class_folders,
    "image_table": _image_table,
    "embeddings": _embeddings,
    "hugging_face": _hugging_face,
}
"""Reader of each layout; it takes what `path` names."""

FILES = ("image_table", "embeddings")
"""Layouts of files rather than folders."""

PROGRESS_SECONDS = 10.0
"""Between two lines on how far the decoding of images is."""


def _image_rows(
    parts: Sequence[LabelledImages], request: Request, target: str = "class", group: str = ""
) -> Rows:
    """Decode images, with a table of their labels; of several parts the last is the test set.

    The middle one of three is for validation, where that is asked for.
    """
    from autobalance.data import StoredRows

    if len(parts) == 3 and not request.published:
        parts = [parts[0], parts[2]]
    names = np.array(_distinct(parts[0].class_names))
    allowed = request.allowed_broken
    if request.store is not None:
        pairs = [_store(part, Path(request.store), allowed) for part in parts]
        inputs = reduce(StoredRows.joined, [rows for _, rows in pairs])
    elif request.backbone is not None:
        backbone = _backbone(request)
        pairs = [_image_features(part, backbone, request) for part in parts]
        inputs = np.concatenate([features for _, features in pairs])
    else:
        pairs = [part.load(allowed=allowed) for part in parts]
        inputs = np.concatenate([pixels for _, pixels in pairs])
    sides = [images for images, _ in pairs]
    table = {target: np.concatenate([names[side.targets] for side in sides])}
    group_names = np.array(parts[0].group_names)
    groups = [group_names[side.groups] for side in sides if side.groups is not None]
    if groups:
        table[group] = np.concatenate(groups)
    return Rows(
        _table(table),
        inputs,
        num_test=len(sides[-1]) if len(sides) > 1 else 0,
        num_validation=len(sides[1]) if len(sides) == 3 else 0,
    )


def _store(images: LabelledImages, folder: Path, allowed: int) -> tuple[LabelledImages, StoredRows]:
    """Decode a part into a file of the folder, with a line now and then on how far it is."""
    path, last = folder / f"{images.identity}.npy", time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"autobalance: {done} of {total} images decoded into {path}", file=sys.stderr)

    return images.store(path, allowed=allowed, progress=report)


def _labelled_rows(labelled: Labelled, request: Request) -> Rows:
    """Numbers and labels in memory, whose columns the request names."""
    data, names, group_names = labelled
    table = {request.target: np.array(names)[data.target.numpy()]}
    group = request.group()
    if group is not None and data.groups is not None:
        table[group] = np.array(group_names)[data.groups.numpy()]
    return _array_rows(table, data.in_memory().numpy(), request)


def _array_rows(
    table: Mapping[str, np.ndarray], images: np.ndarray, request: Request, num_test: int = 0
) -> Rows:
    if request.backbone is not None:
        from autobalance.heads import extract_features

        images = images if images.ndim == 4 else images[:, None]
        images = extract_features(_backbone(request), images, device=request.device).numpy()
    return Rows(_table(table), images, num_test)


def _table(columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(dict(columns))


def _backbone(request: Request) -> nn.Module:
    """The definition's frozen network, which takes images of bytes too."""
    from torch import nn

    from autobalance.networks import FromBytes
    from autobalance_bench.comparison.dataset_network import build_backbone

    assert request.backbone is not None
    return nn.Sequential(FromBytes(), build_backbone(request.backbone))


def _image_features(
    images: LabelledImages, backbone: nn.Module, request: Request
) -> tuple[LabelledImages, np.ndarray]:
    """The images that can be decoded and their features ``(n, d)``, a batch in memory at a time."""
    from autobalance.heads import extract_features

    features, bad = [], {}
    for pixels, reasons in images.batches():
        features.append(extract_features(backbone, pixels, device=request.device).numpy())
        bad.update(reasons)
    good = images.drop(bad, request.allowed_broken)
    return good, np.delete(np.concatenate(features), list(bad), axis=0)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names by which classes can be told apart, also where two are called alike."""
    counts = Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]


def _refuse_folder(path: Path, expected: str) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, but {expected} was expected.")
