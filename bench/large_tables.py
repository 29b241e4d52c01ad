"""What `autobalance fit` costs on a large table of mixed columns, and how well it predicts.

    .venv/bin/python bench/large_tables.py --rows 100000 [--seeds 0,1,2] [--json FILE] [-- FIT OPTIONS]

The table is made up and seeded: 20 categorical columns of 2 to 50 values, 6 numbers, a tenth of the values
of four columns missing, 8 classes of which the rarest is 30 times rarer than the most frequent. The class
follows a random network of numbers, categories and pairs of categories, so that a linear model is far from
the best; who knew that network would have a balanced error of 5.3 %. `autobalance fit` runs in a process of
its own, in which the CPU seconds of all threads and the largest memory are measured, and what is left of that
without the imports' in units of the encoded table; the balanced error on 40,000 other rows is that of
`autobalance evaluate`.
What stands after ``--`` is passed to the fit, such as ``--recipe.epochs 60`` for a recipe of one's own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CATEGORIES = tuple(np.linspace(2, 50, 20).astype(int).tolist())
NUMBERS, CLASSES, WIDTH = 6, 8, 8
OFFSETS = np.array([0.0, 0.647, -0.221, -0.746, -2.583, -1.604, -2.993, -1.54])
"""What is added to the classes' scores, so that their shares fall evenly from 39 % to 1.3 %."""
TEST_ROWS = 40_000
ENCODED = 4 * (len(CATEGORIES) + NUMBERS + 2)
"""Bytes of an encoded row: a float32 for each column, and for each of two with missing numbers."""
TEACHER = 7
"""Seed of what the class follows from, which is the same in every table."""


def make_table(rows: int, seed: int) -> pd.DataFrame:
    """A table ``(rows, 27)`` with the class in the column "class"; rows of two seeds differ."""
    rng = np.random.default_rng([seed, rows])
    codes = [np.minimum(rng.geometric(2.0 / (n + 2), rows) - 1, n - 1) for n in CATEGORIES]
    numbers = rng.normal(size=(rows, NUMBERS)) ** np.array([1, 1, 1, 2, 3, 1])
    target = _draw_classes(codes, numbers, rng)
    table = {f"number_{i}": numbers[:, i] for i in range(NUMBERS)}
    table = {name: np.round(values, 4) for name, values in table.items()}
    for i, code in enumerate(codes):
        names = np.array([f"c{i}_{value}" for value in range(CATEGORIES[i])], dtype=object)
        table[f"category_{i}"] = names[code]
    frame = pd.DataFrame(table)
    for name in ("number_1", "number_4", "category_3", "category_11"):
        frame.loc[rng.random(rows) < 0.1, name] = None
    return frame.assign(**{"class": np.array([f"class {k}" for k in range(CLASSES)])[target]})


def _draw_classes(
    codes: list[np.ndarray], numbers: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Classes ``(n,)`` of the rows, by a network of fixed random weights and noise."""
    teacher = np.random.default_rng(TEACHER)
    tables = [teacher.normal(size=(n, WIDTH)) for n in CATEGORIES]
    hidden = np.tanh(numbers) @ teacher.normal(size=(NUMBERS, WIDTH)) * 2.0
    hidden += sum(table[code] for table, code in zip(tables, codes, strict=True))
    scores = np.tanh(hidden / 6.0) @ teacher.normal(size=(WIDTH, CLASSES))
    for a, b in zip(range(0, 20, 2), range(19, 0, -2), strict=True):  # pairs of columns
        of_pairs = teacher.normal(size=(CATEGORIES[a], CATEGORIES[b], CLASSES))
        scores += 0.1 * of_pairs[codes[a], codes[b]]
    return (scores + 0.1 * rng.gumbel(size=scores.shape) + OFFSETS).argmax(axis=1)


def cpu_and_memory(command: list[str]) -> tuple[float, float, float, str]:
    """CPU seconds, MiB at most, wall seconds and standard output of a command in a process of its own."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}.")
        out.seek(0)
        wall = time.perf_counter() - started
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, wall, out.read()


@functools.cache
def imports_memory() -> float:
    """MiB at most of a process that only imports; first asked for while this process is small itself.

    Until a child begins its own program the system counts it as large as its parent.
    """
    return cpu_and_memory([sys.executable, "-c", "import autobalance.cli.fit"])[1]


def measure(rows: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds, memory and test error of one fit."""
    imports_memory()
    folder = options.folder / f"{rows}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"train": rows, "test": TEST_ROWS}
    for name, size in files.items():
        path = folder / f"{name}.{options.format}"
        if not path.exists():
            table = make_table(size, 2 * seed + (name == "test"))
            write = table.to_csv if options.format == "csv" else table.to_parquet
            write(path, index=False)
    command = [sys.executable, "-m", "autobalance"]
    train, test = (str(folder / f"{name}.{options.format}") for name in files)
    run = str(folder / "run")
    fit = ["fit", train, "--target", "class", "--out", run, "--overwrite", "--seed", str(seed)]
    cpu, memory, wall, _ = cpu_and_memory([*command, *fit, *options.fit])
    evaluate = ["evaluate", run, test, "--target", "class", "--json"]
    report = json.loads(cpu_and_memory([*command, *evaluate])[-1])
    return {
        "rows": rows,
        "seed": seed,
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(wall, 1),
        "memory_mib": round(memory),
        "memory_over_encoded": round((memory - imports_memory()) * 2**20 / (rows * ENCODED), 2),
        "balanced_error": report["balanced_error"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--folder", type=Path, help="where tables and RUNs are kept")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("fit", nargs="*", help="options of the fit, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        results = []
        for seed in map(int, options.seeds.split(",")):
            results.append(measure(options.rows, seed, options))
            print(json.dumps(results[-1]), flush=True)
    mean = {
        name: float(np.mean([result[name] for result in results]))
        for name in ("cpu_seconds", "memory_mib", "memory_over_encoded", "balanced_error")
    }
    print("mean", json.dumps(mean))
    if options.json is not None:
        options.json.write_text(json.dumps({"runs": results, "mean": mean}, indent=2) + "\n")


if __name__ == "__main__":
    main()
