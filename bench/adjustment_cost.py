"""What `design_adjustment` costs for 100,000 scores of 10 and of 1,000 classes: time and memory.

    .venv/bin/python bench/adjustment_cost.py [--quick] [--threads 2] [--json FILE]

Scores are float32, of classes at imbalance 100 with margins of 3. Memory is the most that the process
held while it designed, beyond what it held before, in shares of the scores' own.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np

from autobalance import design_adjustment
from measuring import options_of, prepare, write_json

CASES = ((100_000, 10), (100_000, 1000))
MARGIN = 3.0


def scores_of(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``(n, k)`` and classes ``(n,)``, built in blocks that add little to the peak."""
    draw = np.random.default_rng(0)
    prior = 100.0 ** (-np.arange(k) / (k - 1))
    prior /= prior.sum()
    target = np.r_[np.repeat(np.arange(k), 4), draw.choice(k, n - 4 * k, p=prior)]
    p = np.empty((n, k), dtype=np.float32)
    for start in range(0, n, 1000):
        own = target[start : start + 1000]
        logits = draw.normal(size=(len(own), k)) + np.log(prior)
        logits[np.arange(len(own)), own] += MARGIN
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        p[start : start + 1000] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return p, target


def measure(n: int, k: int) -> dict[str, Any]:
    design_adjustment(*scores_of(1000, 3), resamples=0)  # what is loaded at the first use
    p, target = scores_of(n, k)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    design_adjustment(p, target, resamples=0)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / p.nbytes
    return {"examples": n, "classes": k, "wall": wall, "cpu": cpu, "memory": extra}


def main() -> None:
    options = options_of(__doc__).parse_args()
    prepare(options.threads)
    results = []
    for n, k in CASES:
        results.append(measure(n // 10 if options.quick else n, k))
        print(
            "{examples:,} x {classes}: {wall:.1f} s, {cpu:.1f} s of processors, memory {memory:.1f} times "
            "the scores' beside them".format(**results[-1]),
            flush=True,
        )
    write_json(options.json, {"cases": results})


if __name__ == "__main__":
    main()
