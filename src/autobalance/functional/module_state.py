"""Borrowing a network: whatever a computation does to it, it comes back as it was, to the bit."""

from __future__ import annotations

import random
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from autobalance._validation import InputError

FROZEN_COPY_LIMIT = 1 << 26
"""Frozen numbers up to which a copy is kept. Of larger frozen parts, such as the language model below an
adapter, a checksum tells whether they were written to."""

_WITHOUT_STATE = ("torch.nn.", "autobalance.networks")

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MODULE_ATTRIBUTES = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}


@dataclass
class NetworkTraits:
    """What was seen of a network in its first passes, so that it need not be looked for in each.

    Attributes
    ----------
    needs_copies : bool
        Whether its forward pass writes to its parameters, so that all passes run on copies of them.
    accumulates : bool
        Whether its backward pass leaves gradients in `.grad` alone: reentrant checkpointing.
    draws_on_host : bool or None
        Whether it draws from the generators of Python or numpy, whose state takes time to read; None
        before its first loan.
    derivatives : dict
        The way to compute J v that was chosen, for each state of the network.
    evaluation : callable or None
        How it is put into evaluation mode.
    """

    needs_copies: bool = False
    accumulates: bool = False
    draws_on_host: bool | None = None
    derivatives: dict[Any, Any] = field(default_factory=dict)
    evaluation: Callable[[nn.Module], AbstractContextManager[None]] | None = None


_traits: weakref.WeakKeyDictionary[nn.Module, NetworkTraits] = weakref.WeakKeyDictionary()


def traits_of(model: nn.Module) -> NetworkTraits:
    """What is known of this network, to be read and written."""
    return _traits.setdefault(model, NetworkTraits())


@dataclass
class Loan:
    """What a borrowed network's tensors looked like when they came back.

    Attributes
    ----------
    written : list of str
        Parameters and buffers whose bits were changed meanwhile. They have been restored.
    touched : bool
        Whether anything wrote to them at all, be it the same values.
    """

    written: list[str] = field(default_factory=list)
    touched: bool = False


@contextmanager
def preserve_module_state(model: nn.Module) -> Iterator[Loan]:
    """Lend the model out and give it back as it was.

    Parameters, buffers, gradients, modes, attributes and the random state of torch, numpy and Python are
    restored. Inside, attention uses kernels that have forward-mode and second derivatives, and
    compiled parts run eagerly.

    Raises
    ------
    InputError
        If frozen weights too large to be copied were written to.
    """
    loan = Loan()
    modes = [(module, module.training) for module in model.modules()]
    attributes = AttributeSnapshot([module for module, _ in modes])
    parameters = list(model.named_parameters())
    gradients = [(p, p.grad) for _, p in parameters if not is_lazy(p)]
    # Copying and comparing all weights is most of a loan's cost, so it is left out where it shows nothing.
    is_safe = all(has_known_forward(module) for module, _ in modes)
    tensors = None if is_safe else TensorSnapshot(parameters, list(model.named_buffers()))
    traits = traits_of(model)
    host = None if traits.draws_on_host is False else HostRandomState()
    with ExitStack() as stack:
        stack.enter_context(preserve_random_state(model))
        # The fused kernels of attention have neither forward-mode nor second derivatives.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # parts of the model may be compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield loan
        finally:
            _restore_modes(modes)
            attributes.restore()
            if host is not None:
                if traits.draws_on_host is None and host.is_unchanged():
                    traits.draws_on_host = False
                host.set()
            for p, gradient in gradients:
                if p.grad is not gradient:
                    p.grad = gradient
            if tensors is not None:
                loan.touched = tensors.is_touched()
                loan.written = tensors.restore()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Call ``model.eval()`` and give modes, weights and the random state back afterwards.

    Adapters that merge into the weights in their own `eval` and leave them in `train` have these called in
    that order; the rounding that this leaves in the weights is undone.
    """
    modes = [(module, module.training) for module in model.modules()]
    tensors = None
    if mode_overrides(model):
        tensors = TensorSnapshot(list(model.named_parameters()), list(model.named_buffers()))
    with preserve_random_state(model):
        try:
            model.eval()
            yield
        finally:
            _restore_modes(modes)
            if tensors is not None:
                tensors.restore()


@contextmanager
def evaluation_of_plain_layers(model: nn.Module) -> Iterator[None]:
    """Evaluation mode but for parts with a `train` or `eval` of their own, which stay as they are.

    For adapters that `eval` merges into the weights: once merged, the logits have no gradient by them.
    """
    own = {id(m) for m in mode_overrides(model)}
    modes = [(module, module.training) for module in model.modules()]
    with preserve_random_state(model):
        try:
            for module, _ in modes:
                module.training = module.training and id(module) in own
            yield
        finally:
            for module, training in modes:
                module.training = training


def mode_overrides(model: nn.Module) -> list[nn.Module]:
    """Parts with a `train` or `eval` of their own, which may do more than set a flag."""
    return [
        m
        for m in model.modules()
        if type(m).train is not nn.Module.train
        or type(m).eval is not nn.Module.eval
        or not {"train", "eval"}.isdisjoint(vars(m))
    ]


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Call `train` as each module's author wrote it, parents before the parts that differ from them."""
    for module, training in modes:
        if module.training != training:
            module.train(training)
    for module, training in modes:
        if module.training != training:  # as a `train` of its own may leave it
            module.training = training


@contextmanager
def preserve_random_state(model: nn.Module) -> Iterator[None]:
    """Give torch's random states back, on the CPU and on the model's GPUs."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


class HostRandomState:
    """The random states of Python and numpy at one moment, which few networks draw from."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()

    def is_unchanged(self) -> bool:
        """Whether nothing was drawn since."""
        now: Any = np.random.get_state()
        _, keys, position, *_ = now
        same = position == self._numpy[2] and np.array_equal(keys, self._numpy[1])
        return same and random.getstate() == self._python

    def set(self) -> None:
        """Let both draw again what they drew from that moment on."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)


class RandomState:
    """The random state at one moment, to be set again before each pass that must draw the same.

    That of Python and numpy is part of it where `host` is true.
    """

    def __init__(self, device: torch.device, *, host: bool = False) -> None:
        self.device = device
        self.on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.on_cpu = torch.random.get_rng_state()
        self.on_host = HostRandomState() if host else None

    def set(self) -> None:
        """Let all generators draw again what they drew from that moment on."""
        torch.random.set_rng_state(self.on_cpu)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)
        if self.on_host is not None:
            self.on_host.set()


def has_known_forward(module: nn.Module) -> bool:
    """Whether this is a layer of torch's or ours that a pass of `FunctionalModel` leaves as it is.

    Not one with a hook or a forward pass of its own, nor those of torch's that write to their weights: an
    embedding with a largest norm, and recurrent layers, which gather theirs in one memory.
    """
    if not type(module).__module__.startswith(_WITHOUT_STATE) or isinstance(module, nn.RNNBase):
        return False
    own = vars(module)
    changed = "forward" in own or own.get("max_norm") is not None
    return not (changed or any(own[hooks] for hooks in _HOOKS))


class AttributeSnapshot:
    """Attributes of modules that a forward pass may set: counters, caches, layers built on the way.

    torch's own layers and ours set none, unless a hook does, and are left out.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._saved: list[tuple[dict[str, Any], dict[str, Any], list[tuple[Any, Any]]]] = []
        for module in modules:
            hooks = module._forward_pre_hooks or module._forward_hooks
            if hooks or not type(module).__module__.startswith(_WITHOUT_STATE):
                own = vars(module)
                values = {k: v for k, v in own.items() if k not in _MODULE_ATTRIBUTES}
                parts = [(v, _copy(v)) for v in values.values() if isinstance(v, _CONTAINERS)]
                self._saved.append((own, values, parts))

    def restore(self) -> None:
        """Set the attributes back: the same objects, with the same content where that is a container."""
        for own, values, parts in self._saved:
            for name in own.keys() - values.keys() - _MODULE_ATTRIBUTES:
                del own[name]
            for name, value in values.items():
                if own.get(name, own) is not value:
                    own[name] = value
            for value, content in parts:
                _refill(value, content)


_CONTAINERS = (dict, list, set, deque, Tensor)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value.copy()


def _refill(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        value.data.copy_(content)
    elif len(value) != len(content) or any(
        a is not b for a, b in zip(_entries(value), _entries(content), strict=True)
    ):
        value.clear()
        (value.update if isinstance(value, (dict, set)) else value.extend)(content)


def _entries(value: Any) -> Iterator[Any]:
    return chain.from_iterable(value.items()) if isinstance(value, dict) else iter(value)


class TensorSnapshot:
    """Bits of a model's parameters and buffers, in one copy for each dtype and device."""

    def __init__(
        self, parameters: Sequence[tuple[str, Tensor]], buffers: Sequence[tuple[str, Tensor]]
    ) -> None:
        named = [(name, t) for name, t in (*parameters, *buffers) if _has_plain_memory(t)]
        frozen = {id(p) for _, p in parameters if not p.requires_grad}
        large = sum(t.numel() for _, t in named if id(t) in frozen) > FROZEN_COPY_LIMIT
        self._summed = [(n, t) for n, t in named if large and id(t) in frozen]
        self._sums = [_checksum(t) for _, t in self._summed]
        self._versions = [(t, t._version) for _, t in named]
        self._groups: dict[tuple[torch.dtype, torch.device], list[tuple[str, Tensor]]] = {}
        for name, t in named:
            if not (large and id(t) in frozen):
                self._groups.setdefault((t.dtype, t.device), []).append((name, t))
        self._memory = [(name, t, t.data) for name, t in named]
        self._copies = [_bits(group) for group in self._groups.values()]

    def is_touched(self) -> bool:
        """Whether any of the tensors was written to in place, as torch's counters of writes say."""
        return any(t._version != version for t, version in self._versions)

    def restore(self) -> list[str]:
        """Write the bits back where they differ; the names of those that did.

        Raises
        ------
        InputError
            If a frozen tensor of which there is no copy differs.
        """
        names = []
        for name, t, memory in self._memory:
            if t.data_ptr() != memory.data_ptr() or t.shape != memory.shape:
                t.data = memory
                names.append(name)
        for group, copies in zip(self._groups.values(), self._copies, strict=True):
            if torch.equal(_bits(group), copies):
                continue
            words = copies.numel() // sum(t.numel() for _, t in group)  # 2 in complex128
            parts = copies.split([words * t.numel() for _, t in group])
            for (name, t), part in zip(group, parts, strict=True):
                if not torch.equal(_bits([(name, t)]), part):
                    t.data.copy_(part.view(t.dtype).view(t.shape))
                    names.append(name)
        for (name, t), total in zip(self._summed, self._sums, strict=True):
            if not torch.equal(_checksum(t), total):
                raise InputError(
                    f"The network's forward pass wrote to its frozen weight {name!r}, which is too large "
                    "for autobalance to keep a copy of. Let it write to a copy, or only outside the "
                    "upper step."
                )
        return names


def _has_plain_memory(tensor: Tensor) -> bool:
    plain = not is_lazy(tensor) and tensor.layout == torch.strided and not tensor.is_quantized
    return plain and not tensor.is_meta and type(tensor.data) is Tensor and tensor.numel() > 0


def _bits(group: list[tuple[str, Tensor]]) -> Tensor:
    flat = torch.cat([t.detach().reshape(-1) for _, t in group])
    return flat.view(_INTEGERS.get(flat.element_size(), torch.int64))


def _checksum(tensor: Tensor) -> Tensor:
    return _bits([("", tensor)]).sum()
