"""An objective as the upper level sees it, batch by batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import InputError, number, positive
from autobalance.objectives.base import Labels, Objective, group_class_sums
from autobalance.objectives.combined import BoundedGap
from autobalance.objectives.labels import sign_label_sums, wrong_labels


class RunningRisks:
    r"""An objective on batches too small to tell which cell is the worst.

    Of an objective F that is not linear in the cells' risks it keeps running sums over the last
    upper steps, shrinks the risks R_c that they give towards their mean,

    .. math:: \tilde R_c = (n_c R_c + s \bar R) / (n_c + s),

    and returns F at these, with the gradient :math:`\sum_c (\partial F / \partial R_c) \nabla R_c`
    of the batch: stochastic compositional gradients (Wang, Fang and Liu, 2017). n_c is the number
    of validation examples of the (group, class). A linear objective is left as it is.

    The batches of one upper step, one of each fold, count alike: which cell is the worst is asked of all
    folds together, not of each. `end_step` lets them fade.

    The values returned, other than their gradient, are estimates for the whole held-out set: a batch
    drawn evenly over the cells says how often each is wrong, and `counts` how much each counts. Where
    the objective is not linear they take the running sums, as the largest of a few noisy risks is too
    large on average.

    Parameters
    ----------
    objective : Objective
        F.
    counts : array-like, optional
        n_c, shape ``(k,)`` or ``(g, k)``; of weighted examples the sums of their weights. By default
        those of each batch.
    sizes : array-like, optional
        Effective numbers of examples, in the shape of `counts`, that take n_c's place in the shrinkage
        where the examples have weights.
    decay : float
        By how much the sums shrink with each upper step, in [0, 1).
    shrinkage : float
        s, in examples, above 0.
    """

    def __init__(
        self,
        objective: Objective,
        counts: Any = None,
        *,
        sizes: Any = None,
        decay: float = 0.8,
        shrinkage: float = 2.0,
    ) -> None:
        self.objective = objective
        self.counts = None if counts is None else np.atleast_2d(np.asarray(counts, dtype=float))
        # Per unit of n_c, so that it keeps its meaning where cells are left out or summed.
        self._reliability = None
        if self.counts is not None and sizes is not None:
            given = np.atleast_2d(np.asarray(sizes, dtype=float))
            self._reliability = torch.from_numpy(given / np.maximum(self.counts, 1e-30))
        if not 0.0 <= number("decay", decay) < 1.0:
            raise InputError(f"decay must lie in [0, 1); got {decay}.")
        self.shrinkage = positive("shrinkage", shrinkage)
        self.decay = decay
        self._smooth, self._hard = _RunningSums(), _RunningSums()
        self._cells: Tensor | None = None  # sizes of those of the step so far
        self._present: tuple[Tensor, ...] = ()  # where these are above 0
        self._table: Tensor | None = None  # counts on the device

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Value and gradient on a batch, whose finite sums join the running ones."""
        total, mass = self.objective.sums(logits, target, groups, sample_weight)
        if self.objective.linear:
            value = self.objective.value(total, mass, smoothly=True)
            if len(total) == 1 or self.counts is None:  # cells' sizes cancel, or are the batch's
                return value
            estimate = self._estimate(total.detach(), mass, smoothly=True)
            return estimate + (value - value.detach())
        hard = self._error_sums(logits, target, groups, sample_weight, like=total)
        finite = total.detach().isfinite()  # of a network that diverged nothing stays
        self._smooth.add(*(torch.where(finite, t, 0.0) for t in (total.detach(), mass)))
        self._hard.add(*(torch.where(finite, t, 0.0) for t in hard))
        by_row = groups is not None or self.objective.over == "label"
        self._cells = sizes = self._sizes(self._smooth.sums()[1], by_row)
        self._present = (sizes > 0).nonzero(
            as_tuple=True
        )  # a mask would wait for a GPU in each use
        now = self._smooth.risks().requires_grad_()
        with torch.enable_grad():
            value = self.objective.value(self._shrink(now, sizes), sizes, smoothly=True)
            (slopes,) = torch.autograd.grad(value, now)
        risks = total / torch.where(mass > 0, mass, 1.0)
        estimate = value.detach()
        if self.counts is not None:
            estimate = self._estimate(*self._smooth.sums(), smoothly=True)
        return estimate + (slopes[: len(total)] * (risks - risks.detach())).sum()

    def _error_sums(
        self,
        logits: Tensor,
        target: Tensor,
        groups: Tensor | None,
        sample_weight: Tensor | None,
        *,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sums of the 0-1 error in the dtype and the shape of those of the surrogate."""
        if self.objective.over == "label":
            wrong = wrong_labels(logits, target).to(like.dtype)
            return sign_label_sums(wrong, target, sample_weight)
        if self.objective.by_decision:
            decided = logits.max(dim=1).indices
            tables = self.objective.decision_sums(
                decided, target, logits.shape[1], groups, sample_weight
            )
            return tables[0].to(like), tables[1].to(like)
        target, groups, sample_weight = Labels.of(logits[:, 0], target, groups, sample_weight)
        wrong = (logits.max(dim=1).indices != target).to(like.dtype)
        return group_class_sums(
            wrong, target, groups, logits.shape[1], sample_weight, rows=len(like)
        )

    def end_step(self) -> None:
        """The upper step is done: what adapts to the risks does, and the sums fade."""
        if self._cells is None:
            return
        with torch.no_grad():
            hard = self._shrink(self._hard.risks(), self._cells)
            self.objective = self.objective.adapted(hard, self._cells)
        for sums in (self._smooth, self._hard):
            sums.fade(self.decay)
        self._cells = None

    @torch.no_grad()
    def hard_value(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The objective over the 0-1 error, float64, an estimate for the whole held-out set.

        Of an objective that is not linear, call it after the batch's sums have joined the running ones.
        """
        if self.counts is not None and not self.objective.linear:
            total, mass = (t.double() for t in self._hard.sums())
            return self._estimate(total, mass)
        decided, k = self.objective.decide(logits), logits.shape[1]
        total, mass = self.objective.decision_sums(decided, target, k, groups, sample_weight)
        if len(total) == 1 or self.counts is None:
            return self.objective.value(total, mass)
        return self._estimate(total, mass)

    def state_dict(self) -> dict[str, Any]:
        """Running sums, and what of the objective has adapted."""
        return {
            "smooth": self._smooth.state_dict(),
            "hard": self._hard.state_dict(),
            "multiplier": getattr(self.objective, "multiplier", None),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._smooth.load_state_dict(state["smooth"])
        self._hard.load_state_dict(state["hard"])
        if isinstance(self.objective, BoundedGap):
            self.objective = replace(self.objective, multiplier=state["multiplier"])

    def _shrink(self, risks: Tensor, sizes: Tensor) -> Tensor:
        """Sums of so many examples as there are in validation, their risks shrunk."""
        mean = risks[self._present].mean()
        n = sizes
        if self._reliability is not None and self._reliability.shape == sizes.shape:
            n = sizes * self._reliability.to(sizes)
        return sizes * (n * risks + self.shrinkage * mean) / (n + self.shrinkage)

    def _estimate(self, total: Tensor, mass: Tensor, *, smoothly: bool = False) -> Tensor:
        """The objective on the whole held-out set, whose cells have the risks of these sums."""
        sizes = self._sizes(mass, grouped=len(mass) > 1)
        if sizes is mass:
            return self.objective.value(total, mass, smoothly=smoothly)
        risks = total / torch.where(mass > 0, mass, 1.0)
        return self.objective.value(risks * sizes, sizes, smoothly=smoothly)

    def _sizes(self, mass: Tensor, grouped: bool) -> Tensor:
        """Validation examples per group and class, 0 where none was seen."""
        by_decision = self.objective.by_decision
        if self.counts is None or (grouped and len(self.counts) == 1 and not by_decision):
            return mass  # counts per class say nothing of groups
        if self._table is None:  # a GPU waits for what comes from the host
            self._table = torch.as_tensor(self.counts)
        table = self._table = self._table.to(mass)
        if by_decision or not grouped:
            table = table.sum(dim=0, keepdim=True)
        if by_decision:
            table = table.expand_as(mass)
        return torch.where(mass > 0, _rows(table, len(mass))[: len(mass)], 0.0)


class _RunningSums:
    """Sums of a loss and of the examples' weights per group and class, in which older ones fade."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.mass: Tensor | None = None

    def add(self, total: Tensor, mass: Tensor) -> None:
        """Add a batch's sums of losses and of weights, each ``(g, k)``."""
        if self.total is not None and self.mass is not None:
            rows = max(len(total), len(self.total))  # a batch may lack the last groups
            total = _rows(total, rows) + _rows(self.total.to(total), rows)
            mass = _rows(mass, rows) + _rows(self.mass.to(mass), rows)
        self.total, self.mass = total, mass

    def sums(self) -> tuple[Tensor, Tensor]:
        """Total and mass ``(g, k)``, once something was added."""
        assert self.total is not None
        assert self.mass is not None
        return self.total, self.mass

    def risks(self) -> Tensor:
        """Mean losses ``(g, k)``, 0 where nothing was seen."""
        total, mass = self.sums()
        return total / torch.where(mass > 0, mass, 1.0)

    def fade(self, share: float) -> None:
        """Multiply the sums so far by a share in [0, 1]."""
        total, mass = self.sums()
        self.total, self.mass = share * total, share * mass

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        return {"total": self.total, "mass": self.mass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the sums of a checkpoint."""
        self.total, self.mass = state["total"], state["mass"]


def _rows(table: Tensor, rows: int) -> Tensor:
    """With rows of zeros added up to so many."""
    return F.pad(table, (0, 0, 0, max(0, rows - len(table))))
