"""Cost and memory of augmenting a batch by a policy, as multiples of a plain training step.

    .venv/bin/python bench/augmentation.py [--quick] [--json FILE]

ResNet-32 with BatchNorm on 32 x 32 x 3 images in [0, 1], batches of 128, single precision. A
training step is forward, backward and SGD with momentum. "frozen" is a batch augmented without a
derivative, as in training; "with gradient" is what the search adds: the same with the graph, and
its backward pass to the policy's free parameters. Memory is what autograd keeps for the backward
pass, beside what it keeps in a training step. The target is a quarter of a training step's time for
8 operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance.augment.images import image_operations
from autobalance.augment.operations import Operation
from autobalance.augment.policy import AugmentationPolicy
from autobalance.networks import ResNet32
from autobalance_bench.augmentations import KorniaAugmentation, StandardAugmentation
from measuring import cpu_seconds, options_of, prepare, write_json

BATCH, CLASSES, SIDE = 128, 10, 32
EIGHT = ("shift_x", "shift_y", "rotation", "scale", "shear_x", "flip", "brightness", "contrast")
DETAIL = ("rotation", "flip", "brightness", "contrast", "saturation", "blur", "cutout", "noise")
TARGET = 0.25


def operations(names: Sequence[str]) -> list[Operation]:
    return [o for o in image_operations() if o.name in names]


def kept_bytes(forward: Callable[[], Any]) -> int:
    """What autograd keeps of the forward pass, each storage counted once."""
    storages: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        result = forward()
    del result
    return sum(storages.values())


def cases(images: Tensor, target: Tensor) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """Actions to time by name, and the bytes that those with a gradient keep."""
    every = tuple(o.name for o in image_operations())
    sets = {"8 operations": EIGHT, "8, few geometric": DETAIL, f"all {len(every)}": every}
    actions: dict[str, Callable[[], Any]] = {}
    memory: dict[str, int] = {}
    for name, chosen in sets.items():
        policy = AugmentationPolicy([100] * CLASSES, operations(chosen))
        mix = torch.randn_like(images)

        def with_gradient(policy: AugmentationPolicy = policy, mix: Tensor = mix) -> None:
            seen, chance = policy.draw_batch(images, target)
            assert chance is not None  # of hard gates
            value = (seen * mix).sum() + chance.sum()
            torch.autograd.grad(value, list(policy.parameters()))

        frozen = policy.frozen()
        actions[f"{name}, frozen"] = lambda frozen=frozen: frozen(images, target)
        actions[f"{name}, with gradient"] = with_gradient
        memory[f"{name}, with gradient"] = kept_bytes(lambda p=policy: p(images, target))
    actions["crop and flip"] = lambda: StandardAugmentation()(images, target)
    kornia = {share: KorniaAugmentation("trivial", share=share) for share in (1, 16)}
    actions["TrivialAugment"] = lambda: kornia[1](images, target)
    actions["TrivialAugment, share=16"] = lambda: kornia[16](images, target)
    return actions, memory


def main() -> None:
    options = options_of(__doc__).parse_args()
    prepare(options.threads)
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, SIDE, SIDE)
    target = torch.randint(CLASSES, (BATCH,))
    network: nn.Module = ResNet32(CLASSES)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), target).backward()
        optimizer.step()

    actions, memory = cases(images, target)
    step_memory = kept_bytes(lambda: F.cross_entropy(network(images), target))
    for action in (step, *actions.values()):
        action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    ratios: dict[str, list[float]] = {name: [] for name in actions}
    steps = []
    for _ in range(3 if options.quick else 15):
        steps.append(cpu_seconds(step))
        for name, action in actions.items():
            seconds[name].append(cpu_seconds(action))
            ratios[name].append(seconds[name][-1] / steps[-1])
    print(f"training step: {median(steps):.3f} CPU seconds, {step_memory / 2**20:.0f} MiB kept\n")
    print(f"{'a batch of 128 by':34} {'ms':>7} {'of a step':>9} {'MiB kept':>9} {'of a step':>9}")
    for name in actions:
        kept = ""
        if name in memory:
            kept = f" {memory[name] / 2**20:9.1f} {memory[name] / step_memory:9.1%}"
        print(f"{name:34} {1000 * median(seconds[name]):7.1f} {median(ratios[name]):9.1%}{kept}")
    print(f"\ntarget: {TARGET:.0%} of a step for 8 operations, with gradient")
    write_json(
        options.json,
        {
            "training_seconds": median(steps),
            "step_ratio": {name: median(r) for name, r in ratios.items()},
            "memory_ratio": {name: b / step_memory for name, b in memory.items()},
        },
    )


if __name__ == "__main__":
    main()
