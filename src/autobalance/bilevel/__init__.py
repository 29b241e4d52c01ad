"""The bilevel search: driver, lower level, loss tuner, retraining and the Pareto frontier."""

from autobalance.bilevel.arms import AS_IT_IS, DEFAULT_ARMS, Arm, as_arms
from autobalance.bilevel.candidate_selection import Outcomes, choose
from autobalance.bilevel.checkpoints import OtherRun
from autobalance.bilevel.driver import BilevelSearch
from autobalance.bilevel.early_stopping import stop_early
from autobalance.bilevel.execution import check_options, make_fabric, seed_random_state
from autobalance.bilevel.held_out import split_rows, splits_of
from autobalance.bilevel.loggers import LoggerAdapter, MetricLogger, local_logger
from autobalance.bilevel.loss_tuner import DEFAULT_SOLVER, LossTuner, UpperStep, gradients_of
from autobalance.bilevel.network_search import search
from autobalance.bilevel.one_run import (
    RELEASE,
    Retraining,
    TrainedSearch,
    search_and_train,
)
from autobalance.bilevel.pareto_frontier import (
    MIXES,
    Baseline,
    Frontier,
    FrontierPoint,
    baselines,
    frontier,
)
from autobalance.bilevel.prediction import predict_logits
from autobalance.bilevel.racing import Train, race, with_arm
from autobalance.bilevel.result import SearchResult, used_versions
from autobalance.bilevel.retraining import retrain
from autobalance.bilevel.search_spec import SearchSpec
from autobalance.bilevel.types import (
    FixedLoss,
    Interrupted,
    ModelFactory,
    Progress,
    ProgressListener,
)

__all__ = [
    "AS_IT_IS",
    "DEFAULT_ARMS",
    "DEFAULT_SOLVER",
    "MIXES",
    "RELEASE",
    "Arm",
    "Baseline",
    "BilevelSearch",
    "FixedLoss",
    "Frontier",
    "FrontierPoint",
    "Interrupted",
    "LoggerAdapter",
    "LossTuner",
    "MetricLogger",
    "ModelFactory",
    "OtherRun",
    "Outcomes",
    "Progress",
    "ProgressListener",
    "Retraining",
    "SearchResult",
    "SearchSpec",
    "Train",
    "TrainedSearch",
    "UpperStep",
    "as_arms",
    "baselines",
    "check_options",
    "choose",
    "frontier",
    "gradients_of",
    "local_logger",
    "make_fabric",
    "predict_logits",
    "race",
    "retrain",
    "search",
    "search_and_train",
    "seed_random_state",
    "split_rows",
    "splits_of",
    "stop_early",
    "used_versions",
    "with_arm",
]
