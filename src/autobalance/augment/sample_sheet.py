"""A few training images beside their augmented versions, for the report's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from autobalance._validation import InputError
from autobalance.augment.augmentation import Augmentation
from autobalance.augment.example_pictures import samples
from autobalance.data import ArrayData

if TYPE_CHECKING:
    from autobalance.report import Sheet

EXAMPLES, DRAWS = 2, 3
"""Training images of a class, and augmented versions of each."""


def sample_sheet(augment: nn.Module | None, data: ArrayData, *, seed: int = 0) -> Sheet | None:
    """A few training images of some classes and what the augmentation makes of them.

    Rows are classes (in groups) from the most to the least frequent, evenly spaced where they are
    many. None where the augmentation is not of this library, or not for images.

    Raises
    ------
    InputError
        If the data are of other classes or groups than the augmentation.
    """
    # The page's drawing library is not to be loaded with every search.
    from autobalance.report import LARGEST, Sheet, evenly_spaced, rows_that_fit

    inputs = data.inputs
    if not isinstance(augment, Augmentation) or len(inputs.shape) != 4:
        return None
    own = augment.num_classes, augment.num_groups
    grouped = augment.num_groups is not None
    if own != (data.num_classes, data.num_groups if grouped else None):
        raise InputError(
            f"data must be what was searched on: the augmentation is of {own[0]} classes and "
            f"{own[1] or 'no'} groups; got {data.num_classes} and {data.num_groups or 'no'} groups."
        )
    cells = (data if grouped else data.without_groups()).cells()
    present, counts = np.unique(cells[cells >= 0].cpu(), return_counts=True)
    present = present[np.argsort(-counts, kind="stable")]
    size = min(LARGEST, max(inputs.shape[2:]))
    columns = EXAMPLES * (1 + DRAWS)
    most = rows_that_fit(len(present), columns, inputs.shape[1], size)
    rows, images = [], []
    for cell in present[evenly_spaced(len(present), most)].tolist():
        at = (cells == cell).nonzero()[:, 0].repeat(EXAMPLES)  # of a class of one, the same twice
        pictures = []
        for n, i in enumerate(at[:EXAMPLES]):
            one = data.batch(i[None])
            drawn = samples(augment, one.inputs, one.target, one.groups, draws=DRAWS, seed=seed + n)
            pictures.append(drawn.images[0])
        rows.append((cell % own[0], cell // own[0] if grouped else None))
        images.append(torch.from_numpy(np.concatenate(pictures)))
    sheet = torch.stack(images)
    scale = size / max(inputs.shape[2:])
    if scale < 1:
        shape = tuple(max(1, round(scale * side)) for side in inputs.shape[2:])
        small = nn.functional.interpolate(sheet.flatten(0, 1), shape, mode="area")
        sheet = small.view(*sheet.shape[:3], *shape)
    return Sheet(rows, sheet.numpy(), EXAMPLES)
