"""Test data that a search looks at now and then, and that guide nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from autobalance._validation import InputError
from autobalance.bilevel.prediction import iterate_logits
from autobalance.data import ArrayData
from autobalance.objectives import Objective

LOOKS = 40
"""About so often over a search, for each look costs a pass over the test data."""


def is_look_due(step: int, total: int) -> bool:
    """Whether to look at upper step `step`, counted from 1, of `total`."""
    return step == total or step % max(1, total // LOOKS) == 0


class ObjectiveMonitor:
    """The objective over the 0-1 error on test data, by the networks in training.

    Classes and groups of the test data are numbered as the training data's.

    Raises
    ------
    InputError
        If the test data do not belong to the training data, or lack the groups that the objective
        is over.
    """

    def __init__(self, test: ArrayData, data: ArrayData, objective: Objective) -> None:
        if test.inputs.shape[1:] != data.inputs.shape[1:]:
            raise InputError(
                "Training and test inputs must have the same shape per example; got "
                f"{tuple(data.inputs.shape[1:])} and {tuple(test.inputs.shape[1:])}."
            )
        if test.target.shape[1:] != data.target.shape[1:]:
            raise InputError(
                "Training and test data must have the same labels; got targets of shape "
                f"{tuple(data.target.shape)} and {tuple(test.target.shape)}."
            )
        if int(test.target.max()) >= data.num_classes:
            raise InputError(
                f"Test data has class {int(test.target.max())}, but training data is numbered 0 to "
                f"{data.num_classes - 1}. Number both alike."
            )
        if objective.over not in ("class", "label") and test.groups is None:
            raise InputError(
                "The objective is over groups, but the test data has none. Give its groups, or leave it "
                "out."
            )
        known = replace(test, num_classes=data.num_classes).with_known_groups()
        self.data = known
        labels = known.pixels()
        self.target = labels.target.cpu()
        self.groups = None if labels.groups is None else labels.groups.cpu()
        self.weight = None if labels.sample_weight is None else labels.sample_weight.cpu()
        self.num_classes, self.objective = data.num_classes, objective

    @torch.no_grad()
    def evaluate(self, networks: Iterable[nn.Module]) -> float:
        """The objective over all networks' predictions together; they come back as they were."""
        totals = []
        for network in networks:
            predicted = torch.cat(
                [self.objective.decide(rows) for rows in iterate_logits(network, self.data)]
            )
            tables = self.objective.decision_sums(
                predicted, self.target, self.num_classes, self.groups, self.weight
            )
            totals.append(torch.stack(tables))
        total, mass = torch.stack(totals).sum(dim=0)
        return float(self.objective.value(total, mass))
