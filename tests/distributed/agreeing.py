"""A search with BatchNorm and a final choice, and one continued, for `torchrun`: what each rank ends with."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from autobalance import Recipe, SearchSettings, retrain, search
from autobalance.checkpoints import fingerprint
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
    checkpoint = out / "retrained"
    model = retrain(
        network, data, result.loss, recipe=recipe, seed=2, device="cpu", checkpoint=checkpoint
    )
    torch.distributed.barrier()
    again = retrain(
        network, data, result.loss, recipe=recipe, seed=2, device="cpu", checkpoint=checkpoint
    )
    torch.save(
        {
            "choice": result.choice,
            "candidates": [(c.objective, c.wrong) for c in result.candidates],
            "held_out": result.held_out and result.held_out.wrong,
            "calibration": repr(result.calibration),
            "model": fingerprint(*model.state_dict().values()),
            "again": fingerprint(*again.state_dict().values()),
        },
        out / f"{torch.distributed.get_rank()}.pt",
    )
