"""Files are whole or not there, and JSON is JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from autobalance._validation import InputError
from autobalance.records.files import output_folder, to_json, write_atomically


def test_output_folder(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "new", overwrite=False) == tmp_path / "new"
    assert output_folder(str(tmp_path), overwrite=False) == tmp_path
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty. Add --overwrite, or give another name"):
        output_folder(tmp_path, overwrite=False)
    assert output_folder(tmp_path, overwrite=True) == tmp_path
    with pytest.raises(InputError, match="is a file; give the name of a folder"):
        output_folder(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file", b"one")
    write_atomically(tmp_path / "new" / "file", b"two")
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_process_may_be_writing_the_same_file(tmp_path: Path) -> None:
    other = tmp_path / ".report.html.7.part"
    other.write_bytes(b"half")
    write_atomically(tmp_path / "report.html", b"whole")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "report.html": b"whole",
        other.name: b"half",
    }


def test_json_has_no_nan() -> None:
    record = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf)}], "c": "NaN", "d": None, "e": True}
    expected = {"a": [1.5, None, {"b": [None, None]}], "c": "NaN", "d": None, "e": True}
    assert json.loads(to_json(record), parse_constant=pytest.fail) == expected
    assert math.isnan(record["a"][1])
