"""Labelled examples: arrays, Datasets, tables, batches, splits and samplers.

`ArrayData` holds examples in memory, `DatasetData` takes any map-style Dataset, `StoredRows` are inputs
in files, and `BalancedSampler` keeps classes and groups even in loaders of your own.
"""

from autobalance.data.array_data import ArrayData, MissingGroups, concatenated, reading
from autobalance.data.arrays import UNKNOWN, as_tensor, finite, indices
from autobalance.data.batches import Batch, BatchSource, as_batch, as_batches, moved
from autobalance.data.dataset_data import DatasetData, as_data, as_inputs
from autobalance.data.dataset_reader import ExampleError
from autobalance.data.fashion import CLASSES, ImageSet, as_image_set, long_tailed_sample
from autobalance.data.index_streams import BalancedBatches, ResampledBatches, ShuffledBatches
from autobalance.data.labels import Labelled, numbered, plural, shortened
from autobalance.data.samplers import BalancedSampler
from autobalance.data.splits import stratified_folds
from autobalance.data.stored import StoredRows, sampled
from autobalance.data.tables import (
    TableEncoder,
    check_expansion,
    column,
    mistaken_for_text,
    read_table,
)

__all__ = [
    "CLASSES",
    "UNKNOWN",
    "ArrayData",
    "BalancedBatches",
    "BalancedSampler",
    "Batch",
    "BatchSource",
    "DatasetData",
    "ExampleError",
    "ImageSet",
    "Labelled",
    "MissingGroups",
    "ResampledBatches",
    "ShuffledBatches",
    "StoredRows",
    "TableEncoder",
    "as_batch",
    "as_batches",
    "as_data",
    "as_image_set",
    "as_inputs",
    "as_tensor",
    "check_expansion",
    "column",
    "concatenated",
    "finite",
    "indices",
    "long_tailed_sample",
    "mistaken_for_text",
    "moved",
    "numbered",
    "plural",
    "read_table",
    "reading",
    "sampled",
    "shortened",
    "stratified_folds",
]
