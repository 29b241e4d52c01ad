"""Records of cells."""

from __future__ import annotations

from typing import Any

KINDS = {"autobalance": "ours", "autobalance_cvar": "ours", "first": "autobalance_published"}


def cell(
    dataset: str, method: str, seed: int, error: float | None, **changes: Any
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "family": dataset.split("-")[0],
        "half": None,
        "method": method,
        "objective": None,
        "seed": seed,
        "identity": "a1",
        "status": "finished",
        "report": {"n": 9, "error": 0.5, "class_errors": [0.0, 1.0]},
        "objectives": {"balanced_error": error},
        "training_runs": 1.0,
        "seconds": {"wall": 9.0, "cpu": 2.0},
        "title": method.upper(),
        "kind": KINDS.get(method, "published"),
        "versions": {"numpy": "2.0"},
        **changes,
    }


def failure(dataset: str, method: str, seed: int) -> dict[str, Any]:
    record = cell(dataset, method, seed, 0.0, status="failed", reason="diverged at step 3")
    del record["report"], record["objectives"]
    return record
