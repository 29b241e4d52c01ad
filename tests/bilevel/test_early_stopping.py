"""The length of a training on a large table: where held-out rows are predicted best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autobalance.bilevel import early_stopping
from autobalance.bilevel.checkpoints import OtherRun
from autobalance.bilevel.early_stopping import LOOKS, PATIENCE, stop_early
from autobalance.bilevel.held_out import splits_of
from autobalance.bilevel.lower_level import LowerLevel
from autobalance.bilevel.network_search import make_spec
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.types import Interrupted, Progress
from autobalance.data.array_data import ArrayData
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.settings import Recipe, SearchSettings
from helpers import blobs

RECIPE = Recipe(epochs=10, min_steps=200, batch_size=32)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[int]:
    """Let the held-out rows say these values; the steps after which they were asked."""
    asked: list[int] = []

    def value(lower: LowerLevel) -> float:
        asked.append(lower.done)
        return values[len(asked) - 1]

    monkeypatch.setattr(early_stopping, "_value_of", lambda *_: value)
    return asked


@pytest.mark.parametrize(
    ("values", "best", "looks"),
    [
        ([5.0, 4.0, 3.0, 4.0, 3.5, 3.2, 3.1, *[0.0] * 13], 3, 3 + PATIENCE),
        ([5.0, 4.0, 3.0, 4.0, 3.5, 3.2, 2.9, *[9.0] * 13], 7, 7 + PATIENCE),
        ([1.0 / (i + 1) for i in range(LOOKS)], LOOKS, LOOKS),
        ([math.nan] * LOOKS, LOOKS, PATIENCE),  # a value that is never known shortens nothing
    ],
)
def test_the_recipe_ends_where_the_value_was_lowest(
    monkeypatch: pytest.MonkeyPatch, values: list[float], best: int, looks: int
) -> None:
    asked = script(monkeypatch, values)
    told: list[Progress] = []
    recipe = stop_early(mlp, blobs(), recipe=RECIPE, device="cpu", progress=told.append)
    assert asked == [10 * (i + 1) for i in range(looks)]
    assert recipe.epochs == pytest.approx(10 * best / LOOKS)
    assert recipe.min_steps == 10 * best
    assert (told[0].step, told[0].rows) == (1, 32)  # from the first step on
    assert told[-1] == Progress("length", 200, 200)


def test_the_value_is_the_mean_cross_entropy_of_the_classes_on_rows_held_out() -> None:
    data = blobs()
    spec = make_spec(mlp, data, device="cpu")
    _, held = splits_of(data, None, SearchSettings(), 0)[0]
    model = mlp()

    class Lower:
        module = model

        class processes:  # noqa: N801
            broadcast_buffers = staticmethod(lambda module: None)

    lower: Any = Lower
    loss = ParametricCrossEntropy(multiplicative=torch.tensor([1.0, 2.0, 0.5]))
    value = early_stopping._value_of(spec, held, loss)(lower)
    logits = predict_logits(model, held.inputs) * torch.tensor([1.0, 2.0, 0.5])
    losses = F.cross_entropy(logits, held.target, reduction="none")
    expected = torch.stack([losses[held.target == k].mean() for k in range(3)]).mean()
    assert value == pytest.approx(float(expected), rel=1e-5)


def test_rows_that_say_nothing_of_the_class_are_not_learned_by_heart() -> None:
    """A real training: on labels drawn at random held-out rows are predicted best near the beginning."""
    draw = torch.Generator().manual_seed(0)
    data = ArrayData.of(
        torch.randn(300, 20, generator=draw), torch.randint(3, (300,), generator=draw)
    )

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 3))

    recipe = stop_early(wide, data, recipe=Recipe(epochs=1, min_steps=400), device="cpu")
    assert recipe.min_steps <= 60


def test_a_length_that_was_found_is_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "search.checkpoint"
    found = stop_early(mlp, blobs(), recipe=RECIPE, device="cpu", checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["search.checkpoint.length"]
    monkeypatch.setattr(LowerLevel, "step", None)
    assert stop_early(mlp, blobs(), recipe=RECIPE, device="cpu", checkpoint=path) == found
    with pytest.raises(OtherRun, match="seed is"):
        stop_early(mlp, blobs(), recipe=RECIPE, device="cpu", checkpoint=path, seed=1)


def test_what_stops_it_carries_a_search_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LowerLevel, "step", interrupt)
    with pytest.raises(Interrupted) as stopped:
        stop_early(mlp, blobs(), recipe=RECIPE, device="cpu")
    assert isinstance(stopped.value.partial, SearchResult)
    assert stopped.value.partial.status == "interrupted"
