"""Labelled examples: arrays, Datasets, tables, batches, splits and samplers.

`ArrayData` holds examples in memory; `StoredRows` are inputs in files, read as they are needed;
`BalancedSampler` keeps classes and groups even in loaders of your own.
"""

from autobalance.data.batches import (
    UNKNOWN,
    ArrayData,
    BalancedBatches,
    Batch,
    MissingGroups,
    ResampledBatches,
    ShuffledBatches,
    as_batch,
    as_batches,
    as_tensor,
    concatenated,
    finite,
    indices,
    moved,
)
from autobalance.data.columns import Table, as_table
from autobalance.data.fashion import CLASSES, ImageSet, as_image_set, long_tailed_sample
from autobalance.data.labels import (
    NO_GROUP,
    Labelled,
    class_labels,
    group_names,
    number_groups,
    number_of,
    numbered,
    plural,
    positions,
    shortened,
)
from autobalance.data.samplers import BalancedSampler
from autobalance.data.splits import stratified_folds
from autobalance.data.stored import Part, StoredRows, sampled, written
from autobalance.data.table_encoder import TableEncoder, TableWarning, warn_of
from autobalance.data.tables import check_expansion, column, read_table

__all__ = [
    "CLASSES",
    "NO_GROUP",
    "UNKNOWN",
    "ArrayData",
    "BalancedBatches",
    "BalancedSampler",
    "Batch",
    "ImageSet",
    "Labelled",
    "MissingGroups",
    "Part",
    "ResampledBatches",
    "ShuffledBatches",
    "StoredRows",
    "Table",
    "TableEncoder",
    "TableWarning",
    "as_batch",
    "as_batches",
    "as_image_set",
    "as_table",
    "as_tensor",
    "check_expansion",
    "class_labels",
    "column",
    "concatenated",
    "finite",
    "group_names",
    "indices",
    "long_tailed_sample",
    "moved",
    "number_groups",
    "number_of",
    "numbered",
    "plural",
    "positions",
    "read_table",
    "sampled",
    "shortened",
    "stratified_folds",
    "warn_of",
    "written",
]
