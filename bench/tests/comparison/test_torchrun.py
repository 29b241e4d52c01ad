"""A comparison under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autobalance_bench.comparison.store import Store

pytestmark = pytest.mark.processes
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]


COMPARISON = """
datasets: [{name: toy, path: toy.csv, target: kind, network: linear}]
methods: [cross_entropy, vs_tuned, autobalance, focal]
seeds: 1
tuning_runs: 2
recipe: {epochs: 1, min_steps: 20, batch_size: 16, lr: 0.01}
search: {every: 6, validation_batch_size: 16}
"""


def test_a_comparison_runs_each_cell_in_all_processes(tmp_path: Path) -> None:
    """Its results are those of one process; the first alone writes, a failed cell ends nothing."""
    kinds = np.repeat(["a", "b", "c"], [36, 16, 8])
    x = np.random.default_rng(0).normal(size=60) + 2.0 * (kinds == "b") - 2.0 * (kinds == "c")
    pd.DataFrame({"x": x, "kind": kinds}).to_csv(tmp_path / "toy.csv", index=False)
    (tmp_path / "toy.yaml").write_text(COMPARISON)

    def compared(command: list[str], out: str) -> dict[tuple[str, ...], Any]:
        arguments = ["run", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / out)]
        done = subprocess.run(
            [*command, "-m", "autobalance", *arguments],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert "focal" in done.stderr, done.stderr
        assert not (tmp_path / out / "checkpoints").exists()
        records = Store(tmp_path / out / "cells.jsonl").cells()
        assert len((tmp_path / out / "cells.jsonl").read_text().splitlines()) == len(records) == 4
        return {r["method"]: r for r in records}

    alone = compared([sys.executable], "alone")
    together = compared(
        [*torchrun("--nproc-per-node=2"), "--no-python", sys.executable], "together"
    )
    assert together["focal"]["status"] == "failed"
    for method in ("cross_entropy", "vs_tuned", "autobalance"):
        one, two = alone[method], together[method]
        assert two["status"] == "finished", two.get("reason")
        assert two["objectives"]["balanced_error"] == pytest.approx(
            one["objectives"]["balanced_error"]
        )
        assert two["training_error"] == pytest.approx(one["training_error"])
