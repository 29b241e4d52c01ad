"""`autobalance demo`: the same real images under five losses, over several seeds."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import current_process
from typing import Any

import joblib
import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from autobalance._validation import whole
from autobalance.bilevel import (
    SearchResult,
    predict_logits,
    retrain,
    search_and_train,
    used_versions,
)
from autobalance.calibration import evaluate_logits
from autobalance.cli.demo_record import average
from autobalance.cli.options import DONE, INTERRUPTED, complain
from autobalance.cli.run_folder import write_run
from autobalance.cli.terminal import LiveProgress, print_legend, print_methods
from autobalance.data import CLASSES, ArrayData, ImageSet, long_tailed_sample
from autobalance.losses import ParametricCrossEntropy
from autobalance.networks import SmallCNN
from autobalance.records import Recipe, output_folder
from autobalance.report import REPORT

# Long enough that every loss fits the training images, as real networks do; the same for all.
RECIPE = Recipe(epochs=60)
TITLES = {
    "cross_entropy": "Cross-entropy",
    "logit_adjustment": "Logit adjustment (tau = 1)",
    "autobalance_balanced": "autobalance, balanced error",
    "autobalance_worst_class": "autobalance, worst class",
    "autobalance": "autobalance, best of the race",
}
_LEGEND = (
    "Each seed trains anew on the same 1,236 images, 500 to 5 per class; the test images decide nothing. "
    "Worst class: that of each network, then the mean.",
    "autobalance designs its loss while the network trains. Best of the race: for the balanced error, after "
    "ways to train have raced; its runs are among those of the table.",
)
_NEXT = (
    "Next, on a Dataset of your own, in Python: "
    "network, result = autobalance.search_and_train(make_network, dataset)",
    "Next, on a table of your own: autobalance fit TABLE.csv --target COLUMN --out RUN",
)


@dataclass(frozen=True)
class _Design:
    """What a loss is searched for, and whether ways to train race first."""

    objective: str
    arms: str | None = None


_DESIGNS = {
    "autobalance_balanced": _Design("balanced_error"),
    "autobalance_worst_class": _Design("worst_class_error"),
    "autobalance": _Design("balanced_error", "default"),
}


def run_demo(options: Namespace, command: str) -> int:
    """Run the demo, write its RUN folder and print its table; returns the exit code."""
    whole("seed", options.seed, least=0)
    whole("seeds", options.seeds, least=1)
    if options.table:
        from autobalance.cli.demo_table import run_table_demo

        return run_table_demo(options, command)
    out = output_folder(options.out or "demo-run", overwrite=options.overwrite)
    seeds = range(options.seed, options.seed + options.seeds)
    # What takes longest begins first, so that no process is left alone with it at the end.
    tasks = [(seed, name) for seed in seeds for name in reversed(TITLES)]
    entries: list[dict[str, Any]] = []
    searches: dict[int, dict[str, Any]] = {}
    try:
        with LiveProgress() as live, closing(_train_all(tasks)) as trained:
            live.count("Demo", 0, len(tasks))
            for entry, searched in trained:
                entries.append(entry)
                if entry["name"] == "autobalance":
                    searches[entry["seed"]] = searched
                live.count("Demo", len(entries), len(tasks))
    except KeyboardInterrupt:
        record = _record(entries, searches, command, options.seed, "interrupted")
        written = write_run(out, record)
        done = f"{len(entries)} of {len(tasks)} trainings are done: {out / REPORT}"
        state = done if written else f"The earlier run in {out} is untouched"
        return complain(f"Interrupted. {state}.", INTERRUPTED)
    record = _record(entries, searches, command, options.seed)
    write_run(out, record)
    print_methods(record["methods"])
    print_legend(_LEGEND)
    print(f"Report: {out / REPORT}")
    print("\n".join(_NEXT))
    return DONE


def network() -> nn.Module:
    """A small CNN with BatchNorm for 28 x 28 images, 10 classes; 29,434 weights."""
    return SmallCNN(len(CLASSES))


def fast_network() -> nn.Module:
    """The same, laid out so that a training run on a CPU takes three quarters of the time."""
    return network().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class Demo:
    """One seed of the demo, method by method, under one recipe.

    The images are by default the sample in the package, and stay the same whatever the seed.
    """

    def __init__(
        self,
        train: ImageSet | None = None,
        test: ImageSet | None = None,
        *,
        seed: int = 0,
        recipe: Recipe = RECIPE,
    ) -> None:
        sample = long_tailed_sample() if train is None or test is None else (train, test)
        self.data = ArrayData.of(*sample[0], num_classes=len(CLASSES))
        self.test = sample[1]
        self.seed = seed
        self.recipe = recipe
        self.result: SearchResult | None = None

    def train_method(self, name: str) -> dict[str, Any]:
        """Train one of `TITLES` and evaluate it: its entry in ``result.json``, of one seed."""
        wall, cpu = time.perf_counter(), time.process_time()
        counts = self.data.counts()
        common: dict[str, Any] = {"recipe": self.recipe, "seed": self.seed, "device": "cpu"}
        self.result = None
        if name in _DESIGNS:
            model, self.result = search_and_train(
                fast_network, self.data, **vars(_DESIGNS[name]), **common
            )
            loss = self.result.loss
        elif name == "cross_entropy":
            loss = ParametricCrossEntropy.cross_entropy()
            model = retrain(fast_network, self.data, loss, **common)
        else:
            loss = ParametricCrossEntropy.logit_adjusted(counts)
            common["recipe"] = replace(self.recipe, absorb=0.0)  # as published
            model = retrain(fast_network, self.data, loss, **common)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        logits = predict_logits(model, torch.from_numpy(self.test.images))
        fitted = None if self.result is None else self.result.calibration
        temperature = 1.0 if fitted is None else fitted.temperature
        return {
            "name": name,
            "title": TITLES[name],
            "seed": self.seed,
            **evaluate_logits(logits, self.test.target, loss, counts, temperature=temperature),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "training_runs": 1.0 if self.result is None else self.result.training_runs,
            "training_error": _training_error(model, self.data),
        }


def count_processes() -> int:
    """Trainings at once: two, as on the smallest machine that the demo is for, or one on one core."""
    return min(2, joblib.cpu_count())


def _train_all(tasks: list[tuple[int, str]]) -> Generator[tuple[dict[str, Any], dict[str, Any]]]:
    """The entry of each training as it ends, with the record of its search, empty without one."""
    processes = count_processes()
    if processes == 1:
        yield from (_train_one(*task) for task in tasks)
        return
    with warnings.catch_warnings():
        # joblib's advice to whoever stops it, which Ctrl-C does.
        warnings.filterwarnings("ignore", r"\d+ tasks which were still being processed")
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator_unordered")
        trained: Any = parallel(joblib.delayed(_train_one)(*task) for task in tasks)
        with closing(trained):
            yield from trained


def _train_one(seed: int, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if current_process().name != "MainProcess":
        # Ctrl-C reaches all processes of a terminal; this one alone would answer with a traceback.
        with suppress(ValueError):  # not in the process's main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    demo = Demo(seed=seed)
    with _one_thread():
        entry = demo.train_method(name)
    return entry, {} if demo.result is None else demo.result.to_dict()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, of which a small network makes the most, and the same bits on every number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _record(
    entries: list[dict[str, Any]],
    searches: dict[int, dict[str, Any]],
    command: str,
    seed: int,
    status: str = "finished",
) -> dict[str, Any]:
    """The whole ``result.json``, of the trainings that are done; the search is that of the first seed."""
    train, test = long_tailed_sample()
    by_name = {name: [e for e in entries if e["name"] == name] for name in TITLES}
    seeds = sorted({entry["seed"] for entry in entries})
    searched = searches.get(seed, {})
    if status != "finished":
        searched = {**searched, "status": status}
    means = f", means over {len(seeds)} seeds" if len(seeds) > 1 else ""
    return {
        "kind": "demo",
        "status": status,
        "command": command,
        "objective": "balanced_error",
        "class_names": list(CLASSES),
        "group_names": None,
        "class_counts": ArrayData.of(*train, num_classes=len(CLASSES)).counts().tolist(),
        "evaluation_data": f"{len(test.target):,} balanced test images{means}",
        "methods": {name: average(own) for name, own in by_name.items() if own},
        "search": searched,
        "seconds": {"total": sum(entry["seconds"] for entry in entries)},
        "versions": used_versions(),
        "seed": seed,
        "seeds": seeds,
    }


def _training_error(model: nn.Module, data: ArrayData) -> float:
    wrong: Tensor = predict_logits(model, data.inputs).argmax(dim=1) != data.target
    return float(wrong.double().mean())
