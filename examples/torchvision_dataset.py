"""A loss designed for a Dataset of torchvision: an `ImageFolder` with its transforms.

    python examples/torchvision_dataset.py

Long-tailed images are first written as files, a folder for each class, as photographs of your own may lie.
`search_and_train` takes the ImageFolder as it is, or within a `DatasetData` that says how to read images
without augmentation. It holds out some images of every class to design the loss on, and ends with a network
that was trained on all of them. The example prints the
balanced errors of this network and of one trained with cross-entropy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from fashion import balanced_error, images
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, RandomHorizontalFlip, ToTensor

from autobalance import DatasetData, ParametricCrossEntropy, Recipe, retrain, search_and_train
from autobalance.networks import SmallCNN

EVALUATION = Compose([Grayscale(), ToTensor()])
TRAINING = Compose([RandomHorizontalFlip(), EVALUATION])


def write_images(folder: Path) -> None:
    """Write each training image of the package's sample into the folder of its class."""
    for i, (image, target) in enumerate(images().everything):
        path = folder / f"class {target}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        # The sample's values run from 0 to 1; a file holds whole numbers from 0 to 255.
        Image.fromarray((255 * image[0]).round().to(torch.uint8).numpy()).save(path)


def network() -> nn.Module:
    return SmallCNN(10)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="training steps of each network")
    args = parser.parse_args(arguments)

    recipe = Recipe(epochs=1, min_steps=args.steps, lr=2e-3)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        # Held-out images are to be read without the random flips of training.
        data = DatasetData.of(ImageFolder(folder, transform=TRAINING), evaluation=EVALUATION)
        plain = retrain(network, data, ParametricCrossEntropy.cross_entropy(), recipe=recipe)
        designed, result = search_and_train(network, data, recipe=recipe)

    errors = {"cross-entropy": plain, "the designed loss": designed}
    errors = {name: balanced_error(model, images().test) for name, model in errors.items()}
    for name, error in errors.items():
        print(f"Balanced error of {name}: {error:.1f} %")
    additive = result.loss.additive
    print("The loss adds:", [round(value, 2) for value in additive.tolist()])
    return errors


if __name__ == "__main__":
    main()
