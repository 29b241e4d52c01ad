"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), and their long-tailed versions.

The binary and the Python version are read, unpacked or from their .tar.gz as it is. The batches of
the Python version are pickles; they are read by a reader that knows lists, text and arrays only.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from autobalance._validation import InputError
from autobalance.data import ArrayData
from autobalance_bench.datasets.downloads import BROKEN_ARCHIVE, Published, fetch, packed_files
from autobalance_bench.datasets.listing import contents, folder_of
from autobalance_bench.datasets.longtail import Profile, long_tailed

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SHAPE = 3, 32, 32


class CIFAR(NamedTuple):
    """Training and test images ``(n, 3, 32, 32)`` in [0, 1], and the names of the classes."""

    train: ArrayData
    test: ArrayData
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Version:
    """One published form of one of the two sets: a folder, and the archive that holds it."""

    archive: Published
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    names_key: str
    labels: str
    num_classes: int

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)

    @property
    def binary(self) -> bool:
        return self.test.endswith(".bin")


_ADDRESS = "https://www.cs.toronto.edu/~kriz/"
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEN = (
    _Version(
        Published(f"{_ADDRESS}cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in _BATCHES),
        "test_batch.bin",
        "batches.meta.txt",
        "",
        "",
        10,
    ),
    _Version(
        Published(f"{_ADDRESS}cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        "cifar-10-batches-py",
        _BATCHES,
        "test_batch",
        "batches.meta",
        "label_names",
        "labels",
        10,
    ),
)
_HUNDRED = (
    _Version(
        Published(f"{_ADDRESS}cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        "",
        "",
        100,
    ),
    _Version(
        Published(f"{_ADDRESS}cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        "cifar-100-python",
        ("train",),
        "test",
        "meta",
        "fine_label_names",
        "fine_labels",
        100,
    ),
)


def cifar10(folder: str | Path, *, download: bool = False) -> CIFAR:
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes.

    They take 740 MB in memory, and 2.7 GB while they are read.

    Parameters
    ----------
    folder : path
        Holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or is one of these, or holds
        ``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``.
    download : bool
        Whether the binary version (162 MB) is downloaded into the folder where none is there.

    Returns
    -------
    CIFAR
        ``train``, ``test`` and ``class_names``.

    Raises
    ------
    InputError
        If no version is there, a file is missing or broken, or the download fails.
    """
    return _read(_TEN, folder, download, None)


def cifar100(folder: str | Path, *, download: bool = False) -> CIFAR:
    """CIFAR-100: 50,000 training and 10,000 test images of 100 (fine) classes.

    Parameters and errors are those of `cifar10`; the folders are ``cifar-100-binary`` and
    ``cifar-100-python``.
    """
    return _read(_HUNDRED, folder, download, None)


def cifar10_lt(
    folder: str | Path,
    *,
    imbalance: float = 100.0,
    profile: str | Profile = "exponential",
    seed: int = 0,
    download: bool = False,
) -> CIFAR:
    """CIFAR10-LT: a long-tailed draw of the training images; all test images, balanced.

    With imbalance 100, as in the AutoBalance paper, 12,406 images, 5,000 to 50 per class. `search`
    holds 20 % of each class out for validation, as the paper does, and `retrain` uses all.

    Parameters
    ----------
    folder, download
        As for `cifar10`.
    imbalance, profile, seed
        As for `long_tailed`; the largest class keeps all of its images.

    Raises
    ------
    InputError
        As for `cifar10` and `long_tailed`.
    """
    return _read(_TEN, folder, download, (imbalance, profile, seed))


def cifar100_lt(
    folder: str | Path,
    *,
    imbalance: float = 100.0,
    profile: str | Profile = "exponential",
    seed: int = 0,
    download: bool = False,
) -> CIFAR:
    """CIFAR100-LT: with imbalance 100, 10,847 training images, 500 to 5 per class.

    Parameters and errors are those of `cifar10_lt`.
    """
    return _read(_HUNDRED, folder, download, (imbalance, profile, seed))


def _read(
    versions: tuple[_Version, ...],
    folder: str | Path,
    download: bool,
    tail: tuple[float, str | Profile, int] | None,
) -> CIFAR:
    version, files = _files(versions, Path(folder).expanduser(), download)
    names = _names(version, files)
    parts = [_images(version, files, name) for name in version.train]
    pixels = np.concatenate([images for images, _ in parts])
    target = np.concatenate([labels for _, labels in parts])
    if tail is not None:
        imbalance, profile, seed = tail
        kept = long_tailed(target, imbalance, profile=profile, seed=seed)
        pixels, target = pixels[kept], target[kept]
    test = _data(*_images(version, files, version.test), names)
    return CIFAR(_data(pixels, target, names), test, names)


def _data(pixels: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> ArrayData:
    inputs = np.divide(pixels, np.float32(255.0), dtype=np.float32)
    return ArrayData.of(inputs, target, num_classes=len(names))


# Files ----------------------------------------------------------------------------------


def _files(
    versions: tuple[_Version, ...], folder: Path, download: bool
) -> tuple[_Version, Mapping[str, bytes]]:
    """The version that is there, and its files by name."""
    for version in versions:
        for place in (folder / version.folder, folder):
            if (place / version.test).is_file():
                return version, _unpacked(version, place)
        if (folder / version.archive.name).is_file():
            return version, _packed(version, folder / version.archive.name)
    if download:
        return versions[0], _packed(versions[0], fetch(versions[0].archive, folder))
    folder_of(folder, what="CIFAR")
    wanted = " or ".join(f"{v.folder} (or {v.archive.name})" for v in versions)
    raise InputError(
        f"{folder} must hold {wanted}; {contents(folder)}. Get one from {SOURCE}, or pass "
        "download=True."
    )


def _unpacked(version: _Version, place: Path) -> Mapping[str, bytes]:
    found = {}
    for name in version.files:
        if not (place / name).is_file():
            raise InputError(
                f"{place} lacks the file {name}; {contents(place)}. Unpack "
                f"{version.archive.name} again, from {SOURCE}."
            )
        found[name] = (place / name).read_bytes()
    return found


def _packed(version: _Version, archive: Path) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        for member, content in packed_files(archive):
            name = PurePosixPath(member.name).name
            if name in version.files:
                found[name] = content.read()
    except (OSError, *BROKEN_ARCHIVE) as error:
        raise InputError(
            f"{archive} is no readable archive ({error}). Get it again from {SOURCE}."
        ) from None
    absent = [name for name in version.files if name not in found]
    if absent:
        raise InputError(f"{archive} lacks the file {absent[0]}. Get it again from {SOURCE}.")
    return found


# Contents -------------------------------------------------------------------------------


def _images(
    version: _Version, files: Mapping[str, bytes], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(n, 3, 32, 32)``, uint8, and class indices of one batch file."""
    size = int(np.prod(SHAPE))
    if version.binary:
        label_bytes = 1 if version.num_classes == 10 else 2  # CIFAR-100: coarse, then fine
        raw = np.frombuffer(files[name], np.uint8)
        if len(raw) == 0 or len(raw) % (size + label_bytes):
            raise _broken(name, f"{len(raw)} bytes are not records of {size + label_bytes}")
        records = raw.reshape(-1, size + label_bytes)
        pixels, target = records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)
    else:
        batch = _unpickled(files[name], name)
        pixels, labels = _entry(batch, "data", name), _entry(batch, version.labels, name)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            raise _broken(name, "its data are no array of bytes")
        if pixels.shape != (len(labels), size) or len(labels) == 0:
            raise _broken(name, f"its data have shape {pixels.shape} for {len(labels)} labels")
        target = np.asarray(labels)
        if target.ndim != 1 or target.dtype.kind not in "iu":
            raise _broken(name, f"its {version.labels} are not whole numbers")
    if target.min() < 0 or target.max() >= version.num_classes:
        raise _broken(name, f"it has a label out of 0 to {version.num_classes - 1}")
    return pixels.reshape(-1, *SHAPE), target.astype(np.int64)


def _names(version: _Version, files: Mapping[str, bytes]) -> tuple[str, ...]:
    if version.binary:
        names = files[version.names].decode("utf-8", "replace").split()
    else:
        meta = _unpickled(files[version.names], version.names)
        found = _entry(meta, version.names_key, version.names)
        names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in found]
    if len(set(names)) != version.num_classes:
        raise _broken(version.names, f"it has {len(names)} names of {version.num_classes}")
    return tuple(names)


def _entry(batch: Any, key: str, name: str) -> Any:
    if not isinstance(batch, dict) or key.encode() not in batch:
        raise _broken(name, f"it has no entry {key!r}")
    return batch[key.encode()]


def _broken(name: str, reason: str) -> InputError:
    return InputError(f"CIFAR's file {name} is broken: {reason}. Get it again from {SOURCE}.")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What the function that old pickles of bytes name does with the one encoding they use."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes as {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows arrays of numbers besides what pickles hold by themselves, and nothing that runs."""

    known: Mapping[tuple[str, str], Any] = {
        **{
            (f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0]
            for core in ("core", "_core")
        },
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in self.known:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is not data")
        return self.known[module_name, global_name]


def _unpickled(content: bytes, name: str) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle can raise almost anything
        raise _broken(name, str(error) or type(error).__name__) from None
