"""The report's tables: what they say, apart from how they look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autobalance.records import class_ranges
from autobalance.report.choice import candidate_title
from autobalance.report.evidence import Judged, evidence, shown_evidence, with_confusions
from autobalance.report.formats import duration, number, percent, points
from autobalance.report.readable import readable
from autobalance.report.record import ByGroup, Method, Part, Run, safe_text
from autobalance.report.statistics import half_width, mean_error_variance, wilson
from autobalance.report.text import in_sentence, objective_name, start_name

MAX_PAIRS = 15
MAX_SETTINGS = 200
_LONG = 30  # rows; a longer table starts folded
_WIDE = 5  # columns
_SCORES = {
    "balanced_error": "Balanced error",
    "worst_class_error": "Worst class",
    "worst_group_error": "Worst group",
}
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
        return len(self.rows) > _LONG

    @property
    def wide(self) -> bool:
        """Whether a phone has no room for it."""
        return self.numeric and len(self.columns) - (self.folded is not None) > _WIDE


def methods_table(run: Run) -> Table | None:
    """Methods side by side; the lowest error of each kind is marked."""
    if not run.methods:
        return None
    keys = [key for key in _SCORES if any(key in m.scores for m in run.methods)]
    lowest = {key: min(m.scores[key] for m in run.methods if key in m.scores) for key in keys}
    timed = any(m.seconds is not None or m.training_runs is not None for m in run.methods)
    rows = []
    for method in run.methods:
        row = [Cell(method.title)]
        for key in keys:
            value = method.scores.get(key)
            note = ""
            if key == "balanced_error" and value is not None and method.n is not None:
                reach = half_width(mean_error_variance(method.errors, method.n))
                note = f"± {100 * reach:.1f}"
            best = value is not None and len(run.methods) > 1 and value == lowest[key]
            row.append(Cell(percent(value), note, value, best))
        if timed:
            runs = method.training_runs
            row.append(Cell(duration(method.seconds), value=method.seconds))
            row.append(Cell("–" if runs is None else f"{runs:g}", value=runs))
        rows.append(row)
    columns = ["Training loss", *(_SCORES[key] for key in keys)]
    if timed:
        columns += ["Time", "Training runs"]
    where = f"Errors on {run.evaluation_data}" if run.evaluation_data else "Errors on test data"
    caption = f"{where}; the lowest in bold." if len(run.methods) > 1 else f"{where}."
    if any(cell.note for row in rows for cell in row):
        caption += " ±: 95% interval for the choice of test examples; a new seed would add to it."
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
        note = ""
        if gap is not None and c.standard_error is not None:
            note = f"± {100 * c.standard_error:.1f}"
        rows.append(
            [
                Cell(candidate_title(c.name, start)),
                Cell(percent(c.objective), value=c.objective, best=c.objective == lowest),
                Cell("–" if gap is None else points(gap), note, gap),
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
    return [_errors_table(run, found) for found in shown_evidence(run)]


def _errors_table(run: Run, found: Judged) -> Table:
    """Error per class and method, most frequent class first."""
    shown = found.methods
    intervals = [None if m.n is None else wilson(m.errors, m.n) for m in shown]
    change = found.change
    rows = []
    for c in run.order[: run.rows].tolist():
        row = [Cell(run.classes[c]), _count(run.class_totals[c])]
        for method, ends in zip(shown, intervals, strict=True):
            error, note = float(method.errors[c]), ""
            if ends is not None and np.isfinite(error):
                note = f"{100 * ends[0][c]:.0f}–{100 * ends[1][c]:.0f}"
            row.append(Cell(percent(error), note, _finite(error)))
        if change is not None:
            gap = float(change[c])
            row.append(Cell(points(gap) if np.isfinite(gap) else "–", value=_finite(gap)))
        rows.append(row)
    columns = ["Class", "Training examples", *(m.title for m in shown)]
    caption = f"Error per class on {found.data}, most frequent first."
    if any(ends is not None for ends in intervals):
        caption += " Beside each: its 95% Wilson interval in percent."
    if change is not None and found.before and found.after:
        columns.append("Change, points")
        caption += f" Change: from {found.before.title} to {found.after.title}."
    caption += _cut(run, len(run.order))
    return Table(f"{run.place}errors-{found.kind}", caption, columns, rows, folded=1)


def calibration_table(run: Run) -> Table | None:
    """Expected calibration errors of raw and of corrected probabilities."""
    tested = [m for m in run.methods if {"raw", "corrected"} <= m.reliability.keys()]
    if tested:
        rows = [
            [Cell(m.title), *(_share(m.reliability[key].error) for key in ("raw", "corrected"))]
            for m in tested
        ]
        columns = ["Training loss", "Softmax of the raw logits", "Corrected"]
        caption = (
            f"Expected calibration error on {run.evaluation_data or 'test data'}: how far, on average, "
            "confidence is from the share predicted rightly. Corrected: for what the loss adds to the "
            "logits and for the class frequencies of these examples, as predict_proba does for a prior."
        )
        return Table(f"{run.place}calibration", caption, columns, rows, sortable=False)
    if "raw" not in run.reliability:
        return None
    titles = {
        "raw": "Softmax of the raw logits",
        "prior": "Corrected for the loss and the class frequencies",
        "corrected": "The same, with the temperature fitted",
    }
    found = run.reliability
    rows = [
        [Cell(title), _share(found[key].error)] for key, title in titles.items() if key in found
    ]
    caption = (
        f"Expected calibration error on {sum(found['raw'].n):,} held-out examples, by the search's "
        "network: how far, on average, confidence is from the share predicted rightly."
    )
    if "temperature" in run.calibration:
        fitted = number(run.calibration["temperature"])
        caption += f" The temperature, {fitted}, was fitted on these same examples."
    columns = ["Probabilities", "Calibration error"]
    return Table(f"{run.place}calibration", caption, columns, rows, sortable=False)


def _share(value: float) -> Cell:
    return Cell(percent(value), value=value)


def confusion_table(run: Run) -> Table | None:
    """The pairs of classes whose confusion changed most, or of one method the most frequent."""
    found = with_confusions(run)
    if found is None:
        return None
    shown = found.pair
    counts = [pair_counts(m) for m in shown]
    pairs = sorted(set().union(*counts))
    before, after = ({}, counts[0]) if len(counts) == 1 else counts
    change = {p: after.get(p, 0) - before.get(p, 0) for p in pairs}
    pairs = sorted(pairs, key=lambda p: (-abs(change[p]), -after.get(p, 0), p))[:MAX_PAIRS]
    rows = []
    for t, guess in pairs:
        row = [Cell(run.classes[t]), Cell(run.classes[guess])]
        for method, table in zip(shown, counts, strict=True):
            n = table.get((t, guess), 0)
            total = 0.0 if method.n is None else method.n[t]
            row.append(Cell(f"{n:,}", f"{100 * n / total:.0f}%" if total else "", float(n)))
        if len(shown) == 2:
            gap = change[t, guess]
            sign = "+" if gap > 0 else "−" if gap < 0 else "±"
            row.append(Cell(f"{sign}{abs(gap):,}", value=float(gap)))
        rows.append(row)
    if len(shown) == 2:
        columns = ["Class", "Predicted as", *(m.title for m in shown), "Change"]
        caption = "The confusions that changed most"
    else:
        columns = ["Class", "Predicted as", shown[0].title]
        caption = "The most frequent confusions"
    caption += f", in numbers of examples, on {found.data}. Beside each: the share of the class."
    return Table(f"{run.place}confusion", caption, columns, rows)


def pair_counts(method: Method) -> dict[tuple[int, int], int]:
    """Examples by class and class predicted, where these differ."""
    assert method.confused is not None
    return {(t, guess): n for t, guess, n in method.confused.tolist()}


def groups_change_table(run: Run) -> Table | None:
    """Error and balanced error of each group, before and after."""
    found = next(
        (e for e in evidence(run) if len(e.pair) == 2 and all(m.by_group for m in e.pair)), None
    )
    if found is None:
        return None
    ends = found.pair
    tables = [m.by_group for m in ends if m.by_group is not None]
    if tables[0].names != tables[1].names or (tables[0].n != tables[1].n).any():
        return None
    rates = [_group_rates(table) for table in tables]
    rows = []
    for i, name in enumerate([*tables[0].names, "All"]):
        row = [Cell(name)]
        for title in ("Error", "Balanced error"):
            values = [float(r[title][i]) for r in rates]
            gap = values[1] - values[0]
            row += [Cell(percent(v), value=_finite(v)) for v in values]
            row.append(Cell(points(gap) if np.isfinite(gap) else "–", value=_finite(gap)))
        rows.append(row)
    spread = [Cell("Difference")]
    for title in ("Error", "Balanced error"):
        values = [_spread(r[title][:-1]) for r in rates]
        gap = values[1] - values[0]
        spread += [Cell(percent(v), value=_finite(v)) for v in values]
        spread.append(Cell(points(gap) if np.isfinite(gap) else "–", value=_finite(gap)))
    rows.append(spread)
    titles = [in_sentence(m.title) for m in ends]
    columns = ["Group"]
    for name in ("Error", "Balanced error"):
        columns += [f"{name}, before", f"{name}, after", "Change, points"]
    caption = f"Before: {titles[0]}; after: {titles[1]}. On {found.data}."
    return Table(f"{run.place}groups-change", caption, columns, rows, sortable=False)


def groups_table(run: Run) -> Table | None:
    """Rates within each group, over all, and the largest difference between groups."""
    found = run.by_group
    if found is None:
        return None
    rates = _group_rates(found)
    rows = []
    sizes = found.n.sum(axis=1)
    ends = wilson(rates["Error"][:-1], sizes)
    for i, name in enumerate([*found.names, "All"]):
        total = sizes[i] if i < len(sizes) else sizes.sum()
        row = [Cell(name), _count(total)]
        for title, values in rates.items():
            note = ""
            if title == "Error" and i < len(sizes):
                note = f"{100 * ends[0][i]:.0f}–{100 * ends[1][i]:.0f}"
            row.append(Cell(percent(values[i]), note, _finite(values[i])))
        rows.append(row)
    spread = [_spread(values[:-1]) for values in rates.values()]
    rows.append(
        [Cell("Difference"), Cell("–"), *(Cell(percent(s), value=_finite(s)) for s in spread)]
    )
    caption = (
        f"Of {found.data}. Beside each error its 95% Wilson interval in percent; the difference is "
        "that of the highest and the lowest group. Balanced errors are over the classes that a group "
        "has."
    )
    if len(run.classes) == 2:
        caption += f" Positive is {run.classes[1]}."
    return Table(f"{run.place}groups", caption, ["Group", "Examples", *rates], rows, sortable=False)


def gaps_table(run: Run) -> Table | None:
    """Differences between groups by name, as `autobalance.records.metrics` defines them."""
    if run.by_group is None:
        return None
    ranges = class_ranges(run.by_group.errors)
    named = {
        "Difference of equal opportunity, DEO": float(np.nansum(ranges)),
        "Equalized odds difference": float(np.nanmax(ranges)),
    }
    if len(ranges) == 2:
        selected = _group_rates(run.by_group)["Selection rate"][:-1]
        named["Equal opportunity difference"] = float(ranges[1])
        named["Demographic parity difference"] = _spread(selected)
    rows = [[Cell(name), Cell(percent(gap), value=_finite(gap))] for name, gap in named.items()]
    caption = (
        "The highest group's rate less the lowest's: of each class's errors, their sum (DEO) or the "
        "largest. With few examples in a cell gaps are above 0 for any classifier."
    )
    return Table(f"{run.place}gaps", caption, ["Gap", "Value"], rows, sortable=False)


def _group_rates(found: ByGroup) -> dict[str, np.ndarray]:
    """Each shape ``(g + 1,)``: the groups, then all examples together."""
    n = np.concatenate([found.n, found.n.sum(axis=0)[None]])
    wrong = np.nan_to_num(found.errors) * found.n
    wrong = np.concatenate([wrong, wrong.sum(axis=0)[None]])
    errors = np.divide(wrong, n, out=np.full(n.shape, np.nan), where=n > 0)
    rates = {
        "Error": wrong.sum(axis=1) / n.sum(axis=1),
        "Balanced error": np.nanmean(errors, axis=1),
    }
    if n.shape[1] == 2:
        selected = wrong[:, 0] + n[:, 1] - wrong[:, 1]
        rates["Selection rate"] = selected / n.sum(axis=1)
        rates["True positive rate"] = 1.0 - errors[:, 1]
        rates["False positive rate"] = errors[:, 0]
    return rates


def _spread(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.ptp(known)) if len(known) else float("nan")


def parameters_table(run: Run) -> Table | None:
    """Start and result of ℓ, δ and w for every class, and for every group."""
    if not run.parts:
        return None
    pairs = [(g, c) for c in run.order.tolist() for g in range(len(run.counts))]
    rows = []
    for g, c in pairs[: run.rows]:
        row = [Cell(run.classes[c])]
        if run.groups:
            row.append(Cell(run.groups[g]))
        row.append(_count(run.counts[g, c]))
        for part in run.parts:
            row += [_parameter(values[g, c]) for values in _columns(part)]
        rows.append(row)
    found = found_label(run)
    columns = ["Class", *(["Group"] if run.groups else []), "Training examples"]
    for part in run.parts:
        columns += (
            [f"{part.symbol}, start", f"{part.symbol}, {found}"] if part.changed else [part.symbol]
        )
    caption = "Parameters of the loss, most frequent class first."
    if any(part.key == "additive" for part in run.parts):
        caption += " ℓ is shown with mean 0" + (" in each group." if run.groups else ".")
    caption += _cut(run, len(pairs))
    return Table(f"{run.place}parameters", caption, columns, rows, folded=2 if run.groups else 1)


def found_label(run: Run) -> str:
    """What the loss at the end of the search is called beside its start."""
    if run.search_status != "finished":
        return "at the stop"
    return "found" if run.choice == "designed" else "designed"


def cost_table(run: Run) -> Table | None:
    """What the run cost."""
    designed = run.method("autobalance")
    compared = len(run.methods) > 1
    diverged = run.search_status == "diverged"
    whole = None if designed is None or not compared else designed.seconds
    search = run.seconds.get("search", run.search_seconds.get("wall"))
    known = [
        ("Search, until it diverged" if diverged else "Search", search),
        ("Search, processor time", run.search_seconds.get("cpu")),
        ("Retraining", run.seconds.get("retrain")),
        ("autobalance: search and retraining", whole),
        (
            f"Total, all {len(run.methods)} methods compared" if compared else "Total",
            run.seconds.get("total"),
        ),
    ]
    rows = [[Cell(name), Cell(duration(s), value=s)] for name, s in known if s is not None]
    if run.training_runs is not None and not diverged:
        runs = run.training_runs
        rows.append([Cell("Search, in training runs"), Cell(f"{runs:.3g}", value=runs)])
    if run.steps is not None:
        done = run.steps_done if diverged else None
        steps = f"{run.steps:,}" if done is None else f"{done:,} of {run.steps:,}"
        name = "Training steps per run" if done is None else "Training steps done"
        rows.append([Cell(name), Cell(steps, value=run.steps)])
    if upper := len(run.curves["step"]):
        rows.append([Cell("Steps on the loss (upper level)"), Cell(f"{upper:,}", value=upper)])
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
    rows = [[Cell(name), _setting(name, value)] for name, value in flat_settings(run)]
    if not rows:
        return None
    rows = rows[:MAX_SETTINGS]
    return Table(
        f"{run.place}settings", "Settings of the run.", ["Setting", "Value"], rows, False, False
    )


def _setting(name: str, value: Any) -> Cell:
    text, raw = safe_text(readable(name, value), 300), str(value)
    return Cell(text, raw=safe_text(raw, 600) if isinstance(value, str) and text != raw else "")


def versions_table(run: Run) -> Table | None:
    """Versions of the software."""
    rows = [[Cell(name), Cell(safe_text(str(v), 300))] for name, v in run.versions.items()]
    if not rows:
        return None
    columns = ["Package", "Version"]
    return Table(f"{run.place}versions", "Software.", columns, rows[:MAX_SETTINGS], False, False)


def _columns(part: Part) -> list[np.ndarray]:
    return [part.start, part.found] if part.changed else [part.found]


def _count(value: Any) -> Cell:
    return Cell(f"{value:,.0f}", value=float(value))


def _parameter(value: float) -> Cell:
    digits = 2 if not np.isfinite(value) or abs(value) >= 0.1 else 3
    return Cell(number(value, digits), value=_finite(value))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cut(run: Run, count: int) -> str:
    if count <= run.rows:
        return ""
    return f" The first {run.rows:,} of {count:,} rows; all are in result.json."


def flat_settings(run: Run) -> list[tuple[str, Any]]:
    """Names joined by dots, and values; first the options that are no settings of the search."""
    return [*run.options.items(), *_flat("", run.settings)]


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        if key in _NOT_SETTINGS:
            continue
        if isinstance(value, dict):
            found += _flat(f"{prefix}{key}.", value)
        else:
            found.append((prefix + key, value))
    return found
