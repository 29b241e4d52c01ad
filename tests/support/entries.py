"""Public entries with arguments that are in order, and what is wrong in the place of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import autobalance as ab
from autobalance.augment.choice import as_augmentation
from autobalance.augment.images import Rotation
from autobalance.data.batches import as_batch
from autobalance.data.table_encoder import TableEncoder
from autobalance.data.tables import read_table
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.objectives.registry import as_objective
from autobalance.records.metrics import (
    deo,
    equal_opportunity_difference,
    expected_calibration_error,
    group_class_errors,
)

N, K, G, D = 24, 3, 2, 4
NAN, INF = float("nan"), float("inf")

_generator = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=_generator)
Y = torch.arange(N) % K
GROUPS = torch.arange(N) // K % G
LOGITS = torch.randn(N, K, generator=_generator)
WEIGHTS = torch.rand(N, generator=_generator) + 0.1
COUNTS = [20, 8, 2]
TABLE = [[15, 6, 1], [5, 2, 1]]


def data() -> ab.ArrayData:
    return ab.ArrayData.of(X, Y)


def grouped() -> ab.ArrayData:
    return ab.ArrayData.of(X, Y, groups=GROUPS)


def network() -> nn.Module:
    return nn.Linear(D, K)


def with_entry(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


# What is wrong in the place of ... -------------------------------------------------------------

HUGE_TEXT = "x" * 100_000
NO_NUMBER: list[Any] = [None, "1", "", [1.0], {}, 1j, NAN, object(), np.array([1.0, 2.0])]
POSITIVE = [*NO_NUMBER, INF, -INF, 0, 0.0, -1e-3, True]
FROM_ZERO = [*NO_NUMBER, INF, -INF, -1e-9]
BELOW_ONE = [*NO_NUMBER, INF, -0.1, 1.0, 2]
FRACTION = [*NO_NUMBER, INF, -0.1, 0.0, 1.0, 2]
SHARE = [*NO_NUMBER, INF, -0.1, 1.1]
FINITE = [*NO_NUMBER, INF, -INF]
WHOLE = [*NO_NUMBER, INF, -1, 0, 1.5, "3"]
FROM_ZERO_WHOLE = [*NO_NUMBER, INF, -1, 1.5, "3"]
NAME: list[Any] = ["", "nonsense", HUGE_TEXT, "a\0b", 3, NAN, ["balanced_error"], b"mean", object()]
VECTOR: list[Any] = [
    "text",
    [[[1.0, 1.0]]],
    [],
    [1.0],
    3.0,
    [NAN, 1.0, 1.0],
    [1.0, INF, 1.0],
    ["a", "b", "c"],
    {},
    object(),
    [[1.0], [1.0, 2.0]],
    np.array([1j, 1, 1]),
]
ABOVE_ZERO = [*VECTOR, [0.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]
CLASS_COUNTS: list[Any] = [
    None,
    "text",
    [],
    [5],
    3,
    [5, -1, 2],
    [0.2, 0.5, 0.3],
    [5, NAN, 2],
    [5, INF, 2],
    [5, 0, 2],
    ["a", "b"],
    {},
    [[1], [2, 3]],
    [[[5, 5]]],
    object(),
]
INPUTS: list[Any] = [
    None,
    "text",
    3.0,
    [],
    {},
    object(),
    X[:5],
    with_entry(X, NAN),
    with_entry(X, INF),
    with_entry(X.double(), 1e300),
    [["a"] * D] * N,
    [[1.0], [1.0, 2.0]],
    torch.empty(0, D),
    X.to(torch.complex64),
    np.full((N, D), None),
]
INDICES: list[Any] = [
    None,
    "text",
    3,
    [],
    {},
    object(),
    Y.float(),
    Y[:5],
    Y[:, None],
    Y - 1,
    [0.5] * N,
    ["a"] * N,
    [NAN] * N,
    Y + 2**40,
    Y.to(torch.complex64),
    [None] * N,
]
SAMPLE_WEIGHT: list[Any] = [
    "text",
    3,
    [],
    {},
    object(),
    WEIGHTS[:5],
    -WEIGHTS,
    WEIGHTS * 0,
    with_entry(WEIGHTS, NAN),
    with_entry(WEIGHTS, INF),
    WEIGHTS[:, None],
    ["a"] * N,
    WEIGHTS.to(torch.complex64),
]
LOSS_LOGITS: list[Any] = [
    None,
    "text",
    LOGITS[0],
    LOGITS[:, :2],
    LOGITS[:5],
    LOGITS.long(),
    X.numpy(),
]
LOSS_TARGET: list[Any] = [None, "text", Y.float(), Y[:5], Y[:, None], Y + 1, Y - 1, Y.tolist()]
LOSS_GROUPS: list[Any] = [
    "text",
    GROUPS.float(),
    GROUPS[:5],
    GROUPS + 1,
    GROUPS - 2,
    GROUPS.tolist(),
]
LOSS_WEIGHT: list[Any] = ["text", WEIGHTS[:5], WEIGHTS[:, None], WEIGHTS.tolist()]
FACTORY: list[Any] = [
    None,
    "text",
    3,
    nn.Linear(D, K),
    lambda: 3,
    lambda: nn.Linear(D, K + 1),
    lambda: nn.Linear(D, 1),
    nn.Identity,
    lambda: nn.Flatten(0),
]
NO_DATA: list[Any] = [None, "text", 3, X, (X, Y), {}, object()]
NO_OBJECTIVE: list[Any] = [
    None,
    3,
    "",
    "nonsense",
    HUGE_TEXT,
    "deo",
    "cvar_error(0..1)",
    "cvar_error(2)",
    "cvar_error()",
    "quantile_error(1.5)",
    "1 * deo",
    "a * balanced_error",
    "nan * balanced_error",
    "balanced_error where deo <= x",
    "balanced_error where x <= 1",
    "balanced_error where deo <= nan",
    "worst_group_error",
    [],
    object(),
    "balanced_error\0",
    "* + *",
]
NO_SPACE: list[Any] = ["text", 3, lambda counts: counts, lambda counts: None]
NO_AUGMENT: list[Any] = ["text", 3, lambda inputs, counts: 3, [], {}]
NO_RECORD: list[Any] = ["text", 3, {}, object(), {"epochs": 3}, []]
DEVICE: list[Any] = [None, 3, "", "toaster", "cuda:99", "cpu:x", "\0", HUGE_TEXT, []]
SEED: list[Any] = ["1", NAN, 1.5, -1, [], {}, 2**70, object()]
JSON_TEXT: list[Any] = [
    "",
    "x",
    "{",
    "[]",
    "3",
    "null",
    "{}",
    '{"format": "other"}',
    None,
    3,
    b"\xff",
]
PATH: list[Any] = [
    None,
    3,
    [],
    "",
    "gone.csv",
    "a\0b.csv",
    HUGE_TEXT,
    "/dev/null",
    ".",
    "../..",
    b"a",
]

# Generated, all of them wrong too; the lists above are what people and programs really pass.
_JUNK = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.binary(max_size=10),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.complex_numbers(),
    st.builds(object),
)
_NOT_FINITE = st.sampled_from([NAN, INF, -INF])
GENERATED: dict[int, st.SearchStrategy[Any]] = {
    id(POSITIVE): st.one_of(_JUNK, _NOT_FINITE, st.floats(max_value=0.0), st.integers(max_value=0)),
    id(FROM_ZERO): st.one_of(_JUNK, _NOT_FINITE, st.floats(max_value=-1e-300)),
    id(BELOW_ONE): st.one_of(
        _JUNK, _NOT_FINITE, st.floats(max_value=-1e-300), st.floats(min_value=1.0)
    ),
    id(FRACTION): st.one_of(_JUNK, _NOT_FINITE, st.floats(max_value=0.0), st.floats(min_value=1.0)),
    id(SHARE): st.one_of(
        _JUNK, _NOT_FINITE, st.floats(max_value=-1e-300), st.floats(min_value=1.01)
    ),
    id(FINITE): st.one_of(_JUNK, _NOT_FINITE),
    id(WHOLE): st.one_of(_JUNK, st.floats(), st.integers(max_value=0)),
    id(FROM_ZERO_WHOLE): st.one_of(_JUNK, st.floats(), st.integers(max_value=-1)),
    id(NAME): st.one_of(st.text(max_size=40), st.integers(), st.binary(max_size=5)),
    id(CLASS_COUNTS): st.one_of(
        _JUNK,
        st.lists(st.integers(), max_size=1),
        st.lists(st.integers(max_value=0), max_size=6),
        st.lists(st.floats(max_value=0.0), max_size=6),
        st.lists(st.text(), max_size=4),
    ),
    id(NO_OBJECTIVE): st.one_of(
        st.text(max_size=40),
        st.from_regex(r"\A(cvar|quantile)_error\([0-9.]*\.[0-9]*\.[0-9.]*\)\Z"),
        st.from_regex(r"\A[a-z ]{1,9} \* (deo|balanced_error)( \+ [0-9] \* [a-z]{1,5})?\Z"),
    ),
    id(DEVICE): st.one_of(st.integers(), st.text(alphabet="xyz:0", max_size=6)),
    id(JSON_TEXT): st.one_of(
        st.text(max_size=30),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
        ).map(json.dumps),
    ),
    id(INPUTS): st.one_of(_JUNK, st.sampled_from([NAN, INF]).map(lambda v: with_entry(X, v))),
    id(INDICES): st.one_of(_JUNK, st.lists(st.integers(max_value=-1), min_size=N, max_size=N)),
}


@dataclass(frozen=True)
class Entry:
    """A public entry, arguments that it takes, and what is wrong in the place of some."""

    name: str
    call: Callable[..., Any]
    good: dict[str, Any]
    bad: dict[str, list[Any]]

    @property
    def complete(self) -> bool:
        """Whether the arguments that are in order are all it needs; files and records are not."""
        return not getattr(self.call, "__name__", "").startswith(("from_", "read_"))

    def __call__(self, **changed: Any) -> Any:
        return self.call(**{**self.good, **changed})


SKLEARN = ("fit", "predict", "predict_proba", "calibrate")
QUICK = ab.Recipe(epochs=1, min_steps=4, batch_size=8)
SEARCHED = ab.SearchSettings(every=1)
LOSS = ParametricCrossEntropy.logit_adjusted(COUNTS)
BY_GROUP = ParametricCrossEntropy(additive=torch.zeros(G, K))
RUNNING: dict[str, Any] = {
    "model_factory": FACTORY,
    "data": NO_DATA,
    "recipe": NO_RECORD,
    "seed": SEED,
    "device": DEVICE,
}
ENTRIES: list[Entry] = []


def entry(name: str, call: Callable[..., Any], good: dict[str, Any], **bad: list[Any]) -> None:
    ENTRIES.append(Entry(name, call, good, bad))


entry(
    "ArrayData.of",
    ab.ArrayData.of,
    {
        "inputs": X,
        "target": Y,
        "groups": GROUPS,
        "sample_weight": WEIGHTS,
        "num_classes": K,
        "num_groups": G,
    },
    inputs=INPUTS,
    target=INDICES,
    groups=[v for v in INDICES if v is not None],
    sample_weight=SAMPLE_WEIGHT,
    num_classes=[*WHOLE[1:], 2],
    num_groups=[*WHOLE[1:], 1],
    missing_groups=NAME,
)
entry(
    "as_batch",
    as_batch,
    {"batch": (X, Y)},
    batch=[None, 3, "text", X, (X,), {}, (X, [0]), (X, Y, Y, Y, Y)],
)

# Losses
entry(
    "ParametricCrossEntropy",
    ParametricCrossEntropy,
    {"weight": [1.0, 2.0, 3.0], "additive": [0.0, 1.0, 2.0], "multiplicative": [1.0, 2.0, 1.0]},
    weight=ABOVE_ZERO,
    additive=VECTOR,
    multiplicative=[*ABOVE_ZERO, [1.0, 1.0]],
    reduction=NAME,
    ignore_index=[*FINITE[1:], 1.5],
    label_smoothing=BELOW_ONE,
)
for made in ("class_weighted", "balanced_softmax"):
    entry(
        made,
        getattr(ParametricCrossEntropy, made),
        {"cls_num_list": COUNTS},
        cls_num_list=CLASS_COUNTS,
    )
entry(
    "class_balanced",
    ParametricCrossEntropy.class_balanced,
    {"cls_num_list": COUNTS, "beta": 0.9},
    cls_num_list=CLASS_COUNTS,
    beta=BELOW_ONE,
)
entry(
    "logit_adjusted",
    ParametricCrossEntropy.logit_adjusted,
    {"cls_num_list": COUNTS, "tau": 1.0},
    cls_num_list=CLASS_COUNTS,
    tau=FINITE,
)
entry(
    "class_dependent_temperature",
    ParametricCrossEntropy.class_dependent_temperature,
    {"cls_num_list": COUNTS, "gamma": 0.3},
    cls_num_list=CLASS_COUNTS,
    gamma=FINITE,
)
entry(
    "vector_scaling",
    ParametricCrossEntropy.vector_scaling,
    {"cls_num_list": COUNTS, "gamma": 0.3, "tau": 1.0},
    cls_num_list=CLASS_COUNTS,
    gamma=FINITE,
    tau=FINITE,
)
entry(
    "loss",
    lambda **arguments: BY_GROUP(**arguments),
    {"input": LOGITS, "target": Y, "groups": GROUPS, "sample_weight": WEIGHTS},
    input=LOSS_LOGITS,
    target=LOSS_TARGET,
    groups=[None, *LOSS_GROUPS],
    sample_weight=LOSS_WEIGHT,
)
entry("FocalLoss", ab.FocalLoss, {"gamma": 2.0}, gamma=FROM_ZERO, weight=ABOVE_ZERO, reduction=NAME)
entry(
    "LDAMLoss",
    ab.LDAMLoss,
    {"cls_num_list": COUNTS},
    cls_num_list=CLASS_COUNTS,
    max_margin=POSITIVE,
    scale=POSITIVE,
    weight=[*ABOVE_ZERO, [1.0, 1.0]],
    reduction=NAME,
)
entry(
    "GroupDROLoss",
    ab.GroupDROLoss,
    {"num_groups": 2, "counts": [5, 6]},
    num_groups=WHOLE,
    step_size=POSITIVE,
    over=NAME,
    adjustment=FROM_ZERO,
    counts=["text", [5], [-1, 3], [NAN, 1], [0.5, 1]],
)
entry(
    "DeferredLoss",
    ab.DeferredLoss,
    {"first": LOSS, "then": LOSS},
    first=[None, 3, "text"],
    then=[None, 3, "text"],
    start=SHARE,
)
for published in (ab.FocalLoss(), ab.LDAMLoss(COUNTS)):
    entry(
        type(published).__name__ + " called",
        published,
        {"input": LOGITS, "target": Y},
        input=[
            v
            for v in LOSS_LOGITS
            if not (isinstance(v, torch.Tensor) and v.ndim == 2 and v.shape == (N, 2))
        ],
        target=LOSS_TARGET,
        sample_weight=LOSS_WEIGHT,
    )
entry(
    "GroupDROLoss called",
    ab.GroupDROLoss(2),
    {"input": LOGITS, "target": Y, "groups": GROUPS},
    target=LOSS_TARGET,
    groups=[None, *LOSS_GROUPS],
)

# Spaces
entry(
    "HierarchicalSpace",
    ab.HierarchicalSpace,
    {"counts": COUNTS},
    counts=[*CLASS_COUNTS, TABLE],
    learn=[[], "nonsense", ["nonsense"], 3, None, [3]],
    tau=FINITE,
    importance=["text", [1.0], [-1.0, 1, 1], [0, 0, 0], [NAN, 1, 1], [INF, 1, 1]],
    sigma_tau=POSITIVE,
    sigma_eps=POSITIVE,
)
entry(
    "ClassSpace",
    ab.ClassSpace,
    {"counts": COUNTS},
    counts=CLASS_COUNTS,
    learn=[[], 3, None, ["x"]],
    tau=FINITE,
    sigma=[v for v in POSITIVE if v is not None],
)
entry(
    "ClusterSpace",
    ab.ClusterSpace,
    {"counts": COUNTS, "size": 2},
    counts=[*CLASS_COUNTS, TABLE],
    size=WHOLE,
)
entry(
    "GroupSpace",
    ab.GroupSpace,
    {"counts": TABLE},
    counts=[*CLASS_COUNTS, COUNTS],
    learn=[[], 3, None],
    tau_class=FINITE,
    tau_group=FINITE,
    sigma_tau=POSITIVE,
    sigma_eps=POSITIVE,
)
entry(
    "WithUnknownGroup",
    ab.WithUnknownGroup,
    {"space": ab.GroupSpace(TABLE)},
    space=[None, 3, "text", ab.HierarchicalSpace(COUNTS)],
)
entry(
    "TunableCrossEntropy",
    ab.TunableCrossEntropy,
    {"space": ab.HierarchicalSpace(COUNTS)},
    space=[None, 3, "text", COUNTS],
    reduction=NAME,
    label_smoothing=BELOW_ONE,
)

# Objectives
entry(
    "as_objective",
    as_objective,
    {"objective": "balanced_error"},
    objective=[o for o in NO_OBJECTIVE if o != "worst_group_error"],
)
entry("BalancedError", ab.BalancedError, {}, over=NAME, surrogate=[None, 3, "text"])
entry("WorstError", ab.WorstError, {}, softness=POSITIVE)
entry("CVaRError", ab.CVaRError, {}, fraction=[*NO_NUMBER, 0.0, -1.0, 1.1, INF])
entry("QuantileError", ab.QuantileError, {}, q=SHARE, softness=POSITIVE)
entry(
    "WeightedError",
    ab.WeightedError,
    {"weights": (1.0, 2.0, 3.0)},
    weights=["text", (), (0.0, 0.0), (-1.0, 2.0), (NAN, 1.0), (INF, 1.0), None, 3, ("a", "b")],
)
entry(
    "SmoothError",
    ab.SmoothError,
    {},
    temperature=[v for v in POSITIVE if v is not None],
    relative=POSITIVE,
)
entry("OddsGap", ab.OddsGap, {}, softness=POSITIVE, over_classes=NAME)
entry("OpportunityGap", ab.OpportunityGap, {}, positive=[*NO_NUMBER, -2, 1.5])
entry(
    "Blend",
    ab.Blend,
    {"parts": ((1.0, ab.BalancedError()),)},
    parts=[
        None,
        3,
        "text",
        (),
        ((1.0, "x"),),
        ((-1.0, ab.BalancedError()),),
        ((NAN, ab.BalancedError()),),
        ((0.0, ab.BalancedError()),),
        ((1.0,),),
        (3,),
    ],
)
entry(
    "BoundedGap",
    ab.BoundedGap,
    {"bound": 0.1},
    bound=FROM_ZERO,
    main=[None, 3, "text"],
    gap=[None, 3, "text"],
    rho=POSITIVE,
    rate=POSITIVE,
    multiplier=FROM_ZERO,
)
entry(
    "objective called",
    lambda **arguments: ab.WorstError(over="group")(**arguments),
    {"logits": LOGITS, "target": Y, "groups": GROUPS},
    groups=[None],
)

# Settings and solvers
entry(
    "Recipe",
    ab.Recipe,
    {},
    epochs=POSITIVE,
    min_steps=WHOLE,
    batch_size=WHOLE,
    optimizer=NAME,
    lr=POSITIVE,
    momentum=BELOW_ONE,
    weight_decay=FROM_ZERO,
    warmup=BELOW_ONE,
    max_grad_norm=POSITIVE,
    absorb=SHARE,
)
entry(
    "SearchSettings",
    ab.SearchSettings,
    {},
    validation_fraction=FRACTION,
    folds=WHOLE,
    choose=[None, 3, "yes"],
    warmup=BELOW_ONE,
    every=WHOLE,
    lr=POSITIVE,
    optimizer=NAME,
    training_batches=WHOLE,
    average=[*NO_NUMBER, 0.0, 1.1],
    validation_batch_size=WHOLE,
    patience=[v for v in WHOLE if v is not None],
)
entry(
    "SingleLoop",
    ab.SingleLoop,
    {},
    damping=FROM_ZERO,
    curvature=NAME,
    line_search_every=FROM_ZERO_WHOLE,
)
entry(
    "ConjugateGradient",
    ab.ConjugateGradient,
    {},
    damping=FROM_ZERO,
    curvature=NAME,
    iterations=WHOLE,
    tolerance=FROM_ZERO,
)
entry(
    "Neumann",
    ab.Neumann,
    {},
    damping=FROM_ZERO,
    terms=FROM_ZERO_WHOLE,
    power_iterations=WHOLE,
    max_step=POSITIVE,
)
entry("Nystrom", ab.Nystrom, {}, damping=POSITIVE, rank=WHOLE, seed=FROM_ZERO_WHOLE)
entry("Exact", ab.Exact, {}, damping=FROM_ZERO, curvature=NAME, max_parameters=WHOLE)

# Runs
entry(
    "search",
    ab.search,
    {
        "model_factory": network,
        "data": data(),
        "recipe": QUICK,
        "settings": SEARCHED,
        "device": "cpu",
    },
    **RUNNING,
    validation=[3, "text", (X, Y), ab.ArrayData.of(X[:, :2], Y), ab.ArrayData.of(X, Y + 1)],
    objective=NO_OBJECTIVE,
    space=NO_SPACE,
    augment=NO_AUGMENT,
    settings=NO_RECORD,
    solver=[None, 3, "cg"],
    checkpoint=[3, [], "/dev/null/x", "a\0b", ".", HUGE_TEXT],
    progress=[3, "text"],
)
entry(
    "retrain",
    ab.retrain,
    {"model_factory": network, "data": data(), "loss": LOSS, "recipe": QUICK, "device": "cpu"},
    **RUNNING,
    loss=[
        None,
        3,
        "text",
        BY_GROUP,
        ParametricCrossEntropy(additive=[0.0, 1.0]),
    ],
    sampling=NAME,
    augment=["personalised", 3, "text"],
    checkpoint=[3, [], "/dev/null/x", "a\0b", ".", HUGE_TEXT],
    progress=[3, "text"],
)
entry(
    "frontier",
    ab.frontier,
    {
        "model_factory": network,
        "data": grouped(),
        "recipe": QUICK,
        "settings": SEARCHED,
        "device": "cpu",
        "mixes": [0.0, 0.5],
    },
    **{**RUNNING, "data": [*NO_DATA, data()]},
    main=[o for o in NO_OBJECTIVE if o != "worst_group_error"],
    gap=NAME,
    mixes=["text", 3, [], [0.5, 0.1], [-0.1, 0.5], [0.0, 1.0], [NAN], ["a"], None],
    settings=NO_RECORD,
)
entry(
    "search_head",
    ab.search_head,
    {"data": data(), "max_steps": 1, "device": "cpu"},
    data=NO_DATA,
    validation=[3, "text", ab.ArrayData.of(X[:, :2], Y)],
    objective=NO_OBJECTIVE,
    space=NO_SPACE,
    weight_decay=POSITIVE,
    folds=WHOLE,
    validation_fraction=FRACTION,
    max_steps=WHOLE,
    seed=SEED,
    device=DEVICE,
    progress=[3, "text"],
)
entry(
    "retrain_head",
    ab.retrain_head,
    {"data": data(), "loss": LOSS, "device": "cpu"},
    data=NO_DATA,
    loss=[None, 3, "text", BY_GROUP, ParametricCrossEntropy(additive=[0.0, 1.0]), ab.FocalLoss()],
    weight_decay=POSITIVE,
    device=DEVICE,
)
BACKBONE = nn.Linear(D, 2)
entry(
    "extract_features",
    ab.extract_features,
    {"backbone": BACKBONE, "inputs": X, "device": "cpu"},
    backbone=[None, 3, "text", nn.Flatten(0), lambda x: x],
    inputs=[None, 3.0, [], "text", object(), torch.empty(0, D), with_entry(X, NAN), {}],
    batch_size=WHOLE,
    device=DEVICE,
)


def tuned(model: Any = None, train: Any = (X, Y), held: Any = (X, Y), **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        model = network() if model is None else model
    loss = options.pop("loss", None) or ab.TunableCrossEntropy(ab.HierarchicalSpace(COUNTS))
    return ab.LossTuner(loss, **options).step(model, train, held)


BATCH = [None, 3, "text", X, (X,), (X, Y.float()), (X, Y[:5]), (X, Y + 1), {}, []]
entry(
    "LossTuner",
    tuned,
    {"objective": "balanced_error"},
    loss=[3, "text", LOSS],
    model=[3, "text", nn.Linear(D, K + 1)],
    objective=[o for o in NO_OBJECTIVE if o is not None],
    optimizer=[3, "sgd", torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)],
    solver=[None, 3, "cg"],
    lr=POSITIVE,
    upper=NAME,
    validation_counts=["text", [[1]], [NAN, 1, 1], [-1, 2, 3], [0, 0, 0]],
    augment=[3, "personalised"],
    adapter=[3, lambda b: 3],
    train=BATCH,
    held=BATCH,
)

# The estimator
LABELS = np.array(["a", "b", "c"])[Y.numpy()]


def fitted(X: Any = X, y: Any = LABELS, fit: dict[str, Any] | None = None, **options: Any) -> Any:
    options = {"recipe": QUICK, "settings": SEARCHED, "device": "cpu", "random_state": 0, **options}
    return ab.AutoBalanceClassifier(**options).fit(X, y, **(fit or {}))


CLASSIFIER = fitted()
entry(
    "fit",
    fitted,
    {},
    X=[v for i, v in enumerate(INPUTS) if i not in (0, 7, 14)],
    y=[
        "text",
        3,
        [],
        LABELS[:5],
        [None] * N,
        [NAN] * N,
        ["a"] * N,
        np.linspace(0, 1, N),
        [[1, 2]] * N,
        {},
    ],
    objective=NO_OBJECTIVE,
    module=["text", 3, lambda: 3],
    recipe=[v for v in NO_RECORD if v is not None],
    settings=NO_RECORD,
    space=NO_SPACE,
    augment=NO_AUGMENT,
    missing_groups=NAME,
    device=DEVICE,
    random_state=["text", -1, NAN, []],
    checkpoint=[3, "/dev/null/x", "a\0b"],
    fit=[
        {"sensitive_features": v}
        for v in (
            GROUPS[:5],
            [None] * N,
            ["x"] * (N - 1) + [None],
            np.arange(N * 50).reshape(N, 50),
        )
    ]
    + [{"sample_weight": v} for v in SAMPLE_WEIGHT]
    + [
        {"validation": v}
        for v in (3, "text", (X,), (X, LABELS[:5]), (X, ["z"] * N), (X[:, :2], LABELS))
    ],
)
UNFIT = [None, "text", 3.0, [], X[:, :2], with_entry(X, INF), [["a"] * D] * N, torch.empty(0, D)]
entry("predict", CLASSIFIER.predict, {"X": X}, X=UNFIT)
entry(
    "predict_proba",
    CLASSIFIER.predict_proba,
    {"X": X},
    X=UNFIT,
    prior=["nonsense", [1.0], [-1.0, 1, 1], [0.0, 0, 0], [NAN, 1, 1], {}, [["a"]]],
)
entry(
    "calibrate",
    CLASSIFIER.calibrate,
    {"X": X, "y": LABELS},
    X=UNFIT,
    y=[None, LABELS[:5], ["z"] * N, [None] * N, []],
)

# Numbers, records, files
entry(
    "corrected_probabilities",
    ab.corrected_probabilities,
    {"logits": LOGITS, "loss": BY_GROUP, "class_counts": TABLE, "groups": GROUPS},
    logits=[None, "text", LOGITS[0], LOGITS[:, :2], {}],
    loss=[None, 3, "text"],
    class_counts=["text", COUNTS, [[1]], [[-1, 2, 3], [1, 1, 1]], [[NAN, 1, 1], [1, 1, 1]]],
    prior=["nonsense", [1.0], [-1.0, 1, 1], [0.0, 0, 0], [NAN, 1, 1], {}],
    groups=["text", GROUPS[:5], GROUPS + 1, GROUPS.float() + 0.5],
    temperature=POSITIVE,
)
entry(
    "fit_temperature",
    ab.fit_temperature,
    {"logits": LOGITS, "target": Y, "loss": LOSS, "class_counts": COUNTS},
    logits=[None, "text", LOGITS[0], LOGITS[:, :2], LOGITS[:0], with_entry(LOGITS, NAN)],
    target=[None, "text", Y[:5], Y + 1, Y - 1, Y.float() + 0.5, []],
    loss=[None, 3],
    class_counts=["text", [1], [-1, 2, 3], [NAN, 1, 1]],
)
MEASURED = {"target": Y.numpy(), "predicted": Y.numpy(), "groups": GROUPS.numpy(), "num_classes": K}
NO_INDICES = [v for v in INDICES if not isinstance(v, torch.Tensor)]
for measure in (deo, group_class_errors, equal_opportunity_difference):
    entry(
        measure.__name__,
        measure,
        MEASURED,
        target=NO_INDICES,
        predicted=NO_INDICES,
        groups=NO_INDICES,
        num_classes=[*WHOLE, 1, 2],
    )
entry(
    "expected_calibration_error",
    expected_calibration_error,
    {"probabilities": torch.softmax(LOGITS, 1).numpy(), "target": Y.numpy()},
    probabilities=[None, "text", [], LOGITS.numpy(), [[0.5, 0.6]] * N, [[NAN, 1.0, 0.0]] * N],
    target=[Y[:5].numpy(), None, 3, "text"],
    bins=WHOLE,
)
for kind in (ParametricCrossEntropy, ab.SearchResult, ab.Augmentation):
    entry(f"{kind.__name__}.from_json", kind.from_json, {}, text=JSON_TEXT)
entry(
    "TableEncoder.from_dict",
    TableEncoder.from_dict,
    {},
    record=[None, 3, "x", {}, [], {"format": "autobalance-table-encoder", "version": 1}],
)
entry("read_table", read_table, {}, path=PATH)

# Augmentation
ONE = [[0.5], [0.2], [0.1]]
entry(
    "Augmentation",
    ab.Augmentation,
    {"operations": [Rotation(10.0)], "probability": ONE, "magnitude": ONE},
    operations=[None, 3, "text", [], [3], [Rotation(10.0)] * 2],
    probability=["text", [], [0.5], [[2.0]] * 3, [[NAN]] * 3, [[0.5, 0.5]] * 3, {}, None],
    magnitude=["text", [[-1.0]] * 3, [[0.5]] * 2],
    gate=NAME,
    temperature=POSITIVE,
    value_range=[None, 3, "text", (1.0, 0.0), (0.0,), (NAN, 1.0), (0.0, INF)],
)
entry(
    "AugmentationPolicy",
    ab.AugmentationPolicy,
    {"counts": COUNTS, "operations": [Rotation(10.0)]},
    counts=[None, "text", [], [5], [-1, 2], [NAN, 1.0], {}],
    operations=[None, 3, []],
    clusters=[v for v in WHOLE if v is not None],
    probability=FRACTION,
    magnitude=FRACTION,
    sigma_shared=POSITIVE,
    sigma_eps=POSITIVE,
    temperature=POSITIVE,
    gate=NAME,
)
entry("Rotation", Rotation, {"limit": 10.0}, limit=POSITIVE)
entry(
    "as_augmentation",
    as_augmentation,
    {"choice": "shared", "inputs": X, "counts": COUNTS},
    choice=NO_AUGMENT,
    inputs=[None, "text", X[0], X.long(), torch.rand(2, 5, 4, 4), 1e6 * X],
)
