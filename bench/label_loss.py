"""What the loss of several labels costs beside torch's, forward and backward on a CPU.

    OMP_NUM_THREADS=1 python bench/label_loss.py [--rows 256] [--labels 5000] [--repeats 31]

Printed is the median of the ratio to `torch.nn.BCEWithLogitsLoss` over repeats in turn, so that what else the
machine does weighs on both: of the loss at the start of the default space (w by sign, l by label), with w, l
and delta all by sign, and of torch's own loss with pos_weight.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from autobalance import HierarchicalLabelSpace, ParametricBinaryCrossEntropy
from autobalance.spaces import TunableBinaryCrossEntropy


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description="Cost of the loss of several labels.")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--labels", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()
    n, k = options.rows, options.labels
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, generator=generator).requires_grad_()
    target = (torch.rand(n, k, generator=generator) < 0.01).float()
    positives = torch.linspace(20, 2000, k)
    counts = torch.stack([20_000 - positives, positives]).numpy()
    w, shift, delta = (torch.rand(2, k, generator=generator) + 0.5 for _ in range(3))
    designed = TunableBinaryCrossEntropy(HierarchicalLabelSpace(counts)).snapshot()
    losses: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
        "torch": (nn.BCEWithLogitsLoss(), target),
        "torch with pos_weight": (nn.BCEWithLogitsLoss(pos_weight=w[1]), target),
        "without parameters": (ParametricBinaryCrossEntropy(), target),
        "default space": (designed, target),
        "default space, target of int8": (designed, target.to(torch.int8)),
        "w, l and delta by sign": (ParametricBinaryCrossEntropy(w, shift, delta), target),
    }
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(options.repeats):
        for name, (loss, y) in losses.items():
            begun = time.perf_counter()
            torch.autograd.grad(loss(logits, y), logits)
            seconds[name].append(time.perf_counter() - begun)
    base = np.array(seconds["torch"])
    print(f"{n} x {k}, {torch.get_num_threads()} thread: torch {1e3 * np.median(base):.2f} ms")
    for name in list(losses)[1:]:
        print(f"{name}: {np.median(np.array(seconds[name]) / base):.2f} times torch's")


if __name__ == "__main__":
    main()
