"""Time and memory of the loss and the objectives on dense logits, beside torch's cross-entropy.

    OMP_NUM_THREADS=1 python bench/dense_cost.py

Each case runs in a process of its own; times are of its processor. Memory is the most resident memory that
it took beyond the logits and targets, in units of the logits.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autobalance import MeanIoU, ParametricCrossEntropy
from autobalance.objectives import BalancedError

SHAPE = (8, 20, 256, 256)
COUNTS = [20000 // (1 + 10 * c) for c in range(SHAPE[1])]
REPEATS = 9


def designed() -> ParametricCrossEntropy:
    """A loss with w, l and delta."""
    la = ParametricCrossEntropy.logit_adjusted(COUNTS)
    return ParametricCrossEntropy(
        torch.linspace(0.5, 2, 20), la.additive, torch.linspace(0.5, 1, 20)
    )


CASES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "torch's cross-entropy": nn.CrossEntropyLoss,
    "torch's, weighted": lambda: nn.CrossEntropyLoss(torch.linspace(0.5, 2, 20)),
    "l alone": lambda: ParametricCrossEntropy.logit_adjusted(COUNTS),
    "w, l and delta": designed,
    "balanced error": BalancedError,
    "mean IoU": MeanIoU,
}


def measure(name: str) -> tuple[float, float]:
    """Median processor seconds of value and gradient, and memory in units of the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, generator=generator).requires_grad_()
    target = torch.randint(SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator)
    function = CASES[name]()
    small = logits.detach()[:1, :, :8, :8].clone().requires_grad_()
    function(small, target[:1, :8, :8]).backward()  # what is loaded at the first call
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(REPEATS):
        logits.grad = None
        begin = time.process_time()
        function(logits, target).backward()
        seconds.append(time.process_time() - begin)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(seconds), (after - before) * 1024 / (4 * logits.numel())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*measure(sys.argv[1]))
    else:
        print(f"logits {SHAPE}, {torch.get_num_threads()} threads")
        for case in CASES:
            shown = subprocess.run(
                [sys.executable, __file__, case], capture_output=True, text=True, check=True
            )
            took, memory = map(float, shown.stdout.split())
            print(f"{case:24} {1e3 * took:7.0f} ms  {memory:4.1f} times the logits", flush=True)
