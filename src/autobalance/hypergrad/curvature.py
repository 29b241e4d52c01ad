r"""The linear system behind a hypergradient, on one training batch or several.

At weights theta, with logits f = f(x; theta), batch loss L(f; alpha) and J = df/dtheta, the
Gauss-Newton system and the mixed product are

.. math::
    A = J^T \frac{\partial^2 L}{\partial f^2} J + (\text{weight decay} + \text{damping}) I,
    \qquad
    \frac{\partial^2 L}{\partial \alpha \, \partial \theta} q
    = \frac{\partial}{\partial \alpha} \left\langle \frac{\partial L}{\partial f}, J q \right\rangle .

alpha enters after the logits, so once u = J q is known (one forward-mode pass) the mixed product
costs a derivative of the size of the logits. With several batches A and the mixed product are
means over them, and only one batch's graph is in memory at a time.

The parameters of an augmentation enter before the network, by x, and their mixed product goes
through dL/dx at weights moved along q, by a central difference; see
`TrainingSystem.mixed_by_inputs`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from autobalance.functional import ALONE, Passes, Processes, flatten, unflatten

LogitLoss = Callable[[Tensor], Tensor]
Curvature = Literal["gauss_newton", "hessian"]

LOGIT_STEP = 0.3
"""How far the central difference of `TrainingSystem.mixed_by_inputs` moves the logits, root mean square."""

# Networks found to hold an operation without a forward-mode rule.
_without_forward_mode: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class TrainingSystem:
    """Products with A, J and the mixed derivative, all on the same batches, mode and dropout masks.

    Parameters
    ----------
    model : nn.Module or Passes
        In the mode in which it is trained; with `Passes` their processes are those that count.
    batches : sequence of (inputs, loss)
        Each batch's inputs, and its loss as a function of logits ``(n, k)`` alone, differentiable
        twice. With several processes the inputs are this one's and the loss is of the logits of all.
    alpha : sequence of Tensor
        What the loss is to be differentiated by, beside the logits.
    shift : float or Tensor
        Weight decay plus damping, added to the curvature's diagonal; one number, or one per
        trainable weight, flat.
    curvature : {"gauss_newton", "hessian"}
        "hessian" adds the second derivative of the logits, by double backward: exact, dearer, and
        in general not positive definite.
    preconditioner : Tensor, optional
        The lower optimiser's own, flat: what it multiplies gradients by. None means 1.
    processes : Processes
        Those that train the model together. Products and tangents are of the union of their rows.
    """

    def __init__(
        self,
        model: nn.Module | Passes,
        batches: Sequence[tuple[Any, LogitLoss]],
        alpha: Sequence[Tensor],
        shift: float | Tensor,
        *,
        curvature: Curvature = "gauss_newton",
        preconditioner: Tensor | None = None,
        processes: Processes = ALONE,
    ) -> None:
        passes = model if isinstance(model, Passes) else Passes(model, processes)
        keep = len(batches) == 1
        self.batches = [_BatchSystem(passes, inputs, loss, keep) for inputs, loss in batches]
        self.alpha = list(alpha)
        self.shift = shift
        self.curvature = curvature
        self.preconditioner = preconditioner

    def tangent(self, vector: Tensor) -> Tensor:
        """J v, the logits' change along v, shape ``(n, k)`` over all batches."""
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
        passes: Passes,
        inputs: Any,
        loss: LogitLoss,
        keep_graph: bool,
    ) -> None:
        self.passes = passes
        self.processes = passes.processes
        self.model = passes.model
        self.inputs = inputs
        self.loss = loss
        self.keep_graph = keep_graph
        self.parameters = passes.parameters
        self.leaves = list(self.parameters.values())
        self._random: tuple[Tensor, Tensor | None] | None = None
        self._logits: Tensor | None = None  # this process's, with their graph
        self._gradient: Tensor | None = None  # of the loss, by the weights, with its graph
        self._point: tuple[Tensor, Tensor] | None = None
        self._sizes: list[int] | None = None  # rows of each process, once they are known

    @property
    def size(self) -> int:
        """Rows of the logits, of all processes."""
        return len(self._at()[0])

    def tangent(self, vector: Tensor) -> Tensor:
        """J v by one forward-mode pass, or where the network has no such rules by two backward."""
        directions = unflatten(vector, self.leaves)
        if self.model not in _without_forward_mode:
            try:
                return self._forward_mode(directions)
            except (NotImplementedError, RuntimeError) as error:
                if not _is_missing_rule(error):
                    raise
                _without_forward_mode.add(self.model)
                warnings.warn(
                    "Part of the network has no forward-mode derivative; hypergradients use double "
                    f"backward, which is slower. ({str(error).splitlines()[0]})",
                    stacklevel=2,
                )
        return self._double_backward(directions)

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
        return (self._at()[1] * tangent).sum(dim=1).detach()

    def pull(self, tangent: Tensor) -> Tensor:
        """J' (d2L/df2) u, flat."""
        logits = self._graph()
        curved = self.curved(tangent)[self.processes.rows(logits, self._sizes)]
        pulled = torch.autograd.grad(
            logits,
            self.leaves,
            curved.to(logits.dtype),
            retain_graph=self.keep_graph,
            materialize_grads=True,
        )
        return self.processes.summed(flatten(pulled))

    def hessian_product(self, vector: Tensor) -> Tensor:
        """(d2L/dtheta2) v by double backward, flat."""
        gradient = self._gradient
        if gradient is None:
            value = self.loss(self._union(self._graph()))
            gradient = flatten(
                torch.autograd.grad(value, self.leaves, create_graph=True, materialize_grads=True)
            )
            if self.keep_graph:
                self._gradient = gradient
        product = torch.autograd.grad(
            gradient @ vector, self.leaves, retain_graph=self.keep_graph, materialize_grads=True
        )
        return self.processes.summed(flatten(product))

    def input_gradient_along(self, vector: Tensor, step: float) -> Tensor:
        """Central difference of dL/dx along v, of the inputs' shape."""
        directions = unflatten(vector, self.leaves)
        inputs = self.inputs.detach().requires_grad_()
        self._logits = self._gradient = None  # a graph that would be there beside those below
        sides = []
        for signed in (step, -step):
            moved = {
                name: p.detach() + signed * t
                for (name, p), t in zip(self.parameters.items(), directions, strict=True)
            }
            value = self.loss(self._union(self._call(moved, inputs)))
            sides.append(torch.autograd.grad(value, inputs)[0])
        return (sides[0] - sides[1]) / (2 * step)

    def _forward_mode(self, directions: list[Tensor]) -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            # A part of a larger tensor would be copied, each by kernels of its own.
            own = [torch.empty_like(p) for p in self.leaves]
            torch._foreach_copy_(own, directions)  # pyright: ignore[reportPrivateImportUsage]
            duals = {
                name: forward_ad.make_dual(p.detach(), t)
                for (name, p), t in zip(self.parameters.items(), own, strict=True)
            }
            primal, tangent = forward_ad.unpack_dual(self._call(duals, dual=True))
        self._set_point(primal)
        return self._union(torch.zeros_like(primal) if tangent is None else tangent)

    def _double_backward(self, directions: list[Tensor]) -> Tensor:
        logits = self._graph()
        dummy = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(
            logits, self.leaves, dummy, create_graph=True, materialize_grads=True
        )
        tangent = torch.autograd.grad(
            pulled, dummy, directions, retain_graph=self.keep_graph, materialize_grads=True
        )[0]
        return self._union(tangent)

    def _graph(self) -> Tensor:
        """Logits with their graph; kept for later products where one batch is all there is."""
        if self._logits is not None:
            return self._logits
        logits = self._call(self.parameters)
        self._set_point(logits)
        if self.keep_graph:
            self._logits = logits
        return logits

    def _union(self, rows: Tensor) -> Tensor:
        """Rows of all processes."""
        if self._sizes is None:
            self._sizes = self.processes.sizes_of(rows)
        return self.processes.union(rows, self._sizes)

    def _call(
        self, parameters: Mapping[str, Tensor], inputs: Any = None, *, dual: bool = False
    ) -> Tensor:
        device = self.leaves[0].device
        if self._random is None:
            on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
            self._random = torch.random.get_rng_state(), on_device
        torch.random.set_rng_state(self._random[0])
        if self._random[1] is not None:
            torch.cuda.set_rng_state(self._random[1], device)
        with _unfused() if self.model in _without_forward_mode else nullcontext():
            return self.passes(parameters, self.inputs if inputs is None else inputs, dual=dual)

    def _at(self) -> tuple[Tensor, Tensor]:
        """The logits as a leaf of their own, and the loss's gradient there with its graph."""
        if self._point is None:
            self._graph()
        assert self._point is not None  # set by every pass
        return self._point

    def _set_point(self, logits: Tensor) -> None:
        if self._point is None:
            leaf = self._union(logits.detach()).requires_grad_()
            gradient = torch.autograd.grad(self.loss(leaf), leaf, create_graph=True)[0]
            self._point = leaf, gradient


@contextmanager
def _unfused() -> Iterator[None]:
    """Without the fused recurrent layers, which lack second derivatives too; torch's own have them."""
    mkldnn = torch.backends.mkldnn
    before = mkldnn.enabled
    mkldnn.enabled = False  # `mkldnn.flags` would set TF32 as well, which warns on a CPU
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        mkldnn.enabled = before


def _is_missing_rule(error: Exception) -> bool:
    """Whether torch says that an operation has no forward-mode derivative."""
    text = str(error).lower()
    return "forward ad" in text or "jvp" in text or "forward mode" in text
