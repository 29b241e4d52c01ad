"""A small table as a CSV file."""

from __future__ import annotations

import numpy as np
import pandas as pd


def table(n: int = 240, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    kind = generator.choice(["common", "rare"], size=n, p=[0.85, 0.15])
    kind[:6] = "rare"
    x = generator.normal(size=n) + 2.0 * (kind == "rare")
    site = generator.choice(["north", "south"], size=n)
    size = generator.choice(["S", "M", None], size=n)
    return pd.DataFrame({"x": x, "size": size, "site": site, "kind": kind})
