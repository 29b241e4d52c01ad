"""SIGKILL at random moments, again and again: nothing is corrupted, and the end is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from autobalance_bench.comparison.store import Store
from toys import write_toy

# One process starts torch; each attempt is a child of it, killed by its parent after the seconds
# that a line on standard input says (0: not at all), and answered by how it ended.
SERVER = """
import os, signal, sys, time, json
import torch
torch.set_num_threads(1)
from autobalance import cli
from autobalance.bilevel import checkpoints
import autobalance.cli.run_folder, autobalance.cli.terminal, autobalance.sklearn.classifier
import autobalance.bilevel.pareto_frontier
import autobalance_bench.comparison.running, autobalance_bench.comparison.reporting
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
FIT = [
    "fit", "toy.csv", "--target", "kind", "--groups", "site", "--device", "cpu", "--recipe.epochs", "1",
    "--recipe.min_steps", "150", "--search.folds", "2",
]  # fmt: skip
COMPARISON = """datasets: [{name: toy, path: toy.csv, target: kind, drop: [site]}]
methods: [cross_entropy, logit_adjustment, autobalance]
seeds: 3
recipe: {epochs: 1, min_steps: 40, batch_size: 16}
"""
KILLED = -9


class Server:
    """Runs commands that are killed after some seconds."""

    def __init__(self, folder: Path) -> None:
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=folder, text=True,
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


@pytest.fixture
def server(tmp_path: Path) -> Any:
    write_toy(tmp_path)
    (tmp_path / "compare.yaml").write_text(COMPARISON)
    started = Server(tmp_path)
    yield started
    started.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def assert_whole(folder: Path) -> None:
    """Each file that is there was written to its end."""
    for path in folder.glob("*.json"):
        assert isinstance(json.loads(path.read_bytes()), dict)
    for path in (*folder.glob("*.checkpoint"), *folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)


def kill_fits(server: Server, folder: Path, kills: int, seed: int) -> None:
    """Fit from anew until so many kills are done; each fit that ends is the undisturbed one's."""
    import random

    draws = random.Random(seed)
    code, lasts = server([*FIT, "--out", "whole"])
    assert code == 0
    expected = contents(folder / "whole")
    done, ended, fits = 0, 0, 0
    while done < kills or not ended:
        out = folder / f"run{fits}"
        fits += 1
        while True:
            # A run that was killed before its first checkpoint has nothing to resume.
            more = ["--resume"] if list(out.glob("*.checkpoint")) else ["--overwrite"]
            seconds = 0.0 if done >= kills else draws.uniform(0.005, 0.6) * lasts
            code, _ = server([*FIT, "--out", out.name, *more], seconds)
            assert code in (0, KILLED)
            if out.exists():
                assert_whole(out)
            if code == 0:
                break
            done += 1
        ended += 1
        found = contents(out)
        assert found.keys() == expected.keys()
        for name in ("model.safetensors", "model.json", "loss.json"):
            assert found[name] == expected[name], name


def kill_comparisons(server: Server, folder: Path, kills: int, seed: int) -> None:
    """As `kill_fits`, of a comparison, which goes on by the same command."""
    import random

    draws = random.Random(seed)
    code, lasts = server(["compare", "compare.yaml", "--out", "whole"])
    assert code == 0
    expected = told(folder / "whole")
    assert len(expected) == 9
    done, rounds = 0, 0
    while done < kills or not rounds:
        out = folder / f"results{rounds}"
        rounds += 1
        code = KILLED
        while code == KILLED:
            kept = told(out)
            seconds = 0.0 if done >= kills else draws.uniform(0.02, 0.5) * lasts
            code, _ = server(["compare", "compare.yaml", "--out", out.name], seconds)
            done += code == KILLED
            now = told(out)
            assert {key: now[key] for key in kept} == kept  # no finished cell is lost
        assert code == 0
        assert told(out) == expected
        assert (out / "BENCHMARKS.md").stat().st_size > 0


def told(out: Path) -> dict[Any, Any]:
    """The cells by key, without their times."""
    cells = Store(out / "cells.jsonl").cells()
    keys = [(c["dataset"], c["method"], c["objective"], c["seed"]) for c in cells]
    records = [{k: v for k, v in c.items() if k != "seconds"} for c in cells]
    return dict(zip(keys, records, strict=True))


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_fits(server: Server, tmp_path: Path, kills: int) -> None:
    kill_fits(server, tmp_path, kills, seed=0)


@pytest.mark.slow
def test_comparisons(server: Server, tmp_path: Path) -> None:
    kill_comparisons(server, tmp_path, 30, seed=1)
