"""`autobalance explain`. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from autobalance.cli.options import DONE


def run_explain(options: Namespace, command: str) -> int:
    from autobalance.report import as_text, explanation, read_folder, read_run

    print(as_text(explanation(read_run(read_folder(Path(options.run))))))
    return DONE
