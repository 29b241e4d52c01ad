"""Runs steps on a pretended accelerator, whose tensors have shapes and a place but no values.

Run as a script, it prints the cases that failed, as JSON: what mixes devices fails there as on a GPU. A
module of its own, since torch can be told of such a device once only.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from autobalance.augment.images import image_operations
from autobalance.augment.policy import AugmentationPolicy
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.data.array_data import ArrayData
from autobalance.data.batches import Batch
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Identity,
    Neumann,
    Nystrom,
    SingleLoop,
    Solver,
)
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.published import FocalLoss, GroupDROLoss, LDAMLoss
from autobalance.networks import SmallCNN
from autobalance.records.settings import Recipe
from autobalance.spaces.base import DesignSpace
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy

NAME = "pretend"
PLACE = f"{NAME}:0"
COUNTS = [90, 50, 25]
GROUP_COUNTS = [[50, 30, 20], [40, 20, 5]]


def ones(tensor: Tensor) -> Any:
    """Of its shape, in place of the values that it does not have."""

    def listed(shape: tuple[int, ...]) -> Any:
        one = 1.0 if tensor.is_floating_point() else 1
        return [listed(shape[1:]) for _ in range(shape[0])] if shape else one

    return listed(tuple(tensor.shape))


def every(tensor: Tensor, as_tuple: bool = False) -> Any:
    """All places along the first axis, as if none were zero."""
    places = torch.arange(len(tensor), device=tensor.device)
    return (places,) if as_tuple else places[:, None]


@contextmanager
def values_made_up() -> Iterator[None]:
    """With numbers wherever a value is read that is not there."""
    made_up: dict[str, Callable[..., Any]] = {
        "tolist": ones,
        "item": ones,
        "__float__": lambda t: 1.0,
        "__int__": lambda t: 1,
        "__bool__": lambda t: False,
        "nonzero": every,
    }

    def instead(real: Any, made: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, **options: Any) -> Any:
            fake = isinstance(tensor, FakeTensor)
            return made(tensor, **options) if fake else real(tensor, **options)

        return method

    with ExitStack() as stack:
        for name, made in made_up.items():
            method = instead(getattr(Tensor, name), made)
            stack.enter_context(mock.patch.object(Tensor, name, method))
        stack.enter_context(mock.patch("torch.equal", side_effect=lambda *_: True))
        states = mock.patch("torch.random.fork_rng", side_effect=lambda **_: nullcontext())
        stack.enter_context(states)
        yield


def placed(module: nn.Module) -> nn.Module:
    """The module with weights and buffers of the same shapes on the device."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                new: Any = torch.empty(old.shape, dtype=old.dtype, device=PLACE)
                held[name] = (
                    nn.Parameter(new, old.requires_grad) if held is part._parameters else new
                )
    return module


def batch(n: int, groups: bool) -> Batch:
    labels = torch.zeros(n, dtype=torch.int64, device=PLACE)
    return Batch(torch.empty(n, 3, 8, 8, device=PLACE), labels, labels if groups else None)


def tune(
    solver: Solver,
    aim: str = "balanced_error",
    *,
    groups: bool = False,
    space: Callable[[], DesignSpace] | None = None,
    policy: bool = False,
) -> None:
    """Two upper steps, of several training batches in the second."""
    counts = GROUP_COUNTS if groups else COUNTS
    with unset_fake_temporarily():
        made = space() if space else GroupSpace(counts) if groups else HierarchicalSpace(counts)
        loss, model = TunableCrossEntropy(made), SmallCNN(3, 3, (8, 8))
        augment = AugmentationPolicy(COUNTS, image_operations(3)) if policy else None
    for module in filter(None, (loss, model, augment)):
        placed(module)
    optimizer = torch.optim.AdamW(model.parameters())
    tuner = LossTuner(
        loss, aim, optimizer=optimizer, solver=solver, validation_counts=counts, augment=augment
    )  # type: ignore[arg-type]
    for batches in (batch(6, groups), [batch(6, groups), batch(6, groups)]):
        tuner.step(model, batches, batch(7, groups))


def train(
    made: Callable[[], nn.Module],
    *,
    groups: bool = False,
    augmented: Callable[[], nn.Module] | None = None,
) -> None:
    """A few steps on data that lies on the device."""
    with unset_fake_temporarily():
        loss, network = made(), SmallCNN(3, 3, (8, 8))
        augment = None if augmented is None else augmented()
    for module in filter(None, (loss, network, augment)):
        placed(module)
    n = 20
    labels = torch.zeros(n, dtype=torch.int64, device=PLACE)
    data = ArrayData(
        torch.empty(n, 3, 8, 8, device=PLACE),
        labels,
        3,
        labels if groups else None,
        2 if groups else None,
    )
    fabric: Any = SimpleNamespace(
        device=torch.device(PLACE),
        setup=lambda *both: both,
        backward=lambda value: value.backward(),
    )
    recipe = Recipe(epochs=1, min_steps=4, batch_size=6)
    lower = LowerLevel(lambda: network, data, TrainingOptions(recipe), fabric, augment=augment)
    for _ in range(4):
        lower.step(loss)  # type: ignore[arg-type]


CASES: dict[str, Callable[[], None]] = {
    "single loop": lambda: tune(SingleLoop()),
    "line search": lambda: tune(SingleLoop(line_search_every=1)),
    "conjugate gradients": lambda: tune(ConjugateGradient(iterations=3), "worst_class_error"),
    "exact Hessian": lambda: tune(ConjugateGradient(iterations=2, curvature="hessian")),
    "Neumann": lambda: tune(Neumann(terms=3), "cvar_error"),
    "identity": lambda: tune(Identity(), "quantile_error"),
    "Nystrom": lambda: tune(Nystrom(rank=2)),
    "the paper's space": lambda: tune(SingleLoop(), space=lambda: ClassSpace(COUNTS)),
    "a gap": lambda: tune(SingleLoop(), "0.6 * balanced_error + 0.4 * deo", groups=True),
    "a bound": lambda: tune(SingleLoop(), "balanced_error where deo <= 0.05", groups=True),
    "worst cell": lambda: tune(SingleLoop(), "worst_class_and_group_error", groups=True),
    "learned augmentation": lambda: tune(SingleLoop(), policy=True),
    "cross-entropy": lambda: train(ParametricCrossEntropy.cross_entropy),
    "logit adjustment": lambda: train(lambda: ParametricCrossEntropy.logit_adjusted(COUNTS)),
    "VS": lambda: train(lambda: ParametricCrossEntropy.vector_scaling(COUNTS)),
    "LDAM": lambda: train(lambda: LDAMLoss.deferred(COUNTS)),
    "focal": lambda: train(lambda: FocalLoss.class_balanced(COUNTS)),
    "group DRO": lambda: train(lambda: GroupDROLoss(6, over="class_and_group"), groups=True),
    "a designed loss": lambda: train(lambda: TunableCrossEntropy(HierarchicalSpace(COUNTS))),
}


def fails_where_devices_mix() -> None:
    """That the pretence finds what it is for."""
    model = placed(nn.Linear(3, 2))
    model(torch.zeros(4, 3))


def failures(cases: Mapping[str, Callable[[], None]]) -> dict[str, str]:
    """What each case that failed raised, and where."""
    _setup_privateuseone_for_python_backend(NAME)
    failed = {}
    for name, case in {**cases, "mixed": fails_where_devices_mix}.items():
        try:
            with values_made_up(), FakeTensorMode(allow_non_fake_inputs=True):
                case()
        except Exception as error:
            where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            own = [place for place in where if "/autobalance/" in place]
            failed[name] = f"{type(error).__name__}: {error} ({', '.join(own[-3:])})"
    return failed


if __name__ == "__main__":
    json.dump(failures(CASES), sys.stdout)
