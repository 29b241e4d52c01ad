"""Operations on images ``(n, c, h, w)`` with values in [0, 1]."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import InputError
from autobalance.augment.operations import Domain, Operation, constants, per_example

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey, ITU-R BT.601."""

_BLUR = (0.05448868, 0.24420134, 0.40261995, 0.24420134, 0.05448868)
"""Gaussian of standard deviation 1 on five pixels, sum 1."""


class ImageOperation(Operation):
    """Base of what needs images."""

    domain: ClassVar[Domain] = "image"


# Geometry: composed into one warp per batch -----------------------------------------------------


class GeometricOperation(ImageOperation):
    """Base of affine maps; what leaves the image is lost, what comes in is black (0)."""

    signed: ClassVar[bool] = True

    @abstractmethod
    def matrix(self, strength: Tensor, height: int, width: int) -> Tensor:
        """From pixels of the result to pixels of the input, both from the centre, ``(n, 3, 3)``."""

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Images warped by `matrix`."""
        return warp(inputs, self.matrix(strength, *inputs.shape[-2:]))


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear affine warp by matrices ``(n, 3, 3)`` in pixels from the centre."""
    height, width = images.shape[-2:]
    half = constants([width / 2, height / 2, 1.0], matrix)
    # affine_grid counts in half widths and half heights.
    theta = (matrix * half / half[:, None])[:, :2]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _matrix(
    strength: Tensor,
    xx: Tensor | float = 1.0,
    xy: Tensor | float = 0.0,
    x: Tensor | float = 0.0,
    yx: Tensor | float = 0.0,
    yy: Tensor | float = 1.0,
    y: Tensor | float = 0.0,
) -> Tensor:
    rows = (xx, xy, x, yx, yy, y, 0.0, 0.0, 1.0)
    full = [r if isinstance(r, Tensor) else torch.full_like(strength, r) for r in rows]
    return torch.stack(full, dim=1).view(-1, 3, 3)


@dataclass(frozen=True)
class ShiftX(GeometricOperation):
    """Shift to the side; the strength is a share of the width."""

    limit: float = 0.25
    name: ClassVar[str] = "shift_x"

    def matrix(self, strength: Tensor, height: int, width: int) -> Tensor:
        """Translation along x."""
        return _matrix(strength, x=strength * width)


@dataclass(frozen=True)
class ShiftY(GeometricOperation):
    """Shift up or down; the strength is a share of the height."""

    limit: float = 0.25
    name: ClassVar[str] = "shift_y"

    def matrix(self, strength: Tensor, height: int, width: int) -> Tensor:
        """Translation along y."""
        return _matrix(strength, y=strength * height)


@dataclass(frozen=True)
class Rotation(GeometricOperation):
    """Rotation about the centre; the strength is an angle in degrees."""

    limit: float = 30.0
    name: ClassVar[str] = "rotation"

    def matrix(self, strength: Tensor, height: int, width: int) -> Tensor:
        """Rotation by the angle."""
        angle = torch.deg2rad(strength)
        cos, sin = angle.cos(), angle.sin()
        return _matrix(strength, xx=cos, xy=-sin, yx=sin, yy=cos)


@dataclass(frozen=True)
class Scale(GeometricOperation):
    """Larger or smaller about the centre; the strength is the logarithm of the factor."""

    limit: float = 0.4
    name: ClassVar[str] = "scale"

    def matrix(self, strength: Tensor, height: int, width: int) -> Tensor:
        """The factor on the diagonal."""
        factor = strength.exp()
        return _matrix(strength, xx=factor, yy=factor)


@dataclass(frozen=True)
class ShearX(GeometricOperation):
    """Shear to the side; the strength is the tangent of the angle."""

    limit: float = 0.4
    name: ClassVar[str] = "shear_x"

    def matrix(self, strength: Tensor, height: int, width: int) -> Tensor:
        """X moved in proportion to y."""
        return _matrix(strength, xy=strength)


@dataclass(frozen=True)
class ShearY(GeometricOperation):
    """Shear up or down; the strength is the tangent of the angle."""

    limit: float = 0.4
    name: ClassVar[str] = "shear_y"

    def matrix(self, strength: Tensor, height: int, width: int) -> Tensor:
        """Y moved in proportion to x."""
        return _matrix(strength, yx=strength)


# Without a position -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Flip(ImageOperation):
    """Left and right exchanged. A relaxed gate blends the two images."""

    limit: float = 1.0
    name: ClassVar[str] = "flip"
    graded: ClassVar[bool] = False
    largest: ClassVar[float] = 1.0

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Images blended with their mirror images."""
        return torch.lerp(inputs, inputs.flip(-1), per_example(strength, inputs))


@dataclass(frozen=True)
class Brightness(ImageOperation):
    """Values times 1 + strength."""

    limit: float = 0.6
    name: ClassVar[str] = "brightness"
    signed: ClassVar[bool] = True
    largest: ClassVar[float] = 1.0

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Values scaled."""
        return inputs * (1.0 + per_example(strength, inputs))


@dataclass(frozen=True)
class Contrast(ImageOperation):
    """Distances from the image's mean grey times 1 + strength."""

    limit: float = 0.8
    name: ClassVar[str] = "contrast"
    signed: ClassVar[bool] = True
    largest: ClassVar[float] = 1.0

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Distances from the mean grey scaled."""
        mean = _grey(inputs).mean(dim=(-2, -1), keepdim=True)
        return inputs + per_example(strength, inputs) * (inputs - mean)


@dataclass(frozen=True)
class Saturation(ImageOperation):
    """Distances of the colours from the pixel's grey times 1 + strength; three channels."""

    limit: float = 0.9
    name: ClassVar[str] = "saturation"
    signed: ClassVar[bool] = True
    largest: ClassVar[float] = 1.0

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Distances from grey scaled."""
        if inputs.shape[1] != 3:
            raise InputError(
                f"saturation needs images of 3 channels; these have {inputs.shape[1]}. Leave it "
                "out, as image_operations(channels=1) does."
            )
        return inputs + per_example(strength, inputs) * (inputs - _grey(inputs))


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


@dataclass(frozen=True)
class Blur(ImageOperation):
    """Blend with a Gaussian blur of one pixel's standard deviation; the strength is its share."""

    limit: float = 1.0
    name: ClassVar[str] = "blur"
    largest: ClassVar[float] = 1.0

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Images blended with their blurred versions."""
        line = constants(_BLUR, inputs)
        planes = inputs.flatten(0, 1).unsqueeze(1)
        planes = F.conv2d(F.pad(planes, (2, 2, 0, 0), mode="replicate"), line.view(1, 1, 1, 5))
        planes = F.conv2d(F.pad(planes, (0, 0, 2, 2), mode="replicate"), line.view(1, 1, 5, 1))
        return torch.lerp(inputs, planes.view(inputs.shape), per_example(strength, inputs))


@dataclass(frozen=True)
class Cutout(ImageOperation):
    """A square, anywhere, takes the image's mean colour; the strength is its side over the image's.

    Pixels on its edge change by the share of them that it covers, so that it grows smoothly.
    """

    limit: float = 0.6
    name: ClassVar[str] = "cutout"
    largest: ClassVar[float] = 1.0

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Images with a square of their mean colour."""
        n, _, height, width = inputs.shape
        centre = torch.rand(n, 2, dtype=inputs.dtype, device=inputs.device)
        rows = _covered(height, centre[:, 0] * height, strength * height)
        columns = _covered(width, centre[:, 1] * width, strength * width)
        hidden = (rows[:, :, None] * columns[:, None, :]).unsqueeze(1)
        return torch.lerp(inputs, inputs.mean(dim=(-2, -1), keepdim=True), hidden)


def _covered(pixels: int, centre: Tensor, side: Tensor) -> Tensor:
    """Share of each pixel that lies within intervals of that centre and length, ``(n, pixels)``."""
    left = torch.arange(pixels, dtype=centre.dtype, device=centre.device)
    low, high = (centre - side / 2)[:, None], (centre + side / 2)[:, None]
    return (torch.minimum(left + 1, high) - torch.maximum(left, low)).clamp(min=0.0)


@dataclass(frozen=True)
class Noise(ImageOperation):
    """Gaussian noise on every value; the strength is its standard deviation."""

    limit: float = 0.2
    name: ClassVar[str] = "noise"

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        """Images plus noise."""
        return inputs + per_example(strength, inputs) * torch.randn_like(inputs)


def image_operations(channels: int = 3) -> tuple[Operation, ...]:
    """The default set for images.

    Parameters
    ----------
    channels : int
        1 or 3; saturation needs 3.

    Returns
    -------
    tuple of Operation
        In the order in which a policy applies them.
    """
    if channels not in (1, 3):
        raise InputError(f"Image operations take 1 or 3 channels; got {channels}.")
    geometry: Sequence[Operation] = (ShiftX(), ShiftY(), Rotation(), Scale(), ShearX(), ShearY())
    colour = (Brightness(), Contrast(), *((Saturation(),) if channels == 3 else ()))
    return (*geometry, Flip(), *colour, Blur(), Cutout(), Noise())
