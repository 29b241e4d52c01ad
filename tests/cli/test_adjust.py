"""`autobalance adjust`: from a table of scores to a RUN and what it predicts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autobalance import InputError, design_adjustment
from autobalance.cli.adjust import columns_of_classes
from autobalance.cli.run_folder import load_run
from commands import run

KINDS = np.array(["common", "rare", "seldom"])


def scores(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``(n, 3)`` that lean to the frequent class, and classes."""
    generator = np.random.default_rng(seed)
    target = generator.choice(3, size=n, p=[0.7, 0.2, 0.1])
    z = generator.normal(size=(n, 3)) + np.log([0.7, 0.2, 0.1])
    z[np.arange(n), target] += 1.2
    p = np.exp(z)
    return p / p.sum(axis=1, keepdims=True), target


def score_table(n: int, seed: int = 0) -> pd.DataFrame:
    p, target = scores(n, seed)
    columns = {f"p_{KINDS[c]}": p[:, c] for c in (2, 0, 1)}  # in any order
    site = np.where(np.arange(n) % 2, "north", "south")
    return pd.DataFrame({"id": np.arange(n), **columns, "kind": KINDS[target], "site": site})


@pytest.fixture(scope="module")
def adjusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adjust")
    score_table(400).to_csv(folder / "scores.csv", index=False)
    score_table(200, seed=1).drop(columns="id").to_csv(folder / "new.csv", index=False)
    done = run(
        "adjust", "scores.csv", "--target", "kind", "--scores", "p_*", "--test", "new.csv",
        "--seed", 3, "--out", "run", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Decisions for the balanced error" in done.stdout
    return folder


def test_the_design_is_that_of_the_library(adjusted: Path) -> None:
    p, target = scores(400)
    expected = design_adjustment(p, target, seed=3).to_dict()
    found = json.loads((adjusted / "run/adjustment.json").read_text())
    np.testing.assert_allclose(found["rule"]["additive"], expected["rule"]["additive"], atol=1e-6)
    assert found["chosen"] == expected["chosen"]
    names = {path.name for path in (adjusted / "run").iterdir()}
    assert names == {"adjustment.json", "model.json", "report.html", "result.json"}


def test_predictions_are_the_adjusted_decisions(adjusted: Path) -> None:
    done = run("predict", "run", "new.csv", "--out", "predicted.csv", cwd=adjusted)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(adjusted / "predicted.csv")
    p, _ = scores(200, seed=1)
    design = design_adjustment(*scores(400), seed=3)
    assert found["prediction"].tolist() == KINDS[design.predict(p)].tolist()
    probabilities = found[[f"probability_{kind}" for kind in KINDS]].to_numpy()
    np.testing.assert_allclose(probabilities, design.predict_proba(p), atol=1e-6)
    assert (found["prediction"] != KINDS[p.argmax(axis=1)]).any()
    calibrated = run(
        "predict", "run", "new.csv", "--out", "even.csv", "--prior", "balanced", cwd=adjusted
    )
    assert calibrated.returncode == 0
    even = pd.read_csv(adjusted / "even.csv")[[f"probability_{kind}" for kind in KINDS]]
    np.testing.assert_allclose(even.to_numpy(), design.predict_proba(p, "balanced"), atol=1e-6)


def test_the_evaluation_has_both_decisions(adjusted: Path) -> None:
    p, target = scores(200, seed=1)
    design = design_adjustment(*scores(400), seed=3)
    record = json.loads((adjusted / "run/result.json").read_text())
    assert record["evaluation_data"] == "200 examples of new.csv"
    done = run("evaluate", "run", "new.csv", "--target", "kind", "--json", cwd=adjusted)
    told = json.loads(done.stdout)
    kept = json.loads((adjusted / "run/evaluation.json").read_text())
    for decided, *entries in (
        (p.argmax(axis=1), record["methods"]["none"], kept["before"]),
        (design.predict(p), record["methods"]["autobalance"], kept["method"], told),
    ):
        expected = [np.mean(decided[target == c] != c) for c in range(3)]
        for entry in entries:
            np.testing.assert_allclose(entry["class_errors"], expected)
    assert run("explain", "run", cwd=adjusted).returncode == 0


def test_groups_count_where_the_objective_is_over_them(adjusted: Path) -> None:
    given = ["adjust", "scores.csv", "--target", "kind", "--scores", "p_*", "--overwrite"]
    done = run(
        *given, "--groups", "site", "--objective", "worst_class_and_group_error", "--out", "by",
        cwd=adjusted,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    p, target = scores(400)
    expected = design_adjustment(
        p, target, objective="worst_class_and_group_error", groups=1 - np.arange(400) % 2
    )
    model, _ = load_run(adjusted / "by")
    np.testing.assert_allclose(model.adjustment.l, expected.l, atol=1e-6)
    alone = run(*given, "--groups", "site", "--out", "by", cwd=adjusted)
    assert "does not look at groups" in alone.stderr


def test_decision_values_are_measured_as_they_are(tmp_path: Path) -> None:
    """Before the adjustment the decision is the largest value, not the largest calibrated one."""
    p, target = scores(300)
    values = 40 * np.log(p) + np.array([0.0, 30.0, -10.0])
    table = pd.DataFrame(values, columns=[f"f_{c}" for c in range(3)]).assign(y=target)
    table.to_csv(tmp_path / "values.csv", index=False)
    given = [
        "--target",
        "y",
        "--scores",
        "f_*",
        "--kind",
        "decision_values",
        "--test",
        "values.csv",
    ]
    done = run("adjust", "values.csv", *given, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/result.json").read_text())
    decided = values.argmax(axis=1)
    expected = [np.mean(decided[target == c] != c) for c in range(3)]
    np.testing.assert_allclose(record["methods"]["none"]["class_errors"], expected)
    model, _ = load_run(tmp_path / "run")
    np.testing.assert_allclose(model.adjustment.errors_before, expected)


def test_the_report_shows_choice_adjustment_and_curve(adjusted: Path) -> None:
    page = (adjusted / "run/report.html").read_text()
    text = re.sub(r"<[^>]*>", " ", page)
    record = json.loads((adjusted / "run/result.json").read_text())
    for name in ("No adjustment", "Post hoc logit adjustment", "tuned on the 0-1 error"):
        assert name in text
    low, high = record["adjustment"]["intervals"]["l"][1]
    assert low < record["adjustment"]["l"][1] < high
    assert "from the 5th to the 95th percentile" in text
    assert 'id="fig-tau' in page
    assert "Error per class, before and after" in text
    curve = np.array(record["adjustment"]["curve"])
    before = np.mean(
        [np.mean(scores(400)[0][scores(400)[1] == c].argmax(axis=1) != c) for c in range(3)]
    )
    np.testing.assert_allclose(curve[0, :2], [0.0, before], atol=1e-12)


BAD: dict[str, tuple[list[str], str]] = {
    "no column": (["--scores", "q_*"], "No column matches"),
    "too few": (["--scores", "p_s*"], "No column of --scores 'p_s*' is of 3 labels"),
    "no star": (["--scores", "p_"], "one star"),
    "two stars": (["--scores", "*_*"], "one star"),
    "no target": (["--target", "nothing"], "'nothing' is not in the table"),
    "bound": (["--objective", "balanced_error where deo <= 0.1", "--groups", "site"], "--model"),
    "no groups": (["--objective", "worst_group_error"], "--groups"),
    "groups twice": (["--groups", "kind"], "same column"),
    "objective": (["--objective", "best"], "worst_class_error"),
    "test": (["--test", "features.csv"], "lacks columns"),
    "kind": (["--kind", "log_probabilities"], "sum to 1"),
    "seed": (["--seed", "-1"], "seed"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_and_leaves_no_folder(
    case: str, adjusted: Path, tmp_path: Path
) -> None:
    options, message = BAD[case]
    pd.DataFrame({"kind": ["common"], "x": [1.0], "site": ["north"]}).to_csv(
        adjusted / "features.csv", index=False
    )
    first: dict[str, Any] = {"--target": "kind", "--scores": "p_*"}
    rest = [word for name, value in first.items() if name not in options for word in (name, value)]
    out = tmp_path / "bad"
    done = run("adjust", "scores.csv", *rest, *options, "--out", out, cwd=adjusted)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(out.glob("*"))


def test_a_folder_that_is_not_empty_needs_overwrite(adjusted: Path) -> None:
    given = ["adjust", "scores.csv", "--target", "kind", "--scores", "p_*", "--out", "run"]
    done = run(*given, cwd=adjusted)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr


@pytest.mark.parametrize(
    ("value", "message"), [(None, "missing"), ("high", "no number")], ids=["missing", "text"]
)
def test_scores_that_are_none_are_refused(value: str | None, message: str, tmp_path: Path) -> None:
    table = score_table(60).astype({"p_rare": object})
    table.loc[4, "p_rare"] = value
    table.to_csv(tmp_path / "scores.csv", index=False)
    given = ["--target", "kind", "--scores", "p_*", "--out", "run"]
    done = run("adjust", "scores.csv", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "p_rare" in done.stderr


# Which column is whose ------------------------------------------------------------------------


def match(names: list[str], pattern: str, classes: list[Any]) -> list[str]:
    return columns_of_classes(pd.DataFrame(columns=names), pattern, np.array(classes))


def test_columns_are_those_of_the_labels_whatever_their_type() -> None:
    assert match(["p_7", "p_10"], "p_*", [7, 10]) == ["p_7", "p_10"]
    assert match(["p_10.0", "p_7.0"], "p_*", [7, 10]) == ["p_7.0", "p_10.0"]
    assert match(["of 007?", "of 7?"], "of *?", ["007", "7"]) == ["of 007?", "of 7?"]
    assert match(["p_True", "p_false"], "p_*", [False, True]) == ["p_false", "p_True"]
    assert match(["p_a", "p_b", "x", "p_"], "p_*", ["a", "b"]) == ["p_a", "p_b"]


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["p_a", "p_b", "p_c"], ["a", "b"], r"without a label.*p_c"),
        (["p_1", "p_1.0", "p_2"], [1, 2], "of one class"),
        (["p_one", "p_2"], [1, 2], r"1 label: 1\.0|of no label are p_one"),
    ],
)
def test_columns_and_labels_must_match(names: list[str], classes: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match(names, "p_*", classes)
