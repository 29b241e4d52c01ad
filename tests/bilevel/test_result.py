"""The record of a search: JSON and pickle round trips, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import asdict
from typing import Any

import pytest
import torch

import autobalance
from autobalance._validation import InputError
from autobalance.bilevel.result import SearchResult, used_versions
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives.registry import NAMED
from autobalance.records.search_record import PathPoint, UpperRecord


def result(**given: Any) -> SearchResult:
    step = UpperRecord(
        step=5,
        objective=1 / 3,
        hard_objective=0.1,
        training_loss=0.7,
        norm=1e-17,
        residual=0.25,
        iterations=2,
        reason="iterations",
        skipped=False,
    )
    return SearchResult(
        **{
            "loss": ParametricCrossEntropy(
                torch.tensor([1 / 3, 5 / 3]), torch.tensor([0.1, -0.1]), label_smoothing=0.1
            ),
            "start": ParametricCrossEntropy.logit_adjusted([7, 3]),
            "history": [step],
            "path": [PathPoint(0, None, [0.1, -0.1], None), PathPoint(5, [1.0, 1.0], [0, 0], None)],
            "design": {"space": "HierarchicalSpace", "learns": ["additive"], "tau": 1.0},
            "settings": {"recipe": {"lr": 0.1}, "class_counts": [7, 3]},
            "seed": 4,
            "seconds": {"wall": 1.5, "cpu": 1.25},
            **given,
        }
    )


def assert_same(found: SearchResult, expected: SearchResult) -> None:
    assert found.to_dict() == expected.to_dict()
    assert found.history == expected.history
    assert found.path == expected.path
    for name in ("loss", "start"):
        states = [getattr(r, name).state_dict() for r in (found, expected)]
        torch.testing.assert_close(dict(states[0]), dict(states[1]), rtol=0, atol=0)


@pytest.mark.parametrize("status", ["finished", "interrupted", "diverged"])
def test_json_round_trip_bit_for_bit(status: str) -> None:
    expected = result(status=status)
    assert_same(SearchResult.from_json(expected.to_json()), expected)
    assert json.loads(expected.to_json(), parse_constant=pytest.fail)["status"] == status


def test_numbers_that_are_not_there_are_null_in_json() -> None:
    record = result().to_dict()
    record["history"][0] |= {"residual": float("nan"), "norm": float("nan")}
    found = SearchResult.from_json(SearchResult.from_dict(record).to_json())
    text = json.loads(found.to_json(), parse_constant=pytest.fail)
    assert text["history"][0]["residual"] is None
    assert math.isnan(found.history[0].residual)
    assert found.history[0].objective == 1 / 3


def test_pickle_round_trip() -> None:
    assert_same(pickle.loads(pickle.dumps(result())), result())


def test_the_loss_alone_can_be_read_from_the_record() -> None:
    record = json.loads(result().to_json())
    loss = ParametricCrossEntropy.from_dict(record["loss"])
    logits, target = torch.tensor([[0.3, -0.2]]), torch.tensor([1])
    assert torch.equal(loss(logits, target), result().loss(logits, target))


def test_versions_are_those_in_use() -> None:
    versions = used_versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["autobalance"] == autobalance.__version__
    assert result().versions == versions
    older = result(versions={"python": "3.11.0"})
    assert SearchResult.from_dict(older.to_dict()).versions == {"python": "3.11.0"}


def test_a_record_from_before_the_derivative_was_kept() -> None:
    record = result().to_dict()
    for step in record["history"]:
        del step["derivative"]
    assert SearchResult.from_dict(record).history == result().history


def spoilt(**changes: Any) -> dict[str, Any]:
    record = result().to_dict() | changes
    return {k: v for k, v in record.items() if v is not None}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "not a search result of autobalance: its 'format' is not there"),
        ({"format": "autobalance-loss"}, "not a search result of autobalance"),
        (spoilt(version=2), "version 2 of the format; this release reads version 1"),
        (spoilt(history=None), "incomplete or altered: 'history'"),
        (spoilt(seed=None), "incomplete or altered: 'seed'"),
        (spoilt(history=[{"step": 1}]), "incomplete or altered: .*missing"),
        (spoilt(path=[{"step": 1, "colour": 2}]), "incomplete or altered: .*colour"),
        (spoilt(loss={}), "This is not a loss written by autobalance"),
    ],
)
def test_foreign_and_spoilt_records_are_refused(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchResult.from_dict(record)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InputError, match=r"not a search result of autobalance: not JSON \("):
        SearchResult.from_json("{")


def test_records_are_plain() -> None:
    assert asdict(PathPoint(3, None, [1.0], None)) == {
        "step": 3,
        "weight": None,
        "additive": [1.0],
        "multiplicative": None,
    }


def test_summary_and_notebook_view_name_the_classes_and_are_escaped() -> None:
    said = result().summary(["<common>", "rare"])
    assert "from 7 of the most frequent class (<common>) down to 3 of the rarest (rare)" in (
        " ".join(said.split())
    )
    assert "Search 1.5 s" in " ".join(said.split())
    assert "class 0" in result().summary()
    page = result()._repr_html_()
    assert page.startswith("<div><p><strong>A loss designed for")
    assert "<td>class 0</td><td>7</td>" in page


def test_the_summary_names_the_objective_as_the_command_line_does() -> None:
    settings = {"class_counts": [[7, 3], [2, 2]], "objective": NAMED["worst_group_error"].to_dict()}
    loss = ParametricCrossEntropy(additive=[[0.1, -0.1], [0.0, 0.0]])
    found = result(settings=settings, loss=loss, start=loss)
    assert "worst group error" in found.summary(group_names=["n", "s"])
    other = result(
        settings=settings | {"objective": {"kind": "Own", "a": 1}}, loss=loss, start=loss
    )
    assert "own, a 1" in other.summary()
