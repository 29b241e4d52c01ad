"""Contrast, alternative texts, table headers: what a reader who sees differently needs."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from autobalance.report.drawing import CELL
from autobalance.report.html import render_report
from autobalance.report.multi_run_page import render_runs
from report_records import Checker, measured_record

STYLE = files("autobalance.report").joinpath("style.css").read_text(encoding="utf-8")


def palettes() -> dict[str, dict[str, str]]:
    """The colours of style.css by name, light and dark; print is light on white."""
    light, dark, *_ = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    found = {
        name: dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})\b", block))
        for name, block in (("light", light), ("dark", dark))
    }
    return {**found, "print": {**found["light"], "page": "#ffffff"}}


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def blend(over: str, under: str, alpha: float) -> str:
    parts = [
        round(alpha * int(over[i : i + 2], 16) + (1 - alpha) * int(under[i : i + 2], 16))
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{p:02x}" for p in parts)


def test_the_contrast_of_known_colours() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_text_has_the_contrast_of_level_aa(mode: str) -> None:
    colours = palettes()[mode]
    assert {"page", "ink", "muted", "warn", "before", "after", "shade", "ramp-5"} <= colours.keys()
    written = ["ink", "muted", "warn", "before", "after", *(f"ramp-{i}" for i in range(6))]
    for name in written:  # the ramp colours the names at the ends of lines
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    assert contrast(colours["ink"], colours["shade"]) >= 4.5


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_numbers_can_be_read_on_the_darkest_cells(mode: str) -> None:
    colours = palettes()[mode]
    for fill in ("before", "after"):
        cell = blend(colours[fill], colours["page"], CELL)
        assert contrast(colours["ink"], cell) >= 4.5, fill


def test_lines_and_marks_can_be_told_from_the_page() -> None:
    for mode, colours in palettes().items():
        for name in ("before", "after", *(f"ramp-{i}" for i in range(6))):
            assert contrast(colours[name], colours["page"]) >= 3.0, (mode, name)


@pytest.fixture(scope="module", params=["single", "groups", "runs"])
def page(request: pytest.FixtureRequest) -> str:
    one, two = measured_record(6, seed=1), measured_record(6, seed=2, groups=2)
    if request.param == "runs":
        return render_runs({"one": one, "two": two})
    return render_report(one if request.param == "single" else two)


def test_every_figure_has_an_alternative_text(page: str) -> None:
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(found) >= 5
    for text in found:
        svg = ElementTree.fromstring(
            text.replace("xlink:href", "href").replace("<svg ", "<svg ", 1)
        )
        assert svg.attrib["role"] == "img"
        title, described = svg.attrib["aria-labelledby"].split()
        texts = {e.attrib.get("id"): (e.text or "").strip() for e in svg}
        assert texts[title]
        assert len(texts[described]) > 20


def test_every_header_says_what_it_heads(page: str) -> None:
    checker = Checker(page)
    heads = [attrs for tag, attrs in checker.tags if tag == "th"]
    assert len(heads) > 20
    assert {a.get("scope") for a in heads} == {"row", "col"}
    rows = re.findall(r"<tbody>\s*<tr>\s*<(\w+)", page)
    assert set(rows) == {"th"}
    tables = [a for tag, a in checker.tags if tag == "div" and a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" for a in tables)
    assert len({a["aria-labelledby"] for a in tables}) == len(tables)


def test_headings_go_down_one_level_at_a_time(page: str) -> None:
    levels = [int(n) for n in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_nothing_is_told_by_colour_alone(page: str) -> None:
    """Before is hollow, after is filled; what can be sorted says so in words."""
    assert "fill:none" in page.replace(" ", "") or 'fill="none"' in page
    assert "aria-sort" in page
