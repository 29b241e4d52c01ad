"""A network as a function of its weights: passes, products, borrowing and processes."""

from autobalance.functional.model import (
    Passes,
    borrowed,
    call_network,
    flatten,
    logits_of,
    trainable,
    unflatten,
)
from autobalance.functional.processes import (
    ALONE,
    Processes,
    first_process,
    processes_started,
    unwrapped,
)

__all__ = [
    "ALONE",
    "Passes",
    "Processes",
    "borrowed",
    "call_network",
    "first_process",
    "flatten",
    "logits_of",
    "processes_started",
    "trainable",
    "unflatten",
    "unwrapped",
]
