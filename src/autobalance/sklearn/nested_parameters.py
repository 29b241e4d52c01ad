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
        """Parameters by name.

        Parameters
        ----------
        deep : bool
            Add the fields of parameters that are dataclasses, as ``recipe__lr``.

        Returns
        -------
        dict
            Values by name.
        """
        params = super().get_params(deep=deep)
        if deep:
            for name in list(params):
                value = self._dataclass(params[name], name)
                if value is not None:
                    parts = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
                    params |= {f"{name}__{part}": given for part, given in parts.items()}
        return params

    def set_params(self, **params: Any) -> Any:
        """Set parameters, and fields of those that are dataclasses: ``set_params(recipe__lr=0.1)``.

        Returns
        -------
        estimator
            Itself.

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
            if self._dataclass(value, name) is not None:
                nested.setdefault(name, {})[part] = params.pop(key)
            elif not hasattr(value, "set_params"):
                raise ValueError(f"Invalid parameter {key!r}: {name} has no parameters.")
        super().set_params(**params)
        for name, changes in nested.items():
            value = self._dataclass(getattr(self, name), name)
            valid = [f.name for f in fields(value) if f.init]
            for part in changes.keys() - set(valid):
                raise ValueError(f"Invalid parameter {part!r} of {name}. Valid ones are: {valid}.")
            setattr(self, name, replace(value, **changes))
        return self

    def _dataclass(self, value: Any, name: str) -> Any:
        """The dataclass that a parameter is, or that stands for its None; else None."""
        if value is None and name in self._nested_defaults:
            return self._nested_defaults[name]()
        return value if is_dataclass(value) and not isinstance(value, type) else None
