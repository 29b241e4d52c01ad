"""Frozen-feature mode: what a search costs at full size, and what it gains on real data.

    .venv/bin/python bench/head.py --json head.json
    .venv/bin/python bench/head.py --classes 1000 --json head1000.json
    .venv/bin/python bench/head.py --data DIR --json head-data.json

The first two search on synthetic features, 100,000 x 768 in float32, in a process of its own:
a long-tailed Gaussian mixture (largest class 100 times the smallest) whose variances fall as 1/j
along rotated axes, and whose classes overlap. Printed are wall and CPU time, the peak of resident
memory, upper steps, Newton steps, products with the curvature and residuals. The third compares
cross-entropy (CE), logit adjustment (LA) and the designed loss, each retrained, in balanced test
error over 5 seeds on two sets: letter.csv.gz, made long-tailed, under random Fourier features, and
Fashion-MNIST, made long-tailed, under a random convolutional network; DIR is the folder that
holds tabular/ and fashion_mnist/. --select PART compares weight decays on held-out training
data only.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from autobalance import ArrayData, ParametricCrossEntropy, extract_features
from autobalance.data.batches import Batch
from autobalance.data.splits import stratified_folds
from autobalance.heads.search import retrain_head, search_head
from autobalance_bench.datasets.fashion import load_fashion_mnist
from autobalance_bench.datasets.longtail import exponential_counts, sample_by_class

IMBALANCE = 100.0
SEPARATION = 0.15

# Synthetic: time and memory -------------------------------------------------------------------


def mixture(examples: int, width: int, classes: int, seed: int = 0) -> ArrayData:
    """Long-tailed, overlapping Gaussian classes, made in chunks so as to leave no peak behind."""
    generator = torch.Generator().manual_seed(seed)
    shares = IMBALANCE ** (-torch.arange(classes, dtype=torch.float64) / (classes - 1))
    target = torch.multinomial(shares, examples, replacement=True, generator=generator)
    target[: 3 * classes] = torch.arange(classes).repeat(3)
    scale = torch.arange(1, width + 1) ** -0.5
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    centres = SEPARATION * torch.randn(classes, width, generator=generator)
    features = torch.empty(examples, width)
    for first in range(0, examples, 4096):
        part = slice(first, first + 4096)
        noise = torch.randn(len(target[part]), width, generator=generator)
        features[part] = ((centres[target[part]] + noise) * scale) @ rotation
    return ArrayData(features, target, classes)


def peak_mib() -> float:
    """Peak of this process's resident memory (VmHWM), MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return math.nan


def measured(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    data = mixture(options.examples, options.width, options.classes)
    before = peak_mib()
    clock = time.perf_counter()

    def progress(now: Any) -> None:
        spent = time.perf_counter() - clock
        print(f"{spent:7.1f} s  evaluation {now.step}: {now.objective:.4f}", file=sys.stderr)

    result = search_head(
        data, max_steps=options.max_steps, folds=options.folds, device=options.device,
        progress=progress,
    )  # fmt: skip
    return {
        "examples": options.examples,
        "width": options.width,
        "classes": options.classes,
        "threads": options.threads,
        "folds": options.folds,
        "device": options.device,
        "seconds": result.seconds,
        "peak_mib": peak_mib(),
        "peak_mib_before": before,
        "upper_evaluations": len(result.history),
        "stopped": result.settings["stopped"],
        "objective": [r.objective for r in result.history],
        "hard_objective": [r.hard_objective for r in result.history],
        "system_iterations": [r.iterations for r in result.history],
        "system_residuals": [r.residual for r in result.history],
        "lower": result.settings["lower"],
    }


def synthetic(options: argparse.Namespace) -> dict[str, Any]:
    """`measured` in a process of its own, so that the peak is the search's and not the parent's."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    record = json.loads(child.stdout)
    for name, value in record.items():
        print(f"{name}: {value}")
    return record


# Real data: what it gains ---------------------------------------------------------------------

Sets = tuple[ArrayData, Tensor, Tensor]


def letters(folder: Path, seed: int) -> Sets:
    """Half of the letters for the test, from the rest 300 to 5 of each; 256 Fourier features."""
    table = pd.read_csv(folder / "tabular/letter.csv.gz")
    generator = np.random.default_rng(seed)
    x = table.drop(columns="target").to_numpy(float)
    y = np.unique(table["target"].astype(str), return_inverse=True)[1]
    y = generator.permutation(26)[y]  # which letters are rare
    frequencies = 0.3 * generator.normal(size=(x.shape[1], 256))
    phases = generator.uniform(0.0, 2 * np.pi, 256)
    features = np.cos((x - x.mean(0)) / x.std(0) @ frequencies + phases).astype(np.float32)
    order = generator.permutation(len(y))
    test, rest = order[:10_000], order[10_000:]
    train = rest[sample_by_class(y[rest], exponential_counts(26, 300, 60), generator)]
    return (
        ArrayData.of(features[train], y[train]),
        torch.from_numpy(features[test]),
        torch.from_numpy(y[test]),
    )


def clothes(folder: Path, seed: int) -> Sets:
    """Fashion-MNIST, 1,000 to 10 of each class, under a random convolutional network."""
    train, test = load_fashion_mnist(folder / "fashion_mnist")
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
    )  # fmt: skip
    rare = generator.permutation(10)
    counts = exponential_counts(10, 1000, 100)[rare]
    index = sample_by_class(train.target, counts, generator)
    return (
        ArrayData.of(extract_features(backbone, train.images[index]), train.target[index]),
        extract_features(backbone, test.images),
        torch.from_numpy(test.target),
    )


SETS: dict[str, Callable[[Path, int], Sets]] = {"letter": letters, "fashion": clothes}


def balanced_error(head: nn.Linear, features: Tensor, target: Tensor) -> float:
    wrong = head(features).argmax(1) != target
    return float(np.mean([wrong[target == k].float().mean() for k in torch.unique(target)]))


def compared(options: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, load in SETS.items():
        errors: dict[str, list[float]] = {"CE": [], "LA": [], "designed": []}
        seconds = []
        for seed in range(options.seeds):
            data, features, target = load(options.data, seed)
            result = search_head(data, folds=options.folds, seed=seed)
            seconds.append(result.seconds["wall"])
            losses = {
                "CE": ParametricCrossEntropy.cross_entropy(),
                "LA": ParametricCrossEntropy.logit_adjusted(data.counts()),
                "designed": result.loss,
            }
            for method, loss in losses.items():
                errors[method].append(balanced_error(retrain_head(data, loss), features, target))
            print(name, seed, {m: round(100 * e[-1], 2) for m, e in errors.items()}, flush=True)
        rows[name] = {"errors": errors, "seconds": seconds}
        for method, values in errors.items():
            print(f"{name:8} {method:9} {mean_and_error(values)} % balanced test error")
        paired = [d - a for d, a in zip(errors["designed"], errors["LA"], strict=True)]
        print(f"{name:8} designed - LA {mean_and_error(paired)} points, paired")
        print(f"{name:8} search {np.mean(seconds):.1f} s")
    return rows


def mean_and_error(values: list[float]) -> str:
    array = 100 * np.asarray(values)
    return f"{array.mean():6.2f} +- {array.std(ddof=1) / len(array) ** 0.5:.2f}"


def selected(options: argparse.Namespace) -> dict[str, Any]:
    """Balanced error of the LA head on held-out training data for several weight decays."""
    rows: dict[str, Any] = {}
    for name, load in SETS.items():
        for decay in 10.0 ** np.arange(-1.5, -4.1, -0.5):
            errors = []
            for seed in range(options.seeds):
                data = load(options.data, seed)[0]
                splits = stratified_folds(
                    data.cells(), 0.2, 3, torch.Generator().manual_seed(seed + 100)
                )
                for train, held in splits:
                    part = data.subset(train)
                    loss = ParametricCrossEntropy.logit_adjusted(part.counts())
                    batch: Batch = data.batch(held)
                    head = retrain_head(part, loss, weight_decay=float(decay))
                    errors.append(balanced_error(head, batch.inputs, batch.target))
            rows.setdefault(name, {})[f"{decay:.1e}"] = errors
            print(f"{name:8} weight decay {decay:.1e}: {mean_and_error(errors)} %", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="compare methods on the sets in this folder")
    parser.add_argument("--select", action="store_true", help="with --data: compare weight decays")
    parser.add_argument("--seeds", type=int, default=5, help="how many, with --data")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options)))
        return
    torch.set_num_threads(options.threads)
    if options.data is None:
        record = synthetic(options)
    else:
        record = selected(options) if options.select else compared(options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
