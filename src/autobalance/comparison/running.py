"""All cells of a comparison, run side by side by joblib, each kept as it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import joblib

from autobalance.checks import InputError
from autobalance.comparison.cells import Cell, run_cell
from autobalance.comparison.store import Store

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
        How many at a time; 1 runs them in this process.
    backend : str, optional
        joblib's: by default processes on this machine; "ray" or "dask" run them where that
        library's cluster is, which must be able to read the data folder.
    threads : int
        Of torch, per cell.
    again : sequence of str
        Methods to run again although they have finished.
    progress : callable, optional
        Told the cells done and in all, and the record of the last.

    Raises
    ------
    InputError
        If the backend is not known or its library not installed.
    """
    waiting = [
        cell
        for cell in cells
        if cell.method in again or not store.finished(cell.key, cell.identity())
    ]
    done = len(cells) - len(waiting)
    with _backend(backend):
        for record in _records(waiting, jobs, threads, backend):
            store.append(record)
            done += 1
            if progress:
                progress(done, len(cells), record)


def _records(
    cells: Sequence[Cell], jobs: int, threads: int, backend: str | None
) -> Iterator[dict[str, Any]]:
    if jobs == 1 and backend is None:
        for cell in cells:
            yield run_cell(cell, threads)
        return
    tasks = (joblib.delayed(run_cell)(cell, threads) for cell in cells)
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    records: Any = parallel(tasks)
    yield from records


def _backend(name: str | None) -> AbstractContextManager[Any]:
    if name is None:
        return nullcontext()
    try:
        if name == "ray":
            from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

            register_ray()
        return joblib.parallel_config(backend=name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"joblib has no backend {name!r} here ({str(error).splitlines()[0]}). Install its "
            "library (pip install ray), or leave the backend out."
        ) from None
