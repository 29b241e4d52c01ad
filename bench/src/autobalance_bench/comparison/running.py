"""All cells of a comparison, run side by side by joblib or Ray, each kept as it ends."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from multiprocessing import Manager, current_process
from pathlib import Path
from typing import Any

import joblib
import torch

from autobalance import InputError
from autobalance.bilevel import make_fabric
from autobalance.functional import Processes, first_process, processes_started
from autobalance_bench.comparison.cells import Cell, run_cell
from autobalance_bench.comparison.ensembles import ENSEMBLES
from autobalance_bench.comparison.methods import METHODS
from autobalance_bench.comparison.store import Store

_INSTALLED_BY = {
    "optuna": "optuna",
    "kornia": "'autobalance[vision]'",
    "lightgbm": "'autobalance[boosting]'",
    **{ensemble.package: ensemble.install for ensemble in ENSEMBLES.values()},
}
_UNFIT = {
    "threading": "its cells would share one random state, so that none could be repeated",
    "multiprocessing": "it gives records back only when all cells have ended",
}

Listener = Callable[[int, int, dict[str, Any]], None]


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    *,
    jobs: int = 1,
    backend: str | None = None,
    threads: int = 1,
    again: Sequence[str] = (),
    progress: Listener | None = None,
) -> None:
    """Run the cells that the store does not hold as finished, and append their records to it.

    Parameters
    ----------
    cells : sequence of Cell
        From `cells_of`.
    store : Store
        Where records go, written by this process only.
    jobs : int
        How many at a time; 1 runs them in this process. With device "cuda" they take turns on all GPUs
        of this machine, each cell on one. Under torchrun, where all processes train each network
        together, 1.
    backend : str, optional
        By default processes on this machine; "ray", or "dask" and others of joblib's, run them
        where that library's cluster is, which must be able to read the data folder.
    threads : int
        Of torch, per cell.
    again : sequence of str
        Methods to run again although they have finished.
    progress : callable, optional
        Told the cells done and in all, and the record of the last.

    Raises
    ------
    InputError
        If the backend is not known or unfit, or its library is not installed, or cells are to run side by
        side under torchrun.
    """
    together = processes_started() > 1
    if together and (jobs > 1 or backend is not None):
        raise InputError(
            "Under torchrun all processes run each cell together. Leave --jobs and --backend out, or start "
            "without torchrun: --jobs then spreads the cells over the GPUs of this machine."
        )
    if together and cells:
        make_fabric(cells[0].device)  # the processes find each other
    writing = store.alone() if first_process() else nullcontext()
    with _backend(backend), writing:
        _run(cells, store, jobs, backend, threads, again, progress)


def _run(
    cells: Sequence[Cell],
    store: Store,
    jobs: int,
    backend: str | None,
    threads: int,
    again: Sequence[str],
    progress: Listener | None,
) -> None:
    waiting = Processes.all().run_on_rank_zero(lambda: waiting_cells(cells, store, again))
    done = len(cells) - len(waiting)
    states = {cell.identity(): cell.state for cell in cells}
    with warnings.catch_warnings():
        # joblib's advice to whoever stops it, which Ctrl-C does.
        warnings.filterwarnings("ignore", r"\d+ tasks which were still being processed")
        for record in _records(waiting, jobs, threads, backend):
            done += 1
            if not first_process():
                continue
            store.append(record)
            if record["status"] == "finished":
                _remove(states[record["identity"]])
            if progress:
                progress(done, len(cells), record)

    if first_process():
        for cell in cells:  # what an earlier command had no time to remove
            if store.finished(cell.key, cell.identity()):
                _remove(cell.state)


def _remove(state: Path | None) -> None:
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)


def waiting_cells(cells: Sequence[Cell], store: Store, again: Sequence[str] = ()) -> list[Cell]:
    """The cells that `run_cells` would run."""
    return [
        cell
        for cell in cells
        if cell.method in again or not store.finished(cell.key, cell.identity())
    ]


def predict_failures(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Methods that cannot run, such as for a missing library, by the reason."""
    methods: dict[str, list[str]] = {}
    for cell in cells:
        reason = _hindrance(cell)
        if reason and cell.method not in methods.setdefault(reason, []):
            methods[reason].append(cell.method)
    return methods


def _hindrance(cell: Cell) -> str | None:
    method = METHODS.get(cell.method)
    if method is None:
        return "there is no such method"
    augmented = cell.augment is not None and cell.augment.get("name") in (
        "trivial",
        "random",
        "resized_crop",
    )
    for package in (method.needs, "kornia" if augmented else None):
        if package is not None and not _installed(package):
            return f"{package.capitalize()} is not installed (pip install {_INSTALLED_BY[package]})"
    return None


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # marked in sys.modules as not to be imported
        return False


def _records(
    cells: Sequence[Cell], jobs: int, threads: int, backend: str | None
) -> Iterator[dict[str, Any]]:
    if backend == "ray":
        yield from _by_ray(cells, jobs, threads)
        return
    if jobs == 1 and backend is None:
        for cell in cells:
            yield run_cell(cell, threads)
        return
    with _devices(cells, jobs, backend) as devices:
        tasks = (joblib.delayed(_in_worker)(cell, threads, devices) for cell in cells)
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        records: Any = parallel(tasks)
        yield from records


@contextmanager
def _devices(cells: Sequence[Cell], jobs: int, backend: str | None) -> Iterator[Any]:
    """A queue of the GPUs that no cell is on, each as often as cells may share it; None where all is one."""
    gpus = torch.cuda.device_count()
    if backend is not None or gpus < 2 or not all(cell.device == "cuda" for cell in cells):
        yield None
        return
    with Manager() as manager:
        free = manager.Queue()
        for i in range(jobs):
            free.put(f"cuda:{i % gpus}")
        yield free


def _in_worker(cell: Cell, threads: int, devices: Any = None) -> dict[str, Any]:
    if current_process().name != "MainProcess":
        # Ctrl-C reaches all processes of a terminal; this one alone would answer with a traceback.
        with suppress(ValueError):  # not in the process's main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with_parent(os.getppid())
    if devices is None:
        return run_cell(cell, threads)
    device = devices.get()
    try:
        return run_cell(replace(cell, device=device), threads)
    finally:
        devices.put(device)


@cache
def _end_with_parent(parent: int) -> None:
    """End this process when its parent has been killed, which leaves nobody to take the records."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _by_ray(cells: Sequence[Cell], jobs: int, threads: int) -> Iterator[dict[str, Any]]:
    """As they end, which joblib's own Ray backend cannot: it returns all at the end."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, configure_logging=False)
    remote: Any = ray.remote(run_cell)
    task = remote.options(num_cpus=threads)
    waiting, running = deque(cells), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(task.remote(waiting.popleft(), threads))
            [ended], running = ray.wait(running, num_returns=1)
            yield ray.get(ended)
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _backend(name: str | None) -> AbstractContextManager[Any]:
    if name is None:
        return nullcontext()
    if name in _UNFIT:
        raise InputError(
            f"The backend {name!r} cannot be used: {_UNFIT[name]}. Give --jobs and leave it out."
        )
    try:
        if name == "ray":
            # Without it Ray hides all GPUs from tasks that reserve none.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            import ray  # noqa: F401

            return nullcontext()
        return joblib.parallel_config(backend=name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"There is no backend {name!r} here ({str(error).splitlines()[0].rstrip('.')}). Install "
            "its library (for Ray: pip install ray), or leave --backend out."
        ) from None
