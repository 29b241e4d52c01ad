"""A table of sixty rows on which anything trains in an instant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def write_toy(folder: Path, seed: int = 0) -> Path:
    """36, 16 and 8 rows of three classes, half of each at either site."""
    generator = np.random.default_rng(seed)
    kind = np.repeat(["a", "b", "c"], [36, 16, 8])
    x = generator.normal(size=(60, 2))
    x[:, 0] += 2.0 * (kind == "b")
    x[:, 1] += 2.0 * (kind == "c")
    site = np.where(np.arange(60) % 2 == 0, "north", "south")
    path = folder / "toy.csv"
    pd.DataFrame({"x": x[:, 0], "z": x[:, 1], "site": site, "kind": kind}).to_csv(path, index=False)
    return path
