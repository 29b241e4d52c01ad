"""A loss designed while a transformer is adapted by LoRA, with Hugging Face's peft.

    python examples/peft_lora.py

A small BERT is made from a configuration, so that nothing is downloaded; in your own code it is one that
`from_pretrained` loads. LoRA leaves its weights as they are and trains small matrices beside those of the
attention, and the classifier. `search_and_train` designs the loss through exactly these weights. Its
network is the peft model as it is: batches are dictionaries, and the logits are a field of what it returns.
The example prints how many weights were trained, and the balanced errors with and without a designed loss.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

from autobalance import ParametricCrossEntropy, Recipe, retrain, search_and_train

COUNTS = (400, 120, 40, 15)
WORDS, LENGTH = 40, 12


class Sentences(Dataset[dict[str, Tensor]]):
    """Sentences of random words, as a tokenizer gives them; half of the words tell the class."""

    def __init__(self, counts: tuple[int, ...], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        shape = len(self.labels), LENGTH
        # Neighbouring classes share words, so that a rare one is easily taken for a frequent one.
        words = 6 * self.labels[:, None] + torch.randint(1, 11, shape, generator=generator)
        noise = torch.randint(1, WORDS, shape, generator=generator)
        telling = torch.rand(shape, generator=generator) < 1 / 2
        self.input_ids = torch.where(telling, words, noise)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def adapted_transformer() -> nn.Module:
    config = BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=LENGTH, num_labels=len(COUNTS),
    )  # fmt: skip
    torch.manual_seed(0)  # stands in for pretrained weights, which are always the same
    model = BertForSequenceClassification(config)
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=32, target_modules=["query", "value"])
    return get_peft_model(model, lora)


@torch.no_grad()
def balanced_error(model: Any, data: Sentences) -> float:
    predicted = model(input_ids=data.input_ids).logits.argmax(dim=1)
    return 100 * (1 - balanced_accuracy_score(data.labels, predicted))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each network")
    args = parser.parse_args(arguments)

    train, test = Sentences(COUNTS, seed=0), Sentences((250,) * len(COUNTS), seed=1)
    recipe = Recipe(epochs=1, min_steps=args.steps, lr=1e-2)
    plain = retrain(
        adapted_transformer, train, ParametricCrossEntropy.cross_entropy(), recipe=recipe
    )
    designed, result = search_and_train(adapted_transformer, train, recipe=recipe)

    trained = sum(p.numel() for p in designed.parameters() if p.requires_grad)
    print(f"{trained:,} of {sum(p.numel() for p in designed.parameters()):,} weights were trained.")
    errors = {
        name: balanced_error(model, test)
        for name, model in (("cross-entropy", plain), ("the designed loss", designed))
    }
    for name, error in errors.items():
        print(f"Balanced error of {name}: {error:.1f} %")
    print("The loss adds:", [round(value, 2) for value in result.loss.additive.tolist()])
    return errors


if __name__ == "__main__":
    main()
