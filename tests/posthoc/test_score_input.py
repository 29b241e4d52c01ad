"""What scores are accepted as, and what the refusals say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autobalance._validation import InputError
from autobalance.posthoc.score_input import log_scores

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])


def test_probabilities_become_logarithms_that_are_finite() -> None:
    np.testing.assert_allclose(log_scores(P), np.log(P))
    assert log_scores(np.array([[1.0, 0.0]]))[0, 1] == pytest.approx(np.log(1e-9))


def test_each_kind_as_itself() -> None:
    np.testing.assert_allclose(log_scores(np.log(P), "log_probabilities"), np.log(P))
    np.testing.assert_array_equal(log_scores(5 * P, "decision_values"), 5 * P)
    both = log_scores(np.array([-1.0, 2.0]), "decision_values")
    np.testing.assert_array_equal(both, [[0.0, -1.0], [0.0, 2.0]])
    np.testing.assert_array_equal(both, log_scores(np.array([[-1.0], [2.0]]), "decision_values"))


@pytest.mark.parametrize(
    ("scores", "kind", "message"),
    [
        (np.log(P), "probabilities", 'kind="log_probabilities"'),
        (5 * P, "probabilities", 'kind="decision_values"'),
        (-P, "probabilities", "lie in"),
        (0.5 * P, "probabilities", "row 0 sums to 0.5"),
        (np.where(P > 0.7, np.nan, P), "probabilities", "row 1 has NaN"),
        (P[:, :1], "probabilities", "one column per class"),
        (P[:, 0], "probabilities", "one column per class"),
        (P[:0], "probabilities", "no row"),
        ([["a", "b"]], "probabilities", "must hold numbers"),
        (5 * P, "log_probabilities", 'kind="decision_values"'),
        (np.where(P > 0.7, np.inf, P), "decision_values", "NaN or infinite"),
        (np.where(P > 0.7, -np.inf, P), "decision_values", "must be finite"),
        (P, "odds", "kind must be one of"),
    ],
)
def test_what_is_no_such_score_is_refused_with_the_remedy(
    scores: Any, kind: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        log_scores(scores, kind)
