"""Methods against the library called by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance.augment.choice import augment_batch
from autobalance.bilevel import DEFAULT_ARMS, race, with_arm
from autobalance.bilevel.execution import seed_random_state
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.data.array_data import ArrayData
from autobalance.data.batches import Batch
from autobalance.data.splits import stratified_folds
from autobalance.heads.search import retrain_head, search_head
from autobalance.hypergrad.solvers import Neumann
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.published import (
    FocalLoss,
    GroupDROLoss,
    LDAMLoss,
    NormalizedLinear,
    last_linear,
    with_normalized_head,
)
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.surrogates import CrossEntropyRisk
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from autobalance_bench.comparison import methods
from autobalance_bench.comparison.methods import (
    METHODS,
    PriorCorrection,
    Task,
    Trained,
    augmentation_of,
    published_space,
)
from fake_libraries import install_imbens
from helpers import blobs

RECIPE = Recipe(epochs=1, min_steps=25, batch_size=32, lr=0.05)
DATA = blobs()
COUNTS = np.array([120, 40, 12])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))


def task(**changes: Any) -> Task:
    given: dict[str, Any] = {
        "network": mlp,
        "data": DATA,
        "recipe": RECIPE,
        "settings": SearchSettings(every=4, validation_batch_size=24),
        "seed": 2,
        "tuning_runs": 3,
    }
    return Task(**{**given, **changes})


def run(method: str, **changes: Any) -> Trained:
    return METHODS[method].run(task(**changes))


AS_PUBLISHED = replace(RECIPE, absorb=0.0)


def by_hand(loss: Any, network: Callable[[], nn.Module] = mlp, **given: Any) -> nn.Module:
    given = {"recipe": AS_PUBLISHED, "seed": 2, "device": "cpu", **given}
    return retrain(network, given.pop("data", DATA), loss, **given)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# One training run -----------------------------------------------------------------------------

LOSSES: dict[str, Callable[[], Any]] = {
    "cross_entropy": ParametricCrossEntropy.cross_entropy,
    "class_weighted": lambda: ParametricCrossEntropy.class_weighted(COUNTS),
    "class_balanced": lambda: ParametricCrossEntropy.class_balanced(COUNTS),
    "class_balanced_focal": lambda: FocalLoss.class_balanced(COUNTS),
    "balanced_softmax": lambda: ParametricCrossEntropy.balanced_softmax(COUNTS),
    "logit_adjustment": lambda: ParametricCrossEntropy.logit_adjusted(COUNTS),
    "cdt": lambda: ParametricCrossEntropy.class_dependent_temperature(COUNTS),
    "vs": lambda: ParametricCrossEntropy.vector_scaling(COUNTS),
    "group_dro": lambda: GroupDROLoss(3, over="class"),
}


@pytest.mark.parametrize("method", LOSSES)
def test_one_run_with_a_loss_is_retraining_with_it_bit_for_bit(method: str) -> None:
    found = run(method)
    assert torch.equal(flat(found.model), flat(by_hand(LOSSES[method]())))
    assert (found.training_runs, found.details) == (1.0, {})


def test_losses_are_made_from_class_counts_where_there_are_groups() -> None:
    data = blobs(groups=True)
    for method in ("logit_adjustment", "class_weighted"):
        assert torch.equal(
            flat(run(method, data=data).model), flat(by_hand(LOSSES[method](), data=data))
        )


def test_group_dro_is_over_pairs_of_class_and_group_where_there_are_groups() -> None:
    data = blobs(groups=True)
    expected = by_hand(GroupDROLoss(6, over="class_and_group"), data=data)
    assert torch.equal(flat(run("group_dro", data=data).model), flat(expected))


def test_post_hoc_adjustment_takes_log_pi_off_cross_entropys_logits() -> None:
    plain = predict_logits(run("cross_entropy").model, DATA.inputs)
    adjusted = predict_logits(run("logit_adjustment_post_hoc").model, DATA.inputs)
    expected = plain - torch.tensor(np.log(COUNTS / COUNTS.sum())).float()
    torch.testing.assert_close(adjusted, expected, rtol=0, atol=1e-6)
    half = PriorCorrection(COUNTS, tau=0.5)(plain)
    torch.testing.assert_close(half, 0.5 * (plain + expected), rtol=0, atol=1e-6)


def test_balanced_sampling_is_cross_entropy_on_resampled_batches() -> None:
    expected = by_hand(ParametricCrossEntropy.cross_entropy(), sampling="balanced")
    assert torch.equal(flat(run("balanced_sampling").model), flat(expected))


def test_ldam_drw_trains_a_network_of_cosines() -> None:
    found = run("ldam_drw").model
    assert isinstance(list(found.modules())[-1], NormalizedLinear)
    expected = by_hand(LDAMLoss.deferred(COUNTS), lambda: with_normalized_head(mlp()))
    assert torch.equal(flat(found), flat(expected))


def test_crt_trains_a_new_head_and_leaves_the_rest() -> None:
    plain, found = run("cross_entropy").model, run("head_retraining").model
    assert torch.equal(flat(plain[0]), flat(found[0]))
    assert not torch.equal(flat(plain[2]), flat(found[2]))
    assert not found.training
    with torch.no_grad():
        features = plain[:2](DATA.inputs)
    head = by_hand(
        ParametricCrossEntropy.cross_entropy(),
        lambda: nn.Linear(8, 3),
        data=replace(DATA, inputs=features),
        sampling="balanced",
    )
    torch.testing.assert_close(flat(found[2]), flat(head), rtol=1e-5, atol=1e-6)


# Tuned ----------------------------------------------------------------------------------------


def validation_error(objective: Any, loss: Callable[[Any], Any]) -> float:
    """On the split that a search with this seed takes."""
    with seed_random_state(2):
        [(train, held)] = stratified_folds(DATA.cells(), 0.2, 1, torch.Generator().manual_seed(2))
    split, validation = DATA.subset(train), DATA.subset(held)
    model = by_hand(loss(split.counts()), data=split)
    return objective.hard(predict_logits(model, validation.inputs), validation.target)


@pytest.mark.parametrize("objective", [BalancedError(), WorstError()], ids=repr)
def test_tuned_takes_the_lowest_validation_error_of_a_grid(objective: Any) -> None:
    found = run("logit_adjustment_tuned", objective=objective, tuning_runs=4)
    assert found.training_runs == 5.0
    tried = dict(found.details["tried"])
    assert sorted(tried) == pytest.approx(np.linspace(*methods.TAU, 4).tolist())
    tau = found.details["chosen"]["tau"]
    assert tried[tau] == min(tried.values())
    for other, value in tried.items():
        assert value == validation_error(
            objective, lambda counts, tau=other: ParametricCrossEntropy.logit_adjusted(counts, tau)
        )
    # Then on all data, with their counts.
    expected = by_hand(ParametricCrossEntropy.logit_adjusted(COUNTS, tau))
    assert torch.equal(flat(found.model), flat(expected))


@pytest.mark.parametrize("method", ["cdt_tuned", "vs_tuned"])
def test_the_other_tuned_losses_count_their_runs_and_repeat(method: str) -> None:
    first, second = run(method), run(method)
    assert first.training_runs == 4.0
    assert first.details == second.details
    assert torch.equal(flat(first.model), flat(second.model))
    *_, values = zip(*first.details["tried"], strict=True)
    assert len(values) == 3
    chosen = [*first.details["chosen"].values(), min(values)]
    assert chosen in first.details["tried"]


# Designed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arms", "runs"), [("autobalance", "default", 2.96), ("autobalance_plain", None, 2.0)]
)
def test_autobalance_is_search_and_retraining_with_the_tasks_settings(
    method: str, arms: str | None, runs: float
) -> None:
    found = run(method, objective=WorstError())
    result = search(
        mlp,
        DATA,
        objective=WorstError(),
        recipe=RECIPE,
        settings=task().settings,
        seed=2,
        device="cpu",
        arms=arms,
        space=None if arms else lambda counts: HierarchicalSpace(counts, sigma_eps=2.0),
    )
    assert found.details["loss"] == result.loss.to_dict()
    assert torch.equal(flat(found.model), flat(by_hand(result, recipe=RECIPE)))
    assert found.training_runs == runs


def test_logit_adjustment_raced_is_the_arm_of_the_race_with_its_start() -> None:
    found = run("logit_adjustment_raced")
    spec = SearchSpec(
        model_factory=mlp, data=DATA, recipe=RECIPE, settings=task().settings, seed=2, device="cpu"
    )
    arm, records = race(spec, DEFAULT_ARMS)
    assert found.details["arm"] == arm.name
    assert found.details["race"] == [vars(record) for record in records]
    own = with_arm(spec, arm)
    assert own.model_factory is not None
    loss = TunableCrossEntropy(own.build_space(DATA)).frozen()
    expected = by_hand(loss, own.model_factory, recipe=own.recipe)
    assert torch.equal(flat(found.model), flat(expected))


def test_averaged_runs_differ_by_their_seed_alone() -> None:
    found = run("logit_adjustment_averaged")
    loss = ParametricCrossEntropy.logit_adjusted(COUNTS)
    networks = [by_hand(loss, seed=seed) for seed in (2, 1002)]
    scores = torch.stack([net(DATA.inputs).log_softmax(1) for net in networks]).mean(0)
    torch.testing.assert_close(found.model(DATA.inputs), scores)
    assert found.training_runs == 2.0
    post_hoc = run("logit_adjustment_post_hoc_averaged")
    plain = [by_hand(ParametricCrossEntropy.cross_entropy(), seed=s) for s in (2, 1002)]
    scores = torch.stack([net(DATA.inputs).log_softmax(1) for net in plain]).mean(0)
    expected = scores - torch.tensor(np.log(COUNTS / COUNTS.sum())).float()
    torch.testing.assert_close(post_hoc.model(DATA.inputs), expected)


def test_tuning_with_arms_spends_one_run_more_and_keeps_what_it_chose() -> None:
    found = run("logit_adjustment_tuned_arms")
    assert found.training_runs == 1.0 + task().tuning_runs + 1
    assert set(found.details["chosen"]) == {"tau", "weight_decay", "cosine"}
    head = last_linear(found.model)[1]
    assert isinstance(head, NormalizedLinear) == found.details["chosen"]["cosine"]


def test_the_start_alone_is_trained_as_the_search_would_retrain_it() -> None:
    space = HierarchicalSpace(COUNTS)
    found = run("autobalance_start")
    expected = by_hand(TunableCrossEntropy(space).frozen(), recipe=RECIPE)
    assert torch.equal(flat(found.model), flat(expected))
    assert found.training_runs == 1.0


def test_variants_change_what_their_names_say() -> None:
    folds = run("autobalance_folds")
    assert folds.training_runs == 4.0
    tau = run("autobalance_tau").details
    plain = run("autobalance_plain").details
    assert tau["design"]["tau"] != plain["design"]["tau"]
    # With tau alone, l is tau log pi up to a constant and a little slack.
    l_tau = np.array(tau["loss"]["additive"])
    log_pi = np.log(COUNTS / COUNTS.sum())
    slopes = np.diff(l_tau) / np.diff(log_pi)
    np.testing.assert_allclose(slopes, tau["design"]["tau"], atol=0.15)


@pytest.mark.parametrize(
    ("method", "hessian", "tau", "learns"),
    [
        ("autobalance_published", True, 0.0, ("additive", "multiplicative")),
        ("autobalance_published_la", True, 1.0, ("additive", "multiplicative")),
        ("autobalance_short", False, 0.0, ("additive", "multiplicative")),
        ("autobalance_short_la", False, 1.0, ("additive", "multiplicative")),
        ("autobalance_short_additive", False, 0.0, ("additive",)),
        ("autobalance_short_multiplicative", False, 0.0, ("multiplicative",)),
    ],
)
def test_published_searches_have_the_papers_objective_space_and_solver(
    monkeypatch: pytest.MonkeyPatch, method: str, hessian: bool, tau: float, learns: tuple[str, ...]
) -> None:
    seen: list[dict[str, Any]] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(options)
        return search(*arguments, **options)

    monkeypatch.setattr(methods, "search", watched)
    settings = SearchSettings(validation_fraction=0.35, every=1, lr=9.0)
    found = run(
        method, objective=WorstError(), settings=settings, recipe=replace(RECIPE, min_steps=40)
    )
    [options] = seen
    assert options["objective"] == BalancedError(surrogate=CrossEntropyRisk())
    assert options["settings"].validation_fraction == 0.35  # as all methods
    assert options["settings"].lr != 9.0
    assert (options["settings"].warmup, options["settings"].folds) == (0.4, 1)
    curvature = "hessian" if hessian else "gauss_newton"
    assert options["solver"] == Neumann(curvature=curvature, damping=0.0)
    space = options["space"](COUNTS)
    assert set(space.learns) == set(learns)
    start = ParametricCrossEntropy.logit_adjusted(COUNTS, tau).additive
    own = space().additive
    if tau == 0.0:
        assert own is None or not own.detach().any()
    else:
        assert start is not None
        torch.testing.assert_close(own, start)
    assert set(found.details["design"]["learns"]) == set(learns)
    assert found.training_runs == 2.0


@pytest.mark.parametrize(
    ("classes", "size"), [(2, 1), (99, 1), (100, 10), (999, 10), (1000, 20), (8141, 20), (8142, 40)]
)
def test_the_published_space_has_clusters_where_classes_are_many(classes: int, size: int) -> None:
    space = published_space(np.arange(classes, 0, -1))
    free = sum(p.numel() for p in space.parameters())
    assert isinstance(space, ClassSpace if size == 1 else ClusterSpace)
    assert free == 2 * -(-classes // size)


# All ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_flags_tell_what_the_result_depends_on(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a method says that it takes neither objective nor settings, they change nothing."""
    install_imbens(monkeypatch)
    kind = METHODS[method]
    few: dict[str, Any] = {"recipe": replace(RECIPE, min_steps=6), "tuning_runs": 2}
    if method in ("autobalance_standard", "autobalance_trivial"):  # for images
        few |= {"data": as_images(DATA), "network": on_images}
    plain = run(method, **few)
    changes: list[dict[str, Any]] = []
    if not kind.uses_objective:
        changes.append({"objective": WorstError()})
    if not kind.uses_settings:
        changes.append({"settings": replace(task().settings, lr=0.7, every=1, warmup=0.0)})
    for change in changes:
        again = run(method, **few, **change)
        state = flat if list(plain.model.parameters()) else decide  # trees have no parameters
        assert torch.equal(state(again.model), state(plain.model)), change


def decide(model: nn.Module) -> Tensor:
    return predict_logits(model, DATA.inputs)


def as_images(data: ArrayData) -> ArrayData:
    """The two features as the brightness of the halves of an image."""
    halves = data.inputs.sigmoid().repeat_interleave(32, dim=1)
    return replace(data, inputs=halves.reshape(-1, 1, 8, 8))


def on_images() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def test_titles_tell_methods_apart() -> None:
    titles = [m.title for m in METHODS.values()]
    assert len(set(titles)) == len(titles)
    assert {m.kind for m in METHODS.values()} == {"published", "tuned", "ours"}


def test_exact_heads_are_those_of_the_library() -> None:
    loss = ParametricCrossEntropy.logit_adjusted(COUNTS)
    expected = retrain_head(DATA, loss, device="cpu")
    found = run("logit_adjustment_head").model
    torch.testing.assert_close(found(DATA.inputs), expected(DATA.inputs))
    result = search_head(DATA, objective=BalancedError(), seed=2, device="cpu")
    designed = run("autobalance_head")
    assert designed.details["loss"] == result.loss.to_dict()
    assert designed.training_runs == 1.0 + result.training_runs
    model = retrain_head(DATA, result.loss, device="cpu")
    torch.testing.assert_close(designed.model(DATA.inputs), model(DATA.inputs))


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({"name": "standard", "padding": 2}, "StandardAugmentation(padding=2, flip=True)"),
        ({"name": "random", "n": 1, "m": 5}, "KorniaAugmentation"),
        ({"name": "resized_crop", "size": 6, "scale": [0.5, 1.0]}, "ResizedCrop"),
    ],
)
def test_augmentations_by_their_record(record: dict[str, Any], shown: str) -> None:
    augment = augmentation_of(record)
    assert str(augment).startswith(shown)
    assert augmentation_of(None) is None
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    target = torch.zeros(4, dtype=torch.int64)
    assert augment is not None
    with seed_random_state(0):
        expected = augment(images / 255.0, target)
    with seed_random_state(0):  # images of bytes are augmented in [0, 1]
        assert torch.equal(augment_batch(augment, Batch(images, target)), expected)
