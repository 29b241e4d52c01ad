"""Algorithm 1 on small synthetic data: what it finds, that it repeats, and how it fails."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, TrainingDiverged
from autobalance.bilevel import checkpoints, lower_level
from autobalance.bilevel.execution import seed_random_state
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, LossTuner
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.types import Interrupted, Progress
from autobalance.data.array_data import ArrayData, concatenated
from autobalance.functional.model import FunctionalModel
from autobalance.hypergrad.solvers import Identity, Solver
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives.aggregates import BalancedError
from autobalance.objectives.base import Objective
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.default_space import build_space
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import blobs, linear_factory

pytestmark = pytest.mark.usefixtures("few_draws")
QUICK = Recipe(epochs=1, min_steps=40, batch_size=32, lr=0.05)
UPPER = SearchSettings(every=4, warmup=0.25)


def quick(data: ArrayData | None = None, **given: Any) -> SearchResult:
    """Forty lower and seven upper steps."""
    given = {"recipe": QUICK, "settings": UPPER, "device": "cpu", **given}
    factory = given.pop("factory", linear_factory())
    return search(factory, data or blobs(), **given)


def noisy_network() -> nn.Module:
    """Draws at random in its weights and in dropout, and has buffers."""
    return nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


class WithoutGradient(nn.Module):
    """Forward mode ignores `torch.no_grad()` and so disagrees with the gradient that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.closed = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            offset = self.closed(x)
        return self.open(x) + offset


class Fuse(nn.Module):
    """A linear network that returns NaN, or raises, from the lower step after `at` on.

    As the search's progress listener it learns where the search is: passes cannot be counted,
    for hypergradients pass through as well.
    """

    def __init__(self, at: int, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.at, self.error, self.lit = at, error, False

    def listen(self, progress: Progress) -> None:
        self.lit = progress.step >= self.at

    def forward(self, inputs: Tensor) -> Tensor:
        if self.lit and self.error is not None:
            raise self.error
        return self.linear(inputs) * (torch.nan if self.lit else 1.0)


def blown(fuse: Fuse) -> SearchResult:
    return quick(factory=lambda: fuse, progress=fuse.listen)


# What it finds --------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "sign"), [(0.0, 1), (3.0, -1)])
def test_tau_moves_towards_what_the_objective_wants(start: float, sign: int) -> None:
    """Overlapping classes, a linear model: about tau = 1 is right for the balanced error."""
    data = blobs((300, 100, 40), spread=1.2)
    result = search(
        linear_factory(),
        data,
        space=lambda counts: HierarchicalSpace(counts, tau=start, sigma_tau=10.0),
        recipe=Recipe(epochs=1, min_steps=150, batch_size=64, lr=0.1),
        settings=SearchSettings(every=2, lr=0.1, validation_fraction=0.4, average=0.2),
        device="cpu",
    )
    found = result.design["tau"]
    assert sign * (found - start) > 0.5
    assert -0.5 < found < 2.5


def test_finds_a_loss_better_than_cross_entropy_from_cross_entropy() -> None:
    """On validation data of its own, balanced; then by retraining with either, on fresh data."""
    data, held = blobs((300, 60, 20), spread=1.2), blobs((100, 100, 100), seed=1, spread=1.2)
    recipe = Recipe(epochs=1, min_steps=300, batch_size=64, lr=0.5, optimizer="sgd")
    result = search(
        linear_factory(),
        data,
        validation=held,
        space=lambda counts: ClassSpace(counts, learn=["additive"], tau=0.0),
        recipe=recipe,
        settings=SearchSettings(validation_batch_size=300, lr=0.1),
        device="cpu",
    )
    assert result.history[-1].hard_objective < result.history[0].hard_objective - 0.1
    assert result.loss.additive is not None
    l_found = result.loss.additive.tolist()
    assert l_found[0] > l_found[1] + 0.5 > l_found[2] + 1.0
    test = blobs((400, 400, 400), seed=2, spread=1.2)
    errors = []
    for loss in (result.start, result.loss):
        model = retrain(linear_factory(), data, loss, recipe=recipe, device="cpu")
        errors.append(BalancedError().hard(predict_logits(model, test.inputs), test.target))
    assert errors[1] < errors[0] - 0.1


def test_the_way_of_differentiation_is_in_the_history() -> None:
    assert {step.derivative for step in quick().history} == {"forward"}
    with pytest.warns(UserWarning, match="double backward"):
        history = quick(factory=WithoutGradient).history
    assert {step.derivative for step in history} == {"double backward"}


# Its settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3])
def test_products_are_averaged_over_so_many_of_the_last_batches(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    trained: list[Tensor] = []
    used: list[list[Tensor]] = []
    step, hypergradient = lower_level.LowerLevel.step, LossTuner.hypergradient

    def watched_step(self: Any, loss: Any) -> Tensor:
        value = step(self, loss)
        trained.append(self.recent[-1].inputs)
        return value

    def watched(self: Any, model: Any, batches: Any, *rest: Any, **options: Any) -> Any:
        used.append([*trained[-number:]])
        assert len(batches) == number
        assert all(torch.equal(b.inputs, x) for b, x in zip(batches, used[-1], strict=True))
        return hypergradient(self, model, batches, *rest, **options)

    monkeypatch.setattr(lower_level.LowerLevel, "step", watched_step)
    monkeypatch.setattr(LossTuner, "hypergradient", watched)
    quick(settings=replace(UPPER, training_batches=number))
    assert len(used) == 7


def test_the_upper_optimizer_is_the_one_named() -> None:
    """The first step of Adam is lr in size, whatever the gradient; that of SGD is lr times it.

    lr follows the lower level's schedule.
    """
    moved = {}
    for kind in ("adam", "sgd"):
        result = quick(
            settings=replace(UPPER, optimizer=kind, lr=0.01, every=20),
            space=lambda counts: HierarchicalSpace(counts, tau=0.0, sigma_eps=1e-6),
        )
        [first] = result.history
        rate = 0.01 * QUICK.lr_factor(first.step - 1, result.settings["steps"])
        moved[kind] = abs(result.design["tau"]) / rate, first.norm
    assert moved["adam"][0] == pytest.approx(1.0, rel=1e-3)
    change, norm = moved["sgd"]
    assert norm == moved["adam"][1]
    assert 0.0 < change <= norm * (1 + 1e-3)
    assert change != pytest.approx(1.0, rel=0.1)


# The record -----------------------------------------------------------------------------------


def test_the_record_is_complete() -> None:
    data = blobs()
    result = quick(data)
    assert result.status == "finished"
    steps = [record.step for record in result.history]
    assert steps == [14, 18, 22, 26, 30, 34, 38]
    assert [point.step for point in result.path] == [0, *steps]
    assert result.settings["steps"] == 40
    assert result.settings["examples"] == 172
    assert result.settings["class_counts"] == [120, 40, 12]
    assert result.settings["validation_counts"] == [24, 8, 2]
    assert result.settings["recipe"] == QUICK.to_dict()
    assert result.settings["search"] == UPPER.to_dict()
    assert Objective.from_dict(result.settings["objective"]) == BalancedError()
    assert Solver.from_dict(result.settings["solver"]) == DEFAULT_SOLVER
    assert result.design["space"] == "HierarchicalSpace"
    assert result.design["learns"] == ["additive", "multiplicative"]
    assert result.seconds["wall"] > 0
    assert result.seconds["cpu"] > 0
    start = TunableCrossEntropy(build_space(None, data.counts(), BalancedError())).frozen()
    for found, expected in zip(
        result.start.parameters_of_loss, start.parameters_of_loss, strict=True
    ):
        assert (found is None) == (expected is None)
        assert found is None or torch.allclose(found, expected)
    assert all(np.isfinite([r.objective, r.norm, r.training_loss]).all() for r in result.history)
    assert not any(r.skipped for r in result.history)


def test_the_loss_is_the_average_of_the_late_positions() -> None:
    """Seven upper steps and the start; the last quarter are two."""
    result = quick()
    late = [point.additive for point in result.path[-2:]]
    assert result.loss.additive is not None
    np.testing.assert_allclose(result.loss.additive.tolist(), np.mean(late, axis=0), atol=1e-6)
    assert result.path[-1].additive != result.path[0].additive
    last = quick(settings=SearchSettings(every=4, warmup=0.25, average=0.01))
    assert last.loss.additive is not None
    np.testing.assert_allclose(last.loss.additive.tolist(), last.path[-1].additive, atol=1e-7)


def test_the_loss_is_frozen_and_on_its_own() -> None:
    loss = quick().loss
    assert type(loss) is ParametricCrossEntropy
    assert not any(p.requires_grad for p in loss.parameters_of_loss if p is not None)


def test_the_path_is_thinned_where_classes_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autobalance.bilevel.driver.MAX_PATH_NUMBERS", 12)
    path = quick().path
    assert len(path) * 3 <= 12
    assert path[0].step == 0
    assert [p.step for p in path] == sorted(p.step for p in path)


def test_progress_is_told() -> None:
    seen: list[Progress] = []
    quick(progress=seen.append)
    assert [p.step for p in seen] == [14, 18, 20, 22, 26, 30, 34, 38, 40]
    assert {p.total for p in seen} == {40}
    assert {p.phase for p in seen} == {"search"}
    assert [p.step for p in seen if p.objective is None] == [20, 40]
    assert all(0 <= p.objective <= 1 for p in seen if p.objective is not None)


def test_warm_up_moves_nothing() -> None:
    seen: list[Progress] = []
    result = quick(settings=SearchSettings(every=1, warmup=0.75), progress=seen.append)
    assert result.history[0].step == 31
    assert [p.step for p in seen if p.phase == "warm-up"] == [20]


# Repeating ------------------------------------------------------------------------------------


def without_time(result: SearchResult) -> dict[str, Any]:
    return {k: v for k, v in result.to_dict().items() if k != "seconds"}


@pytest.mark.parametrize("folds", [1, 2])
def test_one_seed_gives_one_result_bit_for_bit(folds: int) -> None:
    """Whatever the global random state was, and without touching it."""
    settings = SearchSettings(every=4, warmup=0.25, folds=folds)
    given: dict[str, Any] = {"factory": noisy_network, "settings": settings}
    first = quick(seed=3, **given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.random.get_rng_state()
        numpy_before = np.random.get_state()[1].copy()  # type: ignore[index]
        second = quick(seed=3, **given)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore[index]
    assert without_time(first) == without_time(second)
    third = without_time(quick(seed=4, **given))
    assert third["path"][-1] != first.to_dict()["path"][-1]


def test_the_random_state_comes_back_after_a_failure() -> None:
    fuse = Fuse(14)
    before = torch.random.get_rng_state()
    with pytest.raises(TrainingDiverged, match="non-finite at step 15 of 40"):
        blown(fuse)
    assert torch.equal(torch.random.get_rng_state(), before)


# Splits, folds, groups ------------------------------------------------------------------------


def test_folds_share_one_loss_and_pool_their_validation() -> None:
    result = quick(settings=SearchSettings(every=4, warmup=0.25, folds=2))
    assert result.settings["validation_counts"] == [48, 16, 4]
    assert result.status == "finished"
    one = quick()
    assert result.history[0].iterations == 2 * one.history[0].iterations


def test_a_validation_set_of_ones_own_is_used_whole_and_data_are_not_split() -> None:
    held = blobs((5, 5, 5), seed=9)
    result = quick(validation=held)
    assert result.settings["validation_counts"] == [5, 5, 5]
    assert result.settings["class_counts"] == [120, 40, 12]


def test_groups_give_one_row_per_group() -> None:
    data = blobs(groups=True)
    result = quick(data, objective="worst_class_and_group_error")
    assert result.loss.num_groups == 2
    assert result.design["space"] == "GroupSpace"
    assert result.settings["class_counts"] == [[60, 20, 6], [60, 20, 6]]
    assert np.array(result.path[0].additive).shape == (2, 3)
    assert result.path[0].additive != result.path[-1].additive


def test_other_solvers_and_spaces() -> None:
    result = quick(
        solver=Identity(),
        space=lambda c: ClassSpace(c, learn=["weight"]),
        objective="worst_class_error",
    )
    assert result.design["learns"] == ["weight"]
    assert result.loss.weight is not None
    assert result.loss.multiplicative is None
    assert {r.reason for r in result.history} == {"identity"}


def test_classes_of_one_member_stay_in_training() -> None:
    result = quick(blobs((60, 20, 1)))
    assert result.settings["validation_counts"] == [12, 4, 0]
    assert result.status == "finished"


def test_sample_weights_are_seen() -> None:
    data = blobs()
    ones = ArrayData.of(data.inputs, data.target, sample_weight=np.ones(len(data)))
    uneven = ArrayData.of(data.inputs, data.target, sample_weight=np.arange(1.0, len(data) + 1))
    plain = quick(data).history[0].training_loss
    assert quick(ones).history[0].training_loss == pytest.approx(plain, rel=1e-5)
    assert quick(uneven).history[0].training_loss != pytest.approx(plain, rel=1e-3)


# Failing --------------------------------------------------------------------------------------


def test_a_loss_that_becomes_non_finite_ends_it_with_the_result_so_far() -> None:
    with pytest.raises(TrainingDiverged, match=r"step 27 of 40 \(loss nan.*lr=0.05.*Lower lr") as e:
        blown(Fuse(26))
    assert e.value.step == 27
    partial = e.value.partial
    assert isinstance(partial, SearchResult)
    assert partial.status == "diverged"
    assert [r.step for r in partial.history] == [14, 18, 22, 26]
    assert torch.isfinite(partial.loss.additive).all()  # type: ignore[arg-type]


def test_a_search_leaves_nothing_in_memory() -> None:
    """At once, not when rings are collected: retraining needs the room on a GPU."""
    networks: list[Any] = []

    def watched() -> nn.Module:
        network = linear_factory()()
        networks.append(weakref.ref(network))
        return network

    gc.collect()
    gc.disable()
    try:
        quick(factory=watched, settings=replace(UPPER, folds=2))
        assert [network() for network in networks] == [None] * len(networks)
    finally:
        gc.enable()


@pytest.mark.parametrize("at", [14, 26, 38])
def test_looking_at_losses_seldom_ends_it_with_the_same_result(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: always ahead of an upper step."""
    found = []
    for every in (1, 20):
        monkeypatch.setattr(
            "autobalance.bilevel.lower_level.check_interval", lambda device, n=every: n
        )
        with seed_random_state(0):
            fuse = Fuse(at)
        with pytest.raises(TrainingDiverged, match=rf"non-finite at step {at + 1} of 40") as error:
            blown(fuse)
        assert isinstance(error.value.partial, SearchResult)
        rest = without_time(error.value.partial)
        rest.pop("training_runs")  # the steps until the look are counted, too
        found.append((str(error.value), rest))
    assert found[0] == found[1]


def test_the_upper_level_is_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    original = FunctionalModel.__call__

    def spy(*args: Any, **options: Any) -> Tensor:
        seen.append(original(*args, **options).dtype)
        return original(*args, **options)

    monkeypatch.setattr(FunctionalModel, "__call__", spy)
    quick(precision="bf16-mixed")
    assert set(seen) == {torch.float32}


def test_bfloat16_finds_about_the_same_loss() -> None:
    full, mixed = quick(), quick(precision="bf16-mixed")
    a, b = full.loss.additive, mixed.loss.additive
    assert a is not None
    assert b is not None
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_an_enormous_learning_rate_diverges_and_says_so() -> None:
    recipe = Recipe(min_steps=40, epochs=1, optimizer="sgd", lr=1e30)
    with pytest.raises(TrainingDiverged, match=r"became non-finite at step .* lr=1e[+]30") as error:
        quick(factory=noisy_network, recipe=recipe)
    assert 1 < error.value.step <= 40
    assert isinstance(error.value.partial, SearchResult)
    assert error.value.partial.loss.to_dict() == error.value.partial.start.to_dict()


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def listen(progress: Progress) -> None:
        if progress.step >= step:
            raise KeyboardInterrupt

    return listen


def test_ctrl_c_keeps_the_result_so_far() -> None:
    with pytest.raises(Interrupted, match="interrupted") as error:
        quick(progress=interrupt_at(22))
    assert isinstance(error.value, KeyboardInterrupt)
    partial = error.value.partial
    assert partial.status == "interrupted"
    assert [r.step for r in partial.history] == [14, 18, 22]
    assert SearchResult.from_json(partial.to_json()).status == "interrupted"
    whole = quick()
    assert [r.norm for r in partial.history] == [r.norm for r in whole.history[:3]]


def test_ctrl_c_within_a_step_keeps_it_too() -> None:
    with pytest.raises(Interrupted, match="interrupted") as error:
        blown(Fuse(18, KeyboardInterrupt))
    assert [r.step for r in error.value.partial.history] == [14, 18]


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "f1"}, "objective must be one of balanced_error, .* got 'f1'"),
        ({"objective": "worst_group_error"}, "over groups, but the data has none. Pass groups"),
        ({"factory": linear_factory(5)}, "5 logits .* 3 classes"),
        ({"factory": nn.Flatten}, "The network has no trainable parameter"),
        ({"factory": nn.Linear(2, 3)}, "must be a function that returns a new .* got Linear"),
        ({"data": [1, 2]}, "data must be an ArrayData or a Dataset; got list. Build one"),
        ({"validation": ([1], [0])}, "validation must be an ArrayData or a Dataset; got tuple"),
        ({"factory": lambda: 3}, "factory must return a torch.nn.Module; got int"),
        (
            {"factory": lambda: nn.Sequential(nn.Linear(2, 3), nn.Flatten(0))},
            r"must return logits of shape \(32, 3\) for a batch of 32; got \(96,\)",
        ),
        ({"space": lambda counts: counts}, "space must return a DesignSpace; got ndarray"),
        ({"space": GroupSpace}, r"GroupSpace takes counts per group and class \(g, k\)"),
        ({"device": "tpu9"}, "The device 'tpu9' cannot be used here"),
        (
            {"validation": blobs((3, 3, 3)), "settings": SearchSettings(folds=2)},
            "leaves nothing to fold: set folds to 1",
        ),
        (
            {"data": blobs(groups=True), "validation": blobs((3, 3, 3))},
            "where training data has groups, validation data needs them too",
        ),
        ({"validation": blobs((3, 3, 3, 3))}, "has class 3, but training data is numbered 0 to 2"),
        ({"data": blobs((2, 2, 1))}, "No class has enough examples for validation among 5"),
        ({"data": ArrayData.of(np.ones((9, 2)), [0] * 9)}, "at least two classes"),
        (
            {"data": ArrayData.of(np.ones((9, 2)), [0, 1, 3] * 3)},
            r"class 2 has no training example \(classes without any: \[2\]\)",
        ),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(**given)


def test_validation_of_another_width_is_refused() -> None:
    held = ArrayData.of(np.ones((6, 3)), [0, 1, 2] * 2)
    with pytest.raises(InputError, match="must have the same shape per example"):
        quick(validation=held)


def test_data_are_not_written_to() -> None:
    data = blobs()
    before = concatenated(data, data)
    quick(data)
    assert torch.equal(before.inputs[: len(data)], data.inputs)
    assert torch.equal(before.target[: len(data)], data.target)


# Stopping, choosing, resuming -----------------------------------------------------------------


def test_stops_when_the_objective_no_longer_falls() -> None:
    settings = SearchSettings(every=1, warmup=0.1, patience=5)
    whole = quick(settings=replace(settings, patience=None))
    result = quick(settings=settings, recipe=replace(QUICK, min_steps=400))
    assert len(whole.history) == 36
    assert 10 <= len(result.history) < 300
    assert result.training_runs == pytest.approx(result.history[-1].step / 400)
    values = np.array([record.objective for record in result.history])
    means = np.convolve(values, np.ones(5) / 5, mode="valid")
    assert len(means) - 1 - means.argmin() == 5


def test_five_hypergradients_in_a_row_that_are_not_finite_end_the_search() -> None:
    class Unseen(nn.Module):
        """Finite in training, not in evaluation, where the validation gradient is taken."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(inputs) * (1.0 if self.training else torch.nan)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TrainingDiverged, match=r"5 hypergradients .* not finite") as error:
            quick(factory=Unseen)
    partial = error.value.partial
    assert isinstance(partial, SearchResult)
    assert partial.status == "diverged"
    assert [record.skipped for record in partial.history] == [True] * 5
    assert partial.loss.to_dict() == partial.start.to_dict()


def test_with_folds_the_best_on_held_out_data_is_chosen() -> None:
    result = quick(settings=replace(UPPER, folds=2))
    names = [candidate.name for candidate in result.candidates]
    assert names == ["designed", "start", "cross_entropy"]
    chosen = next(c for c in result.candidates if c.name == result.choice)
    assert chosen.objective == min(c.objective for c in result.candidates)
    assert result.loss.to_dict() == chosen.loss.to_dict()
    assert result.candidates[1].loss.to_dict() == result.start.to_dict()
    assert result.training_runs == 2 + 6
    again = SearchResult.from_json(result.to_json())
    assert again.to_dict() == result.to_dict()


def test_a_start_that_is_better_is_kept() -> None:
    """A search that walks off at a huge rate must not be worse than where it came from."""
    data = blobs((300, 100, 40), spread=1.2)
    settings = SearchSettings(every=2, folds=3, lr=30.0)
    space = lambda counts: HierarchicalSpace(counts, sigma_tau=1e3, sigma_eps=1e3)  # noqa: E731
    result = quick(data, settings=settings, space=space, recipe=replace(QUICK, min_steps=80))
    assert result.choice == "start"
    assert result.loss.to_dict() == result.start.to_dict()
    assert result.candidates[0].difference > 0.05


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_inputs_of_another_dtype_are_named(dtype: torch.dtype) -> None:
    images = torch.zeros(60, 1, 8, 8, dtype=dtype)
    data = ArrayData.of(images, torch.arange(60) % 3)
    factory = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))  # noqa: E731
    with pytest.raises(InputError, match=rf"inputs of {dtype}, its weights are of torch.float32: "):
        quick(data, factory=factory)


def test_with_one_fold_there_is_no_choice() -> None:
    result = quick()
    assert (result.candidates, result.choice, result.training_runs) == ([], "designed", 1.0)


def test_choose_alone_decides_whether_there_is_a_final_choice() -> None:
    with_, without = (
        quick(settings=replace(UPPER, folds=2, choose=choose)) for choose in (True, False)
    )
    assert with_.history == without.history
    assert (len(with_.candidates), with_.training_runs) == (3, 8.0)
    assert (without.candidates, without.choice, without.training_runs) == ([], "designed", 2.0)
    designed = next(c.loss for c in with_.candidates if c.name == "designed")
    assert without.loss.to_dict() == designed.to_dict()


class Killed(BaseException):
    """What no handler of the search knows: the state on disk is all that is left."""


def killed_at(step: int, phase: str) -> Callable[[Progress], None]:
    def listen(progress: Progress) -> None:
        if progress.phase == phase and progress.step >= step:
            raise Killed

    return listen


KILLED: dict[str, Any] = {
    "data": blobs(groups=True),
    "factory": noisy_network,
    "settings": SearchSettings(every=3, warmup=0.6, folds=2, validation_batch_size=12),
    "seed": 5,
}


@functools.cache
def undisturbed() -> dict[str, Any]:
    """What the search that is killed gives when it is not."""
    return without_time(quick(**KILLED))


@pytest.mark.parametrize(
    ("step", "phase"), [(20, "warm-up"), (27, "search"), (36, "search"), (2, "choose")]
)
def test_a_killed_search_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, phase: str
) -> None:
    """Weights, BatchNorm, dropout, Adam, q, samplers, the space and its history all come back."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "search.checkpoint"
    with pytest.raises(Killed):
        quick(**KILLED, checkpoint=path, progress=killed_at(step, phase))
    seen: list[Progress] = []
    found = quick(**KILLED, checkpoint=path, progress=seen.append)
    assert without_time(found) == undisturbed()
    assert (seen[0].phase, seen[0].step) >= (phase, step) or phase == "warm-up"
    calls = len(seen)
    again = quick(**KILLED, checkpoint=path, progress=seen.append)  # it was finished
    assert without_time(again) == undisturbed()
    assert len(seen) == calls


@pytest.mark.parametrize(
    ("step", "changed"),
    [
        (27, {}),
        (36, {"training_batches": 3}),
        (27, {"training_batches": 3, "optimizer": "sgd"}),
    ],
    ids=str,
)
def test_a_killed_search_remembers_risks_batches_and_momentum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, changed: dict[str, Any]
) -> None:
    """Those of an objective that is not linear, and the batches of the next upper step."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    given: dict[str, Any] = {
        "factory": noisy_network,
        "settings": SearchSettings(every=3, warmup=0.5, validation_batch_size=12, **changed),
        "objective": "worst_class_error",
    }
    whole = quick(**given)
    path = tmp_path / "search.checkpoint"
    with pytest.raises(Killed):
        quick(**given, checkpoint=path, progress=killed_at(step, "search"))
    assert without_time(quick(**given, checkpoint=path)) == without_time(whole)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"seed": 6}, "its seed is 5, this run's is 6"),
        ({"data": blobs(seed=1)}, "its training data are others"),
        ({"factory": lambda: nn.Linear(2, 3, bias=False)}, "its network has other weights"),
        ({"settings": replace(UPPER, every=2)}, "its search.every is 4, this run's is 2"),
        ({"objective": "worst_class_error"}, "its objective is another"),
        ({"space": ClassSpace}, "its design space is another"),
    ],
)
def test_a_checkpoint_of_another_search_is_refused(
    tmp_path: Path, changed: dict[str, Any], part: str
) -> None:
    path = tmp_path / "search.checkpoint"
    quick(seed=5, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"of another run: {part}\. Go on with"):
        quick(**{"seed": 5, "checkpoint": path, **changed})
    assert path.read_bytes() == before


def test_a_checkpoint_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    given: dict[str, Any] = {"factory": noisy_network, "seed": 2}
    path = tmp_path / "search.checkpoint"
    assert without_time(quick(**given, checkpoint=path)) == without_time(quick(**given))


def test_the_upper_learning_rate_follows_the_lower_ones_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that freeze no longer answer the loss."""
    rates: list[float] = []
    update = LossTuner.update

    def spied(self: LossTuner, *given: Any) -> Any:
        rates.append(self.upper_optimizer.param_groups[0]["lr"])
        return update(self, *given)

    monkeypatch.setattr(LossTuner, "update", spied)
    recipe = Recipe(epochs=1, min_steps=50, warmup=0.1)
    settings = SearchSettings(lr=0.2, every=10, warmup=0.2)
    search(linear_factory(), blobs(), recipe=recipe, settings=settings, device="cpu")
    assert rates == pytest.approx([0.2 * recipe.lr_factor(step, 50) for step in (19, 29, 39, 49)])
