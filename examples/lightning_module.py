"""A loss designed within a `LightningModule`, and both restored from a checkpoint.

    python examples/lightning_module.py

Lightning trains as usual, with automatic optimisation, and after every fifth batch the tuner moves the
loss. The tuner holds the loss, so the parameters of the module are those of the network alone, as
optimisers and DDP expect. The checkpoint holds the state of the tuner, which includes the loss.
Training stops half way and continues from the file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from fashion import Images, balanced_error, endless, images, small_network
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from autobalance import HierarchicalSpace, LossTuner, TunableCrossEntropy


class Classifier(LightningModule):
    def __init__(self, data: Images, every: int = 5) -> None:
        super().__init__()
        self.network = small_network()
        loss = TunableCrossEntropy(HierarchicalSpace(data.counts))
        self.tuner = LossTuner(loss, "balanced_error", validation_counts=data.held_counts)
        self.held = endless(DataLoader(data.held, 128, shuffle=True))
        self.every = every

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.tuner.optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-2)
        return self.tuner.optimizer

    def on_fit_start(self) -> None:
        self.tuner.loss.to(self.device)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        return self.tuner.loss(self(inputs), target)

    def on_train_batch_end(self, outputs: Any, batch: list[Tensor], batch_idx: int) -> None:
        if self.global_step % self.every == 0:
            model = self.trainer.strategy.model  # with several processes, that in DDP
            held = self.trainer.strategy.batch_to_device(next(self.held))
            self.log("objective", self.tuner.step(model, batch, held).objective)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tuner"] = self.tuner.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tuner.load_state_dict(checkpoint["tuner"])


QUIET: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


def loader_of(data: Images) -> DataLoader:
    return DataLoader(data.train, 64, shuffle=True, drop_last=True)


def main(arguments: list[str] | None = None) -> tuple[Classifier, Classifier]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args(arguments)

    seed_everything(0)
    data = images()
    first, second = Classifier(data), Classifier(data)
    trainer = Trainer(max_epochs=args.epochs // 2, accelerator="cpu", **QUIET)
    trainer.fit(first, loader_of(data))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half-way.ckpt"
        trainer.save_checkpoint(path)
        trainer = Trainer(max_epochs=args.epochs, accelerator="cpu", **QUIET)
        trainer.fit(second, loader_of(data), ckpt_path=path, weights_only=True)
    for name, model in (("Half way", first), ("At the end", second)):
        error = balanced_error(model.network, data.test)
        shown = [round(v, 2) for v in model.tuner.loss.frozen().additive.tolist()]
        print(f"{name}: balanced error {error:.1f} %, additive {shown}")
    return first, second


if __name__ == "__main__":
    main()
