"""The trip of one batch that docs/explanation/architecture.md describes, made and watched."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import autobalance
from autobalance import Recipe, SearchSettings, search
from autobalance.bilevel.types import Progress

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "architecture.md"
ROOT = Path(autobalance.__file__).parent
MOST_FILES = 10


class Points(Dataset[tuple[Tensor, int]]):
    """Three hundred points of three classes."""

    targets = torch.arange(300) % 3

    def __init__(self) -> None:
        self.points = torch.randn(300, 6)

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], int(self.targets[index])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def entries_between_two_upper_steps() -> list[tuple[str, str]]:
    """Each function of the package that is entered, once, in the order of its first call."""
    entered: dict[tuple[str, str], None] = {}
    upper_steps = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            entered.setdefault((path.relative_to(ROOT).as_posix(), frame.f_code.co_qualname))

    def watch(progress: Progress) -> None:
        nonlocal upper_steps
        upper_steps += progress.objective is not None
        sys.setprofile(profile if upper_steps == 3 else None)

    recipe, settings = Recipe(epochs=1, min_steps=60), SearchSettings(every=2)
    try:
        search(network, Points(), recipe=recipe, settings=settings, device="cpu", progress=watch)
    finally:
        sys.setprofile(None)
    return list(entered)


def test_a_batch_passes_through_the_files_of_the_table_in_its_order() -> None:
    rows = re.findall(r"^\| `(\w+/\w+\.py)` \| `([\w.]+)` \|", PAGE.read_text("utf-8"), re.M)
    assert 0 < len({file for file, _ in rows}) == len(rows) <= MOST_FILES
    entered = entries_between_two_upper_steps()
    assert [entry for entry in entered if entry in rows] == rows
