"""The tables of one run: what they say, apart from how they look."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autobalance.records import ErrorTable
from autobalance.report.choice import candidate_title
from autobalance.report.evidence import Evidence, all_evidence, confusion_evidence, error_evidence
from autobalance.report.formats import duration, number, percent, points, setting_text
from autobalance.report.record import SCORES, Method, Part, Run, safe_text
from autobalance.report.statistics import half_width, mean_error_variance, wilson
from autobalance.report.text import end_label, in_sentence, objective_name, start_name

MAX_PAIRS = 15
MAX_SETTINGS = 200
_LONG = 30  # rows; a longer table starts folded
_WIDE = 5  # columns
_SCORE_TITLES = dict(zip(SCORES, ("Balanced error", "Worst class", "Worst group"), strict=True))
_NOT_SETTINGS = {"class_counts", "validation_counts"}


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a smaller note, the number to sort by, and what it was read from."""

    text: str
    note: str = ""
    value: float | None = None
    best: bool = False
    raw: str = ""


@dataclass(frozen=True)
class Table:
    """A table. The first column heads the rows; the others hold numbers where `numeric`.

    On a narrow page the column `folded`, where there is one, stands below the heads of the rows.
    """

    name: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    numeric: bool = True
    sortable: bool = True
    folded: int | None = None

    @property
    def text_columns(self) -> set[int]:
        """Columns beside the first without any number to sort by."""
        if not self.numeric:
            return set(range(len(self.columns)))
        inner = range(1, len(self.columns))
        return {i for i in inner if all(r[i].value is None and r[i].text != "–" for r in self.rows)}

    @property
    def long(self) -> bool:
        """Whether it starts folded."""
        return len(self.rows) > _LONG

    @property
    def wide(self) -> bool:
        """Whether a phone has no room for it."""
        return self.numeric and len(self.columns) - (self.folded is not None) > _WIDE


# Cells -----------------------------------------------------------------------------------------


def rate_cell(value: float | None, note: str = "", *, best: bool = False) -> Cell:
    """A share as a percentage, or a dash."""
    return Cell(percent(value), note, _finite(value), best)


def change_cell(gap: float | None, note: str = "") -> Cell:
    """A difference of shares in points, or a dash."""
    known = _finite(gap)
    return Cell("–" if known is None else points(known), note, known)


def number_cell(value: float | None, form: str = "{:,.0f}") -> Cell:
    """A number in a form of `str.format`, or a dash."""
    return Cell("–" if value is None else form.format(value), value=_finite(value))


def time_cell(seconds: float | None) -> Cell:
    """A duration, or a dash."""
    return Cell(duration(seconds), value=seconds)


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def error_cells(errors: np.ndarray, n: np.ndarray | None) -> list[Cell]:
    """Error rates with their Wilson intervals, where the numbers of examples are known."""
    if n is None:
        return [rate_cell(float(e)) for e in errors]
    low, high = wilson(errors, n)
    notes = [
        f"{100 * a:.0f}–{100 * b:.0f}" if np.isfinite(e) else ""
        for e, a, b in zip(errors, low, high, strict=True)
    ]
    return [rate_cell(float(e), note) for e, note in zip(errors, notes, strict=True)]


def balanced_error_note(method: Method) -> str:
    """± and the half-width of the balanced error's 95% interval, where it is known."""
    if method.n is None:
        return ""
    return f"± {100 * half_width(mean_error_variance(method.errors, method.n)):.1f}"


def cut_note(most: int, count: int, where: str = "") -> str:
    """That a table ends after so many rows, if it does."""
    return "" if count <= most else f" The first {most:,} of {count:,} rows{where}."


def _cut(run: Run, count: int) -> str:
    return cut_note(run.rows, count, "; all are in result.json")


# Errors ----------------------------------------------------------------------------------------


def methods_table(run: Run) -> Table | None:
    """Methods side by side; the lowest error of each kind is marked."""
    methods = run.methods
    if not methods:
        return None
    keys = [key for key in SCORES if any(key in m.scores or key in m.undefined for m in methods)]
    lowest = {
        key: min((m.scores[key] for m in methods if key in m.scores), default=0) for key in keys
    }
    timed = any(m.seconds is not None or m.training_runs is not None for m in methods)
    rows = []
    for method in methods:
        row = [Cell(method.title)]
        for key in keys:
            value = method.scores.get(key)
            note = ""
            if key == "balanced_error" and value is not None:
                note = balanced_error_note(method)
            best = value is not None and len(methods) > 1 and value == lowest[key]
            row.append(rate_cell(value, note, best=best))
        if timed:
            row += [time_cell(method.seconds), number_cell(method.training_runs, "{:g}")]
        rows.append(row)
    columns = ["Training loss", *(_SCORE_TITLES[key] for key in keys)]
    columns += ["Time", "Training runs"] if timed else []
    caption = f"Errors on {run.evaluation_data or 'test data'}"
    caption += "; the lowest in bold." if len(methods) > 1 else "."
    if any(cell.note for row in rows for cell in row):
        caption += " ±: 95% interval for the choice of test examples; a new seed would add to it."
    reasons = {f"{_SCORE_TITLES[k]}: not defined, for {m.undefined[k]}." for m in methods
               for k in keys if k in m.undefined}  # fmt: skip
    caption = " ".join([caption, *sorted(reasons)])
    return Table(f"{run.place}methods", caption, columns, rows)


def choice_table(run: Run) -> Table | None:
    """The final choice: every candidate's held-out error, and its difference to the start."""
    if not run.candidates:
        return None
    start = start_name(run)
    lowest = min(c.objective for c in run.candidates)
    rows = []
    for c in run.candidates:
        gap = None if c.name == "start" else c.difference
        known = gap is not None and c.standard_error is not None
        note = f"± {100 * c.standard_error:.1f}" if known and c.standard_error is not None else ""
        rows.append(
            [
                Cell(candidate_title(c.name, start)),
                rate_cell(c.objective, best=c.objective == lowest),
                change_cell(gap, note),
                Cell("taken" if c.name == run.choice else ""),
            ]
        )
    trained = f"Each loss trained anew on each of the {run.in_folds}"
    if run.folds == 1:
        trained = "The designed loss and augmentation by the search's network, the start trained anew without"
    caption = (
        f"{trained}; errors ({objective_name(run)}, 0-1) on all "
        "examples held out; the lowest in bold. Difference to the start in percentage points ± its "
        "standard error; below 0 is better. The same held-out examples guided the search, which "
        "flatters the designed loss a little."
    )
    columns = ["Training loss", "Held-out error", "Difference, points", "Choice"]
    return Table(f"{run.place}choice", caption, columns, rows, sortable=False)


def errors_tables(run: Run) -> list[Table]:
    """Error per class: on the best data, and where that says nothing of before, also on folds'."""
    return [_errors_table(run, evidence) for evidence in error_evidence(run)]


def _errors_table(run: Run, evidence: Evidence) -> Table:
    """Error per class and method, most frequent class first."""
    methods, change = evidence.methods, evidence.change
    cells = [error_cells(m.errors, m.n) for m in methods]
    columns = ["Class", "Training examples", *(m.title for m in methods)]
    caption = f"Error per class on {evidence.data}, most frequent first."
    if any(m.n is not None for m in methods):
        caption += " Beside each: its 95% Wilson interval in percent."
    if change is not None and evidence.before and evidence.after:
        cells.append([change_cell(gap) for gap in change.tolist()])
        columns.append("Change, points")
        caption += f" Change: from {evidence.before.title} to {evidence.after.title}."
    rows = [
        [Cell(run.classes[c]), number_cell(run.class_totals[c]), *(column[c] for column in cells)]
        for c in run.order[: run.rows].tolist()
    ]
    caption += _cut(run, len(run.order))
    return Table(f"{run.place}errors-{evidence.kind}", caption, columns, rows, folded=1)


def calibration_table(run: Run) -> Table | None:
    """Expected calibration errors of raw and of corrected probabilities."""
    tested = [m for m in run.methods if {"raw", "corrected"} <= m.reliability.keys()]
    if tested:
        columns = ["Training loss", "Softmax of the raw logits", "Corrected"]
        rows = [
            [Cell(m.title), *(rate_cell(m.reliability[key].error) for key in ("raw", "corrected"))]
            for m in tested
        ]
        caption = (
            f"Expected calibration error on {run.evaluation_data or 'test data'}: how far, on average, "
            "confidence is from the share predicted rightly. Corrected: for what the loss adds to the "
            "logits and for the class frequencies of these examples, as predict_proba does for a prior."
        )
        return Table(f"{run.place}calibration", caption, columns, rows, sortable=False)
    diagrams = run.reliability
    if "raw" not in diagrams:
        return None
    titles = {
        "raw": "Softmax of the raw logits",
        "prior": "Corrected for the loss and the class frequencies",
        "corrected": "The same, with the temperature fitted",
    }
    rows = [
        [Cell(t), rate_cell(diagrams[key].error)] for key, t in titles.items() if key in diagrams
    ]
    caption = (
        f"Expected calibration error on {sum(diagrams['raw'].n):,} held-out examples, by the search's "
        "network: how far, on average, confidence is from the share predicted rightly."
    )
    if "temperature" in run.calibration:
        fitted = number(run.calibration["temperature"])
        caption += f" The temperature, {fitted}, was fitted on these same examples."
    columns = ["Probabilities", "Calibration error"]
    return Table(f"{run.place}calibration", caption, columns, rows, sortable=False)


def confusion_table(run: Run) -> Table | None:
    """The pairs of classes whose confusion changed most, or of one method the most frequent."""
    evidence = confusion_evidence(run)
    if evidence is None:
        return None
    methods = evidence.pair
    both = len(methods) == 2
    counts = [pair_counts(m) for m in methods]
    before, after = counts if both else ({}, counts[0])
    pairs = set().union(*counts)
    change = {p: after.get(p, 0) - before.get(p, 0) for p in pairs}
    most = sorted(pairs, key=lambda p: (-abs(change[p]), -after.get(p, 0), p))[:MAX_PAIRS]
    rows = []
    for t, guess in most:
        row = [Cell(run.classes[t]), Cell(run.classes[guess])]
        for method, table in zip(methods, counts, strict=True):
            n = table.get((t, guess), 0)
            total = 0.0 if method.n is None else method.n[t]
            row.append(Cell(f"{n:,}", f"{100 * n / total:.0f}%" if total else "", float(n)))
        if both:
            gap = change[t, guess]
            sign = "+" if gap > 0 else "−" if gap < 0 else "±"
            row.append(Cell(f"{sign}{abs(gap):,}", value=float(gap)))
        rows.append(row)
    columns = ["Class", "Predicted as", *(m.title for m in methods), *(["Change"] if both else [])]
    caption = "The confusions that changed most" if both else "The most frequent confusions"
    caption += f", in numbers of examples, on {evidence.data}. Beside each: the share of the class."
    return Table(f"{run.place}confusion", caption, columns, rows)


def pair_counts(method: Method) -> dict[tuple[int, int], int]:
    """Examples by class and class predicted, where these differ."""
    assert method.confused is not None
    return {(t, guess): n for t, guess, n in method.confused.tolist()}


# Groups ----------------------------------------------------------------------------------------


def groups_table(run: Run) -> Table | None:
    """Rates within each group, over all, and the largest difference between groups."""
    if run.by_group is None:
        return None
    names, table = run.by_group.names, run.by_group.table
    rates = _group_rates(table)
    sizes = table.mass.sum(axis=1)
    columns = {title: [rate_cell(v) for v in values] for title, values in rates.items()}
    columns["Error"][:-2] = error_cells(table.group_errors, sizes)
    counts = [number_cell(float(n)) for n in (*sizes, sizes.sum())] + [Cell("–")]
    heads = map(Cell, [*names, "All", "Difference"])
    rows = [list(row) for row in zip(heads, counts, *columns.values(), strict=True)]
    caption = (
        f"Of {run.by_group.data}. Beside each error its 95% Wilson interval in percent; the difference is "
        "that of the highest and the lowest group. Balanced errors are over the classes that a group "
        "has."
    )
    if len(run.classes) == 2:
        caption += f" Positive is {run.classes[1]}."
    return Table(
        f"{run.place}groups", caption, ["Group", "Examples", *columns], rows, sortable=False
    )


def groups_change_table(run: Run) -> Table | None:
    """Error and balanced error of each group, before and after."""
    pairs = [e for e in all_evidence(run) if len(e.pair) == 2 and all(m.by_group for m in e.pair)]
    if not pairs:
        return None
    evidence = pairs[0]
    before, after = (m.by_group for m in evidence.pair)
    assert before is not None
    assert after is not None
    same = before.names == after.names and (before.table.mass == after.table.mass).all()
    if not same:
        return None
    rates = [_group_rates(each.table) for each in (before, after)]
    columns, cells = ["Group"], []
    for name in ("Error", "Balanced error"):
        ends = [r[name] for r in rates]
        columns += [f"{name}, before", f"{name}, after", "Change, points"]
        cells += [[rate_cell(v) for v in values] for values in ends]
        cells.append([change_cell(b - a) for a, b in zip(*ends, strict=True)])
    heads = map(Cell, [*before.names, "All", "Difference"])
    rows = [list(row) for row in zip(heads, *cells, strict=True)]
    titles = [in_sentence(m.title) for m in evidence.pair]
    caption = f"Before: {titles[0]}; after: {titles[1]}. On {evidence.data}."
    return Table(f"{run.place}groups-change", caption, columns, rows, sortable=False)


_GAP_TITLES = {
    "deo": "Difference of equal opportunity, DEO",
    "equalized_odds_difference": "Equalized odds difference",
    "equal_opportunity_difference": "Equal opportunity difference",
    "demographic_parity_difference": "Demographic parity difference",
}


def gaps_table(run: Run) -> Table | None:
    """Differences between groups by name; those that are not defined with the reason."""
    if run.by_group is None:
        return None
    table, names = run.by_group.table, run.by_group.names
    measures = list(_GAP_TITLES)[: 4 if len(run.classes) == 2 else 2]
    rows = [[Cell(_GAP_TITLES[m]), rate_cell(getattr(table, m))] for m in measures]
    caption = (
        "The highest group's rate less the lowest's: of each class's errors, their sum (DEO) or the "
        "largest. With few examples in a cell gaps are above 0 for any classifier."
    )
    reasons = {m: table.undefined(m, run.classes, names) for m in measures}
    by_reason: dict[str, list[str]] = {}
    for measure, reason in reasons.items():
        if reason:
            by_reason.setdefault(reason, []).append(_GAP_TITLES[measure])
    for reason, titles in by_reason.items():
        caption += f" Not defined, for {reason}: {'; '.join(titles)}."
    return Table(f"{run.place}gaps", caption, ["Gap", "Value"], rows, sortable=False)


def _group_rates(table: ErrorTable) -> dict[str, list[float]]:
    """Each of the groups, then of all examples together, then its range over the groups."""
    totals = (t.sum(axis=0, keepdims=True) for t in (table.wrong, table.mass))
    both = table, ErrorTable.from_counts(*totals)
    errors = np.concatenate([t.errors for t in both])
    rates = {
        "Error": np.concatenate([t.group_errors for t in both]),
        "Balanced error": np.concatenate([t.group_balanced_errors for t in both]),
    }
    if errors.shape[1] == 2:
        selected = [t.selection_rates for t in both]
        rates["Selection rate"] = np.concatenate([s[:, 1] for s in selected if s is not None])
        rates["True positive rate"] = 1.0 - errors[:, 1]
        rates["False positive rate"] = errors[:, 0]
    return {title: [*values.tolist(), _range(values[:-1])] for title, values in rates.items()}


def _range(values: np.ndarray) -> float:
    """Highest less lowest; NaN where a group has no such rate."""
    return float(np.ptp(values))


# The loss, its cost and how it came about --------------------------------------------------------


def parameters_table(run: Run) -> Table | None:
    """Start and result of ℓ, δ and w for every class, and for every group."""
    if not run.parts:
        return None
    pairs = [(g, c) for c in run.order.tolist() for g in range(len(run.counts))]
    rows = []
    for g, c in pairs[: run.rows]:
        row = [Cell(run.classes[c]), *([Cell(run.groups[g])] if run.groups else [])]
        row.append(number_cell(run.counts[g, c]))
        row += [parameter_cell(v[g, c]) for part in run.parts for v in _ends(part)]
        rows.append(row)
    columns = ["Class", *(["Group"] if run.groups else []), "Training examples"]
    for part in run.parts:
        both = [f"{part.symbol}, start", f"{part.symbol}, {end_label(run)}"]
        columns += both if part.changed else [part.symbol]
    caption = "Parameters of the loss, most frequent class first."
    if any(part.key == "additive" for part in run.parts):
        caption += " ℓ is shown with mean 0" + (" in each group." if run.groups else ".")
    caption += _cut(run, len(pairs))
    return Table(f"{run.place}parameters", caption, columns, rows, folded=2 if run.groups else 1)


def _ends(part: Part) -> list[np.ndarray]:
    return [part.start, part.end] if part.changed else [part.end]


def parameter_cell(value: float, digits: int | None = None) -> Cell:
    """A parameter of the loss, small ones with a digit more."""
    if digits is None:
        digits = 2 if not np.isfinite(value) or abs(value) >= 0.1 else 3
    return Cell(number(value, digits), value=_finite(value))


def cost_table(run: Run) -> Table | None:
    """What the run cost."""
    designed = run.method("autobalance")
    compared = len(run.methods) > 1
    diverged = run.search_status == "diverged"
    whole = None if designed is None or not compared else designed.seconds
    total = f"Total, all {len(run.methods)} methods compared" if compared else "Total"
    times = {
        "Search, until it diverged" if diverged else "Search": run.search_time,
        "Search, processor time": run.search_seconds.get("cpu"),
        "Retraining": run.seconds.get("retrain"),
        "autobalance: search and retraining": whole,
        total: run.seconds.get("total"),
    }
    rows = [[Cell(name), time_cell(s)] for name, s in times.items() if s is not None]
    if run.training_runs is not None and not diverged:
        rows.append([Cell("Search, in training runs"), number_cell(run.training_runs, "{:.3g}")])
    if run.steps is not None:
        done = run.steps_done if diverged else None
        steps = f"{run.steps:,}" if done is None else f"{done:,} of {run.steps:,}"
        name = "Training steps per run" if done is None else "Training steps done"
        rows.append([Cell(name), Cell(steps, value=run.steps)])
    if upper := len(run.curves["step"]):
        rows.append([Cell("Steps on the loss (upper level)"), number_cell(upper, "{:,}")])
    if not rows:
        return None
    caption = "Time on the clock unless stated."
    if whole is not None:
        caption += (
            " The search is part of autobalance's time; the total covers all methods compared, "
            "one after another."
        )
    return Table(f"{run.place}cost", caption, ["Part", "Cost"], rows, sortable=False)


def settings_table(run: Run) -> Table | None:
    """All settings, one a row, nested names joined by dots."""
    rows = [[Cell(name), _setting_cell(value)] for name, value in flat_settings(run)]
    return _words_table(f"{run.place}settings", "Settings of the run.", ["Setting", "Value"], rows)


def _setting_cell(value: Any) -> Cell:
    """Its words, and where it is an object of the library its record behind them."""
    raw = safe_text(json.dumps(value, ensure_ascii=False), 600) if isinstance(value, dict) else ""
    return Cell(safe_text(setting_text(value), 300), raw=raw)


def versions_table(run: Run) -> Table | None:
    """Versions of the software."""
    rows = [[Cell(name), Cell(safe_text(str(v), 300))] for name, v in run.versions.items()]
    return _words_table(f"{run.place}versions", "Software.", ["Package", "Version"], rows)


def _words_table(
    name: str, caption: str, columns: Sequence[str], rows: list[list[Cell]]
) -> Table | None:
    if not rows:
        return None
    return Table(name, caption, list(columns), rows[:MAX_SETTINGS], numeric=False, sortable=False)


def flat_settings(run: Run) -> list[tuple[str, Any]]:
    """Names joined by dots, and values; first the options that are no settings of the search."""
    return [*run.options.items(), *_flat("", run.settings)]


def _flat(prefix: str, values: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if key in _NOT_SETTINGS:
            continue
        if isinstance(value, dict) and "kind" not in value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield prefix + key, value
