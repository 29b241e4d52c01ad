"""How much a frontier of two costs dominates: non-dominated points and their hypervolume."""

from __future__ import annotations

import moocore
import numpy as np

from autobalance import InputError


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Which points no other is better than, shape ``(n,)``, bool.

    One point dominates another that it is no worse than in both costs and better than in one.
    Of equal points none dominates the other.

    Parameters
    ----------
    points : ndarray
        Two costs each, less being better, shape ``(n, 2)``.

    Raises
    ------
    InputError
        If the shape is another or a cost is not finite.
    """
    points = _costs(points)
    if not len(points):
        return np.zeros(0, dtype=bool)
    return moocore.is_nondominated(points, keep_weakly=True)


def hypervolume(points: np.ndarray, reference: tuple[float, float] = (50.0, 60.0)) -> float:
    """Area that the points dominate up to a reference point; more is better.

    The union of the rectangles between each point and the reference (Zitzler and Thiele, 1998).
    Points that are not better than the reference in both costs add nothing.

    Parameters
    ----------
    points : ndarray
        Two costs each, less being better, shape ``(n, 2)``: balanced error and DEO in percent.
    reference : tuple of float
        The worst that counts, in the same units. By default the balanced error of a constant
        prediction where there are two classes, and a DEO of 60.

    Returns
    -------
    float
        In squared units of the costs, from 0 to the product of the reference's with costs from 0.

    Raises
    ------
    InputError
        If a shape is another or a cost is not finite.
    """
    points = _costs(points)
    [worst] = _costs([reference], name="reference")
    return float(moocore.hypervolume(points, ref=worst)) if len(points) else 0.0


def _costs(points: object, name: str = "points") -> np.ndarray:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise InputError(
            f"{name} must hold two finite costs each, shape (n, 2); got shape {array.shape}"
            + (" with some not finite." if array.ndim == 2 and array.shape[1] == 2 else ".")
        )
    return array
