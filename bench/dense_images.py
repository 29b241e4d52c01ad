"""Losses for segmentation on objects of Fashion-MNIST pasted on photographed textures.

    python bench/dense_images.py --data DIR --json FILE [--seeds 0 1 2] [--only METHOD ...]
    python bench/dense_images.py --json FILE --table

Each image of 32 x 32 pixels is a crop of brick, grass or gravel (they come with scikit-image) on which two
or three objects lie. Class 0 is the background; classes 1 to 10 are Fashion-MNIST's in its own order,
drawn so that the pixels of the first are 200 times those of the last, which is also half as wide. Training
and validation images take objects of Fashion-MNIST's training set and the left halves of the photographs,
test images those of the test set and the right halves. A quarter of the images for training is the validation
set of everything that is tuned, and joins the training in the end. One network, a small U-Net, one recipe,
and one line of JSON for each method and seed; a method that the file has is not run again.

The table has the mean over seeds and its standard error, in percent, on the test set: the mean over classes
of the share of wrong pixels, that of the worst class, and one minus the mean IoU. DIR is the data folder of
`autobalance compare`, also AUTOBALANCE_DATA. The problem and the recipe were chosen with seed 100.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance import (
    ArrayData,
    BalancedError,
    FocalLoss,
    MeanIoU,
    ParametricCrossEntropy,
    Recipe,
    SearchSettings,
    WorstError,
    retrain,
    search,
)
from autobalance.bilevel import predict_logits
from autobalance.data import ImageSet, concatenated
from autobalance_bench.datasets import load_fashion_mnist
from measuring import mean_and_error, read_runs

SIDE, CLASSES, RATIO = 32, 11, 200
TEXTURES = ("brick", "grass", "gravel")
SIZES = np.linspace(20, 10, CLASSES - 1).round().astype(int)
"""Height and width of the objects of classes 1 to 10."""
TRAINING_IMAGES, TEST_IMAGES = 2400, 1500
RECIPE = Recipe(epochs=11, min_steps=1, batch_size=32, lr=5e-3)
SETTINGS = SearchSettings(validation_batch_size=64)
TAUS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEASURES = {
    "balanced_error": BalancedError(),
    "worst_class_error": WorstError(),
    "mean_iou_error": MeanIoU(),
}


# The problem ----------------------------------------------------------------------------------


class Problem:
    """The parts of the data for one seed, and what networks trained on them predict."""

    def __init__(self, folder: Path, seed: int) -> None:
        generator = np.random.default_rng(seed)
        objects = load_fashion_mnist(folder / "fashion_mnist")
        sides = (slice(None, 256), slice(256, None))
        trained, self.test = (
            ArrayData.of(
                *compose(
                    part, [getattr(skimage.data, t)()[:, half] for t in TEXTURES], n, generator
                ),
                num_classes=CLASSES,
            )
            for part, half, n in zip(objects, sides, (TRAINING_IMAGES, TEST_IMAGES), strict=True)
        )
        held = torch.arange(len(trained)) % 4 == 0
        self.train, self.validation = (
            trained.subset(part.nonzero()[:, 0]) for part in (~held, held)
        )
        self.whole = concatenated(self.train, self.validation)
        self.seed = seed
        self._predicted: dict[str, Tensor] = {}

    def fit(self, loss: Any, data: ArrayData) -> nn.Module:
        """The network trained with a loss."""
        return retrain(UNet, data, loss, recipe=RECIPE, seed=self.seed, device="cpu")

    def predict(
        self, name: str, build: Callable[[np.ndarray], Any], *, tune: bool = False
    ) -> Tensor:
        """Logits on the test set of training on all other data, or to `tune` on validation data.

        `build` makes the loss, called `name`, from the class counts. Nothing is trained twice.
        """
        data, judged = (self.train, self.validation) if tune else (self.whole, self.test)
        key = f"{name}, to tune" if tune else name
        if key not in self._predicted:
            model = self.fit(build(data.counts()), data)
            self._predicted[key] = predict_logits(model, judged)
        return self._predicted[key]

    def judge(self, logits: Tensor) -> dict[str, float]:
        """Every measure on the test set."""
        return {name: m.hard(logits, self.test.target.long()) for name, m in MEASURES.items()}


def compose(
    objects: ImageSet, photographs: list[np.ndarray], n: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images ``(n, 1, 32, 32)`` in about [-1, 1], and the class of each pixel ``(n, 32, 32)``."""
    masks, pictures = draw_objects(objects)
    area = np.array([mask.mean(axis=0).sum() for mask in masks])
    frequency = RATIO ** -np.linspace(0, 1, CLASSES - 1) / area
    images, target = np.empty((n, 1, SIDE, SIDE), np.float32), np.zeros((n, SIDE, SIDE), np.int64)
    for image, classes in zip(images[:, 0], target, strict=True):
        photograph = photographs[generator.integers(len(photographs))]
        row, column = (generator.integers(size - SIDE) for size in photograph.shape)
        image[:] = photograph[row : row + SIDE, column : column + SIDE] / 510
        for _ in range(generator.integers(2, 4)):
            c = generator.choice(CLASSES - 1, p=frequency / frequency.sum())
            i = generator.integers(len(masks[c]))
            row, column = generator.integers(SIDE - SIZES[c] + 1, size=2)
            place = np.s_[row : row + SIZES[c], column : column + SIZES[c]]
            image[place] = np.where(
                masks[c][i], pictures[c][i] * generator.uniform(0.6, 1.0), image[place]
            )
            classes[place][masks[c][i]] = c + 1
        image[:] = 2 * image - 1 + 0.1 * generator.standard_normal(image.shape)
    return torch.from_numpy(images), torch.from_numpy(target)


def draw_objects(objects: ImageSet) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Masks and pictures of 1,000 objects of each class, at the class's own size."""
    masks, pictures = [], []
    for c, size in enumerate(SIZES):
        chosen = torch.tensor(objects.images[objects.target == c][:1000]).view(-1, 1, 28, 28)
        small = F.interpolate(chosen, size=(size, size), mode="area")[:, 0].numpy()
        masks.append(small > 0.1)
        pictures.append(small)
    return masks, pictures


class UNet(nn.Module):
    """A U-Net of three scales; what comes from above is added and not concatenated."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.stem = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(block(a, b, stride=1 + (a != b)), block(b, b))
            for a, b in zip((width, *widths), widths, strict=False)
        )
        self.rise = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(block(a, a) for a in widths[:-1])
        self.head = nn.ConvTranspose2d(width, CLASSES, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n, 11, 32, 32)``."""
        x, seen = self.stem(images), []
        for layer in self.down:
            x = layer(x)
            seen.append(x)
        for scale in reversed(range(len(self.up))):
            risen = F.interpolate(self.rise[scale](x), scale_factor=2)
            x = self.up[scale](seen[scale] + risen)
        return self.head(x)


def block(before: int, after: int, stride: int = 1) -> nn.Module:
    """A convolution, normalised."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


# Methods: from a problem to logits on the test set ---------------------------------------------


class SoftDice(nn.Module):
    """One minus the mean Dice coefficient of the classes in the batch; cross-entropy may be added."""

    def __init__(self, cross_entropy: bool = False) -> None:
        super().__init__()
        self.cross_entropy = cross_entropy

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        p, own = logits.softmax(dim=1), F.one_hot(target, CLASSES).movedim(-1, 1)
        inside, sizes = ((p * own).sum(dim=(0, 2, 3)), own.sum(dim=(0, 2, 3)))
        dice = 2 * inside / (p.sum(dim=(0, 2, 3)) + sizes)
        loss = 1 - dice[sizes > 0].mean()
        return loss + F.cross_entropy(logits, target) if self.cross_entropy else loss


def adjusted(tau: float) -> tuple[str, Callable[[np.ndarray], Any]]:
    """Name and loss of logit adjustment; without any it is cross-entropy."""
    if tau == 0:
        return "cross_entropy", lambda counts: ParametricCrossEntropy()
    return f"tau {tau}", lambda counts: ParametricCrossEntropy.logit_adjusted(counts, tau)


def trained(name: str, build: Callable[[np.ndarray], Any]) -> Callable[[Problem], Tensor]:
    """Train once with the loss that the counts give."""
    return lambda problem: problem.predict(name, build)


def tuned(measure: str, *, afterwards: bool = False) -> Callable[[Problem], Tensor]:
    """Logit adjustment, in the loss or of trained logits, with the tau that is best on validation data."""

    def adjust(logits: Tensor, counts: np.ndarray, tau: float) -> Tensor:
        prior = torch.tensor(counts / counts.sum(), dtype=logits.dtype).log()
        return logits - tau * prior[:, None, None]

    def run(problem: Problem) -> Tensor:
        errors = []
        for tau in TAUS:
            logits = problem.predict(*adjusted(0.0 if afterwards else tau), tune=True)
            if afterwards:
                logits = adjust(logits, problem.train.counts(), tau)
            errors.append(MEASURES[measure].hard(logits, problem.validation.target.long()))
        best = TAUS[int(np.argmin(errors))]
        print(f"tau {best} of {np.round(errors, 3)}", flush=True)
        logits = problem.predict(*adjusted(0.0 if afterwards else best))
        return adjust(logits, problem.whole.counts(), best) if afterwards else logits

    return run


def designed(objective: Any) -> Callable[[Problem], Tensor]:
    """The loss designed for an objective on validation data."""

    def run(problem: Problem) -> Tensor:
        result = search(
            UNet, problem.train, validation=problem.validation, objective=objective,
            recipe=RECIPE, settings=SETTINGS, seed=problem.seed, device="cpu",
        )  # fmt: skip
        print(result.summary(), flush=True)
        return predict_logits(problem.fit(result, problem.whole), problem.test)

    return run


def root_weighted(counts: np.ndarray) -> ParametricCrossEntropy:
    """Cross-entropy weighted by one over the root of the frequency."""
    return ParametricCrossEntropy(weight=(counts.sum() / counts) ** 0.5)


METHODS: dict[str, Callable[[Problem], Tensor]] = {
    "cross_entropy": trained(*adjusted(0.0)),
    "weighted": trained("weighted", ParametricCrossEntropy.class_weighted),
    "root_weighted": trained("root_weighted", root_weighted),
    "focal": trained("focal", lambda counts: FocalLoss(2.0)),
    "dice": trained("dice", lambda counts: SoftDice()),
    "dice_cross_entropy": trained("dice_cross_entropy", lambda counts: SoftDice(True)),
    "logit_adjusted": trained(*adjusted(1.0)),
    "tuned_tau": tuned("balanced_error"),
    "tuned_tau_iou": tuned("mean_iou_error"),
    "tuned_tau_afterwards": tuned("balanced_error", afterwards=True),
    "tuned_tau_afterwards_iou": tuned("mean_iou_error", afterwards=True),
    "designed": designed("balanced_error"),
    "designed_iou": designed("mean_iou"),
}


def print_table(results: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Means over seeds and their standard errors, in percent, as Markdown."""
    print("| method | seeds | " + " | ".join(MEASURES) + " |")
    print("|---" * (len(MEASURES) + 2) + "|")
    for method in METHODS:
        rows = [r for (name, _), r in results.items() if name == method]
        if not rows:
            continue
        cells = []
        for name in MEASURES:
            mean, error = mean_and_error(100 * r["values"][name] for r in rows)
            cells.append(f"{mean:.1f}" + (f" ± {error:.1f}" if len(rows) > 1 else ""))
        print(f"| {method} | {len(rows)} | " + " | ".join(cells) + " |")


def main() -> None:
    """Read the options; run what the file lacks, or print its table."""
    parser = argparse.ArgumentParser(description="Losses for segmentation, on pasted objects.")
    parser.add_argument("--data", type=Path, default=os.environ.get("AUTOBALANCE_DATA"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--table", action="store_true", help="print what the file has")
    options = parser.parse_args()
    results = read_runs(options.json, "method", "seed")
    if options.table:
        print_table(results)
        return
    for seed in options.seeds:
        missing = [name for name in options.only if (name, seed) not in results]
        if not missing:
            continue
        problem = Problem(Path(options.data), seed)
        print(f"seed {seed}: pixels {problem.whole.counts()}, images with the class", flush=True)
        print(
            f"{problem.whole.effective_counts()}, {problem.validation.effective_counts()}",
            flush=True,
        )
        for name in missing:
            begun = time.process_time()
            values = problem.judge(METHODS[name](problem))
            seconds = time.process_time() - begun
            record = {"method": name, "seed": seed, "values": values, "seconds": seconds}
            with options.json.open("a") as file:
                file.write(json.dumps(record) + "\n")
            shown = {k: round(100 * v, 1) for k, v in values.items()}
            print(name, shown, f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
