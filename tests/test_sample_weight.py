"""A whole weight is a row repeated so often, and an example of weight 0 is left out, at every entry."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autobalance import (
    ArrayData,
    AutoBalanceClassifier,
    LossTuner,
    ParametricCrossEntropy,
    Recipe,
    SearchSettings,
    TunableCrossEntropy,
    cell_posterior,
    corrected_probabilities,
    fit_temperature,
    frontier,
    retrain,
    retrain_head,
    search,
    search_head,
)
from autobalance._validation import InputError
from autobalance.bilevel.candidate_selection import compare
from autobalance.bilevel.held_out import evaluate_held_out
from autobalance.bilevel.network_search import build_network_search
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.calibration.temperature import class_masses
from autobalance.data.index_streams import BalancedBatches, ResampledBatches, ShuffledBatches
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.registry import as_objective
from autobalance.objectives.running_risks import RunningRisks
from autobalance.posthoc.fair_decisions import CellPosterior
from autobalance.records import ErrorTable, to_json
from autobalance.report import bound_sentences, read_run, render_report
from autobalance.report.verdicts import measure_interval
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace

N, K = 240, 3


class Rows:
    """Examples with whole weights, some of them 0, and the same with rows repeated."""

    def __init__(self, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.y = np.concatenate(
            [np.repeat(np.arange(K), 10), draw.choice(K, N - 30, p=[0.7, 0.2, 0.1])]
        )
        self.g = draw.integers(0, 2, N)
        self.X = draw.normal(size=(N, 4)).astype(np.float32)
        self.X[:, 0] += self.y
        self.w = draw.integers(0, 6, N)
        self.again = np.repeat(np.arange(N), self.w)

    def both(self, *, groups: bool = False) -> tuple[ArrayData, ArrayData]:
        """Weighted, and repeated."""
        g = self.g if groups else None
        weighted = ArrayData.of(self.X, self.y, groups=g, sample_weight=self.w)
        rows = self.again
        return weighted, ArrayData.of(
            self.X[rows], self.y[rows], groups=None if g is None else g[rows]
        )


@pytest.fixture
def rows() -> Rows:
    return Rows()


def network() -> nn.Module:
    return nn.Linear(4, K)


def parameters_of(loss: ParametricCrossEntropy) -> list[Tensor]:
    return [p for p in loss.parameters_of_loss if p is not None]


def assert_same_loss(a: ParametricCrossEntropy, b: ParametricCrossEntropy) -> None:
    pairs = list(zip(parameters_of(a), parameters_of(b), strict=True))
    assert pairs
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


# Counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True])
def test_masses_are_the_counts_of_repeated_rows(rows: Rows, groups: bool) -> None:
    weighted, repeated = rows.both(groups=groups)
    assert len(weighted) == np.count_nonzero(rows.w)
    np.testing.assert_array_equal(weighted.masses(), repeated.masses())
    np.testing.assert_array_equal(class_masses(weighted), class_masses(repeated))
    assert repeated.masses().dtype == repeated.counts().dtype == np.int64


def test_effective_counts_are_kishs() -> None:
    data = ArrayData.of(np.zeros((5, 1)), [0, 0, 0, 1, 1], sample_weight=[1, 2, 3, 7, 7])
    np.testing.assert_allclose(data.effective_counts(), [36 / 14, 2])
    alike = ArrayData.of(np.zeros((5, 1)), [0, 0, 0, 1, 1], sample_weight=[0.2] * 5)
    np.testing.assert_allclose(alike.effective_counts(), [3, 2])
    np.testing.assert_allclose(alike.masses(), [3, 2])  # Shares are scaled to numbers of rows.
    plain = ArrayData.of(np.zeros((5, 1)), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(plain.effective_counts(), plain.counts())


def test_zero_weights_are_rows_left_out(rows: Rows) -> None:
    weighted, _ = rows.both(groups=True)
    some = rows.w > 0
    inputs = weighted.inputs
    assert isinstance(inputs, Tensor)
    np.testing.assert_array_equal(inputs.numpy(), rows.X[some])
    np.testing.assert_array_equal(weighted.target.numpy(), rows.y[some])
    assert weighted.groups is not None
    np.testing.assert_array_equal(weighted.groups.numpy(), rows.g[some])
    assert weighted.num_classes == K


# The start of every space ---------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("objective", ["balanced_error", "worst_class_error"])
def test_a_search_starts_alike(rows: Rows, groups: bool, objective: str) -> None:
    runs = [start_of_search(data, objective) for data in rows.both(groups=groups)]
    assert_same_loss(runs[0].start, runs[1].start)


def start_of_search(data: ArrayData, objective: str = "balanced_error", **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = SearchSpec(
            model_factory=network,
            data=data,
            objective=as_objective(objective),
            recipe=Recipe(epochs=1, min_steps=1),
            settings=SearchSettings(**options),
            device="cpu",
        )
        return build_network_search(spec)


@pytest.mark.parametrize(
    "kind", [ClassSpace, partial(ClusterSpace, size=2), HierarchicalSpace, GroupSpace]
)
def test_spaces_of_fractional_masses(rows: Rows, kind: Any) -> None:
    """Weights need not be whole: masses of rows weighted by half are half as large, the priors alike."""
    weighted, repeated = rows.both(groups=kind is GroupSpace)
    start = TunableCrossEntropy(kind(weighted.masses() + 0.5)).frozen()
    again = TunableCrossEntropy(kind(2 * (repeated.masses() + 0.5))).frozen()
    tolerance = {"rtol": 0.0, "atol": 0.02} if kind is GroupSpace else {}  # smoothed by one example
    for ours, theirs in zip(parameters_of(start), parameters_of(again), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_losses_of_counts_take_masses(rows: Rows) -> None:
    weighted, repeated = rows.both()
    for build in ("logit_adjusted", "balanced_softmax", "class_weighted", "vector_scaling"):
        make = getattr(ParametricCrossEntropy, build)
        assert_same_loss(make(weighted.masses()), make(repeated.counts()))


def test_the_absorbed_bias_is_of_the_weighted_group_sizes(rows: Rows) -> None:
    """With one row of l per group the bias takes their mean over the examples, by weight."""
    biases = []
    for data in rows.both(groups=True):
        loss = ParametricCrossEntropy(additive=torch.arange(2.0 * K).view(2, K))
        recipe = Recipe(epochs=1, min_steps=1, lr=1e-12, batch_size=4096)
        trained = retrain(network, data, loss, recipe=recipe, device="cpu")
        biases.append(next(p for name, p in trained.named_parameters() if name == "bias"))
    torch.testing.assert_close(*biases)


# Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True])
def test_one_step_on_all_rows_is_the_same(rows: Rows, groups: bool) -> None:
    """Retraining's full-batch gradient: one step of plain gradient descent goes to the same weights."""
    ends = []
    for data in rows.both(groups=groups):
        loss = TunableCrossEntropy(
            (GroupSpace if groups else HierarchicalSpace)(data.masses())
        ).frozen()
        recipe = Recipe(
            epochs=1, min_steps=1, lr=0.5, batch_size=4096, optimizer="sgd", warmup=0, momentum=0,
            weight_decay=0, max_grad_norm=1e6,
        )  # fmt: skip
        ends.append(list(retrain(network, data, loss, recipe=recipe, device="cpu").parameters()))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("objective", ["balanced_error", "worst_class_error"])
def test_a_step_of_the_loss_tuner_is_the_same(rows: Rows, objective: str) -> None:
    """Hypergradient and values are equal; what holds the loss to its start is Kish's, see limits.md."""
    steps = []
    for data in rows.both():
        torch.manual_seed(0)
        model, loss = network(), TunableCrossEntropy(HierarchicalSpace(data.masses()))
        counts = (data.masses(), data.masses())  # of as many independent examples
        tuner = LossTuner(loss, objective, validation_counts=counts[0], effective_counts=counts[1])
        batch = data.batch(torch.arange(len(data)))
        result = tuner.hypergradient(model, batch, batch)
        steps.append(
            [*result.gradients, torch.tensor(result.objective), torch.tensor(result.hard_objective)]
        )
    for ours, theirs in zip(*steps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_priors_strength_is_of_kishs_size(rows: Rows) -> None:
    """In a search, in a head's search, and of a tuner's own batches."""
    data, _ = rows.both()
    run = start_of_search(data)
    [(_, held)] = run.problem.splits
    tuner = run.upper.tuner
    expected = BalancedError().effective_size(held.effective_counts())
    assert tuner._effective_size(None) == pytest.approx(expected)
    assert run.settings["validation_counts"] == held.counts().tolist()
    alone = LossTuner(TunableCrossEntropy(HierarchicalSpace(data.masses())))
    assert alone._effective_size(held.batch(torch.arange(len(held)))) == pytest.approx(expected)
    with pytest.raises(
        Exception, match="effective_counts must have the shape of validation_counts"
    ):
        LossTuner(alone.loss, validation_counts=[5, 5, 5], effective_counts=[[5, 5, 5]])


# Draws ----------------------------------------------------------------------------------------


def shares_drawn(stream: Any, n: int, batches: int) -> np.ndarray:
    drawn = torch.cat([next(stream) for _ in range(batches)])
    return np.bincount(drawn.numpy(), minlength=n) / len(drawn)


@pytest.mark.parametrize("kind", [BalancedBatches, ResampledBatches])
def test_draws_are_even_over_cells_and_by_weight_within(kind: Any) -> None:
    cells, weight = torch.tensor([0] * 40 + [1] * 8), torch.tensor([1.0, 3.0] * 24)
    stream = kind(cells, 16, torch.Generator().manual_seed(0), weight)
    shares = shares_drawn(stream, 48, 3000)
    for cell in (0, 1):
        own = weight[cells == cell].numpy()
        np.testing.assert_allclose(shares[cells == cell], 0.5 * own / own.sum(), rtol=0.25)


def test_a_pass_by_weight_holds_each_row_as_often_as_its_weight_says() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5, 4.5])
    stream = ShuffledBatches(4, 4, torch.Generator().manual_seed(0), weight=weight)
    for _ in range(50):
        counts = np.bincount(next(stream).numpy(), minlength=4)
        assert (np.abs(counts - weight.numpy() / 2) < 1).all()


def test_what_is_drawn_by_weight_is_not_weighted_again(rows: Rows) -> None:
    """Over many small batches a search's risks are the weighted ones of the whole held-out set."""
    data, _ = rows.both()
    run = start_of_search(data, validation_batch_size=K)
    [fold] = run.problem.folds
    model = fold.lower.module
    logits = model(fold.validation.inputs).detach()
    wanted = BalancedError().hard(
        logits, fold.validation.target, sample_weight=fold.validation.sample_weight
    )
    values = []
    for _ in range(600):
        batch = next(fold.draws)
        assert batch.sample_weight is None
        values.append(BalancedError().hard(model(batch.inputs).detach(), batch.target))
    assert np.mean(values) == pytest.approx(wanted, abs=4 * np.std(values) / 600**0.5)


def test_shrinkage_is_by_effective_numbers_and_sums_by_weight() -> None:
    logits, y = torch.eye(2)[[0, 0, 1, 1]] * 9, torch.tensor([0, 1, 1, 1])
    mass, kish = [[30.0, 10.0]], [[3.0, 2.0]]
    values = [
        float(RunningRisks(WorstError(over="class"), mass, sizes=sizes)(logits, y))
        for sizes in (None, kish)
    ]
    assert values[0] == pytest.approx(values[1])  # the estimate is of the masses alone
    plain, shrunk = (RunningRisks(WorstError(over="class"), mass, sizes=s) for s in (None, kish))
    risks = torch.tensor([[0.0, 1.0]])
    for running in (plain, shrunk):
        running(logits, y)
    sizes = torch.tensor(mass)
    means = [r._shrink(risks, sizes) / sizes for r in (plain, shrunk)]
    torch.testing.assert_close(means[0], torch.tensor([[1 / 32, 11 / 12]]))
    torch.testing.assert_close(means[1], torch.tensor([[1 / 5, 3 / 4]]))


# Heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True])
def test_a_head_is_the_same(rows: Rows, groups: bool) -> None:
    data = rows.both(groups=groups)
    losses = [
        TunableCrossEntropy((GroupSpace if groups else HierarchicalSpace)(d.masses())).frozen()
        for d in data
    ]
    heads = [retrain_head(d, loss, device="cpu") for d, loss in zip(data, losses, strict=True)]
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(heads[0].bias, heads[1].bias, rtol=1e-3, atol=1e-3)


def test_a_heads_search_starts_alike_and_goes_the_same_way(rows: Rows) -> None:
    """On a validation set of their own, so that no draw parts them, also the first step is the same."""
    validation = Rows(1).both()
    found = [
        search_head(d, validation=v, max_steps=1, device="cpu")
        for d, v in zip(rows.both(), validation, strict=True)
    ]
    assert_same_loss(found[0].start, found[1].start)
    assert found[0].history[0].objective == pytest.approx(found[1].history[0].objective, abs=1e-4)
    assert found[0].history[0].hard_objective == pytest.approx(found[1].history[0].hard_objective)


# The classifier -------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [False, True])
def test_the_classifier_starts_alike(rows: Rows, frame: bool) -> None:
    """Also its columns are scaled, and its rows of weight 0 left out, before anything is learned."""
    X: Any = rows.X.astype(float)
    X[rows.w == 0] = 1e6  # would spoil every scale
    if frame:
        X = pd.DataFrame(X, columns=list("abcd")).assign(e=np.where(rows.w == 0, "never", "ever"))
        X.loc[::7, "b"] = np.nan
    take = (lambda i: X.iloc[i]) if frame else (lambda i: X[i])
    y = rows.y.copy()
    y[rows.w == 0] = 9  # a class of nobody
    settings, recipe = SearchSettings(lr=1e-9), Recipe(epochs=1, min_steps=1, batch_size=4096)
    models = [
        AutoBalanceClassifier(settings=settings, recipe=recipe, random_state=0, device="cpu").fit(
            *given, sample_weight=weight
        )
        for given, weight in (((X, y), rows.w), ((take(rows.again), y[rows.again]), None))
    ]
    assert_same_loss(models[0].loss_, models[1].loss_)
    assert [m.classes_.tolist() for m in models] == [[0, 1, 2]] * 2
    np.testing.assert_array_equal(models[0].class_masses_, models[1].class_masses_)
    some = take(np.flatnonzero(rows.w)[:50])
    inputs = [model.input_.transform(model, some) for model in models]
    np.testing.assert_allclose(inputs[0], inputs[1], rtol=1e-5, atol=1e-5)


# Held-out tables and what is made of them -----------------------------------------------------


def test_held_out_tables_count_by_weight(rows: Rows) -> None:
    predicted = torch.from_numpy(np.random.default_rng(3).integers(0, K, N))
    weighted, repeated = rows.both(groups=True)
    tables = [
        evaluate_held_out([(data, data)], [guess])
        for data, guess in ((weighted, predicted[rows.w > 0]), (repeated, predicted[rows.again]))
    ]
    for name in ("n", "wrong", "predicted"):
        assert getattr(tables[0], name) == getattr(tables[1], name)
    assert isinstance(tables[0].n[0][0], int)


def test_candidates_are_compared_by_weight(rows: Rows) -> None:
    weighted, repeated = rows.both()
    draw = np.random.default_rng(4)
    guesses = {name: torch.from_numpy(draw.integers(0, K, N)) for name in ("designed", "start")}
    losses = dict.fromkeys(guesses, ParametricCrossEntropy.cross_entropy())
    found = []
    for data, rows_of, weight in (
        (weighted, torch.from_numpy(np.flatnonzero(rows.w)), weighted.sample_weight),
        (repeated, torch.from_numpy(rows.again), None),
    ):
        outcomes = {name: [guess[rows_of]] for name, guess in guesses.items()}
        found.append(compare(losses, outcomes, data.cells(), (1, K), BalancedError(), 0, weight))
    for ours, theirs in zip(*found, strict=True):
        assert ours.objective == pytest.approx(theirs.objective)
        assert ours.difference == pytest.approx(theirs.difference)
        assert (ours.wrong, ours.n) == (theirs.wrong, theirs.n)
    # Repeated rows look like independent examples; weights do not make one example into several.
    assert found[0][0].standard_error > found[1][0].standard_error > 0


def test_temperature_and_probabilities(rows: Rows) -> None:
    logits = 3.0 * torch.from_numpy(np.random.default_rng(5).normal(size=(N, K)))
    weighted, repeated = rows.both()
    loss = ParametricCrossEntropy.logit_adjusted(weighted.masses())
    some = torch.from_numpy(np.flatnonzero(rows.w))
    again = torch.from_numpy(rows.again)
    ours = fit_temperature(
        logits[some],
        weighted.target,
        loss,
        class_masses(weighted),
        sample_weight=weighted.sample_weight,
    )
    theirs = fit_temperature(logits[again], repeated.target, loss, class_masses(repeated))
    for name in ("temperature", "raw_error", "prior_error", "error"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4)
    assert ours.bins is not None
    assert theirs.bins is not None
    assert ours.bins.error == pytest.approx(theirs.bins.error, rel=1e-4)
    torch.testing.assert_close(
        corrected_probabilities(logits, loss, weighted.masses()),
        corrected_probabilities(logits, loss, repeated.counts()),
    )


def test_decisions_weigh_the_held_out_examples(rows: Rows) -> None:
    """The linear program over held-out probabilities is that of repeated rows."""
    draw = np.random.default_rng(6)
    p = draw.dirichlet(np.ones(2 * K), size=N).reshape(N, 2, K)
    cells = rows.g * K + rows.y
    some, again = np.flatnonzero(rows.w), rows.again
    ours = CellPosterior(
        nn.Identity(),
        p[some],
        cells[some],
        1.0,
        {},
        0,
        {},
        sample_weight=rows.w[some].astype(float),
    )
    theirs = CellPosterior(nn.Identity(), p[again], cells[again], 1.0, {}, 0, {})
    for bound in (3.0, 0.2):
        a, b = ours.within(bound).held_out, theirs.within(bound).held_out
        np.testing.assert_allclose(a.mass, b.mass)
        assert a.balanced_error == pytest.approx(b.balanced_error)
        assert a.deo == pytest.approx(b.deo)


def test_cell_posterior_keeps_the_weights(rows: Rows) -> None:
    weighted, repeated = rows.both(groups=True)
    recipe = Recipe(epochs=1, min_steps=1)
    learned = cell_posterior(network, weighted, recipe=recipe, device="cpu")
    assert learned.sample_weight is not None
    np.testing.assert_allclose(
        learned.most_probable().held_out.mass.sum(), learned.sample_weight.sum()
    )
    plain = cell_posterior(network, repeated, recipe=recipe, device="cpu")
    assert plain.sample_weight is None


def test_a_searchs_record_is_by_weight(rows: Rows) -> None:
    """Of fractional weights the held-out table is of their sums, and survives its JSON."""
    data = ArrayData.of(rows.X, rows.y, groups=rows.g, sample_weight=rows.w / 4)
    result = search(network, data, recipe=Recipe(epochs=1, min_steps=20), device="cpu", test=data)
    assert result.held_out is not None
    run = start_of_search(data)
    [(_, held)] = run.problem.splits
    assert held.sample_weight is not None
    assert np.sum(result.held_out.n) == pytest.approx(float(held.sample_weight.sum()))
    assert type(result).from_json(result.to_json()).held_out == result.held_out


def test_a_frontiers_points_are_by_weight(rows: Rows) -> None:
    data, _ = rows.both(groups=True)
    swept = frontier(
        network, data, mixes=[0.0], recipe=Recipe(epochs=1, min_steps=30), device="cpu"
    )
    assert 0.0 <= swept.points[0].main <= 1.0


# Measuring ------------------------------------------------------------------------------------


class Fitted:
    """A classifier on a linear network, and data to measure it on: weighted and repeated."""

    def __init__(self, rows: Rows) -> None:
        recipe = Recipe(epochs=1, min_steps=20)
        self.model = AutoBalanceClassifier(
            module=network, recipe=recipe, settings=SearchSettings(choose=False), random_state=0,
            device="cpu",
        ).fit(rows.X, rows.y)  # fmt: skip
        test = Rows(7)
        self.names = np.array(["north", "south"])[test.g]
        self.test = test
        # Nothing of a row of weight 0 is looked at, not even its label.
        self.X, self.y = test.X.copy(), test.y.copy()
        self.X[test.w == 0], self.y[test.w == 0] = np.nan, 9

    def given(self, kind: str, *, groups: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a measurement, with weights in a form of this kind."""
        test, features = self.test, {"sensitive_features": self.names} if groups else {}
        if kind == "repeated":
            rows = test.again
            named = {name: value[rows] for name, value in features.items()}
            return (test.X[rows], test.y[rows]), named
        if kind == "dataset":
            X, y = np.nan_to_num(self.X), torch.from_numpy(np.where(test.w == 0, 0, self.y))
            data = TensorDataset(torch.from_numpy(X), y)
            return (data,), {**features, "sample_weight": test.w}
        weight: Any = test.w if kind == "array" else test.w.astype(float).tolist()
        return (self.X, self.y), {**features, "sample_weight": weight}


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return Fitted(Rows())


def assert_same_record(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert_same_record(ours[name], value)
    elif isinstance(theirs, list):
        np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), rtol=1e-6)
    else:
        assert ours == pytest.approx(theirs)
        assert type(ours) is type(theirs)


def without_effective(record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    return {k: without_effective(v) for k, v in record.items() if "effective" not in k}


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("kind", ["array", "list", "dataset"])
def test_evaluate_counts_by_weight(fitted: Fitted, kind: str, groups: bool) -> None:
    """Every rate, count, confusion and bin is that of repeated rows."""
    (ours, options), (repeated, plain) = (
        fitted.given(k, groups=groups) for k in (kind, "repeated")
    )
    record = fitted.model.evaluate(*ours, **options)
    assert_same_record(without_effective(record), fitted.model.evaluate(*repeated, **plain))
    w, y = fitted.test.w, fitted.test.y
    kish = [w[y == c].sum() ** 2 / (w[y == c] ** 2).sum() for c in range(K)]
    np.testing.assert_allclose(record["class_n_effective"], kish)
    assert ("class_and_group_n_effective" in record) == groups


@pytest.mark.parametrize("kind", ["array", "list", "dataset"])
def test_calibrate_counts_by_weight(fitted: Fitted, kind: str) -> None:
    temperatures = []
    for each in (kind, "repeated"):
        given, options = fitted.given(each, groups=False)
        temperatures.append(fitted.model.calibrate(*given, **options).temperature_)
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-4)


def test_a_dataset_is_measured_by_its_own_weights_and_groups(fitted: Fitted) -> None:
    test = fitted.test
    own = ArrayData.of(test.X, test.y, groups=test.g, sample_weight=test.w)
    given = fitted.model.evaluate(
        test.X, test.y, sensitive_features=test.g.astype(str), sample_weight=test.w
    )
    assert fitted.model.evaluate(own) == given


def test_weights_that_are_shares_measure_as_their_multiples(fitted: Fitted) -> None:
    """Weights that sum to 1 are no examples that a prior worth one could outweigh."""
    (given, options), w = fitted.given("array", groups=False), fitted.test.w
    whole = fitted.model.evaluate(*given, sample_weight=w * (np.count_nonzero(w) / w.sum()))
    shares = fitted.model.evaluate(*given, sample_weight=w / w.sum())
    assert_same_record(shares, whole)
    assert shares["error"] == pytest.approx(fitted.model.evaluate(*given, **options)["error"])


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        (np.full(N, -1.0), "never negative"),
        (np.zeros(N), "not all zero"),
        (np.ones(N - 1), "sample_weight"),
        (np.full(N, np.nan), "sample_weight"),
    ],
)
@pytest.mark.parametrize("entry", ["evaluate", "calibrate"])
def test_weights_to_measure_by_are_checked(
    fitted: Fitted, entry: str, weight: np.ndarray, fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        getattr(fitted.model, entry)(fitted.test.X, fitted.test.y, sample_weight=weight)


def test_a_reports_intervals_are_of_kishs_size(fitted: Fitted) -> None:
    """Wide where one example has nearly all the weight, however large that is."""
    test = fitted.test
    weight = np.where(np.arange(N) % 10 == 0, 1e6, 1.0)
    record = {
        "class_counts": [100] * K,
        "class_names": list("abc"),
        "objective": "balanced_error where deo <= 0.5",
        "methods": {
            "autobalance": fitted.model.evaluate(
                test.X, test.y, sensitive_features=fitted.names, sample_weight=weight
            )
        },
    }
    run = read_run(json.loads(to_json(record)))
    [method] = run.methods
    assert method.trials is not None
    assert method.n is not None
    heavy = [np.count_nonzero((weight > 1) & (test.y == c)) for c in range(K)]
    np.testing.assert_allclose(method.trials, heavy, rtol=1e-3)
    np.testing.assert_allclose(method.n, [weight[test.y == c].sum() for c in range(K)])
    assert run.by_group is not None
    table = run.by_group.table
    by_cell = [[weight[(test.y == c) & (test.g == g)] for c in range(K)] for g in range(2)]
    kish = [[w.sum() ** 2 / (w**2).sum() for w in row] for row in by_cell]
    np.testing.assert_allclose(table.trials(), kish)
    low, high = measure_interval(table, "equalized_odds_difference")
    plain = measure_interval(ErrorTable.from_counts(table.wrong, table.mass), "deo")
    assert high - low > 0.5
    assert plain[1] - plain[0] < 0.01
    [sentence] = bound_sentences(run)
    assert "within the noise" in sentence
    raw = method.reliability["raw"]
    assert raw.effective is not None
    assert max(raw.effective) <= np.count_nonzero(weight > 1) + 1
    assert render_report(record)


def test_records_of_a_search_keep_kishs_sizes(rows: Rows) -> None:
    """Of candidates and of the held-out table; confusions count by weight."""
    weighted, _ = rows.both(groups=True)
    recipe = Recipe(epochs=1, min_steps=20)
    result = search(network, weighted, recipe=recipe, device="cpu")
    again = type(result).from_json(result.to_json())
    assert again.held_out == result.held_out
    assert result.held_out is not None
    assert result.held_out.effective is not None
    assert (np.array(result.held_out.effective) <= np.array(result.held_out.n) + 1e-9).all()
    for entry in (result.held_out, *result.candidates):
        assert entry.effective is not None
        wrong = np.sum(entry.wrong)
        assert sum(n for _, _, n in entry.confused) == pytest.approx(wrong)
        assert np.shape(entry.effective) == np.shape(entry.n)
    run = read_run(result.record())
    for candidate, entry in zip(run.candidates, result.candidates, strict=True):
        assert candidate.table is not None
        np.testing.assert_allclose(candidate.table.trials(), np.array(entry.effective))
    plain = search(network, rows.both()[1], recipe=recipe, device="cpu").to_json()
    assert "effective" not in plain
