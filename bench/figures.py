"""Check that tables and pictures of README and documentation equal what the kept results say.

    python bench/figures.py            # exit code 1, with the differences, where they do not
    python bench/figures.py --write    # put in what the kept results say

A table to check has a comment before it, `<!-- printed by: COMMAND -->`: each of its rows must be among what
the command prints. COMMAND is a script of this folder that only reads kept results, or this one with the name
of a table, `python bench/figures.py readme`. The pictures of the README, docs/images/errors-light.svg and
-dark.svg, must be drawn from the same numbers, which they carry as text; its badges say what pyproject.toml
and the last run of `make coverage` say.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from any_classifier import read_cells
from measuring import mean_and_error

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images"
MARKER = re.compile(r"<!-- printed by: (?P<command>[^>]+?) -->\n+(?P<table>(?:\|.*\n)+)")
Estimate = tuple[float, float]
"""A mean and its standard error, in percent."""


def pages() -> list[Path]:
    """Every page that may have a table to check."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in found if "_build" not in page.parts)


# Kept results ---------------------------------------------------------------------------------


@functools.cache
def demo() -> dict[str, dict[str, Estimate]]:
    """The demo's methods on all 10,000 test images, by `bench/demo_seeds.py`."""
    rows = json.loads((RESULTS / "demo_seeds.json").read_text("utf-8"))
    measures = {"balanced": "balanced_error", "worst": "worst_class_error"}
    found = {
        method: {
            name: mean_and_error(100 * row[method][key] for row in rows)
            for name, key in measures.items()
        }
        for method in rows[0]
    }
    for method in found:
        ratios = [row[method]["cpu_seconds"] / row["cross_entropy"]["cpu_seconds"] for row in rows]
        found[method]["cost"] = mean_and_error(ratios)
    return found


@functools.cache
def suite(subset: str = "") -> Any:
    """The summary of the suite, or of a subset of it, by `autobalance compare --summary`."""
    from autobalance.cli import main

    out = RESULTS / subset if subset else RESULTS
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = Path(folder) / "summary.json"
        arguments = ["compare", str(ROOT / "bench" / "suite.yaml"), "--out", str(out), "--summary"]
        main([*arguments, *(["--subset", subset] if subset else []), "--json", str(path)])
        return json.loads(path.read_text("utf-8"))


@functools.cache
def trees(two_class: bool = False) -> dict[str, dict[str, Estimate]]:
    """LightGBM's errors, of each seed the mean over tables and settings, by `bench/any_classifier.py`."""
    cells = read_cells(RESULTS / "any_classifier" / "cells.jsonl")
    by_method: dict[str, dict[str, dict[int, list[float]]]] = {}
    for cell in cells:
        if cell["two_class"] == two_class:
            for measure in ("balanced", "worst"):
                seeds = by_method.setdefault(cell["method"], {}).setdefault(measure, {})
                seeds.setdefault(cell["seed"], []).append(cell[measure])
    return {
        method: {
            m: mean_and_error(float(np.mean(v)) for v in seeds.values())
            for m, seeds in measures.items()
        }
        for method, measures in by_method.items()
    }


# Tables ---------------------------------------------------------------------------------------


def rounded(value: Estimate, digits: int = 1) -> str:
    """A mean with its standard error."""
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def readme_table() -> str:
    """The README's: the usual way, ours, and the cost."""
    ours, mean, cost = demo(), suite()["mean"], suite()["cpu_cost"]
    tree, pair = trees(), trees(two_class=True)

    def on_suite(method: str) -> str:
        return f"{100 * mean[method]['balanced_error']:.1f}"

    def on(name: str, method: str) -> str:
        entry = suite()["per_dataset"][name][method]
        return rounded((100 * entry["mean"], 100 * entry["standard_error"]))

    on_trees = "folds of the model"
    return table(
        ["error in percent", "usual way", "logit adjustment", "autobalance", "cost"],
        [
            *(
                [
                    f"CNN, Fashion-MNIST at 100 : 1, {what}",
                    rounded(ours["cross_entropy"][key]),
                    rounded(ours["logit_adjustment"][key]),
                    f"**{rounded(ours[method][key])}**",
                    f"{ours[method]['cost'][0]:.1f} trainings",
                ]
                for key, what, method in (
                    ("balanced", "balanced error", "autobalance"),
                    ("worst", "worst class, designed for it", "autobalance_worst_class"),
                )
            ),
            [
                "LightGBM, 11 tables, balanced error",
                rounded(tree["none"]["balanced"]),
                rounded(tree["post_hoc"]["balanced"]),
                f"**{rounded(tree['designed']['balanced'])}**",
                on_trees,
            ],
            [
                "LightGBM, 11 tables, worst class, designed for it",
                rounded(tree["none"]["worst"]),
                rounded(tree["post_hoc"]["worst"]),
                f"**{rounded(tree['designed_worst']['worst'])}**",
                on_trees,
            ],
            [
                "LightGBM, 8 tables of two classes, balanced error",
                f"{rounded(pair['none']['balanced'])}; tuned threshold "
                f"{rounded(pair['tuned_threshold']['balanced'])}",
                rounded(pair["post_hoc"]["balanced"]),
                f"**{rounded(pair['designed']['balanced'])}**",
                on_trees,
            ],
            [
                "networks, 20 sets of 13 sources, balanced error",
                on_suite("cross_entropy"),
                f"{on_suite('logit_adjustment')}; after training {on_suite('logit_adjustment_post_hoc')}",
                f"**{on_suite('autobalance')}**",
                f"{cost['autobalance']:.1f} trainings",
            ],
            [
                "where it does not help: Shuttle",
                on("shuttle", "cross_entropy"),
                f"**{on('shuttle', 'logit_adjustment')}**",
                on("shuttle", "autobalance"),
                "",
            ],
            [
                "Abalone",
                on("abalone", "cross_entropy"),
                f"{on('abalone', 'logit_adjustment')}; after training "
                f"**{on('abalone', 'logit_adjustment_post_hoc')}**",
                on("abalone", "autobalance"),
                "",
            ],
        ],
    )


def demo_table() -> str:
    """The demo on all test images, five seeds."""
    titles = {
        "cross_entropy": "cross-entropy",
        "logit_adjustment": "logit adjustment, tau = 1",
        "autobalance_balanced": "autobalance, for the balanced error, one run",
        "autobalance_worst_class": "autobalance, for the worst class, one run",
        "autobalance": "autobalance, for the balanced error, best of the race",
    }
    return table(
        ["method", "balanced error", "worst class", "CPU time / cross-entropy"],
        [
            [title, rounded(row["balanced"], 2), rounded(row["worst"], 2), f"{row['cost'][0]:.2f}"]
            for method, title in titles.items()
            for row in [demo()[method]]
        ],
    )


def suite_table() -> str:
    """Ranks, means over families and costs of the methods that are named most."""
    titles = {
        "logit_adjustment_raced": "logit adjustment, raced",
        "autobalance": "autobalance",
        "autobalance_plain": "autobalance, neither race nor delta",
        "logit_adjustment_post_hoc": "cross-entropy, logit adjustment post hoc",
        "logit_adjustment": "logit adjustment",
        "logit_adjustment_tuned": "logit adjustment, tau tuned",
        "ldam_drw": "LDAM-DRW",
        "cross_entropy": "cross-entropy",
    }
    found = suite()
    return table(
        ["method", "average rank", "balanced error", "worst class", "training runs", "CPU time"],
        [
            [
                title,
                f"{found['average_rank'][method]:.2f}",
                f"{100 * found['mean'][method]['balanced_error']:.1f}",
                f"{100 * found['mean'][method]['worst_class_error']:.1f}",
                f"{found['cost'][method]:.1f}",
                f"{found['cpu_cost'][method]:.1f}",
            ]
            for method, title in titles.items()
        ],
    )


def trees_table() -> str:
    """LightGBM's errors by table, its defaults / with max_delta_step=1."""
    cells = read_cells(RESULTS / "any_classifier" / "cells.jsonl")
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for cell in cells:
        if not cell["two_class"]:
            for measure in ("balanced", "worst"):
                key = cell["table"], cell["variant"], cell["method"], measure
                values.setdefault(key, []).append(cell[measure])
    names = sorted(
        {key[0] for key in values},
        key=lambda n: [int(p) if p.isdigit() else 0 for p in n.split("-")],
    )
    columns = {
        "none": ("none", "balanced"), "post hoc": ("post_hoc", "balanced"),
        "tuned tau": ("tuned_tau", "balanced"), "designed": ("designed", "balanced"),
        "worst class: post hoc": ("post_hoc", "worst"), "designed for it": ("designed_worst", "worst"),
    }  # fmt: skip
    return table(
        ["dataset", *columns],
        [
            [name, *(
                " / ".join(f"{np.mean(values[name, v, *c]):.1f}" for v in ("default", "max_delta_step=1"))
                for c in columns.values()
            )]
            for name in sorted(names, key=lambda n: (n.rpartition("-")[0] or n, len(n), n))
        ],
    )  # fmt: skip


def one_run_table() -> str:
    """Search and training in one run against two runs, over the developing half."""
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for cell in read_cells(RESULTS / "cells.jsonl"):
        if cell["method"] in ("autobalance_one_run", "autobalance_two_runs"):
            value = 100 * cell["report"]["balanced_error"], cell["seconds"]["cpu"]
            found.setdefault((cell["dataset"], cell["method"]), {})[cell["seed"]] = value
    rows, differences, costs = [], [], []
    for name in sorted({dataset for dataset, _ in found}):
        one, two = (found[name, f"autobalance_{kind}"] for kind in ("one_run", "two_runs"))
        seeds = sorted(one.keys() & two.keys())
        difference = mean_and_error(one[s][0] - two[s][0] for s in seeds)
        costs += [one[s][1] / two[s][1] for s in seeds]
        differences.append(difference[0])
        means = (float(np.mean([run[s][0] for s in seeds])) for run in (one, two))
        rows.append([name, *(f"{m:.1f}" for m in means), rounded(difference, 2), str(len(seeds))])
    mean = f"{np.mean(differences):.2f}, CPU time {np.mean(costs):.2f}"
    rows.append(["mean difference; ratio of", "", "", mean, ""])
    return table(["dataset", "one run", "two runs", "difference", "seeds"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "one_run": one_run_table,
    "readme": readme_table,
    "demo": demo_table,
    "suite": suite_table,
    "trees": trees_table,
}


# The picture ----------------------------------------------------------------------------------


def picture_numbers() -> list[tuple[str, str, dict[str, Estimate]]]:
    """Panels of the picture: title, measure, and by method the error."""
    ours, tree = demo(), trees()
    network = {"cross-entropy": "cross_entropy", "logit adjustment": "logit_adjustment"}
    model = {"as it is": "none", "logit adjustment": "post_hoc"}
    panels = []
    for key, what, last in (
        ("balanced", "balanced error, %", "autobalance"),
        ("worst", "worst class, error in %", "autobalance_worst_class"),
    ):
        values = {n: ours[m][key] for n, m in network.items()} | {"autobalance": ours[last][key]}
        panels.append((f"CNN, Fashion-MNIST 100 : 1\n{what}", key, values))
    for key, what, last in (
        ("balanced", "balanced error, %", "designed"),
        ("worst", "worst class, error in %", "designed_worst"),
    ):
        values = {n: tree[m][key] for n, m in model.items()} | {"autobalance": tree[last][key]}
        panels.append((f"LightGBM, mean of 11 tables\n{what}", key, values))
    return panels


def draw(path: Path, *, dark: bool) -> None:
    """Write the picture, on a transparent ground."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ink, soft, own = (
        ("#e6edf3", "#8b949e", "#58a6ff") if dark else ("#1f2328", "#8c959f", "#0969da")
    )
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "autobalance",
        "font.size": 8.5,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
    }
    with mpl.rc_context(style):
        figure, axes = plt.subplots(1, 4, figsize=(9.2, 1.9), layout="constrained")
        for index, (axis, (title, _, values)) in enumerate(
            zip(axes, picture_numbers(), strict=True)
        ):
            for row, (name, (mean, error)) in enumerate(values.items()):
                color = own if name == "autobalance" else soft
                axis.barh(-row, mean, color=color, height=0.6, xerr=error, ecolor=ink)
                axis.text(mean + error + 1.5, -row, f"{mean:.1f}", va="center", color=ink)
            axis.set_title(title, fontsize=8.5, color=ink, loc="left")
            axis.set_yticks([-row for row in range(len(values))], list(values))
            axis.set_xlim(0, 1.3 * max(mean for mean, _ in values.values()))
            axis.set_xticks([])
            axis.tick_params(length=0)
            axis.patch.set_alpha(0)
            axis.spines[:].set_visible(False)
            if index % 2:
                axis.set_yticklabels([])
        figure.patch.set_alpha(0)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def picture_differs(path: Path) -> list[str]:
    """Numbers that the picture lacks."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [
        f"{path.name} lacks {mean:.1f}, {name}: {' '.join(title.split())}"
        for title, _, values in picture_numbers()
        for name, (mean, _) in values.items()
        if f">{mean:.1f}<" not in text
    ]


# Badges ---------------------------------------------------------------------------------------

BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img"
 aria-label="{name}: {value}">
<rect width="{width}" height="20" rx="3" fill="#57606a"/>
<path d="M{left} 0h{right}a3 3 0 0 1 3 3v14a3 3 0 0 1 -3 3h-{right}z" fill="{color}"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="6" y="14">{name}</text><text x="{start}" y="14">{value}</text></g></svg>
"""


def badges() -> dict[str, tuple[str, str, str]]:
    """Name, value and color by the file's name: versions of pyproject.toml, and the tests' last record."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    [version] = re.findall(
        r'^__version__ = "(.*)"', (ROOT / "src/autobalance/__init__.py").read_text("utf-8"), re.M
    )
    [torch] = [d.partition(">=")[2] for d in project["dependencies"] if d.startswith("torch>=")]
    tests = json.loads((RESULTS / "tests.json").read_text("utf-8"))
    return {
        "version": ("version", version, "#0969da"),
        "python": ("Python", f"{project['requires-python'][2:]}+", "#0969da"),
        "pytorch": ("PyTorch", f"{torch}+", "#0969da"),
        "tests": ("tests", f"{tests['passed']:,} passed", "#1a7f37"),
        "coverage": ("coverage", f"{tests['coverage']:.0f} %", "#1a7f37"),
        "licence": ("licence", project["license"], "#0969da"),
    }


def badge(name: str, value: str, color: str) -> str:
    """A badge as SVG."""
    left, right = 12 + 7 * len(name), 9 + 7 * len(value)
    return BADGE.format(
        name=name,
        value=value,
        color=color,
        left=left,
        right=right,
        start=left + 6,
        width=left + right + 3,
    )


def badge_files() -> dict[Path, str]:
    """What each badge's file must hold."""
    return {IMAGES / f"badge-{file}.svg": badge(*parts) for file, parts in badges().items()}


# Check ----------------------------------------------------------------------------------------


@functools.cache
def printed(command: str) -> str:
    """What a command prints, run in the project's folder."""
    program, *arguments = shlex.split(command)
    if program != "python":
        raise SystemExit(f"A table is printed by python SCRIPT ...; got: {command}")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def cells_of(row: str) -> tuple[str, ...]:
    """The texts of a Markdown row, without spaces and bold."""
    return tuple(cell.strip().strip("*") for cell in row.strip().strip("|").split("|"))


def check(page: Path) -> list[str]:
    """Rows of the page's marked tables that their command does not print."""
    wrong = []
    for match in MARKER.finditer(page.read_text("utf-8")):
        known = {cells_of(row) for row in printed(match["command"]).splitlines() if "|" in row}
        for row in match["table"].splitlines():
            if set(row) - set("|-: ") and cells_of(row) not in known:
                wrong.append(f"{page.relative_to(ROOT)}: {match['command']} does not print {row}")
    return wrong


def write(page: Path) -> None:
    """Put what the commands print in the place of the page's marked tables."""

    def replaced(match: re.Match[str]) -> str:
        tables = re.findall(r"(?:^\|.*\n)+", printed(match["command"]), re.M)
        if len(tables) != 1:
            return match[0]  # of several tables nobody knows which; the check still looks at it
        return f"<!-- printed by: {match['command']} -->\n\n{tables[0]}"

    page.write_text(MARKER.sub(replaced, page.read_text("utf-8")), "utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", nargs="?", choices=sorted(TABLES), help="print this table alone")
    parser.add_argument("--write", action="store_true", help="put in what the kept results say")
    options = parser.parse_args(arguments)
    if options.table:
        print(TABLES[options.table](), end="")
        return 0
    pictures = {IMAGES / "errors-light.svg": False, IMAGES / "errors-dark.svg": True}
    if options.write:
        for path, dark in pictures.items():
            draw(path, dark=dark)
        for path, text in badge_files().items():
            path.write_text(text, "utf-8")
        for page in pages():
            write(page)
    wrong = [line for page in pages() for line in check(page)]
    wrong += [line for path in pictures for line in picture_differs(path)]
    for path, text in badge_files().items():
        if not path.exists() or path.read_text("utf-8") != text:
            wrong.append(f"{path.name} is not what pyproject.toml and bench/results/tests.json say")
    print("\n".join(wrong) or "All checked tables and pictures equal the kept results.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
