"""Where and how a run computes: device, precision and seed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from lightning_fabric import Fabric

from autobalance._validation import InputError, instance, one_of, seed_number, shown
from autobalance.data import ArrayData
from autobalance.functional import processes_started
from autobalance.records import Precision, Recipe, SearchSettings

CHECK_EVERY = 20
"""On a GPU, training steps between two looks at whether their losses were finite."""


def check_interval(device: torch.device) -> int:
    """Training steps between two looks at losses: each makes a GPU idle, and costs a CPU nothing."""
    return 1 if device.type == "cpu" else CHECK_EVERY


def make_fabric(device: str = "auto", precision: Any = "32-true") -> Fabric:
    """Fabric on one device: "auto", "cpu", "cuda", "cuda:1", "mps".

    In a process that `torchrun` (or `fabric run`) started, all of its processes train together, by
    DDP, each on a device of this kind.

    Raises
    ------
    InputError
        If the device is not here, or one is given by its index to several processes of a machine.
    """
    kind, colon, index = instance("device", device, str).partition(":")
    if (colon and not index.isdigit()) or len(device) > 20:
        raise InputError(f"device must be auto, cpu, cuda, cuda:1 or mps; got {shown(device)}.")
    devices: Any = [int(index)] if index.isdigit() else 1
    world = processes_started()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    if index and local > 1:
        raise InputError(
            f'Each of the {local} processes on this machine takes a device of its own; got "{device}" for '
            f'all. Give device "{kind}", and say which they may take by CUDA_VISIBLE_DEVICES.'
        )
    several: dict[str, Any] = {}
    if world > 1:
        several = {"strategy": "ddp", "num_nodes": world // local}
        devices = devices if index else local
    try:
        fabric = Fabric(accelerator=kind, devices=devices, precision=precision, **several)
        if several:
            fabric.launch()
        return fabric
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"The device {device!r} cannot be used here. Give auto, cpu, or a device that "
            "it has (cuda, cuda:1, mps)."
        ) from error


@contextmanager
def seed_random_state(seed: int) -> Iterator[None]:
    """Seed the global random state and give it back as it was.

    Before CUDA is initialised its random state follows from the CPU's seed, so a GPU is not touched.
    """
    seed_number(seed)
    started, before = torch.cuda.is_initialized(), torch.initial_seed()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if not started:
                torch.cuda.manual_seed_all(before)


def check_options(
    recipe: object = None,
    settings: object = None,
    seed: int = 0,
    progress: object = None,
    precision: str = "32-true",
) -> None:
    """Refuse what no run can be started with."""
    one_of("precision", precision, get_args(Precision))
    if recipe is not None:
        instance("recipe", recipe, Recipe, "Build one: Recipe(epochs=60).")
    if settings is not None:
        instance("settings", settings, SearchSettings, "Build one: SearchSettings(folds=3).")
    seed_number(seed)
    if progress is not None and not callable(progress):
        raise InputError(
            f"progress must be a function that takes a Progress; got {type(progress).__name__}."
        )


def warn_of_min_steps(recipe: Recipe, examples: int) -> None:
    """Warn that `min_steps` trains for longer than the `epochs` that the user asked for.

    It is told only where `epochs` was changed and `min_steps` was not: who sets both knows.

    Warns
    -----
    UserWarning
        With both numbers, and what to set.
    """
    default, steps = Recipe(), recipe.steps(examples)
    passes = steps * min(recipe.batch_size, examples) / examples
    set_by_user = recipe.epochs != default.epochs and recipe.min_steps == default.min_steps
    if set_by_user and passes > max(1.05 * recipe.epochs, recipe.epochs + 1.0):
        warnings.warn(
            f"epochs={recipe.epochs:g} is overridden: min_steps={recipe.min_steps} makes it "
            f"{passes:.0f} passes over these {examples} examples. For {recipe.epochs:g} passes set "
            "min_steps=1; to keep it so without this warning, set min_steps yourself.",
            stacklevel=3,
        )


def check_augmentable(data: ArrayData, augment: Any) -> None:
    """Refuse an augmentation of data whose targets would have to move with the inputs."""
    if augment is not None and data.dense:
        raise InputError(
            "An augmentation changes the inputs alone, but dense targets must move with them. Leave augment "
            "out, and give a Dataset whose transforms change both."
        )
