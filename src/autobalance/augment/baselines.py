"""Augmentation that no search has learned, called as a learned one is.

Each takes ``(inputs, target, groups=None)`` and returns a batch like the inputs. A single policy
learned for all classes is `AugmentationPolicy` with ``personalised=False``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance.augment.drawing import (
    Draw,
    checked_inputs,
    checked_range,
    from_unit,
    to_unit,
)
from autobalance.augment.fixed import Augmentation
from autobalance.augment.images import Flip, image_operations
from autobalance.augment.operations import Operation
from autobalance.checks import InputError, one_of, whole


class NoAugmentation(nn.Module):
    """Returns the inputs."""

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        return inputs


class StandardAugmentation(nn.Module):
    """Random crops from padded images, and flips: the recipe of He et al. (2016) for CIFAR.

    Crops are by whole pixels and drawn for each example, as are flips.

    Parameters
    ----------
    padding : int
        Pixels of black on each side before the crop, at least 0.
    flip : bool
        Whether to exchange left and right of every other image; not where side matters, as in
        digits.
    value_range : tuple
        As for `AugmentationPolicy`; its lowest value is black.
    """

    def __init__(
        self, padding: int = 4, *, flip: bool = True, value_range: Any = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.padding = whole("padding", padding, least=0)
        self.flip = flip
        self.draw = Draw(value_range=checked_range(value_range))

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        checked_inputs(inputs, (Flip(),), self.draw)
        n, _, height, width = inputs.shape
        device = inputs.device
        # Above black, 0 is black whatever the range is, and needs no rescaling by channel.
        black = self.draw.low(inputs)
        padded = F.pad(inputs - black, [self.padding] * 4)
        start = torch.randint(2 * self.padding + 1, (2, n, 1), device=device)
        rows = start[0] + torch.arange(height, device=device)
        columns = start[1] + torch.arange(width, device=device)
        if self.flip:
            turned = torch.rand(n, 1, device=device) < 0.5
            columns = torch.where(turned, columns.flip(1), columns)
        example = torch.arange(n, device=device)[:, None, None]
        crop = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
        return crop.permute(0, 3, 1, 2).contiguous() + black

    def extra_repr(self) -> str:
        return f"padding={self.padding}, flip={self.flip}"


class KorniaAugmentation(nn.Module):
    """TrivialAugment or RandAugment as Kornia has them, for images.

    Images of one channel pass as grey ones of three.

    Parameters
    ----------
    name : {"trivial", "random"}
        TrivialAugment (Mueller and Hutter, 2021), one operation of any strength; or RandAugment
        (Cubuk et al., 2020), `n` operations of strength `m`.
    n, m : int
        Of RandAugment: operations one after the other, and their strength, from 1 to 29.
    share : int
        So many examples of a batch get the same operations, each with random numbers of its own.
        1 is as published; 16 makes it ten times as fast.
    value_range : tuple
        As for `AugmentationPolicy`.

    Raises
    ------
    InputError
        If Kornia is not installed, or an option is out of range.
    """

    def __init__(
        self,
        name: str = "trivial",
        *,
        n: int = 2,
        m: int = 10,
        share: int = 1,
        value_range: Any = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.name = one_of("name", name, ("trivial", "random"))
        self.share = whole("share", share, least=1)
        self.draw = Draw(value_range=checked_range(value_range))
        try:
            from kornia.augmentation.auto import RandAugment, TrivialAugment
        except ImportError:
            raise InputError(
                "TrivialAugment and RandAugment need Kornia. Install it: "
                "pip install 'autobalance[vision]'."
            ) from None
        if name == "trivial":
            self.kornia = TrivialAugment()
        elif not 1 <= whole("m", m, least=1) <= 29:
            raise InputError(f"m must lie in 1..29, RandAugment's scale; got {m}.")
        else:
            self.kornia = RandAugment(whole("n", n, least=1), m)
        self.requires_grad_(False)  # Kornia's probabilities are parameters, which do not learn

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        checked_inputs(inputs, (Flip(),), self.draw)
        channels = inputs.shape[1]
        x = to_unit(inputs, self.draw).clamp(0.0, 1.0).expand(-1, 3, -1, -1)
        x = torch.cat([self.kornia(part) for part in x.split(self.share)]) if len(x) else x
        if channels == 1:
            x = x.mean(dim=1, keepdim=True)
        return from_unit(x.clamp(0.0, 1.0), self.draw).to(inputs.dtype)


def by_hand(
    table: Mapping[Any, Mapping[str, Mapping[str, float]]],
    classes: Sequence[Any] | None = None,
    *,
    operations: Sequence[Operation] | None = None,
    **options: Any,
) -> Augmentation:
    """A fixed augmentation from a table of one's own.

    Parameters
    ----------
    table : mapping
        Class, then operation, then "probability" (1 where it is missing) and "magnitude" (1), both
        in [0, 1]; as `Augmentation.per_class` gives it. What is not named does not act.
    classes : sequence, optional
        Keys of `table` in the order of the class indices, some perhaps not in the table. None:
        the table's own order.
    operations : sequence of Operation, optional
        Those that the table may name; `image_operations()` by default.
    **options
        As for `Augmentation`.

    Raises
    ------
    InputError
        If the table names a class or an operation that does not exist.

    Examples
    --------
    >>> rare = by_hand({"cat": {}, "lynx": {"rotation": {"magnitude": 0.5}, "flip": {}}})
    >>> [o.name for o in rare.operations]
    ['rotation', 'flip']
    """
    order = list(table) if classes is None else list(classes)
    unknown = [name for name in table if name not in order]
    if unknown:
        raise InputError(f"The table names class {unknown[0]!r}, which is none of {order}.")
    known = {o.name: o for o in (image_operations() if operations is None else operations)}
    named = {one_of("operation", name, known) for row in table.values() for name in row}
    used = [o for name, o in known.items() if name in named]
    sizes = {
        what: [
            [row[o.name].get(what, 1.0) if o.name in row else 0.0 for o in used]
            for row in (table.get(name, {}) for name in order)
        ]
        for what in ("probability", "magnitude")
    }
    return Augmentation(used, sizes["probability"], sizes["magnitude"], **options)
