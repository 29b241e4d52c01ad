"""Rows of arrays in files, read as they are needed: inputs that no memory has to hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.data.batches import Read
from autobalance.data.lazy_inputs import LazyInputs, sampled


class StoredRows(LazyInputs):
    """Rows of .npy files, in any order, in the place of a tensor of inputs.

    Files are mapped into memory: what is read often stays there as long as there is room, and is shared by
    all processes of the machine. Pickled, it is paths and row numbers. Workers would not help: rows that
    the disk's cache holds are read faster than another process could send them.

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
        self._arrays = [_map_file(file) for file in self.files]
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
        return (
            f"StoredRows({tuple(self.shape)}, {self.dtype}, of {', '.join(map(str, self.files))})"
        )

    @property
    def shape(self) -> torch.Size:
        """Number of rows, and the shape of each."""
        return torch.Size((len(self.rows), *self._arrays[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values, as torch names it."""
        return torch.from_numpy(np.empty(0, self._arrays[0].dtype)).dtype

    def request(self, index: Tensor, seed: int, *, training: bool) -> Read:
        """A function that reads these rows ``(m, ...)`` into memory; nothing about them is random."""
        rows = self.rows[index.cpu().numpy()]
        return lambda: self._read(rows)

    def _read(self, rows: np.ndarray) -> Tensor:
        first = self._arrays[0]
        if len(self._arrays) == 1:
            return torch.from_numpy(np.asarray(first[rows]))
        values = np.empty((len(rows), *first.shape[1:]), first.dtype)
        file = np.searchsorted(self._begins, rows, side="right") - 1
        for i, array in enumerate(self._arrays):
            values[file == i] = array[rows[file == i] - self._begins[i]]
        return torch.from_numpy(values)

    def subset(self, index: Any) -> StoredRows:
        """These rows ``(m,)`` of the same files; none is read."""
        return self._with_rows(self.rows[np.asarray(index)])

    def joined(self, other: StoredRows) -> StoredRows:
        """The rows of both."""
        if other.files == self.files:
            return self._with_rows(np.concatenate([self.rows, other.rows]))
        more = other.rows + self._begins[-1]
        return StoredRows((*self.files, *other.files), np.concatenate([self.rows, more]))

    def _with_rows(self, rows: np.ndarray) -> StoredRows:
        """Others of the same files, by the same mapping: pages count once in it, and once more in another."""
        other = object.__new__(StoredRows)
        vars(other).update(vars(self), rows=rows)
        return other

    def digest(self) -> str:
        """Of the rows' numbers, and of at most 64 rows of each file, since all would take minutes."""
        digest = hashlib.sha256(self.rows.tobytes())
        for array in self._arrays:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(array[sampled(len(array))].tobytes())
        return digest.hexdigest()


def _map_file(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{file} cannot be read as a .npy array: {error}. Remove it to have it written again."
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim < 2:
        raise InputError(f"{file} must be a .npy array of rows, shape (n, ...).")
    return array
