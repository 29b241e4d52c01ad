"""bench/boosting.py runs, goes on where it stopped, and compares on the same seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1]


def table(folder: Path) -> None:
    """As of yeast: three classes of numbers, 300 to 20 rows."""
    draw = np.random.default_rng(0)
    target = np.repeat(["a", "b", "c"], [300, 80, 20])
    centre = np.array([[0, 0], [1.5, 0], [0, 2]])[np.unique(target, return_inverse=True)[1]]
    columns = pd.DataFrame(centre + draw.normal(size=(400, 2)), columns=["x0", "x1"])
    path = folder / "tabular/yeast.csv.gz"
    path.parent.mkdir(parents=True)
    columns.assign(target=target).to_csv(path, index=False)


@pytest.fixture
def boosting(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import boosting

    return boosting


def test_it_runs_and_goes_on(
    boosting: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path)
    out, path = tmp_path / "runs.jsonl", tmp_path / "numbers.json"
    options = ["--data", str(tmp_path), "--out", str(out), "--json", str(path)]
    options += ["--sets", "yeast", "--seeds", "1", "--quick"]
    boosting.main(options)
    numbers, shown = json.loads(path.read_text()), capsys.readouterr().out
    rows = numbers["per_dataset"]["yeast"]
    assert len(rows) == 9
    assert all(0 <= row["mean"] < 2 / 3 for row in rows.values())
    assert rows["lightgbm_la"]["mean"] < rows["lightgbm"]["mean"]
    assert "| designed l less |" in shown
    lines = out.read_text().splitlines()
    loss = next(r for r in map(json.loads, lines) if r["method"] == "lightgbm_designed")
    assert len(loss["details"]["loss"]["additive"]) == 3

    boosting.main(options)
    assert json.loads(path.read_text()) == numbers
    assert "seed 0" not in capsys.readouterr().out
    assert out.read_text().splitlines() == lines


def test_differences_are_paired_by_seed(boosting: Any) -> None:
    def cell(method: str, seed: int, error: float) -> dict[str, Any]:
        return {
            "dataset": "yeast", "family": "yeast", "method": method, "objective": None,
            "seed": seed, "status": "finished", "report": {"balanced_error": error}, "objectives": {},
        }  # fmt: skip

    cells = [cell("lightgbm_designed", s, e) for s, e in enumerate((0.2, 0.4, 0.6))]
    cells += [cell("lightgbm_la", s, e) for s, e in enumerate((0.3, 0.5))]
    found = boosting.numbers_of(cells)["differences"]
    assert set(found) == {"lightgbm_la"}
    row = found["lightgbm_la"]["yeast"]
    assert (row["mean"], row["n"]) == (pytest.approx(-0.1), 2)
