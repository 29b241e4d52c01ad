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

from autobalance._validation import InputError, whole

if TYPE_CHECKING:
    import pandas as pd

    from autobalance.data import ArrayData, Labelled, StoredRows
    from autobalance_bench.datasets.photographs import Photographs


@dataclass(frozen=True)
class Rows:
    """All rows of a dataset, `validation` of them a given validation set's and `given` a test set's, last."""

    table: pd.DataFrame
    inputs: np.ndarray | StoredRows | None = None
    given: int = 0
    names: np.ndarray | None = None
    validation: int = 0


@dataclass(frozen=True)
class Request:
    """What a definition asks of a reader; see there."""

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
        if len(self.groups) > 1:
            raise InputError(
                f"This layout reads one column of groups; got {', '.join(self.groups)}. Join them "
                "in the file."
            )
        return self.groups[0] if self.groups else None


def _fashion(folder: Path, request: Request) -> Rows:
    from autobalance.data import CLASSES
    from autobalance_bench.datasets.fashion import original

    train, test = original(folder)
    names = np.array(CLASSES)[np.concatenate([train.target, test.target])]
    images = np.concatenate([train.images, test.images])
    padding = whole("padding", request.options.get("padding", 0), least=0)
    if padding:
        images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    return _rows({"label": names}, images, request, given=len(test.target))


def _textures(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.textures import OBJECTS, TEXTURES, fashion_textures

    train, test = fashion_textures(folder)
    target = np.concatenate([train.target, test.target])
    groups = np.concatenate([train.groups, test.groups])
    table = {"object": np.array(OBJECTS)[target], "background": np.array(TEXTURES)[groups]}
    images = np.concatenate([train.images, test.images])
    return _rows(table, images, request, given=len(test.target))


def _waterbirds(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets import waterbirds

    parts = waterbirds(folder, size=request.size, limit=request.limit, **request.options)
    return _photographs(parts, request, "bird", "place")


def _celeba(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets import celeba

    parts = celeba(folder, size=request.size, limit=request.limit, **request.options)
    return _photographs(parts, request, "hair", "sex")


def _imagenet_lt(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.imagenet import imagenet_lt

    parts = imagenet_lt(folder, size=request.size, limit=request.limit, **request.options)
    return _photographs(parts, request)


def _inaturalist(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.inaturalist import inaturalist_2018

    parts = inaturalist_2018(folder, size=request.size, limit=request.limit, **request.options)
    return _photographs(parts, request)


def _class_folders(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.folders import class_folders

    images = class_folders(folder, size=request.size, limit=request.limit, **request.options)
    return _photographs([images], request)


def _image_table(path: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.folders import image_table

    _refuse_folder(path, "a CSV or Parquet file that lists images")
    images = image_table(
        path,
        target=request.target,
        groups=request.group(),
        size=request.size,
        limit=request.limit,
        **request.options,
    )
    return _photographs([images], request, request.target, request.group() or "")


def _cifar(reader: str) -> Callable[[Path, Request], Rows]:
    def read(folder: Path, request: Request) -> Rows:
        from autobalance_bench.datasets import cifar

        train, test, names = getattr(cifar, reader)(folder, **request.options)
        target = np.concatenate([train.target.numpy(), test.target.numpy()])
        images = np.concatenate([train.inputs.numpy(), test.inputs.numpy()])
        return _rows({"class": np.array(names)[target]}, images, request, given=len(test))

    return read


def _hugging_face(folder: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.huggingface import from_hugging_face, hugging_face_images

    labels: dict[str, Any] = {"target": request.target, "groups": request.group()}
    if "inputs" in request.options:  # a column of numbers
        return _labelled(from_hugging_face(folder, **labels, **request.options), request)
    images = hugging_face_images(folder, size=request.size, **labels, **request.options)
    limited = images if request.limit is None else images.limited(request.limit)
    return _photographs([limited], request, request.target, request.group() or "")


def _embeddings(path: Path, request: Request) -> Rows:
    from autobalance_bench.datasets.embeddings import read_embeddings

    _refuse_folder(path, "a Parquet or .npz file of embeddings")
    if request.backbone is not None:
        raise InputError("embeddings are features already; leave the backbone out.")
    found = read_embeddings(path, target=request.target, groups=request.group(), **request.options)
    return _labelled(found, request)


READERS: Mapping[str, Callable[[Path, Request], Rows]] = {
    "fashion": _fashion,
    "fashion-textures": _textures,
    "waterbirds": _waterbirds,
    "celeba": _celeba,
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
    "cifar10_lt": _cifar("cifar10_lt"),
    "cifar100_lt": _cifar("cifar100_lt"),
    "imagenet_lt": _imagenet_lt,
    "inaturalist_2018": _inaturalist,
    "class_folders": _class_folders,
    "image_table": _image_table,
    "embeddings": _embeddings,
    "hugging_face": _hugging_face,
}
"""By the layout's name; each from what `path` names."""
TELL_SECONDS = 10.0
"""Between two lines on how far the decoding of images is."""
FILES = ("image_table", "embeddings")
"""Layouts of files rather than folders."""


def _photographs(
    parts: Sequence[Photographs], request: Request, target: str = "class", group: str = ""
) -> Rows:
    """Photographs with a table of their labels; of several parts the last is the given test set.

    The middle one of three is for validation, where that is asked for.
    """
    from autobalance.data import StoredRows
    from autobalance_bench.datasets.photographs import Photographs

    if len(parts) == 3 and not request.published:
        parts = [parts[0], parts[2]]
    names = np.array(_distinct(parts[0].class_names))
    allowed = request.allowed_broken
    if request.store is not None:
        sides = [_stored(part, Path(request.store), allowed) for part in parts]
        stored = [side.inputs for side in sides if isinstance(side.inputs, StoredRows)]
        inputs = reduce(StoredRows.joined, stored)
    else:
        sides = [part.readable(allowed=allowed) for part in parts] if allowed else list(parts)
        joined = reduce(Photographs.joined, sides)
        inputs = joined.pixels() if request.backbone is None else _features(request, joined)
    table = {target: np.concatenate([names[np.asarray(side.target)] for side in sides])}
    if sides[0].groups is not None:
        sets = np.array(parts[0].group_names)
        table[group] = np.concatenate([sets[np.asarray(side.groups)] for side in sides])
    return Rows(
        _table(table),
        inputs,
        given=len(sides[-1]) if len(sides) > 1 else 0,
        validation=len(sides[1]) if len(sides) == 3 else 0,
    )


def _stored(part: Photographs, folder: Path, allowed: int) -> ArrayData:
    """A part decoded into a file of the folder, which tells now and then how far it is."""
    path, last = folder / f"{part.identity}.npy", time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS:
            last = time.monotonic()
            print(f"autobalance: {done} of {total} images decoded into {path}", file=sys.stderr)

    return part.stored(path, allowed=allowed, progress=told)


def _labelled(found: Labelled, request: Request) -> Rows:
    """Numbers and labels in memory, whose columns the request names."""
    data, names, sets = found
    table = {request.target: np.array(names)[data.target.numpy()]}
    group = request.group()
    if group is not None and data.groups is not None:
        table[group] = np.array(sets)[data.groups.numpy()]
    return _rows(table, data.in_memory().numpy(), request)


def _rows(
    table: Mapping[str, np.ndarray], images: np.ndarray, request: Request, given: int = 0
) -> Rows:
    if request.backbone is not None:
        images = _features(request, images)
    return Rows(_table(table), images, given)


def _table(columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(dict(columns))


def _features(request: Request, images: Any) -> np.ndarray:
    """The backbone's features ``(n, d)`` of photographs or of arrays of images."""
    from torch import nn

    from autobalance.heads import extract_features
    from autobalance.networks import FromBytes
    from autobalance_bench.comparison.dataset_network import backbone_of

    if isinstance(images, np.ndarray):
        images = images if images.ndim == 4 else images[:, None]
    assert request.backbone is not None
    backbone = nn.Sequential(FromBytes(), backbone_of(request.backbone))
    return extract_features(backbone, images, device=request.device).numpy()


def _distinct(names: Sequence[str]) -> list[str]:
    """Names by which classes can be told apart, also where two are called alike."""
    often = Counter(names)
    return [f"{name} ({i})" if often[name] > 1 else name for i, name in enumerate(names)]


def _refuse_folder(path: Path, expected: str) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, but {expected} was expected.")
