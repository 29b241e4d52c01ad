"""What a fit says of plain training and class weights, on the rows that its own result is judged on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from autobalance import AutoBalanceClassifier, LogitAdjustedClassifierCV, retrain
from autobalance.bilevel import predict_logits, splits_of
from autobalance.cli.estimators import new_pipeline
from autobalance.losses import ParametricCrossEntropy
from autobalance.records import Recipe, SearchSettings
from autobalance.sklearn import baselines
from commands import run
from tables import table

FIT = ["fit", "train.csv", "--target", "kind", "--out", "run"]
QUICK = ["--recipe.epochs=1", "--recipe.min_steps=40", "--arms=none", "--device=cpu"]
RECIPE = Recipe(epochs=1, min_steps=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table(240).to_csv(tmp_path / "train.csv", index=False)
    table(150, seed=1).to_csv(tmp_path / "test.csv", index=False)
    return tmp_path


def record_of(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    done = run(*FIT, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run/result.json").read_text()), done.stdout


def trained_by_hand(folder: Path, settings: SearchSettings, *, weighted: bool) -> list[float]:
    """Class errors on what the search held out, of networks trained on the rest with a plain loop."""
    data_frame = pd.read_csv(folder / "train.csv")
    classifier = AutoBalanceClassifier(recipe=RECIPE, settings=settings, random_state=0)
    data = classifier._training_data(
        data_frame.drop(columns="kind"), data_frame["kind"], None, None
    )
    factory = classifier._network_factory(data)
    wrong, n = np.zeros(2), np.zeros(2)
    seed = json.loads((folder / "run/result.json").read_text())["search"]["seed"]
    for fold, (train, held) in enumerate(splits_of(data, None, settings, seed)):
        loss = ParametricCrossEntropy.cross_entropy()
        if weighted:
            loss = ParametricCrossEntropy.class_weighted(np.bincount(train.target.numpy()))
        network = retrain(factory, train, loss, recipe=RECIPE, seed=seed + fold, device="cpu")
        missed = predict_logits(network, held.inputs).argmax(dim=1) != held.target
        wrong += np.bincount(held.target.numpy(), missed.numpy(), 2)
        n += np.bincount(held.target.numpy(), minlength=2)
    return (wrong / n).tolist()


def test_a_fit_trains_plainly_and_with_class_weights_on_the_same_rows(folder: Path) -> None:
    record, said = record_of(folder, *QUICK, "--test", "test.csv")
    beside = record["baselines"]
    methods = beside["methods"]
    assert list(methods) == ["cross_entropy", "class_weights", "autobalance"]
    held = record["search"]["held_out"]
    assert beside["data"] == f"{np.sum(held['n'])} held-out rows"
    settings = SearchSettings()
    for name, weighted in (("cross_entropy", False), ("class_weights", True)):
        by_hand = trained_by_hand(folder, settings, weighted=weighted)
        assert methods[name]["class_errors"] == pytest.approx(by_hand)
        assert methods[name]["class_n"] == held["n"][0]
    expected = np.array(held["wrong"][0]) / np.array(held["n"][0])
    assert methods["autobalance"]["class_errors"] == pytest.approx(expected.tolist())
    for method in methods.values():
        assert f"{100 * method['balanced_error']:.1f}" in said
    assert "Plain training" in said
    # The errors on test rows are printed too.
    tested = record["methods"]["autobalance"]
    assert "Test errors: 150 examples of test.csv" in " ".join(said.split())
    assert f"{100 * tested['worst_class_error']:.1f}" in said
    told = " ".join(run("explain", "run", cwd=folder).stdout.split())
    plain = f"{100 * methods['cross_entropy']['balanced_error']:.1f}% with plain training"
    assert f"On {beside['data']}, the balanced error was {plain}" in told
    page = (folder / "run/report.html").read_text()
    assert "Against plain training and class weights" in page


def test_they_can_be_left_out(folder: Path) -> None:
    for more in (QUICK, ["--model", "lightgbm"]):
        record, said = record_of(folder, *more, "--no-baselines", "--overwrite")
        assert "baselines" not in record
        assert "Plain training" not in said


def test_cross_entropy_of_the_final_choice_is_not_trained_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def counted(*given: Any, **options: Any) -> Any:
        trained.append(given[2])
        return retrain(*given, **options)

    monkeypatch.setattr(baselines, "retrain", counted)
    record, _ = record_of(folder, *QUICK, "--search.folds=2")
    assert len(trained) == 2
    methods = record["baselines"]["methods"]
    by_hand = trained_by_hand(folder, SearchSettings(folds=2), weighted=False)
    assert methods["cross_entropy"]["class_errors"] == pytest.approx(by_hand)
    [taken] = [c for c in record["search"]["candidates"] if c["name"] == record["search"]["choice"]]
    expected = np.array(taken["wrong"][0]) / np.array(taken["n"][0])
    assert methods["autobalance"]["class_errors"] == pytest.approx(expected.tolist())


def test_ctrl_c_in_them_keeps_the_finished_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(baselines, "retrain", interrupted)
    done = run(*FIT, *QUICK, cwd=folder)
    assert done.returncode == 130
    assert "The network is trained to its end and kept in run" in done.stderr
    record = json.loads((folder / "run/result.json").read_text())
    assert record["status"] == "finished"
    assert "baselines" not in record
    assert not list((folder / "run").glob("*checkpoint*"))
    predict = ["predict", "run", "test.csv", "--out", "new.csv"]
    assert run(*predict, cwd=folder).returncode == 0


@pytest.mark.parametrize("bounded", [False, True])
def test_another_classifier_is_judged_out_of_fold(folder: Path, bounded: bool) -> None:
    goal = "balanced_error where deo <= 0.2" if bounded else "worst_class_error"
    record, said = record_of(
        folder, "--model", "lightgbm", "--objective", goal, "--groups", "site", "--test", "test.csv"
    )
    frame = pd.read_csv(folder / "train.csv")
    features, target = (
        frame.drop(columns=["kind", "site"]),
        (frame["kind"] == "rare").to_numpy().astype(int),
    )
    groups = frame["site"] if bounded else None
    fitted = LogitAdjustedClassifierCV(new_pipeline("lightgbm", 0), objective=goal, random_state=0)
    fitted.fit(features, target, sensitive_features=groups)
    fold = fitted.result_.fold
    frequency = len(target) / (2 * np.bincount(target))
    for name, weight in (("cross_entropy", None), ("class_weights", frequency[target])):
        wrong = np.zeros(len(target), dtype=bool)
        for f in np.unique(fold[fold >= 0]):
            train, held = fold != f, fold == f
            model = clone(new_pipeline("lightgbm", 0))
            given = {} if weight is None else {"lgbmclassifier__sample_weight": weight[train]}
            model.fit(features[train], target[train], **given)
            wrong[held] = model.predict(features[held]) != target[held]
        rows = fold >= 0
        expected = [wrong[rows & (target == c)].mean() for c in (0, 1)]
        told = record["baselines"]["methods"][name]
        assert told["class_errors"] == pytest.approx(expected)
        assert ("deo" in told) == bounded
    own = record["baselines"]["methods"]["autobalance"]
    assert own["title"] == "Designed decisions"
    search = record["search"]
    [taken] = [c for c in search["candidates"] if c["name"] == search["choice"]]
    errors = np.sum(taken["wrong"], axis=0) / np.sum(taken["n"], axis=0)
    assert own["class_errors"] == pytest.approx(errors.tolist())
    assert "out-of-fold rows" in said
    assert "Test errors: 150 examples of test.csv" in " ".join(said.split())
