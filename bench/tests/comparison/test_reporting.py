"""The files that a comparison leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autobalance import InputError
from autobalance_bench.comparison.reporting import (
    as_json,
    describe_failures,
    summarize,
    write_report,
)
from autobalance_bench.comparison.statistics import summary
from autobalance_bench.comparison.store import Store
from cells import cell, failure

AIMS = ("balanced_error", "weighted_error(0.5)")


def records(datasets: tuple[str, ...], seeds: int = 3) -> list[dict[str, Any]]:
    return [
        cell(
            dataset,
            method,
            seed,
            None,
            objectives={
                "balanced_error": rank / 10 + seed / 100,
                "weighted_error(0.5)": (4 - rank) / 10 + seed / 100,
            },
        )
        for dataset in datasets
        for rank, method in enumerate(("autobalance", "focal", "cross_entropy"), start=1)
        for seed in range(seeds)
    ]


def stored(folder: Path, cells: list[dict[str, Any]]) -> Store:
    store = Store(folder / "cells.jsonl")
    for one in cells:
        store.append(one)
    return store


def test_one_summary_per_objective(tmp_path: Path) -> None:
    store = stored(tmp_path, records(("letter", "car")))
    found = summarize(store, AIMS)
    assert found == [summary(store.cells(), aim) for aim in AIMS]
    assert list(found[0]["average_rank"]) == ["autobalance", "focal", "cross_entropy"]
    assert list(found[1]["average_rank"]) == ["cross_entropy", "focal", "autobalance"]


def test_the_json_is_the_first_with_all_of_them(tmp_path: Path) -> None:
    found = summarize(stored(tmp_path, records(("letter",))), AIMS)
    read = json.loads(as_json(found))
    assert read["objectives"].keys() == set(AIMS)
    for key in ("average_rank", "mean", "cost", "per_dataset"):
        assert read[key] == read["objectives"]["balanced_error"][key] == found[0][key]
        assert read[key]


def test_the_report_has_tables_pictures_and_json(tmp_path: Path) -> None:
    cells = [*records(("letter", "car")), failure("yeast", "focal", 0)]
    found = summarize(stored(tmp_path, cells), AIMS)
    path = write_report(tmp_path / "out", found, date="2026-01-02", command="autobalance compare x")
    pictures = {"ranks-balanced_error.svg", "ranks-weighted_error_0_5_.svg"}
    assert {p.name for p in path.parent.iterdir()} == {"BENCHMARKS.md", "summary.json", *pictures}
    text = path.read_text(encoding="utf-8")
    assert path.name == "BENCHMARKS.md"
    for expected in (
        "    autobalance compare x\n",
        "2026-01-02",
        "## Balanced error",
        "## Weighted error(0.5)",
        "diverged at step 3",
        *(f"]({name})" for name in pictures),
    ):
        assert expected in text, expected
    assert (path.parent / "summary.json").read_text() == as_json(found)
    for name in pictures:
        assert (path.parent / name).read_text(encoding="utf-8").startswith("<?xml")


def test_one_family_or_one_method_has_no_picture(tmp_path: Path) -> None:
    """Nothing to tell apart; but a report all the same."""
    single = [c for c in records(("letter", "car")) if c["method"] == "focal"]
    for name, cells in (("family", records(("letter-10", "letter-50"))), ("method", single)):
        found = summarize(stored(tmp_path / name, cells), AIMS)
        path = write_report(tmp_path / name / "out", found, date="today", command="c")
        assert {p.name for p in path.parent.iterdir()} == {"BENCHMARKS.md", "summary.json"}
        assert "svg" not in path.read_text(encoding="utf-8")


def test_a_report_is_written_over_an_earlier_one(tmp_path: Path) -> None:
    store = stored(tmp_path, records(("letter", "car")))
    first = write_report(tmp_path, summarize(store, AIMS), date="d", command="c").read_bytes()
    again = write_report(tmp_path, summarize(store, AIMS), date="d", command="c").read_bytes()
    assert again == first
    store.append(cell("yeast", "focal", 0, 0.5))
    text = write_report(tmp_path, summarize(store, AIMS[:1]), date="d", command="c").read_text()
    assert "yeast" in text


def test_no_results_and_no_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no results in .*cells.jsonl.*run it first"):
        summarize(Store(tmp_path / "cells.jsonl"), AIMS)
    with pytest.raises(InputError, match="No finished cell has a value of 'cvar_error'"):
        summarize(stored(tmp_path, records(("letter",))), ["cvar_error"])


def test_failures_name_each_thing_once_where_that_can_be() -> None:
    aims = {"tau": (None,), "ours": AIMS, "folds": AIMS}
    keys = [(d, m, a, s) for d in "ab" for m in aims for a in aims[m] for s in range(4)]

    def said(*lost: tuple[str, str, str | None, int], reason: str = "no") -> list[str]:
        names = ("dataset", "method", "objective", "seed")
        records = [dict(zip(names, key, strict=True)) | {"reason": reason} for key in lost]
        return describe_failures(records, keys)

    assert said(*keys) == ["40 cells failed: all 3 methods on a and b, seeds 0 to 3: no"]
    assert said(keys[0]) == ["1 cell failed: tau on a, seed 0: no"]
    of_ours = [k for k in keys if k[1] in ("ours", "folds")]
    assert said(*of_ours) == ["32 cells failed: ours and folds on a and b, seeds 0 to 3: no"]
    one_aim = [k for k in of_ours if k[2] == AIMS[1] and k[3] in (0, 2)]
    assert said(*one_aim) == [
        f"8 cells failed: ours and folds for {AIMS[1]} on a and b, seeds 0, 2: no"
    ]
    uneven = [k for k in keys if k[1] == "tau" and (k[0] == "a" or k[3] < 2)]
    assert said(*uneven) == ["6 cells failed: tau on a, seeds 0 to 3; on b, seeds 0, 1: no"]
    assert said(*uneven, *of_ours)[0].startswith("38 cells failed: tau on a, seeds 0 to 3; on b,")
