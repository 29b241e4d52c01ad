"""Images decoded once into a .npy file, which `StoredRows` reads; a run that was killed is continued."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from autobalance import InputError
from autobalance.records import format_bytes, free_bytes, write_atomically

Part = tuple[np.ndarray, Mapping[int, str]]
"""Consecutive rows of bytes, and the reason why a row is not good by its number in the whole file."""


def write_rows(
    path: Path, *, identity: str, shape: tuple[int, ...], parts: Callable[[int], Iterator[Part]]
) -> dict[int, str]:
    """Write bytes into a .npy file, unless it is there.

    The file grows under the name ``NAME.part``, and a call after one that was killed continues it.
    Processes of one machine wait for the one that writes.

    Parameters
    ----------
    path : Path
        The file; its folder is made if need be. ``NAME.json`` beside it records what it holds.
    identity : str
        Tells these rows from others.
    shape : tuple of int
        Shape of all rows together, ``(n, ...)``.
    parts : callable
        Called with the number of the first row to write; returns the parts from there on.

    Returns
    -------
    dict
        From the numbers of rows that are not good to the reasons.

    Raises
    ------
    InputError
        If the file holds other rows, or the disk has no room for it or does not take it.
    """
    if path.exists():  # the folder may be one that only others can write in
        return _read_bad_rows(path, identity)
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
        return _read_bad_rows(path, identity)
    growing = path.with_name(f"{path.name}.part")
    notes = _read_notes(path)
    row = int(np.prod(shape[1:]))
    done, bad = 0, {}
    begun = notes.get("identity") == identity and growing.exists()
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), np.uint8))
    with growing.open("r+b" if begun else "wb") as out:
        size = out.seek(0, os.SEEK_END)
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, {**header, "shape": shape})
        if begun:
            # The notes may be ahead of what reached the disk before the machine went down.
            done = max(0, min(int(notes["done"]), (size - out.tell()) // row))
            bad = {i: why for i, why in _bad_rows(notes).items() if i < done}
        out.truncate(out.seek(out.tell() + done * row))
        needed, free = (shape[0] - done) * row, free_bytes(path.parent)
        if needed > free:
            raise InputError(
                f"{path} takes {format_bytes(needed)} more, but {format_bytes(int(free))} are free. "
                "Make room, name another folder, or take a smaller size."
            )
        for rows, reasons in parts(done):
            out.write(np.ascontiguousarray(rows).data)
            out.flush()
            done, bad = done + len(rows), {**bad, **reasons}
            record = {"identity": identity, "done": done, "bad": bad}
            write_atomically(_notes_path(path), json.dumps(record).encode())
        os.fsync(out.fileno())
    growing.replace(path)
    return bad


def _read_bad_rows(path: Path, identity: str) -> dict[int, str]:
    """The rows of a finished file that are not good; refused where it holds other rows."""
    notes = _read_notes(path)
    if notes.get("identity") != identity:
        raise InputError(
            f"{path} holds other images than these, or they have changed, or {_notes_path(path).name} is not "
            "beside it. Remove it, or name another file."
        )
    return _bad_rows(notes)


def _notes_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_notes(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_notes_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _bad_rows(notes: Mapping[str, Any]) -> dict[int, str]:
    """The rows that are not good; JSON has their numbers as text."""
    return {int(row): reason for row, reason in notes.get("bad", {}).items()}
