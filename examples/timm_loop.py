"""A loss designed in a training loop like timm's: autocast, accumulated gradients, averaged weights.

    python examples/timm_loop.py
    python examples/timm_loop.py --model resnet18    # if timm is installed

The step of the tuner follows that of the optimiser. It gets the batches accumulated for that step and
runs under the same autocast. It uses the network in training, not the average of its weights (EMA).
Mixup and CutMix are off, because they make targets soft, while the loss needs the class of each image.
"""

from __future__ import annotations

import argparse
from itertools import islice, pairwise

import torch
from fashion import balanced_error, endless, images
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from autobalance import HierarchicalSpace, LossTuner, TunableCrossEntropy


def create_model(name: str | None) -> nn.Module:
    """Create a network of timm by its name, or without a name a small one with BatchNorm."""
    if name is not None:
        import timm

        return timm.create_model(name, num_classes=10, in_chans=1)
    widths = (1, 16, 32, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="name of a network of timm")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--accumulate", type=int, default=2, help="batches per optimiser step")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, model = images(), create_model(args.model).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
    loss = TunableCrossEntropy(HierarchicalSpace(data.counts)).to(device)
    tuner = LossTuner(
        loss, "balanced_error", optimizer=optimizer, validation_counts=data.held_counts
    )
    loader = endless(DataLoader(data.train, 32, shuffle=True, drop_last=True))
    held = endless(DataLoader(data.held, 128, shuffle=True))

    for step in range(args.steps):
        batches = [[part.to(device) for part in batch] for batch in islice(loader, args.accumulate)]
        for inputs, target in batches:
            with torch.autocast(device.type, torch.bfloat16):
                value = loss(model(inputs), target) / args.accumulate
            value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(model)
        if step >= 0.3 * args.steps and step % 5 == 4:
            with torch.autocast(device.type, torch.bfloat16):
                tuner.step(model, batches, [part.to(device) for part in next(held)])

    errors = {"network": model, "average of its weights": average}
    errors = {name: balanced_error(each.cpu(), data.test) for name, each in errors.items()}
    for name, error in errors.items():
        print(f"Balanced error of the {name}: {error:.1f} %")
    print("The loss adds:", [round(v, 2) for v in loss.frozen().additive.tolist()])
    return errors


if __name__ == "__main__":
    main()
