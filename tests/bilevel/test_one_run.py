"""Search and training in one run: what is released when, and that nothing else differs from two runs."""

from __future__ import annotations

import inspect
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autobalance import AutoBalanceClassifier
from autobalance._validation import InputError, TrainingDiverged
from autobalance.bilevel import Interrupted, Progress, SearchResult, TrainedSearch
from autobalance.bilevel.checkpoints import OtherRun
from autobalance.bilevel.held_out import split_rows
from autobalance.bilevel.network_search import SearchOptions, search
from autobalance.bilevel.one_run import search_and_train
from autobalance.bilevel.retraining import retrain
from autobalance.records.settings import Recipe, SearchSettings
from helpers import blobs, linear_factory

QUICK = Recipe(epochs=1, min_steps=60, batch_size=32, lr=0.05)


def trained(**given: Any) -> TrainedSearch:
    factory = given.pop("factory", linear_factory())
    data = given.pop("data", None) or blobs()
    options: Any = {"recipe": QUICK, "device": "cpu", **given}
    return search_and_train(factory, data, **options)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([v.double().reshape(-1) for v in model.state_dict().values()])


def record(result: SearchResult) -> str:
    return replace(result, seconds={}).to_json()


class Recording(Dataset[tuple[Tensor, int]]):
    """The blobs as a Dataset that notes which example is read for training, in order."""

    def __init__(self) -> None:
        data = blobs()
        self.inputs, self.targets = data.inputs, data.target.tolist()
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        return self.inputs[index], self.targets[index]


def interrupted_at(phase: str, step: int) -> Any:
    def listen(progress: Progress) -> None:
        if progress.phase == phase and progress.step >= step:
            raise KeyboardInterrupt

    return listen


def test_all_examples_are_trained_on_after_the_release_and_not_before() -> None:
    dataset = Recording()
    switched: list[int] = []

    def listen(progress: Progress) -> None:
        if progress.phase == "search" and progress.step == progress.total:
            switched.append(len(dataset.read))

    # No upper step reads held-out examples.
    settings = SearchSettings(every=1000)
    trained(data=dataset, settings=settings, progress=listen)
    data = blobs()
    [(kept, held)] = split_rows(data, settings, 0)
    before, after = dataset.read[: switched[0]], dataset.read[switched[0] :]
    assert set(before[-30 * 32 :]) <= set(kept.tolist())  # Its labels are looked at earlier.
    # Then what is held out is predicted once for the record, and trained on.
    seen = np.bincount(after, minlength=len(data))
    assert (seen[held.numpy()] >= 2).all()


def test_it_costs_one_run_and_ends_at_the_same_bits() -> None:
    first, second = trained(), trained()
    assert torch.equal(flat(first.network), flat(second.network))
    assert record(first.result) == record(second.result)
    assert first.result.training_runs == 1.0
    assert first.result.settings["steps"] == 30
    assert first.result.settings["release"] == 0.5
    assert not first.network.training


def test_the_loss_is_fixed_at_the_release_and_its_rate_falls() -> None:
    result = trained(settings=SearchSettings(every=1, warmup=0.1, average=0.01)).result
    places = [np.array(point.additive) for point in result.path]
    moves = [float(np.abs(b - a).max()) for a, b in pairwise(places)]
    assert 30 - 4 < result.path[-1].step <= 30
    assert moves[-1] < 0.25 * max(moves)
    assert result.loss.additive is not None
    np.testing.assert_allclose(result.loss.additive.numpy(), places[-1], atol=1e-6)


def test_upper_steps_come_further_apart_as_the_rate_falls() -> None:
    """After 1, 2 and 4 lower steps, where the learning rate is above a half, a quarter, and below it."""
    settings = SearchSettings(every=1, warmup=0.1, average=0.01)
    steps = [record.step for record in trained(settings=settings).result.history]
    assert set(np.diff(steps)) == {1, 2, 4}
    assert list(np.diff(steps)) == sorted(np.diff(steps))
    alone = [record.step for record in trained(settings=settings, retrain="anew").result.history]
    assert set(np.diff(alone)) == {1}


@pytest.mark.parametrize(("phase", "step"), [("search", 20), ("retrain", 40)])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, phase: str, step: int) -> None:
    whole = trained()
    path = tmp_path / "c"
    with pytest.raises(Interrupted) as stopped:
        trained(checkpoint=path, progress=interrupted_at(phase, step))
    kind = SearchResult if phase == "search" else TrainedSearch
    assert isinstance(stopped.value.partial, kind)
    again = trained(checkpoint=path)
    assert torch.equal(flat(again.network), flat(whole.network))
    assert again.result.loss.to_json() == whole.result.loss.to_json()
    assert (tmp_path / "c.training").exists()
    # Finished, it is read and not trained again; another release is another run.
    assert torch.equal(flat(trained(checkpoint=path).network), flat(whole.network))
    with pytest.raises(OtherRun, match="release"):
        trained(checkpoint=path, release=0.4)


def test_anew_is_a_search_and_a_retraining() -> None:
    network, result = trained(retrain="anew", arms="default")
    common: Any = {"recipe": QUICK, "device": "cpu"}
    apart = search(linear_factory(), blobs(), arms="default", **common)
    assert record(result) == record(apart)
    model = retrain(linear_factory(), blobs(), apart, **common)
    assert torch.equal(flat(network), flat(model))


def test_a_race_comes_first_and_its_winner_trains_on() -> None:
    network, result = trained(arms="default")
    assert result.arm is not None
    assert len(result.race) > 1
    assert result.training_runs > 1.0
    assert network(blobs().inputs).shape == (len(blobs()), 3)


@pytest.mark.parametrize("asked", [False, True])
def test_a_validation_set_is_released_only_if_asked(asked: bool) -> None:
    validation = Recording()
    given: Any = {"data": Recording(), "validation": validation, "release_validation": asked}
    searched: list[int] = []

    def listen(progress: Progress) -> None:
        if progress.phase == "search" and progress.step == progress.total:
            searched.append(len(validation.read))

    trained(progress=listen, settings=SearchSettings(every=1000), **given)
    # 30 steps of 32 examples read each of the 172 of either set some three times.
    late = np.bincount(validation.read[searched[0] :], minlength=len(validation))
    assert (late.mean() > 2.0) == asked


def test_what_cannot_be_one_run_is_refused() -> None:
    with pytest.raises(InputError, match="One run trains one network"):
        trained(settings=SearchSettings(folds=2))
    for release in (0.0, 1.0, "half"):
        with pytest.raises(InputError, match="release"):
            trained(release=release)
    with pytest.raises(InputError, match="retrain"):
        trained(retrain="later")
    with pytest.raises(TrainingDiverged) as stopped:
        trained(recipe=Recipe(min_steps=60, optimizer="sgd", lr=1e25, max_grad_norm=1e30))
    assert isinstance(stopped.value.partial, SearchResult)


def test_it_has_every_option_of_search() -> None:
    options = list(inspect.signature(search).parameters)[2:]
    assert [*SearchOptions.__annotations__] == options


def test_a_classifier_fits_in_one_run(tmp_path: Path) -> None:
    data = blobs()
    X, y = data.inputs.numpy(), np.array(["a", "b", "c"])[data.target.numpy()]
    options: Any = {"arms": None, "recipe": QUICK, "device": "cpu", "random_state": 0}
    model = AutoBalanceClassifier(retrain="continue", checkpoint=tmp_path, **options).fit(X, y)
    assert model.result_.training_runs == 1.0
    assert np.mean(model.predict(X) == y) > 0.6
    assert not any(tmp_path.iterdir())
    phases: list[str] = []

    def stop(progress: Progress) -> None:
        phases.append(progress.phase)
        if progress.phase == "retrain":
            raise KeyboardInterrupt

    model = AutoBalanceClassifier(retrain="continue", progress=stop, **options)
    with pytest.raises(Interrupted):
        model.fit(X, y)
    assert model.predict(X).shape == y.shape
    assert {*phases} >= {"search", "retrain"}
