"""Labelled images of any Dataset: decoded to bytes of one size, in memory or once into a file."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import joblib
import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from autobalance import InputError
from autobalance.data import StoredRows, sampled
from autobalance_bench._checks import check_int, check_path
from autobalance_bench.datasets._optional import import_optional
from autobalance_bench.datasets.stored_images import Part, write_rows

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_NAMED = 10
"""At most so many images that cannot be used are named in a message; the others are counted."""

DECODED_TOGETHER = 256
"""Images decoded before the next are begun; only these are in memory besides the result."""


class ImageFiles(Dataset[Any]):
    """Image files as a Dataset whose items are Pillow images."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image:
        """Open and decode one file, in any format that Pillow reads."""
        with import_optional("PIL.Image", "Decoding images").open(self.paths[index]) as image:
            image.load()
            return image


@dataclass(frozen=True, eq=False)
class LabelledImages(Dataset[Any]):
    """Images with classes and perhaps groups, none of which is decoded before it is asked for.

    A set that is larger than the memory is used in part (`subset`, `limited`), decoded once into a
    file to train on (`store`), or read in order (`batches`). As a Dataset its items are pairs of an
    image ``(3, size, size)``, uint8, and its class index, with the classes of all in `targets`.

    Attributes
    ----------
    images : Dataset
        Of n items that are Pillow images or tuples that begin with one.
    names : tuple of str
        What messages call each image: its path, or its place in the data.
    targets : ndarray
        Class indices, shape ``(n,)``, int64.
    class_names : tuple of str
        By class index.
    groups : ndarray or None
        Group indices, shape ``(n,)``, int64.
    group_names : tuple of str
        By group index; empty without groups.
    size : int
        Height and width that images are scaled to (bilinear, antialiased), at least 1.
    square : bool
        Whether the largest square around the centre is scaled, or all of the image.
    source : str
        Where the images come from, for messages; empty for the user's own.
    fingerprint : str
        Tells these images from others of the same names, where the names are no paths.
    """

    images: Dataset[Any]
    names: tuple[str, ...]
    targets: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    size: int = 224
    square: bool = True
    source: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_int("size", self.size, least=1)

    @classmethod
    def of_files(
        cls, paths: Sequence[Path], targets: np.ndarray, class_names: Sequence[str], **others: Any
    ) -> LabelledImages:
        """Index image files; other attributes are passed by name."""
        names = tuple(map(str, paths))
        return cls(ImageFiles(paths), names, targets, tuple(class_names), **others)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Decode one image; raises InputError, which names it, if that fails."""
        pixels = self._decode(index)
        if isinstance(pixels, str):
            raise InputError(self._complain([pixels]))
        return torch.from_numpy(pixels.copy()), int(self.targets[index])

    @property
    def identity(self) -> str:
        """Sixteen digits that tell the images' pixels from those of other sets.

        They come from the names and sizes of the files, the contents of at most 64 of them, and how
        images are scaled, and stay when the folder of all images is moved.
        """
        root = os.path.commonpath({os.path.dirname(name) for name in self.names} or {""})
        described = [str(self.size), str(self.square), self.fingerprint]
        for name in self.names:
            described += [os.path.relpath(name, root or None), str(_size_of(name))]
        digest = hashlib.sha256("\0".join(described).encode("utf-8", "surrogateescape"))
        # Parts of a set often have files of the same names, and a few contents tell them apart.
        for i in sampled(len(self)):
            if _size_of(self.names[i]) >= 0:
                digest.update(Path(self.names[i]).read_bytes())
        return digest.hexdigest()[:16]

    def subset(self, index: Any) -> LabelledImages:
        """Take the images of these row numbers ``(m,)``, in that order; none is decoded."""
        rows = np.asarray(index, dtype=np.int64)
        return replace(
            self,
            images=Subset(self.images, rows.tolist()),
            names=tuple(self.names[i] for i in rows),
            targets=self.targets[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def limited(self, limit: int | None, *, seed: int = 0) -> LabelledImages:
        """Draw at most `limit` images, in proportion to classes and groups to within one image.

        A cell (class and group) of less than one image in proportion may lose all it has. None
        takes all.
        """
        n = len(self)
        if limit is None or n <= check_int("limit", limit, least=1):
            return self
        k = len(self.class_names)
        cells = self.targets if self.groups is None else self.groups * k + self.targets
        shuffled = np.random.default_rng(seed).permutation(n)
        by_cell = shuffled[np.argsort(cells[shuffled], kind="stable")]
        return self.subset(np.sort(by_cell[(2 * np.arange(limit) + 1) * n // (2 * limit)]))

    def drop(self, bad: Mapping[int, str], allowed: int) -> LabelledImages:
        """Leave out images that cannot be used, with a warning that names them.

        Parameters
        ----------
        bad : mapping
            Their row numbers, with the reasons.
        allowed : int
            At most so many may be left out.

        Raises
        ------
        InputError
            If there are more, or no image is left.
        """
        check_int("allowed", allowed, least=0)
        if not bad:
            return self
        if len(bad) > allowed or len(bad) == len(self):
            raise InputError(self._complain([*bad.values()]))
        rest = self.subset([row for row in range(len(self)) if row not in bad])
        lost = [self.class_names[k] for k in np.setdiff1d(self.targets, rest.targets)]
        more = f" and {len(lost) - 1} other classes" if len(lost) > 1 else ""
        without = f" No image is left of {lost[0]!r}{more}." if lost else ""
        text = f"{len(bad)} of {len(self)} images are left out: {_list_first([*bad.values()])}."
        warnings.warn(text + without, stacklevel=3)
        return rest

    def batches(self, start: int = 0) -> Iterator[Part]:
        """Decode the images in order, on all processors that this process may use.

        Yields pixels ``(m, 3, size, size)``, uint8, m at most 256, black where an image is missing
        or broken, and the reasons by row number.
        """
        import_optional("PIL.Image", "Decoding images")
        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            for begin in range(start, len(self), DECODED_TOGETHER):
                rows = range(begin, min(begin + DECODED_TOGETHER, len(self)))
                pixels = np.zeros((len(rows), 3, self.size, self.size), dtype=np.uint8)
                bad = {}
                for row, image in zip(rows, pool.map(self._decode, rows), strict=True):
                    if isinstance(image, str):
                        bad[row] = image
                    else:
                        pixels[row - begin] = image
                yield pixels, bad

    def load(self, *, allowed: int = 0) -> tuple[LabelledImages, np.ndarray]:
        """Decode all images into memory.

        Parameters
        ----------
        allowed : int
            At most so many images may be missing or broken; they are left out with a warning.

        Returns
        -------
        tuple of LabelledImages and ndarray
            The images that can be used, and their pixels ``(n, 3, size, size)``, uint8.

        Raises
        ------
        InputError
            If more images, or all, cannot be used; up to ten are named.
        """
        pixels = np.empty((len(self), 3, self.size, self.size), dtype=np.uint8)
        bad: dict[int, str] = {}
        start = 0
        for part, reasons in self.batches():
            pixels[start : start + len(part)] = part
            start += len(part)
            bad.update(reasons)
        good = self.drop(bad, allowed)
        return good, np.delete(pixels, list(bad), axis=0) if bad else pixels

    def store(
        self,
        path: str | Path,
        *,
        allowed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[LabelledImages, StoredRows]:
        """Decode all images into one file, from which they are then read as they are needed.

        The file takes ``3 * n * size * size`` bytes on the disk and none in memory. It is written
        once; where decoding was broken off, the next call continues it. The network must take
        images of bytes: `autobalance.networks.FromBytes` scales them to [0, 1].

        Parameters
        ----------
        path : path
            The file, such as ``decoded/train.npy``; ``train.npy.json`` beside it records which
            images it holds. If it holds others it is refused and must be removed by hand.
        allowed : int
            As for `load`.
        progress : callable, optional
            Called now and then with the number of images decoded and of all.

        Returns
        -------
        tuple of LabelledImages and StoredRows
            The images that can be used, and their pixels in the same order.

        Raises
        ------
        InputError
            As for `load`; if the file holds other images, or the disk has no room.
        """
        path = check_path("The file of decoded images", path).expanduser()

        def parts(start: int) -> Iterator[Part]:
            done = start
            for pixels, bad in self.batches(start):
                yield pixels, bad
                done += len(pixels)
                if progress is not None:
                    progress(done, len(self))

        shape = (len(self), 3, self.size, self.size)
        bad = write_rows(path, identity=self.identity, shape=shape, parts=parts)
        good = np.delete(np.arange(len(self)), list(bad))
        return self.drop(bad, allowed), StoredRows([path], good)

    def _decode(self, row: int) -> np.ndarray | str:
        """One image ``(3, size, size)``, or its name and why it cannot be used."""
        try:
            item = self.images[row]
            return scale_image(item[0] if isinstance(item, tuple) else item, self.size, self.square)
        except FileNotFoundError:
            return f"{self.names[row]} is not there"
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds for broken files
            return f"{self.names[row]} cannot be read: {str(error) or type(error).__name__}"

    def _complain(self, bad: list[str]) -> str:
        them = "it" if len(bad) == 1 else "them"
        again = f"Get {them} again from {self.source}" if self.source else f"Replace {them}"
        if len(bad) == 1:
            problem = f"The image {bad[0]}"
        else:
            problem = f"{len(bad)} of {len(self)} images cannot be used: {_list_first(bad)}"
        if len(bad) == len(self):
            return f"{problem}. {again}; there is no other."
        return f"{problem}. {again}, or leave {them} out with allowed_broken: {len(bad)}."


class ImageSplits(NamedTuple):
    """The three parts that a data set is published in."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def scale_image(image: Image, size: int, square: bool) -> np.ndarray:
    """Scale a Pillow image, or its central square, to ``(3, size, size)``, uint8.

    Raises
    ------
    ValueError
        If it has 32 bits per channel, of which Pillow would cut the bright end off.
    """
    if image.mode.startswith("I;16"):
        pillow = import_optional("PIL.Image", "Decoding images")
        image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per channel; save it with 8 or 16")
    if square:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    resampling: Any = 2  # Pillow's BILINEAR
    return np.asarray(image.convert("RGB").resize((size, size), resampling)).transpose(2, 0, 1)


def _list_first(bad: Sequence[str]) -> str:
    return "; ".join(bad[:MOST_NAMED]) + ("; ..." if len(bad) > MOST_NAMED else "")


def _size_of(name: str) -> int:
    """Bytes of the file of that name; -1 where there is none."""
    try:
        return os.stat(name).st_size
    except (OSError, ValueError):
        return -1
