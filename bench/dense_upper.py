"""Cost of one upper step on dense data, as a multiple of a plain training step.

    python bench/dense_upper.py [--rounds 9]

Two networks, 11 classes, batches of 8 images of 64 x 64 pixels of noise for training and validation alike: a
U-Net as published (two convolutions at each of three scales, the first at the image's own, skips by
concatenation), 16 channels wide, and the lighter one of `dense_images.py`, where the loss of all pixels costs
as much as a convolution. Processor time of this process; the steps take turns, and the ratio of one
turn is taken before the median over turns. A turn of upper steps is from one line search to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance import ArrayData, HierarchicalSpace, LossTuner, Recipe
from autobalance.bilevel.execution import make_fabric
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.objectives import BalancedError, MeanIoU, Objective
from autobalance.spaces import TunableCrossEntropy
from dense_images import CLASSES, UNet, block
from measuring import Timed, interleaved, length_of, prepare

BATCH, SIDE = 8, 64


class PublishedUNet(nn.Module):
    """The U-Net of Ronneberger et al. (MICCAI 2015) with BatchNorm and padding, at three scales."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(block(a, b), block(b, b))
            for a, b in zip((1, *widths), widths, strict=False)
        )
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(nn.Sequential(block(2 * a, a), block(a, a)) for a in widths[:-1])
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images' size."""
        seen = []
        for layer in self.down:
            x = layer(F.max_pool2d(x, 2) if seen else x)
            seen.append(x)
        for scale in reversed(range(len(self.up))):
            x = self.up[scale](torch.cat([seen[scale], self.rise[scale](x)], dim=1))
        return self.head(x)


class DenseTraining:
    """A network in training on images of noise, and a batch for the upper level."""

    def __init__(self, factory: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        target = torch.multinomial(0.5 ** torch.arange(CLASSES), 4 * BATCH * SIDE**2, True)
        target = target.view(-1, SIDE, SIDE)
        images = target[:, None] + torch.randn(len(target), 1, SIDE, SIDE)
        data = ArrayData.of(images, target, num_classes=CLASSES)
        self.held = data.batch(torch.arange(BATCH))
        self.counts = data.counts().clip(min=1)
        self.lower = LowerLevel(
            factory,
            data.subset(torch.arange(BATCH, len(data))),
            TrainingOptions(Recipe(epochs=1000, batch_size=BATCH)),
            make_fabric("cpu"),
        )
        self.loss = self.new_loss()

    def new_loss(self) -> TunableCrossEntropy:
        """A loss to tune."""
        return TunableCrossEntropy(HierarchicalSpace(self.counts))

    def train(self) -> None:
        """One training step."""
        self.lower.step(self.loss)

    def upper_step(self, objective: Objective) -> Timed:
        """Upper steps of a loss of their own, so that training stays the same."""
        tuner = LossTuner(self.new_loss(), objective=objective, optimizer=self.lower.optimizer)

        def act() -> None:
            assert not tuner.step(self.lower.module, self.lower.recent[-1], self.held).skipped

        return Timed(act, length=length_of(DEFAULT_SOLVER), warm_up=2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of an upper step on dense data.")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    prepare(1)
    for factory in (PublishedUNet, UNet):
        training = DenseTraining(factory)
        cases = {type(o).__name__: training.upper_step(o) for o in (BalancedError(), MeanIoU())}
        for case in cases.values():
            case.rounds = options.rounds
        for name, cost in interleaved(training, cases).items():
            print(
                f"{factory.__name__}, {name}: training step {1e3 * cost.training_seconds:.1f} ms, "
                f"upper step {cost.ratio:.2f} times that",
                flush=True,
            )


if __name__ == "__main__":
    main()
