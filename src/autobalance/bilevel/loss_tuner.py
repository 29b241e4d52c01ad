"""One upper step inside any training loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autobalance._validation import InputError, array_of_numbers, instance, one_of, positive, shown
from autobalance.augment import AugmentationPolicy
from autobalance.bilevel.loggers import LoggerAdapter, MetricLogger
from autobalance.data import Batch, as_batch, as_batches, count_by_image
from autobalance.functional import Derivative, Processes, first_process, trainable
from autobalance.hypergrad import Hypergradient, SingleLoop, Solver, hypergradient
from autobalance.losses import check_label_values, describe_outside
from autobalance.objectives import (
    IGNORED,
    Objective,
    RunningRisks,
    as_objective,
    over_labels,
    sign_label_sums,
)
from autobalance.spaces import TunableBinaryCrossEntropy, TunableCrossEntropy, prior_strength

DEFAULT_SOLVER = SingleLoop()


@dataclass(frozen=True)
class UpperStep:
    """What one upper step saw and did.

    Attributes
    ----------
    objective : float
        Differentiable objective on the validation batch before the step.
    hard_objective : float
        The same over the 0-1 error.
    norm : float
        Euclidean norm of the hypergradient.
    residual : float
        Relative residual of the linear system; NaN where the solver does not look at it.
    iterations : int
        Curvature products spent.
    reason : str
        Why the solver stopped.
    skipped : bool
        Whether the hypergradient was not finite, so that nothing moved.
    predicted : int
        How many classes the network predicts on the validation batch: 1 is a collapse.
    derivative : {"forward", "double backward", "central difference"}
        How the network was differentiated: the first way that passed its check, see `Hypergradient`.
    """

    objective: float
    hard_objective: float
    norm: float
    residual: float
    iterations: int
    reason: str
    skipped: bool
    predicted: int
    derivative: Derivative = "forward"


class LossTuner:
    """Tunes a loss on validation data while a network trains with it.

    Every few training steps, call `step` with a training and a validation batch. It leaves the
    network's weights, buffers, gradients, mode and the random state bit-identical, and moves the
    loss's design space by one step along the hypergradient. With a network in
    DistributedDataParallel every process calls it with batches of its own, and the step is that of one
    process on their unions.

    Parameters
    ----------
    loss : TunableCrossEntropy
        The training loss.
    objective : str or Objective
        What the loss is for; see `autobalance.objectives`.
    optimizer : torch.optim.Optimizer, optional
        The network's optimiser, read for its coupled weight decay (SGD's and Adam's, not
        AdamW's), which is part of the training loss's curvature, and for its preconditioner.
    solver : Solver
        How the linear system is solved; the default keeps its solution between steps and refines
        it by one product each.
    lr : float
        Learning rate on the space's parameters. Let it fall with the network's, by a scheduler of yours
        on ``tuner.upper_optimizer``, as `search` does: at a constant rate the loss goes on wandering when
        the weights no longer answer.
    upper : {"adam", "sgd"}
        What moves them: Adam, or SGD with momentum 0.9 as in the paper's code.
    validation_counts : array-like, optional
        Size of the whole validation set, per class ``(k,)`` or per group and class ``(g, k)``. It
        decides how strongly the space is held to its start, see
        `autobalance.spaces.base.prior_strength`. By default each validation batch is taken for the
        whole set. Of weighted examples give the sums of their weights, `ArrayData.masses`.
    effective_counts : array-like, optional
        Effective numbers of these examples, `ArrayData.effective_counts`, in the same shape, where
        they have weights. By default the `validation_counts`.
    augment : nn.Module, optional
        How the training inputs are augmented, for example an `autobalance.augment.AugmentationPolicy`,
        whose strengths are then tuned with the loss. You call it on each training batch,
        ``model(augment(inputs, target))``; `step` takes the batch as it was before.
    adapter : callable
        Makes a `Batch` of what your loader yields; not asked where that is one already.
    logger : MetricLogger, optional
        Told the numbers of every upper step, as by `search`; see `autobalance.bilevel.loggers`. It changes
        nothing.

    Attributes
    ----------
    steps : int
        Upper steps so far.
    skipped, skipped_in_a_row : int
        Those that moved nothing because the hypergradient was not finite: in all, and lately.

    Examples
    --------
    >>> from autobalance import HierarchicalSpace, LossTuner, TunableCrossEntropy
    >>> loss = TunableCrossEntropy(HierarchicalSpace([500, 50, 5]))
    >>> tuner = LossTuner(loss, "balanced_error")
    """

    def __init__(
        self,
        loss: TunableCrossEntropy,
        objective: str | Objective = "balanced_error",
        *,
        optimizer: Optimizer | None = None,
        solver: Solver = DEFAULT_SOLVER,
        lr: float = 0.05,
        upper: Literal["adam", "sgd"] = "adam",
        validation_counts: Any = None,
        effective_counts: Any = None,
        augment: nn.Module | None = None,
        adapter: Callable[[Any], Batch] = as_batch,
        logger: MetricLogger | None = None,
    ) -> None:
        if not isinstance(loss, TunableCrossEntropy):
            raise InputError(
                f"LossTuner tunes a TunableCrossEntropy; got {type(loss).__name__}. "
                "Build one from a design space: TunableCrossEntropy(HierarchicalSpace(class_counts))."
            )
        instance("solver", solver, Solver)
        for name, value, kind in (
            ("optimizer", optimizer, Optimizer),
            ("augment", augment, nn.Module),
        ):
            if value is not None:
                instance(name, value, kind)
        if not callable(adapter):
            raise InputError(
                f"adapter must be a function that returns a Batch; got {type(adapter).__name__}."
            )
        for name, counts in (
            ("validation_counts", validation_counts),
            ("effective_counts", effective_counts),
        ):
            if counts is not None:
                _check_sizes(name, counts, loss.space.num_classes)
        if effective_counts is None:
            effective_counts = validation_counts
        elif np.shape(effective_counts) != np.shape(validation_counts):
            raise InputError(
                "effective_counts must have the shape of validation_counts; got "
                f"{np.shape(effective_counts)} and {np.shape(validation_counts)}. Give both, of the same "
                "data."
            )
        self.loss, self.objective = loss, as_objective(objective)
        if isinstance(loss, TunableBinaryCrossEntropy):
            self.objective = over_labels(self.objective)
        self.optimizer, self.solver = optimizer, solver
        self.validation_counts, self.effective_counts = validation_counts, effective_counts
        self.augment, self.adapter = augment, adapter
        free = self.free_parameters()
        if one_of("upper", upper, ("adam", "sgd")) == "adam":
            self.upper_optimizer: Optimizer = torch.optim.Adam(free, lr=positive("lr", lr))
        else:
            self.upper_optimizer = torch.optim.SGD(free, lr=positive("lr", lr), momentum=0.9)
        self.steps = self.skipped = self.skipped_in_a_row = 0
        self._log = LoggerAdapter(logger)
        self._has_warned = False
        self._solver_states: dict[int, dict[str, Tensor]] = {}
        self._risks = RunningRisks(self.objective, validation_counts, sizes=effective_counts)

    def free_parameters(self) -> list[nn.Parameter]:
        """What the upper level moves: the space's parameters, then the augmentation's."""
        return free_parameters(self.loss.space, self.augment)

    def step(self, model: nn.Module, train_batch: Any, val_batch: Any) -> UpperStep:
        """Move the loss by one step.

        Parameters
        ----------
        model : nn.Module
            The network being trained, in the mode in which it is trained.
        train_batch, val_batch
            What `adapter` takes; by default a `Batch`, ``(inputs, target[, groups[,
            sample_weight]])``, or a mapping or dataclass with these names; see
            `autobalance.data.batches.as_batch`. On the model's device. A list of training batches
            gives products averaged over them, at the memory of one.

        Raises
        ------
        InputError
            If a batch cannot be read or does not fit the model and the loss, or the optimizer is
            another model's.
        """
        instance("model", model, nn.Module)
        batch, processes = self._read(val_batch), Processes.of(model)
        if processes.overlooked and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "Several processes run, but the network given to LossTuner.step is not in "
                "DistributedDataParallel: each process moves a loss of its own. Give it the wrapped "
                "network; in a LightningModule that is self.trainer.strategy.model.",
                stacklevel=2,
            )
        if isinstance(self.loss, TunableBinaryCrossEntropy):
            _check_held_labels(batch, self.loss.space.num_classes)
        else:
            _check_held(batch, self.loss.space.num_classes, self.loss.options["ignore_index"])
        result = self.hypergradient(model, train_batch, batch)
        upper = self.update([result], processes.labels(batch))
        if upper.skipped and self.skipped == 1:
            warnings.warn(
                "A step of LossTuner was skipped: its hypergradient was not finite, so the loss did not "
                "move. Look for NaN or infinite values in the batches and the network. Later ones "
                "are counted in `skipped`, without a warning.",
                stacklevel=2,
            )
        return upper

    def hypergradient(
        self,
        model: nn.Module,
        train_batch: Any,
        val_batch: Any,
        *,
        optimizer: Optimizer | None = None,
        replica: int = 0,
    ) -> Hypergradient:
        """The hypergradient alone; `replica` tells networks trained side by side apart.

        All of them before the next `update` are one upper step's; their validation batches together
        say which classes and groups are the worst.
        """
        lower = optimizer or self.optimizer
        preconditioned = getattr(self.solver, "preconditioned", False)
        result = hypergradient(
            model,
            self.loss,
            self._risks,
            as_batches(train_batch, self._read),
            self._read(val_batch),
            solver=self.solver,
            weight_decay=coupled_weight_decay(lower, model),
            preconditioner=adaptive_preconditioner(lower, model) if preconditioned else None,
            solver_state=self._solver_states.get(replica),
            augment=self.augment,
        )
        # A solution that is not finite would spoil the next one.
        self._solver_states[replica] = result.solution.solver_state if result.finite else {}
        return result

    def update(self, results: Sequence[Hypergradient], val_batch: Batch | None = None) -> UpperStep:
        """Step along the mean of these hypergradients plus the prior's gradient."""
        self._risks.end_step()
        free = self.free_parameters()
        finite = [r for r in results if r.finite]
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        norm = float("nan")
        if finite:
            strength = prior_strength(self._effective_size(val_batch))
            pulls = gradients_of(strength * self._penalty(), free)
            for i, (p, pull) in enumerate(zip(free, pulls, strict=True)):
                p.grad = pull + sum(r.gradients[i] for r in finite) / len(finite)
            norm = float(torch.stack([p.grad.norm() for p in free if p.grad is not None]).norm())
            _follow(self.upper_optimizer)
            self.upper_optimizer.step()
            self.upper_optimizer.zero_grad(set_to_none=True)
        upper = UpperStep(
            objective=sum(r.objective for r in results) / len(results),
            hard_objective=sum(r.hard_objective for r in results) / len(results),
            norm=norm,
            residual=max(r.solution.residual for r in results),
            iterations=sum(r.solution.iterations for r in results),
            reason=results[0].solution.reason,
            skipped=not finite,
            predicted=min(r.predicted for r in results),
            derivative=results[0].derivative,
        )
        self.steps += 1
        if self._log.logger is not None and first_process():
            self._log.log_upper_step(upper, self.loss.space().detach(), self.steps)
        return upper

    def state_dict(self) -> dict[str, Any]:
        """What continues the tuning elsewhere: the space, its optimiser, and the solver's memory."""
        return {
            "space": self.loss.space.state_dict(),
            "augment": {} if self.augment is None else self.augment.state_dict(),
            "upper_optimizer": self.upper_optimizer.state_dict(),
            "carried": {str(replica): dict(kept) for replica, kept in self._solver_states.items()},
            "risks": self._risks.state_dict(),
            "skipped": [self.skipped, self.skipped_in_a_row],
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.loss.space.load_state_dict(state["space"])
        if self.augment is not None:
            self.augment.load_state_dict(state["augment"])
        # Adam moves its moments in place: not those of the tuner that the state came from.
        self.upper_optimizer.load_state_dict(copy.deepcopy(state["upper_optimizer"]))
        self._solver_states = {
            int(replica): dict(kept) for replica, kept in state["carried"].items()
        }
        self._risks.load_state_dict(state["risks"])
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self.steps = state.get("steps", 0)  # not in states of earlier releases

    def _penalty(self) -> Tensor:
        """Negative log prior of all that moves."""
        total = self.loss.space.penalty()
        if isinstance(self.augment, AugmentationPolicy):
            total = total + self.augment.penalty()
        return total

    def _read(self, batch: Any) -> Batch:
        if isinstance(batch, Batch):
            return batch
        return instance("what adapter returns", self.adapter(batch), Batch)

    def _effective_size(self, val_batch: Batch | None) -> float:
        if self.effective_counts is not None:
            return self.objective.effective_size(self.effective_counts)
        if val_batch is None:
            raise InputError("Without validation_counts, update needs the validation batch.")
        if isinstance(self.loss, TunableBinaryCrossEntropy):
            return self.objective.effective_size(_effective_label_counts(val_batch))
        ignored = self.loss.options["ignore_index"]
        return self.objective.effective_size(
            _effective_counts(val_batch, self.loss.space.num_classes, ignored)
        )


def _follow(optimizer: Optimizer) -> None:
    """Bring an optimiser's moments to where its parameters are, which may have been moved since."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "step":  # torch keeps that one on the CPU
                state[name] = value.to(p)


def _effective_counts(batch: Batch, classes: int, ignore_index: int) -> Tensor:
    """Kish's effective number of examples of each cell, ``(g, k)``; without weights their number.

    Of dense targets it is that of the images that have the class, as of `ArrayData.effective_counts`.
    """
    target, groups, weight = (
        None if v is None else v.cpu() for v in (batch.target, batch.groups, batch.sample_weight)
    )
    assert target is not None
    if target.ndim > 1:
        known = target.where(target != ignore_index, IGNORED)
        image, target = count_by_image(known, classes).nonzero(as_tuple=True)
        groups, weight = (
            None if v is None else v.flatten(1)[:, 0][image] if v.ndim > 1 else v[image]
            for v in (groups, weight)
        )
    cells = target if groups is None else groups * classes + target
    weight = None if weight is None else weight.double()
    tables = []
    for power in [None] if weight is None else [weight, weight.square()]:
        sums = torch.bincount(cells, power, minlength=classes)
        tables.append(nn.functional.pad(sums, (0, -len(sums) % classes)).reshape(-1, classes))
    return tables[0] if weight is None else tables[0].square() / tables[1].clamp(min=1e-300)


def _effective_label_counts(batch: Batch) -> Tensor:
    """As `_effective_counts`, of several labels ``(2, k)``."""
    target, weight = batch.target.cpu(), batch.sample_weight
    ones = torch.ones(target.shape, dtype=torch.float64)
    if weight is None:
        return sign_label_sums(ones, target)[1]
    weight = weight.cpu().double()
    sums, squares = (sign_label_sums(ones, target, w)[1] for w in (weight, weight.square()))
    return sums.square() / squares.clamp(min=1e-300)


def _check_sizes(name: str, counts: Any, classes: int) -> None:
    """Refuse what is no table of validation examples."""
    table = array_of_numbers(name, counts)
    whole_numbers = bool(np.isfinite(table).all() and (table >= 0).all() and table.sum() > 0)
    if table.ndim not in (1, 2) or table.shape[-1] != classes or not whole_numbers:
        raise InputError(
            f"{name} must hold numbers of examples, ({classes},) or (g, {classes}), none "
            f"negative, not all 0; got {shown(counts)}."
        )


def _check_held(batch: Batch, classes: int, ignore_index: int) -> None:
    """Refuse targets that are no class indices; a GPU's values are not looked at."""
    target = batch.target
    if target.ndim == 0 or target.dtype != torch.int64 or len(target) == 0:
        raise InputError(
            "The validation batch needs class indices of dtype int64, shape (n,) or dense (n, d1, ...), n at "
            f"least 1; got {target.dtype} of shape {tuple(target.shape)}."
        )
    inputs = batch.inputs
    if isinstance(inputs, Tensor) and inputs.shape[:1] != target.shape[:1]:
        raise InputError(
            f"The validation batch needs one class index per example: inputs {tuple(inputs.shape)}, "
            f"target {tuple(target.shape)}."
        )
    if target.device.type != "cpu":
        return
    if target.ndim > 1:
        kept = target != ignore_index
        if not bool(kept.any()):
            raise InputError(
                f"Every pixel of the validation batch is {ignore_index}, which is ignored: it says nothing "
                "of the objective. Draw batches of images that have labelled pixels."
            )
        target = torch.where(kept, target, 0)
    if not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise InputError(
            f"The validation batch's target must lie in 0..{classes - 1}; got "
            f"{int(target.min())} to {int(target.max())}: {describe_outside(target, classes)}."
        )


def _check_held_labels(batch: Batch, labels: int) -> None:
    """Refuse targets that are no labels; a GPU's values are not looked at."""
    target = batch.target
    if target.ndim != 2 or target.shape[1] != labels or len(target) == 0:
        raise InputError(
            f"The validation batch needs a 0 or 1 for each of {labels} labels, shape (n, {labels}), n at "
            f"least 1; got shape {tuple(target.shape)}."
        )
    if target.device.type == "cpu":
        check_label_values(target)


def gradients_of(value: Tensor, free: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of a value by parameters; zeros also where it depends on none of them."""
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in free]
    return torch.autograd.grad(value, free, materialize_grads=True)


def free_parameters(space: nn.Module, augment: nn.Module | None) -> list[Any]:
    """A space's parameters, then an augmentation's that learn: the order of a `Hypergradient`'s."""
    strengths = {} if augment is None else trainable(augment)
    return [*space.parameters(), *strengths.values()]


def coupled_weight_decay(optimizer: Optimizer | None, model: nn.Module) -> float | Tensor:
    """The optimiser's L2 penalty on the trainable weights: one number, or one per weight, flat.

    Decoupled decay (AdamW) is no part of the loss and counts as 0.
    """
    if optimizer is None:
        return 0.0
    decay: dict[int, float] = {}
    for group in optimizer.param_groups:
        coupled = not group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
        for p in group["params"]:
            decay[id(p)] = float(group.get("weight_decay", 0.0)) if coupled else 0.0
    leaves = [p for p in model.parameters() if p.requires_grad]
    if leaves and not any(id(p) in decay for p in leaves):
        raise InputError(
            "The optimizer trains none of this model's parameters. Give LossTuner the optimizer that "
            "was made from model.parameters()."
        )
    values = [decay.get(id(p), 0.0) for p in leaves]
    if len(set(values)) <= 1:
        return values[0] if values else 0.0
    return torch.cat([torch.full_like(p, v).flatten() for p, v in zip(leaves, values, strict=True)])


def adaptive_preconditioner(optimizer: Optimizer | None, model: nn.Module) -> Tensor | None:
    """1 / (sqrt(v) + eps) of Adam and its kin, flat over the trainable weights; None for others.

    v is the bias-corrected second moment. A weight without one, not stepped yet, has 1.
    """
    if optimizer is None:
        return None
    inverses: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if "exp_avg_sq" in state:
                share = 1.0 - group["betas"][1] ** float(state["step"])
                inverses[id(p)] = 1.0 / ((state["exp_avg_sq"] / share).sqrt() + group["eps"])
    if not inverses:
        return None
    leaves = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([inverses.get(id(p), torch.ones_like(p)).detach().flatten() for p in leaves])
