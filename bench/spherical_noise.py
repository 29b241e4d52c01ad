"""The same decision boundary, once by noise around the examples of a rare class, once by a loss.

    python bench/spherical_noise.py --output spherical_noise.svg

A line separates two classes in the plane. Training to convergence with cross-entropy puts this line in
the middle of the gap. A delta of 3 for the frequent class moves it three times as far from the rare
class as from the frequent one. Noise of the radius that `noise_radii` computes does the same. The
example needs no data.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from autobalance.augment.tensors import SphericalNoise
from autobalance_bench.spherical import loss_margins, noise_radii, separation

DELTA = (3.0, 1.0)
COPIES = 40


def two_classes() -> tuple[Tensor, Tensor]:
    """Draw thirty examples of class 0 and six of class 1, with a gap of about 1.5 between them."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([0.5, 1.0], dtype=torch.float64)
    inputs = spread * torch.randn(36, 2, generator=generator, dtype=torch.float64).clamp(-2, 2)
    target = (torch.arange(36) >= 30).long()
    inputs[:, 0] += 1.75 * (2.0 * target - 1.0)
    return inputs, target


def train_boundary(
    inputs: Tensor, target: Tensor, delta: tuple[float, float], steps: int
) -> Tensor:
    """Return w and b of h = f_1 - f_0 after gradient descent whose steps are divided by the loss.

    The loss is log(1 + exp(-m)) of the margin m, which is `ParametricCrossEntropy` with rows (3, 3) and
    (1, 1) and `groups=target`. Written out it stays precise if m is in the hundreds.
    """
    side = torch.tensor(delta, dtype=torch.float64)[target] * (2.0 * target - 1.0)
    bias = 4.0  # the bias is a feature of this size, so that its steps are longer than those of w
    rows = torch.cat([inputs, torch.full_like(inputs[:, :1], bias)], dim=1) * side[:, None]
    theta = torch.zeros(3, dtype=torch.float64)
    for _ in range(steps):
        log_loss = torch.log(F.softplus(-(rows @ theta)).clamp(min=1e-300))
        log_slope = F.logsigmoid(-(rows @ theta))
        theta += 0.05 * (log_slope - torch.logsumexp(log_loss, dim=0)).exp() @ rows
    return torch.cat([theta[:2], bias * theta[2:]])


def add_noise(inputs: Tensor, target: Tensor, radii: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Copy each example and move the copies in random directions by the radius of its class."""
    copies, classes = inputs.repeat(COPIES, 1), target.repeat(COPIES)
    radius = torch.tensor(radii, dtype=torch.float64)[classes]
    limit = max(max(radii), 1e-6)
    return SphericalNoise(limit).apply(copies, radius), classes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", default="spherical_noise.svg", help="an .svg, .pdf or .png file"
    )
    parser.add_argument("--steps", type=int, default=4000, help="steps of gradient descent")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    inputs, target = two_classes()
    gap = separation(inputs, target)
    radii = noise_radii(gap.gap, DELTA)
    moved, classes = add_noise(inputs, target, radii)
    panels = {
        "cross-entropy": (inputs, target, (1.0, 1.0)),
        f"noise of radius {radii[1]:.2f} on the rare class": (moved, classes, (1.0, 1.0)),
        f"delta = ({DELTA[0]:g}, {DELTA[1]:g}), no noise": (inputs, target, DELTA),
    }
    figure = Figure(figsize=(11, 4), layout="constrained")
    print(f"{'':40} {'angle':>7} {'from class 0':>13} {'from class 1':>13}   gap {gap.gap:.3f}")
    for place, (title, (x, y, delta)) in enumerate(panels.items()):
        line = train_boundary(x, y, delta, args.steps)
        normal, offset = line[:2] / line[:2].norm(), float(line[2] / line[:2].norm())
        heights = inputs @ normal + offset
        distances = float(-heights[target == 0].max()), float(heights[target == 1].min())
        angle = math.degrees(math.acos(min(1.0, float(normal @ torch.tensor(gap.normal)))))
        print(f"{title:40} {angle:6.2f}° {distances[0]:13.3f} {distances[1]:13.3f}")
        axes = figure.add_subplot(1, 3, place + 1)
        for label, colour in ((0, "#0072B2"), (1, "#D55E00")):
            some = y == label
            if len(x) > len(inputs):
                axes.scatter(*x[some].T.numpy(), s=1, color=colour, alpha=0.3)
            axes.scatter(*inputs[target == label].T.numpy(), s=18, color=colour)
        across = np.array([-4.0, 4.0])
        foot, along = -offset * normal.numpy(), np.array([-float(normal[1]), float(normal[0])])
        ends = foot[:, None] + along[:, None] * across
        axes.plot(*ends, color="black")
        axes.set(title=title, aspect="equal", xlim=(-3.2, 3.2), ylim=(-2.6, 2.6))
    theory = loss_margins(gap.gap, DELTA)
    print(f"{'theory for the last two':40} {0:6.2f}° {theory[0]:13.3f} {theory[1]:13.3f}")
    figure.savefig(args.output)
    print(f"drawn to {args.output}")


if __name__ == "__main__":
    main()
