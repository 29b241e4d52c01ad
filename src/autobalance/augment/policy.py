r"""Augmentation policies for the upper level to tune, one per class or shared by all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import InputError, class_counts, fraction, positive, whole
from autobalance.augment.augmentation import Augmentation, graded_only
from autobalance.augment.images import image_operations
from autobalance.augment.operations import Operation, checked_operations
from autobalance.augment.random_draws import Draw, apply_operations, checked_values
from autobalance.augment.tensors import tensor_operations
from autobalance.data import as_tensor


def _rows(counts: np.ndarray, personalised: bool, clusters: int | None) -> np.ndarray:
    """Index of the row of free deviations for each cell; cells of similar counts may share one."""
    if not personalised:
        if clusters is not None:
            raise InputError("clusters needs personalised=True: a shared policy has none.")
        return np.zeros(counts.shape, dtype=np.int64)
    size = 1 if clusters is None else whole("clusters", clusters, least=1)
    if size == 1:
        return np.arange(counts.size).reshape(counts.shape)
    row = np.empty(counts.size, dtype=np.int64)
    row[np.argsort(-counts.ravel(), kind="stable")] = np.arange(counts.size) // size
    return row.reshape(counts.shape)


class AugmentationPolicy(nn.Module):
    r"""Augmentation whose probabilities and magnitudes are free, as a design space's loss is.

    .. math::
        \mathrm{logit}\, p_{yo} = a_o + \epsilon_{yo}, \qquad
        \mathrm{logit}\, m_{yo} = b_o + \epsilon'_{yo}

    for class y (or class and group) and operation o: strengths shared by all classes, and
    deviations of each that a Gaussian prior shrinks. Operation o acts on an example of class y by
    g m u times its limit, with a gate g of probability p and u uniform in [-1, 1] where the
    operation is signed, else in [0, 1].

    Gates are "hard" by default: an example passes an operation entirely or not at all, so p is exactly
    how often an operation acts, and no image is the double exposure that a half flip would be. Their
    derivative is that of their probability, see `draw_batch`; it has no bias. "relaxed" gates blend and are
    differentiated through. `frozen` keeps the kind, so both train as they were searched.

    Parameters
    ----------
    counts : array-like
        Training examples per class ``(k,)``, or per group and class ``(g, k)``. A cell without any
        keeps the shared strengths.
    operations : sequence of Operation
        m of them, in the order in which they act; neighbours among the geometric ones are one
        warp.
    personalised : bool
        False: one policy for all classes.
    clusters : int, optional
        Cells of similar counts share their deviations, so many in each. None: each has its own.
    probability, magnitude : float
        Where all p and m start, in (0, 1).
    sigma_shared, sigma_eps : float
        Standard deviations of the priors on the shared strengths and on each deviation, in logits.
    temperature : float
        Of the relaxed gate, sigmoid((logit p + logistic noise) / temperature).
    gate : {"hard", "relaxed"}
        See above.
    value_range : tuple
        Lowest and highest value of images, two numbers or two lists with one per channel; for
        standardised images those of 0 and 1 before. Results stay within.

    Attributes
    ----------
    counts : Tensor
        As given.
    operations : tuple of Operation

    References
    ----------
    Li et al., "AutoBalance", NeurIPS 2021, section 4 (personalised data augmentation). Hataya et
    al., "Meta Approach to Data Augmentation Optimization", WACV 2022, for one shared policy.
    """

    counts: Tensor
    row: Tensor
    present: Tensor

    def __init__(
        self,
        counts: Any,
        operations: Sequence[Operation],
        *,
        personalised: bool = True,
        clusters: int | None = None,
        probability: float = 0.5,
        magnitude: float = 0.3,
        sigma_shared: float = 4.0,
        sigma_eps: float = 2.0,
        temperature: float = 0.5,
        gate: str = "hard",
        value_range: Any = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.operations = checked_operations(operations)
        self.draw = Draw.checked(gate, temperature, value_range)
        self._values_checked = False
        self.personalised = personalised
        self.sigma_shared = positive("sigma_shared", sigma_shared)
        self.sigma_eps = positive("sigma_eps", sigma_eps)
        self.start = {
            "shared_probability": _logit(fraction("probability", probability)),
            "shared_magnitude": _logit(fraction("magnitude", magnitude)),
        }
        cells = class_counts(counts, name="counts", allow_empty=True)
        row = _rows(cells, personalised, clusters)
        dtype = torch.get_default_dtype()
        self.register_buffer("counts", torch.tensor(cells, dtype=dtype))
        self.register_buffer("row", torch.from_numpy(row))
        self.register_buffer("present", torch.tensor(cells > 0, dtype=dtype))
        m = len(self.operations)
        for name, value in self.start.items():
            self.register_parameter(name, nn.Parameter(torch.full((m,), value)))
        if personalised:
            for name in ("eps_probability", "eps_magnitude"):
                free = torch.zeros(int(row.max()) + 1, m)
                self.register_parameter(name, nn.Parameter(free))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.counts.shape[-1]

    @property
    def num_groups(self) -> int | None:
        """Number of groups, or None where counts are per class."""
        return None if self.counts.ndim == 1 else self.counts.shape[0]

    def _logits(self, what: str) -> Tensor:
        """Of all cells, ``(k, m)`` or ``(g, k, m)``."""
        shared = getattr(self, f"shared_{what}")
        if not self.personalised:
            return shared.expand(*self.row.shape, -1)
        return shared + getattr(self, f"eps_{what}")[self.row] * self.present[..., None]

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        """The batch after one random draw, differentiable in the magnitudes, and by relaxed gates in p.

        Parameters
        ----------
        inputs : Tensor
            Images ``(n, c, h, w)`` within `value_range`, c = 1 or 3, or standardised tables and
            embeddings, as the operations need.
        target : Tensor
            Class indices, shape ``(n,)``, int64. Examples with a negative one, which losses
            ignore, stay as they are.
        groups : Tensor, optional
            Group indices, shape ``(n,)``; needed where counts are per group.

        Returns
        -------
        Tensor
            Shape, dtype and device of the inputs. Randomness is that of torch's global generator of
            the device, and as many numbers are drawn whatever the free parameters are: under one
            seed, two policies draw alike.

        Raises
        ------
        InputError
            If shape, dtype or, in the first batch, the values do not fit the operations.
        """
        return self.draw_batch(inputs, target, groups)[0]

    def draw_batch(
        self, inputs: Tensor, target: Tensor, groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward`, and the log probability of each example's gates ``(n,)``, None for relaxed ones.

        An example that passed a hard gate or not has no derivative by p, but the mean over draws of
        any function of it has: of the function times the gradient of this log probability (Williams, 1992).
        """
        if not self._values_checked:
            checked_values(inputs, self.operations, self.draw)
            self._values_checked = True
        return apply_operations(
            self.operations,
            self._logits("probability"),
            torch.sigmoid(self._logits("magnitude")),
            inputs,
            target,
            groups,
            self.draw,
        )

    def penalty(self) -> Tensor:
        """Negative log prior of the free parameters, a scalar, 0 at the start."""
        total = self.counts.new_zeros(())
        for name, p in self.named_parameters():
            sigma = self.sigma_shared if name in self.start else self.sigma_eps
            total = total + (p - self.start.get(name, 0.0)).square().sum() / (2 * sigma**2)
        return total

    def tables(self) -> tuple[Tensor, Tensor]:
        """Probability and magnitude, ``(k, m)`` or ``(g, k, m)``, differentiable.

        Operations without a magnitude of their own have 1 there, so that the product is the expected
        strength relative to the limit for all of them.
        """
        probability, magnitude = (
            torch.sigmoid(self._logits(what)) for what in ("probability", "magnitude")
        )
        return probability, graded_only(magnitude, self.operations)

    def frozen(self) -> Augmentation:
        """The augmentation at the present values, free of what tunes it."""
        probability, magnitude = self.tables()
        return Augmentation(self.operations, probability, magnitude, **self.draw.to_dict())

    def values(self) -> dict[str, list[Any]]:
        """The free parameters by name, for records."""
        return {name: p.detach().tolist() for name, p in self.named_parameters()}

    def extra_repr(self) -> str:
        """Classes, groups, kind and operations."""
        names = ", ".join(o.name for o in self.operations)
        return (
            f"classes={self.num_classes}, groups={self.num_groups}, "
            f"personalised={self.personalised}, operations={names}"
        )


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def default_policy(
    inputs: Any, counts: Any, personalised: bool = True, **options: Any
) -> AugmentationPolicy:
    """The policy with the default operations for inputs of this shape.

    Parameters
    ----------
    inputs : Tensor or ndarray
        Training inputs or some of them, floating-point: images ``(n, c, h, w)`` with c = 1 or 3,
        or a standardised table ``(n, d)``.
    counts, personalised
        As for `AugmentationPolicy`.
    **options
        More of its options; images outside of [0, 1] need `value_range`.

    Raises
    ------
    InputError
        If the shape, dtype, channels or values fit neither set of operations.
    """
    inputs = as_tensor("inputs", inputs)
    if inputs.ndim == 4:
        operations = image_operations(inputs.shape[1])
    elif inputs.ndim == 2:
        operations = tensor_operations(inputs.shape[1])
    else:
        raise InputError(
            "There is a default policy for images (n, c, h, w) and for tables (n, d); these inputs "
            f"have shape {tuple(inputs.shape)}. Build an AugmentationPolicy with "
            "tensor_operations() or operations of your own."
        )
    policy = AugmentationPolicy(counts, operations, personalised=personalised, **options)
    checked_values(inputs, policy.operations, policy.draw)
    if inputs.ndim == 2 and len(inputs) > 1:
        widest = float(inputs.std(dim=0).max())
        if not widest < TOO_WIDE:
            raise InputError(
                "Strengths of table operations are in standard deviations, so features must be "
                f"standardised; one has a standard deviation of {widest:g}."
            )
    return policy


TOO_WIDE = 10.0
"""Standard deviation from which a feature was surely not standardised."""
