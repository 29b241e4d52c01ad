"""The trade-off between two objectives: one search that sweeps the weight between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autobalance.checks import InputError, fraction
from autobalance.data.batches import ArrayData
from autobalance.files import to_json
from autobalance.hypergrad import Solver
from autobalance.losses import ParametricCrossEntropy
from autobalance.objectives import GAPS, NAMED, Blend, Gap, Objective, SmoothError
from autobalance.searching import SearchRun
from autobalance.settings import Recipe, SearchSettings
from autobalance.spaces import SpaceFactory
from autobalance.training import (
    Interrupted,
    ModelFactory,
    Progress,
    ProgressListener,
    check_data,
    seeded,
)
from autobalance.tuner import DEFAULT_SOLVER

MIXES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CONTINUATION = 0.5
"""Share of a training run that each point after the first takes: ten cost 5.5 searches."""
SURROGATE = SmoothError(relative=0.2)
_FORMAT = "autobalance-frontier"


@dataclass(frozen=True)
class FrontierPoint:
    """One loss on the way.

    Attributes
    ----------
    mix : float
        Weight of the gap, in [0, 1); the main objective has ``1 - mix``.
    loss : ParametricCrossEntropy
        Designed for this blend; retrain with it.
    main, gap : float
        Both objectives over the 0-1 error, on held-out data, of the network searched with.
    constant : bool
        Whether that network has a class that it predicts for nobody: a gap of 0 is then worth
        nothing.
    """

    mix: float
    loss: ParametricCrossEntropy
    main: float
    gap: float
    constant: bool


@dataclass(frozen=True)
class Frontier:
    """What `frontier` found, in the order of the mixes.

    Attributes
    ----------
    points : list of FrontierPoint
        One per mix.
    main, gap : str
        The two objectives.
    training_runs : float
        What it cost, in training runs on the training split.
    settings : dict
        Recipe, search settings and sizes.
    """

    points: list[FrontierPoint]
    main: str
    gap: str
    training_runs: float
    settings: dict[str, Any]

    def non_dominated(self) -> list[FrontierPoint]:
        """Points that no other beats in one objective without losing in the other."""
        return [
            p
            for p in self.points
            if not p.constant
            and not any(
                q.main <= p.main and q.gap <= p.gap and (q.main, q.gap) != (p.main, p.gap)
                for q in self.points
                if not q.constant
            )
        ]

    def pick(self, *, gap: float | None = None, main: float | None = None) -> FrontierPoint:
        """The point of the lowest main objective with at most this gap, or the other way round.

        Both bounds are on held-out data; on new data leave a margin for its noise.

        Raises
        ------
        InputError
            If not exactly one bound is given, or no point keeps it; the message says what the
            nearest one has.
        """
        if (gap is None) == (main is None):
            raise InputError("Give one bound: pick(gap=0.05) or pick(main=0.2).")
        usable = [p for p in self.points if not p.constant]
        bounded, wanted = ("gap", "main") if main is None else ("main", "gap")
        limit = gap if main is None else main
        assert limit is not None
        kept = [p for p in usable if getattr(p, bounded) <= limit]
        if not kept:
            nearest = min((getattr(p, bounded) for p in usable), default=float("nan"))
            raise InputError(
                f"No point of the frontier has a {bounded} of at most {limit:g}; the lowest is "
                f"{nearest:.3f}. Raise the bound, or sweep further mixes."
            )
        return min(kept, key=lambda p: getattr(p, wanted))

    def to_dict(self) -> dict[str, Any]:
        """The record, in JSON's types."""
        return {
            "format": _FORMAT,
            "version": 1,
            "main": self.main,
            "gap": self.gap,
            "training_runs": self.training_runs,
            "settings": self.settings,
            "points": [{**vars(p), "loss": p.loss.to_dict()} for p in self.points],
        }

    def to_json(self) -> str:
        return to_json(self.to_dict())

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Frontier:
        """Inverse of `to_dict`."""
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise InputError("This is not a frontier of autobalance: its 'format' is not there.")
        try:
            points = [
                FrontierPoint(**{**p, "loss": ParametricCrossEntropy.from_dict(p["loss"])})
                for p in record["points"]
            ]
            rest = {k: record[k] for k in ("main", "gap", "training_runs", "settings")}
        except (KeyError, TypeError) as error:
            raise InputError(f"This frontier is incomplete or altered: {error}.") from None
        return cls(points, **rest)

    @classmethod
    def from_json(cls, text: str) -> Frontier:
        return cls.from_dict(json.loads(text))


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
) -> Frontier:
    """Losses along the trade-off (1 - mix) main + mix gap, each started from the last one's.

    The first is a whole search. For each further mix, network and loss go on from where they are,
    over half a training run; so ten points cost 5.5 searches. Retraining is up to you:
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

    Raises
    ------
    InputError
        If the data has no groups, a name is unknown, or mixes are not rising within [0, 1).
    TrainingDiverged, Interrupted
        As for `search`; `partial` is the `Frontier` of the points so far.
    """
    recipe, settings = recipe or Recipe(), settings or SearchSettings()
    check_data(data)
    objectives = _objectives(main, gap, mixes)
    if data.groups is None:
        raise InputError(
            f"The frontier of {main} and {gap} compares groups, but the data has none. Pass groups "
            "(sensitive_features, --groups)."
        )
    points: list[FrontierPoint] = []
    runs = 0.0
    with seeded(seed):
        run = SearchRun(
            model_factory, data, validation, objectives[0], space, recipe, settings, solver, seed,
            device, None,
        )  # fmt: skip

        def found() -> Frontier:
            return Frontier(points, main, gap, runs, dict(run.record))

        try:
            for i, (mix, objective) in enumerate(zip(mixes, objectives, strict=True)):
                if i > 0:
                    run.go_on(objective, CONTINUATION)
                run.run(_within(progress, i, len(mixes)))
                runs += len(run.folds) * (1.0 if i == 0 else CONTINUATION)
                points.append(_point(mix, run, main, gap))
        except KeyboardInterrupt:
            raise Interrupted(found()) from None
    return found()


def _objectives(main: str, gap: str, mixes: Sequence[float]) -> list[Objective]:
    known = NAMED | GAPS
    for role, name in (("main", main), ("gap", gap)):
        if name not in known:
            raise InputError(f"{role} must be one of {', '.join(sorted(known))}; got {name!r}.")
    values = np.asarray(mixes, dtype=float)
    if not len(values) or (np.diff(values) <= 0).any() or values[0] < 0 or values[-1] >= 1:
        raise InputError(f"mixes must rise within [0, 1); got {list(mixes)}.")
    if isinstance(known[main], Gap):
        raise InputError(f"main must not be a gap; got {main!r}. Swap it with gap={gap!r}.")
    return [_blend(known[main], known[gap], mix) for mix in values.tolist()]


def _blend(main: Objective, gap: Objective, mix: float) -> Objective:
    """As `Blend.of`, and with no gap at all the main objective over the same cells."""
    if mix == 0.0:
        return Blend(parts=((1.0, main), (1e-6, gap)), surrogate=SURROGATE)
    parts = ((1.0 - fraction("mix", mix), main), (mix, gap))
    return Blend(parts=parts, surrogate=SURROGATE)


def _point(mix: float, run: SearchRun, main: str, gap: str) -> FrontierPoint:
    known = NAMED | GAPS
    total, mass = run.held_out_errors()
    by_class = total.sum(dim=0) / mass.sum(dim=0).clamp(min=1.0)
    return FrontierPoint(
        mix=mix,
        loss=run.result("finished").loss,
        main=float(known[main].value(total, mass)),
        gap=float(known[gap].value(total, mass)),
        constant=bool((by_class >= 1.0).any()),
    )


def _within(progress: ProgressListener | None, i: int, points: int) -> ProgressListener | None:
    """Progress of point i as that of the whole sweep."""
    if progress is None:
        return None
    return lambda p: progress(
        Progress("search", i * p.total + p.step, points * p.total, p.objective)
    )
