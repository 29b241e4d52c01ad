"""A convex problem whose hypergradient a retraining gives, for tests of hypergradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from autobalance.data.batches import Batch
from autobalance.functional.model import flatten, unflatten
from autobalance.objectives.aggregates import BalancedError
from autobalance.objectives.surrogates import SmoothError
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import (
    blobs,
)

DECAY = 0.05


SMOOTH = BalancedError(surrogate=SmoothError(temperature=1.0))


def retrained(loss: TunableCrossEntropy, train: Batch, start: nn.Module) -> nn.Module:
    """The lower level's optimum, to a gradient norm below 1e-10."""
    model = copy.deepcopy(start)
    weights = list(model.parameters())

    def value() -> Tensor:
        fit = loss(model(train.inputs), train.target, groups=train.groups)
        return fit + DECAY / 2 * torch.stack([w.square().sum() for w in weights]).sum()

    optimizer = torch.optim.LBFGS(
        weights, max_iter=500, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        v = value()
        v.backward()
        return float(v.detach())

    optimizer.step(closure)
    # The line search stops where values no longer tell points apart; Newton's steps do the rest.
    for _ in range(4):
        g = flatten(torch.autograd.grad(value(), weights, create_graph=True))
        if float(g.detach().norm()) < 1e-12:
            break
        rows = [flatten(torch.autograd.grad(e, weights, retain_graph=True)) for e in g]
        step = torch.linalg.solve(torch.stack(rows), g.detach())
        with torch.no_grad():
            for w, part in zip(weights, unflatten(step, weights), strict=True):
                w -= part
    assert float(flatten(torch.autograd.grad(value(), weights)).norm()) < 1e-10
    return model


def toy(groups: bool) -> tuple[Batch, Batch, nn.Module]:
    train, held = (
        Batch(d.inputs.double(), d.target, d.groups)
        for d in (
            blobs((40, 12, 5), seed=1, groups=groups),
            blobs((20, 9, 6), seed=2, groups=groups),
        )
    )
    return train, held, nn.Linear(2, 3).double()
