"""Ensembles on balanced samples as methods of a comparison, against their libraries called by hand."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from imblearn.ensemble import BalancedRandomForestClassifier, EasyEnsembleClassifier

from autobalance import InputError
from autobalance.bilevel import predict_logits
from autobalance_bench.comparison.ensembles import ENSEMBLES
from autobalance_bench.comparison.methods import METHODS, Task
from autobalance_bench.comparison.running import predict_failures
from fake_libraries import SelfPacedEnsembleClassifier, install_imbens
from helpers import blobs
from toy_cells import cell

DATA = blobs((160, 40, 20))
ROWS, TARGET = DATA.in_memory().numpy(), DATA.target.numpy()
BY_HAND: dict[str, Any] = {
    "balanced_forest": BalancedRandomForestClassifier,
    "easy_ensemble": EasyEnsembleClassifier,
    "self_paced_ensemble": SelfPacedEnsembleClassifier,
}


@pytest.fixture(autouse=True)
def imbens(monkeypatch: pytest.MonkeyPatch) -> None:
    install_imbens(monkeypatch)


def decide(method: str, **changes: Any) -> np.ndarray:
    """What the method's model decides for the training rows."""
    given: dict[str, Any] = {"network": torch.nn.Identity, "data": DATA, "seed": 3}
    trained = METHODS[method].run(Task(**{**given, **changes}))
    assert trained.training_runs == 1.0
    return predict_logits(trained.model, DATA.inputs).argmax(dim=1).numpy()


def test_every_ensemble_is_compared_with_its_library() -> None:
    assert BY_HAND.keys() == ENSEMBLES.keys()


@pytest.mark.parametrize("method", ENSEMBLES)
def test_ensembles_are_those_of_their_library(method: str) -> None:
    expected = BY_HAND[method](random_state=3).fit(ROWS, TARGET).predict(ROWS)
    np.testing.assert_array_equal(decide(method), expected)


@pytest.mark.parametrize("method", ENSEMBLES)
def test_ensembles_see_no_augmented_examples(method: str) -> None:
    with pytest.raises(InputError, match="without augmentation"):
        decide(method, augment=torch.nn.Identity())


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("balanced_forest", "imbalanced-learn"),
        ("self_paced_ensemble", "-r bench/imbalanced_ensemble.txt"),
    ],
)
def test_a_comparison_says_beforehand_that_the_library_is_missing(
    method: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ENSEMBLES[method].package
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.ensemble", None)
    [(reason, methods)] = predict_failures([cell(method=method)]).items()
    assert methods == [method]
    assert re.search(remedy, reason)
    with pytest.raises(InputError, match=remedy):
        decide(method)
