r"""Probabilities of several labels from a network that was trained with adjusted logits.

For each label as for two classes: what was trained is z = delta f + l under weights w, whose minimiser has

.. math:: \mathrm{logit}\, p(y = 1 \mid x) = \delta f + l - \log(w^+ / w^-)

where both signs share delta and l. The odds of a label that is as frequent as not are less by its log odds in
training.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from autobalance._validation import InputError, instance, one_of, positive
from autobalance.data import as_label_matrix, as_tensor
from autobalance.losses import ParametricBinaryCrossEntropy, sign_counts


def label_probabilities(
    logits: Any,
    loss: ParametricBinaryCrossEntropy,
    counts: Any,
    *,
    prior: str = "training",
    temperature: float = 1.0,
) -> Tensor:
    """Posterior of each label, from raw logits of a network trained with a loss.

    Parameters
    ----------
    logits : Tensor or array-like
        Raw logits, shape ``(n, k)``.
    loss : ParametricBinaryCrossEntropy
        What the network was trained with.
    counts : array-like
        Negatives and positives of each label in training, shape ``(2, k)``.
    prior : {"training", "balanced"}
        How frequent labels are where the probabilities are for: as in training, or each in half of the
        examples.
    temperature : float
        What logits are divided by, above 0; see `fit_label_temperature`.

    Returns
    -------
    Tensor
        Shape ``(n, k)``, float64.

    Raises
    ------
    InputError
        If l or delta of the two signs differ, or shapes do not belong together.
    """
    instance("loss", loss, ParametricBinaryCrossEntropy)
    one_of("prior", prior, ("training", "balanced"))
    f = as_tensor("logits", logits).detach().double() / positive("temperature", temperature)
    negatives, positives = torch.from_numpy(sign_counts(counts)).to(f.device)
    if f.ndim != 2 or f.shape[1] != len(positives):
        raise InputError(f"logits must have shape (n, {len(positives)}); got {tuple(f.shape)}.")
    for name in ("additive", "multiplicative"):
        p = getattr(loss, name)
        if p is not None and p.ndim == 2 and not torch.equal(p[0], p[1]):
            raise InputError(
                f"The {name} adjustments differ between negatives and positives, so that no formula leads "
                "back to probabilities. Calibrate the scores on labelled examples instead."
            )
    additive, delta = (
        None if p is None else (p if p.ndim == 1 else p[0]).to(f)
        for p in (loss.additive, loss.multiplicative)
    )
    z = f if delta is None else f * delta
    z = z if additive is None else z + additive
    if loss.weight is not None and loss.weight.ndim == 2:
        w = loss.weight.to(f)
        z = z - (w[1] / w[0]).log()
    if prior == "balanced":
        z = z - (positives / negatives).log()
    return torch.sigmoid(z)


MOST_LOG_TEMPERATURE = 3.0


def fit_label_temperature(
    logits: Any,
    target: Any,
    loss: ParametricBinaryCrossEntropy,
    counts: Any,
    *,
    sample_weight: Any = None,
) -> float:
    """The temperature under which labels of other examples are most likely, one for all labels.

    The examples may have labels of any frequency: those of the examples take the place of the training's. A
    label without a positive or a negative among them says nothing.

    Parameters
    ----------
    logits, loss, counts
        As for `label_probabilities`.
    target : array-like
        0, 1, and -1 or NaN where not labelled, shape ``(n, k)``.
    sample_weight : array-like, optional
        What each example counts for, shape ``(n,)``.

    Raises
    ------
    InputError
        As for `label_probabilities`, or if no label has a positive and a negative.
    """
    y = as_label_matrix("target", as_tensor("target", target))
    weight = torch.ones(len(y), dtype=torch.float64)
    if sample_weight is not None:
        weight = torch.as_tensor(sample_weight, dtype=torch.float64)
    own = torch.stack([weight @ (y == sign).double() for sign in (0, 1)])
    usable = (own > 0).all(dim=0)
    if not bool(usable.any()):
        raise InputError(
            "No label has both a positive and a negative. Calibrate on other examples."
        )
    entries = weight[:, None] * (y >= 0) * usable
    log_odds = torch.where(usable, (own[1] / own[0].clamp(min=1e-300)).log(), 0.0)

    def surprise(log_temperature: float) -> float:
        p = label_probabilities(
            logits, loss, counts, prior="balanced", temperature=math.exp(log_temperature)
        )
        z = torch.logit(p.clamp(1e-15, 1.0 - 1e-15)) + log_odds
        each = F.binary_cross_entropy_with_logits(z, (y == 1).double(), reduction="none")
        return float((entries * each).sum() / entries.sum())

    bounds = (-MOST_LOG_TEMPERATURE, MOST_LOG_TEMPERATURE)
    found: Any = minimize_scalar(surprise, bounds=bounds, method="bounded")
    return math.exp(float(found.x))
