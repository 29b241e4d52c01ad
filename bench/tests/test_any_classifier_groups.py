"""bench/any_classifier_groups.py: tighter bounds give smaller gaps, and the summary has every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance.data import ArrayData
from autobalance_bench.comparison.methods import Task

FOLDER = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import any_classifier_groups

    return any_classifier_groups


def grouped(n: int, seed: int) -> ArrayData:
    """Two classes, which overlap more in the second of two groups."""
    draw = np.random.default_rng(seed)
    y, g = (draw.random(n) < 0.3).astype(int), draw.integers(0, 2, n)
    signal = y * np.where(g == 0, 3.0, 1.0) + draw.normal(size=n)
    inputs = np.stack([signal, g + 0.3 * draw.normal(size=n)], axis=1).astype(np.float32)
    return ArrayData.of(inputs, y, groups=g)


def test_a_tighter_bound_gives_a_smaller_gap(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "BOUNDS", (2.0, 0.05))
    task = Task(network=lambda: None, data=grouped(1500, 0), recipe=None, seed=0)  # type: ignore[arg-type]
    split = benchmark.Split(task, grouped(3000, 1), "balanced_error", False)
    (loose_name, loose), (_, tight) = benchmark.RUNS["lightgbm_decisions"](split)
    assert loose_name == "deo <= 2"
    assert tight.deo < 0.5 * loose.deo
    assert tight.balanced_error > loose.balanced_error


def test_the_summary_has_the_network_of_the_same_splits(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [{"point": "deo <= 2", "balanced": 20.0, "deo": 40.0}]
    line = {"set": "adult_sex", "split": 0, "run": "lightgbm_decisions", "points": points}
    (tmp_path / "points.jsonl").write_text(json.dumps(line) + "\n")
    path = tmp_path / "numbers.json"
    benchmark.main(["--out", str(tmp_path), "--summary", "--json", str(path)])
    numbers = json.loads(path.read_text())
    row = numbers["adult_sex"]
    assert row["lightgbm_decisions"]["hypervolumes"] == [(50.0 - 20.0) * (60.0 - 40.0)]
    assert len(row["network_decisions"]["hypervolumes"]) == 1
    assert "| adult_sex | 1 | 600" in capsys.readouterr().out


def test_the_summary_needs_results(benchmark: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--out", str(tmp_path), "--summary"])
