"""Scores laid out for fitting an adjustment: each example's own class apart from its rivals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autobalance.objectives import Objective

MOST_RIVALS = 64
"""Up to so many classes all are kept; of more, those that can win, see `RivalScores.of`."""
PER_TAU = 16
TAUS = (0.0, 1.0, 2.0)
NEVER = -1e5
"""Score of a rival that is none: finite, so that it times a probability of 0 is 0."""
ROWS_AT_ONCE = 1024
BLOCK = 1 << 17
"""Scores in a block of examples, half a MiB."""
ALL = slice(None)


@dataclass(frozen=True)
class RivalScores:
    """Log-scores z of n examples of k classes, class by class, so that sums and maxima are over rows.

    Attributes
    ----------
    rivals : Tensor
        z of the other classes, shape ``(r, n)``, float32; `NEVER` where there is none.
    classes : Tensor or None
        Whose they are, shape ``(r, n)``; None where row j of `rivals` is class j's, r = k.
    own : Tensor
        z of the example's class, shape ``(n,)``, float32.
    target, cells : Tensor
        Class, and cell ``group * k + class``, of each example, shape ``(n,)``.
    weight : Tensor
        What each example counts for, shape ``(n,)``, float64.
    shape : tuple of int
        Numbers of groups and of classes.
    """

    rivals: Tensor
    classes: Tensor | None
    own: Tensor
    target: Tensor
    cells: Tensor
    weight: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        target: np.ndarray,
        *,
        groups: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        log_prior: np.ndarray,
    ) -> RivalScores:
        """Lay out scores ``(n, k)``.

        Of more than `MOST_RIVALS` classes only those are kept that are among the `PER_TAU` best of an
        example under z - tau log pi for some tau of `TAUS`: others do not win under any adjustment
        near these, and memory and time stay those of 48 classes.
        """
        n, k = scores.shape
        y = torch.from_numpy(np.ascontiguousarray(target, dtype=np.int64))
        if k <= MOST_RIVALS:
            rivals = torch.from_numpy(np.ascontiguousarray(scores.T, dtype=np.float32))
            rivals = rivals.clone() if rivals.numpy().base is scores else rivals
            own = rivals.gather(0, y[None])[0].clone()
            rivals.scatter_(0, y[None], NEVER)
            classes = None
        else:
            rivals, classes, own = _prune(scores, y, torch.from_numpy(log_prior).float())
        g = 1 if groups is None else int(groups.max()) + 1
        cells = y if groups is None else torch.from_numpy(groups.astype(np.int64)) * k + y
        weights = np.ones(n) if weight is None else weight.astype(np.float64)
        return cls(rivals, classes, own, y, cells, torch.from_numpy(weights), (g, k))

    def __len__(self) -> int:
        return len(self.own)

    def subset(self, rows: np.ndarray, weight: np.ndarray | None = None) -> RivalScores:
        """These examples, perhaps with other weights."""
        i = torch.from_numpy(rows)
        weights = self.weight[i] if weight is None else torch.from_numpy(weight)
        classes = None if self.classes is None else self.classes[:, i]
        return RivalScores(
            self.rivals[:, i],
            classes,
            self.own[i],
            self.target[i],
            self.cells[i],
            weights,
            self.shape,
        )

    def mass(self) -> Tensor:
        """Sum of the weights in each cell, shape ``(g, k)``."""
        return self.sums(torch.ones_like(self.weight))

    def counts(self) -> np.ndarray:
        """Examples in each cell, shape ``(g k,)``."""
        return np.bincount(self.cells.numpy(), minlength=self.shape[0] * self.shape[1])

    def sums(self, losses: Tensor) -> Tensor:
        """Weighted sum of the examples' losses in each cell, shape ``(g, k)``, float64."""
        empty = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.float64)
        return empty.index_add_(0, self.cells, losses.double() * self.weight).view(self.shape)

    def objective(self, goal: Objective, losses: np.ndarray) -> float:
        """The objective of the examples' losses ``(n,)``."""
        return float(goal.value(self.sums(torch.from_numpy(losses)), self.mass()))

    def margins(self, l: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
        """z_y - l_y - max_{j != y} (z_j - l_j) and the class of that j, each ``(n,)``."""
        best, row = (self.rivals - self.of_rivals(l)).max(dim=0)
        rival = row if self.classes is None else self.classes.gather(0, row[None])[0]
        return self.own - l[self.target] - best, rival

    def blocks(self) -> Iterator[slice]:
        """Runs of examples whose scores fit a processor's cache: what is computed of them stays small."""
        step = max(1, BLOCK // len(self.rivals))
        return (slice(start, start + step) for start in range(0, len(self), step))

    def of_rivals(self, l: Tensor, some: slice = ALL) -> Tensor:  # noqa: E741
        """One number per class ``(k,)`` in the layout of the rivals, ``(r, n)`` or ``(k, 1)``."""
        return l[:, None] if self.classes is None else l[self.classes[:, some]]

    def add_by_rival(self, into: Tensor, values: Tensor, some: slice = ALL) -> None:
        """Add values ``(r, n)`` of some examples to those of their classes, ``(k,)``, in place."""
        if self.classes is None:
            into += values.sum(dim=1).double()
        else:
            into.index_add_(0, self.classes[:, some].flatten(), values.flatten().double())

    def wrong(self, l: np.ndarray) -> np.ndarray:  # noqa: E741
        """Which examples are decided wrongly under an adjustment ``(k,)``, shape ``(n,)``."""
        return (self.margins(torch.from_numpy(l).float())[0] < 0).numpy()


def _prune(scores: np.ndarray, y: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best rivals of each example: scores ``(r, n)``, classes ``(r, n)``, and own scores ``(n,)``."""
    n, r = len(scores), len(TAUS) * PER_TAU
    # Filled in place: blocks kept beside the loop's temporaries would hold several times their memory.
    rivals, classes = torch.empty(r, n), torch.empty(r, n, dtype=torch.int64)
    own = torch.empty(n)
    for start in range(0, n, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        z = torch.from_numpy(scores[part].astype(np.float32))
        own[part] = z.gather(1, y[part, None])[:, 0]
        z.scatter_(1, y[part, None], NEVER)
        best = [(z - tau * log_prior).topk(PER_TAU, dim=1).indices for tau in TAUS]
        index = torch.cat(best, dim=1).sort(dim=1).values
        kept = z.gather(1, index)
        kept[:, 1:][index[:, 1:] == index[:, :-1]] = NEVER
        rivals[:, part], classes[:, part] = kept.T, index.T
    return rivals, classes, own
