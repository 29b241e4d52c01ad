"""The commands `autobalance compare` and `autobalance run`, as the core's command line finds them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from autobalance import InputError
from autobalance.cli import DONE, FAILED, Command, complain
from autobalance.records import write_atomically
from autobalance_bench._checks import check_choice, check_int, check_path

if TYPE_CHECKING:
    from autobalance_bench.comparison.configuration import Configuration
    from autobalance_bench.comparison.store import Key, Store


def build_parser(parser: type[ArgumentParser]) -> ArgumentParser:
    """The options of a comparison."""
    compare = parser(description="Compare losses on datasets, over several seeds.")
    compare.add_argument(
        "config", type=str, help="YAML file that says what: datasets, methods, seeds"
    )
    compare.add_argument("--out", type=str, required=True, help="folder of the results; resumed")
    compare.add_argument("--subset", type=str | None, default=None, help="a subset of the file's")
    compare.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="folder of the datasets' files; by default AUTOBALANCE_DATA, or for files of your own "
        "that of the YAML file",
    )
    compare.add_argument("--jobs", type=int, default=1, help="cells at a time")
    compare.add_argument("--threads", type=int, default=1, help="of torch, per cell")
    compare.add_argument(
        "--backend", type=str | None, default=None, help="ray, or one of joblib's, such as dask"
    )
    compare.add_argument("--device", type=str, default="cpu", help="auto, cpu, cuda, cuda:1 or mps")
    compare.add_argument(
        "--again", type=str, nargs="+", default=[], help="methods to run though they have finished"
    )
    compare.add_argument("--summary", action="store_true", help="run nothing, show what there is")
    compare.add_argument("--json", type=str | None, default=None, help="file for the summary")
    return compare


def run_compare(options: Namespace, command: str) -> int:
    """Run the cells that have not finished, and show and write the results; return the exit code."""
    from datetime import date

    from autobalance_bench.comparison.configuration import read_configuration
    from autobalance_bench.comparison.reporting import (
        as_json,
        describe_failures,
        summarize,
        write_report,
    )
    from autobalance_bench.comparison.store import Store
    from autobalance_bench.terminal import print_comparison

    for name in ("jobs", "threads"):
        check_int(name, options[name], least=1)
    configuration = read_configuration(options.config)
    if options.subset is not None:
        configuration = configuration.subset(options.subset)
    for name in options.again:
        check_choice("again", name, configuration.methods)
    out = check_path("The output", options.out)
    store = Store(out / "cells.jsonl")
    failed: list[dict[str, Any]] = []
    keys: list[Key] = []
    if not options.summary:
        from autobalance.functional import first_process

        failed, keys = _run_cells(options, configuration, store, out)
        if not first_process():  # of torchrun's, the first alone writes and tells
            return DONE
    summaries = []
    if options.summary or any(r["status"] == "finished" for r in store.cells()):
        summaries = summarize(store, configuration.objectives)
    if options.json is not None and summaries:
        write_atomically(options.json, as_json(summaries).encode())
    print_comparison(summaries)
    if not options.summary and summaries:
        report = write_report(out, summaries, date=date.today().isoformat(), command=command)
        print(f"Results: {store.path}\nTables: {report}")
    for line in describe_failures(failed, keys):
        complain(line, FAILED)
    return FAILED if failed else DONE


def _run_cells(
    options: Namespace, configuration: Configuration, store: Store, out: Path
) -> tuple[list[dict[str, Any]], list[Key]]:
    """Run what is not finished; the cells that failed, and the keys of all."""
    from autobalance.functional import first_process
    from autobalance_bench.comparison.cells import cells_of
    from autobalance_bench.comparison.methods import augmentation_of
    from autobalance_bench.comparison.reporting import join_names
    from autobalance_bench.comparison.running import predict_failures, run_cells, waiting_cells
    from autobalance_bench.comparison.store import key_of
    from autobalance_bench.terminal import CellProgress

    if configuration.augment is not None:
        try:
            augmentation_of(configuration.augment)
        except InputError as error:  # now, and not by each cell
            raise InputError(f"augment: {error}") from None
    data = options.data or os.environ.get("AUTOBALANCE_DATA")
    checkpoints = str(out / "checkpoints")
    cells = cells_of(configuration, data, options.device, checkpoints)
    waiting = waiting_cells(cells, store, options.again) if first_process() else []
    for reason, methods in predict_failures(waiting).items():
        print(
            f"autobalance: {join_names(methods)} will fail: {reason}. Mend that first, or let the others "
            "run; the same command then runs what failed",
            file=sys.stderr,
        )
    with CellProgress() as live:
        try:
            run_cells(
                cells,
                store,
                jobs=options.jobs,
                backend=options.backend,
                threads=options.threads,
                again=options.again,
                progress=live.update,
            )
        except KeyboardInterrupt:
            finished = sum(store.finished(cell.key, cell.identity()) for cell in cells)
            if first_process():
                print(
                    f"autobalance: {finished} of {len(cells)} cells are kept in {store.path}; the same "
                    "command goes on from there.",
                    file=sys.stderr,
                )
            raise
    with suppress(OSError):  # what failed or was stopped may have left something
        (out / "checkpoints").rmdir()
    keys = [cell.key for cell in cells]
    failed = [r for r in store.cells() if r["status"] == "failed" and key_of(r) in keys]
    return failed, keys


COMPARE = Command("losses on datasets, over several seeds", build_parser, run_compare, True)
RUN = Command("another name of compare", build_parser, run_compare, True)
