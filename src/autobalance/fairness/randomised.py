r"""Smaller gaps between groups by drawing between networks.

A loss moves each group along its own curve of the classes' errors. Where the curves of two groups
lie apart, no loss closes the gap, and a network that never sees the group can only be made worse
for the better one. So it is with every method that reaches a small gap there: fairlearn's reductions
draw between many networks. Here a few suffice: losses of a frontier, and networks that are trained to
be wrong on a group, or on a class of it, which the features that betray the group allow. With probabilities
p_m of network m the cells' errors are linear,

.. math:: R_{kg}(p) = \sum_m p_m R_{kg}^{(m)},

so the lowest balanced error with DEO(p) <= gap is a linear program. What it costs is plain: the gap
closes by worse decisions for the better group, at random among alike people; the draw is a function
of the features, so that equal ones get equal decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from autobalance.checks import InputError, number
from autobalance.data.batches import ArrayData
from autobalance.fairness.evaluation import Evaluated, evaluate_model
from autobalance.losses import ParametricCrossEntropy
from autobalance.retraining import retrain
from autobalance.searching import splits_of
from autobalance.settings import Recipe, SearchSettings
from autobalance.spaces import GroupSpace
from autobalance.training import ModelFactory, check_data
from autobalance.tunable import TunableCrossEntropy

LEAST_SHARE = 0.005
"""Networks drawn more rarely are left out."""


class RandomisedNetwork(nn.Module):
    """Draws one of its networks for each example, by the example's features.

    Parameters
    ----------
    networks : sequence of nn.Module
        Each from inputs to logits ``(n, k)``.
    probabilities : array-like
        How often each is drawn, shape ``(m,)``, summing to 1.
    seed : int
        Of the draw. Under one seed, equal inputs have equal logits.
    """

    probabilities: Tensor

    def __init__(
        self, networks: Sequence[nn.Module], probabilities: Sequence[float], seed: int = 0
    ) -> None:
        super().__init__()
        p = np.asarray(probabilities, dtype=np.float64)
        if p.shape != (len(networks),) or not (p >= 0).all() or not np.isclose(p.sum(), 1.0):
            raise InputError(
                f"probabilities must hold one share for each of {len(networks)} networks, none "
                f"negative, summing to 1; got {p.tolist()}."
            )
        self.networks = nn.ModuleList(networks)
        self.register_buffer("probabilities", torch.from_numpy(p))
        self.seed = seed

    def drawn(self, inputs: Tensor) -> Tensor:
        """Index of each example's network, shape ``(n,)``."""
        flat = inputs.detach().flatten(1).double().cpu()
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(flat.shape[1], 2, generator=generator, dtype=torch.float64)
        # Summed feature by feature, so that a row's place in a batch changes no bit.
        u = (flat[:, :, None] * directions).sum(dim=1)
        u = (torch.sin(u).sum(dim=1) * 43758.5453).frac().abs()
        edges = self.probabilities.cpu().cumsum(dim=0)[:-1]
        return torch.bucketize(u, edges)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of each example's network, shape ``(n, k)``."""
        drawn = self.drawn(inputs).to(inputs.device)
        every = torch.stack([network(inputs) for network in self.networks])
        return every[drawn, torch.arange(len(inputs), device=inputs.device)]


@dataclass(frozen=True)
class Randomised:
    """What `randomised` found.

    Attributes
    ----------
    network : RandomisedNetwork
        Trained on all data.
    held_out : Evaluated
        Expected errors on the folds' held-out data, of networks trained on the rest.
    names : list of str
        Of its networks: "start", "loss i" of those given, "against group g" or "against class k of
        group g".
    training_runs : float
        Spent, on the folds and on all data.
    """

    network: RandomisedNetwork
    held_out: Evaluated
    names: list[str]
    training_runs: float


def randomised(
    model_factory: ModelFactory,
    data: ArrayData,
    *,
    gap: float,
    losses: Sequence[ParametricCrossEntropy] = (),
    recipe: Recipe | None = None,
    settings: SearchSettings | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Randomised:
    """The lowest balanced error with a DEO of at most `gap`, by drawing between networks.

    For k classes, g groups and n losses given it trains at most 1 + n + g + k (g - 1) networks on each
    fold, and then those that are drawn on all data.

    Parameters
    ----------
    model_factory : callable
        Returns a new, untrained network.
    data : ArrayData
        With groups, all known.
    gap : float
        Largest DEO on held-out data, see `autobalance.metrics.deo`; on new data leave a margin for its
        noise.
    losses : sequence of ParametricCrossEntropy
        To draw between, beside group-wise logit adjustment; for example those of
        ``frontier(...).non_dominated()``.
    recipe, seed, device
        As for `autobalance.search`.
    settings : SearchSettings, optional
        Whose folds this takes; by default five, so that every example is held out once. A gap
        is a difference of rates in small cells: on one fifth of Adult (some 240 women with high
        income) a DEO held to 7 was 17 on new data.

    Raises
    ------
    InputError
        If the data has no groups, or no draw between the networks keeps the gap; the message says
        which one can.

    References
    ----------
    Agarwal et al., "A Reductions Approach to Fair Classification", ICML 2018, whose last step is
    the same program over the networks of its rounds.
    """
    recipe, settings = recipe or Recipe(), settings or SearchSettings(folds=5)
    check_data(data)
    if data.groups is None or (data.num_groups or 1) < 2 or int(data.groups.min()) < 0:
        raise InputError("Drawing between networks for a gap needs at least two groups, all known.")
    if number("gap", gap) < 0:
        raise InputError(f"gap must not be negative; got {gap}.")
    splits = splits_of(data, None, settings, seed)

    def trained(candidate: _Candidate, on: ArrayData) -> nn.Module:
        on = candidate.taught(on)
        loss = candidate.loss or _adjusted(on)
        return retrain(model_factory, on, loss, recipe=recipe, seed=seed, device=device)

    def judged(candidate: _Candidate) -> Evaluated:
        """On the held-out examples of all folds."""
        folds = [evaluate_model(trained(candidate, train), held) for train, held in splits]
        mass = np.sum([fold.mass for fold in folds], axis=0)
        wrong = np.sum([np.nan_to_num(fold.errors) * fold.mass for fold in folds], axis=0)
        rates = np.divide(wrong, mass, out=np.full(mass.shape, np.nan), where=mass > 0)
        return Evaluated(rates, mass)

    start = _Candidate("start", _adjusted(data))
    pool = [start, *(_Candidate(f"loss {i}", loss) for i, loss in enumerate(losses))]
    found = [judged(candidate) for candidate in pool]
    errors = found[0].errors
    pool += [_Candidate(f"against group {g}", None, g) for g in range(len(errors))]
    pool += [  # only where a group is better off than another
        _Candidate(f"against class {k} of group {g}", start.loss, int(g), int(k))
        for g, k in np.argwhere(errors < np.nanmax(errors, axis=0))
    ]
    found += [judged(candidate) for candidate in pool[len(found) :]]
    tables, mass = np.stack([e.errors for e in found]), found[0].mass
    shares = _program(tables, mass, gap)
    used = np.flatnonzero(shares >= LEAST_SHARE)
    p = shares[used] / shares[used].sum()
    networks = [trained(pool[i], data) for i in used]
    return Randomised(
        network=RandomisedNetwork(networks, p.tolist(), seed),
        held_out=Evaluated(np.tensordot(p, tables[used], axes=1), mass),
        names=[pool[i].name for i in used],
        training_runs=float(len(splits) * len(found) + len(used)),
    )


@dataclass(frozen=True)
class _Candidate:
    """A network to be trained: its loss, and whom it is to be wrong on.

    Attributes
    ----------
    name : str
        For records.
    loss : ParametricCrossEntropy or None
        None: group-wise logit adjustment to the labels it is taught.
    group, class_ : int or None
        The examples whose labels are replaced by the next class; None stands for all.
    """

    name: str
    loss: ParametricCrossEntropy | None
    group: int | None = None
    class_: int | None = None

    def taught(self, data: ArrayData) -> ArrayData:
        """The data with the labels that it learns."""
        if self.group is None:
            return data
        assert data.groups is not None
        chosen = data.groups == self.group
        if self.class_ is not None:
            chosen &= data.target == self.class_
        following = (data.target + 1) % data.num_classes
        return replace(data, target=torch.where(chosen, following, data.target))


def _adjusted(data: ArrayData) -> ParametricCrossEntropy:
    """Group-wise logit adjustment."""
    return TunableCrossEntropy(GroupSpace(data.counts())).frozen()


def _program(errors: np.ndarray, mass: np.ndarray, gap: float) -> np.ndarray:
    """Shares of each network: the lowest balanced error with sum_k (max_g - min_g) at most `gap`.

    Parameters
    ----------
    errors : ndarray
        Of network m on group g and class k, shape ``(m, g, k)``; NaN where a cell is empty.
    mass : ndarray
        Held-out examples, shape ``(g, k)``.
    gap : float
        The bound.
    """
    m, _, k = errors.shape
    of_class = mass / np.maximum(mass.sum(axis=0), 1.0)
    cost = np.nansum(errors * of_class, axis=(1, 2)) / np.count_nonzero(mass.sum(axis=0))
    # Variables: shares (m), then for each class the highest (k) and the lowest (k) error.
    rows, limits = [], []
    for i, j in np.argwhere(mass > 0):
        for sign, offset in ((1.0, m), (-1.0, m + k)):
            row = np.zeros(m + 2 * k)
            row[:m], row[offset + j] = sign * errors[:, i, j], -sign
            rows.append(row)
            limits.append(0.0)
    range_ = np.r_[np.zeros(m), np.ones(k), -np.ones(k)]
    simplex = np.r_[np.ones(m), np.zeros(2 * k)]
    bounds = [(0.0, None)] * m + [(0.0, 1.0)] * (2 * k)

    def solved(costs: np.ndarray, *more: tuple[np.ndarray, float]) -> np.ndarray | None:
        A = np.stack([*rows, *(row for row, _ in more)])
        b = np.array([*limits, *(limit for _, limit in more)])
        done = linprog(costs, A_ub=A, b_ub=b, A_eq=simplex[None], b_eq=[1.0], bounds=bounds)
        return done.x if done.status == 0 else None

    x = solved(np.r_[cost, np.zeros(2 * k)], (range_, gap))
    if x is None:
        lowest = solved(range_)
        assert lowest is not None  # every share is a point of it
        raise InputError(
            f"No draw between these networks has a DEO of at most {gap:g} on held-out data; the lowest "
            f"is {max(0.0, float(range_ @ lowest)):.4f}. Raise gap, or give more losses."
        )
    return np.clip(x[:m], 0.0, None)
