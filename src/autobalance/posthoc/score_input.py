"""Scores of any classifier as logarithms of probabilities: what is accepted, and what is refused."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from autobalance._validation import InputError, array_of_numbers, one_of

ScoreKind = Literal["probabilities", "log_probabilities", "decision_values"]
"""What scores are."""
KINDS = ("probabilities", "log_probabilities", "decision_values")
FLOOR = 1e-9
"""Least probability, low enough that no ordinary adjustment chooses what a forest calls impossible."""
TOLERANCE = 1e-3
"""How far from 1 the probabilities of a row may sum: those of float16 do."""


def log_scores(scores: Any, kind: ScoreKind = "probabilities") -> np.ndarray:
    """Logarithms of probabilities, or decision values as they are, shape ``(n, k)``.

    Log-probabilities and decision values keep float32 where they have it; everything else becomes float64.

    Parameters
    ----------
    scores : array-like
        Shape ``(n, k)``, of one column per class. Decision values of two classes may have one column,
        or the shape ``(n,)``: they are those of the second class against the first.
    kind : {"probabilities", "log_probabilities", "decision_values"}
        What they are.

    Raises
    ------
    InputError
        If they are not what they are said to be; the message says what they look like.
    """
    one_of("kind", kind, KINDS)
    array = _as_floats(scores)
    if kind == "decision_values" and (array.ndim == 1 or array.shape[1:] == (1,)):
        second = array.reshape(-1)
        return np.stack([np.zeros_like(second), second], axis=1)
    if array.ndim != 2 or array.shape[1] < 2:
        raise InputError(
            f"scores need one column per class, shape (n, k) with k at least 2; got {array.shape}. "
            "Of two classes give both columns, as predict_proba does; a single column is accepted as "
            'kind="decision_values".'
        )
    if len(array) == 0:
        raise InputError("scores have no row.")
    if kind == "probabilities":
        _check_probabilities(array)
        floored = np.maximum(array, FLOOR)
        return np.log(floored, out=floored)  # in place: scores can be most of the memory
    if np.isnan(array).any() or (array == np.inf).any():
        raise InputError(f"scores must not be NaN or infinite; row {_first_bad(array)} has such.")
    if kind == "decision_values" and np.isinf(array).any():
        raise InputError(f"scores must be finite; row {_first_bad(array)} is not.")
    if kind == "log_probabilities":
        _check_log_probabilities(array)
        return np.maximum(array, np.log(FLOOR))
    return array


def _as_floats(scores: Any) -> np.ndarray:
    if isinstance(scores, np.ndarray) and scores.dtype in (np.float32, np.float64):
        return scores
    return array_of_numbers("scores", scores)


def _first_bad(array: np.ndarray) -> int:
    return int(np.argmax(~np.isfinite(array).all(axis=1)))


def _check_probabilities(array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise InputError(
            f"Probabilities must be finite; row {_first_bad(array)} has NaN or infinity. Leave out rows "
            "without scores, or find out why the classifier gives none."
        )
    if (array <= 0).all() and np.allclose(np.exp(array).sum(axis=1), 1.0, atol=TOLERANCE):
        raise InputError(
            'scores are log-probabilities. Say so, kind="log_probabilities", or give their exp.'
        )
    if (array < 0).any() or (array > 1 + TOLERANCE).any():
        row = int(np.argmax(((array < 0) | (array > 1 + TOLERANCE)).any(axis=1)))
        raise InputError(
            f"Probabilities must lie in [0, 1]; row {row} has {array[row].min():g} to "
            f'{array[row].max():g}. For logits or other decision values say kind="decision_values".'
        )
    sums = array.sum(axis=1)
    off = np.abs(sums - 1.0) > TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        raise InputError(
            f"Each row of probabilities must sum to 1; row {row} sums to {sums[row]:g}. Divide one-vs-rest "
            'probabilities by their sum, or say kind="decision_values".'
        )


def _check_log_probabilities(array: np.ndarray) -> None:
    sums = np.exp(array).sum(axis=1)
    off = np.abs(sums - 1.0) > TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        raise InputError(
            f"The exp of each row of log-probabilities must sum to 1; that of row {row} sums to "
            f'{sums[row]:g}. For logits say kind="decision_values".'
        )
