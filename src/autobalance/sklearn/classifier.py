"""The scikit-learn face: search, retrain, predict."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from autobalance._validation import (
    InputError,
    TrainingDiverged,
    array_of_numbers,
    one_of,
    path_of,
    same_length,
)
from autobalance.augment import AugmentChoice
from autobalance.bilevel import (
    DEFAULT_SOLVER,
    MIXES,
    Baseline,
    Frontier,
    FrontierPoint,
    Interrupted,
    MetricLogger,
    ModelFactory,
    ProgressListener,
    SearchResult,
    baselines,
    frontier,
    predict_logits,
    retrain,
    search,
)
from autobalance.calibration import (
    Prior,
    class_masses,
    corrected_probabilities,
    fit_temperature,
    measured,
)
from autobalance.data import UNKNOWN, ArrayData, MissingGroups, TableEncoder, concatenated, finite
from autobalance.hypergrad import Solver
from autobalance.networks import TableNetwork
from autobalance.objectives import Objective, as_objective
from autobalance.posthoc import CellDecision, CellPosterior, ClassLogits, Decided, cell_posterior
from autobalance.records import Recipe, SearchSettings, checkpoint_files
from autobalance.spaces import SpaceFactory

_MISSING = None
"""Name of a group that is not known."""


class AutoBalanceClassifier(ClassifierMixin, BaseEstimator):
    """Classifier that designs its own training loss for imbalanced or group-sensitive data.

    `fit` searches the loss on a train/validation split and retrains on all data with the loss
    found, for about twice the cost of plain training.

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
        How the network is trained.
    settings : SearchSettings, optional
        How the loss is searched.
    space : callable, optional
        From the training counts to a `DesignSpace`; by default as in `search`.
    augment : {"personalised", "shared"}, callable or nn.Module, optional
        Augmentation of the training batches, learned with the loss; as in `search`.
    solver : Solver, optional
        How hypergradients are solved for; by default as in `search`.
    missing_groups : {"refused", "unknown"}
        What a missing value (NaN, None) in `sensitive_features` is: a mistake, or the group of an
        example that is not known. Such examples train the network, under the mean of the groups'
        rows of the loss, and are in no objective.
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
        The labels.
    groups_ : list or None
        The groups' names, in the order of the loss's rows; where some are unknown, the row after
        them is for those. None where training data has no groups.
    loss_ : ParametricCrossEntropy
        The designed loss.
    result_ : SearchResult
        How it came about.
    module_ : torch.nn.Module
        The network retrained on all data.
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
        solver: Solver | None = None,
        missing_groups: MissingGroups = "refused",
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
        self.solver = solver
        self.missing_groups: MissingGroups = missing_groups
        self.device = device
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.progress = progress
        self.logger = logger

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.non_deterministic = False
        return tags

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        validation: Sequence[Any] | None = None,
        test: Sequence[Any] | None = None,
    ) -> AutoBalanceClassifier:
        """Design the loss and train the network.

        Parameters
        ----------
        X : DataFrame or array-like
            Table ``(n, d)``, or array ``(n, ...)`` for a network of your own.
        y : array-like of shape (n,)
            Labels of any kind, none missing.
        sensitive_features : array-like, Series or DataFrame, optional
            Group of each example; several columns make one group per combination.
        sample_weight : array-like of shape (n,), optional
            Non-negative weights, in training and in the objective.
        validation : tuple, optional
            ``(X, y)`` or ``(X, y, sensitive_features)`` to search on in place of a share of the
            training data. Retraining uses both. Where it alone has groups, the loss has no rows for
            them, but the objective may be over them.
        test : tuple, optional
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
        seed = _seed(self.random_state)
        data = self._training_data(X, y, sensitive_features, sample_weight)
        held = None if validation is None else self._held_data(validation, data, "validation")
        watched = None if test is None else self._held_data(test, data, "test")
        factory = self._factory(data)
        common: dict[str, Any] = {
            "recipe": self.recipe, "seed": seed, "device": self.device, "progress": self.progress,
            "logger": self.logger,
        }  # fmt: skip
        kept = {} if self.checkpoint is None else checkpoint_files(self.checkpoint)
        try:
            result = search(
                factory,
                data,
                validation=held,
                objective=self.objective,
                space=self.space,
                augment=self.augment,
                settings=self.settings,
                solver=self.solver or DEFAULT_SOLVER,
                checkpoint=kept.get("search"),
                test=watched,
                **common,
            )
        except (TrainingDiverged, Interrupted) as stopped:
            self.keep(stopped.partial)
            raise
        self.keep(result)
        everything = data if held is None else concatenated(data, held)
        self.class_masses_ = class_masses(everything)
        try:
            self.module_ = retrain(
                factory,
                everything,
                self.loss_,
                augment=result.augment,
                checkpoint=kept.get("retrain"),
                **common,
            )
        except (TrainingDiverged, Interrupted) as stopped:
            if isinstance(stopped.partial, nn.Module):
                self.module_ = stopped.partial
            raise

    def frontier(
        self,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
        gap: str = "deo",
        mixes: Sequence[float] = MIXES,
    ) -> Frontier:
        """Losses along the trade-off of the objective, which must be a name, and a gap.

        Nothing is fitted yet: choose a point and `fit_point` it.

        Parameters
        ----------
        X, y, sensitive_features, sample_weight
            As for `fit`; groups are needed.
        gap, mixes
            As for `autobalance.frontier`, which says what it raises.
        """
        self._check_no_augmentation("frontier")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=gap)
        return frontier(
            self._factory(data),
            data,
            main=self.objective,  # type: ignore[arg-type]  # refused there where it is no name
            gap=gap,
            mixes=mixes,
            space=self.space,
            recipe=self.recipe,
            settings=self.settings,
            solver=self.solver or DEFAULT_SOLVER,
            seed=_seed(self.random_state),
            device=self.device,
            progress=self.progress,
        )

    def baselines(
        self, swept: Frontier, X: Any, y: Any, *, sensitive_features: Any, sample_weight: Any = None
    ) -> list[Baseline]:
        """What to compare a frontier of `frontier` with, on its splits; see `sweeping.baselines`."""
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=swept.gap)
        return baselines(
            self._factory(data),
            data,
            main=swept.main,
            gap=swept.gap,
            recipe=self.recipe,
            settings=self.settings,
            seed=swept.seed,
            device=self.device,
            progress=self.progress,
        )

    def fit_point(
        self,
        swept: Frontier,
        point: FrontierPoint,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
    ) -> AutoBalanceClassifier:
        """Train the network on all data with the loss of a point of a frontier.

        Parameters
        ----------
        swept, point : Frontier, FrontierPoint
            From `frontier` on the same data, and what its `pick` took.
        X, y, sensitive_features, sample_weight
            As for `fit`.

        Returns
        -------
        AutoBalanceClassifier
            Itself, fitted; `result_` is the point's, without the history of a search.

        Raises
        ------
        InputError, TrainingDiverged, Interrupted
            As for `fit`.
        """
        self._check_no_augmentation("fit_point")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap=swept.gap)
        self.keep(swept.result(point))
        self.class_masses_ = class_masses(data)
        try:
            self.module_ = retrain(
                self._factory(data),
                data,
                self.loss_,
                recipe=self.recipe,
                seed=swept.seed,
                device=self.device,
                progress=self.progress,
            )
        except (TrainingDiverged, Interrupted) as stopped:
            if isinstance(stopped.partial, nn.Module):
                self.module_ = stopped.partial
            raise
        return self

    def cell_posterior(
        self,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
        main: str = "balanced_error",
    ) -> CellPosterior:
        """Learn p(class, group | x), for decisions under a bound on the gap between groups.

        No loss is designed and `objective` plays no part. Nothing is fitted yet: choose a decision
        and `fit_decision` it.

        Parameters
        ----------
        X, y, sensitive_features, sample_weight
            As for `fit`; groups are needed, all known.
        main : str
            "balanced_error", or "group_balanced_error" for a world in which all groups are alike in
            number.

        Returns
        -------
        CellPosterior
            See `autobalance.cell_posterior`, which takes five folds and says what it raises.
        """
        self._check_no_augmentation("cell_posterior")
        data = self._training_data(X, y, sensitive_features, sample_weight, gap="deo")
        self.class_masses_ = class_masses(data)
        return cell_posterior(
            self._factory(data),
            data,
            main=main,
            recipe=self.recipe,
            seed=_seed(self.random_state),
            device=self.device,
            progress=self.progress,
        )

    def fit_decision(self, learned: CellPosterior, decided: Decided) -> AutoBalanceClassifier:
        """Predict by a decision, such as ``learned.within(0.05)``, without groups.

        `predict_proba` then gives the network's class probabilities at the class frequencies of
        training (or those of `prior`), whose largest need not be the decision.

        Parameters
        ----------
        learned, decided : CellPosterior, Decided
            From this classifier's own `cell_posterior`, and what its `within` gave.

        Returns
        -------
        AutoBalanceClassifier
            Itself, fitted: `module_` is the decision, `loss_` cross-entropy over the cells, and
            `result_` without the history of a search.

        Raises
        ------
        InputError
            If `cell_posterior` was not called, or found other classes or groups.
        """
        shape = tuple(decided.network.weights.shape[1:])
        own = len(getattr(self, "groups_", None) or []), len(getattr(self, "classes_", []))
        if shape != own:
            raise InputError(
                f"The decision is for {shape[0]} groups and {shape[1]} classes, the classifier knows "
                f"{own[0]} and {own[1]}. Call its cell_posterior on the data first."
            )
        self.keep(learned.result(decided))
        self.module_ = decided.network
        return self

    def decision_function(self, X: Any, sensitive_features: Any = None) -> np.ndarray:
        """Raw logits, shape ``(n, k)``; for two classes their difference, shape ``(n,)``."""
        _ignored(sensitive_features)
        logits = self._logits(X).numpy()
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
        _ignored(sensitive_features)
        logits = self._logits(X, probabilities=True)
        if prior is None:
            return torch.softmax(logits.double(), dim=1).numpy()
        return corrected_probabilities(
            logits, self.loss_, self.class_masses_, prior=prior, temperature=self.temperature_
        ).numpy()

    def calibrate(self, X: Any, y: Any) -> AutoBalanceClassifier:
        """Fit `temperature_` on labelled examples that `fit` has not seen.

        Parameters
        ----------
        X, y
            As for `fit`, of any class frequencies.

        Returns
        -------
        AutoBalanceClassifier
            Itself; only the probabilities for a prior change.

        Raises
        ------
        InputError
            If a label is unknown, or the data cannot be used.
        """
        logits = self._logits(X, probabilities=True)
        target = _positions(_labels(y), self.classes_.tolist(), "class", "y")
        found = fit_temperature(logits, target, self.loss_, self.class_masses_)
        self.temperature_ = found.temperature
        return self

    def evaluate(self, X: Any, y: Any, *, sensitive_features: Any = None) -> dict[str, Any]:
        """Errors, confusions and calibration on labelled examples, as counts and rates for a report.

        Parameters
        ----------
        X, y, sensitive_features
            As for `fit`, of any groups.

        Returns
        -------
        dict
            See `autobalance.calibration.temperature.measured`.

        Raises
        ------
        InputError
            If a label is unknown, or the data cannot be used.
        """
        logits = self._logits(X)
        predicted = logits.argmax(dim=1).numpy()
        if isinstance(self.module_, CellDecision):
            logits = self._logits(X, probabilities=True)
        target = _positions(_labels(y), self.classes_.tolist(), "class", "y")
        groups = names = None
        if sensitive_features is not None:
            found, groups = _numbered(_group_names(sensitive_features, "refused"))
            names = found.tolist()
        same_length(X=logits, y=target, sensitive_features=groups)
        return measured(
            logits,
            target,
            self.loss_,
            self.class_masses_,
            groups,
            names,
            temperature=self.temperature_,
            predicted=predicted,
        )

    def predict(self, X: Any, sensitive_features: Any = None) -> np.ndarray:
        """Labels, shape ``(n,)``."""
        _ignored(sensitive_features)
        best = self._logits(X).argmax(dim=1).numpy()
        return self.classes_[best]

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, sensitive_features: Any = None
    ) -> float:
        """Share of the labels predicted rightly."""
        _ignored(sensitive_features)
        return super().score(X, y, sample_weight)

    def keep(self, partial: object) -> None:
        """Take over what a search found, whole or in part; anything else is left alone."""
        if isinstance(partial, SearchResult):
            self.result_, self.loss_ = partial, partial.loss
            measured = partial.calibration
            self.temperature_ = 1.0 if measured is None else measured.temperature

    def _logits(self, X: Any, *, probabilities: bool = False) -> Tensor:
        """What the network decides by, or what its probabilities are the softmax of."""
        check_is_fitted(self, "module_")
        module = self.module_
        if probabilities and isinstance(module, CellDecision):
            module = ClassLogits(module)
        return predict_logits(module, torch.from_numpy(self._inputs(X, reset=False)))

    # From the user's data to tensors ------------------------------------------------------

    def _training_data(
        self, X: Any, y: Any, groups: Any, sample_weight: Any, *, gap: str | None = None
    ) -> ArrayData:
        labels = _labels(y)
        inputs = self._inputs(X, reset=True)
        one_of("missing_groups", self.missing_groups, ("refused", "unknown"))
        names = None if groups is None else _group_names(groups, self.missing_groups)
        weight = None
        if sample_weight is not None:
            weight = array_of_numbers("sample_weight", sample_weight).astype(np.float32)
        same_length(X=inputs, y=labels, sensitive_features=names, sample_weight=weight)
        self.classes_, target = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                "Classification needs at least two classes; y has one class only, "
                f"{self.classes_.tolist()[0]!r}."
            )
        compares = None if gap is None else f"The gap {gap!r}"
        if gap is None and as_objective(self.objective).over != "class":
            compares = f"The objective {self.objective!r}"
        self.groups_ = None
        index = None
        if names is not None:
            found, index = _numbered(names)
            self.groups_ = found.tolist()
            if compares and len(found) < 2:
                raise InputError(
                    f"{compares} compares groups; sensitive_features has one only, "
                    f"{self.groups_[0]!r}. Give a column with at least two, or choose an objective "
                    "over classes."
                )
            if len(found) > max(20, len(names) // 10):
                raise InputError(
                    f"sensitive_features has {len(found)} different values for {len(names)} examples; "
                    "groups need several examples each. Bin a continuous column first (pandas.cut)."
                )
            if len(found) > 1 and _one_to_one(index, target):
                raise InputError(
                    "Each group is one class, and each class one group: sensitive_features looks like y. "
                    "Give the column of the groups."
                )
        return ArrayData.of(
            inputs,
            target,
            groups=index,
            sample_weight=weight,
            num_classes=len(self.classes_),
            num_groups=None if self.groups_ is None else len(self.groups_),
            missing_groups=self.missing_groups,
        )

    def _held_data(self, given: Sequence[Any], data: ArrayData, what: str) -> ArrayData:
        """What was given as ``validation`` or ``test``, numbered as the training data."""
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise InputError(f"{what} must be (X, y) or (X, y, sensitive_features).")
        X, y, *rest = given
        target = _positions(_labels(y), self.classes_.tolist(), "class", "y")
        _tell_of_absent(self.classes_.tolist(), target, "class", "classes", what)
        names = _group_names(rest[0], self.missing_groups) if rest and rest[0] is not None else None
        groups, num_groups = None, data.num_groups
        if self.groups_ is not None:
            if names is None:
                raise InputError(
                    f"{what} needs sensitive_features too: (X, y, sensitive_features)."
                )
            known = names != _MISSING
            groups = np.full(len(names), UNKNOWN)
            groups[known] = _positions(names[known], self.groups_, "group", "sensitive_features")
            _tell_of_absent(self.groups_, groups, "group", "groups", what)
        elif names is not None:
            found, groups = _numbered(names)
            num_groups = len(found)
        weight = None if data.sample_weight is None else np.ones(len(target), dtype=np.float32)
        return ArrayData.of(
            self._inputs(X, reset=False),
            target,
            groups=groups,
            sample_weight=weight,
            num_classes=data.num_classes,
            num_groups=num_groups,
            missing_groups=self.missing_groups,
        )

    def _inputs(self, X: Any, *, reset: bool) -> np.ndarray:
        """Numbers for the network, float32; with `reset`, learn how to make them."""
        validate: Any = validate_data  # annotated by scikit-learn as taking the str "no_validation"
        if isinstance(X, pd.DataFrame):
            if len(X) == 0:
                raise InputError("X has no rows. Give at least one.")
            validate(self, X, reset=reset, skip_check_array=True)
            table = X.set_axis([str(c) for c in X.columns], axis=1)
        else:
            given = X if not isinstance(X, Tensor) else X.numpy(force=True)
            # scikit-learn's message would print all of it
            if isinstance(given, np.ndarray) and np.iscomplexobj(given):
                raise InputError(
                    "Complex data not supported: give real and imaginary parts as features of their own."
                )
            array = validate(
                self,
                given,
                reset=reset,
                dtype="numeric",
                ensure_all_finite=False,  # ours name the column, and say what to do
                allow_nd=True,
            )
            if array.ndim > 2 and self.module is None:
                raise InputError(
                    f"X has {array.ndim} dimensions. For images and the like pass a network that takes "
                    "them: AutoBalanceClassifier(module=...)."
                )
            if reset:
                self.input_shape_ = array.shape[1:]
            if array.shape[1:] != self.input_shape_:
                raise InputError(
                    f"X has examples of shape {array.shape[1:]}; the classifier was fitted on "
                    f"{self.input_shape_}. Bring them to that size."
                )
            if array.ndim > 2:
                self.encoder_ = None
                return _finite(array)
            table = pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])
            if hasattr(self, "feature_names_in_"):
                table.columns = [str(c) for c in self.feature_names_in_]
        if reset:
            self.input_shape_ = (table.shape[1],)
            self.encoder_ = TableEncoder().fit(table)
        if self.encoder_ is None:
            raise InputError(
                "This classifier was fitted on arrays of more dimensions, not on tables."
            )
        return self.encoder_.transform(table)

    def _check_no_augmentation(self, what: str) -> None:
        if self.augment is not None:
            raise InputError(
                f"{what} trains without augmentation, but the classifier has augment={self.augment!r}. "
                "Leave it out, or let the module augment its inputs in training."
            )

    def _factory(self, data: ArrayData) -> ModelFactory:
        module = self.module
        if module is None:
            return lambda: TableNetwork(data.inputs.shape[1], data.num_classes)
        if isinstance(module, nn.Module):
            return lambda: copy.deepcopy(module)
        if not callable(module):
            raise InputError(
                f"module must be a torch.nn.Module or return one; got {type(module).__name__}."
            )
        offered = {"num_features": data.inputs.shape[1], "num_classes": data.num_classes}
        wanted = inspect.signature(module).parameters
        chosen = {name: value for name, value in offered.items() if name in wanted}
        return lambda: module(**chosen)


def _seed(random_state: Any) -> int:
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError:
        raise InputError(
            "random_state must be None, a RandomState or a whole number in 0..2**32-1; "
            f"got {random_state!r}."
        ) from None


def _finite(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # refused next
        numbers = np.ascontiguousarray(array, dtype=np.float32)
    finite("X", torch.from_numpy(numbers))
    return numbers


def _number_of(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _labels(y: Any) -> np.ndarray:
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None.")
    labels = column_or_1d(y, warn=True)
    missing = pd.isna(labels)
    if missing.any():
        raise InputError(
            f"y has {_number_of(int(missing.sum()), 'missing label')} (NaN), the first at position "
            f"{int(np.argmax(missing))}. Fill them, or drop these examples."
        )
    if np.issubdtype(labels.dtype, np.floating) and np.isinf(labels).any():
        raise InputError(
            "y has an infinite label (inf). Labels must be finite; drop these examples."
        )
    try:
        check_classification_targets(labels)
    except ValueError as error:
        name = getattr(y, "name", None)
        what = "y" if name is None else f"The target column {name!r}"
        if np.issubdtype(labels.dtype, np.floating):
            raise InputError(
                f"{what} looks continuous (such as {labels[labels % 1 != 0][0]:g}). Give classes, or "
                "bin it first (pandas.cut). Unknown label type: continuous."
            ) from None
        raise InputError(f"{what} holds no class labels: {str(error).splitlines()[0]}") from None
    return labels


def _group_names(groups: Any, missing_groups: MissingGroups) -> np.ndarray:
    """One name per example, `_MISSING` where it is not known; columns are joined by a comma."""
    frame = pd.DataFrame(groups)
    missing = frame.isna().to_numpy().any(axis=1)
    if missing.any() and missing_groups == "refused":
        raise InputError(
            f"sensitive_features has {_number_of(int(missing.sum()), 'missing value')} (the first at "
            f"position {int(np.argmax(missing))}). Fill them, for example with a group of their own, or "
            'take them for unknown: missing_groups="unknown".'
        )
    if missing.all():
        raise InputError("sensitive_features has missing values only. Leave it out.")
    names = np.full(len(frame), _MISSING, dtype=object)
    known = frame[~missing].astype(str).to_numpy(dtype=object)
    names[~missing] = [", ".join(row) for row in known.tolist()]
    return names


def _numbered(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The names in sorted order, and each example's position among them, or -1."""
    known = names != _MISSING
    found, position = np.unique(names[known].astype(str), return_inverse=True)
    index = np.full(len(names), UNKNOWN)
    index[known] = position
    return found, index


def _one_to_one(groups: np.ndarray, target: np.ndarray) -> bool:
    pairs = np.unique(np.stack([groups, target])[:, groups != UNKNOWN], axis=1)
    return all(len(np.unique(row)) == pairs.shape[1] for row in pairs)


def _tell_of_absent(known: list[Any], index: np.ndarray, one: str, many: str, what: str) -> None:
    absent = [str(name) for i, name in enumerate(known) if i not in index]
    if absent:
        warnings.warn(
            f"The {what} set lacks {_number_of(len(absent), one, many)} of {len(known)}: "
            f"{', '.join(absent[:5])}. The objective says nothing of them.",
            stacklevel=5,
        )


def _ignored(sensitive_features: Any) -> None:
    if sensitive_features is not None:
        warnings.warn("Predictions need no groups: sensitive_features is ignored.", stacklevel=3)


def _positions(values: np.ndarray, known: list[Any], what: str, where: str) -> np.ndarray:
    position = {value: i for i, value in enumerate(known)}
    unseen = sorted({str(v) for v in values.tolist() if v not in position})
    if unseen:
        raise InputError(f"{where} has a {what} that training lacks: {', '.join(unseen[:5])}.")
    return np.array([position[v] for v in values.tolist()])
