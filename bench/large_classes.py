"""Many classes: what the loss and an upper step cost in time and memory.

    .venv/bin/python bench/large_classes.py --json large_classes.json
    OMP_WAIT_POLICY=passive .venv/bin/python bench/large_classes.py --threads 2

The first table: forward and backward of the training loss at frozen parameters, on logits 512 x K,
as multiples of torch's cross_entropy on the same logits; beside it the plain form, as the upper
level takes it. CPU time of this process, measured in turn, median of the ratios; memory is the most
held at once above what was held before, as torch's allocator counts it. (Without a passive policy
two threads spend processor time waiting for each other where the machine is busy.) The second: steps of a
linear head on 512 features, class counts falling from 1,000 to 2 as in iNaturalist's long tail;
an upper step by each space and objective, between two line searches.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance import ClassSpace, ClusterSpace, HierarchicalSpace, LossTuner, TunableCrossEntropy
from autobalance.losses.parametric import LossParameters, reduced_loss
from autobalance.spaces.base import PARTS, DesignSpace
from measuring import cpu_seconds, options_of, peak_bytes, prepare, write_json

MIB = 2**20
BATCH = 512
WIDTH = 512
CASES = {
    "plain cross-entropy": (),
    "l": ("additive",),
    "l and delta": ("additive", "multiplicative"),
    "w, l and delta": PARTS,
}
OBJECTIVES = (
    "balanced_error",
    "worst_class_error",
    "cvar_error",
    "quantile_error",
    "balanced_error_and_deviation",
)


def counts_of(classes: int) -> Tensor:
    """Examples per class, from 1,000 down to 2."""
    return torch.logspace(3.0, 0.302, classes).round().long()


# The loss -------------------------------------------------------------------------------------


def forward_and_backward(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Callable[[], None]:
    def action() -> None:
        torch.autograd.grad(loss(logits), logits)

    return action


def loss_actions(classes: int, batch: int = BATCH) -> dict[str, Callable[[], None]]:
    """Torch's loss as "torch", and each case in the form for training and in the plain one."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=generator).requires_grad_()
    target = torch.randint(classes, (batch,), generator=generator)
    drawn = LossParameters(
        weight=torch.rand(classes, generator=generator) + 0.5,
        additive=(counts_of(classes) / counts_of(classes).sum()).log(),
        multiplicative=torch.rand(classes, generator=generator) + 0.5,
    )
    actions = {"torch": forward_and_backward(lambda f: F.cross_entropy(f, target), logits)}
    for name, used in CASES.items():
        given = LossParameters(**{part: getattr(drawn, part) for part in used})
        for form, fused in (("", True), (", plain form", False)):
            actions[name + form] = forward_and_backward(
                lambda f, given=given, fused=fused: reduced_loss(f, target, given, fused=fused),
                logits,
            )
    return actions


def loss_costs(classes: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """CPU time and memory of each case, as multiples of torch's."""
    actions = loss_actions(classes, batch)
    repeats = max(1, 2**21 // (classes * batch))
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            spent = cpu_seconds(lambda action=action: [action() for _ in range(repeats)])
            if turn:  # the first is a warm-up
                seconds[name].append(spent / repeats)
    memory = {name: peak_bytes(action) for name, action in actions.items()}
    base = seconds["torch"]
    found = {
        name: {
            "time": median(own / torchs for own, torchs in zip(spent, base, strict=True)),
            "memory": memory[name] / memory["torch"],
        }
        for name, spent in seconds.items()
        if name != "torch"
    }
    return found | {"torch": {"seconds": median(base), "mib": memory["torch"] / MIB}}


# Steps ----------------------------------------------------------------------------------------


def spaces(classes: int) -> dict[str, DesignSpace]:
    counts = counts_of(classes).numpy()
    return {
        "HierarchicalSpace": HierarchicalSpace(counts),
        "HierarchicalSpace, w, l and delta": HierarchicalSpace(counts, learn=PARTS),
        "ClassSpace": ClassSpace(counts),
        "ClusterSpace of 40": ClusterSpace(counts, size=40),
    }


class Steps:
    """A linear head in training, and upper steps beside it."""

    def __init__(self, classes: int, space: DesignSpace, objective: str) -> None:
        torch.manual_seed(0)
        shares = counts_of(classes).float()
        self.model = nn.Linear(WIDTH, classes)
        self.batch = torch.randn(BATCH, WIDTH), torch.multinomial(shares, BATCH, replacement=True)
        self.held = torch.randn(BATCH, WIDTH), torch.randint(classes, (BATCH,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, weight_decay=1e-4)
        self.loss = TunableCrossEntropy(space)
        self.tuner = LossTuner(self.loss, objective, optimizer=self.optimizer)
        for _ in range(2):  # the first two upper steps search for a length
            self.train()
            self.upper()

    def train(self) -> None:
        self.loss(self.model(self.batch[0]), self.batch[1]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def upper(self) -> None:
        done = self.tuner.step(self.model, self.batch, self.held)
        assert not done.skipped, "a hypergradient was not finite"

    def costs(self, rounds: int) -> dict[str, float]:
        pairs = [(cpu_seconds(self.upper), cpu_seconds(self.train)) for _ in range(rounds)]
        return {
            "ratio": median(own / plain for own, plain in pairs),
            "training_seconds": median(plain for _, plain in pairs),
            "training_mib": peak_bytes(self.train) / MIB,
            "upper_mib": peak_bytes(self.upper) / MIB,
        }


def step_costs(classes: int, rounds: int) -> dict[str, dict[str, float]]:
    found = {
        f"{name}, balanced_error": Steps(classes, space, "balanced_error").costs(rounds)
        for name, space in spaces(classes).items()
    }
    for objective in OBJECTIVES[1:]:
        steps = Steps(classes, spaces(classes)["HierarchicalSpace"], objective)
        found[f"HierarchicalSpace, {objective}"] = steps.costs(rounds)
    return found


# ----------------------------------------------------------------------------------------------


def main() -> None:
    options = options_of(__doc__).parse_args()
    prepare(options.threads)
    rounds = 3 if options.quick else 25
    shapes = [(8142, BATCH), (1000, BATCH), (100, 128), (10, 128)]
    numbers: dict[str, Any] = {"threads": options.threads, "loss": {}, "steps": {}}
    for classes, batch in shapes:
        found = numbers["loss"][f"{classes}x{batch}"] = loss_costs(classes, batch, rounds)
        torchs = found["torch"]
        print(
            f"\n{classes} classes, batch {batch}; torch's cross_entropy: "
            f"{1e3 * torchs['seconds']:.2f} ms, {torchs['mib']:.1f} MiB"
        )
        print(f"{'loss':36} {'time':>6} {'memory':>7}")
        for name, cost in found.items():
            if name != "torch":
                print(f"{name:36} {cost['time']:6.2f} {cost['memory']:7.2f}")
    for classes in (1000,) if options.quick else (8142, 1000):
        found = numbers["steps"][str(classes)] = step_costs(classes, 2 if options.quick else 5)
        print(f"\n{classes} classes, linear head on {WIDTH} features, batches of {BATCH}")
        print(f"{'upper step':50} {'training steps':>14} {'MiB':>6} {'training MiB':>12}")
        for name, cost in found.items():
            print(
                f"{name:50} {cost['ratio']:14.2f} {cost['upper_mib']:6.0f} "
                f"{cost['training_mib']:12.0f}"
            )
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
