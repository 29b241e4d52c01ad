"""Images decoded once into a file of rows, which `StoredRows` reads; what broke off goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from autobalance._validation import InputError
from autobalance.records import format_bytes, free_bytes, write_atomically

Part = tuple[np.ndarray, Mapping[int, str]]
"""Consecutive rows, and by number within the whole those that are not good, with the reason."""


def write_rows(
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
            return _write_rows(path, identity, shape, parts)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error}. Name another folder, or make it possible and call again "
            "to go on."
        ) from None


def _write_rows(
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
