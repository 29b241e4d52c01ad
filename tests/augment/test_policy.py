"""Augmentation policies: rows, gates, gradients, priors, records and refusals."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import autobalance
from autobalance._validation import InputError
from autobalance.augment.augmentation import OPERATIONS, Augmentation
from autobalance.augment.images import Brightness, Flip, Rotation, ShiftX, image_operations
from autobalance.augment.operations import Operation
from autobalance.augment.policy import AugmentationPolicy, default_policy
from autobalance.augment.random_draws import row_of
from autobalance.augment.tensors import (
    GaussianNoise,
    Mixup,
    SphericalNoise,
    TensorOperation,
    tensor_operations,
)
from helpers import scatter

COUNTS = [40, 10, 3]
BY_GROUP = [[20, 5, 0], [9, 3, 4]]


def pictures(n: int = 12, channels: int = 3, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, channels, side, side, generator=generator, dtype=torch.float64)


def table(n: int = 12) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def labels(n: int = 12, classes: int = 3) -> Tensor:
    return torch.arange(n) % classes


def moved(
    counts: Any = COUNTS, operations: Sequence[Operation] | None = None, **options: Any
) -> AugmentationPolicy:
    policy = AugmentationPolicy(counts, operations or image_operations(), **options).double()
    scatter(policy)
    return policy


def drawn(module: Any, *batch: Any, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return module(*batch)


both_kinds = pytest.mark.parametrize(
    ("operations", "inputs"),
    [
        (image_operations(), pictures()),
        (image_operations(1), pictures(channels=1)),
        (tensor_operations(5), table()),
    ],
    ids=["colour", "grey", "table"],
)


# Rows -------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("gate", ["relaxed", "hard"])
def test_each_example_uses_its_own_class(
    operations: Sequence[Operation], inputs: Tensor, gate: str
) -> None:
    probability = torch.full((3, len(operations)), 0.9, dtype=torch.float64)
    magnitude = torch.full_like(probability, 0.8)
    probability[1] = 0.0
    augmentation = Augmentation(operations, probability, magnitude, gate=gate)
    changed = (drawn(augmentation, inputs, labels()) - inputs).flatten(1).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == (labels() != 1).tolist()


def test_magnitude_zero_leaves_a_class_alone() -> None:
    operations = [o for o in image_operations() if o.graded]
    magnitude = torch.full((3, len(operations)), 0.8, dtype=torch.float64)
    magnitude[2] = 0.0
    augmentation = Augmentation(operations, torch.ones_like(magnitude), magnitude)
    inputs = pictures()
    found = drawn(augmentation, inputs, labels())
    torch.testing.assert_close(found[2::3], inputs[2::3], rtol=0, atol=1e-12)
    assert float((found - inputs)[0::3].abs().mean()) > 0.01


def test_with_groups_the_cell_picks_the_row() -> None:
    probability = torch.zeros(2, 3, 1)
    probability[1, 2] = 1.0
    flip = Augmentation([Flip()], probability, probability)
    inputs, target, groups = pictures().float(), labels(), torch.arange(12) % 2
    found = flip(inputs, target, groups)
    cell = (target == 2) & (groups == 1)
    assert torch.equal(found[cell], inputs[cell].flip(-1))
    assert torch.equal(found[~cell], inputs[~cell])


def test_one_class_moves_and_the_others_stay() -> None:
    policy = AugmentationPolicy(COUNTS, [ShiftX(), Flip()])
    before = [t.detach().clone() for t in policy.tables()]
    with torch.no_grad():
        policy.eps_probability[1] += 1.0
        policy.eps_magnitude[1] -= 1.0
    for now, then, change in zip(policy.tables(), before, (1, -1), strict=True):
        assert torch.equal(now[[0, 2]], then[[0, 2]])
        assert torch.sign(now[1, 0] - then[1, 0]) == change


def test_tables_by_hand() -> None:
    policy = AugmentationPolicy([5, 9], [ShiftX(), Flip()], probability=0.4, magnitude=0.2)
    for now, start in zip(policy.tables(), ([0.4, 0.4], [0.2, 1.0]), strict=True):
        torch.testing.assert_close(now, torch.tensor([start, start]))
    with torch.no_grad():
        policy.shared_magnitude[0] = 1.0
        policy.eps_magnitude[1, 0] = -3.0
    _, magnitude = policy.tables()
    expected = [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(2.0))]
    np.testing.assert_allclose(magnitude[:, 0].detach(), expected, rtol=1e-6)


def test_a_shared_policy_has_one_row_for_all() -> None:
    policy = moved(BY_GROUP, personalised=False)
    assert [name for name, _ in policy.named_parameters()] == [
        "shared_probability", "shared_magnitude"
    ]  # fmt: skip
    for values in policy.tables():
        assert values.shape == (2, 3, len(policy.operations))
        assert torch.equal(values, values[:1, :1].expand_as(values))


@given(
    counts=st.lists(st.integers(1, 1000), min_size=2, max_size=9),
    size=st.integers(1, 4),
)
def test_clusters_share_and_are_of_like_frequency(counts: list[int], size: int) -> None:
    policy = moved(counts, [ShiftX()], clusters=size)
    assert len(policy.eps_probability) == -(-len(counts) // size)
    probability = policy.tables()[0][:, 0].tolist()
    order = np.argsort(-np.array(counts), kind="stable")
    for first in range(0, len(order), size):
        assert len({probability[i] for i in order[first : first + size]}) == 1
    assert len(set(probability)) == -(-len(counts) // size)


def test_a_class_without_examples_keeps_the_shared_strengths() -> None:
    policy = moved([7, 0, 3])
    for values, shared in zip(
        policy.tables(), (policy.shared_probability, policy.shared_magnitude), strict=True
    ):
        graded = torch.tensor([o.graded or values is policy.tables()[0] for o in policy.operations])
        torch.testing.assert_close(values[1][graded], torch.sigmoid(shared)[graded])
        assert not torch.allclose(values[0], values[1])
    found, chance = policy.draw_batch(pictures(), labels())
    assert chance is not None
    assert torch.isfinite(found).all()
    gradients = torch.autograd.grad(found.square().sum() + chance.sum(), list(policy.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    assert not gradients[2][1].any()


# Gates ------------------------------------------------------------------------------------------


def test_hard_gates_act_as_often_as_the_probability_says() -> None:
    probability = [[0.2], [0.7]]
    flip = Augmentation([Flip()], probability, probability)
    inputs = torch.rand(4000, 1, 1, 2)
    target = torch.arange(4000) % 2
    found = drawn(flip, inputs, target)
    flipped = (found == inputs.flip(-1)).flatten(1).all(dim=1)
    assert ((found == inputs).flatten(1).all(dim=1) ^ flipped).all()  # all or nothing
    for y, p in enumerate((0.2, 0.7)):
        share = float(flipped[target == y].double().mean())
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 2000) ** 0.5)


def test_relaxed_gates_blend() -> None:
    flip = Augmentation([Flip()], [[0.5]] * 2, [[1.0]] * 2, gate="relaxed")
    inputs = torch.tensor([0.0, 1.0]).expand(200, 1, 1, 2)
    found = drawn(flip, inputs, torch.zeros(200, dtype=torch.int64))[:, 0, 0, 0]
    assert float(((found > 0.05) & (found < 0.95)).double().mean()) > 0.1


def test_both_gates_have_the_same_noise() -> None:
    """At a low temperature the relaxed gate is the hard one."""
    hard = moved(gate="hard")
    soft = copy.deepcopy(hard)
    soft.draw = type(hard.draw)("relaxed", 1e-9, (0.0, 1.0))
    batch = pictures(), labels()
    torch.testing.assert_close(drawn(hard, *batch), drawn(soft, *batch))


def relative_error(policy: AugmentationPolicy, batch: tuple[Any, ...], name: str) -> float:
    """Of the gradient along a random direction of one parameter, by central differences."""
    free = dict(policy.named_parameters())[name]
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(batch[0].shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(free.shape, generator=generator, dtype=torch.float64)

    def value() -> Tensor:
        return (drawn(policy, *batch) * mix).sum()

    along = float((torch.autograd.grad(value(), free)[0] * direction).sum())
    h, sides = 1e-7, []
    for sign in (1, -2):
        with torch.no_grad():
            free += sign * h * direction
            sides.append(float(value()))
    numeric = (sides[0] - sides[1]) / (2 * h)
    assert abs(numeric) > 1e-3
    return abs(along - numeric) / abs(numeric)


PARAMETERS = ("shared_probability", "shared_magnitude", "eps_probability", "eps_magnitude")


@both_kinds
@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("counts", [COUNTS, BY_GROUP], ids=["class", "cell"])
def test_gradients_equal_finite_differences(
    operations: Sequence[Operation], inputs: Tensor, counts: Any, name: str
) -> None:
    policy = moved(counts, operations, gate="relaxed", magnitude=0.4)
    batch = inputs, labels(), torch.arange(12) % 2
    assert relative_error(policy, batch, name) < 1e-4


@pytest.mark.parametrize(
    "operation",
    [kind() for kind in OPERATIONS],
    ids=lambda o: o.name,
)
@pytest.mark.parametrize("what", ["probability", "magnitude"])
def test_each_operation_is_differentiable(operation: Operation, what: str) -> None:
    inputs = table() if operation.domain == "tensor" else 0.2 + 0.6 * pictures()
    policy = moved(COUNTS, [operation], gate="relaxed", magnitude=0.4)
    if operation.graded or what == "probability":
        assert relative_error(policy, (inputs, labels()), f"shared_{what}") < 1e-4
    else:
        found = drawn(policy, inputs, labels()).square().sum()
        gradient = torch.autograd.grad(found, policy.shared_magnitude)
        assert not gradient[0].any()


@dataclass(frozen=True)
class Step(TensorOperation):
    """Adds the strength: what a gate does to a mean is then known."""

    limit: float = 1.0
    name: ClassVar[str] = "step"

    def apply(self, inputs: Tensor, strength: Tensor) -> Tensor:
        return inputs + strength[:, None]


@pytest.mark.parametrize("gate", ["relaxed", "hard"])
def test_the_gradient_is_that_of_the_mean_over_draws(gate: str) -> None:
    """The mean is p m / 2: exact for m, and for p up to the relaxed gate's bias."""
    policy = AugmentationPolicy(
        [1, 1], [Step()], magnitude=0.6, gate=gate, temperature=0.1, personalised=False
    ).double()
    inputs = torch.zeros(20000, 1, dtype=torch.float64)
    torch.manual_seed(0)
    seen, chance = policy.draw_batch(inputs, torch.zeros(20000, dtype=torch.int64))
    mean = seen.mean()
    assert float(mean.detach()) == pytest.approx(0.5 * 0.6 / 2, abs=0.005)
    assert (chance is None) == (gate == "relaxed")
    if chance is not None:
        mean = mean + (chance * (seen[:, 0] - mean).detach()).mean()
    p, m = torch.autograd.grad(mean, [policy.shared_probability, policy.shared_magnitude])
    assert float(p) == pytest.approx(0.25 * 0.6 / 2, rel=0.1)
    assert float(m) == pytest.approx(0.24 * 0.5 / 2, rel=0.05)


# What the batch keeps ---------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_stay_and_nothing_is_written_to(
    operations: Sequence[Operation], inputs: Tensor, dtype: torch.dtype
) -> None:
    policy = moved(BY_GROUP, operations)
    inputs = inputs.to(dtype)
    batch = inputs, labels(), torch.arange(12) % 2
    before = [t.clone() for t in batch]
    found = drawn(policy, *batch)
    assert (found.shape, found.dtype) == (inputs.shape, dtype)
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))
    assert not torch.equal(found, inputs)


@given(low=st.floats(-3, 0.5), width=st.floats(0.1, 5), seed=st.integers(0, 100))
def test_images_stay_in_their_range(low: float, width: float, seed: int) -> None:
    policy = moved(value_range=(low, low + width), magnitude=0.9, probability=0.9).float()
    inputs = torch.lerp(torch.tensor(low), torch.tensor(low + width), pictures().float())
    found = drawn(policy, inputs, labels(), seed=seed).detach()
    assert float(found.min()) >= np.float32(low)
    assert float(found.max()) <= np.float32(low + width)


def test_the_range_may_differ_by_channel_and_changes_only_the_units() -> None:
    plain = moved()
    low, high = [-2.0, -1.0, 0.5], [2.0, 3.0, 0.75]
    standardised = copy.deepcopy(plain)
    standardised.draw = type(plain.draw).checked("hard", 0.5, (low, high))
    a, b = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (low, high))
    inputs = pictures()
    expected = a + (b - a) * drawn(plain, inputs, labels())
    torch.testing.assert_close(drawn(standardised, a + (b - a) * inputs, labels()), expected)


@both_kinds
def test_only_in_mixup_do_examples_see_each_other(
    operations: Sequence[Operation], inputs: Tensor
) -> None:
    other = inputs.clone()
    other[0] = 1.0 - other[0]
    for chosen, leaks in (
        ([o for o in operations if o.name != "mixup"], False),
        ([Mixup()], True),
    ):
        policy = moved(COUNTS, chosen, gate="relaxed")  # so that each gate is a little open
        one, two = (drawn(policy, x, labels(), seed=2) for x in (inputs, other))
        assert torch.equal(one[1:], two[1:]) == (not leaks)
        assert not torch.equal(one[0], two[0])


def test_examples_that_the_loss_ignores_stay_as_they_are() -> None:
    target = labels()
    target[4] = -100
    found = drawn(moved(), pictures(), target)
    torch.testing.assert_close(found[4], pictures()[4], rtol=0, atol=1e-12)
    assert not torch.allclose(found[5], pictures()[5])


def test_an_empty_batch_stays_empty() -> None:
    assert moved()(pictures()[:0], labels()[:0]).shape == (0, 3, 8, 8)


@both_kinds
def test_draws_repeat_under_a_seed_and_are_as_many_whatever_the_strengths(
    operations: Sequence[Operation], inputs: Tensor
) -> None:
    one, two = moved(COUNTS, operations), AugmentationPolicy(COUNTS, operations).double()
    assert torch.equal(drawn(one, inputs, labels()), drawn(one, inputs, labels()))
    states = []
    for policy in (one, two):
        drawn(policy, inputs, labels())
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


# Prior ------------------------------------------------------------------------------------------


def test_penalty_is_the_gaussian_log_prior() -> None:
    policy = AugmentationPolicy(COUNTS, [ShiftX(), Flip()], sigma_shared=2.0, sigma_eps=0.25)
    assert float(policy.penalty().detach()) == 0.0
    with torch.no_grad():
        policy.shared_probability[0] += 3.0
        policy.eps_magnitude[1] = torch.tensor([1.0, -2.0])
    assert float(policy.penalty().detach()) == pytest.approx(9 / 8 + 5 / 0.125)


# Records ----------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("counts", [COUNTS, BY_GROUP], ids=["class", "cell"])
@pytest.mark.parametrize("gate", ["relaxed", "hard"])
def test_frozen_draws_as_the_policy_does(
    operations: Sequence[Operation], inputs: Tensor, counts: Any, gate: str
) -> None:
    policy = moved(counts, operations, gate=gate, temperature=0.3)
    batch = inputs, labels(), torch.arange(12) % 2
    fixed = policy.frozen()
    assert not list(fixed.parameters())
    torch.testing.assert_close(drawn(fixed, *batch), drawn(policy, *batch))


@both_kinds
def test_records_and_copies_draw_the_same_bit_for_bit(
    operations: Sequence[Operation], inputs: Tensor
) -> None:
    fixed = moved(BY_GROUP, operations, gate="relaxed", value_range=(0, 1.5)).frozen()
    batch = inputs, labels(), torch.arange(12) % 2
    for twin in (
        Augmentation.from_json(fixed.to_json()),
        Augmentation.from_dict(json.loads(json.dumps(fixed.to_dict()))),
        pickle.loads(pickle.dumps(fixed)),
        copy.deepcopy(fixed),
    ):
        assert twin.to_dict() == fixed.to_dict()
        assert repr(twin) == repr(fixed)
        assert torch.equal(drawn(twin, *batch), drawn(fixed, *batch))
    policy = moved(COUNTS, operations)
    twin = pickle.loads(pickle.dumps(policy))
    assert torch.equal(drawn(twin, *batch), drawn(policy, *batch))


def test_operations_of_ones_own_are_named_when_read() -> None:
    text = Augmentation([Step(0.25)], [[0.5]] * 2, [[0.5]] * 2).to_json()
    with pytest.raises(InputError, match=r"operation must be one of .* got 'step'"):
        Augmentation.from_json(text)
    assert Augmentation.from_json(text, own=[Step]).operations == (Step(0.25),)


def test_a_state_dict_carries_what_was_learned() -> None:
    policy, other = moved(), AugmentationPolicy(COUNTS, image_operations()).double()
    other.load_state_dict(policy.state_dict())
    assert other.frozen().to_dict() == policy.frozen().to_dict()
    assert other.values() == policy.values()
    assert list(policy.values()) == list(PARAMETERS)


def test_per_class_names_classes_and_cells() -> None:
    policy = AugmentationPolicy([4, 2], [ShiftX(), Flip()], probability=0.25, magnitude=0.5)
    both = {
        "shift_x": {"probability": 0.25, "magnitude": 0.5},
        "flip": {"probability": 0.25},
    }
    assert policy.frozen().per_class() == {"0": both, "1": both}
    assert list(policy.frozen().per_class(["cat", "dog"])) == ["cat", "dog"]
    cells = AugmentationPolicy([[4, 2], [1, 1]], [Flip()]).frozen()
    assert list(cells.per_class(["a", "b"], ["f", "m"])) == ["a / f", "b / f", "a / m", "b / m"]
    with pytest.raises(InputError, match="names must hold 2 names, one for each; got 1"):
        policy.frozen().per_class(["cat"])


@pytest.mark.parametrize(
    "name",
    ["Augmentation", "AugmentationPolicy", "default_policy"],
)
def test_exported_and_documented(name: str) -> None:
    assert (getattr(autobalance, name).__doc__ or "").strip()


# Defaults and refusals --------------------------------------------------------------------------


def test_default_policy_follows_the_inputs() -> None:
    assert default_policy(pictures(), COUNTS).operations == image_operations(3)
    grey = default_policy(pictures(channels=1).numpy(), COUNTS, personalised=False)
    assert grey.operations == image_operations(1)
    assert not grey.personalised
    assert default_policy(table(), COUNTS).operations == tensor_operations(5)


def tables_of(value: float, shape: tuple[int, ...] = (2, 1)) -> Tensor:
    return torch.full(shape, value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: default_policy(pictures() * 255, COUNTS), "beyond value_range"),
        (lambda: default_policy(pictures().round().to(torch.uint8), COUNTS), r"\.float\(\) / 255"),
        (lambda: default_policy(pictures(channels=2), COUNTS), "1 or 3 channels; got 2"),
        (lambda: default_policy(table()[:, None], COUNTS), r"shape \(12, 1, 5\)"),
        (lambda: default_policy(100 * table(), COUNTS), "standardised; one has"),
        (lambda: default_policy(pictures(), [5]), "at least two classes"),
        (lambda: default_policy(pictures(), "many"), "counts must hold numbers of examples"),
        (lambda: default_policy(pictures(), [5, -1]), "counts must hold numbers of examples"),
        (lambda: moved()(table(), labels()), "are for images of shape"),
        (lambda: moved(operations=tensor_operations())(pictures(), labels()), "look like images"),
        (lambda: moved()(pictures() - 0.5, labels()), "The images' values go from"),
        (lambda: moved().frozen()(pictures() - 0.5, labels()), "The images' values go from"),
        (lambda: moved()(pictures(channels=1), labels()), "saturation needs images of 3"),
        (lambda: moved(value_range=([0] * 2, [1] * 2))(pictures(), labels()), "2 channels"),
        (lambda: moved()(pictures(), labels().float()), "dtype int64"),
        (lambda: moved()(pictures(), labels()[:5]), "one class index per example; got 5 for 12"),
        (lambda: moved()(pictures(), labels(classes=4)), r"target must lie in 0\.\.2"),
        (lambda: moved(BY_GROUP)(pictures(), labels()), "rows for 2 groups: pass groups="),
        (lambda: moved(operations=[Step()])(torch.rand(3), labels(3)), "one row per example"),
        (lambda: AugmentationPolicy(COUNTS, []), "at least one Operation"),
        (lambda: AugmentationPolicy(COUNTS, ["flip"]), "nothing else; got a str"),  # pyright: ignore
        (lambda: moved(operations=[Flip(), Flip()]), "flip is there twice"),
        (lambda: moved(operations=[Flip(), GaussianNoise()]), "all for images or all for tensors"),
        (lambda: moved(gate="soft"), "gate must be one of"),
        (lambda: moved(value_range=(1, 0)), "low below high"),
        (lambda: moved(value_range=3), "low below high"),
        (lambda: moved(clusters=0), "clusters must be at least 1"),
        (lambda: moved(clusters=2, personalised=False), "clusters needs personalised=True"),
        (lambda: moved(probability=1.0), "probability must lie strictly"),
        (lambda: moved(sigma_eps=0.0), "sigma_eps must be a finite number above 0"),
        (lambda: Mixup(0.7), "limit of mixup must be at most 0.5; got 0.7"),
        (lambda: Rotation(0.0), "limit must be a finite number above 0"),
        (lambda: image_operations(4), "1 or 3 channels; got 4"),
        (lambda: Augmentation([Flip()], tables_of(1.5), tables_of(1.0)), r"probability must lie in"),
        (lambda: Augmentation([Flip()], [0.5, 0.5], [0.5, 0.5]), "one column per operation"),
        (
            lambda: Augmentation([Flip()], tables_of(0.5), tables_of(0.5, (3, 1))),
            "must have one shape",
        ),
        (lambda: Augmentation.from_json("{"), "not JSON"),
        (lambda: Augmentation.from_json("{}"), "'format' is not there"),
        (
            lambda: Augmentation.from_dict({"format": "autobalance-augmentation", "version": 2}),
            "version 2 of the format",
        ),
    ],
)  # fmt: skip
def test_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_a_policy_may_mix_mixup_with_either_kind() -> None:
    for operations, inputs in (
        ([Brightness(), Mixup()], pictures()),
        ([SphericalNoise(), Mixup()], table()),
    ):
        assert drawn(moved(operations=operations), inputs, labels()).shape == inputs.shape


def test_an_example_of_an_unknown_group_has_the_mean_over_groups() -> None:
    table = torch.rand(2, 3, 4)
    found = row_of(table, torch.tensor([0, 2]), torch.tensor([-1, 1]))
    torch.testing.assert_close(found, torch.stack([table[:, 0].mean(dim=0), table[1, 2]]))
