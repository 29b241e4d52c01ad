"""Several labels through hypergradient, LossTuner, search and retrain."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobalance import (
    ArrayData,
    AsymmetricLoss,
    Batch,
    CVaRError,
    DatasetData,
    Exact,
    HierarchicalLabelSpace,
    HierarchicalSpace,
    InputError,
    LossTuner,
    ParametricBinaryCrossEntropy,
    ParametricCrossEntropy,
    Recipe,
    SearchResult,
    SearchSettings,
    TunableBinaryCrossEntropy,
    retrain,
    search,
    search_and_train,
)
from autobalance.bilevel import predict_logits
from autobalance.functional.model import flatten
from autobalance.hypergrad.implicit import hypergradient
from autobalance.objectives import BalancedError, MacroF1Error, Objective, SmoothError
from autobalance.report import render_report
from autobalance.spaces.base import PARTS
from helpers import (
    dense_jacobian,
    forward,
    leaves,
    network,
    scatter,
    training_gradient,
    validation_gradient,
)

K = 4
COUNTS = [[40.0, 50.0, 55.0, 58.0], [20.0, 10.0, 5.0, 2.0]]
DECAY = 0.05


# The hypergradient, in float64 ----------------------------------------------------------------


def pictures(n: int, seed: int, *, weighted: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    target = (torch.rand(n, K, generator=generator) < 0.4).to(torch.int8)
    target[0], target[1] = 1, 0
    target[2, 1] = target[3, 0] = -1
    weight = torch.rand(n, generator=generator, dtype=torch.float64) if weighted else None
    return Batch(inputs, target, None, weight)


def label_loss(**options: Any) -> TunableBinaryCrossEntropy:
    space = HierarchicalLabelSpace(COUNTS, learn=PARTS).double()
    scatter(space, scale=0.1)
    return TunableBinaryCrossEntropy(space, **options)


def label_curvature(loss: TunableBinaryCrossEntropy, logits: Tensor, batch: Batch) -> Tensor:
    """d2L/df2 by its formula, w_y delta_y^2 p (1 - p) on the diagonal, one entry per example and label."""
    w, l_add, delta = (p.detach().numpy() for p in loss.space() if p is not None)
    y, f = batch.target.numpy(), logits.detach().numpy()
    weight = np.ones(len(y)) if batch.sample_weight is None else batch.sample_weight.numpy()
    diagonal = np.zeros(f.shape)
    for i, j in np.ndindex(*f.shape):
        if y[i, j] >= 0:
            s = int(y[i, j])
            p = 1 / (1 + np.exp(-(delta[s, j] * f[i, j] + l_add[j])))
            diagonal[i, j] = weight[i] * w[s, j] * delta[s, j] ** 2 * p * (1 - p)
    mass = (weight[:, None] * (y >= 0)).sum() if loss.options["reduction"] == "mean" else 1.0
    return torch.diag(torch.from_numpy(diagonal.reshape(-1) / mass))


@pytest.mark.parametrize(
    "objective", [BalancedError(over="label"), MacroF1Error()], ids=["b", "f1"]
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["mlp", "batch_norm", "dropout"])
def test_equals_dense_algebra(name: str, reduction: Any, objective: Objective) -> None:
    model, loss = network(name), label_loss(reduction=reduction)
    train, held = pictures(10, 0, weighted=True), pictures(15, 5)
    found = hypergradient(
        model, loss, objective, train, held, solver=Exact(damping=0.01), weight_decay=DECAY
    )
    J = dense_jacobian(model, train.inputs)
    middle = label_curvature(loss, forward(model, train.inputs)[0], train)
    A = J.T @ middle @ J + (DECAY + 0.01) * torch.eye(J.shape[1]).double()
    q = torch.linalg.solve(A, validation_gradient(model, objective, held))
    along = training_gradient(model, loss, train) @ q
    expected = -flatten(torch.autograd.grad(along, list(loss.space.parameters())))
    gap = float((flatten(found.gradients) - expected).norm() / expected.norm())
    assert gap < 1e-9


def test_equals_the_difference_of_full_retraining() -> None:
    """A linear model at the minimum of its training loss, moved along each of the shared strengths."""
    train, held = pictures(60, 0), pictures(80, 5)
    objective = BalancedError(over="label", surrogate=SmoothError(temperature=1.0))
    start = nn.Sequential(nn.Flatten(), nn.Linear(16, K)).double()
    loss = label_loss()

    def at_minimum() -> nn.Module:
        model = copy.deepcopy(start)
        weights = leaves(model)
        for _ in range(30):  # Newton's steps
            value = loss(model(train.inputs), train.target)
            value = value + DECAY / 2 * sum(w.square().sum() for w in weights)
            g = flatten(torch.autograd.grad(value, weights, create_graph=True))
            if float(g.detach().norm()) < 1e-13:
                break
            rows = [flatten(torch.autograd.grad(e, weights, retain_graph=True)) for e in g]
            step, used = torch.linalg.solve(torch.stack(rows), g.detach()), 0
            with torch.no_grad():
                for w in weights:
                    w -= step[used : used + w.numel()].view(w.shape)
                    used += w.numel()
        return model

    found = hypergradient(
        at_minimum(), loss, objective, train, held, solver=Exact(damping=0.0), weight_decay=DECAY
    )
    names = [name for name, _ in loss.space.named_parameters()]
    for name in ("tau", "rho", "eps"):
        own = found.gradients[names.index(name)].reshape(-1)[0]
        p, values = loss.space.get_parameter(name), []
        before = p.detach().clone()
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                p.view(-1)[0] += step
            model = at_minimum()
            with torch.no_grad():
                values.append(float(objective(model(held.inputs), held.target)))
                p.copy_(before)
        assert float(own) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)


# Data -----------------------------------------------------------------------------------------


def matrix(n: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs, and labels of 40, 20, 8 and 3 % positives with some entries not labelled."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    mix = torch.randn(6, K, generator=torch.Generator().manual_seed(99))
    scores = 1.5 * x @ mix + torch.tensor([-0.8, -2.5, -4.5, -6.0])
    y = (torch.rand(n, K, generator=generator) < torch.sigmoid(scores)).float()
    y[torch.rand(n, K, generator=generator) < 0.03] = float("nan")
    return x, y


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, K))


RECIPE = Recipe(epochs=1, min_steps=120)
SETTINGS = SearchSettings(every=4)


def test_array_data_holds_labels() -> None:
    x, y = matrix(50)
    data = ArrayData.of(x, y)
    known = ~y.isnan()
    assert data.has_labels
    assert data.num_classes == K
    assert torch.equal(data.target >= 0, known)
    expected = np.stack([((y == s) & known).sum(dim=0).numpy() for s in (0, 1)])
    assert np.array_equal(data.counts(), expected)
    weight = torch.arange(50) % 2 + 1.0
    weighted = ArrayData.of(x, y, sample_weight=weight)
    rows = torch.repeat_interleave(torch.arange(50), weight.long())
    assert np.array_equal(weighted.masses(), ArrayData.of(x[rows], y[rows]).counts())
    assert (weighted.effective_counts() <= weighted.counts() + 1e-9).all()
    assert np.array_equal(data.subset([3, 1]).target, data.target[[3, 1]])


def test_rare_labels_are_shared_out_by_the_split() -> None:
    from autobalance.bilevel.held_out import splits_of

    data = ArrayData.of(*matrix(2000))
    for train, held in splits_of(data, None, SearchSettings(folds=3), 0):
        assert (train.counts() > 0).all()
        share = held.counts()[1] / data.counts()[1]
        assert (np.abs(share - 0.2) < 0.08).all()


# Search and retraining ------------------------------------------------------------------------


def balanced_error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return BalancedError(over="label").hard(predict_logits(model, x), ArrayData.of(x, y).target)


def test_search_designs_a_loss_that_is_better_than_plain_cross_entropy() -> None:
    data = ArrayData.of(*matrix(1500))
    x, y = matrix(3000, seed=1)
    result = search(mlp, data, recipe=RECIPE, settings=SETTINGS)
    assert isinstance(result.loss, ParametricBinaryCrossEntropy)
    assert result.design["space"] == "HierarchicalLabelSpace"
    designed = balanced_error(retrain(mlp, data, result, recipe=RECIPE), x, y)
    plain = ParametricBinaryCrossEntropy()
    assert designed < balanced_error(retrain(mlp, data, plain, recipe=RECIPE), x, y) - 0.05
    held = result.held_out
    assert held is not None
    rates = np.array(held.wrong) / np.array(held.n)
    assert rates.mean() < 0.35
    assert np.array_equal(np.sum(held.predicted, axis=0), np.sum(held.n, axis=0))


def test_one_seed_gives_one_result_and_its_record_gives_it_back() -> None:
    data = ArrayData.of(*matrix())
    first, again = (search(mlp, data, recipe=RECIPE, settings=SETTINGS, seed=3) for _ in range(2))
    assert first.loss.to_json() == again.loss.to_json()
    twin = SearchResult.from_json(first.to_json())
    assert twin.loss.to_json() == first.loss.to_json()
    summary = first.summary(class_names=["a", "b", "c", "d"])
    assert "4 labels" in summary
    assert "% of" in summary
    assert all(name in summary for name in ("a ", "b ", "c ", "d "))
    assert "label 0" in first._repr_html_()
    page = render_report(first.record(class_names=["a", "b", "c", "d"]))
    assert first.held_out is not None
    wrong, n = (np.array(t)[1, 0] for t in (first.held_out.wrong, first.held_out.n))
    assert f"{100 * wrong / n:.1f}%" in page


@pytest.mark.parametrize("objective", ["worst_class_error", CVaRError(fraction=0.5), "macro_f1"])
def test_folds_choose_among_losses_for_any_objective(objective: Any) -> None:
    data = ArrayData.of(*matrix())
    settings = replace(SETTINGS, folds=2)
    result = search(mlp, data, objective=objective, recipe=RECIPE, settings=settings)
    assert [c.name for c in result.candidates] == ["designed", "start", "cross_entropy"]
    assert np.shape(result.candidates[0].n) == (2, K)
    assert min(c.objective for c in result.candidates) <= result.candidates[2].objective
    assert SearchResult.from_json(result.to_json()).candidates[0].loss.num_labels == K


def test_a_checkpoint_continues_to_the_same_bits(tmp_path: Any) -> None:
    data = ArrayData.of(*matrix())
    plain = search(mlp, data, recipe=RECIPE, settings=SETTINGS)
    kept = [
        search(mlp, data, recipe=RECIPE, settings=SETTINGS, checkpoint=tmp_path / "c")
        for _ in range(2)
    ]
    assert all(result.loss.to_json() == plain.loss.to_json() for result in kept)


def test_a_dataset_gives_what_arrays_give() -> None:
    x, y = matrix()
    arrays = search(mlp, ArrayData.of(x, y), recipe=RECIPE, settings=SETTINGS)
    data = DatasetData.of(TensorDataset(x, y))
    assert (
        search(mlp, data, recipe=RECIPE, settings=SETTINGS).loss.to_json() == arrays.loss.to_json()
    )


def test_a_whole_weight_of_all_examples_changes_nothing() -> None:
    x, y = matrix()
    plain = search(mlp, ArrayData.of(x, y), recipe=RECIPE, settings=SETTINGS).loss
    weighted = ArrayData.of(x, y, sample_weight=torch.full((len(x),), 2.0))
    result = search(mlp, weighted, recipe=RECIPE, settings=SETTINGS)
    assert result.loss.additive is not None
    assert plain.additive is not None
    torch.testing.assert_close(result.loss.additive, plain.additive, rtol=0.1, atol=0.1)


def test_a_validation_and_a_test_set_of_ones_own_and_one_run() -> None:
    data, held = ArrayData.of(*matrix()), ArrayData.of(*matrix(300, seed=4))
    trained = search_and_train(
        mlp, data, validation=held, test=held, recipe=RECIPE, settings=SETTINGS, release=0.5
    )
    looked = [r.test_objective for r in trained.result.history if r.test_objective is not None]
    assert looked
    assert 0.0 < looked[-1] < 0.5
    assert predict_logits(trained.network, data).shape == (len(data), K)


def test_retraining_takes_published_and_torchs_losses() -> None:
    x, y = matrix()
    data = ArrayData.of(x, y.nan_to_num(0.0))
    torchs = retrain(mlp, data, nn.BCEWithLogitsLoss(), recipe=RECIPE)
    own = retrain(mlp, data, ParametricBinaryCrossEntropy(), recipe=RECIPE)
    torch.testing.assert_close(predict_logits(torchs, data), predict_logits(own, data))
    retrain(mlp, ArrayData.of(x, y), AsymmetricLoss(), recipe=RECIPE, sampling="balanced")
    with pytest.raises(InputError, match="not labelled"):
        retrain(mlp, ArrayData.of(x, y), nn.BCEWithLogitsLoss(), recipe=RECIPE)


# A loop of one's own --------------------------------------------------------------------------


def test_a_step_of_the_tuner_moves_the_loss_and_nothing_else() -> None:
    x, y = matrix()
    space = HierarchicalLabelSpace(ArrayData.of(x, y).counts())
    loss, model = TunableBinaryCrossEntropy(space), mlp()
    tuner = LossTuner(loss, "worst_class_error")
    before = copy.deepcopy(model.state_dict())
    step = tuner.step(model, (x[:300], y[:300]), (x[300:], y[300:]))
    assert not step.skipped
    assert 0.0 < step.hard_objective <= 1.0
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert tuner.objective.over == "label"
    assert float(space.eps.detach().abs().max()) > 0.0


# Refusals -------------------------------------------------------------------------------------

X, Y = matrix(80)
LABELS = Y.nan_to_num(0.0)


def with_column(value: float) -> Tensor:
    return torch.cat([LABELS[:, :3], torch.full((80, 1), value)], dim=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ArrayData.of(X, LABELS * 3), "got 3 in row .* label .* in all"),
        (lambda: ArrayData.of(X, LABELS[:, :1]), r"shape \(n,\); got"),
        (lambda: ArrayData.of(X, LABELS, groups=[0, 1] * 40), "takes no groups"),
        (lambda: ArrayData.of(X, LABELS, num_classes=9), "has 4 labels; expected 9"),
        (lambda: search(mlp, ArrayData.of(X, with_column(0.0))), "Label 3 has no positive"),
        (lambda: search(mlp, ArrayData.of(X, with_column(1.0))), "Label 3 has no negative"),
        (lambda: search(mlp, ArrayData.of(X, LABELS), arms="default"), "race"),
        (lambda: search(mlp, ArrayData.of(X, LABELS), augment="shared"), "augment"),
        (lambda: search(mlp, ArrayData.of(X, LABELS), objective="worst_group_error"), "groups"),
        (
            lambda: search(mlp, ArrayData.of(X, LABELS), space=lambda c: HierarchicalSpace(c[1])),
            "must be HierarchicalLabelSpace",
        ),
        (lambda: search(mlp, ArrayData.of(X, [0, 1] * 40), objective="macro_f1"), "one class per"),
        (
            lambda: search(mlp, ArrayData.of(X, LABELS), validation=ArrayData.of(X, LABELS[:, :3])),
            "same labels or pixels",
        ),
        (
            lambda: retrain(mlp, ArrayData.of(X, LABELS), ParametricCrossEntropy()),
            "ParametricBinaryCrossEntropy",
        ),
        (
            lambda: retrain(
                lambda: nn.Linear(6, 2),
                ArrayData.of(X, [0, 1] * 40),
                ParametricBinaryCrossEntropy(),
            ),
            "class indices",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (torch.zeros(80, dtype=torch.int64), r"shape \(n, 4\)"),
        (LABELS[:, :3], r"shape \(n, 4\)"),
        (LABELS + 1.0, "target must be 0, 1"),
    ],
)
def test_the_tuner_refuses_targets_that_are_no_labels(held: Tensor, message: str) -> None:
    loss = TunableBinaryCrossEntropy(HierarchicalLabelSpace(COUNTS))
    with pytest.raises(InputError, match=message):
        LossTuner(loss).step(mlp(), (X, LABELS), (X, held))


def test_a_label_that_validation_cannot_judge_is_warned_of() -> None:
    x, y = matrix(400)
    held = ArrayData.of(x[:100], torch.cat([y[:100, :3], torch.zeros(100, 1)], dim=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = search(mlp, ArrayData.of(x, y), validation=held, recipe=RECIPE, settings=SETTINGS)
    [message] = [str(w.message) for w in caught]
    assert "1 of 4 labels have no positive example there (3)" in message
    assert result.status == "finished"
