"""A search with BatchNorm and a final choice, and one continued, for `torchrun`: what each rank ends with.

Each rank keeps its checkpoint in a folder of its own, as on nodes without a shared disk.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autobalance import Recipe, SearchSettings, retrain, search
from autobalance.bilevel.checkpoints import OtherRun, fingerprint
from autobalance.data.array_data import ArrayData
from helpers import blobs


def network() -> nn.Module:
    layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    return nn.Sequential(*layers)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    data = blobs((60, 30, 12), spread=1.5)
    recipe = Recipe(epochs=1, min_steps=40, batch_size=16, lr=0.05)
    settings = SearchSettings(folds=2, validation_batch_size=16)
    result = search(network, data, recipe=recipe, settings=settings, seed=2, device="cpu")
    rank = torch.distributed.get_rank()
    checkpoint = out / f"node {rank}" / "retrained"

    def retrained(seed: int, data: ArrayData) -> str:
        model = retrain(
            network,
            data,
            result.loss,
            recipe=recipe,
            seed=seed,
            device="cpu",
            checkpoint=checkpoint,
        )
        return fingerprint(*model.state_dict().values())

    def refused(seed: int, data: ArrayData) -> dict[str, Any]:
        try:
            retrained(seed, data)
        except OtherRun as error:
            return error.differences
        return {}

    model = retrained(2, data)
    torch.save(
        {
            "choice": result.choice,
            "candidates": [(c.objective, c.wrong) for c in result.candidates],
            "held_out": result.held_out and result.held_out.wrong,
            "calibration": repr(result.calibration),
            "model": model,
            "again": retrained(2, data),
            "other seed": refused(3, data),
            "other data in the second": refused(2, data if rank == 0 else blobs((60, 30, 13))),
            "files": [str(p.relative_to(out)) for p in out.glob("node*/*")] if rank == 0 else [],
        },
        out / f"{rank}.pt",
    )
