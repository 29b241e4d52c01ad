"""What plain training and class weights give on the rows that a fit held out, to set its result against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import has_fit_parameter

from autobalance.bilevel import predict_logits, retrain, splits_of
from autobalance.losses import ParametricCrossEntropy
from autobalance.records import ErrorTable, SearchSettings
from autobalance.sklearn.out_of_fold import fit_out_of_fold

if TYPE_CHECKING:
    from autobalance.sklearn.adjusted import LogitAdjustedClassifierCV
    from autobalance.sklearn.classifier import AutoBalanceClassifier

CROSS_ENTROPY, CLASS_WEIGHTS = "cross_entropy", "class_weights"


def network_baselines(
    classifier: AutoBalanceClassifier, X: Any, y: Any, sensitive_features: Any = None
) -> dict[str, ErrorTable]:
    """Errors on the rows that the search held out, of networks trained on the others.

    Each is trained by the classifier's recipe and seed, as it is before any race changes it, and differs in
    its loss alone: cross-entropy, or cross-entropy weighted by the inverse class frequency. That is one
    training run for each loss and fold. Cross-entropy that the final choice trained in the same way is
    taken from there.

    Parameters
    ----------
    classifier : AutoBalanceClassifier
        Fitted to the same data, without weights or validation data of its own.
    X, y, sensitive_features
        The data of its `fit`.

    Returns
    -------
    dict
        By `CROSS_ENTROPY` and `CLASS_WEIGHTS`, tables ``(g, k)``.

    Raises
    ------
    TrainingDiverged, Interrupted
        As `autobalance.retrain` does.
    """
    result = classifier.result_
    data = classifier._training_data(X, y, sensitive_features, None)
    factory = classifier._network_factory(data)
    splits = splits_of(data, None, classifier.settings or SearchSettings(), result.seed)
    tables = {CROSS_ENTROPY: _trained_by_the_choice(classifier)}
    for name in (CROSS_ENTROPY, CLASS_WEIGHTS):
        if tables.get(name) is not None:
            continue
        target, predicted, groups = [], [], []
        for fold, (train, held) in enumerate(splits):
            loss = ParametricCrossEntropy.cross_entropy()
            if name == CLASS_WEIGHTS:
                masses = np.atleast_2d(train.masses()).sum(axis=0)
                loss = ParametricCrossEntropy.class_weighted(masses)
            network = retrain(
                factory, train, loss, recipe=classifier.recipe_, seed=result.seed + fold,
                device=classifier.device, progress=classifier.progress,
            )  # fmt: skip
            target.append(held.target.cpu().numpy())
            predicted.append(predict_logits(network, held.inputs).argmax(dim=1).cpu().numpy())
            if held.groups is not None:
                groups.append(held.groups.cpu().numpy())
        tables[name] = ErrorTable.from_predictions(
            np.concatenate(target), np.concatenate(predicted), data.num_classes,
            np.concatenate(groups) if groups else None,
        )  # fmt: skip
    return {name: table for name, table in tables.items() if table is not None}


def _trained_by_the_choice(classifier: AutoBalanceClassifier) -> ErrorTable | None:
    """Cross-entropy's errors from the final choice; None unless it was trained by the recipe as it is."""
    result = classifier.result_
    arm = result.arm
    changed = arm is not None and not (arm.cosine_scale is None and arm.weight_decay is None)
    if changed or classifier.augment is not None:
        return None
    found = next((c for c in result.candidates if c.name == CROSS_ENTROPY and c.n), None)
    return (
        None if found is None else ErrorTable.from_counts(np.array(found.wrong), np.array(found.n))
    )


def network_errors(classifier: AutoBalanceClassifier) -> ErrorTable | None:
    """Errors of what the fit took, on the rows that its search held out; None where it has none.

    They are of networks trained anew where there was a final choice, and else of the network searched with.
    """
    result = classifier.result_
    found = next((c for c in result.candidates if c.name == result.choice and c.n), None)
    if found is not None:
        return ErrorTable.from_counts(np.array(found.wrong), np.array(found.n))
    return None if result.held_out is None else result.held_out.table


def estimator_baselines(
    classifier: LogitAdjustedClassifierCV,
    X: Any,
    target: np.ndarray,
    groups: np.ndarray | None = None,
) -> dict[str, ErrorTable]:
    """Errors on the out-of-fold rows, of a pipeline's classifier as it is and with class weights.

    The folds are those of the classifier's own fit. As it is it need not be fitted again, unless that fit
    was to pairs of class and group. Class weights are left out where the last step takes no sample weights.

    Parameters
    ----------
    classifier : LogitAdjustedClassifierCV
        Fitted to the same data, around a pipeline.
    X, target : table and ndarray
        The data of its `fit`, with classes 0 to k - 1.
    groups : ndarray, optional
        Group indices, where the objective is over groups.
    """
    own, pipeline = classifier.result_, classifier.estimator
    rows, classes = own.rows, np.unique(target)
    folds = [np.flatnonzero(own.fold == f) for f in range(int(own.fold.max()) + 1)]
    everyone = np.arange(len(target))
    splits = [(np.setdiff1d(everyone, held), held) for held in folds]

    def scores(weights: np.ndarray | None) -> np.ndarray:
        assert isinstance(pipeline, Pipeline)
        params = {} if weights is None else {f"{pipeline.steps[-1][0]}__sample_weight": weights}
        return fit_out_of_fold(pipeline, X, target, classes, splits, params, None)[0].scores

    found = {CROSS_ENTROPY: own.scores if groups is None else scores(None)}
    if has_fit_parameter(pipeline[-1], "sample_weight"):
        found[CLASS_WEIGHTS] = scores(compute_sample_weight("balanced", target))
    return {
        name: ErrorTable.from_predictions(
            target[rows], each[rows].argmax(axis=1), len(classes),
            None if groups is None else groups[rows],
        )
        for name, each in found.items()
    }  # fmt: skip
