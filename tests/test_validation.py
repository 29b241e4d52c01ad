"""Checks shared by the public entries: what passes, and what the messages say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance._validation import (
    InputError,
    TrainingDiverged,
    class_counts,
    fraction,
    how_to_install,
    number,
    one_of,
    positive,
    same_length,
    whole,
)


def test_what_is_right_passes() -> None:
    assert one_of("x", "a", ("b", "a")) == "a"
    assert positive("x", 0.5) == 0.5
    assert fraction("x", 0.5) == 0.5
    assert whole("x", np.int64(3), least=1) == 3  # type: ignore[arg-type]
    assert number("x", np.float32(0.5)) == 0.5  # type: ignore[arg-type]
    assert same_length(a=[1, 2], b=None, c=np.zeros((2, 3))) == 2
    assert class_counts([3, 1]).tolist() == [3.0, 1.0]
    assert class_counts([2, 1.5]).tolist() == [2.0, 1.5]  # sums of weights
    assert class_counts([[3, 0], [0, 1]]).tolist() == [[3.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: one_of("mode", "c", ("b", "a")), "mode must be one of a, b; got 'c'"),
        (lambda: positive("lr", 0.0), "lr must be a finite number above 0; got 0.0"),
        (lambda: positive("lr", float("nan")), "lr must be a finite number above 0; got nan"),
        (lambda: positive("lr", float("inf")), "lr must be a finite number above 0; got inf"),
        (lambda: fraction("share", 0.0), "share must lie strictly between 0 and 1; got 0.0"),
        (lambda: fraction("share", 1.0), "share must lie strictly between 0 and 1; got 1.0"),
        (lambda: same_length(a=[1], b=[1, 2]), "one entry per example, but a has 1, b has 2"),
        (lambda: class_counts([4]), r"one count per class .* two classes; got shape \(1,\)"),
        (lambda: class_counts(4), r"got shape \(\)"),
        (lambda: class_counts(np.ones((2, 2, 2))), r"got shape \(2, 2, 2\)"),
        (lambda: class_counts([2, -1]), "class_counts must hold numbers of .* none negative"),
        (lambda: class_counts(["a", "b"], name="counts"), "counts must hold numbers of examples"),
        (lambda: whole("n", True, least=1), "n must be a whole number; got True"),
        (lambda: number("n", None), "n must be a number; got None"),
        (lambda: class_counts([0.4, 0.6]), "no shares of 1"),
        (lambda: class_counts([2, np.nan], name="n"), "n must hold numbers of examples"),
        (lambda: class_counts([2, 0, 0]), r"class 1 has no .* \(classes without any: \[1, 2\]\)"),
        (lambda: class_counts([[2, 0], [1, 0]]), "class 1 has no training example"),
    ],
)
def test_what_is_wrong_is_named(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check()


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_diverged_carries_its_step_and_what_was_good() -> None:
    error = TrainingDiverged("bad", step=3, partial="state")
    assert (str(error), error.step, error.partial) == ("bad", 3, "state")
    assert TrainingDiverged("bad", step=1).partial is None


def test_no_message_installs_these_distributions_from_an_index() -> None:
    """They are on none yet; `how_to_install` names the library that is missing itself."""
    root = Path(__file__).parents[1]
    told = [
        f"{path.relative_to(root)}: {line.strip()}"
        for folder in ("src", "bench/src")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install[^\n]*autobalance", line) and "./" not in line
    ]
    assert told == []
    assert how_to_install("lightgbm") == "Install it: pip install lightgbm"
    assert how_to_install("onnx", "onnxscript", upgrade=True) == (
        "Update them: pip install --upgrade onnx onnxscript"
    )
