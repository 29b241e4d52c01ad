"""From a table to the numbers that a network takes, and what to be careful about in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from autobalance._validation import InputError, shown
from autobalance.data.columns import (
    PLAIN,
    Column,
    Spelling,
    Table,
    as_table,
    numbers_of,
    read_column,
    texts_of,
)

MISSING = "<missing>"
MAX_CATEGORIES = 100
LARGEST_DEVIATION = 10.0
IDENTIFIER, MANY = 0.9, 100
"""Share and number of different values from which a column of text looks like a name of the row."""
BLOCK = 2**16
"""Rows that are encoded at a time, so that what lies between the table and its numbers stays small."""
LEAST_ROWS = 20
"""Fewer rows cannot show that a column numbers them, or that it decides the target."""
UNSEEN = 0.5
"""Share of values that training never saw from which a prediction warns of the column."""
_FORMAT = "autobalance-table-encoder"


class TableWarning(UserWarning):
    """Something in a table that may lead to a wrong result."""


def warn_of(notes: list[str], *, stacklevel: int = 3) -> None:
    """Warn of each note."""
    for note in notes:
        warnings.warn(note, TableWarning, stacklevel=stacklevel)


class TableEncoder:
    """From a table's columns to numbers: scaled numeric columns, and one column per category.

    Which columns are numeric is told by their values; see `autobalance.data.columns`. Numeric
    columns are standardised and limited to 10 standard deviations; a missing value becomes the
    mean, and a further column tells that it was missing. Every other column becomes one column of
    0 and 1 for each of its 100 most frequent categories; a missing value is a category, and one not
    seen in training is all zeros. The fitted state travels as JSON.

    Parameters
    ----------
    one_hot : bool
        Whether each category has a column of its own. Otherwise a column of categories becomes one of
        codes, the positions in `categories`, after all others; -1 is a category not seen in training.
        `autobalance.networks.TableNetwork` with `categories` takes them, in less memory and time.

    Attributes
    ----------
    columns : list of str
        The columns of the training table, in their order.
    numeric, missing : list of str
        Those that hold numbers, and those of them with missing values.
    categories : dict
        The categories of every other column.
    spellings : dict
        How text spells the numbers of a column.
    notes : list of str
        What a user should know of how the training table was read.
    """

    def __init__(self, *, one_hot: bool = True) -> None:
        self.one_hot = one_hot
        self.columns: list[str] = []
        self.numeric: list[str] = []
        self.missing: list[str] = []
        self.categories: dict[str, list[str]] = {}
        self.spellings: dict[str, Spelling] = {}
        self.notes: list[str] = []
        self._mean = self._scale = np.empty(0)
        self._range: list[list[float]] = []
        self._rest: dict[str, float] = {}

    def fit(
        self, frame: Any, target: np.ndarray | None = None, weight: np.ndarray | None = None
    ) -> TableEncoder:
        """Learn scales and categories from the training table, a dataframe that narwhals reads.

        With the class of each row, `target` ``(n,)``, columns that decide it alone are told of in `notes`.
        With the weight of each row, `weight` ``(n,)``, none 0, means, scales and frequencies are weighted.

        Raises
        ------
        InputError
            If a column cannot be used; the message names it and says what to do.
        """
        self.fit_raw(frame, target, weight)
        return self

    def fit_raw(
        self, frame: Any, target: np.ndarray | None = None, weight: np.ndarray | None = None
    ) -> np.ndarray:
        """`fit` and `raw` of one table, which is read once."""
        return np.column_stack([*self.fit_columns(frame, target, weight)])

    def fit_columns(
        self, frame: Any, target: np.ndarray | None = None, weight: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """`fit_raw` of one column ``(n,)`` after another, in their order; fitted after the last of them."""
        table = _table(frame)
        if not table.names:
            raise InputError("The table has no feature column left. Give at least one.")
        self.columns = table.names
        suspicions: list[str] = []
        for name, series in zip(table.names, table.columns, strict=True):
            column = read_column(name, series)
            if column.note is not None:
                self.notes.append(f"column {name!r} {column.note}")
            if not column.is_numeric:
                self._fit_categories(name, column.values, weight)
            elif column.spelling is not None:
                self.spellings[name] = column.spelling
            raw = self._raw(name, column)
            if column.is_numeric:
                self._fit_numbers(name, raw, weight)
            suspicions += _suspicions(name, column, target)
            yield raw
        self.notes += suspicions

    @property
    def num_features(self) -> int:
        """Width of what `transform` returns."""
        sizes = map(len, self.categories.values())
        of_categories = sum(sizes) if self.one_hot else len(self.categories)
        return len(self.numeric) + len(self.missing) + of_categories

    @property
    def code_sizes(self) -> list[int]:
        """Number of categories of each of the last columns that hold codes; none with `one_hot`."""
        return [] if self.one_hot else [len(texts) for texts in self.categories.values()]

    def select(self, frame: Any) -> Table:
        """The columns of the training table by their names, in their order; others are left out.

        Raises
        ------
        InputError
            If one is absent.
        """
        table = _table(frame)
        absent = [n for n in self.columns if n not in table.names]
        if absent:
            raise InputError(
                f"The table lacks {len(absent)} column{'s' * (len(absent) > 1)} of the training "
                f"table: {', '.join(absent[:10])}. Add what the model was trained on, or fit without it."
            )
        columns = dict(zip(table.names, table.columns, strict=True))
        return Table(self.columns, [columns[n] for n in self.columns], table.rows)

    def transform(self, frame: Any) -> np.ndarray:
        """Numbers for the network, shape ``(n, num_features)``, float32.

        Warns of columns most of whose values training never saw.

        Raises
        ------
        InputError
            If a column of the training table is absent, a numeric one holds text, or a value is
            infinite.
        """
        raw = self.raw(frame)
        warn_of(self._strangers(raw))
        return self.encode(raw)

    def raw(self, frame: Any) -> np.ndarray:
        """The columns as numbers not yet scaled, and positions of categories: ``(n, d)``, float64.

        Missing numbers are NaN; a category that training did not see is -1.
        """
        table = self.select(frame)
        numeric = set(self.numeric)
        parts = []
        for name, series in zip(table.names, table.columns, strict=True):
            if name in numeric:
                values = numbers_of(name, series, self.spellings.get(name))
            else:
                values = texts_of(name, series)
            parts.append(self._raw(name, Column(values)))
        return np.column_stack(parts)

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """From `raw` to the numbers for the network, shape ``(n, num_features)``, float32."""
        numbers = np.empty((len(raw), self.num_features), dtype=np.float32)
        layer = self.as_module()
        with torch.no_grad():
            for start in range(0, len(raw), BLOCK):
                rows = torch.from_numpy(raw[start : start + BLOCK])
                numbers[start : start + BLOCK] = layer(rows).numpy()
        return numbers

    def is_raw(self, rows: np.ndarray) -> bool:
        """Whether rows ``(n, d)`` can be rows of the training table: each number lies in its range."""
        if rows.shape[1] != len(self.columns) or len(self._range) != len(self.numeric):
            return False
        ranges = dict(zip(self.numeric, self._range, strict=True))
        bounds = [
            ranges.get(name, (-1, len(self.categories.get(name, ())) - 1)) for name in self.columns
        ]
        # The range may come from numbers of higher precision than the rows have.
        margin = 1e-6 * np.abs(bounds).max(axis=1)
        least, largest = np.transpose(bounds)
        return not ((rows < least - margin) | (rows > largest + margin)).any()

    def is_encoded(self, rows: np.ndarray) -> bool:
        """Whether rows ``(n, d)`` can be what `encode` returns: never False for those."""
        if rows.shape[1] != self.num_features:
            return False
        if self.missing or self.categories or len(self._range) != len(self.numeric):
            return True
        least, largest = self.encode(np.transpose(self._range)).astype(np.float64)
        margin = 1e-5 * np.maximum(np.abs(least), np.abs(largest))
        return not ((rows < least - margin) | (rows > largest + margin)).any()

    def as_module(self) -> TableLayer:
        """`encode` as operations of torch, for an exported program."""
        return TableLayer(self)

    def to_dict(self) -> dict[str, Any]:
        """The fitted state in JSON's types."""
        return {
            "format": _FORMAT,
            "version": 1,
            "columns": self.columns,
            "numeric": self.numeric,
            "missing": self.missing,
            "mean": self._mean.tolist(),
            "scale": self._scale.tolist(),
            "categories": self.categories,
            "one_hot": self.one_hot,
            "spellings": {name: list(spelling) for name, spelling in self.spellings.items()},
            "range": self._range,
            "rest": self._rest,
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> TableEncoder:
        """Inverse of `to_dict`."""
        written = (record.get("format"), record.get("version")) if isinstance(record, dict) else ()
        if written != (_FORMAT, 1):
            raise InputError("This is not a table encoder written by this version of autobalance.")
        encoder = cls(one_hot=record.get("one_hot") is not False)  # version 0.1 had no other
        try:
            encoder.columns = list(record["columns"])
            encoder.numeric = list(record["numeric"])
            encoder.missing = list(record["missing"])
            encoder.categories = {name: list(texts) for name, texts in record["categories"].items()}
            encoder._mean = np.asarray(record["mean"], dtype=np.float64)
            encoder._scale = np.asarray(record["scale"], dtype=np.float64)
            # Version 0.1 wrote none of these.
            encoder.spellings = {n: Spelling(*s) for n, s in record.get("spellings", {}).items()}
            encoder._range = [[float(a), float(b)] for a, b in record.get("range", [])]
            encoder._rest = {name: float(share) for name, share in record.get("rest", {}).items()}
            encoder.notes = [str(note) for note in record.get("notes", [])]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"This table encoder is incomplete or altered: {shown(str(error))}."
            ) from None
        if not len(encoder.numeric) == len(encoder._mean) == len(encoder._scale):
            raise InputError("This table encoder is altered: means and columns differ in number.")
        kinds = sorted([*encoder.numeric, *encoder.categories])
        texts = [text for known in encoder.categories.values() for text in known]
        if not all(isinstance(text, str) for text in texts):
            raise InputError("This table encoder is altered: a category is no text.")
        if not set(encoder.missing) <= set(encoder.numeric) or sorted(encoder.columns) != kinds:
            raise InputError(
                "This table encoder is altered: its columns are of no kind, or of two."
            )
        return encoder

    def _fit_categories(self, name: str, values: np.ndarray, weight: np.ndarray | None) -> None:
        codes, different = pd.factorize(_fill_missing(values))
        counts = dict(zip(different, np.bincount(codes, weight).tolist(), strict=True))
        frequent = sorted(counts, key=lambda text: (-counts[text], text))[:MAX_CATEGORIES]
        self.categories[name] = sorted(frequent)
        if len(counts) > MAX_CATEGORIES:
            of_all = sum(counts.values())
            self._rest[name] = 1.0 - sum(counts[text] for text in frequent) / of_all

    def _fit_numbers(self, name: str, values: np.ndarray, weight: np.ndarray | None) -> None:
        absent = np.isnan(values)
        self.numeric.append(name)
        if absent.any():
            self.missing.append(name)
        # An all-missing column has no mean; as zeros it is constant and says nothing.
        known = np.zeros_like(values) if absent.all() else values
        scaler: Any = StandardScaler().fit(known[:, None], sample_weight=weight)
        self._mean = np.append(self._mean, scaler.mean_)
        self._scale = np.append(self._scale, scaler.scale_)
        self._range.append([float(np.nanmin(known)), float(np.nanmax(known))])

    def _raw(self, name: str, column: Column) -> np.ndarray:
        """Numbers as they are, and positions among the categories, float64."""
        if not column.is_numeric:
            codes, different = pd.factorize(_fill_missing(column.values))
            position = {text: float(i) for i, text in enumerate(self.categories[name])}
            return np.array([position.get(text, -1.0) for text in different])[codes]
        if (np.abs(column.values) > np.finfo(np.float32).max).any():
            raise InputError(
                f"The column {name!r} has an infinite value (inf) or one beyond 3.4e38. Replace it by a "
                "number, or by a missing value (NaN), which is in order."
            )
        return column.values

    def _strangers(self, raw: np.ndarray) -> list[str]:
        """Columns most of whose values training never saw."""
        notes: dict[str, tuple[float, str]] = {}
        columns = dict(zip(self.columns, raw.T, strict=True))
        for name in self.categories:
            share = float(np.mean(columns[name] == -1))
            # Of more than 100 categories, the rare ones of training are not told from new ones:
            # the share must lie nearer to all than to that of the rare ones.
            if share > UNSEEN + (1.0 - UNSEEN) * self._rest.get(name, 0.0):
                notes[name] = share, "are categories that training never saw"
        for name, (least, largest) in zip(self.numeric, self._range, strict=False):
            numbers = columns[name]
            absent = float(np.isnan(numbers).mean())
            outside = float(np.mean((numbers < least) | (numbers > largest)))
            if absent > UNSEEN and name not in self.missing:
                notes[name] = absent, "are missing, as none was in training"
            # One or two rows lie outside by chance now and then; a scale that differs shows in more.
            elif outside > UNSEEN and len(raw) >= LEAST_ROWS:
                notes[name] = outside, f"lie outside of {least:g} to {largest:g} of training"
        return [
            f"column {n!r}: {100 * s:.0f} % of its values {what}" for n, (s, what) in notes.items()
        ]


class TableLayer(nn.Module):
    """`TableEncoder.encode` in torch: from ``(n, d)`` of any floating type to ``(n, num_features)``."""

    def __init__(self, encoder: TableEncoder) -> None:
        super().__init__()
        at = {name: i for i, name in enumerate(encoder.columns)}
        self.numeric = [at[name] for name in encoder.numeric]
        self.missing = [at[name] for name in encoder.missing]
        self.categories = [(at[name], len(texts)) for name, texts in encoder.categories.items()]
        self.one_hot = encoder.one_hot
        codes = torch.arange(MAX_CATEGORIES, dtype=torch.float64)
        self.register_buffer("codes", codes)
        self.register_buffer("mean", torch.from_numpy(encoder._mean.copy()))
        self.register_buffer("scale", torch.from_numpy(encoder._scale.copy()))

    def forward(self, raw: Tensor) -> Tensor:
        """Impute, scale, clip, and turn positions of categories into columns where they are one-hot."""
        parts = []
        # Promotion by float64 buffers, in place of conversions: a program then takes any dtype.
        if self.numeric:
            numbers = raw[:, self.numeric]
            scaled = (numbers - self.get_buffer("mean")) / self.get_buffer("scale")
            clipped = scaled.clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)
            parts.append(torch.where(torch.isnan(numbers), 0.0, clipped).float())
        if self.missing:
            parts.append(torch.isnan(raw[:, self.missing]).float())
        if self.categories and not self.one_hot:
            zero = self.get_buffer("codes")[:1]
            parts.append((raw[:, [column for column, _ in self.categories]] + zero).float())
        for column, size in self.categories if self.one_hot else ():
            known = self.get_buffer("codes")[:size]
            parts.append((raw[:, column : column + 1] == known).float())
        return torch.cat(parts, dim=1)


def _suspicions(name: str, column: Column, target: np.ndarray | None) -> list[str]:
    """That a column numbers the rows, names them, or decides the target alone."""
    values, note = column.values, None
    if len(values) < LEAST_ROWS:
        return []
    # Days and sums of money may all differ without being numbers of rows.
    if column.is_numeric and (column.note is None or column.spelling == PLAIN):
        note = _row_number(name, values)
    elif not column.is_numeric and column.note is None:
        different = len(pd.unique(values))
        if different >= IDENTIFIER * len(values) and different >= MANY:
            note = (
                f"has {different:,} different values in {len(values):,} rows, of which the most "
                "frequent become features. If it names the row, leave it out (--id); make "
                "dates numbers"
            )
    if note is None and target is not None and _decides(values, target):
        note = (
            "alone decides the target: each of its values occurs with one class only. Drop it if "
            "it is the target in another form, or not known when predicting"
        )
    return [] if note is None else [f"column {name!r} {note}"]


def _row_number(name: str, values: np.ndarray) -> str | None:
    """Whether numbers look like those of the rows."""
    if np.isnan(values).any() or (values % 1 != 0).any():
        return None
    different = len(np.unique(values)) == len(values)
    if different and values.max() - values.min() == len(values) - 1:
        return (
            "looks like a row number: it counts the rows. Drop it, for new rows have other numbers"
        )
    if not name.strip() or name.startswith(("Unnamed:", "__index_level_")):
        return "has no name and holds whole numbers, as an index that was saved does. Drop it if so"
    if different:
        return (
            "looks like a row number or an identifier: a whole number that differs in every row. "
            "Drop it if it is one"
        )
    return None


def _decides(values: np.ndarray, target: np.ndarray) -> bool:
    """Whether each of a few values occurs with one class only."""
    codes, different = pd.factorize(values, use_na_sentinel=False)
    target, classes = pd.factorize(target)
    most = max(len(classes), min(MAX_CATEGORIES, len(values) // 10))
    if len(classes) < 2 or len(different) > most:
        return False
    pairs = pd.unique(codes * len(classes) + target)
    return len(pairs) == len(different) > 1


def _fill_missing(values: np.ndarray) -> np.ndarray:
    """Texts, with a name for what is missing."""
    return np.where(values == np.array(None), MISSING, values)


def _table(frame: Any) -> Table:
    table = as_table(frame)
    if table is None:
        raise InputError(f"The table must be a dataframe; got {type(frame).__name__}.")
    return table
