"""Designs the training loss for imbalanced and group-sensitive classification."""

from ._validation import InputError, TrainingDiverged
from .augment import (
    Augmentation,
    AugmentationPolicy,
    default_policy,
    image_operations,
    tensor_operations,
)
from .bilevel import (
    Arm,
    Frontier,
    FrontierPoint,
    Interrupted,
    LossTuner,
    SearchResult,
    frontier,
    retrain,
    search,
)
from .calibration import corrected_probabilities, fit_temperature
from .cli.run_folder import save_search
from .data import ArrayData, Batch, DatasetData, ExampleError
from .export import export_model
from .heads import extract_features, retrain_head, search_head
from .hypergrad import ConjugateGradient, Exact, Identity, Neumann, Nystrom, SingleLoop
from .losses import (
    DeferredLoss,
    FocalLoss,
    GroupDROLoss,
    LDAMLoss,
    ParametricCrossEntropy,
    with_normalized_head,
)
from .objectives import (
    BalancedError,
    Blend,
    BoundedGap,
    CostMatrix,
    CrossEntropyRisk,
    CVaRError,
    ErrorDeviation,
    Objective,
    OddsGap,
    OpportunityGap,
    ParityGap,
    QuantileError,
    SmoothError,
    WeightedError,
    WorstError,
    cost_matrix,
)
from .posthoc import Adjustment, cell_posterior, design_adjustment
from .records import Recipe, SearchSettings
from .sklearn import AutoBalanceClassifier, LogitAdjustedClassifierCV
from .spaces import (
    ClassSpace,
    ClusterSpace,
    DesignSpace,
    GroupSpace,
    HierarchicalSpace,
    TunableCrossEntropy,
    WithUnknownGroup,
)

__version__: str

__all__ = [
    "Adjustment",
    "Arm",
    "ArrayData",
    "Augmentation",
    "AugmentationPolicy",
    "AutoBalanceClassifier",
    "BalancedError",
    "Batch",
    "Blend",
    "BoundedGap",
    "CVaRError",
    "ClassSpace",
    "ClusterSpace",
    "ConjugateGradient",
    "CostMatrix",
    "CrossEntropyRisk",
    "DatasetData",
    "DeferredLoss",
    "DesignSpace",
    "ErrorDeviation",
    "Exact",
    "ExampleError",
    "FocalLoss",
    "Frontier",
    "FrontierPoint",
    "GroupDROLoss",
    "GroupSpace",
    "HierarchicalSpace",
    "Identity",
    "InputError",
    "Interrupted",
    "LDAMLoss",
    "LogitAdjustedClassifierCV",
    "LossTuner",
    "Neumann",
    "Nystrom",
    "Objective",
    "OddsGap",
    "OpportunityGap",
    "ParametricCrossEntropy",
    "ParityGap",
    "QuantileError",
    "Recipe",
    "SearchResult",
    "SearchSettings",
    "SingleLoop",
    "SmoothError",
    "TrainingDiverged",
    "TunableCrossEntropy",
    "WeightedError",
    "WithUnknownGroup",
    "WorstError",
    "cell_posterior",
    "corrected_probabilities",
    "cost_matrix",
    "default_policy",
    "design_adjustment",
    "export_model",
    "extract_features",
    "fit_temperature",
    "frontier",
    "image_operations",
    "retrain",
    "retrain_head",
    "save_search",
    "search",
    "search_head",
    "tensor_operations",
    "with_normalized_head",
]
