"""A loss designed within Hugging Face's `Trainer`, with gradient accumulation and checkpoints.

    python examples/huggingface_trainer.py

A tiny ConvNeXt with random weights, made from a configuration, learns long-tailed images.
`compute_loss` uses the tunable loss, and every fifth `training_step` moves it. Batches are the
dictionaries that collators make: "labels" and the model's keyword arguments. Training stops half
way and continues from the checkpoint, to which a callback adds the state of the tuner.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from fashion import endless, images
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from autobalance import HierarchicalSpace, LossTuner, TunableCrossEntropy


class TunedTrainer(Trainer):
    def __init__(self, *args: Any, tuner: LossTuner, held: Any, every: int = 5, **options: Any):
        super().__init__(*args, **options)
        self.tuner, self.held, self.every, self.batches = tuner, held, every, 0
        # compute_loss returns the mean of a batch, so the Trainer must divide when it accumulates.
        self.model_accepts_loss_kwargs = False
        self.add_callback(SaveTuner(tuner))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = self.tuner.loss(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **options)
        self.batches += 1
        if (
            self.batches % self.every == 0
        ):  # this leaves the gradients accumulated so far as they are
            self.tuner.optimizer = self.optimizer
            held = self._prepare_inputs(next(self.held))
            self.tuner.step(model, self._prepare_inputs(inputs), held)
        return loss

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        self.tuner.loss.to(self.args.device)
        if resume_from_checkpoint is not None:
            self.tuner.load_state_dict(torch.load(Path(resume_from_checkpoint) / "tuner.pt"))
        return super().train(resume_from_checkpoint, **options)


class SaveTuner(TrainerCallback):
    def __init__(self, tuner: LossTuner) -> None:
        self.tuner = tuner

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(self.tuner.state_dict(), folder / "tuner.pt")


def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    pixels, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.stack(labels)}


def balanced_error(prediction: Any) -> dict[str, float]:
    predicted = prediction.predictions.argmax(axis=1)
    return {"balanced_error": 1.0 - balanced_accuracy_score(prediction.label_ids, predicted)}


def main(arguments: list[str] | None = None) -> list[TunedTrainer]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    args = parser.parse_args(arguments)

    data = images()
    config = ConvNextConfig(
        num_channels=1, num_labels=10, num_stages=2, depths=[1, 1], hidden_sizes=[32, 64]
    )
    trainers, checkpoint = [], None
    with tempfile.TemporaryDirectory() as folder:
        for steps in (args.steps // 2, args.steps):
            set_seed(0)
            loss = TunableCrossEntropy(HierarchicalSpace(data.counts))
            trainer = TunedTrainer(
                ConvNextForImageClassification(config),
                TrainingArguments(
                    folder, max_steps=steps, save_steps=args.steps // 2, learning_rate=2e-3,
                    per_device_train_batch_size=32, gradient_accumulation_steps=2,
                    lr_scheduler_type="constant", use_cpu=True, report_to="none",
                    disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
                ),
                train_dataset=data.train, eval_dataset=data.test, data_collator=collate,
                compute_metrics=balanced_error,
                tuner=LossTuner(loss, "balanced_error", validation_counts=data.held_counts),
                held=endless(DataLoader(data.held, 128, shuffle=True, collate_fn=collate)),
            )  # fmt: skip
            trainer.train(checkpoint)
            checkpoint = str(Path(folder) / f"checkpoint-{steps}")
            error = 100 * trainer.evaluate()["eval_balanced_error"]
            additive = [round(v, 2) for v in loss.frozen().additive.tolist()]
            print(f"After {steps} steps: balanced error {error:.1f} %, additive {additive}")
            trainers.append(trainer)
    return trainers


if __name__ == "__main__":
    main()
