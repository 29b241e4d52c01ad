"""The trade-off of two objectives on a small table: what it finds, costs, keeps and refuses."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance._validation import InputError, TrainingDiverged
from autobalance.bilevel import network_search as searching, pareto_frontier as sweeping
from autobalance.bilevel.lower_level import NetworkFolds
from autobalance.bilevel.network_search import NetworkSearch, search
from autobalance.bilevel.pareto_frontier import Frontier, FrontierPoint, baselines, frontier
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.types import Interrupted, Progress
from autobalance.data.array_data import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.metrics import class_errors, deo
from autobalance.records.settings import Recipe, SearchSettings
from helpers import blobs, linear_factory

RECIPE = Recipe(epochs=1, min_steps=40, batch_size=64, lr=0.05)
SETTINGS = SearchSettings(every=4, warmup=0.25)
MIXES = (0.0, 0.4, 0.8)


def table(n: int = 400, seed: int = 0) -> ArrayData:
    """Two classes, the positive one rarer in group 1 and there harder to tell."""
    generator = torch.Generator().manual_seed(seed)
    groups = (torch.rand(n, generator=generator) < 0.4).long()
    rate = torch.where(groups == 1, 0.15, 0.4)
    target = (torch.rand(n, generator=generator) < rate).long()
    signal = target * torch.where(groups == 1, 1.0, 2.0)
    noise = torch.randn(n, 2, generator=generator)
    return ArrayData.of(noise + torch.stack([signal, 1.0 * groups], dim=1), target, groups=groups)


DATA = table()


def quick(data: ArrayData = DATA, **given: Any) -> Frontier:
    given = {
        "recipe": RECIPE, "settings": SETTINGS, "mixes": MIXES, "device": "cpu", **given,
    }  # fmt: skip
    return frontier(given.pop("factory", linear_factory(2)), data, **given)


@pytest.fixture(scope="module")
def found() -> Frontier:
    return quick()


def without_time(frontier: Frontier) -> dict[str, Any]:
    record = frontier.to_dict()
    record.pop("seconds")
    return record


# What it finds --------------------------------------------------------------------------------


def test_one_seed_gives_one_frontier(found: Frontier) -> None:
    state = torch.random.get_rng_state()
    assert without_time(quick()) == without_time(found)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert without_time(quick(seed=1)) != without_time(found)


def test_it_has_a_point_for_each_mix_and_trades_the_error_for_the_gap() -> None:
    """Of a linear network that cannot tell the groups' classes alike; measured on 800 rows."""
    held = table(800, seed=1)
    result = quick(
        table(1500),
        validation=held,
        mixes=(0.0, 0.5, 0.8),
        recipe=replace(RECIPE, min_steps=240),
        settings=replace(SETTINGS, every=2, validation_batch_size=512),
    )
    assert [p.mix for p in result.points] == [0.0, 0.5, 0.8]
    first, *_, last = result.points
    assert last.gap < first.gap - 0.1
    assert last.main > first.main
    assert not any(p.constant for p in result.points)
    assert all(p.loss.num_groups == 2 for p in result.points)
    assert result.settings["validation_counts"] == held.counts().tolist()
    assert "objective" not in result.settings  # each point has its own


def test_points_are_measured_on_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network as it is at the end of each point, on the fold's validation data."""
    expected = []
    original = NetworkFolds.predict_held_out

    def watched(problem: NetworkFolds) -> Any:
        [fold] = problem.folds
        held = fold.validation
        predicted = predict_logits(fold.lower.module, held.inputs).argmax(dim=1).numpy()
        target = held.target.numpy()
        assert held.groups is not None
        expected.append(
            (
                class_errors(target, predicted, 2).mean(),
                deo(target, predicted, held.groups.numpy(), 2),
            )
        )
        return original(problem)

    monkeypatch.setattr(NetworkFolds, "predict_held_out", watched)
    result = quick()
    np.testing.assert_allclose([(p.main, p.gap) for p in result.points], expected, atol=1e-12)


def test_the_first_point_is_that_of_a_search_alone(found: Frontier) -> None:
    blend = sweeping._blend(sweeping.KNOWN["balanced_error"], sweeping.KNOWN["deo"], 0.0)
    alone = search(
        linear_factory(2),
        DATA,
        objective=blend,
        recipe=RECIPE,
        settings=replace(SETTINGS, choose=False),
        device="cpu",
    )
    assert found.points[0].loss.to_dict() == alone.loss.to_dict()
    assert found.start.to_dict() == alone.start.to_dict()


def test_network_and_loss_go_on_from_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    factory = linear_factory(2)

    def counted() -> nn.Module:
        made.append(factory())
        return made[-1]

    seen: list[dict[str, Any]] = []
    original = NetworkSearch.switch_objective

    def watched(run: Any, *arguments: Any) -> None:
        before = (
            run.problem.folds[0].lower.weights(),
            [p.tolist() for p in run.loss.space.parameters()],
        )
        original(run, *arguments)
        after = (
            run.problem.folds[0].lower.weights(),
            [p.tolist() for p in run.loss.space.parameters()],
        )
        assert all(torch.equal(before[0][n], after[0][n]) for n in before[0])
        assert before[1] == after[1]
        seen.append(after[0])

    monkeypatch.setattr(NetworkSearch, "switch_objective", watched)
    result = quick(factory=counted)
    assert len(made) == 1
    assert len(seen) == 2
    assert not torch.equal(seen[0]["weight"], seen[1]["weight"])
    # From scratch the same mix ends elsewhere.
    fresh = quick(mixes=[0.4])
    assert fresh.points[0].loss.to_dict() != result.points[1].loss.to_dict()


# What it costs --------------------------------------------------------------------------------


def test_ten_points_cost_five_and_a_half_runs() -> None:
    seen: list[Progress] = []
    result = quick(mixes=sweeping.MIXES, progress=seen.append)
    assert len(result.points) == 10
    assert result.training_runs == 5.5
    assert seen[-1].step == 40 + 9 * 20


def test_folds_cost_as_many_times_over_and_have_no_final_choice() -> None:
    result = quick(settings=replace(SETTINGS, folds=2))
    assert len(result.points) == 3
    assert result.training_runs == 2 * (1 + 0.5 + 0.5)
    assert result.settings["search"]["choose"] is False
    sizes = np.array(quick().settings["validation_counts"])
    np.testing.assert_allclose(result.settings["validation_counts"], 2 * sizes)


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, every=1, patience=3)], ids=str)
def test_progress_rises_to_its_total(settings: SearchSettings) -> None:
    seen: list[Progress] = []
    result = quick(settings=settings, progress=seen.append)
    steps = [p.step for p in seen]
    assert steps == sorted(steps)
    assert {p.total for p in seen} == {80}
    assert steps[-1] == 80
    assert {p.phase for p in seen} == {"search"}
    assert any(p.objective is not None for p in seen)
    assert (result.training_runs < 2.0) == (settings.patience is not None)


# Choosing from it -----------------------------------------------------------------------------


def made(*points: tuple[float, float, bool]) -> Frontier:
    """From (main, gap, constant)."""
    loss = ParametricCrossEntropy.cross_entropy()
    listed = [FrontierPoint(i / 10, loss, *p) for i, p in enumerate(points)]
    return Frontier(listed, loss, "balanced_error", "deo", 1.0, {}, 0, {"wall": 0.0, "cpu": 0.0})


TRADE = made(
    (0.15, 0.30, False), (0.18, 0.12, False), (0.20, 0.14, False), (0.25, 0.04, False),
    (0.50, 0.00, True),
)  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "mix"),
    [
        ({"gap": 0.3}, 0.0),
        ({"gap": 0.2}, 0.1),
        ({"gap": 0.12}, 0.1),
        ({"gap": 0.1}, 0.3),
        ({"main": 0.6}, 0.3),
        ({"main": 0.2}, 0.1),
        ({"main": 0.15}, 0.0),
    ],
)
def test_pick_takes_the_best_that_keeps_the_bound(bound: dict[str, float], mix: float) -> None:
    assert TRADE.pick(**bound).mix == mix


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({}, r"Give one bound: pick\(gap=0.05\) or pick\(main=0.2\)"),
        ({"gap": 0.1, "main": 0.2}, "Give one bound"),
        ({"gap": 0.03}, "has a gap of at most 0.03; the lowest is 0.0400. Raise the bound"),
        ({"main": 0.1}, "has a main of at most 0.1; the lowest is 0.1500"),
        ({"gap": math.nan}, "has a gap of at most nan"),
        ({"gap": "0.1"}, "gap must be a number; got '0.1'"),
    ],
)
def test_pick_refuses(bound: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TRADE.pick(**bound)


def test_constant_points_are_never_picked() -> None:
    with pytest.raises(InputError, match=r"None of the frontier's 2 points can be picked"):
        made((0.5, 0.0, True), (0.5, 0.0, True)).pick(gap=0.1)


def test_non_dominated() -> None:
    assert [p.mix for p in TRADE.non_dominated()] == [0.0, 0.1, 0.3]
    twins = made((0.2, 0.1, False), (0.2, 0.1, False), (0.2, 0.2, False), (0.1, 0.0, True))
    assert [p.mix for p in twins.non_dominated()] == [0.0, 0.1]


@pytest.mark.parametrize("predicted", [0, 1])
def test_constant_classifiers_are_marked(predicted: int) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(inputs), 2)
            logits[:, predicted] = 50.0
            return logits + 1e-3 * self.scale

    result = quick(factory=Constant)
    assert [(p.main, p.gap, p.constant) for p in result.points] == [(0.5, 0.0, True)] * 3
    assert result.non_dominated() == []
    with pytest.raises(InputError, match="None of the frontier's 3 points"):
        result.pick(gap=1.0)


# The record -----------------------------------------------------------------------------------


def test_json_and_back(found: Frontier) -> None:
    again = Frontier.from_json(found.to_json())
    assert again.to_dict() == found.to_dict()
    assert again.pick(gap=2.0).loss.to_dict() == found.pick(gap=2.0).loss.to_dict()
    assert again.settings["recipe"] == RECIPE.to_dict()


def test_a_record_with_more_in_it_is_read(found: Frontier) -> None:
    record = {**found.to_dict(), "baselines": []}
    assert Frontier.from_dict(record).to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a frontier of autobalance: its 'format' is not there"),
        ({"version": 2}, "version 2 of the format; this release reads version 1"),
        ({"points": [{"mix": 0.1}]}, "incomplete or altered: 'loss'"),
        ({"points": 3}, "incomplete or altered"),
    ],
)
def test_other_records_are_refused(found: Frontier, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Frontier.from_json(json.dumps({**found.to_dict(), **change}))


def test_what_is_no_json_is_refused(found: Frontier) -> None:
    with pytest.raises(InputError, match="not a frontier of autobalance: not JSON"):
        Frontier.from_json(found.to_json()[:-5])
    record = found.to_dict()
    del record["start"]
    with pytest.raises(InputError, match="incomplete or altered: 'start'"):
        Frontier.from_dict(record)


def test_a_point_as_a_search_result(found: Frontier) -> None:
    point = found.points[1]
    result = SearchResult.from_json(found.result(point).to_json())
    assert result.loss.to_dict() == point.loss.to_dict()
    assert result.start.to_dict() == found.start.to_dict()
    assert result.settings["objective"] == "0.6 * balanced_error + 0.4 * deo"
    assert (result.status, result.training_runs) == ("finished", 2.0)


# Baselines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [1, 2])
def test_baselines_are_trained_and_measured_on_the_same_splits(
    monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    splits: list[Any] = []
    original = searching.splits_of

    def watched(*arguments: Any) -> Any:
        splits.append(original(*arguments))
        return splits[-1]

    monkeypatch.setattr(searching, "splits_of", watched)
    settings = replace(SETTINGS, folds=folds)
    quick(settings=settings, seed=3)
    [pairs] = splits
    shared: dict[str, Any] = {"recipe": RECIPE, "seed": 3, "device": "cpu"}
    result = baselines(linear_factory(2), DATA, settings=settings, **shared)
    titles = ["cross-entropy", "logit adjustment", "logit adjustment by group"]
    assert [b.title for b in result] == titles
    counts = np.array(DATA.counts())
    by_hand = [
        ParametricCrossEntropy.cross_entropy(),
        ParametricCrossEntropy.logit_adjusted(counts.sum(axis=0)),
        ParametricCrossEntropy(additive=np.log(counts / counts.sum(axis=1, keepdims=True))),
    ]
    for loss, baseline in zip(by_hand, result, strict=True):
        predicted, target, groups = [], [], []
        for i, (train, held) in enumerate(pairs):
            model = retrain(linear_factory(2), train, loss, **{**shared, "seed": 3 + i})
            predicted.append(predict_logits(model, held.inputs).argmax(dim=1).numpy())
            target.append(held.target.numpy())
            groups.append(held.groups.numpy())
        y, guess, g = (np.concatenate(parts) for parts in (target, predicted, groups))
        assert baseline.main == pytest.approx(class_errors(y, guess, 2).mean())
        assert baseline.gap == pytest.approx(deo(y, guess, g, 2))
        assert not baseline.constant


def test_baselines_take_a_validation_set_of_the_users_own() -> None:
    given: dict[str, Any] = {"recipe": RECIPE, "device": "cpu"}
    held = table(300, seed=5)
    result = baselines(linear_factory(2), DATA, validation=held, **given)
    model = retrain(linear_factory(2), DATA, ParametricCrossEntropy.cross_entropy(), **given)
    predicted = predict_logits(model, held.inputs).argmax(dim=1).numpy()
    assert result[0].main == pytest.approx(class_errors(held.target.numpy(), predicted, 2).mean())


# Stopping and failing -------------------------------------------------------------------------


def test_ctrl_c_keeps_the_points_so_far(found: Frontier) -> None:
    def listen(progress: Progress) -> None:
        if progress.step > 70:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as error:
        quick(progress=listen)
    partial = error.value.partial
    assert isinstance(partial, Frontier)
    kept = [p.loss.to_dict() for p in partial.points]
    assert kept == [p.loss.to_dict() for p in found.points[:2]]
    assert 1.5 < partial.training_runs < 2.0
    assert Frontier.from_json(partial.to_json()).to_dict() == partial.to_dict()


def test_divergence_keeps_the_points_so_far() -> None:
    class Fuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.lit = nn.Linear(2, 2), False

        def listen(self, progress: Progress) -> None:
            self.lit = progress.step >= 50

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.linear(inputs) * (torch.nan if self.lit else 1.0)

    fuse = Fuse()
    with pytest.raises(TrainingDiverged, match="non-finite") as error:
        quick(factory=lambda: fuse, progress=fuse.listen)
    assert isinstance(error.value.partial, Frontier)
    assert [p.mix for p in error.value.partial.points] == [0.0]


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": ArrayData.of(DATA.inputs, DATA.target)}, "the data has none. Pass groups"),
        ({"data": [1]}, "data must be an ArrayData or a Dataset; got list"),
        ({"main": "f1"}, "main must be one of balanced_error, .*deo.*; got 'f1'"),
        ({"gap": "dei"}, "gap must be one of .*deo.*; got 'dei'"),
        ({"gap": ["deo"]}, r"gap must be one of .*; got \['deo'\]"),
        ({"main": "deo", "gap": "balanced_error"}, "main must not be a gap.*got 'deo'. Take"),
        ({"gap": "balanced_error"}, "main and gap are the same objective, 'balanced_error'"),
        ({"mixes": []}, r"mixes must rise within \[0, 1\); got \[\]"),
        ({"mixes": [0.2, 0.1]}, "mixes must rise"),
        ({"mixes": [0.1, 0.1]}, "mixes must rise"),
        ({"mixes": [-0.1, 0.1]}, "mixes must rise"),
        ({"mixes": [0.5, 1.0]}, "mixes must rise"),
        ({"mixes": [math.nan]}, "mixes must rise"),
        ({"mixes": ["0.1"]}, "a mix must be a number; got '0.1'"),
        ({"mixes": 0.1}, "mixes must be a sequence of numbers; got 0.1"),
        ({"recipe": replace(RECIPE, min_steps=6)}, "takes 3 training steps, too few .* every 4"),
        (
            {"data": ArrayData.of(DATA.inputs, DATA.target, groups=torch.zeros_like(DATA.target))},
            r"Fewer than two groups have held-out examples \(by group: \[80\]\)",
        ),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(**given)


def test_parity_of_three_classes_is_refused() -> None:
    with pytest.raises(InputError, match="two classes; there are 3"):
        quick(
            blobs((60, 40, 30), groups=True),
            factory=linear_factory(),
            gap="demographic_parity_difference",
        )


def test_a_group_too_small_to_hold_out_is_told_of() -> None:
    groups = torch.cat([DATA.groups, torch.tensor([2, 2, 2, 2])])  # type: ignore[list-item]
    inputs = torch.cat([DATA.inputs, torch.zeros(4, 2)])
    data = ArrayData.of(inputs, torch.cat([DATA.target, torch.tensor([0, 0, 1, 1])]), groups=groups)
    with pytest.warns(UserWarning, match=r"lacks 2 of 6 .* \(group 2, class 0, group 2, class 1\)"):
        quick(data, mixes=[0.3])
    alone = ArrayData.of(inputs, data.target, groups=(groups == 2).long())
    with pytest.raises(InputError, match="Fewer than two groups have held-out examples"):
        quick(alone)


def test_other_gaps_and_mains() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = quick(main="worst_group_error", gap="equal_opportunity_difference", mixes=[0.2])
    assert (result.main, result.gap) == ("worst_group_error", "equal_opportunity_difference")
    assert 0.0 <= result.points[0].gap <= 1.0
