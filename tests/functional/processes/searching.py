"""A search as a script, for `torchrun` and for one process: what it finds goes to a file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autobalance import Recipe, SearchSettings, retrain, search, search_and_train
from autobalance.bilevel import checkpoints
from helpers import blobs


def flat(models: list[nn.Module]) -> torch.Tensor:
    parts = [p.detach().flatten() for model in models for p in model.parameters()]
    return torch.cat(parts) if parts else torch.empty(0)


if __name__ == "__main__":
    out, folds = Path(sys.argv[1]), int(sys.argv[2])
    checkpoint = sys.argv[3] if len(sys.argv) > 3 else None
    torch.set_num_threads(1)
    checkpoints.CHECKPOINT_SECONDS = 0.0
    data = blobs((60, 25, 9), groups=True)
    data = replace(data, inputs=data.inputs.double())
    # Odd, so that two processes have batches of different sizes.
    recipe = Recipe(epochs=1, min_steps=600 if checkpoint else 60, batch_size=31)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    asked: Any = {
        "objective": "worst_class_and_group_error",
        "recipe": recipe,
        "settings": SearchSettings(folds=folds, validation_batch_size=15),
        "seed": 3,
        "device": "cpu",
    }
    result = search(network, data, checkpoint=checkpoint, **asked)
    models = [] if folds > 1 else [search_and_train(network, data, **asked).network]
    model = retrain(network, data, result.loss, recipe=recipe, seed=3, device="cpu")
    found = result.candidates
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(
        {
            "designed": next((c.loss for c in found if c.name == "designed"), result.loss).additive,
            "wrong": torch.tensor([c.wrong for c in found]),
            "objective": torch.tensor([u.objective for u in result.history]),
            "weights": flat([model]),
            "weights of one run": flat(models),
        },
        out / f"{rank}.pt",
    )
