"""A comparison's summary as tables for the terminal, as Markdown and as a picture. No torch."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from autobalance import InputError

_PARTS = {"develop": "Half used for development", "confirm": "Half kept for confirmation"}
_MAIN = "autobalance"
_UNRANKED = "No method is ranked: on no dataset did half of the methods finish."

_HOW = """\
Errors are in percent, lower is better, ± the standard error over seeds. All methods of a row have
the same training and test rows, network and recipe, and are compared on the same seeds. **Bold**:
the lowest mean of the row. A cell marked † is not ranked: its method or its dataset is incomplete,
see below. A rank is that of the mean over seeds. Datasets of one family (one source at several
imbalances or networks) count as one in every average. Our variants are no rivals of each other:
each is ranked among all other methods and itself. Training runs count what a method needs of full
training runs, its search included; CPU time is relative to {reference}. The best baseline of a
dataset is chosen on the same test data, which favours it. Intervals are 95 % intervals of the
paired difference over seeds (Student's t); p-values are corrected over datasets by Holm's method.
"""


def terminal_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The summary for the terminal: one table of methods and one of datasets.

    Parameters
    ----------
    summary : mapping
        What `autobalance_bench.comparison.statistics.summary` returns, or one of its halves together
        with the ``metric``.

    Returns
    -------
    list of rich.table.Table
        Methods by average rank with mean errors and costs; then, where there are differences, by
        dataset how `autobalance`, or the best ranked method of ours, compares with the best
        baseline.
    """
    metric = summary["metric"]
    methods = Table(title=f"Methods by average rank, {_words(metric)} (percent)")
    methods.add_column("method", no_wrap=True)
    for name in ("average rank", *_table_metrics(summary), "training runs", "CPU time"):
        methods.add_column(_words(name), justify="right")
    for row in _method_rows(summary):
        methods.add_row(*(escape(text) for text in row))
    if _nothing_ranked(summary):
        methods.caption, methods.caption_justify = _UNRANKED, "left"
    tables = [methods]
    focus = _focus(summary)
    rows = summary["differences"]["to_best_baseline"].get(focus, {})
    if rows:
        title = _title(summary, focus)
        each = Table(title=f"{escape(title)} less the best baseline (percentage points)")
        each.add_column("dataset", no_wrap=True)
        each.add_column("best baseline")
        for name in (f"{title} error", "difference", "95 % interval", "p (Holm)"):
            each.add_column(escape(name), justify="right")
        for dataset, row in rows.items():
            own = _error(summary["per_dataset"][dataset][focus])
            against = _title(summary, row["against"])
            each.add_row(
                *(escape(t) for t in (dataset, against, own, *_difference(row))),
            )
        tables.append(each)
    return tables


def markdown(
    *summaries: Mapping[str, Any],
    date: str,
    command: str,
    title: str = "Benchmarks",
    plots: Mapping[str, str] | None = None,
) -> str:
    """The text of a generated BENCHMARKS.md, with everything that was measured.

    Parameters
    ----------
    *summaries : mapping
        One per objective, from `autobalance_bench.comparison.statistics.summary`.
    date : str
        When it was run.
    command : str
        What repeats it.
    title : str
        First heading.
    plots : mapping of str to str, optional
        Address of the critical difference diagram of an objective, by the objective's name.

    Raises
    ------
    InputError
        If there is no summary.
    """
    if not summaries:
        raise InputError("markdown needs at least one summary; got none.")
    lines = [f"# {_inline(title)}", "", *_what_was_run(summaries, date, command)]
    reference = summaries[0]["reference"]
    lines += [
        "## How to read this",
        "",
        _HOW.format(reference=_inline(_any_title(summaries)(reference))),
    ]
    for summary in summaries:
        lines += [f"## {_inline(_words(summary['metric'])).capitalize()}", ""]
        if plots and summary["metric"] in plots:
            lines += [f"![Critical difference diagram]({plots[summary['metric']]})", ""]
        lines += _part(summary, summary["metric"], "All datasets")
        for half, name in _PARTS.items():
            part = summary["halves"][half]
            if part["per_dataset"]:
                lines += _part(part, summary["metric"], name)
    lines += _failures(summaries)
    return "\n".join(lines).rstrip() + "\n"


def _what_was_run(summaries: Sequence[Mapping[str, Any]], date: str, command: str) -> list[str]:
    datasets = {d: f for s in summaries for d, f in s["families"].items()}
    methods = {m for s in summaries for m in s["methods"]}
    seeds = {
        seed
        for s in summaries
        for rows in s["per_dataset"].values()
        for row in rows.values()
        for seed in row["seeds"]
    }
    versions: dict[str, set[str]] = {}
    for s in summaries:
        for package, numbers in s["versions"].items():
            versions.setdefault(package, set()).update(numbers)
    listed = (f"{_inline(p)} {_inline(' and '.join(sorted(v)))}" for p, v in versions.items())
    return [
        "This file is generated; do not edit it. To repeat it:",
        "",
        *(f"    {line}" for line in command.splitlines()),
        "",
        f"- Date: {_inline(date)}",
        f"- {len(datasets)} datasets in {len(set(datasets.values()))} families, "
        f"{len(methods)} methods, seeds {', '.join(map(str, sorted(seeds)))}",
        f"- Versions: {', '.join(listed) or 'not recorded'}",
        "",
    ]


def _part(summary: Mapping[str, Any], metric: str, name: str) -> list[str]:
    lines = [f"### {name}", "", f"{_words(metric).capitalize()} by dataset:", ""]
    methods = _in_order(summary)
    rows = []
    for dataset, row in summary["per_dataset"].items():
        least = _format_percent(min(e["mean"] for e in row.values())) if row else None
        rows.append(
            [dataset, *(_markdown_error(summary, dataset, row.get(m), least) for m in methods)]
        )
    lines += _grid(["dataset", *(_title(summary, m) for m in methods)], rows)
    lines += [
        f"Methods by average rank, errors as means over families in {_families(summary)}:",
        "",
    ]
    head = ["method", "average rank", *map(_words, _table_metrics({**summary, "metric": metric}))]
    lines += _grid(
        [*head, "training runs", "CPU time"], _method_rows({**summary, "metric": metric})
    )
    lines += _incomplete(summary)
    lines += _tested(summary)
    lines += _differences(summary)
    return lines


def _families(summary: Mapping[str, Any]) -> str:
    n, families = len(summary["seeds"]), len({summary["families"][d] for d in summary["seeds"]})
    return f"percent ({n} ranked datasets, {families} families)"


def _markdown_error(
    summary: Mapping[str, Any], dataset: str, entry: Mapping[str, Any] | None, least: str | None
) -> str:
    if entry is None:
        return "–"
    text = _error(entry)
    if _format_percent(entry["mean"]) == least:
        text = f"**{text}**"
    if entry["rank"] is None:
        text += f" † (n = {entry['n']})"
    return text


def _differences(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            _title(summary, method),
            dataset,
            _title(summary, row["against"]),
            *_difference(row),
            str(row["n"]),
        ]
        for method in _in_order(summary)
        for dataset, row in summary["differences"]["to_best_baseline"].get(method, {}).items()
        if summary["methods"][method]["kind"] == "ours"
    ]
    if not rows:
        return []
    head = ["method", "dataset", "best baseline", "difference", "95 % interval", "p (Holm)", "n"]
    return [
        "Paired differences of our methods to the best baseline, in percentage points (negative: "
        "ours has the lower error):",
        "",
        *_grid(head, rows, left=3),
    ]


def _nothing_ranked(summary: Mapping[str, Any]) -> bool:
    """Whether no dataset is, and so no method."""
    return bool(summary["left_out"]) and not summary["seeds"]


def _incomplete(summary: Mapping[str, Any]) -> list[str]:
    lines = [f"- {_UNRANKED}"] if _nothing_ranked(summary) else []
    lines += [
        f"- {_inline(_title(summary, m))} is not ranked: {entry['missing']} cells are missing ("
        + "; ".join(f"{_inline(d)}, seeds {_list(s)}" for d, s in entry["datasets"].items())
        + ")."
        for m, entry in summary["incomplete"].items()
        if entry["missing"]
    ]
    lines += [
        f"- {_inline(d)} is not ranked: not finished by "
        f"{_inline(_list(_title(summary, m) for m in lacking))}."
        for d, lacking in summary["left_out"].items()
    ]
    lines += [
        f"- {_inline(d)} is compared on seeds {_list(entry['paired'])}: "
        + "; ".join(
            f"{_inline(_title(summary, m))} lacks {_list(s)}" for m, s in entry["lacking"].items()
        )
        + "."
        for d, entry in summary["seeds"].items()
        if entry["lacking"]
    ]
    return ["Incomplete:", "", *lines, ""] if lines else []


def _tested(summary: Mapping[str, Any]) -> list[str]:
    tests = summary["tests"]
    result, critical = tests["friedman"], tests["critical_difference"]
    if result["chi2"] is None or critical is None:
        return []
    return [
        f"Friedman's test over {tests['families']} families and {len(tests['methods'])} methods: "
        f"chi2 = {result['chi2']:.2f}, p {_p(result['p'], '= ')}; after Iman and Davenport "
        f"p {_p(result['p_f'], '= ')}. Average ranks that differ by less than {critical:.2f} (Nemenyi, "
        "5 % level) are not told apart.",
        "",
    ]


def _failures(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: dict[tuple[str, ...], list[str]] = {}
    for summary in summaries:
        for cell in summary["failed"]:
            names = [cell["dataset"], _title(summary, cell["method"]), cell["objective"] or "–"]
            row = [*names, str(cell["seed"]), cell["reason"] or "no reason recorded"]
            rows[tuple(row)] = row
    if not rows:
        return ["## Failed cells", "", "None."]
    head = ["dataset", "method", "objective", "seed", "reason"]
    return ["## Failed cells", "", *_grid(head, list(rows.values()), left=5)]


def _table_metrics(summary: Mapping[str, Any]) -> list[str]:
    """The metrics of the table of methods: the objective first."""
    every = next(iter(summary["mean"].values()), {})
    usual = ("balanced_error", "worst_class_error", "error")
    return [summary["metric"], *(m for m in usual if m in every and m != summary["metric"])]


def _method_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for m in _in_order(summary):
        rank, cpu, runs = (summary[k].get(m) for k in ("average_rank", "cpu_cost", "cost"))
        errors = [summary["mean"][m].get(name) for name in _table_metrics(summary)]
        rows.append(
            [
                _title(summary, m),
                "–" if rank is None else f"{rank:.2f}",
                *("–" if e is None else _format_percent(e) for e in errors),
                "–" if runs is None else f"{runs:.1f}",
                "–" if cpu is None else f"{cpu:.1f}×",
            ]
        )
    return rows


def _in_order(summary: Mapping[str, Any]) -> list[str]:
    """Methods by average rank, then those that have none."""
    ranked = list(summary["average_rank"])
    return ranked + [m for m in summary["methods"] if m not in summary["average_rank"]]


def _focus(summary: Mapping[str, Any]) -> str:
    """The method of ours that the terminal compares."""
    ours = [m for m in _in_order(summary) if summary["methods"][m]["kind"] == "ours"]
    return _MAIN if _MAIN in summary["methods"] else next(iter(ours), "")


def _title(summary: Mapping[str, Any], method: str) -> str:
    return summary["methods"].get(method, {}).get("title", method)


def _any_title(summaries: Sequence[Mapping[str, Any]]) -> Any:
    known = {m: v["title"] for s in summaries for m, v in s["methods"].items()}
    return lambda method: known.get(method, method)


def _difference(row: Mapping[str, Any]) -> tuple[str, str, str]:
    interval = "–" if row["low"] is None else f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}"
    p = "–" if row["p_holm"] is None else _p(row["p_holm"])
    return f"{100 * row['mean']:+.2f}", interval, p


def _error(entry: Mapping[str, Any]) -> str:
    error = entry["standard_error"]
    return _format_percent(entry["mean"]) + ("" if error is None else f" ± {100 * error:.2f}")


def _format_percent(rate: float) -> str:
    return f"{100 * rate:.2f}"


def _p(p: float, equals: str = "") -> str:
    return "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"


def _list(items: Any) -> str:
    return ", ".join(map(str, items))


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A table whose first columns are left-aligned, and a blank line."""
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    lines = [[_inline(t) for t in head], rule, *([_inline(t) for t in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _inline(text: str) -> str:
    """Text on one line in which no character has a meaning, but for the bold of `_part`."""
    plain = " ".join(str(text).split())
    return re.sub(r"([|<>\[\]`_\\])", r"\\\1", plain)


# Inches of the diagram's rank axis, and of one line of labels.
_AXIS = 5.0
_LINE = 0.24


def critical_difference_plot(summary: Mapping[str, Any]) -> bytes:
    """Demsar's diagram of average ranks as SVG, drawn by scikit-posthocs.

    The best rank is on the left. A bar joins methods that are not told apart, because their average
    ranks differ by less than Nemenyi's critical difference. The same summary gives the same bytes.

    Parameters
    ----------
    summary : mapping
        From `autobalance_bench.comparison.statistics.summary`, or one of its halves.

    Raises
    ------
    InputError
        If fewer than two methods are ranked together, or over fewer than two families.
    """
    tests = summary["tests"]
    critical = tests["critical_difference"]
    if critical is None:
        raise InputError(
            "A critical difference needs at least two ranked methods and two families of datasets; "
            f"got {len(tests['methods'])} methods and {tests['families']} families."
        )
    # Only here: these imports take seconds, which the summary in the terminal need not wait for.
    import matplotlib
    import pandas as pd
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from scikit_posthocs import critical_difference_diagram

    ranks = pd.Series(_ranks_by_label(summary, tests["methods"]))
    apart = np.abs(ranks.to_numpy()[:, None] - ranks.to_numpy()) >= critical
    # The diagram takes p-values. Those of Nemenyi's test lie below alpha exactly where ranks differ
    # by the critical difference or more, so 0 and 1 say all that it needs.
    p_values = pd.DataFrame(1.0 - apart, index=ranks.index, columns=ranks.index)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "autobalance", "text.parse_math": False})
        figure = Figure(figsize=(_AXIS, 1.0), facecolor="white")
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        critical_difference_diagram(
            ranks,
            p_values,
            alpha=tests["alpha"],
            ax=axes,
            label_fmt_left="{label}  {rank:.2f}",
            label_fmt_right="{rank:.2f}  {label}",
            elbow_props={"color": "#333333", "linewidth": 0.8},
            marker_props={"color": "black", "s": 12},
            text_h_margin=0.02 * float(np.ptp(ranks)),
            crossbar_props={"color": "#b03a2e", "linewidth": 3},
        )
        # The library's own bar for the critical difference would cross the numbers of the axis.
        lowest = ranks.min()
        axes.plot([lowest, lowest + critical], [2, 2], color="black", linewidth=1.6, marker="|")
        axes.text(lowest, 2.3, f"critical difference {critical:.2f}", va="bottom")
        axes.set_ylim(axes.get_ylim()[0], 3)
        figure.set_figheight(_LINE * float(np.ptp(axes.get_ylim())))
        stream = io.BytesIO()
        figure.savefig(
            stream, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    return stream.getvalue()


def _ranks_by_label(summary: Mapping[str, Any], methods: Sequence[str]) -> dict[str, float]:
    """Average ranks by title; methods that share a title have their names added."""
    titles = [_title(summary, method) for method in methods]
    labels = [
        t if titles.count(t) == 1 else f"{t} ({m})" for m, t in zip(methods, titles, strict=True)
    ]
    return {
        label: summary["average_rank"][method]
        for label, method in zip(labels, methods, strict=True)
    }
