"""A search as a script, for `torchrun` and for one process: what it finds goes to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from autobalance import Recipe, SearchSettings, retrain, search, training
from helpers import blobs

if __name__ == "__main__":
    out, checkpoint = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    torch.set_num_threads(1)
    training.CHECKPOINT_SECONDS = 0.0
    data = blobs((60, 25, 9), groups=True)
    # Odd, so that two processes have batches of different sizes.
    recipe = Recipe(epochs=1, min_steps=600 if checkpoint else 60, batch_size=31)
    network = lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))  # noqa: E731
    result = search(
        network,
        data,
        objective="worst_class_and_group_error",
        recipe=recipe,
        settings=SearchSettings(validation_batch_size=15),
        seed=3,
        device="cpu",
        checkpoint=checkpoint,
    )
    model = retrain(network, data, result.loss, recipe=recipe, seed=3, device="cpu")
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(
        {
            "loss": result.loss.additive,
            "objective": torch.tensor([u.objective for u in result.history]),
            "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        },
        out / f"{rank}.pt",
    )
