"""Augmentation with fixed probabilities and magnitudes, as a module that stands on its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autobalance._validation import InputError, array_of_numbers, one_of, shown
from autobalance.augment.images import (
    Blur,
    Brightness,
    Contrast,
    Cutout,
    Flip,
    Noise,
    Rotation,
    Saturation,
    Scale,
    ShearX,
    ShearY,
    ShiftX,
    ShiftY,
)
from autobalance.augment.operations import Operation, checked_operations
from autobalance.augment.random_draws import Draw, apply_operations, checked_values
from autobalance.augment.tensors import FeatureDropout, GaussianNoise, Mixup, SphericalNoise
from autobalance.records import check_format, parsed_record

OPERATIONS: tuple[type[Operation], ...] = (
    ShiftX, ShiftY, Rotation, Scale, ShearX, ShearY, Flip, Brightness, Contrast, Saturation, Blur,
    Cutout, Noise, GaussianNoise, SphericalNoise, FeatureDropout, Mixup,
)  # fmt: skip
"""Every operation of the library's own, for reading records."""

_FORMAT = "autobalance-augmentation"
_WHAT = "an augmentation written by autobalance"
_DTYPES = (torch.float64, torch.float32)


def _table(name: str, value: Any, operations: int) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        tensor = value.detach().clone()
    else:
        tensor = torch.tensor(array_of_numbers(name, value), dtype=torch.get_default_dtype())
    if tensor.ndim not in (2, 3) or tensor.shape[-1] != operations or tensor.shape[-2] < 2:
        raise InputError(
            f"{name} needs one row per class and one column per operation, (k, {operations}), or "
            f"(g, k, {operations}), with k >= 2; got shape {tuple(tensor.shape)}."
        )
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise InputError(f"{name} must lie in [0, 1] everywhere.")
    return tensor


class Augmentation(nn.Module):
    """Random augmentation of each class (in each group) with its own fixed strengths.

    An operation acts on an example of class y with probability p_y, and then by m_y times its limit
    times a uniform draw from [-1, 1] where it is signed, else from [0, 1]. It augments in training
    and in evaluation mode alike, so call it on training batches only. It travels as JSON
    (`to_json`), as a pickle or in a state dict.

    Parameters
    ----------
    operations : sequence of Operation
        m of them, in the order in which they act.
    probability, magnitude : array-like
        p and m in [0, 1], shape ``(k, m)``, or ``(g, k, m)`` where the example's group picks the
        row. Operations without a magnitude, such as `Flip`, ignore theirs.
    gate : {"hard", "relaxed"}
        As for `AugmentationPolicy`. Train with the gates of the search.
    temperature : float
        Of relaxed gates.
    value_range : tuple
        Lowest and highest value of images, two numbers or two lists with one per channel; for
        standardised images those of 0 and 1 before. Results stay within.

    Examples
    --------
    >>> turn = Augmentation([Rotation(20.0)], [[0.0], [1.0]], [[0.0], [1.0]])  # class 1 alone
    >>> turn(torch.rand(2, 3, 8, 8), torch.tensor([0, 1])).shape
    torch.Size([2, 3, 8, 8])
    """

    probability: Tensor
    magnitude: Tensor

    def __init__(
        self,
        operations: Sequence[Operation],
        probability: Any,
        magnitude: Any,
        *,
        gate: str = "hard",
        temperature: float = 0.5,
        value_range: Any = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.operations = checked_operations(operations)
        self.draw = Draw.checked(gate, temperature, value_range)
        self._values_checked = False
        for name, value in (("probability", probability), ("magnitude", magnitude)):
            self.register_buffer(name, _table(name, value, len(self.operations)))
        if self.probability.shape != self.magnitude.shape:
            raise InputError(
                "probability and magnitude must have one shape; got "
                f"{tuple(self.probability.shape)} and {tuple(self.magnitude.shape)}."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.probability.shape[-2]

    @property
    def num_groups(self) -> int | None:
        """Number of groups whose examples have rows of their own, or None."""
        return self.probability.shape[0] if self.probability.ndim == 3 else None

    def forward(self, inputs: Tensor, target: Tensor, groups: Tensor | None = None) -> Tensor:
        """The batch augmented; see `AugmentationPolicy.forward`."""
        if not self._values_checked:
            checked_values(inputs, self.operations, self.draw)
            self._values_checked = True
        logit = torch.logit(self.probability)
        seen, _ = apply_operations(
            self.operations, logit, self.magnitude, inputs, target, groups, self.draw
        )
        return seen

    def extra_repr(self) -> str:
        """Classes, groups and operations."""
        names = ", ".join(o.name for o in self.operations)
        return f"classes={self.num_classes}, groups={self.num_groups}, operations={names}"

    def tables(self) -> tuple[Tensor, Tensor]:
        """Probability and magnitude, 1 where an operation has none."""
        return self.probability, graded_only(self.magnitude, self.operations)

    def per_class(
        self, names: Sequence[Any] | None = None, group_names: Sequence[Any] | None = None
    ) -> dict[str, dict[str, dict[str, float]]]:
        """What each class gets: class, then operation, then "probability" and "magnitude".

        Parameters
        ----------
        names, group_names : sequence, optional
            Of the classes and groups; their indices by default. With groups the keys are
            "class / group". Operations without a magnitude have a probability alone.
        """
        classes = _names("names", names, self.num_classes)
        rows = [str(name) for name in classes]
        if self.num_groups is not None:
            groups = _names("group_names", group_names, self.num_groups)
            rows = [f"{name} / {group}" for group in groups for name in classes]
        m = len(self.operations)
        tables = (t.reshape(-1, m).tolist() for t in (self.probability, self.magnitude))
        return {
            row: {
                o.name: {"probability": p} | ({"magnitude": size} if o.graded else {})
                for o, p, size in zip(self.operations, ps, sizes, strict=True)
            }
            for row, ps, sizes in zip(rows, *tables, strict=True)
        }

    # JSON ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything that makes the augmentation, in JSON's types; numbers keep all their digits."""
        return {
            "format": _FORMAT,
            "version": 1,
            "operations": [o.to_dict() for o in self.operations],
            "probability": self.probability.tolist(),
            "magnitude": self.magnitude.tolist(),
            "dtype": str(self.probability.dtype),
            **self.draw.to_dict(),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any], own: Iterable[type[Operation]] = ()) -> Augmentation:
        """Inverse of `to_dict`; `own` are operations besides the library's that it may name."""
        check_format(record, _FORMAT, _WHAT, "augmentation")
        known = {kind.name: kind for kind in (*OPERATIONS, *own)}
        dtypes = {str(d): d for d in _DTYPES}
        dtype = dtypes[one_of("dtype", str(record.get("dtype")), dtypes)]
        try:
            operations = [
                known[one_of("operation", entry["name"], known)](
                    **{key: value for key, value in entry.items() if key != "name"}
                )
                for entry in record["operations"]
            ]
            tables = {
                name: torch.tensor(record[name], dtype=dtype)
                for name in ("probability", "magnitude")
            }
            options = {name: record[name] for name in ("gate", "temperature", "value_range")}
            return cls(operations, **tables, **options)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"This augmentation is incomplete or altered: {shown(str(error))}."
            ) from None

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str, own: Iterable[type[Operation]] = ()) -> Augmentation:
        """Inverse of `to_json`."""
        return cls.from_dict(parsed_record(text, _WHAT), own)


def graded_only(magnitude: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Magnitudes with 1 for operations that have none."""
    graded = torch.tensor([o.graded for o in operations], device=magnitude.device)
    return torch.where(graded, magnitude, torch.ones_like(magnitude))


def _names(what: str, names: Sequence[Any] | None, count: int) -> Sequence[Any]:
    if names is None:
        return range(count)
    if len(names) != count:
        raise InputError(f"{what} must hold {count} names, one for each; got {len(names)}.")
    return names
