"""`autobalance explain`. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from autobalance.cli.options import DONE
from autobalance.files import read_record


def run_explain(options: Namespace, command: str) -> int:
    from autobalance.report.explain import as_text, explanation
    from autobalance.report.record import read_run

    print(as_text(explanation(read_run(read_record(Path(options.run))))))
    return DONE
