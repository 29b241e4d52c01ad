r"""Class probabilities from a network that was trained with adjusted logits.

Such a network is biased on purpose: its raw logits f are for deciding, and their softmax estimates
no training posterior. What was trained is z = delta * f + l under weights w. The loss's minimiser
over all functions has

.. math::
    \mathrm{softmax}(z)_k \propto w_k \, p(y = k \mid x), \qquad\text{so}\qquad
    p(y = k \mid x) = \mathrm{softmax}(\delta f + l - \log w)_k,

the posterior for the class prior pi of the training data. For another prior p', with p(x | y)
unchanged, Bayes' rule adds log(p'_k / pi_k). Under plain logit adjustment, w = delta = 1 and
l = log pi, the posterior for balanced classes is softmax(f); under a designed l it is not. Label
smoothing is not corrected for.

With one row per group the same holds within each group, for p(y | x, g) and pi_{k|g}. Where an
example's group is not known, the posterior is the mean of the rows' posteriors, weighted by their
shares of the training data; that is exact where x says nothing of the group.

A network that is too sure of itself has logits too large. `fit_temperature` finds T on held-out
data, and f / T takes the place of f: the evidence shrinks, the prior stays as it is, so that with a
large T the prediction becomes the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from autobalance._validation import (
    InputError,
    array_of_numbers,
    instance,
    one_of,
    positive,
    same_length,
)
from autobalance.data import ArrayData, as_tensor, indices
from autobalance.losses import ParametricCrossEntropy, adjusted_logits
from autobalance.objectives import per_pixel
from autobalance.records import (
    Calibration,
    classification_report,
    confused_pairs,
    counts_to_dict,
    expected_calibration_error,
    reliability,
)

Prior = str | Sequence[float] | np.ndarray
PRIORS = ("balanced", "training")
_MOST_NUMBERS = 4_000_000  # logits looked at for one temperature
_SPREAD = 0.5  # of 1/T around 1, in its prior
_RANGE = (0.05, 20.0)  # of 1/T


def corrected_probabilities(
    logits: Any,
    loss: ParametricCrossEntropy,
    class_counts: Any,
    *,
    prior: Prior = "training",
    groups: Any = None,
    temperature: float = 1.0,
) -> Tensor:
    """Posterior for a class prior, from raw logits of a network trained with a loss.

    Parameters
    ----------
    logits : Tensor or array-like
        Raw logits, shape ``(n, k)``, or dense ``(n, k, d1, ...)``.
    loss : ParametricCrossEntropy
        What the network was trained with.
    class_counts : array-like
        Examples (or the sum of their weights) in training, per class ``(k,)``, or per group and
        class ``(g, k)``, g being the loss's rows where it has such.
    prior : {"training", "balanced"} or array-like
        Class prior where the probabilities are for: that of training, all classes alike, or
        shares of your own, shape ``(k,)``; with groups given also ``(g, k)``, within each group.
        Shares need not sum to 1.
    groups : Tensor or array-like, optional
        Group of each example, shape ``(n,)``, if the loss has rows for groups and they are known.
    temperature : float
        T above 0, from `fit_temperature`; 1 leaves the logits as they are.

    Returns
    -------
    Tensor
        In the shape of the logits, float64.

    Raises
    ------
    InputError
        If shapes do not belong together, a class of the prior was not trained on, or the prior is
        none.
    """
    positive("temperature", temperature)
    instance("loss", loss, ParametricCrossEntropy)
    f = as_tensor("logits", logits).detach().double()
    if f.ndim > 2:
        if groups is not None:
            same_length(logits=f, groups=groups)
            groups = per_pixel(indices("groups", groups), f[:, 0]).flatten()
        flat = f.movedim(1, -1)
        p = corrected_probabilities(
            flat.flatten(0, -2),
            loss,
            class_counts,
            prior=prior,
            groups=groups,
            temperature=temperature,
        )
        return p.view(flat.shape).movedim(-1, 1)
    if f.ndim != 2:
        raise InputError(f"logits must have shape (n, k) or (n, k, d1, ...); got {tuple(f.shape)}.")
    counts = _counts(class_counts, loss, f.shape[1])
    rows = None if groups is None else indices("groups", groups)
    if rows is not None and loss.num_groups is None:
        rows = None  # the loss is the same for all
        counts = counts.sum(dim=0, keepdim=True)
    if rows is not None:
        same_length(logits=f, groups=rows)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(counts):
            raise InputError(f"groups must lie in 0..{len(counts) - 1}, as the loss's rows.")
    within = _within(counts) if rows is not None else _shares(counts.sum(dim=0))[None]
    wanted = _prior(prior, within)
    shift = torch.where(wanted > 0, wanted.log() - within.log(), -torch.inf).to(f.device)
    if loss.num_groups is None:
        return torch.softmax(_posterior(f / temperature, loss, None) + shift, dim=1)
    if rows is not None:
        rows = rows.long().to(f.device)
        return torch.softmax(_posterior(f / temperature, loss, rows) + shift[rows], dim=1)
    mixed = torch.zeros_like(f)
    for g, share in enumerate(_shares(counts.sum(dim=1)).tolist()):
        row = torch.full((len(f),), g, device=f.device)
        mixed += share * torch.softmax(_posterior(f / temperature, loss, row), dim=1)
    return torch.softmax(mixed.log() + shift, dim=1)


def fit_temperature(
    logits: Any,
    target: Any,
    loss: ParametricCrossEntropy,
    class_counts: Any,
    *,
    groups: Any = None,
    sample_weight: Any = None,
) -> Calibration:
    """The temperature under which held-out labels are most likely, found on their own prior.

    The negative log-likelihood of the labels is taken under the class frequencies of these
    examples, smoothed by one example of training's, so that a held-out set balanced on purpose
    does not count as a mistake of the network. 1/T has a Gaussian prior around 1 of standard
    deviation 0.5, worth about as much as a handful of examples; few of them, all predicted
    rightly, would else call for T = 0.

    Parameters
    ----------
    logits : Tensor or array-like
        Raw logits, shape ``(n, k)``, or dense ``(n, k, d1, ...)``, on examples that the network was not
        trained on.
    target : Tensor or array-like
        Their classes, shape ``(n,)``, or dense ``(n, d1, ...)``, where pixels of -100 are ignored.
    loss, class_counts, groups
        As for `corrected_probabilities`.
    sample_weight : Tensor or array-like, optional
        What each example counts for, shape ``(n,)``, above 0; by default 1.

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        As for `corrected_probabilities`, or without examples.
    """
    instance("loss", loss, ParametricCrossEntropy)
    f = as_tensor("logits", logits).detach()
    if len(f) == 0:
        raise InputError("There is no example to fit a temperature on.")
    if f.ndim > 2:
        data = ArrayData.of(f, target, groups=groups, sample_weight=sample_weight, dense=True)
        if data.target.shape[1:] != f.shape[2:]:
            raise InputError(
                f"logits and target must agree in pixels; got {tuple(f.shape)} and "
                f"{tuple(data.target.shape)}."
            )
        labels, f = data.pixels(), data.rows_of(data.in_memory())
        target, groups, sample_weight = labels.target, labels.groups, labels.sample_weight
    y = indices("target", target)
    if f.ndim != 2 or not bool(torch.isfinite(f).all()):
        raise InputError(f"logits must be finite, of shape (n, k); got {tuple(f.shape)}.")
    if len(y) and int(y.max()) >= f.shape[1]:
        raise InputError(
            f"target has class {int(y.max())}, but logits are for {f.shape[1]} classes."
        )
    rows = None if groups is None or loss.num_groups is None else torch.as_tensor(groups).long()
    weight = None if sample_weight is None else as_tensor("sample_weight", sample_weight).double()
    if same_length(logits=f, target=y, groups=rows, sample_weight=weight) == 0:
        raise InputError("There is no example to fit a temperature on.")
    step = subsample_stride(f.numel())
    f, y = f[::step], y[::step]
    rows, weight = (None if part is None else part[::step] for part in (rows, weight))
    counts = _counts(class_counts, loss, f.shape[1])
    prior = _held_prior(y.cpu(), None if rows is None else rows.cpu(), counts, weight)

    def probabilities(temperature: float) -> Tensor:
        return corrected_probabilities(
            f, loss, class_counts, prior=prior, groups=rows, temperature=temperature
        )

    def cost(inverse: float) -> float:
        p = probabilities(1.0 / inverse).gather(1, y[:, None])
        surprise = -p.clamp(min=torch.finfo(p.dtype).tiny).log()
        if weight is not None:
            surprise = surprise * weight.to(surprise)[:, None]
        return float(surprise.sum()) + (inverse - 1.0) ** 2 / (2 * _SPREAD**2)

    best: Any = minimize_scalar(cost, bounds=_RANGE, method="bounded", options={"xatol": 1e-4})
    temperature = 1.0 / float(best.x)
    shown = [torch.softmax(f.double(), dim=1), probabilities(1.0), probabilities(temperature)]
    pairs = [(p.cpu().numpy(), y.cpu().numpy()) for p in shown]
    own = None if weight is None else weight.cpu().numpy()
    raw, untempered, fitted = (
        expected_calibration_error(*pair, sample_weight=own) for pair in pairs
    )
    bins = [reliability(*pair, sample_weight=own) for pair in pairs]
    return Calibration(temperature, len(y), raw, untempered, fitted, *bins)


def evaluate_logits(
    logits: Any,
    target: Any,
    loss: ParametricCrossEntropy,
    class_counts: Any,
    groups: Any = None,
    group_names: Sequence[str] | None = None,
    *,
    temperature: float = 1.0,
    predicted: Any = None,
    sample_weight: Any = None,
) -> dict[str, Any]:
    """A network on test data, as the record that a report is made of: rates and counts.

    Parameters
    ----------
    logits : Tensor or array-like
        Raw logits, shape ``(n, k)``.
    target, groups, group_names
        Class indices ``(n,)``, and groups, as for `autobalance.records.metrics.classification_report`.
    loss, class_counts
        What the network was trained with, and on, as for `corrected_probabilities`.
    temperature : float
        As for `corrected_probabilities`, fitted on other data.
    predicted : array-like, optional
        Predicted classes, shape ``(n,)``; by default those of the largest logits.
    sample_weight : array-like, optional
        What each example counts for, shape ``(n,)``, above 0; by default 1.

    Returns
    -------
    dict
        That of `classification_report`, and "confused", see `autobalance.records.metrics.confused_pairs`, and
        "calibration": "temperature"; "raw", of the softmax of raw logits, and "corrected", of
        probabilities for the class frequencies of these very examples, smoothed by one example of
        training's, each as the fields of an `autobalance.records.metrics.Reliability`.

    Raises
    ------
    InputError
        As for `corrected_probabilities`, or without examples.
    """
    f, y = torch.as_tensor(logits).detach().cpu(), torch.as_tensor(target).long().cpu()
    if same_length(logits=f, target=y, sample_weight=sample_weight) == 0:
        raise InputError("There is no example to measure: target is empty.")
    weight = None
    if sample_weight is not None:
        weight = as_tensor("sample_weight", sample_weight).detach().double().cpu()
    k = f.shape[1]
    predicted = f.argmax(dim=1).numpy() if predicted is None else np.asarray(predicted)
    step = subsample_stride(f.numel())
    some, own = f[::step], y[::step]
    own_weight = None if weight is None else weight[::step]
    counts = _counts(class_counts, loss, k).sum(dim=0, keepdim=True)
    prior = _held_prior(own, None, counts, own_weight)
    corrected = corrected_probabilities(
        some, loss, class_counts, prior=prior, temperature=temperature
    )
    shown = {"raw": torch.softmax(some.double(), dim=1), "corrected": corrected}
    bins = {
        name: reliability(p.numpy(), own.numpy(), sample_weight=own_weight)
        for name, p in shown.items()
    }
    counted = None if weight is None else weight.numpy()
    return {
        **classification_report(y.numpy(), predicted, k, groups, group_names, counted),
        "confused": confused_pairs(y, predicted, k, sample_weight=counted),
        "calibration": {
            "temperature": temperature,
            **{name: counts_to_dict(each) for name, each in bins.items()},
        },
    }


def subsample_stride(numbers: int) -> int:
    """Of so many logits, every how manyth example's are looked at for a temperature."""
    return max(1, -(-numbers // _MOST_NUMBERS))


def class_masses(data: ArrayData) -> np.ndarray:
    """Sum of the examples' weights, as ``class_counts``: per class, or per group and class.

    Of several labels per sign and label. Examples of unknown group are in a last row of their own, as in
    the loss of a search.
    """
    if data.has_labels:
        return data.masses()
    data = data.pixels()
    weight = data.row_weights().cpu()
    target, k = data.target.cpu(), data.num_classes
    if data.groups is None:
        return torch.bincount(target, weight, minlength=k).numpy()
    rows = (data.num_groups or 1) + bool(data.unknown)
    cells = data.groups.cpu() % rows * k + target  # -1 is the last row
    return torch.bincount(cells, weight, minlength=rows * k).view(rows, k).numpy()


def _posterior(f: Tensor, loss: ParametricCrossEntropy, groups: Tensor | None) -> Tensor:
    """Log of the training posterior up to a constant per example, shape ``(n, k)``."""
    _, additive, multiplicative = (
        None if p is None else p.detach().to(f) for p in loss.parameters_of_loss
    )
    z = adjusted_logits(f, additive=additive, multiplicative=multiplicative, groups=groups)
    if loss.weight is None:
        return z
    w = loss.weight.detach().to(f)
    return z - (w if w.ndim == 1 else w[groups]).log()


def _counts(class_counts: Any, loss: ParametricCrossEntropy, k: int) -> Tensor:
    """Training examples as ``(g, k)``; g = 1 without groups."""
    counts = torch.as_tensor(array_of_numbers("class_counts", class_counts))
    table = counts if counts.ndim == 2 else counts[None]
    if counts.ndim not in (1, 2) or table.shape[1] != k or loss.num_classes not in (None, k):
        raise InputError(
            f"logits, loss and class_counts must agree in classes; got {k}, {loss.num_classes} and "
            f"counts of shape {tuple(counts.shape)}."
        )
    if loss.num_groups is not None and len(table) != loss.num_groups:
        raise InputError(
            f"The loss has rows for {loss.num_groups} groups: class_counts must have the shape "
            f"({loss.num_groups}, {k}); got {tuple(counts.shape)}."
        )
    if not bool(torch.isfinite(table).all()) or bool((table < 0).any()) or not float(table.sum()):
        raise InputError("class_counts must be finite, not negative, and not all 0.")
    return table


def _shares(masses: Tensor) -> Tensor:
    return masses / masses.sum()


def _within(counts: Tensor) -> Tensor:
    """Class shares of each group, smoothed by one example spread as the classes are overall."""
    overall = _shares(counts.sum(dim=0))
    return (counts + overall) / (counts.sum(dim=1, keepdim=True) + 1.0)


def _prior(prior: Prior, training: Tensor) -> Tensor:
    """The prior asked for, in the shape of training's, ``(g, k)``."""
    if isinstance(prior, str):
        one_of("prior", prior, PRIORS)
        if prior == "training":
            return training
        prior = np.ones(training.shape[1])
    shares = torch.as_tensor(array_of_numbers("prior", prior))
    if shares.shape not in (training.shape, training.shape[1:]):
        raise InputError(
            f"prior must be one of {', '.join(PRIORS)}, or hold one share per class "
            f"({training.shape[1]}); got shape {tuple(shares.shape)}."
        )
    if not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()):
        raise InputError("prior must hold finite shares, none negative.")
    shares = shares.expand(training.shape)
    if bool((shares.sum(dim=1) == 0).any()):
        raise InputError("prior must hold finite shares, not all 0.")
    unseen = ((shares > 0) & (training == 0)).any(dim=0)
    if bool(unseen.any()):
        raise InputError(
            f"Class {int(unseen.nonzero()[0])} has a share in the prior, but no example in training: "
            "nothing is known of its probability. Give it the share 0."
        )
    return shares / shares.sum(dim=1, keepdim=True)


def _held_prior(
    target: Tensor, groups: Tensor | None, counts: Tensor, weight: Tensor | None = None
) -> np.ndarray:
    """Class frequencies of held-out examples, smoothed by one example of training's."""
    k = counts.shape[1]
    weight = None if weight is None else weight.cpu()
    if groups is None:
        overall = _shares(counts.sum(dim=0))
        return (torch.bincount(target, weight, k) + overall).numpy()
    cells = torch.bincount(groups * k + target, weight, counts.numel())
    return (cells.view(len(counts), k) + _within(counts)).numpy()
