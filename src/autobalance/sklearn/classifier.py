"""The scikit-learn estimator: fit, predict, and what scikit-learn asks of both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from autobalance._validation import TrainingDiverged, path_of, same_length
from autobalance.augment import AugmentChoice
from autobalance.bilevel import (
    DEFAULT_SOLVER,
    Arm,
    Interrupted,
    MetricLogger,
    ProgressListener,
    Retraining,
    predict_logits,
    search_and_train,
)
from autobalance.calibration import (
    Prior,
    class_masses,
    corrected_probabilities,
    evaluate_logits,
    fit_label_temperature,
    fit_temperature,
    label_probabilities,
)
from autobalance.data import (
    ArrayData,
    MissingGroups,
    TableEncoder,
    concatenated,
    group_names,
    number_groups,
    positions,
)
from autobalance.hypergrad import Solver
from autobalance.losses import ParametricBinaryCrossEntropy
from autobalance.objectives import Objective, as_objective
from autobalance.posthoc import CellDecision, ClassLogits
from autobalance.records import Recipe, SearchSettings, checkpoint_files, label_report
from autobalance.sklearn.trade_offs import TradeOffs
from autobalance.sklearn.training_data import (
    draw_seed,
    held_out_arrays,
    labelled_arrays,
    labelled_rows,
    read_labels,
)
from autobalance.spaces import SpaceFactory


class AutoBalanceClassifier(ClassifierMixin, TradeOffs):
    """Classifier that designs its own training loss for imbalanced or group-sensitive data.

    `fit` races a few ways to train on a train/validation split, searches the loss for the best of them, and
    retrains on all data with what was found, for about three times the cost of plain training.

    Parameters
    ----------
    objective : str or Objective
        What the loss is for: "balanced_error", "worst_class_error", or with groups
        "group_balanced_error", "worst_group_error", "worst_class_and_group_error".
    module : torch.nn.Module or callable, optional
        The network, from inputs to logits ``(n, k)``. A module is copied before each training
        run. A callable returns a new one; it is passed `num_features` and `num_classes` if it has
        parameters of these names. By default a multilayer perceptron for tables.
    recipe : Recipe, optional
        How the network is trained. By default ``Recipe()``, and for tables of many rows, where `module` is
        left out too, `Recipe.for_rows`.
    settings : SearchSettings, optional
        How the loss is searched.
    space : callable, optional
        From the training counts to a `DesignSpace`; by default as in `search`.
    augment : {"personalised", "shared"}, callable or nn.Module, optional
        Augmentation of the training batches, learned with the loss; as in `search`.
    arms : "default", sequence of Arm or None
        Ways to train that are raced before the search, as in `search`; None leaves the network and the
        recipe as they are.
    retrain : {"anew", "continue"}
        Whether a new network is trained on everything with the loss found, or the search's own network
        trains on with what was held out, in one run; see `search_and_train`.
    solver : Solver, optional
        How hypergradients are solved for; by default as in `search`.
    missing_groups : {"refused", "unknown"}
        What a missing value (NaN, None) in `sensitive_features` is: a mistake, or the group of an
        example that is not known. Such examples train the network, under the mean of the groups'
        rows of the loss, and are in no objective.
    encode : bool, optional
        Whether a table becomes scaled numbers and columns for its categories before the network sees
        it. By default dataframes do, and arrays unless `module` is given: your own network gets an
        array as it is.
    device : str
        "auto", "cpu", "cuda", "cuda:1" or "mps".
    random_state : int, RandomState or None
        Decides splits, initial weights, orders and dropout.
    checkpoint : path, optional
        A folder for the state of a running `fit`. A fit that was killed continues from there when
        it is called again with the same data and settings; once done it removes what it kept.
    progress : callable, optional
        Called with an `autobalance.bilevel.lower_level.Progress` now and then.
    logger : MetricLogger, optional
        Told the numbers of search and retraining; as in `search`.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        The labels; of several for each example the names of y's columns, or their numbers from 0.
    groups_ : list or None
        The groups' names, in the order of the loss's rows; where some are unknown, the row after
        them is for those. None where training data has no groups.
    loss_ : ParametricCrossEntropy
        The designed loss.
    result_ : SearchResult
        How it came about.
    module_ : torch.nn.Module
        The network retrained on all data.
    recipe_ : Recipe
        How it was trained.
    class_masses_ : ndarray
        Sum of the weights of all training examples per class ``(k,)``, or per group and class
        ``(g, k)`` where training had groups.
    temperature_ : float
        What logits are divided by for calibrated probabilities: from the search's held-out
        examples, or from `calibrate`; 1 where neither was.
    encoder_ : TableEncoder or None
        What turns a table into numbers; None for arrays of more than two dimensions.
    input_shape_ : tuple of int
        Shape of one example of X.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Their names, where X was a DataFrame.

    Notes
    -----
    Tables (2-D) may have missing values, and as DataFrames categories; images are ``(n, c, h, w)``
    arrays and need `module`. `predict_proba` without a prior is the softmax of the network's raw
    logits, biased on purpose as the loss is; for probabilities name the class prior they are for.
    The network that the temperature was fitted for is the search's, on examples that it was not
    trained on; the one that predicts is trained by the same recipe on these examples too, so that
    its own logits on them would look surer than they are. Where some data is still unseen,
    `calibrate` on it is better.
    Groups are needed by `fit` only, never to predict; given there, they are ignored with a warning.
    """

    n_features_in_: int
    feature_names_in_: np.ndarray

    # Where metadata is routed: predictions take groups, to say that they ignore them; scores of a
    # cross-validation, whose fits get groups, do without.
    __metadata_request__predict: ClassVar = {"sensitive_features": True}
    __metadata_request__predict_proba: ClassVar = {"sensitive_features": True}
    __metadata_request__decision_function: ClassVar = {"sensitive_features": True}
    __metadata_request__score: ClassVar = {"sensitive_features": False}

    def __init__(
        self,
        objective: str | Objective = "balanced_error",
        *,
        module: nn.Module | Callable[..., nn.Module] | None = None,
        recipe: Recipe | None = None,
        settings: SearchSettings | None = None,
        space: SpaceFactory | None = None,
        augment: AugmentChoice = None,
        arms: Sequence[Arm] | str | None = "default",
        retrain: Retraining = "anew",
        solver: Solver | None = None,
        missing_groups: MissingGroups = "refused",
        encode: bool | None = None,
        device: str = "auto",
        random_state: Any = None,
        checkpoint: str | Path | None = None,
        progress: ProgressListener | None = None,
        logger: MetricLogger | None = None,
    ) -> None:
        self.objective = objective
        self.module = module
        self.recipe = recipe
        self.settings = settings
        self.space = space
        self.augment: AugmentChoice = augment
        self.arms = arms
        self.retrain: Retraining = retrain
        self.solver = solver
        self.missing_groups: MissingGroups = missing_groups
        self.encode = encode
        self.device = device
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.progress = progress
        self.logger = logger

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.non_deterministic = False
        tags.classifier_tags.multi_label = True
        return tags

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        validation: Any = None,
        test: Any = None,
    ) -> Self:
        """Design the loss and train the network.

        Parameters
        ----------
        X : DataFrame, array-like or Dataset
            Table ``(n, d)``, array ``(n, ...)`` for a network of your own, or a Dataset (also as a
            `DatasetData`, which has its options) for such a network.
        y : array-like of shape (n,) or (n, k)
            Labels of any kind, none missing. A Dataset that has its targets needs none. With several labels
            for each example, a 0 or 1 for each, shape ``(n, k)``, -1 or NaN where not labelled.
        sensitive_features : array-like, Series or DataFrame, optional
            Group of each example; several columns make one group per combination.
        sample_weight : array-like of shape (n,), optional
            Non-negative weights, in training and in the objective.
        validation : tuple or Dataset, optional
            ``(X, y)`` or ``(X, y, sensitive_features)`` to search on in place of a share of the
            training data. Retraining uses both. Where it alone has groups, the loss has no rows for
            them, but the objective may be over them.
        test : tuple or Dataset, optional
            Likewise, to watch the objective on as the search goes; see `search`. It guides nothing.

        Returns
        -------
        AutoBalanceClassifier
            Itself.

        Raises
        ------
        InputError
            If the data cannot be used; the message says what to do.
        TrainingDiverged, Interrupted
            If the loss becomes non-finite, or on Ctrl-C. `result_`, `loss_` and, while
            retraining, `module_` then hold what was good before it.
        """
        self.fit_keeping_checkpoints(X, y, sensitive_features, sample_weight, validation, test)
        if self.checkpoint is not None:
            for path in checkpoint_files(self.checkpoint).values():
                path.unlink(missing_ok=True)
        return self

    def fit_keeping_checkpoints(
        self,
        X: Any,
        y: Any,
        sensitive_features: Any,
        sample_weight: Any,
        validation: Any,
        test: Any = None,
    ) -> None:
        """`fit` without the removal of its checkpoints, for callers that have yet to save."""
        as_objective(self.objective)
        if self.checkpoint is not None:
            path_of("checkpoint", self.checkpoint)
        seed = draw_seed(self.random_state)
        data = self._training_data(X, y, sensitive_features, sample_weight)
        held = None if validation is None else self._held_out(validation, data, "validation")
        watched = None if test is None else self._held_out(test, data, "test")
        files = {} if self.checkpoint is None else checkpoint_files(self.checkpoint)
        whole = data if held is None else concatenated(data, held)
        self.class_masses_ = class_masses(whole)
        try:
            trained = search_and_train(
                self._network_factory(data),
                data,
                retrain=self.retrain,
                release_validation=True,
                validation=held,
                objective=self.objective,
                space=self.space,
                augment=self.augment,
                # A race is for one class per example.
                arms=None if data.has_labels and self.arms == "default" else self.arms,
                settings=self.settings,
                solver=self.solver or DEFAULT_SOLVER,
                checkpoint=files.get("search"),
                test=watched,
                recipe=self.recipe_,
                seed=seed,
                device=self.device,
                progress=self.progress,
                logger=self.logger,
            )
        except (TrainingDiverged, Interrupted) as stopped:
            self.adopt(stopped.partial)
            raise
        self.adopt(trained)

    def _held_out(self, given: Any, data: ArrayData, what: str) -> ArrayData:
        return held_out_arrays(
            given, data, self.classes_.tolist(), self.groups_, what=what,
            read_inputs=lambda X: self.input_.transform(self, X), missing_groups=self.missing_groups,
        )  # fmt: skip

    @property
    def encoder_(self) -> TableEncoder | None:
        """What turns a table into numbers; None where the network takes arrays as they are."""
        return self.input_.encoder

    @property
    def input_shape_(self) -> tuple[int, ...]:
        """Shape of one example of X."""
        return self.input_.shape

    def decision_function(self, X: Any, sensitive_features: Any = None) -> np.ndarray:
        """Raw logits, shape ``(n, k)``; for two classes their difference, shape ``(n,)``."""
        _warn_of_groups(sensitive_features)
        logits = self._logits(X).numpy()
        if self.of_labels:
            return logits
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(
        self, X: Any, sensitive_features: Any = None, *, prior: Prior | None = None
    ) -> np.ndarray:
        """Softmax of the raw logits, or calibrated probabilities for a class prior.

        Parameters
        ----------
        X : DataFrame or array-like
            As for `fit`.
        sensitive_features
            Ignored, with a warning.
        prior : {"training", "balanced"} or array-like, optional
            Class frequencies where the probabilities are for: those of training, all classes
            alike, or shares of your own ``(k,)`` in the order of `classes_`. The loss's
            adjustments are then corrected for, and logits divided by `temperature_`; see
            `autobalance.calibration.temperature`. The most probable class need not be what `predict` gives.

        Returns
        -------
        ndarray
            Shape ``(n, k)``.

        Raises
        ------
        InputError
            If the prior is none, or of a class that training did not see.
        """
        _warn_of_groups(sensitive_features)
        logits = self._logits(X, probabilities=True)
        if self.of_labels:
            if prior is None:
                return torch.sigmoid(logits.double()).numpy()
            return label_probabilities(
                logits,
                cast(Any, self.loss_),
                self.class_masses_,
                prior=cast(str, prior),
                temperature=self.temperature_,
            ).numpy()
        if prior is None:
            return torch.softmax(logits.double(), dim=1).numpy()
        return corrected_probabilities(
            logits, self.loss_, self.class_masses_, prior=prior, temperature=self.temperature_
        ).numpy()

    def calibrate(self, X: Any, y: Any = None, *, sample_weight: Any = None) -> Self:
        """Fit `temperature_` on labelled examples, given as to `fit`, that it has not seen.

        They may be of any class frequencies. A whole weight is a row repeated, and a row of weight 0 is
        left out. Returns the estimator; only the probabilities for a prior change.

        Raises
        ------
        InputError
            If a label is unknown, or the data cannot be used.
        """
        check_is_fitted(self, "module_")
        if self.of_labels:
            X, target, weight = labelled_rows(X, y, None, sample_weight, len(self.classes_))
            self.temperature_ = fit_label_temperature(
                self._logits(X),
                target,
                cast(Any, self.loss_),
                self.class_masses_,
                sample_weight=weight,
            )
            return self
        X, labels, _, weight = labelled_arrays(X, y, None, sample_weight)
        logits = self._logits(X, probabilities=True)
        target = positions(labels, self.classes_.tolist(), "class", "y")
        fitted = fit_temperature(
            logits, target, self.loss_, self.class_masses_, sample_weight=weight
        )
        self.temperature_ = fitted.temperature
        return self

    def evaluate(
        self, X: Any, y: Any = None, *, sensitive_features: Any = None, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Errors, confusions and calibration on labelled examples, as counts and rates for a report.

        Data are given as to `fit`, of any groups. A whole weight is a row repeated, and a row of weight 0
        is left out; intervals in a report then rest on the effective number of examples.
        See `autobalance.calibration.evaluate_logits` for what it returns, and of several labels
        `autobalance.records.label_report`.

        Raises
        ------
        InputError
            If a label is unknown, or the data cannot be used.
        """
        check_is_fitted(self, "module_")
        if self.of_labels:
            X, target, weight = labelled_rows(
                X, y, sensitive_features, sample_weight, len(self.classes_)
            )
            return label_report(target, self.predict(X), weight)
        X, labels, features, weight = labelled_arrays(X, y, sensitive_features, sample_weight)
        logits = self._logits(X)
        predicted = logits.argmax(dim=1).numpy()
        if isinstance(self.module_, CellDecision):
            logits = self._logits(X, probabilities=True)
        target = positions(labels, self.classes_.tolist(), "class", "y")
        groups = names = None
        if features is not None:
            names, groups = number_groups(group_names(features, "refused"))
        same_length(X=logits, y=target, sensitive_features=groups)
        return evaluate_logits(
            logits,
            target,
            self.loss_,
            self.class_masses_,
            groups,
            names,
            temperature=self.temperature_,
            predicted=predicted,
            sample_weight=weight,
        )

    def predict(self, X: Any, sensitive_features: Any = None) -> np.ndarray:
        """Labels, shape ``(n,)``; where `fit` was given several for each example 0 and 1, ``(n, k)``."""
        _warn_of_groups(sensitive_features)
        if self.of_labels:
            return (self._logits(X) > 0).numpy().astype(np.int64)
        best = self._logits(X).argmax(dim=1).numpy()
        return self.classes_[best]

    def score(
        self, X: Any, y: Any = None, sample_weight: Any = None, sensitive_features: Any = None
    ) -> float:
        """Share of the labels predicted rightly; of several labels share of examples with all right."""
        _warn_of_groups(sensitive_features)
        return super().score(X, read_labels(X, y) if y is None else y, sample_weight)

    @property
    def of_labels(self) -> bool:
        """Whether `fit` was given several labels for each example."""
        check_is_fitted(self, "module_")
        return isinstance(self.loss_, ParametricBinaryCrossEntropy)

    def _logits(self, X: Any, *, probabilities: bool = False) -> Tensor:
        """What the network decides by, or what its probabilities are the softmax of."""
        check_is_fitted(self, "module_")
        module = self.module_
        if probabilities and isinstance(module, CellDecision):
            module = ClassLogits(module)
        return predict_logits(module, self.input_.transform(self, X))


def _warn_of_groups(sensitive_features: Any) -> None:
    if sensitive_features is not None:
        warnings.warn("Predictions need no groups: sensitive_features is ignored.", stacklevel=3)
