"""Objectives, solvers and spaces as plain dicts and back, for every class that there is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from autobalance._validation import InputError
from autobalance.hypergrad import solvers
from autobalance.hypergrad.solvers import SingleLoop, Solver
from autobalance.objectives.aggregates import (
    BalancedError,
    CVaRError,
    ErrorDeviation,
    QuantileError,
    WeightedError,
    WorstError,
)
from autobalance.objectives.base import Objective
from autobalance.objectives.combined import Blend, BoundedGap
from autobalance.objectives.costs import cost_matrix
from autobalance.objectives.gaps import OddsGap, OpportunityGap, ParityGap
from autobalance.objectives.label_objectives import over_labels
from autobalance.objectives.registry import DENSE, GAPS, NAMED, OF_LABELS
from autobalance.objectives.surrogates import CrossEntropyRisk, SmoothError
from autobalance.records.plain_settings import PlainSettings
from autobalance.spaces.attribute_space import AttributeSpace
from autobalance.spaces.base import DesignSpace
from autobalance.spaces.class_space import ClassSpace, ClusterSpace
from autobalance.spaces.group_space import GroupSpace, WithUnknownGroup
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance.spaces.label_space import HierarchicalLabelSpace

COUNTS = [50, 20, 5, 1]
TABLE = [[50, 20, 5], [9, 0, 3]]
OBJECTIVES = [
    *NAMED.values(),
    *GAPS.values(),
    *DENSE.values(),
    *OF_LABELS.values(),
    over_labels(CVaRError(fraction=0.3)),
    WeightedError(weights=(1.0, 2.0, 0.0), surrogate=CrossEntropyRisk()),
    CVaRError(fraction=0.3, over="group"),
    QuantileError(q=0.5, softness=0.1),
    ErrorDeviation(surrogate=SmoothError(temperature=2.0)),
    WorstError(over="class_and_group"),
    OpportunityGap(positive=0),
    ParityGap(softness=0.1),
    Blend.of(0.3, BalancedError(over="class_and_group"), OddsGap(over_classes="max")),
    BoundedGap(main=CVaRError(), bound=0.1, multiplier=0.5),
    cost_matrix([[0.0, 2.0], [5.0, 0.0]]),
]
SOLVERS = [
    getattr(solvers, name)()
    for name in ("Identity", "SingleLoop", "ConjugateGradient", "Neumann", "Nystrom", "Exact")
]
SPACES = [
    HierarchicalSpace(COUNTS, learn=("weight", "additive", "multiplicative"), tau=0.5),
    HierarchicalLabelSpace([[50, 20, 5], [9, 2, 3]], tau=0.5),
    HierarchicalSpace(COUNTS, importance=[1, 0, 2, 3], sigma_rho=None, deviations=False),
    ClassSpace(COUNTS, sigmoid=True, sigma=0.5),
    ClassSpace(TABLE, learn=("weight",)),
    ClusterSpace(COUNTS, size=2, tau=0.0),
    GroupSpace(TABLE, tau_group=0.0),
    WithUnknownGroup(GroupSpace(TABLE)),
    AttributeSpace(COUNTS, [[0.1, 1.0], [0.2, 0.5], [0.4, 0.0], [0.9, 2.0]]),
]


def through_json(record: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(record, allow_nan=False))


def below(base: type) -> set[str]:
    """Names of the library's own classes below one, with nothing left abstract."""
    found = {base.__name__} if not getattr(base, "__abstractmethods__", None) else set()
    own = (c for c in base.__subclasses__() if c.__module__.startswith("autobalance."))
    return found.union(*map(below, own))


@pytest.mark.parametrize("thing", [*OBJECTIVES, *SOLVERS], ids=repr)
def test_objectives_and_solvers_come_back_equal(thing: Any) -> None:
    record = thing.to_dict()
    base = Objective if isinstance(thing, Objective) else Solver
    restored = base.from_dict(through_json(record))
    assert restored == thing
    assert repr(restored) == repr(thing)
    assert type(thing).from_dict(record) == thing


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_spaces_come_back_with_their_free_parameters(space: DesignSpace) -> None:
    with torch.no_grad():
        for i, p in enumerate(space.parameters()):
            p.add_(0.1 * (i + 1))
    restored = DesignSpace.from_dict(through_json(space.to_dict()))
    assert type(restored) is type(space)
    assert repr(restored) == repr(space)
    assert restored.priors() == space.priors()
    for ours, theirs in zip(space(), restored(), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


def test_every_class_is_among_those_tested() -> None:
    assert {type(o).__name__ for o in OBJECTIVES} == below(Objective)
    assert {type(s).__name__ for s in SOLVERS} == below(Solver)
    assert {type(s).__name__ for s in SPACES} == below(DesignSpace)


@pytest.mark.parametrize("base", [Objective, Solver, DesignSpace])
@pytest.mark.parametrize("record", [{"kind": "Nothing"}, {}, {"kind": 3}, "SingleLoop()", None])
def test_unknown_kinds_are_refused(base: Any, record: Any) -> None:
    with pytest.raises(InputError, match="kind"):
        base.from_dict(record)


@pytest.mark.parametrize(
    ("base", "record", "message"),
    [
        (Solver, {"kind": "SingleLoop", "speed": 3}, "no setting 'speed'; it has damping"),
        (Solver, {"kind": "SingleLoop", "damping": -1}, "damping"),
        (Solver, {"kind": "BalancedError"}, "no kind of Solver"),
        (Objective, {"kind": "WeightedError"}, "altered.*weights"),
        (Objective, {"kind": "BalancedError", "surrogate": {"kind": "SingleLoop"}}, "surrogate"),
        (Objective, {"kind": "Blend", "parts": [[1, {"kind": "SmoothError"}]]}, "parts"),
        (DesignSpace, {"kind": "ClassSpace", "counts": [3, 1], "tau": "much"}, "tau"),
        (DesignSpace, {"kind": "ClassSpace", "counts": [3, 1], "speed": 1}, "altered.*speed"),
        (DesignSpace, {"kind": "ClassSpace", "counts": [3, 1], "values": {"eps": [0]}}, "eps"),
    ],
)
def test_altered_records_are_refused(base: Any, record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        base.from_dict(record)


def test_a_surrogate_of_ones_own_is_named() -> None:
    def hinge(logits: Any, target: Any) -> Any:
        return logits.sum() * 0

    record = BalancedError(surrogate=hinge).to_dict()  # pyright: ignore[reportArgumentType]
    assert record["surrogate"] == {"kind": "hinge"}
    with pytest.raises(InputError, match="'hinge' is no kind"):
        Objective.from_dict(record)


def test_numpy_numbers_become_plain() -> None:
    record = SingleLoop(damping=np.float64(0.5)).to_dict()  # pyright: ignore[reportArgumentType]
    assert type(record["damping"]) is float
    assert PlainSettings.from_dict(record) == SingleLoop(damping=0.5)
