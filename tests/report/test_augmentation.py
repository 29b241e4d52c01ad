"""A learned policy as a heat map, and images as a sheet."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from autobalance._validation import InputError
from autobalance.report.augmentation import policy_picture, strengths
from autobalance.report.samples import Sheet, _tile

POLICY = {
    "often <a> & $b": {
        "rotation": {"probability": 0.5, "magnitude": 0.5},
        "flip": {"probability": 0.1},
    },
    "rare": {"rotation": {"probability": 1.0, "magnitude": 1.0}, "flip": {"probability": 0.75}},
}


def cells(svg: str) -> list[tuple[float, float, float]]:
    """(y, x, opacity) of the rectangles, from the top left."""
    found = []
    for path in ElementTree.fromstring(svg).iter():
        style = path.get("style") or ""
        if "opacity" in style and "d" in path.attrib:
            numbers = [float(v) for v in path.attrib["d"].replace("M", "").split()[:2]]
            opacity = float(style.split("opacity:")[1].split(";")[0])
            found.append((round(numbers[1], 1), round(numbers[0], 1), opacity))
    return sorted(found)


def test_strengths_by_hand() -> None:
    classes, operations, table = strengths(POLICY)
    assert (classes, operations) == (list(POLICY), ["rotation", "flip"])
    np.testing.assert_allclose(table, [[0.25, 0.1], [1.0, 0.75]])


def test_cells_are_as_opaque_as_they_are_strong_and_rows_sorted_by_counts() -> None:
    plain = [opacity for *_, opacity in cells(policy_picture(POLICY).svg)]
    assert plain == pytest.approx([0.125, 0.05, 0.5, 0.375])
    by_count = [opacity for *_, opacity in cells(policy_picture(POLICY, [5, 90]).svg)]
    assert by_count == pytest.approx([0.5, 0.375, 0.125, 0.05])


def test_pictures_are_svg_repeat_and_leave_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    picture = policy_picture(POLICY, [90, 5])
    assert policy_picture(POLICY, [90, 5]) == picture
    assert dict(matplotlib.rcParams) == before
    words = "".join(ElementTree.fromstring(picture.svg).itertext())
    for shown in ("often <a> & $b", "rare", "rotation", "flip", ".25", ".75"):
        assert shown in words
    assert "Strongest: rotation of rare, 1.00" in picture.svg
    assert "var(--after)" in picture.svg
    assert "from the most to the least frequent" in picture.caption


def test_many_classes_fit_without_numbers() -> None:
    many = {f"c{i}": {"flip": {"probability": i / 200}} for i in range(200)}
    picture = policy_picture(many, np.arange(200)[::-1].tolist())
    few = policy_picture(POLICY)
    assert float(picture.svg.split('viewBox="')[1].split('"')[0].split()[3]) < 800
    assert "c150" not in picture.svg
    assert ">.25<" in few.svg.replace("\n", "")


def test_the_sheet_shows_the_images() -> None:
    images = np.zeros((2, 4, 3, 8, 8))
    images[1, 3] = 1.0
    pixels, left, top = _tile(Sheet([(0, None), (1, None)], images, examples=2))
    assert pixels[..., 3].sum() == 2 * 4 * 64
    white = pixels[top[1] : top[1] + 8, left[3] : left[3] + 8, :3]
    assert white.min() == 1.0
    assert pixels[..., :3].sum() == white.sum()
    assert left[2] - left[1] > left[1] - left[0]  # one example's draws end, another's begin


@pytest.mark.parametrize("policy", [{}, {"a": {"flip": {"probability": 1}}, "b": {}}])
def test_a_policy_needs_the_same_operations_for_every_class(policy: Any) -> None:
    with pytest.raises(InputError, match="every class the same operations"):
        strengths(policy)
