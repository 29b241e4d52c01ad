"""What the group-sensitive losses are compared with: group-wise losses, and fairlearn's mitigations.

`METHODS` are losses under the task's recipe, for any number of classes; group DRO is a method of
`autobalance_bench.comparison` already. The functions `exponentiated_gradient` and `threshold_optimizer`
are for two classes, 0 and 1, as fairlearn is, and need it installed. Their predictions are
randomised, so they are evaluated by their expected error rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

from autobalance import InputError
from autobalance.bilevel import ModelFactory, predict_logits, retrain, seed_random_state
from autobalance.data import ArrayData, stratified_folds
from autobalance.losses import ParametricCrossEntropy
from autobalance.posthoc import evaluate_probabilities
from autobalance.records import ErrorTable, Recipe
from autobalance.spaces import GroupSpace, TunableCrossEntropy
from autobalance_bench._checks import check_choice, check_fraction, check_int, check_positive
from autobalance_bench.comparison.methods import Method, Task, Trained

if TYPE_CHECKING:
    from fairlearn.reductions import ExponentiatedGradient

Base = Literal["logistic", "boosting", "network"]
EPSILONS = (0.005, 0.01, 0.02, 0.05, 0.1)


# Losses ---------------------------------------------------------------------------------------


def group_weights(counts: np.ndarray) -> np.ndarray:
    """Inverse cell frequencies n / (c n_kg) of the c cells that have examples, shape ``(g, k)``.

    Their mean over the examples is 1. Cells without examples have weight 1, which nothing meets.

    Parameters
    ----------
    counts : ndarray
        Training examples per group and class, shape ``(g, k)``.
    """
    counts = np.asarray(counts, dtype=np.float64)
    cells = np.count_nonzero(counts)
    return np.divide(counts.sum(), cells * counts, out=np.ones(counts.shape), where=counts > 0)


def reweighing_weights(counts: np.ndarray) -> np.ndarray:
    """Weights P(g) P(y) / P(g, y), shape ``(g, k)``: under them group and class are independent.

    The class frequencies stay as they are. Cells without examples have weight 1.

    Parameters
    ----------
    counts : ndarray
        Training examples per group and class, shape ``(g, k)``.

    References
    ----------
    Kamiran and Calders, "Data preprocessing techniques for classification without discrimination",
    Knowledge and Information Systems 33, 2012, section 4.2.
    """
    counts = np.asarray(counts, dtype=np.float64)
    independent = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True)
    joint = counts.sum() * counts
    return np.divide(independent, joint, out=np.ones(counts.shape), where=counts > 0)


def _weighted(
    weights: Callable[[np.ndarray], np.ndarray],
) -> Callable[[Task], Trained]:
    def run(task: Task) -> Trained:
        return Trained(task.train(ParametricCrossEntropy(weight=weights(_counts(task)))))

    return run


def _group_logit_adjustment(task: Task) -> Trained:
    """Logit adjustment within each group, l_kg = log P(k | g)."""
    return Trained(task.train(TunableCrossEntropy(GroupSpace(_counts(task))).frozen()))


METHODS: dict[str, Method] = {
    "group_logit_adjustment": Method(
        "Logit adjustment by group", "published", _group_logit_adjustment
    ),
    "group_weights": Method("Group and class weights", "published", _weighted(group_weights)),
    "reweighing": Method("Reweighing", "published", _weighted(reweighing_weights)),
}


# fairlearn's ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mitigated:
    """A randomised classifier of two classes.

    Attributes
    ----------
    title : str
        For tables; it says so where predictions need groups.
    probabilities : callable
        From an `ArrayData` to the probabilities of predicting each class, shape ``(n, 2)``.
    needs_groups : bool
        Whether predictions need the examples' groups.
    training_runs : float
        What it cost, in training runs of the base learner (for a network under a shortened recipe,
        in runs of the whole recipe).
    details : dict
        How it was found.
    model : torch.nn.Module or None
        The network whose logits it post-processes, where there is one.
    """

    title: str
    probabilities: Callable[[ArrayData], np.ndarray]
    needs_groups: bool
    training_runs: float
    details: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None

    def evaluate(self, data: ArrayData) -> ErrorTable:
        """Expected error rates.

        Raises
        ------
        InputError
            If groups are needed and there are none, or one that training did not have.
        """
        return evaluate_probabilities(self.probabilities(data), data)


def exponentiated_gradient(
    task: Task,
    eps_values: Sequence[float] = EPSILONS,
    *,
    base: Base | BaseEstimator = "network",
    share: float = 0.2,
    max_iter: int = 50,
) -> list[Mitigated]:
    r"""Balanced error under equalised odds by exponentiated gradient reduction, one per bound.

    A game between a base learner on reweighted, relabelled data and multipliers of the constraints
    ``|P(predicted 1 | y, g) - P(predicted 1 | y)| <= eps`` on the training data. Its solution draws
    one of the base learners' classifiers for each prediction, without regard to the group. The
    objective is the balanced error itself: errors of class y cost n / (2 n_y), whatever
    `task.objective`.

    The bound holds on the training data alone. A base learner that fits these without error meets
    any bound, and may treat groups unalike on other data.

    Parameters
    ----------
    task : Task
        Two classes, groups, and inputs of shape ``(n, d)``. Weights of examples are not used.
    eps_values : sequence of float
        Bounds eps in (0, 1). With two groups the training data's DEO is at most 4 eps, but for what
        the game leaves unsolved. As in the paper eps sets the multipliers' bound too, at 1 / eps.
    base : {"logistic", "boosting", "network"} or estimator
        Base learner: scikit-learn's logistic regression or histogram gradient boosting, as they come,
        or the task's network under a shortened recipe, for comparison with losses that train it; or
        any classifier of scikit-learn that takes weights. It is trained some 20 times per bound, and
        far more often where the game takes long.
    share : float
        Epochs and least steps of a network's run, as a share of the recipe's, in (0, 1].
    max_iter : int
        Most rounds of the game, each of which trains several base learners.

    Returns
    -------
    list of Mitigated
        One per eps; `details` has eps, the base, the number of base learners trained ("fits") and
        drawn from ("classifiers"), and the duality gap left ("gap").

    Raises
    ------
    InputError
        If the task has no groups or more than two classes, a value is out of range, or fairlearn
        is not installed.

    References
    ----------
    Agarwal et al., "A Reductions Approach to Fair Classification", ICML 2018, algorithm 1.
    """
    reductions = _fairlearn("reductions")
    _check_binary(task)
    if not isinstance(base, BaseEstimator):
        check_choice("base", base, ("logistic", "boosting", "network"))
    title = base if isinstance(base, str) else type(base).__name__
    eps_values = [check_fraction("eps", eps) for eps in eps_values]
    if check_positive("share", share) > 1.0:
        raise InputError(f"share must lie in (0, 1]; got {share}.")
    check_int("max_iter", max_iter, least=1)
    inputs, target, groups = (
        _array(t) for t in (task.data.in_memory(), task.data.target, _groups(task))
    )
    if inputs.ndim != 2:
        raise InputError(
            f"exponentiated_gradient takes inputs of shape (n, d); got {inputs.shape}. "
            "Flatten them, and the network's first layer with them."
        )
    cost = len(task.data) / (2.0 * task.class_counts)
    found = []
    for eps in eps_values:
        reduction = reductions.ExponentiatedGradient(
            _base_learner(task, base, share),
            reductions.EqualizedOdds(difference_bound=eps),
            objective=reductions.ErrorRate(costs={"fp": float(cost[0]), "fn": float(cost[1])}),
            eps=eps,
            max_iter=max_iter,
        )
        reduction.fit(inputs, target, sensitive_features=groups)
        details = {
            "eps": eps,
            "base": title,
            "fits": reduction.n_oracle_calls_,
            "classifiers": int((reduction.weights_ > 0).sum()),
            "gap": float(reduction.best_gap_),
        }
        found.append(
            Mitigated(
                f"Exponentiated gradient ({title}), eps {eps:g}",
                _Mixture(reduction),
                needs_groups=False,
                training_runs=reduction.n_oracle_calls_ * (share if base == "network" else 1.0),
                details=details,
            )
        )
    return found


def threshold_optimizer(task: Task) -> Mitigated:
    """Thresholds per group that equalise the odds at the least balanced error, on held-out data.

    The network is trained with logit adjustment for the classes on what `settings` leaves for
    training; the (randomised) thresholds of the difference of its logits are found on the rest, as
    on the training data overfitting would hide how groups differ.

    Predictions need the groups, which the losses compared with it do not.

    Parameters
    ----------
    task : Task
        Two classes and groups.

    Raises
    ------
    InputError
        If the task has no groups or more than two classes, a group lacks a class in the data held
        out, or fairlearn is not installed.

    References
    ----------
    Hardt, Price and Srebro, "Equality of Opportunity in Supervised Learning", NeurIPS 2016.
    """
    postprocessing = _fairlearn("postprocessing")
    _check_binary(task)
    with seed_random_state(task.seed):
        generator = torch.Generator().manual_seed(task.seed)
        [(train, held)] = stratified_folds(
            task.data.cells(), task.settings.validation_fraction, 1, generator
        )
    split, validation = task.data.subset(train), task.data.subset(held)
    if (validation.counts() == 0).any():
        raise InputError(
            "threshold_optimizer needs held-out examples of both classes in every group; got "
            f"{validation.counts().tolist()} per group and class. Hold out more, or merge groups."
        )
    counts = np.atleast_2d(split.counts()).sum(axis=0)
    model = task.train(ParametricCrossEntropy.logit_adjusted(counts), split)
    assert validation.groups is not None
    optimizer = postprocessing.ThresholdOptimizer(
        estimator=_Scores(),
        constraints="equalized_odds",
        objective="balanced_accuracy_score",
        prefit=True,
        predict_method="decision_function",
    )
    optimizer.fit(
        _scores(model, validation),
        _array(validation.target),
        sensitive_features=_array(validation.groups),
    )
    return Mitigated(
        "Threshold optimiser (needs groups to predict)",
        _Thresholds(optimizer, model, frozenset(np.unique(_array(validation.groups)).tolist())),
        needs_groups=True,
        training_runs=1.0,
        model=model,
    )


@dataclass(frozen=True)
class _Mixture:
    """Share of the base learners that predict each class."""

    reduction: ExponentiatedGradient

    def __call__(self, data: ArrayData) -> np.ndarray:
        inputs = _array(data.in_memory())
        ones = np.zeros(len(data))
        for index, weight in self.reduction.weights_.items():
            if weight > 0:
                ones += weight * np.asarray(self.reduction.predictors_[index].predict(inputs))
        ones = ones.clip(0.0, 1.0)  # the weights sum to 1 but for rounding
        return np.stack([1.0 - ones, ones], axis=1)


@dataclass(frozen=True)
class _Thresholds:
    """Chance of a score to pass its group's thresholds."""

    optimizer: Any
    model: nn.Module
    known: frozenset[int]

    def __call__(self, data: ArrayData) -> np.ndarray:
        if data.groups is None:
            raise InputError("The thresholds differ by group: give data with groups.")
        groups = _array(data.groups)
        new = sorted(set(groups.tolist()) - self.known)
        if new:
            raise InputError(f"There is no threshold for group {new[0]}, which training lacked.")
        # What `predict` draws from; fairlearn has no public name for it.
        return self.optimizer._pmf_predict(_scores(self.model, data), sensitive_features=groups)


class _Scores(BaseEstimator):
    """Hands scores on, so that thresholds can be found for any network."""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any) -> _Scores:  # scikit-learn takes nothing without it
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return X[:, 0]


class _NetworkEstimator:
    """The task's network with scikit-learn's face, for two classes.

    Parameters
    ----------
    network, recipe, seed, device
        As for `retrain`.
    """

    def __init__(self, network: ModelFactory, recipe: Recipe, seed: int, device: str) -> None:
        self.network, self.recipe, self.seed, self.device = network, recipe, seed, device

    def __sklearn_clone__(self) -> _NetworkEstimator:
        return _NetworkEstimator(self.network, self.recipe, self.seed, self.device)

    def fit(self, X: np.ndarray, y: Any, sample_weight: Any = None) -> _NetworkEstimator:
        weight = None if sample_weight is None else np.array(sample_weight)
        data = ArrayData.of(X, np.array(y), num_classes=2, sample_weight=weight)
        loss = ParametricCrossEntropy.cross_entropy()
        self.model_ = retrain(
            self.network, data, loss, recipe=self.recipe, seed=self.seed, device=self.device
        )
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return predict_logits(self.model_, torch.as_tensor(X)).argmax(dim=1).numpy()


def _base_learner(task: Task, base: Base | BaseEstimator, share: float) -> Any:
    if isinstance(base, BaseEstimator):
        return base
    if base == "logistic":
        return LogisticRegression(max_iter=1000)
    if base == "boosting":
        return HistGradientBoostingClassifier(random_state=task.seed)
    recipe = replace(
        task.recipe,
        epochs=share * task.recipe.epochs,
        min_steps=max(1, round(share * task.recipe.min_steps)),
    )
    return _NetworkEstimator(task.network, recipe, task.seed, task.device)


def _scores(model: nn.Module, data: ArrayData) -> np.ndarray:
    """f_1 - f_0, shape ``(n, 1)``."""
    logits = predict_logits(model, data.inputs).double().numpy()
    return logits[:, 1:] - logits[:, :1]


def _counts(task: Task) -> np.ndarray:
    _groups(task)
    return task.data.counts()


def _groups(task: Task) -> torch.Tensor:
    if task.data.groups is None:
        raise InputError("This method is for data with groups: give them to ArrayData.of(groups=).")
    return task.data.groups


def _check_binary(task: Task) -> None:
    _groups(task)
    if task.data.num_classes != 2:
        raise InputError(
            f"fairlearn's mitigations are for two classes; got {task.data.num_classes}. "
            "The losses of METHODS take any number."
        )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _fairlearn(part: Literal["reductions", "postprocessing"]) -> Any:
    try:
        if part == "reductions":
            from fairlearn import reductions as found
        else:
            from fairlearn import postprocessing as found
    except ImportError:
        raise InputError(
            "This method needs fairlearn. Install it: pip install fairlearn."
        ) from None
    return found
