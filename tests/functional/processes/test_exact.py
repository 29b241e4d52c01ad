"""Several processes find what one finds on the union of their batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autobalance._validation import InputError
from autobalance.functional.batch_norm import normalize_over_processes
from autobalance.functional.processes import Processes
from workers import CASES

SUPPORT = Path(__file__).parents[2] / "support"
WORKER = SUPPORT / "workers.py"


def run(world: int, folder: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    command = [sys.executable, str(WORKER), str(world), str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(
    scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=["two", "four"]
)
def results(request: Any, tmp_path_factory: Any) -> list[dict[str, Any]]:
    return run(request.param, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", [*CASES, "tuner"])
def test_together_equals_alone(results: list[dict[str, Any]], name: str) -> None:
    expected = results[0][name]["alone"]
    assert float(expected.norm()) > 0
    for result in results:
        found = result[name]["together"]
        assert torch.equal(found, results[0][name]["together"])  # or the processes drift apart
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_of_all_keeps_its_digits(dtype: torch.dtype) -> None:
    """Many values, which bfloat16 cannot count, far from zero, where squares lose the variance."""
    generator = torch.Generator().manual_seed(0)
    inputs = (100.0 + torch.randn(43, 3, 31, 31, generator=generator)).to(dtype)
    layer = nn.SyncBatchNorm(3)
    expected = nn.functional.batch_norm(inputs.double(), None, None, training=True)
    found = normalize_over_processes(layer, inputs, processes=Processes())
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, rtol=0.01, atol=0.02 if dtype == torch.bfloat16 else 1e-3
    )


def test_a_network_sharded_in_part_is_refused(results: list[dict[str, Any]]) -> None:
    """FSDP of both generations around a child, and a DTensor among the weights."""
    for result in results:
        assert set(result["refusals"]) == {"by_fsdp2", "by_fsdp1", "a_weight"}
        assert all("Train with DDP" in said for said in result["refusals"].values())


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "FSDPModule"])
def test_a_sharded_network_is_refused(name: str) -> None:
    """By the name of its class, or of one that it derives from."""
    sharded = type("Sharded", (type(name, (nn.Module,), {}),), {})()
    with pytest.raises(InputError, match="Train with DDP"):
        Processes.of(sharded)
