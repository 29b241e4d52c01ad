"""The problem of segmentation that `bench/dense_images.py` makes, on made-up objects."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from autobalance.data import ImageSet

sys.path.insert(0, str(Path(__file__).parents[1]))
from dense_images import CLASSES, RATIO, SIZES, SoftDice, UNet, compose, print_table
from measuring import read_runs


def test_pixels_of_the_classes_fall_by_the_ratio() -> None:
    generator = np.random.default_rng(0)
    squares = np.zeros((100, 1, 28, 28), np.float32)
    squares[:, :, 4:24, 4:24] = 0.8
    objects = ImageSet(squares, np.arange(100) % (CLASSES - 1))
    images, target = compose(objects, [np.full((200, 300), 100, np.uint8)], 3000, generator)
    assert images.shape == (3000, 1, 32, 32)
    pixels = np.bincount(target.flatten(), minlength=CLASSES)[1:]
    fall = np.polyfit(np.linspace(0, 1, CLASSES - 1), np.log(pixels), 1)[0]
    assert fall == pytest.approx(-np.log(RATIO), rel=0.1)
    assert int((target == CLASSES - 1).flatten(1).sum(dim=1).max()) <= 2 * SIZES[-1] ** 2
    inside, outside = (images[:, 0][place].mean() for place in (target > 0, target == 0))
    assert inside > 0 > outside


def test_soft_dice_is_none_where_all_is_right_and_learns() -> None:
    target = torch.randint(CLASSES, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    logits = 50.0 * F.one_hot(target, CLASSES).movedim(-1, 1)
    assert float(SoftDice()(logits, target)) == pytest.approx(0.0, abs=1e-6)
    assert float(SoftDice()(-logits, target)) > 0.9
    torch.manual_seed(0)
    model = UNet()
    loss = SoftDice(cross_entropy=True)(model(torch.randn(2, 1, 32, 32)), target)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_the_table_has_what_the_file_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"balanced_error": 0.5, "worst_class_error": 0.7, "mean_iou_error": 0.6}
    lines = [
        json.dumps({"method": "dice", "seed": seed, "values": {**values, "balanced_error": error}})
        for seed, error in enumerate((0.4, 0.6))
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines))
    print_table(read_runs(path, "method", "seed"))
    assert "| dice | 2 | 50.0 ± 10.0 | 70.0 ± 0.0 | 60.0 ± 0.0 |" in capsys.readouterr().out
