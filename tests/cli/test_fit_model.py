"""`autobalance fit --model`: other classifiers than the network."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from autobalance import LogitAdjustedClassifierCV
from autobalance.cli import estimators, fit_model
from autobalance.cli.estimators import TableEstimator, new_pipeline
from autobalance.cli.run_folder import load_run
from commands import run
from tables import table

FIT = ["fit", "train.csv", "--target", "kind"]
QUICK = ["--recipe.epochs=1", "--recipe.min_steps=20"]


def predicted(folder: Path, data: str = "test.csv") -> pd.DataFrame:
    done = run("predict", "run", data, "--out", "predicted.csv", "--overwrite", cwd=folder)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(folder / "predicted.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    table(300).to_csv(folder / "train.csv", index=False)
    table(150, seed=1).to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture
def fresh(folder: Path, tmp_path: Path) -> Path:
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def test_decisions_are_those_of_the_estimator_on_out_of_fold_scores(fresh: Path) -> None:
    done = run(
        *FIT, "--model", "lightgbm", "--seed", 2, "--test", "test.csv", "--out", "run", cwd=fresh
    )
    assert done.returncode == 0, done.stderr
    assert "The classifier (lightgbm) is left as it is" in " ".join(done.stdout.split())
    names = {path.name for path in (fresh / "run").iterdir()}
    assert names == {"adjustment.json", "booster.txt", "model.json", "report.html", "result.json"}
    train, test = pd.read_csv(fresh / "train.csv"), pd.read_csv(fresh / "test.csv")
    by_hand = LogitAdjustedClassifierCV(new_pipeline("lightgbm", 2), random_state=2)
    by_hand.fit(train.drop(columns="kind"), train["kind"])
    expected = by_hand.predict(test.drop(columns="kind"))
    assert predicted(fresh)["prediction"].tolist() == expected.tolist()
    record = json.loads((fresh / "run/result.json").read_text())
    assert record["options"]["model"] == "lightgbm"
    assert record["versions"]["lightgbm"] == version("lightgbm")
    classes = by_hand.classes_.tolist()
    errors = [np.mean(expected[test["kind"] == c] != c) for c in classes]
    np.testing.assert_allclose(record["methods"]["autobalance"]["class_errors"], errors)
    assert record["methods"]["none"]["title"] == "No adjustment"
    for command in (["evaluate", "run", "test.csv", "--target", "kind"], ["explain", "run"]):
        assert run(*command, cwd=fresh).returncode == 0


LIBRARIES = {
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    "catboost": "catboost",
    "random_forest": "skops",
    "logistic": "skops",
    "sklearn.svm.LinearSVC": "skops",
}


@pytest.mark.parametrize("model", LIBRARIES)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_comes_back_from_its_folder_or_its_library_is_asked_for(
    model: str, classes: int, folder: Path, tmp_path: Path
) -> None:
    train = pd.read_csv(folder / "train.csv")
    target = (train["kind"] == "rare").to_numpy().astype(int)
    target += (classes == 3) * (train["x"] > 1.5).to_numpy()
    if find_spec(LIBRARIES[model]) is None:
        done = run(*FIT, "--model", model, "--out", tmp_path / "run", cwd=folder)
        assert done.returncode == 2
        assert f"pip install {LIBRARIES[model]}" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not list((tmp_path / "run").glob("*"))
        return
    features = train[["x", "size", "site"]]
    pipeline = new_pipeline(model, 0).fit(features, target)
    kept = TableEstimator.of(model, pipeline)
    for name, content in kept.files().items():
        (tmp_path / name).write_bytes(content)
    again = TableEstimator.load(tmp_path, json.loads(json.dumps(kept.describe())))
    if hasattr(pipeline, "predict_proba"):
        expected = pipeline.predict_proba(features)
    else:
        expected = pipeline.decision_function(features)
        if expected.ndim == 1:
            expected = np.stack([0 * expected, expected], axis=1)
    np.testing.assert_allclose(again.scores(features), expected, atol=1e-6)
    np.testing.assert_array_equal(again.scores(features), kept.scores(features))


@pytest.mark.parametrize("missing", ["lightgbm", "xgboost", "catboost", "skops.io"])
def test_a_missing_library_is_asked_for_before_anything_is_fitted(
    missing: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    model = "logistic" if missing == "skops.io" else missing
    done = run(*FIT, "--model", model, "--out", tmp_path / "run", cwd=folder)
    assert done.returncode == 2
    assert missing.split(".")[0] in done.stderr
    assert f"pip install {missing.split('.')[0]}" in done.stderr
    assert not list((tmp_path / "run").glob("*"))


def test_types_that_may_run_code_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("it was read")

    strange = SimpleNamespace(
        dumps=lambda model: b"",
        get_untrusted_types=lambda data: ["sklearn.tree._tree.Tree", "os.system"],
        loads=refuse,
    )
    monkeypatch.setattr(estimators, "_skops", lambda: strange)
    with pytest.raises(estimators.InputError, match=r"os\.system"):
        new_pipeline("logistic", 0)
    (tmp_path / "estimator.skops").touch()
    encoder = estimators.TableReader().fit(table(40)[["x", "size"]]).encoder_.to_dict()
    with pytest.raises(estimators.InputError, match=r"os\.system.*altered"):
        TableEstimator.load(tmp_path, {"name": "logistic", "encoder": encoder})


def test_a_booster_that_was_altered_is_refused(fresh: Path) -> None:
    assert run(*FIT, "--model", "lightgbm", "--out", "run", cwd=fresh).returncode == 0
    (fresh / "run/booster.txt").write_text("no trees")
    done = run("predict", "run", "test.csv", "--out", "p.csv", cwd=fresh)
    assert done.returncode == 2
    assert "incomplete or altered" in done.stderr


def test_a_bound_is_designed_for_and_told_and_predictions_need_no_groups(fresh: Path) -> None:
    goal = "balanced_error where deo <= 0.1"
    given = ["--groups", "site", "--objective", goal, "--model", "lightgbm", "--test", "test.csv"]
    done = run(*FIT, *given, "--out", "run", cwd=fresh)
    assert done.returncode == 0, done.stderr
    record = json.loads((fresh / "run/result.json").read_text())
    taken = record["search"]["candidates"][-1]
    errors = np.array(taken["wrong"]) / np.array(taken["n"])
    assert np.array(taken["n"]).sum() == 300
    held = 100 * np.abs(errors[0] - errors[1]).sum()
    told = " ".join(done.stdout.split())
    assert f"Bound: DEO of at most 10.0%. Held out: {held:.1f}%" in told
    pd.read_csv(fresh / "test.csv").drop(columns="site").to_csv(fresh / "no.csv", index=False)
    assert predicted(fresh).equals(predicted(fresh, "no.csv"))
    done = run("evaluate", "run", "test.csv", "--target", "kind", "--groups", "site", cwd=fresh)
    assert done.returncode == 0
    assert "DEO (gaps in error" in done.stdout


def test_labels_that_are_numbers_stay_numbers(fresh: Path) -> None:
    train = pd.read_csv(fresh / "train.csv")
    train["kind"] = np.where(train["kind"] == "rare", 12, 3)
    train.to_csv(fresh / "train.csv", index=False)
    assert run(*FIT, "--model", "lightgbm", "--out", "run", cwd=fresh).returncode == 0
    assert set(predicted(fresh)["prediction"]) == {3, 12}
    model, _ = load_run(fresh / "run")
    assert model.classes_.tolist() == [3, 12]


@pytest.mark.parametrize("better", ["network", "lightgbm"])
def test_auto_takes_what_is_better_on_held_out_rows_and_gives_both_numbers(
    better: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    errors = {"network": 0.2, "lightgbm": 0.3} if better == "network" else {"network": 0.3}

    def measure(goal: object, decided: np.ndarray, target: np.ndarray, *_: object) -> float:
        seen.append(target)
        assert decided.shape == target.shape
        return errors.get(("network", "lightgbm")[len(seen) - 1], 0.25)

    monkeypatch.setattr(fit_model, "_value", measure)
    done = run(*FIT, "--model", "auto", *QUICK, "--out", "run", cwd=fresh)
    assert done.returncode == 0, done.stderr
    other = "30.0" if better == "network" else "25.0"
    first = "20.0" if better == "network" else "30.0"
    told = f"took {better}. On {len(seen[0])} rows"
    assert told in done.stderr
    assert f"network {first} %, lightgbm {other} %" in done.stderr
    np.testing.assert_array_equal(*seen)  # the same rows for both
    assert 60 <= len(seen[0]) <= 90  # a quarter
    record = json.loads((fresh / "run/result.json").read_text())
    assert told in " ".join(record["notes"])
    kept = "model.safetensors" if better == "network" else "booster.txt"
    assert (fresh / "run" / kept).is_file()
    assert len(predicted(fresh)) == 150


def test_auto_takes_lightgbm_where_the_network_diverges(fresh: Path) -> None:
    """Also with a class of two rows, one of which may be held out."""
    train = pd.read_csv(fresh / "train.csv")
    train.loc[[3, 4], "kind"] = "twice"
    train.to_csv(fresh / "train.csv", index=False)
    wild = ["--recipe.lr=1e25", "--recipe.max_grad_norm=1e30", "--recipe.optimizer=sgd"]
    done = run(*FIT, "--model", "auto", *QUICK, *wild, "--out", "run", cwd=fresh)
    assert done.returncode == 0, done.stderr
    assert "took lightgbm" in done.stderr
    assert "network diverged, lightgbm" in done.stderr
    assert (fresh / "run/booster.txt").is_file()


def test_auto_measures_the_objective_on_decisions() -> None:
    goal = fit_model.as_objective("worst_class_error")
    decided, target = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    held = np.ones(4, dtype=bool)
    assert fit_model._value(goal, decided, target, None, held, 2) == pytest.approx(1 / 3)
    by_group = fit_model.as_objective("worst_group_error")
    groups = np.array([0, 0, 0, 1])
    assert fit_model._value(by_group, decided, target, groups, held, 2) == pytest.approx(1.0)


REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown": (["--model", "boosting"], "must be one of network, lightgbm, xgboost"),
    "no class": (["--model", "sklearn.svm.Nothing"], "cannot be imported"),
    "no module": (["--model", "sklearn.nothing.SVC"], "cannot be imported"),
    "regressor": (["--model", "sklearn.linear_model.Ridge"], "is no classifier"),
    "foreign": (["--model", "tabpfn.TabPFNClassifier"], "autobalance adjust"),
    "arguments": (["--model", "sklearn.ensemble.StackingClassifier"], "without arguments"),
    "resume": (["--model", "lightgbm", "--resume"], "--resume is of --model network"),
    "recipe": (["--model", "lightgbm", "--recipe.lr", "0.1"], "--recipe is of --model network"),
    "search": (["--model", "lightgbm", "--search.every", "7"], "--search is of"),
    "arms": (["--model", "lightgbm", "--arms", "none"], "--arms is of"),
    "augment": (["--model", "lightgbm", "--augment", "shared"], "--augment is of"),
    "log": (["--model", "lightgbm", "--log", "csv"], "--log is of"),
    "device": (["--model", "lightgbm", "--device", "cpu"], "--device is of"),
    "groups": (["--model", "lightgbm", "--missing-groups", "unknown"], "--missing-groups is of"),
    "auto": (["--model", "auto", "--resume"], "--resume is of --model network"),
    "target": (["--model", "lightgbm", "--target", "none"], "'none' is not in the table"),
    "objective": (["--model", "lightgbm", "--objective", "best"], "worst_class_error"),
    "no groups": (["--model", "lightgbm", "--objective", "worst_group_error"], "--groups"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_does_not_take_is_one_line(case: str, folder: Path, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    out = tmp_path / "run"
    first = FIT[:2] if "--target" in options else FIT
    done = run(*first, *options, "--out", out, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(out.glob("*"))


def test_one_class_is_refused(fresh: Path) -> None:
    table(60).assign(kind="only").to_csv(fresh / "train.csv", index=False)
    for model in ("lightgbm", "auto"):
        done = run(*FIT, "--model", model, "--out", "run", cwd=fresh)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
