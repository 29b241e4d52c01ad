r"""Design spaces: from few free parameters to the loss's w, l and delta.

A space is a module whose parameters are what the upper level learns. Calling it gives the
`LossParameters` at their present values; `penalty` is the negative logarithm of the prior
around the consistent start (up to a constant), which the upper level adds to its objective,
divided by the effective number of validation examples. Every space starts at a loss that is
Fisher consistent for the balanced error, unless told otherwise.

Two gauges are fixed, because the loss does not see them or should not: within a row the free
deviations of l sum to 0 (softmax ignores a common offset), and w has mean 1 over the training
examples (or it would learn the learning rate).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError, class_counts, shown
from autobalance.losses import LossParameters
from autobalance.records import recorded_kind

PARTS = ("weight", "additive", "multiplicative")
TRUSTED_SIZE = 50.0


def check_learned_parts(learn: Iterable[str], name: str = "learn") -> tuple[str, ...]:
    """The parts named, in the order of `PARTS`; refused where one is unknown or there is none."""
    chosen = (learn,) if isinstance(learn, str) or not isinstance(learn, Iterable) else tuple(learn)
    unknown = [part for part in chosen if part not in PARTS]
    if unknown or not chosen:
        raise InputError(f"{name} must name some of {', '.join(PARTS)}; got {shown(list(chosen))}.")
    return tuple(part for part in PARTS if part in chosen)


def centre(rows: Tensor) -> Tensor:
    """Rows ``(..., k)`` less their mean, so that each sums to 0."""
    return rows - rows.mean(dim=-1, keepdim=True)


class DesignSpace(nn.Module, ABC):
    """Base of all spaces.

    Attributes
    ----------
    learns : tuple of str
        Which of "weight", "additive" and "multiplicative" it learns.
    counts : Tensor
        Training examples per class ``(k,)``, or per group and class ``(g, k)``.
    """

    counts: Tensor

    def __init__(self, counts: Any, learn: Iterable[str]) -> None:
        super().__init__()
        self.learns = check_learned_parts(learn)
        table = torch.tensor(class_counts(counts, name="counts"), dtype=torch.get_default_dtype())
        self.register_buffer("counts", table)

    @property
    def num_classes(self) -> int:
        """Number of classes k."""
        return self.counts.shape[-1]

    @property
    def num_groups(self) -> int | None:
        """Number of groups g, or None where all examples share one row."""
        return None if self.counts.ndim == 1 else self.counts.shape[0]

    @abstractmethod
    def forward(self) -> LossParameters:
        """The loss's parameters at the present free parameters, differentiable in them."""

    def priors(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each free parameter's Gaussian prior, by its name.

        A parameter that is not there is free; by default all are.
        """
        return {}

    def penalty(self) -> Tensor:
        """Negative log prior of the free parameters, a scalar, 0 at the start."""
        total = self.counts.new_zeros(())
        priors = self.priors()
        for name, p in self.named_parameters():
            if name in priors:
                mean, deviation = priors[name]
                total = total + (p - mean).square().sum() / (2 * deviation**2)
        return total

    def values(self) -> dict[str, list[Any]]:
        """The free parameters by name, for records."""
        return {name: p.detach().tolist() for name, p in self.named_parameters()}

    def options(self) -> dict[str, Any]:
        """What the space was made with beside the counts, for `to_dict`."""
        return {"learn": list(self.learns)}

    def extra_repr(self) -> str:
        """The options, as `repr` shows them."""
        return ", ".join(f"{name}={value}" for name, value in self.options().items())

    def to_dict(self) -> dict[str, Any]:
        """The kind, counts, options and free parameters, of numbers, strings, lists and dicts alone."""
        kind, counts = type(self).__name__, self.counts.tolist()
        return {"kind": kind, "counts": counts, **self.options(), "values": self.values()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DesignSpace:
        """Inverse of `to_dict`, called on `DesignSpace` or the kind expected.

        Raises
        ------
        InputError
            If the record has an unknown kind, option or free parameter.
        """
        kind = recorded_kind(cls, record)
        options = {key: value for key, value in record.items() if key not in ("kind", "values")}
        if isinstance(options.get("space"), dict):
            options["space"] = DesignSpace.from_dict(options["space"])
        values = record.get("values", {})
        try:
            space = kind(**options)
            with torch.no_grad():
                for name, value in values.items():
                    space.get_parameter(name).copy_(torch.tensor(value, dtype=torch.float64))
        except InputError:
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"This record of {record['kind']} is altered: {error}.") from None
        return space

    def _mean_one(self, log_weight: Tensor) -> Tensor:
        """exp(log_weight) rescaled to mean 1 over the training examples; at least exp(-80), above 0."""
        log_shares = (self.counts / self.counts.sum()).log()
        mean = torch.logsumexp((log_weight + log_shares).flatten(), dim=0)
        return (log_weight - mean).clamp(min=-80.0).exp()


def prior_strength(effective_size: float) -> float:
    """What the prior counts for beside the objective: 1 / effective_size + 1 / TRUSTED_SIZE.

    The first part stands for the noise of the validation examples, see
    `Objective.effective_size`; the second for errors that more of them do not cure: the
    surrogate's, and the hypergradient's in a training that has not converged.
    """
    return 1.0 / effective_size + 1.0 / TRUSTED_SIZE
