"""What `autobalance compare` compares: published losses, tuned ones, and designed ones."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autobalance import InputError
from autobalance.augment import AugmentChoice, describe_augmentation
from autobalance.bilevel import (
    DEFAULT_ARMS,
    Arm,
    FixedLoss,
    ModelFactory,
    Retraining,
    SearchResult,
    SearchSpec,
    predict_logits,
    race,
    retrain,
    search,
    search_and_train,
    splits_of,
    with_arm,
)
from autobalance.data import ArrayData
from autobalance.functional import unwrap
from autobalance.heads import extract_features, retrain_head, search_head
from autobalance.hypergrad import Neumann
from autobalance.losses import (
    COSINE_SCALE,
    FocalLoss,
    GroupDROLoss,
    LDAMLoss,
    ParametricCrossEntropy,
    last_linear,
    new_layer_like,
    with_normalized_head,
)
from autobalance.objectives import BalancedError, CrossEntropyRisk, Objective
from autobalance.records import Precision, Recipe, SearchSettings
from autobalance.spaces import (
    AttributeSpace,
    ClassSpace,
    ClusterSpace,
    DesignSpace,
    HierarchicalSpace,
    SpaceFactory,
    TunableCrossEntropy,
    build_space,
    class_attributes,
)
from autobalance_bench.augmentations import KorniaAugmentation, ResizedCrop, StandardAugmentation
from autobalance_bench.comparison.ensembles import ENSEMBLES, fit_on_dataset
from autobalance_bench.comparison.trees import BALANCED_WEIGHTS, FOLDS, SMALL_TREES, fit_trees

Kind = Literal["published", "tuned", "ours"]


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How networks are executed: options that make them faster on a GPU.

    Attributes
    ----------
    precision : {"32-true", "bf16-mixed"}
        Same as in `search`.
    channels_last : bool
        Whether convolutions keep their weights and activations in the channels-last layout.
    compiled : bool
        Whether networks train through `torch.compile`. Upper steps and predictions do not use it.
    """

    precision: Precision = "32-true"
    channels_last: bool = False
    compiled: bool = False

    def apply(self, network: ModelFactory) -> ModelFactory:
        """Return a factory whose networks have these options."""
        if not (self.channels_last or self.compiled):
            return network

        def build() -> nn.Module:
            model = network()
            if self.channels_last:
                model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return torch.compile(model) if self.compiled else model  # type: ignore[return-value]

        return build


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method is given: the same for all of them on one dataset and seed.

    Attributes
    ----------
    network : callable
        Returns a new network.
    data : ArrayData
        All training data. What a method holds out for validation it takes from here.
    objective : Objective
        What methods that design or tune do it for.
    recipe, settings, seed, device
        As for `search`.
    tuning_runs : int
        Training runs that a tuned method spends before it retrains.
    augment : nn.Module, optional
        What augments the training batches of every method that has no augmentation of its own.
    validation : ArrayData, optional
        A given validation set, in place of what methods hold out of `data`.
    execution : ExecutionOptions
        How networks are executed.
    checkpoints : Path, optional
        A folder for the state of each training run, in their order; a task that is run again goes on from
        there.
    """

    network: ModelFactory
    data: ArrayData
    objective: Objective = field(default_factory=BalancedError)
    recipe: Recipe = field(default_factory=Recipe)
    settings: SearchSettings = field(default_factory=SearchSettings)
    seed: int = 0
    device: str = "cpu"
    tuning_runs: int = 8
    augment: nn.Module | None = None
    validation: ArrayData | None = None
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    checkpoints: Path | None = None
    _begun: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def class_counts(self) -> np.ndarray:
        """Training examples per class, shape ``(k,)``."""
        return np.atleast_2d(self.data.counts()).sum(axis=0)

    def train(
        self, loss: FixedLoss | SearchResult, data: ArrayData | None = None, **options: Any
    ) -> nn.Module:
        """A network trained with a loss under the recipe, on all data or on these.

        Published losses start as published: the recipe's `absorb` is for designed ones.
        """
        recipe = replace(self.recipe, absorb=0.0)
        common = {
            "recipe": recipe,
            "seed": self.seed,
            "augment": self.augment,
            **self.where(),
        }
        network = self.execution.apply(options.pop("network", self.network))
        return unwrap(retrain(network, data or self.data, loss, **{**common, **options}))

    def where(self) -> dict[str, Any]:
        """Options that `search` and `retrain` share: for the next of this task's training runs."""
        run = next(self._begun)
        return {
            "device": self.device,
            "precision": self.execution.precision,
            "checkpoint": None
            if self.checkpoints is None
            else self.checkpoints / f"{run}.checkpoint",
        }

    def split(self) -> tuple[ArrayData, ArrayData]:
        """What a search with one fold and this seed trains on, and what it holds out."""
        one_fold = replace(self.settings, folds=1)
        [split] = splits_of(self.data, self.validation, one_fold, self.seed)
        return split


@dataclass(frozen=True)
class Trained:
    """What a method gives: a network, what it cost in training runs, and what it chose."""

    model: nn.Module
    training_runs: float = 1.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to train a network.

    Attributes
    ----------
    title : str
        For tables.
    kind : {"published", "tuned", "ours"}
        Variants of ours are not rivals of each other.
    run : callable
        From a `Task` to what it trained.
    uses_objective, uses_settings, uses_split : bool
        Whether the result depends on the objective, on the search settings, and of these on
        `validation_fraction` alone.
    needs : str, optional
        A package that it cannot run without and that an extra installs.
    """

    title: str
    kind: Kind
    run: Callable[[Task], Trained]
    uses_objective: bool = False
    uses_settings: bool = False
    uses_split: bool = False
    needs: Literal["optuna", "kornia", "lightgbm", "imblearn", "imbens"] | None = None


def augmentation_of(record: Mapping[str, Any] | None) -> nn.Module | None:
    """The augmentation that a configuration's `augment` describes; None for none.

    Raises
    ------
    InputError
        If an option is out of range, or what it needs is not installed.
    """
    if record is None:
        return None
    options = {key: value for key, value in record.items() if key != "name"}
    if record["name"] == "standard":
        return StandardAugmentation(**options)
    if record["name"] == "resized_crop":
        return ResizedCrop(**options)
    return KorniaAugmentation(record["name"], **options)


# One training run -----------------------------------------------------------------------------


def _with(make: Callable[[np.ndarray], FixedLoss]) -> Callable[[Task], Trained]:
    """One run with a loss made from the class counts."""
    return lambda task: Trained(task.train(make(task.class_counts)))


def _post_hoc(task: Task) -> Trained:
    """Cross-entropy, and log pi taken off the logits at prediction (Menon et al., 2021, eq. 9)."""
    model = task.train(ParametricCrossEntropy.cross_entropy())
    return Trained(nn.Sequential(model, PriorCorrection(task.class_counts)).eval())


class PriorCorrection(nn.Module):
    """f - tau log pi: post-hoc logit adjustment.

    Parameters
    ----------
    counts : array-like
        Training examples per class, shape ``(k,)``.
    tau : float
        Strength.
    """

    log_prior: Tensor

    def __init__(self, counts: Any, tau: float = 1.0) -> None:
        super().__init__()
        shares = np.asarray(counts, dtype=np.float64) / np.sum(counts)
        self.register_buffer("log_prior", torch.tensor(tau * np.log(shares)).float())

    def forward(self, logits: Tensor) -> Tensor:
        return logits - self.log_prior


def _ldam_drw(task: Task) -> Trained:
    """LDAM with deferred re-weighting, on cosine logits as published (Cao et al., 2019)."""
    loss = LDAMLoss.deferred(task.class_counts)
    return Trained(task.train(loss, network=lambda: with_normalized_head(task.network())))


def _balanced_sampling(task: Task) -> Trained:
    return Trained(task.train(ParametricCrossEntropy.cross_entropy(), sampling="balanced"))


def _head_retraining(task: Task) -> Trained:
    """Decoupled training, cRT: a new last layer on frozen features (Kang et al., ICLR 2020).

    The network is trained with cross-entropy; its last linear layer is drawn anew and trained with
    class-balanced sampling on the features, in evaluation mode, under the same recipe.
    """
    model = task.train(ParametricCrossEntropy.cross_entropy())
    name, old = last_linear(model)
    if not name:  # there is no layer before it
        features = task.data.in_memory().flatten(1)
    else:
        model.set_submodule(name, nn.Identity())
        features = extract_features(model, task.data.inputs, device=task.device)
    head = task.train(
        ParametricCrossEntropy.cross_entropy(),
        replace(task.data, inputs=features),
        network=lambda: new_layer_like(old, old.out_features),
        sampling="balanced",
        augment=None,  # these are features
    )
    if not name:
        return Trained(head)
    model.set_submodule(name, head)
    return Trained(model.eval())


def _group_dro(task: Task) -> Trained:
    """Over pairs of class and group as published, and over the classes where there are no groups."""
    if task.data.num_groups:
        cells = task.data.num_groups * task.data.num_classes
        return Trained(task.train(GroupDROLoss(cells, over="class_and_group")))
    return Trained(task.train(GroupDROLoss(task.data.num_classes, over="class")))


def _head(make: Callable[[np.ndarray], ParametricCrossEntropy]) -> Callable[[Task], Trained]:
    """The exact minimum of a loss over linear heads on the inputs, which should be features."""
    return lambda task: Trained(_on_features(task, make(task.class_counts)))


def _on_features(task: Task, loss: ParametricCrossEntropy) -> nn.Module:
    if task.augment is not None:
        raise InputError("Exact heads see each feature once, without augmentation. Leave it out.")
    head = retrain_head(task.data, loss, device=task.device)
    return nn.Sequential(nn.Flatten(), head).eval()


def _designed_head(task: Task) -> Trained:
    """An exact search; of the settings `validation_fraction` and `folds` apply."""
    result = search_head(
        task.data,
        validation=task.validation,
        objective=task.objective,
        folds=task.settings.folds,
        validation_fraction=task.settings.validation_fraction,
        seed=task.seed,
        device=task.device,
    )
    details = {"design": result.design, "choice": result.choice, "loss": result.loss.to_dict()}
    return Trained(_on_features(task, result.loss), 1.0 + result.training_runs, details)


# Tuned on a validation split ------------------------------------------------------------------

Ranges = Mapping[str, tuple[float, float]]


def _optuna() -> Any:
    """Optuna, which is optional, told to be quiet."""
    try:
        import optuna
    except ImportError:
        raise InputError("Tuned methods need Optuna. Install it: pip install optuna.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _tuned(
    make: Callable[..., ParametricCrossEntropy], ranges: Ranges
) -> Callable[[Task], Trained]:
    """Choose a loss's hyperparameters on a validation split by Optuna, then train on all data.

    The split is the one that a search with the same seed takes. A single hyperparameter is tried
    on a grid over its range, several by Optuna's TPE.
    """

    def run(task: Task) -> Trained:
        optuna = _optuna()
        runs = task.tuning_runs
        if len(ranges) == 1:
            [(name, (low, high))] = ranges.items()
            grid = np.linspace(low, high, runs).tolist()
            sampler: Any = optuna.samplers.GridSampler({name: grid}, seed=task.seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=task.seed, n_startup_trials=runs // 2)
        split, validation = task.split()
        counts = np.atleast_2d(split.counts()).sum(axis=0)

        def error(trial: Any) -> float:
            chosen = {n: trial.suggest_float(n, *bounds) for n, bounds in ranges.items()}
            model = task.train(make(counts, **chosen), split)
            logits = predict_logits(model, validation.inputs)
            return task.objective.hard(logits, validation.target, groups=validation.groups)

        study = optuna.create_study(sampler=sampler)
        study.optimize(error, n_trials=runs)
        loss = make(task.class_counts, **study.best_params)
        details = {
            "chosen": study.best_params,
            "tried": [[*t.params.values(), t.value] for t in study.trials],
        }
        return Trained(task.train(loss), 1.0 + runs, details)

    return run


# Designed -------------------------------------------------------------------------------------


def space_without_delta(objective: Objective) -> SpaceFactory:
    """The default space without multiplicative adjustments, as in version 0.1."""

    def build(counts: np.ndarray) -> DesignSpace:
        return build_space(None, counts, objective, gamma=None)

    return build


def _designed(
    space: Callable[[np.ndarray], DesignSpace] | None = None,
    augment: AugmentChoice = None,
    arms: str | None = None,
    delta: bool = False,
    retraining: Retraining = "anew",
    **changes: Any,
) -> Callable[[Task], Trained]:
    """Search and retrain with the task's settings, but for these changes.

    Without a space of its own `delta` says whether it is learned; it was not in the default of version 0.1.
    """

    def run(task: Task) -> Trained:
        own = space
        if own is None and not delta:
            own = space_without_delta(task.objective)
        settings = replace(task.settings, **changes)
        return _search_and_retrain(
            task,
            task.objective,
            settings,
            task.recipe,
            space=own,
            augment=augment or task.augment,
            arms=arms,
            retraining=retraining,
        )

    return run


def _search_and_retrain(
    task: Task,
    objective: Objective,
    settings: SearchSettings,
    recipe: Recipe,
    *,
    retraining: Retraining = "anew",
    **options: Any,
) -> Trained:
    network: nn.Module | None = None
    with warnings.catch_warnings():
        # in the details, not between the lines of a comparison
        warnings.filterwarnings("ignore", "At the end of the search", UserWarning)
        given = {
            "validation": task.validation,
            "objective": objective,
            "recipe": recipe,
            "settings": settings,
            "seed": task.seed,
            **task.where(),
            **options,
        }
        factory = task.execution.apply(task.network)
        if retraining == "continue":
            network, result = search_and_train(factory, task.data, **given)
        else:
            result = search(factory, task.data, **given)
    details = {
        "design": result.design,
        "choice": result.choice,
        "collapsed": result.collapsed,
        "loss": result.loss.to_dict(),
    }
    if result.augment is not None:
        details["augment"] = describe_augmentation(result.augment)
    if result.arm is not None:
        details["arm"] = result.arm.name
        details["race"] = [vars(record) for record in result.race]
    if network is not None:
        return Trained(unwrap(network), result.training_runs, details)
    model = task.train(result, recipe=recipe, augment=result.augment)
    return Trained(model, 1.0 + result.training_runs, details)


PUBLISHED = SearchSettings(
    optimizer="sgd",
    lr=0.01,
    every=20,
    warmup=0.4,
    training_batches=10,
    validation_batch_size=1280,
    average=1e-6,  # the last position, not a mean
)
"""The upper level of the released configuration for CIFAR10-LT."""
PUBLISHED_IN_SPIRIT = SearchSettings(warmup=0.4)
"""The same objective and space under our schedule, whose runs are some fifty times shorter."""


def published_space(
    counts: np.ndarray, *, tau: float = 0.0, learn: tuple[str, ...] = ("additive", "multiplicative")
) -> DesignSpace:
    """Free l and delta = sigmoid(Delta) per cluster of 1, 10, 20 or 40 classes (paper, section 3)."""
    classes = counts.shape[-1]
    size = next(s for most, s in ((99, 1), (999, 10), (8141, 20), (np.inf, 40)) if classes <= most)
    options: dict[str, Any] = {"tau": tau, "sigmoid": True, "learn": learn}
    if size == 1 or counts.ndim == 2:
        return ClassSpace(counts, **options)
    return ClusterSpace(counts, size=size, **options)


def _published(settings: SearchSettings, hessian: bool, **space: Any) -> Callable[[Task], Trained]:
    """The paper's procedure: cross-entropy balanced over the classes on validation, Neumann."""

    def run(task: Task) -> Trained:
        return _search_and_retrain(
            task,
            BalancedError(surrogate=CrossEntropyRisk()),
            replace(settings, validation_fraction=task.settings.validation_fraction),
            replace(task.recipe, absorb=0.0),
            space=lambda counts: published_space(counts, **space),
            augment=task.augment,
            solver=Neumann(curvature="hessian" if hessian else "gauss_newton", damping=0.0),
        )

    return run


def _start_alone(task: Task) -> Trained:
    """What a search would begin with, trained without one."""
    goal = task.objective
    space = space_without_delta(goal)(task.data.counts())
    return Trained(task.train(TunableCrossEntropy(space).frozen(), recipe=task.recipe))


def _raced(task: Task) -> Trained:
    """The arms of the designed loss, raced with the loss that a search starts from, and no search."""
    spec = SearchSpec(
        model_factory=task.execution.apply(task.network),
        data=task.data,
        validation=task.validation,
        objective=task.objective,
        recipe=task.recipe,
        settings=replace(task.settings, folds=1),
        seed=task.seed,
        **task.where(),
    )
    arm, records = race(spec, DEFAULT_ARMS)
    own = with_arm(spec, arm)
    loss = TunableCrossEntropy(own.build_space(task.data)).frozen()
    model = task.train(loss, network=own.model_factory, recipe=own.recipe)
    steps = sum(record.steps for record in records)
    runs = 1.0 + steps / task.recipe.steps(len(task.data))
    return Trained(model, runs, {"arm": arm.name, "race": [vars(record) for record in records]})


class MeanOfLogProbabilities(nn.Module):
    """The mean of several networks' log-probabilities: from inputs to scores ``(n, k)``."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean over the networks."""
        return torch.stack([net(inputs).log_softmax(dim=1) for net in self.networks]).mean(dim=0)


def _averaged(task: Task, make: Callable[[np.ndarray], FixedLoss], post_hoc: bool) -> Trained:
    """Two networks of different seeds with one loss, their log-probabilities averaged."""
    networks = [task.train(make(task.class_counts), seed=task.seed + 1000 * i) for i in range(2)]
    model: nn.Module = MeanOfLogProbabilities(networks)
    if post_hoc:
        model = nn.Sequential(model, PriorCorrection(task.class_counts))
    return Trained(model.eval(), 2.0)


def _tuned_with_arms(task: Task) -> Trained:
    """Logit adjustment whose tau, weight decay and head Optuna chooses in one run more than usual."""
    optuna = _optuna()
    split, validation = task.split()

    def settings(chosen: Mapping[str, Any]) -> dict[str, Any]:
        arm = Arm(name="tried", cosine_scale=COSINE_SCALE if chosen["cosine"] else None)
        recipe = replace(task.recipe, absorb=0.0, weight_decay=chosen["weight_decay"])
        return {"network": arm.network(task.network), "recipe": recipe}

    def error(trial: Any) -> float:
        chosen = {
            "tau": trial.suggest_float("tau", *TAU),
            "weight_decay": trial.suggest_float("weight_decay", 1e-2, 3.0, log=True),
            "cosine": trial.suggest_categorical("cosine", [False, True]),
        }
        counts = np.atleast_2d(split.counts()).sum(axis=0)
        loss = ParametricCrossEntropy.logit_adjusted(counts, tau=chosen["tau"])
        model = task.train(loss, split, **settings(chosen))
        logits = predict_logits(model, validation.inputs)
        return task.objective.hard(logits, validation.target, groups=validation.groups)

    runs = task.tuning_runs + 1
    sampler = optuna.samplers.TPESampler(seed=task.seed, n_startup_trials=runs // 2)
    study = optuna.create_study(sampler=sampler)
    study.optimize(error, n_trials=runs)
    loss = ParametricCrossEntropy.logit_adjusted(task.class_counts, tau=study.best_params["tau"])
    model = task.train(loss, **settings(study.best_params))
    return Trained(model, 1.0 + runs, {"chosen": study.best_params})


def _with_attributes(task: Task) -> Trained:
    """A search over class attributes, which logit adjustment's network tells in one run more."""
    split, validation = task.split()
    counts = np.atleast_2d(split.counts()).sum(axis=0)
    model = task.train(ParametricCrossEntropy.logit_adjusted(counts), split)
    logits = predict_logits(model, validation.inputs)
    known = class_attributes(logits, validation.target, counts)
    found = _designed(lambda counts: AttributeSpace(counts, known))(task)
    return replace(found, training_runs=found.training_runs + 1.0)


def _tau_alone(counts: np.ndarray) -> DesignSpace:
    return HierarchicalSpace(counts, rho=0.0, sigma_rho=None, deviations=False)


# Trees ----------------------------------------------------------------------------------------


def _trees(title: str, **options: Any) -> tuple[Method, Method]:
    """LightGBM with these options, as it is and with designed decisions."""

    def fit(task: Task, objective: Objective | None) -> nn.Module:
        _refuse_augmentation(task)
        return fit_trees(task.data, task.seed, objective, **options)

    plain = Method(title, "published", lambda task: Trained(fit(task, None)), needs="lightgbm")
    designed = Method(
        f"{title}, designed decisions",
        "ours",
        lambda task: Trained(fit(task, task.objective), 1.0 + FOLDS),
        uses_objective=True,
        needs="lightgbm",
    )
    return plain, designed


def _ensemble(method: str) -> Method:
    """An ensemble of trees on balanced samples, as its library sets it up."""

    def fit(task: Task) -> Trained:
        _refuse_augmentation(task)
        return Trained(fit_on_dataset(method, task.data, task.seed))

    ensemble = ENSEMBLES[method]
    return Method(ensemble.title, "published", fit, needs=ensemble.package)


def _refuse_augmentation(task: Task) -> None:
    if task.augment is not None:
        raise InputError("Trees see each example once, without augmentation. Leave it out.")


_PLAIN_TREES = _trees("LightGBM")
_WEIGHTED_TREES = _trees("LightGBM, balanced weights", **BALANCED_WEIGHTS)
_SMALL_TREES = _trees("LightGBM, small trees", **SMALL_TREES)


# All of them ----------------------------------------------------------------------------------

_cross_entropy = ParametricCrossEntropy.cross_entropy
TAU, GAMMA = (0.25, 2.0), (0.05, 0.4)

METHODS: dict[str, Method] = {
    "cross_entropy": Method("Cross-entropy", "published", _with(lambda counts: _cross_entropy())),
    "class_weighted": Method(
        "Class weights", "published", _with(ParametricCrossEntropy.class_weighted)
    ),
    "class_balanced": Method(
        "Effective number", "published", _with(ParametricCrossEntropy.class_balanced)
    ),
    "class_balanced_focal": Method(
        "Effective number, focal", "published", _with(FocalLoss.class_balanced)
    ),
    "ldam_drw": Method("LDAM-DRW", "published", _ldam_drw),
    "balanced_softmax": Method(
        "Balanced softmax", "published", _with(ParametricCrossEntropy.balanced_softmax)
    ),
    "logit_adjustment": Method(
        "Logit adjustment", "published", _with(ParametricCrossEntropy.logit_adjusted)
    ),
    "logit_adjustment_post_hoc": Method("Logit adjustment, post hoc", "published", _post_hoc),
    "cdt": Method("CDT", "published", _with(ParametricCrossEntropy.class_dependent_temperature)),
    "vs": Method("VS", "published", _with(ParametricCrossEntropy.vector_scaling)),
    "balanced_sampling": Method("Class-balanced sampling", "published", _balanced_sampling),
    "head_retraining": Method("cRT", "published", _head_retraining),
    "group_dro": Method("Group DRO", "published", _group_dro),
    "cross_entropy_head": Method(
        "Cross-entropy, exact head", "published", _head(lambda counts: _cross_entropy())
    ),
    "logit_adjustment_head": Method(
        "Logit adjustment, exact head",
        "published",
        _head(ParametricCrossEntropy.logit_adjusted),
    ),
    "logit_adjustment_tuned": Method(
        "Logit adjustment, tuned",
        "tuned",
        _tuned(ParametricCrossEntropy.logit_adjusted, {"tau": TAU}),
        uses_objective=True,
        needs="optuna",
    ),
    "cdt_tuned": Method(
        "CDT, tuned",
        "tuned",
        _tuned(ParametricCrossEntropy.class_dependent_temperature, {"gamma": GAMMA}),
        uses_objective=True,
        needs="optuna",
    ),
    "vs_tuned": Method(
        "VS, tuned",
        "tuned",
        _tuned(ParametricCrossEntropy.vector_scaling, {"tau": TAU, "gamma": (0.0, 0.4)}),
        uses_objective=True,
        needs="optuna",
    ),
    "autobalance_published": Method(
        "AutoBalance, published",
        "published",
        _published(PUBLISHED, hessian=True),
        uses_split=True,
    ),
    "autobalance_published_la": Method(
        "AutoBalance, published, LA start",
        "published",
        _published(PUBLISHED, True, tau=1.0),
        uses_split=True,
    ),
    "autobalance_short": Method(
        "AutoBalance, in short runs",
        "published",
        _published(PUBLISHED_IN_SPIRIT, hessian=False),
        uses_split=True,
    ),
    "autobalance_short_la": Method(
        "AutoBalance, in short runs, LA start",
        "published",
        _published(PUBLISHED_IN_SPIRIT, hessian=False, tau=1.0),
        uses_split=True,
    ),
    "autobalance_short_additive": Method(
        "AutoBalance, in short runs, l alone",
        "published",
        _published(PUBLISHED_IN_SPIRIT, hessian=False, learn=("additive",)),
        uses_split=True,
    ),
    "autobalance_short_multiplicative": Method(
        "AutoBalance, in short runs, Delta alone",
        "published",
        _published(PUBLISHED_IN_SPIRIT, hessian=False, learn=("multiplicative",)),
        uses_split=True,
    ),
    "logit_adjustment_tuned_arms": Method(
        "Logit adjustment, tuned with decay and head",
        "tuned",
        _tuned_with_arms,
        uses_objective=True,
        needs="optuna",
    ),
    "logit_adjustment_averaged": Method(
        "Logit adjustment, two runs averaged",
        "published",
        lambda task: _averaged(task, ParametricCrossEntropy.logit_adjusted, post_hoc=False),
    ),
    "logit_adjustment_post_hoc_averaged": Method(
        "Logit adjustment, post hoc, two runs averaged",
        "published",
        lambda task: _averaged(task, lambda counts: _cross_entropy(), post_hoc=True),
    ),
    "logit_adjustment_raced": Method(
        "Logit adjustment, raced", "ours", _raced, uses_objective=True, uses_settings=True
    ),
    "autobalance": Method(
        "autobalance",
        "ours",
        _designed(arms="default", delta=True),
        uses_objective=True,
        uses_settings=True,
    ),
    "autobalance_raced_one_run": Method(
        "autobalance, race and one run",
        "ours",
        _designed(arms="default", delta=True, retraining="continue"),
        uses_objective=True,
        uses_settings=True,
    ),
    "autobalance_one_run": Method(
        "autobalance, one run",
        "ours",
        _designed(delta=True, retraining="continue"),
        uses_objective=True,
        uses_settings=True,
    ),
    "autobalance_two_runs": Method(
        "autobalance, no race",
        "ours",
        _designed(delta=True),
        uses_objective=True,
        uses_settings=True,
    ),
    "autobalance_plain": Method(
        "autobalance, neither race nor delta",
        "ours",
        _designed(),
        uses_objective=True,
        uses_settings=True,
    ),
    "autobalance_start": Method(
        "autobalance, its start", "ours", _start_alone, uses_objective=True
    ),
    "autobalance_folds": Method(
        "autobalance, 3 folds", "ours", _designed(folds=3, choose=False), True, True
    ),
    "autobalance_standard": Method(
        "autobalance, crop and flip",
        "ours",
        _designed(augment=lambda inputs, counts: StandardAugmentation()),
        True,
        True,
    ),
    "autobalance_trivial": Method(
        "autobalance, TrivialAugment",
        "ours",
        _designed(augment=lambda inputs, counts: KorniaAugmentation("trivial")),
        True,
        True,
        needs="kornia",
    ),
    "autobalance_shared": Method(
        "autobalance, one policy", "ours", _designed(augment="shared"), True, True
    ),
    "autobalance_personalised": Method(
        "autobalance, a policy per class", "ours", _designed(augment="personalised"), True, True
    ),
    "autobalance_head": Method("autobalance, exact head", "ours", _designed_head, True, True),
    "autobalance_attributes": Method(
        "autobalance, class attributes", "ours", _with_attributes, True, True
    ),
    "autobalance_tau": Method("autobalance, tau alone", "ours", _designed(_tau_alone), True, True),
    "lightgbm": _PLAIN_TREES[0],
    "lightgbm_designed": _PLAIN_TREES[1],
    "lightgbm_balanced": _WEIGHTED_TREES[0],
    "lightgbm_balanced_designed": _WEIGHTED_TREES[1],
    "lightgbm_small": _SMALL_TREES[0],
    "lightgbm_small_designed": _SMALL_TREES[1],
    **{method: _ensemble(method) for method in ENSEMBLES},
}
