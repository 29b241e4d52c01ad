r"""Probabilities of several labels from a network that was trained with adjusted logits.

For each label as for two classes: what was trained is z = delta f + l under weights w, whose minimiser has

.. math:: \mathrm{logit}\, p(y = 1 \mid x) = \delta f + l - \log(w^+ / w^-)

where both signs share delta and l. The odds of a label that is as frequent as not are less by its log odds in
training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autobalance._validation import InputError, instance, one_of
from autobalance.data import as_tensor
from autobalance.losses import ParametricBinaryCrossEntropy, sign_counts


def label_probabilities(
    logits: Any, loss: ParametricBinaryCrossEntropy, counts: Any, *, prior: str = "training"
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
    f = as_tensor("logits", logits).detach().double()
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
