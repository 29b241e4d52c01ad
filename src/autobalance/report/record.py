"""A run's result.json, read into what the report shows.

Everything optional may be missing, and what does not fit the number of classes counts as missing
too. Text is made safe to write (no control characters, no endless names); escaping for HTML is
the business of the templates and of matplotlib.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np

from autobalance._validation import InputError
from autobalance.records import (
    ARM_OUTCOMES,
    DTYPES,
    ErrorTable,
    HeldOut,
    RacedArm,
    Reliability,
    as_counts,
    loss_snippet,
)
from autobalance.report.label_run import LabelErrors, LabelEvidence, LabelRun
from autobalance.report.pareto import frontier_points
from autobalance.report.run import ByGroup, Candidate, Method, Part, Run
from autobalance.report.text import candidate_title

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
_NEUTRAL = {"additive": 0.0, "multiplicative": 1.0, "weight": 1.0}
CURVES = ("step", "objective", "hard_objective", "test_objective", "training_loss", "norm")


def read_run(record: dict[str, Any]) -> Run:
    """Read a run's record.

    Raises
    ------
    InputError
        If the record is not a mapping, or has neither class counts nor class names.
    """
    several = isinstance(record, dict) and record.get("several_labels") is True
    return _read_label_run(record) if several else _read_class_run(record)


def _read_label_run(record: dict[str, Any]) -> LabelRun:
    """The record of several labels, whose tables ``(2, k)`` are of negatives and positives."""
    counts, search = array_of(record.get("class_counts")), _mapping(record.get("search"))
    if counts is None or counts.ndim != 2 or len(counts) != 2:
        raise InputError(
            "The record has no usable class_counts, negatives and positives of each label. Write it again "
            "with the run that made it."
        )
    negatives, positives = np.maximum(np.nan_to_num(counts), 0.0)
    k = len(positives)
    without_loss = {**search, "loss": None, "start": None, "path": None, "held_out": None}
    own = {"class_counts": positives.tolist(), "search": without_loss}
    run = _read_class_run({**record, **own})
    additive = run.adjusted.get("l")
    if additive is None:
        additive = array_of(_mapping(search.get("loss")).get("additive"))
    run = LabelRun(
        **{**vars(run), "classes": _names(record.get("class_names"), k, "label")},
        negatives=negatives,
        additive=additive if additive is not None and additive.shape == (k,) else None,
    )
    return replace(run, evidence=_label_evidence(run, record, k))


def _label_evidence(run: LabelRun, record: dict[str, Any], k: int) -> list[LabelEvidence]:
    """On test data; and on the held-out folds, or where there was no choice on them, at the search's end."""
    evidence, tested = [], []
    for method, entry in zip(run.methods, _mapping(record.get("methods")).values(), strict=True):
        tables = _tables(_mapping(entry), ("sign_wrong", "sign_n"), k)
        if tables is not None:
            tested.append(LabelErrors(method.title, ErrorTable.from_counts(*tables)))
    if tested:
        evidence.append(LabelEvidence("test", run.data, tested))
    judged = [c for c in (run.other, run.candidate(run.choice)) if c is not None]
    folds = [
        LabelErrors(candidate_title(run, c.name), c.table) for c in judged if c.table is not None
    ]
    held = _held_out(_mapping(record.get("search")).get("held_out"), k)
    if folds:
        evidence.append(LabelEvidence("folds", "held-out examples", folds))
    elif held is not None:
        data = "the held-out examples that guided the search"
        errors = LabelErrors("The search's network", held.table)
        evidence.append(LabelEvidence("held", data, [errors]))
    return evidence


def _read_class_run(record: dict[str, Any]) -> Run:
    """A record of classes."""
    if not isinstance(record, dict):
        raise InputError(f"A run's record must be a mapping; got {type(record).__name__}.")
    samples = record.get("samples")
    record = _safe({key: value for key, value in record.items() if key != "samples"})
    counts = _counts(record)
    g, k = counts.shape
    search = _mapping(record.get("search"))
    settings, calibration = (_mapping(search.get(key)) for key in ("settings", "calibration"))
    steps = _number(settings.get("steps"))
    folds = _number(_mapping(settings.get("search")).get("folds"))
    search_status = str(search.get("status") or "finished")
    candidates, choice = _candidates(search, k, record.get("group_names"))
    held_out = _held_out(search.get("held_out"), k)
    methods = [_method(n, _mapping(m), k) for n, m in _mapping(record.get("methods")).items()]
    beside = _mapping(record.get("baselines"))
    tested = next((m.by_group for m in methods if m.name == "autobalance"), None)
    return Run(
        kind=str(record.get("kind") or "fit"),
        command=_text(record.get("command")),
        objective=str(record.get("objective") or "balanced_error"),
        classes=_names(record.get("class_names"), k, "class"),
        groups=_names(record.get("group_names"), g, "group") if g > 1 else None,
        counts=counts,
        order=np.argsort(-counts.sum(axis=0), kind="stable"),
        methods=methods,
        evaluation_data=_text(record.get("evaluation_data")),
        baselines=[_method(n, _mapping(m), k) for n, m in _mapping(beside.get("methods")).items()],
        baselines_data=_text(beside.get("data")) or "held-out rows",
        parts=_parts(search, g, k),
        snippet=_snippet(_mapping(search.get("loss")), g, k),
        curves=_curves(search.get("history")),
        search_status=search_status,
        status=str(record.get("status") or search_status),
        candidates=candidates,
        choice=choice,
        race=_race(search),
        training_runs=_number(search.get("training_runs")),
        steps=None if steps is None else int(steps),
        folds=None if folds is None or folds < 1 else int(folds),
        held_out=held_out,
        confused=_confused(_mapping(search.get("held_out")).get("confused"), k),
        calibration=_numbers(calibration),
        reliability=_reliability(calibration, raw="raw_bins", prior="prior_bins", corrected="bins"),
        policy=_policy(search, record),
        by_group=tested or held_out_by_group(held_out, record.get("group_names")),
        design=_mapping(search.get("design")),
        settings=settings,
        search_seconds=_numbers(search.get("seconds")),
        seconds=_numbers(record.get("seconds")),
        versions=_mapping(record.get("versions")) or _mapping(search.get("versions")),
        notes=_lines(record.get("notes")),
        seed=record.get("seed", search.get("seed")),
        frontier=_frontier(_mapping(record.get("frontier"))),
        options=_mapping(record.get("options")),
        adjusted=_adjusted(_mapping(record.get("adjustment")), k),
        rules=_rules(record, k),
        samples=_samples(samples, record),
    )


# Plain values -----------------------------------------------------------------------------------


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
    return [_safe(v) for v in value] if isinstance(value, (list, tuple)) else value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _entries(value: Any) -> list[dict[str, Any]]:
    return [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []


def _lines(value: Any) -> list[str]:
    return [line for line in value if isinstance(line, str)] if isinstance(value, list) else []


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


def _names(names: Any, count: int, kind: str) -> list[str]:
    given = names if isinstance(names, list) else []
    texts = [safe_text(" ".join(str(n).split()), MAX_NAME) for n in given[:count]]
    return [n or "(empty)" for n in texts] + [f"{kind} {i}" for i in range(len(texts), count)]


def _row_name(parts: list[str], record: dict[str, Any]) -> str:
    """The names of a class, or of a class and a group, for their indices."""
    given = [record.get(key) for key in ("class_names", "group_names")]
    names = [value if isinstance(value, list) else [] for value in given]
    return " / ".join(
        str(names[i][int(part)]) if part.isdigit() and int(part) < len(names[i]) else part
        for i, part in enumerate(parts[:2])
    )


# Counts and errors ------------------------------------------------------------------------------


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


def _method(name: str, entry: dict[str, Any], k: int) -> Method:
    keys = ("class_errors", "class_n", "class_n_effective")
    errors, n, effective = (array_of(entry.get(key)) for key in keys)
    if errors is None or errors.shape != (k,):
        errors = np.full(k, np.nan)
    return Method(
        name=name,
        title=safe_text(str(entry.get("title") or name), MAX_NAME),
        errors=errors,
        n=n if n is not None and n.shape == (k,) else None,
        scores={key: v for key in SCORES if (v := _number(entry.get(key))) is not None},
        undefined={key: str(why) for key, why in _mapping(entry.get("undefined")).items()},
        seconds=_number(entry.get("seconds")),
        training_runs=_number(entry.get("training_runs")),
        confused=_confused(entry.get("confused"), k),
        reliability=_reliability(
            _mapping(entry.get("calibration")), raw="raw", corrected="corrected"
        ),
        by_group=_read_group_errors(entry, k),
        effective=effective if effective is not None and effective.shape == (k,) else None,
        standard_errors=_numbers(entry.get("standard_error")),
    )


def _confused(value: Any, k: int) -> np.ndarray | None:
    """Rows of class, class predicted, examples; None where there are none such."""
    table = array_of(value)
    if table is None or table.ndim != 2 or table.shape[1] != 3 or np.isnan(table).any():
        return None
    inside = (table[:, :2] >= 0).all() and (table[:, :2] < k).all() and (table[:, 2] > 0).all()
    return as_counts(table) if inside else None


def _reliability(entry: dict[str, Any], **names: str) -> dict[str, Reliability]:
    """Bins of confidence by name, where the record has them whole: `names` says under which keys."""
    diagrams = {}
    for name, key in names.items():
        bins = _mapping(entry.get(key))
        columns = [array_of(bins.get(part)) for part in ("n", "right", "confidence")]
        effective = array_of(bins.get("effective"))
        if any(c is None or c.ndim != 1 or np.isnan(c).any() or c.min() < 0 for c in columns):
            continue
        n, right, confidence = (c for c in columns if c is not None)
        if not n.shape == right.shape == confidence.shape or not n.sum():
            continue
        if not (right > n).any() and confidence.max() <= 1:
            n, right = _as_counts(n, right)
            if effective is not None and effective.shape != confidence.shape:
                effective = None
            own = None if effective is None else effective.tolist()
            diagrams[name] = Reliability(n, right, confidence.tolist(), own)
    return diagrams


def _as_counts(*tables: np.ndarray) -> list[Any]:
    """Lists of integers where all are whole; else of the sums of weights as they are."""
    whole = all((table == np.round(table)).all() for table in tables)
    return [(table.astype(int) if whole else table).tolist() for table in tables]


def _tables(entry: dict[str, Any], keys: tuple[str, ...], k: int) -> list[np.ndarray] | None:
    """Tables of counts ``(g, k)`` under these keys, all of one shape; None where there are not."""
    given = [array_of(entry.get(key)) for key in keys]
    tables = [t for t in given if t is not None and t.ndim == 2 and t.shape[1] == k]
    if len({t.shape for t in tables}) != 1 or len(tables) < len(given):
        return None
    return None if any(np.isnan(t).any() or (t < 0).any() for t in tables) else tables


def _held_out(value: Any, k: int) -> HeldOut | None:
    """Without which classes are taken for which: see `Run.confused`."""
    entry = _mapping(value)
    tables = _tables(entry, ("n", "wrong", "predicted"), k)
    if tables is None or (tables[1] > tables[0]).any():
        return None
    effective = _effective(entry, tables[0])
    return HeldOut(
        *_as_counts(*tables), effective=None if effective is None else effective.tolist()
    )


def _effective(entry: dict[str, Any], n: np.ndarray) -> np.ndarray | None:
    """Effective numbers of the examples ``(g, k)``, where the record has them."""
    tables = _tables(entry, ("effective",), n.shape[1])
    return tables[0] if tables and tables[0].shape == n.shape else None


def held_out_by_group(held: HeldOut | None, names: Any) -> ByGroup | None:
    """Errors within groups of what a search left; None without groups."""
    if held is None or len(held.n) < 2:
        return None
    data = f"the {np.sum(held.n):,.0f} held-out examples that guided the search, by its network"
    return _by_group(names, held.table, data)


def _read_group_errors(entry: dict[str, Any], k: int) -> ByGroup | None:
    """From the keys of `autobalance.records.metrics.classification_report`."""
    parts = [
        _mapping(entry.get(f"class_and_group_{key}")) for key in ("errors", "n", "n_effective")
    ]
    names = list(parts[0])
    arrays = [array_of([part.get(name) for name in names]) for part in parts]
    tables = [None if t is None or t.shape != (len(names), k) else np.nan_to_num(t) for t in arrays]
    errors, n, effective = tables
    if len(names) < 2 or errors is None or n is None:
        return None
    return _by_group(names, ErrorTable.from_counts(errors * n, n, effective=effective), "test data")


def _by_group(names: Any, table: ErrorTable, data: str) -> ByGroup:
    """Of the groups that have examples."""
    here = table.present_groups
    texts = _names(names, len(here), "group")
    present = [name for name, present in zip(texts, here, strict=True) if present]
    effective = None if table.effective is None else table.effective[here]
    known = ErrorTable.from_counts(table.wrong[here], table.mass[here], effective=effective)
    return ByGroup(present, known, data)


def _candidates(search: dict[str, Any], k: int, groups: Any) -> tuple[list[Candidate], str]:
    """The final choice and what it took; nothing where it did not come to one."""
    candidates = []
    for entry in _entries(search.get("candidates")):
        name, objective = _text(entry.get("name")), _number(entry.get("objective"))
        if name is None or objective is None:
            continue
        counts = _tables(entry, ("wrong", "n"), k)
        table = by_group = None
        if counts is not None:
            effective = _effective(entry, counts[1])
            table = ErrorTable.from_counts(*counts, effective=effective)
            if len(counts[0]) > 1:
                by_group = _by_group(groups, table, "the held-out folds")
        candidate = Candidate(
            safe_text(name, MAX_NAME),
            objective,
            _number(entry.get("difference")),
            _number(entry.get("standard_error")),
            table=table,
            undefined=_text(entry.get("undefined")),
            confused=_confused(entry.get("confused"), k),
            by_group=by_group,
        )
        candidates.append(candidate)
    choice = _text(search.get("choice"))
    taken = choice in [c.name for c in candidates]
    return candidates, choice if choice and taken else "designed"


_ARM_NUMBERS = ("criterion", "difference", "standard_error", "error", "training_error")


def _race(search: dict[str, Any]) -> list[RacedArm]:
    """The arms raced before the search, those of a readable name and outcome."""
    arms = []
    for entry in _entries(search.get("race")):
        name, outcome = _text(entry.get("name")), _text(entry.get("outcome"))
        if name is None or outcome not in ARM_OUTCOMES:
            continue
        numbers = {key: _number(entry.get(key)) for key in _ARM_NUMBERS}
        reason = safe_text(_text(entry.get("reason")) or "")
        settings, steps = _mapping(entry.get("settings")), int(_number(entry.get("steps")) or 0)
        arms.append(
            RacedArm(safe_text(name, MAX_NAME), settings, outcome, reason, steps, **numbers)
        )
    return arms


# What else a run may have -----------------------------------------------------------------------


def _frontier(entry: dict[str, Any]) -> dict[str, Any]:
    """A frontier's points and baselines, where the record has them."""
    names = {axis: _text(entry.get(axis)) for axis in ("main", "gap")}
    by = "bound" if entry.get("by") == "bound" else "mix"

    def read(key: str, label: str) -> list[dict[str, Any]]:
        points = []
        for point in _entries(entry.get(key)):
            # The last two are of decisions alone.
            keys = ("main", "gap", "worst_cell", "drawn_from")
            numbers = {key: _number(point.get(key)) for key in keys}
            undefined = {k: str(v) for k, v in _mapping(point.get("undefined")).items()}
            told = all(numbers[axis] is not None or axis in undefined for axis in names)
            if told and label in point:
                notes = {"constant": point.get("constant") is True, "undefined": undefined}
                points.append({**numbers, **notes, label: point[label]})
        return points

    points = [p for p in read("points", by) if _number(p[by]) is not None]
    if None in names.values() or not points:
        return {}
    baselines = read("baselines", "title")
    read_points = {"by": by, "points": points, by: _number(entry.get(by))}
    points = frontier_points(read_points)
    others = [{**b, "title": safe_text(str(b["title"]), MAX_NAME)} for b in baselines]
    return {**names, **read_points, "points": points, "baselines": others}


def _adjusted(entry: dict[str, Any], k: int) -> dict[str, Any]:
    """What decides in a run of decisions on scores; empty for every other run."""
    if not entry:
        return {}
    additive = array_of(entry.get("l"))
    intervals = {name: array_of(each) for name, each in _mapping(entry.get("intervals")).items()}
    curve = array_of(entry.get("curve"))
    shapes = {"tau": (2,), "gain": (2,), "l": (k, 2)}
    return {
        "chosen": safe_text(str(entry.get("chosen")), MAX_NAME),
        "before": safe_text(str(entry.get("before")), MAX_NAME),
        "model": _text(entry.get("model")),
        "rules": int(_number(entry.get("rules")) or 1),
        "l": additive if additive is not None and additive.shape == (k,) else None,
        "curve": curve if curve is not None and curve.ndim == 2 and curve.shape[1] == 3 else None,
        "intervals": {
            name: each
            for name, each in intervals.items()
            if each is not None and each.shape == shapes.get(name)
        },
        **{key: _number(entry.get(key)) for key in ("tau", "gain")},
    }


def _rules(record: dict[str, Any], k: int) -> dict[str, Any]:
    """The rules of decisions; their number alone where the record is from before they were kept."""
    entry = _mapping(record.get("rules"))
    shares = array_of(entry.get("shares"))
    if shares is not None and shares.ndim == 1 and not np.isnan(shares).any():
        tables = {key: array_of(entry.get(key)) for key in ("l", "prices")}
        names = record.get("group_names")
        names = names if isinstance(names, list) else []
        shapes = {"l": (len(shares), k), "prices": (len(shares), len(names), k)}
        fitting = {
            key: table if table is not None and table.shape == shapes[key] else None
            for key, table in tables.items()
        }
        groups = _names(names, len(names), "group")
        return {"count": len(shares), "shares": shares.tolist(), "groups": groups, **fitting}
    points = _mapping(record.get("frontier"))
    count = _number(_mapping(record.get("adjustment")).get("rules"))
    if points.get("by") == "bound":
        count = _number(_mapping(points.get("kept")).get("drawn_from"))
    if not count:
        return {}
    return {"count": int(count), "shares": None, "l": None, "prices": None}


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


def _samples(samples: Any, record: dict[str, Any]) -> dict[str, Any]:
    rows = _mapping(samples).get("rows")
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 2 for r in rows):
        return {}
    names = [_row_name([str(i) for i in row if i is not None], record) for row in rows]
    return {**_mapping(samples), "names": [safe_text(name, MAX_NAME) for name in names]}


# The loss ---------------------------------------------------------------------------------------


def _parts(search: dict[str, Any], g: int, k: int) -> list[Part]:
    """Of the loss that the search designed; the choice may have taken another."""
    losses = [
        e.get("loss") for e in _entries(search.get("candidates")) if e.get("name") == "designed"
    ]
    designed = next((e for e in losses if isinstance(e, dict)), _mapping(search.get("loss")))
    points = _entries(search.get("path"))
    parts = []
    for key, (symbol, title) in TITLES.items():
        ends = (_mapping(search.get("start")), designed)
        start, end = (_rows(key, loss.get(key), g, k) for loss in ends)
        if end is None:
            continue
        start = np.full((g, k), _NEUTRAL[key]) if start is None else start
        rows = [(_number(p.get("step")), _rows(key, p.get(key), g, k)) for p in points]
        rows = [(step, row) for step, row in rows if step is not None and row is not None]
        path = np.array([row for _, row in rows]).reshape(-1, g, k)
        steps = np.array([step for step, _ in rows], dtype=float)
        parts.append(Part(key, symbol, title, start, end, steps, path))
    return parts


def _rows(key: str, value: Any, g: int, k: int) -> np.ndarray | None:
    """One part of the loss as ``(g, k)``, in the report's gauge."""
    array = None if value is None else array_of(value)
    if array is None or array.shape not in ((k,), (g, k)):
        return None
    rows = np.broadcast_to(array, (g, k)).astype(float)
    if key == "additive" and np.isfinite(rows).any(axis=1).all():
        rows = rows - np.nanmean(rows, axis=1, keepdims=True)
    return rows


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
    short = sum(p.size for p in used if p is not None) <= MAX_SNIPPET
    return loss_snippet(loss) if sound and short else None


def _curves(history: Any) -> dict[str, np.ndarray]:
    entries = [e for e in _entries(history) if _number(e.get("step")) is not None]
    values = [[_number(e.get(key)) for key in CURVES] for e in entries]
    table = np.array(values, dtype=float).reshape(-1, len(CURVES))
    return dict(zip(CURVES, table.T, strict=True))
