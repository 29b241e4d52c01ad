"""Comparisons of training losses on named datasets, with published baselines and statistics."""

__version__ = "0.1.0"
