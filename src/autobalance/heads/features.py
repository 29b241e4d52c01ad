"""Features from a frozen network, and their standardisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError, instance, whole
from autobalance.bilevel import make_fabric
from autobalance.data import as_inputs, moved
from autobalance.functional import call_network, preserve_module_state

ROWS = 4096


@torch.no_grad()
def extract_features(
    backbone: nn.Module, inputs: Any, *, batch_size: int = 256, device: str = "auto"
) -> Tensor:
    """Outputs of a frozen network in evaluation mode, for `search_head` and `retrain_head`.

    Modes, weights, buffers and the random state are left as they were; the network is moved to
    the device and back.

    Parameters
    ----------
    backbone : nn.Module
        From inputs ``(n, ...)`` to features ``(n, d)`` or ``(n, ...)``, which are flattened.
    inputs : Tensor, array, ArrayData, Dataset or lazy inputs
        Shape ``(n, ...)``, n at least 1. Of files and Datasets only some batches are in memory at a
        time; a Dataset's examples pass through its transforms for evaluation.
    batch_size : int
        Examples per pass.
    device : str
        "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns
    -------
    Tensor
        Shape ``(n, d)``, on the CPU, float32 where the network computes in less.

    Raises
    ------
    InputError
        If there is no example, an output is not a tensor with one row per example, or a feature
        is not finite.
    """
    whole("batch_size", batch_size, least=1)
    instance("backbone", backbone, nn.Module)
    examples = as_inputs(inputs)
    if len(examples) == 0:
        raise InputError("There is no example to extract features from: the inputs are empty.")
    target = make_fabric(device).device
    home = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    features: Tensor | None = None
    try:
        backbone.to(target)
        with preserve_module_state(backbone):
            backbone.eval()
            first = 0
            for part in examples.split(batch_size):
                output = call_network(backbone, moved(part, target))
                rows = _rows(output, len(part) if isinstance(part, Tensor) else None, first)
                if features is None:
                    features = rows.new_empty(len(examples), rows.shape[1], device="cpu")
                features[first : first + len(rows)] = rows.cpu()
                first += len(rows)
    finally:
        backbone.to(home)
    assert features is not None  # there is an example
    return features


def _rows(output: Any, examples: int | None, first: int) -> Tensor:
    """The features of a batch, ``(m, d)``; of how many examples, only a tensor of inputs tells."""
    examples = len(output) if examples is None and isinstance(output, Tensor) else examples
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != examples:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"The backbone must return a tensor of shape ({examples}, ...) for a batch of "
            f"{examples}; got {came}."
        )
    rows = as_floating(output.flatten(1))
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        bad = first + int((~finite).nonzero()[0])
        raise InputError(
            f"The backbone's features are not finite (NaN or infinite), first for example {bad}. "
            "Check that input, and that the backbone suits its scale and precision."
        )
    return rows


def as_floating(features: Tensor) -> Tensor:
    """Float32 for what is narrower or whole numbers, else as it is."""
    wide = features.dtype in (torch.float32, torch.float64)
    return features if wide else features.float()


@dataclass(frozen=True)
class Scaling:
    """Mean and scale of each feature, ``(d,)``, in float64; a constant feature has scale 1."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor, weight: Tensor | None = None) -> Scaling:
        """Those of features ``(n, d)`` with weights ``(n,)``, accumulated in float64 over chunks."""
        rows = features.new_ones(len(features), 1) if weight is None else weight[:, None]
        parts = list(zip(features.split(ROWS), rows.double().split(ROWS), strict=True))
        of_all = rows.sum(dtype=torch.float64)
        mean = sum((part.double() * w).sum(dim=0) for part, w in parts) / of_all
        assert isinstance(mean, Tensor)
        squares = torch.zeros_like(mean)
        for part, w in parts:
            squares += ((part.double() - mean).square() * w).sum(dim=0)
        scale = (squares / of_all).sqrt()
        # A constant column's rounding is not a scale.
        rounding = 10 * torch.finfo(features.dtype).eps * mean.abs()
        return cls(mean, torch.where(scale > rounding, scale, 1.0))

    def apply_(self, features: Tensor) -> Tensor:
        """Standardise features ``(n, d)`` in place."""
        for part in features.split(ROWS):
            part.copy_((part.double() - self.mean) / self.scale)
        return features

    def linear(self, weights: Tensor) -> nn.Linear:
        """The head on raw features that equals weights ``(k, d + 1)`` on standardised ones."""
        exact = weights.double()
        matrix = exact[:, :-1] / self.scale
        # Not initialised, which would draw random numbers.
        head = nn.Linear(matrix.shape[1], matrix.shape[0], device="meta", dtype=weights.dtype)
        bias = exact[:, -1] - matrix @ self.mean
        head.weight = nn.Parameter(matrix.to(weights.dtype))
        head.bias = nn.Parameter(bias.to(weights.dtype))
        return head.eval()
