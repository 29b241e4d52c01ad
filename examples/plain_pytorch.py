"""A loss designed in your own training loop, in plain PyTorch.

    python examples/plain_pytorch.py

A network learns long-tailed images. Every 5 steps `LossTuner` moves its loss so that the balanced error
on a batch of held-out images falls. Then a new network is trained on all images with the loss found.
The example prints the errors of networks trained with cross-entropy and with that loss, and the loss.
"""

from __future__ import annotations

import argparse

import torch
from fashion import Images, balanced_error, endless, images, small_network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autobalance import HierarchicalSpace, LossTuner, ParametricCrossEntropy, TunableCrossEntropy


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)


def design(data: Images, steps: int) -> ParametricCrossEntropy:
    """Train a network while a tuner moves its loss, and return that loss."""
    torch.manual_seed(0)
    model = small_network()
    optimizer = build_optimizer(model)
    loss = TunableCrossEntropy(HierarchicalSpace(data.counts))
    tuner = LossTuner(
        loss, "balanced_error", optimizer=optimizer, validation_counts=data.held_counts
    )
    held = endless(DataLoader(data.held, 128, shuffle=True))
    loader = endless(DataLoader(data.train, 64, shuffle=True, drop_last=True))
    for step, (inputs, target) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss(model(inputs), target).backward()
        optimizer.step()
        if step >= 0.3 * steps and step % 5 == 4:  # the network must have learned something first
            tuner.step(model, (inputs, target), next(held))
    return loss.frozen()


def train(data: TensorDataset, loss: nn.Module, steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = small_network()
    optimizer = build_optimizer(model)
    loader = endless(DataLoader(data, 64, shuffle=True, drop_last=True))
    for _, (inputs, target) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss(model(inputs), target).backward()
        optimizer.step()
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run")
    args = parser.parse_args(arguments)

    data = images()
    designed = design(data, args.steps)
    plain = ParametricCrossEntropy.cross_entropy()
    for name, loss in (("Cross-entropy", plain), ("Designed loss", designed)):
        model = train(data.everything, loss, args.steps)
        print(f"{name}: balanced error {balanced_error(model, data.test):.1f} %")
    print("It adds to the logits:", [round(v, 2) for v in designed.additive.tolist()])


if __name__ == "__main__":
    main()
