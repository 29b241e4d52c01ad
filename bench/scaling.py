"""Cost of one upper step against parameters, classes and batch size, with fitted slopes.

    .venv/bin/python bench/scaling.py [--quick] [--json FILE]

Multilayer perceptrons with two hidden layers, the default estimator in its steady state, batches of
the same size for training and validation. "ratio" is to a training step. The slope is that of a
straight line through logarithms of size and CPU seconds, "last" that between the two largest sizes,
where fixed costs count least. At most 1.1 means linear, or at the largest sizes 1.1 times what a
training step itself has there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn

from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.networks import TableNetwork
from measuring import Cost, Timed, Training, interleaved, length_of, options_of, prepare, write_json

FEATURES, CLASSES, HIDDEN, BATCH = 50, 10, 256, 128
PARAMETERS = (10_000, 100_000, 1_000_000, 10_000_000)
MANY_CLASSES = (10, 100, 1_000, 10_000)
BATCHES = (32, 64, 128, 256, 512)
LINEAR = 1.1


def width_for(parameters: int) -> int:
    """Width w of two hidden layers with so many weights: w^2 + (d + k + 2) w + k in all."""
    linear = FEATURES + CLASSES + 2
    return round((math.sqrt(linear**2 + 4 * (parameters - CLASSES)) - linear) / 2)


def perceptron(width: int, classes: int) -> Callable[[], nn.Module]:
    return lambda: TableNetwork(FEATURES, classes, hidden=(width, width), dropout=0.0)


def cost(width: int, classes: int, batch: int, rounds: int) -> Cost:
    training = Training(perceptron(width, classes), (FEATURES,), classes, batch)
    length = length_of(DEFAULT_SOLVER)
    training.train(5)
    step = Timed(training.upper_step(DEFAULT_SOLVER), length, rounds, warm_up=length)
    return interleaved(training, {"step": step})["step"]


def slopes(costs: dict[int, Cost]) -> dict[str, float]:
    sizes = np.log([float(size) for size in costs])
    seconds = np.log([c.seconds for c in costs.values()])
    ratios = np.log([cost.ratio for cost in costs.values()])
    between = sizes[-1] - sizes[-2]
    return {
        "slope": float(np.polyfit(sizes, seconds, 1)[0]),
        "last": float((seconds[-1] - seconds[-2]) / between),
        "last_of_training": float((seconds[-1] - seconds[-2] - ratios[-1] + ratios[-2]) / between),
    }


def main() -> None:
    options = options_of(__doc__).parse_args()
    prepare(options.threads)
    rounds = 5 if options.quick else 25
    large = 3 if options.quick else 7  # of the dear ones

    def of(cases: dict[int, tuple[int, int, int]]) -> dict[int, Cost]:
        return {
            size: cost(*case, large if size >= 1_000_000 or case[1] >= 10_000 else rounds)
            for size, case in cases.items()
        }

    axes = {
        "parameters": of({p: (width_for(p), CLASSES, BATCH) for p in PARAMETERS}),
        "classes": of({k: (HIDDEN, k, BATCH) for k in MANY_CLASSES}),
        "batch": of({n: (HIDDEN, CLASSES, n) for n in BATCHES}),
    }
    numbers: dict[str, Any] = {}
    for axis, costs in axes.items():
        found = slopes(costs)
        numbers[axis] = {**found, "costs": {str(n): asdict(c) for n, c in costs.items()}}
        print(f"{axis:>12} {'CPU ms':>10} {'ratio':>7}")
        for size, c in costs.items():
            print(f"{size:12,} {1000 * c.seconds:10.2f} {c.ratio:7.2f}")
        # A training step too grows faster than linearly where its weights leave the cache.
        bound = LINEAR * max(1.0, found["last_of_training"])
        linear = found["slope"] <= LINEAR and found["last"] <= bound
        verdict = "linear or less" if linear else "MORE THAN LINEAR"
        print(
            f"slope {found['slope']:.2f}, last {found['last']:.2f} "
            f"(of a training step {found['last_of_training']:.2f}): {verdict}\n"
        )
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
