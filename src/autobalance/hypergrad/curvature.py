r"""The linear system behind a hypergradient, on one training batch or several.

At weights theta, with logits f = f(x; theta), batch loss L(f; alpha) and J = df/dtheta, the
Gauss-Newton system and the mixed product are

.. math::
    A = J^T \frac{\partial^2 L}{\partial f^2} J + (\text{weight decay} + \text{damping}) I,
    \qquad
    \frac{\partial^2 L}{\partial \alpha \, \partial \theta} q
    = \frac{\partial}{\partial \alpha} \left\langle \frac{\partial L}{\partial f}, J q \right\rangle .

Of dense logits ``(n, k, d1, ...)`` the loss is a sum over pixels, so that d2L/df2 has one block of k x k
for each pixel; nothing here needs to know.

alpha enters after the logits, so once u = J q is known (one forward-mode pass) the mixed product
costs a derivative of the size of the logits. With several batches A and the mixed product are
means over them, and only one batch's graph is in memory at a time.

The parameters of an augmentation enter before the network, by x, and their mixed product goes
through dL/dx at weights moved along q, by a central difference; see
`TrainingSystem.mixed_by_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autobalance.functional import (
    ALONE,
    Derivative,
    FunctionalModel,
    Linearization,
    Processes,
    choose_derivative,
    flatten,
    has_exact_hessian,
)

LogitLoss = Callable[[Tensor], Tensor]
Curvature = Literal["gauss_newton", "hessian"]

LOGIT_STEP = 0.3
"""How far the central difference of `TrainingSystem.mixed_by_inputs` moves the logits, root mean square."""


class TrainingSystem:
    """Products with A, J and the mixed derivative, all on the same batches, mode and dropout masks.

    Parameters
    ----------
    model : nn.Module or FunctionalModel
        In the mode in which it is trained; a `FunctionalModel` brings its own processes.
    batches : sequence of (inputs, loss)
        Each batch's inputs, and its loss as a function of logits ``(n, k, ...)`` alone, differentiable
        twice. With several processes the inputs are this one's and the loss is of the logits of all.
    alpha : sequence of Tensor
        What the loss is to be differentiated by, beside the logits.
    shift : float or Tensor
        Weight decay plus damping, added to the curvature's diagonal; one number, or one per
        trainable weight, flat.
    curvature : {"gauss_newton", "hessian"}
        "hessian" adds the second derivative of the logits, by double backward: exact, dearer, and
        in general not positive definite. Where a check of it fails, or cannot be made, it is
        "gauss_newton" after all, with a warning; see `autobalance.functional.has_exact_hessian`.
    preconditioner : Tensor, optional
        The lower optimiser's own, flat: what it multiplies gradients by. None means 1.
    processes : Processes
        Those that train the model together. Products and tangents are of the union of their rows.
    """

    def __init__(
        self,
        model: nn.Module | FunctionalModel,
        batches: Sequence[tuple[Any, LogitLoss]],
        alpha: Sequence[Tensor],
        shift: float | Tensor,
        *,
        curvature: Curvature = "gauss_newton",
        preconditioner: Tensor | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if not isinstance(model, FunctionalModel):
            model = FunctionalModel(model, processes)
        keep = len(batches) == 1
        self.batches = [_BatchSystem(model, inputs, loss, keep) for inputs, loss in batches]
        self.alpha = list(alpha)
        self.shift = shift
        if curvature == "hessian" and not all(batch.has_hessian() for batch in self.batches):
            curvature = "gauss_newton"
        self.curvature: Curvature = curvature
        self.preconditioner = preconditioner

    @property
    def derivative(self) -> Derivative:
        """How J v is computed, see `autobalance.functional.choose_derivative`."""
        return self.batches[0].point.derivative

    def tangent(self, vector: Tensor) -> Tensor:
        """J v, the logits' change along v, in their shape over all batches, ``(n, k, ...)``."""
        return torch.cat([batch.tangent(vector) for batch in self.batches])

    def product(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """A v and J v."""
        total = torch.zeros_like(vector)
        tangents = []
        for batch in self.batches:
            tangents.append(batch.tangent(vector))
            exact = self.curvature == "hessian"
            total += batch.hessian_product(vector) if exact else batch.pull(tangents[-1])
        return total / len(self.batches) + self.shift * vector, torch.cat(tangents)

    def quadratic(self, vector: Tensor, tangent: Tensor) -> Tensor:
        """The form v' A v in float64, for u = J v; without a reverse pass under Gauss-Newton."""
        if self.curvature == "hessian":
            return (vector @ self.product(vector)[0]).double()
        parts = zip(self.batches, self._split(tangent), strict=True)
        nothing = vector.new_zeros((), dtype=torch.float64)
        curved = sum(((batch.curved(u) * u).sum().double() for batch, u in parts), nothing)
        return curved / len(self.batches) + ((self.shift * vector) @ vector).double()

    def mixed(self, tangent: Tensor) -> list[Tensor]:
        """d/dalpha <dL/df, u> for u = J q, one tensor for each of alpha."""
        parts = zip(self.batches, self._split(tangent), strict=True)
        total = sum((batch.gradient_along(u) for batch, u in parts), torch.zeros(()))
        return list(
            torch.autograd.grad(
                total / len(self.batches), self.alpha, retain_graph=True, materialize_grads=True
            )
        )

    def slopes(self, tangent: Tensor) -> list[Tensor]:
        """What each example adds to <dL/dtheta, q> for u = J q, ``(n,)`` for each batch."""
        parts = zip(self.batches, self._split(tangent), strict=True)
        return [batch.slopes(u) / len(self.batches) for batch, u in parts]

    def mixed_by_inputs(self, vector: Tensor, tangent: Tensor) -> list[Tensor]:
        r"""d/dx <dL/dtheta, q>, by a central difference along q, one tensor for each batch's inputs.

        .. math::
            \frac{1}{2 h} \left( \frac{\partial L}{\partial x}(x; \theta + h q)
                - \frac{\partial L}{\partial x}(x; \theta - h q) \right),
            \qquad h = \frac{\mathrm{LOGIT\_STEP}}{\mathrm{rms}(J q)}

        Two passes to the inputs, 1.5 training steps; double backward takes 6, and torch's forward
        mode followed by a reverse pass is wrong through BatchNorm in training mode. h is not small:
        where a ReLU passes its kink dL/dx jumps, so that a small h gives a few examples all the
        weight. At the default the noise over batches is that of double backward, and no bias was
        seen (docs/experiments.md).

        Parameters
        ----------
        vector : Tensor
            q, flat.
        tangent : Tensor
            J q, whose size sets h.
        """
        size = float(tangent.square().mean().sqrt())
        if size == 0.0:
            return [torch.zeros_like(batch.inputs) for batch in self.batches]
        step = LOGIT_STEP / size
        return [
            batch.input_gradient_along(vector, step) / len(self.batches) for batch in self.batches
        ]

    def _split(self, tangent: Tensor) -> tuple[Tensor, ...]:
        return tangent.split([batch.size for batch in self.batches])


class _BatchSystem:
    """The system's parts that belong to one batch."""

    def __init__(
        self,
        network: FunctionalModel,
        inputs: Any,
        loss: LogitLoss,
        keep_graph: bool,
    ) -> None:
        self.point = Linearization(network, inputs, keep_graph=keep_graph)
        self.point.derivative = choose_derivative(network, inputs)
        self.processes = network.processes
        self.inputs = inputs
        self.loss = loss
        self._gradient: Tensor | None = None  # of the loss, by the weights, with its graph
        self._loss_point: tuple[Tensor, Tensor] | None = None
        self._sizes: list[int] | None = None  # rows of each process, once they are known

    @property
    def size(self) -> int:
        """Rows of the logits, of all processes."""
        return len(self._at()[0])

    def has_hessian(self) -> bool:
        """Whether `hessian_product` is that of the gradient that trains the network."""
        return has_exact_hessian(self.point.network, self.inputs, self.point.derivative)

    def tangent(self, vector: Tensor) -> Tensor:
        """J v, shape ``(n, k)``."""
        tangent = self.point.jvp(vector)
        self._at()
        return self._union(tangent)

    def curved(self, tangent: Tensor) -> Tensor:
        """(d2L/df2) u, shape ``(n, k)``."""
        leaf, _ = self._at()
        return torch.autograd.grad(
            self.gradient_along(tangent), leaf, retain_graph=True, materialize_grads=True
        )[0]

    def gradient_along(self, tangent: Tensor) -> Tensor:
        """<dL/df, u>, differentiable in alpha."""
        return (self._at()[1] * tangent).sum()

    def slopes(self, tangent: Tensor) -> Tensor:
        """<dL/df, u> example by example, ``(n,)``."""
        return (self._at()[1] * tangent).flatten(1).sum(dim=1).detach()

    def pull(self, tangent: Tensor) -> Tensor:
        """J' (d2L/df2) u, flat."""
        curved = self.curved(tangent)
        own = curved[self.processes.rows(self.point.value, self._sizes)]
        return self.processes.all_reduce(self.point.vjp(own))

    def hessian_product(self, vector: Tensor) -> Tensor:
        """(d2L/dtheta2) v by double backward, flat."""
        gradient = self._gradient
        if gradient is None:
            value = self.loss(self._union(self.point.logits_with_leaves()[0]))
            gradient = flatten(self.point.gradient(value, create_graph=True))
            if self.point.keep_graph:
                self._gradient = gradient
        return self.processes.all_reduce(flatten(self.point.gradient(gradient @ vector)))

    def input_gradient_along(self, vector: Tensor, step: float) -> Tensor:
        """Central difference of dL/dx along v, of the inputs' shape."""
        inputs = self.inputs.detach().requires_grad_()
        self.point.forget_graph()  # it would be there beside those below
        self._gradient = None
        sides = []
        for signed in (step, -step):
            value = self.loss(self._union(self.point.logits_moved(vector, signed, inputs)))
            [side] = self.point.within(lambda v=value: torch.autograd.grad(v, inputs))
            sides.append(side)
        return (sides[0] - sides[1]) / (2 * step)

    def _union(self, rows: Tensor) -> Tensor:
        """Rows of all processes."""
        if self._sizes is None:
            self._sizes = self.processes.sizes_of(rows)
        return self.processes.all_gather_rows(rows, self._sizes)

    def _at(self) -> tuple[Tensor, Tensor]:
        """The logits as a leaf of their own, and the loss's gradient there with its graph."""
        if self._loss_point is None:
            leaf = self._union(self.point.value).detach().requires_grad_()
            gradient = torch.autograd.grad(self.loss(leaf), leaf, create_graph=True)[0]
            self._loss_point = leaf, gradient
        return self._loss_point
