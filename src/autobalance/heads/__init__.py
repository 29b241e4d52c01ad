"""Frozen-feature mode: features once, then a linear head searched and retrained exactly."""

from autobalance.heads.features import extract_features
from autobalance.heads.search import retrain_head, search_head

__all__ = [
    "extract_features",
    "retrain_head",
    "search_head",
]
