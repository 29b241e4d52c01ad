"""The frontier as a picture and as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from autobalance.report import frontier
from autobalance.report.frontier import as_csv, as_svg


def record(*points: tuple[float, float, bool], **changes: Any) -> dict[str, Any]:
    listed = [
        {"mix": i / 10, "main": main, "gap": gap, "constant": constant}
        for i, (main, gap, constant) in enumerate(points)
    ]
    baselines = [
        {"title": "cross-entropy", "main": 0.25, "gap": 0.4, "constant": False},
        {"title": "always <one> & $class", "main": 0.5, "gap": 0.0, "constant": True},
    ]
    given = {"main": "balanced_error", "gap": "deo", "points": listed, "baselines": baselines}
    return {**given, **changes}


SWEPT = record((0.15, 0.3, False), (0.2, 0.1, False), (0.5, 0.0, True))


def test_csv_has_a_line_per_point() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(SWEPT))))
    assert rows[0] == ["mix", "balanced_error", "deo", "constant", "title", "picked"]
    assert rows[1:] == [
        ["0.0", "0.15", "0.3", "false", "mix 0", "false"],
        ["0.1", "0.2", "0.1", "false", "mix 0.1", "false"],
        ["0.2", "0.5", "0.0", "true", "mix 0.2", "false"],
        ["", "0.25", "0.4", "false", "cross-entropy", "false"],
        ["", "0.5", "0.0", "true", "always <one> & $class", "false"],
    ]
    picked = list(csv.reader(io.StringIO(as_csv(SWEPT | {"picked": SWEPT["points"][1]}))))
    assert [row[0] for row in picked if row[-1] == "true"] == ["0.1"]
    assert "picked, mix 0.1" in as_svg(SWEPT | {"picked": SWEPT["points"][1]})


def test_the_picture_is_svg_and_repeats() -> None:
    before = dict(matplotlib.rcParams)
    text = as_svg(SWEPT)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text
    words = "".join(root.itertext())
    for expected in ("always <one> & $class", "0.1", "DEO (gaps in error, all classes added up)"):
        assert expected in words
    assert as_svg(SWEPT) == text
    assert dict(matplotlib.rcParams) == before


def test_what_the_picture_shows() -> None:
    axes = Figure().add_subplot()
    frontier._draw(axes, SWEPT["points"], SWEPT["baselines"])
    line, filled, hollow, first, second = axes.get_lines()
    assert list(line.get_xdata()) == pytest.approx([30, 10, 0])
    assert list(line.get_ydata()) == pytest.approx([15, 20, 50])
    assert list(filled.get_xdata()) == pytest.approx([30, 10])
    assert list(hollow.get_ydata()) == pytest.approx([50])
    faces = [artist.get_markerfacecolor() for artist in (filled, hollow, first, second)]
    assert [face == "none" for face in faces] == [False, True, False, True]
    assert len({artist.get_marker() for artist in (filled, first, second)}) == 3
    assert len({artist.get_color() for artist in (filled, first, second)}) == 3


def test_one_point_without_baselines_can_be_drawn() -> None:
    text = as_svg(record((0.2, 0.1, False), baselines=[], gap="worst_group_error"))
    assert ElementTree.fromstring(text).tag.endswith("svg")
