"""From labels, groups and weights of any kind to the arrays that a search takes."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing, check_random_state
from torch import nn

from autobalance._validation import InputError, array_of_numbers, one_of, same_length
from autobalance.bilevel import ModelFactory
from autobalance.data import (
    NO_GROUP,
    UNKNOWN,
    ArrayData,
    MissingGroups,
    class_labels,
    group_names,
    number_groups,
    number_of,
    positions,
)
from autobalance.networks import TableNetwork


def training_arrays(
    inputs: np.ndarray,
    labels: np.ndarray,
    groups: Any,
    sample_weight: Any,
    *,
    missing_groups: MissingGroups,
    compares: str | None,
) -> tuple[ArrayData, np.ndarray, list[str] | None]:
    """Number labels and groups of training data, and check that groups are groups.

    Parameters
    ----------
    inputs : ndarray
        For the network, shape ``(n, ...)``.
    labels : ndarray
        From `class_labels`, shape ``(n,)``.
    groups, sample_weight : array-like or None
        As `AutoBalanceClassifier.fit` takes them.
    missing_groups : {"refused", "unknown"}
        What a missing group is.
    compares : str or None
        What compares groups, such as "The gap 'deo'", for the message where there is one only.

    Returns
    -------
    data : ArrayData
        The data.
    classes : ndarray
        The labels in their order, shape ``(k,)``.
    names : list of str or None
        The groups in their order; None without groups.

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
    found = index = None
    if names is not None:
        found, index = number_groups(names)
        _check_groups(found, index, target, compares)
    data = ArrayData.of(
        inputs,
        target,
        groups=index,
        sample_weight=weight,
        num_classes=len(classes),
        num_groups=None if found is None else len(found),
        missing_groups=missing_groups,
    )
    return data, classes, found


def without_zero_weights(sample_weight: Any, *parts: Any) -> tuple[Any, ...]:
    """The weights, and these parts of the training data, without the rows whose weight is 0.

    Such rows are left out before anything is learned, also columns, classes and groups. What is not
    fit to be weights, or of another length, stays as it is: it is refused where all is checked.
    """
    weight = np.asarray(sample_weight)
    given = [part for part in parts if part is not None]
    usable = weight.ndim == 1 and weight.dtype.kind in "biuf" and weight.any() and not weight.all()
    if not usable or any(len(part) != len(weight) for part in given if hasattr(part, "__len__")):
        return (sample_weight, *parts)
    rows = np.flatnonzero(weight)
    kept = (None if part is None else _safe_indexing(part, rows) for part in parts)
    return (weight[rows], *kept)


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
    given: Sequence[Any],
    data: ArrayData,
    classes: list[Any],
    groups: list[str] | None,
    *,
    read_inputs: Callable[[Any], np.ndarray],
    missing_groups: MissingGroups,
    what: str,
) -> ArrayData:
    """What was given as ``validation`` or ``test``, numbered as the training data.

    Parameters
    ----------
    given : sequence
        ``(X, y)`` or ``(X, y, sensitive_features)``.
    data, classes, groups
        As `training_arrays` returns them.
    read_inputs : callable
        From X to the array for the network.
    missing_groups : {"refused", "unknown"}
        What a missing group is.
    what : str
        "validation" or "test", for messages.

    Raises
    ------
    InputError
        If it cannot be used, or has classes or groups that training lacks.
    """
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise InputError(f"{what} must be (X, y) or (X, y, sensitive_features).")
    X, y, *rest = given
    target = positions(class_labels(y), classes, "class", "y")
    _warn_of_absent(classes, target, "class", "classes", what)
    names = group_names(rest[0], missing_groups) if rest and rest[0] is not None else None
    index, num_groups = None, data.num_groups
    if groups is not None:
        if names is None:
            raise InputError(f"{what} needs sensitive_features too: (X, y, sensitive_features).")
        known = names != np.array(NO_GROUP)
        index = np.full(len(names), UNKNOWN)
        index[known] = positions(names[known], groups, "group", "sensitive_features")
        _warn_of_absent(groups, index, "group", "groups", what)
    elif names is not None:
        found, index = number_groups(names)
        num_groups = len(found)
    weight = None if data.sample_weight is None else np.ones(len(target), dtype=np.float32)
    return ArrayData.of(
        read_inputs(X),
        target,
        groups=index,
        sample_weight=weight,
        num_classes=data.num_classes,
        num_groups=num_groups,
        missing_groups=missing_groups,
    )


def network_factory(module: Any, data: ArrayData) -> ModelFactory:
    """What builds a new network for the data, from the classifier's `module`.

    Raises
    ------
    InputError
        If `module` is no network and builds none.
    """
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


def _warn_of_absent(known: list[Any], index: np.ndarray, one: str, many: str, what: str) -> None:
    absent = [str(name) for i, name in enumerate(known) if i not in index]
    if absent:
        warnings.warn(
            f"The {what} set lacks {number_of(len(absent), one, many)} of {len(known)}: "
            f"{', '.join(absent[:5])}. The objective says nothing of them.",
            stacklevel=5,
        )
