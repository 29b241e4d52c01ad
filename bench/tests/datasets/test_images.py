"""Images of a Dataset are decoded when they are asked for, scaled, and limited in proportion."""

from __future__ import annotations

import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from autobalance import InputError
from autobalance_bench.datasets import images as module
from autobalance_bench.datasets.file_lists import read_codes, split_by_number
from autobalance_bench.datasets.images import LabelledImages
from autobalance_bench.datasets.longtail import long_tailed


def photograph(path: Path, colour: tuple[int, int, int], width: int = 20, height: int = 12) -> Path:
    Image.new("RGB", (width, height), colour).save(path, quality=95)
    return path


def of(files: list[Path], **changes: Any) -> LabelledImages:
    n = len(files)
    values: dict[str, Any] = {
        "paths": files,
        "targets": np.arange(n) % 2,
        "groups": np.arange(n) // 2 % 2,
        "class_names": ("a", "b"),
        "group_names": ("c", "d"),
        "size": 4,
        "square": False,
        "source": "https://example.org",
    }
    return LabelledImages.of_files(**{**values, **changes})


def pixels_of(files: list[Path], **changes: Any) -> np.ndarray:
    return of(files, **changes).load()[1]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Seven images; channels are red, green, blue."""
    return [photograph(tmp_path / f"{i}.jpg", (30 * i, 200 - 20 * i, 10)) for i in range(7)]


@pytest.fixture
def seven(files: list[Path]) -> LabelledImages:
    return of(files)


def test_an_item_a_batch_and_all_images_agree(
    seven: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DECODED_TOGETHER", 3)
    same, pixels = seven.load()
    assert same is seven
    assert (pixels.shape, pixels.dtype) == ((7, 3, 4, 4), np.uint8)
    for i in range(7):  # JPEG may be off by a little
        np.testing.assert_allclose(pixels[i, :, 1, 2], (30 * i, 200 - 20 * i, 10), atol=3)
    batches = list(seven.batches())
    assert [(len(part), bad) for part, bad in batches] == [(3, {}), (3, {}), (1, {})]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in batches]), pixels)
    loader = torch.utils.data.DataLoader(pickle.loads(pickle.dumps(seven)), batch_size=7)
    ((items, targets),) = loader
    np.testing.assert_array_equal(items.numpy(), pixels)
    assert targets.tolist() == seven.targets.tolist()


def test_nothing_is_decoded_early(
    seven: LabelledImages, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of the second batch may be gone while the first is taken."""
    monkeypatch.setattr(module, "DECODED_TOGETHER", 4)
    batches = seven.batches()
    files[5].unlink()
    assert next(batches)[1] == {}
    assert next(batches)[1] == {5: f"{files[5]} is not there"}
    with pytest.raises(InputError, match=r"The image .*5.jpg is not there. Get it again from http"):
        seven.load()
    with pytest.raises(InputError, match=r"The image .*5.jpg is not there"):
        seven[5]


def test_a_file_that_is_no_image_or_cut_is_refused(
    seven: LabelledImages, files: list[Path]
) -> None:
    whole = files[2].read_bytes()
    for content in (b"not an image", whole[: len(whole) // 2], b""):
        files[2].write_bytes(content)
        with pytest.raises(InputError, match=r"The image .*2.jpg cannot be read: .*Get it again"):
            seven.load()


def test_grey_images_and_those_with_a_palette_get_three_channels(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 77).save(tmp_path / "a.png")
    Image.new("RGB", (9, 9), (77, 77, 77)).quantize(4).save(tmp_path / "b.png")
    pixels = pixels_of([tmp_path / "a.png", tmp_path / "b.png"])
    assert pixels.shape == (2, 3, 4, 4)
    assert (pixels == 77).all()


def test_a_square_is_cut_from_the_centre_or_the_whole_image_scaled(tmp_path: Path) -> None:
    """40 x 20: black, and white in the middle half, which is the central square."""
    canvas = np.zeros((20, 40, 3), np.uint8)
    canvas[:, 10:30] = 255
    Image.fromarray(canvas).save(tmp_path / "wide.png")
    Image.fromarray(canvas.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    both = [tmp_path / "wide.png", tmp_path / "tall.png"]
    assert (pixels_of(both, square=True, size=8) == 255).all()
    wide, tall = pixels_of(both, size=8)[:, 0].astype(float)
    assert wide[:, [0, -1]].max() == 0.0
    assert wide[:, 3:5].min() == 255.0
    np.testing.assert_array_equal(wide, tall.T)


def test_sixteen_bits_are_scaled_to_eight_and_more_refused(tmp_path: Path) -> None:
    """Pillow itself would cut everything above 255 off."""
    deep = np.full((6, 6), 77 * 256 + 5, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert (pixels_of([tmp_path / "a.png"]) == 77).all()
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match=r"b.tif cannot be read: it has 32 bits per channel"):
        pixels_of([tmp_path / "b.tif"])


def test_an_image_too_large_to_be_one_is_refused(
    seven: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # theirs have 240: a decompression bomb
    with pytest.raises(InputError, match="exceeds limit of 200 pixels"):
        seven.load()


def test_a_limit_keeps_proportions(tmp_path: Path) -> None:
    targets, groups = (
        np.repeat([0, 0, 1, 1], [60, 20, 12, 8]),
        np.repeat([0, 1, 0, 1], [60, 20, 12, 8]),
    )
    part = of([tmp_path / f"{i}.jpg" for i in range(100)], targets=targets, groups=groups)
    few = part.limited(25)
    assert few.groups is not None
    counts = np.bincount(few.groups * 2 + few.targets, minlength=4)
    assert len(few) == len(few.images) == 25  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(counts, [15, 3, 5, 2], atol=1)
    rows = [int(Path(name).stem) for name in few.names]
    assert rows == sorted(set(rows))
    assert few.targets.tolist() == targets[rows].tolist()
    assert few.groups.tolist() == groups[rows].tolist()
    assert part.limited(25).names == few.names
    assert part.limited(25, seed=1).names != few.names
    assert part.limited(100) is part
    assert part.limited(None) is part
    with pytest.raises(InputError, match="limit must be at least 1; got 0"):
        part.limited(0)
    with pytest.raises(InputError, match="size must be at least 1; got 0"):
        of([], size=0)


def test_subsets_without_groups_and_of_a_long_tail(seven: LabelledImages) -> None:
    tail = seven.subset(long_tailed(seven.targets, 3))
    assert np.bincount(tail.targets).tolist() == [4, 1]
    _, pixels = seven.load()
    rows = [seven.names.index(name) for name in tail.names]
    np.testing.assert_array_equal(tail.load()[1], pixels[rows])
    again = tail.subset([3, 0])
    np.testing.assert_array_equal(again.load()[1], pixels[[rows[3], rows[0]]])
    plain = of([Path(name) for name in seven.names], groups=None, group_names=())
    assert plain.subset([6, 0]).groups is None
    assert np.bincount(plain.limited(4).targets).tolist() == [2, 2]


def test_several_bad_images_are_named_together(seven: LabelledImages, files: list[Path]) -> None:
    files[1].unlink()
    files[4].write_bytes(b"not an image")
    match = (
        r"2 of 7 images cannot be used: .*1.jpg is not there; .*4.jpg cannot be read: .*Get them "
        r"again from https://example.org, or leave them out with allowed_broken: 2"
    )
    for allowed in (0, 1):
        with pytest.raises(InputError, match=match):
            seven.load(allowed=allowed)


def test_many_bad_images_are_counted(tmp_path: Path) -> None:
    absent = of([tmp_path / f"{i}.jpg" for i in range(30)], source="")
    with pytest.raises(
        InputError, match=r"30 of 30 .*9.jpg is not there; \.\.\.. Replace them"
    ) as e:
        absent.load()
    assert str(e.value).count(".jpg") == module.MOST_NAMED
    with pytest.raises(InputError, match="there is no other"):
        absent.load(allowed=30)


@pytest.mark.parametrize("stored", [False, True])
def test_bad_images_can_be_left_out(
    seven: LabelledImages, files: list[Path], tmp_path: Path, stored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, expected = seven.load()
    for row in (1, 3):
        files[row].unlink()
    files[5].write_bytes(files[5].read_bytes()[:200])
    monkeypatch.setattr(module, "DECODED_TOGETHER", 2)
    match = r"3 of 7 images are left out: .*1.jpg is not there; .*5.jpg.* No image is left of 'b'"
    read = partial(seven.store, tmp_path / "s.npy") if stored else seven.load
    with pytest.warns(UserWarning, match=match):
        good, rows = read(allowed=3)
    pixels = rows[slice(0, len(rows))]
    assert good.names == tuple(str(files[i]) for i in (0, 2, 4, 6))
    assert good.targets.tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(np.asarray(pixels), expected[[0, 2, 4, 6]])
    with pytest.raises(InputError, match="allowed must be at least 0"):
        seven.load(allowed=-1)


def test_decoding_into_a_file_goes_on_where_it_broke_off(
    seven: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pixels = seven.load()
    monkeypatch.setattr(module, "DECODED_TOGETHER", 2)
    decode, rows = LabelledImages._decode, []

    def break_off(self: LabelledImages, row: int) -> Any:
        rows.append(row)
        if rows == [0, 1, 2, 3, 4]:
            raise MemoryError
        return decode(self, row)

    monkeypatch.setattr(LabelledImages, "_decode", break_off)
    monkeypatch.setattr(module.joblib, "cpu_count", lambda: 1)
    path = tmp_path / "decoded" / "all.npy"
    with pytest.raises(MemoryError):
        seven.store(path)
    assert not path.exists()
    told: list[tuple[int, int]] = []
    rows.clear()
    rows.append(-1)
    _, stored = seven.store(path, progress=lambda *done: told.append(done))
    assert rows == [-1, 4, 5, 6]
    assert told == [(6, 7), (7, 7)]
    np.testing.assert_array_equal(stored[slice(0, 7)].numpy(), pixels)
    rows.clear()
    assert len(seven.store(path)[1]) == 7
    assert rows == []
    with pytest.raises(InputError, match=r"all.npy holds other images than these"):
        of([Path(name) for name in seven.names], size=5).store(path)


def test_an_identity_tells_sets_apart_and_moves_with_the_folder(
    tmp_path: Path, files: list[Path]
) -> None:
    first = of(files).identity
    assert of(files).identity == first
    assert of(files, size=5).identity != first
    assert of(files, square=True).identity != first
    assert of(files[:6]).identity != first
    assert of(files, fingerprint="other").identity != first
    moved = tmp_path / "moved"
    moved.mkdir()
    there = [path.rename(moved / path.name) for path in files]
    assert of(there).identity == first
    photograph(there[3], (0, 0, 255))  # of the same size or not
    assert of(there).identity != first


def test_numbers_of_a_column() -> None:
    table = pd.DataFrame({"y": [0, 1, 1.0], "z": [0, 2, 1], "t": ["0", "1", "x"]})
    where = Path("m.csv")
    assert read_codes(table, "y", "target", (0, 1), where).tolist() == [0, 1, 1]
    with pytest.raises(InputError, match=r"m.csv: z must be one of 0, 1; got .*2.* in row 2"):
        read_codes(table, "z", "target", (0, 1), where)
    with pytest.raises(InputError, match=r"m.csv: t must be one of 0, 1; got '0' in row 1"):
        read_codes(table, "t", "target", (0, 1), where)
    with pytest.raises(InputError, match="The target column 'q' is not in the table"):
        read_codes(table, "q", "target", (0, 1), where)


def test_a_part_without_rows_is_refused(seven: LabelledImages) -> None:
    split = np.array([0, 0, 2, 2, 0, 0, 0])
    with pytest.raises(InputError, match=r"m.csv has no row of split 1 \(validation\). Get it"):
        split_by_number(seven, split, where=Path("m.csv"), allowed=0, limit=None)


def test_threads_change_nothing(seven: LabelledImages) -> None:
    _, expected = seven.load()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        _, pixels = seven.load()
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(pixels, expected)


def test_without_pillow_the_index_works_and_reading_says_what_to_do(
    seven: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert len(seven.subset([1, 2])) == 2
    with pytest.raises(InputError, match=r"needs PIL, .*pip install pillow"):
        seven.load()
