"""Direction and scale of each estimator's hypergradient, against the true derivative.

    .venv/bin/python bench/accuracy.py [--quick] [--json FILE]

Double precision, on real images: the package's long-tailed sample of Fashion-MNIST. "cosine" and
"scale" (ratio of norms, 1 is right) compare with

linear, mlp: central finite differences of retraining the lower level. A linear head and a small
tanh network on 20 principal components, full batch, trained with coupled weight decay to a gradient
norm below 1e-8 (L-BFGS, then Newton's steps); every difference retrains from that optimum to the
same norm. Exact with curvature "hessian" must give them to all digits: it checks the reference.
Estimators that keep their solution take as many steps first as their row says.

training: as training goes on. An MLP on the images trains in batches of 128, with an upper step
every 5 steps that keeps the estimators' solutions up to date but leaves the loss as it is. At three
points training stops; 50 hypergradients are taken at these weights, each on a new batch, and their
mean is compared with a full-batch solve to convergence. "single" is the mean of their cosines.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autobalance.bilevel.execution import make_fabric
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, coupled_weight_decay
from autobalance.bilevel.lower_level import LowerLevel, TrainingOptions
from autobalance.data.array_data import ArrayData
from autobalance.data.batches import Batch
from autobalance.data.fashion import CLASSES, long_tailed_sample
from autobalance.data.splits import stratified_folds
from autobalance.functional.model import flatten, unflatten
from autobalance.hypergrad.implicit import Hypergradient, hypergradient
from autobalance.hypergrad.solvers import (
    ConjugateGradient,
    Exact,
    Identity,
    Neumann,
    Nystrom,
    SingleLoop,
    Solver,
)
from autobalance.objectives.aggregates import BalancedError
from autobalance.objectives.surrogates import SmoothError
from autobalance.records.settings import Recipe
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.tunable_loss import TunableCrossEntropy
from measuring import options_of, prepare, write_json

SOLVERS: dict[str, Solver] = {
    "single_loop": SingleLoop(),
    "single_loop_searching_always": SingleLoop(line_search_every=1),
    "identity": Identity(),
    "conjugate_gradient_5": ConjugateGradient(),
    "neumann_5": Neumann(),
    "nystrom_5": Nystrom(),
    "conjugate_gradient_5_hessian": ConjugateGradient(curvature="hessian"),
}
DEFAULT = next((name for name, s in SOLVERS.items() if s == DEFAULT_SOLVER), "default")
SOLVERS.setdefault(DEFAULT, DEFAULT_SOLVER)
EXACT: dict[str, Solver] = {"exact": Exact(), "exact_hessian": Exact(curvature="hessian")}
STEPS = (1, 5, 20, 80)  # of estimators that keep their solution; the last counts
TARGETS = {"linear": 0.95, "mlp": 0.8}
COMPONENTS, HIDDEN = 20, 12
TRAINING_STEPS = 600
# At a fixed temperature: a relative one is held fixed, which finite differences would not do.
OBJECTIVE = BalancedError(surrogate=SmoothError(temperature=1.0))


@dataclass(frozen=True)
class Agreement:
    """How a hypergradient compares with the true one."""

    cosine: float
    scale: float


def agreement(found: Tensor, truth: Tensor) -> Agreement:
    return Agreement(
        float(found @ truth / (found.norm() * truth.norm())), float(found.norm() / truth.norm())
    )


def flat(result: Hypergradient) -> Tensor:
    return flatten(result.gradients)


def sample() -> tuple[ArrayData, ArrayData]:
    """Training and validation part of the package's sample, pixels flat, in double precision."""
    images, target = long_tailed_sample()[0]
    data = ArrayData.of(images.reshape(len(images), -1), target, num_classes=len(CLASSES))
    data = replace(data, inputs=data.inputs.double())
    [(train, held)] = stratified_folds(data.cells(), 0.2, 1, torch.Generator().manual_seed(0))
    return data.subset(train), data.subset(held)


def whole(data: ArrayData) -> Batch:
    return data.batch(torch.arange(len(data)))


def new_loss(train: ArrayData) -> TunableCrossEntropy:
    return TunableCrossEntropy(HierarchicalSpace(train.counts()).double())


# Against retraining ---------------------------------------------------------------------------


class Lower:
    """The lower level, full batch: the training loss with weight decay, and its optimum."""

    def __init__(self, model: nn.Module, loss: TunableCrossEntropy, train: Batch, decay: float):
        self.model, self.loss, self.train, self.decay = model, loss, train, decay
        self.weights = list(model.parameters())
        self.inverse = torch.empty(0)

    def value(self) -> Tensor:
        fit = self.loss(self.model(self.train.inputs), self.train.target)
        return fit + self.decay / 2 * flatten(self.weights).square().sum()

    def gradient(self) -> Tensor:
        return flatten(torch.autograd.grad(self.value(), self.weights))

    def curvature(self) -> Tensor:
        """The exact Hessian, dense."""
        gradient = flatten(torch.autograd.grad(self.value(), self.weights, create_graph=True))
        rows = [flatten(torch.autograd.grad(g, self.weights, retain_graph=True)) for g in gradient]
        return torch.stack(rows)

    def train_fully(self, tolerance: float = 1e-11) -> float:
        """Train to a gradient norm below 1e-8 (and as far below as it goes); its norm."""
        self._descend()
        for _ in range(5):  # off a saddle, along its steepest way down
            values, directions = torch.linalg.eigh(self.curvature())
            if values[0] > 0:
                break
            self._move(-0.1 * directions[:, 0])
            self._descend()
        for _ in range(10):
            if float(self.gradient().norm()) < tolerance:
                break
            self.inverse = self._positive_inverse()
            self._move(self.inverse @ self.gradient())
        self.inverse = self._positive_inverse()
        norm = float(self.gradient().norm())
        if norm >= 1e-8:
            raise RuntimeError(f"The lower level stopped at a gradient norm of {norm:.1e}.")
        return norm

    def _descend(self) -> None:
        optimizer = torch.optim.LBFGS(
            self.weights,
            max_iter=5000,
            tolerance_grad=1e-7,
            tolerance_change=0.0,
            history_size=30,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            optimizer.zero_grad()
            value = self.value()
            value.backward()
            return float(value.detach())

        optimizer.step(closure)

    def retrain(self, tolerance: float = 1e-11) -> None:
        """From an optimum near by, with the curvature found there."""
        for _ in range(50):
            gradient = self.gradient()
            if float(gradient.norm()) < tolerance:
                return
            self._move(self.inverse @ gradient)
        norm = float(self.gradient().norm())
        raise RuntimeError(f"Retraining stopped at a gradient norm of {norm:.1e}.")

    def _positive_inverse(self) -> Tensor:
        curvature = self.curvature()
        smallest = float(torch.linalg.eigvalsh(curvature)[0])
        if smallest <= 0:
            raise RuntimeError(
                f"No minimum: the curvature's smallest eigenvalue is {smallest:.1e}."
            )
        return torch.linalg.inv(curvature)

    def _move(self, step: Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(self.weights, unflatten(step, self.weights), strict=True):
                p -= part


def by_retraining(lower: Lower, held: Batch, h: float = 1e-4) -> Tensor:
    """Central differences of the objective after retraining, free parameter by free parameter."""
    free = list(lower.loss.space.parameters())
    optimum = [p.detach().clone() for p in lower.weights]

    def value(step: Tensor) -> float:
        moved = Lower(lower.model, copy.deepcopy(lower.loss), lower.train, lower.decay)
        moved.inverse = lower.inverse
        with torch.no_grad():
            for p, start in zip(lower.weights, optimum, strict=True):
                p.copy_(start)
            for p, part in zip(moved.loss.space.parameters(), unflatten(step, free), strict=True):
                p += part
        moved.retrain()
        return float(OBJECTIVE(lower.model(held.inputs).detach(), held.target))

    unit = h * torch.eye(sum(p.numel() for p in free), dtype=torch.float64)
    slopes = [(value(e) - value(-e)) / (2 * h) for e in unit]
    with torch.no_grad():
        for p, start in zip(lower.weights, optimum, strict=True):
            p.copy_(start)
    return torch.tensor(slopes, dtype=torch.float64)


def against_retraining(network: str, decay: float) -> dict[str, Any]:
    """Agreement of every estimator, by the steps that it took first."""
    train, held = sample()
    mean = train.inputs.mean(dim=0)
    _, s, rows = torch.linalg.svd(train.inputs - mean, full_matrices=False)
    basis = rows[:COMPONENTS].T * (len(train) ** 0.5 / s[0])

    def reduced(data: ArrayData) -> Batch:
        return whole(replace(data, inputs=(data.inputs - mean) @ basis))

    torch.manual_seed(0)
    if network == "linear":
        model: nn.Module = nn.Linear(COMPONENTS, len(CLASSES))
    else:
        model = nn.Sequential(
            nn.Linear(COMPONENTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, len(CLASSES))
        )
    lower = Lower(model.double(), new_loss(train), reduced(train), decay)
    lower.train_fully()
    truth = by_retraining(lower, reduced(held))

    estimators: dict[str, dict[int, Agreement]] = {}
    for name, solver in {**SOLVERS, **EXACT}.items():
        solver_state: dict[str, Tensor] = {}
        estimators[name] = {}
        for step in range(1, STEPS[-1] + 1):
            result = hypergradient(
                model, lower.loss, OBJECTIVE, lower.train, reduced(held),
                solver=solver, weight_decay=decay, solver_state=solver_state,
            )  # fmt: skip
            solver_state = result.solution.solver_state
            if step in STEPS:
                estimators[name][step] = agreement(flat(result), truth)
            if not solver_state:
                break
    return {
        "weights": sum(p.numel() for p in lower.weights),
        "weight_decay": decay,
        "gradient_norm": float(lower.gradient().norm()),
        "estimators": {
            name: {str(step): asdict(found) for step, found in by_step.items()}
            for name, by_step in estimators.items()
        },
    }


# As training goes on --------------------------------------------------------------------------


@dataclass
class _Kept:
    """An estimator and the solution that it keeps."""

    solver: Solver
    solver_state: dict[str, Tensor]

    def hypergradient(
        self, lower: LowerLevel, loss: TunableCrossEntropy, train: Batch, held: Batch
    ) -> Hypergradient:
        result = hypergradient(
            lower.module, loss, BalancedError(), train, held, solver=self.solver,
            weight_decay=coupled_weight_decay(lower.optimizer, lower.module), solver_state=self.solver_state,
        )  # fmt: skip
        self.solver_state = result.solution.solver_state
        return result


def as_training_goes_on(points: Sequence[int], decay: float, draws: int = 50) -> dict[str, Any]:
    """Agreement of means of mini-batch hypergradients with full-batch solves, by training step."""
    train, held = sample()
    loss, validation = new_loss(train), whole(held)
    recipe = Recipe(
        optimizer="sgd", lr=0.05, weight_decay=decay, epochs=1, min_steps=TRAINING_STEPS
    )
    torch.manual_seed(0)
    lower = LowerLevel(
        lambda: nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)).double(),
        train,
        TrainingOptions(recipe),
        make_fabric("cpu", "64-true"),
    )
    kept = {name: _Kept(solver, {}) for name, solver in SOLVERS.items()}
    found: dict[str, Any] = {}
    while lower.done < max(points):
        fit = float(lower.step(loss))
        if lower.done % 5 == 0:
            for estimator in kept.values():
                if estimator.solver_state or lower.done == 5:
                    estimator.hypergradient(lower, loss, lower.recent[-1], validation)
        if lower.done not in points:
            continue
        full = _Kept(ConjugateGradient(iterations=150, tolerance=1e-3), {})
        solved = full.hypergradient(lower, loss, whole(train), validation)
        generator = torch.Generator().manual_seed(lower.done)
        drawn = [torch.randperm(len(train), generator=generator)[:128] for _ in range(draws)]
        found[str(lower.done)] = {
            "training_loss": fit,
            "residual": solved.solution.residual,
            "estimators": {},
        }
        for name, estimator in kept.items():
            here = copy.copy(estimator)  # training goes on from what was kept before
            each = [
                flat(here.hypergradient(lower, loss, train.batch(index), validation))
                for index in drawn
            ]
            single = sum(agreement(g, flat(solved)).cosine for g in each) / draws
            total = agreement(torch.stack(each).mean(dim=0), flat(solved))
            found[str(lower.done)]["estimators"][name] = {**asdict(total), "single": single}
    return {"weight_decay": decay, "points": found}


# ----------------------------------------------------------------------------------------------


def show_retraining(network: str, numbers: dict[str, Any]) -> None:
    print(
        f"\n{network}: {numbers['weights']} weights, weight decay {numbers['weight_decay']:g}; "
        f"target: cosine of {DEFAULT} at least {TARGETS[network]}"
    )
    print(f"{'estimator':30} {'steps':>5} {'cosine':>9} {'scale':>8}")
    for name, by_step in numbers["estimators"].items():
        for step, found in by_step.items():
            print(f"{name:30} {step:>5} {found['cosine']:9.4f} {found['scale']:8.3f}")


def show_training(numbers: dict[str, Any]) -> None:
    for step, point in numbers["points"].items():
        print(
            f"\ntraining, step {step}: training loss {point['training_loss']:.3f}, "
            f"weight decay {numbers['weight_decay']:g}, reference's residual "
            f"{point['residual']:.1e}"
        )
        print(f"{'estimator':30} {'cosine':>9} {'scale':>8} {'single':>9}")
        for name, e in point["estimators"].items():
            print(f"{name:30} {e['cosine']:9.4f} {e['scale']:8.3f} {e['single']:9.4f}")


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--weight-decay", type=float, default=1e-2, help="of linear and mlp")
    parser.add_argument("--training-weight-decay", type=float, default=5e-4)
    options = parser.parse_args()
    prepare(options.threads)
    numbers: dict[str, Any] = {"default": DEFAULT}
    for network in ("linear", "mlp"):
        numbers[network] = against_retraining(network, options.weight_decay)
        show_retraining(network, numbers[network])
    points = (50, 200) if options.quick else (50, 200, TRAINING_STEPS)
    draws = 10 if options.quick else 50
    numbers["training"] = as_training_goes_on(points, options.training_weight_decay, draws)
    show_training(numbers["training"])
    write_json(options.json, numbers)


if __name__ == "__main__":
    main()
