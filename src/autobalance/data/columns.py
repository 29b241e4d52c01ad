"""What a column of any dataframe holds: numbers, or categories. Its values say so, not its type.

Numbers are numbers in whatever type they come: integers, floats, decimals and objects. Booleans
are 0 and 1. Dates and periods (by their beginning) are days since 1970-01-01 in UTC, durations are
days, and times of day are hours. Text is numbers where all values agree on one `Spelling`; a number
with a leading zero, such as 007, is a code and stays text. Everything else is a category.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from numbers import Complex, Real
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np
import pandas as pd

from autobalance._validation import InputError, shown

MISTAKEN = 0.8
"""Share of a column of text that must look like numbers or dates for it to be told of."""
LEAST_DIFFERENT = 20
"""Texts with fewer different values are categories, even where most of these are numbers."""
_SAMPLE = 1000
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[ T]\d{1,2}:\d{2}.*)?")
_ISO_DATE = re.compile(
    r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?"
)
_LIST = re.compile(r"\s*(?:\[.*\d.*\]|\{.*\d.*\})\s*", re.DOTALL)
_CODE = re.compile(r"[+-]?0\d+")
_CURRENCIES = ("USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "kr", "Fr.")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2009\u202f"), " ") | {0x2212: "-", 0x2019: "'"}
_TRUTH = {"true": 1.0, "false": 0.0}


class Table(NamedTuple):
    """The columns of a dataframe as pandas has them, under names that differ: a second "a" is "a (2)"."""

    names: list[str]
    columns: Sequence[pd.Series]
    rows: int


class Spelling(NamedTuple):
    """One way to write numbers as text.

    `kind` is "number", "boolean" (true, false) or "date" (ISO 8601); `affix` a currency or a percent sign
    before or after each number (45 % is 45); `thousands` what stands between groups of three digits, or
    nothing; and `decimal` a point or a comma.
    """

    kind: str = "number"
    affix: str = ""
    thousands: str = ""
    decimal: str = "."

    def parse(self, text: str) -> float | None:
        """The number that a text stands for, or None where it is written in another way."""
        text = text.translate(_SPACES).strip()
        if self.kind == "boolean":
            return _TRUTH.get(text.lower())
        if self.kind == "date":
            return _days([text])[0] if _ISO_DATE.fullmatch(text) else None
        negative = re.fullmatch(r"\((.+)\)", text)
        sign, rest = ("-", negative[1]) if negative else ("", text)
        if self.affix:
            if rest.count(self.affix) != 1:
                return None
            signed, rest = rest[0] if rest[0] in "+-" else "", rest.lstrip("+-").strip()
            if not (rest.startswith(self.affix) or rest.endswith(self.affix)):
                return None
            rest = signed + rest.replace(self.affix, "").strip()
        d, t = re.escape(self.decimal), re.escape(self.thousands)
        whole = rf"(?:[1-9]\d{{0,2}}(?:{t}\d{{3}})+|\d+)" if self.thousands else r"\d+"
        exponent = "" if self.affix or self.thousands else r"(?:[eE][+-]?\d+)?"
        if not re.fullmatch(rf"[+-]?(?:{whole}(?:{d}\d*)?|{d}\d+){exponent}", rest):
            return None
        plain = rest.replace(self.thousands, "") if self.thousands else rest
        return float(sign + plain.replace(self.decimal, "."))


PLAIN = Spelling()
_SEPARATORS = [
    ("", "."), (",", "."), ("", ","), (".", ","), (" ", "."), (" ", ","), ("'", "."), ("_", "."),
]  # fmt: skip


class Column(NamedTuple):
    """A column as the encoder takes it.

    `values` are float64 with NaN for missing numbers, or objects: text, with None where it is missing.
    `spelling` is how text spells its numbers, and `note` what a user should know of how it was read.
    """

    values: np.ndarray
    spelling: Spelling | None = None
    note: str | None = None

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers."""
        return self.values.dtype == np.float64


def as_table(frame: Any) -> Table | None:
    """The columns of a dataframe; None for what is no dataframe, such as an array.

    Raises
    ------
    InputError
        If a dataframe is lazy.
    """
    if isinstance(frame, Table):
        return frame
    if hasattr(frame, "as_lazy_table"):  # a `TableFile`, whose room this is
        return frame.as_lazy_table()
    if isinstance(frame, pd.DataFrame):  # pandas alone lets names be equal, or be no text
        names = [*map(str, frame.columns)]
        columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
    else:
        table: Any = nw.from_native(frame, pass_through=True)
        if isinstance(table, nw.LazyFrame):
            raise InputError("The table is lazy. Collect it first: X.collect().")
        if not isinstance(table, nw.DataFrame):
            return None
        names, columns = table.columns, [_as_pandas(table[name]) for name in table.columns]
    dense = [c.sparse.to_dense() if isinstance(c.dtype, pd.SparseDtype) else c for c in columns]
    return Table(distinct(names), dense, len(frame))


def _as_pandas(series: nw.Series[Any]) -> pd.Series:
    # By the library's own conversion: narwhals' loses what is missing in arrow's dictionaries.
    native = series.to_native()
    return getattr(native, "to_pandas", series.to_pandas)()


def distinct(names: Iterable[str]) -> list[str]:
    """Names that differ: of equal ones the second is numbered (2), and so on."""
    result: dict[str, None] = {}
    for name in names:
        other, number = name, 1
        while other in result:
            number += 1
            other = f"{name} ({number})"
        result[other] = None
    return list(result)


def read_column(name: str, series: pd.Series) -> Column:
    """Read a column ``(n,)`` by its values; its name is for messages.

    Raises
    ------
    InputError
        If a cell holds a list, an array or another thing that is neither a number nor a category.
    """
    dtype: Any = series.dtype
    if _holds_numbers(dtype):
        return Column(series.to_numpy(np.float64, na_value=np.nan))
    if dtype.kind == "m":
        days = (pd.to_timedelta(series) / pd.Timedelta(days=1)).to_numpy(np.float64)
        return Column(days, None, "holds durations, which are read as days")
    if dtype.kind == "M" or isinstance(dtype, pd.PeriodDtype):
        times = series.dt.to_timestamp() if isinstance(dtype, pd.PeriodDtype) else series
        return Column(_days(times), None, "holds times, which are read as days since 1970-01-01")
    if isinstance(dtype, pd.CategoricalDtype):
        return Column(_categories(name, series))
    if _is_text(series):
        return _read_texts(name, texts_of(name, series))
    values = np.empty(len(series), dtype=object)
    values[:] = [None if _is_missing(value) else value for value in series.tolist()]
    return _read_objects(name, values)


def _holds_numbers(dtype: Any) -> bool:
    return pd.api.types.is_numeric_dtype(dtype) and dtype.kind != "c"


def _read_objects(name: str, values: np.ndarray) -> Column:
    """Numbers or categories among Python objects, None where one is missing."""
    known = [v for v in values.tolist() if v is not None]
    kinds = set(map(type, known))
    if not known:
        return Column(values)
    odd = [kind for kind in kinds if not _is_value(kind)]
    if odd:
        example = next(v for v in known if type(v) is odd[0])
        raise InputError(
            f"The column {name!r} holds {odd[0].__name__} in its cells, such as {shown(example)}. "
            "Make one column per number of it, or drop the column."
        )
    if all(issubclass(kind, (Real, Decimal, np.bool_)) for kind in kinds):
        return Column(np.array([np.nan if v is None else float(v) for v in values.tolist()]))
    times = (datetime.date, pd.Period, np.datetime64, datetime.timedelta, np.timedelta64)
    if all(issubclass(kind, (*times, datetime.time)) for kind in kinds):
        return Column(_of_times(name, values, known), None, "holds times, which are read as days")
    texts = np.array([None if v is None else category_text(v) for v in values.tolist()], object)
    if any(issubclass(kind, pd.Interval) for kind in kinds):
        return Column(texts)
    return _read_texts(name, texts)


def _read_texts(name: str, texts: np.ndarray) -> Column:
    """Numbers or categories among texts, None where one is missing."""
    different = pd.factorize(texts)[1]
    if not len(different):
        return Column(texts)
    # Fewer may be intervals, as pandas.cut makes them.
    if len(different) >= LEAST_DIFFERENT and all(map(_LIST.fullmatch, different)):
        raise InputError(
            f"The column {name!r} holds lists written as text, such as {shown(different[0])}. Make one "
            "column per number of it, or drop the column."
        )
    spelling = find_spelling(different)
    if spelling is None:
        return Column(texts, None, _describe_mistake(different))
    return Column(_parse(texts, spelling), spelling, _describe_spelling(different, spelling))


def numbers_of(name: str, series: pd.Series, spelling: Spelling | None) -> np.ndarray:
    """A column that was numeric in training, as float64 ``(n,)``.

    How it was spelled in training is tried first.

    Raises
    ------
    InputError
        If it now holds anything else.
    """
    if spelling is not None and not _holds_numbers(series.dtype):
        if _is_text(series):
            texts = texts_of(name, series)
        else:
            texts = np.array([None if _is_missing(v) else str(v) for v in series.tolist()], object)
        numbers = _parse(texts, spelling)
        if not np.isnan(numbers[texts != np.array(None)]).any():
            return numbers
    column = read_column(name, series)
    if column.is_numeric:
        return column.values
    numbers = _parse(column.values, PLAIN)
    if np.isnan(numbers[column.values != np.array(None)]).any():
        raise InputError(
            f"The column {name!r} was numeric in training, but now holds text. "
            "Correct it, or train with it as text."
        )
    return numbers


def texts_of(name: str, series: pd.Series) -> np.ndarray:
    """A column that was categorical in training, as text with None for missing values."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _categories(name, series)
    if _is_text(series):
        # Each text is made once, however many rows have it.
        codes, different = pd.factorize(series)
        return np.array([*map(category_text, different), None], dtype=object)[codes]
    return np.array(
        [None if _is_missing(v) else category_text(v) for v in series.tolist()], dtype=object
    )


def _is_text(series: pd.Series) -> bool:
    """Whether all values are text or missing; other objects may be equal and still differ, as 1 and True."""
    return isinstance(series.dtype, pd.StringDtype) or pd.api.types.infer_dtype(series) == "string"


def category_text(value: Any) -> str:
    """A category's name: whole numbers without a point, so that 1 and 1.0 are one category."""
    if isinstance(value, (float, np.floating, Decimal)) and math.isfinite(value) and value % 1 == 0:
        return str(int(value))
    return str(value)


def find_spelling(texts: Sequence[str] | np.ndarray) -> Spelling | None:
    """The one way in which all texts spell numbers, or None where there is none."""
    stripped = [str(t).translate(_SPACES).strip() for t in texts]
    if not stripped:
        return None
    if all(t.lower() in _TRUTH for t in stripped):
        return Spelling("boolean")
    if all(_ISO_DATE.fullmatch(t) for t in stripped):
        try:
            _days(stripped)
        except (ValueError, OverflowError):
            return None  # such as the 30th of February
        return Spelling("date")
    if any(_CODE.fullmatch(t) for t in stripped):
        return None
    affix = _affix(stripped[0])
    if affix is None:
        return None
    for thousands, decimal in _SEPARATORS:
        spelling = Spelling("number", affix, thousands, decimal)
        if all(spelling.parse(t) is not None for t in stripped):
            return spelling
    return None


def _affix(text: str) -> str | None:
    """The currency or percent sign of a number, "" where it has none; None for other text."""
    rest = text.strip("+-() ")
    for end in (rest[:1], rest[-1:]):
        if end == "%" or (end and unicodedata.category(end) == "Sc"):
            return end
    for sign in _CURRENCIES:
        if rest.startswith(sign) or rest.endswith(sign):
            return sign
    return "" if rest and (rest[0].isdigit() or rest[0] in ".,") else None


def _describe_spelling(different: np.ndarray, spelling: Spelling) -> str | None:
    """How text was read as numbers."""
    if spelling.kind == "boolean":
        return None
    if spelling.kind == "date":
        return "holds dates, which are read as days since 1970-01-01"
    if spelling == PLAIN:
        return "holds numbers written as strings, and is read as numbers"
    example = max(map(str, different[:_SAMPLE]), key=len)
    return (
        f"writes its numbers as {example!r}, which is read as {spelling.parse(example):.15g}; all "
        "values agree on that spelling"
    )


def _describe_mistake(different: np.ndarray) -> str | None:
    """What text looks like, with a remedy, where it seems to be meant for numbers or dates."""
    sample = [str(t).strip() for t in different[:_SAMPLE]]
    ways = {t: find_spelling([t]) for t in sample}
    numbers = {t: w for t, w in ways.items() if w is not None and w.kind == "number"}
    other = [t for t in sample if t not in numbers]
    mixed = {(w.affix, w.thousands, w.decimal): t for t, w in numbers.items()}
    if not other and not any(_CODE.fullmatch(t) for t in sample) and len(mixed) > 1:
        examples = " and ".join(repr(t) for t in list(mixed.values())[:2])
        return (
            f"writes its numbers in more than one way, such as {examples}, and is taken as text. "
            "Write them all in one way, with a point before the decimals and nothing else"
        )
    if len(sample) < LEAST_DIFFERENT:
        return None
    if len(numbers) >= MISTAKEN * len(sample) and other and not all(map(_CODE.fullmatch, other)):
        # A column whose numbers are spelled in one way but for a few values.
        return (
            f"looks numeric but for {', '.join(repr(t) for t in other[:3])}, and is taken as text, whose "
            "most frequent values become features. Replace those by numbers, or by nothing"
        )
    if sum(bool(_DATE.fullmatch(t)) for t in sample) >= MISTAKEN * len(sample):
        return (
            "looks like dates, and is taken as text, whose most frequent values become features. Write "
            "them as 2024-01-31, make them numbers, such as days since a date, or drop the column"
        )
    return None


def _parse(texts: np.ndarray, spelling: Spelling) -> np.ndarray:
    """Numbers of texts, NaN where one is missing or spelled otherwise; each text is parsed once."""
    codes, different = pd.factorize(texts)
    if spelling.kind == "date":
        right = [t.strip() if _ISO_DATE.fullmatch(t.strip()) else None for t in different]
        values = _days(right) if len(right) else np.empty(0)
    else:
        parsed = [spelling.parse(str(text)) for text in different]
        values = np.array([np.nan if v is None else v for v in parsed], dtype=np.float64)
    return np.append(values, np.nan)[codes]


def _days(values: Any) -> np.ndarray:
    """Days since 1970-01-01 in UTC, where no time zone is given that of the values."""
    # In microseconds, as nanoseconds end in the year 2262.
    times = pd.to_datetime(pd.Series(values), utc=True, format="ISO8601").dt.as_unit("us")
    epoch = pd.Timestamp(0, tz="UTC").as_unit("us")
    return ((times - epoch) / pd.Timedelta(days=1)).to_numpy(np.float64)


def _of_times(name: str, values: np.ndarray, known: list[Any]) -> np.ndarray:
    """Times among Python objects; all must be of one sort."""
    numbers = np.full(len(values), np.nan)
    there = np.array([v is not None for v in values.tolist()])
    if all(isinstance(v, datetime.time) for v in known):
        numbers[there] = [v.hour + v.minute / 60 + v.second / 3600 for v in known]
    elif all(isinstance(v, (datetime.timedelta, np.timedelta64)) for v in known):
        numbers[there] = [pd.Timedelta(v) / pd.Timedelta(days=1) for v in known]
    elif any(isinstance(v, (datetime.timedelta, np.timedelta64, datetime.time)) for v in known):
        raise InputError(
            f"The column {name!r} mixes dates with durations or times of day. Make it numbers of one kind."
        )
    else:
        numbers[there] = _days(
            [
                v.to_timestamp() if isinstance(v, pd.Period) else pd.Timestamp(v).isoformat()
                for v in known
            ]
        )
    return numbers


def _categories(name: str, values: pd.Series) -> np.ndarray:
    """The texts of a pandas categorical, each made once."""
    kinds = [category_text(c) for c in values.cat.categories]
    odd = [c for c in values.cat.categories if not _is_value(type(c))]
    if odd:
        raise InputError(f"The column {name!r} has the category {shown(odd[0])}. Make it text.")
    return np.array([*kinds, None], dtype=object)[values.cat.codes.to_numpy()]


def _is_value(kind: type) -> bool:
    """Whether values of a type are numbers, text, times, or categories with a text of their own."""
    if issubclass(kind, (str, Real, Decimal, np.bool_, datetime.date, datetime.time)):
        return True
    if issubclass(kind, (Complex, np.ndarray, bytes, bytearray)) or hasattr(kind, "__len__"):
        return False
    return kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return False
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))
