"""How far two networks' objectives differ on held-out images, with the images drawn anew.

An image's pixels are alike, so that a difference is not as certain as its millions of pixels make it look:
what was sampled are images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autobalance.objectives import Objective

DRAWS = 500
RANDOM_PARTS = 200
"""Into so many parts examples are put that are of no image, for an objective that needs decisions."""


def compare_by_image(
    objective: Objective,
    predictions: tuple[Tensor, Tensor],
    cells: Tensor,
    images: Tensor | None,
    shape: tuple[int, int],
    seed: int,
    weight: np.ndarray,
) -> tuple[float, float, float]:
    """The objective of the first predictions, that of the second, and their difference's standard error.

    Parameters
    ----------
    objective : Objective
        Over the 0-1 error.
    predictions : pair of Tensor
        Classes predicted of the pixels of all folds, each ``(m,)``.
    cells : Tensor
        ``group * k + class`` of each pixel, ``(m,)``.
    images : Tensor or None
        Image of each pixel, from 0, ``(m,)``; None where there are examples alone.
    shape : (int, int)
        Numbers of groups and classes.
    seed : int
        Of the draws.
    weight : ndarray
        What each pixel counts for, ``(m,)``.
    """
    generator = np.random.default_rng(seed)
    if images is None:
        images = torch.from_numpy(generator.integers(RANDOM_PARTS, size=len(cells)))
    tables = [_by_image(objective, p, cells, images, shape, weight) for p in predictions]

    def values(times: np.ndarray) -> list[float]:
        """Both objectives with each image taken so often."""
        sums = ([torch.from_numpy(np.tensordot(times, t, 1)) for t in pair] for pair in tables)
        return [float(objective.value(total, mass)) for total, mass in sums]

    n = len(tables[0][0])
    own, base = values(np.ones(n))
    draws = [values(times) for times in generator.multinomial(n, np.full(n, 1 / n), DRAWS) * 1.0]
    return own, base, float(np.std([first - second for first, second in draws]))


def _by_image(
    objective: Objective,
    predicted: Tensor,
    cells: Tensor,
    images: Tensor,
    shape: tuple[int, int],
    weight: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`Objective.decision_sums` of each image, two arrays ``(images, rows, k)``."""
    k, n = shape[1], int(images.max()) + 1
    target, row = cells % k, cells // k
    losses = weight * objective.decision_losses(predicted, target).numpy()
    if objective.by_decision:
        shape, row, losses = (k, k), predicted, weight
    size = n * shape[0] * k
    total = np.bincount(((images * shape[0] + row) * k + target).numpy(), losses, size)
    if objective.by_decision:
        masses = np.bincount((images * k + target).numpy(), weight, n * k).reshape(n, 1, k)
        return total.reshape(n, k, k), np.broadcast_to(masses, (n, k, k))
    mass = np.bincount(((images * shape[0] + row) * k + target).numpy(), weight, size)
    return total.reshape(n, *shape), mass.reshape(n, *shape)
