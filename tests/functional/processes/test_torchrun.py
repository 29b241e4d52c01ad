"""`search` and `retrain` under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.processes
HERE = Path(__file__).parent
SCRIPT = str(HERE / "searching.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "support"), *sys.path]),
}


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]


def run(command: list[str]) -> None:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folds", ["1", pytest.param("3", marks=pytest.mark.slow)])
def test_two_processes_find_the_loss_that_one_finds(tmp_path: Path, folds: str) -> None:
    """The networks are in float64, the loss is in float32. Each fold starts at weights of its own."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    run([sys.executable, SCRIPT, str(alone), folds])
    run(torchrun("--nproc-per-node=2", SCRIPT, str(together), folds))
    expected = torch.load(alone / "0.pt")
    for rank in (0, 1):
        found: dict[str, Any] = torch.load(together / f"{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_processes_with_batchnorm_end_with_the_same_choice_and_network(tmp_path: Path) -> None:
    """Each sees other rows, so that their statistics differ until they agree."""
    run(torchrun("--nproc-per-node=2", str(HERE / "agreeing.py"), str(tmp_path)))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.pop("files") == ["node 0/retrained"]
    assert second.pop("files") == []
    assert first == second
    assert len(first["candidates"]) == 3
    assert first["again"] == first["model"]  # from the checkpoint at the end, which one rank has
    assert first["other seed"] == {"seed": (2, 3)}
    assert set(first["other data in the second"]) == {"data"}


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_a_new_one_goes_on(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    command = torchrun("--nproc-per-node=2", SCRIPT, str(tmp_path), "1", str(checkpoint))
    job = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "SIGKILL" in errors
    assert not (tmp_path / "0.pt").exists()
    run(command)
    assert (tmp_path / "0.pt").exists()
