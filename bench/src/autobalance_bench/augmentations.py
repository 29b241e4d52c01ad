"""Augmentation that no search has learned, called as a learned one is.

Each takes ``(inputs, target, groups=None)`` and returns a batch like the inputs. A single policy
learned for all classes is `AugmentationPolicy` with ``personalised=False``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance import InputError
from autobalance.augment import (
    Augmentation,
    Draw,
    Flip,
    Operation,
    checked_inputs,
    checked_range,
    from_unit,
    image_operations,
    to_unit,
)
from autobalance_bench._checks import check_choice, check_int, check_unit_interval


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
        self.padding = check_int("padding", padding, least=0)
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


class ResizedCrop(nn.Module):
    """Crops of any size and shape scaled to one size, flips and colours: the recipe for ImageNet.

    That of Szegedy et al. (2015), by Kornia, whose images of one channel pass as grey ones of three.

    Parameters
    ----------
    size : int
        Height and width of what the network trains on. It must take the inputs' own size, too, on which it
        predicts: `autobalance.networks.CentralCrop` before it cuts them to `size`.
    scale : (float, float)
        Least and largest share of the image's area, in (0, 1].
    ratio : (float, float)
        Least and largest width over height, above 0.
    flip : bool
        Whether to exchange left and right of every other image.
    colour : float
        Brightness, contrast and saturation change by factors in 1 - colour to 1 + colour, in any order; in
        [0, 1], 0 for no change.
    hue : float
        Hues turn by up to so much of the circle, either way, in [0, 0.5].
    value_range : tuple
        As for `AugmentationPolicy`.

    Raises
    ------
    InputError
        If Kornia is not installed, or an option is out of range.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (0.75, 4 / 3),
        flip: bool = True,
        colour: float = 0.0,
        hue: float = 0.0,
        value_range: Any = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.size = check_int("size", size, least=1)
        self.scale, self.ratio = _interval("scale", scale), _interval("ratio", ratio)
        if self.scale[1] > 1.0:
            raise InputError(f"scale must lie in (0, 1]; got {tuple(scale)}.")
        self.flip, self.colour, self.hue = flip, check_unit_interval("colour", colour), hue
        if not 0.0 <= check_unit_interval("hue", hue) <= 0.5:
            raise InputError(f"hue must lie in [0, 0.5]; got {hue}.")
        self.draw = Draw(value_range=checked_range(value_range))
        kornia = _kornia("Crops of any size")
        both = (self.size, self.size)
        self.steps = nn.Sequential(
            kornia.RandomResizedCrop(
                both, scale=self.scale, ratio=self.ratio, cropping_mode="resample"
            )
        )
        if flip:
            self.steps.append(kornia.RandomHorizontalFlip(0.5))
        if colour or hue:
            self.steps.append(kornia.ColorJitter(colour, colour, colour, hue))

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        checked_inputs(inputs, (Flip(),), self.draw)
        return _by_kornia(self.steps, inputs, self.draw)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, scale={self.scale}, ratio={self.ratio}, flip={self.flip}, "
            f"colour={self.colour}, hue={self.hue}"
        )


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
        self.name = check_choice("name", name, ("trivial", "random"))
        self.share = check_int("share", share, least=1)
        self.draw = Draw(value_range=checked_range(value_range))
        auto = _kornia("TrivialAugment and RandAugment").auto
        if name == "trivial":
            self.kornia = auto.TrivialAugment()
        elif not 1 <= check_int("m", m, least=1) <= 29:
            raise InputError(f"m must lie in 1..29, RandAugment's scale; got {m}.")
        else:
            self.kornia = auto.RandAugment(check_int("n", n, least=1), m)
        self.requires_grad_(False)  # Kornia's probabilities are parameters, which do not learn

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        checked_inputs(inputs, (Flip(),), self.draw)

        def in_parts(x: Tensor) -> Tensor:
            return torch.cat([self.kornia(part) for part in x.split(self.share)]) if len(x) else x

        return _by_kornia(in_parts, inputs, self.draw)


def _kornia(what: str) -> Any:
    try:
        import kornia.augmentation.auto
    except ImportError:
        raise InputError(
            f"{what} need Kornia. Install it: pip install 'autobalance[vision]'."
        ) from None
    return kornia.augmentation


def _by_kornia(operation: Callable[[Tensor], Tensor], inputs: Tensor, draw: Draw) -> Tensor:
    """An operation on images of three channels in [0, 1], on any images."""
    x = operation(to_unit(inputs, draw).clamp(0.0, 1.0).expand(-1, 3, -1, -1))
    if inputs.shape[1] == 1:
        x = x.mean(dim=1, keepdim=True)
    return from_unit(x.clamp(0.0, 1.0), draw).to(inputs.dtype)


def _interval(name: str, values: Sequence[float]) -> tuple[float, float]:
    pair = isinstance(values, Sequence) and len(values) == 2
    if not pair or not all(isinstance(v, (int, float)) for v in values):
        raise InputError(f"{name} must be two numbers, the least and the largest; got {values!r}.")
    if not 0.0 < values[0] <= values[1]:
        raise InputError(
            f"{name} must be two numbers above 0, the least and the largest; got {values!r}."
        )
    return float(values[0]), float(values[1])


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
    named = {check_choice("operation", name, known) for row in table.values() for name in row}
    used = [o for name, o in known.items() if name in named]
    sizes = {
        what: [
            [row[o.name].get(what, 1.0) if o.name in row else 0.0 for o in used]
            for row in (table.get(name, {}) for name in order)
        ]
        for what in ("probability", "magnitude")
    }
    return Augmentation(used, sizes["probability"], sizes["magnitude"], **options)
