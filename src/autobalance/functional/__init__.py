"""A network as a function of its weights: passes, products, borrowing and processes."""

from autobalance.functional.derivative_check import choose_derivative, forget_checks
from autobalance.functional.model import (
    Derivative,
    FunctionalModel,
    Linearization,
    flatten,
    needs_copies,
    trainable,
    unflatten,
    use_copies,
)
from autobalance.functional.module_state import (
    evaluation_mode,
    evaluation_of_plain_layers,
    mode_overrides,
    preserve_module_state,
)
from autobalance.functional.outputs import call_network, compute_logits, warn_if_probabilities
from autobalance.functional.processes import (
    ALONE,
    Processes,
    first_process,
    processes_started,
    unwrap,
)

__all__ = [
    "ALONE",
    "Derivative",
    "FunctionalModel",
    "Linearization",
    "Processes",
    "call_network",
    "choose_derivative",
    "compute_logits",
    "evaluation_mode",
    "evaluation_of_plain_layers",
    "first_process",
    "flatten",
    "forget_checks",
    "mode_overrides",
    "needs_copies",
    "preserve_module_state",
    "processes_started",
    "trainable",
    "unflatten",
    "unwrap",
    "use_copies",
    "warn_if_probabilities",
]
