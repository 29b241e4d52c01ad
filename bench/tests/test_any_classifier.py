"""bench/any_classifier.py runs, goes on where it stopped, and its summary has every table and method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

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
            set() if "two" in name else {"tuned_threshold"}
        )
        assert all(0 <= row[m]["balanced"][0] <= row[m]["worst"][0] <= 100 for m in row)
    row = numbers["yeast, default"]
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


def test_a_tuned_threshold_is_that_of_the_kept_probabilities(benchmark: Any) -> None:
    draw = np.random.default_rng(0)
    target = np.r_[0, 1, (draw.random(398) < 0.1).astype(int)]
    second = 1 / (1 + np.exp(-(draw.normal(size=400) + 3.0 * target - 4.0)))
    p = np.stack([1 - second, second], axis=1).astype(np.float32)
    scores = benchmark.Scores(p, target, np.arange(400) % 5, p, target)
    shares, details = benchmark.RUNS["tuned_threshold"](scores)
    np.testing.assert_array_equal(shares[:, 1], second >= details["threshold"])
    assert 0.0 < details["threshold"] < 0.5
