"""Cost of one upper step on dense data, as a multiple of a plain training step.

    python bench/dense_upper.py [--rounds 9]

The U-Net of `dense_images.py`, 11 classes, batches of 16 images for training and validation alike, at 32 x 32
and 128 x 128 pixels, of noise. Processor time of this process; the steps take turns, and the ratio of one
turn is taken before the median over turns. A turn of upper steps is from one line search to the next.
"""

from __future__ import annotations

import argparse

import torch

from autobalance import ArrayData, HierarchicalSpace, LossTuner, Recipe
from autobalance.bilevel.execution import make_fabric
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.objectives import BalancedError, MeanIoU, Objective
from autobalance.spaces import TunableCrossEntropy
from dense_images import CLASSES, UNet
from measuring import Timed, interleaved, length_of, prepare

BATCH = 16


class DenseTraining:
    """A network in training on images of noise, and a batch for the upper level."""

    def __init__(self, side: int) -> None:
        torch.manual_seed(0)
        target = torch.multinomial(0.5 ** torch.arange(CLASSES), 4 * BATCH * side**2, True)
        target = target.view(-1, side, side)
        images = target[:, None] + torch.randn(len(target), 1, side, side)
        data = ArrayData.of(images, target, num_classes=CLASSES)
        self.held = data.batch(torch.arange(BATCH))
        self.counts = data.counts().clip(min=1)
        self.lower = LowerLevel(
            UNet,
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
    for side in (32, 128):
        training = DenseTraining(side)
        cases = {type(o).__name__: training.upper_step(o) for o in (BalancedError(), MeanIoU())}
        for case in cases.values():
            case.rounds = options.rounds
        for name, cost in interleaved(training, cases).items():
            print(
                f"{side} x {side}, {name}: training step {1e3 * cost.training_seconds:.1f} ms, "
                f"upper step {cost.ratio:.2f} times that",
                flush=True,
            )


if __name__ == "__main__":
    main()
