"""What a run is said to have done, and what is warned of, on records made for it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance.cli import main
from autobalance.report.explain import as_html, as_text, explanation
from autobalance.report.html import render_report
from autobalance.report.record import read_run
from autobalance.report.text import in_words
from report_records import make_record


def quiet(**given: Any) -> dict[str, Any]:
    """A finished fit without anything to warn of."""
    record = make_record(**{"k": 3, "steps": 16, **given})
    record |= {"kind": "fit", "methods": {}, "evaluation_data": None}
    search = record["search"]
    search["settings"]["validation_counts"] = [100, 20, 10]
    for i, step in enumerate(search["history"]):
        step |= {"objective": 0.3, "hard_objective": 0.2, "norm": 0.5 / (1 + i)}
    search["design"] |= {"priors": {"tau": [1.0, 0.5], "eps": [0.0, 0.5]}}
    search["design"] |= {"tau": 1.4, "eps": [0.1, 0.0, -0.1]}
    return record


def warnings_of(record: dict[str, Any]) -> list[str]:
    return explanation(read_run(record)).warnings


def test_nothing_to_warn_of() -> None:
    assert warnings_of(quiet()) == []


def few(record: dict[str, Any]) -> None:
    record["search"]["settings"]["validation_counts"] = [100, 4, 1]


def few_pairs(record: dict[str, Any]) -> None:
    record.update(copy.deepcopy(quiet(groups=2)))
    record["search"]["settings"]["validation_counts"] = [[50, 9, 8], [50, 9, 2]]


def no_errors(record: dict[str, Any]) -> None:
    for step in record["search"]["history"][-4:]:
        step["hard_objective"] = 0.001


def rising(record: dict[str, Any]) -> None:
    for i, step in enumerate(record["search"]["history"]):
        step["hard_objective"] = 0.2 + 0.01 * i


def only_errors(record: dict[str, Any]) -> None:
    for step in record["search"]["history"]:
        step["hard_objective"] = 1.0


def falling(record: dict[str, Any]) -> None:
    for i, step in enumerate(record["search"]["history"]):
        step["objective"] = 0.5 - 0.01 * i


def growing(record: dict[str, Any]) -> None:
    for i, step in enumerate(record["search"]["history"]):
        step["norm"] = 0.1 * (1 + i)


def far(record: dict[str, Any]) -> None:
    record["search"]["design"] |= {"tau": 2.5, "eps": [1.2, 0.0, -1.1]}


def edge(record: dict[str, Any]) -> None:
    design = {"space": "ClassSpace", "priors": {}, "raw_delta": [0.0, 6.0, -5.5]}
    record["search"]["design"] = design
    record["search"]["start"]["multiplicative"] = [0.73] * 3
    record["search"]["loss"]["multiplicative"] = [0.5, 0.998, 0.004]


def collapsed(record: dict[str, Any]) -> None:
    record["search"]["held_out"] = {
        "n": [[50, 20, 20]], "wrong": [[0, 20, 20]], "predicted": [[90, 0, 0]]
    }  # fmt: skip


def augmented(record: dict[str, Any]) -> None:
    rows = {str(k): {"flip": {"probability": 0.5}} for k in range(3)}
    record["search"]["augment"] = {"per_class": rows}


def stopped(record: dict[str, Any]) -> None:
    record["search"]["status"] = record["status"] = "interrupted"


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize(
    ("change", "said", "remedy"),
    [
        (few, "held out of these classes: class 2 (1), class 1 (4).", "--search.folds 3"),
        (few_pairs, "pairs of group and class: class 2 in group 1 (2).", "add data"),
        (no_errors, "its value on validation data was 0.1%", "Keep the start"),
        (rising, "The balanced error on validation data rose", "by `autobalance compare`"),
        (only_errors, "on validation data was 100.0%", "merge the smallest classes"),
        (falling, "its objective was still falling, by 0.040", "--recipe.epochs"),
        (growing, "had grown to 5.8 times that of the beginning", "--search.lr"),
        (
            far,
            "the strength τ of ℓ (3.0 σ), the deviation of ℓ of class 0 (2.4 σ), "
            "the deviation of ℓ of class 2 (−2.2 σ).",
            "compare the loss with its start",
        ),
        (edge, "δ of class 1 (1.00, between 0 and 1), δ of class 2 (0.00", "on test data"),
        (collapsed, "predicts class 0 for every held-out example", "lower --recipe.lr"),
        (stopped, "The search was interrupted", "best estimate"),
        (augmented, "The learned augmentation was not set against none.", "--augment none"),
    ],
)
def test_each_warning_comes_with_its_remedy(change: Any, said: str, remedy: str) -> None:
    record = quiet()
    change(record)
    [warned] = warnings_of(record)
    assert said in warned
    assert remedy in warned
    page = render_report(record)
    assert ("The objective is saturated" in page) == (change in (no_errors, only_errors))


def test_no_folds_are_advised_where_there_are_three() -> None:
    record = quiet()
    few(record)
    record["search"]["settings"]["search"] = {"folds": 3}
    [warned] = warnings_of(record)
    assert "--search.folds" not in warned
    assert "Hold out more with --search.validation_fraction, or add data." in warned


def test_classes_that_gained_and_lost_on_test_data() -> None:
    record = make_record(k=3)
    record["class_names"] = ["cat", "dog", "fox"]
    for name, errors in (("cross_entropy", [0.1, 0.5, 0.9]), ("autobalance", [0.14, 0.5, 0.3])):
        record["methods"][name] |= {"class_errors": errors, "class_n": [50, 50, 50]}
    [favours, changes] = explanation(read_run(record)).classes
    assert changes == (
        "On 150 balanced test images, autobalance against cross-entropy, gained: fox (−60.0 points, "
        "90.0% to 30.0%); lost: cat (+4.0 points, 10.0% to 14.0%). 1 of the 2 changes is larger than "
        "the choice of examples explains."
    )
    assert favours.startswith("Against its start the designed loss favours ")


def with_candidates(choice: str = "designed") -> dict[str, Any]:
    record = quiet()
    wrong = {"designed": [10, 6, 2], "start": [5, 6, 8], "cross_entropy": [0, 10, 10]}
    record["search"] |= {
        "choice": choice,
        "candidates": [
            {
                "name": name,
                "loss": record["search"]["loss"],
                "objective": 0.2,
                "difference": 0.0,
                "standard_error": 0.01,
                "wrong": [w],
                "n": [[100, 20, 10]],
            }
            for name, w in wrong.items()
        ],
    }
    return record


def test_classes_that_gained_and_lost_on_held_out_folds() -> None:
    [_, designed] = explanation(read_run(with_candidates())).classes
    assert "designed loss against start" in designed
    assert "gained: class 2 (−60.0 points, 80.0% to 20.0%)" in designed
    assert "lost: class 0 (+5.0 points, 5.0% to 10.0%). 1 of the 2 changes is larger" in designed
    [_, start] = explanation(read_run(with_candidates("start"))).classes
    assert "against plain cross-entropy, gained: class 1 (−20.0 points" in start
    record = with_candidates()
    for candidate in record["search"]["candidates"]:
        del candidate["wrong"]
    [_, unknown] = explanation(read_run(record)).classes
    assert "was not measured. It is with --search.folds 3, on held-out data, and by" in unknown
    [_] = explanation(read_run(record | {"kind": "frontier"})).classes


def test_a_class_whose_l_fell_is_favoured() -> None:
    record = quiet()
    record["search"]["start"]["additive"] = [0.0, 0.0, 0.0]
    record["search"]["loss"]["additive"] = [0.6, 0.0, -0.6]
    [favours, _] = explanation(read_run(record)).classes
    assert "favours class 2 (0.60) more, and class 0 (0.60) less" in favours
    record["search"]["loss"]["multiplicative"] = [0.5, 1.0, 1.0]
    assert len(explanation(read_run(record)).classes) == 1  # delta has its say, too


def test_probabilities_are_told_of() -> None:
    record = quiet()
    record["search"]["calibration"] = {
        "temperature": 1.5, "examples": 130, "raw_error": 0.21, "prior_error": 0.05, "error": 0.03
    }  # fmt: skip
    assert "off by 21.0%" in explanation(read_run(record)).story[-1]
    assert (
        "are off by 3.0% there, with the temperature 1.50"
        in explanation(read_run(record)).story[-1]
    )


def test_the_text_is_wrapped_and_complete() -> None:
    record = quiet()
    few(record)
    found = explanation(read_run(record))
    text = as_text(found, width=60)
    assert max(map(len, text.splitlines())) <= 60
    joined = " ".join(text.split())
    for part in (*found.story, *found.classes, *found.warnings):
        assert " ".join(part.split()) in joined
    assert "Search 3.0 s" in joined
    assert text.index("Classes\n") < text.index("Take care\n") < text.index("Cost\n")


def test_html_is_escaped_and_small() -> None:
    record = quiet(k=40)
    record["class_names"] = [f"<script>{i}</script>" for i in range(40)]
    record["search"]["settings"]["validation_counts"] = [1] * 40
    page = as_html(read_run(record))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10
    assert page.count("<tr>") == 1 + 10 + 1
    assert "… 30 more rows …" in page
    assert len(page) < 10_000


@pytest.mark.parametrize("parts", [(), ("additive", "multiplicative", "weight")])
@pytest.mark.parametrize("groups", [0, 3])
def test_any_record_is_explained(parts: tuple[str, ...], groups: int) -> None:
    record = make_record(k=30, groups=groups, parts=parts)
    assert as_text(explanation(read_run(record)))
    assert as_html(read_run(record))
    bare = {"class_names": ["a", "b"], "search": {"design": {"priors": 3, "tau": 1.0}}}
    assert "plain cross-entropy" in as_text(explanation(read_run(bare)))
    assert as_html(read_run(bare))


def test_explain_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = quiet()
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert main(["explain", str(tmp_path)]) == 0
    assert capsys.readouterr().out == as_text(explanation(read_run(record))) + "\n"
    assert main(["explain", str(tmp_path / "none")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["explain", str(tmp_path / "none")]) == 2
    assert "is not a RUN folder: it has no result.json" in capsys.readouterr().err


def test_a_delta_that_is_no_sigmoid_has_no_edge() -> None:
    record = quiet()
    edge(record)
    record["search"]["start"]["multiplicative"] = [1.0] * 3
    assert warnings_of(record) == []


def test_hostile_designs_are_no_error() -> None:
    for value in ("x", [[1, 2], [3]], {"a": 1}, [None, 1.0, 2.0], float("nan")):
        record = quiet()
        record["search"]["design"]["eps"] = value
        assert as_text(explanation(read_run(record)))
        record["search"]["settings"]["validation_counts"] = value
        assert as_text(explanation(read_run(record)))
    record = quiet()
    record["class_counts"] = [-1, 20, 5]
    assert as_text(explanation(read_run(record)))
    assert np.isfinite(len(as_text(explanation(read_run(quiet())))))


def test_a_learned_augmentation_is_described() -> None:
    record = quiet()
    augmented(record)
    record["search"]["augment"]["per_class"]["0"]["flip"]["probability"] = 0.8
    for row in record["search"]["augment"]["per_class"].values():
        row["shift_x"] = {"probability": 0.25, "magnitude": 0.4}
    said = explanation(read_run(record)).story
    assert (
        "Training examples are augmented (means over the classes): flip 60.0% of the time; "
        "shift x 25.0% of the time, by up to 40.0% of its limit." in said
    )


def test_objectives_in_words() -> None:
    assert (
        in_words("balanced_error where deo <= 0.05") == "balanced error with a DEO of at most 0.05"
    )
    assert in_words("0.5 * worst_class_error + 0.5 * deo") == "0.5 × worst class error + 0.5 × DEO"
    assert in_words("cvar_error") == "CVaR of the errors"
