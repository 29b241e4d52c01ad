"""Dense targets: one class index for each pixel of an image, ``(n, d1, ...)``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from autobalance._validation import InputError
from autobalance.data.arrays import as_tensor
from autobalance.objectives import IGNORED

_AT_ONCE = 2**24
"""Pixels that are looked at at once: 128 MiB of indices."""


def dense_indices(values: Any, ignore_index: int) -> Tensor:
    """A dense target as int16 (int32 with many classes), its ignored pixels as `IGNORED`.

    Two bytes a pixel, for the masks of a whole data set are held in memory; batches have them as int64.

    Raises
    ------
    InputError
        If they are no whole numbers, or one is below 0 and not `ignore_index`.
    """
    given = as_tensor("target", values)
    if given.is_floating_point() or given.dtype == torch.bool:
        raise InputError(
            f"A dense target must hold whole numbers, one class per pixel; got {given.dtype} of shape "
            f"{tuple(given.shape)}. Soft targets are not supported: give their argmax."
        )
    if not given.numel():
        return given.short()
    kept = given != ignore_index
    if not bool(kept.any()):
        raise InputError(
            f"Every pixel of the target is {ignore_index}, which is ignored: nothing is labelled."
        )
    lowest, highest = torch.stack(torch.aminmax(torch.where(kept, given, 0))).tolist()
    if lowest < 0:
        bad = kept & (given < 0)
        place = bad.nonzero()[0].tolist()
        raise InputError(
            f"target must be numbered from 0: {int(bad.sum())} pixels are below, such as "
            f"{int(given[tuple(place)])} at {place}. Where that is a pixel to ignore, give ignore_index=."
        )
    small = given.to(torch.int16 if highest < 2**15 else torch.int32)
    return torch.where(kept, small, IGNORED)


def check_dense(target: Tensor, num_classes: int) -> None:
    """Refuse class indices of `num_classes` or above; the message counts them and has an example."""
    bad = target >= num_classes
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise InputError(
            f"{int(bad.sum())} of {target.numel()} pixels have a class above {num_classes - 1}, such as "
            f"{int(target[tuple(place)])} at {place}, but there are only {num_classes} classes. Where it "
            "marks pixels to ignore, give ignore_index=."
        )


def labelled_images(target: Tensor) -> Tensor:
    """Numbers of the images that have a labelled pixel; a warning tells of others."""
    has = (target != IGNORED).flatten(1).any(dim=1)
    if not bool(has.all()):
        bare = (~has).nonzero().squeeze(1)
        warnings.warn(
            f"{len(bare)} of {len(has)} images have only pixels that are ignored, such as number "
            f"{int(bare[0])}: nothing can be learned from them, so they are left out.",
            stacklevel=4,
        )
    return has.nonzero().squeeze(1)


def count_by_image(target: Tensor, num_classes: int) -> Tensor:
    """Labelled pixels of each class in each image, ``(n, k)``, int64, on the device of the target."""
    each = max(1, target[0].numel()) if len(target) else 1
    tables = []
    for part in target.flatten(1).split(max(1, _AT_ONCE // each)):
        image = torch.arange(len(part), device=part.device)[:, None]
        cells = (image * num_classes + part)[part != IGNORED]
        table = torch.bincount(cells, minlength=len(part) * num_classes)
        tables.append(table.view(-1, num_classes))
    return torch.cat(tables)


def rarest_present(counts: Tensor) -> Tensor:
    """The class of each image, of those in it, that fewest pixels of all images have, ``(n,)``.

    `counts` is that of `count_by_image`. Splits stratified by it, and batches balanced over it, have rare
    classes in them wherever a few images hold all their pixels.
    """
    order = counts.sum(dim=0).argsort(stable=True)
    return order[(counts[:, order] > 0).int().argmax(dim=1)]
