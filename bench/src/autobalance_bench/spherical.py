r"""Where class-wise noise and the designed loss are the same: separable data of two classes.

The setting is that of the paper's lemma 2: two linearly separable classes 0 and 1, a linear
classifier h(x) = f_1(x) - f_0(x) = w'x + b (x may be features of a kernel or a frozen network), and
gradient descent run until only margins count. Write u for the unit normal of the plain max-margin
boundary, and D for the distance between the two classes along it, the widest that any direction
has. Any boundary with normal u between the classes has distances d_0 + d_1 = D from their nearest
examples.

**Noise.** Each example of class y is moved by a step of length r_y in all directions. Gradient
descent on the logistic loss maximises the smallest margin over all moved examples (Soudry et al.,
2018). Along a unit vector v at a distance t from class 1's nearest example, that is
min(t - r_1, D(v) - t - r_0), at most (D(v) - r_0 - r_1) / 2. So the best v is u, and

.. math:: d_1 - r_1 = d_0 - r_0, \qquad d_1 = (D + r_1 - r_0) / 2.

Only the difference of the radii matters, and the spheres may not touch: r_0 + r_1 < D. Steps of any
length up to r_y, as a policy draws them, have the same extremes and so the same limit.

**Loss.** With delta of the example's own class, the loss of an example is
:math:`\log(1 + \exp(-\delta_y (\pm h) \mp a))` with a = l_1 - l_0, upper signs for class 1. At
||w|| = R gradient descent maximises the smaller of R delta_1 d_1 + a and R delta_0 d_0 - a. Both grow
with D(v), so again v = u, and at the best of them the two are equal:

.. math:: d_1 = (\delta_0 D - 2a / R) / (\delta_0 + \delta_1).

For R to infinity, an unbounded training, a drops out as w does, and what is left is the
cost-sensitive max-margin classifier: d_1 / d_0 = delta_0 / delta_1 (Kini et al., 2021, theorem 1). l
acts through a bounded norm only. Equating both gives the noise that moves the boundary as the
loss does,

.. math:: r_1 - r_0 = 2 d_1 - D.

**What this does not cover.** delta must belong to the example's class, the form of Kini et al.
Here that is `ParametricCrossEntropy` with rows (delta_0, delta_0) and (delta_1, delta_1) and
``groups=target``. delta of the logits alone, one row for all examples, leaves the boundary of two
linear logits where it is: gradient descent makes f_1 = delta_1 q and f_0 = -delta_0 q of one q. And
where classes overlap, noise and loss trade errors differently; then radii are to be learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from autobalance import InputError

Pair = tuple[float, float]


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be a finite number above 0; got {value!r}.")
    return value


@dataclass(frozen=True)
class Separation:
    """The widest gap between two classes.

    Attributes
    ----------
    normal : ndarray
        u, of length 1, from class 0 to class 1, shape ``(d,)``.
    ends : tuple of float
        Of the gap along u: the largest u'x of class 0 and the smallest of class 1.
    """

    normal: np.ndarray
    ends: Pair

    @property
    def gap(self) -> float:
        """D."""
        return self.ends[1] - self.ends[0]

    def offset(self, margins: Pair) -> float:
        """B such that u'x + b = 0 is as far from the classes as `margins` says, d_0 and d_1."""
        if not math.isclose(sum(margins), self.gap, rel_tol=1e-6):
            raise InputError(
                f"The margins must sum to the gap, {self.gap:g}; got {margins[0]:g} and "
                f"{margins[1]:g}."
            )
        return -(self.ends[0] + margins[0])


def separation(inputs: Any, target: Any) -> Separation:
    """The gap between two separable classes, from a hard-margin support vector machine.

    Parameters
    ----------
    inputs : array-like
        Shape ``(n, d)``.
    target : array-like
        0 and 1, shape ``(n,)``.

    Raises
    ------
    InputError
        If there are other classes than these two, or no hyperplane separates them.
    """
    from sklearn.svm import SVC

    X, y = np.asarray(inputs, dtype=np.float64), np.asarray(target)
    if X.ndim != 2 or y.shape != X.shape[:1] or set(np.unique(y)) != {0, 1}:
        raise InputError(
            "separation needs inputs (n, d) and as many targets, some 0, some 1 and no other; got "
            f"shapes {X.shape} and {y.shape}."
        )
    scale = float(np.abs(X - X.mean(axis=0)).max()) or 1.0
    machine = SVC(kernel="linear", C=1e6, tol=1e-6).fit((X - X.mean(axis=0)) / scale, y)
    w = machine.coef_[0]
    normal = w / max(float(np.linalg.norm(w)), 1e-300)
    along = X @ normal
    ends = float(along[y == 0].max()), float(along[y == 1].min())
    if not ends[1] > ends[0]:
        raise InputError(
            "No hyperplane separates the two classes, so noise and loss have no margin to share. "
            "Learn the radii instead, with an AugmentationPolicy."
        )
    return Separation(normal, ends)


def loss_margins(
    gap: float, delta: Pair = (1.0, 1.0), additive: Pair = (0.0, 0.0), *, norm: float = math.inf
) -> Pair:
    """Distances d_0 and d_1 of the boundary that the designed loss finds.

    Parameters
    ----------
    gap : float
        D, above 0.
    delta, additive : tuple of float
        delta and l of class 0 and class 1.
    norm : float
        R, the norm of f_1 - f_0's weights at which training ends. Infinite: l drops out.

    Raises
    ------
    InputError
        If l is so large beside R that the boundary leaves the gap.
    """
    D, R = _positive("gap", gap), norm
    if math.inf != R:
        _positive("norm", R)
    for value in delta:
        _positive("delta", value)
    d_1 = (delta[0] * D - 2 * (additive[1] - additive[0]) / R) / (delta[0] + delta[1])
    if not 0 < d_1 < D:
        raise InputError(
            f"At norm {R:g} these additive adjustments put the boundary outside of the gap between "
            f"the classes, {d_1:g} of {D:g} from class 1; it then cuts a class. Train to a larger norm."
        )
    return D - d_1, d_1


def noise_margins(gap: float, radii: Pair) -> Pair:
    """Distances d_0 and d_1 of the boundary that spherical noise of these radii finds."""
    D = _positive("gap", gap)
    if min(radii) < 0 or not sum(radii) < D:
        raise InputError(
            f"Radii must not be negative, and sum to less than the gap {D:g}, or moved examples "
            f"overlap; got {radii[0]:g} and {radii[1]:g}."
        )
    d_1 = (D + radii[1] - radii[0]) / 2
    return D - d_1, d_1


def noise_radii(
    gap: float, delta: Pair = (1.0, 1.0), additive: Pair = (0.0, 0.0), *, norm: float = math.inf
) -> Pair:
    """The smallest radii r_0 and r_1 of noise that moves the boundary as the designed loss does.

    Parameters and errors are those of `loss_margins`. One of the radii is 0: the class with the
    larger delta needs no noise.
    """
    d_0, d_1 = loss_margins(gap, delta, additive, norm=norm)
    return max(0.0, d_0 - d_1), max(0.0, d_1 - d_0)


def equal_delta(gap: float, radii: Pair) -> Pair:
    """Delta, with product 1, whose boundary in unbounded training is that of these radii."""
    d_0, d_1 = noise_margins(gap, radii)
    return math.sqrt(d_1 / d_0), math.sqrt(d_0 / d_1)
