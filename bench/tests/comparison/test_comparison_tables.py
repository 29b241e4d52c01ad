"""Tables show what the summary says, all of it, and the picture has no overlapping labels."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from rich.console import Console

from autobalance import InputError
from autobalance_bench.comparison.statistics import summary
from autobalance_bench.comparison.tables import critical_difference_plot, markdown, terminal_tables

OURS = ("autobalance", "variant")


def cells(
    table: dict[str, dict[str, Sequence[float]]], half: str | None = "develop"
) -> list[dict[str, Any]]:
    return [
        {
            "dataset": dataset,
            "family": dataset.split("-")[0],
            "half": half,
            "method": method,
            "objective": None,
            "seed": seed,
            "status": "finished",
            "report": {"error": 0.5},
            "objectives": {"balanced_error": error},
            "training_runs": 2.0,
            "seconds": {"cpu": 1.0 + len(method)},
            "title": f"[{method}]",
            "kind": "ours" if method in OURS else "tuned",
            "versions": {"numpy": "2.0"},
        }
        for dataset, methods in table.items()
        for method, errors in methods.items()
        for seed, error in enumerate(errors)
    ]


def failure(dataset: str, method: str, seed: int, reason: str) -> dict[str, Any]:
    (record,) = cells({dataset: {method: [0.0]}})
    return record | {"seed": seed, "status": "failed", "reason": reason}


TABLE = {
    "a-1": {"cross_entropy": [0.4, 0.5], "tau": [0.3, 0.5], "autobalance": [0.2, 0.4]},
    "b": {"cross_entropy": [0.4, 0.5], "tau": [0.1, 0.2], "autobalance": [0.3, 0.3]},
}


def rows(text: str, head: str) -> dict[str, list[str]]:
    """First Markdown table after a line, as lists of cells by the first cell."""
    after = text[text.index(head) :].splitlines()
    start = next(i for i, line in enumerate(after) if line.startswith("|"))
    found = {}
    for line in after[start:]:
        if not line.startswith("|"):
            break
        first, *others = re.split(r"(?<!\\)\|", line.strip("|"))
        found[first.strip()] = [t.strip() for t in others]
    return found


def shown(found: dict[str, Any], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in terminal_tables(found):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown_has_every_number() -> None:
    found = summary(cells(TABLE), "balanced_error")
    text = markdown(found, date="2026-01-31", command="autobalance compare my.yaml\nls")
    assert "\n    autobalance compare my.yaml\n    ls\n" in text
    assert "- Date: 2026-01-31\n- 2 datasets in 2 families, 3 methods, seeds 0, 1\n" in text
    assert "- Versions: numpy 2.0" in text
    by_dataset = rows(text, "### All datasets")
    # By average rank; both have 1.5.
    assert by_dataset["dataset"] == [r"\[autobalance\]", r"\[tau\]", r"\[cross\_entropy\]"]
    assert by_dataset["a-1"] == ["**30.00 ± 10.00**", "40.00 ± 10.00", "45.00 ± 5.00"]
    assert by_dataset["b"] == ["30.00 ± 0.00", "**15.00 ± 5.00**", "45.00 ± 5.00"]
    by_method = rows(text, "Methods by average rank")
    assert by_method["method"][:3] == ["average rank", "balanced error", "error"]
    assert by_method[r"\[tau\]"] == ["1.50", "27.50", "50.00", "2.0", "0.3×"]
    # A result against us stays in: +15 points, t = 3 with 1 degree of freedom. Holm leaves it as
    # it is: on a-1 both seeds differ by the same, and p is 0.
    lines = [line for line in text.splitlines() if line.startswith(r"| \[autobalance\] | b |")]
    assert lines[0] == (
        r"| \[autobalance\] | b | \[tau\] | +15.00 | -48.53 to +78.53 | 0.205 | 2 |"
    )
    assert "### Half used for development" in text
    assert "### Half kept for confirmation" not in text
    assert text.endswith("## Failed cells\n\nNone.\n")


def test_markdown_of_incomplete_and_failed_cells() -> None:
    table = {
        "a-1": {**TABLE["a-1"], "smote": [0.1]},
        "b": {**TABLE["b"], "cross_entropy": [0.4, 0.5, 0.6]},
        "c": {"tau": [0.7]},
    }
    failed = failure("b", "smote", 1, "needs | two\nmembers <of> a class")
    found = summary([*cells(table), failed], "balanced_error")
    text = markdown(found, date="", command="", plots={"balanced_error": "plot.svg"})
    assert "![Critical difference diagram](plot.svg)" in text
    assert (
        r"- \[smote\] is not ranked: 4 cells are missing (a-1, seeds 1; b, seeds 0, 1, 2)." in text
    )
    assert (
        r"- c is not ranked: not finished by \[autobalance\], \[cross\_entropy\], \[smote\]."
        in text
    )
    assert r"- b is compared on seeds 0, 1: \[autobalance\] lacks 2; \[tau\] lacks 2." in text
    by_dataset = rows(text, "### All datasets")
    assert by_dataset["a-1"][-1] == "**10.00** † (n = 1)"
    assert by_dataset["b"][-1] == "–"
    assert rows(text, "Methods by average rank")[r"\[smote\]"][:3] == ["–", "–", "–"]
    row = rows(text, "## Failed cells")["b"]
    assert row == [r"\[smote\]", "–", "1", r"needs \| two members \<of\> a class"]


def test_where_nothing_is_ranked_the_reason_is_said() -> None:
    finished = cells({"a-1": {"tau": [0.3]}, "b": {"tau": [0.1]}})
    failed = [failure(d, m, 0, "no") for d in ("a-1", "b") for m in ("cdt", "vs")]
    found = summary([*finished, *failed], "balanced_error")
    text = markdown(found, date="", command="")
    reason = "No method is ranked: on no dataset did half of the methods finish."
    assert f"Incomplete:\n\n- {reason}\n" in text
    assert "cells are missing" not in text
    assert "- b is not ranked: not finished by" in text
    assert reason in shown(found)
    assert reason not in shown(summary(cells(TABLE), "balanced_error"))


def test_markdown_of_several_objectives_and_one_seed() -> None:
    one = {d: {m: v[:1] for m, v in methods.items()} for d, methods in TABLE.items()}
    records = cells(one, "confirm")
    summaries = [summary(records, metric) for metric in ("balanced_error", "error")]
    text = markdown(*summaries, date="", command="", title="Mine")
    assert text.startswith("# Mine\n")
    assert text.count("### Half kept for confirmation") == 2
    assert text.index("## Balanced error") < text.index("## Error")
    assert rows(text, "## Balanced error")["a-1"] == ["**20.00**", "30.00", "40.00"]
    assert rows(text, "Paired differences")[r"\[autobalance\]"][2:] == ["+20.00", "–", "–", "1"]
    # Where all have the same mean all are in bold.
    assert set(rows(text, "## Error")["a-1"]) == {"**50.00**"}
    assert "nan" not in text.lower()
    with pytest.raises(InputError, match="needs at least one summary"):
        markdown(date="", command="")


def test_terminal_tables() -> None:
    found = summary(cells(TABLE), "balanced_error")
    methods, datasets = terminal_tables(found)
    assert methods.row_count == 3
    assert datasets.row_count == 2
    text = shown(found)
    assert re.search(r"\[tau\] +│ +1.50 │ +27.50 │ +50.00 │ +2.0 │ +0.3×", text)
    assert re.search(r"b +│ \[tau\] +│ +30.00 ± 0.00 │ +\+15.00 │ -48.53 to \+78.53 │ +0.205", text)
    assert "[autobalance] less the best baseline" in text


def test_terminal_tables_without_differences() -> None:
    only = {d: {"tau": m["tau"], "cross_entropy": m["cross_entropy"]} for d, m in TABLE.items()}
    found = summary(cells(only), "balanced_error")
    assert len(terminal_tables(found)) == 1
    half = {"metric": "balanced_error", **found["halves"]["confirm"]}
    assert "average rank" in shown(half)


def many(n: int, *, families: int = 6) -> dict[str, Any]:
    """A summary of n methods whose names have very different lengths."""
    draw = np.random.default_rng(n)
    names = [f"m{i}" + "_of_a_long_name" * (i % 3) for i in range(n - 1)] + ["autobalance"]
    table = {
        f"d{j}": {m: [float(i / 40 + draw.uniform(0, 0.2))] for i, m in enumerate(names)}
        for j in range(families)
    }
    return summary(cells(table), "balanced_error")


def texts(svg: bytes) -> list[tuple[str, float, float]]:
    """Comment (matplotlib names each text in one), and where it stands."""
    pattern = rb"<!-- ([^>]*) -->\s*<g[^>]*transform=\"translate\(([-\d.]+) ([-\d.]+)\)"
    return [(t.decode(), float(x), float(y)) for t, x, y in re.findall(pattern, svg)]


@pytest.mark.parametrize("n", [2, 3, 11, 20])
def test_the_picture_names_every_method_without_overlap(n: int) -> None:
    found = many(n)
    svg = critical_difference_plot(found)
    root = ElementTree.fromstring(svg)
    width, height = (float(root.attrib[k].removesuffix("pt")) for k in ("width", "height"))
    drawn = texts(svg)
    labels = [t for t in drawn if "[" in t[0]]
    assert sorted(t.replace("  ", " ") for t, *_ in labels) == sorted(
        f"[{m}] {r:.2f}" if i < (n + 1) // 2 else f"{r:.2f} [{m}]"
        for i, (m, r) in enumerate(
            sorted(found["average_rank"].items(), key=lambda item: (item[1], f"[{item[0]}]"))
        )
    )
    for side in (True, False):
        heights = sorted(y for t, _, y in labels if t.startswith("[") == side)
        assert all(np.diff(heights) > 12)
    assert all(0 < x < width and 0 < y < height for _, x, y in drawn)
    critical = f"critical difference {found['tests']['critical_difference']:.2f}"
    assert critical in [t for t, *_ in drawn]


def test_the_picture_is_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = many(5)
    first = critical_difference_plot(found)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None, "lines.linewidth": 9}):
        assert critical_difference_plot(found) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert b"<dc:date>" not in first


def test_no_picture_of_one_family() -> None:
    found = many(5, families=1)
    with pytest.raises(InputError, match=r"needs at least two .* got 5 methods and 1 families"):
        critical_difference_plot(found)


def crossbars(svg: bytes) -> list[list[float]]:
    """Horizontal places that each red bar joins, from left to right."""
    paths = re.findall(rb'<path d="([^"]*)"[^>]*style="[^"]*stroke: #b03a2e', svg)
    return [sorted(float(x) for x in re.findall(rb"[ML] ([-\d.]+)", path)) for path in paths]


def test_bars_join_what_is_not_told_apart() -> None:
    ranks = {"a": 1.0, "b": 2.5, "c": 2.7, "d": 4.0, "e": 4.2}
    found = {
        "methods": {},
        "average_rank": ranks,
        "tests": {
            "methods": list(ranks), "critical_difference": 1.6, "families": 4, "alpha": 0.05
        },
    }  # fmt: skip
    bars = crossbars(critical_difference_plot(found))
    # From 1.0 to 2.5; 2.5 reaches 4.0 but not 4.2; 4.2 is joined to 4.0 and 2.7.
    expected = [[1.0, 2.5], [2.5, 2.7, 4.0], [2.7, 4.0, 4.2]]
    assert [len(bar) for bar in bars] == [2, 3, 3]
    scale = (bars[2][-1] - bars[0][0]) / (4.2 - 1.0)
    for bar, values in zip(bars, expected, strict=True):
        assert [1 + (x - bars[0][0]) / scale for x in bar] == pytest.approx(values, abs=1e-3)
    # A difference of exactly the critical one is told apart.
    found["tests"]["critical_difference"] = 1.5
    assert [len(bar) for bar in crossbars(critical_difference_plot(found))] == [2, 2, 2]


def test_methods_of_one_title_are_told_apart() -> None:
    found = many(3)
    for method in found["methods"].values():
        method["title"] = "twin"
    labels = {t for t, *_ in texts(critical_difference_plot(found)) if "twin" in t}
    assert {re.search(r"\((\w+)\)", label)[1] for label in labels} == set(found["methods"])


def test_the_lowest_mean_is_the_lowest_number() -> None:
    """As text 10.11 comes before 7.76."""
    table = {"a": {"autobalance": [0.1011], "logit_adjustment": [0.0776]}}
    text = markdown(summary(cells(table), "balanced_error"), date="", command="")
    assert sorted(rows(text, "### All datasets")["a"]) == ["**7.76**", "10.11"]
