"""What the processes of these tests run; a module of its own, so that they can import it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from autobalance._validation import InputError
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.data.batches import Batch
from autobalance.functional.model import flatten
from autobalance.functional.processes import Processes
from autobalance.hypergrad import implicit
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import ConjugateGradient, Identity, SingleLoop, Solver
from autobalance.objectives.base import Objective
from autobalance.objectives.registry import as_objective
from autobalance.spaces.base import PARTS
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from helpers import COUNTS, GROUP_COUNTS, NUM_GROUPS, network, scatter

SIZES = {2: (7, 3), 4: (5, 1, 4, 2)}
"""Rows of each process's batches: uneven, and too few for every class to be everywhere."""


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).double()


def rows(sizes: tuple[int, ...], seed: int) -> list[Batch]:
    """A batch for each process; classes in blocks, so that most processes lack some."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    inputs = torch.randn(total, 1, 4, 4, generator=generator, dtype=torch.float64)
    target = (torch.arange(total) * 4 // total).long()
    groups = torch.randint(NUM_GROUPS, (total,), generator=generator)
    weight = torch.rand(total, generator=generator, dtype=torch.float64) + 0.1
    parts = (t.split(sizes) for t in (inputs, target, groups, weight))
    return [Batch(*part) for part in zip(*parts, strict=True)]


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        *(
            torch.cat([getattr(b, name) for b in batches])
            for name in ("inputs", "target", "groups", "sample_weight")
        )
    )


def tunable(groups: bool) -> TunableCrossEntropy:
    space = ClassSpace(GROUP_COUNTS if groups else COUNTS, learn=PARTS, sigma=1.0).double()
    scatter(space)
    return TunableCrossEntropy(space)


CASES: dict[str, tuple[str, Solver, str]] = {
    "identity": ("mlp", Identity(), "balanced_error"),
    "single loop": ("mlp", SingleLoop(damping=0.01), "balanced_error"),
    "conjugate gradients": ("cnn", ConjugateGradient(damping=0.01), "worst_class_error"),
    "exact Hessian": (
        "mlp",
        ConjugateGradient(damping=0.05, curvature="hessian"),
        "cvar_error(0.3)",
    ),
    "a gap": ("mlp", SingleLoop(damping=0.01), "0.6 * balanced_error + 0.4 * deo"),
    "SyncBatchNorm": ("batch_norm", SingleLoop(damping=0.01), "balanced_error"),
    "BatchNorm evaluated": ("batch_norm_eval", SingleLoop(damping=0.01), "balanced_error"),
    "validation in parts": ("batch_norm_eval", SingleLoop(damping=0.01), "worst_class_error"),
    "augmented": ("brightened", SingleLoop(damping=0.01), "balanced_error"),
}


class Brightened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 4, dtype=torch.float64))

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
        return inputs * self.factor[target].view(-1, 1, 1, 1)


def found_by(
    model: nn.Module,
    solver: Solver,
    objective: Objective,
    batches: list[list[Batch]],
    augment: nn.Module | None,
) -> list[Tensor]:
    """Hypergradients of steps in a row, flat, and what the objective was."""
    loss = tunable(groups=objective.over != "class" or "deo" in repr(objective).lower())
    found, solver_state = [], None
    for train, held in zip(batches[::2], batches[1::2], strict=True):
        result = hypergradient(
            model,
            loss,
            objective,
            train[0],
            held[0],
            solver=solver,
            weight_decay=0.01,
            solver_state=solver_state,
            augment=augment,
        )
        solver_state = result.solution.solver_state
        values = torch.tensor([result.objective, result.hard_objective], dtype=torch.float64)
        found.append(torch.cat([flatten(result.gradients), values]))
    return found


def compare(name: str, rank: int, world: int) -> dict[str, Any]:
    kind, solver, aim = CASES[name]
    if kind.startswith("batch_norm"):
        plain = with_batch_norm()
    else:
        plain = network("mlp" if kind == "brightened" else kind)
    plain.train(kind != "batch_norm_eval")
    parallel = DistributedDataParallel(copy.deepcopy(plain))
    # Converted afterwards: DDP refuses these layers on a CPU, where torch's own do not work.
    nn.SyncBatchNorm.convert_sync_batchnorm(parallel.module)
    augment = Brightened() if kind == "brightened" else None
    sizes = [SIZES[world], SIZES[world][::-1]] * 2
    # Then the process of few training rows has more parts than the others, and one alone has one.
    implicit.WHOLE = 16 if name == "validation in parts" else 1 << 24
    batches = [rows(s, seed) for seed, s in enumerate(sizes)]
    objective = as_objective(aim)
    own = [[b[rank]] for b in batches]
    together = found_by(parallel, solver, objective, own, augment)
    alone = found_by(plain, solver, objective, [[joined(b)] for b in batches], augment)
    return {"together": torch.stack(together), "alone": torch.stack(alone)}


def tune(rank: int, world: int) -> dict[str, Any]:
    """Two steps of a tuner whose prior counts the validation batch's classes."""
    results = {}
    for how in ("together", "alone"):
        loss = tunable(groups=False)
        tuner = LossTuner(loss, "balanced_error", lr=0.1)
        model: nn.Module = network("mlp")
        if how == "together":
            model = DistributedDataParallel(model)
        for seed in (0, 1):
            train, held = rows(SIZES[world], seed), rows(SIZES[world], seed + 5)
            if how == "together":
                tuner.step(model, train[rank], held[rank])
            else:
                tuner.step(model, joined(train), joined(held))
        results[how] = flatten([p.detach() for p in loss.space.parameters()])
    return results


def refusals() -> dict[str, str]:
    """What is said of networks of which a child alone, or only a weight, is sharded."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def by_fsdp2(model: nn.Sequential) -> None:
        fully_shard(model[0], mesh=mesh)

    def by_fsdp1(model: nn.Sequential) -> None:
        model[0] = FullyShardedDataParallel(model[0], device_id=torch.device("cpu"))

    def a_weight(model: nn.Sequential) -> None:
        weight = distribute_tensor(model[0].weight.detach(), mesh, [Shard(0)])
        model[0].weight = nn.Parameter(weight)

    said = {}
    for shard in (by_fsdp2, by_fsdp1, a_weight):
        model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 3))
        shard(model)
        try:
            Processes.of(model)
        except InputError as error:
            said[shard.__name__] = str(error)
    return said


def work(rank: int, world: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        results = {name: compare(name, rank, world) for name in CASES}
        results["tuner"] = tune(rank, world)
        results["refusals"] = refusals()
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def main(world: int, folder: str) -> None:
    """The processes are forked from this one, so that torch is imported once."""
    torch.set_num_threads(1)
    start_processes(work, (world, folder), nprocs=world, start_method="fork")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
