"""The finished and failed cells of a comparison, one line of JSON each, appended as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autobalance import InputError
from autobalance.records import to_json

Key = tuple[str, str, "str | None", int]

_TEXT = (str,)
_FIELDS: dict[str, tuple[type, ...]] = {
    "dataset": _TEXT,
    "method": _TEXT,
    "objective": (str, type(None)),
    "seed": (int,),
    "identity": _TEXT,
    "status": _TEXT,
}
_FINISHED: dict[str, tuple[type, ...]] = {"report": (dict,), "objectives": (dict,)}


def key_of(record: Mapping[str, Any]) -> Key:
    """What tells a cell from others: (dataset, method, objective, seed)."""
    return record["dataset"], record["method"], record["objective"], record["seed"]


class Store:
    """An append-only file of cells, in which the last line of a key counts.

    A process that dies while it writes leaves at most one incomplete line, the last. It is
    ignored, and the next append removes it. One process at a time may append; any number may read.

    Parameters
    ----------
    path : str or Path
        The file, which need not exist: then the store is empty, and the first append makes the
        file and its folder.

    Raises
    ------
    InputError
        If the path is a folder; on reading, if a line other than an incomplete last one is no
        record of a cell.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(f"The results {self.path} are a folder; give the name of a file.")
        self._forget()

    def cells(self, *, required: bool = False) -> list[dict[str, Any]]:
        """The records, one per key, in the order in which their keys first came.

        Parameters
        ----------
        required : bool
            Refuse a missing file or one without any record, instead of returning no cells.

        Raises
        ------
        InputError
            If a line is malformed, or if there is nothing although it is required.
        """
        self._catch_up()
        if required and not self._cells:
            raise InputError(
                f"There are no results in {self.path}. `autobalance compare` without --summary "
                "runs the comparison and writes them; run it first, with the same output."
            )
        return list(self._cells.values())

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record as the last line; on return it is on disk.

        Numbers that JSON does not have (NaN, infinities) are written as null.

        Raises
        ------
        InputError
            If the record lacks a field that every cell has, or one has the wrong type.
        """
        problem = _problem(record)
        if problem:
            raise InputError(f"This is no record of a cell: {problem}.")
        line = to_json(dict(record)).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            line = _repair(stream) + line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this process may append; on Windows nobody is kept from it.

        Raises
        ------
        InputError
            If another process of this machine is here.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise InputError(
                f"Another command is writing results into {self.path.parent}. Wait for it, or give "
                "another --out."
            ) from None
        try:
            yield
        finally:
            os.close(folder)

    def finished(self, key: Key, identity: str) -> bool:
        """Whether the last record of the key is of a finished cell with this identity."""
        self._catch_up()
        record = self._cells.get(key)
        return (
            record is not None and record["status"] == "finished" and record["identity"] == identity
        )

    def _forget(self) -> None:
        self._cells: dict[Key, dict[str, Any]] = {}
        self._offset = 0
        self._lines = 0

    def _catch_up(self) -> None:
        """Read what came since the last time, so that asking for each of many cells is cheap."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            self._forget()
            return
        if size < self._offset:
            self._forget()
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            *lines, rest = stream.read().split(b"\n")
        for line in lines:
            self._offset += len(line) + 1
            self._lines += 1
            if line.strip():
                self._keep(self._parsed(line))
        # Not counted as read: it is read again once it has its end.
        complete = _complete(rest)
        if complete is not None:
            self._keep(complete)

    def _keep(self, record: dict[str, Any]) -> None:
        self._cells[key_of(record)] = record

    def _parsed(self, line: bytes) -> dict[str, Any]:
        record: Any = None
        try:
            record = json.loads(line, parse_constant=_refused)
            problem = _problem(record)
        except ValueError as error:
            problem = f"not JSON ({error})"
        if problem:
            number, self._offset, self._lines = self._lines, 0, 0
            self._cells = {}
            raise InputError(
                f"Line {number} of {self.path} is no record of a cell: {problem}. Remove the line, "
                "and its cell runs again; or give the file that `autobalance compare` wrote."
            )
        return record


def _repair(stream: Any) -> bytes:
    """Cut an incomplete last line off; return what must come before the next record."""
    stream.seek(0)
    content = stream.read()
    rest = content[content.rfind(b"\n") + 1 :]
    if not rest:
        return b""
    if _complete(rest) is not None:
        return b"\n"
    stream.truncate(len(content) - len(rest))
    return b""


def _complete(rest: bytes) -> dict[str, Any] | None:
    """The record of a last line that lacks no more than its end; None for any other."""
    try:
        record = json.loads(rest, parse_constant=_refused)
    except ValueError:
        return None
    return None if _problem(record) else record


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _problem(record: Any) -> str | None:
    """What keeps this from being a record of a cell; None where nothing does."""
    if not isinstance(record, Mapping):
        return f"an object was expected; got {type(record).__name__}"
    fields = _FIELDS | (_FINISHED if record.get("status") == "finished" else {})
    missing = [name for name in fields if name not in record]
    if missing:
        return f"it lacks {', '.join(missing)}"
    for name, types in fields.items():
        value = record[name]
        if not isinstance(value, types) or isinstance(value, bool):
            return f"{name} is {value!r}"
    if record["status"] not in ("finished", "failed"):
        return f"status must be finished or failed; got {record['status']!r}"
    return None
