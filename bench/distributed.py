"""What several processes add to an upper step: bytes sent, and time spent in sending.

    torchrun --standalone --nproc-per-node=2 bench/distributed.py [--quick] [--json FILE]

ResNet-32 under DDP, a batch of 128 for all processes together. Each process times its calls of
torch.distributed from the hypergradient (those of DDP's own training step are not seen, and counted as
one gradient). Time in a call includes waiting for the slower process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from autobalance import HierarchicalSpace, LossTuner, TunableCrossEntropy
from autobalance.networks import ResNet32
from measuring import options_of, write_json

BATCH = 128


class Sent:
    """Seconds in, and bytes given to, the collectives that the upper step calls."""

    def __init__(self) -> None:
        self.seconds, self.bytes, self.calls = 0.0, 0, 0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args, **options)
            self.seconds += time.perf_counter() - begun
            self.calls += 1
            given = [a for a in args if isinstance(a, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in given)
            return result

        return run

    @contextmanager
    def listening(self) -> Iterator[None]:
        kept = {name: getattr(dist, name) for name in ("all_gather", "all_reduce")}
        for name, call in kept.items():
            setattr(dist, name, self.timed(call))
        try:
            yield
        finally:
            for name, call in kept.items():
                setattr(dist, name, call)


def main() -> None:
    options = options_of(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    network = ResNet32(10)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = TunableCrossEntropy(HierarchicalSpace([500] * 10))
    tuner = LossTuner(loss, optimizer=optimizer)
    torch.manual_seed(rank)
    each = BATCH // world
    batches = [(torch.rand(each, 3, 32, 32), torch.randint(10, (each,))) for _ in range(2)]
    steps, uppers, sent = [], [], Sent()
    for repetition in range(3 if options.quick else 12):
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss(model(batches[0][0]), batches[0][1]).backward()
        optimizer.step()
        middle = time.perf_counter()
        if repetition == 1:
            sent = Sent()  # without the first, which sets things up
        with sent.listening():
            tuner.step(model, *batches)
        steps.append(middle - begun)
        uppers.append(time.perf_counter() - middle)
    counted = len(steps) - 1
    numbers = {
        "processes": world,
        "upper_step": median(uppers[1:]) / median(steps[1:]),
        "share_of_time_sending": sent.seconds / sum(uppers[1:]),
        "bytes": sent.bytes / counted,
        "calls": sent.calls / counted,
        "bytes_of_a_gradient": sum(4 * p.numel() for p in network.parameters()),
    }
    if rank == 0:
        print(f"{world} processes, {torch.__version__}")
        for name, value in numbers.items():
            print(f"{name.replace('_', ' '):24s} {value:.4g}")
        write_json(options.json, numbers)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
