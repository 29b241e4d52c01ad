"""Files that are written whole or not at all, and JSON that any reader accepts."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from autobalance._validation import InputError, instance, path_of

RESULT = "result.json"
"""Name of the record in a RUN folder."""


def output_folder(path: str | Path, *, overwrite: bool) -> Path:
    """Refuse an output folder that has something in it, unless told to overwrite."""
    path = path_of("The output", path)
    if path.exists() and not path.is_dir():
        raise InputError(f"The output {path} is a file; give the name of a folder.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise InputError(
            f"The output folder {path} is not empty. Add --overwrite, or give another name."
        )
    return path


def phase_file(checkpoint: str | Path, phase: Literal["length", "race", "training"]) -> Path:
    """Where what comes before a search, or the training after it, keeps its state: beside the search's."""
    path = Path(checkpoint)
    return path.with_name(f"{path.name}.{phase}")


def checkpoint_files(folder: str | Path) -> dict[str, Path]:
    """Where a fit keeps the state of its search, of the race before it and of the training after it."""
    search = Path(folder) / "search.checkpoint"
    return {
        "search": search,
        "race": phase_file(search, "race"),
        "training": phase_file(search, "training"),
    }


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file under another name and rename it, so that no reader sees half of one.

    Where it fails, a disk being full for example, a file that was there before stays whole.
    """
    path = Path(path)
    write_together(path.parent, {path.name: content})


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together: none takes its place before all are on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f".{name}.{os.getpid()}.part" for name in contents}
    try:
        for name, content in contents.items():
            with parts[name].open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for name, part in parts.items():
            part.replace(folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left half-written, in a folder that this process has to itself."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def to_json(record: Any, *, indent: int | None = None) -> str:
    """JSON text of a record; numbers that JSON does not have (NaN, infinities) become null."""
    return json.dumps(_without_gaps(record), indent=indent, allow_nan=False)


def _without_gaps(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_gaps(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_gaps(item) for item in value]
    return value


def parsed_record(text: str, what: str) -> Any:
    """A record from its JSON text; `what` it should be goes into the refusal of another text."""
    instance(f"The text of {what}", text, (str, bytes))
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"This is not {what}: it is nested too deeply.") from None
    except ValueError as error:  # no JSON, or bytes that are no text
        raise InputError(f"This is not {what}: not JSON ({error}).") from None


def check_format(record: Any, format_: str, what: str, name: str) -> None:
    """Refuse a record of another kind than `what`, or of another version than 1."""
    if not isinstance(record, dict) or record.get("format") != format_:
        raise InputError(f"This is not {what}: its 'format' is not there.")
    if record.get("version") != 1:
        raise InputError(
            f"This {name} was written in version {record.get('version')!r} of the format; this "
            "release reads version 1. Read it with the release that wrote it."
        )


def read_record(folder: Path) -> dict[str, Any]:
    """``result.json`` of a RUN folder."""
    if not path_of("The RUN folder", folder / RESULT).is_file():
        raise InputError(
            f"{folder} is not a RUN folder: it has no {RESULT}. `autobalance fit` makes one."
        )
    return read_json(folder / RESULT)


def run_status(folder: Path) -> str | None:
    """What ``result.json`` says of the run: "finished", "interrupted", "diverged" or "failed"."""
    try:
        return read_record(folder).get("status")
    except InputError:
        return None


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file; anything else is refused."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a record of autobalance.")
    return record


def format_bytes(size: int) -> str:
    """Bytes in words."""
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= of:
            return f"{size / of:.1f} {unit}"
    return f"{size} bytes"


def free_bytes(folder: Path) -> float:
    """Bytes that are free on the folder's disk; infinite where it does not tell its size, such as 0."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf
