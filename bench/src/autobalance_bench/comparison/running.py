"""All cells of a comparison, run side by side by joblib or Ray, each kept as it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import joblib
import torch
from joblib.externals.loky import ProcessPoolExecutor

from autobalance import InputError
from autobalance.bilevel import make_fabric
from autobalance.functional import Processes, first_process, processes_started
from autobalance_bench.comparison.cells import Cell, failed_record, run_cell
from autobalance_bench.comparison.ensembles import ENSEMBLES
from autobalance_bench.comparison.methods import METHODS
from autobalance_bench.comparison.store import Store

# What follows `pip install` where that is not the name of what is imported.
_INSTALLED_BY = {ensemble.package: ensemble.install for ensemble in ENSEMBLES.values()}
_UNFIT = {
    "threading": "its cells would share one random state, so that none could be repeated",
    "multiprocessing": "it gives records back only when all cells have ended",
}

AGAIN = 1
"""How often a cell is run again, in another process, whose process died: for want of memory, for example."""

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
            install = _INSTALLED_BY.get(package, package)
            return f"{package.capitalize()} is not installed (pip install {install})"
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
    if backend is None:
        yield from _by_processes(cells, jobs, threads)
        return
    tasks = (joblib.delayed(_in_worker)(cell, threads) for cell in cells)
    records: Any = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
    yield from records


def _by_processes(cells: Sequence[Cell], jobs: int, threads: int) -> Iterator[dict[str, Any]]:
    """As they end, each in one of so many processes; a cell whose process dies runs once more in another.

    Each process is a pool of its own, since a pool of several does not say which cell one of them had.
    """
    waiting = deque((cell, AGAIN) for cell in cells)
    idle = [(ProcessPoolExecutor(1), device) for device in _devices(cells, jobs)]
    running: dict[Future[Any], tuple[Cell, int, Any, str]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                (cell, again), (pool, device) = waiting.popleft(), idle.pop()
                task = pool.submit(_in_worker, replace(cell, device=device), threads)
                running[task] = cell, again, pool, device
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                cell, again, pool, device = running.pop(task)
                try:
                    record = task.result()
                except BrokenExecutor as error:
                    pool.shutdown(wait=False)
                    pool = ProcessPoolExecutor(1)
                    record = failed_record(cell, _describe_death(error)) if not again else None
                idle.append((pool, device))
                if record is None:
                    waiting.append((cell, again - 1))
                else:
                    yield record
    finally:
        for pool in [*(pool for pool, _ in idle), *(pool for _, _, pool, _ in running.values())]:
            pool.shutdown(wait=False, kill_workers=True)


def _describe_death(error: BaseException) -> str:
    signals = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))
    by = f", by {signals[1]}" if signals else ""
    return f"the process that ran it died {AGAIN + 1} times{by}. Where memory is short, give fewer --jobs"


def _devices(cells: Sequence[Cell], jobs: int) -> list[str]:
    """The device of each process: they share the GPUs of this machine where no cell names one."""
    gpus = torch.cuda.device_count()
    device = cells[0].device if cells else "cpu"
    if gpus < 2 or not all(cell.device == "cuda" for cell in cells):
        return [device] * min(jobs, len(cells))
    return [f"cuda:{i % gpus}" for i in range(min(jobs, len(cells)))]


def _in_worker(cell: Cell, threads: int) -> dict[str, Any]:
    if current_process().name != "MainProcess":
        # Ctrl-C reaches all processes of a terminal; this one alone would answer with a traceback.
        with suppress(ValueError):  # not in the process's main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with_parent(os.getppid())
    return run_cell(cell, threads)


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
    from ray.exceptions import RayError

    if not ray.is_initialized():
        ray.init(include_dashboard=False, configure_logging=False)
    remote: Any = ray.remote(run_cell)
    task = remote.options(num_cpus=threads, max_retries=AGAIN)
    waiting = deque(cells)
    running: dict[Any, Cell] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                running[task.remote(cell, threads)] = cell
            [ended], _ = ray.wait([*running], num_returns=1)
            cell = running.pop(ended)
            try:
                record = ray.get(ended)
            except RayError as error:  # its process died, or its machine
                record = failed_record(cell, _describe_death(error))
            yield record
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
