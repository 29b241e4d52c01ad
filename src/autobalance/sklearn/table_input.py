"""From the X of a scikit-learn estimator to the array that a network takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from autobalance._validation import InputError
from autobalance.data import (
    StoredRows,
    Table,
    TableEncoder,
    TableFile,
    as_inputs,
    as_table,
    encode_in_parts,
    finite,
    warn_of,
)
from autobalance.sklearn.training_data import is_data

KEPT_NUMBERS, KEPT_ROWS = 2**21, 1000
"""Most numbers, and most rows, that are kept of the training data to check an exported file on."""

_MARK = "_autobalance_table_input"


class TableInput:
    """How the inputs of a fitted estimator become numbers for its network.

    Columns are matched as scikit-learn does it: by position, with its warnings and errors where
    names differ. A dataframe is read column by column; see `TableEncoder`.

    `encoder` turns a table into numbers, and is None where the network takes arrays as they are; `shape` is
    that of one example of X. `rows` are some training rows as an exported program takes them, evenly
    spaced: the table's `TableEncoder.raw`, or the array; None where it came from a file or a Dataset.
    """

    def __init__(
        self, encoder: TableEncoder | None, shape: tuple[int, ...], rows: np.ndarray | None = None
    ) -> None:
        self.encoder, self.shape, self.rows = encoder, shape, rows

    @classmethod
    def fit(
        cls,
        estimator: BaseEstimator,
        X: Any,
        target: Any,
        *,
        encode: bool | None,
        own_module: bool,
        one_hot: bool,
        weight: np.ndarray | None = None,
        tell: Callable[[int, int], None] | None = None,
    ) -> tuple[TableInput, np.ndarray | StoredRows]:
        """Learn from the training data; returns it and the array ``(n, ...)``, float32.

        Of a `TableFile` the array is in a file, and `tell` is told how much of it is written, of how much.

        Sets the estimator's `n_features_in_` and `feature_names_in_`. Warns of columns that decide the
        target ``(n,)`` alone. ``encode=None`` encodes dataframes, and arrays unless the user brings an
        own module. `one_hot` is as for `TableEncoder`, and `weight` ``(n,)`` has the rows' weights, see
        `TableEncoder.fit`.

        Raises
        ------
        InputError
            If the data cannot be used.
        """
        data = cls._validated(estimator, X, reset=True)
        is_array = isinstance(data, np.ndarray)
        if is_array and data.ndim > 2 and not own_module:
            raise InputError(
                f"X has {data.ndim} dimensions. For images and the like pass a network that takes "
                "them: AutoBalanceClassifier(module=...)."
            )
        encode = not (is_array and own_module) if encode is None else encode
        if not encode or (is_array and data.ndim > 2):
            array = _as_float32(data if isinstance(data, np.ndarray) else _plain_numbers(data))
            return cls(None, array.shape[1:], _some_rows(array)), array
        table = _array_as_table(data) if isinstance(data, np.ndarray) else data
        encoder = TableEncoder(one_hot=one_hot)
        if target is not None and len(target) != table.rows:
            target = None  # The lengths are refused by the caller, who knows all of them.
        if weight is not None and (weight.shape != (table.rows,) or not (weight > 0).all()):
            weight = None  # Likewise.
        if isinstance(X, TableFile):
            kept = _evenly(table.rows, len(table.names))
            inputs, rows = encode_in_parts(X, encoder, target, weight, kept, tell)
            warn_of(encoder.notes, stacklevel=6)
            return cls(encoder, (len(table.names),), rows), inputs
        raw = encoder.fit_raw(table, target, weight)
        warn_of(encoder.notes, stacklevel=6)
        return cls(encoder, (len(table.names),), _some_rows(raw)), encoder.encode(raw)

    def transform(self, estimator: BaseEstimator, X: Any) -> Any:
        """The array for the network, shape ``(n, ...)``, float32; of a Dataset, its lazy inputs.

        Raises
        ------
        InputError
            If X is not as in training.
        """
        if is_data(X):
            if self.encoder is not None:
                raise InputError("This classifier was fitted on a table; X is a Dataset.")
            return as_inputs(X)
        data = self._read(estimator, X)
        if self.encoder is not None:
            return self.encoder.transform(data)
        return _as_float32(data if isinstance(data, np.ndarray) else _plain_numbers(data))

    def program_rows(self, estimator: BaseEstimator, X: Any) -> np.ndarray:
        """X as an exported program takes it, see `rows`."""
        if self.encoder is None:
            return self.transform(estimator, X)
        return self.encoder.raw(self._read(estimator, X))

    def _read(self, estimator: BaseEstimator, X: Any) -> Table | np.ndarray:
        """X as a table where one is encoded, else as it is."""
        data = self._validated(estimator, X, reset=False)
        if isinstance(data, np.ndarray):
            if self.shape and data.shape[1:] != self.shape:
                raise InputError(
                    f"X has examples of shape {data.shape[1:]}; the classifier was fitted on "
                    f"{self.shape}. Bring them to that size."
                )
            if self.encoder is None:
                return data
            data = _array_as_table(data)
        if self.encoder is not None:
            # By position: scikit-learn has compared the names, or warned that it cannot.
            return Table(self.encoder.columns, data.columns, data.rows)
        if len(self.shape) > 1:
            raise InputError(
                "This classifier was fitted on arrays of more dimensions, not on tables."
            )
        return data

    @staticmethod
    def _validated(estimator: BaseEstimator, X: Any, *, reset: bool) -> Table | np.ndarray:
        """A table, or an array of numbers, by scikit-learn's checks of names and sizes."""
        validate: Any = validate_data  # annotated by scikit-learn as taking the str "no_validation"
        table = as_table(X)
        if table is not None:
            if table.rows == 0:
                raise InputError("X has no rows. Give at least one.")
            if isinstance(X, pd.DataFrame) and X.columns.has_duplicates:
                twice = X.columns[X.columns.duplicated()][0]
                raise InputError(
                    f"The column {twice!r} appears more than once. Give each a name of its own."
                )
            names = X.head() if isinstance(X, TableFile) else X
            validate(estimator, names, reset=reset, skip_check_array=True)
            return table
        given = X if not isinstance(X, Tensor) else X.numpy(force=True)
        # scikit-learn's message would print all of it
        if isinstance(given, np.ndarray) and np.iscomplexobj(given):
            raise InputError(
                "Complex data not supported: give real and imaginary parts as features of their own."
            )
        return validate(
            estimator,
            given,
            reset=reset,
            dtype="numeric",
            ensure_all_finite=False,  # ours name the column, and say what to do
            allow_nd=True,
        )


def mark(module: nn.Module, table_input: TableInput) -> nn.Module:
    """Let a network that came from a table know of it, so that it is not exported without."""
    if table_input.encoder is not None:
        setattr(module, _MARK, table_input)
    return module


def table_input_of(model: Any) -> TableInput | None:
    """The table input of a classifier, or of a network that came from one; None for other networks."""
    return getattr(model, _MARK if isinstance(model, nn.Module) else "input_", None)


def fitted_network(estimator: Any) -> nn.Module:
    """The network of a fitted classifier, or the decision on it."""
    check_is_fitted(estimator, "module_")
    return estimator.module_


def _array_as_table(array: np.ndarray) -> Table:
    names = [f"x{i}" for i in range(array.shape[1])]
    table = as_table(pd.DataFrame(array, columns=names))
    assert table is not None
    return table


def _plain_numbers(table: Table) -> np.ndarray:
    """A table whose columns are all numbers, for a network that takes them as they are."""
    encoder = TableEncoder()
    numbers = encoder.fit_raw(table)
    if encoder.categories:
        raise InputError(
            f"The column {next(iter(encoder.categories))!r} holds categories, which a network cannot take "
            "as they are. Leave encode=False out, or make them numbers."
        )
    return numbers


def _as_float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # refused next
        numbers = np.ascontiguousarray(array, dtype=np.float32)
    finite("X", torch.from_numpy(numbers))
    return numbers


def _some_rows(array: np.ndarray) -> np.ndarray:
    """A copy of evenly spaced rows, at most as many as are kept."""
    return array[_evenly(len(array), max(int(np.prod(array.shape[1:])), 1))]


def _evenly(rows: int, size: int) -> np.ndarray:
    """Numbers of rows to keep, of so many numbers each."""
    most = min(rows, KEPT_ROWS, max(2, KEPT_NUMBERS // size))
    return np.linspace(0, rows - 1, most).astype(int)
