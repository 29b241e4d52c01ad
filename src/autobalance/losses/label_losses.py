"""Losses of several labels as modules: the parametric binary cross-entropy, and published ones beside it."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autobalance._validation import (
    InputError,
    finite_number,
    not_negative,
    one_of,
    positive,
    shown,
    zero_to_one,
)
from autobalance.losses.binary import (
    check_label_values,
    check_labels,
    is_known,
    reduced_binary_loss,
)
from autobalance.losses.modules import (
    ArrayLike,
    _parameter,
    parameters_from_dict,
    parameters_to_dict,
    register_parameters,
)
from autobalance.losses.parametric import LossParameters, Reduction
from autobalance.losses.published import _PublishedLoss
from autobalance.records import check_format, parsed_record

BINARY_FORMAT = "autobalance-binary-loss"
_WHAT = "a loss of several labels written by autobalance"


def _of_labels(name: str, value: ArrayLike | None, *, above_zero: bool) -> Tensor | None:
    """A parameter per label ``(k,)``, or per sign and label ``(2, k)``."""
    tensor = _parameter(name, value, above_zero=above_zero)
    if tensor is not None and tensor.ndim == 2 and len(tensor) != 2:
        raise InputError(
            f"{name} needs one number per label (k,), or a row for negatives and one for positives (2, k); "
            f"got shape {tuple(tensor.shape)}."
        )
    return tensor


def _check_width(logits: Any, num_labels: int | None) -> None:
    if num_labels is not None and isinstance(logits, Tensor) and logits.shape[-1] != num_labels:
        raise InputError(
            f"The loss has parameters for {num_labels} labels, but the network returned logits of width "
            f"{logits.shape[-1]}. Give the network's last layer {num_labels} outputs."
        )


def sign_counts(counts: ArrayLike) -> np.ndarray:
    """Negatives and positives of each label ``(2, k)``, checked: a label needs one of each.

    Raises
    ------
    InputError
        If they are no such table, or a label has no positive or no negative example.
    """
    try:
        table = np.asarray(counts, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"counts must hold numbers of examples; got {shown(counts)}.") from None
    if table.ndim != 2 or len(table) != 2 or table.shape[1] < 2 or not (table >= 0).all():
        raise InputError(
            "counts needs two rows, the negatives and the positives of each of at least two labels, (2, k); "
            f"got shape {table.shape}. ArrayData.of(x, y).counts() makes them."
        )
    for row, sign in zip(table, ("negative", "positive"), strict=True):
        empty = np.flatnonzero(row == 0).tolist()
        if empty:
            raise InputError(
                f"Label {empty[0]} has no {sign} training example (labels without any: {shown(empty)}). "
                "Leave these labels out, or add examples."
            )
    return table


class ParametricBinaryCrossEntropy(nn.Module):
    r"""Binary cross-entropy of several labels with fixed weights and logit adjustments by label and sign.

    .. math::
        \ell(y, f) = -w_y \log \mathrm{sigmoid}(\pm (\delta_y f + l_y)),
        \qquad + \text{ for } y = 1, \; - \text{ for } y = 0

    It is the parametric cross-entropy of each label's two classes, and without arguments
    `torch.nn.BCEWithLogitsLoss`. It needs nothing else of this library to be trained with.

    Parameters
    ----------
    weight, additive, multiplicative : array-like, optional
        w, l and delta: shape ``(k,)`` for both signs of a label, or ``(2, k)`` with a row for negatives and
        a row for positives. w and delta must be above 0. None leaves that part out.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of labelled entries, whatever w is, as torch does.

    Raises
    ------
    InputError
        If a parameter is not as above, or they are of different numbers of labels.

    Examples
    --------
    >>> loss = ParametricBinaryCrossEntropy.logit_adjusted([[90, 99], [10, 1]])
    >>> value = loss(torch.zeros(2, 2), torch.tensor([[0, 1], [1, -1]]))
    """

    weight: Tensor | None
    additive: Tensor | None
    multiplicative: Tensor | None

    def __init__(
        self,
        weight: ArrayLike | None = None,
        additive: ArrayLike | None = None,
        multiplicative: ArrayLike | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        one_of("reduction", reduction, ("mean", "sum", "none"))
        parameters = LossParameters(
            _of_labels("weight", weight, above_zero=True),
            _of_labels("additive", additive, above_zero=False),
            _of_labels("multiplicative", multiplicative, above_zero=True),
        )
        register_parameters(self, parameters)
        widths = {p.shape[-1] for p in self.parameters_of_loss if p is not None}
        if len(widths) > 1:
            raise InputError(
                f"weight, additive and multiplicative must agree in labels; got {sorted(widths)}."
            )
        self.reduction: Reduction = reduction

    @property
    def parameters_of_loss(self) -> LossParameters:
        """w, l and delta as one record."""
        return LossParameters(self.weight, self.additive, self.multiplicative)

    @property
    def num_labels(self) -> int | None:
        """Number of labels, or None for plain cross-entropy, which fits any."""
        return next((p.shape[-1] for p in self.parameters_of_loss if p is not None), None)

    @property
    def num_classes(self) -> int | None:
        """The same, by the name that losses of classes have for it."""
        return self.num_labels

    def forward(
        self,
        input: Tensor,  # torch's name for it, so that the loss can stand in for torch's own
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of raw logits ``(n, k)`` against 0 and 1 ``(n, k)``, -1 or NaN where not labelled.

        `sample_weight` has one number per example ``(n,)``; `groups` have no part.
        """
        _check_width(input, self.num_labels)
        return reduced_binary_loss(
            input, target, self.parameters_of_loss, sample_weight=sample_weight,
            reduction=self.reduction, fused=True,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Which parts there are, and the reduction."""
        parts = [n for n, p in self.parameters_of_loss._asdict().items() if p is not None]
        return f"{', '.join(parts)}; labels={self.num_labels}, reduction={self.reduction}"

    # Special cases ------------------------------------------------------------------------

    @classmethod
    def cross_entropy(cls, **options: Any) -> ParametricBinaryCrossEntropy:
        """Plain binary cross-entropy, `torch.nn.BCEWithLogitsLoss`."""
        return cls(**options)

    @classmethod
    def with_pos_weight(cls, pos_weight: ArrayLike, **options: Any) -> ParametricBinaryCrossEntropy:
        """Positives weighed ``(k,)``, as `pos_weight` of `torch.nn.BCEWithLogitsLoss`.

        Negatives over positives of each label, ``counts[0] / counts[1]``, are the usual choice.
        """
        own = _parameter("pos_weight", pos_weight, above_zero=True)
        if own is None or own.ndim != 1:
            raise InputError("pos_weight needs one number per label, shape (k,).")
        return cls(weight=torch.stack([torch.ones_like(own), own]), **options)

    @classmethod
    def logit_adjusted(
        cls, counts: ArrayLike, tau: float = 1.0, **options: Any
    ) -> ParametricBinaryCrossEntropy:
        """Logit adjustment of each label's two classes, l = tau log(positives / negatives).

        With tau = 1 it is consistent for the mean over labels of the balanced error (Menon et al.,
        ICLR 2021, of two classes); `counts` are negatives and positives ``(2, k)``.
        """
        negatives, positives = sign_counts(counts)
        return cls(
            additive=float(finite_number("tau", tau)) * np.log(positives / negatives), **options
        )

    # JSON ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything that makes the loss, in JSON's types; numbers keep all their digits."""
        return {
            "format": BINARY_FORMAT,
            "version": 1,
            **parameters_to_dict(self.parameters_of_loss),
            "reduction": self.reduction,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ParametricBinaryCrossEntropy:
        """Inverse of `to_dict`."""
        check_format(record, BINARY_FORMAT, _WHAT, "loss")
        reduction = cast(Reduction, record.get("reduction", "mean"))
        return cls(**parameters_from_dict(record), reduction=reduction)

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> ParametricBinaryCrossEntropy:
        """Inverse of `to_json`."""
        return cls.from_dict(parsed_record(text, _WHAT))


class AsymmetricLoss(_PublishedLoss):
    r"""Asymmetric loss: easy negatives count less than easy positives, very easy ones nothing.

    .. math::
        \ell(1, f) = -(1 - p)^{\gamma_+} \log p, \qquad
        \ell(0, f) = -p_m^{\gamma_-} \log(1 - p_m), \qquad p_m = \max(p - m, 0)

    Parameters
    ----------
    gamma_neg, gamma_pos : float
        The focusing exponents, at least 0.
    clip : float
        m, in [0, 1]: negatives of a smaller probability count for nothing.
    reduction : {"mean", "sum", "none"}
        The paper sums over labels; "mean" divides by the number of labelled entries, as our other losses.

    Raises
    ------
    InputError
        If an argument is not as above.

    References
    ----------
    Ben-Baruch et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021, eq. 7; the defaults are
    those of its code.
    """

    ARGUMENTS = ("gamma_neg", "gamma_pos", "clip", "reduction")

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.gamma_neg = float(not_negative("gamma_neg", gamma_neg))
        self.gamma_pos = float(not_negative("gamma_pos", gamma_pos))
        self.clip = float(zero_to_one("clip", clip))
        one_of("reduction", reduction, ("mean", "sum", "none"))
        self.reduction: Reduction = reduction

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """As `ParametricBinaryCrossEntropy.forward`."""
        check_labels(input, target, sample_weight)
        f = input.to(torch.promote_types(input.dtype, torch.float32))
        tiny = torch.finfo(f.dtype).tiny
        p = torch.sigmoid(f)
        shifted = (p - self.clip).clamp(min=0.0)
        log_rest = torch.log1p(-shifted) if self.clip else F.logsigmoid(-f)
        # Kept above 0: a power below 1 has an infinite derivative there.
        right = torch.sigmoid(-f).clamp(min=tiny) ** self.gamma_pos * F.logsigmoid(f)
        wrong = shifted.clamp(min=tiny) ** self.gamma_neg * log_rest
        return _reduced(
            -torch.where(target == 1, right, wrong), target, sample_weight, self.reduction
        )


class DistributionBalancedLoss(_PublishedLoss):
    r"""Distribution-balanced loss: weights that know of co-occurring labels, and tolerant negatives.

    .. math::
        \ell(y, f) = \hat r \begin{cases}
            \log(1 + e^{-(f - \nu)}) & y = 1 \\
            \log(1 + e^{\lambda (f - \nu)}) / \lambda & y = 0
        \end{cases}, \qquad
        \hat r = \alpha + \mathrm{sigmoid}\left(\beta \left(
            \frac{1 / n_j}{\sum_{i: y_i = 1} 1 / n_i} - \mu\right)\right), \qquad
        \nu_j = \kappa \log(N / n_j - 1)

    Up to the weight of each example and label it is a `ParametricBinaryCrossEntropy` with parameters by
    sign.

    Parameters
    ----------
    counts : array-like
        Negatives and positives of each label in training, shape ``(2, k)``.
    alpha, beta, mu : float
        What maps the ratio to a weight; alpha not negative, beta above 0.
    lambda_neg : float
        lambda, above 0: how tolerant negatives are.
    kappa : float
        Share of the labels' prior in the margins, not negative.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of labelled entries.

    Raises
    ------
    InputError
        If an argument is not as above.

    References
    ----------
    Wu et al., "Distribution-Balanced Loss for Multi-label Classification in Long-Tailed Datasets", ECCV
    2020, eq. 4 to 10; the defaults are its values for COCO-LT.
    """

    ARGUMENTS = ("counts", "alpha", "beta", "mu", "lambda_neg", "kappa", "reduction")
    counts: Tensor
    margin: Tensor

    def __init__(
        self,
        counts: ArrayLike,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        lambda_neg: float = 2.0,
        kappa: float = 0.05,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        table = torch.tensor(sign_counts(counts), dtype=torch.get_default_dtype())
        self.register_buffer("counts", table)
        self.alpha = float(not_negative("alpha", alpha))
        self.beta = float(positive("beta", beta))
        self.mu = float(finite_number("mu", mu))
        self.lambda_neg = float(positive("lambda_neg", lambda_neg))
        self.kappa = float(not_negative("kappa", kappa))
        self.register_buffer("margin", self.kappa * (table[0] / table[1]).log())
        one_of("reduction", reduction, ("mean", "sum", "none"))
        self.reduction: Reduction = reduction

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """As `ParametricBinaryCrossEntropy.forward`."""
        _check_width(input, self.counts.shape[1])
        check_labels(input, target, sample_weight)
        dtype = torch.promote_types(input.dtype, torch.float32)
        rarity = 1.0 / self.counts[1].to(dtype)
        chance = (target == 1).to(dtype) @ rarity
        # An example without any label has the largest weight that there is.
        ratio = rarity / chance[:, None].clamp(min=torch.finfo(dtype).tiny)
        factor = self.alpha + torch.sigmoid(self.beta * (ratio - self.mu))
        loss = reduced_binary_loss(input, target, self._parameters_of(dtype), reduction="none")
        return _reduced(factor * loss, target, sample_weight, self.reduction)

    def _parameters_of(self, dtype: torch.dtype) -> LossParameters:
        """The rest of the loss as w, l and delta by sign."""
        margin = self.margin.to(dtype)
        ones, slope = torch.ones_like(margin), torch.full_like(margin, self.lambda_neg)
        return LossParameters(
            torch.stack([1.0 / slope, ones]),
            torch.stack([-slope * margin, -margin]),
            torch.stack([slope, ones]),
        )


def _reduced(
    loss: Tensor, target: Tensor, sample_weight: Tensor | None, reduction: Reduction
) -> Tensor:
    """Losses ``(n, k)`` of the labelled entries, weighted and reduced as `reduced_binary_loss` does."""
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_values(target)
    known = is_known(target)
    scale = known.to(loss.dtype)
    if sample_weight is not None:
        scale = scale * sample_weight.to(loss.dtype)[:, None]
    loss = torch.where(known, loss, 0.0) * scale
    if reduction == "none":
        return loss
    tiny = torch.finfo(loss.dtype).tiny
    return loss.sum() if reduction == "sum" else loss.sum() / scale.sum().clamp(min=tiny)
