"""The command line in the test's own process, which has torch already."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import warnings
from pathlib import Path
from unittest.mock import patch

from autobalance.cli import main


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in this process, with what it prints; warnings are printed as Python does."""
    command = [*map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or "."),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        patch.dict(os.environ),
    ):
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)  # as in Python's own defaults
        code = main(command)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
