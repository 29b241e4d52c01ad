r"""The lower level on frozen features: a linear head under the parametric cross-entropy.

With features x_i, example weights s_i and weights theta = (W, c), logits are f_i = W x_i + c and

.. math::
    L(\theta) = \frac{1}{C} \sum_i s_i w_{y_i} \left(-\log \mathrm{softmax}(z_i)_{y_i}\right)
        + \frac{\lambda}{2} |W|^2 + \frac{\lambda_c}{2} |c|^2, \qquad
    z_i = \delta \odot f_i + l, \quad C = \sum_i s_i w_{y_i} .

It is strongly convex, so its minimiser is unique and the implicit function theorem is exact. The
Hessian equals the Gauss-Newton matrix, as logits are linear in the weights:

.. math::
    A = \sum_i \tilde x_i \tilde x_i^T \otimes S_i + \mathrm{diag}(\lambda, \lambda_c), \qquad
    S_i = \frac{s_i w_{y_i}}{C} \, \delta \left(\mathrm{diag}(p_i) - p_i p_i^T\right) \delta,
    \quad \tilde x_i = (x_i, 1) .

All sums run over chunks of rows, so that beside the features only a few rows' logits are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import TrainingDiverged
from autobalance.losses import LossParameters, adjusted_logits, reduced_loss, target_weight

CHUNK_NUMBERS = 2**18
"""Logits in a chunk: 1 MiB in float32, which stays in a core's cache."""
MAX_KEPT_NUMBERS = 2**28
"""Probabilities kept between products (1 GiB in float32); beyond, each product computes them anew."""
BIAS_DECAY = 1e-3
"""Weight decay on c relative to that on W: only so much that c's common offset is determined."""


@dataclass(frozen=True)
class _Chunk:
    """Some rows of the training examples."""

    features: Tensor
    target: Tensor
    groups: Tensor | None
    weight: Tensor


class HeadProblem:
    """Loss, gradient, curvature and mixed products of a linear head on all training examples.

    Weights are one tensor theta of shape ``(k, d + 1)``: W, and c as the last column.

    Parameters
    ----------
    features, target, groups
        Standardised features, shape ``(n, d)``, and indices, shape ``(n,)``.
    num_classes : int
        Number of classes k.
    sample_weight : Tensor
        Non-negative weights s, shape ``(n,)``; chunks of nothing but zeros are left out.
    weight_decay : float
        lambda, above 0; lambda_c is `BIAS_DECAY` times this.
    chunk_size : int, optional
        Rows per chunk.
    keep : int
        Keep probabilities between products where they are at most so many numbers.
    """

    def __init__(
        self,
        features: Tensor,
        target: Tensor,
        num_classes: int,
        *,
        sample_weight: Tensor,
        weight_decay: float,
        groups: Tensor | None = None,
        chunk_size: int | None = None,
        keep: int = MAX_KEPT_NUMBERS,
    ) -> None:
        self.num_classes = num_classes
        rows = chunk_size or max(256, CHUNK_NUMBERS // num_classes)
        pieces = [slice(i, i + rows) for i in range(0, len(features), rows)]
        self.chunks = [
            _Chunk(features[p], target[p], None if groups is None else groups[p], sample_weight[p])
            for p in pieces
            if bool(sample_weight[p].any())
        ]
        self.keep = num_classes * sum(len(c.target) for c in self.chunks) <= keep
        self.width = features.shape[1]
        self.decay = features.new_full((self.width + 1,), weight_decay)
        self.decay[-1] *= BIAS_DECAY
        self.like = features.new_empty(0)
        self.design = LossParameters()
        self._theta = self.zeros()
        self._rows: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def zeros(self) -> Tensor:
        """Weights of 0, shape ``(k, d + 1)``, in the features' dtype."""
        return self.like.new_zeros(self.num_classes, self.width + 1)

    def set_loss(self, design: LossParameters) -> None:
        """Take up w, l and delta; `evaluate` must follow before any product."""
        self.design = LossParameters(
            *(None if p is None else p.detach().to(self.like) for p in design)
        )
        rows = []
        for chunk in self.chunks:
            own = target_weight(chunk.target, self.design.weight, chunk.groups)
            rows.append(chunk.weight if own is None else chunk.weight * own)
        self.total = torch.stack([r.sum(dtype=torch.float64) for r in rows]).sum()
        self._rows = [r / self.total.to(r.dtype) for r in rows]

    def evaluate(self, theta: Tensor) -> tuple[float, Tensor]:
        """The loss with weight decay, and its gradient ``(k, d + 1)``; products are at `theta` then."""
        self._theta = theta
        self._probabilities = []
        value = torch.zeros((), dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(theta, dtype=torch.float64)
        for chunk, row in zip(self.chunks, self._rows, strict=True):
            z = self._adjusted(chunk, theta)
            log_p = F.log_softmax(z, dim=1)
            own = log_p.gather(1, chunk.target[:, None]).squeeze(1)
            value -= (own * row).sum(dtype=torch.float64)
            p = log_p.exp_()
            if self.keep:
                self._probabilities.append(p)
                p = p.clone()
            p.scatter_add_(1, chunk.target[:, None], torch.full_like(own, -1.0)[:, None])
            accumulate(gradient, self._times_delta(p.mul_(row[:, None]), chunk), chunk.features)
        self.data_loss = float(value)
        decayed = theta * self.decay
        return float(value + (theta * decayed).sum(dtype=torch.float64) / 2), gradient + decayed

    def product(self, vector: Tensor, *, exact: bool = False) -> Tensor:
        """A v, for v and A v of shape ``(k, d + 1)``, at the weights last evaluated.

        Sums over chunks are in float64, those within a chunk in the features' dtype, or in
        float64 too if `exact`, which costs about three times as much in float32.
        """
        dtype = torch.float64 if exact else self.like.dtype
        vector = vector.to(dtype)
        result = (vector * self.decay).double()
        for chunk, row, p in self._with_probabilities():
            features, p = chunk.features.to(dtype), p.to(dtype)
            u = self._times_delta(linear(features, vector), chunk)
            u -= torch.linalg.vecdot(p, u)[:, None]
            u.mul_(p).mul_(row[:, None])
            accumulate(result, self._times_delta(u, chunk), features)
        return result

    def mixed(
        self, direction: Tensor, design: LossParameters, free: Sequence[Tensor]
    ) -> list[Tensor]:
        """d/dalpha <dL/df, J q>, one tensor for each of the free parameters alpha.

        q, the direction, has shape ``(k, d + 1)``; `design` is the loss's parameters as functions of
        alpha, at the values given to `set_loss`.
        """
        # First by w, l and delta, chunk by chunk, and then from there to alpha.
        used = {n: p for n, p in self.design._asdict().items() if p is not None}
        leaf = {n: p.clone().requires_grad_() for n, p in used.items()}
        sums = {n: torch.zeros_like(p) for n, p in used.items()}
        inner = torch.zeros((), dtype=torch.float64, device=direction.device)
        with torch.enable_grad():
            for chunk in self.chunks:
                f = linear(chunk.features, self._theta).requires_grad_()
                total = reduced_loss(
                    f, chunk.target, LossParameters(**leaf), groups=chunk.groups,
                    sample_weight=chunk.weight, reduction="sum",
                )  # fmt: skip
                by_logits = torch.autograd.grad(total, f, create_graph=True)[0]
                along = (by_logits * linear(chunk.features, direction)).sum()
                inner += along.detach()
                by_leaf = torch.autograd.grad(along, list(leaf.values()), materialize_grads=True)
                for name, g in zip(leaf, by_leaf, strict=True):
                    sums[name] += g
            parts = {n: s / self.total.to(s.dtype) for n, s in sums.items()}
            if "weight" in parts:  # the mean divides by the sum of w_y
                mass = self._mass(leaf["weight"])
                parts["weight"] -= mass * (inner / self.total**2).to(mass.dtype)
            outputs = [getattr(design, name) for name in parts]
            moving = [(o, parts[n]) for n, o in zip(parts, outputs, strict=True) if o.requires_grad]
            if not moving:
                return [torch.zeros_like(p) for p in free]
            by_free = torch.autograd.grad(
                [o for o, _ in moving], list(free), [g.to(o) for o, g in moving],
                retain_graph=True, materialize_grads=True,  # folds share the design
            )  # fmt: skip
            return list(by_free)

    def kronecker(self) -> KroneckerPreconditioner:
        """The preconditioner at the weights last evaluated."""
        d, k = self.width, self.num_classes
        features = self.like.new_zeros(d, d)
        classes = self.like.new_zeros(k, k)
        spread = torch.zeros((), dtype=torch.float64, device=self.like.device)
        for chunk, row, p in self._with_probabilities():
            weighted = self._times_delta(p * row[:, None], chunk)
            h = row * (1.0 - p.square().sum(dim=1))
            spread += h.sum(dtype=torch.float64)
            features.addmm_((chunk.features * h[:, None]).T, chunk.features)
            classes.addmm_(weighted.T, self._times_delta(p.clone(), chunk), alpha=-1.0)
            classes.diagonal().add_(self._times_delta(weighted, chunk).sum(dim=0))
        tiny = torch.finfo(features.dtype).tiny
        features /= spread.to(features.dtype).clamp(min=tiny)
        if not bool(torch.isfinite(features).all() and torch.isfinite(classes).all()):
            raise divergence_error("curvature")
        return KroneckerPreconditioner(features, classes, self.decay)

    def release(self) -> None:
        """Let go of the probabilities; `evaluate` must come before the next product."""
        self._probabilities = []

    def _mass(self, like: Tensor) -> Tensor:
        """Weight of the examples in each entry of w, in w's shape: dC/dw."""
        mass = torch.zeros_like(like).reshape(-1)
        for chunk in self.chunks:
            cell = chunk.target
            if like.ndim == 2 and chunk.groups is not None:
                cell = chunk.groups * self.num_classes + cell
            mass.index_add_(0, cell, chunk.weight.to(mass.dtype))
        return mass.reshape(like.shape)

    def _with_probabilities(self) -> Iterator[tuple[_Chunk, Tensor, Tensor]]:
        for i, (chunk, row) in enumerate(zip(self.chunks, self._rows, strict=True)):
            if self.keep:
                yield chunk, row, self._probabilities[i]
            else:
                yield chunk, row, F.softmax(self._adjusted(chunk, self._theta), dim=1)

    def _adjusted(self, chunk: _Chunk, theta: Tensor) -> Tensor:
        return adjusted_logits(
            linear(chunk.features, theta),
            additive=self.design.additive,
            multiplicative=self.design.multiplicative,
            groups=chunk.groups,
        )

    def _times_delta(self, rows: Tensor, chunk: _Chunk) -> Tensor:
        """Delta times rows ``(n, k)``, written over them."""
        delta = self.design.multiplicative
        if delta is None:
            return rows
        return rows.mul_(delta if delta.ndim == 1 else delta[chunk.groups])


class KroneckerPreconditioner:
    r"""Inverse of the curvature as if the features' and the classes' parts were independent.

    .. math::
        M = \frac{\sum_i h_i x_i x_i^T}{\sum_i h_i} \otimes \sum_i S_i + \lambda I,
        \qquad h_i = \frac{s_i w_{y_i}}{C} \left(1 - |p_i|^2\right)

    on W, and sum_i S_i + lambda_c I on c. Weighing the features by h, the uncertainty of each
    example, rather than alike, is what makes it fit where most examples are classified with
    certainty. Two eigendecompositions make it, two products of ``(k, k)`` and ``(d, d)`` matrices
    each way apply it.
    """

    def __init__(self, features: Tensor, classes: Tensor, decay: Tensor) -> None:
        by_feature, self.feature_basis = _eigh(features)
        by_class, self.class_basis = _eigh(classes)
        self.scale = by_class[:, None] * by_feature[None, :] + decay[0]
        self.bias_scale = by_class + decay[-1]

    def __call__(self, vector: Tensor) -> Tensor:
        """M^-1 v, for v of shape ``(k, d + 1)``."""
        rotated = self.class_basis.T @ vector
        weights = (rotated[:, :-1] @ self.feature_basis) / self.scale
        bias = rotated[:, -1:] / self.bias_scale[:, None]
        return self.class_basis @ torch.cat([weights @ self.feature_basis.T, bias], dim=1)


def divergence_error(what: str) -> TrainingDiverged:
    """What to raise where a number of the lower level is not finite."""
    return TrainingDiverged(
        f"The head's training loss has a {what} that is not finite: the loss's parameters have "
        "become too large. Give the space a stronger prior (a smaller sigma), or raise "
        "weight_decay.",
        step=0,
    )


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp(min=0.0).to(matrix.dtype), vectors.to(matrix.dtype)


def linear(features: Tensor, weights: Tensor) -> Tensor:
    """W x + c for features ``(n, d)`` and weights ``(k, d + 1)``, shape ``(n, k)``."""
    weights = weights.to(features)
    return torch.addmm(weights[:, -1], features, weights[:, :-1].T)


def accumulate(result: Tensor, by_logits: Tensor, features: Tensor) -> None:
    """Add the gradient by the weights, J^T g, to `result` ``(k, d + 1)``."""
    result[:, :-1] += by_logits.T @ features
    result[:, -1] += by_logits.sum(dim=0)
