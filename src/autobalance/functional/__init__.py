"""A network as a function of its weights: passes, products, borrowing and processes."""

from autobalance.functional.derivative_check import choose_derivative
from autobalance.functional.hessian_check import has_exact_hessian
from autobalance.functional.model import (
    Derivative,
    FunctionalModel,
    Linearization,
    flatten,
    trainable,
    unflatten,
)
from autobalance.functional.module_state import (
    NetworkTraits,
    evaluation_mode,
    evaluation_of_plain_layers,
    mode_overrides,
    preserve_module_state,
    traits_of,
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
    "NetworkTraits",
    "Processes",
    "call_network",
    "choose_derivative",
    "compute_logits",
    "evaluation_mode",
    "evaluation_of_plain_layers",
    "first_process",
    "flatten",
    "has_exact_hessian",
    "mode_overrides",
    "preserve_module_state",
    "processes_started",
    "trainable",
    "traits_of",
    "unflatten",
    "unwrap",
    "warn_if_probabilities",
]
