"""Calibrated probabilities: one temperature and the correction to a prior."""

from autobalance.calibration.label_probabilities import fit_label_temperature, label_probabilities
from autobalance.calibration.temperature import (
    Prior,
    class_masses,
    corrected_probabilities,
    evaluate_logits,
    fit_temperature,
    subsample_stride,
)

__all__ = [
    "Prior",
    "class_masses",
    "corrected_probabilities",
    "evaluate_logits",
    "fit_label_temperature",
    "fit_temperature",
    "label_probabilities",
    "subsample_stride",
]
