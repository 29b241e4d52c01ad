r"""Decisions under a bound on the gap between groups, made from p(class, group | x) without the group.

Of all decisions that see x alone, the one with the lowest balanced error among those with DEO at
most gap has a known form,

.. math:: \hat y(x) = \arg\max_k \sum_g a_{gk} \, p(k, g \mid x),

drawn, where it must be, between a few such a. Without a bound a_gk = 1 / p(k), which is logit
adjustment (1 / p(k, g) for the mean error over the cells, of data whose groups are to count alike).
Under a bound a_gk also holds the price of an error on class k within group g, and that
can be negative: then an error there is welcome, because the group is served better than the others.
No weight and no adjustment of a loss says that, so a search over losses ends at the floor which
`docs/how_to/groups.md` describes; these decisions go below it.

One network learns p(class, group | x), by cross-entropy over the cells. The prices are those of a
linear program over held-out examples: it is solved for the decisions so far, its prices make the
next decision, and so on until none improves it (Dantzig and Wolfe, 1960). That costs no training, so
a whole frontier costs one training run and one per fold.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, not_negative, shown, whole
from autobalance.bilevel import (
    ModelFactory,
    ProgressListener,
    SearchResult,
    predict_logits,
    retrain,
    splits_of,
)
from autobalance.data import ArrayData, as_data
from autobalance.losses import ParametricCrossEntropy
from autobalance.networks import with_new_head
from autobalance.posthoc.decision_program import (
    DecisionColumn,
    DecisionGoal,
    constant_columns,
    generate_columns,
    select_draw,
)
from autobalance.records import ErrorTable, Recipe, SearchSettings

MAINS = ("balanced_error", "group_balanced_error")
"""Errors that decisions can keep low: the mean over the classes, and over the classes within groups."""
POINTS = 10
"""Of a frontier; decisions for one bound may also be those that the frontier's bounds gave rise to."""


class CellDecision(nn.Module):
    """Decides by weighted probabilities of the cells; draws where there are several sets of weights.

    From inputs to scores ``(n, k)``, whose largest is the decision. They are no logits: the
    probabilities of the classes are ``decision.probabilities(inputs)``.

    Parameters
    ----------
    network : nn.Module
        From inputs to logits of the cells, ``(n, g k)``, cell ``group * k + class``.
    weights : array-like
        a, shape ``(m, g, k)``, of any sign.
    shares : array-like
        How often each a is drawn, shape ``(m,)``, summing to 1.
    seed : int
        Of the draw, which is a function of the inputs: equal ones get equal decisions.

    Raises
    ------
    InputError
        If the shapes do not fit, a weight is not finite or the shares are none.
    """

    weights: Tensor
    shares: Tensor

    def __init__(
        self, network: nn.Module, weights: Any, shares: Sequence[float] = (1.0,), seed: int = 0
    ) -> None:
        super().__init__()
        a, p = np.asarray(weights, dtype=np.float64), np.asarray(shares, dtype=np.float64)
        if a.ndim != 3 or not np.isfinite(a).all():
            raise InputError(f"weights must be finite, of shape (m, g, k); got shape {a.shape}.")
        if p.shape != (len(a),) or not (p >= 0).all() or not np.isclose(p.sum(), 1.0):
            raise InputError(
                f"shares must hold one share for each of {len(a)} sets of weights, none negative, "
                f"summing to 1; got {p.tolist()}."
            )
        self.network = network
        self.register_buffer("weights", torch.from_numpy(a))
        self.register_buffer("shares", torch.from_numpy(p))
        self.seed = seed

    def cells(self, inputs: Tensor) -> Tensor:
        """p(class, group | x), shape ``(n, g, k)``, float64."""
        return torch.softmax(self.network(inputs).double(), dim=1).unflatten(
            1, self.weights.shape[1:]
        )

    def probabilities(self, inputs: Tensor) -> Tensor:
        """p(class | x) at the class frequencies of training, shape ``(n, k)``."""
        return self.cells(inputs).sum(dim=1)

    def draw(self, inputs: Tensor) -> Tensor:
        """Index of each example's weights, shape ``(n,)``."""
        if len(self.shares) == 1:
            return inputs.new_zeros(inputs.shape[0], dtype=torch.int64)
        flat = inputs.detach().flatten(1).double().cpu()
        i = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64) + self.seed
        # Two directions without a pattern, by the usual hash of a sine; nothing is drawn, so the
        # decision can be exported. Summed feature by feature, so that a row's place changes no bit.
        directions = torch.stack([torch.sin(12.9898 * i), torch.sin(78.233 * i)], dim=1)
        directions = 2.0 * (43758.5453 * directions).frac()
        u = (flat[:, :, None] * directions).sum(dim=1)
        u = (torch.sin(u).sum(dim=1) * 43758.5453).frac().abs()
        return torch.bucketize(u, self.shares.cpu().cumsum(dim=0)[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores, shape ``(n, k)``."""
        cells = self.cells(inputs)
        rule = self.draw(inputs).to(cells.device)
        return (cells * self.weights[rule]).sum(dim=1)


class ClassLogits(nn.Module):
    """log p(class | x) of a decision's network, shape ``(n, k)``."""

    def __init__(self, decision: CellDecision) -> None:
        super().__init__()
        self.decision = decision

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape ``(n, k)``."""
        return self.decision.probabilities(inputs).clamp_min(1e-30).log()


class DecisionShares(nn.Module):
    """How often each class is decided over many draws, ``(n, k)``, for `evaluate_probabilities`."""

    def __init__(self, decision: CellDecision) -> None:
        super().__init__()
        self.decision = decision

    def forward(self, inputs: Tensor) -> Tensor:
        """Shares, shape ``(n, k)``."""
        scores = torch.einsum("ngk,mgk->mnk", self.decision.cells(inputs), self.decision.weights)
        choices = nn.functional.one_hot(scores.argmax(dim=2), scores.shape[2]).double()
        return torch.einsum("m,mnk->nk", self.decision.shares, choices)


@dataclass(frozen=True)
class FairDecision:
    """A decision, and what it is worth on held-out data.

    Attributes
    ----------
    network : CellDecision
        On the network trained on all data.
    held_out : ErrorTable
        Expected errors on the folds' held-out data, of networks trained on the rest.
    objective : str
        What it is best for, "balanced_error where deo <= 0.05" or "worst_class_and_group_error".
    """

    network: CellDecision
    held_out: ErrorTable
    objective: str


@dataclass(frozen=True)
class CellPosterior:
    """What `cell_posterior` learned; every decision from it costs no training.

    Attributes
    ----------
    network : nn.Module
        Logits of the cells, ``(n, g k)``, trained on all data.
    held_out : ndarray
        p(class, group | x) of held-out examples, shape ``(n, g, k)``.
    cells : ndarray
        Their cells ``group * k + class``, shape ``(n,)``.
    training_runs : float
        One, and for each fold the share of the data that it trained on.
    settings, seed, seconds
        Same as in `autobalance.SearchResult`; the seed is also that of the draws.
    main : str
        The error that decisions keep low: "balanced_error" or "group_balanced_error".
    sample_weight : ndarray or None
        Weights of the held-out examples, shape ``(n,)``, by which their errors count.
    """

    network: nn.Module
    held_out: np.ndarray
    cells: np.ndarray
    training_runs: float
    settings: dict[str, Any]
    seed: int
    seconds: dict[str, float]
    main: str = "balanced_error"
    sample_weight: np.ndarray | None = None
    _columns_of: dict[float | None, list[DecisionColumn]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def state(self) -> dict[str, Tensor]:
        """What `from_state` needs beside the record of `settings`, as tensors by name."""
        tensors = {
            "held_out": torch.from_numpy(self.held_out),
            "cells": torch.from_numpy(self.cells),
            **{f"network.{name}": value for name, value in self.network.state_dict().items()},
        }
        if self.sample_weight is not None:
            tensors["sample_weight"] = torch.from_numpy(self.sample_weight)
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_state(
        cls, model_factory: ModelFactory, state: Mapping[str, Tensor], **fields: Any
    ) -> CellPosterior:
        """Inverse of `state`: with a network of the same factory, and the other fields as they were."""
        held_out = state["held_out"].numpy()
        network = with_new_head(model_factory(), held_out.shape[1] * held_out.shape[2])
        prefix = "network."
        own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        network.load_state_dict(own)
        weight = state.get("sample_weight")
        return cls(
            network.eval(), held_out, state["cells"].numpy(),
            sample_weight=None if weight is None else weight.numpy(), **fields,
        )  # fmt: skip

    def within(self, gap: float) -> FairDecision:
        """The lowest main error with a DEO of at most `gap` on held-out data.

        Leave a margin for new data: a gap is a difference of rates in small cells. On Adult a DEO
        held to 2 points was 3 to 6 on test data.

        Parameters
        ----------
        gap : float
            In [0, k], see `autobalance.records.metrics.deo`. From k on there is no bound, and this is logit
            adjustment.

        Raises
        ------
        InputError
            If the gap is negative or not finite.

        Warns
        -----
        UserWarning
            If a group has no held-out example of some class, so that the gap is not known.
        """
        not_negative("gap", gap)
        mass = self._mass()
        reason = ErrorTable.from_counts(np.zeros_like(mass), mass).undefined("deo")
        if reason is not None:
            warnings.warn(
                f"The gap is not known on held-out data, for {reason}. The bound is kept on the other "
                "cells alone: merge small groups, or add data.",
                stacklevel=2,
            )
        free, gaps = self._bounds(POINTS)
        if gap >= self.held_out.shape[2]:
            return replace(free, objective=f"{self.main} where deo <= {gap:g}")
        return self._select_best(gap, self._columns([*gaps, gap]))

    def with_lowest_worst_cell(self) -> FairDecision:
        """The lowest error of the worst class within a group, on held-out data."""
        return self._solve([None])[0]

    def frontier(self, points: int = POINTS) -> list[FairDecision]:
        """Decisions from no bound on DEO down to 0, by falling DEO.

        The first is logit adjustment. Of a network that is wrong about its probabilities, others can be
        better in both; `within` does not take it then.

        Parameters
        ----------
        points : int
            At least 2.
        """
        whole("points", points, least=2)
        free, gaps = self._bounds(points)
        return [free, *self._solve(gaps)]

    def most_probable(self) -> FairDecision:
        """The most probable class: what cross-entropy gives, to compare with."""
        mass = self._mass()
        weights = np.ones_like(mass)
        return self._build([weights], [1.0], self._errors(weights, mass), "error")

    def result(self, decision: FairDecision) -> SearchResult:
        """A decision as the result of a search, for what takes one; its loss is cross-entropy."""
        loss = ParametricCrossEntropy.cross_entropy()
        return SearchResult(
            loss=loss, start=loss, history=[], path=[], design={},
            settings={**self.settings, "objective": decision.objective}, seed=self.seed,
            seconds=self.seconds, training_runs=self.training_runs,
        )  # fmt: skip

    def _mass(self) -> np.ndarray:
        """Held-out examples per cell, by weight, shape ``(g, k)``."""
        shape = self.held_out.shape[1:]
        mass = np.bincount(self.cells, self.sample_weight, shape[0] * shape[1])
        return mass.reshape(shape).astype(float)

    def _main_weights(self) -> np.ndarray:
        """What an error in each cell adds to the main error, ``(g, k)``, summing to 1."""
        mass = self._mass()
        if self.main == "group_balanced_error":
            return (mass > 0) / np.count_nonzero(mass)
        per_class = mass.sum(axis=0)
        shares = np.divide(mass, per_class, out=np.zeros_like(mass), where=per_class > 0)
        return shares / np.count_nonzero(per_class)

    def _bounds(self, points: int) -> tuple[FairDecision, list[float]]:
        """The decision without a bound, which is logit adjustment, and bounds from there to 0."""
        [free] = self._solve([float(self.held_out.shape[2])])
        return free, np.linspace(free.held_out.known_deo, 0.0, points)[1:].tolist()

    def _solve(self, gaps: Sequence[float | None]) -> list[FairDecision]:
        """For each gap, or the worst cell where that is None, the best draw between all decisions
        that any of them gave rise to."""
        columns = self._columns(gaps)
        return [self._select_best(gap, columns) for gap in gaps]

    def _columns(self, gaps: Sequence[float | None]) -> list[DecisionColumn]:
        """The constant decisions, so that every bound can be kept, and those of each bound."""
        _, g, k = self.held_out.shape
        mass = self._mass()
        columns = constant_columns(lambda weights: self._errors(weights, mass), (g, k))
        for gap in gaps:
            if gap not in self._columns_of:
                self._columns_of[gap] = self._generate_columns(gap, columns[:k])
        return columns + [column for gap in gaps for column in self._columns_of[gap]]

    def _generate_columns(
        self, gap: float | None, constant: list[DecisionColumn]
    ) -> list[DecisionColumn]:
        """The decisions that one bound gives rise to.

        With those of other bounds to begin with, one would stop at once, and worse.
        """
        mass = self._mass()
        goal = DecisionGoal(self._main_weights(), gap)
        return generate_columns(lambda a: self._errors(a, mass), mass, goal, constant)

    def _select_best(self, gap: float | None, columns: list[DecisionColumn]) -> FairDecision:
        weights, shares, errors = select_draw(columns, DecisionGoal(self._main_weights(), gap))
        objective = "worst_class_and_group_error"
        if gap is not None:
            objective = f"{self.main} where deo <= {gap:g}"
        return self._build(list(weights), shares.tolist(), errors, objective)

    def _build(
        self, weights: list[np.ndarray], shares: list[float], errors: np.ndarray, objective: str
    ) -> FairDecision:
        network = CellDecision(self.network, np.stack(weights), shares, self.seed).eval()
        return FairDecision(network, ErrorTable.from_rates(errors, self._mass()), objective)

    def _errors(self, weights: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """R_kg on held-out data where a decides, shape ``(g, k)``; 0 in empty cells."""
        k = mass.shape[1]
        predicted = np.einsum("ngk,gk->nk", self.held_out, weights).argmax(axis=1)
        missed = predicted != self.cells % k
        missed = missed if self.sample_weight is None else missed * self.sample_weight
        wrong = np.bincount(self.cells, weights=missed, minlength=mass.size).reshape(mass.shape)
        return np.divide(wrong, mass, out=np.zeros_like(mass), where=mass > 0)


def cell_posterior(
    model_factory: ModelFactory,
    data: ArrayData,
    *,
    main: str = "balanced_error",
    recipe: Recipe | None = None,
    settings: SearchSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressListener | None = None,
) -> CellPosterior:
    """Learn p(class, group | x), for decisions under a bound on the gap between groups.

    Parameters
    ----------
    model_factory : callable
        Returns a new, untrained network with k outputs, whose last `torch.nn.Linear` is drawn anew
        with one output per cell.
    data : ArrayData
        With groups, all known.
    main : str
        The error to keep low. "balanced_error" is the mean over the classes, each with its groups as in
        the data; "group_balanced_error" the mean over the classes within groups, for a world in which
        all groups are alike in number, whatever they are in the data.
    recipe, seed, device, progress
        Same as in `autobalance.search`.
    settings : SearchSettings, optional
        Whose folds this takes; by default five, so that every example is held out once, but for a few where a
        cell does not divide by five.

    Returns
    -------
    CellPosterior
        ``cell_posterior(network, data).within(0.05).network`` predicts without groups.

    Raises
    ------
    InputError
        If the data has fewer than two groups or some are not known, the network has no
        `torch.nn.Linear`, or `main` is another error.

    References
    ----------
    Menon and Williamson, "The Cost of Fairness in Binary Classification", FAT* 2018; Zeng, Dobriban
    and Cheng, "Bayes-Optimal Classifiers under Group Fairness", arXiv 2202.09724; Xian and Zhao, "A
    Unified Post-Processing Framework for Group Fairness in Classification", arXiv 2405.04025.
    """
    recipe, settings = recipe or Recipe(), settings or SearchSettings(folds=5)
    data = as_data(data)
    if main not in MAINS:
        raise InputError(f"main of decisions must be {' or '.join(MAINS)}; got {shown(main)}.")
    if data.groups is None or (data.num_groups or 1) < 2 or int(data.groups.min()) < 0:
        raise InputError("A bound on a gap needs at least two groups, all known.")
    g, k = int(data.num_groups or 1), data.num_classes
    wall, cpu = time.perf_counter(), time.process_time()
    splits = splits_of(data, None, settings, seed)

    def train(on: ArrayData) -> nn.Module:
        as_classes = replace(on, target=on.cells(), num_classes=g * k, groups=None, num_groups=None)
        options: Any = {"recipe": recipe, "seed": seed, "device": device, "progress": progress}
        loss = ParametricCrossEntropy.cross_entropy()
        return retrain(lambda: with_new_head(model_factory(), g * k), as_classes, loss, **options)

    posteriors, cells, weights = [], [], []
    for part, held in splits:
        logits = predict_logits(train(part), held.inputs)
        posteriors.append(torch.softmax(logits.double(), dim=1).numpy().reshape(-1, g, k))
        cells.append(held.cells().cpu().numpy())
        weights.append(held.row_weights().cpu().numpy())
    held_out = np.concatenate(cells)
    return CellPosterior(
        network=train(data),
        held_out=np.concatenate(posteriors),
        cells=held_out,
        training_runs=1.0 + sum(len(part) / len(data) for part, _ in splits),
        settings={
            "recipe": recipe.to_dict(),
            "search": settings.to_dict(),
            "steps": recipe.steps(len(data)),
            "examples": len(data),
            "class_counts": data.counts().tolist(),
            "validation_counts": np.bincount(held_out, minlength=g * k).reshape(g, k).tolist(),
        },
        seed=seed,
        seconds={"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu},
        main=main,
        sample_weight=None if data.sample_weight is None else np.concatenate(weights),
    )
