"""BatchNorm's rules for passes that leave no trace: no statistics kept, forward mode, many processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from autobalance.functional.processes import Processes

BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
"""Classes whose forward pass is known exactly. Subclasses may do anything, so they run as they are."""


@contextmanager
def replace_forward(
    layers: Sequence[Any], forward: Callable[[Any, Tensor], Tensor]
) -> Iterator[None]:
    """Let these layers compute ``forward(layer, inputs)`` in place of their own forward pass."""
    for layer in layers:
        vars(layer)["forward"] = partial(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def normalize_batch(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """BatchNorm in training mode, without updating the running statistics.

    In a large network these are most buffers, and copies of them for each pass would be as many kernels
    as the convolutions are.
    """
    return F.batch_norm(inputs, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


def normalize_dual_batch(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    r"""BatchNorm in training mode of dual numbers, without a graph: three kernels for torch's twenty.

    With y = w z + b and z the normalised x, the tangent is dw z + db + (dz/dx) dx w. The Jacobian dz/dx is
    symmetric, a projection, so that the kernel of its reverse pass gives the last term too.
    """
    (x, x_tangent), (weight, weight_tangent), (bias, bias_tangent) = (
        forward_ad.unpack_dual(t) if isinstance(t, Tensor) else (None, None)
        for t in (inputs, layer.weight, layer.bias)
    )
    assert x is not None
    if x.numel() <= x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got {x.shape}")
    normalize = partial(torch.native_batch_norm, running_mean=None, running_var=None)
    normalize = partial(normalize, training=True, momentum=0.0, eps=layer.eps)
    y, mean, scale = normalize(x, weight, bias)
    tangent = None
    if x_tangent is not None:
        tangent = torch.ops.aten.native_batch_norm_backward(
            x_tangent, x, weight, None, None, mean, scale, True, layer.eps, [True, False, False]
        )[0]
    if weight_tangent is not None or bias_tangent is not None:
        assert weight is not None
        factor = torch.zeros_like(weight) if weight_tangent is None else weight_tangent
        own = normalize(x, factor, bias_tangent)[0]
        tangent = own if tangent is None else tangent + own
    return y if tangent is None else forward_ad.make_dual(y, tangent)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes, with the rules that torch's own lacks; each is a sum again."""

    @staticmethod
    def forward(own: Tensor, processes: Processes) -> Tensor:
        """Sum of one tensor over all processes, which each of them gets."""
        return processes.all_reduce(own)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the processes for the derivatives."""
        ctx.processes = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Each process's part acts on all sums alike, so its gradient is the sum of theirs."""
        return _SumOverProcesses.apply(grads[0], ctx.processes), None  # type: ignore[return-value]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """The sum is linear: its tangent is the sum of the tangents."""
        return ctx.processes.all_reduce(tangents[0])


def normalize_over_processes(
    layer: nn.SyncBatchNorm, inputs: Tensor, *, processes: Processes
) -> Tensor:
    """SyncBatchNorm by operations that can be differentiated twice and forward.

    torch's own has neither rule, and on a CPU no forward pass either.
    """
    given, axes = inputs.dtype, [0, *range(2, inputs.ndim)]
    shape = [1, -1, *[1] * (inputs.ndim - 2)]
    if given in (torch.bfloat16, torch.float16):  # which hold no count of a few hundred
        inputs = inputs.float()
    if layer.training or layer.running_mean is None:
        count = inputs.new_tensor([inputs.numel() // inputs.shape[1]])
        total = processes.all_reduce(count)

        def mean_over_all(values: Tensor) -> Tensor:
            """The mean over the examples of all processes."""
            return _SumOverProcesses.apply(values.sum(axes), processes) / total  # type: ignore[operator]

        mean = mean_over_all(inputs)
        # Not the mean square less the squared mean, which loses all digits where the mean is large.
        variance = mean_over_all((inputs - mean.view(shape)).square())
    else:
        mean, variance = layer.running_mean, layer.running_var
    assert variance is not None
    normalized = (inputs - mean.view(shape)) * (variance + layer.eps).rsqrt().view(shape)
    if layer.weight is not None:
        normalized = normalized * layer.weight.view(shape) + layer.bias.view(shape)
    return normalized.to(given)
