"""Where the numbers of a run go while it runs: any logger of Lightning Fabric, MLflow, Weights & Biases.

`search`, `frontier`, `retrain`, `search_head` and `LossTuner` take ``logger=``, an object with
``log_metrics(metrics, step)``: Fabric's `CSVLogger` and `TensorBoardLogger`, one of this module, or
one of your own. They look at numbers that the run computes anyway, so that a run with a logger and
one without are the same bit for bit; of several processes only the first one logs. The run flushes
the logger (`save`) when it ends, also where it fails, and leaves `finalize` to you, for one logger
can serve search and retraining. What a run logs after its last checkpoint it logs again when it
continues from there.

Names and steps:

==============================  ==================================================================
``search/objective``            differentiable objective on validation data, at every upper step
``search/hard_objective``       the same over the 0-1 error
``search/test_objective``       the hard objective on test data, where `search` has such; now and then
``search/training_loss``        mean over folds; not of a `LossTuner`, which does not see it
``search/hypergradient_norm``   Euclidean norm
``search/residual``             relative, where the solver looks at it
``loss/additive/K``             l of class K (with groups ``G/K``), and the same for ``weight`` and
                                ``multiplicative``; left out where the loss has over 100 numbers
``frontier/mix``, ``/main``,    of each point of a `frontier`, with both objectives over the 0-1 error
``frontier/gap``                on held-out data, at its end
``choose/NAME``                 held-out objective of a candidate of the final choice, at the end
``retrain/training_loss``       of the step's batch, every 20 steps and at the end
``retrain/lr``                  learning rate of the step
==============================  ==================================================================

A step is a training step of the phase, of a `frontier` one of the whole sweep; for `search_head` an
evaluation of the upper level, for a `LossTuner` an upper step, counted from 1. Numbers that are not
finite are not logged. A `LossTuner` does not know when your loop ends: flush its logger yourself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.utilities.rank_zero import rank_zero_only

from autobalance._validation import InputError, one_of
from autobalance.bilevel.result import Candidate
from autobalance.losses import LossParameters
from autobalance.records import UpperRecord

MAX_LOSS_NUMBERS = 100
LOGS = "logs"
# MLflow and W&B have loggers of our own: Lightning's would need all of Lightning beside Fabric, and
# its W&B logger draws search and retraining over one axis of steps.
_CHOSEN = {
    "objective": "objective",
    "hard_objective": "hard_objective",
    "test_objective": "test_objective",
    "training_loss": "training_loss",
    "norm": "hypergradient_norm",
    "residual": "residual",
}


class MetricLogger(Protocol):
    """What a run asks of a logger; Lightning Fabric's have it."""

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
    def open(self) -> Iterator[LoggerAdapter]:
        """Flushes the logger at the end, however that comes about."""
        try:
            yield self
        finally:
            save = getattr(self.logger, "save", None)
            if callable(save):
                save()

    def log_upper_step(self, record: UpperRecord, loss: LossParameters) -> None:
        """One upper step, and the loss after it."""
        self.log_upper_numbers(vars(record), loss, record.step)

    def log_upper_numbers(self, seen: Mapping[str, Any], loss: LossParameters, step: int) -> None:
        """As `log_upper_step`, of what a record holds by name, or as much of it as there is."""
        if self.logger is None:
            return
        values = {f"search/{name}": seen.get(key) for key, name in _CHOSEN.items()}
        self.write(values | _numbers(loss), step)

    def log_candidates(self, found: list[Candidate], step: int) -> None:
        """The final choice."""
        self.write({f"choose/{c.name}": c.objective for c in found}, step)

    def write(self, values: Mapping[str, float | None], step: int) -> None:
        """Those of the numbers that are finite."""
        if self.logger is None:
            return
        known = {n: float(v) for n, v in values.items() if v is not None and math.isfinite(v)}
        if known:
            self.logger.log_metrics(known, self.step_offset + step)


def _numbers(loss: LossParameters) -> dict[str, float]:
    """Each number of the loss under its name; nothing where they are many."""
    parts = {name: p for name, p in loss._asdict().items() if p is not None}
    if sum(p.numel() for p in parts.values()) > MAX_LOSS_NUMBERS:
        return {}
    found = {}
    for name, p in parts.items():
        rows = p.detach().tolist()
        for g, row in enumerate(rows if p.ndim == 2 else [rows]):
            for c, value in enumerate(row):
                found[f"loss/{name}/{f'{g}/' if p.ndim == 2 else ''}{c}"] = value
    return found


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
        raise _missing("TensorBoard's logger", "tensorboard") from None


class MLflowLogger(Logger):
    """Logs to a run of MLflow, through its own client.

    Parameters
    ----------
    experiment : str
        Name of the experiment; made where there is none.
    run_name : str, optional
        Name of a new run; by default MLflow finds one.
    run_id : str, optional
        An existing run to log to, in place of a new one.
    tracking_uri : str, optional
        Where MLflow keeps its runs, by default as MLflow is configured (``MLFLOW_TRACKING_URI``).

    Raises
    ------
    InputError
        If MLflow is not installed.
    """

    def __init__(
        self,
        experiment: str = "autobalance",
        *,
        run_name: str | None = None,
        run_id: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        try:
            import mlflow  # noqa: F401
        except ImportError:
            raise _missing("MLflowLogger", "mlflow-skinny") from None
        self._experiment, self._run_name = experiment, run_name
        self._tracking_uri, self._run_id = tracking_uri, run_id
        self._client: Any = None

    @property
    def name(self) -> str:
        """The experiment's."""
        return self._experiment

    @property
    def version(self) -> str | None:
        """Identifier of the run; None before anything was logged."""
        return self._run_id

    @property
    def client(self) -> Any:
        """MLflow's; the run exists from here on."""
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self._tracking_uri)
            if self._run_id is None:
                known = self._client.get_experiment_by_name(self._experiment)
                experiment = (
                    self._client.create_experiment(self._experiment)
                    if known is None
                    else known.experiment_id
                )
                run = self._client.create_run(experiment, run_name=self._run_name)
                self._run_id = run.info.run_id
        return self._client

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers by name, at a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        entries = [Metric(name, float(v), now, step or 0) for name, v in metrics.items()]
        self.client.log_batch(self.version, metrics=entries)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log settings; those of nested ones have dots in their names."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in _flat(params).items()]
        self.client.log_batch(self.version, params=entries)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Ends the run, as failed unless the status is "success"."""
        if self._client is not None:
            ended = "FINISHED" if status == "success" else "FAILED"
            self._client.set_terminated(self._run_id, status=ended)


class WandbLogger(Logger):
    """Logs to a run of Weights & Biases, through its own client.

    Each group of names (the part before the first slash) has its own axis of steps, so that search
    and retraining can log to one run.

    Parameters
    ----------
    project : str
        Where the run belongs.
    run : wandb.Run, optional
        A run of your own, in place of a new one.
    **settings
        For `wandb.init`, such as ``mode="offline"``, ``dir=``, ``name=``.

    Raises
    ------
    InputError
        If wandb is not installed.
    """

    def __init__(self, project: str = "autobalance", *, run: Any = None, **settings: Any) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise _missing("WandbLogger", "wandb") from None
        self._project, self._settings = project, settings
        self._run = run
        self._axes: set[str] = set()

    @property
    def name(self) -> str:
        """The project's."""
        return self._project

    @property
    def version(self) -> str | None:
        """Identifier of the run; None before anything was logged."""
        return None if self._run is None else self._run.id

    @property
    def run(self) -> Any:
        """The run, started where there is none yet."""
        if self._run is None:
            import wandb

            self._run = wandb.init(project=self._project, **self._settings)
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers by name, at a step."""
        found: dict[str, float] = dict(metrics)
        for group in {name.partition("/")[0] for name in metrics if "/" in name}:
            axis = f"{group}/step"
            if group not in self._axes:
                self.run.define_metric(axis, hidden=True)
                self.run.define_metric(f"{group}/*", step_metric=axis)
                self._axes.add(group)
            if step is not None:
                found[axis] = step
        self.run.log(found)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log settings; those of nested ones have dots in their names."""
        self.run.config.update(_flat(params), allow_val_change=True)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Ends the run, as failed unless the status is "success"."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "success" else 1)


def _flat(params: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under names joined by dots."""
    found: dict[str, Any] = {}
    for name, value in (params if isinstance(params, dict) else vars(params)).items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _missing(what: str, package: str) -> InputError:
    return InputError(
        f"{what} needs {package}. Install it: pip install 'autobalance[loggers]', or {package} alone."
    )
