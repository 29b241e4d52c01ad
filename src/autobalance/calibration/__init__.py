"""Calibrated probabilities: one temperature and the correction to a prior."""

from autobalance.calibration.temperature import (
    Calibration,
    Prior,
    class_masses,
    corrected_probabilities,
    fit_temperature,
    measured,
    subsample_stride,
)

__all__ = [
    "Calibration",
    "Prior",
    "class_masses",
    "corrected_probabilities",
    "fit_temperature",
    "measured",
    "subsample_stride",
]
