"""The parametric cross-entropy with fixed parameters, as a module that stands on its own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from autobalance._validation import (
    InputError,
    below_one,
    class_counts,
    finite_number,
    number,
    one_of,
    same_length,
    shown,
    whole,
)
from autobalance.data import indices
from autobalance.losses.parametric import (
    LossParameters,
    Reduction,
    check_width,
    reduced_loss,
    target_weight,
)
from autobalance.records import check_format, loss_snippet, parsed_record

ArrayLike = Tensor | Sequence[float] | Any

_FORMAT = "autobalance-loss"
_WHAT = "a loss written by autobalance"
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _parameter(name: str, value: ArrayLike | None, *, above_zero: bool) -> Tensor | None:
    if value is None:
        return None
    if isinstance(value, Tensor) and value.is_floating_point():
        tensor = value.detach().clone()
    else:
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise TypeError(f"they hold {array.dtype}")
            tensor = torch.tensor(array, dtype=torch.get_default_dtype())
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"{name} must hold numbers, one per class; got {shown(value)}."
            ) from None
    if tensor.ndim not in (1, 2) or tensor.shape[-1] < 2:
        raise InputError(
            f"{name} needs one number per class (k,), or per group and class (g, k), with k >= 2; "
            f"got shape {tuple(tensor.shape)}."
        )
    if not torch.isfinite(tensor).all():
        raise InputError(f"{name} must be finite; got a NaN or an infinity.")
    if above_zero and bool((tensor <= 0).any()):
        raise InputError(f"{name} must be above 0 everywhere; its smallest is {tensor.min():g}.")
    return tensor


def register_parameters(module: nn.Module, parameters: LossParameters) -> None:
    """Make w, l and delta buffers of a loss, in one dtype that is wide enough for each: JSON records one."""
    given = [p.dtype for p in parameters if p is not None]
    dtype = reduce(torch.promote_types, given) if given else None
    for name, p in parameters._asdict().items():
        module.register_buffer(name, None if p is None else p.to(dtype))


def parameters_to_dict(parameters: LossParameters) -> dict[str, Any]:
    """W, l, delta and their dtype, in JSON's types; numbers keep all their digits."""
    given = next((p.dtype for p in parameters if p is not None), None)
    values = {n: None if p is None else p.tolist() for n, p in parameters._asdict().items()}
    return {**values, "dtype": str(given)}


def parameters_from_dict(record: dict[str, Any]) -> dict[str, Tensor | None]:
    """The tensors of `parameters_to_dict`, by name.

    Raises
    ------
    InputError
        If the record is incomplete or altered.
    """
    dtypes = {str(d): d for d in _DTYPES} | {"None": None}
    dtype = dtypes[one_of("dtype", str(record.get("dtype")), dtypes)]
    try:
        return {
            n: None if record.get(n) is None else torch.tensor(record[n], dtype=dtype)
            for n in LossParameters._fields
        }
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"This loss is incomplete or altered: {shown(str(error))}.") from None


def _counts_per_class(cls_num_list: ArrayLike) -> np.ndarray:
    counts = class_counts(cls_num_list, name="cls_num_list")
    if counts.ndim != 1:
        raise InputError(
            f"cls_num_list needs one count per class (k,); got shape {counts.shape}. For groups take "
            "TunableCrossEntropy(GroupSpace(counts)).frozen(), logit adjustment within each group."
        )
    return counts


def effective_number_weights(cls_num_list: ArrayLike, beta: float = 0.9999) -> np.ndarray:
    """Inverse effective numbers of examples, ``(1 - beta) / (1 - beta^n_k)``, with sum k.

    Parameters
    ----------
    cls_num_list : array-like
        Training examples per class, shape ``(k,)``.
    beta : float
        In [0, 1): 0 weighs all classes alike, towards 1 the weights become inverse frequencies.

    Returns
    -------
    ndarray
        Shape ``(k,)``, float64.

    References
    ----------
    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, eq. 4.
    """
    counts = _counts_per_class(cls_num_list)
    if not 0.0 <= number("beta", beta) < 1.0:
        raise InputError(f"beta must lie in [0, 1); got {beta!r}. Near 1 is 0.9999, for example.")
    # expm1, since 1 - beta^n loses its digits where beta is near 1.
    log_beta = math.log(beta) if beta else -math.inf
    weight = (1.0 - beta) / -np.expm1(counts * log_beta)
    return weight * (len(counts) / weight.sum())


class ParametricCrossEntropy(nn.Module):
    """Cross-entropy with fixed class weights and logit adjustments (the paper's 2.2 and 4.2).

    ``loss(y, f) = -w_y log softmax(delta * f + l)_y``. It needs nothing else of this library to
    be trained with, and travels as JSON (`to_json`), as a pickle or in a state dict.

    Parameters
    ----------
    weight, additive, multiplicative : array-like, optional
        w, l and delta: shape ``(k,)``, or ``(g, k)`` where the example's group picks the row.
        w and delta must be above 0. None leaves that part out.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the batch's sum of w_y, as torch's cross-entropy does.
    ignore_index : int
        Target value that counts for nothing.
    label_smoothing : float
        In [0, 1), as in torch's cross-entropy.

    Examples
    --------
    >>> loss = ParametricCrossEntropy.logit_adjusted([500, 50, 5])
    >>> value = loss(torch.zeros(2, 3), torch.tensor([0, 2]))
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
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("reduction", reduction, ("mean", "sum", "none"))
        below_one("label_smoothing", label_smoothing)
        whole("ignore_index", ignore_index, least=-(2**63))
        parameters = LossParameters(
            _parameter("weight", weight, above_zero=True),
            _parameter("additive", additive, above_zero=False),
            _parameter("multiplicative", multiplicative, above_zero=True),
        )
        register_parameters(self, parameters)
        shapes = {tuple(p.shape) for p in self.parameters_of_loss if p is not None}
        if len({s[-1] for s in shapes}) > 1 or len({s[0] for s in shapes if len(s) == 2}) > 1:
            raise InputError(
                f"weight, additive and multiplicative must agree in classes and groups; got {shapes}."
            )
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    @property
    def parameters_of_loss(self) -> LossParameters:
        """w, l and delta as one record."""
        return LossParameters(self.weight, self.additive, self.multiplicative)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for plain cross-entropy, which fits any."""
        return next((p.shape[-1] for p in self.parameters_of_loss if p is not None), None)

    @property
    def num_groups(self) -> int | None:
        """Number of groups whose examples have rows of their own, or None."""
        return next(
            (p.shape[0] for p in self.parameters_of_loss if p is not None and p.ndim == 2), None
        )

    def forward(
        self,
        input: Tensor,  # torch's name for it, so that the loss can stand in for torch's own
        target: Tensor,
        *,
        groups: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of raw logits ``(n, k, ...)`` against class indices ``(n, ...)``.

        Parameters
        ----------
        input : Tensor
            Raw logits, shape ``(n, k)``, or dense ``(n, k, d1, ...)``, as torch's own takes them.
        target : Tensor
            Class indices, shape ``(n,)`` or ``(n, d1, ...)``.
        groups : Tensor, optional
            Group indices, shape ``(n,)`` or that of the target; needed where parameters have one row per
            group.
        sample_weight : Tensor, optional
            Non-negative weights of the examples ``(n,)``, or of the pixels, in the shape of the target.
        """
        check_width(input, self.num_classes)
        if groups is None and self.num_groups is not None:
            raise InputError(
                f"This loss has rows for {self.num_groups} groups: pass groups=, one index per example."
            )
        return reduced_loss(
            input,
            target,
            self.parameters_of_loss,
            groups=groups,
            sample_weight=sample_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            fused=True,
        )

    def extra_repr(self) -> str:
        """Classes, groups and which parameters are used."""
        used = [n for n, p in self.parameters_of_loss._asdict().items() if p is not None]
        return f"classes={self.num_classes}, groups={self.num_groups}, uses={used or 'nothing'}"

    # Published losses, from class counts --------------------------------------------------

    @classmethod
    def cross_entropy(cls, **options: Any) -> ParametricCrossEntropy:
        """Plain cross-entropy: w = 1, l = 0, delta = 1."""
        return cls(**options)

    @classmethod
    def class_weighted(cls, cls_num_list: ArrayLike, **options: Any) -> ParametricCrossEntropy:
        """Weights n / (k n_y), the inverse class frequency with mean 1 over the examples."""
        counts = _counts_per_class(cls_num_list)
        return cls(weight=counts.sum() / (len(counts) * counts), **options)

    @classmethod
    def class_balanced(
        cls, cls_num_list: ArrayLike, beta: float = 0.9999, **options: Any
    ) -> ParametricCrossEntropy:
        """Weights (1 - beta) / (1 - beta^n_y), with sum k (Cui et al., CVPR 2019, eq. 4).

        The paper's sum is kept for "sum" and "none"; the mean divides by the batch's weights, so
        that their scale does not act there. The default `beta` is the one of the authors'
        script for long-tailed CIFAR-10; the paper chooses it per data set, from 0.9 to 0.9999.
        """
        return cls(weight=effective_number_weights(cls_num_list, beta), **options)

    @classmethod
    def balanced_softmax(cls, cls_num_list: ArrayLike, **options: Any) -> ParametricCrossEntropy:
        """Balanced softmax, l = log n_k (Ren et al., NeurIPS 2020, eq. 4).

        The same loss as `logit_adjusted` with tau = 1: the two l differ by the constant log n.
        """
        return cls(additive=np.log(_counts_per_class(cls_num_list)), **options)

    @classmethod
    def logit_adjusted(
        cls, cls_num_list: ArrayLike, tau: float = 1.0, **options: Any
    ) -> ParametricCrossEntropy:
        """Logit adjustment l = tau log pi (Menon et al., ICLR 2021, eq. 10)."""
        counts = _counts_per_class(cls_num_list)
        tau = finite_number("tau", tau)
        return cls(additive=tau * np.log(counts / counts.sum()), **options)

    @classmethod
    def class_dependent_temperature(
        cls, cls_num_list: ArrayLike, gamma: float = 0.3, **options: Any
    ) -> ParametricCrossEntropy:
        """CDT: delta_k = (n_k / n_max)^gamma (Ye et al., 2020)."""
        counts = _counts_per_class(cls_num_list)
        gamma = finite_number("gamma", gamma)
        return cls(multiplicative=(counts / counts.max()) ** gamma, **options)

    @classmethod
    def vector_scaling(
        cls, cls_num_list: ArrayLike, gamma: float = 0.15, tau: float = 1.25, **options: Any
    ) -> ParametricCrossEntropy:
        """VS: CDT's delta with LA's l (Kini et al., NeurIPS 2021, eq. 1)."""
        counts = _counts_per_class(cls_num_list)
        tau, gamma = finite_number("tau", tau), finite_number("gamma", gamma)
        return cls(
            additive=tau * np.log(counts / counts.sum()),
            multiplicative=(counts / counts.max()) ** gamma,
            **options,
        )

    # Other code bases' conventions --------------------------------------------------------

    @classmethod
    def from_vs_code(
        cls, iota: ArrayLike, Delta: ArrayLike, **options: Any
    ) -> ParametricCrossEntropy:
        """From the VS-loss code's convention, ``f / Delta + iota``."""
        divisor = _parameter("Delta", Delta, above_zero=True)
        assert divisor is not None
        return cls(additive=iota, multiplicative=1.0 / divisor, **options)

    def to_vs_code(self) -> tuple[Tensor, Tensor]:
        """``(iota, Delta)`` such that ``f / Delta + iota`` are the adjusted logits."""
        additive, delta = self._full()
        return additive, 1.0 / delta

    @classmethod
    def from_autobalance_code(
        cls, dy: ArrayLike, ly: ArrayLike, wy: ArrayLike | None = None, **options: Any
    ) -> ParametricCrossEntropy:
        """From the paper's code, whose multiplicative adjustment is ``sigmoid(dy)``."""
        return cls(wy, ly, torch.sigmoid(torch.as_tensor(dy)), **options)

    def to_autobalance_code(self) -> tuple[Tensor, Tensor]:
        """``(dy, ly)`` of the paper's code; needs delta below 1, the range of its sigmoid."""
        additive, delta = self._full()
        if bool((delta >= 1).any()):
            raise InputError(
                f"The paper's code writes delta as a sigmoid, below 1; here it reaches {delta.max():g}. "
                "Divide delta by a constant first; the network's scale absorbs it."
            )
        return torch.logit(delta), additive

    def _full(self) -> tuple[Tensor, Tensor]:
        some = self.additive if self.additive is not None else self.multiplicative
        if some is None:
            raise InputError("This loss adjusts no logits, so there is nothing to convert.")
        additive = torch.zeros_like(some) if self.additive is None else self.additive
        delta = torch.ones_like(some) if self.multiplicative is None else self.multiplicative
        return additive, delta

    def boosting_inputs(
        self, y: ArrayLike, groups: ArrayLike | None = None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The loss as gradient boosting takes it: ``sample_weight`` and ``init_score`` of examples.

        Trees fitted to cross-entropy from the starting scores l, under the weights w_y, minimise
        this loss: the scores they add up to are the f of ``softmax(f + l)``. A prediction sums the
        trees alone and so leaves l out, as it should. In LightGBM:

        ``LGBMClassifier().fit(X, y, sample_weight=sample_weight, init_score=init_score)``

        XGBoost takes the same arrays as ``sample_weight`` and ``base_margin``, with
        ``base_score=0.5`` set.

        Parameters
        ----------
        y : array-like
            Class indices in ``0..k-1`` in the sorted order of the labels, shape ``(n,)``; of labels
            they are ``numpy.unique(labels, return_inverse=True)[1]``.
        groups : array-like, optional
            Group indices, shape ``(n,)``; needed where parameters have one row per group. To
            predict they are not needed.

        Returns
        -------
        sample_weight : ndarray or None
            w_y, shape ``(n,)``, float64; with reduction "mean" of mean 1 over the examples. None
            where the loss has no weights. Multiply weights of your own onto it.
        init_score : ndarray or None
            l as one row per example, ``(n, k)``, float64; for two classes, of which the libraries
            score only the second, l_1 - l_0 of shape ``(n,)``. None where the loss adds nothing.

        Raises
        ------
        InputError
            If delta is other than 1 or labels are smoothed, which no starting score or weight
            expresses; if an index is out of range, or groups are missing.
        """
        if self.multiplicative is not None and bool((self.multiplicative != 1).any()):
            raise InputError(
                "Boosting takes weights and starting scores, which cannot express multiplicative "
                "adjustments delta other than 1. Design the loss without them: "
                'HierarchicalSpace(counts, learn=("weight", "additive")).'
            )
        if self.label_smoothing:
            raise InputError(
                f"Boosting takes hard labels; this loss smooths them by {self.label_smoothing:g}. "
                "Take label_smoothing=0."
            )
        target = indices("y", y, count=self.num_classes).cpu()
        rows = None
        if self.num_groups is not None:
            if groups is None:
                raise InputError(
                    f"This loss has rows for {self.num_groups} groups: pass groups=, one index per "
                    "example."
                )
            rows = indices("groups", groups, count=self.num_groups).cpu()
            same_length(y=target, groups=rows)
        sample_weight = init_score = None
        weight = None if self.weight is None else self.weight.double().cpu()
        weight = target_weight(target, weight, rows)
        if weight is not None:
            sample_weight = weight.numpy().copy()
            if self.reduction == "mean" and len(sample_weight):
                sample_weight /= sample_weight.mean()
        if self.additive is not None:
            table = self.additive.double().cpu()
            table = (
                table.expand(len(target), -1) if rows is None or table.ndim == 1 else table[rows]
            )
            start = table[:, 1] - table[:, 0] if table.shape[1] == 2 else table
            init_score = start.numpy().copy()
        return sample_weight, init_score

    # JSON ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything that makes the loss, in JSON's types; numbers keep all their digits."""
        return {
            "format": _FORMAT,
            "version": 1,
            **parameters_to_dict(self.parameters_of_loss),
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ParametricCrossEntropy:
        """Inverse of `to_dict`."""
        check_format(record, _FORMAT, _WHAT, "loss")
        return cls(
            **parameters_from_dict(record),
            reduction=cast(Reduction, record.get("reduction", "mean")),
            ignore_index=record.get("ignore_index", -100),
            label_smoothing=record.get("label_smoothing", 0.0),
        )

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> ParametricCrossEntropy:
        """Inverse of `to_json`."""
        return cls.from_dict(parsed_record(text, _WHAT))

    def to_snippet(self) -> str:
        """The loss as a few lines of PyTorch that need nothing of this library.

        They define ``loss(logits, target)``, or with one row per group ``loss(logits, target,
        groups)``; sample weights are no part of it.
        """
        return loss_snippet(self.to_dict())
