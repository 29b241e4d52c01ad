"""Search and retraining of a linear head on frozen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autobalance._validation import InputError, instance, positive, whole
from autobalance.bilevel import (
    AS_IT_IS,
    Arm,
    BilevelSearch,
    LoggerAdapter,
    MetricLogger,
    ProgressListener,
    SearchResult,
    SearchSpec,
    Train,
    as_arms,
    check_options,
    make_fabric,
    race,
    with_arm,
)
from autobalance.data import ArrayData, as_data
from autobalance.heads.folds import split, standardise
from autobalance.heads.lower_level import GRADIENT_TOLERANCE, SYSTEM_TOLERANCE, HeadFolds
from autobalance.heads.newton import minimise
from autobalance.heads.upper_level import UPPER_TOLERANCE, QuasiNewtonUpperLevel
from autobalance.losses import ParametricCrossEntropy, check_width
from autobalance.objectives import Objective, as_objective
from autobalance.records import SearchSettings
from autobalance.spaces import SpaceFactory, TunableCrossEntropy, build_space

WEIGHT_DECAY = 3e-3
"""From {1e-5, ..., 3e-1} in steps of half a decade, by the balanced error of the LA head on held-out
training data (`bench/head.py --select`): the best on letters (22.1 %; 23.4 % at 1e-3 and 23.0 %
at 1e-2), and on Fashion-MNIST as good as 1e-2. Both sets have about 2,000 examples; of many more, a
smaller one may serve better.
"""


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
    arms: Sequence[Arm] | str | None = None,
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
    arms : "default" or sequence of Arm, optional
        Weight decays, and starts of delta, to race before the search, as in `search`; by default
        there is no race. "default" races `weight_decay`, a tenth of it, and ten times as much. Each arm
        takes one solution of the lower level. Retrain with the result itself, which has the arm.

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
    validation = None if validation is None else as_data(validation, "validation")
    whole("max_steps", max_steps, least=1)
    spec = SearchSpec(
        data=data,
        validation=validation,
        objective=as_objective(objective),
        space=space,
        settings=SearchSettings(folds=folds, validation_fraction=validation_fraction, every=1),
        seed=seed,
        device=device,
    )
    weight_decay = positive("weight_decay", weight_decay)
    racing = _head_arms(weight_decay) if arms == "default" else as_arms(arms)
    arm, raced = None, []
    if racing:
        arm, raced = race(spec, racing, progress, _train_head(weight_decay))
        spec, weight_decay = with_arm(spec, arm), _decay_of(arm, weight_decay)
    run = build_head_search(spec, weight_decay, max_steps)
    run.arm, run.raced = arm, raced
    log = LoggerAdapter(logger)
    with log.open():
        result = run.complete(progress, log)
    run.settings["stopped"] = run.upper.reason
    return result


def _head_arms(weight_decay: float) -> tuple[Arm, ...]:
    """The arms of a head by default."""
    others = {"weak_decay": 0.1, "strong_decay": 10.0}
    return (
        AS_IT_IS,
        *(Arm(name=n, weight_decay=factor * weight_decay) for n, factor in others.items()),
    )


def _decay_of(arm: Arm | None, weight_decay: float) -> float:
    """The arm's own weight decay, or else the one given."""
    return weight_decay if arm is None or arm.weight_decay is None else arm.weight_decay


def _train_head(weight_decay: float) -> Train:
    """What trains an arm of a head: one solution of the lower level."""

    def train(
        spec: SearchSpec,
        arm: Arm,
        data: ArrayData,
        loss: ParametricCrossEntropy,
        seed: int,
        progress: ProgressListener | None,
    ) -> tuple[nn.Module, int]:
        decay = _decay_of(arm, weight_decay)
        head = retrain_head(data, loss, weight_decay=decay, device=spec.device)
        return nn.Sequential(nn.Flatten(), head), 1

    return train


class HeadSearch(BilevelSearch[HeadFolds, QuasiNewtonUpperLevel]):
    """A search of a head's loss: the driver of every search, with the head's levels."""

    def train_candidates(
        self,
        losses: Mapping[str, ParametricCrossEntropy],
        augments: Mapping[str, nn.Module | None],
        progress: ProgressListener | None,
    ) -> None:
        """Solve every fold's lower level for each loss; heads know no augmentation."""
        self.problem.train_candidates(losses, self.outcomes, progress)


def build_head_search(spec: SearchSpec, weight_decay: float, max_steps: int) -> HeadSearch:
    """A head's search at its start; parameters are those of `search_head`."""
    data, settings, device = spec.data, spec.settings, _device(spec.device)
    loss = TunableCrossEntropy(build_space(spec.space, data.masses(), spec.objective).to(device))
    splits, (held_counts, effective_counts) = split(
        data, spec.validation, settings, weight_decay=weight_decay, seed=spec.seed, device=device
    )
    problem = HeadFolds(splits, loss, spec.objective)
    record = {
        "head": {
            "weight_decay": weight_decay,
            "folds": settings.folds,
            "validation_fraction": settings.validation_fraction,
            "max_steps": max_steps,
            "gradient_tolerance": GRADIENT_TOLERANCE,
            "system_tolerance": SYSTEM_TOLERANCE,
            "upper_tolerance": UPPER_TOLERANCE,
        },
        "objective": spec.objective.to_dict(),
        "examples": len(data),
        "features": splits[0].problem.width,
        "class_counts": data.counts().tolist(),
        "validation_counts": held_counts.tolist(),
        "lower": problem.statistics,
    }
    upper = QuasiNewtonUpperLevel(loss, spec.objective.effective_size(effective_counts))
    return HeadSearch(spec, loss, problem, upper, total=max_steps, settings=record)


def retrain_head(
    data: ArrayData,
    loss: SearchResult | ParametricCrossEntropy,
    *,
    weight_decay: float = WEIGHT_DECAY,
    device: str = "auto",
) -> nn.Linear:
    """Train a linear head to the minimum of the given loss on all of `data`.

    Parameters
    ----------
    data : ArrayData
        All labelled features, training and validation together; as for `search_head`.
    loss : SearchResult or ParametricCrossEntropy
        What `search_head` returned, whose arm decides on the weight decay if it has one; or a loss alone.
        Its mean is taken, whatever its `reduction`.
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
    if isinstance(loss, SearchResult):
        weight_decay, loss = _decay_of(loss.arm, weight_decay), loss.loss
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
    everything = standardise(data, _device(device))
    problem = everything.problem(positive("weight_decay", weight_decay))
    problem.set_loss(loss.parameters_of_loss)
    start = problem.zeros()
    reference = float(problem.evaluate(start)[1].norm())
    minimum = minimise(problem, start, tolerance=GRADIENT_TOLERANCE, reference=reference)
    return everything.scaling.linear(minimum.weights).cpu()


def _device(name: str) -> torch.device:
    """As for any run, but never MPS, which has no float64 to hold residuals in."""
    device = make_fabric(name).device
    if device.type != "mps":
        return device
    if name == "auto":
        return torch.device("cpu")
    raise InputError('A head needs float64, which MPS lacks. Give device="cpu".')
