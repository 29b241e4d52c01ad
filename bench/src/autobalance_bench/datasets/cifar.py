"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as torchvision reads them, and their long tails."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autobalance import InputError
from autobalance.data import ArrayData
from autobalance_bench.datasets._optional import import_optional
from autobalance_bench.datasets.file_lists import describe_folder
from autobalance_bench.datasets.longtail import Profile, long_tailed

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class CIFAR(NamedTuple):
    """Training and test images ``(n, 3, 32, 32)`` in [0, 1], and the names of the classes."""

    train: ArrayData
    test: ArrayData
    class_names: tuple[str, ...]


def load_cifar(folder: str | Path, num_classes: int = 10, *, download: bool = False) -> CIFAR:
    """Load CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images, 740 MB in memory.

    Parameters
    ----------
    folder : path
        Holds ``cifar-10-batches-py`` or ``cifar-100-python``, or is that folder.
    num_classes : {10, 100}
        Which of the two. Of CIFAR-100 the 100 fine classes are taken.
    download : bool
        Whether torchvision downloads and unpacks the set (170 MB) where it is not there.

    Returns
    -------
    CIFAR
        ``train``, ``test`` and ``class_names``.

    Raises
    ------
    InputError
        If torchvision is not installed, a file is missing or is not the published one, or the
        download fails.
    """
    train, test = _read_both(folder, num_classes, download)
    names = tuple(map(str, train.classes))
    return CIFAR(_to_arrays(train, names), _to_arrays(test, names), names)


def load_cifar_lt(
    folder: str | Path,
    num_classes: int = 10,
    *,
    imbalance: float = 100.0,
    profile: str | Profile = "exponential",
    seed: int = 0,
    download: bool = False,
) -> CIFAR:
    """Load CIFAR10-LT or CIFAR100-LT: a long-tailed draw of the training images, all test images.

    With imbalance 100, as in the AutoBalance paper, CIFAR10-LT has 12,406 training images, 5,000 to
    50 per class, and CIFAR100-LT 10,847, 500 to 5 per class. `search` holds 20 % of each class out
    for validation, as the paper does, and `retrain` uses all.

    Parameters
    ----------
    folder, num_classes, download
        As for `load_cifar`.
    imbalance, profile, seed
        As for `long_tailed`; the largest class keeps all of its images.

    Raises
    ------
    InputError
        As for `load_cifar` and `long_tailed`.
    """
    train, test = _read_both(folder, num_classes, download)
    rows = long_tailed(np.asarray(train.targets), imbalance, profile=profile, seed=seed)
    names = tuple(map(str, train.classes))
    return CIFAR(_to_arrays(train, names, rows), _to_arrays(test, names), names)


def _read_both(folder: str | Path, num_classes: int, download: bool) -> tuple[Any, Any]:
    """Torchvision's training and test set."""
    if num_classes not in (10, 100):
        raise InputError(f"CIFAR has 10 or 100 classes; got {num_classes!r}.")
    datasets = import_optional("torchvision.datasets", "Reading CIFAR")
    kind = datasets.CIFAR10 if num_classes == 10 else datasets.CIFAR100
    folder = Path(folder).expanduser()
    root = folder.parent if folder.name == kind.base_folder else folder
    try:
        train, test = (kind(root, train=train, download=download) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{folder} must hold {kind.base_folder} as published; {describe_folder(folder)} "
            f"({error}). Unpack {kind.filename} from {SOURCE} there, or pass download=True."
        ) from None
    return train, test


def _to_arrays(images: Any, names: tuple[str, ...], rows: Any = slice(None)) -> ArrayData:
    pixels = np.ascontiguousarray(images.data[rows].transpose(0, 3, 1, 2))
    inputs = np.divide(pixels, np.float32(255.0), dtype=np.float32)
    return ArrayData.of(inputs, np.asarray(images.targets)[rows], num_classes=len(names))
