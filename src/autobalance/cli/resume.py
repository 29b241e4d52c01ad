"""Why a run cannot be resumed with these options, in the options' own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autobalance._validation import InputError
from autobalance.bilevel import OtherRun
from autobalance.objectives import NAMED
from autobalance.records import read_record, to_json

_TABLE = "the data of the table, or --target, --groups or --missing-groups"
_NAMES = {
    "seed": "--seed",
    "augment": "--augment",
    "test": "--test",
    "data": _TABLE,
    "examples": _TABLE,
    "class_counts": _TABLE,
    "validation_counts": _TABLE,
    "network": _TABLE,
    "space": _TABLE,
}
_STOPPED = ("interrupted", "failed")


def other_options(error: OtherRun, out: Path) -> InputError:
    """The refusal of a checkpoint in a RUN folder, as the command line says it."""
    options = dict.fromkeys(_describe(key, *values) for key, values in error.differences.items())
    return InputError(
        f"The run in {out} was begun with other options: {'; '.join(options)}.{_name_command(out)} Resume "
        "with those, or give --overwrite in place of --resume to start anew."
    )


def _describe(key: str, then: Any, now: Any) -> str:
    if key == "objective":
        named = {to_json(known.to_dict()): name for name, known in NAMED.items()}
        then, now = (named.get(to_json(value), "another") for value in (then, now))
    elif not key.startswith(("recipe.", "search.")):
        # Seeds and digests are made from what was given, and tell nobody what that was.
        return _NAMES.get(key, f"{key} (then {then}, now {now})")
    then, now = (_format(value) for value in (then, now))
    return f"--{key} (then {then}, now {now})"


def _format(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name_command(out: Path) -> str:
    """The command that the run was begun with, where a record of it was left."""
    try:
        record = read_record(out)
    except InputError:  # killed before it could leave one
        return ""
    if record.get("status") not in _STOPPED or not record.get("command"):
        return ""
    return f" It was begun by: {record['command']}."
