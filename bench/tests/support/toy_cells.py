"""Cells on the table of sixty rows, and on sixty images, that train in an instant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autobalance.records.settings import Recipe, SearchSettings
from autobalance_bench.comparison.cells import Cell
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition

TOY = DatasetDefinition(name="toy", path="toy.csv", target="kind", drop=("site",))
GROUPED = DatasetDefinition(name="grouped", path="toy.csv", target="kind", groups=("site",))
IMAGES = DatasetDefinition(name="images", path="toy.npz", target="kind", network="cnn")
RECIPE = Recipe(epochs=1, min_steps=20, batch_size=16, lr=0.01)
SEARCH = SearchSettings(every=6, validation_batch_size=16)


def write_images(folder: Path, seed: int = 0) -> Path:
    """36, 16 and 8 images of 8 x 8 bytes, brighter from class to class."""
    generator = np.random.default_rng(seed)
    kind = np.repeat([0, 1, 2], [36, 16, 8])
    images = generator.integers(0, 90, (60, 8, 8)) + 60 * kind[:, None, None]
    path = folder / "toy.npz"
    np.savez(path, X=images.astype(np.uint8), kind=kind)
    return path


def cell(folder: Path | None = None, **changes: Any) -> Cell:
    """By default cross-entropy on the plain table."""
    given: dict[str, Any] = {
        "dataset": TOY,
        "method": "cross_entropy",
        "objective": None,
        "seed": 0,
        "objectives": ("balanced_error",),
        "recipe": RECIPE,
        "search": SEARCH,
        "tuning_runs": 2,
        "data": None if folder is None else str(folder),
        "device": "cpu",
    }
    return Cell(**{**given, **changes})


def told(record: dict[str, Any]) -> dict[str, Any]:
    """All of a record but its times."""
    return {key: value for key, value in record.items() if key != "seconds"}
