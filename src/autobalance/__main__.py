"""``python -m autobalance``."""

from autobalance.cli import entry

entry()
