"""Fixed augmentations of images: the baselines of those that a search learns.

Each is called as a learned one, ``augment(inputs, target, groups=None)``, with images ``(n, c, h, w)``
of one or three channels, and returns images of the same type and range. They ignore the target and
the groups, but for `build_augmentation`, whose strengths are by class.
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


class StandardAugmentation(nn.Module):
    """Crop padded images at random and flip them: the recipe of He et al. (2016) for CIFAR.

    Crops are by whole pixels; each example gets its own crop and flip.

    Parameters
    ----------
    padding : int
        Pixels of black on each side before the crop, at least 0.
    flip : bool
        Whether to exchange left and right of half of the images, at random. Pass False where left
        and right carry meaning, as in digits.
    value_range : tuple
        As for `AugmentationPolicy`; its lowest value is black.

    Raises
    ------
    InputError
        If an option is out of range.
    """

    def __init__(
        self, padding: int = 4, *, flip: bool = True, value_range: Any = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.padding = check_int("padding", padding, least=0)
        self.flip = flip
        self.draw = Draw(value_range=checked_range(value_range))

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        """Crop and flip a batch of images ``(n, c, h, w)``; the size stays."""
        checked_inputs(inputs, (Flip(),), self.draw)
        n, _, height, width = inputs.shape
        device = inputs.device
        # Padding adds zeros, so black is moved to zero first and back afterwards.
        black = self.draw.low(inputs)
        padded = F.pad(inputs - black, [self.padding] * 4)
        start = torch.randint(2 * self.padding + 1, (2, n, 1), device=device)
        rows = start[0] + torch.arange(height, device=device)
        columns = start[1] + torch.arange(width, device=device)
        if self.flip:
            is_flipped = torch.rand(n, 1, device=device) < 0.5
            columns = torch.where(is_flipped, columns.flip(1), columns)
        example = torch.arange(n, device=device)[:, None, None]
        crop = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
        return crop.permute(0, 3, 1, 2).contiguous() + black

    def extra_repr(self) -> str:
        """The options, as the module's repr shows them."""
        return f"padding={self.padding}, flip={self.flip}"


class ResizedCrop(nn.Module):
    """Crop images at any size and shape, scale, flip and recolour them: the recipe for ImageNet.

    This is the recipe of Szegedy et al. (2015), by Kornia. Images of one channel are treated as grey
    images of three.

    Parameters
    ----------
    size : int
        Height and width of the crops that the network trains on. It predicts on inputs of their own
        size, so put `autobalance.networks.CentralCrop` of `size` before it.
    scale : (float, float)
        Least and largest share of the image's area, in (0, 1].
    ratio : (float, float)
        Least and largest width over height, above 0.
    flip : bool
        Whether to exchange left and right of half of the images, at random.
    colour : float
        Brightness, contrast and saturation are multiplied by factors from 1 - colour to 1 + colour,
        in random order. In [0, 1]; 0 changes nothing.
    hue : float
        Hues turn by up to this share of the colour circle, either way. In [0, 0.5].
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
        self.scale, self.ratio = _check_interval("scale", scale), _check_interval("ratio", ratio)
        if self.scale[1] > 1.0:
            raise InputError(f"scale must lie in (0, 1]; got {tuple(scale)}.")
        self.flip, self.colour, self.hue = flip, check_unit_interval("colour", colour), hue
        if not 0.0 <= check_unit_interval("hue", hue) <= 0.5:
            raise InputError(f"hue must lie in [0, 0.5]; got {hue}.")
        self.draw = Draw(value_range=checked_range(value_range))
        kornia = _import_kornia("Crops of any size")
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
        """Crop, flip and recolour a batch of images, to ``(n, c, size, size)``."""
        checked_inputs(inputs, (Flip(),), self.draw)
        return _apply_kornia(self.steps, inputs, self.draw)

    def extra_repr(self) -> str:
        """The options, as the module's repr shows them."""
        return (
            f"size={self.size}, scale={self.scale}, ratio={self.ratio}, flip={self.flip}, "
            f"colour={self.colour}, hue={self.hue}"
        )


class KorniaAugmentation(nn.Module):
    """Apply TrivialAugment or RandAugment, by Kornia.

    Images of one channel are treated as grey images of three.

    Parameters
    ----------
    name : {"trivial", "random"}
        "trivial" is TrivialAugment (Mueller and Hutter, 2021), one operation of random strength;
        "random" is RandAugment (Cubuk et al., 2020), `n` operations of strength `m`.
    n, m : int
        For "random": number of operations, and their strength from 1 to 29.
    share : int
        Number of neighbouring examples that get the same operations, each with random strengths of
        its own. 1 is as published; 16 is ten times as fast.
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
        auto = _import_kornia("TrivialAugment and RandAugment").auto
        if name == "trivial":
            self.kornia = auto.TrivialAugment()
        elif not 1 <= check_int("m", m, least=1) <= 29:
            raise InputError(f"m must lie in 1..29, RandAugment's scale; got {m}.")
        else:
            self.kornia = auto.RandAugment(check_int("n", n, least=1), m)
        self.requires_grad_(False)  # Kornia holds its probabilities as parameters

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        """Augment a batch of images ``(n, c, h, w)``; the size stays."""
        checked_inputs(inputs, (Flip(),), self.draw)

        def augment_in_parts(x: Tensor) -> Tensor:
            return torch.cat([self.kornia(part) for part in x.split(self.share)]) if len(x) else x

        return _apply_kornia(augment_in_parts, inputs, self.draw)


def _import_kornia(what: str) -> Any:
    try:
        import kornia.augmentation.auto
    except ImportError:
        raise InputError(f"{what} need Kornia. Install it: pip install kornia.") from None
    return kornia.augmentation


def _apply_kornia(operation: Callable[[Tensor], Tensor], inputs: Tensor, draw: Draw) -> Tensor:
    """Apply an operation on images of three channels in [0, 1] to images of any range."""
    x = operation(to_unit(inputs, draw).clamp(0.0, 1.0).expand(-1, 3, -1, -1))
    if inputs.shape[1] == 1:
        x = x.mean(dim=1, keepdim=True)
    return from_unit(x.clamp(0.0, 1.0), draw).to(inputs.dtype)


def _check_interval(name: str, values: Sequence[float]) -> tuple[float, float]:
    pair = isinstance(values, Sequence) and len(values) == 2
    if not pair or not all(isinstance(v, (int, float)) for v in values):
        raise InputError(f"{name} must be two numbers, the least and the largest; got {values!r}.")
    if not 0.0 < values[0] <= values[1]:
        raise InputError(
            f"{name} must be two numbers above 0, the least and the largest; got {values!r}."
        )
    return float(values[0]), float(values[1])


def build_augmentation(
    table: Mapping[Any, Mapping[str, Mapping[str, float]]],
    classes: Sequence[Any] | None = None,
    *,
    operations: Sequence[Operation] | None = None,
    **options: Any,
) -> Augmentation:
    """Build a fixed augmentation from a table of strengths by class.

    Parameters
    ----------
    table : mapping
        From class to operation to "probability" and "magnitude", both in [0, 1] and 1 by default;
        the layout of `Augmentation.per_class`. Operations that are not named are not applied.
    classes : sequence, optional
        The classes in the order of their indices; some need not be in the table. By default the
        table's own order.
    operations : sequence of Operation, optional
        Operations that the table may name; `image_operations()` by default.
    **options
        As for `Augmentation`.

    Raises
    ------
    InputError
        If the table names a class or an operation that does not exist.

    Examples
    --------
    >>> rare = build_augmentation({"cat": {}, "lynx": {"rotation": {"magnitude": 0.5}, "flip": {}}})
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
