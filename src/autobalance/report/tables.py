"""Tables of one run and of several: what they say, apart from how they look."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from autobalance.records import ErrorTable, RacedArm
from autobalance.report.evidence import Evidence, all_evidence, confusion_evidence, error_evidence
from autobalance.report.formats import duration, number, percent, phrase, points, setting_text
from autobalance.report.record import SCORES, safe_text
from autobalance.report.run import Method, Run
from autobalance.report.statistics import half_width, mean_error_variance, wilson
from autobalance.report.text import (
    GAP_TITLES,
    candidate_title,
    describe_arm,
    end_label,
    in_sentence,
    in_words,
    objective_name,
)

MAX_PAIRS = 15
MAX_SETTINGS = 200
_LONG = 30  # rows; a longer table starts folded
_WIDE = 5  # columns
SCORE_TITLES = dict(zip(SCORES, ("Balanced error", "Worst class", "Worst group"), strict=True))
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

    @classmethod
    def of_columns(
        cls,
        name: str,
        caption: str,
        columns: Iterable[tuple[str, Sequence[Cell | str]]],
        **look: Any,
    ) -> Self:
        """From titles and the cells below each; a text is a cell without a number."""
        titles, cells = zip(*columns, strict=True)
        rows = [
            [c if isinstance(c, Cell) else Cell(c) for c in row] for row in zip(*cells, strict=True)
        ]
        return cls(name, caption, list(titles), rows, **look)

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


def parameter_cell(value: float, digits: int | None = None) -> Cell:
    """A parameter of the loss, small ones with a digit more."""
    if digits is None:
        digits = 2 if not np.isfinite(value) or abs(value) >= 0.1 else 3
    return Cell(number(value, digits), value=_finite(value))


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def error_cells(errors: np.ndarray, n: np.ndarray | None) -> list[Cell]:
    """Error rates with their Wilson intervals, where the numbers of examples are known."""
    if n is None:
        return [rate_cell(float(e)) for e in errors]
    return [
        rate_cell(float(e), f"{100 * low:.0f}–{100 * high:.0f}" if np.isfinite(e) else "")
        for e, low, high in zip(errors, *wilson(errors, n), strict=True)
    ]


def balanced_error_note(method: Method) -> str:
    """± and the half-width of the balanced error's 95% interval, where it is known."""
    if method.trials is None:
        return ""
    return f"± {100 * half_width(mean_error_variance(method.errors, method.trials)):.1f}"


def cut_note(most: int, count: int, where: str = "") -> str:
    """That a table ends after so many rows, if it does."""
    return "" if count <= most else f" The first {most:,} of {count:,} rows{where}."


def _cut(run: Run, count: int) -> str:
    return cut_note(run.rows, count, "; all are in result.json")


# Errors ----------------------------------------------------------------------------------------


def methods_table(run: Run) -> Table | None:
    """Methods side by side; the lowest error of each kind is marked."""
    if not run.methods:
        return None
    return _methods_table(run, f"{run.place}methods", run.methods, run.data)


def baselines_table(run: Run) -> Table | None:
    """Plain training and class weights beside what the run took, on the same rows."""
    if not run.baselines:
        return None
    table = _methods_table(run, f"{run.place}baselines", run.baselines, run.baselines_data)
    note = phrase(f"table.{'out_of_fold' if run.adjusted else 'held_out'}")
    return replace(table, caption=table.caption + note)


def _methods_table(run: Run, name: str, methods: list[Method], data: str) -> Table:
    columns: list[tuple[str, list[Any]]] = [
        ("Decisions" if run.adjusted else "Training loss", [m.title for m in methods])
    ]
    reasons, intervals = set(), False
    for key, title in SCORE_TITLES.items():
        lowest = min((m.scores[key] for m in methods if key in m.scores), default=None)
        for m in methods:
            if key in m.undefined:
                reasons.add(f"{title}: not defined, for {m.undefined[key]}.")
        if lowest is None and not any(key in m.undefined for m in methods):
            continue
        cells = []
        for m in methods:
            value = m.scores.get(key)
            note = balanced_error_note(m) if key == "balanced_error" and value is not None else ""
            if key in m.standard_errors:
                note = f"± {100 * m.standard_errors[key]:.1f}"
            best = value is not None and len(methods) > 1 and value == lowest
            cells.append(rate_cell(value, note, best=best))
            intervals |= bool(note)
        columns.append((title, cells))
    if any(m.seconds is not None or m.training_runs is not None for m in methods):
        columns.append(("Time", [time_cell(m.seconds) for m in methods]))
        columns.append(("Training runs", [number_cell(m.training_runs, "{:g}") for m in methods]))
    caption = f"Errors on {data}{'; the lowest in bold' if len(methods) > 1 else ''}."
    if intervals:
        several = any(m.standard_errors for m in methods)
        caption += phrase("table.over_seeds" if several else "table.seeds")
    return Table.of_columns(name, " ".join([caption, *sorted(reasons)]), columns)


def choice_table(run: Run) -> Table | None:
    """The final choice: every candidate's held-out error, and its difference to the start."""
    candidates = run.candidates
    if not candidates:
        return None
    lowest = min(c.objective for c in candidates)
    gaps = [
        change_cell(None)
        if c.name == "start" or c.difference is None or c.standard_error == 0
        else change_cell(
            c.difference, "" if c.standard_error is None else f"± {100 * c.standard_error:.1f}"
        )
        for c in candidates
    ]
    trained = phrase(
        f"table.trained_{'once' if run.folds == 1 else 'in_folds'}", folds=run.in_folds
    )
    caption = phrase("table.choice", trained=trained, objective=objective_name(run))
    if run.adjusted:
        caption = phrase("table.adjustments", objective=objective_name(run))
    if candidates[0].undefined is not None:
        caption += phrase("table.choice_undefined", reason=candidates[0].undefined)
    columns = [
        (
            "Decisions" if run.adjusted else "Training loss",
            [candidate_title(run, c.name) for c in candidates],
        ),
        (
            "Held-out error",
            [rate_cell(c.objective, best=c.objective == lowest) for c in candidates],
        ),
        ("Difference, points", gaps),
        ("Choice", ["taken" if c.name == run.choice else "" for c in candidates]),
    ]
    return Table.of_columns(f"{run.place}choice", caption, columns, sortable=False)


def race_table(run: Run) -> Table | None:
    """The race before the search: what each way to train gave on held-out examples."""
    if len(run.race) < 2:
        return None
    lowest = min((arm.criterion for arm in run.race if arm.criterion is not None), default=None)
    taken = next((arm for arm in run.race if arm.outcome == "taken"), None)
    columns: list[tuple[str, list[Any]]] = [
        ("Way to train", [f"{arm.name}: {describe_arm(arm)}" for arm in run.race]),
        (
            "Cross-entropy",
            [
                Cell("–")
                if arm.criterion is None
                else Cell(
                    number(arm.criterion, 3),
                    _arm_error(arm),
                    arm.criterion,
                    arm.criterion == lowest,
                )
                for arm in run.race
            ],
        ),
        ("Held-out error", [rate_cell(arm.error) for arm in run.race]),
        ("Training error", [rate_cell(arm.training_error) for arm in run.race]),
        ("Outcome", [Cell(arm.outcome, arm.reason) for arm in run.race]),
    ]
    caption = phrase("table.race", taken="none" if taken is None else taken.name)
    return Table.of_columns(f"{run.place}race", caption, columns, sortable=False)


def _arm_error(arm: RacedArm) -> str:
    """The arm's difference to the favourite with its standard error, as a note."""
    if arm.difference is None or arm.standard_error is None or not arm.standard_error:
        return ""
    return f"{arm.difference:+.3f} ± {arm.standard_error:.3f}"


def adjustment_table(run: Run) -> Table | None:
    """What decisions on scores take off each class's log-score; None where no l expresses them."""
    if not run.adjusted or run.adjusted["l"] is None:
        return None
    order, additive = run.order[: run.rows].tolist(), run.adjusted["l"]
    spread = run.adjusted["intervals"].get("l")
    notes = [
        "" if spread is None else f"{number(spread[c, 0])} to {number(spread[c, 1])}" for c in order
    ]
    cells = [
        Cell(number(float(additive[c])), note, float(additive[c]))
        for c, note in zip(order, notes, strict=True)
    ]
    columns = [
        ("Class", [run.classes[c] for c in order]),
        ("Training examples", [number_cell(float(run.class_totals[c])) for c in order]),
        ("ℓ", cells),
    ]
    caption = phrase("table.adjustment") + _cut(run, len(run.order))
    return Table.of_columns(f"{run.place}adjustment", caption, columns)


def rules_table(run: Run) -> Table | None:
    """What each rule of decisions multiplies by or takes off; None where one column of ℓ says it all."""
    prices, offsets = (run.rules.get(key) for key in ("prices", "l"))
    if prices is None and (offsets is None or len(offsets) < 2):
        return None
    numbers = offsets[:, None] if prices is None and offsets is not None else prices
    assert numbers is not None
    rows = [(g, c) for c in run.order.tolist() for g in range(numbers.shape[1])]
    caption = phrase(f"table.{'offsets' if prices is None else 'prices'}") + _cut(run, len(rows))
    rows = rows[: run.rows]
    columns: list[tuple[str, list[Any]]] = [("Class", [run.classes[c] for _, c in rows])]
    if prices is not None:
        columns.append(("Group", [run.rules["groups"][g] for g, _ in rows]))
    for i, (share, each) in enumerate(zip(run.rules["shares"], numbers, strict=True)):
        values = [float(each[at]) for at in rows]
        cells = [Cell(f"{value:.5g}".replace("-", "−"), value=value) for value in values]
        columns.append((f"Rule {i + 1} ({percent(share)})", cells))
    return Table.of_columns(f"{run.place}rules", caption, columns, sortable=False)


def errors_tables(run: Run) -> list[Table]:
    """Error per class: on the best data, and where that says nothing of before, also on folds'."""
    return [_errors_table(run, evidence) for evidence in error_evidence(run)]


def _errors_table(run: Run, evidence: Evidence) -> Table:
    """Error per class and method, most frequent class first."""
    order, change = run.order[: run.rows].tolist(), evidence.change
    columns: list[tuple[str, list[Any]]] = [
        ("Class", [run.classes[c] for c in order]),
        ("Training examples", [number_cell(float(run.class_totals[c])) for c in order]),
    ]
    for m in evidence.methods:
        n = None if m.trials is None else m.trials[order]
        columns.append((m.title, error_cells(m.errors[order], n)))
    caption = f"Error per class on {evidence.data}, most frequent first."
    if any(m.n is not None for m in evidence.methods):
        caption += phrase("table.wilson")
    if change is not None and evidence.before and evidence.after:
        columns.append(("Change, points", [change_cell(float(change[c])) for c in order]))
        caption += f" Change: from {evidence.before.title} to {evidence.after.title}."
    caption += _cut(run, len(run.order))
    return Table.of_columns(f"{run.place}errors-{evidence.kind}", caption, columns, folded=1)


def calibration_table(run: Run) -> Table | None:
    """Expected calibration errors of raw and of corrected probabilities."""
    name, raw_title = f"{run.place}calibration", "Softmax of the raw logits"
    tested = [m for m in run.methods if {"raw", "corrected"} <= m.reliability.keys()]
    if tested:
        caption = phrase("table.tested_calibration", data=run.data)
        columns = [
            ("Decisions" if run.adjusted else "Training loss", [m.title for m in tested]),
            (raw_title, [rate_cell(m.reliability["raw"].error) for m in tested]),
            ("Corrected", [rate_cell(m.reliability["corrected"].error) for m in tested]),
        ]
        return Table.of_columns(name, caption, columns, sortable=False)
    diagrams = run.reliability
    if "raw" not in diagrams:
        return None
    titles = {
        "raw": raw_title,
        "prior": "Corrected for the loss and the class frequencies",
        "corrected": "The same, with the temperature fitted",
    }
    caption = phrase("table.calibration", n=sum(diagrams["raw"].n))
    if "temperature" in run.calibration:
        fitted = number(run.calibration["temperature"])
        caption += phrase("table.temperature", fitted=fitted)
    known = [key for key in titles if key in diagrams]
    columns = [
        ("Probabilities", [titles[key] for key in known]),
        ("Calibration error", [rate_cell(diagrams[key].error) for key in known]),
    ]
    return Table.of_columns(name, caption, columns, sortable=False)


def confusion_table(run: Run) -> Table | None:
    """The pairs of classes whose confusion changed most, or of one method the most frequent."""
    evidence = confusion_evidence(run)
    if evidence is None:
        return None
    methods = evidence.pair
    both = len(methods) == 2
    counts = [
        {(int(t), int(guess)): n for t, guess, n in m.confused.tolist()}
        for m in methods
        if m.confused is not None
    ]
    before, after = counts if both else ({}, counts[0])
    pairs = set().union(*counts)
    change = {p: after.get(p, 0) - before.get(p, 0) for p in pairs}
    most = sorted(pairs, key=lambda p: (-abs(change[p]), -after.get(p, 0), p))[:MAX_PAIRS]
    columns: list[tuple[str, list[Any]]] = [
        (title, [run.classes[p[i]] for p in most])
        for i, title in enumerate(("Class", "Predicted as"))
    ]
    for method, table in zip(methods, counts, strict=True):
        cells = []
        for t, guess in most:
            n, total = table.get((t, guess), 0), 0.0 if method.n is None else method.n[t]
            cells.append(Cell(_sum_text(n), f"{100 * n / total:.0f}%" if total else "", float(n)))
        columns.append((method.title, cells))
    if both:
        signs = ["+" if change[p] > 0 else "−" if change[p] < 0 else "±" for p in most]
        gaps = [
            Cell(f"{sign}{_sum_text(abs(change[p]))}", value=float(change[p]))
            for sign, p in zip(signs, most, strict=True)
        ]
        columns.append(("Change", gaps))
    which = "The confusions that changed most" if both else "The most frequent confusions"
    caption = phrase("table.confusion", which=which, data=evidence.data)
    return Table.of_columns(f"{run.place}confusion", caption, columns)


def _sum_text(n: float) -> str:
    """A number of examples, or a sum of weights that need not be whole."""
    return f"{n:,}" if isinstance(n, int) else f"{n:,.1f}"


# Groups ----------------------------------------------------------------------------------------


def groups_table(run: Run) -> Table | None:
    """Rates within each group, over all, and the largest difference between groups."""
    if run.by_group is None:
        return None
    names, table = run.by_group.names, run.by_group.table
    sizes = table.mass.sum(axis=1)
    rates = {t: [rate_cell(v) for v in values] for t, values in _group_rates(table).items()}
    rates["Error"][:-2] = error_cells(table.group_errors, table.trials(axis=1))
    caption = phrase("table.groups", data=run.by_group.data)
    if len(run.classes) == 2:
        caption += f" Positive is {run.classes[1]}."
    counts = [number_cell(float(n)) for n in (*sizes, sizes.sum())]
    columns = [
        ("Group", [*names, "All", "Difference"]),
        ("Examples", [*counts, Cell("–")]),
        *rates.items(),
    ]
    return Table.of_columns(f"{run.place}groups", caption, columns, sortable=False)


def groups_change_table(run: Run) -> Table | None:
    """Error and balanced error of each group, before and after."""
    pairs = [e for e in all_evidence(run) if len(e.pair) == 2 and all(m.by_group for m in e.pair)]
    ends = [m.by_group for m in pairs[0].pair if m.by_group] if pairs else []
    if not ends or ends[0].names != ends[1].names:
        return None
    if not (ends[0].table.mass == ends[1].table.mass).all():
        return None
    before, after = (_group_rates(each.table) for each in ends)
    columns: list[tuple[str, list[Any]]] = [("Group", [*ends[0].names, "All", "Difference"])]
    for name in ("Error", "Balanced error"):
        changes = zip(before[name], after[name], strict=True)
        columns += [
            (f"{name}, before", [rate_cell(v) for v in before[name]]),
            (f"{name}, after", [rate_cell(v) for v in after[name]]),
            ("Change, points", [change_cell(b - a) for a, b in changes]),
        ]
    titles = [in_sentence(m.title) for m in pairs[0].pair]
    caption = f"Before: {titles[0]}; after: {titles[1]}. On {pairs[0].data}."
    return Table.of_columns(f"{run.place}groups-change", caption, columns, sortable=False)


def gaps_table(run: Run) -> Table | None:
    """Differences between groups by name; those that are not defined with the reason."""
    if run.by_group is None:
        return None
    table, names = run.by_group.table, run.by_group.names
    measures = list(GAP_TITLES)[: 4 if len(run.classes) == 2 else 2]
    titles = {m: GAP_TITLES[m][:1].upper() + GAP_TITLES[m][1:] for m in measures}
    caption = phrase("table.gaps")
    by_reason: dict[str, list[str]] = {}
    for measure in measures:
        if reason := table.undefined(measure, run.classes, names):
            by_reason.setdefault(reason, []).append(titles[measure])
    for reason, without in by_reason.items():
        caption += f" Not defined, for {reason}: {'; '.join(without)}."
    values = [rate_cell(getattr(table, m)) for m in measures]
    columns = [("Gap", list(titles.values())), ("Value", values)]
    return Table.of_columns(f"{run.place}gaps", caption, columns, sortable=False)


def _group_rates(table: ErrorTable) -> dict[str, list[float]]:
    """Each of the groups, then of all examples together, then its range over the groups.

    The range is NaN where a group has no such rate.
    """
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
    return {title: [*v.tolist(), float(np.ptp(v[:-1]))] for title, v in rates.items()}


def frontier_table(run: Run) -> Table | None:
    """The points and the baselines of the run's frontier."""
    if not run.frontier:
        return None
    by = run.frontier["by"]
    points = [*run.frontier["points"], *run.frontier["baselines"]]
    picked = [bool(p.get("picked")) for p in points]
    notes = ["a class always wrong" if p["constant"] else "" for p in points]
    caption = phrase(f"table.{'mixes' if by == 'mix' else 'bounds'}")
    for axis, reason in points[0]["undefined"].items():
        caption += (
            f" {measure_name(run.frontier[axis])}: not defined on the held-out data, for {reason}."
        )
    columns = [
        ("Loss" if by == "mix" else "Decision", [point_title(by, p) for p in points]),
        *(
            (measure_name(run.frontier[axis]), [rate_cell(p[axis]) for p in points])
            for axis in ("main", "gap")
        ),
        ("Note", ["picked" if at else note for at, note in zip(picked, notes, strict=True)]),
    ]
    return Table.of_columns(f"{run.place}frontier", caption, columns)


def point_title(by: str, point: dict[str, Any]) -> str:
    """A point of a frontier by its mix or bound, a baseline by its title."""
    if by not in point:
        return point["title"]
    return f"mix {point['mix']:g}" if by == "mix" else f"bound {percent(point['bound'])}"


def measure_name(measure: str) -> str:
    """An objective's or a gap's name in words."""
    return GAP_TITLES.get(measure) or in_words(measure)


# The loss, its cost and how it came about --------------------------------------------------------


def parameters_table(run: Run) -> Table | None:
    """Start and result of ℓ, δ and w for every class, and for every group."""
    if not run.parts:
        return None
    pairs = [(g, c) for c in run.order.tolist() for g in range(len(run.counts))]
    caption = "Parameters of the loss, most frequent class first."
    if any(part.key == "additive" for part in run.parts):
        caption += " ℓ is shown with mean 0" + (" in each group." if run.groups else ".")
    caption += _cut(run, len(pairs))
    pairs = pairs[: run.rows]
    columns: list[tuple[str, list[Any]]] = [("Class", [run.classes[c] for _, c in pairs])]
    if run.groups:
        columns.append(("Group", [run.groups[g] for g, _ in pairs]))
    columns.append(("Training examples", [number_cell(run.counts[at]) for at in pairs]))
    for part in run.parts:
        ends = {part.symbol: part.end}
        if part.changed:
            ends = {
                f"{part.symbol}, start": part.start,
                f"{part.symbol}, {end_label(run)}": part.end,
            }
        columns += [(title, [parameter_cell(v[at]) for at in pairs]) for title, v in ends.items()]
    return Table.of_columns(
        f"{run.place}parameters", caption, columns, folded=2 if run.groups else 1
    )


def cost_table(run: Run) -> Table | None:
    """What the run cost."""
    designed = run.method("autobalance")
    compared, diverged = len(run.methods) > 1 and not run.adjusted, run.search_status == "diverged"
    whole = None if designed is None or not compared else designed.seconds
    times = {
        "Search, until it diverged" if diverged else "Search": run.search_time,
        "Search, processor time": run.search_seconds.get("cpu"),
        "Retraining": run.seconds.get("retrain"),
        "autobalance: search and retraining": whole,
        f"Total, all {len(run.methods)} methods compared" if compared else "Total": run.seconds.get(
            "total"
        ),
    }
    costs = {name: time_cell(s) for name, s in times.items() if s is not None}
    if run.training_runs is not None and not diverged:
        costs["Search, in training runs"] = number_cell(run.training_runs, "{:.3g}")
    if run.steps is not None:
        done = run.steps_done if diverged else None
        steps = f"{run.steps:,}" if done is None else f"{done:,} of {run.steps:,}"
        name = "Training steps per run" if done is None else "Training steps done"
        costs[name] = Cell(steps, value=run.steps)
    if upper := len(run.curves["step"]):
        costs["Steps on the loss (upper level)"] = number_cell(upper, "{:,}")
    if not costs:
        return None
    caption = "Time on the clock unless stated."
    if whole is not None:
        caption += phrase("table.all_methods")
    columns = [("Part", list(costs)), ("Cost", list(costs.values()))]
    return Table.of_columns(f"{run.place}cost", caption, columns, sortable=False)


def settings_table(run: Run) -> Table | None:
    """All settings, one a row, nested names joined by dots."""
    rows = [[Cell(name), _setting_cell(value)] for name, value in flat_settings(run)]
    return words_table(f"{run.place}settings", "Settings of the run.", ["Setting", "Value"], rows)


def _setting_cell(value: Any) -> Cell:
    """Its words, and where it is an object of the library its record behind them."""
    raw = safe_text(json.dumps(value, ensure_ascii=False), 600) if isinstance(value, dict) else ""
    return Cell(safe_text(setting_text(value), 300), raw=raw)


def versions_table(run: Run) -> Table | None:
    """Versions of the software."""
    rows = [[Cell(name), Cell(safe_text(str(v), 300))] for name, v in run.versions.items()]
    return words_table(f"{run.place}versions", "Software.", ["Package", "Version"], rows)


def words_table(
    name: str, caption: str, columns: list[str], rows: list[list[Cell]]
) -> Table | None:
    """A table without numbers; None where it has no row."""
    if not rows:
        return None
    return Table(name, caption, columns, rows[:MAX_SETTINGS], numeric=False, sortable=False)


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
