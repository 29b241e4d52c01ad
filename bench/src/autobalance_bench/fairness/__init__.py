"""Baselines of group-sensitive classification, and how their frontiers are measured."""
