"""A run's result.json, read into what the report shows.

Everything optional may be missing, and what does not fit the number of classes counts as missing
too. Text is made safe to write (no control characters, no endless names); escaping for HTML is
the business of the templates and of matplotlib.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autobalance._validation import InputError
from autobalance.records import DTYPES, ErrorTable, HeldOut, Reliability, loss_snippet
from autobalance.report.statistics import even_counts

MAX_TEXT = 4000
MAX_NAME = 80
MAX_SNIPPET = 100  # numbers
_BREAKING = {"Cc", "Cs", "Co", "Cn", "Cf", "Zl", "Zp"}
# Joiners are part of how some scripts and emoji are written.
_JOINERS = {"\u200c", "\u200d"}
SCORES = ("balanced_error", "worst_class_error", "worst_group_error")

TITLES = {
    "additive": ("ℓ", "additive adjustment ℓ"),
    "multiplicative": ("δ", "multiplicative adjustment δ"),
    "weight": ("w", "class weight w"),
}
_BINS = {"raw": "raw_bins", "prior": "prior_bins", "corrected": "bins"}
_NEUTRAL = {"additive": 0.0, "multiplicative": 1.0, "weight": 1.0}


@dataclass(frozen=True, eq=False)
class ByGroup:
    """Errors within groups.

    Attributes
    ----------
    names : list of str
        The groups with examples.
    table : ErrorTable
        Their errors, one row each.
    data : str
        What was predicted, for a caption.
    """

    names: list[str]
    table: ErrorTable
    data: str


@dataclass(frozen=True, eq=False)
class Method:
    """One way of training, and its errors on some data.

    Attributes
    ----------
    name, title : str
        As in the record.
    errors : ndarray
        Error per class, shape ``(k,)``, in [0, 1]; NaN where a class has no example.
    n : ndarray or None
        Examples per class, shape ``(k,)``; None where unknown.
    scores : dict
        "balanced_error", "worst_class_error" and "worst_group_error" where known.
    undefined : dict
        Why a measure has no value, by its name, for a sentence after "because".
    seconds, training_runs : float or None
        What it cost.
    confused : ndarray or None
        Rows of class, class predicted and examples, shape ``(m, 3)``; None where unknown.
    reliability : dict
        "raw" and "corrected" where known; see `autobalance.calibration.temperature.evaluate_logits`.
    by_group : ByGroup or None
        Errors within groups, where known.
    """

    name: str
    title: str
    errors: np.ndarray
    n: np.ndarray | None
    scores: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    training_runs: float | None = None
    confused: np.ndarray | None = None
    reliability: dict[str, Reliability] = field(default_factory=dict)
    by_group: ByGroup | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """One of ℓ, δ and w.

    Attributes
    ----------
    key, symbol, title : str
        "additive", "ℓ", and in words.
    start, end : ndarray
        Shape ``(g, k)``, g = 1 without groups. ℓ has mean 0 in each row: only differences act.
        `end` is the designed loss, whether or not the final choice took it.
    steps : ndarray
        Training steps at which the path was noted, shape ``(t,)``.
    path : ndarray
        Shape ``(t, g, k)``.
    """

    key: str
    symbol: str
    title: str
    start: np.ndarray
    end: np.ndarray
    steps: np.ndarray
    path: np.ndarray

    @property
    def changed(self) -> bool:
        """Whether the search moved it."""
        return bool(np.nanmax(np.abs(self.end - self.start), initial=0.0) > 1e-6)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One loss of the final choice, judged on held-out examples.

    Attributes
    ----------
    name : str
        "designed", "start" or "cross_entropy".
    objective : float
        Over the 0-1 error, in [0, 1].
    difference, standard_error : float or None
        From the start; below 0 is better.
    table : ErrorTable or None
        Errors on held-out examples, by group and class.
    confused, by_group
        Same as in `Method`.
    """

    name: str
    objective: float
    difference: float | None
    standard_error: float | None
    table: ErrorTable | None = None
    confused: np.ndarray | None = None
    by_group: ByGroup | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A run, ready to be described.

    Attributes
    ----------
    counts : ndarray
        Training examples, shape ``(g, k)``, g = 1 without groups.
    order : ndarray
        Classes from the most to the least frequent, shape ``(k,)``.
    snippet : str or None
        The loss taken as code that stands alone; None where it would be long.
    curves : dict
        "step", "objective", "hard_objective", "test_objective", "training_loss" and "norm", each of
        shape ``(t,)``.
    search_status, status : str
        Of the search, and of the whole run: with the search finished, that of retraining.
    candidates : list of Candidate
        What the final choice was among; empty where there was none.
    choice : str
        Name of the candidate taken.
    training_runs : float or None
        What the search cost, in training runs.
    held_out : HeldOut or None
        What the network searched with predicts at the end of the search.
    confused : ndarray or None
        By that network, of all groups together; same as in `Method`.
    calibration : dict
        "raw_error", "error" and so on, see `autobalance.calibration.temperature.Calibration`; may be empty.
    reliability : dict
        "raw", "prior" and "corrected" where known: `Calibration`'s `raw_bins`, `prior_bins` and `bins`.
    by_group : ByGroup or None
        Of the method "autobalance" on test data, or of `held_out`.
    frontier : dict
        "main", "gap", "points", "baselines", "by" ("mix" or "bound") and under that name the point
        taken, where the run is a frontier's; may be empty.
    options : dict
        Options of the command that `settings` lacks, "groups" and "test" among them.
    samples : dict
        Training images and their augmented versions, as `autobalance.report.samples` packs them, with
        their rows' "names"; empty where there are none.
    place : str
        In front of every identifier, where a page shows several runs.
    rows : int
        Most rows of a table.
    notes : list of str
        What reading the training table told.
    policy : dict
        The augmentation learned: class (and group), then operation, then "probability" and
        "magnitude" in [0, 1]; empty where there was none.
    """

    kind: str
    command: str | None
    objective: str
    classes: list[str]
    groups: list[str] | None
    counts: np.ndarray
    order: np.ndarray
    methods: list[Method]
    evaluation_data: str | None
    parts: list[Part]
    snippet: str | None
    curves: dict[str, np.ndarray]
    search_status: str
    status: str
    candidates: list[Candidate]
    choice: str
    training_runs: float | None
    held_out: HeldOut | None
    confused: np.ndarray | None
    calibration: dict[str, float]
    reliability: dict[str, Reliability]
    by_group: ByGroup | None
    policy: dict[str, Any]
    design: dict[str, Any]
    settings: dict[str, Any]
    search_seconds: dict[str, float]
    seconds: dict[str, float]
    versions: dict[str, str]
    seed: int | None
    frontier: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    place: str = ""
    rows: int = 1000
    notes: list[str] = field(default_factory=list)

    @property
    def class_totals(self) -> np.ndarray:
        """Training examples per class, shape ``(k,)``."""
        return self.counts.sum(axis=0)

    @property
    def decided(self) -> dict[str, Any] | None:
        """The point of a frontier of decisions that was taken; None for every other run."""
        if self.frontier.get("by") != "bound":
            return None
        taken = self.frontier["bound"]
        return next((p for p in self.frontier["points"] if p["bound"] == taken), None)

    @property
    def folds(self) -> int | None:
        """Splits that the search used, where the record says so."""
        folds = _number(_mapping(self.settings.get("search")).get("folds"))
        return None if folds is None or folds < 1 else int(folds)

    @property
    def steps(self) -> int | None:
        """Lower-level steps of one training run."""
        steps = _number(self.settings.get("steps"))
        return None if steps is None else int(steps)

    @property
    def steps_done(self) -> int | None:
        """Steps that the search has done, of `steps`."""
        if self.training_runs is None or self.steps is None:
            return None
        return min(self.steps, round(self.training_runs / (self.folds or 1) * self.steps))

    @property
    def search_time(self) -> float | None:
        """Seconds of the search on the clock, where the record says so."""
        return self.seconds.get("search", self.search_seconds.get("wall"))

    def candidate(self, name: str) -> Candidate | None:
        """The candidate of this name, if there is one."""
        return next((c for c in self.candidates if c.name == name), None)

    @property
    def other(self) -> Candidate | None:
        """What the candidate taken is shown against: the start, or for the start another."""
        names = ["cross_entropy", "designed"] if self.choice == "start" else ["start"]
        return next((c for c in map(self.candidate, names) if c is not None), None)

    @property
    def in_folds(self) -> str:
        """How many splits the final choice was on, in words."""
        if self.folds is None:
            return "folds"
        return "one split" if self.folds == 1 else f"{self.folds} folds"

    def method(self, name: str) -> Method | None:
        """The method of this name, if there is one."""
        return next((m for m in self.methods if m.name == name), None)

    @property
    def before(self) -> Method | None:
        """Plain cross-entropy, or whatever else came first."""
        first = self.method("cross_entropy") or (self.methods[0] if self.methods else None)
        return None if first is self.after else first

    @property
    def after(self) -> Method | None:
        """The loss found, or whatever came last."""
        return self.method("autobalance") or (self.methods[-1] if self.methods else None)


def read_run(record: dict[str, Any]) -> Run:
    """Read a run's record.

    Raises
    ------
    InputError
        If the record is not a mapping, or has neither class counts nor class names.
    """
    if not isinstance(record, dict):
        raise InputError(f"A run's record must be a mapping; got {type(record).__name__}.")
    samples = record.get("samples")
    record = _safe({key: value for key, value in record.items() if key != "samples"})
    counts = _counts(record)
    k = counts.shape[1]
    search = _mapping(record.get("search"))
    search_status = str(search.get("status") or "finished")
    candidates, choice = _candidates(search, k, record.get("group_names"))
    held_out = _held_out(search.get("held_out"), k)
    group_names = record.get("group_names")
    methods = [_method(n, _mapping(m), k) for n, m in _mapping(record.get("methods")).items()]
    tested = next((m.by_group for m in methods if m.name == "autobalance"), None)
    return Run(
        kind=str(record.get("kind") or "fit"),
        command=_text(record.get("command")),
        objective=str(record.get("objective") or "balanced_error"),
        classes=_names(record.get("class_names"), k, "class"),
        groups=_names(record.get("group_names"), len(counts), "group") if len(counts) > 1 else None,
        counts=counts,
        order=np.argsort(-counts.sum(axis=0), kind="stable"),
        methods=methods,
        evaluation_data=_text(record.get("evaluation_data")),
        parts=_parts(search, len(counts), k),
        snippet=_snippet(_mapping(search.get("loss")), len(counts), k),
        curves=_curves(search.get("history")),
        search_status=search_status,
        status=str(record.get("status") or search_status),
        candidates=candidates,
        choice=choice,
        training_runs=_number(search.get("training_runs")),
        held_out=held_out,
        confused=_confused(_mapping(search.get("held_out")).get("confused"), k),
        calibration=_numbers(search.get("calibration")),
        reliability=_reliability(search.get("calibration"), _BINS),
        policy=_policy(search, record),
        by_group=tested or held_out_by_group(held_out, group_names),
        design=_mapping(search.get("design")),
        settings=_mapping(search.get("settings")),
        search_seconds=_numbers(search.get("seconds")),
        seconds=_numbers(record.get("seconds")),
        versions=_mapping(record.get("versions")) or _mapping(search.get("versions")),
        seed=record.get("seed", search.get("seed")),
        frontier=_frontier(record.get("frontier")),
        options=_mapping(record.get("options")),
        samples=_samples(samples, record),
        notes=_notes(record.get("notes")),
    )


def safe_text(text: str, limit: int = MAX_TEXT) -> str:
    """Text on one line or several, without characters that a file or a page cannot hold."""
    text = "".join(
        c if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in _BREAKING else "\ufffd"
        for c in text[: limit + 1]
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, dict):
        return {safe_text(str(k), MAX_NAME): _safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe(v) for v in value]
    return value


def _notes(value: Any) -> list[str]:
    return [n for n in value if isinstance(n, str)] if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _entries(value: Any) -> list[dict[str, Any]]:
    return [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _numbers(value: Any) -> dict[str, float]:
    return {k: n for k, v in _mapping(value).items() if (n := _number(v)) is not None}


def array_of(value: Any) -> np.ndarray | None:
    """Numbers as an array, NaN for null and infinities; None where they are no table."""
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError):
        return None
    return np.where(np.isfinite(array), array, np.nan) if array.size else None


def _counts(record: dict[str, Any]) -> np.ndarray:
    counts = array_of(record.get("class_counts"))
    if counts is not None and counts.ndim in (1, 2):
        return np.maximum(np.nan_to_num(np.atleast_2d(counts)), 0.0)
    names = record.get("class_names")
    if not isinstance(names, list) or not names:
        raise InputError(
            "The record has no usable class_counts and no class_names, so there is nothing to "
            "report on. Write it again with the run that made it."
        )
    return np.zeros((1, len(names)))


def _names(names: Any, count: int, kind: str) -> list[str]:
    given = names if isinstance(names, list) else []
    texts = [safe_text(" ".join(str(n).split()), MAX_NAME) for n in given[:count]]
    return [n or "(empty)" for n in texts] + [f"{kind} {i}" for i in range(len(texts), count)]


def _method(name: str, entry: dict[str, Any], k: int) -> Method:
    errors = array_of(entry.get("class_errors"))
    if errors is None or errors.shape != (k,):
        errors = np.full(k, np.nan)
    n = array_of(entry.get("class_n"))
    if n is None or n.shape != (k,):
        n = even_counts(errors, _number(entry.get("n")))
    return Method(
        name=name,
        title=safe_text(str(entry.get("title") or name), MAX_NAME),
        errors=errors,
        n=n,
        scores={key: v for key in SCORES if (v := _number(entry.get(key))) is not None},
        undefined={key: str(why) for key, why in _mapping(entry.get("undefined")).items()},
        seconds=_number(entry.get("seconds")),
        training_runs=_number(entry.get("training_runs")),
        confused=_confused(entry.get("confused"), k),
        reliability=_reliability(
            entry.get("calibration"), {"raw": "raw", "corrected": "corrected"}
        ),
        by_group=_tested_by_group(entry, k),
    )


def _confused(value: Any, k: int) -> np.ndarray | None:
    """Rows of class, class predicted, examples; None where there are none such."""
    table = array_of(value)
    if table is None or table.ndim != 2 or table.shape[1] != 3 or np.isnan(table).any():
        return None
    inside = (table[:, :2] >= 0).all() and (table[:, :2] < k).all() and (table[:, 2] > 0).all()
    return table.astype(np.int64) if inside else None


def _reliability(value: Any, names: dict[str, str]) -> dict[str, Reliability]:
    """Bins of confidence by name, where the record has them whole: `names` says under which keys."""
    diagrams = {}
    for name, key in names.items():
        bins = _mapping(_mapping(value).get(key))
        columns = [array_of(bins.get(part)) for part in ("n", "right", "confidence")]
        if any(c is None or c.ndim != 1 or np.isnan(c).any() or c.min() < 0 for c in columns):
            continue
        n, right, confidence = (c for c in columns if c is not None)
        if not n.shape == right.shape == confidence.shape or not n.sum():
            continue
        if not (right > n).any() and confidence.max() <= 1:
            counts = (column.astype(int).tolist() for column in (n, right))
            diagrams[name] = Reliability(*counts, confidence.tolist())
    return diagrams


def _frontier(value: Any) -> dict[str, Any]:
    """A frontier's points and baselines, where the record has them."""
    entry = _mapping(value)
    names = {axis: _text(entry.get(axis)) for axis in ("main", "gap")}

    def read(key: str, label: str) -> list[dict[str, Any]]:
        points = []
        for point in _entries(entry.get(key)):
            # The last two are of decisions alone.
            keys = ("main", "gap", "worst_cell", "drawn_from")
            numbers = {key: _number(point.get(key)) for key in keys}
            if numbers["main"] is not None and numbers["gap"] is not None and label in point:
                constant = point.get("constant") is True
                points.append({**numbers, "constant": constant, label: point[label]})
        return points

    by = "bound" if entry.get("by") == "bound" else "mix"
    points = [p for p in read("points", by) if _number(p[by]) is not None]
    if None in names.values() or not points:
        return {}
    others = [
        {**b, "title": safe_text(str(b["title"]), MAX_NAME)} for b in read("baselines", "title")
    ]
    return {**names, "points": points, "baselines": others, "by": by, by: _number(entry.get(by))}


def _held_out(value: Any, k: int) -> HeldOut | None:
    """Without which classes are taken for which: see `Run.confused`."""
    tables = _tables(_mapping(value), ("n", "wrong", "predicted"), k)
    if tables is None or (tables[1] > tables[0]).any():
        return None
    whole_numbers = all((t == np.round(t)).all() for t in tables)  # else sums of weights
    return HeldOut(*((t.astype(int) if whole_numbers else t).tolist() for t in tables))


def _tables(entry: dict[str, Any], keys: tuple[str, ...], k: int) -> list[np.ndarray] | None:
    """Tables of counts ``(g, k)`` under these keys, all of one shape; None where there are not."""
    given = [array_of(entry.get(key)) for key in keys]
    tables = [t for t in given if t is not None and t.ndim == 2 and t.shape[1] == k]
    if len({t.shape for t in tables}) != 1 or len(tables) < len(given):
        return None
    return None if any(np.isnan(t).any() or (t < 0).any() for t in tables) else tables


def held_out_by_group(held: HeldOut | None, names: Any) -> ByGroup | None:
    """Errors within groups of what a search left; None without groups."""
    if held is None or len(held.n) < 2:
        return None
    data = f"the {np.sum(held.n):,} held-out examples that guided the search, by its network"
    return _by_group(names, np.array(held.n), np.array(held.wrong, dtype=float), data)


def _tested_by_group(entry: dict[str, Any], k: int) -> ByGroup | None:
    """From the keys of `autobalance.records.metrics.classification_report`."""
    errors, n = (_mapping(entry.get(f"class_and_group_{key}")) for key in ("errors", "n"))
    tables = [array_of([part.get(name) for name in errors]) for part in (errors, n)]
    if len(errors) < 2 or any(t is None or t.shape != (len(errors), k) for t in tables):
        return None
    rates, sizes = (np.nan_to_num(t) for t in tables if t is not None)
    return _by_group(list(errors), sizes, rates * sizes, "test data")


def _by_group(names: Any, n: np.ndarray, wrong: np.ndarray, data: str) -> ByGroup:
    """Of the groups that have examples."""
    here = n.sum(axis=1) > 0
    texts = _names(names, len(n), "group")
    present = [name for name, present in zip(texts, here, strict=True) if present]
    return ByGroup(present, ErrorTable.from_counts(wrong[here], n[here]), data)


def _candidates(search: dict[str, Any], k: int, groups: Any) -> tuple[list[Candidate], str]:
    """The final choice and what it took; nothing where it did not come to one."""
    candidates = []
    for entry in _entries(search.get("candidates")):
        name, objective = _text(entry.get("name")), _number(entry.get("objective"))
        if name is None or objective is None:
            continue
        counts = _tables(entry, ("wrong", "n"), k)
        by_group = None
        if counts is not None and len(counts[0]) > 1:
            by_group = _by_group(groups, counts[1], counts[0], "the held-out folds")
        candidates.append(
            Candidate(
                safe_text(name, MAX_NAME),
                objective,
                _number(entry.get("difference")),
                _number(entry.get("standard_error")),
                None if counts is None else ErrorTable.from_counts(*counts),
                _confused(entry.get("confused"), k),
                by_group,
            )
        )
    choice = _text(search.get("choice"))
    return candidates, choice if any(
        c.name == choice for c in candidates
    ) and choice else "designed"


def _policy(search: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The augmentation's table with the names of classes and groups for their indices."""
    policy: dict[str, Any] = {}
    for row, operations in _mapping(_mapping(search.get("augment")).get("per_class")).items():
        strengths = {
            str(o): {k: min(max(v, 0.0), 1.0) for k, v in _numbers(values).items()}
            for o, values in _mapping(operations).items()
        }
        row_name = _row_name(str(row).split(" / "), record)
        policy[row_name] = {o: v for o, v in strengths.items() if "probability" in v}
    return policy if all(policy.values()) else {}


def _row_name(parts: list[str], record: dict[str, Any]) -> str:
    """The names of a class, or of a class and a group, for their indices."""
    given = [record.get(key) for key in ("class_names", "group_names")]
    names = [value if isinstance(value, list) else [] for value in given]
    return " / ".join(
        str(names[i][int(part)]) if part.isdigit() and int(part) < len(names[i]) else part
        for i, part in enumerate(parts[:2])
    )


def _samples(samples: Any, record: dict[str, Any]) -> dict[str, Any]:
    rows = _mapping(samples).get("rows")
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 2 for r in rows):
        return {}
    names = [_row_name([str(i) for i in row if i is not None], record) for row in rows]
    return {**_mapping(samples), "names": [safe_text(name, MAX_NAME) for name in names]}


def _parts(search: dict[str, Any], g: int, k: int) -> list[Part]:
    """Of the loss that the search designed; the choice may have taken another."""
    designed = [
        entry["loss"]
        for entry in _entries(search.get("candidates"))
        if entry.get("name") == "designed" and isinstance(entry.get("loss"), dict)
    ]
    loss = [_mapping(search.get("start")), (designed or [_mapping(search.get("loss"))])[0]]
    points = _entries(search.get("path"))
    parts = []
    for key, (symbol, title) in TITLES.items():
        start, end = (_rows(key, each.get(key), g, k) for each in loss)
        if end is None:
            continue
        start = np.full((g, k), _NEUTRAL[key]) if start is None else start
        rows = [(_number(p.get("step")), _rows(key, p.get(key), g, k)) for p in points]
        rows = [(step, row) for step, row in rows if step is not None and row is not None]
        path = np.array([row for _, row in rows]).reshape(-1, g, k)
        steps = np.array([step for step, _ in rows], dtype=float)
        parts.append(Part(key, symbol, title, start, end, steps, path))
    return parts


def _snippet(loss: dict[str, Any], g: int, k: int) -> str | None:
    """The loss taken as code; None where the record is not that of a loss, or the code is long."""
    used = [array_of(loss[key]) for key in TITLES if loss.get(key) is not None]
    sound = (
        loss.get("format") == "autobalance-loss"
        and all(p is not None and p.shape in ((k,), (g, k)) for p in used)
        and not any(np.isnan(p).any() for p in used if p is not None)
        and loss.get("reduction") in ("mean", "sum", "none")
        and str(loss.get("dtype")) in DTYPES
        and _number(loss.get("label_smoothing")) is not None
        and type(loss.get("ignore_index")) is int
    )
    if not sound or sum(p.size for p in used if p is not None) > MAX_SNIPPET:
        return None
    return loss_snippet(loss)


def _rows(key: str, value: Any, g: int, k: int) -> np.ndarray | None:
    """One part of the loss as ``(g, k)``, in the report's gauge."""
    array = None if value is None else array_of(value)
    if array is None or array.shape not in ((k,), (g, k)):
        return None
    rows = np.broadcast_to(array, (g, k)).astype(float)
    if key == "additive" and np.isfinite(rows).any(axis=1).all():
        rows = rows - np.nanmean(rows, axis=1, keepdims=True)
    return rows


def _curves(history: Any) -> dict[str, np.ndarray]:
    entries = [e for e in _entries(history) if _number(e.get("step")) is not None]
    keys = ("step", "objective", "hard_objective", "test_objective", "training_loss", "norm")
    values = [[_number(e.get(key)) for key in keys] for e in entries]
    table = np.array(values, dtype=float).reshape(-1, len(keys))
    return dict(zip(keys, table.T, strict=True))
