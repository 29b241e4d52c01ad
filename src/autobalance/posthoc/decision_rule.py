"""Decisions by adjusted log-scores: the largest, the least costly, or a draw between several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from autobalance.posthoc.rival_scores import RivalScores


@dataclass(frozen=True)
class DecisionRule:
    r"""Decides for :math:`\arg\max_k z_k - l_k`, where l is drawn if there are several.

    With costs C it decides for the least expected cost under softmax(a (z - l)) instead,
    :math:`\arg\min_j \sum_k C_{kj} p_k`.

    Attributes
    ----------
    additive : ndarray
        l, shape ``(m, k)``.
    shares : ndarray
        How often each is drawn, shape ``(m,)``, summing to 1.
    scale : float
        a, above 0.
    tau : float or None
        The shared strength that l was built from, if it was.
    costs : ndarray or None
        C, shape ``(k, k)``.
    """

    additive: np.ndarray
    shares: np.ndarray
    scale: float = 1.0
    tau: float | None = None
    costs: np.ndarray | None = None

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Class of each row of log-scores ``(n, k)``, shape ``(n,)``. Equal rows get equal decisions."""
        drawn = self.index_of(scores)
        decided = np.empty(len(scores), dtype=np.int64)
        for m in range(len(self.shares)):
            rows = drawn == m
            decided[rows] = self._decide_by(scores[rows], m)
        return decided

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """softmax(a (z - l)) with the l that decides, shape ``(n, k)``."""
        logits = self.scale * (scores - self.additive[self.index_of(scores)])
        return torch.softmax(torch.from_numpy(logits), dim=1).numpy()

    def shares_of_classes(self, scores: np.ndarray) -> np.ndarray:
        """How often each class is decided over many draws, shape ``(n, k)``."""
        shares = np.zeros(scores.shape)
        for m, share in enumerate(self.shares):
            shares[np.arange(len(scores)), self._decide_by(scores, m)] += share
        return shares

    def wrong(self, rows: RivalScores) -> np.ndarray:
        """Probability that each example is decided wrongly, shape ``(n,)``; of rules without costs."""
        pairs = zip(self.shares, self.additive, strict=True)
        return np.sum([share * rows.wrong(l) for share, l in pairs], axis=0)  # noqa: E741

    def index_of(self, scores: np.ndarray) -> np.ndarray:
        """Which l decides each row of log-scores ``(n, k)``: its index, shape ``(n,)``."""
        if len(self.shares) == 1:
            return np.zeros(len(scores), dtype=np.int64)
        return np.searchsorted(np.cumsum(self.shares)[:-1], uniform_of_rows(scores), side="right")

    def _decide_by(self, scores: np.ndarray, m: int) -> np.ndarray:
        adjusted = scores - self.additive[m].astype(scores.dtype)
        if self.costs is None:
            return adjusted.argmax(axis=1)
        p = torch.softmax(torch.from_numpy(self.scale * adjusted), dim=1).numpy()
        return (p @ self.costs).argmin(axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Of numbers and lists alone."""
        costs = None if self.costs is None else self.costs.tolist()
        return {
            "additive": self.additive.tolist(), "shares": self.shares.tolist(), "scale": self.scale,
            "tau": self.tau, "costs": costs,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DecisionRule:
        """Inverse of `to_dict`."""
        shares = numbers_of(record["shares"], 1)
        additive = numbers_of(record["additive"], 2)
        k = additive.shape[1]
        costs = None if record["costs"] is None else numbers_of(record["costs"], 2)
        if len(additive) != len(shares) or (costs is not None and costs.shape != (k, k)):
            raise ValueError("its arrays do not belong together")
        tau = None if record["tau"] is None else float(record["tau"])
        return cls(additive, shares, float(record["scale"]), tau, costs)


@dataclass(frozen=True)
class LabelRule:
    """Decides for each label whose log odds z are above its threshold: z > l.

    `additive` is l, shape ``(k,)``, `scale` the a under which sigmoid(a (z - l)) is calibrated, and `tau` the
    shared strength that l was built from, if it was.
    """

    additive: np.ndarray
    scale: float = 1.0
    tau: float | None = None

    @property
    def shares(self) -> np.ndarray:
        """That of the one rule: none is drawn."""
        return np.ones(1)

    def to_dict(self) -> dict[str, Any]:
        """Of numbers and lists alone."""
        return {"additive": self.additive.tolist(), "scale": self.scale, "tau": self.tau}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        tau = None if record["tau"] is None else float(record["tau"])
        return cls(numbers_of(record["additive"], 1), float(record["scale"]), tau)


def numbers_of(entry: Any, ndim: int) -> np.ndarray:
    """A list of finite numbers, nested `ndim` deep, as an array; a ValueError for anything else."""
    array = np.array(entry, dtype=np.float64)
    if array.ndim != ndim or not array.size or not np.isfinite(array).all():
        raise ValueError(f"expected finite numbers in {ndim} dimensions")
    return array


def uniform_of_rows(scores: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each row, a hash of its values in float32: nothing is drawn at random.

    The mixing steps are those of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    bits = np.ascontiguousarray(scores, dtype=np.float32).view(np.uint32).astype(np.uint64)
    state = np.zeros(len(bits), dtype=np.uint64)
    for column in bits.reshape(len(bits), -1).T:
        state = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53
