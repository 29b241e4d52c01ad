"""The demo: cross-entropy, logit adjustment and a designed loss on the same real images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autobalance.bilevel import (
    Interrupted,
    ProgressListener,
    SearchResult,
    predict_logits,
    retrain,
    search,
    used_versions,
)
from autobalance.calibration import measured
from autobalance.data import CLASSES, ArrayData, ImageSet, long_tailed_sample
from autobalance.losses import ParametricCrossEntropy
from autobalance.networks import SmallCNN
from autobalance.records import Recipe

# Long enough that every loss fits the training images, as real networks do; the same for all.
RECIPE = Recipe(epochs=60)
TITLES = {
    "cross_entropy": "Cross-entropy",
    "logit_adjustment": "Logit adjustment (tau = 1)",
    "autobalance": "autobalance",
}


def network() -> nn.Module:
    """A small CNN with BatchNorm for 28 x 28 images, 10 classes; 29,434 weights."""
    return SmallCNN(len(CLASSES))


class Demo:
    """One seed of the demo, method by method, under one recipe.

    Parameters
    ----------
    train, test : ImageSet
        By default the sample in the package.
    seed : int
        For everything random; the images stay the same.
    progress : callable, optional
        Called with the method's title and an `autobalance.bilevel.lower_level.Progress`.
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

    def method(self, name: str) -> dict[str, Any]:
        """Train one of `TITLES` and evaluate it: its entry in ``result.json``."""
        wall, cpu = time.perf_counter(), time.process_time()
        counts = self.data.counts()
        listener = self._listener(name)
        common: dict[str, Any] = {
            "recipe": self.recipe, "seed": self.seed, "device": "cpu", "progress": listener,
        }  # fmt: skip
        runs = 1
        if name == "cross_entropy":
            loss = ParametricCrossEntropy.cross_entropy()
        elif name == "logit_adjustment":
            loss = ParametricCrossEntropy.logit_adjusted(counts)
            common["recipe"] = replace(self.recipe, absorb=0.0)  # as published
        else:
            try:
                self.result = search(network, self.data, **common)
            except Interrupted as stopped:
                self.result = stopped.partial
                raise
            loss, runs = self.result.loss, 2
        model = retrain(network, self.data, loss, **common)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        logits = predict_logits(model, torch.from_numpy(self.test.images))
        fitted = self.result.calibration if name == "autobalance" and self.result else None
        return {
            "title": TITLES[name],
            **measured(
                logits,
                self.test.target,
                loss,
                counts,
                temperature=1.0 if fitted is None else fitted.temperature,
            ),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "training_runs": runs,
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
