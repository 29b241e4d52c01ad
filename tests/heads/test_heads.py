"""Frozen-feature mode against slow oracles in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance import (
    ArrayData,
    BalancedError,
    ClassSpace,
    CrossEntropyRisk,
    DesignSpace,
    GroupSpace,
    HierarchicalSpace,
    InputError,
    Interrupted,
    ParametricCrossEntropy,
    SearchResult,
    SmoothError,
    TrainingDiverged,
    extract_features,
    retrain_head,
    search_head,
)
from autobalance.bilevel import racing
from autobalance.bilevel.arms import Arm
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.heads import lower_level
from autobalance.heads.features import Scaling
from autobalance.heads.folds import split, standardise
from autobalance.heads.newton import conjugate_gradients, minimise
from autobalance.heads.problem import BIAS_DECAY, HeadProblem
from autobalance.heads.search import HeadSearch, build_head_search
from autobalance.heads.upper_level import descend
from autobalance.losses.parametric import LossParameters, reduced_loss
from autobalance.records.settings import SearchSettings
from autobalance.spaces.base import PARTS
from helpers import blobs, scatter

DECAY = 1e-2
CPU = torch.device("cpu")


def dataset(
    n: int = 240,
    d: int = 5,
    k: int = 4,
    *,
    groups: bool = False,
    weights: bool = False,
    seed: int = 0,
) -> ArrayData:
    """Long-tailed, overlapping classes in float64."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.55, 0.25, 0.14, 0.06, 0.03, 0.02][:k])
    y = torch.multinomial(shares, n, replacement=True, generator=generator)
    y[: 4 * k] = torch.arange(k).repeat(4)
    centres = torch.randn(k, d, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    g = torch.randint(2, (n,), generator=generator) if groups else None
    s = torch.rand(n, generator=generator, dtype=torch.float64) if weights else None
    return ArrayData(3.0 + 2.0 * x, y, k, g, 2 if groups else None, s)


def design(data: ArrayData, learn: Any = PARTS) -> DesignSpace:
    """A space off its start, in float64."""
    space = GroupSpace if data.groups is not None else HierarchicalSpace
    made = space(data.counts(), learn=learn).double()
    scatter(made, seed=3)
    return made


def oracle_loss(data: ArrayData, theta: Tensor, parameters: LossParameters) -> Tensor:
    """The lower level as its definition reads."""
    value = reduced_loss(
        data.inputs @ theta[:, :-1].T + theta[:, -1],
        data.target,
        parameters,
        groups=data.groups,
        sample_weight=data.sample_weight,
    )
    decay = DECAY / 2 * theta[:, :-1].square().sum()
    return value + decay + BIAS_DECAY * DECAY / 2 * theta[:, -1].square().sum()


def some_weights(problem: HeadProblem) -> Tensor:
    shape = problem.zeros().shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


CASES = [
    pytest.param({}, id="plain"),
    pytest.param({"weights": True}, id="sample_weight"),
    pytest.param({"groups": True}, id="groups"),
    pytest.param({"groups": True, "weights": True}, id="groups_and_weights"),
]
cases = pytest.mark.parametrize("case", CASES)


# The lower level ------------------------------------------------------------------------------


@cases
def test_loss_gradient_and_curvature_are_autograds(case: dict[str, bool]) -> None:
    data = standardise(dataset(**case), CPU)
    problem = data.problem(DECAY)
    parameters = design(data.data)().detach()
    problem.set_loss(parameters)
    theta, v = some_weights(problem), 2.0 * some_weights(problem).flip(0)
    value, gradient = problem.evaluate(theta)

    leaf = theta.clone().requires_grad_()
    expected = oracle_loss(data.data, leaf, parameters)
    by_autograd = torch.autograd.grad(expected, leaf, create_graph=True)[0]
    along = torch.autograd.grad((by_autograd * v).sum(), leaf)[0]
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, by_autograd.detach(), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(problem.product(v), along, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(problem.product(v, exact=True), along, rtol=1e-10, atol=1e-13)


@cases
@pytest.mark.parametrize("learn", [PARTS, ["additive"], ["weight"]], ids=str)
def test_mixed_product_is_autograds(case: dict[str, bool], learn: Any) -> None:
    data = standardise(dataset(**case), CPU)
    problem = data.problem(DECAY)
    space = design(data.data, learn)
    problem.set_loss(space())
    theta, q = some_weights(problem), some_weights(problem).flip(1)
    problem.evaluate(theta)
    free = list(space.parameters())
    found = problem.mixed(q, space(), free)

    leaf = theta.clone().requires_grad_()
    gradient = torch.autograd.grad(oracle_loss(data.data, leaf, space()), leaf, create_graph=True)
    expected = torch.autograd.grad((gradient[0] * q).sum(), free, materialize_grads=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def everything(problem: HeadProblem, space: DesignSpace) -> list[Tensor]:
    problem.set_loss(space())
    theta = some_weights(problem)
    value, gradient = problem.evaluate(theta)
    product = problem.product(theta.flip(0))
    precondition = problem.kronecker()
    mixed = problem.mixed(theta.flip(1), space(), list(space.parameters()))
    return [torch.tensor(value), gradient, product, precondition(gradient), *mixed]


@pytest.mark.parametrize("options", [{"chunk_size": 7}, {"chunk_size": 1}, {"keep": 0}], ids=str)
def test_chunks_and_kept_probabilities_change_nothing(options: dict[str, int]) -> None:
    data = dataset(groups=True, weights=True)
    space = design(data)
    assert data.sample_weight is not None

    def problem(**chosen: int) -> HeadProblem:
        return HeadProblem(
            data.inputs, data.target, 4, sample_weight=data.sample_weight, weight_decay=DECAY,
            groups=data.groups, **chosen,
        )  # fmt: skip

    for ours, theirs in zip(
        everything(problem(**options), space), everything(problem(), space), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_rows_of_no_weight_are_as_if_left_out() -> None:
    data = dataset()
    kept = torch.arange(100, 240)
    weight = torch.ones(240, dtype=torch.float64)
    weight[:100] = 0.0
    space = design(data)
    masked = HeadProblem(
        data.inputs, data.target, 4, sample_weight=weight, weight_decay=DECAY, chunk_size=16
    )
    assert sum(len(c.target) for c in masked.chunks) < 160
    short = HeadProblem(
        data.inputs[kept], data.target[kept], 4, sample_weight=weight[kept], weight_decay=DECAY
    )
    for ours, theirs in zip(everything(masked, space), everything(short, space), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_preconditioner_is_the_inverse_of_its_definition() -> None:
    data = standardise(dataset(d=3), CPU)
    problem = data.problem(DECAY)
    problem.set_loss(design(data.data)().detach())
    theta = some_weights(problem)
    problem.evaluate(theta)
    x, delta, k = data.data.inputs, problem.design.multiplicative, 4
    assert delta is not None
    z = delta * (x @ theta[:, :-1].T + theta[:, -1]) + problem.design.additive
    p = z.softmax(1)
    row = torch.cat(problem._rows)
    h = row * (1 - p.square().sum(1))
    features = (x * h[:, None]).T @ x / h.sum()
    scatters = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    classes = delta[:, None] * (row[:, None, None] * scatters).sum(0) * delta
    on_weights = torch.kron(classes, features) + DECAY * torch.eye(3 * k, dtype=torch.float64)
    on_bias = classes + DECAY * BIAS_DECAY * torch.eye(k, dtype=torch.float64)
    v = torch.randn(k, 4, dtype=torch.float64)
    expected = torch.cat(
        [
            torch.linalg.solve(on_weights, v[:, :-1].reshape(-1)).reshape(k, 3),
            torch.linalg.solve(on_bias, v[:, -1])[:, None],
        ],
        dim=1,
    )
    torch.testing.assert_close(problem.kronecker()(v), expected, rtol=1e-8, atol=1e-10)


# Minimiser and linear system ------------------------------------------------------------------


def solved(data: ArrayData, parameters: LossParameters, tolerance: float = 1e-12) -> Tensor:
    problem = standardise(data, CPU).problem(DECAY)
    problem.set_loss(parameters)
    return minimise(problem, problem.zeros(), tolerance=tolerance, reference=1.0).weights


@cases
def test_minimiser_is_torchs(case: dict[str, bool]) -> None:
    data = dataset(**case)
    parameters = design(data)().detach()
    found = solved(data, parameters)
    whole = standardise(data, CPU).data
    theta = torch.zeros_like(found).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=2000, tolerance_grad=1e-11, tolerance_change=0.0,
        line_search_fn="strong_wolfe", history_size=40,
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = oracle_loss(whole, theta, parameters)
        value.backward()
        return value

    optimiser.step(closure)
    torch.testing.assert_close(found, theta.detach(), rtol=1e-5, atol=1e-6)
    leaf = found.clone().requires_grad_()
    gradient = torch.autograd.grad(oracle_loss(whole, leaf, parameters), leaf)[0]
    assert float(gradient.norm()) < 1e-11


def test_conjugate_gradients_solve_the_dense_system() -> None:
    data = standardise(dataset(groups=True), CPU)
    problem = data.problem(DECAY)
    problem.set_loss(design(data.data)().detach())
    problem.evaluate(some_weights(problem))
    size = problem.zeros().numel()
    unit = torch.eye(size, dtype=torch.float64)
    shape = problem.zeros().shape
    dense = torch.stack([problem.product(row.reshape(shape)).reshape(-1) for row in unit])
    torch.testing.assert_close(dense, dense.T)
    b = torch.randn(shape, dtype=torch.float64)
    expected = torch.linalg.solve(dense, b.reshape(-1)).reshape(shape)
    for start in (None, torch.randn(shape, dtype=torch.float64)):
        found = conjugate_gradients(
            problem,
            problem.kronecker(),
            b,
            tolerance=1e-11,
            iterations=200,
            start=start,
            verify=True,
        )
        assert found.reason == "tolerance"
        assert found.residual <= 1e-11
        torch.testing.assert_close(found.direction, expected, rtol=1e-7, atol=1e-9)
    none = conjugate_gradients(
        problem, problem.kronecker(), torch.zeros_like(b), tolerance=1e-6, iterations=5
    )
    assert (none.reason, none.iterations, float(none.direction.norm())) == ("zero", 0, 0.0)
    short = conjugate_gradients(problem, problem.kronecker(), b, tolerance=1e-12, iterations=3)
    assert (short.reason, short.iterations) == ("iterations", 3)


def test_float32_reaches_the_stated_tolerances() -> None:
    data = dataset(400, 20)
    single = standardise(replace(data, inputs=data.inputs.float()), CPU)
    problem = single.problem(1e-4)
    problem.set_loss(LossParameters())
    reference = float(problem.evaluate(problem.zeros())[1].norm())
    found = minimise(problem, problem.zeros(), tolerance=1e-5, reference=reference)
    assert found.weights.dtype == torch.float32
    assert found.residual <= 1e-5
    b = torch.randn(problem.zeros().shape)
    b -= b.mean(dim=0)  # no objective sees an offset common to all classes
    q = conjugate_gradients(
        problem, found.preconditioner, b, tolerance=1e-6, iterations=500, verify=True
    )
    true = b.double() - problem.product(q.direction, exact=True)
    assert float(true.norm()) / float(b.norm()) == pytest.approx(q.residual, rel=1e-6)
    assert q.residual <= 1e-6


# Hypergradient --------------------------------------------------------------------------------


def upper(
    data: ArrayData, space: Callable[[np.ndarray], DesignSpace], objective: Any, folds: int = 1
) -> HeadSearch:
    """A search, to be evaluated at positions at will."""
    settings = SearchSettings(folds=folds, validation_fraction=0.3, every=1)
    spec = SearchSpec(data=data, objective=objective, space=space, settings=settings, device="cpu")
    return build_head_search(spec, DECAY, 5)


def evaluate(run: HeadSearch, position: Tensor) -> tuple[float, Tensor]:
    """Value and gradient of the upper level, with everything solved anew at the position."""
    run.upper.move_to(position)
    run.problem.step(run.loss.snapshot())
    return run.upper.evaluate(run.problem.hypergradients())


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("surrogate", [SmoothError(), CrossEntropyRisk()], ids=["smooth", "ce"])
@cases
def test_hypergradient_is_that_of_the_problem_solved_anew(
    case: dict[str, bool], surrogate: Any, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower_level, "GRADIENT_TOLERANCE", 1e-11)
    monkeypatch.setattr(lower_level, "SYSTEM_TOLERANCE", 1e-11)
    over = "class_and_group" if case.get("groups") else "class"
    data = dataset(160, 3, **case)
    run = upper(data, lambda _: design(data), BalancedError(over=over, surrogate=surrogate), folds)
    position = nn.utils.parameters_to_vector(run.loss.space.parameters()).detach()
    _, gradient = evaluate(run, position)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = torch.randn(len(position), generator=generator, dtype=torch.float64)
        step = 1e-4
        ahead, behind = (evaluate(run, position + s * step * along)[0] for s in (1, -1))
        expected = (ahead - behind) / (2 * step)
        # 1e-7 for maxima of rival logits that change place within the step.
        assert float(gradient @ along) == pytest.approx(expected, rel=1e-5, abs=1e-7)


# The search -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> SearchResult:
    return search_head(dataset(300), weight_decay=DECAY, max_steps=12, device="cpu")


def test_search_lowers_the_objective_and_records_how(found: SearchResult) -> None:
    data = dataset(300)
    values = [r.objective for r in found.history]
    assert min(values) < values[0]
    assert found.status == "finished"
    assert found.settings["stopped"] in ("tolerance", "steps")
    assert [r.step for r in found.history] == list(range(1, len(values) + 1))
    assert all(r.residual <= 1e-6 and r.reason == "tolerance" for r in found.history)
    assert all(r.iterations > 0 and not r.skipped for r in found.history)
    assert found.settings["lower"]["largest_relative_gradient"] <= 1e-5
    assert found.settings["class_counts"] == data.counts().tolist()
    assert [p.step for p in found.path] == list(range(len(values) + 1))
    assert found.path[0].additive == pytest.approx(found.start.additive.tolist())
    assert SearchResult.from_json(found.to_json()).loss.to_dict() == found.loss.to_dict()


def test_result_is_the_best_position_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run = upper(dataset(300), HierarchicalSpace, BalancedError())
    seen = []
    evaluation = run.upper.evaluate

    def noted(results: Any) -> tuple[float, Tensor]:
        value, gradient = evaluation(results)
        position = nn.utils.parameters_to_vector(run.loss.space.parameters())
        seen.append((value, position.detach().clone()))
        return value, gradient

    monkeypatch.setattr(run.upper, "evaluate", noted)
    run.run()
    result = run.result("finished")
    best = min(seen, key=lambda pair: pair[0])[1]
    now = torch.tensor([result.design["tau"], result.design["rho"], *result.design["eps"]])
    torch.testing.assert_close(now, best.float())
    log_prior = torch.tensor(dataset(300).counts() / 300).log()
    expected = now[0] * log_prior + now[2:] - now[2:].mean()
    torch.testing.assert_close(result.loss.additive, (1 - now[1]) * expected.float())


def test_search_repeats_bit_for_bit_and_draws_nothing(found: SearchResult) -> None:
    state = torch.random.get_rng_state()
    again = search_head(dataset(300), weight_decay=DECAY, max_steps=12, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.loss.to_json() == found.loss.to_json()
    assert again.history == found.history
    other = search_head(dataset(300), weight_decay=DECAY, max_steps=2, seed=1, device="cpu")
    assert other.history[0] != found.history[0]


def test_data_is_left_alone(found: SearchResult) -> None:
    data = dataset(300, groups=True, weights=True)
    before = copy.deepcopy(data)
    result = search_head(data, objective="worst_group_error", max_steps=2, folds=2, device="cpu")
    retrain_head(data, result.loss, device="cpu")
    for name in ("inputs", "target", "groups", "sample_weight"):
        assert torch.equal(getattr(data, name), getattr(before, name))


def test_folds_hold_out_what_the_splits_say_over_one_copy() -> None:
    data = dataset(201)
    settings = SearchSettings(folds=3, validation_fraction=0.3)
    splits, (counts, _) = split(data, None, settings, weight_decay=DECAY, seed=0, device=CPU)
    held = [s.validation for s in splits]
    assert counts.sum() == sum(len(h.target) for h in held)
    scaling = Scaling.of(data.inputs)
    raw = {tuple(row.tolist()) for row in data.inputs}
    storage = splits[0].problem.chunks[0].features.untyped_storage().data_ptr()
    for one in splits:
        assert one.problem.chunks[0].features.untyped_storage().data_ptr() == storage
        held_rows = one.validation.inputs
        back = held_rows * scaling.scale + scaling.mean
        close = torch.cdist(back, data.inputs).amin(1)
        assert float(close.max()) < 1e-6
        trained = sum(int((c.weight > 0).sum()) for c in one.problem.chunks)
        assert trained + len(held_rows) == len(data) == len(raw)
        for chunk in one.problem.chunks:
            used = chunk.features[chunk.weight > 0]
            assert float(torch.cdist(used, held_rows).min()) > 0


def test_own_validation_set_is_used_and_not_trained_on() -> None:
    data, validation = dataset(200), dataset(80, seed=1)
    # Seed 1 draws other centres, but the sets have the same classes, which is all that matters.
    splits, (counts, _) = split(
        data, validation, SearchSettings(), weight_decay=DECAY, seed=0, device=CPU
    )
    assert counts.tolist() == validation.counts().tolist()
    scaling = Scaling.of(data.inputs)
    expected = (validation.inputs - scaling.mean) / scaling.scale
    torch.testing.assert_close(splits[0].validation.inputs, expected)
    assert sum(float(c.weight.sum()) for c in splits[0].problem.chunks) == 200
    result = search_head(data, validation=validation, max_steps=3, device="cpu")
    assert result.settings["validation_counts"] == validation.counts().tolist()


def test_progress_interruption_and_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset()
    seen = []
    search_head(data, max_steps=2, device="cpu", progress=seen.append)
    assert [(p.phase, p.step, p.total) for p in seen] == [("search", 1, 2), ("search", 2, 2)]

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        search_head(data, max_steps=5, device="cpu", progress=stop)
    assert stopped.value.partial.status == "interrupted"
    assert len(stopped.value.partial.history) == 1


@pytest.mark.parametrize("scale", [1e25, 1e38])
def test_divergence_is_told(scale: float) -> None:
    class Huge(ClassSpace):
        def forward(self) -> LossParameters:
            now = super().forward()
            assert now.multiplicative is not None
            return now._replace(multiplicative=now.multiplicative * scale)

    data = dataset()
    with pytest.raises(TrainingDiverged, match="not finite") as diverged:
        search_head(replace(data, inputs=data.inputs.float()), space=Huge, device="cpu")
    partial = diverged.value.partial
    assert isinstance(partial, SearchResult)
    assert partial.status == "diverged"
    assert partial.history == []


# Retraining and features ----------------------------------------------------------------------


@cases
def test_retrained_head_on_raw_features_is_the_minimiser(case: dict[str, bool]) -> None:
    data = dataset(**case)
    data = replace(data, inputs=torch.cat([data.inputs, torch.full((240, 1), 7.0).double()], 1))
    parameters = design(data)().detach()
    head = retrain_head(data, ParametricCrossEntropy(*parameters), weight_decay=DECAY, device="cpu")
    assert isinstance(head, nn.Linear)
    assert not head.training
    assert head.weight.dtype == torch.float64
    whole = standardise(data, CPU)
    w = torch.ones(240).double() if data.sample_weight is None else data.sample_weight.double()
    w = w / w.sum()
    mean = w @ data.inputs
    scale = (w @ (data.inputs - mean).square()).sqrt()
    scale[-1] = 1.0  # constant
    torch.testing.assert_close(whole.data.inputs, (data.inputs - mean) / scale)
    assert whole.data.inputs[:, -1].abs().max() < 1e-12  # rounding of the weighted mean
    theta = solved(data, parameters, tolerance=1e-7)
    expected = whole.data.inputs @ theta[:, :-1].T + theta[:, -1]
    torch.testing.assert_close(head(data.inputs), expected, rtol=1e-3, atol=1e-3)
    exact = whole.scaling.linear(theta)
    torch.testing.assert_close(exact(data.inputs), expected, rtol=1e-10, atol=1e-10)


def test_head_does_not_depend_on_units_of_the_features() -> None:
    data = dataset()
    other = replace(data, inputs=1e3 * data.inputs - 50.0)
    loss = ParametricCrossEntropy.logit_adjusted(data.counts())
    ours, theirs = (retrain_head(d, loss, device="cpu")(d.inputs) for d in (data, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_narrow_and_image_shaped_features_are_taken() -> None:
    data = dataset()
    for inputs in (data.inputs.half(), data.inputs.float().reshape(-1, 5, 1, 1)):
        head = retrain_head(
            replace(data, inputs=inputs), ParametricCrossEntropy.cross_entropy(), device="cpu"
        )
        assert head.weight.shape == (4, 5)
        assert head.weight.dtype == torch.float32


def backbone() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.ReLU(), nn.AvgPool2d(2)
    )
    model[1].eval()
    return model


def test_extraction_is_the_evaluation_pass_and_leaves_all_as_it_was() -> None:
    model = backbone()
    x = torch.randn(11, 1, 6, 6)
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    features = extract_features(model, x, batch_size=4, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert features.shape == (11, 12)
    assert not features.requires_grad
    expected = copy.deepcopy(model).eval()(x).flatten(1).detach()
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert extract_features(model.half(), x.half(), device="cpu").dtype == torch.float32
    assert extract_features(nn.Identity(), np.zeros((3, 2)), device="cpu").shape == (3, 2)


def test_extraction_gives_the_modes_back_after_a_failure() -> None:
    model = backbone()
    x = torch.randn(9, 1, 6, 6)
    x[5] = torch.nan
    with pytest.raises(InputError, match=r"not finite.*first for example 5"):
        extract_features(model, x, batch_size=4, device="cpu")
    assert model.training
    assert not model[1].training


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (nn.Identity(), torch.zeros(0, 3), {}, "inputs are empty"),
        (nn.Identity(), torch.zeros(4), {}, r"must return a tensor of shape \(4, ...\)"),
        (nn.GRU(3, 2), torch.zeros(4, 3), {}, "got tuple"),
        (nn.Flatten(0), torch.zeros(4, 3), {}, r"got \(12,\)"),
        (nn.Identity(), torch.zeros(4, 3), {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_extracted(
    model: nn.Module, inputs: Tensor, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        extract_features(model, inputs, device="cpu", **options)


# Wrong inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": 0.0}, "weight_decay must be a finite number above 0"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"folds": 0}, "folds must be at least 1"),
        ({"folds": 6}, "6 folds of 0.2 each exceed the data"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie strictly between"),
        ({"objective": "worst_group_error"}, "over groups, but the data has none"),
        ({"objective": "accuracy"}, "objective must be one of"),
        ({"space": lambda _: nn.Identity()}, "space must return a DesignSpace; got Identity"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"validation": dataset(40, d=3)}, "must have the same shape per example"),
        ({"validation": dataset(40, k=5)}, "Validation data has class 4"),
        ({"validation": dataset(40), "folds": 2}, "set folds to 1"),
    ],
    ids=lambda v: str(list(v)) if isinstance(v, dict) else "",
)
def test_what_cannot_be_searched(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search_head(dataset(40), **{"device": "cpu", **options})


def test_too_few_examples_for_validation() -> None:
    tiny = ArrayData(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), 2)
    with pytest.raises(InputError, match="No class has enough examples for validation among 4"):
        search_head(tiny, device="cpu")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (ParametricCrossEntropy(label_smoothing=0.1), "no label smoothing"),
        (ParametricCrossEntropy(additive=[0.0] * 3), "parameters for 3 classes"),
        (ParametricCrossEntropy(additive=[[0.0] * 4] * 2), "rows for 2 groups, the data has none"),
    ],
)
def test_what_cannot_be_retrained(loss: ParametricCrossEntropy, message: str) -> None:
    with pytest.raises(InputError, match=message):
        retrain_head(dataset(40), loss, device="cpu")


# The upper level's method ---------------------------------------------------------------------


def test_descend_finds_the_minimum_of_a_hard_valley() -> None:
    calls = []

    def rosenbrock(x: Tensor) -> tuple[float, Tensor]:
        calls.append(x)
        leaf = x.clone().requires_grad_()
        value = 1.0 + (1 - leaf[0]) ** 2 + 20 * (leaf[1] - leaf[0] ** 2) ** 2
        return float(value.detach()), torch.autograd.grad(value, leaf)[0]

    start = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    descent = descend(start, tolerance=1e-9, first_step=0.3, max_step=1.0)
    position = next(descent)
    values, reason = [], ""
    while len(calls) < 60 and not reason:
        value, gradient = rosenbrock(position)
        values.append((value, position))
        try:
            position = descent.send((value, gradient))
        except StopIteration as end:
            reason = end.value
    assert reason == "tolerance"
    lowest = min(values, key=lambda pair: pair[0])[1]
    torch.testing.assert_close(lowest, torch.ones(2).double(), rtol=1e-3, atol=1e-3)
    steps = [float((b - a).abs().max()) for (_, a), (_, b) in pairwise(values)]
    assert steps[0] == pytest.approx(0.3)
    assert max(steps) <= 1.0 + 1e-12


# A race of weight decays ------------------------------------------------------------------------


def test_the_decay_that_is_taken_is_searched_and_retrained_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(racing, "LEAD", -1e9)  # another arm than the first is taken
    data = blobs()
    arms = [Arm(name="far", weight_decay=1e3), Arm(name="near", weight_decay=1e-3)]
    result = search_head(data, arms=arms, max_steps=3)
    assert result.arm == arms[1]
    assert [record.steps for record in result.race] == [1, 1]
    alone = search_head(data, weight_decay=1e-3, max_steps=3)
    assert result.loss.to_dict() == alone.loss.to_dict()
    assert result.training_runs == alone.training_runs + 2
    with_arm, by_hand = (
        retrain_head(data, result),
        retrain_head(data, result.loss, weight_decay=1e-3),
    )
    assert torch.equal(with_arm.weight, by_hand.weight)


def test_heads_race_three_decays_by_default() -> None:
    result = search_head(blobs(), arms="default", folds=2, weight_decay=1e-2, max_steps=2)
    decays = [record.settings["weight_decay"] for record in result.race]
    assert decays == [None, pytest.approx(1e-3), pytest.approx(1e-1)]
    images = blobs()
    images = replace(images, inputs=images.inputs.view(-1, 2, 1, 1))
    assert search_head(images, arms="default", max_steps=2).arm is not None


def test_a_head_has_no_other_kind() -> None:
    arms = [Arm(name="plain"), Arm(name="cosine", cosine_scale=16.0)]
    with pytest.warns(
        UserWarning, match="'cosine' is left out .* a head on frozen features is linear"
    ):
        result = search_head(blobs(), arms=arms, max_steps=2)
    assert result.arm == arms[0]
