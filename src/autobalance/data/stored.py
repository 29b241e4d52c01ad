"""Rows of arrays in files, read as they are needed: inputs that no memory has to hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError

SAMPLED = 64
"""Rows or files, evenly spaced, that tell one set from another."""


def sampled(n: int) -> np.ndarray:
    """At most `SAMPLED` numbers below n, evenly spaced, each once."""
    return np.unique(np.linspace(0, n - 1, min(SAMPLED, n)).astype(np.int64))


class StoredRows:
    """Rows of .npy files, in any order, in the place of a tensor of inputs.

    Files are mapped into memory: what is read often stays there as long as there is room, and is shared by
    all processes of the machine. Pickled, it is paths and row numbers.

    Parameters
    ----------
    files : sequence of path
        Arrays whose rows have one shape and type, such as (n, 3, 224, 224) of uint8.
    rows : array-like, optional
        Which of their rows, counted through all files, shape ``(n,)``. By default all.

    Raises
    ------
    InputError
        If a file is missing, no .npy array, or of other rows than the first.
    """

    def __init__(self, files: Sequence[str | Path], rows: Any = None) -> None:
        self.files = tuple(Path(file) for file in files)
        self._arrays = [_mapped(file) for file in self.files]
        first = self._arrays[0]
        for file, array in zip(self.files, self._arrays, strict=True):
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise InputError(
                    f"{file} has rows of shape {array.shape[1:]} and type {array.dtype}, but "
                    f"{self.files[0]} of {first.shape[1:]} and {first.dtype}. Store both alike."
                )
        self._begins = np.cumsum([0, *(len(array) for array in self._arrays)])
        self.rows = np.arange(self._begins[-1]) if rows is None else np.asarray(rows, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.files, self.rows)

    def __repr__(self) -> str:
        named = ", ".join(str(file) for file in self.files)
        return f"StoredRows({tuple(self.shape)}, {self.dtype}, of {named})"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self._arrays[0].shape[1:]))

    @property
    def ndim(self) -> int:
        return self._arrays[0].ndim

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self._arrays[0].dtype)).dtype

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self._arrays[0][:1].nbytes

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Read rows, ``(m, ...)``, into memory, on the CPU."""
        rows = self.rows[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if len(self._arrays) == 1:
            return torch.from_numpy(np.asarray(self._arrays[0][rows]))
        found = np.empty((len(rows), *self._arrays[0].shape[1:]), self._arrays[0].dtype)
        file = np.searchsorted(self._begins, rows, side="right") - 1
        for i, array in enumerate(self._arrays):
            here = file == i
            found[here] = array[rows[here] - self._begins[i]]
        return torch.from_numpy(found)

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, `size` of them read at a time."""
        for start in range(0, len(self), size):
            yield self[slice(start, start + size)]

    @property
    def read_ahead(self) -> int:
        """0: rows that the disk's cache holds are read faster than a worker could send them."""
        return 0

    def request(self, index: Tensor, seed: int, *, training: bool) -> Callable[[], Tensor]:
        """A function that reads these rows; nothing about them is random."""
        return lambda: self[index]

    def reading(self) -> AbstractContextManager[None]:
        """Nothing: there are no workers to stop."""
        return nullcontext()

    def subset(self, index: Any) -> StoredRows:
        """These rows ``(m,)`` of the same files; none is read."""
        return StoredRows(self.files, self.rows[np.asarray(index)])

    def joined(self, other: StoredRows) -> StoredRows:
        """The rows of both."""
        if other.files == self.files:
            return StoredRows(self.files, np.concatenate([self.rows, other.rows]))
        more = other.rows + self._begins[-1]
        return StoredRows((*self.files, *other.files), np.concatenate([self.rows, more]))

    def digest(self) -> str:
        """Of the rows' numbers, and of `SAMPLED` rows of each file, since all would take minutes."""
        digest = hashlib.sha256(self.rows.tobytes())
        for array in self._arrays:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(array[sampled(len(array))].tobytes())
        return digest.hexdigest()


def _mapped(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{file} cannot be read as a .npy array: {error}. Remove it to have it written again."
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim < 2:
        raise InputError(f"{file} must be a .npy array of rows, shape (n, ...).")
    return array
