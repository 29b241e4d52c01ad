"""Draw the demo's long-tailed sample of Fashion-MNIST from the original IDX files.

.venv/bin/python bench/make_demo_data.py --data DIR/fashion_mnist
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from autobalance.data.fashion import SAMPLE
from autobalance_bench.datasets.fashion import load_fashion_mnist
from autobalance_bench.datasets.longtail import exponential_counts, sample_by_class

TARGET = Path(__file__).parents[1] / "src/autobalance/data" / SAMPLE
SEED = 20220101


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with Fashion-MNIST's four .gz files")
    folder = parser.parse_args().data
    train, test = load_fashion_mnist(folder)
    generator = np.random.default_rng(SEED)
    arrays = {}
    for name, images, counts in (
        ("train", train, exponential_counts(10, 500, 100)),
        ("test", test, np.full(10, 100)),
    ):
        index = sample_by_class(images.target, counts, generator)
        pixels = np.round(images.images[index, 0] * 255).astype(np.uint8)
        # Sorted by class, neighbours resemble each other and compress better.
        order = np.argsort(images.target[index], kind="stable")
        arrays[f"{name}_images"] = pixels[order]
        arrays[f"{name}_target"] = images.target[index][order].astype(np.uint8)
    np.savez_compressed(TARGET, **arrays)
    print(
        f"{TARGET.name}: {TARGET.stat().st_size} bytes, training counts "
        f"{np.bincount(arrays['train_target']).tolist()}"
    )


if __name__ == "__main__":
    main()
