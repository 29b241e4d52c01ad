"""Retraining with a fixed loss, and the shared lower level's own promises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, TrainingDiverged
from autobalance.bilevel import checkpoints, execution
from autobalance.bilevel.checkpoints import random_state
from autobalance.bilevel.execution import CHECK_EVERY, make_fabric, seed_random_state
from autobalance.bilevel.initialisation import init_bias_offset, make_optimizer
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.types import Interrupted, Progress
from autobalance.data.array_data import ArrayData
from autobalance.data.index_streams import ResampledBatches, ShuffledBatches
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.losses.published import DeferredLoss, FocalLoss, GroupDROLoss, with_normalized_head
from autobalance.objectives.aggregates import BalancedError
from autobalance.records.settings import Recipe
from helpers import blobs, linear_factory

QUICK = Recipe(epochs=1, min_steps=40, batch_size=32, lr=0.05)


def quick(
    factory: Callable[[], nn.Module] | None = None, data: ArrayData | None = None, **given: Any
) -> nn.Module:
    loss = given.pop("loss", ParametricCrossEntropy.cross_entropy())
    given = {"recipe": QUICK, "device": "cpu", **given}
    return retrain(factory or linear_factory(), data or blobs(), loss, **given)


def network() -> nn.Module:
    """Without a bias ahead of BatchNorm: its gradient is rounding alone, which Adam would blow up."""
    return nn.Sequential(
        nn.Linear(2, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def flat(model: nn.Module) -> Tensor:
    return torch.cat([v.double().reshape(-1) for v in model.state_dict().values()])


def error(model: nn.Module, data: ArrayData) -> float:
    return BalancedError().hard(predict_logits(model, data.inputs), data.target)


# Training -------------------------------------------------------------------------------------


def plain_torch(
    data: ArrayData, recipe: Recipe, seed: int, sampling: str = "shuffled"
) -> nn.Module:
    """The same run written out with torch alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().train()
        if recipe.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                model.parameters(),
                lr=0,
                momentum=0.9,
                nesterov=True,
                weight_decay=recipe.weight_decay,
            )
        else:
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=0, weight_decay=recipe.weight_decay
            )
        weight = ParametricCrossEntropy.class_weighted(data.counts()).weight
        generator = torch.Generator().manual_seed(seed)
        stream: Any = ShuffledBatches(len(data), recipe.batch_size, generator)
        if sampling == "balanced":
            stream = ResampledBatches(data.cells(), recipe.batch_size, generator)
        total = recipe.steps(len(data))
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.lr_factor(step, total)
            index = next(stream)
            optimizer.zero_grad()
            logits = model(data.inputs[index])
            nn.functional.cross_entropy(logits, data.target[index], weight).backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_is_the_plain_torch_loop(optimizer: Any, sampling: Any) -> None:
    data = blobs()
    recipe = Recipe(
        epochs=1, min_steps=30, batch_size=32, lr=0.05, optimizer=optimizer, max_grad_norm=0.5
    )
    loss = ParametricCrossEntropy.class_weighted(data.counts())
    found = quick(network, data, recipe=recipe, seed=7, loss=loss, sampling=sampling)
    expected = plain_torch(data, recipe, 7, sampling)
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-5, atol=1e-6)


def test_the_loss_given_is_the_one_trained_with() -> None:
    """Logit adjustment has the smaller balanced error, cross-entropy the smaller error."""
    data, test = blobs((300, 60, 20), spread=1.2), blobs((200, 200, 200), seed=1, spread=1.2)
    recipe = Recipe(epochs=1, min_steps=150, batch_size=64, lr=0.1)
    counts = data.counts()
    plain = quick(data=data, recipe=recipe)
    adjusted = quick(data=data, recipe=recipe, loss=ParametricCrossEntropy.logit_adjusted(counts))
    assert error(adjusted, test) < error(plain, test) - 0.1
    overall = [
        float((predict_logits(m, data.inputs).argmax(1) != data.target).float().mean())
        for m in (plain, adjusted)
    ]
    assert overall[0] < overall[1]


def test_returns_the_network_trained_in_evaluation_mode_on_the_cpu() -> None:
    data = blobs()
    model = quick(network)
    assert isinstance(model, nn.Sequential)  # the factory's own, unwrap
    assert not any(m.training for m in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert int(model.get_buffer("1.num_batches_tracked")) == 40
    assert error(model, data) < 0.4


def test_groups_reach_the_loss() -> None:
    data = blobs(groups=True)
    uneven = ParametricCrossEntropy(additive=[[0.0, 0.0, 0.0], [5.0, 0.0, -5.0]])
    even = ParametricCrossEntropy(additive=[[0.0, 0.0, 0.0]] * 2)
    assert not torch.allclose(
        flat(quick(data=data, loss=uneven)), flat(quick(data=data, loss=even))
    )
    with pytest.raises(InputError, match="rows for 2 groups: pass groups="):
        quick(data=blobs(), loss=uneven)


def test_sample_weights_reach_the_loss() -> None:
    """Weight 0 for a class is as if its examples taught nothing."""
    data = blobs((50, 50, 50))
    weighted = ArrayData.of(data.inputs, data.target, sample_weight=(data.target != 2).float())
    recipe = Recipe(epochs=1, min_steps=150, batch_size=64, lr=0.1)
    predicted = predict_logits(quick(data=weighted, recipe=recipe), data.inputs).argmax(1)
    assert 2 not in predicted.tolist()


class Recorded(nn.Module):
    """Cross-entropy that notes what it is called on."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[Tensor] = []

    def __deepcopy__(self, memo: Any) -> Recorded:
        return self

    def forward(self, logits: Tensor, target: Tensor, *, groups: Any = None, **_: Any) -> Tensor:
        self.cells.append(target if groups is None else 3 * groups + target)
        return nn.functional.cross_entropy(logits, target)


@pytest.mark.parametrize("groups", [False, True])
def test_balanced_sampling_shows_every_class_and_group_as_often(groups: bool) -> None:
    data, loss = blobs((300, 60, 12), groups=groups), Recorded()
    quick(data=data, loss=loss, sampling="balanced", recipe=Recipe(epochs=1, min_steps=200))
    shares = torch.bincount(torch.cat(loss.cells)).double() / (200 * 128)
    cells = 6 if groups else 3
    assert len(shares) == cells
    assert float((shares - 1 / cells).abs().max()) < 0.015  # five standard errors


def test_balanced_sampling_has_the_smaller_balanced_error() -> None:
    data, test = blobs((300, 60, 20), spread=1.2), blobs((200, 200, 200), seed=1, spread=1.2)
    recipe = Recipe(epochs=1, min_steps=150, batch_size=64, lr=0.1)
    plain, balanced = (
        error(quick(data=data, recipe=recipe, sampling=sampling), test)
        for sampling in ("shuffled", "balanced")
    )
    assert balanced < plain - 0.1


# Losses that change -----------------------------------------------------------------------------


def test_a_deferred_loss_switches_at_its_step() -> None:
    first, then = Recorded(), Recorded()
    for loss in (first, then):
        loss.to_dict = dict  # type: ignore[method-assign]
    quick(loss=DeferredLoss(first, then, start=0.8))
    assert (len(first.cells), len(then.cells)) == (32, 8)  # of 40 steps


def test_a_deferred_loss_is_the_first_then_the_second() -> None:
    """Never reached it is the first; and it is left as it was given."""
    first, then = ParametricCrossEntropy.cross_entropy(), FocalLoss()
    deferred = DeferredLoss(first, then, start=0.999)
    assert torch.equal(flat(quick(loss=deferred)), flat(quick(loss=first)))
    assert not torch.equal(flat(quick(loss=DeferredLoss(first, then))), flat(quick(loss=first)))
    assert not deferred.started


def dro() -> GroupDROLoss:
    loss = GroupDROLoss(2, step_size=0.5)
    loss.q = torch.tensor([0.3, 0.7])
    return loss


def test_a_loss_with_a_state_starts_from_it_and_is_left_as_it_was() -> None:
    data, loss = blobs(groups=True), dro()
    found = quick(data=data, loss=loss)
    assert loss.q.tolist() == dro().q.tolist()
    assert torch.equal(flat(quick(data=data, loss=loss)), flat(found))
    even = quick(data=data, loss=GroupDROLoss(2, step_size=0.5))
    assert not torch.equal(flat(even), flat(found))
    fixed = quick(data=data, loss=dro().eval())  # whose weights do not move
    assert not torch.equal(flat(fixed), flat(found))


# Repeating ------------------------------------------------------------------------------------


def test_one_seed_gives_one_network_bit_for_bit_and_touches_no_random_state() -> None:
    first = quick(network, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.random.get_rng_state()
        second = quick(network, seed=3)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(flat(first), flat(second))
    assert not torch.equal(flat(first), flat(quick(network, seed=4)))


def test_seeded_gives_the_random_state_back_after_an_error() -> None:
    before = torch.random.get_rng_state()
    drawn: list[Tensor] = []

    def fail() -> None:
        with seed_random_state(3):
            drawn.append(torch.rand(2))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(torch.random.get_rng_state(), before)
    with seed_random_state(3):
        assert torch.equal(torch.rand(2), drawn[0])


def test_progress_is_told() -> None:
    seen: list[Progress] = []
    quick(recipe=Recipe(epochs=1, min_steps=50, batch_size=32), progress=seen.append)
    assert seen == [Progress("retrain", step, 50) for step in (20, 40, 50)]


# Resuming -------------------------------------------------------------------------------------


def test_a_killed_run_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.step >= 20:
            raise Killed

    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "retrain.checkpoint"
    whole = quick(network, seed=2)
    with pytest.raises(Killed):
        quick(network, seed=2, checkpoint=path, progress=kill)
    seen: list[Progress] = []
    found = quick(network, seed=2, checkpoint=path, progress=seen.append)
    assert torch.equal(flat(found), flat(whole))
    assert [progress.step for progress in seen] == [40]
    assert torch.equal(flat(quick(network, seed=2, checkpoint=path)), flat(whole))


@pytest.mark.parametrize(
    "given",
    [
        {"loss": dro()},
        {"loss": DeferredLoss(ParametricCrossEntropy.cross_entropy(), FocalLoss(), 0.4)},
        {"loss": DeferredLoss(ParametricCrossEntropy.cross_entropy(), FocalLoss(), 0.7)},
        {"sampling": "balanced"},
    ],
    ids=["group DRO", "switched before", "switches after", "balanced"],
)
def test_a_killed_run_remembers_its_loss_and_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.step >= 20:
            raise Killed

    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    given = {"data": blobs(groups=True), **given}
    whole = quick(network, **given)
    with pytest.raises(Killed):
        quick(network, **given, checkpoint=tmp_path / "c", progress=kill)
    found = quick(network, **given, checkpoint=tmp_path / "c")
    assert torch.equal(flat(found), flat(whole))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"seed": 1}, "its seed is 0, this run's is 1"),
        ({"sampling": "balanced"}, 'its sampling is "shuffled", this run\'s is "balanced"'),
        ({"loss": ParametricCrossEntropy.logit_adjusted([3, 2, 1])}, "its loss is another"),
        ({"recipe": replace(QUICK, min_steps=50)}, "its recipe.min_steps is 40, this run's is 50"),
        ({"data": blobs(seed=3)}, "its training data are others"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, changed: dict[str, Any], part: str
) -> None:
    quick(checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match=rf"of another run: {part}\. Go on with"):
        quick(**changed, checkpoint=tmp_path / "c")


# Failing --------------------------------------------------------------------------------------


class NanAfter(nn.Module):
    def __init__(self, passes: int) -> None:
        super().__init__()
        self.linear, self.left = nn.Linear(2, 3), passes

    def forward(self, inputs: Tensor) -> Tensor:
        self.left -= 1
        return self.linear(inputs) * (torch.nan if self.left < 0 else 1.0)


def test_a_loss_that_becomes_non_finite_ends_the_run() -> None:
    with pytest.raises(
        TrainingDiverged, match=r"non-finite at step 26 of 40 \(loss nan, .*Recipe\(.*lr=0.05"
    ) as raised:
        quick(lambda: NanAfter(25))
    assert raised.value.step == 26
    kept = raised.value.partial
    assert isinstance(kept, NanAfter)
    assert torch.isfinite(kept.linear.weight).all()


def test_a_gradient_that_becomes_non_finite_ends_it_too() -> None:
    class Steep(nn.Module):
        """Finite logits, infinite slope: the square root at 0."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.bias.sqrt() + 0.0 * inputs.sum(dim=1, keepdim=True)

    with pytest.raises(TrainingDiverged, match=r"step 1 of 40 \(loss 1\.\d+, gradient norm") as e:
        quick(Steep)
    assert isinstance(e.value.partial, Steep)
    assert not e.value.partial.bias.any()


def test_an_enormous_learning_rate_diverges() -> None:
    recipe = Recipe(epochs=1, min_steps=40, lr=1e30, optimizer="sgd")
    with pytest.raises(TrainingDiverged, match=r"lr=1e\+30.*Lower lr or max_grad_norm") as raised:
        quick(network, recipe=recipe)
    assert raised.value.step > 1


def test_diverging_keeps_the_last_good_weights() -> None:
    """Weights, and BatchNorm's statistics, of before the steps that went wrong."""
    calls = 0

    class Spoiled(nn.Module):
        def forward(self, *_: Any, **__: Any) -> Tensor:
            nonlocal calls
            calls += 1
            value: Tensor = ParametricCrossEntropy.cross_entropy()(*_, **__)
            return value * (float("nan") if calls == 32 else 1.0)

    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    with pytest.raises(TrainingDiverged) as raised:
        quick(normed, loss=Spoiled(), recipe=Recipe(epochs=1, min_steps=60))
    kept = raised.value.partial
    assert raised.value.step == 32
    assert isinstance(kept, nn.Module)
    assert not kept.training
    assert int(kept[1].num_batches_tracked) == 20

    def stop(progress: Progress) -> None:
        if progress.step == 20:
            raise KeyboardInterrupt

    loss = ParametricCrossEntropy.cross_entropy()
    with pytest.raises(Interrupted) as stopped:
        quick(normed, loss=loss, recipe=Recipe(epochs=1, min_steps=60), progress=stop)
    assert torch.equal(flat(kept), flat(stopped.value.partial))


def test_ctrl_c_keeps_the_network_so_far() -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 40:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="interrupted") as raised:
        quick(network, seed=2, progress=stop)
    assert torch.equal(flat(raised.value.partial), flat(quick(network, seed=2)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"factory": linear_factory(4)}, r"4 logits .* 3 classes"),
        ({"factory": nn.Flatten}, "The network has no trainable parameter"),
        ({"data": [1, 2]}, "data must be an ArrayData or a Dataset; got list"),
        ({"factory": dict}, "must return a torch.nn.Module; got dict"),
        ({"device": "abacus"}, "The device 'abacus' cannot be used here"),
        ({"sampling": "even"}, "sampling must be one of balanced, shuffled; got 'even'"),
        (
            {"loss": ParametricCrossEntropy.logit_adjusted([5, 3])},
            "parameters for 2 classes, but the network returned logits of width 3",
        ),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(**given)


# Pieces ---------------------------------------------------------------------------------------


def test_only_trainable_weights_are_optimised() -> None:
    model = network()
    model[0].requires_grad_(False)
    held = {id(p) for g in make_optimizer(model, QUICK).param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_predict_logits_is_in_evaluation_mode_and_gives_modes_back() -> None:
    model = network()
    model[3].eval()
    modes = [m.training for m in model.modules()]
    inputs = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    found = predict_logits(model, inputs, batch_size=3)
    assert [m.training for m in model.modules()] == modes
    assert int(model[1].num_batches_tracked) == 0
    torch.testing.assert_close(found, model.eval()(inputs).detach(), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


@pytest.mark.parametrize("remembered", [1, 3])
def test_the_lower_level_keeps_its_last_batches(remembered: int) -> None:
    """And they come back with its state."""

    def lower() -> LowerLevel:
        with seed_random_state(0):
            options = TrainingOptions(QUICK, remembered=remembered)
            return LowerLevel(network, blobs(), options, make_fabric("cpu"))

    first, loss = lower(), Recorded()
    assert len(first.recent) == 0
    for _ in range(5):
        first.step(loss)
        assert len(first.recent) == min(len(loss.cells), remembered)
    kept = loss.cells[-remembered:]
    assert all(torch.equal(b.target, y) for b, y in zip(first.recent, kept, strict=True))
    second = lower()
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(a.inputs, b.inputs) for a, b in zip(first.recent, second.recent, strict=True)
    )


def test_make_fabric_on_the_cpu() -> None:
    assert make_fabric("cpu").device == torch.device("cpu")


def test_an_index_is_refused_where_several_processes_share_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is built; where each has a machine for itself the index counts."""
    built: list[dict[str, Any]] = []

    class Recording:
        def __init__(self, **options: Any) -> None:
            built.append(options)

        def launch(self) -> None: ...

    monkeypatch.setattr(execution, "Fabric", Recording)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for local in ("2", None):  # without it all are on this machine
        if local is None:
            monkeypatch.delenv("LOCAL_WORLD_SIZE")
        else:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        with pytest.raises(InputError, match=f'Each of the {local or 4}.*Give device "cuda"'):
            make_fabric("cuda:1")
    assert not built
    make_fabric("cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    make_fabric("cuda:1")
    assert [(b["devices"], b["num_nodes"]) for b in built] == [(4, 1), ([1], 4)]
    monkeypatch.setenv("WORLD_SIZE", "1")
    make_fabric("cuda:1")
    assert (built[-1]["devices"], "strategy" in built[-1]) == ([1], False)


def test_a_run_on_the_cpu_starts_nothing_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their seed, which torch keeps for later, comes back as well; once they are in use, their states."""

    def started(*_: Any) -> Tensor:
        raise AssertionError("CUDA was started")

    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", started)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(11)
    with seed_random_state(3):
        assert random_state()["cuda"] == []
    assert seeds == [11, 3, 11]
    restored: list[tuple[Tensor, int]] = []
    states = [torch.tensor(0), torch.tensor(1)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *a: restored.append(a))
    with seed_random_state(4):
        assert not restored
    assert restored == [(states[0], 0), (states[1], 1)]
    assert seeds == [11, 3, 11, 4]


def test_whole_numbers_of_numpy_serve_as_data() -> None:
    data = ArrayData.of(np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 3)
    assert isinstance(quick(data=data), nn.Linear)


# Where training starts ------------------------------------------------------------------------


def biases_at_the_start(share: float, loss: ParametricCrossEntropy) -> Tensor:
    """The last bias less that of the same network untouched, before the first step."""
    data = images_data()
    recipe = Recipe(epochs=1, min_steps=1, absorb=share)
    torch.manual_seed(0)
    lower = LowerLevel(
        lambda: linear_network(data),
        data,
        TrainingOptions(recipe),
        make_fabric("cpu"),
        additive=loss.additive,
    )
    torch.manual_seed(0)
    last, untouched = lower.module[-1], linear_network(data)[-1]
    assert isinstance(last, nn.Linear)
    return last.bias.detach() - untouched.bias.detach()


def images_data() -> ArrayData:
    target = torch.tensor([0] * 6 + [1] * 3 + [2])
    return ArrayData.of(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), target)


def linear_network(data: ArrayData) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, data.num_classes))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_last_bias_starts_lower_by_the_additive_adjustments(share: float) -> None:
    loss = ParametricCrossEntropy.logit_adjusted([6, 3, 1])
    assert loss.additive is not None
    expected = -share * (loss.additive - loss.additive.mean())
    torch.testing.assert_close(biases_at_the_start(share, loss), expected)


def test_all_of_it_absorbed_is_cross_entropy_adjusted_post_hoc() -> None:
    """Plain SGD without decay moves both the same way; only the offset tells them apart."""
    data = images_data()
    loss = ParametricCrossEntropy.logit_adjusted([6, 3, 1])
    recipe = Recipe(optimizer="sgd", lr=0.1, weight_decay=0.0, epochs=1, min_steps=20)
    common: dict[str, Any] = {"recipe": recipe, "seed": 3, "device": "cpu"}
    adjusted = retrain(lambda: linear_network(data), data, loss, **common)
    plain = retrain(lambda: linear_network(data), data, ParametricCrossEntropy(), **common)
    assert loss.additive is not None
    shift = loss.additive - loss.additive.mean()
    with torch.no_grad():
        torch.testing.assert_close(
            adjusted(data.inputs), plain(data.inputs) - shift, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_leaves_what_was_absorbed(optimizer: Any) -> None:
    data = images_data()
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=5.0, epochs=1, min_steps=60)
    loss = ParametricCrossEntropy(additive=[0.0, -4.0, -8.0])
    network: Any = retrain(lambda: linear_network(data), data, loss, recipe=recipe, device="cpu")
    with torch.no_grad():
        logits = network(data.inputs).mean(dim=0)
    assert logits[2] - logits[0] > 5.0


def test_networks_without_a_fitting_last_layer_start_as_they_are() -> None:
    for network in (nn.Linear(4, 3, bias=False), nn.Linear(4, 5), nn.Conv2d(1, 3, 1)):
        before = {name: p.clone() for name, p in network.state_dict().items()}
        found = init_bias_offset(network, torch.tensor([0.0, -1.0, -2.0]), np.array([6, 3, 1]))
        assert found is None
        assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())


def test_a_cosine_head_absorbs_nothing_nor_does_the_layer_before_it() -> None:
    network = with_normalized_head(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)), 16.0)
    before = copy.deepcopy(network.state_dict())
    assert init_bias_offset(network, torch.tensor([0.0, -1.0, -2.0]), np.array([6, 3, 1])) is None
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_of_groups_the_mean_over_the_examples_is_absorbed() -> None:
    network = nn.Linear(4, 2)
    before = network.bias.detach().clone()
    init_bias_offset(network, torch.tensor([[0.0, -2.0], [0.0, 2.0]]), np.array([[5, 1], [1, 1]]))
    torch.testing.assert_close(network.bias.detach() - before, torch.tensor([-0.5, 0.5]))


# On a GPU losses are looked at now and then -----------------------------------------------------


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "autobalance.bilevel.lower_level.check_interval", lambda device: CHECK_EVERY
    )


def weights_of(module: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("factor", [1.0, float("nan")])
@pytest.mark.parametrize("at", [1, 20, 21, 22, 32, 40, 57])
def test_looking_at_losses_seldom_changes_nothing(
    at: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, step, message and what is kept of a run that diverges are those of looking always."""

    class Spoiled(Recorded):
        def forward(self, *args: Any, **options: Any) -> Tensor:
            return super().forward(*args, **options) * (factor if len(self.cells) == at else 1.0)

    def found() -> Any:
        try:
            return weights_of(quick(loss=Spoiled(), recipe=Recipe(epochs=1, min_steps=60)))
        except TrainingDiverged as error:
            return {"step": error.step, "said": str(error), **weights_of(error.partial)}

    always = found()
    monkeypatch.setattr(
        "autobalance.bilevel.lower_level.check_interval", lambda device: CHECK_EVERY
    )
    assert str(found()) == str(always)
    assert ("step" in always) == (factor != 1.0)


@pytest.mark.usefixtures("seldom")
def test_a_state_is_looked_at_before_it_is_kept() -> None:
    with seed_random_state(0):
        lower = LowerLevel(lambda: NanAfter(3), blobs(), TrainingOptions(QUICK), make_fabric("cpu"))
    for _ in range(6):
        lower.step(ParametricCrossEntropy.cross_entropy())
    with pytest.raises(TrainingDiverged, match="non-finite at step 4 of 40"):
        lower.state_dict()


# Mixed precision ------------------------------------------------------------------------------


def test_bfloat16_trains_about_the_same_network() -> None:
    full, mixed = quick(), quick(precision="bf16-mixed")
    for a, b in zip(full.parameters(), mixed.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_an_unknown_precision() -> None:
    with pytest.raises(InputError, match="precision must be one of 32-true, bf16-mixed; got '16'"):
        quick(precision="16")
