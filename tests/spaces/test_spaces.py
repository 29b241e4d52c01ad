"""Gauges, starts, priors and gradients of the design spaces, on counts that hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from autobalance._validation import InputError
from autobalance.losses.parametric import LossParameters
from autobalance.spaces.base import PARTS, DesignSpace
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.default_space import default_space
from autobalance.spaces.group_space import GroupSpace
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from helpers import scatter

PER_CLASS: dict[str, Callable[..., DesignSpace]] = {
    "hierarchical": HierarchicalSpace,
    "class": lambda counts, **given: ClassSpace(counts, sigma=1.0, **given),
    "sigmoid": lambda counts, **given: ClassSpace(counts, sigma=1.0, sigmoid=True, **given),
    "cluster": lambda counts, **given: ClusterSpace(counts, size=2, sigma=1.0, **given),
}
PER_GROUP: dict[str, Callable[..., DesignSpace]] = {
    "class": lambda counts, **given: ClassSpace(counts, sigma=1.0, **given),
    "group": GroupSpace,
}
KINDS = [(name, build, False) for name, build in PER_CLASS.items()]
KINDS += [(f"{name}-by-group", build, True) for name, build in PER_GROUP.items()]
each_kind = pytest.mark.parametrize(
    ("build", "by_group"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS]
)

class_counts = st.lists(st.integers(1, 100_000), min_size=2, max_size=12)
seeds = st.integers(0, 1000)


@st.composite
def group_counts(draw: Any) -> list[list[int]]:
    """Groups may lack classes; no class is without any example, nor a group."""
    g, k = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    table = draw(
        st.lists(st.lists(st.integers(0, 10_000), min_size=k, max_size=k), min_size=g, max_size=g)
    )
    for i in range(max(g, k)):
        table[i % g][i % k] += 1
    return table


def moved(build: Callable[..., DesignSpace], counts: Any, seed: int, **given: Any) -> DesignSpace:
    space = build(counts, **given).double()
    scatter(space, seed, scale=1.0)
    return space


def double(build: Callable[..., DesignSpace], counts: Any, **given: Any) -> LossParameters:
    return build(counts, **given).double()().detach()


# Gauges ---------------------------------------------------------------------------------------


@each_kind
@given(data=st.data(), seed=seeds)
def test_gauges_hold_wherever_the_parameters_are(
    build: Callable[..., DesignSpace], by_group: bool, data: st.DataObject, seed: int
) -> None:
    counts = np.array(data.draw(group_counts() if by_group else class_counts))
    # The shared strengths move l along log pi, which does not sum to 0: compare at fixed tau.
    space = build(counts, learn=PARTS).double()
    start = space().detach()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in space.named_parameters():
            if not name.startswith(("tau", "gamma", "rho")):
                p += torch.randn(p.shape, generator=generator, dtype=p.dtype)
    now = space().detach()
    assert start.additive is not None
    assert now.additive is not None
    deviations = (now.additive - start.additive).sum(dim=-1)
    np.testing.assert_allclose(deviations.numpy(), 0.0, atol=1e-9)
    assert now.weight is not None
    mean = float((now.weight.numpy() * counts).sum() / counts.sum())
    assert mean == pytest.approx(1.0, rel=1e-9)
    assert now.multiplicative is not None
    assert (now.weight > 0).all()
    assert (now.multiplicative > 0).all()


@each_kind
@given(data=st.data(), seed=seeds)
def test_shapes_and_finiteness(
    build: Callable[..., DesignSpace], by_group: bool, data: st.DataObject, seed: int
) -> None:
    counts = np.array(data.draw(group_counts() if by_group else class_counts))
    space = moved(build, counts, seed, learn=PARTS)
    for p in space():
        assert p is not None
        assert p.shape == counts.shape
        assert p.dtype == torch.float64
        assert torch.isfinite(p).all()
    assert space.num_classes == counts.shape[-1]
    assert space.num_groups == (counts.shape[0] if by_group else None)


# Starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", PER_CLASS.values(), ids=PER_CLASS)
@given(counts=class_counts)
def test_starts_at_logit_adjustment(build: Callable[..., DesignSpace], counts: list[int]) -> None:
    """Fisher consistent for the balanced error: l - log w = log pi + c, delta one number for all."""
    start = double(build, counts, learn=PARTS)
    assert start.additive is not None
    assert start.weight is not None
    assert start.multiplicative is not None
    rho = 0.2 if build is HierarchicalSpace else 0.0
    pi = np.array(counts) / sum(counts)
    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(start.additive.numpy(), (1 - rho) * np.log(pi), **close)
    np.testing.assert_allclose(start.weight.numpy(), pi**-rho / (pi ** (1 - rho)).sum(), **close)
    delta = 1 / (1 + np.exp(-1)) if getattr(build(counts), "sigmoid", False) else 1.0
    np.testing.assert_allclose(start.multiplicative.numpy(), delta, rtol=1e-6)


@given(counts=group_counts())
def test_the_group_space_starts_at_logit_adjustment_within_each_group(
    counts: list[list[int]],
) -> None:
    """The within-group prior smoothed by one example spread as the classes are overall."""
    start = double(GroupSpace, counts, learn=PARTS)
    assert start.additive is not None
    assert start.weight is not None
    table = np.array(counts, dtype=float)
    overall = table.sum(axis=0) / table.sum()
    for row, found in zip(table, start.additive.numpy(), strict=True):
        np.testing.assert_allclose(
            found, np.log((row + overall) / (row.sum() + 1)), rtol=1e-6, atol=1e-6
        )
    np.testing.assert_allclose(start.weight.numpy(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("learn", [PARTS, ("weight",)], ids=["all", "weight"])
@pytest.mark.parametrize("build", [HierarchicalSpace, ClassSpace])
def test_tau_sets_the_start_learned_or_not(
    build: Callable[..., DesignSpace], learn: tuple[str, ...], tau: float
) -> None:
    start = double(build, [30, 10], tau=tau, learn=learn)
    assert start.additive is not None
    share = 0.8 if build is HierarchicalSpace else 1.0
    expected = share * tau * np.log([0.75, 0.25])
    np.testing.assert_allclose(start.additive.numpy(), expected, rtol=1e-6)


@given(counts=class_counts, rho=st.floats(0.0, 1.0), seed=seeds)
def test_rho_only_shares_the_correction(counts: list[int], rho: float, seed: int) -> None:
    """L - log w is the same for every rho, but for a constant; 0 is all in l, 1 all in w."""
    odds = []
    for share in (0.0, rho, 1.0):
        now = moved(HierarchicalSpace, counts, seed, rho=share, sigma_rho=None)().detach()
        assert now.additive is not None
        log_weight = 0.0 if now.weight is None else now.weight.log()
        u = now.additive - log_weight
        odds.append((u - u.mean()).numpy())
        assert (now.weight is None) == (share == 0.0)
        if share == 1.0:
            np.testing.assert_allclose(now.additive.numpy(), 0.0, atol=1e-12)
    np.testing.assert_allclose(odds[1], odds[0], atol=1e-9)
    np.testing.assert_allclose(odds[2], odds[0], atol=1e-9)


@pytest.mark.parametrize("part", PARTS)
@each_kind
def test_what_is_not_learned_is_left_out(
    build: Callable[..., DesignSpace], by_group: bool, part: str
) -> None:
    """L stays at its start, for w and delta to be learned on top of a consistent loss."""
    given = {"rho": 0.0, "sigma_rho": None} if build is HierarchicalSpace else {}
    space = moved(build, [[20, 6], [3, 2]] if by_group else [20, 5, 3], 0, learn=[part], **given)
    now, before = space(), double(build, space.counts.numpy(), learn=PARTS, **given)
    assert space.learns == (part,)
    assert (now.weight is None) == (part != "weight")
    assert (now.multiplicative is None) == (part != "multiplicative")
    assert now.additive is not None
    assert before.additive is not None
    assert torch.allclose(now.additive, before.additive) == (part != "additive")


def test_the_prior_on_rho_is_around_its_start() -> None:
    space = HierarchicalSpace([9, 3], rho=0.25, sigma_rho=0.5)
    with torch.no_grad():
        space.rho.fill_(-0.75)  # type: ignore[union-attr]
    assert space.penalty().item() == pytest.approx(1.0 / (2 * 0.25))


def test_a_searched_rho_acts_up_to_a_half_or_its_start() -> None:
    for start, most in ((0.2, 0.5), (0.8, 0.8)):
        space = HierarchicalSpace([9, 3, 1], rho=start).double()
        there = HierarchicalSpace([9, 3, 1], rho=most, sigma_rho=None).double()
        with torch.no_grad():
            space.rho.fill_(0.9)  # type: ignore[union-attr]
        now, bounded = space(), there()
        assert now.additive is not None
        assert now.weight is not None
        torch.testing.assert_close(now.additive, bounded.additive)
        torch.testing.assert_close(now.weight, bounded.weight)
        assert space.values()["rho"] == pytest.approx(most)
        # Nothing holds it there: the loss has no slope beyond, the prior leads back.
        (now.weight.square().sum() + now.additive.square().sum() + space.penalty()).backward()
        assert space.rho.grad.item() == pytest.approx(0.9 - start)  # type: ignore[union-attr]
        with torch.no_grad():
            space.rho.fill_(-0.3)  # type: ignore[union-attr]
        assert space.values()["rho"] == pytest.approx(-0.3)


def test_no_weight_is_0_however_far_the_correction_goes() -> None:
    space = HierarchicalSpace([9, 3, 1], learn=("additive", "weight"))
    with torch.no_grad():
        space.eps.copy_(torch.tensor([500.0, 0.0, -500.0]))
    weight = space().weight
    assert weight is not None
    assert (weight > 0).all()
    assert torch.isfinite(weight).all()


def test_learns_keeps_one_order() -> None:
    space = HierarchicalSpace([3, 2], learn=["multiplicative", "weight"])
    assert space.learns == ("weight", "multiplicative")


# Formulas off the start -----------------------------------------------------------------------


def test_hierarchical_by_hand() -> None:
    counts = np.array([60.0, 30.0, 10.0])
    space = HierarchicalSpace(counts, learn=PARTS, rho=0.25).double()
    eps, log_delta, log_w = np.array([1.0, -2.0, 4.0]), np.array([0.5, 0.1, 0.0]), [0.3, -0.2, 1.0]
    with torch.no_grad():
        space.tau.fill_(0.7)
        space.gamma.fill_(0.2)
        space.eps.copy_(torch.tensor(eps))
        space.log_delta.copy_(torch.tensor(log_delta))
        space.log_weight.copy_(torch.tensor(log_w))
    now = space().detach()
    u = 0.7 * np.log(counts / 100) + eps - 1.0
    w = np.exp(log_w - 0.25 * u)
    expected = [
        w / (w @ (counts / 100)),
        0.75 * u,
        (counts / 60) ** 0.2 * np.exp(log_delta - 0.2),
    ]
    for p, by_hand in zip(now, expected, strict=True):
        assert p is not None
        np.testing.assert_allclose(p.numpy(), by_hand, rtol=1e-7)


def test_group_by_hand() -> None:
    counts = np.array([[60.0, 20.0], [5.0, 15.0]])
    space = GroupSpace(counts).double()
    eps = np.array([[1.0, 0.0], [-3.0, 5.0]])
    with torch.no_grad():
        space.tau_class.fill_(0.5)
        space.tau_group.fill_(2.0)
        space.eps.copy_(torch.tensor(eps))
    pi = np.array([0.65, 0.35])
    within = (counts + pi) / np.array([[81.0], [21.0]])
    expected = 0.5 * np.log(pi) + 2.0 * np.log(within / pi) + eps - [[0.5], [1.0]]
    found = space().detach().additive
    assert found is not None
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@given(counts=class_counts, size=st.integers(1, 5), seed=seeds)
def test_clusters_are_of_like_frequency_and_share(counts: list[int], size: int, seed: int) -> None:
    space = ClusterSpace(counts, size=size, learn=PARTS).double()
    scatter(space, seed, scale=1.0)
    cluster = space.cluster.numpy()
    assert np.bincount(cluster).tolist()[:-1] == [size] * (cluster.max())
    assert 1 <= np.bincount(cluster)[-1] <= size
    table = np.array(counts)
    for c in range(cluster.max()):  # no class of a later cluster is more frequent
        assert table[cluster == c].min() >= table[cluster == c + 1].max()
    delta = space().multiplicative
    assert delta is not None
    for c in range(cluster.max() + 1):
        assert len(set(delta[space.cluster == c].tolist())) == 1
    assert sum(p.numel() for p in space.parameters()) == 3 * (cluster.max() + 1)


def test_clusters_of_one_are_the_class_space() -> None:
    counts = [50, 20, 9]  # sorted, so clusters are numbered as classes are
    one, free = ClusterSpace(counts, size=1, learn=PARTS), ClassSpace(counts, learn=PARTS)
    scatter(one, 3)
    scatter(free, 3)
    torch.testing.assert_close(one(), free(), rtol=0, atol=0)


# Priors ---------------------------------------------------------------------------------------


@each_kind
@given(data=st.data(), seed=seeds)
def test_penalty_is_zero_at_the_start_and_grows_with_the_distance(
    build: Callable[..., DesignSpace], by_group: bool, data: st.DataObject, seed: int
) -> None:
    counts = data.draw(group_counts() if by_group else class_counts)
    space = build(counts, learn=PARTS)
    assert float(space.penalty().detach()) == 0.0
    start = [p.detach().clone() for p in space.parameters()]
    scatter(space, seed, scale=1.0)
    far = [p.detach().clone() for p in space.parameters()]
    values = []
    for way in (0.25, 0.5, 1.0):
        with torch.no_grad():
            for p, a, b in zip(space.parameters(), start, far, strict=True):
                p.copy_(a + way * (b - a))
        values.append(float(space.penalty().detach()))
    assert 0.0 < values[0] < values[1] < values[2]
    # Gaussian: quadratic along any ray.
    assert values == pytest.approx([values[2] / 16, values[2] / 4, values[2]], rel=1e-4)


def test_penalty_is_the_gaussian_log_prior() -> None:
    space = HierarchicalSpace([9, 3], sigma_tau=0.5, sigma_eps=2.0, tau=1.0)
    with torch.no_grad():
        space.tau.fill_(2.0)
        space.eps.copy_(torch.tensor([3.0, -1.0]))
    assert float(space.penalty().detach()) == pytest.approx(1 / 0.5 + 10 / 8, rel=1e-6)
    group = GroupSpace([[9, 3], [2, 2]], sigma_tau=0.5, sigma_eps=2.0)
    with torch.no_grad():
        group.tau_group.fill_(2.0)
        group.eps.fill_(1.0)
    assert float(group.penalty().detach()) == pytest.approx(1 / 0.5 + 4 / 8, rel=1e-6)


def test_the_papers_space_has_no_prior() -> None:
    space = ClassSpace([9, 3])
    scatter(space)
    assert float(space.penalty().detach()) == 0.0
    assert not space.penalty().requires_grad


@each_kind
@given(data=st.data(), seed=seeds)
def test_gradients_equal_finite_differences(
    build: Callable[..., DesignSpace], by_group: bool, data: st.DataObject, seed: int
) -> None:
    counts = data.draw(group_counts() if by_group else class_counts)
    space = moved(build, counts, seed, learn=PARTS)
    free = dict(space.named_parameters())
    generator = torch.Generator().manual_seed(seed + 1)
    mix = torch.randn(3, *space.counts.shape, generator=generator, dtype=torch.float64)

    def value() -> torch.Tensor:
        w, additive, delta = space()
        assert w is not None
        assert additive is not None
        assert delta is not None
        return (mix[0] * w + mix[1] * additive + mix[2] * delta).sum() + space.penalty()

    gradient = torch.autograd.grad(value(), list(free.values()))
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in free.values()]
    along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    h, sides = 1e-5, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(free.values(), direction, strict=True):
                p += sign * h * d
            sides.append(float(value()))
    numeric = (sides[0] - sides[1]) / (2 * h)
    assert along == pytest.approx(numeric, rel=1e-5, abs=1e-5)


# Records and refusals -------------------------------------------------------------------------


def test_values_names_the_free_parameters() -> None:
    space = HierarchicalSpace([9, 3], learn=["additive", "weight"], rho=0.25)
    assert space.values() == {
        "tau": 1.0, "rho": 0.25, "eps": [0.0, 0.0], "log_weight": [0.0, 0.0],
    }  # fmt: skip
    held = HierarchicalSpace([9, 3], rho=0.25, sigma_rho=None)
    assert held.values() == {"tau": 1.0, "eps": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("class", [[0.6, 0.4], [0.6, 0.4]]),
        ("group", [[1.0, 1.0], [1.0, 1.0]]),
        ("class_and_group", [[48.6 / 61, 12.4 / 61], [12.6 / 41, 28.4 / 41]]),
    ],
)
def test_by_default_the_start_is_consistent_for_the_objective(
    over: str, expected: list[list[float]]
) -> None:
    """Up to a common factor per row, exp(l) is what the objective wants training to correct."""
    space = default_space([[48, 12], [12, 28]], over)
    ratio = space().additive.detach().exp() / torch.tensor(expected)
    torch.testing.assert_close(ratio[:, 0], ratio[:, 1])
    assert float(space.penalty().detach()) == 0.0


def test_importance_moves_the_start_to_what_is_consistent_for_it() -> None:
    """Weights proportional to the priors make the weighted error the plain one: l is constant."""
    additive = default_space([60, 30, 10], importance=[6.0, 3.0, 1.0])().additive
    torch.testing.assert_close(additive, additive[:1].expand(3))
    even, plain = (default_space([60, 30, 10], importance=i)().additive for i in ([2, 2, 2], None))
    torch.testing.assert_close(even, plain)
    assert torch.isfinite(default_space([60, 30, 10], importance=[1, 0, 1])().additive).all()


@pytest.mark.parametrize(
    ("kind", "counts", "changes"),
    [
        (
            HierarchicalSpace,
            [5, 3, 2],
            {"tau": 0.5, "rho": 0.1, "sigma_rho": 0.3, "sigma_tau": 1.0},
        ),
        (ClassSpace, [5, 3, 2], {"tau": 0.5, "sigmoid": True, "sigma": 1.0, "learn": ("weight",)}),
        (ClusterSpace, [5, 3, 2], {"size": 1, "sigma": 1.0}),
        (GroupSpace, [[5, 3]] * 2, {"tau_class": 0.5, "tau_group": 0.0, "sigma_eps": 1.0}),
    ],
)
def test_a_repr_tells_the_options(kind: Any, counts: Any, changes: dict[str, Any]) -> None:
    """A resumed search is known by it to be the same."""
    given = {"size": 2} if kind is ClusterSpace else {}
    texts = [repr(kind(counts, **{**given, **change})) for change in
             [{}, *({name: value} for name, value in changes.items())]]  # fmt: skip
    assert len(set(texts)) == len(texts)


def test_deviations_are_held_less_where_the_start_is_not_consistent() -> None:
    mean, worst = (default_space([5, 3], linear=linear).priors() for linear in (True, False))
    assert (mean.pop("eps"), worst.pop("eps")) == ((0.0, 0.5), (0.0, 2.0))
    assert mean.pop("gamma")[1] == 0.25
    assert mean == worst
    for counts in ([5, 3], [[5, 3], [2, 2]]):
        assert default_space(counts, "group", linear=False).priors()["eps"] == (0.0, 0.5)


def test_default_space_follows_the_counts() -> None:
    assert isinstance(default_space([5, 3]), HierarchicalSpace)
    assert isinstance(default_space(np.array([[5, 3], [1, 2]])), GroupSpace)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HierarchicalSpace([5, 3], learn=["tau"]), "learn must name some of weight, add"),
        (lambda: HierarchicalSpace([5, 3], learn=[]), r"learn must name some of .* got \[\]"),
        (lambda: HierarchicalSpace([5, 0]), "class 1 has no training example"),
        (lambda: HierarchicalSpace([[5, 1], [2, 3]]), "for groups use GroupSpace"),
        (lambda: HierarchicalSpace([5, 1], sigma_eps=0.0), "sigma_eps must be a finite number"),
        (lambda: ClassSpace([5, 1], sigma=-1.0), "sigma must be a finite number above 0"),
        (lambda: ClusterSpace([5, 1], size=0), "size must be at least 1; got 0"),
        (lambda: ClusterSpace([[5, 1]], size=1), r"ClusterSpace takes counts per class \(k,\)"),
        (lambda: GroupSpace([5, 1]), r"GroupSpace takes counts per group and class \(g, k\)"),
        (lambda: HierarchicalSpace([5, 1], importance=[1, -1]), "importance must hold one non-"),
        (lambda: HierarchicalSpace([5, 1], importance=[1, 1, 1]), "got shape"),
        (lambda: GroupSpace([[5, 1]], sigma_tau=0.0), "sigma_tau must be a finite number"),
    ],
)
def test_refused(build: Callable[[], DesignSpace], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_without_deviations_the_shared_strengths_are_all_there_is() -> None:
    space = HierarchicalSpace([8, 4, 2], learn=("additive", "multiplicative"), deviations=False)
    assert [name for name, _ in space.named_parameters()] == ["tau", "rho", "gamma"]
    with torch.no_grad():
        space.tau.fill_(0.5)
        space.gamma.fill_(0.25)
    log_prior = torch.tensor([8, 4, 2]).div(14).log()
    torch.testing.assert_close(space().additive, 0.8 * 0.5 * log_prior)
    torch.testing.assert_close(space().multiplicative, torch.tensor([1.0, 0.5, 0.25]) ** 0.25)
    assert space.penalty().item() == pytest.approx((0.25 + 0.0625) / (2 * 0.25))
    with pytest.raises(InputError, match="w has no shared strength"):
        HierarchicalSpace([8, 4], learn=("weight",), deviations=False)
