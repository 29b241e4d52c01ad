"""A learned augmentation of images in a RUN folder, and on its report's page."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from autobalance import InputError, Recipe, SearchSettings, save_search, search
from autobalance.augment.augmentation import Augmentation
from autobalance.augment.images import Flip, Noise
from autobalance.augment.policy import AugmentationPolicy
from autobalance.augment.sample_sheet import DRAWS, EXAMPLES, sample_sheet
from autobalance.augment.tensors import GaussianNoise
from autobalance.cli import main
from autobalance.data.array_data import ArrayData
from autobalance.networks import SmallCNN
from autobalance.report.html import render_report
from autobalance.report.samples import MOST_ROWS, Sheet, pack_sheet, unpack_sheet
from report_records import checked_page

NAMES = ["cat", "dog & <co>", "mule"]


def images(counts: tuple[int, ...] = (9, 30, 4), size: int = 28) -> ArrayData:
    target = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return ArrayData.of(torch.rand(len(target), 1, size, size), target)


def always_flipped(classes: int, groups: int = 0) -> Augmentation:
    one = torch.ones(*[groups] * bool(groups), classes, 1)
    return Augmentation([Flip()], one, one)


@pytest.fixture(scope="module")
def searched() -> tuple[Any, ArrayData]:
    torch.manual_seed(0)
    data = images()
    recipe = Recipe(epochs=1, min_steps=10, batch_size=16)
    given: dict[str, Any] = {"settings": SearchSettings(warmup=0.5, every=2), "device": "cpu"}
    return search(lambda: SmallCNN(3), data, augment="personalised", recipe=recipe, **given), data


@pytest.fixture
def saved(searched: tuple[Any, ArrayData], tmp_path: Path) -> Path:
    page = save_search(tmp_path / "run", *searched, class_names=NAMES)
    assert page == tmp_path / "run/report.html"
    return tmp_path / "run"


def pictures(page: str) -> list[str]:
    return re.findall(r'<svg[^>]*aria-labelledby="fig-samples.*?</svg>', page, re.DOTALL)


def test_the_page_shows_images_of_each_class_and_is_made_again_without_them(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {p.name for p in saved.iterdir()} == {
        "result.json", "loss.json", "samples.json", "report.html",
    }  # fmt: skip
    text = (saved / "report.html").read_text(encoding="utf-8")
    page = checked_page(text)
    [picture] = pictures(text)
    words = ["".join(e.itertext()) for e in ElementTree.fromstring(picture).iter("text")]
    assert words == ["original", "original", "dog & <co>", "cat", "mule"]  # most frequent first
    assert "Of each of 3 classes 2 training images, each followed by 3 versions" in picture
    [content] = re.findall(r'href="data:image/png;base64,([^"]*)"', picture)
    assert base64.b64decode(content).startswith(b"\x89PNG")
    assert "Augmentation by class" in " ".join(page.text)
    (saved / "report.html").unlink()
    begin = time.process_time()
    assert main(["report", str(saved)]) == 0
    assert time.process_time() - begin < 5.0
    assert (saved / "report.html").read_text(encoding="utf-8") == text
    capsys.readouterr()
    assert main(["predict", str(saved), "x.csv", "--out", "y.csv"]) == 2
    assert "holds a search alone, not a fitted model" in capsys.readouterr().err


@pytest.mark.usefixtures("empty_pictures")
def test_without_data_no_image_is_kept(searched: tuple[Any, ArrayData], saved: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        save_search(saved, searched[0])
    save_search(saved, searched[0], overwrite=True)
    assert {p.name for p in saved.iterdir()} == {"result.json", "loss.json", "report.html"}
    text = (saved / "report.html").read_text(encoding="utf-8")
    assert pictures(text) == []
    assert "Augmentation by class" in text


def test_each_row_is_of_its_class_beside_its_draws() -> None:
    data = images((9, 30, 1), size=6)
    before = torch.get_rng_state()
    sheet = sample_sheet(always_flipped(3), data)
    assert torch.equal(torch.get_rng_state(), before)
    assert sheet is not None
    assert sheet.rows == [(1, None), (0, None), (2, None)]
    assert sheet.images.shape == (3, EXAMPLES * (1 + DRAWS), 1, 6, 6)
    inputs = data.inputs.numpy()
    for row, first in zip(sheet.images, (9, 0, 39), strict=True):
        for example in range(EXAMPLES):
            own = row[example * (1 + DRAWS) : (example + 1) * (1 + DRAWS)]
            original = inputs[first + (example if first < 39 else 0)]
            np.testing.assert_allclose(own[0], original, atol=1e-6)
            for draw in own[1:]:
                np.testing.assert_allclose(draw, original[..., ::-1], atol=1e-6)


def test_many_classes_large_images_and_groups_are_a_readable_number() -> None:
    counts = tuple(range(60, 30, -1))
    small = sample_sheet(always_flipped(30), images(counts, size=8))
    assert small is not None
    assert [y for y, _ in small.rows] == sorted({y for y, _ in small.rows})
    assert (small.rows[0][0], small.rows[-1][0], len(small.rows)) == (0, 29, MOST_ROWS)
    data = images(counts, size=8)
    large = ArrayData.of(torch.rand(60, 3, 120, 160), torch.arange(60) % 30)
    shrunk = sample_sheet(always_flipped(30), large)
    assert shrunk is not None
    assert shrunk.images.shape[2:] == (3, 36, 48)
    assert len(pack_sheet(shrunk)) < 550_000  # of the page's 2 MB
    groups = torch.arange(len(data.target)) % 2
    by_group = ArrayData.of(data.inputs, data.target, groups=groups)
    grouped = sample_sheet(always_flipped(30, groups=2), by_group)
    assert grouped is not None
    assert {g for _, g in grouped.rows} == {0, 1}
    with pytest.raises(InputError, match=r"data must be what was searched on: .* of 3 classes"):
        sample_sheet(always_flipped(3), data)


def test_what_is_no_image_has_no_picture() -> None:
    rows = ArrayData.of(torch.randn(12, 4), torch.arange(12) % 3)
    policy = AugmentationPolicy(rows.counts(), [GaussianNoise()])
    assert sample_sheet(policy.frozen(), rows) is None
    assert sample_sheet(None, images()) is None
    assert sample_sheet(torch.nn.Identity(), images()) is None


def test_the_file_is_read_as_it_was_written_and_altered_ones_are_left_out() -> None:
    draw = np.random.default_rng(0)
    for channels in (1, 3):
        sheet = Sheet([(2, None), (0, 1)], draw.uniform(size=(2, 4, channels, 5, 7)), 2)
        record = json.loads(pack_sheet(sheet))
        found = unpack_sheet(record)
        assert found is not None
        assert (found.rows, found.examples) == (sheet.rows, 2)
        assert np.abs(found.images - sheet.images).max() <= 0.5 / 255 + 1e-9
    broken = [
        {"png": "no"}, {"png": record["png"][:-40]}, {"columns": 3}, {"columns": 0}, {"rows": []},
        {"examples": 3}, {"examples": 4}, {"rows": [[-1, None], [0, 1]]}, {"version": 2}, {"rows": 7},
    ]  # fmt: skip
    for change in broken:
        assert unpack_sheet(record | change) is None, change


@pytest.mark.usefixtures("empty_pictures")
def test_a_page_of_an_altered_file_goes_without(saved: Path) -> None:
    record = json.loads((saved / "result.json").read_text())
    good = json.loads((saved / "samples.json").read_text())
    assert len(pictures(render_report(record | {"samples": good}))) == 1
    for bad in (good | {"png": "<script>"}, good | {"rows": "<b>"}, [], "x", {"rows": [[{}, []]]}):
        text = render_report(record | {"samples": bad})
        checked_page(text)
        assert pictures(text) == []


def test_noise_differs_between_draws_of_one_image() -> None:
    one = torch.ones(3, 1)
    sheet = sample_sheet(Augmentation([Noise()], one, one), images())
    assert sheet is not None
    first = sheet.images[0, : 1 + DRAWS]
    assert all(np.abs(first[i] - first[j]).max() > 0.01 for i in range(4) for j in range(i))
