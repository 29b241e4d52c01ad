"""Examples of each class after augmentation, as arrays for a picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, whole
from autobalance.augment.augmentation import Augmentation
from autobalance.augment.random_draws import checked_inputs, from_bytes, to_unit


class Samples(NamedTuple):
    """One image per class, and draws of it.

    Attributes
    ----------
    images : ndarray
        Shape ``(rows, 1 + draws, c, h, w)``, float32 in [0, 1]; the first of each row is the
        original.
    classes : list of int
        Class index of each row.
    groups : list of int or None
        Group index of each row, where the augmentation has rows per group.
    """

    images: np.ndarray
    classes: list[int]
    groups: list[int] | None


def samples(
    augmentation: Augmentation,
    inputs: Tensor,
    target: Tensor,
    groups: Tensor | None = None,
    *,
    draws: int = 8,
    seed: int = 0,
) -> Samples:
    """Augment the first image of each class (in each group) several times.

    Parameters
    ----------
    augmentation : Augmentation
        Of images. What it draws leaves the global random state as it was.
    inputs, target, groups : Tensor
        Images and their classes and groups; what has no image has no row.
    draws : int
        Augmented images per row.
    seed : int
        Of the draws.

    Raises
    ------
    InputError
        If the inputs are not images.
    """
    inputs = from_bytes(inputs)
    checked_inputs(inputs, augmentation.operations, augmentation.draw)
    if inputs.ndim != 4:
        raise InputError(f"Samples are of images (n, c, h, w); got {tuple(inputs.shape)}.")
    whole("draws", draws, least=1)
    grouped = augmentation.num_groups is not None
    if grouped and groups is None:
        raise InputError("This augmentation has rows per group: pass groups=.")
    group_of = groups.tolist() if grouped and groups is not None else [0] * len(target)
    cells = list(zip(group_of, target.tolist(), strict=True))
    first = {cell: i for i, cell in reversed(list(enumerate(cells)))}
    rows = sorted(first)
    # Rows one after the other, so that partners of a mixup are of all classes.
    chosen = torch.tensor([first[cell] for cell in rows]).repeat_interleave(draws)
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        at = None if groups is None else groups[chosen]
        drawn = augmentation(inputs[chosen], target[chosen], at)
    drawn = drawn.view(len(rows), draws, *inputs.shape[1:])
    originals = inputs[chosen[::draws]].unsqueeze(1)
    both = torch.cat([originals, drawn], dim=1).flatten(0, 1)
    unit = to_unit(both, augmentation.draw).clamp(0.0, 1.0)
    images = unit.view(len(rows), 1 + draws, *inputs.shape[1:]).float().cpu().numpy()
    return Samples(images, [y for _, y in rows], [g for g, _ in rows] if grouped else None)
