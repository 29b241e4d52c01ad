"""The bilevel search: driver, lower level, loss tuner, retraining and the Pareto frontier."""

from autobalance.bilevel.candidate_selection import Outcomes, choose
from autobalance.bilevel.checkpoints import OtherRun
from autobalance.bilevel.driver import search, splits_of
from autobalance.bilevel.execution import check_options, make_fabric, seeded
from autobalance.bilevel.loggers import (
    MLflowLogger,
    MetricLogger,
    RunLog,
    WandbLogger,
    local_logger,
)
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, LossTuner
from autobalance.bilevel.pareto_frontier import (
    Baseline,
    Frontier,
    FrontierPoint,
    MIXES,
    baselines,
    frontier,
)
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.result import PathPoint, SearchResult, UpperRecord, extended, used_versions
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.types import (
    FixedLoss,
    Interrupted,
    ModelFactory,
    Progress,
    ProgressListener,
)

__all__ = [
    "Baseline",
    "DEFAULT_SOLVER",
    "FixedLoss",
    "Frontier",
    "FrontierPoint",
    "Interrupted",
    "LossTuner",
    "MIXES",
    "MLflowLogger",
    "MetricLogger",
    "ModelFactory",
    "OtherRun",
    "Outcomes",
    "PathPoint",
    "Progress",
    "ProgressListener",
    "RunLog",
    "SearchResult",
    "UpperRecord",
    "WandbLogger",
    "baselines",
    "check_options",
    "choose",
    "extended",
    "frontier",
    "local_logger",
    "make_fabric",
    "predict_logits",
    "retrain",
    "search",
    "seeded",
    "splits_of",
    "used_versions",
]
