"""Designs the training loss for imbalanced and group-sensitive classification."""

from ._validation import (
    InputError as InputError,
)
from ._validation import (
    TrainingDiverged as TrainingDiverged,
)
from .augment import (
    Augmentation as Augmentation,
)
from .augment import (
    AugmentationPolicy as AugmentationPolicy,
)
from .augment import (
    default_policy as default_policy,
)
from .augment import (
    image_operations as image_operations,
)
from .augment import (
    tensor_operations as tensor_operations,
)
from .bilevel import (
    Frontier as Frontier,
)
from .bilevel import (
    FrontierPoint as FrontierPoint,
)
from .bilevel import (
    Interrupted as Interrupted,
)
from .bilevel import (
    LossTuner as LossTuner,
)
from .bilevel import (
    MLflowLogger as MLflowLogger,
)
from .bilevel import (
    SearchResult as SearchResult,
)
from .bilevel import (
    WandbLogger as WandbLogger,
)
from .bilevel import (
    frontier as frontier,
)
from .bilevel import (
    retrain as retrain,
)
from .bilevel import (
    search as search,
)
from .calibration import (
    corrected_probabilities as corrected_probabilities,
)
from .calibration import (
    fit_temperature as fit_temperature,
)
from .cli.run_folder import (
    save_search as save_search,
)
from .data import (
    ArrayData as ArrayData,
)
from .data import (
    Batch as Batch,
)
from .data import (
    DatasetData as DatasetData,
)
from .data import (
    ExampleError as ExampleError,
)
from .export import (
    export_model as export_model,
)
from .heads import (
    extract_features as extract_features,
)
from .heads import (
    retrain_head as retrain_head,
)
from .heads import (
    search_head as search_head,
)
from .hypergrad import (
    ConjugateGradient as ConjugateGradient,
)
from .hypergrad import (
    Exact as Exact,
)
from .hypergrad import (
    Identity as Identity,
)
from .hypergrad import (
    Neumann as Neumann,
)
from .hypergrad import (
    Nystrom as Nystrom,
)
from .hypergrad import (
    SingleLoop as SingleLoop,
)
from .losses import (
    DeferredLoss as DeferredLoss,
)
from .losses import (
    FocalLoss as FocalLoss,
)
from .losses import (
    GroupDROLoss as GroupDROLoss,
)
from .losses import (
    LDAMLoss as LDAMLoss,
)
from .losses import (
    ParametricCrossEntropy as ParametricCrossEntropy,
)
from .losses import (
    with_normalized_head as with_normalized_head,
)
from .objectives import (
    BalancedError as BalancedError,
)
from .objectives import (
    Blend as Blend,
)
from .objectives import (
    BoundedGap as BoundedGap,
)
from .objectives import (
    CrossEntropyRisk as CrossEntropyRisk,
)
from .objectives import (
    CVaRError as CVaRError,
)
from .objectives import (
    ErrorDeviation as ErrorDeviation,
)
from .objectives import (
    Objective as Objective,
)
from .objectives import (
    OddsGap as OddsGap,
)
from .objectives import (
    OpportunityGap as OpportunityGap,
)
from .objectives import (
    ParityGap as ParityGap,
)
from .objectives import (
    QuantileError as QuantileError,
)
from .objectives import (
    SmoothError as SmoothError,
)
from .objectives import (
    WeightedError as WeightedError,
)
from .objectives import (
    WorstError as WorstError,
)
from .posthoc import (
    cell_posterior as cell_posterior,
)
from .records import (
    Recipe as Recipe,
)
from .records import (
    SearchSettings as SearchSettings,
)
from .sklearn import (
    AutoBalanceClassifier as AutoBalanceClassifier,
)
from .spaces import (
    ClassSpace as ClassSpace,
)
from .spaces import (
    ClusterSpace as ClusterSpace,
)
from .spaces import (
    DesignSpace as DesignSpace,
)
from .spaces import (
    GroupSpace as GroupSpace,
)
from .spaces import (
    HierarchicalSpace as HierarchicalSpace,
)
from .spaces import (
    TunableCrossEntropy as TunableCrossEntropy,
)
from .spaces import (
    WithUnknownGroup as WithUnknownGroup,
)

__version__: str

__all__ = [
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
    "LossTuner",
    "MLflowLogger",
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
    "WandbLogger",
    "WeightedError",
    "WithUnknownGroup",
    "WorstError",
    "cell_posterior",
    "corrected_probabilities",
    "default_policy",
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
