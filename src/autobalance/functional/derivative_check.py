r"""Which derivative of a network can be trusted: J v is compared with the gradient that trains it.

For random u and v, :math:`\langle u, J v \rangle = \langle J^T u, v \rangle`, where J^T u is the reverse
pass that training uses. Forward mode breaks this where a network runs parts of itself under
`torch.no_grad`, double backward before a custom Function whose backward cannot be differentiated,
and a central difference where training uses a surrogate gradient.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.functional.model import (
    Derivative,
    FunctionalModel,
    Linearization,
    flatten,
    unflatten,
)
from autobalance.functional.module_state import HostRandomState, preserve_random_state, traits_of

TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3}
"""Relative differences between the two products that rounding explains; half precision has `LOW`."""

LOW = 0.1
CENTRAL_FACTOR = 10.0
"""A central difference has the error of its step beside rounding."""

ALIKE = 30.0
"""Largest ratio of the rounding errors of the two products; those of two normal numbers exceed it either way
in 4 of 100 cases, which then count as disagreements."""

SMALLEST_SHARE = {torch.float64: 1e-5}
"""Parameters whose gradient is below this share of the largest count as if they had this share. Otherwise
the rounding of gradients that are 0, such as a bias's before BatchNorm, would decide."""

ROUNDING = 100.0
"""So many units in the last place, relative to the logits, a derivative may be and count as rounding."""


def choose_derivative(network: FunctionalModel, inputs: Any) -> Derivative:
    """The first way to compute J v that agrees with the network's reverse gradient on these inputs.

    Checked once for each network, and again when its trainable parameters, modes, dtypes, autocast or the
    kind of its inputs change. Tells by a warning when forward mode is not used.

    Raises
    ------
    InputError
        If none agrees; it names the layer that is the cause.
    """
    if network.derivative is not None:
        return network.derivative
    known: dict[Any, Derivative] = network.traits.derivatives
    key = state_key(network, inputs)
    if key in known:
        return known[key]
    host = HostRandomState()
    with preserve_random_state(network.model):
        check = _DerivativeCheck(network, inputs)
        chosen = check.run()
        if chosen is None:
            reasons = "; ".join(f"{reason} {detail}" for reason, detail in check.reasons.values())
            raise InputError(
                "No derivative of the network agrees with the gradient that trains it, so a hypergradient "
                f"would be wrong. The cause is {_find_cause(network, inputs)}: {reasons}. Write its "
                "backward in differentiable torch operations or give its autograd.Function a jvp, make its "
                "random draws repeatable, or freeze what lies before it."
            )
    if not host.is_unchanged():
        host.set()
    if chosen != "forward":
        reason, detail = check.reasons["forward"]
        warnings.warn(
            f"{reason}; hypergradients use {_DESCRIPTIONS[chosen]}. {detail}", stacklevel=2
        )
    if check.is_conclusive:
        known[key] = chosen
    return chosen


def state_key(network: FunctionalModel, inputs: Any) -> tuple[Any, ...]:
    """What a check of the network's derivatives depends on; where it changes they are checked again."""
    return (
        tuple((name, p.dtype) for name, p in network.parameters.items()),
        tuple(m.training for m in network.modules),
        *(torch.is_autocast_enabled(kind) for kind in ("cuda", "cpu")),
        _kind_of(inputs),
    )


_DESCRIPTIONS = {
    "double backward": "double backward, which is slower",
    "central difference": "a central difference of the logits, which is a little less exact",
}


class _Products(NamedTuple):
    """<u, J v>, <J^T u, v>, how large the latter is expected to be, and the lengths of v.

    `rounding` is how large both may be where the whole gradient is nothing but rounding, else 0.
    """

    forward: float
    reverse: float
    size: float
    scales: list[float]
    rounding: float = 0.0

    @property
    def difference(self) -> float:
        """How far apart the two products are; 0 of a right derivative, but for rounding."""
        return abs(self.forward - self.reverse)


class _DerivativeCheck:
    """Tries the ways in turn on one batch.

    Attributes
    ----------
    reasons : dict of str to (str, str)
        Why a way was not taken, and the detail.
    is_conclusive : bool
        False where the reverse gradient is not finite, so that there is nothing to compare with.
    """

    def __init__(self, network: FunctionalModel, inputs: Any) -> None:
        self.network, self.inputs = network, inputs
        self.reasons: dict[str, tuple[str, str]] = {}
        self.is_conclusive = True
        self._generator = torch.Generator().manual_seed(0)

    def run(self) -> Derivative | None:
        """The first way that agrees; None where there is none."""
        at, usual = self._leaves()
        if not usual:
            self.is_conclusive = False
            return "forward"
        for derivative in get_args(Derivative):
            reason = self._compare(derivative, at)
            if reason is None:
                return derivative
            self.reasons[derivative] = reason
        return None

    def _is_rounding(
        self, derivative: Derivative, at: Mapping[str, Tensor], products: _Products
    ) -> bool:
        """Whether a float64 copy of the network shows that float32's two products differ by rounding alone.

        Deep networks can amplify rounding by any factor, so no tolerance in float32 tells it from a wrong
        derivative, and other u and v meet the same rounding. In float64 the products must agree. That says
        nothing of kernels that float32 alone runs, so both of float32's must also lie about as far from it:
        rounding meets the two alike, a wrong derivative is far off where the other is near.
        """
        dtypes = {p.dtype for p in self.network.parameters.values()}
        if dtypes != {torch.float32} or self._is_low_precision():
            return False
        try:
            model = copy.deepcopy(self.network.model).double()
            traits_of(model).needs_copies = self.network.traits.needs_copies
            network = FunctionalModel(model, self.network.processes)
            double = _DerivativeCheck(network, to_float64(self.inputs))
            leaves = {name: p.detach().double() for name, p in at.items()}
            exact = double._products(derivative, leaves, products.scales)
        except Exception:  # no copy can be made, or parts compute in float32 in any case
            return False
        errors = [abs(a - b) for a, b in zip(products[:2], exact[:2], strict=True)]
        agrees = exact.difference <= double._tolerance(derivative) * exact.size
        return agrees and max(errors) <= ALIKE * min(errors)

    def _leaves(self) -> tuple[dict[str, Tensor], bool]:
        """Leaves to check at, and whether the reverse gradient there is finite.

        A weight of zeros, such as the last layer of an adapter at its start, hides what lies before it, so
        it is replaced by small random numbers. This first reverse pass runs on copies, which shows
        whether the network writes to its parameters.
        """
        moved: dict[str, Tensor] = {}
        plain: dict[str, Tensor] = {}
        for name, p in self.network.parameters.items():
            plain[name] = p.detach().clone().requires_grad_()
            zero = not bool(p.detach().any())
            noise = 0.02 * self._normal(p) if zero else p.detach().clone()
            moved[name] = noise.requires_grad_()
        before = {**self.network.copy_state(), **self.network.frozen}
        state = {name: t.detach().clone() for name, t in before.items()}
        host = HostRandomState()
        logits = self.network(plain, self.inputs, state=state)
        if not host.is_unchanged():
            host.set()
            self.network.traits.draws_on_host = True
        own = {**self.network.parameters, **self.network.frozen}
        current = {**state, **plain}
        if any(current[n]._version or not _same(current[n], p) for n, p in own.items()):
            self.network.traits.needs_copies = True
        for at in (moved, plain):
            point = Linearization(self.network, self.inputs, at=at)
            pulled = self.network.processes.all_reduce(point.vjp(self._normal(logits)))
            if bool(pulled.isfinite().all()):
                return at, True
        return plain, False

    def _compare(self, derivative: Derivative, at: Mapping[str, Tensor]) -> tuple[str, str] | None:
        """Why this way is not to be trusted; None where it agrees."""
        try:
            products = self._products(derivative, at)
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return f"Part of the network has no {_NAMES[derivative]}", f"({lines[0]})"
        difference, size = products.difference, products.size
        if difference <= self._tolerance(derivative) * size + products.rounding:  # False for NaN
            return None
        if self._is_rounding(derivative, at, products):
            return None
        return (
            f"The network's {_NAMES[derivative]} is not that of the gradient that trains it",
            f"(They differ by {difference / max(size, 1e-300):.2g} of their size.)",
        )

    def _products(
        self, derivative: Derivative, at: Mapping[str, Tensor], scales: list[float] | None = None
    ) -> _Products:
        """Both products for random u and v, v as long along each parameter as `scales` says."""
        network, processes = self.network, self.network.processes
        leaves = list(network.parameters.values())
        fresh = {name: p.detach().clone().requires_grad_() for name, p in at.items()}
        point = Linearization(network, self.inputs, at=fresh)
        point.derivative = derivative
        # v must be the same in all processes, which may have different numbers of rows.
        own, common = (torch.Generator().manual_seed(seed) for seed in (1, 2))
        u = self._normal(point.value, own)
        pulled = unflatten(processes.all_reduce(point.vjp(u)), leaves)
        scales = scales or self._scales(derivative, pulled, list(fresh.values()))
        v = [s * self._normal(p, common) for s, p in zip(scales, leaves, strict=True)]
        tangent = point.jvp(flatten(v))
        forward = float(processes.all_reduce((u.double() * tangent.double()).sum()))
        pairs = list(zip(pulled, v, strict=True))
        reverse = sum(float((g.double() * t.double()).sum()) for g, t in pairs)
        size = sum((s * float(g.norm())) ** 2 for g, s in zip(pulled, scales, strict=True)) ** 0.5
        lengths = torch.stack([t.detach().double().square().sum() for t in (u, point.value)])
        eps = torch.finfo(point.value.dtype).eps
        unit = ROUNDING * eps * float(processes.all_reduce(lengths).prod().sqrt())
        rounding = _rounding(unit, pulled, list(fresh.values()), v)
        return _Products(forward, reverse, size, scales, rounding)

    def _scales(
        self, derivative: Derivative, pulled: list[Tensor], at: list[Tensor]
    ) -> list[float]:
        """How long v is along each parameter: so that each counts alike, whatever its gradient's size.

        A central difference moves the weights along v, so there v is of the weights' own size.
        """
        if derivative == "central difference":
            return [max(float(p.detach().square().mean().sqrt()), 1e-2) for p in at]
        norms = [float(g.norm()) for g in pulled]
        least = SMALLEST_SHARE.get(at[0].dtype, 1e-2) * max(norms)
        if least == 0.0:
            return [1.0 for _ in norms]
        # A parameter without any gradient may be one that forward mode wrongly gives one.
        return [1.0 / max(norms) if n == 0.0 else 1.0 / max(n, least) for n in norms]

    def _tolerance(self, derivative: Derivative) -> float:
        dtypes = {p.dtype for p in self.network.parameters.values()}
        tolerance = (
            LOW if self._is_low_precision() else max(TOLERANCES.get(dtype, LOW) for dtype in dtypes)
        )
        on_gpu = next(iter(self.network.parameters.values())).device.type != "cpu"
        if on_gpu and tolerance < LOW and torch.float64 not in dtypes:
            tolerance = 0.03  # TensorFloat-32 has three digits
        return (
            min(CENTRAL_FACTOR * tolerance, LOW)
            if derivative == "central difference"
            else tolerance
        )

    @staticmethod
    def _is_low_precision() -> bool:
        return torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")

    def _normal(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Random numbers of a generator of our own, so that nobody else's draws change."""
        numbers = torch.randn(
            like.shape, generator=generator or self._generator, dtype=torch.float64
        )
        return numbers.to(like.device, like.dtype)


def _rounding(unit: float, pulled: list[Tensor], at: list[Tensor], v: list[Tensor]) -> float:
    """How large products can be by rounding alone, where J^T u is nothing else; 0 where it is more.

    A head that normalises one feature gives its sign, for example, and has no derivative at all. `unit` is
    the rounding of u times the logits; a gradient is held against it as if its parameter moved by its own
    size.
    """
    lengths = [max(float(p.detach().norm()), 1e-30) for p in at]
    sizes = [float(g.norm()) * n for g, n in zip(pulled, lengths, strict=True)]
    if not math.isfinite(unit) or any(size > unit for size in sizes):
        return 0.0
    return unit * sum(float(t.norm()) / n for t, n in zip(v, lengths, strict=True))


_NAMES = {
    "forward": "forward-mode derivative",
    "double backward": "double backward",
    "central difference": "central difference",
}


class _Layer(nn.Module):
    """One layer as a network of its own, whose inputs are parameters too."""

    def __init__(self, layer: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]):
        super().__init__()
        self.layer, self.arguments, self.options = layer, list(arguments), dict(options)
        self.inputs = nn.ParameterDict()
        for place in (self.arguments, self.options):
            for key, value in enumerate(place) if isinstance(place, list) else place.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    self.inputs[f"input_{key}"] = nn.Parameter(value.detach().clone())

    def forward(self) -> Tensor:
        """The layer's first output for the inputs that were recorded."""
        inputs = dict(self.inputs)
        arguments = [inputs.get(f"input_{i}", value) for i, value in enumerate(self.arguments)]
        options = {name: inputs.get(f"input_{name}", value) for name, value in self.options.items()}
        return _first_tensor(self.layer(*arguments, **options))


def _find_cause(network: FunctionalModel, inputs: Any) -> str:
    """The innermost layer that fails the check on its own, found from the network downwards."""
    calls: dict[nn.Module, tuple[Any, Any]] = {}

    def record(module: nn.Module, arguments: Any, options: Any) -> None:
        calls.setdefault(module, (arguments, options))

    names = {module: name for name, module in network.model.named_modules()}
    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in names]
    try:
        with torch.no_grad():
            network(network.parameters, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    cause = network.model
    while True:
        for child in cause.children():
            if child in calls and not _passes_alone(child, *calls[child]):
                cause = child
                break
        else:
            break
    kind = type(cause).__name__
    return f"the layer {names[cause]!r} ({kind})" if names[cause] else f"{kind}'s own forward pass"


def _passes_alone(layer: nn.Module, arguments: Any, options: Any) -> bool:
    with suppress(Exception):  # a layer that cannot be called alone is not the one to blame
        alone = FunctionalModel(_Layer(layer, arguments, options))
        if not alone.parameters:
            return True
        check = _DerivativeCheck(alone, {})
        return check.run() is not None
    return True


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output
    return next(_first_tensor(part) for part in parts if part is not None)


def to_float64(inputs: Any) -> Any:
    """Inputs of a network with their floating-point tensors in float64."""
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {name: to_float64(value) for name, value in inputs.items()}
    return tuple(map(to_float64, inputs)) if isinstance(inputs, tuple) else inputs


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach(), b.detach()) or bool(b.detach().isnan().any())


def _kind_of(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.dtype, inputs.ndim
    if isinstance(inputs, Mapping):
        return tuple((name, _kind_of(value)) for name, value in inputs.items())
    return type(inputs).__name__
