"""bench/any_classifier.py runs, goes on where it stopped, and its summary has every table and method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fake_libraries import install_imbens

FOLDER = Path(__file__).parents[1]


def table(folder: Path) -> None:
    """As of yeast: three classes of numbers, 300 to 40 rows."""
    draw = np.random.default_rng(0)
    target = np.repeat(["a", "b", "c"], [300, 80, 40])
    centre = np.array([[0, 0], [1.5, 0], [0, 2]])[np.unique(target, return_inverse=True)[1]]
    columns = pd.DataFrame(centre + draw.normal(size=(420, 2)), columns=["x0", "x1"])
    path = folder / "tabular/yeast.csv.gz"
    path.parent.mkdir(parents=True)
    columns.assign(target=target).to_csv(path, index=False)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    install_imbens(monkeypatch)
    import any_classifier

    return any_classifier


def test_it_runs_and_goes_on(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path)
    out, path = tmp_path / "runs", tmp_path / "numbers.json"
    options = ["--data", str(tmp_path), "--out", str(out), "--json", str(path)]
    options += ["--tables", "yeast", "--seeds", "1"]
    benchmark.main(options)
    numbers, text = json.loads(path.read_text()), capsys.readouterr().out
    assert set(numbers) == {
        f"yeast{kind}, {variant}"
        for kind in ("", " two classes")
        for variant in ("default", "max_delta_step=1")
    }
    for name, row in numbers.items():
        assert set(row) == set(benchmark.METHODS) - (
            set() if "two" in name else {"tuned_threshold", "calibrated_threshold"}
        )
        assert all(0 <= row[m]["balanced"][0] <= row[m]["worst"][0] <= 100 for m in row)
    row, other = numbers["yeast, default"], numbers["yeast, max_delta_step=1"]
    assert all(row[m] == other[m] for m in benchmark.ENSEMBLES)
    assert row["balanced_forest"]["balanced"][0] < row["none"]["balanced"][0]
    assert row["designed"]["balanced"][0] < row["none"]["balanced"][0]
    assert "designed less post_hoc" in text

    lines = (out / "cells.jsonl").read_text()
    benchmark.main(options)
    assert (out / "cells.jsonl").read_text() == lines
    assert json.loads(path.read_text()).keys() == numbers.keys()
    assert "seed 0" not in capsys.readouterr().out


def test_the_summary_needs_results(benchmark: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--out", str(tmp_path), "--summary"])


def test_some_methods_alone_run_and_are_shown(benchmark: Any, tmp_path: Path) -> None:
    table(tmp_path)
    path = tmp_path / "numbers.json"
    options = ["--data", str(tmp_path), "--out", str(tmp_path), "--json", str(path)]
    benchmark.main([*options, "--tables", "yeast", "--seeds", "1", "--methods", "easy_ensemble"])
    assert all(set(row) == {"easy_ensemble"} for row in json.loads(path.read_text()).values())
    assert not (tmp_path / "scores").exists()


def test_a_threshold_is_calibrated_as_autogluon_does(benchmark: Any) -> None:
    # The examples and thresholds of AutoGluon's own tests of its calibration.
    target, p = np.array([1, 0, 1, 1, 1, 0]), np.array([0.0, 0.24, 0.25, 0.25, 0.5, 1.0])
    assert benchmark.calibrate_threshold(p, target) == pytest.approx(0.249)


@pytest.mark.parametrize("seed", range(3))
def test_a_calibrated_threshold_has_the_lowest_error_near_its_grid(
    benchmark: Any, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    target = np.r_[0, 1, (draw.random(398) < 0.1).astype(int)]
    p = 1 / (1 + np.exp(-(draw.normal(size=400) + 2.0 * target - 3.0)))

    def error(threshold: float) -> float:
        decided = p > threshold
        return decided[target == 0].mean() + (~decided[target == 1]).mean()

    threshold = benchmark.calibrate_threshold(p, target)
    coarse = min(np.arange(51) / 50, key=lambda t: (round(error(t), 9), abs(t - 0.5)))
    assert abs(threshold - coarse) < 0.02
    fine = [error(coarse + t / 1000) for t in range(-19, 20)]
    assert error(threshold) == pytest.approx(min(fine))


def test_equal_thresholds_go_to_the_one_nearest_to_a_half(benchmark: Any) -> None:
    target = np.array([0, 0, 1, 1])
    assert benchmark.calibrate_threshold(np.array([0.1, 0.2, 0.8, 0.9]), target) == 0.5
    assert benchmark.calibrate_threshold(np.array([0.1, 0.2, 0.3, 0.4]), target) == pytest.approx(
        0.299
    )


def test_a_tuned_threshold_is_that_of_the_kept_probabilities(benchmark: Any) -> None:
    draw = np.random.default_rng(0)
    target = np.r_[0, 1, (draw.random(398) < 0.1).astype(int)]
    second = 1 / (1 + np.exp(-(draw.normal(size=400) + 3.0 * target - 4.0)))
    p = np.stack([1 - second, second], axis=1).astype(np.float32)
    scores = benchmark.Scores(p, target, np.arange(400) % 5, p, target)
    shares, details = benchmark.RUNS["tuned_threshold"](scores)
    np.testing.assert_array_equal(shares[:, 1], second >= details["threshold"])
    assert 0.0 < details["threshold"] < 0.5
