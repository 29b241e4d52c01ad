"""Image files are decoded when they are asked for, scaled, and limited in proportion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from autobalance._validation import InputError
from autobalance_bench.datasets import photographs
from autobalance_bench.datasets.listing import splits
from autobalance_bench.datasets.longtail import long_tailed
from autobalance_bench.datasets.photographs import Photographs, numbers


def photograph(path: Path, colour: tuple[int, int, int], width: int = 20, height: int = 12) -> Path:
    Image.new("RGB", (width, height), colour).save(path, quality=95)
    return path


def of(files: list[Path], **changes: Any) -> Photographs:
    n = len(files)
    values: dict[str, Any] = {
        "files": tuple(files),
        "target": np.arange(n) % 2,
        "groups": np.arange(n) // 2 % 2,
        "class_names": ("a", "b"),
        "group_names": ("c", "d"),
        "size": 4,
        "square": False,
        "source": "https://example.org",
    }
    return Photographs(**{**values, **changes})


@pytest.fixture
def seven(tmp_path: Path) -> Photographs:
    return of([photograph(tmp_path / f"{i}.jpg", (30 * i, 200 - 20 * i, 10)) for i in range(7)])


def test_pixels_load_and_batches_agree(seven: Photographs) -> None:
    pixels, data = seven.pixels(), seven.load()
    assert (pixels.shape, pixels.dtype) == ((7, 3, 4, 4), np.uint8)
    for i in range(7):  # channels are red, green, blue; JPEG may be off by a little
        np.testing.assert_allclose(pixels[i, :, 1, 2], (30 * i, 200 - 20 * i, 10), atol=3)
    assert data.inputs.dtype == torch.float32
    np.testing.assert_allclose(data.inputs.numpy(), pixels / 255.0, rtol=1e-6)
    assert data.counts().tolist() == [[2, 2], [2, 1]]
    batches = list(seven.batches(3))
    assert [len(b.target) for b in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([b.inputs for b in batches]), data.inputs)
    assert torch.equal(torch.cat([b.target for b in batches]), data.target)
    groups = [b.groups for b in batches if b.groups is not None]
    assert data.groups is not None
    assert torch.equal(torch.cat(groups), data.groups)


def test_counts_name_classes_and_groups_that_are_absent(seven: Photographs) -> None:
    part = of(list(seven.files[:2]))
    assert part.load().counts().tolist() == [[1, 1], [0, 0]]


def test_nothing_is_decoded_early(seven: Photographs) -> None:
    """The images of the second batch may be gone while the first is taken."""
    batches = seven.batches(4)
    seven.files[5].unlink()
    assert len(next(batches).target) == 4
    with pytest.raises(InputError, match=r"The image .*5.jpg is not there. Get it again from http"):
        next(batches)
    with pytest.raises(InputError, match=r"5.jpg is not there"):
        seven.load()


def test_a_file_that_is_no_image_or_cut_is_refused(seven: Photographs) -> None:
    path = seven.files[2]
    whole = path.read_bytes()
    for content in (b"not an image", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"The image .*2.jpg cannot be read: .*Get it again"):
            seven.pixels()


def test_grey_images_and_those_with_a_palette_get_three_channels(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 77).save(tmp_path / "a.png")
    Image.new("RGB", (9, 9), (77, 77, 77)).quantize(4).save(tmp_path / "b.png")
    pixels = of([tmp_path / "a.png", tmp_path / "b.png"]).pixels()
    assert pixels.shape == (2, 3, 4, 4)
    assert (pixels == 77).all()


def test_a_square_is_cut_from_the_centre_or_the_whole_image_scaled(tmp_path: Path) -> None:
    """40 x 20: black, and white in the middle half, which is the central square."""
    canvas = np.zeros((20, 40, 3), np.uint8)
    canvas[:, 10:30] = 255
    Image.fromarray(canvas).save(tmp_path / "wide.png")
    Image.fromarray(canvas.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    files = [tmp_path / "wide.png", tmp_path / "tall.png"]
    assert (of(files, square=True, size=8).pixels() == 255).all()
    wide, tall = of(files, size=8).pixels()[:, 0].astype(float)
    assert wide[:, [0, -1]].max() == 0.0
    assert wide[:, 3:5].min() == 255.0
    np.testing.assert_array_equal(wide, tall.T)


def test_a_limit_keeps_proportions(tmp_path: Path) -> None:
    target, groups = (
        np.repeat([0, 0, 1, 1], [60, 20, 12, 8]),
        np.repeat([0, 1, 0, 1], [60, 20, 12, 8]),
    )
    part = of([tmp_path / f"{i}.jpg" for i in range(100)], target=target, groups=groups)
    few = part.limited(25)
    counts = np.bincount(few.groups * 2 + few.target, minlength=4)
    assert len(few.files) == len(few.target) == 25
    np.testing.assert_allclose(counts, [15, 3, 5, 2], atol=1)
    kept = [int(path.stem) for path in few.files]
    assert kept == sorted(set(kept))
    assert few.target.tolist() == target[kept].tolist()
    assert few.groups.tolist() == groups[kept].tolist()
    assert part.limited(25).files == few.files
    assert part.limited(25, seed=1).files != few.files
    assert part.limited(100) is part
    with pytest.raises(InputError, match="limit must be at least 1; got 0"):
        part.limited(0)


@pytest.mark.parametrize("size", [0, 2.0])
def test_a_bad_batch_size_is_refused(seven: Photographs, size: Any) -> None:
    with pytest.raises(InputError, match="size must be"):
        next(seven.batches(size))


def test_numbers_of_a_column() -> None:
    table = pd.DataFrame({"y": [0, 1, 1.0], "z": [0, 2, 1], "t": ["0", "1", "x"]})
    where = Path("m.csv")
    assert numbers(table, "y", "target", (0, 1), where).tolist() == [0, 1, 1]
    with pytest.raises(InputError, match=r"m.csv: z must be one of 0, 1; got .*2.* in row 2"):
        numbers(table, "z", "target", (0, 1), where)
    with pytest.raises(InputError, match=r"m.csv: t must be one of 0, 1; got '0' in row 1"):
        numbers(table, "t", "target", (0, 1), where)
    with pytest.raises(InputError, match="The target column 'q' is not in the table"):
        numbers(table, "q", "target", (0, 1), where)


def test_a_part_without_rows_is_refused(seven: Photographs) -> None:
    split = np.array([0, 0, 2, 2, 0, 0, 0])
    with pytest.raises(InputError, match=r"m.csv has no row of split 1 \(validation\). Get it"):
        splits(seven, split, where=Path("m.csv"), allowed=0, limit=None)


def test_without_groups_there_are_none_anywhere(seven: Photographs) -> None:
    part = of(list(seven.files), groups=None, group_names=())
    assert part.counts().tolist() == [4, 3]
    assert part.load().groups is None
    assert all(batch.groups is None for batch in part.batches(3))
    assert part.limited(4).counts().tolist() == [2, 2]
    assert part.subset([6, 0]).groups is None


def test_a_long_tailed_part(seven: Photographs) -> None:
    part = seven.subset(long_tailed(seven.target, 3))
    assert np.bincount(part.target).tolist() == [4, 1]
    assert part.counts().sum() == 5
    assert [seven.files.index(path) for path in part.files] == sorted(
        seven.files.index(path) for path in part.files
    )
    assert part.subset([]).files == ()


def test_other_inputs_take_the_images_labels(seven: Photographs) -> None:
    features = torch.arange(14.0).reshape(7, 2)
    data = seven.with_inputs(features)
    assert torch.equal(data.inputs, features)
    assert torch.equal(data.cells(), seven.load().cells())
    with pytest.raises(InputError, match="inputs has 6, target has 7"):
        seven.with_inputs(features[:6])


def test_threads_change_nothing(seven: Photographs) -> None:
    expected, threads = seven.pixels(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = seven.pixels()
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found, expected)


def test_pictures_are_read_part_by_part(
    seven: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seven.pixels()
    monkeypatch.setattr(photographs, "READ_TOGETHER", 3)
    np.testing.assert_array_equal(seven.pixels(), expected)
    np.testing.assert_array_equal(seven.load().inputs, expected / np.float32(255.0))


def test_several_bad_images_are_named_together(seven: Photographs) -> None:
    seven.files[1].unlink()
    seven.files[4].write_bytes(b"not an image")
    match = (
        r"2 of 7 images cannot be used: .*1.jpg is not there; .*4.jpg cannot be read: .*Get them "
        r"again from https://example.org, or leave them out: readable\(allowed=2\), stored"
    )
    for read in (seven.pixels, seven.load, seven.readable, lambda: seven.readable(allowed=1)):
        with pytest.raises(InputError, match=match):
            read()


def test_many_bad_images_are_counted(tmp_path: Path) -> None:
    images = of([tmp_path / f"{i}.jpg" for i in range(30)], source="")
    with pytest.raises(
        InputError, match=r"30 of 30 .*9.jpg is not there; \.\.\.. Replace them"
    ) as found:
        images.pixels()
    assert str(found.value).count(".jpg") == photographs.MOST_NAMED


def test_bad_images_can_be_left_out(seven: Photographs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seven.readable() is seven
    seven.files[1].unlink()
    seven.files[5].write_bytes(seven.files[5].read_bytes()[:200])
    monkeypatch.setattr(photographs, "READ_TOGETHER", 2)
    with pytest.warns(
        UserWarning, match=r"2 of 7 images are left out: .*1.jpg is not there; .*5.jpg"
    ):
        good = seven.readable(allowed=2)
    assert good.files == tuple(seven.files[i] for i in (0, 2, 3, 4, 6))
    assert good.target.tolist() == [0, 0, 1, 0, 0]
    assert len(good.load()) == 5
    with pytest.raises(InputError, match="allowed must be at least 0"):
        seven.readable(allowed=-1)
    with pytest.raises(InputError, match="2 of 2 images"):
        seven.subset([1, 5]).readable(allowed=9)


def test_sixteen_bits_are_scaled_to_eight_and_more_refused(tmp_path: Path) -> None:
    """Pillow itself would cut everything above 255 off."""
    deep = np.full((6, 6), 77 * 256 + 5, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert (of([tmp_path / "a.png"]).pixels() == 77).all()
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match=r"b.tif cannot be read: it has 32 bits per channel"):
        of([tmp_path / "b.tif"]).pixels()


def test_an_image_too_large_to_be_one_is_refused(
    seven: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # theirs have 240: a decompression bomb
    with pytest.raises(InputError, match="exceeds limit of 200 pixels"):
        seven.batches(1).__next__()


def test_without_pillow_the_index_works_and_reading_says_what_to_do(
    seven: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert seven.counts().sum() == 7
    with pytest.raises(InputError, match=r"Pillow, which is not installed.*autobalance\[vision\]"):
        seven.pixels()


def test_where_no_image_is_good_none_can_be_left_out(tmp_path: Path) -> None:
    bad = of([tmp_path / "0.jpg", tmp_path / "1.jpg"])
    with pytest.raises(InputError, match=r"2 of 2 images .* from https://example.org; there is no"):
        bad.readable(allowed=2)
