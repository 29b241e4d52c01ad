"""The final choice among losses: each trained on every fold, judged on what the fold held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.bilevel.held_out import Splits, undefined_objective
from autobalance.bilevel.image_bootstrap import compare_by_image
from autobalance.bilevel.prediction import predict_decisions
from autobalance.bilevel.result import Candidate
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import Progress, ProgressListener
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import CostMatrix, Objective
from autobalance.records import as_counts, confused_pairs, effective_counts

DRAWS = 2000
AT_ONCE = 2_000_000
"""Draws times cells whose rates are held at once, 32 MB; to 1,000 cells all draws."""
NOISE = 2.0
"""Standard errors by which one fold must speak against a learned augmentation to have it dropped."""
START = "start"
Outcomes = dict[str, list[Tensor]]
"""By candidate and fold, the classes predicted, or where only that is known (bool) which are wrong."""


def train_candidates(
    spec: SearchSpec,
    splits: Splits,
    losses: Mapping[str, ParametricCrossEntropy],
    augments: Mapping[str, nn.Module | None],
    outcomes: Outcomes,
    after_each: Callable[[], None] = lambda: None,
    progress: ProgressListener | None = None,
) -> None:
    """Fill in, for every loss and fold, what a network trained so predicts of the held-out examples.

    Fold i is trained with seed ``spec.seed + i``. A candidate that `augments` does not name is not
    augmented. ``outcomes[name][fold]``, of shape ``(held out,)``, is not computed again where it is
    there already; `after_each` is called after each training run.
    """
    assert spec.model_factory is not None
    total = len(losses) * len(splits)
    for fold, (train, held) in enumerate(splits):
        for name, loss in losses.items():
            done = outcomes.setdefault(name, [])
            if len(done) > fold:
                continue
            model = retrain(
                spec.model_factory, train, loss, recipe=spec.recipe, augment=augments.get(name),
                seed=spec.seed + fold, device=spec.device, precision=spec.precision,
            )  # fmt: skip
            done.append(predict_decisions(model, held))
            after_each()
            if progress:
                finished = sum(len(runs) for runs in outcomes.values())
                progress(Progress("choose", finished, total))


def compare(
    losses: Mapping[str, ParametricCrossEntropy],
    outcomes: Outcomes,
    cells: Tensor,
    shape: tuple[int, int],
    objective: Objective,
    seed: int,
    weight: Tensor | None = None,
    images: Tensor | None = None,
) -> list[Candidate]:
    """Each candidate's objective on all folds' held-out examples, and its difference to the start.

    The difference's standard error is that of the examples' sampling: for each cell, the four
    shares of (right or wrong under one loss, right or wrong under the other) are drawn from their
    posterior under a uniform Dirichlet prior worth one example, which keeps a cell of a single
    example from looking certain.

    `cells` is ``group * k + class`` of every held-out example, fold after fold, shape ``(n,)``, of
    ``shape`` (groups, classes); `seed` is that of the draws. `weight` ``(n,)`` has the held-out
    examples' weights; the standard error is that of a cell's effective number of examples, see
    `ArrayData.effective_counts`. Of dense data the examples are pixels, `images` ``(n,)`` says of which
    image each is, and the standard error is that of the images' sampling, see `compare_by_image`.
    """
    count = shape[0] * shape[1]
    target = cells.numpy() % shape[1]
    wrong = {name: is_wrong(runs, target) for name, runs in outcomes.items()}
    costs = {}
    if isinstance(objective, CostMatrix):
        costs = {name: decision_costs(runs, target, objective) for name, runs in outcomes.items()}
    candidates = []
    own = np.ones(len(target)) if weight is None else weight.cpu().double().numpy()
    independent = np.ones(count)  # Independent examples per unit of weight, by cell.
    effective = None
    if weight is not None:
        effective = effective_counts(cells.numpy(), own, count)
        sums = np.bincount(cells.numpy(), own, count)
        independent = np.divide(effective, sums, out=independent, where=sums > 0)
        effective = effective.reshape(shape).tolist()
    if images is not None:
        present = np.unique(images.numpy() * count + cells.numpy()) % count
        effective = np.bincount(present, minlength=count).reshape(shape).tolist()
    for name, loss in losses.items():
        pairs = np.zeros((count, 2, 2))
        np.add.at(pairs, (cells.numpy(), wrong[name].astype(int), wrong[START].astype(int)), own)
        sizes = pairs.sum(axis=(1, 2))
        seen = pairs * independent[:, None, None]
        if images is not None or objective.by_decision:
            runs = torch.cat(outcomes[name]).cpu(), torch.cat(outcomes[START]).cpu()
            value, base, error = compare_by_image(objective, runs, cells, images, shape, seed, own)
        else:
            error = 0.0 if name == START else _standard_error(objective, seen, shape, seed, sizes)
            errors = np.stack([pairs[:, 1, :].sum(axis=1), pairs[:, :, 1].sum(axis=1)])
            exact = np.divide(errors, sizes, out=np.zeros((2, count)), where=sizes > 0)
            value, base = _aggregate(objective, exact, sizes, shape)
        if isinstance(objective, CostMatrix) and images is None:
            value, base, error = _compare_costs(costs[name], costs[START], own)
        folds = np.cumsum([len(run) for run in outcomes[name]])[:-1]
        by_fold = zip(np.split(wrong[name], folds), np.split(target, folds), strict=True)
        collapsed = any(_constant(*fold) for fold in by_fold)
        tables: list[Any] = [
            as_counts(t.reshape(shape)).tolist() for t in (pairs[:, 1].sum(axis=1), sizes)
        ]
        known = all(run.dtype != torch.bool for run in outcomes[name])
        predicted = torch.cat(outcomes[name]).cpu()
        tables.append(
            confused_pairs(target, predicted, shape[1], sample_weight=own) if known else []
        )
        numbers = (float(value), float(value - base), error, collapsed)
        undefined = undefined_objective(objective, sizes.reshape(shape))
        kept = {"effective": effective, "undefined": undefined}
        candidates.append(Candidate(name, loss, *numbers, *tables, **kept))
    return candidates


def is_wrong(runs: Sequence[Tensor], target: np.ndarray) -> np.ndarray:
    """Which examples of all folds are predicted wrongly, shape ``(n,)``; see `Outcomes`."""
    parts = np.split(target, np.cumsum([len(run) for run in runs])[:-1])
    pairs = zip((run.cpu().numpy() for run in runs), parts, strict=True)
    return np.concatenate([run if run.dtype == bool else run != y for run, y in pairs])


def decision_costs(runs: Sequence[Tensor], target: np.ndarray, objective: CostMatrix) -> np.ndarray:
    """What each held-out decision costs, in shares of the largest cost, shape ``(n,)``."""
    predicted = torch.cat(list(runs)).cpu()
    if predicted.dtype == torch.bool:
        raise InputError(
            "This checkpoint keeps only which decisions were wrong, not what was decided, so their costs are "
            "not known. Remove it and search anew."
        )
    return objective.decision_losses(predicted, torch.from_numpy(target)).numpy()


def _compare_costs(
    costs: np.ndarray, start: np.ndarray, weight: np.ndarray
) -> tuple[float, float, float]:
    """Mean cost, that of the start, and the standard error of the difference of the pairs."""
    share = weight / weight.sum()
    difference = costs - start
    mean = float((share * difference).sum())
    error = float(np.sqrt((share**2 * (difference - mean) ** 2).sum()))
    return float((share * costs).sum()), float((share * start).sum()), error


def _constant(wrong: np.ndarray, target: np.ndarray) -> bool:
    """Whether predictions wrong there are all right for one class and all wrong for the others."""
    if len(np.unique(target)) < 2:
        return False
    return len(np.unique(target[~wrong])) <= 1 and not wrong[np.isin(target, target[~wrong])].any()


def choose(
    losses: Mapping[str, ParametricCrossEntropy],
    outcomes: Outcomes,
    cells: Sequence[Tensor],
    shape: tuple[int, int],
    objective: Objective,
    seed: int,
    weights: Sequence[Tensor | None] | None = None,
    images: Tensor | None = None,
) -> tuple[list[Candidate], str]:
    """The candidates and the name of the best; without all folds' outcomes none, and "designed".

    Parameters are those of `compare`, with `cells` and weights fold by fold. One fold is too small to
    choose by the lower number: the designed loss stays unless its start is better by two standard errors.
    """
    if losses.keys() != outcomes.keys() or any(len(r) < len(cells) for r in outcomes.values()):
        return [], "designed"
    given = [w for w in weights or [] if w is not None]
    candidates = compare(
        losses, outcomes, torch.cat(list(cells)).cpu(), shape, objective, seed,
        torch.cat(given) if given else None, images,
    )  # fmt: skip
    return candidates, best(candidates, NOISE if len(cells) == 1 else 0.0).name


def best(candidates: Sequence[Candidate], leniency: float = 0.0) -> Candidate:
    """The candidate of the lowest objective; the start, unless another is better than it.

    With leniency another may be worse than the start by so many standard errors. One whose network predicts
    a single class is out, unless all are: a gap of 0 is easily won so.
    """
    start = next(c for c in candidates if c.name == START)
    sound = [c for c in candidates if not c.collapsed] or list(candidates)
    lowest = min(sound, key=lambda c: c.objective - leniency * c.standard_error)
    worse = lowest.difference >= leniency * lowest.standard_error
    return start if start in sound and worse else lowest


def _standard_error(
    objective: Objective,
    pairs: np.ndarray,
    shape: tuple[int, int],
    seed: int,
    sizes: np.ndarray | None = None,
) -> float:
    """Of the difference to the start, see `compare`; `pairs` counts right and wrong, ``(cells, 2, 2)``.

    Cells count in the objective by `sizes`, by default the numbers of their examples.
    """
    generator = np.random.default_rng(seed)
    masses = pairs.sum(axis=(1, 2)) if sizes is None else sizes
    block = max(1, AT_ONCE // len(pairs))
    differences = []
    for begin in range(0, DRAWS, block):
        draws = min(block, DRAWS - begin)
        # Without a name for the drawn rates, so that one block is freed before the next is drawn.
        own, other = (
            _aggregate(objective, rates, masses, shape)
            for rates in _draw_rates(generator, pairs, draws)
        )
        differences.append(own - other)
    return float(np.std(np.concatenate(differences)))


def _draw_rates(generator: np.random.Generator, pairs: np.ndarray, draws: int) -> np.ndarray:
    """Posterior draws of each cell's error rates under either loss, shape ``(2, draws, cells)``."""
    rates = np.empty((2, draws, len(pairs)))
    alpha = pairs.reshape(-1, 1, 4) + 0.25
    step = max(1, 2**15 // draws)  # gammas are twice as many as rates
    for cell in range(0, len(pairs), step):
        some = alpha[cell : cell + step]
        # Generator.dirichlet's own draws and arithmetic, without a call for each cell.
        shares = generator.standard_gamma(some, size=(len(some), draws, 4))
        shares *= 1.0 / shares.sum(axis=-1, keepdims=True)
        rates[0, :, cell : cell + step] = (shares[..., 2] + shares[..., 3]).T
        rates[1, :, cell : cell + step] = (shares[..., 1] + shares[..., 3]).T
    return rates


def _aggregate(
    objective: Objective, rates: np.ndarray, sizes: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """The hard objective for each row of error rates per (class, group) cell."""
    mass = torch.from_numpy(sizes).view(shape)
    tables = torch.from_numpy(rates).view(-1, *shape)
    return np.array([float(objective.value(table * mass, mass)) for table in tables])
