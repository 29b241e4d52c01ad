"""Tables: reading them, and turning mixed columns into the numbers a network takes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from autobalance._validation import InputError, path_of, shown

MISSING = "<missing>"
MAX_CATEGORIES = 100
LARGEST_DEVIATION = 10.0
LARGEST_EXPANSION, LARGE = 200, 2**28
_FORMAT = "autobalance-table-encoder"


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV (also .gz, .bz2, .xz, .zip) or Parquet file.

    Raises
    ------
    InputError
        If the file is missing, empty, without rows or columns, or not of the kind its name says.
    """
    path = path_of("The table", path).expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give the path of a CSV or Parquet table.")
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give the path of a CSV or Parquet table.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty. Give a table with a header and at least one row.")
    suffixes = [s.lower() for s in path.suffixes]
    try:
        if suffixes[-1:] == [".parquet"]:
            table = pd.read_parquet(path)
        elif ".csv" in suffixes[-2:]:
            _check_expansion(path)
            _check_header(path)
            table = pd.read_csv(path, low_memory=False)
            if not isinstance(table.index, pd.RangeIndex):
                raise InputError(
                    f"{path} has rows with more fields than its header, which has {table.shape[1]}. "
                    "Name every column in the first line."
                )
        else:
            raise InputError(f"{path.name} must end in .csv, .csv.gz, .csv.xz or .parquet.")
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow and the decompressors raise dozens of kinds
        raise InputError(f"{path} cannot be read as a table: {_reason(error)}.") from None
    if table.empty:
        raise InputError(f"{path} has no rows. Give a table with a header and at least one row.")
    table.columns = table.columns.map(str)
    _check_unique(table.columns, path)
    return table


def _check_expansion(path: Path) -> None:
    """Refuse a small compressed file that would fill the memory: nobody's table shrinks so far."""
    kind = path.suffix.lower()
    if kind == ".zip":
        with zipfile.ZipFile(path) as archive:
            found = sum(member.file_size for member in archive.infolist())
        check_expansion(path, found)
        return
    opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(kind)
    if opened is None:
        return
    found = 0
    with opened(path, "rb") as stream:
        while part := stream.read(2**20):
            found += len(part)
            check_expansion(path, found)


def check_expansion(path: Path, found: int) -> None:
    """Refuse a compressed file with so many bytes in it."""
    if found > max(LARGE, LARGEST_EXPANSION * path.stat().st_size):
        raise InputError(
            f"{path} is compressed more than {LARGEST_EXPANSION} times, as no table is. If it is "
            "yours, unpack it first."
        )


def _check_header(path: Path) -> None:
    """Refuse the first line of a CSV that pandas would read, but not as the user means it."""
    names = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
    separator = next((s for s in (";", "\t", "|") if s in str(names.iloc[0])), None)
    if len(names) == 1 and separator is not None:
        raise InputError(
            f"{path} looks separated by {separator!r}. Save it with commas (and points in numbers)."
        )
    _check_unique(pd.Index(names.dropna()), path)  # pandas numbers twins: a, a.1


def _check_unique(names: pd.Index, path: Path) -> None:
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise InputError(
            f"{path} has the column {twice!r} more than once. Give each a name of its own."
        )


def _reason(error: Exception) -> str:
    """What went wrong with a file, on one line."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8. Save it as UTF-8, or as Parquet"
    if "Parquet magic bytes" in str(error):
        return "it is not in Parquet's format"
    ragged = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
    if ragged:
        expected, line, found = ragged.groups()
        return f"line {line} has {found} fields, the lines before it have {expected}"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].removesuffix(".")


def column(
    table: pd.DataFrame,
    name: str,
    role: str,
    *,
    missing_values: bool = False,
    remedy: str = "Fill them, or drop these rows",
) -> pd.Series:
    """A column by name; refused where it is absent or has missing values, unless it may."""
    if name not in table.columns:
        shown = ", ".join(map(str, table.columns[:20])) + (", ..." if table.shape[1] > 20 else "")
        raise InputError(f"The {role} column {name!r} is not in the table, which has: {shown}.")
    values = table[name]
    if isinstance(values, pd.DataFrame):
        raise InputError(f"The {role} column {name!r} appears more than once in the table.")
    missing = int(values.isna().sum())
    if missing and not missing_values:
        first = int(np.flatnonzero(values.isna())[0])
        raise InputError(
            f"The {role} column {name!r} has {missing} missing value{'s' * (missing > 1)} (the first in "
            f"row {first + 1}). {remedy}. In a CSV empty cells count as missing, and texts such as NA or "
            "None."
        )
    return values


MISTAKEN = 0.8
"""Share of a column of text that must look like numbers or dates for it to be told of."""
_LEAST_DIFFERENT = 20


def mistaken_for_text(values: pd.Series) -> str | None:
    """What a column of text looks like, with a remedy, where it seems to be meant for numbers or dates."""
    texts = values.dropna().astype(str).str.strip()
    different = texts.drop_duplicates()
    if len(different) < _LEAST_DIFFERENT:
        return None
    sample = different.head(1000)
    numbers = pd.to_numeric(sample, errors="coerce")
    if numbers.notna().mean() >= MISTAKEN:
        others = ", ".join(repr(v) for v in sample[numbers.isna()].head(3))
        return (
            f"looks numeric but for {others}, and is taken as text, whose most frequent values become "
            "features. Replace those by numbers, or by nothing"
        )
    if pd.to_numeric(sample.str.replace(",", "."), errors="coerce").notna().mean() >= MISTAKEN:
        return (
            "looks like numbers with decimal commas, and is taken as text. Write them with points"
        )
    if sample.str.fullmatch(_DATE).mean() >= MISTAKEN:
        return (
            "looks like dates, and is taken as text, whose most frequent values become features. Make it "
            "numbers, such as days since a date, or drop it"
        )
    return None


_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[ T]\d{1,2}:\d{2}.*)?"


class TableEncoder:
    """From a table's columns to numbers: scaled numeric columns, and one column per category.

    Numeric columns are standardised by scikit-learn's `StandardScaler` and limited to 10 standard
    deviations; a missing value becomes the mean, and a further column tells that it was missing.
    Every other column is one-hot encoded by scikit-learn's `OneHotEncoder` over its most frequent
    categories; a missing value is a category, and one not seen in training is all zeros. The
    fitted state travels as JSON.
    """

    def __init__(self) -> None:
        self.columns: list[str] = []
        self.numeric: list[str] = []
        self.missing: list[str] = []
        self.categories: dict[str, list[str]] = {}
        self._scaler = StandardScaler()
        self._one_hot: OneHotEncoder | None = None

    def fit(self, table: pd.DataFrame) -> TableEncoder:
        """Learn scales and categories from the training table."""
        if table.shape[1] == 0:
            raise InputError("The table has no feature column left. Give at least one.")
        if table.columns.has_duplicates:
            twice = table.columns[table.columns.duplicated()][0]
            raise InputError(
                f"The column {twice!r} appears more than once. Give each a name of its own."
            )
        self.columns = [str(name) for name in table.columns]
        for name in table.columns:
            values = table[name]
            if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(
                values
            ):
                raise InputError(
                    f"The column {name!r} holds times. Turn it into numbers, such as days since a date."
                )
            if _is_numeric(values):
                self.numeric.append(str(name))
            else:
                counts = _texts(values).value_counts()
                # By frequency, then by name: value_counts leaves ties in an order of its own.
                order = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
                self.categories[str(name)] = sorted(str(c) for c, _ in order[:MAX_CATEGORIES])
        numbers = self._numbers(table)
        self.missing = [
            n for n, column in zip(self.numeric, numbers.T, strict=True) if np.isnan(column).any()
        ]
        # An all-missing column has no mean; as zeros it is constant and says nothing.
        empty = np.isnan(numbers).all(axis=0)
        numbers[:, empty] = 0.0
        if self.numeric:
            self._scaler.fit(numbers)
        self._build_one_hot()
        return self

    @property
    def num_features(self) -> int:
        """Width of what `transform` returns."""
        return len(self.numeric) + len(self.missing) + sum(map(len, self.categories.values()))

    def select(self, table: pd.DataFrame) -> pd.DataFrame:
        """The columns of the training table, in their order; others are left out.

        Raises
        ------
        InputError
            If one is absent.
        """
        absent = [n for n in self.columns if n not in table.columns]
        if absent:
            raise InputError(
                f"The table lacks {len(absent)} column{'s' * (len(absent) > 1)} of the training "
                f"table: {', '.join(absent[:10])}."
            )
        return table.loc[:, self.columns]

    def transform(self, table: pd.DataFrame) -> np.ndarray:
        """Numbers for the network, shape ``(n, num_features)``, float32.

        Raises
        ------
        InputError
            If a column of the training table is absent, a numeric one holds text, or a value is
            infinite.
        """
        table = self.select(table)
        parts = []
        if self.numeric:
            numbers = self._numbers(table)
            scaled = np.clip(self._scaler.transform(numbers), -LARGEST_DEVIATION, LARGEST_DEVIATION)
            parts.append(np.nan_to_num(scaled))
            flags = [self.numeric.index(name) for name in self.missing]
            parts.append(np.isnan(numbers[:, flags]).astype(float))
        if self._one_hot is not None:
            texts = np.column_stack([_texts(table[n]).to_numpy(object) for n in self.categories])
            parts.append(self._one_hot.transform(texts))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The fitted state in JSON's types."""
        fitted = bool(self.numeric)
        return {
            "format": _FORMAT,
            "version": 1,
            "columns": self.columns,
            "numeric": self.numeric,
            "missing": self.missing,
            "mean": np.asarray(self._scaler.mean_).tolist() if fitted else [],
            "scale": np.asarray(self._scaler.scale_).tolist() if fitted else [],
            "categories": self.categories,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> TableEncoder:
        """Inverse of `to_dict`."""
        if (
            not isinstance(record, dict)
            or record.get("format") != _FORMAT
            or record.get("version") != 1
        ):
            raise InputError("This is not a table encoder written by this version of autobalance.")
        try:
            return cls._from_record(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"This table encoder is incomplete or altered: {shown(str(error))}."
            ) from None

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> TableEncoder:
        encoder = cls()
        encoder.columns = list(record["columns"])
        encoder.numeric = list(record["numeric"])
        encoder.missing = list(record["missing"])
        encoder.categories = {name: list(values) for name, values in record["categories"].items()}
        if encoder.numeric:
            scaler: Any = encoder._scaler
            scaler.mean_ = np.asarray(record["mean"], dtype=np.float64)
            scaler.scale_ = np.asarray(record["scale"], dtype=np.float64)
            scaler.var_ = scaler.scale_**2
            scaler.n_features_in_ = len(encoder.numeric)
            if not len(encoder.numeric) == len(scaler.mean_) == len(scaler.scale_):
                raise InputError(
                    "This table encoder is altered: means and columns differ in number."
                )
        encoder._build_one_hot()
        return encoder

    def _build_one_hot(self) -> None:
        if not self.categories:
            return
        kept = [np.array(values, dtype=object) for values in self.categories.values()]
        make: Any = OneHotEncoder  # annotated by scikit-learn as taking the str "auto"
        one_hot = make(categories=kept, handle_unknown="ignore", sparse_output=False)
        # The categories are given, so fitting on any one row leaves the encoder ready.
        self._one_hot = one_hot.fit(np.array([[values[0] for values in kept]], dtype=object))

    def _numbers(self, table: pd.DataFrame) -> np.ndarray:
        numbers = np.empty((len(table), len(self.numeric)))
        for i, name in enumerate(self.numeric):
            try:
                numbers[:, i] = pd.Series(pd.to_numeric(table[name])).to_numpy(
                    float, na_value=np.nan
                )
            except (ValueError, TypeError):
                raise InputError(
                    f"The column {name!r} was numeric in training, but now holds text. "
                    "Correct it, or train with it as text."
                ) from None
        infinite = (np.abs(numbers) > np.finfo(np.float32).max).any(axis=0)
        if infinite.any():
            name = self.numeric[int(np.argmax(infinite))]
            raise InputError(
                f"The column {name!r} has an infinite value (inf) or one beyond 3.4e38. Replace it by a "
                "number, or by a "
                "missing value (NaN), which is in order."
            )
        return numbers


def _is_numeric(values: Any) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _texts(values: Any) -> pd.Series:
    texts = values.astype("object").map(str)
    return texts.where(values.notna(), MISSING)
