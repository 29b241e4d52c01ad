"""Passes of a network at weights that are not its own, by which nothing of it changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from autobalance._validation import InputError
from autobalance.functional.processes import ALONE, Processes, synchronised

_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training moves, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Lend the model out: each module's mode and the random state come back as they were.

    Weights and buffers are not written to by what happens inside: passes go through `Passes`.
    """
    modes = [(module, module.training) for module in model.modules()]
    weights = (p for module, _ in modes for p in module._parameters.values() if p is not None)
    devices = {p.device for p in weights if p.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        # The fused kernels of attention have neither forward-mode nor second derivatives.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # parts of the model may be compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


class Passes:
    """A network's logits at other parameters; its weights and buffers stay as they are.

    The network is looked through once, so that a pass costs little beside its kernels: on a GPU small
    networks wait for what starts them.

    Parameters
    ----------
    model : nn.Module
        Its modules' modes at the time of a pass are those that count.
    processes : Processes
        Those that train it together, over which SyncBatchNorm takes its statistics.

    Attributes
    ----------
    parameters : dict of str to Tensor
        Those that training moves, see `trainable`.
    """

    def __init__(self, model: nn.Module, processes: Processes = ALONE) -> None:
        self.model, self.processes = model, processes
        modules = list(model.modules())
        plain = [m for m in modules if type(m) in _BATCH_NORMS]
        self._batch_norms: list[Any] = [m for m in plain if "forward" not in vars(m)]
        self._synchronised = [m for m in modules if isinstance(m, nn.SyncBatchNorm)]
        theirs = {id(b) for m in self._batch_norms for b in m.buffers(recurse=False)}
        named = list(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        self._ties = [(n, first[id(p)]) for n, p in named if first.setdefault(id(p), n) != n]
        names = set(first.values())
        self.parameters = {n: p for n, p in named if p.requires_grad and n in names}
        self._buffers = [
            (name, b)
            for name, b in model.named_buffers(remove_duplicate=False)
            if id(b) not in theirs
        ]

    def __call__(
        self, parameters: Mapping[str, Tensor], inputs: Any, *, dual: bool = False
    ) -> Tensor:
        """Logits at these parameters, by name; others are the model's own.

        With `dual`, in which parameters are dual numbers and nothing has a graph, BatchNorm has a
        forward-mode rule of three kernels for torch's some twenty.
        """
        if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point():
            # Convolutions follow their input's layout; this one is faster in all our passes.
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        copies = {id(b): b.clone() for _, b in self._buffers}
        given = {name: copies[id(b)] for name, b in self._buffers}
        given |= {tie: parameters[name] for tie, name in self._ties if name in parameters}
        given |= parameters

        def network(*arguments: Any, **settings: Any) -> Any:
            return functional_call(self.model, given, arguments, settings, tie_weights=False)

        with synchronised(self._synchronised, self.processes), self._quiet(dual):
            logits = logits_of(network, inputs)
        # Autocast's logits are half precision; what follows, the upper level, is not.
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    @contextmanager
    def _quiet(self, dual: bool) -> Iterator[None]:
        """With BatchNorm layers that keep no statistics of what they see in training mode.

        In a large network these are most buffers, and copies of them for each pass would be as many
        kernels as the convolutions are.
        """
        forward = _of_dual_numbers if dual else _of_this_batch
        layers = [m for m in self._batch_norms if m.training]
        for layer in layers:
            vars(layer)["forward"] = partial(forward, layer)
        try:
            yield
        finally:
            for layer in layers:
                del vars(layer)["forward"]


def _of_this_batch(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """BatchNorm in training mode, without the statistics that it keeps."""
    layer._check_input_dim(inputs)
    return F.batch_norm(inputs, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


def _of_dual_numbers(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    r"""BatchNorm in training mode of dual numbers, without a graph.

    With y = w z + b and z the normalised x, the tangent is dw z + db + (dz/dx) dx w. The Jacobian dz/dx is
    symmetric, a projection, so that the kernel of its reverse pass gives the last term too.
    """
    (x, along), (weight, by_weight), (bias, by_bias) = (
        forward_ad.unpack_dual(t) if isinstance(t, Tensor) else (None, None)
        for t in (inputs, layer.weight, layer.bias)
    )
    assert x is not None
    layer._check_input_dim(x)
    F._verify_batch_size(list(x.shape))  # pyright: ignore[reportAttributeAccessIssue]
    normalised = partial(torch.native_batch_norm, running_mean=None, running_var=None)
    normalised = partial(normalised, training=True, momentum=0.0, eps=layer.eps)
    y, mean, scale = normalised(x, weight, bias)
    tangent = None
    if along is not None:
        tangent = torch.ops.aten.native_batch_norm_backward(
            along, x, weight, None, None, mean, scale, True, layer.eps, [True, False, False]
        )[0]
    if by_weight is not None or by_bias is not None:
        assert weight is not None
        factor = torch.zeros_like(weight) if by_weight is None else by_weight
        own = normalised(x, factor, by_bias)[0]
        tangent = own if tangent is None else tangent + own
    return y if tangent is None else forward_ad.make_dual(y, tangent)


def call_network(network: Callable[..., Any], inputs: Any) -> Any:
    """What a network returns for a tensor, a tuple of arguments, or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def logits_of(network: Callable[..., Any], inputs: Any) -> Tensor:
    """Call a network with a tensor, a tuple of arguments, or a mapping of keyword arguments; its logits.

    A network may return the logits, or an object with an attribute or key "logits".

    Raises
    ------
    InputError
        If a batch is too small for BatchNorm, or the output holds no logits.
    """
    try:
        output = call_network(network, inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "BatchNorm cannot train on a batch of one example. Use batches of at least two, or "
            f"drop the last, short one. ({error})"
        ) from None
    by_key = isinstance(output, Mapping)
    logits = output.get("logits") if by_key else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InputError(
            "The network must return logits, or an object with an attribute or key 'logits'; got "
            f"{type(output).__name__}. Wrap it in a module that does."
        )
    return logits
