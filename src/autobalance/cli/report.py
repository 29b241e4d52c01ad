"""`autobalance report` and `explain`. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from autobalance._validation import InputError
from autobalance.cli.options import DONE
from autobalance.records import write_atomically
from autobalance.report import (
    REPORT,
    as_text,
    explanation,
    read_folder,
    read_run,
    render_report,
    render_runs,
)


def run_explain(options: Namespace, command: str) -> int:
    """Print what a RUN found; returns the exit code."""
    print(as_text(explanation(read_run(read_folder(Path(options.run))))))
    return DONE


def run_report(options: Namespace, command: str) -> int:
    """Write the report of one RUN, or one page of several; returns the exit code."""
    folders = [Path(run) for run in options.runs]
    single = len(folders) == 1
    out = Path(options.out or (folders[0] / REPORT if single else "runs.html"))
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file.")
    if out.exists() and not options.overwrite and not (single and options.out is None):
        raise InputError(f"{out} exists. Add --overwrite, or give another name with --out.")
    records = {name: read_folder(folder) for name, folder in _name_folders(folders).items()}
    page = render_report(*records.values()) if single else render_runs(records)
    write_atomically(out, page.encode())
    print(f"Report: {out}")
    return DONE


def _name_folders(folders: list[Path]) -> dict[str, Path]:
    """Each folder under its own name, or under its path where two have the same."""
    short = [folder.resolve().name for folder in folders]
    names = [
        name if short.count(name) == 1 else str(folder)
        for name, folder in zip(short, folders, strict=True)
    ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"The run {twice} is given twice. Give each once.")
    return dict(zip(names, folders, strict=True))
