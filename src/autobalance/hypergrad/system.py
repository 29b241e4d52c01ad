r"""The linear system behind a hypergradient, on one training batch.

At weights theta, with logits f = f(x; theta), batch loss L(f; alpha) and J = df/dtheta, the
Gauss-Newton system and the mixed product are

.. math::
    A = J^T \frac{\partial^2 L}{\partial f^2} J + (\text{weight decay} + \text{damping}) I,
    \qquad
    \frac{\partial^2 L}{\partial \alpha \, \partial \theta} q
    = \frac{\partial}{\partial \alpha} \left\langle \frac{\partial L}{\partial f}, J q \right\rangle .

alpha enters after the logits, so once u = J q is known (one forward-mode pass) the mixed product
costs a derivative of the size of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

LogitLoss = Callable[[Tensor], Tensor]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training moves, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Lend the model out: each module's mode and the random state come back as they were.

    Weights and buffers are not written to by what happens inside: passes go through `call`.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, training in modes:
            module.training = training


def call(model: nn.Module, parameters: dict[str, Any], inputs: Any) -> Tensor:
    """Logits at these parameters; buffers (BatchNorm's) are updated on copies."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return functional_call(model, {**parameters, **buffers}, (inputs,))


class TrainingSystem:
    """Products with A, J and the mixed derivative, all on the same batch, mode and dropout mask.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is trained.
    inputs : Any
        The batch's inputs.
    loss : callable
        Batch loss as a function of logits ``(n, k)`` alone, differentiable twice.
    alpha : sequence of Tensor
        What the loss is to be differentiated by, beside the logits.
    shift : float or Tensor
        Weight decay plus damping, added to the curvature's diagonal; one number, or one per
        trainable weight, flat.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        loss: LogitLoss,
        alpha: Sequence[Tensor],
        shift: float | Tensor,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.loss = loss
        self.alpha = list(alpha)
        self.shift = shift
        self.parameters = trainable(model)
        self.leaves = list(self.parameters.values())
        self._rng = torch.random.get_rng_state()
        self._device = self.leaves[0].device
        self._device_rng = (
            torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        )
        self._logits: Tensor | None = None
        self._logit_leaf: Tensor | None = None
        self._logit_gradient: Tensor | None = None

    def tangent(self, vector: Tensor) -> Tensor:
        """J v, the logits' change along v, shape ``(n, k)``; one forward-mode pass."""
        directions = unflatten(vector, self.leaves)
        with torch.no_grad(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(p.detach(), t)
                for (name, p), t in zip(self.parameters.items(), directions, strict=True)
            }
            primal, tangent = forward_ad.unpack_dual(self._call(duals))
        if self._logit_leaf is None:
            self._set_logits(primal)
        return torch.zeros_like(primal) if tangent is None else tangent

    def product(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """A v and J v."""
        tangent = self.tangent(vector)
        curved = torch.autograd.grad(
            self._gradient_along(tangent), self._leaf(), retain_graph=True, materialize_grads=True
        )[0]
        if self._logits is None:
            self._logits = self._call(dict(self.parameters))
        pulled = torch.autograd.grad(
            self._logits, self.leaves, curved, retain_graph=True, materialize_grads=True
        )
        return flatten(pulled) + self.shift * vector, tangent

    def mixed(self, tangent: Tensor) -> list[Tensor]:
        """d/dalpha <dL/df, u> for u = J q, one tensor for each of alpha."""
        return list(
            torch.autograd.grad(
                self._gradient_along(tangent),
                self.alpha,
                retain_graph=True,
                materialize_grads=True,
            )
        )

    def _call(self, parameters: dict[str, Any]) -> Tensor:
        torch.random.set_rng_state(self._rng)
        if self._device_rng is not None:
            torch.cuda.set_rng_state(self._device_rng, self._device)
        return call(self.model, parameters, self.inputs)

    def _set_logits(self, logits: Tensor) -> None:
        leaf = logits.detach().clone().requires_grad_()
        self._logit_leaf = leaf
        self._logit_gradient = torch.autograd.grad(self.loss(leaf), leaf, create_graph=True)[0]

    def _leaf(self) -> Tensor:
        assert self._logit_leaf is not None  # `tangent` ran first
        return self._logit_leaf

    def _gradient_along(self, tangent: Tensor) -> Tensor:
        assert self._logit_gradient is not None  # `tangent` ran first
        return (self._logit_gradient * tangent).sum()
