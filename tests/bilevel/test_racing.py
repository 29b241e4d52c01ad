"""The race of arms: who may race, how they are judged, and what is carried to search and retraining."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autobalance._validation import InputError, TrainingDiverged
from autobalance.bilevel import racing
from autobalance.bilevel.arms import AS_IT_IS, DEFAULT_ARMS, Arm, as_arms
from autobalance.bilevel.checkpoints import OtherRun
from autobalance.bilevel.held_out import splits_of
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.racing import Trial, race, shortened, with_arm
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import Progress
from autobalance.data.array_data import ArrayData
from autobalance.losses.published import NormalizedLinear, last_linear
from autobalance.objectives.aggregates import BalancedError, WeightedError, WorstError
from autobalance.objectives.registry import as_objective
from autobalance.records.search_record import RacedArm
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.shared_strengths import gamma_bound
from helpers import blobs

RECIPE = Recipe(epochs=1, min_steps=30, batch_size=32, lr=0.02)
SETTINGS = SearchSettings(every=5)
COSINE = Arm(name="cosine", cosine_scale=16.0)
DECAY = Arm(name="decay", weight_decay=2.0, gamma=0.5, needs_fit=True)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def asked(**changes: Any) -> SearchSpec:
    given: dict[str, Any] = {
        "model_factory": mlp,
        "data": blobs(),
        "recipe": RECIPE,
        "settings": SETTINGS,
        "device": "cpu",
    }
    return SearchSpec(**{**given, **changes})


def trial(*surprise: float, training_error: float = 0.5) -> Trial:
    return Trial([*surprise], 0.1, training_error, 10)


def judged(arms: list[Arm], *, objective: Any = None, **trials: Trial) -> str:
    data = ArrayData.of(torch.zeros(8, 1), [0, 0, 0, 0, 0, 0, 1, 1])
    spec = asked(
        data=data,
        validation=data.subset(torch.tensor([0, 1, 6, 7])),
        objective=objective or BalancedError(),
    )
    held = [held for _, held in splits_of(spec.data, spec.validation, spec.settings, spec.seed)]
    records = racing._judge(arms, trials, spec, held)
    [taken] = [name for name, record in records.items() if record.outcome == "taken"]
    return taken


# What an arm changes ----------------------------------------------------------------------------


def test_the_arm_as_it_is_changes_nothing() -> None:
    spec = asked()
    assert with_arm(spec, AS_IT_IS).model_factory is mlp
    assert with_arm(spec, AS_IT_IS).recipe == RECIPE
    assert with_arm(spec, AS_IT_IS).space is None


def test_an_arm_changes_head_recipe_and_start() -> None:
    spec = with_arm(asked(), replace(DECAY, cosine_scale=8.0))
    assert spec.model_factory is not None
    head = last_linear(spec.model_factory())[1]
    assert isinstance(head, NormalizedLinear)
    assert head.scale == 8.0
    assert spec.recipe == replace(RECIPE, weight_decay=2.0)
    assert spec.space is not None
    space = spec.space(np.array([100, 30, 10]))
    delta = space().detach().multiplicative
    assert delta is not None
    assert float(delta[2] / delta[0]) == pytest.approx(0.5)  # the bound
    assert space.to_dict()["gamma"] == pytest.approx(math.log(2) / math.log(10))
    mild = with_arm(asked(), Arm(name="mild", gamma=0.1)).space
    assert mild is not None
    assert mild(np.array([100, 30, 10])).to_dict()["gamma"] == 0.1


def test_a_space_of_ones_own_stays() -> None:
    own = lambda counts: HierarchicalSpace(counts, tau=0.0)  # noqa: E731
    assert with_arm(asked(space=own), DECAY).space is own


@pytest.mark.parametrize(
    ("counts", "bound"), [([100, 10], math.log(2) / math.log(10)), ([5, 5], 1.0), ([11, 10], 1.0)]
)
def test_the_bound_of_gamma(counts: list[int], bound: float) -> None:
    assert gamma_bound(np.array(counts)) == pytest.approx(bound)


def test_half_the_steps() -> None:
    assert shortened(Recipe(epochs=30, min_steps=500), 0.5).steps(741) == 250
    assert shortened(Recipe(epochs=30, min_steps=1), 0.5).steps(12800) == 1500


# The criterion ----------------------------------------------------------------------------------


def test_the_criterion_is_the_cross_entropy_at_the_other_halfs_temperature() -> None:
    torch.manual_seed(0)
    logits, target = 4 * torch.randn(12, 3), torch.tensor([0, 1, 2] * 4)
    weight = torch.full((12,), 1 / 12).double()
    shares = racing._surprise(logits, target, weight, target)
    second = racing._every_other(target)
    assert second.tolist() == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3
    for half in (second, ~second):
        candidates = torch.linspace(-3, 5, 4001).exp()
        losses = [
            float(F.cross_entropy(logits[~half].double() / t, target[~half])) for t in candidates
        ]
        best = float(candidates[int(np.argmin(losses))])
        expected = F.cross_entropy(logits[half].double() / best, target[half], reduction="none")
        torch.testing.assert_close(shares[half], expected / 12, rtol=1e-3, atol=1e-4)


def test_the_criterion_does_not_see_a_common_scale() -> None:
    torch.manual_seed(1)
    target = torch.arange(40) % 3
    logits = torch.randn(40, 3) + F.one_hot(target, 3)
    weight = torch.full((40,), 1 / 40).double()
    one, other = (racing._surprise(s * logits, target, weight, target) for s in (1.0, 7.0))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("over", ["class", "class_and_group"])
def test_every_cell_counts_alike(over: str) -> None:
    held = ArrayData.of(torch.zeros(6, 1), [0, 0, 0, 1, 1, 0], groups=[0, 0, 1, 0, 1, 0])
    objective = BalancedError() if over == "class" else as_objective("worst_class_and_group_error")
    spec = asked(data=held, objective=objective)
    [weights] = racing.criterion_weights(spec, [held])
    cells = held.target if over == "class" else held.cells()
    sums = torch.bincount(cells, weights)
    torch.testing.assert_close(
        sums[sums > 0], torch.full_like(sums[sums > 0], 1 / (sums > 0).sum())
    )


def test_importance_and_sample_weights_count() -> None:
    held = ArrayData.of(torch.zeros(4, 1), [0, 0, 1, 1], sample_weight=[3.0, 1.0, 1.0, 1.0])
    spec = asked(data=held, objective=WeightedError(weights=(1.0, 3.0)))
    [weights] = racing.criterion_weights(spec, [held])
    assert weights.tolist() == pytest.approx([0.1875, 0.0625, 0.375, 0.375])


# Who is taken -----------------------------------------------------------------------------------


def test_the_favourite_stays_without_a_clear_lead() -> None:
    first, other = trial(0.2, 0.3, 0.2, 0.3), trial(0.21, 0.28, 0.22, 0.27)
    assert judged([AS_IT_IS, COSINE], plain=first, cosine=other) == "plain"
    clear = trial(0.1, 0.2, 0.1, 0.2)
    assert judged([AS_IT_IS, COSINE], plain=first, cosine=clear) == "cosine"


def test_an_arm_for_networks_that_fit_is_the_favourite_there() -> None:
    first = trial(0.2, 0.3, 0.2, 0.3, training_error=0.0)
    worse, clear = trial(0.3, 0.2, 0.2, 0.35), trial(0.5, 0.6, 0.5, 0.6)
    assert judged([AS_IT_IS, DECAY], plain=first, decay=worse) == "decay"
    assert judged([AS_IT_IS, DECAY], plain=first, decay=clear) == "plain"


def test_objectives_that_are_no_mean_need_a_longer_lead() -> None:
    first = trial(0.2, 0.3, 0.2, 0.3, training_error=0.0)
    clear, far = trial(0.1, 0.2, 0.25, 0.28), trial(0.1, 0.2, 0.1, 0.2)
    for objective, taken in ((BalancedError(), "cosine"), (WorstError(), "plain")):
        arms = [AS_IT_IS, COSINE]
        assert judged(arms, objective=objective, plain=first, cosine=clear) == taken
    assert judged([AS_IT_IS, COSINE], objective=WorstError(), plain=first, cosine=far) == "cosine"
    # Nor is an arm for networks that fit the favourite.
    worse = trial(0.3, 0.2, 0.2, 0.35)
    assert judged([AS_IT_IS, DECAY], objective=WorstError(), plain=first, decay=worse) == "plain"


def test_a_cell_of_one_example_takes_the_widest_spread() -> None:
    values, cells = np.array([0.0, 1.0, 0.0, 0.2, 5.0]), np.array([0, 0, 1, 1, 2])
    expected = math.sqrt(2 * 0.5 + 2 * 0.02 + 2 * 0.5)
    assert racing._standard_error(values, cells) == pytest.approx(expected)


# A race -----------------------------------------------------------------------------------------


def test_records_tell_what_each_arm_gave() -> None:
    steps: list[Progress] = []
    taken, records = race(asked(), [AS_IT_IS, COSINE], steps.append)
    assert {p.phase for p in steps} == {"race"}
    assert [(p.step, p.total) for p in steps if not p.rows] == [(15, 30), (30, 30)]
    assert [r.name for r in records] == ["plain", "cosine"]
    assert sorted(r.outcome for r in records) == ["passed over", "taken"]
    assert taken.name == next(r.name for r in records if r.outcome == "taken")
    for record in records:
        assert record.steps == 15
        assert record.criterion is not None
        assert record.criterion > 0
        assert record.error is not None
        assert 0 <= record.error <= 1
    assert records[0].difference == records[0].standard_error == 0.0


def test_a_race_in_folds_pools_what_they_hold_out() -> None:
    spec = asked(settings=replace(SETTINGS, folds=2))
    _, records = race(spec, [AS_IT_IS, COSINE])
    assert [r.steps for r in records] == [30, 30]


def test_an_arm_that_needs_a_fit_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, records = race(asked(recipe=replace(RECIPE, lr=1e-5)), [AS_IT_IS, DECAY])
    assert records[1].outcome == "left out"
    assert "does not fit its training rows" in records[1].reason
    monkeypatch.setattr(racing, "FITTED", 1.0)
    _, records = race(asked(), [AS_IT_IS, DECAY])
    assert records[1].reason == "the network has no normalisation layer"
    _, records = race(asked(model_factory=normalised), [AS_IT_IS, DECAY])
    assert records[1].criterion is not None


def no_linear() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.Conv2d(2, 3, 1), nn.Flatten())


def test_an_arm_whose_head_the_network_lacks_is_left_out_and_told() -> None:
    with pytest.warns(UserWarning, match=r"The arm 'cosine' is left out .* no torch.nn.Linear"):
        taken, records = race(asked(model_factory=no_linear), [AS_IT_IS, COSINE])
    assert taken is AS_IT_IS
    assert records[1].outcome == "left out"
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(InputError, match=r"No arm can race. cosine: .* no torch.nn.Linear"),
    ):
        race(asked(model_factory=no_linear), [COSINE])


def test_decay_is_for_adamw() -> None:
    spec = asked(recipe=replace(RECIPE, optimizer="sgd"))
    with pytest.warns(UserWarning, match=r"'decay' is left out .* AdamW"):
        _, records = race(spec, [AS_IT_IS, replace(DECAY, needs_fit=False)])
    assert records[1].outcome == "left out"


def failing(arm: str, trials: Callable[..., Trial]) -> Callable[..., Trial]:
    def run(own: Arm, *arguments: Any) -> Trial:
        if arm in (own.name, "all"):
            raise TrainingDiverged("The loss is not finite.", step=3)
        return trials(own, *arguments)

    return run


def test_an_arm_that_diverges_is_dropped_and_all_of_them_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(racing, "_run_trial", failing("plain", racing._run_trial))
    with pytest.warns(UserWarning, match="'plain' is out of the race: The loss is not finite"):
        taken, records = race(asked(), [AS_IT_IS, COSINE])
    assert taken is COSINE
    assert records[0].outcome == "diverged"
    monkeypatch.setattr(racing, "_run_trial", failing("all", racing._run_trial))
    with (
        pytest.warns(UserWarning, match="out of the race"),
        pytest.raises(TrainingDiverged, match="not finite"),
    ):
        race(asked(), [AS_IT_IS, COSINE])


def test_a_class_without_held_out_examples_is_no_hindrance() -> None:
    inputs, target = torch.randn(41, 2), torch.tensor([0] * 25 + [1] * 15 + [2])
    _, records = race(asked(data=ArrayData.of(inputs, target)), [AS_IT_IS, COSINE])
    assert all(r.criterion is not None for r in records)


def test_a_killed_race_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = asked(checkpoint=tmp_path / "run")
    _, whole = race(asked(), [AS_IT_IS, COSINE])
    own = racing._run_trial

    def killed(arm: Arm, *arguments: Any) -> Trial:
        if arm is COSINE:
            raise RuntimeError("killed")
        return own(arm, *arguments)

    monkeypatch.setattr(racing, "_run_trial", killed)
    with pytest.raises(RuntimeError, match="killed"):
        race(spec, [AS_IT_IS, COSINE])
    ran: list[str] = []
    monkeypatch.setattr(
        racing, "_run_trial", lambda arm, *a: (ran.append(arm.name), own(arm, *a))[1]
    )
    _, records = race(spec, [AS_IT_IS, COSINE])
    assert ran == ["cosine"]
    assert records == whole
    with pytest.raises(OtherRun, match="seed"):
        race(asked(checkpoint=tmp_path / "run", seed=1), [AS_IT_IS, COSINE])
    assert (tmp_path / "run.race").is_file()


# Search and retraining --------------------------------------------------------------------------


def test_a_search_with_arms_is_the_search_of_the_arm_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    data = blobs()
    common: dict[str, Any] = {"recipe": RECIPE, "settings": SETTINGS, "seed": 3, "device": "cpu"}
    monkeypatch.setattr(racing, "LEAD", -1e9)  # another arm than the first is taken
    result = search(mlp, data, arms=[AS_IT_IS, COSINE], **common)
    assert result.arm is COSINE
    plain = search(COSINE.network(mlp), data, **common)
    assert result.loss.to_dict() == plain.loss.to_dict()
    assert plain.arm is None
    assert plain.race == []
    assert result.training_runs == pytest.approx(plain.training_runs + 1.0)
    again = SearchResult.from_json(result.to_json())
    assert again.arm == COSINE
    assert again.race == result.race

    together = retrain(mlp, data, result, **{k: common[k] for k in ("recipe", "seed", "device")})
    by_hand = retrain(COSINE.network(mlp), data, result.loss, recipe=RECIPE, seed=3, device="cpu")
    torch.testing.assert_close(
        predict_logits(together, data.inputs), predict_logits(by_hand, data.inputs), rtol=0, atol=0
    )


def test_one_seed_gives_one_race() -> None:
    one, two = (search(mlp, blobs(), arms="default", recipe=RECIPE, device="cpu") for _ in range(2))
    assert one.race == two.race
    assert one.loss.to_dict() == two.loss.to_dict()


def test_arms_leave_what_they_are_given_alone() -> None:
    network = mlp()
    before = copy.deepcopy(network.state_dict())
    search(lambda: copy.deepcopy(network), blobs(), arms="default", recipe=RECIPE, device="cpu")
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([], "arms is empty"),
        ("cosine", r'arms must be "default", a sequence of Arm, or None; got .cosine'),
        (3, "arms must be"),
        ([COSINE, "plain"], "arms must be"),
        ([COSINE, COSINE], "Two arms have the same name: cosine"),
        ([COSINE, replace(COSINE, name="again")], "Two arms have the same settings: again"),
    ],
)
def test_bad_lists_of_arms(arms: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(mlp, blobs(), arms=arms, recipe=RECIPE, device="cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": ""}, "An arm needs a name"),
        ({"name": "a", "cosine_scale": 0.0}, "cosine_scale must be"),
        ({"name": "a", "weight_decay": -1.0}, "weight_decay must"),
        ({"name": "a", "gamma": -0.1}, "gamma must"),
    ],
)
def test_bad_arms(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Arm(**given)


def test_the_default_begins_with_what_is_given() -> None:
    assert as_arms("default") is DEFAULT_ARMS
    assert DEFAULT_ARMS[0] == AS_IT_IS
    assert as_arms(None) == ()
    assert isinstance(RacedArm("a", {}, "left out"), RacedArm)
