"""The demo's comparison over several seeds, judged on all 10,000 Fashion-MNIST test images.

    .venv/bin/python bench/demo_seeds.py --data DIR/fashion_mnist

Each seed trains every method of the demo on its training images (or, with --resample, on a
long-tailed sample of its own) and the methods are compared within seeds. Prints means with standard
errors, paired differences and the cost in CPU time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from autobalance.cli.demo import TITLES, Demo
from autobalance.data.fashion import ImageSet, long_tailed_sample
from autobalance_bench.datasets.fashion import load_fashion_mnist
from autobalance_bench.datasets.longtail import exponential_counts, sample_by_class


def resampled(train: ImageSet, seed: int) -> ImageSet:
    generator = np.random.default_rng(seed)
    index = sample_by_class(train.target, exponential_counts(10, 500, 100), generator)
    return ImageSet(train.images[index], train.target[index])


def mean_and_error(values: list[float]) -> str:
    array = np.asarray(values)
    return f"{array.mean():6.2f} +- {array.std(ddof=1) / len(array) ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with Fashion-MNIST's four .gz files")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--resample", action="store_true", help="draw new images for each seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write every number here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    all_train, test = load_fashion_mnist(options.data)
    rows: list[dict[str, dict[str, float]]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        train = resampled(all_train, seed) if options.resample else long_tailed_sample()[0]
        demo = Demo(train, test, seed=seed)
        rows.append({name: demo.train_method(name) for name in TITLES})
        shown = ", ".join(f"{n} {100 * m['balanced_error']:.2f}" for n, m in rows[-1].items())
        print(f"seed {seed}: {shown}", flush=True)

    print(f"\nmean over {options.seeds} seeds +- standard error, in percent")
    print(
        f"{'':23} {'balanced error':>16} {'worst class':>16} {'on training':>16} {'CPU time / CE':>14}"
    )
    for name in TITLES:
        columns = [
            mean_and_error([100 * row[name][key] for row in rows])
            for key in ("balanced_error", "worst_class_error", "training_error")
        ]
        ratio = [row[name]["cpu_seconds"] / row["cross_entropy"]["cpu_seconds"] for row in rows]
        print(
            f"{name:23} {columns[0]:>16} {columns[1]:>16} {columns[2]:>16} {np.mean(ratio):14.2f}"
        )
    for other in ("cross_entropy", "logit_adjustment"):
        difference = [
            100 * (row["autobalance"]["balanced_error"] - row[other]["balanced_error"])
            for row in rows
        ]
        print(f"autobalance - {other}: {mean_and_error(difference)} points, paired")
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
