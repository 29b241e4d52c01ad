r"""The hypergradient by the implicit function theorem.

.. math::
    \frac{dF}{d\alpha} = -\frac{\partial^2 L}{\partial \alpha \, \partial \theta} q,
    \qquad A q = \nabla_\theta F .

There is no direct term: the objective F sees raw logits, which alpha enters only through the
weights. Weights, buffers, gradients, modes and random state are left bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autobalance.checks import InputError
from autobalance.data.batches import Batch
from autobalance.hypergrad.solvers import Carried, Solution, Solver
from autobalance.hypergrad.system import (
    LogitLoss,
    TrainingSystem,
    borrowed,
    call,
    eager,
    flatten,
    trainable,
)
from autobalance.losses.modules import check_width
from autobalance.objectives import Objective, RunningRisks
from autobalance.tunable import TunableCrossEntropy


@dataclass(frozen=True)
class Hypergradient:
    """Derivative of the objective by the space's free parameters.

    Attributes
    ----------
    gradients : list of Tensor
        One for each of ``loss.space.parameters()``, in their order.
    objective : float
        Its differentiable value on the validation batch.
    hard_objective : float
        The same over the 0-1 error, in [0, 1].
    solution : Solution
        The solved system, with diagnostics.
    predicted : int
        How many classes the network predicts on the validation batch.
    """

    gradients: list[Tensor]
    objective: float
    hard_objective: float
    solution: Solution
    predicted: int

    @property
    def finite(self) -> bool:
        """Whether all is finite, with the direction that a solver may carry on with."""
        found = [*self.gradients, self.solution.direction]
        return all(bool(torch.isfinite(t).all()) for t in found)


def hypergradient(
    model: nn.Module,
    loss: TunableCrossEntropy,
    objective: Objective | RunningRisks,
    train_batch: Batch | Sequence[Batch],
    validation_batch: Batch,
    *,
    solver: Solver,
    weight_decay: float | Tensor = 0.0,
    preconditioner: Tensor | None = None,
    carried: Carried | None = None,
) -> Hypergradient:
    """Hypergradient of the objective on one validation batch through training batches.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is trained; the validation pass switches to evaluation mode.
    loss : TunableCrossEntropy
        The training loss; its space's parameters are differentiated by.
    objective : Objective or RunningRisks
        What is to become small on validation data.
    train_batch : Batch or sequence of Batch
        On the model's device. Products are means over several, at the memory of one.
    validation_batch : Batch
        On the model's device.
    solver : Solver
        How to solve ``A q = b``.
    weight_decay : float or Tensor
        The lower level's coupled L2 penalty, part of its curvature; one number, or one per
        trainable weight, flat.
    preconditioner : Tensor, optional
        The lower optimiser's own, flat, for solvers that make use of it.
    carried : mapping, optional
        ``solution.carried`` of the last upper step.

    Raises
    ------
    InputError
        If the model has no trainable weight, its logits have another width than the loss, or a
        batch is too small for BatchNorm.
    """
    model = eager(model)
    train_batches = [train_batch] if isinstance(train_batch, Batch) else train_batch
    parameters = trainable(model)
    if not parameters:
        raise InputError("The model has no trainable parameter: nothing depends on the loss.")
    leaves = list(parameters.values())
    free = list(loss.space.parameters())

    with borrowed(model), torch.enable_grad():
        model.eval()
        logits = call(model, dict(parameters), validation_batch.inputs)
        check_width(logits, loss.space.num_classes)
        given = {
            "groups": validation_batch.groups,
            "sample_weight": validation_batch.sample_weight,
        }
        value = objective(logits, validation_batch.target, **given)
        hard = objective.hard(logits.detach(), validation_batch.target, **given)
        predicted = len(logits.detach().argmax(dim=1).unique())
        b = flatten(torch.autograd.grad(value, leaves, materialize_grads=True))

    with borrowed(model), torch.enable_grad():
        design = loss.space()

        def logit_loss(batch: Batch) -> LogitLoss:
            return lambda f: loss.at(
                design, f, batch.target, groups=batch.groups, sample_weight=batch.sample_weight
            )

        system = TrainingSystem(
            model,
            [(batch.inputs, logit_loss(batch)) for batch in train_batches],
            free,
            weight_decay + solver.damping,
            curvature=solver.curvature,
            preconditioner=preconditioner,
        )
        solution = solver.solve(system, b, carried)
        gradients = [-g for g in system.mixed(solution.tangent)]
    return Hypergradient(gradients, float(value.detach()), hard, solution, predicted)
