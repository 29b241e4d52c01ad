"""Fisher consistency of the loss for the balanced error, numerically.

    .venv/bin/python bench/consistency.py [--json FILE]

A known distribution on six points with three classes of 80, 15 and 5 %. For each loss the minimiser
of the expected loss is found by Newton's method in double precision, through the library's own loss,
and compared with the formula f_k = (log(w_k p(k|x)) + a(x) - l_k) / delta_k. The loss does not see
a(x), so it is fixed by a gauge: sum_k f_k = 0 ("sum"), or sum_k f_k / delta_k = 0 ("decay"), which is
what weight decay leads to. "formula" is the largest difference between the two; the errors are
balanced errors of argmax f in percent. "Bayes" is the share of random distributions on which
argmax f is the Bayes rule of the balanced error at every point, "excess" the mean excess of the
balanced error over the optimum there, in points.

"decay" itself is checked by minimising the loss plus weight decay of a linear model (one input per
point, and a bias), and by training that model with stochastic gradient descent and without decay.
See docs/explanation/consistency.md for the derivation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

from autobalance.losses.modules import ParametricCrossEntropy
from measuring import write_json

PRIOR = (0.80, 0.15, 0.05)
LIKELIHOOD = (
    (0.34, 0.30, 0.20, 0.12, 0.03, 0.01),
    (0.05, 0.15, 0.20, 0.25, 0.25, 0.10),
    (0.02, 0.08, 0.21, 0.19, 0.24, 0.26),
)
GAUGES = ("sum", "decay")
RANDOM = 2000
CONCENTRATION = 1.0  # of the Dirichlet distribution that p(x | k) is drawn from
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Distribution:
    """A known distribution on finitely many points.

    Parameters
    ----------
    prior : ndarray
        pi_k, shape ``(k,)``, above 0, sums to 1.
    likelihood : ndarray
        p(x | k), shape ``(..., k, m)`` for m points, above 0, rows sum to 1.
    """

    prior: np.ndarray
    likelihood: np.ndarray

    @property
    def joint(self) -> np.ndarray:
        """p(x, k), shape ``(..., m, k)``."""
        return np.swapaxes(self.likelihood, -1, -2) * self.prior

    def balanced_error(self, decision: np.ndarray) -> np.ndarray:
        """Of the class decided at each point, shape ``(..., m)``; one number per distribution."""
        right = np.take_along_axis(self.likelihood, decision[..., None, :], axis=-2)
        return 1.0 - right.sum(axis=(-1, -2)) / len(self.prior)

    def bayes(self) -> np.ndarray:
        """The rule of least balanced error, argmax_k p(k|x) / pi_k = argmax_k p(x|k)."""
        return self.likelihood.argmax(axis=-2)


@dataclass(frozen=True)
class Losses:
    """w, l and delta of a loss, each of shape ``(k,)``."""

    weight: np.ndarray
    additive: np.ndarray
    multiplicative: np.ndarray

    @classmethod
    def of(cls, loss: ParametricCrossEntropy, classes: int) -> Losses:
        found = loss.parameters_of_loss
        unused = (np.ones(classes), np.zeros(classes), np.ones(classes))
        return cls(
            *(
                default if p is None else p.double().numpy()
                for p, default in zip(found, unused, strict=True)
            )
        )


def gauge_vector(multiplicative: np.ndarray, gauge: str) -> np.ndarray:
    """g, such that sum_k g_k f_k = 0 fixes what the loss leaves free."""
    return {"sum": np.ones_like(multiplicative), "decay": 1.0 / multiplicative}[gauge]


def by_formula(joint: np.ndarray, p: Losses, gauge: str) -> np.ndarray:
    """The minimiser of the expected loss, shape ``(..., m, k)``: softmax(delta f + l) ~ w p(k|x)."""
    level = np.log(p.weight * joint / joint.sum(axis=-1, keepdims=True)) - p.additive
    share = gauge_vector(p.multiplicative, gauge) / p.multiplicative
    mean = (level * share).sum(axis=-1, keepdims=True) / share.sum()
    return (level - mean) / p.multiplicative


def consistent(prior: np.ndarray, p: Losses, tolerance: float = 1e-6) -> bool:
    """Whether argmax f is the Bayes rule of the balanced error for all p(x | k).

    l_k - log w_k - log pi_k must be the same for all k; with more than two classes delta as well.
    """
    offset = p.additive - np.log(p.weight) - np.log(prior)
    additive = bool(np.ptp(offset) < tolerance)
    return additive and (len(prior) == 2 or bool(np.ptp(p.multiplicative) < tolerance))


def newton(value: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimiser of a strictly convex function of a vector, by damped Newton's method.

    Raises
    ------
    RuntimeError
        If the gradient's largest entry stays above 1e-12.
    """
    at, size = start, float("inf")
    for _ in range(200):
        point = at.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(value(point), point)
        size = float(gradient.abs().max())
        if size < TOLERANCE:
            return at
        step = torch.linalg.solve(cast(Tensor, hessian(value, at)), gradient)
        here, slope, length = float(value(at)), float(gradient @ step), 1.0
        # Where the decrease is below rounding the full step is taken as it is.
        while slope > 1e-14 and float(value(at - length * step)) > here - slope * length / 4:
            length /= 2
        at = at - length * step
    raise RuntimeError(f"Newton's method stopped at a gradient of {size:.1e}.")


def expected_loss(joint: np.ndarray, loss: ParametricCrossEntropy) -> Callable[[Tensor], Tensor]:
    """The library's loss of logits ``(m, k)``, in expectation over p(x, k) ``(m, k)``.

    It is divided by the expected weight, as the library's mean is; that moves no minimum.
    """
    points, classes = joint.shape
    target = torch.arange(classes).repeat(points)
    share = torch.from_numpy(joint.reshape(-1).copy())
    return lambda f: loss(f.repeat_interleave(classes, dim=0), target, sample_weight=share)


def by_minimising(joint: np.ndarray, loss: ParametricCrossEntropy, gauge: str) -> np.ndarray:
    """The minimiser of the expected loss among logits of the gauge, found numerically."""
    points, classes = joint.shape
    g = gauge_vector(Losses.of(loss, classes).multiplicative, gauge)
    basis = torch.linalg.svd(torch.from_numpy(g[None]), full_matrices=True).Vh[1:]
    value = expected_loss(joint, loss)
    free = torch.zeros(points * (classes - 1), dtype=torch.float64)
    found = newton(lambda v: value(v.reshape(points, classes - 1) @ basis), free)
    return (found.reshape(points, classes - 1) @ basis).numpy()


# What weight decay does to the gauge ----------------------------------------------------------


def by_decay(joint: np.ndarray, loss: ParametricCrossEntropy, decay: float) -> np.ndarray:
    """Logits of a linear model, an input per point and a bias, trained with weight decay to the end."""
    points, classes = joint.shape
    value = expected_loss(joint, loss)

    def penalised(v: Tensor) -> Tensor:
        table = v.reshape(points + 1, classes)
        return value(table[:-1] + table[-1]) + decay / 2 * v.square().sum()

    found = newton(penalised, torch.zeros((points + 1) * classes, dtype=torch.float64))
    table = found.reshape(points + 1, classes)
    return (table[:-1] + table[-1]).numpy()


def drift_in_training(joint: np.ndarray, loss: ParametricCrossEntropy, steps: int = 300) -> Any:
    """How far sum_k f_k / delta_k and sum_k f_k move, at most, under SGD without weight decay.

    From random weights, with momentum 0.9 and learning rate 0.5; a new batch of 32 at each step.
    """
    points, classes = joint.shape
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(points, classes).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    inputs = torch.eye(points, dtype=torch.float64)
    delta = Losses.of(loss, classes).multiplicative
    vectors = {g: torch.from_numpy(gauge_vector(delta, g)) for g in GAUGES}

    def sums() -> dict[str, Tensor]:
        return {name: model(inputs).detach() @ g for name, g in vectors.items()}

    before = sums()
    share = torch.from_numpy(joint.reshape(-1).copy())
    for _ in range(steps):
        drawn = torch.multinomial(share, 32, replacement=True, generator=generator)
        optimizer.zero_grad()
        loss(model(inputs[drawn // classes]), drawn % classes).backward()
        optimizer.step()
    after = sums()
    return {name: float((after[name] - before[name]).abs().max()) for name in vectors}


# ----------------------------------------------------------------------------------------------


def cases(prior: np.ndarray) -> dict[str, ParametricCrossEntropy]:
    """The losses compared, by name; published ones from the library, for 10,000 examples."""
    counts = np.round(10_000 * prior)
    log_prior = torch.from_numpy(np.log(prior))
    make = ParametricCrossEntropy
    found = {
        "cross-entropy": make.cross_entropy(),
        "class weights 1 / pi": make.class_weighted(counts),
        "LA, tau = 1": make.logit_adjusted(counts),
        "LA, tau = 1, delta = 2 for all": make(
            additive=log_prior, multiplicative=torch.full((len(prior),), 2.0)
        ),
        "half and half: w = pi^-1/2, tau = 1/2": make(
            weight=(-log_prior / 2).exp(), additive=log_prior / 2
        ),
        "LA, tau = 0.5": make.logit_adjusted(counts, tau=0.5),
        "LA, tau = 1.5": make.logit_adjusted(counts, tau=1.5),
        "class weights and LA, both": make(weight=(-log_prior).exp(), additive=log_prior),
        "CDT, gamma = 0.3": make.class_dependent_temperature(counts),
        "VS, gamma = 0.15, tau = 1": make.vector_scaling(counts, tau=1.0),
        "VS, gamma = 0.3, tau = 1": make.vector_scaling(counts, gamma=0.3, tau=1.0),
        "VS, gamma = 0.15, tau = 1.25": make.vector_scaling(counts),
    }
    return {name: loss.double() for name, loss in found.items()}


def random_distributions(prior: np.ndarray, points: int = 6, seed: int = 0) -> Distribution:
    """`RANDOM` of them with this prior, p(x | k) drawn evenly from the simplex."""
    generator = np.random.default_rng(seed)
    shape = (RANDOM, len(prior))
    drawn = generator.dirichlet(np.full(points, CONCENTRATION), size=shape)
    return Distribution(prior, np.maximum(drawn, 1e-12))


def study(prior: tuple[float, ...], likelihood: tuple[tuple[float, ...], ...]) -> dict[str, Any]:
    """Every loss on the known distribution and on random ones."""
    known = Distribution(np.array(prior), np.array(likelihood))
    drawn = random_distributions(known.prior)
    optimum, best = float(known.balanced_error(known.bayes())), drawn.balanced_error(drawn.bayes())
    rows: dict[str, Any] = {}
    for name, loss in cases(known.prior).items():
        p = Losses.of(loss, len(prior))
        row: dict[str, Any] = {"consistent": consistent(known.prior, p)}
        for gauge in GAUGES:
            found = by_minimising(known.joint, loss, gauge)
            formula = by_formula(known.joint, p, gauge)
            decided = by_formula(drawn.joint, p, gauge).argmax(axis=-1)
            row[gauge] = {
                "formula": float(np.abs(found - formula).max()),
                "balanced_error": float(known.balanced_error(found.argmax(axis=-1))),
                "bayes": float((decided == drawn.bayes()).all(axis=-1).mean()),
                "excess": float((drawn.balanced_error(decided) - best).mean()),
            }
        rows[name] = row
    return {"prior": list(prior), "optimum": optimum, "losses": rows}


def decay_study(name: str = "VS, gamma = 0.3, tau = 1") -> dict[str, Any]:
    """Where weight decay and plain training leave the two sums."""
    known = Distribution(np.array(PRIOR), np.array(LIKELIHOOD))
    loss = cases(known.prior)[name]
    p = Losses.of(loss, len(PRIOR))
    rows = {}
    for decay in (1e-2, 1e-4, 1e-6, 1e-8):
        f = by_decay(known.joint, loss, decay)
        rows[f"{decay:g}"] = {
            **{g: float(np.abs(f @ gauge_vector(p.multiplicative, g)).max()) for g in GAUGES},
            "distance": float(np.abs(f - by_formula(known.joint, p, "decay")).max()),
        }
    return {"loss": name, "decay": rows, "training": drift_in_training(known.joint, loss)}


def show(title: str, numbers: dict[str, Any]) -> None:
    print(f"\n{title}; optimal balanced error {100 * numbers['optimum']:.1f}")
    print(f"{'':38} {'':10} {'':8} {'error':>13} {'Bayes, %':>13} {'excess':>13}")
    gauges = " ".join(f"{g:>6}" for g in GAUGES)
    print(f"{'loss':38} {'consistent':10} {'formula':>8} {gauges} {gauges} {gauges}")
    for name, row in numbers["losses"].items():
        worst = max(row[g]["formula"] for g in GAUGES)
        columns = [
            f"{100 * row[g][key]:6.{digits}f}"
            for key, digits in (("balanced_error", 1), ("bayes", 1), ("excess", 2))
            for g in GAUGES
        ]
        print(
            f"{name:38} {'yes' if row['consistent'] else 'no':10} {worst:8.0e} {' '.join(columns)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write every number here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = {
        "three_classes": study(PRIOR, LIKELIHOOD),
        "two_classes": study((0.9, 0.1), (LIKELIHOOD[0], LIKELIHOOD[2])),
        "weight_decay": decay_study(),
    }
    show("three classes of 80, 15 and 5 %", numbers["three_classes"])
    show("two classes of 90 and 10 %", numbers["two_classes"])
    decayed = numbers["weight_decay"]
    print(f"\nweight decay, {decayed['loss']}: largest sums over the points")
    print(f"{'decay':>8} {'sum f':>9} {'sum f / delta':>14} {'to gauge decay':>15}")
    for decay, row in decayed["decay"].items():
        print(f"{decay:>8} {row['sum']:9.1e} {row['decay']:14.1e} {row['distance']:15.1e}")
    moved = decayed["training"]
    print(
        f"SGD without decay moves sum f by {moved['sum']:.1e}, sum f / delta by {moved['decay']:.1e}"
    )
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
