"""Rows of arrays in files, read as they are needed: inputs that no memory has to hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from autobalance._validation import InputError
from autobalance.records import format_bytes, free_bytes, write_atomically

SAMPLED = 64
"""Rows or files, evenly spaced, that tell one set from another."""

Part = tuple[np.ndarray, Mapping[int, str]]
"""Consecutive rows, and by number within the whole those that are not good, with the reason."""


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


def written(
    path: Path, *, identity: str, shape: tuple[int, ...], parts: Callable[[int], Iterator[Part]]
) -> dict[int, str]:
    """Write bytes of this shape into a .npy file, unless it is there; rows that are not good, and why.

    What is being written grows as ``NAME.part``; where that broke off the next call goes on. Processes of
    one machine wait for the one that writes.

    Parameters
    ----------
    path : Path
        The file; its folder is made if need be. ``NAME.json`` beside it says what it holds.
    identity : str
        Tells these rows from others.
    shape : tuple of int
        Of all rows.
    parts : callable
        From a row number to the parts from there on.

    Raises
    ------
    InputError
        If the file holds something else, or the disk does not take it.
    """
    if path.exists():  # the folder may be one that only others can write in
        return _as_wanted(path, identity)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            return _written(path, identity, shape, parts)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error}. Name another folder, or make it possible and call again "
            "to go on."
        ) from None


def _written(
    path: Path, identity: str, shape: tuple[int, ...], parts: Callable[[int], Iterator[Part]]
) -> dict[int, str]:
    if path.exists():  # another process has written it meanwhile
        return _as_wanted(path, identity)
    growing = path.with_name(f"{path.name}.part")
    told = _notes(path)
    row = int(np.prod(shape[1:]))
    done, bad = 0, {}
    begun = told.get("identity") == identity and growing.exists()
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), np.uint8))
    with growing.open("r+b" if begun else "wb") as out:
        there = out.seek(0, os.SEEK_END)
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, {**header, "shape": shape})
        if begun:  # as far as it really got to the disk
            done = max(0, min(int(told["done"]), (there - out.tell()) // row))
            bad = {i: why for i, why in _numbered(told).items() if i < done}
        out.truncate(out.seek(out.tell() + done * row))
        needed, free = (shape[0] - done) * row, free_bytes(path.parent)
        if needed > free:
            raise InputError(
                f"{path} takes {format_bytes(needed)} more, but {format_bytes(int(free))} are free. "
                "Make room, name another folder, or take a smaller size."
            )
        for rows, found in parts(done):
            out.write(np.ascontiguousarray(rows).data)
            out.flush()
            done, bad = done + len(rows), {**bad, **found}
            record = {"identity": identity, "done": done, "bad": bad}
            write_atomically(_beside(path), json.dumps(record).encode())
        os.fsync(out.fileno())
    growing.replace(path)
    return bad


def _as_wanted(path: Path, identity: str) -> dict[int, str]:
    told = _notes(path)
    if told.get("identity") != identity:
        raise InputError(
            f"{path} holds other images than these, or they have changed, or {_beside(path).name} is not "
            "beside it. Remove it, or name another file."
        )
    return _numbered(told)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _notes(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_beside(path).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _numbered(told: Mapping[str, Any]) -> dict[int, str]:
    """The rows that are not good, whose numbers JSON made texts of."""
    return {int(row): reason for row, reason in told.get("bad", {}).items()}


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
