r"""The race of arms: which way to train, before the loss is searched for.

Every arm is trained for a share of the recipe's steps, with the loss that its search would start from, on
what the search trains on. It is judged on what the search holds out, by a criterion that networks whose
logits differ in scale have in common: the cross-entropy, each cell of the objective (class, or class and
group) as a whole counting as much as any other, after the temperature T that fits this arm's logits best,

.. math:: C = \frac{1}{|cells|} \sum_c \frac{1}{n_c} \sum_{i \in c} -\log softmax(\delta * f_i / T)_{y_i},

where T is fitted on the half of the held-out examples that i is not in, and delta is the arm's own: with
the start's w and l, softmax(delta * f) is what the network makes of classes that are equally frequent. The
0-1 error is too coarse where
a class has one or two examples held out, and the smooth error of an upper step is in units of each
network's own margins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance._validation import InputError, TrainingDiverged
from autobalance.bilevel.arms import Arm
from autobalance.bilevel.checkpoints import Checkpoint, describe
from autobalance.bilevel.held_out import Splits, splits_of
from autobalance.bilevel.initialisation import make_network
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import (
    Interrupted,
    Progress,
    ProgressListener,
    listen_to_part,
)
from autobalance.data import ArrayData, concatenated
from autobalance.functional import Processes
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import BalancedError
from autobalance.records import RacedArm, Recipe, phase_file
from autobalance.spaces import TunableCrossEntropy

SHARE = 0.5
"""Share of the recipe's steps that each arm is trained for."""
FITTED = 0.01
"""Mean error over the classes, on training rows, up to which a network counts as fitting them."""
LEAD, LEAD_OF_FITTING, LEAD_OF_OTHERS = 0.5, 2.0, 3.0
"""Standard errors by which an arm must lead the favourite to be taken: the first arm, one that needs a fit,
and the first where the objective is no mean over the classes, of which the criterion says less."""
_LOG_TEMPERATURES = (-3.0, 5.0)


@dataclass(frozen=True)
class Trial:
    """What one arm gave in a race.

    `surprise` is each held-out example's share of the criterion, fold after fold; the errors are the
    objective on these examples and the mean over the classes on training rows.
    """

    surprise: list[float]
    error: float
    training_error: float
    steps: int


Train = Callable[
    [SearchSpec, Arm, ArrayData, ParametricCrossEntropy, int, ProgressListener | None],
    tuple[nn.Module, int],
]
"""What trains an arm: from what is asked, the arm, the data, the loss, a seed and who is told of the progress
to the trained module and the number of its training steps."""


def train_shortly(
    spec: SearchSpec,
    arm: Arm,
    data: ArrayData,
    loss: ParametricCrossEntropy,
    seed: int,
    progress: ProgressListener | None,
) -> tuple[nn.Module, int]:
    """Train a network as the arm does, for `SHARE` of the steps."""
    own = with_arm(spec, arm)
    assert own.model_factory is not None
    recipe = shortened(own.recipe, SHARE)
    model = retrain(
        own.model_factory,
        data,
        loss,
        recipe=recipe,
        seed=seed,
        device=own.device,
        precision=own.precision,
        progress=progress,
    )
    return model, recipe.steps(len(data))


def race(
    spec: SearchSpec,
    arms: Sequence[Arm],
    progress: ProgressListener | None = None,
    train: Train = train_shortly,
) -> tuple[Arm, list[RacedArm]]:
    """The arm that wins, and what each one gave.

    The favourite is taken unless another leads it by some standard errors: the first arm that needs a
    network that fits, and has one (`LEAD_OF_FITTING`), or else the first of all (`LEAD`). For an objective
    that is no mean with fixed weights it is the first of all (`LEAD_OF_OTHERS`).

    Parameters
    ----------
    spec : SearchSpec
        What the search is asked to do.
    arms : sequence of Arm
        From `as_arms`, not empty.
    progress : callable, optional
        Called with a `Progress` of phase "race" now and then, and after each arm.
    train : callable
        What trains an arm.

    Raises
    ------
    InputError
        If no arm can race.
    TrainingDiverged
        If every arm that races diverges.
    Interrupted
        On Ctrl-C; its `partial` is None.

    Warns
    -----
    UserWarning
        For each arm that cannot race, or diverges.
    """
    if spec.data.dense:
        raise InputError(
            "A race judges networks example by example, and does not take a class for each pixel. Leave arms "
            "out."
        )
    splits = splits_of(spec.data, spec.validation, spec.settings, spec.seed)
    held_out = [held for _, held in splits]
    weights = criterion_weights(spec, held_out)
    trials: dict[str, Trial] = {}
    lost: dict[str, RacedArm] = {}
    kept = _open_checkpoint(spec, arms, trials)
    stopped: TrainingDiverged | None = None
    for i, arm in enumerate(arms):
        if arm.name not in trials:
            try:
                reason = _hindrance(arm, spec, trials)
                if reason is None:
                    tell = [
                        listen_to_part(
                            progress, "race", i * len(splits) + fold, len(arms) * len(splits)
                        )
                        for fold in range(len(splits))
                    ]
                    trials[arm.name] = _run_trial(arm, spec, splits, weights, train, tell)
                    kept.save()
                else:
                    lost[arm.name] = RacedArm(arm.name, arm.to_dict(), "left out", reason)
            except TrainingDiverged as error:
                lost[arm.name] = RacedArm(arm.name, arm.to_dict(), "diverged", str(error))
                warnings.warn(f"The arm {arm.name!r} is out of the race: {error}", stacklevel=3)
                stopped = error
            except Interrupted:
                raise Interrupted(None) from None
        if progress:
            steps = next((trial.steps for trial in trials.values()), 1)
            progress(Progress("race", (i + 1) * steps, len(arms) * steps))
    if not trials:
        if stopped is not None:
            raise stopped
        reasons = " ".join(f"{record.name}: {record.reason}." for record in lost.values())
        raise InputError(f"No arm can race. {reasons}")
    raced = _judge([arm for arm in arms if arm.name in trials], trials, spec, held_out)
    records = [lost.get(arm.name) or raced[arm.name] for arm in arms]
    taken = next(record.name for record in records if record.outcome == "taken")
    return next(arm for arm in arms if arm.name == taken), records


def with_arm(spec: SearchSpec, arm: Arm) -> SearchSpec:
    """What is asked of the search with this arm's networks, recipe and space."""
    factory = spec.model_factory
    return replace(
        spec,
        model_factory=None if factory is None else arm.network(factory),
        recipe=arm.recipe(spec.recipe),
        space=arm.space(spec.space, spec.objective),
    )


def _hindrance(arm: Arm, spec: SearchSpec, trials: Mapping[str, Trial]) -> str | None:
    """Why this arm does not race; what a user should know is also told."""
    first = next(iter(trials.values()), None)
    if arm.needs_fit and (first is None or first.training_error > FITTED):
        error = "not known" if first is None else f"{100 * first.training_error:.1f} %"
        return f"the first arm does not fit its training rows (error {error})"
    reason = arm.hindrance(spec.model_factory, spec.recipe)
    if reason is not None and not arm.needs_fit:
        warnings.warn(f"The arm {arm.name!r} is left out of the race: {reason}", stacklevel=4)
    return reason


def _run_trial(
    arm: Arm,
    spec: SearchSpec,
    splits: Splits,
    weights: Sequence[Tensor],
    trainer: Train,
    progress: Sequence[ProgressListener | None],
) -> Trial:
    """Train the arm on every fold, and judge it on what the fold holds out."""
    own = with_arm(spec, arm)
    surprise, fit, steps, logits = [], [], 0, []
    for fold, (train, held) in enumerate(splits):
        loss = TunableCrossEntropy(own.build_space(train)).frozen()
        model, taken = trainer(spec, arm, train, loss, spec.seed + fold, progress[fold])
        logits.append(predict_logits(model, held.inputs))
        cells = _criterion_cells(own, held)
        scaled = scale_logits(logits[-1], loss.multiplicative, held)
        surprise += _surprise(scaled, held.target.cpu(), weights[fold], cells).tolist()
        fit.append(BalancedError().hard(predict_logits(model, train.inputs), train.target.cpu()))
        steps += taken
    labels = [(held.target, held.groups, held.sample_weight) for _, held in splits]
    target, groups, weight = (
        None if part[0] is None else torch.cat([p.cpu() for p in part])
        for part in zip(*labels, strict=True)
    )
    assert target is not None
    error = own.objective.hard(torch.cat(logits), target, groups=groups, sample_weight=weight)
    return Trial(surprise, error, float(np.mean(fit)), steps)


def shortened(recipe: Recipe, share: float) -> Recipe:
    """The recipe with a share of its steps; its schedule goes through them all."""
    steps = max(1, round(share * recipe.min_steps))
    return replace(recipe, epochs=share * recipe.epochs, min_steps=steps)


def scale_logits(logits: Tensor, delta: Tensor | None, held: ArrayData) -> Tensor:
    """The logits times delta, with each example's own row of delta where groups have rows."""
    if delta is None:
        return logits
    rows = delta if delta.ndim == 1 or held.groups is None else delta[held.groups.cpu()]
    return logits * rows


def _surprise(logits: Tensor, target: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """Each example's share of the criterion, shape ``(n,)``: its weighted, tempered cross-entropy."""
    logits = logits.double()
    second = _every_other(cells)
    shares = torch.empty(len(target), dtype=torch.float64)
    for half in (second, ~second):
        temperature = _best_temperature(logits[~half], target[~half], weight[~half])
        losses = F.cross_entropy(logits[half] / temperature, target[half], reduction="none")
        shares[half] = weight[half] * losses
    return shares


def _every_other(cells: Tensor) -> Tensor:
    """Whether an example is the second, fourth and so on of its cell, shape ``(n,)``."""
    second = torch.zeros(len(cells), dtype=torch.bool)
    for cell in cells.unique():
        second[torch.nonzero(cells == cell).squeeze(1)[1::2]] = True
    return second


def _best_temperature(logits: Tensor, target: Tensor, weight: Tensor) -> float:
    """The temperature under which these labels are most likely; 1 without examples."""
    if not len(target):
        return 1.0

    def cost(log_temperature: float) -> float:
        scaled = logits / float(np.exp(log_temperature))
        return float(weight @ F.cross_entropy(scaled, target, reduction="none"))

    best: Any = minimize_scalar(cost, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(best.x))


def _criterion_cells(spec: SearchSpec, held: ArrayData) -> Tensor:
    """The cell of the objective that each held-out example is in, shape ``(n,)``."""
    over = spec.objective.over
    if over == "class" or held.groups is None:
        return held.target.cpu()
    return held.groups.cpu() if over == "group" else held.cells().cpu()


def criterion_weights(spec: SearchSpec, held: Sequence[ArrayData]) -> list[Tensor]:
    """What each held-out example counts for, fold by fold; over all folds they sum to 1."""
    cells = torch.cat([_criterion_cells(spec, part) for part in held])
    own = torch.cat(
        [
            torch.ones(len(part)).double()
            if part.sample_weight is None
            else part.sample_weight.cpu().double()
            for part in held
        ]
    )
    weight = own / torch.bincount(cells, own)[cells]
    counts = np.atleast_2d(spec.data.masses()).sum(axis=0)
    importance = spec.objective.importance_of(counts)
    if importance is not None and spec.objective.over == "class":
        weight = weight * torch.as_tensor(importance).double()[cells]
    return list((weight / weight.sum()).split([len(part) for part in held]))


def _judge(
    arms: Sequence[Arm],
    trials: Mapping[str, Trial],
    spec: SearchSpec,
    held_out: Sequence[ArrayData],
) -> dict[str, RacedArm]:
    """The records of the arms that raced, one of them taken."""
    cells = torch.cat([_criterion_cells(spec, part) for part in held_out]).numpy()
    # What helps networks that fit their training rows was worth more than a few held-out examples show.
    fitting = next((arm.name for arm in arms if arm.needs_fit and spec.objective.linear), None)
    favourite = fitting or arms[0].name
    surprise = {arm.name: np.array(trials[arm.name].surprise) for arm in arms}
    differences = {name: values - surprise[favourite] for name, values in surprise.items()}
    errors = {name: _standard_error(values, cells) for name, values in differences.items()}
    needed = LEAD if fitting is None else LEAD_OF_FITTING
    if not spec.objective.linear:
        needed = LEAD_OF_OTHERS
    lead = {name: d.sum() + needed * errors[name] for name, d in differences.items()}
    best = min(lead, key=lambda name: lead[name])
    return {
        arm.name: RacedArm(
            name=arm.name,
            settings=arm.to_dict(),
            outcome="taken" if arm.name == best else "passed over",
            steps=trials[arm.name].steps,
            criterion=float(np.sum(trials[arm.name].surprise)),
            difference=float(differences[arm.name].sum()),
            standard_error=errors[arm.name],
            error=trials[arm.name].error,
            training_error=trials[arm.name].training_error,
        )
        for arm in arms
    }


def _standard_error(values: np.ndarray, cells: np.ndarray) -> float:
    """Standard error of the sum of `values`, whose examples are drawn cell by cell.

    A cell of one example has no spread of its own; it takes the largest of the others.
    """
    variances, alone = [], 0
    for cell in np.unique(cells):
        own = values[cells == cell]
        if len(own) > 1:
            variances.append(len(own) * float(own.var(ddof=1)))
        else:
            alone += 1
    return float(np.sqrt(sum(variances) + alone * max(variances, default=0.0)))


def _open_checkpoint(spec: SearchSpec, arms: Sequence[Arm], trials: dict[str, Trial]) -> Checkpoint:
    """Where the trials are kept; those of an earlier run are put into `trials`."""
    path = None if spec.checkpoint is None else phase_file(spec.checkpoint, "race")
    data = spec.data if spec.validation is None else concatenated(spec.data, spec.validation)

    def identity() -> dict[str, Any]:
        assert spec.model_factory is not None
        return {
            "kind": "race",
            "seed": spec.seed,
            "arms": [arm.to_dict() for arm in arms],
            "recipe": spec.recipe.to_dict(),
            "search": spec.settings.to_dict(),
            "objective": spec.objective.to_dict(),
            "precision": spec.precision,
            # With one a table is encoded otherwise.
            "augment": spec.augment if spec.augment is None else str(type(spec.augment)),
            **describe(make_network(spec.model_factory), data),
        }

    checkpoint = Checkpoint(
        path,
        identity,
        lambda: {name: asdict(trial) for name, trial in trials.items()},
        Processes.all(),
    )
    saved = checkpoint.load()
    trials |= {name: Trial(**trial) for name, trial in (saved or {}).items()}
    return checkpoint
