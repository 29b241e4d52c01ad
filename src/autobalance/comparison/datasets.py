"""Datasets of a comparison: declared in YAML, split by seed, handed on as tensors.

A dataset is a `DatasetDefinition`: where its files lie in the data folder, what the target is and
how rows are divided. `load_problem` makes the `Problem` of one seed. Its split depends on the
definition and the seed only, so that all methods meet the same rows.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from autobalance.checks import InputError, fraction, one_of, positive, whole
from autobalance.settings import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from autobalance.data.batches import ArrayData
    from autobalance.training import ModelFactory

PACKAGED = "datasets.yaml"
NETWORKS = ("table", "linear", "cnn")
OTHER = "other"
DATA_FOLDER = "Name the data folder by --data DIR or the environment variable AUTOBALANCE_DATA"


@dataclass(frozen=True, kw_only=True)
class DatasetDefinition:
    """One dataset of a comparison.

    Parameters
    ----------
    name : str
        What results call it.
    path : str
        Relative to the data folder, or absolute. By its suffix a table (.csv, .tsv, also .gz or
        .xz; .parquet), arrays (.npz), or else a folder with Fashion-MNIST's four IDX files, whose
        test images are the test set.
    target : str
        Column, or array, of the classes. The IDX files' is "label".
    test_path : str, optional
        A given test set of the same kind; without it the rows of `path` are split.
    groups : tuple of str
        Columns whose combinations are the groups. They are no features.
    split_by : str, optional
        All rows with one value of this column go to one side. It is no feature.
    drop : tuple of str
        Columns that are no features.
    features : tuple of str
        Columns that are features; by default all others.
    columns : tuple of str
        Names of the columns of a .csv or .tsv file without a header.
    text : str, optional
        Column of texts. Their TF-IDF weights over the training rows' `vocabulary` most frequent
        terms (sublinear term frequency) are then the only features.
    vocabulary : int
        Number of terms.
    inputs : str
        Array of the inputs in an .npz file: images ``(n, h, w)`` or ``(n, c, h, w)``, those of
        uint8 scaled to [0, 1], or features ``(n, d)``.
    class_names : str, optional
        Array of an .npz file with the name of each class index.
    merge_below : int
        Classes of fewer members, over all rows, are merged: see `merged_classes`.
    long_tail : mapping, optional
        ``{"largest": n, "imbalance": r}``: training rows are drawn to the exponential profile,
        the first class in sorted order being the largest.
    test_fraction : float
        Share of each class's members that is for testing, in (0, 1), rounded, but at least one
        on either side; a class of one member stays in training. With `split_by`, of the values of
        that column; with `groups`, of each class within each group.
    train_size, test_size : int, optional
        At most so many rows, drawn in proportion to the classes (and groups), at least one each.
    network : str
        "table" (two hidden layers of 256) or "linear" on flat inputs, "cnn" on images, or
        "import.path:callable", which is passed `num_features`, `num_classes`, `channels` and
        `size` as far as it has parameters of these names.
    recipe : mapping
        What differs from the comparison's `Recipe`.
    family : str
        Datasets of one family count as one in summaries; by default the name.
    half : {"develop", "confirm"}, optional
        Whether methods may be adjusted on it, or are only confirmed on it.
    source : str
        Where the file comes from, for the message that it is missing.

    Raises
    ------
    InputError
        If a value is not of its kind or range.
    """

    name: str
    path: str
    target: str
    test_path: str | None = None
    groups: tuple[str, ...] = ()
    split_by: str | None = None
    drop: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    text: str | None = None
    vocabulary: int = 2000
    inputs: str = "X"
    class_names: str | None = None
    merge_below: int = 0
    long_tail: Mapping[str, float] | None = None
    test_fraction: float = 0.5
    train_size: int | None = None
    test_size: int | None = None
    network: str = "table"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    half: Literal["develop", "confirm"] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for key in ("name", "path", "target"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key):
                raise InputError(f"{key} must be a text; got {getattr(self, key)!r}.")
        for key in ("groups", "drop", "features", "columns"):
            value = getattr(self, key)
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
                raise InputError(f"{self._key(key)} must be a list of column names; got {value!r}.")
            object.__setattr__(self, key, tuple(value))
        if not self.family:
            object.__setattr__(self, "family", self.name)
        fraction(self._key("test_fraction"), self.test_fraction)
        whole(self._key("merge_below"), self.merge_below, least=0)
        whole(self._key("vocabulary"), self.vocabulary, least=1)
        for key in ("train_size", "test_size"):
            if getattr(self, key) is not None:
                whole(self._key(key), getattr(self, key), least=1)
        if self.half is not None:
            one_of(self._key("half"), self.half, ("develop", "confirm"))
        if ":" not in self.network:
            one_of(f"{self._key('network')} (unless import.path:callable)", self.network, NETWORKS)
        self._check_long_tail()
        if not isinstance(self.recipe, Mapping):
            raise InputError(f"{self._key('recipe')} must map settings of Recipe to values.")
        _known_keys(self.recipe, [f.name for f in fields(Recipe)], self._key("recipe"))
        Recipe(**self.recipe)
        if self.test_path is not None and self.split_by is not None:
            raise InputError(
                f"{self._key('split_by')} splits the rows, but test_path gives a test set. Give one."
            )

    def _key(self, key: str) -> str:
        return f"{self.name}: {key}"

    def _check_long_tail(self) -> None:
        if self.long_tail is None:
            return
        expected = {"largest", "imbalance"}
        if not isinstance(self.long_tail, Mapping) or set(self.long_tail) != expected:
            raise InputError(
                f"{self._key('long_tail')} must be {{largest: rows, imbalance: ratio}}; got "
                f"{self.long_tail!r}."
            )
        whole(self._key("largest"), self.long_tail["largest"], least=1)  # type: ignore[arg-type]
        if positive(self._key("imbalance"), self.long_tail["imbalance"]) < 1:
            raise InputError(f"{self._key('imbalance')} must be 1 or more.")
        if self.train_size is not None:
            raise InputError(f"{self._key('train_size')} and long_tail exclude each other.")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method gets of one dataset and seed.

    Attributes
    ----------
    name : str
        Of the dataset.
    train, test : ArrayData
        Numbered alike.
    class_names : tuple of str
        By class index.
    group_names : tuple of str or None
        By group index.
    network : callable
        Returns a new, untrained network; it can be pickled.
    recipe : mapping
        What differs from the comparison's `Recipe`.
    """

    name: str
    train: ArrayData
    test: ArrayData
    class_names: tuple[str, ...]
    group_names: tuple[str, ...] | None
    network: ModelFactory
    recipe: Mapping[str, Any]


def read_definitions(source: Mapping[str, Any] | str | Path) -> dict[str, DatasetDefinition]:
    """Definitions by name, from a mapping of names to mappings or a YAML file of the same layout.

    Raises
    ------
    InputError
        If the file is missing or no YAML, or a definition has an unknown key or a bad value.
    """
    where = "The definitions of datasets"
    if not isinstance(source, Mapping):
        path = Path(source)
        where = str(path)
        if not path.is_file():
            raise InputError(f"There is no file {path}. Give a YAML file with dataset definitions.")
        try:
            source = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} cannot be read as YAML: {reason}.") from None
    if not isinstance(source, Mapping) or not source:
        raise InputError(f"{where} must map names of datasets to their settings.")
    definitions = {}
    allowed = [f.name for f in fields(DatasetDefinition) if f.name != "name"]
    required = [
        f.name
        for f in fields(DatasetDefinition)
        if f.default is MISSING and f.default_factory is MISSING and f.name != "name"
    ]
    for key, values in source.items():
        name = str(key)
        if not isinstance(values, Mapping):
            raise InputError(f"{name}: a definition must map settings to values; got {values!r}.")
        _known_keys(values, allowed, name)
        absent = [r for r in required if r not in values]
        if absent:
            raise InputError(f"{name}: the definition lacks {' and '.join(absent)}. Add it.")
        definitions[name] = DatasetDefinition(name=name, **values)
    return definitions


def packaged_definitions() -> dict[str, DatasetDefinition]:
    """The definitions that come with the package. Their data does not."""
    text = files("autobalance.comparison").joinpath(PACKAGED).read_text(encoding="utf-8")
    return read_definitions(yaml.safe_load(text))


def definition_of(
    name: str, definitions: Mapping[str, DatasetDefinition] | None = None
) -> DatasetDefinition:
    """The definition of that name, among the packaged ones by default.

    Raises
    ------
    InputError
        If there is none; the message names close ones.
    """
    definitions = packaged_definitions() if definitions is None else definitions
    if name not in definitions:
        raise InputError(f"There is no dataset {name!r}. {_suggestion(name, definitions)}")
    return definitions[name]


def load_problem(definition: DatasetDefinition, seed: int, data: str | Path | None) -> Problem:
    """One dataset, divided and encoded as the seed says.

    Parameters
    ----------
    definition : DatasetDefinition
        What to load.
    seed : int
        Decides which rows are drawn for training and testing, at least 0.
    data : path or None
        The data folder; None will do where the definition's paths are absolute.

    Raises
    ------
    InputError
        If a file or column is missing, the data is not of the declared kind, or a class or group
        is left without training rows.
    """
    from autobalance.data.batches import ArrayData

    whole("seed", seed, least=0)
    rows = _source(definition, data)
    target, class_names = _classes(definition, rows)
    groups, group_names = _groups(definition, rows)
    cells = target if groups is None else groups * len(class_names) + target
    train, test = _division(definition, rows, target, cells, np.random.default_rng(seed))
    _check_present(definition.name, "class", target[train], class_names)
    if groups is not None and group_names is not None:
        _check_present(definition.name, "group", groups[train], group_names)
    encoded = _encoded(definition, rows, train, test)
    sides = [
        ArrayData.of(
            inputs,
            target[index],
            groups=None if groups is None else groups[index],
            num_classes=len(class_names),
            num_groups=None if group_names is None else len(group_names),
        )
        for inputs, index in zip(encoded, (train, test), strict=True)
    ]
    return Problem(
        name=definition.name,
        train=sides[0],
        test=sides[1],
        class_names=class_names,
        group_names=group_names,
        network=_network(definition, tuple(sides[0].inputs.shape[1:]), len(class_names)),
        recipe=dict(definition.recipe),
    )


# Reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """All rows of a dataset, the given test set's last, `given` of them."""

    table: pd.DataFrame
    inputs: np.ndarray | None = None
    given: int = 0
    names: np.ndarray | None = None


def _source(definition: DatasetDefinition, data: str | Path | None) -> _Rows:
    paths = []
    for name in filter(None, (definition.path, definition.test_path)):
        path = Path(name).expanduser()
        if data is None and not path.is_absolute():
            raise InputError(f"{definition.name} needs {name}. {DATA_FOLDER}.")
        path = Path(data or "") / path
        if not path.exists():
            origin = f"It comes from: {definition.source}. " if definition.source else ""
            raise InputError(
                f"{definition.name} needs {path}, which is not there. {origin}{DATA_FOLDER}; the file's "
                f"place in it is {name}."
            )
        paths.append((path, path.stat().st_mtime_ns, path.stat().st_size))
    return _read(tuple(paths), definition.columns, definition.inputs, definition.class_names)


@lru_cache(maxsize=1)  # seeds and variants of one dataset follow one another
def _read(
    paths: tuple[tuple[Path, int, int], ...],
    columns: tuple[str, ...],
    inputs: str,
    class_names: str | None,
) -> _Rows:
    """All rows of a file, or of two; the times and sizes tell files that were replaced."""
    import pandas as pd

    parts = [_read_one(path, columns, inputs, class_names) for path, *_ in paths]
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    if (first.inputs is None) != (second.inputs is None) or first.given:
        raise InputError(f"{paths[0][0].name} and {paths[1][0].name} must be of one kind.")
    joined = None
    if first.inputs is not None and second.inputs is not None:
        if first.inputs.shape[1:] != second.inputs.shape[1:]:
            raise InputError(f"{paths[0][0].name} and {paths[1][0].name} differ in input shape.")
        joined = np.concatenate([first.inputs, second.inputs])
    absent = [c for c in first.table.columns if c not in second.table.columns]
    if absent:
        raise InputError(f"{paths[1][0]} lacks the column {absent[0]!r} of {paths[0][0].name}.")
    table = pd.concat([first.table, second.table[list(first.table.columns)]], ignore_index=True)
    return _Rows(table, joined, len(second.table), first.names)


def _read_one(path: Path, columns: tuple[str, ...], inputs: str, names: str | None) -> _Rows:
    from autobalance.data.tables import read_table

    if path.is_dir():
        return _read_images(path)
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] == [".npz"]:
        return _read_arrays(path, inputs, names)
    if ".tsv" in suffixes[-2:]:
        return _Rows(_read_delimited(path, "\t", columns))
    if columns and ".csv" in suffixes[-2:]:
        return _Rows(_read_delimited(path, ",", columns))
    return _Rows(read_table(path))


def _read_images(folder: Path) -> _Rows:
    import pandas as pd

    from autobalance.data.fashion import CLASSES, original

    train, test = original(folder)
    names = np.array(CLASSES)[np.concatenate([train.target, test.target])]
    images = np.concatenate([train.images, test.images])
    return _Rows(pd.DataFrame({"label": names}), images, given=len(test.target))


def _read_arrays(path: Path, inputs: str, names: str | None) -> _Rows:
    """The inputs, and every one-dimensional array of their length as a column."""
    import pandas as pd

    try:
        with np.load(path, allow_pickle=False) as stream:
            arrays = {key: stream[key] for key in stream.files}
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise InputError(f"{path} cannot be read as .npz: {error}.") from None
    for key in filter(None, (inputs, names)):
        if key not in arrays:
            raise InputError(f"{path} has no array {key!r}; it has: {', '.join(arrays)}.")
    images = arrays[inputs]
    if images.ndim not in (2, 3, 4) or len(images) == 0:
        raise InputError(
            f"{path}: the array {inputs!r} must be (n, d), (n, h, w) or (n, c, h, w); got shape "
            f"{images.shape}."
        )
    table = {k: v for k, v in arrays.items() if v.shape == images.shape[:1] and k != names}
    return _Rows(
        pd.DataFrame(table, index=pd.RangeIndex(len(images))),
        images,
        names=arrays[names] if names else None,
    )


def _read_delimited(path: Path, separator: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table whose first line is no header, if `columns` names them; empty fields are missing."""
    import pandas as pd

    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    try:
        table = pd.read_csv(
            path,
            sep=separator,
            header=None if columns else 0,
            quoting=quoting,
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
        )
    except Exception as error:  # pandas and the decompressors raise dozens of kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
        raise InputError(f"{path} cannot be read as a table: {reason}.") from None
    if columns:
        if table.shape[1] != len(columns):
            raise InputError(
                f"{path} has {table.shape[1]} columns, but `columns` names {len(columns)}. Name each."
            )
        table.columns = list(columns)
    return table


# Classes and groups -----------------------------------------------------------------------


def _classes(definition: DatasetDefinition, rows: _Rows) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices ``(n,)`` in sorted order of the classes, and their names."""
    import pandas as pd

    from autobalance.data.tables import column

    values = column(rows.table, definition.target, "target")
    if rows.names is not None:
        index = values.to_numpy()
        if index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(rows.names):
            raise InputError(
                f"{definition.name}: {definition.target!r} must index {definition.class_names!r}, so "
                f"hold whole numbers from 0 to {len(rows.names) - 1}."
            )
        values = pd.Series(rows.names[index])
    array = values.to_numpy()
    ordered = array.dtype.kind in "iuf"
    if ordered and (array != np.round(array)).any():
        raise InputError(
            f"{definition.name}: the target {definition.target!r} looks continuous (such as "
            f"{array[array != np.round(array)][0]:g}). Name a column of classes."
        )
    array = array.astype(np.int64) if ordered else array.astype(str)
    found, target, counts = np.unique(array, return_inverse=True, return_counts=True)
    merged, names = merged_classes(found, counts, definition.merge_below)
    if len(names) < 2:
        raise InputError(
            f"{definition.name}: classification needs two classes; {definition.target!r} has "
            f"{len(names)}."
        )
    return merged[target], names


def merged_classes(
    values: np.ndarray, counts: np.ndarray, least: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """New class index of each class ``(k,)``, and the new names, sorted as `values` are.

    Numbers are ordered: the smallest class, while it has fewer than `least` members, joins the
    smaller of its neighbours, ties going to the lower number; its name is then "24-29". Other
    classes of fewer members become the one class "other", however many that has then.
    """
    if not np.issubdtype(values.dtype, np.integer):
        small = counts < least
        names = np.where(small, OTHER, values.astype(str)) if small.any() else values.astype(str)
        found, merged = np.unique(names, return_inverse=True)
        return merged, tuple(found.tolist())
    runs = [(i, i + 1) for i in range(len(values))]
    sizes = [int(n) for n in counts]
    while len(runs) > 1 and min(sizes) < least:
        i = int(np.argmin(sizes))
        near = [j for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        a, b = sorted((i, min(near, key=lambda j: sizes[j])))
        runs[a : b + 1] = [(runs[a][0], runs[b][1])]
        sizes[a : b + 1] = [sizes[a] + sizes[b]]
    merged = np.repeat(np.arange(len(runs)), [end - start for start, end in runs])
    spans = [(values[start], values[end - 1]) for start, end in runs]
    return merged, tuple(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def _groups(
    definition: DatasetDefinition, rows: _Rows
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Group indices ``(n,)`` and names; several columns make one group per combination."""
    from autobalance.data.tables import column

    if not definition.groups:
        return None, None
    parts = [column(rows.table, name, "group").astype(str) for name in definition.groups]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + ", " + part
    found, index = np.unique(joined.to_numpy(dtype=str), return_inverse=True)
    if len(found) < 2:
        raise InputError(f"{definition.name}: there is one group only, {str(found[0])!r}.")
    return index, tuple(found.tolist())


def _check_present(name: str, what: str, index: np.ndarray, names: tuple[str, ...]) -> None:
    absent = np.flatnonzero(np.bincount(index, minlength=len(names)) == 0)
    if len(absent):
        raise InputError(
            f"{name}: the {what} {names[absent[0]]!r} has no training row after the split. Merge or "
            "remove it (merge_below merges small classes), or leave more rows for training."
        )


# Division ---------------------------------------------------------------------------------


def _division(
    definition: DatasetDefinition,
    rows: _Rows,
    target: np.ndarray,
    cells: np.ndarray,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted row numbers of training and of testing."""
    from autobalance.data.longtail import exponential_counts, sample_by_class
    from autobalance.data.tables import column

    n = len(rows.table)
    if rows.given:
        held = np.arange(n) >= n - rows.given
    else:
        units = np.arange(n)
        if definition.split_by is not None:
            values = column(rows.table, definition.split_by, "split_by").to_numpy()
            _, units = np.unique(values, return_inverse=True)
        held = held_out(cells, units, definition.test_fraction, generator)
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    if len(test) == 0:
        raise InputError(f"{definition.name}: no class has two members, so none can be tested.")
    if definition.long_tail is not None:
        counts = exponential_counts(
            int(target.max()) + 1,
            int(definition.long_tail["largest"]),
            float(definition.long_tail["imbalance"]),
        )
        try:
            train = train[sample_by_class(target[train], counts, generator)]
        except InputError as error:
            raise InputError(
                f"{definition.name}: {error} Lower `largest`, or test_fraction."
            ) from None
    train = _capped(definition, "train_size", train, cells, generator)
    return train, _capped(definition, "test_size", test, cells, generator)


def held_out(
    cells: np.ndarray, units: np.ndarray, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Mask of the test rows, shape ``(n,)``: that share of each cell's units, and no unit in part.

    Cells take turns from the one of fewest units on. Each gives `share` of its units, rounded but
    at least one and not all; a cell of one unit gives none. What earlier cells decided holds, so a
    cell all of whose units also belong to smaller ones may end up on one side.

    Parameters
    ----------
    cells, units : ndarray
        Class (or class within group), and what must stay together, of each row, shape ``(n,)``.
    share : float
        For testing, in (0, 1).
    generator : numpy.random.Generator
        Decides who is held out.
    """
    tested = np.zeros(int(units.max()) + 1, dtype=bool)
    open_ = np.ones(len(tested), dtype=bool)
    members = {c: np.unique(units[cells == c]) for c in np.unique(cells).tolist()}
    for cell in sorted(members, key=lambda c: (len(members[c]), c)):
        own = members[cell]
        wanted = min(max(1, round(share * len(own))), len(own) - 1)
        free = generator.permutation(own[open_[own]])
        more = max(0, wanted - int(tested[own].sum()))
        tested[free[:more]] = True
        open_[free] = False
    return tested[units]


def _capped(
    definition: DatasetDefinition,
    key: Literal["train_size", "test_size"],
    rows: np.ndarray,
    cells: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    from autobalance.data.longtail import sample_by_class

    size = getattr(definition, key)
    if size is None or len(rows) <= size:
        return rows
    counts = np.bincount(cells[rows])
    if size < (counts > 0).sum():
        raise InputError(
            f"{definition.name}: {key} is {size}, but there are {(counts > 0).sum()} classes (within "
            "groups) to keep a row of. Raise it."
        )
    return rows[sample_by_class(cells[rows], proportional(counts, size), generator)]


def proportional(counts: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers that sum to `size`, in proportion to `counts`, at least 1 where those are.

    `size` must lie between the number of positive counts and their sum.
    """
    exact = counts * (size / counts.sum())
    shares = np.maximum(np.floor(exact), counts > 0).astype(np.int64)
    while (left := size - int(shares.sum())) != 0:
        step = 1 if left > 0 else -1
        movable = shares < counts if left > 0 else shares > 1
        shares[np.argmax(np.where(movable, step * (exact - shares), -np.inf))] += step
    return shares


# Inputs and network -----------------------------------------------------------------------


def _encoded(
    definition: DatasetDefinition, rows: _Rows, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of training and testing, float32; encoders see the training rows only."""
    import pandas as pd

    from autobalance.data.tables import TableEncoder

    if definition.text is not None:
        return _weights_of_terms(definition, rows, train, test)
    if rows.inputs is None:
        table = _features(definition, rows.table)
    elif rows.inputs.ndim == 2:
        width = rows.inputs.shape[1]
        table = pd.DataFrame(rows.inputs, columns=[f"x{i}" for i in range(width)])
    else:
        return _pixels(definition, rows.inputs[train]), _pixels(definition, rows.inputs[test])
    encoder = TableEncoder().fit(table.iloc[train])
    return encoder.transform(table.iloc[train]), encoder.transform(table.iloc[test])


def _features(definition: DatasetDefinition, table: pd.DataFrame) -> pd.DataFrame:
    named = [*definition.drop, *definition.features]
    absent = [c for c in named if c not in table.columns]
    if absent:
        shown = ", ".join(map(str, table.columns[:20])) + (", ..." if table.shape[1] > 20 else "")
        raise InputError(
            f"{definition.name}: the column {absent[0]!r} is not in the table, which has: {shown}."
        )
    out = {definition.target, definition.split_by, *definition.groups, *definition.drop}
    return table[[c for c in definition.features or table.columns if c not in out]]


def _weights_of_terms(
    definition: DatasetDefinition, rows: _Rows, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from autobalance.data.tables import column

    texts = column(rows.table, str(definition.text), "text").astype(str)
    make: Any = TfidfVectorizer  # its dtype is annotated as float64 alone
    encoder = make(max_features=definition.vocabulary, sublinear_tf=True, dtype=np.float32)
    try:
        fitted: Any = encoder.fit_transform(texts.iloc[train])
    except ValueError as error:  # no term at all
        raise InputError(f"{definition.name}: {definition.text!r} is no text: {error}.") from None
    tested: Any = encoder.transform(texts.iloc[test])
    return fitted.toarray(), tested.toarray()


def _pixels(definition: DatasetDefinition, images: np.ndarray) -> np.ndarray:
    """Images ``(n, c, h, w)``, or flat for a network on flat inputs."""
    images = images if images.ndim == 4 else images[:, None]
    scaled = images.astype(np.float32)
    if images.dtype == np.uint8:
        scaled /= 255.0
    return scaled.reshape(len(scaled), -1) if definition.network in ("table", "linear") else scaled


def _network(
    definition: DatasetDefinition, shape: tuple[int, ...], num_classes: int
) -> ModelFactory:
    from torch import nn

    from autobalance.networks import SmallCNN, TableNetwork

    num_features = int(np.prod(shape))
    if definition.network == "table":
        return partial(TableNetwork, num_features, num_classes)
    if definition.network == "linear":
        return partial(nn.Linear, num_features, num_classes)
    offered: dict[str, Any] = {"num_features": num_features, "num_classes": num_classes}
    if len(shape) == 3:
        offered |= {"channels": shape[0], "size": shape[1:]}
    if definition.network != "cnn":
        build = _imported(definition)
        return partial(build, **_accepted(build, offered))
    if len(shape) != 3:
        raise InputError(
            f"{definition.name}: the network cnn takes images, but this dataset has rows of "
            f"{num_features} numbers. Choose table or linear."
        )
    return partial(SmallCNN, num_classes, channels=shape[0], size=(shape[1], shape[2]))


def _imported(definition: DatasetDefinition) -> Any:
    module, _, attribute = definition.network.partition(":")
    try:
        build = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{definition.name}: the network {definition.network!r} cannot be imported: {error}."
        ) from None
    if not callable(build):
        raise InputError(f"{definition.name}: the network {definition.network!r} is no callable.")
    return build


def _accepted(build: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    wanted = inspect.signature(build).parameters
    return {name: value for name, value in offered.items() if name in wanted}


def _known_keys(values: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    allowed = list(allowed)
    for key in values:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {key!r}. {_suggestion(str(key), allowed)}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known are: {', '.join(known)}."
