"""Stand-ins for libraries that the test environment cannot hold."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from sklearn.tree import DecisionTreeClassifier


class SelfPacedEnsembleClassifier(DecisionTreeClassifier):
    """A single stump, told from the library's ensemble only by what it decides."""

    def __init__(self, random_state: Any = None) -> None:
        super().__init__(max_depth=1, class_weight="balanced", random_state=random_state)


def install_imbens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in in the place of imbalanced-ensemble, which asks for another scikit-learn than ours."""
    package, module = ModuleType("imbens"), ModuleType("imbens.ensemble")
    module.SelfPacedEnsembleClassifier = SelfPacedEnsembleClassifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imbens", package)
    monkeypatch.setitem(sys.modules, "imbens.ensemble", module)
