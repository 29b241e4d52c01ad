"""A fit that is killed again and again, and continued, ends where an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tables import table

pytestmark = pytest.mark.processes
FIT = [
    "fit", "data.csv", "--target", "kind", "--groups", "site", "--device", "cpu",
    "--recipe.epochs", "5", "--recipe.min_steps", "60", "--search.folds", "2",
    "--search.warmup", "0.5",
]  # fmt: skip
# kill -9 to itself at a known moment, with a checkpoint at every step.
CODE = """
import os, signal
from autobalance import cli
from autobalance.cli import run_folder as runs
from autobalance.cli import terminal
from autobalance.bilevel import checkpoints
checkpoints.CHECKPOINT_SECONDS = 0.0
moment, fsync = os.environ["MOMENT"].split(), os.fsync
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def update(self, title, progress):
    if [progress.phase, str(progress.step)] == moment:
        kill()
    if ["writing", progress.phase, str(progress.step)] == moment:
        os.fsync = kill  # the next checkpoint is then half written
terminal.LiveProgress.update = update
if moment == ["report"]:
    runs.write_report = kill
cli.entry()
"""
MOMENTS = [
    "warm-up 20", "search 35", "writing search 45", "choose 3", "retrain 20", "writing retrain 40",
    "retrain 60", "report",
]  # fmt: skip


def fit(folder: Path, out: str, moment: str, *more: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *FIT, "--out", out, *more],
        cwd=folder,
        env={**os.environ, "MOMENT": moment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode


@pytest.mark.parametrize(
    "moments",
    [["search 35", "retrain 20"], pytest.param(MOMENTS, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_killed_and_resumed_is_bit_identical(tmp_path: Path, moments: list[str]) -> None:
    table().to_csv(tmp_path / "data.csv", index=False)
    assert fit(tmp_path, "whole", "never") == 0
    for i, moment in enumerate(moments):
        assert fit(tmp_path, "run", moment, *["--resume"][:i]) == -signal.SIGKILL, moment
    assert (tmp_path / "run/search.checkpoint").exists()
    assert fit(tmp_path, "run", "never", "--resume") == 0
    for name in ("model.safetensors", "model.json", "loss.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    names = [{p.name for p in (tmp_path / run).iterdir()} for run in ("run", "whole")]
    assert names[0] == names[1]
