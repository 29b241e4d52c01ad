"""The bilevel search: driver, lower level, loss tuner, retraining and the Pareto frontier."""

from autobalance.bilevel.candidate_selection import Outcomes, choose
from autobalance.bilevel.checkpoints import OtherRun
from autobalance.bilevel.driver import search, splits_of
from autobalance.bilevel.loggers import (
    MetricLogger,
    MLflowLogger,
    RunLog,
    WandbLogger,
    local_logger,
)
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, LossTuner
from autobalance.bilevel.lower_level import (
    FixedLoss,
    Interrupted,
    ModelFactory,
    Progress,
    ProgressListener,
    check_data,
    check_options,
    make_fabric,
    predict_logits,
    seeded,
)
from autobalance.bilevel.pareto_frontier import (
    MIXES,
    Baseline,
    Frontier,
    FrontierPoint,
    baselines,
    frontier,
)
from autobalance.bilevel.result import SearchResult, extended, used_versions
from autobalance.bilevel.retraining import retrain

__all__ = [
    "DEFAULT_SOLVER",
    "MIXES",
    "Baseline",
    "FixedLoss",
    "Frontier",
    "FrontierPoint",
    "Interrupted",
    "LossTuner",
    "MLflowLogger",
    "MetricLogger",
    "ModelFactory",
    "OtherRun",
    "Outcomes",
    "Progress",
    "ProgressListener",
    "RunLog",
    "SearchResult",
    "WandbLogger",
    "baselines",
    "check_data",
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
