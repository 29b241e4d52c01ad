"""Cells survive crashes, and a damaged file says where."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from autobalance import InputError
from autobalance_bench.comparison.store import Store, key_of


def record(seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": "letter",
        "method": "ldam",
        "objective": None,
        "seed": seed,
        "identity": "a1",
        "status": "finished",
        "report": {"error": 0.25},
        "objectives": {"balanced_error": 0.5},
        **changes,
    }


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "cells.jsonl")
    assert store.cells() == []
    for seed in (2, 0, 1):
        store.append(record(seed))
    assert store.cells() == [record(2), record(0), record(1)]
    assert Store(str(store.path)).cells() == store.cells()
    assert store.path.read_bytes().count(b"\n") == 3


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells.jsonl")
    failed = record(status="failed", reason="diverged")
    del failed["report"], failed["objectives"]
    store.append(failed)
    store.append(record(1))
    assert not store.finished(key_of(failed), "a1")
    store.append(record(identity="a2"))
    assert store.cells() == [record(identity="a2"), record(1)]
    assert store.finished(key_of(failed), "a2")
    assert not store.finished(key_of(failed), "a1")
    assert not store.finished(("letter", "ldam", "balanced_error", 0), "a2")
    store.append(failed)
    assert not store.finished(key_of(failed), "a1")


def test_another_objective_is_another_cell(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells.jsonl")
    cells = [record(objective=o) for o in (None, "balanced_error", "worst_class_error")]
    for cell in cells:
        store.append(cell)
    assert store.cells() == cells


def test_every_place_where_a_crash_may_cut_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    first, second = (json.dumps(record(s)).encode() + b"\n" for s in (0, 1))
    for cut in range(len(second)):
        path.write_bytes(first + second[:cut])
        whole = [record(0), record(1)] if cut == len(second) - 1 else [record(0)]
        store = Store(path)
        assert store.cells() == whole
        store.append(record(2))
        assert store.cells() == [*whole, record(2)]
        assert Store(path).cells() == [*whole, record(2)]
        assert [json.loads(line)["seed"] for line in path.read_bytes().splitlines()] == [
            *(r["seed"] for r in whole),
            2,
        ]


@pytest.mark.parametrize("rest", [b"\0" * 40, b"\xff\xfe", b'"text"', b"12"])
def test_a_last_line_that_is_rubbish_goes(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_bytes(rest)
    store = Store(path)
    assert store.cells() == []
    store.append(record())
    assert Store(path).cells() == [record()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        (json.dumps(record())[:-5], "not JSON"),
        ("[1]", "an object was expected; got list"),
        (json.dumps(record(seed=True)), "seed is True"),
        (json.dumps(record(objective=3)), "objective is 3"),
        (json.dumps(record(status="done")), "status must be finished or failed; got 'done'"),
        (json.dumps({"dataset": "letter"}), "it lacks method, objective, seed"),
        (json.dumps(record(report=None)), "report is None"),
        (json.dumps(record(objectives={"x": math.nan})), "NaN is no number of JSON"),
    ],
)
def test_any_other_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "cells.jsonl"
    good = json.dumps(record())
    path.write_text(f"{good}\n\n{line}\n{good}\n")
    store = Store(path)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"Line 3 of .*cells.jsonl is no.*{message}"):
            store.cells()
    path.write_text(f"{good}\n")
    assert store.cells() == [record()]


def test_a_record_that_is_none_is_not_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells.jsonl")
    with pytest.raises(InputError, match="no record of a cell: seed is 'one'"):
        store.append(record(seed="one"))
    assert not store.path.exists()


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells.jsonl")
    store.append(record(objectives={"balanced_error": math.nan}))
    assert b"NaN" not in store.path.read_bytes()
    assert store.cells()[0]["objectives"] == {"balanced_error": None}


def test_lines_of_another_process_are_seen(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "cells.jsonl"), Store(tmp_path / "cells.jsonl")
    other.append(record(0))
    assert store.finished(key_of(record(0)), "a1")
    other.append(record(1))
    assert store.finished(key_of(record(1)), "a1")
    store.path.unlink()
    assert store.cells() == []


def test_a_full_disk_does_not_damage_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "cells.jsonl")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.append(record(0))
    store.append(record(1))
    assert Store(store.path).cells()[-1] == record(1)


def test_a_summary_of_nothing_says_what_to_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells.jsonl")
    message = r"no results in .*cells.jsonl. `autobalance compare` without --summary"
    with pytest.raises(InputError, match=message):
        store.cells(required=True)
    store.path.write_bytes(b"")
    with pytest.raises(InputError, match=message):
        store.cells(required=True)
    store.append(record())
    assert store.cells(required=True) == [record()]


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are a folder; give the name of a file"):
        Store(tmp_path)
