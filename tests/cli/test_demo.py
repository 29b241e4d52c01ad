"""`autobalance demo`: what it writes and prints, what several seeds become, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance import cli
from autobalance.cli import demo, demo_table, terminal
from autobalance.cli.demo_record import average
from autobalance.records.metrics import reliability
from autobalance.records.settings import Recipe

pytestmark = [
    pytest.mark.usefixtures("empty_pictures"),
    # Twenty steps are too few for a search.
    pytest.mark.filterwarnings("ignore:At the end of the search:UserWarning"),
]
IMAGES = [
    "cross_entropy",
    "logit_adjustment",
    "autobalance_balanced",
    "autobalance_worst_class",
    "autobalance",
]


@pytest.fixture(autouse=True)
def _short_and_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = Recipe(epochs=0.1, min_steps=20, batch_size=32)
    defaults: Any = demo.Demo.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "recipe", short)
    monkeypatch.setattr(demo, "count_processes", lambda: 1)


def stop_after(trainings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt once so many trainings are done."""

    def count(_: Any, title: str, done: int, total: int) -> None:
        if done >= trainings:
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal.LiveProgress, "count", count)


def read(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "result.json").read_text())


def test_images_over_two_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--seeds", "2", "--seed", "4"]) == 0
    record = read("demo-run")
    assert (record["seed"], record["seeds"]) == (4, [4, 5])
    assert list(record["methods"]) == IMAGES
    assert record["search"]["seed"] == 4
    assert {arm["name"] for arm in record["search"]["race"]} == {"plain", "cosine", "decay"}
    shown = capsys.readouterr().out
    for entry in record["methods"].values():
        assert [each["seed"] for each in entry["by_seed"]] == [4, 5]
        for key in ("balanced_error", "worst_class_error"):
            values = [each[key] for each in entry["by_seed"]]
            assert entry[key] == pytest.approx(np.mean(values))
            error = abs(values[0] - values[1]) / 2  # of a mean of two
            assert entry["standard_error"][key] == pytest.approx(error)
            assert f"{100 * entry[key]:.1f} ± {100 * error:.1f}" in shown
        assert entry["title"] in shown
    runs = [entry["training_runs"] for entry in record["methods"].values()]
    # Two ways to train race for half a run each; the third is for networks that fit, which these do not.
    assert runs == pytest.approx([1.0] * 4 + [2.0])
    assert re.fullmatch(r"Next, .*: autobalance fit .* --out RUN", shown.splitlines()[-1])
    page = Path("demo-run/report.html").read_text()
    assert "standard error of the mean over seeds" in page
    assert cli.main(["demo"]) == 2
    assert "demo-run is not empty. Add --overwrite" in capsys.readouterr().err


def test_a_seed_is_the_same_alone_and_among_others() -> None:
    """Also on another number of cores: every training is on one thread."""
    first, second = (demo._train_one(3, "autobalance_balanced")[0] for _ in range(2))
    timed = ("seconds", "cpu_seconds")
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }


def test_ctrl_c_keeps_the_trainings_that_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for done, methods in ((0, []), (1, ["autobalance"]), (4, IMAGES[1:])):
        stop_after(done, monkeypatch)
        assert cli.main(["demo", "--seeds", "2", "--overwrite"]) == 130
        assert f"Interrupted. {done} of 10 trainings are done" in capsys.readouterr().err
        record = read("demo-run")
        assert (record["status"], list(record["methods"])) == ("interrupted", methods)
        assert "interrupted" in Path("demo-run/report.html").read_text()
    assert cli.main(["predict", "demo-run", "data.csv", "--out", "out.csv"]) == 2
    assert "demo-run holds a demo, not a fitted model" in capsys.readouterr().err


@pytest.mark.processes
def test_two_processes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the other processes have the recipe as it is
    tasks = [(0, "cross_entropy"), (0, "logit_adjustment")]
    monkeypatch.setattr(demo, "count_processes", lambda: 2)
    two = {entry["name"]: entry for entry, _ in demo._train_all(tasks)}
    one, _ = demo._train_one(*tasks[1])
    assert two.keys() == {name for _, name in tasks}
    assert two["logit_adjustment"]["confused"] == one["confused"]


def test_tables_over_two_splits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--table", "--seeds", "2", "--out", "run"]) == 0
    shown = capsys.readouterr().out
    digits, adult = read("run"), read("run/adult")
    for record in (digits, adult):
        assert list(record["methods"]) == list(demo_table.TITLES)
        assert [m["training_runs"] for m in record["methods"].values()] == [1, 1, 1, 6, 6]
        for entry in record["methods"].values():
            assert f"{100 * entry['balanced_error']:.1f} ± " in shown
    # Of ten classes the rarest has 5 rows: whatever corrects for that must do better than plain trees.
    plain = digits["methods"]["cross_entropy"]
    for name in ("logit_adjustment", "autobalance", "autobalance_worst_class"):
        assert digits["methods"][name]["balanced_error"] < plain["balanced_error"] - 0.01
    for folder in ("run", "run/adult"):
        page = Path(folder, "report.html").read_text()
        assert "Decisions for the balanced error" in page
    assert "--model lightgbm --out RUN" in shown.splitlines()[-1]

    stop_after(1, monkeypatch)
    assert cli.main(["demo", "--table", "--out", "stopped"]) == 130
    assert "Interrupted. 1 of 6 trainings are done" in capsys.readouterr().err
    assert read("stopped")["status"] == "interrupted"


def test_tables_without_lightgbm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_table, "find_spec", lambda _: None)
    small = {"adult": demo_table.TABLES["adult"]}
    monkeypatch.setattr(demo_table, "TABLES", small)
    assert cli.main(["demo", "--table", "--seeds", "1", "--out", "run"]) == 0
    assert read("run/adult")["adjustment"]["model"] == demo_table.SCIKIT_LEARN
    shown = capsys.readouterr().out
    assert "Error in percent, one seed" in " ".join(shown.split())
    assert f"--model {demo_table.SCIKIT_LEARN} --out RUN" in shown


def test_digits_are_made_long_tailed_in_training_alone() -> None:
    split = demo_table.split_digits(0)
    counts = np.bincount(split.target)
    assert counts.tolist() == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (89, 5)
    assert np.bincount(split.test_target).min() > 80
    assert not set(split.train.index) & set(split.test.index)


def test_the_entry_of_several_seeds() -> None:
    """Bins and confusions are those of all examples together; the noise is that of one seed's."""
    generator = np.random.default_rng(0)
    target = np.repeat([0, 1], 50)
    entries, drawn = [], []
    for seed in (1, 0):
        p = generator.dirichlet([1.0, 1.0], 100)
        drawn.append(p)
        wrong = p.argmax(axis=1) != target
        errors = [float(wrong[target == k].mean()) for k in range(2)]
        bins = vars(reliability(p, target))
        entries.append(
            {
                "name": "m", "title": "M", "seed": seed, "n": 100, "class_n": [50, 50],
                "balanced_error": float(np.mean(errors)), "worst_class_error": max(errors),
                "class_errors": errors,
                "confused": [[k, 1 - k, int(wrong[target == k].sum())] for k in range(2)],
                "calibration": {"temperature": 1.0 + seed, "raw": bins, "corrected": bins},
            }
        )  # fmt: skip
    merged = average(entries)
    both = reliability(np.concatenate(drawn), np.tile(target, 2))
    for key in ("n", "right", "confidence"):
        assert merged["calibration"]["raw"][key] == pytest.approx(getattr(both, key))
    assert sum(merged["calibration"]["raw"]["effective"]) == pytest.approx(100)
    assert merged["calibration"]["temperature"] == 1.5
    assert [each["seed"] for each in merged["by_seed"]] == [0, 1]
    assert (merged["n"], merged["class_n"]) == (200, [100, 100])
    assert merged["class_n_effective"] == [50, 50]
    sums = [sum(e["confused"][k][2] for e in entries) for k in range(2)]
    assert merged["confused"] == [[0, 1, sums[0]], [1, 0, sums[1]]]
    assert merged["class_errors"] == pytest.approx([n / 100 for n in sums])
    assert merged["worst_class_error"] == np.mean([e["worst_class_error"] for e in entries])
