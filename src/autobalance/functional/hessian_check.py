r"""Whether a network's second derivatives can be trusted, for the exact Hessian.

For a smooth loss of the logits with Hessian H by the weights, and random u and v, two things must hold:
:math:`\langle u, H v \rangle = \langle H u, v \rangle`, and H v is the change along v of the gradient that
trains the network. Double backward breaks them where a custom Function's backward cannot be differentiated
or runs opaque code, and where parts of the network run under `torch.no_grad`.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from autobalance.functional.derivative_check import state_key, to_float64
from autobalance.functional.model import (
    Derivative,
    FunctionalModel,
    Linearization,
    flatten,
    unflatten,
)
from autobalance.functional.module_state import HostRandomState, preserve_random_state, traits_of

STEP = 1e-9
"""How far weights move for a change of gradients, relative to their size, in float64. So small that hardly
any ReLU passes its kink, where a gradient jumps and one example would decide."""

TOLERANCE = 1e-3
"""Largest relative difference: rounding has about 1e-6 of such a step, a lost part of H far more."""

TRIES = 2
"""Pairs of u and v, of which one must agree: a kink can still lie within the step."""


def has_exact_hessian(network: FunctionalModel, inputs: Any, derivative: Derivative) -> bool:
    """Whether the Hessian by double backward is that of the gradient that trains the network.

    Checked once for each network, on a float64 copy, and again when its trainable parameters, modes, dtypes,
    autocast or the kind of its inputs change. Tells by a warning where it is not, or cannot be checked.
    `derivative` is the way of the network's J v.
    """
    known = network.traits.derivatives
    key = ("hessian", *state_key(network, inputs))
    if key in known:
        return known[key]
    host = HostRandomState()
    with preserve_random_state(network.model):
        reason = _find_fault(network, inputs, derivative)
    if not host.is_unchanged():
        host.set()
    if reason is not None:
        warnings.warn(
            f"The network's exact Hessian is not used, for {reason}. Its Gauss-Newton part takes its place, "
            "which needs first derivatives alone; choose curvature='gauss_newton' to have it without this "
            "check.",
            stacklevel=2,
        )
    known[key] = reason is None
    return known[key]


def _find_fault(network: FunctionalModel, inputs: Any, derivative: Derivative) -> str | None:
    """Why the Hessian is not to be trusted; None where it is."""
    try:
        model = copy.deepcopy(network.model).double()
        traits = traits_of(model)
        traits.needs_copies = network.traits.needs_copies
        traits.accumulates = network.traits.accumulates
        double = FunctionalModel(model, network.processes)
        faults = [_compare(double, to_float64(inputs), derivative, seed) for seed in range(TRIES)]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"it cannot be computed in float64 ({lines[0]})"
    return None if None in faults else faults[0]


def _compare(
    network: FunctionalModel, inputs: Any, derivative: Derivative, seed: int
) -> str | None:
    """What differs for one pair of u and v; None where all agrees."""
    processes, leaves = network.processes, list(network.parameters.values())
    own, common = (torch.Generator().manual_seed(2 * seed + i) for i in (0, 1))
    at = {
        # Weights of zeros hide what lies before them, as an adapter's last layer does at its start.
        name: (p.detach() if bool(p.any()) else 0.02 * _normal(p, common)).clone().requires_grad_()
        for name, p in network.parameters.items()
    }
    point = Linearization(network, inputs, at=at)
    point.derivative = derivative
    goal = _normal(point.value, own)

    def gradient(at_point: Linearization, **options: Any) -> Tensor:
        logits = at_point.logits_with_leaves()[0]
        return flatten(at_point.gradient((logits - goal).square().sum(), **options))

    sizes = [p.detach().square().mean().sqrt().clamp(min=1e-2) for p in at.values()]
    u, v = (
        flatten([s * _normal(p, common) for s, p in zip(sizes, leaves, strict=True)])
        for _ in range(2)
    )
    graph = gradient(point, create_graph=True)
    along_u, along_v = (processes.all_reduce(flatten(point.gradient(graph @ t))) for t in (u, v))
    sides = [gradient(point.moved(v, sign * STEP)) for sign in (1.0, -1.0)]
    change = processes.all_reduce(sides[0] - sides[1]) / (2 * STEP)
    # As large as a product with u would be if no part of H v were lost.
    size = max(_spread(along_v, u, leaves), _spread(change, u, leaves))
    if not abs(u @ along_v - along_u @ v) <= TOLERANCE * max(size, _spread(along_u, v, leaves)):
        return "it is not symmetric: double backward loses a part of it"
    if not abs(u @ (along_v - change)) <= TOLERANCE * size:
        return "it is not the change of the gradient that trains the network"
    return None


def _spread(product: Tensor, vector: Tensor, leaves: list[Tensor]) -> float:
    """Root of the sum of squares of what the parameters add to <product, vector>."""
    pairs = zip(unflatten(product, leaves), unflatten(vector, leaves), strict=True)
    return sum(float((a * b).square().sum()) for a, b in pairs) ** 0.5


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
