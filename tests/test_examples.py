"""The examples run, on few rows, and their table says what it promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def by_group(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import by_group

    return by_group


def people() -> tuple[pd.Series, np.ndarray, pd.Series]:
    """Women: 4 rows, 1 of 3 "no" and 1 of 1 "yes" wrong. Men: 2 rows, both right."""
    y_true = pd.Series(["no", "no", "no", "yes", "no", "yes"])
    y_pred = np.array(["no", "no", "yes", "no", "no", "yes"])
    return y_true, y_pred, pd.Series(["f", "f", "f", "f", "m", "m"])


def test_the_table_is_the_same_with_and_without_fairlearn(
    by_group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_group.MetricFrame is not None, "install fairlearn, it is one of the two ways"
    tables = [by_group.table_by_group(*people())]
    monkeypatch.setattr(by_group, "MetricFrame", None)
    tables.append(by_group.table_by_group(*people()))
    for table in tables:
        assert list(table.columns) == ["n", "error", "balanced", "worst class"]
        assert table.loc["f"].tolist() == [4, 50.0, 66.7, 100.0]
        assert table.loc["m"].tolist() == [2, 0.0, 0.0, 0.0]


def test_adult_runs_as_its_first_lines_say(
    by_group: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script, in this process: Python puts its folder first in the path, as `by_group` does."""
    script = str(FOLDER / "adult.py")
    assert "python examples/adult.py\n" in Path(script).read_text()
    monkeypatch.setattr(sys, "argv", [script, "--rows", "600", "--steps", "40"])
    runpy.run_path(script, run_name="__main__")
    out = capsys.readouterr().out
    for shown in ("Cross-entropy, errors in percent on 300 rows", "autobalance, errors", "Female"):
        assert shown in out
    assert out.count("worst class") == 2


def compas(folder: Path, rows: int = 600) -> Path:
    """A file with the columns that the example reads, and the leaking ones it must not."""
    generator = np.random.default_rng(0)
    priors = generator.poisson(2.0, rows)
    again = (generator.random(rows) < 0.2 + 0.1 * np.minimum(priors, 6)).astype(int)
    table = pd.DataFrame(
        {
            "age": generator.integers(18, 70, rows),
            "sex": generator.choice(["Male", "Female"], rows),
            "race": np.resize(["Caucasian", "African-American"], rows),
            "juv_fel_count": 0,
            "juv_misd_count": 0,
            "juv_other_count": 0,
            "priors_count": priors,
            "c_charge_degree": generator.choice(["F", "M"], rows),
            "is_recid": again,
            "two_year_recid": again,
        }
    )
    table.loc[:39, "race"] = ["Asian", "Hispanic"] * 20  # 20 each: together "Other"
    path = folder / "compas-scores-two-years.csv"
    table.to_csv(path, index=False)
    return path


def test_compas_runs_and_puts_small_groups_together(
    by_group: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import compas as example  # pyright: ignore[reportMissingImports]

    example.main(["--data", str(compas(tmp_path)), "--steps", "40"])
    shown = capsys.readouterr().out
    assert shown.count("errors in percent on 300 rows") == 2
    for group in ("African-American", "Caucasian", "Other"):
        assert shown.count(f"\n{group} ") == 2
    assert "Asian" not in shown
    leaks = {"is_recid", "two_year_recid", "race"}
    assert not leaks & set(example.FEATURES)


def test_compas_without_its_file_says_so(by_group: Any, tmp_path: Path) -> None:
    import compas as example  # pyright: ignore[reportMissingImports]

    with pytest.raises(ValueError, match=r"There is no file .*absent.csv"):
        example.main(["--data", str(tmp_path / "absent.csv")])
