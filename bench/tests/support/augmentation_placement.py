"""Trains with crop and flip on a pretended accelerator; as a script, it prints what failed as JSON."""

from __future__ import annotations

import json
import sys

from autobalance.losses.modules import ParametricCrossEntropy
from autobalance_bench.augmentations import StandardAugmentation
from placement import failures, train

CASES = {
    "crop and flip": lambda: train(
        ParametricCrossEntropy.cross_entropy, augmented=lambda: StandardAugmentation(1)
    )
}

if __name__ == "__main__":
    json.dump(failures(CASES), sys.stdout)
