"""Draws of each class's first image, for a sheet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autobalance._validation import InputError
from autobalance.augment.augmentation import Augmentation
from autobalance.augment.example_pictures import samples
from autobalance.augment.images import Flip
from autobalance.augment.tensors import GaussianNoise


def halves(
    probability: list[list[float]] | list[list[list[float]]], **options: object
) -> Augmentation:
    return Augmentation([Flip()], probability, probability, **options)  # pyright: ignore[reportArgumentType]


def test_each_row_is_a_class_and_its_first_image() -> None:
    x = torch.rand(6, 3, 4, 5)
    state = torch.random.get_rng_state()
    found = samples(halves([[0.0], [1.0], [0.5]]), x, torch.tensor([1, 1, 0, 0, 1, 1]), draws=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.images.shape == (2, 4, 3, 4, 5)
    assert (found.classes, found.groups) == ([0, 1], None)
    np.testing.assert_array_equal(found.images[0], x[2].expand(4, -1, -1, -1).numpy())
    np.testing.assert_array_equal(found.images[1, 0], x[0].numpy())
    np.testing.assert_array_equal(found.images[1, 1:], x[0].flip(-1).expand(3, -1, -1, -1).numpy())


def test_rows_of_groups_and_a_range_of_its_own() -> None:
    x = 4 * torch.rand(4, 1, 4, 4) - 2
    flip = halves([[[0.0], [0.0]], [[0.0], [1.0]]], value_range=(-2.0, 2.0))
    target, groups = torch.tensor([1, 0, 1, 1]), torch.tensor([1, 0, 0, 1])
    found = samples(flip, x, target, groups, draws=1)
    assert (found.classes, found.groups) == ([0, 1, 1], [0, 0, 1])
    unit = (x[[1, 2, 0]].numpy() + 2) / 4
    np.testing.assert_allclose(found.images[:, 0], unit, atol=1e-6)
    np.testing.assert_allclose(found.images[2, 1], unit[2][..., ::-1], atol=1e-6)
    with pytest.raises(InputError, match="pass groups="):
        samples(flip, x, target)


def test_only_images_make_a_sheet() -> None:
    table = Augmentation([GaussianNoise()], [[1.0]] * 2, [[1.0]] * 2)
    with pytest.raises(InputError, match=r"Samples are of images .* got \(4, 2\)"):
        samples(table, torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
