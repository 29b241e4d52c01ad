"""Where the numbers of a run go while it runs: any logger of Lightning, or an object of your own.

`search`, `frontier`, `retrain`, `search_head` and `LossTuner` take ``logger=``, an object with
``log_metrics(metrics, step)``; `docs/how_to/logging.md` lists names and steps. The logger is told numbers
that the run computes anyway, so that a run with a logger and one without are the same bit for bit.
Of several processes only the first one logs. The run flushes the logger (`save`) when it ends, also
where it fails, and leaves `finalize` to you, for one logger can serve search and retraining.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from autobalance._validation import InputError, how_to_install, one_of
from autobalance.losses import LossParameters

MAX_LOSS_NUMBERS = 100
LOGS = "logs"
_CHOSEN = {
    "objective": "objective",
    "hard_objective": "hard_objective",
    "test_objective": "test_objective",
    "training_loss": "training_loss",
    "norm": "hypergradient_norm",
    "residual": "residual",
}


class MetricLogger(Protocol):
    """What a run asks of a logger; the loggers of Lightning and Lightning Fabric have it."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take numbers by name, at a step."""
        ...


class LoggerAdapter:
    """A run's side of a logger; does nothing without one.

    Parameters
    ----------
    logger : MetricLogger, optional
        Where numbers go.
    writes : bool
        Whether this process is the one that logs.

    Attributes
    ----------
    step_offset : int
        Steps of earlier parts of the run; added to every step. 0 at first.

    Raises
    ------
    InputError
        If the logger has no `log_metrics`.
    """

    def __init__(self, logger: MetricLogger | None, *, writes: bool = True) -> None:
        if logger is not None and not callable(getattr(logger, "log_metrics", None)):
            raise InputError(
                f"logger must have log_metrics(metrics, step), as Lightning Fabric's loggers do; got "
                f"{type(logger).__name__}. For example CSVLogger('logs') of "
                "lightning_fabric.loggers."
            )
        self.logger = logger if writes else None
        self.step_offset = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Flush the logger at the end, however that comes about."""
        try:
            yield
        finally:
            save = getattr(self.logger, "save", None)
            if callable(save):
                save()

    def log_upper_step(self, record: Any, loss: LossParameters, step: int) -> None:
        """Log an `UpperRecord` or an `UpperStep`, which has some of its numbers, and the loss after it."""
        if self.logger is not None:
            values = {f"search/{name}": vars(record).get(key) for key, name in _CHOSEN.items()}
            self.write(values | _numbers_by_name(loss), step)

    def write(self, values: Mapping[str, float | None], step: int) -> None:
        """Log those of the numbers that are finite."""
        known = {n: float(v) for n, v in values.items() if v is not None and math.isfinite(v)}
        if known and self.logger is not None:
            self.logger.log_metrics(known, self.step_offset + step)


def _numbers_by_name(loss: LossParameters) -> dict[str, float]:
    """Each number of the loss under its name; nothing where there are over `MAX_LOSS_NUMBERS`."""
    parts = {name: p for name, p in loss._asdict().items() if p is not None}
    if sum(p.numel() for p in parts.values()) > MAX_LOSS_NUMBERS:
        return {}
    numbers = {}
    for name, p in parts.items():
        rows = p.detach().tolist()
        for g, row in enumerate(rows if p.ndim == 2 else [rows]):
            for c, value in enumerate(row):
                numbers[f"loss/{name}/{f'{g}/' if p.ndim == 2 else ''}{c}"] = value
    return numbers


def local_logger(kind: Literal["csv", "tensorboard"], folder: str | Path) -> Logger:
    """A logger of Fabric that writes into ``logs/version_0`` of a folder, or the next version.

    Parameters
    ----------
    kind : {"csv", "tensorboard"}
        ``metrics.csv``, or TensorBoard's event file.
    folder : path
        Made when the first number is logged.

    Raises
    ------
    InputError
        If the kind is another, or TensorBoard is not installed.
    """
    if one_of("log", kind, ("csv", "tensorboard")) == "csv":
        return CSVLogger(root_dir=str(folder), name=LOGS)
    try:
        return TensorBoardLogger(root_dir=str(folder), name=LOGS)
    except ModuleNotFoundError:
        raise InputError(
            f"TensorBoard's logger needs tensorboard. {how_to_install('tensorboard')}."
        ) from None
