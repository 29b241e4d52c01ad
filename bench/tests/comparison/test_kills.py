"""A comparison that is killed at random moments loses no finished cell and ends the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autobalance_bench.comparison.store import Store
from killing import KILLED, Server
from toys import write_toy

COMPARISON = """datasets: [{name: toy, path: toy.csv, target: kind, drop: [site]}]
methods: [cross_entropy, logit_adjustment, autobalance]
seeds: 3
recipe: {epochs: 1, min_steps: 40, batch_size: 16}
"""

MODULES = ("autobalance_bench.comparison.running", "autobalance_bench.comparison.reporting")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_toy(tmp_path)
    (tmp_path / "compare.yaml").write_text(COMPARISON)
    started = Server(tmp_path, *MODULES)
    yield started
    started.close()


def kill_comparisons(server: Server, folder: Path, kills: int, seed: int) -> None:
    """Kill and repeat the same command until it ends, and until there were so many kills."""
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


@pytest.mark.slow
def test_comparisons(server: Server, tmp_path: Path) -> None:
    kill_comparisons(server, tmp_path, 30, seed=1)
