"""Cells are run once, side by side or not, and what is finished stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autobalance import InputError
from autobalance_bench.comparison import running
from autobalance_bench.comparison.cells import Cell, run_cell
from autobalance_bench.comparison.running import predict_failures, run_cells, waiting_cells
from autobalance_bench.comparison.store import Store
from toy_cells import TOY, cell, told
from toys import write_toy


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Method and seed of every cell that is run in this process."""
    seen: list[tuple[str, int]] = []

    def watched(one: Cell, threads: int) -> dict[str, Any]:
        seen.append((one.method, one.seed))
        return run_cell(one, threads)

    monkeypatch.setattr(running, "run_cell", watched)
    return seen


def some(folder: Path) -> list[Cell]:
    return [
        cell(folder, method=method, seed=seed)
        for seed in (0, 1)
        for method in ("cross_entropy", "vs", "focal")
    ]


ALL = [(m, s) for s in (0, 1) for m in ("cross_entropy", "vs", "focal")]


def by_key(store: Store) -> dict[Any, dict[str, Any]]:
    """Records but for their times, and where they ran."""
    return {(c["method"], c["seed"]): told(c) for c in store.cells()}


def test_nothing_finished_is_run_twice(tmp_path: Path, ran: list[tuple[str, int]]) -> None:
    write_toy(tmp_path)
    store = Store(tmp_path / "cells.jsonl")
    told_: list[tuple[int, int, str]] = []
    run_cells(some(tmp_path), store, progress=lambda i, n, r: told_.append((i, n, r["status"])))
    assert ran == ALL
    assert told_ == [
        (i + 1, 6, "failed" if m == "focal" else "finished") for i, (m, _) in enumerate(ALL)
    ]
    ran.clear()
    told_.clear()
    run_cells(some(tmp_path), store, progress=lambda i, n, r: told_.append((i, n, r["method"])))
    assert ran == [("focal", 0), ("focal", 1)]  # what failed is tried again
    assert told_ == [(5, 6, "focal"), (6, 6, "focal")]


def test_again_runs_a_method_though_it_has_finished(
    tmp_path: Path, ran: list[tuple[str, int]]
) -> None:
    write_toy(tmp_path)
    store = Store(tmp_path / "cells.jsonl")
    run_cells(some(tmp_path)[:2], store)
    before = by_key(store)
    ran.clear()
    run_cells(some(tmp_path)[:2], store, again=["vs"])
    assert ran == [("vs", 0)]
    assert by_key(store) == before
    assert store.path.read_bytes().count(b"\n") == 3


def test_what_will_fail_is_known_before_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("cross_entropy", "vs_tuned", "autobalance_trivial", "cdt_tuned", "smote")
    write_toy(tmp_path)
    cells = [cell(tmp_path, method=m, seed=seed) for seed in (0, 1) for m in methods]
    assert predict_failures(cells) == {"there is no such method": ["smote"]}
    for package in ("optuna", "kornia"):
        monkeypatch.setitem(sys.modules, package, None)
    expected = {
        "Optuna is not installed (pip install optuna)": ["vs_tuned", "cdt_tuned"],
        "Kornia is not installed (pip install kornia)": ["autobalance_trivial"],
        "there is no such method": ["smote"],
    }
    assert predict_failures(cells) == expected
    every = cell(tmp_path, method="cross_entropy", augment={"name": "random"})
    assert [*predict_failures([every]).values()] == [["cross_entropy"]]
    store = Store(tmp_path / "cells.jsonl")
    store.append(run_cell(cells[0]))
    assert waiting_cells(cells, store) == cells[1:]
    assert waiting_cells(cells, store, ["cross_entropy"]) == cells


def test_a_cell_of_another_identity_is_run(tmp_path: Path, ran: list[tuple[str, int]]) -> None:
    write_toy(tmp_path)
    store = Store(tmp_path / "cells.jsonl")
    one = cell(tmp_path, method="vs_tuned", objective="balanced_error")
    run_cells([one], store)
    run_cells([cell(tmp_path, method="vs_tuned", objective="balanced_error", tuning_runs=3)], store)
    assert len(ran) == 2
    assert [c["training_runs"] for c in store.cells()] == [4.0]


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path)
    store = Store(tmp_path / "cells.jsonl")

    def stopped(one: Cell, threads: int) -> dict[str, Any]:
        if one.seed == 1:
            raise KeyboardInterrupt
        return run_cell(one, threads)

    monkeypatch.setattr(running, "run_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cells(some(tmp_path), store)
    assert list(by_key(store)) == ALL[:3]


@pytest.fixture
def _ray_ends() -> Iterator[None]:
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.mark.usefixtures("_ray_ends")
@pytest.mark.parametrize("backend", [None, pytest.param("ray", marks=pytest.mark.slow)])
def test_two_at_a_time_give_the_same_numbers_as_one(tmp_path: Path, backend: str | None) -> None:
    """In other processes, from where records come as their cells end."""
    write_toy(tmp_path)
    stores = [Store(tmp_path / f"{jobs}.jsonl") for jobs in (1, 2)]
    run_cells(some(tmp_path), stores[0])
    counts: list[int] = []
    run_cells(
        some(tmp_path),
        stores[1],
        jobs=2,
        backend=backend,
        progress=lambda done, total, record: counts.append(done),
    )
    assert counts == [1, 2, 3, 4, 5, 6]
    assert by_key(stores[1]) == by_key(stores[0])
    run_cells(some(tmp_path)[:2], stores[1], jobs=2, backend=backend)  # nothing left to do
    assert stores[1].path.read_bytes().count(b"\n") == 6


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_backends_that_would_spoil_results_are_refused(tmp_path: Path, backend: str) -> None:
    with pytest.raises(InputError, match=f"The backend '{backend}' cannot be used: .*leave it out"):
        run_cells([cell(tmp_path)], Store(tmp_path / "cells.jsonl"), backend=backend)


def test_ray_that_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"no backend 'ray' here .* pip install ray"):
        run_cells([cell(tmp_path)], Store(tmp_path / "cells.jsonl"), backend="ray")


@pytest.mark.parametrize("backend", ["abacus", "dask"])
def test_a_backend_that_is_not_there_is_refused(tmp_path: Path, backend: str) -> None:
    with pytest.raises(InputError, match=f"There is no backend '{backend}' here .*leave --backend"):
        run_cells([cell(tmp_path)], Store(tmp_path / "cells.jsonl"), backend=backend)
    assert not (tmp_path / "cells.jsonl").exists()


# GPUs ---------------------------------------------------------------------------------------------


def test_processes_share_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes share two; what names its device keeps it."""
    monkeypatch.setattr(running.torch.cuda, "device_count", lambda: 2)
    on_gpu = [cell(tmp_path, device="cuda") for _ in range(5)]
    assert running._devices(on_gpu, 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert running._devices(on_gpu[:1], 3) == ["cuda:0"]
    assert running._devices([cell(tmp_path)] * 3, 2) == ["cpu"] * 2
    assert running._devices([cell(tmp_path, device="cuda:1")] * 2, 2) == ["cuda:1"] * 2
    monkeypatch.setattr(running.torch.cuda, "device_count", lambda: 1)
    assert running._devices(on_gpu, 2) == ["cuda"] * 2


# Processes that die ---------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.usefixtures("_ray_ends")
@pytest.mark.parametrize("backend", [None, pytest.param("ray", marks=pytest.mark.slow)])
@pytest.mark.parametrize("deaths", [1, 2])
def test_a_cell_whose_process_dies_runs_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str | None, deaths: int
) -> None:
    """In another process; after a second death it has failed, and the others have not."""
    write_toy(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    died = tmp_path / "died"
    died.mkdir()
    network = {"path": "dying.network", "folder": str(died), "times": deaths}
    dying = cell(tmp_path, dataset=replace(TOY, name="dying", network=network))
    store = Store(tmp_path / "cells.jsonl")
    others = [cell(tmp_path, seed=seed) for seed in (0, 1, 2)]
    run_cells([dying, *others], store, jobs=2, backend=backend)
    records = {(r["dataset"], r["seed"]): r for r in store.cells()}
    expected = "finished" if deaths == 1 else "failed"
    assert records.pop(("dying", 0))["status"] == expected
    assert [r["status"] for r in records.values()] == ["finished"] * 3
    pids = {file.read_text() for file in died.iterdir()}
    assert len(pids) == deaths  # each in a process of its own
    if deaths == 2:
        reason = next(r["reason"] for r in store.cells() if r["status"] == "failed")
        assert reason.startswith("the process that ran it died 2 times")
        assert "SIGKILL" in reason or backend == "ray"


def test_side_by_side_is_refused_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for options in ({"jobs": 2}, {"backend": "ray"}):
        with pytest.raises(InputError, match="Under torchrun all processes run each cell together"):
            run_cells([], Store(tmp_path / "cells.jsonl"), **options)  # pyright: ignore[reportArgumentType]


# What is interrupted ------------------------------------------------------------------------------


def test_a_second_command_on_the_same_results_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    store = Store(tmp_path / "out" / "cells.jsonl")
    with store.alone(), pytest.raises(InputError, match=r"Another command is writing .*out\. Wait"):
        run_cells(some(tmp_path), Store(store.path))
    run_cells([cell(tmp_path)], store)
    assert len(store.cells()) == 1


def test_what_a_killed_command_left_of_finished_cells_is_removed(tmp_path: Path) -> None:
    write_toy(tmp_path)
    one = cell(tmp_path, checkpoints=str(tmp_path / "checkpoints"))
    store = Store(tmp_path / "cells.jsonl")
    run_cells([one], store)
    assert one.state is not None
    one.state.mkdir(parents=True)
    run_cells([one], store)
    assert not one.state.exists()


@pytest.mark.slow
def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    write_toy(tmp_path)
    (tmp_path / "toy.yaml").write_text(
        "datasets: [{name: toy, path: toy.csv, target: kind, drop: [site]}]\n"
        "methods: [cross_entropy]\nseeds: 8\nrecipe: {epochs: 1, min_steps: 2000000}\n"
    )
    command = [
        sys.executable,
        "-m",
        "autobalance",
        "run",
        str(tmp_path / "toy.yaml"),
        "--jobs",
        "2",
    ]
    job = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/checkpoints/*/*")):  # both cells train
        assert time.monotonic() < deadline
        time.sleep(0.5)
    workers = [int(pid) for pid in children.read_text().split()]
    assert len(workers) >= 2
    job.kill()
    job.wait()
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline + 30
        time.sleep(0.2)
    assert list(tmp_path.glob("out/checkpoints/*/*"))  # for the next command


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
