"""Image files are decoded when they are asked for, scaled, and limited in proportion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from autobalance.checks import InputError
from autobalance.data import photographs
from autobalance.data.photographs import Photographs, numbers


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
        photographs.splits(seven, split, limit=None, where=Path("m.csv"))
