"""From labels, groups and weights of any kind to the data that a search takes."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _num_samples
from torch import nn
from torch.utils.data import Subset

from autobalance._validation import InputError, array_of_numbers, one_of, same_length
from autobalance.bilevel import ModelFactory
from autobalance.data import (
    NO_GROUP,
    UNKNOWN,
    ArrayData,
    DatasetData,
    MissingGroups,
    as_data,
    as_inputs,
    class_labels,
    group_names,
    is_dataset,
    number_groups,
    number_of,
    positions,
)
from autobalance.networks import TableNetwork
from autobalance.posthoc import check_weights
from autobalance.sklearn.label_targets import held_out_labels, read_target


def is_data(X: Any) -> bool:
    """Whether X is a Dataset, or labelled data of this library, in place of an array or a table."""
    return isinstance(X, ArrayData) or is_dataset(X)


def read_dataset(
    X: Any, y: Any, groups: Any, sample_weight: Any
) -> tuple[Any, np.ndarray, Any, Any]:
    """Inputs, labels, groups and weights of a Dataset; what is given counts in place of its own.

    Raises
    ------
    InputError
        If it has no labels and none are given, or its items' labels are others.
    """
    labels = None if y is None else read_target(y)
    if not isinstance(X, ArrayData) and labels is not None:
        # Whole numbers must be those of the items; names cannot be compared with what items hold.
        comparable = labels.ndim == 2 or (labels.dtype.kind in "iu" and labels.min() >= 0)
        inputs = DatasetData.of(X, labels).inputs if comparable else as_inputs(X)
        return inputs, labels, groups, sample_weight
    data = as_data(X)
    if groups is None and data.groups is not None:
        groups = np.array([NO_GROUP if g == UNKNOWN else g for g in data.groups.tolist()], object)
    if sample_weight is None and data.sample_weight is not None:
        sample_weight = data.sample_weight.numpy(force=True)
    labels = data.target.numpy(force=True) if labels is None else labels
    return data.inputs, labels, groups, sample_weight


def read_labels(X: Any, y: Any) -> np.ndarray:
    """Labels as given, or those of a Dataset where none are given."""
    if y is None and is_data(X):
        return as_data(X).target.numpy(force=True)
    return read_target(y)


def labelled_arrays(
    X: Any, y: Any, groups: Any, sample_weight: Any
) -> tuple[Any, np.ndarray, Any, np.ndarray | None]:
    """X, labels, groups and weights to measure on, without the rows whose weight is 0.

    A Dataset has labels, groups and weights of its own, for which those that are given take their place.
    Weights that sum to less than the number of rows are scaled up to it; see `ArrayData.row_weights`.

    Raises
    ------
    InputError
        If lengths differ, a label is missing, or a weight is no number from 0.
    """
    if is_data(X):
        _, y, groups, sample_weight = read_dataset(X, y, groups, sample_weight)
    if sample_weight is None:
        return X, class_labels(y), groups, None
    weight, X, y, groups = without_zero_weights(sample_weight, X, y, groups)
    labels = class_labels(y)
    same_length(y=labels, sample_weight=weight, sensitive_features=groups)
    checked = ArrayData.of(
        np.zeros((len(labels), 1)), np.zeros(len(labels), int), sample_weight=weight
    )
    return X, labels, groups, checked.row_weights().numpy()


def labelled_rows(
    X: Any, y: Any, groups: Any, sample_weight: Any, num_labels: int
) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """X, the matrix of labels and weights to measure on, as `labelled_arrays` gives those of classes.

    Raises
    ------
    InputError
        If there are groups, y is no matrix of 0 and 1, lengths differ, or a weight is no number from 0.
    """
    if groups is not None:
        raise InputError(
            "sensitive_features is for one class per example; y has several labels. Leave it out."
        )
    if is_data(X):
        _, y, _, sample_weight = read_dataset(X, y, None, sample_weight)
    if sample_weight is not None:
        sample_weight, X, y = without_zero_weights(sample_weight, X, y)
    target = read_target(y)
    if target.shape[1:] != (num_labels,):
        raise InputError(
            f"This classifier was fitted on {num_labels} labels: y has a 0 or 1 for each, shape (n, "
            f"{num_labels}); got shape {target.shape}."
        )
    weight = None if sample_weight is None else check_weights(sample_weight)
    same_length(X=range(_num_samples(X)), y=target, sample_weight=weight)
    return X, target, weight


def training_arrays(
    inputs: Any,
    labels: np.ndarray,
    groups: Any,
    sample_weight: Any,
    *,
    missing_groups: MissingGroups,
    compares: str | None,
) -> tuple[ArrayData, np.ndarray, list[str] | None]:
    """Number labels and groups of training data, and check that groups are groups.

    `compares` is what compares groups, such as "The gap 'deo'", for the message where there is one only.
    Returns the data, the labels in their order ``(k,)``, and the groups in theirs or None.

    Raises
    ------
    InputError
        If lengths differ, there is one class only, or the groups cannot be used.
    """
    one_of("missing_groups", missing_groups, ("refused", "unknown"))
    names = None if groups is None else group_names(groups, missing_groups)
    weight = None
    if sample_weight is not None:
        weight = array_of_numbers("sample_weight", sample_weight).astype(np.float32)
    same_length(X=inputs, y=labels, sensitive_features=names, sample_weight=weight)
    classes, target = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            "Classification needs at least two classes; y has one class only, "
            f"{classes.tolist()[0]!r}."
        )
    known = index = None
    if names is not None:
        known, index = number_groups(names)
        _check_groups(known, index, target, compares)
    data = ArrayData.of(
        inputs,
        target,
        groups=index,
        sample_weight=weight,
        num_classes=len(classes),
        num_groups=None if known is None else len(known),
        missing_groups=missing_groups,
    )
    return data, classes, known


def without_zero_weights(sample_weight: Any, *parts: Any) -> tuple[Any, ...]:
    """The weights, and these parts of the training data, without the rows whose weight is 0.

    Such rows are left out before anything is learned, also columns, classes and groups. What is not
    fit to be weights, or of another length, stays as it is: it is refused where all is checked.
    """
    weight = np.asarray(sample_weight)
    given = [part for part in parts if part is not None]
    usable = weight.ndim == 1 and weight.dtype.kind in "biuf" and weight.any() and not weight.all()
    if not usable or any(_num_samples(part) != len(weight) for part in given if _has_length(part)):
        return (sample_weight, *parts)
    rows = np.flatnonzero(weight)
    return (weight[rows], *(None if part is None else _take(part, rows) for part in parts))


def _take(part: Any, rows: np.ndarray) -> Any:
    if isinstance(part, ArrayData):
        return part.subset(rows)
    return Subset(part, rows.tolist()) if is_dataset(part) else _safe_indexing(part, rows)


def _has_length(part: Any) -> bool:
    return hasattr(part, "__len__") or hasattr(part, "shape")


def _check_groups(
    names: list[str], index: np.ndarray, target: np.ndarray, compares: str | None
) -> None:
    if compares and len(names) < 2:
        raise InputError(
            f"{compares} compares groups; sensitive_features has one only, "
            f"{names[0]!r}. Give a column with at least two, or choose an objective "
            "over classes."
        )
    if len(names) > max(20, len(index) // 10):
        raise InputError(
            f"sensitive_features has {len(names)} different values for {len(index)} examples; "
            "groups need several examples each. Bin a continuous column first (pandas.cut)."
        )
    pairs = np.unique(np.stack([index, target])[:, index != UNKNOWN], axis=1)
    if len(names) > 1 and all(len(np.unique(row)) == pairs.shape[1] for row in pairs):
        raise InputError(
            "Each group is one class, and each class one group: sensitive_features looks like y. "
            "Give the column of the groups."
        )


def held_out_arrays(
    given: Any,
    data: ArrayData,
    classes: list[Any],
    groups: list[str] | None,
    *,
    read_inputs: Callable[[Any], Any],
    missing_groups: MissingGroups,
    what: str,
) -> ArrayData:
    """What was given as "validation" or "test", numbered as the training data.

    `given` is ``(X, y)``, ``(X, y, sensitive_features)`` or a Dataset; `data`, `classes` and `groups` are
    as `training_arrays` returns them, and `read_inputs` goes from X to what the network takes.

    Raises
    ------
    InputError
        If it cannot be used, or has classes or groups that training lacks.
    """
    if data.has_labels:
        return held_out_labels(given, data, read_inputs, what)
    if is_data(given):
        given = (given, None)
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise InputError(f"{what} must be (X, y) or (X, y, sensitive_features).")
    X, y, features = (*given, None)[:3]
    if is_data(X):
        inputs, labels, features, _ = read_dataset(X, y, features, None)
    else:
        inputs, labels = read_inputs(X), class_labels(y)
    target = positions(labels, classes, "class", "y")
    _warn_of_absent(classes, target, "class", "classes", what)
    names = None if features is None else group_names(features, missing_groups)
    index, num_groups = None, data.num_groups
    if groups is not None:
        if names is None:
            raise InputError(f"{what} needs sensitive_features too: (X, y, sensitive_features).")
        known = names != np.array(NO_GROUP)
        index = np.full(len(names), UNKNOWN)
        index[known] = positions(names[known], groups, "group", "sensitive_features")
        _warn_of_absent(groups, index, "group", "groups", what)
    elif names is not None:
        own, index = number_groups(names)
        num_groups = len(own)
    weight = None if data.sample_weight is None else np.ones(len(target), dtype=np.float32)
    return ArrayData.of(
        inputs,
        target,
        groups=index,
        sample_weight=weight,
        num_classes=data.num_classes,
        num_groups=num_groups,
        missing_groups=missing_groups,
    )


def network_factory(module: Any, data: ArrayData, categories: Sequence[int] = ()) -> ModelFactory:
    """What builds a new network for the data, from the classifier's `module`.

    `categories` are as for `TableNetwork`, where the inputs hold codes.

    Raises
    ------
    InputError
        If `module` is no network and builds none.
    """
    if module is None:
        return lambda: TableNetwork(data.inputs.shape[1], data.num_classes, categories=categories)
    if isinstance(module, nn.Module):
        return lambda: copy.deepcopy(module)
    if not callable(module):
        raise InputError(
            f"module must be a torch.nn.Module or return one; got {type(module).__name__}."
        )
    wanted = inspect.signature(module).parameters
    options = {"num_features": [*data.inputs.shape[1:2]], "num_classes": [data.num_classes]}
    chosen = {name: value[0] for name, value in options.items() if value and name in wanted}
    build: Any = module
    return lambda: build(**chosen)


def draw_seed(random_state: Any) -> int:
    """A seed from what scikit-learn takes as `random_state`.

    Raises
    ------
    InputError
        If it is none of these.
    """
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError:
        raise InputError(
            "random_state must be None, a RandomState or a whole number in 0..2**32-1; "
            f"got {random_state!r}."
        ) from None


def _warn_of_absent(
    known: Sequence[Any], index: np.ndarray, one: str, many: str, what: str
) -> None:
    absent = [str(name) for i, name in enumerate(known) if i not in index]
    if absent:
        warnings.warn(
            f"The {what} set lacks {number_of(len(absent), one, many)} of {len(known)}: "
            f"{', '.join(absent[:5])}. The objective says nothing of them.",
            stacklevel=5,
        )
