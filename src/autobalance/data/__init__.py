"""Data in memory: examples, batches, splits, tables and image sets."""

from autobalance.data.batches import ArrayData, Batch, as_batch

__all__ = ["ArrayData", "Batch", "as_batch"]
