"""autobalance designs the training loss for imbalanced and group-sensitive classification."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that importing the package is cheap.
_HOME = {
    "ArrayData": "data.batches",
    "Augmentation": "augment",
    "AugmentationPolicy": "augment",
    "AutoBalanceClassifier": "estimator",
    "BalancedError": "objectives",
    "Batch": "data.batches",
    "Blend": "objectives",
    "BoundedGap": "objectives",
    "CVaRError": "objectives",
    "ClassSpace": "spaces",
    "ClusterSpace": "spaces",
    "ConjugateGradient": "hypergrad",
    "CrossEntropyRisk": "objectives",
    "DeferredLoss": "losses",
    "DesignSpace": "spaces",
    "ErrorDeviation": "objectives",
    "Exact": "hypergrad",
    "FocalLoss": "losses",
    "Frontier": "sweeping",
    "FrontierPoint": "sweeping",
    "GroupDROLoss": "losses",
    "GroupSpace": "spaces",
    "HierarchicalSpace": "spaces",
    "Identity": "hypergrad",
    "InputError": "checks",
    "Interrupted": "training",
    "LDAMLoss": "losses",
    "LossTuner": "tuner",
    "MLflowLogger": "loggers",
    "Neumann": "hypergrad",
    "Nystrom": "hypergrad",
    "Objective": "objectives",
    "OddsGap": "objectives",
    "OpportunityGap": "objectives",
    "ParametricCrossEntropy": "losses",
    "ParityGap": "objectives",
    "QuantileError": "objectives",
    "Recipe": "settings",
    "SearchResult": "results",
    "SearchSettings": "settings",
    "SingleLoop": "hypergrad",
    "SmoothError": "objectives",
    "TrainingDiverged": "checks",
    "TunableCrossEntropy": "tunable",
    "WandbLogger": "loggers",
    "WeightedError": "objectives",
    "WithUnknownGroup": "spaces",
    "WorstError": "objectives",
    "cell_posterior": "decisions",
    "corrected_probabilities": "calibration",
    "default_policy": "augment",
    "export_model": "export",
    "extract_features": "heads",
    "fit_temperature": "calibration",
    "frontier": "sweeping",
    "image_operations": "augment",
    "retrain": "retraining",
    "retrain_head": "heads",
    "save_search": "runs",
    "search": "searching",
    "search_head": "heads",
    "tensor_operations": "augment",
    "with_normalized_head": "losses",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
