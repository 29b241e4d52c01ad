"""Cost and memory of one upper step, by estimator, as multiples of a plain training step.

    .venv/bin/python bench/hypergradient.py [--quick] [--json FILE] [--only NAME ...]

ResNet-32 with BatchNorm on 32 x 32 x 3 images, batches of 128 for training and validation alike,
single precision. A training step is `LowerLevel.step`: forward, backward, clipping, optimiser. An
upper step is `LossTuner.step`, in its steady state: after a warm start, and where line searches are
spared, the mean from one to the next. "published" is the procedure of the paper's code as we read
it, written out below: a graph over N training batches' gradient, five Neumann terms and the mixed
product through it, and the mean of N validation batches.

Memory is the highest resident set of a process that trains with upper steps, less what it held
before its first step, against one that only trains.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.data.batches import Batch
from autobalance.hypergrad.curvature import TrainingSystem
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Identity,
    Neumann,
    Nystrom,
    SingleLoop,
    Solver,
)
from autobalance.networks import ResNet32
from measuring import (
    Cost,
    Timed,
    Training,
    interleaved,
    length_of,
    options_of,
    prepare,
    write_json,
)

SOLVERS: dict[str, Solver] = {
    "single_loop": SingleLoop(),
    "single_loop_searching_always": SingleLoop(line_search_every=1),
    "identity": Identity(),
    "identity_preconditioned": Identity(preconditioned=True),
    "conjugate_gradient_5": ConjugateGradient(iterations=5, tolerance=0.0),
    "neumann_5": Neumann(terms=5),
    "nystrom_5": Nystrom(rank=5),
    "conjugate_gradient_5_hessian": ConjugateGradient(
        iterations=5, tolerance=0.0, curvature="hessian"
    ),
}
DEFAULT = next((name for name, s in SOLVERS.items() if s == DEFAULT_SOLVER), "default")
SOLVERS.setdefault(DEFAULT, DEFAULT_SOLVER)
PUBLISHED = {"published_1": 1, "published_10": 10}
TERMS, STEP = 5, 1.0  # of the published Neumann series
BETTY = ("betty_finite_difference", "betty_conjugate_gradient_5", "betty_neumann_5")
SLOW = {
    "neumann_5",
    "nystrom_5",
    "conjugate_gradient_5_hessian",
    *PUBLISHED,
    *BETTY,
}  # not for --quick
# Bound to meet, and what we aim at.
STEP_TARGETS = {DEFAULT: (3.2, 2.5), "identity": (2.2, 1.8)}
MEMORY_TARGETS = {DEFAULT: (1.5, 1.2)}


def published_hypergradient(training: Training, batches: int, terms: int = TERMS) -> list[Tensor]:
    """The published procedure over so many training and validation batches."""
    model, loss = training.lower.module, training.loss
    weights = [p for p in model.parameters() if p.requires_grad]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    train = [
        training.lower.recent[-1]
    ] * batches  # which ones they are does not matter for the cost

    def mean_gradient(
        risk: Callable[[Tensor, Batch], Tensor], over: list[Any], *, create_graph: bool
    ) -> list[Tensor]:
        total: list[Tensor] = []
        for batch in over:
            parts = torch.autograd.grad(
                risk(model(batch.inputs), batch) / len(over), weights, create_graph=create_graph
            )
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else list(parts)
        return total

    design = loss.space()
    b = mean_gradient(
        lambda f, batch: torch.nn.functional.cross_entropy(f, batch.target),
        [training.held] * batches,
        create_graph=False,
    )
    graph = mean_gradient(
        lambda f, batch: loss.at(design, f, batch.target), train, create_graph=True
    )
    v, q = b, b
    for _ in range(terms):
        product = torch.autograd.grad(graph, weights, grad_outputs=v, retain_graph=True)
        v = [a - STEP * h for a, h in zip(v, product, strict=True)]
        q = [a + d for a, d in zip(q, v, strict=True)]
    free = list(loss.space.parameters())
    result = torch.autograd.grad(graph, free, grad_outputs=q)
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return list(result)


def betty_hypergradient(training: Training, name: str, terms: int = TERMS) -> list[Tensor]:
    """Betty's own functions (betty-ml 0.1.1, where it is installed) on the same two batches."""
    from betty import hypergradient as betty

    model, loss, batch = training.lower.module, training.loss, training.lower.recent[-1]
    assert batch is not None
    weights = [p for p in model.parameters() if p.requires_grad]
    saved = [value.clone() for value in (*weights, *model.buffers())]
    method = {"finite_difference": "darts", "conjugate_gradient_5": "cg", "neumann_5": "neumann"}
    lower = SimpleNamespace(
        paths=[],
        config=SimpleNamespace(
            darts_alpha=0.01, cg_alpha=1.0, cg_iterations=terms,
            neumann_alpha=0.01, neumann_iterations=terms,
        ),
        cur_batch=batch,
        training_step_exec=lambda b: loss.at(loss.space(), model(b.inputs), b.target),
        trainable_parameters=lambda: weights,
        parameters=lambda: weights,
    )  # fmt: skip
    upper = SimpleNamespace(trainable_parameters=lambda: list(loss.space.parameters()))
    risk = torch.nn.functional.cross_entropy(model(training.held.inputs), training.held.target)
    vector = torch.autograd.grad(risk, weights)
    result = getattr(betty, method[name.removeprefix("betty_")])(vector, lower, upper)
    with torch.no_grad():
        for value, before in zip((*weights, *model.buffers()), saved, strict=True):
            value.copy_(before)
    return list(result)


def new_training(warm_up: int) -> Training:
    training = Training(lambda: ResNet32(10), (3, 32, 32), 10)
    training.train(warm_up)
    return training


def action_of(name: str, training: Training) -> Callable[[], Any]:
    if name in PUBLISHED:
        return lambda: published_hypergradient(training, PUBLISHED[name])
    if name in BETTY:
        return lambda: betty_hypergradient(training, name)
    return training.upper_step(SOLVERS[name])


def step_costs(names: list[str], *, quick: bool) -> dict[str, Cost]:
    training = new_training(5 if quick else 30)
    cases = {}
    for name in names:
        length = length_of(SOLVERS[name]) if name in SOLVERS else 1
        rounds = (2 if quick else 6) if name in STEP_TARGETS else (1 if quick else 3)
        cases[name] = Timed(
            action_of(name, training),
            length=length,
            rounds=1 if name in SLOW else rounds,
            warm_up=length if name in STEP_TARGETS else int(name not in SLOW),
        )
    return interleaved(training, cases)


# Memory ---------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux only.")


def peak_memory(name: str) -> int:
    """Bytes above what was held before the first step; to be run in a process of its own."""
    training = new_training(0)
    steps, action = 2, lambda: None
    if name in PUBLISHED:  # later terms hold no more than the first
        steps, action = 1, lambda: published_hypergradient(training, PUBLISHED[name], terms=1)
    elif name in BETTY:
        steps, action = 1, lambda: betty_hypergradient(training, name)
    elif name in SOLVERS:  # without a last q, with one and a line search, without a search
        steps, action = min(3, length_of(SOLVERS[name]) + 1), training.upper_step(SOLVERS[name])
    before = resident("VmRSS")
    for _ in range(steps):
        training.train()
        action()
    return resident("VmHWM") - before


def memory_in_child(name: str, threads: int, *, runs: int = 1) -> float:
    """Median over so many processes; one alone is some 5 % off."""
    command = [sys.executable, __file__, "--memory-of", name, "--threads", str(threads)]
    done = [
        subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(runs)
    ]
    return median(int(process.stdout.split()[-1]) for process in done)


# Where the time goes --------------------------------------------------------------------------


def profile(rounds: int) -> dict[str, Cost]:
    """Parts of an upper step, each as a multiple of a training step."""
    training = new_training(10)
    lower, loss = training.lower, training.loss
    vector = torch.cat([torch.randn_like(p).flatten() for p in lower.module.parameters()])
    free = list(loss.space.parameters())

    def system() -> TrainingSystem:
        batch = lower.recent[-1]
        assert batch is not None
        design = loss.space()
        logit_loss = lambda f: loss.at(design, f, batch.target)  # noqa: E731
        return TrainingSystem(lower.module, [(batch.inputs, logit_loss)], free, 0.0)

    def validation() -> None:
        lower.module.eval()
        value = torch.nn.functional.cross_entropy(
            lower.module(training.held.inputs), training.held.target
        )
        torch.autograd.grad(value, list(lower.module.parameters()))
        lower.module.train()

    cases = {
        "validation gradient, plain": validation,
        "identity, whole step": training.upper_step(Identity()),
        "one forward-mode pass": lambda: system().tangent(vector),
        "one product (forward mode, forward, reverse)": lambda: system().product(vector),
    }
    return interleaved(training, {n: Timed(action, rounds=rounds) for n, action in cases.items()})


# ----------------------------------------------------------------------------------------------


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--profile", action="store_true", help="only the parts of an upper step")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*SOLVERS, *PUBLISHED, *BETTY],
        help="only these",
    )
    parser.add_argument(
        "--memory-of", help="only print this one's bytes; used by the script itself"
    )
    options = parser.parse_args()
    prepare(options.threads)
    if options.memory_of:
        print(peak_memory(options.memory_of))
        return
    if options.profile:
        for name, cost in profile(3 if options.quick else 9).items():
            print(f"{name:46} {cost.ratio:6.2f}")
        return

    left_out = SLOW - {DEFAULT} if options.quick else set()
    peers = BETTY if find_spec("betty") and not options.quick else ()
    names = options.only or [n for n in (*SOLVERS, *PUBLISHED, *peers) if n not in left_out]
    costs = step_costs(names, quick=options.quick)
    plain = memory_in_child("training", options.threads, runs=3)
    memory = {
        name: memory_in_child(name, options.threads, runs=3 if name in MEMORY_TARGETS else 1)
        / plain
        for name in names
    }

    alone = median(cost.training_seconds for cost in costs.values())
    print(f"training step: {alone:.3f} CPU seconds, {plain / 2**20:.0f} MiB; default: {DEFAULT}\n")
    print(f"{'upper step by':30} {'CPU time':>9} {'target':>7} {'memory':>7} {'target':>7}")
    for name in sorted(names, key=lambda n: costs[n].ratio):
        bounds = [
            f"{target[name][0]:7.1f}" if name in target else " " * 7
            for target in (STEP_TARGETS, MEMORY_TARGETS)
        ]
        print(
            f"{name:30} {costs[name].ratio:9.2f} {bounds[0]} {memory[name]:7.2f} {bounds[1]}".rstrip()
        )
    if not find_spec("betty"):
        print("betty-ml is not installed, and not compared (pip install --no-deps betty-ml)")
    numbers = {
        "default": DEFAULT,
        "step_ratio": {name: costs[name].ratio for name in names},
        "memory_ratio": memory,
    }
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
