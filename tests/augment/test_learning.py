"""An augmentation learned by the faces of the library: search, retrain, tuner, classifier."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance import (
    AutoBalanceClassifier,
    HierarchicalSpace,
    LossTuner,
    ParametricCrossEntropy,
    Recipe,
    SearchResult,
    SearchSettings,
    TunableCrossEntropy,
    retrain,
    search,
)
from autobalance._validation import InputError
from autobalance.augment.augmentation import Augmentation
from autobalance.augment.choice import as_augmentation
from autobalance.augment.policy import AugmentationPolicy, default_policy
from autobalance.augment.tensors import GaussianNoise
from autobalance.bilevel import checkpoints
from autobalance.bilevel.types import Progress
from autobalance.data.array_data import ArrayData
from autobalance.networks import SmallCNN
from helpers import blobs

pytestmark = pytest.mark.usefixtures("few_draws")
RECIPE = Recipe(epochs=1, min_steps=40, batch_size=32, lr=0.05)
SETTINGS = SearchSettings(every=3, warmup=0.4)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def quick(data: ArrayData | None = None, factory: Any = network, **options: Any) -> SearchResult:
    given: dict[str, Any] = {"recipe": RECIPE, "settings": SETTINGS, "device": "cpu", "seed": 1}
    return search(factory, data or blobs((60, 25, 9)), **{**given, **options})


def comparable(result: SearchResult) -> dict[str, Any]:
    return {k: v for k, v in result.to_dict().items() if k != "seconds"}


def pictures(n: int = 60) -> ArrayData:
    generator = torch.Generator().manual_seed(0)
    return ArrayData.of(
        torch.rand(n, 1, 12, 12, generator=generator), torch.arange(n) % 5 % 3, num_classes=3
    )


# Search and retrain ------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [False, True], ids=["classes", "cells"])
def test_a_policy_per_class_is_learned_with_the_loss(groups: bool) -> None:
    data = blobs((60, 25, 9), groups=groups)
    result = quick(data, augment="personalised")
    found = result.augment
    assert isinstance(found, Augmentation)
    start = default_policy(data.inputs, data.counts()).frozen()
    assert found.probability.shape == start.probability.shape
    assert not torch.equal(found.magnitude, start.magnitude)
    by_class = found.magnitude.reshape(-1, found.magnitude.shape[-1])
    assert bool((by_class.std(dim=0) > 0).any())
    assert not torch.equal(result.loss.additive, quick(data).loss.additive)  # type: ignore[arg-type]


def test_one_policy_for_all_is_the_same_for_each_class() -> None:
    found = quick(augment="shared").augment
    assert isinstance(found, Augmentation)
    assert float(found.magnitude.std(dim=0).max()) < 1e-6


def test_the_result_travels_as_json_with_its_policy_per_class() -> None:
    result = quick(augment="personalised")
    record = json.loads(result.to_json())
    per_class = record["augment"]["per_class"]
    assert len(per_class) == 3
    for strengths in per_class.values():
        for value in strengths.values():
            assert 0 <= value["probability"] <= 1
    again = SearchResult.from_json(result.to_json())
    assert isinstance(again.augment, Augmentation)
    assert isinstance(result.augment, Augmentation)
    torch.testing.assert_close(again.augment.magnitude, result.augment.magnitude)
    assert comparable(again) == comparable(result)


def test_one_seed_gives_one_result_and_another_module_is_untouched() -> None:
    data = blobs((60, 25, 9))
    policy = AugmentationPolicy(data.counts(), [GaussianNoise(0.5)])
    before = policy.shared_magnitude.detach().clone()
    first, second = (quick(data, augment=policy) for _ in range(2))
    assert comparable(first) == comparable(second)
    assert torch.equal(policy.shared_magnitude.detach(), before)


def test_a_killed_search_continues_to_the_same_bits(tmp_path: Path, monkeypatch: Any) -> None:
    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.phase == "search" and progress.step > 30:
            raise Killed

    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    whole = quick(augment="personalised")
    path = tmp_path / "state"
    with pytest.raises(Killed):
        quick(augment="personalised", checkpoint=path, progress=kill)
    assert comparable(quick(augment="personalised", checkpoint=path)) == comparable(whole)


def test_a_checkpoint_with_another_augmentation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    quick(augment="personalised", checkpoint=path)
    with pytest.raises(InputError, match="of another run"):
        quick(augment="shared", checkpoint=path)


def test_the_final_choice_has_candidates_without_what_was_learned(monkeypatch: Any) -> None:
    from autobalance.bilevel import network_search as searching

    seen: dict[str, Any] = {}
    original = searching.train_candidates

    def spy(*args: Any, **options: Any) -> None:
        seen.update(args[3])
        original(*args, **options)

    monkeypatch.setattr(searching, "train_candidates", spy)
    result = quick(augment="personalised", settings=SearchSettings(folds=2, every=3))
    assert isinstance(seen["designed"], Augmentation)
    assert seen["start"] is seen["cross_entropy"] is None
    assert (result.augment is None) == (result.choice != "designed")


@pytest.mark.parametrize(("limit", "kept"), [(0.1, True), (8.0, False)])
def test_one_fold_says_whether_what_was_learned_is_kept(limit: float, kept: bool) -> None:
    def noise(inputs: Tensor, counts: Any) -> AugmentationPolicy:
        options: Any = {"probability": 0.99, "magnitude": 0.99}
        return AugmentationPolicy(counts, [GaussianNoise(limit)], **options)

    data = blobs((400, 200, 100), spread=0.5)
    settings = SearchSettings(every=3, warmup=0.4, lr=1e-6)
    result = quick(data, augment=noise, settings=settings)
    assert [c.name for c in result.candidates] == ["designed", "start"]
    assert result.choice == ("designed" if kept else "start")
    assert (result.augment is not None) == kept
    # The network searched with is the designed loss's; the start's alone is trained for this.
    assert result.training_runs == 2.0
    designed, _ = result.candidates
    assert result.held_out is not None
    assert designed.wrong == result.held_out.wrong
    assert kept == (designed.difference < 2.0 * designed.standard_error)
    without = quick(data, augment=noise, settings=replace(settings, choose=False))
    assert (without.candidates, without.choice, without.training_runs) == ([], "designed", 1.0)
    assert without.augment is not None


def test_a_killed_choice_continues_to_the_same_bits(tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        if progress.phase == "choose":
            raise RuntimeError

    whole = quick(augment="personalised")
    path = tmp_path / "state"
    with pytest.raises(RuntimeError):
        quick(augment="personalised", checkpoint=path, progress=kill)
    assert comparable(quick(augment="personalised", checkpoint=path)) == comparable(whole)


class Recorded(nn.Module):
    """Adds 1 to the inputs and remembers whether it should learn."""

    calls = 0
    with_graph = 0

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None) -> Tensor:
        type(self).calls += 1
        type(self).with_graph += torch.is_grad_enabled()
        return inputs + 1


def test_retraining_augments_every_training_batch_and_nothing_else() -> None:
    data = blobs((60, 25, 9))
    loss = ParametricCrossEntropy()
    given: dict[str, Any] = {"recipe": RECIPE, "device": "cpu", "seed": 2}
    Recorded.calls = Recorded.with_graph = 0
    augmented = retrain(network, data, loss, augment=Recorded(), **given)
    assert (Recorded.calls, Recorded.with_graph) == (RECIPE.steps(len(data)), 0)
    moved = ArrayData.of(data.inputs + 1, data.target)
    by_hand = retrain(network, moved, loss, **given)
    for ours, theirs in zip(augmented.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_module_of_the_users_own_is_used_and_named() -> None:
    result = quick(
        pictures(),
        factory=lambda: SmallCNN(3, size=(12, 12)),
        augment=Recorded(),
    )
    assert isinstance(result.augment, Recorded)
    record = result.to_dict()["augment"]
    assert "Recorded" in record["module"]
    assert SearchResult.from_json(result.to_json()).augment is None


# The tuner ---------------------------------------------------------------------------------------


def test_a_tuner_moves_the_policy_and_its_prior_holds_it() -> None:
    data = blobs((60, 25, 9))
    batch = (data.inputs, data.target)

    def moved(sigma: float) -> float:
        torch.manual_seed(0)
        model = network()
        policy = AugmentationPolicy(data.counts(), [GaussianNoise(0.5)], sigma_shared=sigma)
        loss = TunableCrossEntropy(HierarchicalSpace(data.counts()))
        tuner = LossTuner(loss, augment=policy, validation_counts=data.counts())
        before = policy.shared_magnitude.detach().clone()
        for _ in range(15):
            tuner.step(model, batch, batch)
        return float((policy.shared_magnitude.detach() - before).abs())

    assert 0 < moved(1e-3) < 0.5 * moved(10.0)


def test_a_tuners_state_holds_the_policy() -> None:
    data = blobs((60, 25, 9))
    batch = (data.inputs, data.target)

    def made() -> LossTuner:
        policy = AugmentationPolicy(data.counts(), [GaussianNoise(0.5)])
        return LossTuner(TunableCrossEntropy(HierarchicalSpace(data.counts())), augment=policy)

    torch.manual_seed(0)
    model = network()
    first, second = made(), made()
    first.step(model, batch, batch)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for tuner in (first, second):
        torch.manual_seed(4)
        tuner.step(model, batch, batch)
    for ours, theirs in zip(first.free_parameters(), second.free_parameters(), strict=True):
        assert torch.equal(ours, theirs)


# The classifier ----------------------------------------------------------------------------------


def test_the_classifier_augments_tables() -> None:
    data = blobs((60, 25, 9))
    X, y = data.inputs.numpy(), data.target.numpy()
    given: dict[str, Any] = {"recipe": RECIPE, "settings": SETTINGS, "random_state": 0}
    plain = AutoBalanceClassifier(**given).fit(X, y)
    ours = AutoBalanceClassifier(augment="personalised", **given).fit(X, y)
    assert ours.result_.augment is not None
    assert not np.allclose(ours.decision_function(X), plain.decision_function(X))


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "inputs", "message"),
    [
        ("per_class", torch.rand(9, 2), '"personalised", "shared"'),
        (3, torch.rand(9, 2), "got int"),
        (lambda inputs, counts: None, torch.rand(9, 2), "got NoneType"),
        ("personalised", torch.rand(9, 5, 8, 8), "channel"),
        ("personalised", 9 * torch.rand(9, 1, 8, 8), "range"),
        ("personalised", torch.rand(9, 3, 4), "shape"),
    ],
)
def test_what_cannot_augment_is_refused(choice: Any, inputs: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_augmentation(choice, inputs, [5, 4])
