"""Labelled examples: arrays, Datasets, tables, batches, splits and samplers.

`ArrayData` holds examples in memory, `DatasetData` takes any map-style Dataset, `StoredRows` are inputs
in files, and `BalancedSampler` keeps classes and groups even in loaders of your own.
"""

from autobalance.data.array_data import ArrayData, MissingGroups, concatenated, reading
from autobalance.data.arrays import UNKNOWN, as_tensor, finite, indices
from autobalance.data.batches import Batch, BatchSource, as_batch, as_batches, moved
from autobalance.data.columns import Table, as_table
from autobalance.data.dataset_data import DatasetData, as_data, as_inputs, is_dataset
from autobalance.data.dataset_reader import ExampleError
from autobalance.data.dense import count_by_image
from autobalance.data.fashion import CLASSES, ImageSet, as_image_set, long_tailed_sample
from autobalance.data.index_streams import BalancedBatches, ResampledBatches, ShuffledBatches
from autobalance.data.label_matrix import (
    as_label_matrix,
    labelled_entries,
    labels_without_both,
    rarest_labels,
    shape_of,
)
from autobalance.data.labels import (
    NO_GROUP,
    class_labels,
    group_names,
    number_groups,
    number_of,
    positions,
    shortened,
)
from autobalance.data.lazy_inputs import LazyInputs, sampled
from autobalance.data.samplers import BalancedSampler
from autobalance.data.splits import assign_folds, stratified_folds
from autobalance.data.stored import StoredRows
from autobalance.data.table_encoder import TableEncoder, TableLayer, TableWarning, warn_of
from autobalance.data.table_file import TableFile, encode_in_parts, open_table
from autobalance.data.tables import check_expansion, column, read_table

__all__ = [
    "CLASSES",
    "NO_GROUP",
    "UNKNOWN",
    "ArrayData",
    "BalancedBatches",
    "BalancedSampler",
    "Batch",
    "BatchSource",
    "DatasetData",
    "ExampleError",
    "ImageSet",
    "LazyInputs",
    "MissingGroups",
    "ResampledBatches",
    "ShuffledBatches",
    "StoredRows",
    "Table",
    "TableEncoder",
    "TableFile",
    "TableLayer",
    "TableWarning",
    "as_batch",
    "as_batches",
    "as_data",
    "as_image_set",
    "as_inputs",
    "as_label_matrix",
    "as_table",
    "as_tensor",
    "assign_folds",
    "check_expansion",
    "class_labels",
    "column",
    "concatenated",
    "count_by_image",
    "encode_in_parts",
    "finite",
    "group_names",
    "indices",
    "is_dataset",
    "labelled_entries",
    "labels_without_both",
    "long_tailed_sample",
    "moved",
    "number_groups",
    "number_of",
    "open_table",
    "positions",
    "rarest_labels",
    "read_table",
    "reading",
    "sampled",
    "shape_of",
    "shortened",
    "stratified_folds",
    "warn_of",
]
