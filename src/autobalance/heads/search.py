"""Search and retraining of a linear head on frozen features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from autobalance._validation import (
    InputError,
    TrainingDiverged,
    fraction,
    instance,
    positive,
    whole,
)
from autobalance.bilevel import (
    Interrupted,
    MetricLogger,
    Outcomes,
    PathPoint,
    Progress,
    ProgressListener,
    RunLog,
    SearchResult,
    UpperRecord,
    check_options,
    choose,
    extended,
    make_fabric,
)
from autobalance.data import ArrayData, Batch, as_data
from autobalance.heads.folds import split, standardised
from autobalance.heads.newton import Minimum, Solved, conjugate_gradients, minimise
from autobalance.heads.problem import HeadProblem, KroneckerPreconditioner, accumulate, linear
from autobalance.heads.quasi_newton import descend
from autobalance.losses import LossParameters, ParametricCrossEntropy, check_width
from autobalance.objectives import Objective, as_objective
from autobalance.spaces import SpaceFactory, made_space, prior_strength

WEIGHT_DECAY = 3e-3
"""From {1e-5, ..., 3e-1} in steps of half a decade, by the balanced error of the LA head on held-out
training data (`bench/head.py --select`): the best on letters (22.1 %; 23.4 % at 1e-3 and 23.0 %
at 1e-2), and on Fashion-MNIST as good as 1e-2. Both sets have about 2,000 examples; of many more, a
smaller one may serve better.
"""
GRADIENT_TOLERANCE = 1e-5
"""Gradient of the lower level relative to that at zero weights; float32 reaches 1e-6."""
SYSTEM_TOLERANCE = 1e-6
"""Relative residual of the hypergradient's linear system."""
SYSTEM_ITERATIONS = 1000
UPPER_TOLERANCE = 1e-3
"""The search ends with a step that lowers the objective by less than this share of it."""
FIRST_STEP, MAX_STEP = 0.3, 1.0
"""Largest change of a free parameter (nats) in the first upper step, and in any. On
letters and Fashion-MNIST features (weight decay 1e-3) L-BFGS with this start was lower after 5
evaluations than Adam at a rate of 0.1 after 14.
"""
ROWS = 4096


def search_head(
    data: ArrayData,
    *,
    validation: ArrayData | None = None,
    objective: str | Objective = "balanced_error",
    space: SpaceFactory | None = None,
    weight_decay: float = WEIGHT_DECAY,
    folds: int = 1,
    validation_fraction: float = 0.2,
    max_steps: int = 20,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressListener | None = None,
    logger: MetricLogger | None = None,
) -> SearchResult:
    r"""Design the training loss for a linear head on frozen features, by exact bilevel search.

    .. math::
        \min_\alpha F(\theta^*(\alpha)) + \frac{\text{penalty}(\alpha)}{n_{eff}}, \qquad
        \frac{dF}{d\alpha} = -\frac{\partial^2 L}{\partial \alpha \, \partial \theta} q,
        \quad A q = \nabla_\theta F .

    The lower level (see `autobalance.heads.problem`) is strongly convex. At every upper step it is
    solved by Newton's method over all training examples, and the linear system by preconditioned
    conjugate gradients to a relative residual of 1e-6. So nothing is random but the split, and
    alpha moves by L-BFGS. A `SmoothError` without a temperature gets its own at the start, from
    the margins there, and keeps it.

    Parameters
    ----------
    data : ArrayData
        Features ``(n, d)``, as from `extract_features`; further dimensions are flattened. They are
        computed with in float32, or in float64 if they are, and standardised inside. With groups,
        the loss gets one row per group.
    validation : ArrayData, optional
        A validation set of the user's own. By default a share of `data` is held out.
    objective : str or Objective
        What is to become small on validation data; see `autobalance.objectives`.
    space : callable, optional
        From the training counts, ``(k,)`` or ``(g, k)``, to a `DesignSpace`; by default as in
        `search`.
    weight_decay : float
        lambda in ``lambda / 2 |W|^2``, for W on standardised features and the mean loss; above 0.
    folds : int
        Number of splits searched with one shared loss; hypergradients are averaged. With two or
        more the best of the designed loss, its start and cross-entropy on all held-out examples is
        the result, as in `search`.
    validation_fraction : float
        Share of each class held out per fold, in (0, 1).
    max_steps : int
        At most so many evaluations of the upper level, each with its lower level solved. The
        search ends earlier where a step lowers the objective by less than 0.1 % of it.
    seed : int
        Seeds the split. One seed gives one result on one machine, bit for bit on the CPU.
    device : str
        "auto", "cpu", "cuda" or "cuda:1"; "auto" leaves out MPS, which has no float64.
    progress : callable, optional
        Called with a `Progress` after every evaluation.
    logger : MetricLogger, optional
        As for `search`; a step is an evaluation.

    Returns
    -------
    SearchResult
        The loss at the lowest value seen. `history` and `path` count evaluations.

    Raises
    ------
    InputError
        If the data cannot be searched on; the message says what to do.
    TrainingDiverged
        If the loss's parameters become too large; its `partial` is the result so far.
    Interrupted
        On Ctrl-C; a KeyboardInterrupt whose `partial` is the result so far.

    Notes
    -----
    100,000 x 768 features in float32 with 100 classes took 46 s on two cores, 82 s of CPU time, and
    1.2 GB of memory at the peak (`bench/head.py`). Costs grow with n x d x k: 1,000 classes took
    670 s of CPU time and 1.9 GB. Beside the features and their standardised copy it keeps
    n x k probabilities per fold in work, or none where they exceed 1 GiB in float32; a product then
    costs half as much again.

    Where the space learns delta, a step may make some delta_k so small or large that the lower level
    is badly conditioned, and one evaluation then takes thousands of products.

    References
    ----------
    Li et al., "AutoBalance", NeurIPS 2021; the implicit gradient as in Lorraine et al., AISTATS
    2020; the preconditioner as in Martens and Grosse, "K-FAC", ICML 2015.
    """
    check_options(seed=seed, progress=progress)
    data = as_data(data)
    if validation is not None:
        validation = as_data(validation, "validation")
    whole("folds", folds, least=1)
    fraction("validation_fraction", validation_fraction)
    whole("max_steps", max_steps, least=1)
    goal = as_objective(objective)
    if goal.over != "class" and data.groups is None:
        raise InputError(
            f"The objective {objective!r} is over groups, but the data has none. Pass groups= to "
            "ArrayData.of, or choose an objective over classes."
        )
    settings = {
        "weight_decay": positive("weight_decay", weight_decay),
        "folds": folds,
        "validation_fraction": validation_fraction,
    }
    run = _HeadSearch(
        data, validation, goal, space, settings, max_steps, seed, _device(device), progress, logger
    )
    with run.log.open():
        try:
            run.run()
        except TrainingDiverged as error:
            error.partial = run.result("diverged")
            raise
        except KeyboardInterrupt:
            raise Interrupted(run.result("interrupted")) from None
        result = run.result("finished")
        run.log.candidates(result.candidates, len(run.history))
    return result


def retrain_head(
    data: ArrayData,
    loss: ParametricCrossEntropy,
    *,
    weight_decay: float = WEIGHT_DECAY,
    device: str = "auto",
) -> nn.Linear:
    """Train a linear head to the minimum of the given loss on all of `data`.

    Parameters
    ----------
    data : ArrayData
        All labelled features, training and validation together; as for `search_head`.
    loss : ParametricCrossEntropy
        For example ``search_head(...).loss``; its mean is taken, whatever its `reduction`.
    weight_decay : float
        As for `search_head`, and the same as there.
    device : str
        As for `search_head`.

    Returns
    -------
    torch.nn.Linear
        From raw features ``(n, d)`` to raw logits ``(n, k)``; standardisation is folded in. On the
        CPU, in evaluation mode.

    Raises
    ------
    InputError
        If the loss does not fit the data, or has label smoothing.
    TrainingDiverged
        If the loss's parameters are so large that the training loss is not finite.
    """
    data = as_data(data)
    instance("loss", loss, ParametricCrossEntropy, "Such as search_head(...).loss.")
    if loss.label_smoothing:
        raise InputError(
            "A head's loss has no label smoothing: its minimiser would not be the loss searched "
            "for. Build the loss with label_smoothing=0."
        )
    check_width(torch.empty(0, data.num_classes), loss.num_classes)
    if loss.num_groups is not None and (data.num_groups or 0) != loss.num_groups:
        raise InputError(
            f"This loss has rows for {loss.num_groups} groups, the data has "
            f"{data.num_groups or 'none'}. Give data with the groups the loss was made for."
        )
    whole = standardised(data, _device(device))
    problem = whole.problem(positive("weight_decay", weight_decay))
    problem.set_loss(loss.parameters_of_loss)
    start = problem.zeros()
    reference = float(problem.evaluate(start)[1].norm())
    found = minimise(problem, start, tolerance=GRADIENT_TOLERANCE, reference=reference)
    return whole.scaling.linear(found.weights).cpu()


@dataclass
class _Fold:
    """One split: its lower level, its validation rows, and what is kept between upper steps."""

    problem: HeadProblem
    held: Batch
    weights: Tensor
    reference: float = 0.0
    preconditioner: KroneckerPreconditioner | None = None
    direction: Tensor | None = None


@dataclass(frozen=True)
class _FoldResult:
    """One fold's share in an upper step."""

    gradients: list[Tensor]
    objective: float
    hard: float
    lower: Minimum
    solved: Solved


class _HeadSearch:
    """The state of one search."""

    def __init__(
        self,
        data: ArrayData,
        validation: ArrayData | None,
        objective: Objective,
        space: SpaceFactory | None,
        settings: dict[str, Any],
        max_steps: int,
        seed: int,
        device: torch.device,
        progress: ProgressListener | None,
        logger: MetricLogger | None = None,
    ) -> None:
        self.clock = (time.perf_counter(), time.process_time())
        self.log = RunLog(logger)
        self.objective, self.seed, self.progress = objective, seed, progress
        self.max_steps = max_steps
        design = made_space(space, data.counts(), objective)
        self.space = design.to(device)
        self.start = self._frozen()
        splits, held = split(data, validation, **settings, seed=seed, device=device)
        self.folds = [_Fold(s.problem, s.validation, s.problem.zeros()) for s in splits]
        self.effective_size = objective.effective_size(held)
        self.history: list[UpperRecord] = []
        self.path: list[PathPoint] = []
        self.shape = (data.num_groups or 1, data.num_classes)
        self.outcomes: Outcomes = {}
        self.best: tuple[float, Tensor] | None = None
        self.lower = {"newton_steps": 0, "products": 0, "largest_relative_gradient": 0.0}
        self.record = {
            "head": {
                **settings,
                "max_steps": max_steps,
                "gradient_tolerance": GRADIENT_TOLERANCE,
                "system_tolerance": SYSTEM_TOLERANCE,
                "upper_tolerance": UPPER_TOLERANCE,
            },
            "objective": repr(objective),
            "examples": len(data),
            "features": self.folds[0].problem.width,
            "class_counts": data.counts().tolist(),
            "validation_counts": held.tolist(),
            "lower": self.lower,
        }

    def run(self) -> None:
        """Descend on the space's free parameters."""
        self._remember(0)
        start = parameters_to_vector(self.space.parameters()).detach().double()
        found = descend(
            self._evaluate,
            start,
            max_evaluations=self.max_steps,
            tolerance=UPPER_TOLERANCE,
            first_step=FIRST_STEP,
            max_step=MAX_STEP,
        )
        self.record["stopped"] = found.reason
        if len(self.folds) > 1:
            self._try_candidates()

    def result(self, status: str) -> SearchResult:
        """The loss at the lowest value so far, with everything that led to it."""
        losses = self._losses()
        held = [fold.held for fold in self.folds]
        cells = [
            b.target if b.groups is None else b.groups * self.shape[1] + b.target for b in held
        ]
        candidates, choice = choose(
            losses, self.outcomes, cells, self.shape, self.objective, self.seed
        )
        start, cpu = self.clock
        return SearchResult(
            loss=losses[choice],
            start=self.start,
            history=self.history,
            path=self.path,
            design={
                "space": type(self.space).__name__,
                "learns": list(self.space.learns),
                "priors": {name: list(prior) for name, prior in self.space.priors().items()},
                **self.space.values(),
            },
            settings=self.record,
            seed=self.seed,
            seconds={"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu},
            status=status,
            candidates=candidates,
            choice=choice,
            training_runs=float(len(self.folds) * len(self.history))
            + sum(len(runs) for runs in self.outcomes.values()),
        )

    def _losses(self) -> dict[str, ParametricCrossEntropy]:
        """The candidates of the final choice; moves the space to the best position seen."""
        if self.best is not None:
            self._move(self.best[1])
        return {
            "designed": self._frozen(),
            "start": self.start,
            "cross_entropy": ParametricCrossEntropy.cross_entropy(),
        }

    def _try_candidates(self) -> None:
        """What the head of each candidate predicts of the held-out examples, fold by fold."""
        losses = self._losses()
        self.outcomes = {name: [] for name in losses}
        device = next(self.space.parameters()).device
        for fold in self.folds:
            for name, loss in losses.items():
                rows = (None if p is None else p.to(device) for p in loss.parameters_of_loss)
                fold.problem.set_loss(LossParameters(*rows))
                lower = minimise(
                    fold.problem,
                    fold.weights,
                    tolerance=GRADIENT_TOLERANCE,
                    reference=fold.reference,
                )
                parts = _parts(fold.held.inputs)
                found = torch.cat([linear(part, lower.weights).argmax(dim=1) for part in parts])
                self.outcomes[name].append(found.cpu())
                fold.problem.release()
                if self.progress:
                    done = sum(len(runs) for runs in self.outcomes.values())
                    self.progress(Progress("choose", done, len(losses) * len(self.folds)))

    def _evaluate(self, position: Tensor) -> tuple[float, Tensor]:
        """Value of the upper level and its gradient, with everything solved anew at `position`."""
        self._move(position)
        free: list[Tensor] = list(self.space.parameters())
        with torch.enable_grad():
            design = self.space()
            penalty = prior_strength(self.effective_size) * self.space.penalty()
            pulls = [torch.zeros_like(p) for p in free]
            if penalty.requires_grad:
                pulls = torch.autograd.grad(penalty, free, materialize_grads=True)
        results = [self._fold(fold, design, free) for fold in self.folds]
        gradients = [
            pull + sum(r.gradients[i] for r in results) / len(results)
            for i, pull in enumerate(pulls)
        ]
        gradient = parameters_to_vector(gradients).double()
        value = float(np.mean([r.objective for r in results])) + float(penalty.detach())
        self._note(results, float(gradient.norm()))
        if not (np.isfinite(value) and bool(torch.isfinite(gradient).all())):
            raise TrainingDiverged(
                f"The upper level is not finite (objective {value:g}) after {len(self.history)} "
                "evaluations: the logits have become too large. Raise weight_decay.",
                step=len(self.history),
            )
        if self.best is None or value < self.best[0]:
            self.best = (value, position)
        return value, gradient

    def _fold(self, fold: _Fold, design: LossParameters, free: list[Tensor]) -> _FoldResult:
        """Lower level, objective and hypergradient of one fold."""
        problem = fold.problem
        problem.set_loss(design)
        if fold.preconditioner is None:
            fold.reference = float(problem.evaluate(fold.weights)[1].norm())
        lower = minimise(
            problem,
            fold.weights,
            tolerance=GRADIENT_TOLERANCE,
            reference=fold.reference,
            preconditioner=fold.preconditioner,
        )
        fold.weights, fold.preconditioner = lower.weights, lower.preconditioner
        held = fold.held
        given = {"groups": held.groups, "sample_weight": held.sample_weight}
        logits = torch.cat([linear(part, fold.weights) for part in _parts(held.inputs)])
        leaf = logits.requires_grad_()
        with torch.enable_grad():
            value = self.objective(leaf, held.target, **given)
            by_logits = torch.autograd.grad(value, leaf)[0]
        b = torch.zeros_like(fold.weights, dtype=torch.float64)
        for part, g in zip(_parts(held.inputs), _parts(by_logits), strict=True):
            accumulate(b, g, part)
        solved = conjugate_gradients(
            problem,
            fold.preconditioner,
            b,
            tolerance=SYSTEM_TOLERANCE,
            iterations=SYSTEM_ITERATIONS,
            start=fold.direction,
            verify=True,
        )
        fold.direction = solved.direction
        mixed = problem.mixed(solved.direction, design, free)
        problem.release()
        hard = self.objective.hard(logits.detach(), held.target, **given)
        return _FoldResult([-g for g in mixed], float(value.detach()), hard, lower, solved)

    def _note(self, results: list[_FoldResult], norm: float) -> None:
        done = len(self.history) + 1
        for r in results:
            self.lower["newton_steps"] += r.lower.steps
            self.lower["products"] += r.lower.products
            worst = max(self.lower["largest_relative_gradient"], r.lower.residual)
            self.lower["largest_relative_gradient"] = worst
        self.history.append(
            UpperRecord(
                step=done,
                objective=float(np.mean([r.objective for r in results])),
                hard_objective=float(np.mean([r.hard for r in results])),
                training_loss=float(np.mean([r.lower.loss for r in results])),
                norm=norm,
                residual=max(r.solved.residual for r in results),
                iterations=sum(r.solved.iterations for r in results),
                reason=results[0].solved.reason,
                skipped=False,
            )
        )
        self._remember(done)
        self.log.upper_step(self.history[-1], self.space().detach())
        if self.progress:
            hard = self.history[-1].hard_objective
            self.progress(Progress("search", done, self.max_steps, hard))

    def _remember(self, done: int) -> None:
        self.path = extended(self.path, done, self.space().detach())

    def _move(self, position: Tensor) -> None:
        like = next(self.space.parameters())
        vector_to_parameters(position.to(like), self.space.parameters())

    def _frozen(self) -> ParametricCrossEntropy:
        return ParametricCrossEntropy(**self.space().detach()._asdict()).cpu()


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(ROWS)


def _device(name: str) -> torch.device:
    """As for any run, but never MPS, which has no float64 to hold residuals in."""
    device = make_fabric(name).device
    if device.type != "mps":
        return device
    if name == "auto":
        return torch.device("cpu")
    raise InputError('A head needs float64, which MPS lacks. Give device="cpu".')
