"""Labelled photographs in folders: their files, and their pixels as they are needed."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import joblib
import numpy as np
import pandas as pd
import torch

from autobalance._validation import InputError, path_of, whole
from autobalance.data import ArrayData, Batch, StoredRows, column, sampled
from autobalance_bench.datasets.stored_images import Part, write_rows

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "validation", "test")
"""What the numbers 0, 1 and 2 of a split column mean, in Waterbirds and in CelebA."""

MOST_NAMED = 10
"""So many of the images that cannot be used are named; the others are counted."""

READ_TOGETHER = 256
"""Images decoded before the next are begun; only these are in memory besides the result."""


class ImageSource(Protocol):
    """An image that is no file of its own, such as a cell of a table; its text names it in messages."""

    @property
    def identity(self) -> str:
        """Tells it from others."""
        ...

    def scaled(self, size: int, square: bool) -> np.ndarray:
        """As the function `scaled`; raises where it cannot be decoded."""
        ...


@dataclass(frozen=True)
class Photographs:
    """Image files with classes and, maybe, groups; nothing is decoded before it is asked for.

    So a set that is larger than the memory is an index of files, of which a part is loaded, which
    is decoded once into a file to train on (`stored`), or which a frozen network turns into features
    (`extract_features` takes it as it is). Decoding runs on all processors that this process may use.

    Attributes
    ----------
    files : tuple of Path or ImageSource
        Of n images, in any format that Pillow reads.
    target : ndarray
        Class indices, shape ``(n,)``, int64.
    groups : ndarray or None
        Group indices, shape ``(n,)``, int64.
    class_names, group_names : tuple of str
        By index; without groups `group_names` is empty.
    size : int
        Height and width that images are scaled to (bilinear, antialiased).
    square : bool
        Whether the largest square around the centre is scaled, or all of the image.
    source : str
        Where the images come from, for the message that one is missing; empty for the user's own.
    """

    files: tuple[Path | ImageSource, ...]
    target: np.ndarray
    groups: np.ndarray | None
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    size: int
    square: bool
    source: str

    def __len__(self) -> int:
        return len(self.files)

    @property
    def identity(self) -> str:
        """Of the images' pixels, 16 digits: by their files' paths and sizes, the contents of `SAMPLED` of
        them, and how they are scaled.

        It stays as it is when the folder of all images is moved.
        """
        folders = {file.parent for file in self.files if isinstance(file, Path)}
        root = os.path.commonpath([*folders]) if folders else ""
        told = [str(self.size), str(self.square)]
        for file in self.files:
            if isinstance(file, Path):
                told += [os.path.relpath(file, root), str(_bytes_of(file))]
            else:
                told.append(file.identity)
        digest = hashlib.sha256("\0".join(told).encode("utf-8", "surrogateescape"))
        # Parts of a set often have files of like names: numbers, by class.
        for i in sampled(len(self)):
            file = self.files[i]
            if isinstance(file, Path) and _bytes_of(file) >= 0:
                digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def counts(self) -> np.ndarray:
        """Images per class ``(k,)``, or per group and class ``(g, k)`` where there are groups."""
        k = len(self.class_names)
        if self.groups is None:
            return np.bincount(self.target, minlength=k)
        cells = self.groups * k + self.target
        return np.bincount(cells, minlength=k * len(self.group_names)).reshape(-1, k)

    def subset(self, index: Any) -> Photographs:
        """The images of these row numbers ``(m,)``, as `long_tailed` gives them, in that order."""
        rows = np.asarray(index, dtype=np.int64)
        return replace(
            self,
            files=tuple(self.files[i] for i in rows),
            target=self.target[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def limited(self, limit: int, *, seed: int = 0) -> Photographs:
        """At most `limit` of the images, drawn in proportion to the cells to within one image.

        A cell (class and group) of fewer than one image in proportion may lose all it has.
        """
        whole("limit", limit, least=1)
        n = len(self)
        if n <= limit:
            return self
        shuffled = np.random.default_rng(seed).permutation(n)
        cells = self.target if self.groups is None else self._cells(self.groups)
        by_cell = shuffled[np.argsort(cells[shuffled], kind="stable")]
        return self.subset(np.sort(by_cell[(2 * np.arange(limit) + 1) * n // (2 * limit)]))

    def readable(self, *, allowed: int = 0) -> Photographs:
        """Decode every image once, and leave out those that are missing or broken.

        Parameters
        ----------
        allowed : int
            At most so many images may be left out; a warning then names them.

        Raises
        ------
        InputError
            If more of them cannot be used. The first `MOST_NAMED` are named.
        """
        whole("allowed", allowed, least=0)
        bad: dict[int, str] = {}
        for start in range(0, len(self), READ_TOGETHER):
            part = self.files[start : start + READ_TOGETHER]
            for i, found in enumerate(self._each(part), start):
                if isinstance(found, str):
                    bad[i] = found
        return self._kept(bad, allowed)

    def pixels(self) -> np.ndarray:
        """All images, shape ``(n, 3, size, size)``, uint8: a quarter of what `load` takes.

        Raises
        ------
        InputError
            If an image is missing or cannot be decoded (of several near each other, up to
            `MOST_NAMED` are named), or Pillow is not installed.
        """
        pixels = np.empty((len(self), 3, self.size, self.size), dtype=np.uint8)
        for part, decoded in self._parts(READ_TOGETHER):
            pixels[part] = decoded
        return pixels

    def load(self) -> ArrayData:
        """All images in memory, float32 in [0, 1]: ``12 * n * size * size`` bytes.

        Raises
        ------
        InputError
            As for `pixels`.
        """
        inputs = np.empty((len(self), 3, self.size, self.size), dtype=np.float32)
        for part, decoded in self._parts(READ_TOGETHER):
            np.divide(decoded, np.float32(255.0), out=inputs[part])
        return self.with_inputs(inputs)

    def stored(
        self,
        path: str | Path,
        *,
        allowed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> ArrayData:
        """All images decoded into one file, as bytes, and read from there as they are needed.

        It takes ``3 * n * size * size`` bytes on the disk and none in memory. The file is written once;
        where decoding was broken off, the next call goes on. The network must take images of bytes:
        `autobalance.networks.FromBytes` scales them to [0, 1].

        Parameters
        ----------
        path : path
            The file, such as ``decoded/train.npy``; ``train.npy.json`` beside it tells of which images it
            is. Where images have been replaced it is refused: remove it.
        allowed : int
            At most so many images may be missing or broken; they are left out with a warning.
        progress : callable, optional
            Told how many images of all are decoded, now and then.

        Raises
        ------
        InputError
            As for `readable`; if the file holds other images, or the disk has no room for it.
        """
        whole("allowed", allowed, least=0)
        path = path_of("The file of decoded images", path).expanduser()

        def parts(start: int) -> Iterator[Part]:
            for part, pixels, bad in self._read(READ_TOGETHER, start):
                yield pixels, bad
                if progress is not None:
                    progress(min(part.stop, len(self)), len(self))

        shape = (len(self), 3, self.size, self.size)
        bad = write_rows(path, identity=self.identity, shape=shape, parts=parts)
        good = np.delete(np.arange(len(self)), list(bad))
        return self._kept(bad, allowed).with_inputs(StoredRows([path], good))

    def with_inputs(self, inputs: Any) -> ArrayData:
        """These inputs ``(n, ...)``, such as features of the images, with the images' labels.

        Raises
        ------
        InputError
            As for `ArrayData.of`.
        """
        return ArrayData.of(
            inputs,
            self.target,
            groups=self.groups,
            num_classes=len(self.class_names),
            num_groups=None if self.groups is None else len(self.group_names),
        )

    def batches(self, size: int = 256) -> Iterator[Batch]:
        """The images in order, `size` at a time (the last batch may be smaller).

        Only one batch is in memory at a time. Inputs are as those of `load`.

        Raises
        ------
        InputError
            As for `pixels`.
        """
        whole("size", size, least=1)
        for part, decoded in self._parts(size):
            yield Batch(
                torch.from_numpy(decoded).float() / 255.0,
                torch.from_numpy(self.target[part]),
                None if self.groups is None else torch.from_numpy(self.groups[part]),
            )

    def joined(self, other: Photographs) -> Photographs:
        """These images and then the other ones, of the same classes, groups and size."""
        return replace(
            self,
            files=(*self.files, *other.files),
            target=np.concatenate([self.target, other.target]),
            groups=None
            if self.groups is None or other.groups is None
            else np.concatenate([self.groups, other.groups]),
        )

    def _kept(self, bad: Mapping[int, str], allowed: int) -> Photographs:
        """Without those that cannot be used, of which so many are allowed."""
        if not bad:
            return self
        if len(bad) > allowed or len(bad) == len(self):
            raise InputError(self._complaint(list(bad.values()), of=len(self)))
        kept = self.subset([i for i in range(len(self)) if i not in bad])
        lost = np.setdiff1d(self.target, kept.target)
        without = f" No image is left of {self.class_names[lost[0]]!r}" if len(lost) else ""
        more = f" and {len(lost) - 1} other classes" if len(lost) > 1 else ""
        text = self._complaint(list(bad.values()), of=len(self), out=True)
        warnings.warn(f"{text}{without}{more}{'.' if without else ''}", stacklevel=3)
        return kept

    def _cells(self, groups: np.ndarray) -> np.ndarray:
        return groups * len(self.class_names) + self.target

    def _parts(self, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of `size` images and their pixels; the unusable ones of a slice are told at once."""
        for part, pixels, bad in self._read(size):
            if bad:
                raise InputError(self._complaint(list(bad.values()), of=len(pixels)))
            yield part, pixels

    def _read(
        self, size: int, start: int = 0
    ) -> Iterator[tuple[slice, np.ndarray, dict[int, str]]]:
        """Slices from an image on, their pixels, and which of them cannot be used; those are black."""
        for begin in range(start, len(self), size):
            part = slice(begin, begin + size)
            files = self.files[part]
            pixels = np.zeros((len(files), 3, self.size, self.size), dtype=np.uint8)
            bad = {}
            for i, found in enumerate(self._each(files)):
                if isinstance(found, str):
                    bad[begin + i] = found
                else:
                    pixels[i] = found
            yield part, pixels, bad

    def _each(self, files: tuple[Path | ImageSource, ...]) -> Iterator[np.ndarray | str]:
        """The pixels of each file, or what is wrong with it."""
        if not files:
            return
        pillow()
        arguments = files, repeat(self.size), repeat(self.square)
        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            yield from pool.map(_decoded, *arguments)

    def _complaint(self, bad: list[str], *, of: int, out: bool = False) -> str:
        named = "; ".join(bad[:MOST_NAMED]) + ("; ..." if len(bad) > MOST_NAMED else "")
        if out:
            return f"{len(bad)} of {of} images are left out: {named}."
        one = len(bad) == 1
        them = "it" if one else "them"
        again = f"Get {them} again from {self.source}" if self.source else f"Replace {them}"
        said = f"The image {named}" if one else f"{len(bad)} of {of} images cannot be used: {named}"
        n = len(bad)
        if n == len(self):
            return f"{said}. {again}; there is no other."
        return (
            f"{said}. {again}, or leave {them} out: readable(allowed={n}), stored(..., allowed={n}), or "
            f"allowed_broken: {n} in a comparison."
        )


def scaled(image: Image, size: int, square: bool) -> np.ndarray:
    """A Pillow image, or its central square, as ``(3, size, size)``, uint8.

    Raises
    ------
    ValueError
        If it has 32 bits per channel, of which Pillow would cut the bright end off.
    """
    if image.mode.startswith("I;16"):
        image = pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per channel; save it with 8 or 16")
    image = image.crop(_central_square(*image.size)) if square else image
    resampling: Any = 2  # Pillow's BILINEAR
    return np.asarray(image.convert("RGB").resize((size, size), resampling)).transpose(2, 0, 1)


def _decoded(file: Path | ImageSource, size: int, square: bool) -> np.ndarray | str:
    """One image ``(3, size, size)``, or its name and why it cannot be used."""
    if isinstance(file, Path) and not file.is_file():
        return f"{file} is not there"
    try:
        if not isinstance(file, Path):
            return file.scaled(size, square)
        with pillow().open(file) as image:
            return scaled(image, size, square)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds for broken files
        return f"{file} cannot be read: {str(error) or type(error).__name__}"


def _bytes_of(file: Path) -> int:
    """Of a file; -1 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise InputError(
            "Images are decoded by Pillow, which is not installed. Install it: "
            "pip install 'autobalance[vision]'."
        ) from None
    return Image


class PhotographSplits(NamedTuple):
    """The three parts that a data set is published in."""

    train: Photographs
    validation: Photographs
    test: Photographs


def _central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def numbers(
    table: pd.DataFrame, name: str, role: str, allowed: tuple[int, ...], where: Path
) -> np.ndarray:
    """A column of whole numbers, each one of `allowed`, shape ``(n,)``, int64.

    Raises
    ------
    InputError
        If the column is absent, or has a missing or another value.
    """
    values = column(table, name, role)
    bad = ~values.isin(allowed).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{where}: {name} must be one of {', '.join(map(str, allowed))}; got "
            f"{values.iloc[row]!r} in row {row + 1}."
        )
    return values.to_numpy().astype(np.int64)
