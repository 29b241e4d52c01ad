r"""The hypergradient by the implicit function theorem.

.. math::
    \frac{dF}{d\alpha} = -\frac{\partial^2 L}{\partial \alpha \, \partial \theta} q,
    \qquad A q = \nabla_\theta F .

There is no direct term: the objective F sees raw logits of inputs that are not augmented, which
alpha enters only through the weights. alpha is the loss's part and the augmentation's, with one
solution q for both. Weights, buffers, gradients, modes and random state are left bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.augment import drawn
from autobalance.data import Batch
from autobalance.functional import Passes, Processes, borrowed, flatten, trainable, unwrapped
from autobalance.hypergrad.curvature import LogitLoss, TrainingSystem
from autobalance.hypergrad.solvers import Carried, Solution, Solver
from autobalance.losses import check_width
from autobalance.objectives import Objective, RunningRisks
from autobalance.spaces import TunableCrossEntropy

WHOLE = 1 << 24
"""Numbers in validation inputs that pass through the network at once, of 111 photographs of 224 pixels."""


@dataclass(frozen=True)
class Hypergradient:
    """Derivative of the objective by the space's free parameters.

    Attributes
    ----------
    gradients : list of Tensor
        One for each of ``loss.space.parameters()``, then of ``augment``'s, in their order.
    objective : float
        Its differentiable value on the validation batch.
    hard_objective : float
        The same over the 0-1 error, in [0, 1].
    solution : Solution
        The solved system, with diagnostics.
    predicted : int
        How many classes the network predicts on the validation batch.
    finite : bool
        Whether all gradients are finite, with the direction that a solver may carry on with.
    """

    gradients: list[Tensor]
    objective: float
    hard_objective: float
    solution: Solution
    predicted: int
    finite: bool


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
    augment: nn.Module | None = None,
) -> Hypergradient:
    """Hypergradient of the objective on one validation batch through training batches.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is trained; the validation pass switches to evaluation mode. With
        DistributedDataParallel each process gives its own batches, and all get the hypergradient of
        their unions; each must take part.
    loss : TunableCrossEntropy
        The training loss; its space's parameters are differentiated by.
    objective : Objective or RunningRisks
        What is to become small on validation data.
    train_batch : Batch or sequence of Batch
        On the model's device. Products are means over several, at the memory of one.
    validation_batch : Batch
        On the model's device. Inputs of more than `WHOLE` numbers pass through the network in parts, of
        no more than that or than a training batch has, so that no large batch needs much memory.
    solver : Solver
        How to solve ``A q = b``.
    weight_decay : float or Tensor
        The lower level's coupled L2 penalty, part of its curvature; one number, or one per
        trainable weight, flat.
    preconditioner : Tensor, optional
        The lower optimiser's own, flat, for solvers that make use of it.
    carried : mapping, optional
        ``solution.carried`` of the last upper step.
    augment : nn.Module, optional
        What the network trains on in place of a batch's inputs, ``augment(inputs, target,
        groups)``; its trainable parameters are differentiated by as well.

    Raises
    ------
    InputError
        If the model has no trainable weight, its logits have another width than the loss, or a
        batch is too small for BatchNorm.
    """
    processes, model = Processes.of(model), unwrapped(model)
    passes = Passes(model, processes)
    train_batches = [train_batch] if isinstance(train_batch, Batch) else train_batch
    if not passes.parameters:
        raise InputError("The model has no trainable parameter: nothing depends on the loss.")
    leaves = list(passes.parameters.values())
    free = list(loss.space.parameters())
    strengths = [] if augment is None else list(trainable(augment).values())

    with borrowed(model), torch.enable_grad():
        model.eval()
        parts = _parts(validation_batch.inputs, train_batches)
        with torch.set_grad_enabled(len(parts) == 1):
            found = [passes(passes.parameters, part) for part in parts]
        # Of several parts the graph begins at the logits, and each is passed once more.
        own = found[0] if len(parts) == 1 else torch.cat(found).requires_grad_()
        check_width(own, loss.space.num_classes)
        sizes = processes.sizes_of(own)
        validation_batch = processes.labels(validation_batch, sizes)
        logits = processes.union(own, sizes)
        given = {
            "groups": validation_batch.groups,
            "sample_weight": validation_batch.sample_weight,
        }
        value = objective(logits, validation_batch.target, **given)
        hard = objective.hard_value(logits.detach(), validation_batch.target, **given)
        classes = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
        predicted = classes.index_fill(0, logits.detach().argmax(dim=1), 1.0).sum()
        if len(parts) == 1:
            b = flatten(torch.autograd.grad(value, leaves, materialize_grads=True))
        else:
            [pull] = torch.autograd.grad(value, [own])
            pulls = zip(parts, pull.split([len(part) for part in parts]), strict=True)
            b = torch.zeros(
                sum(p.numel() for p in leaves), dtype=leaves[0].dtype, device=pull.device
            )
            for part, by_logits in pulls:
                b += _pulled(passes, part, by_logits)
        b = processes.summed(b)
        numbers = torch.stack([t.detach().double() for t in (value, hard, predicted)])
        del found, logits, own, value  # with many classes they count beside what follows

    with borrowed(model), torch.enable_grad():
        design = loss.space()

        def logit_loss(batch: Batch) -> LogitLoss:
            batch = processes.labels(batch)
            return lambda f: loss.at(
                design, f, batch.target, groups=batch.groups, sample_weight=batch.sample_weight
            )

        inputs, chances = zip(*(drawn(augment, batch) for batch in train_batches), strict=True)
        system = TrainingSystem(
            passes,
            [
                (x.detach() if strengths else x, logit_loss(batch))
                for x, batch in zip(inputs, train_batches, strict=True)
            ],
            free,
            weight_decay + solver.damping,
            curvature=solver.curvature,
            preconditioner=preconditioner,
        )
        solution = solver.solve(system, b, carried)
        gradients = [-g for g in system.mixed(solution.tangent)]
        if strengths:
            # Magnitudes act through the inputs, hard gates through how likely the draw was.
            pulls = system.mixed_by_inputs(solution.direction, solution.tangent)
            pairs = list(zip(inputs, pulls, strict=True))
            slopes = system.slopes(solution.tangent)
            for chance, slope, batch in zip(chances, slopes, train_batches, strict=True):
                if chance is not None:
                    labels = processes.labels(batch).target
                    gain = advantage(slope, labels, loss.space.num_classes)
                    pairs.append((chance, gain[processes.rows(chance)]))
            outputs, weights = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
            found = torch.autograd.grad(outputs, strengths, weights, materialize_grads=True)
            gradients += [-processes.summed(g) for g in found]
    finite = [torch.isfinite(t).all() for t in (*gradients, solution.direction)]
    numbers = torch.cat([numbers, torch.stack(finite).all().double().view(1)])
    value, hard, predicted, all_finite = numbers.tolist()  # one wait for a GPU
    return Hypergradient(gradients, value, hard, solution, int(predicted), bool(all_finite))


def _parts(inputs: Any, train_batches: Sequence[Batch]) -> Sequence[Any]:
    """Validation inputs as they pass through the network, each part in the memory of a training batch."""
    if not isinstance(inputs, Tensor):
        return [inputs]
    trained = [b.inputs.numel() for b in train_batches if isinstance(b.inputs, Tensor)]
    most = max([WHOLE, *trained])
    if inputs.numel() <= most:
        return [inputs]
    return inputs.split(max(1, most * len(inputs) // inputs.numel()))


def _pulled(passes: Passes, inputs: Any, pull: Tensor) -> Tensor:
    """``J^T pull`` for a part's logits, flat."""
    logits = passes(passes.parameters, inputs)
    leaves = list(passes.parameters.values())
    return flatten(torch.autograd.grad(logits, leaves, pull, materialize_grads=True))


def advantage(slopes: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Each example's slope less what the others would have it be: a mean of theirs, mostly of its class.

    What is subtracted does not depend on the example's own gates, so times the gradient of their log
    probability this is without bias the derivative by their probability, with less noise than the
    slopes alone (Williams, "Simple Statistical Gradient-Following Algorithms", 1992).

    Parameters
    ----------
    slopes : Tensor
        What each example adds to <dL/dtheta, q>, shape ``(n,)``.
    target : Tensor
        Class indices ``(n,)``.
    num_classes : int
        k.
    """
    known = target.clamp(min=0)
    others = (slopes.sum() - slopes) / max(len(slopes) - 1, 1)
    empty = slopes.new_zeros(num_classes)
    total = empty.index_add(0, known, slopes)[known] - slopes
    count = empty.index_add(0, known, torch.ones_like(slopes))[known] - 1
    return slopes - (total + others) / (count + 1)
