r"""The hypergradient by the implicit function theorem.

.. math::
    \frac{dF}{d\alpha} = -\frac{\partial^2 L}{\partial \alpha \, \partial \theta} q,
    \qquad A q = \nabla_\theta F .

There is no direct term: the objective F sees raw logits of inputs that are not augmented, which
alpha enters only through the weights. alpha is the loss's part and the augmentation's, with one
solution q for both. Weights, buffers, gradients, modes and random state are left bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.augment import draw_batch
from autobalance.data import Batch
from autobalance.functional import (
    Derivative,
    FunctionalModel,
    Linearization,
    Processes,
    evaluation_mode,
    evaluation_of_plain_layers,
    mode_overrides,
    preserve_module_state,
    trainable,
    traits_of,
    unflatten,
    unwrap,
    warn_if_probabilities,
)
from autobalance.hypergrad.curvature import LogitLoss, TrainingSystem
from autobalance.hypergrad.solvers import Solution, Solver, SolverState
from autobalance.losses import check_width
from autobalance.objectives import IGNORED, Objective, RunningRisks
from autobalance.spaces import TunableCrossEntropy

WHOLE = 1 << 24
"""Most input values sent through the network at once: 111 photographs of 224 x 224 pixels."""

Evaluation = Callable[[nn.Module], AbstractContextManager[None]]


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
    derivative : {"forward", "double backward", "central difference"}
        How J v was computed: the first way that agrees with the gradient that trains the network.
    """

    gradients: list[Tensor]
    objective: float
    hard_objective: float
    solution: Solution
    predicted: int
    finite: bool
    derivative: Derivative = "forward"


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
    solver_state: SolverState | None = None,
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
    solver_state : mapping, optional
        ``solution.solver_state`` of the last upper step.
    augment : nn.Module, optional
        What the network trains on in place of a batch's inputs, ``augment(inputs, target,
        groups)``; its trainable parameters are differentiated by as well.

    Raises
    ------
    InputError
        If the model has no trainable weight, its logits have another width than the loss, a
        batch is too small for BatchNorm, no derivative of the network agrees with the gradient that
        trains it, or the network writes to its weights where no copy can be put in their place.
    """
    processes, model = Processes.of(model), unwrap(model)
    traits = traits_of(model)
    batches = [train_batch] if isinstance(train_batch, Batch) else train_batch
    sums = objective.state_dict() if isinstance(objective, RunningRisks) else None
    while True:
        copies = traits.needs_copies
        result: Hypergradient | Exception
        with preserve_module_state(model) as loan, torch.enable_grad():
            try:
                network = FunctionalModel(model, processes)
                if not network.parameters:
                    raise InputError(
                        "The model has no trainable parameter: nothing depends on the loss."
                    )
                b, numbers = _validation_gradient(
                    network, loss, objective, batches, validation_batch
                )
                system = _TrainingSide(network, loss, batches, augment)
                result = system.solve(
                    b, numbers, solver, weight_decay, preconditioner, solver_state
                )
            except Exception as error:
                result = error
        if copies or not (loan.touched or loan.written):
            break
        # Its forward pass writes to its weights: once more, with copies in their place.
        traits.needs_copies = True
        traits.derivatives.clear()
        if sums is not None and isinstance(objective, RunningRisks):
            objective.load_state_dict(sums)
    if isinstance(result, Exception):
        raise result
    if loan.written:
        raise InputError(
            f"Something in the network wrote to {', '.join(loan.written[:3])} by a way that autobalance "
            "cannot turn aside; the values have been restored. Let hooks and other objects write to copies, "
            "or only outside the upper step."
        )
    return result


def _validation_gradient(
    network: FunctionalModel,
    loss: TunableCrossEntropy,
    objective: Objective | RunningRisks,
    train_batches: Sequence[Batch],
    batch: Batch,
) -> tuple[Tensor, Tensor]:
    """dF/dtheta, flat; and the objective, its 0-1 value and how many classes are predicted, in one tensor."""
    processes, leaves = network.processes, list(network.parameters.values())
    parts = _parts(batch.inputs, train_batches)
    is_new = network.traits.evaluation is None
    with _evaluation_of(network, parts[0])(network.model):
        points = [Linearization(network, part, keep_graph=False) for part in parts]
        # Of several parts the graph begins at the logits, and each is passed once more.
        rows = [points[0].logits_with_leaves()[0]] if len(points) == 1 else []
        rows = [row.detach() for row in rows] or [point.evaluate() for point in points]
        own = (rows[0] if len(rows) == 1 else torch.cat(rows)).requires_grad_()
        check_width(own, loss.space.num_classes)
        if is_new:
            warn_if_probabilities(own)
        sizes = processes.sizes_of(own)
        batch = _ignoring(processes.labels(batch, sizes), loss.options.get("ignore_index", IGNORED))
        logits = processes.all_gather_rows(own, sizes)
        given = {"groups": batch.groups, "sample_weight": batch.sample_weight}
        value = objective(logits, batch.target, **given)
        hard = objective.hard_value(logits.detach(), batch.target, **given)
        predicted = _count_predicted(logits.detach(), batch.target)
        [pull] = torch.autograd.grad(value, [own])
        pulls = zip(points, pull.split([len(row) for row in rows]), strict=True)
        b = torch.zeros(sum(p.numel() for p in leaves), dtype=leaves[0].dtype, device=pull.device)
        for point, cotangent in pulls:
            pulled = point.vjp(cotangent)
            b = pulled if len(points) == 1 else b + pulled
    numbers = torch.stack([t.detach().double() for t in (value, hard, predicted)])
    return processes.all_reduce(b), numbers


def _ignoring(batch: Batch, ignore_index: int) -> Batch:
    """The batch with the pixels that the training loss ignores named as objectives know them."""
    if batch.target.ndim == 1 or ignore_index == IGNORED:
        return batch
    return replace(batch, target=batch.target.where(batch.target != ignore_index, IGNORED))


def _count_predicted(logits: Tensor, target: Tensor) -> Tensor:
    """How many classes are predicted of some example, float64; of several labels how many of these."""
    if target.shape == logits.shape:
        return (logits > 0).any(dim=0).sum().double()
    classes = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    return classes.index_fill(0, logits.max(dim=1).indices.flatten(), 1.0).sum()


def _evaluation_of(network: FunctionalModel, inputs: Any) -> Evaluation:
    """How to put the network into evaluation mode, found at its first batch.

    As its author wrote it, unless that loses the gradient of some weights by a part's own `eval`: adapters
    that merge into frozen weights do. Such parts then stay as they are.
    """
    model = network.model
    if network.traits.evaluation is not None:
        return network.traits.evaluation
    chosen: Evaluation = evaluation_mode
    if mode_overrides(model):
        unused: dict[Evaluation, int] = {}
        for evaluation in (evaluation_mode, evaluation_of_plain_layers):
            with evaluation(model):
                point = Linearization(network, inputs, keep_graph=False)
                logits, leaves = point.logits_with_leaves()
                unused[evaluation] = len(leaves)
                if logits.requires_grad:
                    u = torch.linspace(0.5, 1.5, logits.numel()).view(logits.shape).to(logits)
                    pulled = unflatten(point.vjp(u), leaves)
                    unused[evaluation] = sum(not bool(g.any()) for g in pulled)
        chosen = min(unused, key=lambda evaluation: unused[evaluation])
    network.traits.evaluation = chosen
    return chosen


class _TrainingSide:
    """The training loss of the batches as the linear system and the mixed product see it."""

    def __init__(
        self,
        network: FunctionalModel,
        loss: TunableCrossEntropy,
        batches: Sequence[Batch],
        augment: nn.Module | None,
    ) -> None:
        self.network, self.loss, self.batches = network, loss, batches
        self.strengths = [] if augment is None else list(trainable(augment).values())
        self._design = loss.space()
        draws = zip(*(draw_batch(augment, batch) for batch in batches), strict=True)
        self._inputs, self._chances = draws

    def solve(
        self,
        b: Tensor,
        numbers: Tensor,
        solver: Solver,
        weight_decay: float | Tensor,
        preconditioner: Tensor | None,
        solver_state: SolverState | None,
    ) -> Hypergradient:
        """Solve ``A q = b`` and apply the mixed derivative to q."""
        system = TrainingSystem(
            self.network,
            [
                (x.detach() if self.strengths else x, self._logit_loss(batch))
                for x, batch in zip(self._inputs, self.batches, strict=True)
            ],
            list(self.loss.space.parameters()),
            weight_decay + solver.damping,
            curvature=solver.curvature,
            preconditioner=preconditioner,
        )
        solution = solver.solve(system, b, solver_state)
        gradients = [-g for g in system.mixed(solution.tangent)]
        if self.strengths:
            gradients += self._by_augmentation(system, solution)
        finite = [torch.isfinite(t).all() for t in (*gradients, solution.direction)]
        numbers = torch.cat([numbers, torch.stack(finite).all().double().view(1)])
        value, hard, predicted, all_finite = numbers.tolist()  # one wait for a GPU
        return Hypergradient(
            gradients, value, hard, solution, int(predicted), bool(all_finite), system.derivative
        )

    def _logit_loss(self, batch: Batch) -> LogitLoss:
        batch = self.network.processes.labels(batch)
        return lambda f: self.loss.at(
            self._design, f, batch.target, groups=batch.groups, sample_weight=batch.sample_weight
        )

    def _by_augmentation(self, system: TrainingSystem, solution: Solution) -> list[Tensor]:
        """Magnitudes act through the inputs, hard gates through how likely the draw was."""
        processes = self.network.processes
        pulls = system.mixed_by_inputs(solution.direction, solution.tangent)
        pairs = list(zip(self._inputs, pulls, strict=True))
        slopes = system.slopes(solution.tangent)
        for chance, slope, batch in zip(self._chances, slopes, self.batches, strict=True):
            if chance is not None:
                labels = processes.labels(batch).target
                gain = advantage(slope, labels, self.loss.space.num_classes)
                pairs.append((chance, gain[processes.rows(chance)]))
        outputs, weights = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        pulled = torch.autograd.grad(outputs, self.strengths, weights, materialize_grads=True)
        return [-processes.all_reduce(g) for g in pulled]


def _parts(inputs: Any, train_batches: Sequence[Batch]) -> Sequence[Any]:
    """Validation inputs as they pass through the network, each part in the memory of a training batch."""
    if not isinstance(inputs, Tensor):
        return [inputs]
    trained = [b.inputs.numel() for b in train_batches if isinstance(b.inputs, Tensor)]
    most = max([WHOLE, *trained])
    if inputs.numel() <= most:
        return [inputs]
    return inputs.split(max(1, most * len(inputs) // inputs.numel()))


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
