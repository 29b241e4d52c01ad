"""Parameters of an estimator that are dataclasses, field by field: ``recipe__lr``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar

from sklearn.base import BaseEstimator


class NestedParameters(BaseEstimator):
    """Estimator whose dataclass parameters are searched field by field.

    Attributes
    ----------
    _nested_defaults : mapping
        The dataclass that stands for a parameter that is None, by the parameter's name.
    """

    _nested_defaults: ClassVar[Mapping[str, type]] = {}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; where `deep`, also the fields of dataclasses, as ``recipe__lr``."""
        params = super().get_params(deep=deep)
        for name, value in [*params.items()] if deep else ():
            for part, field_value in self._fields(name, value).items():
                params[f"{name}__{part}"] = field_value
        return params

    def set_params(self, **params: Any) -> Any:
        """Set parameters, and fields of those that are dataclasses: ``set_params(recipe__lr=0.1)``.

        Returns the estimator.

        Raises
        ------
        ValueError
            If there is no such parameter.
        InputError
            If a field cannot have the value.
        """
        nested: dict[str, dict[str, Any]] = {}
        for key in [key for key in params if "__" in key]:
            name, _, part = key.partition("__")
            value = params.get(name, getattr(self, name, None))
            valid = self._fields(name, value)
            if valid and part not in valid:
                raise ValueError(
                    f"Invalid parameter {part!r} of {name}. Valid ones are: {[*valid]}."
                )
            if valid:
                nested.setdefault(name, {})[part] = params.pop(key)
            elif not hasattr(value, "set_params"):
                raise ValueError(f"Invalid parameter {key!r}: {name} has no parameters.")
        super().set_params(**params)
        for name, changes in nested.items():
            value = getattr(self, name)
            setattr(
                self,
                name,
                replace(self._nested_defaults[name]() if value is None else value, **changes),
            )
        return self

    def _fields(self, name: str, value: Any) -> dict[str, Any]:
        """Fields of the dataclass that a parameter is, or that stands for its None; else empty."""
        if value is None and name in self._nested_defaults:
            value = self._nested_defaults[name]()
        if not is_dataclass(value) or isinstance(value, type):
            return {}
        return {f.name: getattr(value, f.name) for f in fields(value) if f.init}
