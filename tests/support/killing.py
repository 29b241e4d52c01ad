"""Commands that are killed at a given moment, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# One process starts torch; each attempt is a child of it, killed by its parent after the seconds
# that a line on standard input says (0: not at all), and answered by how it ended.
SERVER = """
import importlib, json, os, signal, sys, time
import torch
torch.set_num_threads(1)
from autobalance import cli
from autobalance.bilevel import checkpoints
import autobalance.cli.run_folder, autobalance.cli.terminal, autobalance.sklearn.classifier
import autobalance.bilevel.pareto_frontier
for name in sys.argv[1:]:
    importlib.import_module(name)
checkpoints.CHECKPOINT_SECONDS = 0.05
for line in sys.stdin:
    seconds, arguments = json.loads(line)
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os._exit(cli.main(arguments))
    if seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, time.monotonic() - begun]), flush=True)
"""
KILLED = -9


class Server:
    """Runs commands that are killed after some seconds."""

    def __init__(self, folder: Path, *modules: str) -> None:
        """Start it in `folder`; `modules` are imported once, before the first command."""
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", SERVER, *modules], cwd=folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, arguments: list[str], seconds: float = 0.0) -> tuple[int, float]:
        """Exit code and duration."""
        self.process.stdin.write(json.dumps([seconds, arguments]) + "\n")
        self.process.stdin.flush()
        code, took = json.loads(self.process.stdout.readline())
        return code, took

    def close(self) -> str:
        """End it; what was said on standard error."""
        said = self.process.communicate()[1]
        assert self.process.returncode == 0
        return said
