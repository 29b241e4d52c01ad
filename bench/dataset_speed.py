"""Time and memory of a Dataset beside the same images in memory.

50,000 images of 3 x 64 x 64 are made when they are asked for, by a transform that costs next to nothing,
and read by two workers. A search and a retraining on them are timed against the same on an array of these
images, each in a process of its own, whose peak memory is that of all its processes together.

    python bench/dataset_speed.py --out dataset_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autobalance import DatasetData, ParametricCrossEntropy, Recipe, SearchSettings, retrain, search
from autobalance.data.array_data import ArrayData

CLASSES, SIDE = 10, 64


class LazyImages(Dataset[Any]):
    """Images of float32 that exist only once they are asked for."""

    def __init__(self, n: int) -> None:
        generator = np.random.default_rng(0)
        share = 0.5 ** np.arange(CLASSES)
        self.targets = generator.choice(CLASSES, n, p=share / share.sum())
        self.patterns = torch.rand(
            CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        target = int(self.targets[index])
        return self.patterns[target] + 1e-4 * (index % 1000), target


def network() -> nn.Module:
    """A small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def tree_memory() -> int:
    """Bytes that this process and its children hold, pages that they share counted once."""
    pids = [os.getpid()]
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            pids += [int(child) for child in task.read_text().split()]
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended meanwhile
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def measure(kind: str, n: int, epochs: float, workers: int) -> dict[str, float]:
    """Seconds of a search and a retraining, CPU seconds of all processes, and peak memory."""
    images = LazyImages(n)
    if kind == "dataset":
        # Before the thread below starts, so that workers may be forked beside it.
        data: Any = DatasetData.of(images, num_workers=workers, multiprocessing_context="fork")
    else:
        inputs = torch.empty(n, 3, SIDE, SIDE)
        for i in range(n):
            inputs[i] = images[i][0]
        data = ArrayData.of(inputs, images.targets)
    recipe = Recipe(epochs=epochs, min_steps=1)
    peak, stop = [tree_memory()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak[0] = max(peak[0], tree_memory())

    threading.Thread(target=watch, daemon=True).start()
    begin = time.perf_counter()
    loss: ParametricCrossEntropy = search(
        network, data, recipe=recipe, settings=SearchSettings(folds=1), device="cpu"
    ).loss
    middle = time.perf_counter()
    retrain(network, data, loss, recipe=recipe, device="cpu")
    end = time.perf_counter()
    stop.set()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "search_seconds": middle - begin,
        "retrain_seconds": end - middle,
        "cpu_seconds_of_this_process": used[0].ru_utime + used[0].ru_stime,
        "cpu_seconds_of_workers": used[1].ru_utime + used[1].ru_stime,
        "peak_memory_bytes": peak[0],
    }


def main() -> None:
    """Measure both kinds in turn, several times, and print the ratio of their shortest times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=("arrays", "dataset"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        print(
            json.dumps(measure(options.measure, options.examples, options.epochs, options.workers))
        )
        return
    runs: dict[str, list[dict[str, float]]] = {"arrays": [], "dataset": []}
    for _ in range(options.repeats):
        for kind, results in runs.items():
            command = [sys.executable, __file__, "--measure", kind]
            for name in ("examples", "epochs", "workers"):
                command += [f"--{name}", str(getattr(options, name))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(kind, results[-1], flush=True)
    ratios = {
        name: min(r[name] for r in runs["dataset"]) / min(r[name] for r in runs["arrays"])
        for name in ("search_seconds", "retrain_seconds")
    }
    record = {
        "runs": runs,
        "ratios": ratios,
        "peak_memory_bytes": max(r["peak_memory_bytes"] for r in runs["dataset"]),
        "threads": 1,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps({key: value for key, value in record.items() if key != "runs"}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
