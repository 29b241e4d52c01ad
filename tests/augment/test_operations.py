"""Each operation against what it should do to images and tables, by other means."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy import ndimage
from torch import Tensor

from autobalance import augment
from autobalance.augment.augmentation import OPERATIONS, Augmentation
from autobalance.augment.images import (
    Blur,
    Brightness,
    Contrast,
    Cutout,
    Flip,
    GeometricOperation,
    Noise,
    Rotation,
    Saturation,
    Scale,
    ShearX,
    ShearY,
    ShiftX,
    ShiftY,
    image_operations,
)
from autobalance.augment.operations import Operation
from autobalance.augment.tensors import (
    FeatureDropout,
    GaussianNoise,
    Mixup,
    SphericalNoise,
    tensor_operations,
)

EACH = pytest.mark.parametrize("operation", [kind() for kind in OPERATIONS], ids=lambda o: o.name)


def pictures(n: int = 4, channels: int = 3, height: int = 6, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64)


def inputs_of(operation: Operation) -> Tensor:
    return pictures().flatten(1) if operation.domain == "tensor" else pictures()


def strengths(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def smooth(side: int = 41) -> Tensor:
    """Two soft spots, black at the border, so that interpolation and padding count little."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    first = torch.exp(-((x - 0.3) ** 2 + (y + 0.1) ** 2) / 0.03)
    return (first + 0.5 * torch.exp(-((x + 0.2) ** 2 + (y - 0.3) ** 2) / 0.02))[None, None]


def test_every_operation_is_among_those_that_records_may_name() -> None:
    kinds = {
        value
        for value in vars(augment).values()
        if inspect.isclass(value) and issubclass(value, Operation) and not inspect.isabstract(value)
    }
    assert kinds == set(OPERATIONS)
    assert {type(o) for o in (*image_operations(), *tensor_operations())} == set(OPERATIONS)


@EACH
def test_strength_zero_is_the_identity(operation: Operation) -> None:
    inputs = inputs_of(operation)
    found = operation.apply(inputs, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found, inputs, rtol=0, atol=1e-12)


@EACH
def test_examples_have_strengths_of_their_own(operation: Operation) -> None:
    inputs = inputs_of(operation)
    found = operation.apply(inputs, strengths(0.0, operation.limit, 0.0, operation.limit))
    changed = (found - inputs).flatten(1).abs().amax(dim=1) > 1e-9
    assert changed.tolist() == [False, True, False, True]


@EACH
def test_settings_that_cannot_be_changed_by_mistake(operation: Operation) -> None:
    assert operation == type(operation)()
    assert hash(operation) == hash(type(operation)())
    assert operation.to_dict() == {"name": operation.name, "limit": operation.limit}
    with pytest.raises(AttributeError, match="cannot assign to field 'limit'"):
        operation.limit = 0.1  # pyright: ignore[reportAttributeAccessIssue]


# Geometry ---------------------------------------------------------------------------------------


def test_shifts_by_whole_pixels() -> None:
    x = pictures(1)
    left = ShiftX().apply(x, strengths(0.2))  # 2 of 10
    torch.testing.assert_close(left[..., :-2], x[..., 2:])
    assert not left[..., -2:].abs().gt(1e-9).any()
    up = ShiftY().apply(x, strengths(1 / 6))
    torch.testing.assert_close(up[..., :-1, :], x[..., 1:, :])


def test_half_a_turn_and_a_quarter() -> None:
    x = pictures(1)
    torch.testing.assert_close(Rotation().apply(x, strengths(180.0)), x.flip(-1, -2))
    square = pictures(1, height=7, width=7)
    quarter = Rotation().apply(square, strengths(90.0))
    assert any(torch.allclose(quarter, square.rot90(k, (-2, -1))) for k in (1, -1))


@pytest.mark.parametrize(
    ("operation", "strength", "forward"),
    [
        (Rotation(), 25.0, lambda s: rotation(math.radians(s))),
        (Scale(), 0.3, lambda s: np.exp(s) * np.eye(2)),
        (ShearX(), 0.3, lambda s: np.array([[1.0, 0.0], [s, 1.0]])),
        (ShearY(), -0.3, lambda s: np.array([[1.0, s], [0.0, 1.0]])),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_warps_equal_those_of_scipy(operation: Operation, strength: float, forward: object) -> None:
    image = smooth()[..., :33]  # not square
    A = forward(strength)  # pyright: ignore[reportCallIssue]  # in (row, column), result to input
    centre = (np.array(image.shape[-2:]) - 1) / 2
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), A, offset=centre - A @ centre, order=1, mode="grid-constant"
    )
    found = operation.apply(image, strengths(strength))[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def test_one_warp_is_the_operations_one_after_the_other() -> None:
    """Up to what interpolating twice blurs."""
    chain: list[Operation] = [ShiftX(0.2), Rotation(40.0), ShearX(0.3)]
    image = smooth(81)
    ones = torch.ones(2, 3, dtype=torch.float64)
    together = Augmentation(chain, ones, ones)
    target = torch.zeros(1, dtype=torch.int64)
    torch.manual_seed(0)
    found = together(image, target)
    torch.manual_seed(0)
    u = 2 * torch.rand(2, 1, 3, dtype=torch.float64)[1, 0] - 1
    stepwise = image
    for operation, at in zip(chain, u, strict=True):
        stepwise = operation.apply(stepwise, (at * operation.limit)[None])
    backwards = image
    for operation, at in zip(chain[::-1], u.flip(0), strict=True):
        backwards = operation.apply(backwards, (at * operation.limit)[None])
    error, other = (float((found - x).abs().max()) for x in (stepwise, backwards.clamp(0, 1)))
    assert error < 0.03
    assert other > 5 * error
    assert all(isinstance(o, GeometricOperation) for o in chain)


# Colour and detail ------------------------------------------------------------------------------


def test_flip() -> None:
    x = pictures()
    torch.testing.assert_close(
        Flip().apply(x, strengths(1, 0, 1, 0.5))[[0, 1, 3]],
        torch.stack([x[0].flip(-1), x[1], (x[3] + x[3].flip(-1)) / 2]),
    )


def test_colours_equal_those_of_kornia() -> None:
    from kornia import enhance

    x, s = 0.4 + 0.2 * pictures(), strengths(-0.3, 0.2, 0.1, -0.5)
    for operation, theirs in (
        (Brightness(), enhance.adjust_brightness_accumulative),
        (Contrast(), enhance.adjust_contrast_with_mean_subtraction),
        (Saturation(), enhance.adjust_saturation_with_gray_subtraction),
    ):
        torch.testing.assert_close(operation.apply(x, s), theirs(x, 1 + s), atol=1e-3, rtol=0)


def test_blur_equals_that_of_kornia() -> None:
    from kornia.filters import gaussian_blur2d

    x = pictures()
    theirs = gaussian_blur2d(x, 5, (1.0, 1.0), border_type="replicate")
    found = Blur().apply(x, strengths(1.0, 0.5, 1.0, 1.0))
    torch.testing.assert_close(found[0], theirs[0])
    torch.testing.assert_close(found[1], (x[1] + theirs[1]) / 2)


@given(side=st.floats(0.05, 0.6), seed=st.integers(0, 50))
def test_cutout_covers_a_square_smoothly(side: float, seed: int) -> None:
    """On images of one 1 among zeros its mean is nearly 0: what is left of ones tells the area."""
    torch.manual_seed(seed)
    centre = torch.rand(1, 2, dtype=torch.float64)[0].numpy() * 20
    x = torch.zeros(1, 1, 20, 20, dtype=torch.float64)
    x[..., ::2] = 1.0
    torch.manual_seed(seed)
    found = Cutout().apply(x, strengths(side))
    covered = 2 * (found - x).abs()  # from 0 or 1 to the mean 1/2
    low, high = np.clip([centre - 10 * side, centre + 10 * side], 0, 20)
    assert float(covered.sum()) == pytest.approx(float(np.prod(high - low)), rel=1e-9)
    assert float(covered.max()) <= 1.0


def test_noises_have_the_strengths_they_say() -> None:
    zeros = torch.zeros(2, 1, 100, 100, dtype=torch.float64)
    for operation, x in ((Noise(), zeros), (GaussianNoise(), zeros.flatten(1))):
        spread = operation.apply(x, strengths(0.1, 0.2)).flatten(1).std(dim=1)
        assert spread.tolist() == pytest.approx([0.1, 0.2], rel=0.05)


def test_spherical_noise_lies_on_the_sphere_in_every_direction() -> None:
    x = torch.ones(20_000, 2, dtype=torch.float64)
    step = SphericalNoise().apply(x, torch.full((20_000,), 0.3, dtype=torch.float64)) - x
    torch.testing.assert_close(step.norm(dim=1), torch.full((20_000,), 0.3, dtype=torch.float64))
    turns = torch.histc(torch.atan2(step[:, 1], step[:, 0]), 8, -math.pi, math.pi)
    assert float((turns - 2500).abs().max()) < 4 * 2500**0.5


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6])
def test_feature_dropout_drops_the_share_it_says(share: float) -> None:
    x = torch.ones(1, 200_000, dtype=torch.float64)
    kept = FeatureDropout().apply(x, strengths(share))
    assert float(kept.mean()) == pytest.approx(1 - share, abs=0.005)
    assert (kept.min() >= 0) & (kept.max() <= 1)
    whole = float(((kept == 0) | (kept == 1)).double().mean())
    assert whole >= 1 - share - 0.005  # what is dropped in part is less than the share


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_feature_dropout_has_the_derivative_of_its_mean(share: float) -> None:
    s = strengths(share).requires_grad_()
    found = FeatureDropout().apply(torch.ones(1, 200_000, dtype=torch.float64), s).mean()
    assert float(torch.autograd.grad(found, s)[0]) == pytest.approx(-1.0, abs=0.02)


def test_mixup_blends_with_another_example() -> None:
    x = torch.eye(6, dtype=torch.float64)
    found = Mixup().apply(x, torch.full((6,), 0.3, dtype=torch.float64))
    partner = (found - 0.7 * x) / 0.3
    torch.testing.assert_close(partner.sum(dim=0), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(partner.amax(dim=1), torch.ones(6, dtype=torch.float64))
