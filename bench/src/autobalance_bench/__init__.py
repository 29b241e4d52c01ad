"""Comparisons of training losses on named datasets, with published baselines and statistics."""

__version__ = "0.2.0"
