"""A class for each pixel: data, splits, the hypergradient and a whole search on made images."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from autobalance._validation import InputError
from autobalance.bilevel.held_out import images_of, splits_of
from autobalance.bilevel.image_bootstrap import compare_by_image
from autobalance.bilevel.loss_tuner import LossTuner
from autobalance.bilevel.network_search import search
from autobalance.bilevel.prediction import predict_decisions, predict_logits
from autobalance.bilevel.retraining import retrain
from autobalance.calibration.temperature import corrected_probabilities, fit_temperature
from autobalance.cli.run_folder import save_search
from autobalance.data.array_data import ArrayData, concatenated
from autobalance.data.batches import Batch
from autobalance.data.dataset_data import DatasetData
from autobalance.export import export_model
from autobalance.functional.model import flatten, unflatten
from autobalance.hypergrad.implicit import hypergradient
from autobalance.hypergrad.solvers import Exact, SingleLoop
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives.aggregates import BalancedError, WorstError
from autobalance.objectives.base import Objective
from autobalance.objectives.iou import MeanIoU
from autobalance.objectives.surrogates import CrossEntropyRisk, SmoothError
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.class_space import ClassSpace
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from hypergradient_oracle import DECAY, SMOOTH, retrained

K = 3
RECIPE = Recipe(epochs=2, batch_size=8, min_steps=40, lr=0.05)


def made(n: int = 24, seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images of noise on a square in each and a small one in every third; a line of pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.zeros(n, size, size, dtype=torch.long)
    for i in range(n):
        a, b = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        target[i, a : a + size // 3, b : b + size // 3] = 1
        if i % 3 == 0:
            target[i, a : a + 2, b : b + 2] = 2
    noise = torch.randn(n, K, size, size, generator=generator)
    inputs = F.one_hot(target, K).movedim(-1, 1) + 0.8 * noise
    target[:, 0] = 255
    return inputs, target


def made_data(n: int = 24, seed: int = 0, **options: Any) -> ArrayData:
    return ArrayData.of(*made(n, seed), ignore_index=255, **options)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(K, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, K, 1)
    )


# Data -----------------------------------------------------------------------------------------


def test_counts_are_of_pixels_and_effective_ones_of_images() -> None:
    data, (_, target) = made_data(), made()
    expected = np.bincount(target[target != 255], minlength=K)
    assert data.counts().tolist() == expected.tolist()
    assert data.masses().tolist() == expected.tolist()
    present = [int((target == c).flatten(1).any(dim=1).sum()) for c in range(K)]
    assert data.effective_counts().tolist() == present
    assert data.dense
    assert data.target.dtype == torch.int16
    batch = data.batch(torch.tensor([3, 5]))
    assert batch.target.dtype == torch.int64
    assert torch.equal(batch.target.where(batch.target != -100, 255), target[[3, 5]])


def test_counts_with_groups_and_weights_are_those_of_the_pixels() -> None:
    groups, weight = torch.arange(24) % 2, torch.linspace(1.0, 2.0, 24)
    data = made_data(groups=groups, sample_weight=weight)
    pixels = data.pixels()
    assert not pixels.dense
    assert np.array_equal(data.counts(), pixels.counts())
    np.testing.assert_allclose(data.masses(), pixels.masses(), rtol=1e-12)
    assert (data.effective_counts() <= 12).all()
    rows = data.rows_of(torch.arange(24)[:, None, None].expand(data.target.shape))
    assert torch.equal(pixels.groups, rows % 2)


def test_splits_hold_out_whole_images_of_every_rarest_class() -> None:
    data = made_data(30)
    cells = data.cells()
    assert cells.shape == (30,)
    assert torch.equal(cells == 2, torch.arange(30) % 3 == 0)
    assert (cells > 0).all()  # every image has a square
    [(train, held)] = splits_of(data, None, SearchSettings(validation_fraction=0.2), seed=0)
    assert (len(train), len(held)) == (24, 6)
    assert torch.bincount(held.cells(), minlength=3).tolist() == [0, 4, 2]
    images = images_of([(train, held)])
    assert torch.equal(images, torch.arange(6).repeat_interleave(15 * 16))


def test_predictions_are_of_the_pixels_that_count() -> None:
    data, model = made_data(), network()
    logits = predict_logits(model, data)
    assert logits.shape == (24, K, 16, 16)
    expected = data.rows_of(logits.argmax(dim=1))
    assert torch.equal(predict_decisions(model, data), expected)
    assert torch.equal(data.rows_of(logits).argmax(dim=1), expected)


def test_a_target_of_one_dimension_of_pixels_is_asked_for() -> None:
    target = torch.tensor([[0, 2, 1], [1, 0, 0]])
    with pytest.raises(InputError, match=r"shape \(n,\); .* dense=True"):
        ArrayData.of(torch.zeros(2, 4, 3), target)
    data = ArrayData.of(torch.zeros(2, 4, 3), target, dense=True)
    assert data.dense
    assert data.counts().tolist() == [3, 2, 1]
    assert ArrayData.of(torch.zeros(2, 4, 3), target.clamp(max=1)).has_labels


def test_an_image_of_ignored_pixels_alone_is_left_out_with_a_warning() -> None:
    inputs, target = made()
    target[4] = 255
    with pytest.warns(UserWarning, match="1 of 24 images .* such as number 4"):
        data = ArrayData.of(inputs, target, ignore_index=255, groups=torch.arange(24))
    assert len(data) == 23
    assert data.groups is not None
    assert 4 not in data.groups.tolist()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda y: y, {"num_classes": K}, r"24 of 96 pixels .* above 2, such as 255 at \[0, 0, 0\]"),
        (lambda y: y - 1, {}, r"66 pixels are below, such as -1 at \[0, 1, 0\].*ignore_index="),
        (lambda y: y.float(), {"ignore_index": 255}, "one class per pixel; got torch.float32.*argmax"),
        (lambda y: y * 0 + 255, {"ignore_index": 255}, "Every pixel of the target is 255"),
        (lambda y: y[:4], {"ignore_index": 255}, "4"),
    ],
    ids=["too high", "negative", "floats", "nothing labelled", "length"],
)  # fmt: skip
def test_bad_targets(change: Any, options: dict[str, Any], message: str) -> None:
    inputs, target = torch.zeros(6, 1, 4, 4), torch.zeros(6, 4, 4, dtype=torch.long)
    target[0, 3, 3], target[1, 2] = 1, 2
    target[:, 0] = 255
    target[0, 2, 2] = 1
    with pytest.raises(InputError, match=message):
        ArrayData.of(inputs, change(target), **options)


def test_validation_of_another_size_is_refused() -> None:
    inputs, target = made()
    small = ArrayData.of(inputs, target[:, :8], ignore_index=255)
    with pytest.raises(
        InputError, match=r"targets must have the same labels or pixels .* \(16, 16\) and \(8, 16\)"
    ):
        concatenated(made_data(), small)
    flat = ArrayData.of(inputs, torch.arange(24) % 3)
    with pytest.raises(InputError, match=r"targets must have the same labels or pixels"):
        search(network, made_data(), validation=flat, recipe=RECIPE, device="cpu")


# The hypergradient ----------------------------------------------------------------------------


def batches(seed: int = 0) -> tuple[Batch, Batch]:
    """A training and a validation batch in float64, with groups and weights of the images."""
    pairs = []
    for n, s in ((6, seed), (9, seed + 1)):
        inputs, target = made(n, s, size=6)
        target[target == 255] = -100
        weight = torch.linspace(0.5, 1.5, n).double()
        pairs.append(Batch(inputs.double(), target, torch.arange(n) % 2, weight))
    return pairs[0], pairs[1]


def as_examples(batch: Batch) -> Batch:
    """Each pixel that counts as an example of its own, for a network of 1 x 1 convolutions."""
    kept = batch.target != -100
    assert batch.groups is not None
    assert batch.sample_weight is not None
    groups, weight = (
        v[:, None, None].expand_as(kept)[kept] for v in (batch.groups, batch.sample_weight)
    )
    return Batch(batch.inputs.movedim(1, -1)[kept], batch.target[kept], groups, weight)


def pointwise() -> tuple[nn.Module, nn.Module]:
    """A network of 1 x 1 convolutions, and the same of linear layers."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(K, 5), nn.Tanh(), nn.Linear(5, K)).double()
    dense = nn.Sequential(nn.Conv2d(K, 5, 1), nn.Tanh(), nn.Conv2d(5, K, 1)).double()
    for one, other in zip(dense.parameters(), linear.parameters(), strict=True):
        one.data = other.detach().reshape(one.shape).clone()
    return dense, linear


SPACES = {
    "hierarchical": lambda: HierarchicalSpace([60, 20, 5], learn=["weight", "additive", "multiplicative"]),
    "groups": lambda: GroupSpace([[30, 10, 3], [30, 10, 2]]),
}  # fmt: skip


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "objective",
    [BalancedError(), WorstError(over="class_and_group", surrogate=CrossEntropyRisk()), MeanIoU()],
    ids=lambda o: type(o).__name__,
)
def test_equals_that_of_the_pixels_as_examples(
    objective: Objective, space: str, curvature: Any
) -> None:
    """Of a network that sees each pixel alone, in float64: to rounding, with an exact solver."""
    loss = TunableCrossEntropy(SPACES[space]()).double()
    solver = Exact(damping=0.01, curvature=curvature)
    train, held = batches()
    dense, linear = pointwise()
    found = hypergradient(dense, loss, objective, train, held, solver=solver, weight_decay=DECAY)
    expected = hypergradient(
        linear, loss, objective, as_examples(train), as_examples(held), solver=solver, weight_decay=DECAY
    )  # fmt: skip
    one, other = flatten(found.gradients), flatten(expected.gradients)
    assert float(other.norm()) > 1e-6
    assert float((one - other).norm() / other.norm()) < 1e-9
    assert found.objective == pytest.approx(expected.objective, rel=1e-10)
    assert found.hard_objective == pytest.approx(expected.hard_objective, abs=1e-12)
    assert found.predicted == expected.predicted
    assert found.derivative == "forward"


@pytest.mark.parametrize("objective", [SMOOTH, MeanIoU(surrogate=SmoothError(temperature=1.0))])
def test_equals_finite_differences_of_retraining(objective: Objective) -> None:
    """One 3 x 3 convolution: the lower level is convex, and its Gauss-Newton matrix the Hessian."""
    train, held = (Batch(b.inputs, b.target) for b in batches(3))
    space = ClassSpace([60, 20, 5], learn=["weight", "additive", "multiplicative"])
    loss = TunableCrossEntropy(space).double()
    start = nn.Conv2d(K, K, 3, padding=1).double()
    with torch.no_grad():
        for p in start.parameters():
            p.zero_()
    model = retrained(loss, train, start)
    found = hypergradient(model, loss, objective, train, held, solver=Exact(), weight_decay=DECAY)
    free, h = list(loss.space.parameters()), 1e-4

    def value(step: Tensor) -> float:
        moved = copy.deepcopy(loss)
        with torch.no_grad():
            for p, part in zip(moved.space.parameters(), unflatten(step, free), strict=True):
                p += part
        return float(objective(retrained(moved, train, model)(held.inputs).detach(), held.target))

    unit = h * torch.eye(sum(p.numel() for p in free), dtype=torch.float64)
    expected = torch.tensor([(value(e) - value(-e)) / (2 * h) for e in unit]).double()
    assert float(expected.norm()) > 1e-3
    assert float((flatten(found.gradients) - expected).norm() / expected.norm()) < 1e-4
    assert found.solution.residual < 1e-10


def test_ignore_index_is_the_losss_own() -> None:
    """Of the training and of the validation batch alike."""
    dense, _ = pointwise()
    results = []
    for ignored in (-100, 255):
        loss = TunableCrossEntropy(HierarchicalSpace([60, 20, 5]), ignore_index=ignored).double()
        pair = [Batch(b.inputs, b.target.where(b.target != -100, ignored)) for b in batches()]
        results.append(hypergradient(dense, loss, BalancedError(), *pair, solver=SingleLoop()))
    assert torch.equal(flatten(results[0].gradients), flatten(results[1].gradients))
    assert results[0].objective == results[1].objective


# LossTuner ------------------------------------------------------------------------------------


def tuner(**options: Any) -> LossTuner:
    return LossTuner(TunableCrossEntropy(HierarchicalSpace([5000, 800, 30]), **options))


def test_a_tuner_moves_the_loss_and_leaves_the_network() -> None:
    torch.manual_seed(0)
    model, inputs_and_target = network(), made()
    before = copy.deepcopy(model.state_dict())
    tune = tuner(ignore_index=255)
    upper = tune.step(model, inputs_and_target, made(seed=1))
    assert not upper.skipped
    assert upper.norm > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, :8], r"expected target of shape \(24, 16, 16\), got \(24, 8, 16\)"),
        (lambda y: y * 0 + 255, "Every pixel of the validation batch is 255"),
        (lambda y: y.where(y != 2, 7), r"must lie in 0..2; .* such as 7 at \["),
        (lambda y: y[:5], r"inputs \(24, 3, 16, 16\), target \(5, 16, 16\)"),
    ],
    ids=["size", "ignored", "range", "length"],
)
def test_bad_validation_batches(change: Any, message: str) -> None:
    inputs, target = made()
    with pytest.raises(InputError, match=message):
        tuner(ignore_index=255).step(network(), (inputs, target), (inputs, change(target)))


# The whole search -----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["balanced_error", "mean_iou"])
def test_search_and_retrain(objective: str) -> None:
    data, test = made_data(30), made_data(30, seed=1)
    settings = SearchSettings(every=4, folds=2)
    result = search(
        network,
        data,
        objective=objective,
        test=test,
        recipe=RECIPE,
        settings=settings,
        device="cpu",
    )
    held = result.held_out
    assert held is not None
    assert np.sum(held.n) == 2 * len(splits_of(data, None, settings, 0)[0][1]) * 15 * 16
    assert held.effective is not None
    assert np.max(held.effective) <= 12
    assert result.calibration is not None
    assert [c.name for c in result.candidates] == ["designed", "start", "cross_entropy"]
    assert all(0 < c.standard_error < 0.5 for c in result.candidates if c.name != "start")
    assert result.settings["class_counts"] == data.counts().tolist()
    assert "class 2" in result.summary()
    model = retrain(network, data, result, recipe=RECIPE, device="cpu")
    pixels = test.pixels()
    wrong = predict_decisions(model, test) != pixels.target
    errors = [float(wrong[pixels.target == c].float().mean()) for c in range(K)]
    assert np.mean(errors) < 0.45  # by chance 0.67
    again = search(
        network,
        data,
        objective=objective,
        test=test,
        recipe=RECIPE,
        settings=settings,
        device="cpu",
    )
    assert again.loss.to_json() == result.loss.to_json()


def test_a_result_has_its_report_and_the_network_its_program(tmp_path: Path) -> None:
    data = made_data()
    settings = SearchSettings(every=4)
    result = search(
        network, data, objective="mean_iou", recipe=RECIPE, settings=settings, device="cpu"
    )
    page = save_search(tmp_path / "run", result, data).read_text()
    assert "mean IoU error" in page
    assert "io u" not in page
    summary = " ".join(result.summary().split())
    assert f"{24 * 15 * 16:,} pixels of 3 classes in 24 training images" in summary
    model = retrain(network, data, result, recipe=RECIPE, device="cpu")
    program = torch.export.load(export_model(model, data.inputs[:3], tmp_path / "m.pt2")).module()
    torch.testing.assert_close(program(data.inputs), predict_logits(model, data))


def test_the_mark_of_ignored_pixels_left_in_the_masks_is_named() -> None:
    with pytest.raises(InputError, match=r"without any: 252, such as .* give ignore_index=255"):
        search(network, ArrayData.of(*made()), recipe=RECIPE, device="cpu")


def test_groups_are_of_the_images() -> None:
    data = made_data(30, groups=torch.arange(30) % 2)
    result = search(
        network, data, objective="worst_group_error", recipe=RECIPE, device="cpu",
        settings=SearchSettings(every=8),
    )  # fmt: skip
    assert result.loss.num_groups == 2
    assert np.shape(result.settings["class_counts"]) == (2, K)


def test_torchs_own_loss_can_be_retrained_with() -> None:
    model = retrain(network, made_data(), nn.CrossEntropyLoss(), recipe=RECIPE, device="cpu")
    assert predict_logits(model, made_data()).shape == (24, K, 16, 16)


def test_what_a_search_refuses() -> None:
    data = made_data()
    pooled = lambda: nn.Sequential(nn.Conv2d(K, K, 1), nn.MaxPool2d(2))  # noqa: E731
    with pytest.raises(InputError, match=r"shape \(8, 3, 16, 16\) .* got \(8, 3, 8, 8\).*upsample"):
        retrain(pooled, data, ParametricCrossEntropy(), recipe=RECIPE, device="cpu")
    with pytest.raises(InputError, match=r"returns 4 logits .* 3 classes"):
        retrain(
            lambda: nn.Conv2d(K, 4, 1), data, ParametricCrossEntropy(), recipe=RECIPE, device="cpu"
        )
    with pytest.raises(InputError, match="dense targets must move with them"):
        search(network, data, augment="shared", recipe=RECIPE, device="cpu")
    with pytest.raises(InputError, match="arms"):
        search(network, data, arms="default", recipe=RECIPE, device="cpu")


# Between candidates ---------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [BalancedError(), MeanIoU()], ids=lambda o: type(o).__name__)
def test_a_standard_error_is_of_images_not_of_pixels(objective: Objective) -> None:
    """Pixels repeated tenfold say no more; ten times as many images do."""
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.integers(0, K, 4000))
    first, second = (
        target.where(torch.from_numpy(rng.random(4000) < share), 0) for share in (0.7, 0.6)
    )
    images = torch.arange(4000) // 40

    def error(repeats: int, copies: int) -> tuple[float, float, float]:
        parts = [
            t.repeat_interleave(repeats).repeat(copies) for t in (first, second, target, images)
        ]
        shift = torch.arange(copies).repeat_interleave(4000 * repeats) * 100
        return compare_by_image(
            objective, (parts[0], parts[1]), parts[2], parts[3] + shift, (1, K), 0,
            np.ones(len(parts[0])),
        )  # fmt: skip

    once, dense, many = error(1, 1), error(10, 1), error(1, 10)
    assert once[:2] == pytest.approx(dense[:2], abs=1e-12)
    assert dense[2] == pytest.approx(once[2], rel=1e-9)
    assert many[2] == pytest.approx(once[2] / np.sqrt(10), rel=0.15)
    logits = F.one_hot(first, K).double()
    assert once[0] == pytest.approx(objective.hard(logits, target), abs=1e-12)


# Probabilities --------------------------------------------------------------------------------


def test_probabilities_and_temperature_of_dense_logits() -> None:
    data = made_data()
    logits = predict_logits(network(), data)
    loss = ParametricCrossEntropy.logit_adjusted(data.counts())
    found = corrected_probabilities(logits, loss, data.counts())
    assert found.shape == logits.shape
    rows = logits.movedim(1, -1).reshape(-1, K)
    expected = corrected_probabilities(rows, loss, data.counts())
    assert torch.equal(found.movedim(1, -1).reshape(-1, K), expected)
    one = fit_temperature(logits, data.target, loss, data.counts())
    labels = data.pixels().target
    assert one == fit_temperature(data.rows_of(logits), labels, loss, data.counts())


# Datasets -------------------------------------------------------------------------------------


class Masks(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks in pairs; with `flips` both are turned round at random, alike."""

    def __init__(self, n: int = 24, seed: int = 0, flips: bool = False) -> None:
        self.inputs, self.masks = made(n, seed)
        self.flips = flips

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.inputs[index], self.masks[index].to(torch.uint8)
        if self.flips and torch.rand(()) < 0.5:
            return pair[0].flip(-1), pair[1].flip(-1)
        return pair


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_is_as_its_arrays(workers: int) -> None:
    data = DatasetData.of(Masks(), dense=True, ignore_index=255, num_workers=workers)
    arrays = made_data()
    assert torch.equal(data.target, arrays.target)
    assert data.num_classes == K
    assert data.counts().tolist() == arrays.counts().tolist()
    assert torch.equal(data.cells(), arrays.cells())
    model = network()
    assert torch.equal(predict_decisions(model, data), predict_decisions(model, arrays))
    losses = [
        search(
            network, d, recipe=RECIPE, settings=SearchSettings(every=8), device="cpu"
        ).loss.to_json()
        for d in (data, arrays)
    ]
    assert losses[0] == losses[1]


def test_training_batches_have_the_targets_that_were_transformed_with_them() -> None:
    data = DatasetData.of(Masks(flips=True), evaluation=Masks(), dense=True, ignore_index=255)
    plain = Masks()
    index = torch.arange(24)
    batch = data.request(index, 5, training=True)()
    turned = (batch.inputs != plain.inputs).flatten(1).any(dim=1)
    assert 0 < int(turned.sum()) < 24
    expected = torch.where(turned[:, None, None], plain.masks.flip(-1), plain.masks)
    assert torch.equal(batch.target.where(batch.target != -100, 255), expected)
    fixed = data.batch(index)
    assert torch.equal(fixed.inputs, plain.inputs)
    assert torch.equal(fixed.target.where(fixed.target != -100, 255), plain.masks)


def test_a_tensor_dataset_of_masks_needs_no_option() -> None:
    inputs, target = made()
    data = DatasetData.of(torch.utils.data.TensorDataset(inputs, target), ignore_index=255)
    assert torch.equal(data.target, made_data().target)


def test_bad_datasets() -> None:
    with pytest.raises(InputError, match=r"transforms are random.*evaluation="):
        DatasetData.of(Masks(flips=True), dense=True, ignore_index=255)
    with pytest.raises(InputError, match=r"no class in 0..2, such as 255 at \[0, 0\] of example 0"):
        DatasetData.of(Masks(), dense=True, num_classes=3)
    with pytest.raises(InputError, match="leave target out"):
        DatasetData.of(Masks(), [0] * 24, dense=True)
    labels = torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.arange(4))
    with pytest.raises(InputError, match=r"one class per pixel; the batch .* has \(4,\)"):
        DatasetData.of(labels, dense=True)
    soft = torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.rand(4, 3, 3))
    with pytest.raises(InputError, match=r"Soft targets are not supported"):
        DatasetData.of(soft)


def test_the_page_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs/tutorials/segmentation.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": "page"})
    assert "torch.Size([30, 3, 16, 16])" in capsys.readouterr().out
