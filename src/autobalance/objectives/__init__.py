"""Objectives of the upper level: what the designed loss is for.

An objective aggregates conditional risks R_c, the mean loss of the examples in cell c, where a
cell is a class, a group, or a (class, group) pair. As a call it is differentiable in the raw
logits, over a surrogate for the 0-1 error; `hard` is the same aggregate of the 0-1 error itself,
for reports. Both are functions of the losses' sums per (group, class), see `Objective.value`. Cells
that a batch lacks are left out and the others' shares rescaled, so every batch gives a finite value.

The worst of a few noisy risks is mostly noise. So where an objective is not linear in the risks,
the upper level takes its derivative at risks averaged over batches and shrunk towards their mean:
see `RunningRisks`.
"""

from autobalance.objectives.aggregates import (
    BalancedError,
    CVaRError,
    ErrorDeviation,
    QuantileError,
    WeightedError,
    WorstError,
)
from autobalance.objectives.base import (
    IGNORED,
    CellObjective,
    Labels,
    Objective,
    Over,
    cells_of,
    group_class_sums,
    per_pixel,
)
from autobalance.objectives.combined import Blend, BoundedGap
from autobalance.objectives.costs import CostMatrix, cost_matrix
from autobalance.objectives.gaps import Gap, OddsGap, OpportunityGap, ParityGap
from autobalance.objectives.iou import MeanIoU
from autobalance.objectives.label_objectives import MacroF1Error, over_labels
from autobalance.objectives.labels import sign_label_sums, wrong_labels
from autobalance.objectives.registry import DENSE, GAPS, NAMED, OF_LABELS, as_objective
from autobalance.objectives.running_risks import RunningRisks
from autobalance.objectives.surrogates import CrossEntropyRisk, SmoothError, Surrogate

__all__ = [
    "DENSE",
    "GAPS",
    "IGNORED",
    "NAMED",
    "OF_LABELS",
    "BalancedError",
    "Blend",
    "BoundedGap",
    "CVaRError",
    "CellObjective",
    "CostMatrix",
    "CrossEntropyRisk",
    "ErrorDeviation",
    "Gap",
    "Labels",
    "MacroF1Error",
    "MeanIoU",
    "Objective",
    "OddsGap",
    "OpportunityGap",
    "Over",
    "ParityGap",
    "QuantileError",
    "RunningRisks",
    "SmoothError",
    "Surrogate",
    "WeightedError",
    "WorstError",
    "as_objective",
    "cells_of",
    "cost_matrix",
    "group_class_sums",
    "over_labels",
    "per_pixel",
    "sign_label_sums",
    "wrong_labels",
]
