"""Small networks, toy data and slow, obvious oracles that several tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance.data.array_data import ArrayData
from autobalance.data.batches import Batch
from autobalance.functional.model import flatten
from autobalance.objectives.base import Objective
from autobalance.spaces.spaces import PARTS, ClassSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy

NUM_CLASSES = 4
NUM_GROUPS = 2
COUNTS = [50, 20, 8, 2]
GROUP_COUNTS = [[40, 10, 6, 1], [10, 10, 2, 1]]


# Networks: each takes (n, 1, 4, 4) images or their 16 pixels and returns 4 logits -----------------


class Tied(nn.Module):
    """Encoder and decoder share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.first = nn.Linear(16, 4, bias=False)
        self.second = nn.Linear(16, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(self.flat(images)))
        return self.second(torch.tanh(hidden @ self.first.weight))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, NUM_CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
        nn.BatchNorm1d(3),
        nn.Tanh(),
        nn.Linear(3, NUM_CLASSES),
    )


def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, NUM_CLASSES)
    )


def frozen() -> nn.Module:
    """Frozen first layer; one part of the rest in evaluation mode, as when fine-tuning."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, NUM_CLASSES)
    )
    model[1].requires_grad_(False)
    model[2].eval()
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "batch_norm": batch_norm,
    "dropout": dropout,
    "frozen": frozen,
    "tied": Tied,
}


def network(name: str, seed: int = 0) -> nn.Module:
    """In float64, in training mode except where the network says otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name]().double()


def images(n: int, seed: int = 0, *, weighted: bool = False) -> Batch:
    """Random images of uneven class presence: class 3 is absent, class 0 is half of them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 0, 1, 2, 0, 1])[torch.arange(n) % 6]
    groups = torch.randint(NUM_GROUPS, (n,), generator=generator)
    weight = torch.rand(n, generator=generator, dtype=torch.float64) if weighted else None
    return Batch(inputs, target, groups, weight)


def scatter(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Move a space's free parameters off their start, where much is zero by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)


# Oracles --------------------------------------------------------------------------------------


def leaves(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def forward(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of a copy of the model in its modes, and the copy's trainable weights.

    The random state is not touched, so each call draws the same dropout mask.
    """
    clone = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        return clone(inputs), leaves(clone)


def dense_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """J, shape ``(n k, weights)``, one reverse pass for each logit."""
    logits, weights = forward(model, inputs)
    rows = [
        flatten(torch.autograd.grad(f, weights, retain_graph=True, materialize_grads=True))
        for f in logits.reshape(-1)
    ]
    return torch.stack(rows)


def class_loss(reduction: Any = "mean", *, groups: bool = False) -> TunableCrossEntropy:
    """All of w, l and delta free, off their start."""
    space = ClassSpace(GROUP_COUNTS if groups else COUNTS, learn=PARTS).double()
    scatter(space)
    return TunableCrossEntropy(space, reduction=reduction)


def _gradient_and_weights(
    model: nn.Module, loss: TunableCrossEntropy, batch: Batch
) -> tuple[Tensor, list[Tensor]]:
    logits, weights = forward(model, batch.inputs)
    value = loss.at(
        loss.space(),
        logits,
        batch.target,
        groups=batch.groups,
        sample_weight=batch.sample_weight,
    )
    gradient = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
    return flatten(gradient), weights


def training_gradient(model: nn.Module, loss: TunableCrossEntropy, batch: Batch) -> Tensor:
    """dL/dtheta at the space's present point, flat, differentiable in the space."""
    return _gradient_and_weights(model, loss, batch)[0]


def dense_hessian(model: nn.Module, loss: TunableCrossEntropy, batch: Batch) -> Tensor:
    """d2L/dtheta2 by double backward, one reverse pass for each weight."""
    gradient, weights = _gradient_and_weights(model, loss, batch)
    rows = [
        flatten(torch.autograd.grad(g, weights, retain_graph=True, materialize_grads=True))
        for g in gradient
    ]
    return torch.stack(rows)


def validation_gradient(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    """b, the objective's gradient in evaluation mode, flat."""
    clone = copy.deepcopy(model).eval()
    value = objective(
        clone(batch.inputs), batch.target, groups=batch.groups, sample_weight=batch.sample_weight
    )
    return flatten(torch.autograd.grad(value, leaves(clone), materialize_grads=True))


def logit_curvature(
    loss: TunableCrossEntropy, logits: Tensor, batch: Batch, *, reduction: str = "mean"
) -> Tensor:
    """d2L/df2 by its formula, c_i D (diag(p) - p p') D for example i, shape ``(n k, n k)``."""
    n, k = logits.shape
    parameters = loss.space().detach()
    rows = [
        torch.full((n, k), value, dtype=torch.float64)
        if p is None
        else (p if p.ndim == 1 else p[batch.groups]).expand(n, k)
        for p, value in zip(parameters, (1.0, 0.0, 1.0), strict=True)
    ]
    weight, additive, delta = (row.numpy() for row in rows)
    z = delta * logits.detach().numpy() + additive
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    c = weight[np.arange(n), batch.target.numpy()]
    if batch.sample_weight is not None:
        c = c * batch.sample_weight.numpy()
    if reduction == "mean":
        c = c / c.sum()
    dense = np.zeros((n, k, n, k))
    for i in range(n):
        middle = np.diag(p[i]) - np.outer(p[i], p[i])
        dense[i, :, i, :] = c[i] * np.outer(delta[i], delta[i]) * middle
    return torch.from_numpy(dense.reshape(n * k, n * k))


def dense_hypergradient(
    model: nn.Module,
    loss: TunableCrossEntropy,
    objective: Objective,
    train: Batch | list[Batch],
    held: Batch,
    shift: float,
    reduction: str = "mean",
) -> Tensor:
    """-(d2L / d alpha d theta) A^-1 b, each piece by its own slow oracle; L a mean over batches."""
    batches = [train] if isinstance(train, Batch) else train
    total: Any = 0
    for batch in batches:
        J = dense_jacobian(model, batch.inputs)
        logits, _ = forward(model, batch.inputs)
        total = total + J.T @ logit_curvature(loss, logits, batch, reduction=reduction) @ J
    A = total / len(batches) + shift * torch.eye(len(total), dtype=total.dtype)
    q = torch.linalg.solve(A, validation_gradient(model, objective, held))
    along = sum(training_gradient(model, loss, batch) @ q for batch in batches) / len(batches)
    return -flatten(torch.autograd.grad(along, list(loss.space.parameters())))


# Systems given by a matrix --------------------------------------------------------------------

SPECTRUM = [0.05, 0.3, 0.5, 1.0, 1.7, 2.5]


class MatrixSystem:
    """A system given by its matrix, plus the shift; the "logits" are J q with J known as well."""

    def __init__(self, A: Tensor, J: Tensor | None = None, shift: float | Tensor = 0.0) -> None:
        self.A = A + torch.diag(shift + torch.zeros(len(A), dtype=A.dtype))
        self.J = 2 * torch.eye(len(A), dtype=A.dtype) if J is None else J
        self.products = self.tangents = 0
        self.shift = shift
        self.preconditioner: Tensor | None = None

    def tangent(self, vector: Tensor) -> Tensor:
        self.tangents += 1
        return self.J @ vector

    def product(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        self.products += 1
        return self.A @ vector, self.J @ vector

    def quadratic(self, vector: Tensor, tangent: Tensor) -> Tensor:
        torch.testing.assert_close(tangent, self.J @ vector)
        return (vector @ self.A @ vector).double()


def matrix(eigenvalues: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.T


def vector(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Toy data -------------------------------------------------------------------------------------


def blobs(
    counts: list[int] | tuple[int, ...] = (120, 40, 12),
    *,
    seed: int = 0,
    groups: bool = False,
    spread: float = 1.0,
) -> ArrayData:
    """Overlapping Gaussian classes in the plane; with groups, the second is shifted."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    angle = 2 * torch.pi * target / len(counts)
    inputs = torch.stack([angle.cos(), angle.sin()], dim=1)
    inputs = inputs + spread * torch.randn(len(target), 2, generator=generator)
    membership = None
    if groups:
        membership = torch.arange(len(target)) % 2
        inputs = inputs + 0.5 * membership[:, None]
    return ArrayData.of(inputs, target, groups=membership)


def linear_factory(num_classes: int = 3) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(2, num_classes)
