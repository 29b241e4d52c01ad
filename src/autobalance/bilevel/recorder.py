"""What a search has seen so far: its upper steps, the path of the loss, and the time spent."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from autobalance.losses import LossParameters
from autobalance.records import PathPoint, UpperRecord

MAX_PATH_NUMBERS = 100_000


class SearchRecorder:
    """Keeps the records that a `SearchResult` is made of, also across a checkpoint.

    Attributes
    ----------
    history : list of UpperRecord
        One entry per upper step.
    path : list of PathPoint
        The loss over time, with points left out where classes are many.
    """

    def __init__(self) -> None:
        self.history: list[UpperRecord] = []
        self.path: list[PathPoint] = []
        self._earlier = {"wall": 0.0, "cpu": 0.0}
        self._started = (time.perf_counter(), time.process_time())

    def append_path_point(self, step: int, loss: LossParameters) -> None:
        """Add the loss's parameters after so many lower steps.

        Where the path holds more than `MAX_PATH_NUMBERS` numbers, every other point is dropped.
        """
        lists = {n: None if p is None else p.tolist() for n, p in loss._asdict().items()}
        self.path.append(PathPoint(step, **lists))
        numbers = len(self.path) * sum(p.numel() for p in loss if p is not None)
        if numbers > MAX_PATH_NUMBERS:
            self.path = self.path[::2]

    def append(self, record: UpperRecord, loss: LossParameters) -> None:
        """Add an upper step, and the loss that belongs to it."""
        self.history.append(record)
        self.append_path_point(record.step, loss)

    def seconds(self) -> dict[str, float]:
        """Time spent so far, "wall" and "cpu", with that before a checkpoint."""
        wall, cpu = self._started
        return {
            "wall": self._earlier["wall"] + time.perf_counter() - wall,
            "cpu": self._earlier["cpu"] + time.process_time() - cpu,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the records."""
        return {
            "history": [asdict(record) for record in self.history],
            "path": [asdict(point) for point in self.path],
            "seconds": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.history = [UpperRecord(**record) for record in state["history"]]
        self.path = [PathPoint(**point) for point in state["path"]]
        self._earlier = state["seconds"]
