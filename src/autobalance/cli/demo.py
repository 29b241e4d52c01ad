"""`autobalance demo`: cross-entropy, logit adjustment and a designed loss on the same real images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from autobalance._validation import whole
from autobalance.bilevel import (
    Interrupted,
    ProgressListener,
    SearchResult,
    predict_logits,
    retrain,
    search,
    used_versions,
)
from autobalance.calibration import evaluate_logits
from autobalance.cli.options import DONE, INTERRUPTED, complain
from autobalance.cli.run_folder import write_run
from autobalance.cli.terminal import LiveProgress, print_methods
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
    "autobalance": "autobalance",
}


def run_demo(options: Namespace, command: str) -> int:
    """Run the demo, write its RUN folder and print its table; returns the exit code."""
    out = output_folder(options.out, overwrite=options.overwrite)
    whole("seed", options.seed, least=0)
    methods: dict[str, Any] = {}
    with LiveProgress() as live:
        demo = Demo(seed=options.seed, progress=live.update)
        try:
            for name in TITLES:
                methods[name] = demo.train_method(name)
        except KeyboardInterrupt:
            written = write_run(out, demo.record(methods, command, "interrupted"))
            done = f"{len(methods)} of {len(TITLES)} methods are done: {out / REPORT}"
            state = done if written else f"The earlier run in {out} is untouched"
            return complain(f"Interrupted. {state}.", INTERRUPTED)
    write_run(out, demo.record(methods, command))
    print_methods(methods)
    print(f"Report: {out / REPORT}")
    return DONE


def network() -> nn.Module:
    """A small CNN with BatchNorm for 28 x 28 images, 10 classes; 29,434 weights."""
    return SmallCNN(len(CLASSES))


class Demo:
    """One seed of the demo, method by method, under one recipe.

    The images are by default the sample in the package, and stay the same whatever the seed. `progress` is
    called with the method's title and an `autobalance.bilevel.Progress`.
    """

    def __init__(
        self,
        train: ImageSet | None = None,
        test: ImageSet | None = None,
        *,
        seed: int = 0,
        recipe: Recipe = RECIPE,
        progress: Callable[[str, Any], None] | None = None,
    ) -> None:
        sample = long_tailed_sample() if train is None or test is None else (train, test)
        self.data = ArrayData.of(*sample[0], num_classes=len(CLASSES))
        self.test = sample[1]
        self.seed = seed
        self.recipe = recipe
        self.progress = progress
        self.result: SearchResult | None = None

    def train_method(self, name: str) -> dict[str, Any]:
        """Train one of `TITLES` and evaluate it: its entry in ``result.json``."""
        wall, cpu = time.perf_counter(), time.process_time()
        counts = self.data.counts()
        common: dict[str, Any] = {
            "recipe": self.recipe, "seed": self.seed, "device": "cpu",
            "progress": self._listener(name),
        }  # fmt: skip
        designed: SearchResult | None = None
        if name == "cross_entropy":
            loss = ParametricCrossEntropy.cross_entropy()
        elif name == "logit_adjustment":
            loss = ParametricCrossEntropy.logit_adjusted(counts)
            common["recipe"] = replace(self.recipe, absorb=0.0)  # as published
        else:
            try:
                self.result = designed = search(network, self.data, arms="default", **common)
            except Interrupted as stopped:
                self.result = stopped.partial
                raise
            loss = designed.loss
        model = retrain(network, self.data, designed or loss, **common)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        logits = predict_logits(model, torch.from_numpy(self.test.images))
        fitted = None if designed is None else designed.calibration
        temperature = 1.0 if fitted is None else fitted.temperature
        return {
            "title": TITLES[name],
            **evaluate_logits(logits, self.test.target, loss, counts, temperature=temperature),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "training_runs": 1.0 + (0.0 if designed is None else designed.training_runs),
            "training_error": _training_error(model, self.data),
        }

    def record(
        self, methods: dict[str, Any], command: str, status: str = "finished"
    ) -> dict[str, Any]:
        """The whole ``result.json``, of the methods that are done."""
        searched = {} if self.result is None else self.result.to_dict()
        if status != "finished":
            searched["status"] = status
        return {
            "kind": "demo",
            "status": status,
            "command": command,
            "objective": "balanced_error",
            "class_names": list(CLASSES),
            "group_names": None,
            "class_counts": self.data.counts().tolist(),
            "evaluation_data": f"{len(self.test.target):,} balanced test images",
            "methods": methods,
            "search": searched,
            "seconds": {"total": sum(m["seconds"] for m in methods.values())},
            "versions": used_versions(),
            "seed": self.seed,
        }

    def _listener(self, name: str) -> ProgressListener | None:
        listener = self.progress
        return None if listener is None else lambda progress: listener(TITLES[name], progress)


def _training_error(model: nn.Module, data: ArrayData) -> float:
    wrong: Tensor = predict_logits(model, data.inputs).argmax(dim=1) != data.target
    return float(wrong.double().mean())
