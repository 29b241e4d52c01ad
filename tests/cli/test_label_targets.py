"""Several labels on the command line: target columns, RUN folders, reports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score

from autobalance import export_model
from autobalance.cli import main
from autobalance.cli.run_folder import load_run
from autobalance.cli.targets import join_targets

LABELS = ["tag_a", "tag_b", "tag_c"]
SHORT = ["--recipe.epochs", "2", "--recipe.min_steps", "60"]


def table(n: int, seed: int, *, scores: bool = False) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 4))
    odds = 1.5 * X @ np.random.default_rng(5).normal(size=(4, 3)) + [-1.0, -2.0, -4.0]
    y = (generator.random((n, 3)) < expit(odds)).astype(int)
    frame = pd.DataFrame(y, columns=LABELS)
    if scores:
        return frame.join(pd.DataFrame(expit(odds), columns=[f"p_{name}" for name in LABELS]))
    features = pd.DataFrame(X, columns=[f"x{i}" for i in range(4)])
    return features.assign(kind=generator.choice([*"uv"], n)).join(frame)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name, n, seed in (("train", 700, 0), ("test", 800, 1)):
        table(n, seed).to_csv(folder / f"{name}.csv", index=False)
        table(n, seed, scores=True).to_csv(folder / f"scores_{name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    command = ["fit", f"{folder}/train.csv", "--target", *LABELS, *SHORT, "--device", "cpu"]
    assert main([*command, "--test", f"{folder}/test.csv", "--out", f"{folder}/network"]) == 0
    return folder / "network"


def test_fit_prints_the_test_errors_of_each_label(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", f"{folder}/train.csv", "--target", *LABELS, *SHORT, "--device", "cpu"]
    assert main([*command, "--test", f"{folder}/test.csv", "--out", f"{tmp_path}/run"]) == 0
    shown = capsys.readouterr().out
    measured = json.loads((tmp_path / "run" / "result.json").read_text())["methods"]["autobalance"]
    assert f"{100 * measured['balanced_error']:.1f}" in shown
    for name, error in zip(LABELS, measured["class_errors"], strict=True):
        [line] = [line for line in shown.splitlines() if f" {name} " in line]
        assert f"{100 * error:.1f}" in line


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", " ", page.read_text())


def check_evaluation(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> pd.DataFrame:
    """That `evaluate` measures what `predict` writes, by scikit-learn's measure; returns what it wrote."""
    capsys.readouterr()
    assert main(["evaluate", f"{run}", f"{data}", "--target", "tag_*", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    out = run.parent / f"{run.name}.csv"
    assert main(["predict", f"{run}", f"{data}", "--out", f"{out}", "--overwrite"]) == 0
    predicted, truth = pd.read_csv(out), pd.read_csv(data)
    assert [*predicted.columns] == LABELS + [f"probability_{name}" for name in LABELS]
    for name, error in zip(report["labels"], report["class_errors"], strict=True):
        assert error == pytest.approx(1 - balanced_accuracy_score(truth[name], predicted[name]))
        assert ((predicted[f"probability_{name}"] > 0.5) == predicted[name]).all()
    assert report["balanced_error"] == pytest.approx(np.mean(report["class_errors"]))
    return predicted


def test_network_is_fitted_evaluated_and_told_of(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_evaluation(run, folder / "test.csv", capsys)
    record = json.loads((run / "result.json").read_text())
    assert record["class_names"] == LABELS
    assert record["several_labels"] is True
    tested = json.loads((run / "evaluation.json").read_text())["method"]
    page = text_of(run / "report.html").split("How to repeat it")[0]
    for j, name in enumerate(LABELS):
        assert name in page
        rate = tested["sign_wrong"][1][j] / tested["sign_n"][1][j]
        assert f"{100 * rate:.1f}%" in page
    assert "softmax" not in page
    assert "roup" not in page  # nothing of groups, whose rows the signs' tables have
    capsys.readouterr()
    assert main(["explain", f"{run}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "balanced error of 3 labels" in told
    assert f"{100 * tested['balanced_error']:.1f}% on the mean over labels" in told


def test_exported_network_decides_as_the_run_does(folder: Path, run: Path) -> None:
    import torch

    model, _ = load_run(run)
    features = table(800, 1).drop(columns=LABELS)
    path = export_model(model, features, folder / "model.pt2")
    extra = {"table.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    contents = json.loads(extra["table.json"])
    assert contents["labels"] == LABELS
    raw = features.assign(kind=[contents["categories"]["kind"].index(v) for v in features["kind"]])
    logits = program(torch.tensor(raw.to_numpy(dtype=np.float32)))
    assert np.array_equal((logits > 0).numpy(), model.predict(features) == 1)


@pytest.mark.parametrize("model", ["lightgbm", "logistic"])
def test_other_models_get_a_threshold_for_each_label(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / model
    command = ["fit", f"{folder}/train.csv", "--target", "tag_*", "--model", model]
    assert main([*command, "--out", f"{out}"]) == 0
    check_evaluation(out, folder / "test.csv", capsys)
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["method"]["balanced_error"] < evaluation["before"]["balanced_error"] - 0.03
    page = text_of(out / "report.html")
    assert "No adjustment: false negatives" in page
    assert f"{100 * evaluation['before']['class_errors'][2]:.1f}%" in page


def test_scores_of_a_table_get_a_threshold_for_each_label(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "adjusted"
    command = ["adjust", f"{folder}/scores_train.csv", "--target", *LABELS, "--scores", "p_*"]
    test = ["--test", f"{folder}/scores_test.csv", "--objective", "macro_f1"]
    assert main([*command, *test, "--out", f"{out}"]) == 0
    check_evaluation(out, folder / "scores_test.csv", capsys)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("fit t.csv --target a --out r", "fit t.csv --target a --out r"),
        ("fit t.csv --target a b --out r", 'fit t.csv --target=["a", "b"] --out r'),
        ("fit --target a t.csv --out r", "fit --target a t.csv --out r"),
        ("evaluate r --target a t.csv", "evaluate r --target a t.csv"),
        ("evaluate r t.csv --json --target a b", 'evaluate r t.csv --json --target=["a", "b"]'),
        ("frontier t.csv --target a b", "frontier t.csv --target a b"),
        ("", ""),
    ],
)
def test_columns_after_target_are_joined_where_no_table_can_be_among_them(
    given: str, expected: str
) -> None:
    assert " ".join(join_targets(given.split())) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", *LABELS, "--groups", "kind"], "--groups"),
        (["--target", "tag_a", "kind"], "'kind' holds '[uv]'"),
        (["--target", "tag_a", "nope"], "nope"),
        (["--target", "tag_a", "tag_a"], "each once"),
        (["--target", "nope_*"], "none of the table"),
        (["--target", "*_a"], "names tag_a"),
        (["--target", *LABELS, "--objective", "worst_group_error"], "groups"),
        (["--target", *LABELS, "--augment", "shared", *SHORT], "augment"),
        (["--target", *LABELS, "--model", "auto"], "--model auto"),
    ],
)
def test_bad_use_is_told_on_one_line(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", f"{folder}/bad", "--overwrite"]
    assert main(["fit", f"{folder}/train.csv", *options, *out]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_missing_entries_are_left_out_of_the_network_s_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partly = table(700, 0).astype({"tag_b": float})
    partly.loc[:99, "tag_b"] = np.nan
    partly.to_csv(folder / "partly.csv", index=False)
    command = ["fit", f"{folder}/partly.csv", "--target", *LABELS, "--out", f"{folder}/partly"]
    assert main([*command, *SHORT]) == 0
    record = json.loads((folder / "partly" / "result.json").read_text())
    assert np.sum(record["class_counts"], axis=0)[1] < np.sum(record["class_counts"], axis=0)[0]
    capsys.readouterr()
    assert main([*command, "--model", "logistic", "--overwrite"]) == 2
    assert "100 entries that are not labelled" in capsys.readouterr().err


def test_runs_of_labels_are_told_apart_from_those_of_classes(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", f"{run}", f"{run}/", "--out", f"{folder}/both.html"]) == 2
    assert main(["evaluate", f"{run}", f"{folder}/test.csv", "--target", "tag_a"]) == 2
    assert "Name all of them" in capsys.readouterr().err
