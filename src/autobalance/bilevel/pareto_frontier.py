"""The trade-off between two objectives: one search that sweeps the weight between them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from autobalance._validation import InputError, TrainingDiverged, fraction, number, shown
from autobalance.bilevel.candidate_selection import Outcomes, train_candidates
from autobalance.bilevel.execution import check_options, seed_random_state
from autobalance.bilevel.held_out import absent_cells, count_errors, splits_of
from autobalance.bilevel.loggers import LoggerAdapter, MetricLogger
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER
from autobalance.bilevel.network_search import NetworkSearch, build_network_search
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import Interrupted, ModelFactory, Progress, ProgressListener
from autobalance.data import ArrayData, as_data, reading
from autobalance.hypergrad import Solver
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import GAPS, NAMED, Blend, Gap, Objective, SmoothError, group_class_sums
from autobalance.records import (
    ErrorTable,
    Recipe,
    SearchSettings,
    check_format,
    parsed_record,
    to_json,
)
from autobalance.spaces import (
    DesignSpace,
    GroupSpace,
    SpaceFactory,
    TunableCrossEntropy,
    WithUnknownGroup,
)

MIXES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CONTINUATION = 0.5
"""Share of a training run that each point after the first takes: ten cost 5.5 runs."""
SURROGATE = SmoothError(relative=0.2)
KNOWN: dict[str, Objective] = NAMED | GAPS
_FORMAT = "autobalance-frontier"
_WHAT = "a frontier of autobalance"
_REST = ("main", "gap", "training_runs", "settings", "seed", "seconds")


@dataclass(frozen=True)
class FrontierPoint:
    """One loss on the way.

    Attributes
    ----------
    mix : float
        Weight of the gap, in [0, 1); the main objective has ``1 - mix``.
    loss : ParametricCrossEntropy
        Designed for this blend; retrain with it.
    main, gap : float or None
        Both objectives over the 0-1 error, on held-out data, of the network searched with. None where
        one is not defined, as a gap is not where a group has no example of some class.
    constant : bool
        Whether some class's held-out examples are all predicted wrongly, as by a network that
        predicts one class for everyone: a small gap is then worth nothing.
    undefined : dict
        Why "main" or "gap" is None, as a sentence goes on after "for"; empty where both are numbers.
    """

    mix: float
    loss: ParametricCrossEntropy
    main: float | None
    gap: float | None
    constant: bool
    undefined: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields, in JSON's types; `undefined` only where something is."""
        return {**_point_fields(self), "loss": self.loss.to_dict()}


@dataclass(frozen=True)
class Baseline:
    """A published loss by its name in words, measured on the splits of a frontier as a `FrontierPoint`."""

    title: str
    main: float | None
    gap: float | None
    constant: bool
    undefined: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields, in JSON's types; `undefined` only where something is."""
        return _point_fields(self)


def _point_fields(point: FrontierPoint | Baseline) -> dict[str, Any]:
    return {k: v for k, v in vars(point).items() if k != "undefined" or v}


@dataclass(frozen=True)
class Frontier:
    """What `frontier` found, in the order of the mixes.

    Attributes
    ----------
    points : list of FrontierPoint
        One per mix.
    main, gap : str
        Names of the two objectives.
    start, training_runs, settings, seed, seconds
        As of a `SearchResult`; `settings` names no objective, as each point has its own.
    """

    points: list[FrontierPoint]
    start: ParametricCrossEntropy
    main: str
    gap: str
    training_runs: float
    settings: dict[str, Any]
    seed: int
    seconds: dict[str, float]

    def non_dominated(self) -> list[FrontierPoint]:
        """Points that no other beats in one objective without losing in the other, where both are defined."""
        usable = [
            (p, p.main, p.gap)
            for p in self.points
            if not p.constant and p.main is not None and p.gap is not None
        ]
        return [
            p
            for p, main, gap in usable
            if not any(a <= main and b <= gap and (a, b) != (main, gap) for _, a, b in usable)
        ]

    def pick(self, *, gap: float | None = None, main: float | None = None) -> FrontierPoint:
        """The point of the lowest main objective with at most this gap, or the other way round.

        Both bounds are on held-out data; on new data leave a margin for its noise.

        Raises
        ------
        InputError
            If not exactly one bound is given, or no point keeps it; the message says what the
            nearest one has. Points with a `constant` network are never picked, nor any where one of
            the objectives is not defined, as the gap is not where a group has no held-out example of
            some class.
        """
        if (gap is None) == (main is None):
            raise InputError("Give one bound: pick(gap=0.05) or pick(main=0.2).")
        usable = [p for p in self.points if not p.constant]
        bounded, wanted, limit = ("gap", "main", gap) if main is None else ("main", "gap", main)
        if not usable:
            raise InputError(
                f"None of the frontier's {len(self.points)} points can be picked: each has a class "
                "whose held-out examples are all wrong. Train for longer, or sweep smaller mixes."
            )
        limit = number(bounded, cast(float, limit))
        for role, reason in usable[0].undefined.items():
            # All points are measured on the same held-out examples.
            raise InputError(
                f"The {getattr(self, role)} of the frontier is not defined on its held-out data, for "
                f"{reason}, so no point can be picked by it. Merge small groups, or add data; or take "
                "one of `points` for another reason."
            )
        allowed = [p for p in usable if getattr(p, bounded) <= limit]
        if not allowed:
            nearest = min(getattr(p, bounded) for p in usable)
            raise InputError(
                f"No point of the frontier has a {bounded} of at most {limit:g}; the lowest is "
                f"{nearest:.4f}. Raise the bound, or sweep further mixes."
            )
        return min(allowed, key=lambda p: getattr(p, wanted))

    def result(self, point: FrontierPoint) -> SearchResult:
        """A point as the result of a search, for what takes one; without the search's history."""
        blend = f"{1.0 - point.mix:g} * {self.main} + {point.mix:g} * {self.gap}"
        return SearchResult(
            loss=point.loss, start=self.start, history=[], path=[], design={},
            settings={**self.settings, "objective": blend}, seed=self.seed, seconds=self.seconds,
            training_runs=self.training_runs,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The record, in JSON's types."""
        return {
            "format": _FORMAT,
            "version": 1,
            **{name: getattr(self, name) for name in _REST},
            "start": self.start.to_dict(),
            "points": [p.to_dict() for p in self.points],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return to_json(self.to_dict())

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Frontier:
        """Inverse of `to_dict`.

        Raises
        ------
        InputError
            If the record was not written by autobalance, or in another version of the format.
        """
        check_format(record, _FORMAT, _WHAT, "frontier")
        try:
            points = [
                FrontierPoint(**{**p, "loss": ParametricCrossEntropy.from_dict(p["loss"])})
                for p in record["points"]
            ]
            start = ParametricCrossEntropy.from_dict(record["start"])
            return cls(points, start, **{name: record[name] for name in _REST})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"This frontier is incomplete or altered: {error}.") from None

    @classmethod
    def from_json(cls, text: str) -> Frontier:
        """Inverse of `to_json`; see `from_dict`."""
        return cls.from_dict(parsed_record(text, _WHAT))


def frontier(
    model_factory: ModelFactory,
    data: ArrayData,
    *,
    validation: ArrayData | None = None,
    main: str = "balanced_error",
    gap: str = "deo",
    mixes: Sequence[float] = MIXES,
    space: SpaceFactory | None = None,
    recipe: Recipe | None = None,
    settings: SearchSettings | None = None,
    solver: Solver = DEFAULT_SOLVER,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressListener | None = None,
    logger: MetricLogger | None = None,
) -> Frontier:
    """Losses along the trade-off (1 - mix) main + mix gap, each started from the last one's.

    The first is a whole search. For each further mix, network and loss go on from where they are,
    over half a training run; so ten points cost 5.5 training runs a fold. There is no final choice
    over folds (`SearchSettings.choose`). Retraining is up to you:
    ``retrain(model_factory, data, result.pick(gap=0.05).loss)``.

    Parameters
    ----------
    model_factory, data, validation, space, recipe, settings, solver, seed, device, progress
        As for `autobalance.search`; `data` needs groups.
    main : str
        What is to stay small, a name of `autobalance.objectives.NAMED`.
    gap : str
        What it is traded for, a name of `autobalance.objectives.GAPS` or `NAMED`.
    mixes : sequence of float
        Weights of the gap, rising, in [0, 1). At 1 a constant classifier would win.
    logger : MetricLogger, optional
        Told the numbers of every upper step and of every point; see `autobalance.bilevel.loggers`.

    Raises
    ------
    InputError
        If the data has no groups or fewer than two are held out, a name is unknown, mixes are
        not rising within [0, 1), or training is too short for an upper step at each of them.
    TrainingDiverged, Interrupted
        As for `search`; `partial` is the `Frontier` of the points so far.
    """
    check_options(recipe, settings, seed, progress)
    recipe, settings = recipe or Recipe(), replace(settings or SearchSettings(), choose=False)
    data = as_data(data)
    validation = None if validation is None else as_data(validation, "validation")
    weights = _weights(mixes)
    objectives = _objectives(main, gap, weights)
    if (data if validation is None else validation).groups is None:
        raise InputError(
            f"The frontier of {main} and {gap} compares groups, but the data has none. Pass groups "
            "(sensitive_features, --groups)."
        )
    spec = SearchSpec(
        model_factory=model_factory, data=data, validation=validation, objective=objectives[0],
        space=space, recipe=recipe, settings=settings, solver=solver, seed=seed, device=device,
    )  # fmt: skip
    with seed_random_state(seed), reading(data, validation):
        sweep = _Sweep(build_network_search(spec), main, gap, len(weights))
        log = LoggerAdapter(logger, writes=sweep.run.problem.processes.rank == 0)
        _check_held_out(np.asarray(sweep.run.settings["validation_counts"]))
        _check_upper_steps(sweep.later_steps, settings.every, len(weights))
        try:
            with log.open():
                for mix, objective in zip(weights, objectives, strict=True):
                    sweep.append_point(mix, objective, progress or (lambda _: None), log)
        except TrainingDiverged as error:
            error.partial = sweep.frontier()
            raise
        except KeyboardInterrupt:
            raise Interrupted(sweep.frontier()) from None
        return sweep.frontier()


class _Sweep:
    """One search that goes on from point to point of a frontier."""

    def __init__(self, run: NetworkSearch, main: str, gap: str, count: int) -> None:
        self.run, self.main, self.gap = run, main, gap
        self.first_steps = run.total
        self.later_steps = max(1, round(CONTINUATION * run.total))
        self.total = self.first_steps + (count - 1) * self.later_steps
        self.points: list[FrontierPoint] = []
        self.training_runs = 0.0

    def append_point(
        self, mix: float, objective: Objective, listener: ProgressListener, log: LoggerAdapter
    ) -> None:
        """Search for the blend's loss, from where the last point left off."""
        run, before = self.run, 0
        if self.points:
            run.switch_objective(objective, CONTINUATION)
            before = self.first_steps + (len(self.points) - 1) * self.later_steps
        log.step_offset = before

        def told(p: Progress) -> None:
            listener(replace(p, phase="search", step=before + p.step, total=self.total))

        try:
            run.run(told, log)
        finally:
            self.training_runs += len(run.problem.cells) * run.done / self.first_steps
        if run.done < run.total:  # it stopped early
            told(Progress("search", run.total, run.total))
        total, mass, _ = count_errors(run.problem.splits, run.problem.predict_held_out())
        values = _measure(total, mass, self.main, self.gap)
        self.points.append(FrontierPoint(mix, run.result("finished").loss, *values))
        point = vars(self.points[-1])
        known = [name for name in ("mix", "main", "gap") if point[name] is not None]
        log.write({f"frontier/{name}": point[name] for name in known}, run.done)

    def frontier(self) -> Frontier:
        """The points so far."""
        settings = {k: v for k, v in self.run.settings.items() if k != "objective"}
        return Frontier(
            self.points, self.run.start, self.main, self.gap, self.training_runs, settings,
            self.run.spec.seed, self.run.recorder.seconds(),
        )  # fmt: skip


def baselines(
    model_factory: ModelFactory,
    data: ArrayData,
    *,
    validation: ArrayData | None = None,
    main: str = "balanced_error",
    gap: str = "deo",
    recipe: Recipe | None = None,
    settings: SearchSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressListener | None = None,
) -> list[Baseline]:
    """What a frontier is to be compared with, trained and measured on the same splits.

    Cross-entropy, logit adjustment over the classes, and logit adjustment within each group,
    l_kg = log P(k | g); one training run for each and fold.

    Parameters
    ----------
    model_factory, data, validation, main, gap, recipe, settings, seed, device, progress
        As for `frontier`.

    Raises
    ------
    InputError, TrainingDiverged, Interrupted
        As for `frontier`; on Ctrl-C `partial` is None.
    """
    recipe, settings = recipe or Recipe(), settings or SearchSettings()
    data = as_data(data)
    _objectives(main, gap, [0.0])
    counts = np.atleast_2d(data.masses())
    if data.groups is None:
        raise InputError("A baseline of groups needs data with groups.")
    by_group: DesignSpace = GroupSpace(data.masses())
    if data.unknown:
        by_group = WithUnknownGroup(by_group)
    losses = {
        "cross-entropy": ParametricCrossEntropy.cross_entropy(),
        "logit adjustment": ParametricCrossEntropy.logit_adjusted(counts.sum(axis=0)),
        "logit adjustment by group": TunableCrossEntropy(by_group).frozen(),
    }
    spec = SearchSpec(
        model_factory=model_factory, data=data, recipe=recipe, seed=seed, device=device
    )
    splits = splits_of(data, validation, settings, seed)
    outcomes: Outcomes = {}
    try:
        train_candidates(spec, splits, losses, {}, outcomes, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted(None) from None
    labels = [held.pixels() for _, held in splits]
    target, groups = (
        torch.cat([t for t in parts if t is not None])
        for parts in zip(*((held.target, held.groups) for held in labels), strict=True)
    )
    weight = None
    if data.sample_weight is not None:
        weight = torch.cat([held.row_weights() for held in labels])
    results = []
    for title, predicted in outcomes.items():
        wrong = (torch.cat(predicted) != target.cpu()).to(target.device).double()
        sums = group_class_sums(wrong, target, groups, data.num_classes, weight)
        results.append(Baseline(title, *_measure(*sums, main, gap)))
    return results


def _weights(mixes: Sequence[float]) -> list[float]:
    try:
        values = [float(number("a mix", mix)) for mix in mixes]
    except TypeError:
        raise InputError(f"mixes must be a sequence of numbers; got {mixes!r}.") from None
    rising = all(b > a for a, b in pairwise(values))
    if not values or not rising or not (values[0] >= 0 and values[-1] < 1):
        raise InputError(f"mixes must rise within [0, 1); got {values}.")
    return values


def _objectives(main: str, gap: str, mixes: Sequence[float]) -> list[Objective]:
    for role, name in (("main", main), ("gap", gap)):
        if not isinstance(name, str) or name not in KNOWN:
            raise InputError(
                f"{role} must be one of {', '.join(sorted(KNOWN))}; got {shown(name)}."
            )
    if isinstance(KNOWN[main], Gap):
        raise InputError(
            f"main must not be a gap, which a classifier that predicts one class wins; got {main!r}. "
            "Take balanced_error, with the gap as gap."
        )
    if main == gap:
        raise InputError(f"main and gap are the same objective, {main!r}. Give two.")
    return [_blend(KNOWN[main], KNOWN[gap], mix) for mix in mixes]


def _blend(main: Objective, gap: Objective, mix: float) -> Objective:
    """As `Blend.of`, and with no gap at all the main objective over the same cells."""
    parts = (
        ((1.0, main), (1e-6, gap))
        if mix == 0.0
        else ((1.0 - fraction("mix", mix), main), (mix, gap))
    )
    return Blend(parts=parts, surrogate=SURROGATE)


def _check_held_out(counts: np.ndarray) -> None:
    """Of held-out examples per group and class ``(g, k)``: refuse one group, tell of gaps in it."""
    by_group = counts.sum(axis=1)
    if (by_group > 0).sum() < 2:
        raise InputError(
            "Fewer than two groups have held-out examples (by group: "
            f"{by_group.astype(int).tolist()}), so there is no gap to see. Give each class and group "
            "at least 3 examples: merge small groups, or add data."
        )
    absent = absent_cells(counts)
    if absent:
        warnings.warn(
            f"{absent} Of a group that has other classes, a gap or a worst case is not defined, and no point "
            "can be picked by it; a group that has none is left out. Merge small groups, or add data.",
            stacklevel=3,
        )


def _check_upper_steps(steps: int, every: int, points: int) -> None:
    if points > 1 and steps - round(0.1 * steps) < every:
        raise InputError(
            f"Each point after the first takes {steps} training steps, too few for an upper step "
            f"every {every}. Raise min_steps or epochs of the recipe, or lower every."
        )


def _measure(
    total: Tensor, mass: Tensor, main: str, gap: str
) -> tuple[float | None, float | None, bool, dict[str, str]]:
    """Main, gap, constant and what is not defined, from sums of the 0-1 error per group and class."""
    wrong, seen = total.sum(dim=0), mass.sum(dim=0)
    table = ErrorTable.from_counts(total.cpu().numpy(), mass.cpu().numpy())
    names = {"main": main, "gap": gap}
    reasons = {r: table.undefined(n) for r, n in names.items() if hasattr(ErrorTable, n)}
    undefined = {role: reason for role, reason in reasons.items() if reason is not None}
    values = [
        None if role in undefined else float(KNOWN[name].value(total, mass))
        for role, name in names.items()
    ]
    return values[0], values[1], bool(((wrong == seen) & (seen > 0)).any()), undefined
