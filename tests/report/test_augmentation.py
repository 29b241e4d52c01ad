"""A learned policy as a heat map, and images as a sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from autobalance._validation import InputError
from autobalance.report.augmentation import policy_picture, policy_svg, save_samples, strengths

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
    plain = [opacity for *_, opacity in cells(policy_svg(POLICY))]
    assert plain == pytest.approx([0.125, 0.05, 0.5, 0.375])
    by_count = [opacity for *_, opacity in cells(policy_svg(POLICY, [5, 90]))]
    assert by_count == pytest.approx([0.5, 0.375, 0.125, 0.05])


def test_pictures_are_svg_repeat_and_leave_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    text = policy_svg(POLICY)
    picture = policy_picture(POLICY, [90, 5])
    assert policy_svg(POLICY) == text
    assert policy_picture(POLICY, [90, 5]) == picture
    assert dict(matplotlib.rcParams) == before
    assert ElementTree.fromstring(text).tag.endswith("svg")
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


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_shows_the_images(tmp_path: Path, channels: int) -> None:
    images = np.zeros((2, 3, channels, 8, 8))
    images[1, 2] = 1.0
    path = tmp_path / "sheet.png"
    save_samples(images, ["first", "$second"], path)
    pixels = matplotlib.image.imread(path)[..., :3].mean(axis=2)
    # Five black images of six, on white.
    dark = float((pixels < 0.5).mean())
    save_samples(np.zeros_like(images), ["first", "$second"], path)
    all_dark = float((matplotlib.image.imread(path)[..., :3].mean(axis=2) < 0.5).mean())
    assert dark / all_dark == pytest.approx(5 / 6, abs=0.03)
    save_samples(images, ["a", "b"], tmp_path / "sheet.svg")
    assert ElementTree.parse(tmp_path / "sheet.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: strengths({}), "every class the same operations"),
        (lambda path: strengths({"a": {"flip": {"probability": 1}}, "b": {}}), "the same operatio"),
        (lambda path: policy_svg(POLICY, [3]), "one number for each of 2 rows; got 1"),
        (lambda path: save_samples(np.zeros((2, 3, 2, 4, 4)), "ab", path), "c = 1 or 3"),
        (lambda path: save_samples(np.zeros((2, 3, 1, 4, 4)), "a", path), "and 1 names"),
    ],
)  # fmt: skip
def test_refused(build: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())
