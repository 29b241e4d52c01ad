"""Target columns of the command line: one of classes, or several of labels, a 0 or 1 in each. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autobalance._validation import InputError

if TYPE_CHECKING:
    import pandas as pd

POSITIONALS = {"fit": 1, "adjust": 1, "evaluate": 2}
"""How many arguments without a name the commands have that take several targets."""
Target = list[str] | str
"""The option --target: the name of a column, those of several, or a pattern of them with one star."""


def join_targets(arguments: Sequence[str]) -> list[str]:
    """Arguments in which several columns after --target are one list, ``--target=["a", "b"]``.

    The table must stand before them, or it could be one of them.
    """
    if not arguments or "--target" not in arguments or arguments[0] not in POSITIONALS:
        return [*arguments]
    named = [i for i, word in enumerate(arguments) if word.startswith("-")]
    first = arguments.index("--target") + 1
    end = next((i for i in named if i >= first), len(arguments))
    if named[0] - 1 != POSITIONALS[arguments[0]] or end - first < 2:
        return [*arguments]
    joined = json.dumps(arguments[first:end])
    return [*arguments[: first - 1], f"--target={joined}", *arguments[end:]]


def label_columns(table: pd.DataFrame, target: Target) -> list[str] | None:
    """The columns of several labels that a target names; None where it is one column, of classes.

    Raises
    ------
    InputError
        If there are fewer than two, or one is not in the table.
    """
    if isinstance(target, str):
        if target.count("*") != 1 or target in table.columns:
            return None
        begin, end = target.split("*")
        names = [
            name
            for name in map(str, table.columns)
            if name.startswith(begin) and name.endswith(end) and len(name) > len(target) - 1
        ]
    else:
        names = [*map(str, target)]
    if len(set(names)) < max(2, len(names)):
        raise InputError(
            f"--target {target if isinstance(target, str) else ' '.join(names)} must name several columns, "
            f"each once; it names {', '.join(names) or 'none of the table'}. For one column give its name."
        )
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise InputError(f"The table lacks the target columns {', '.join(missing[:5])}.")
    return names


def read_labels(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The labels of these columns, 0 or 1, and -1 where an entry is missing; int8.

    Raises
    ------
    InputError
        If an entry is something else; the message names the column.
    """
    import pandas as pd  # only where there are labels, so that help is quick

    columns: dict[str, np.ndarray] = {}
    for name in names:
        given: Any = table[name]
        try:
            values = given.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError):
            values = np.full(len(given), np.inf)
        wrong = ~np.isin(values, (0, 1, -1)) & ~np.isnan(values)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"The target column {name!r} holds {str(given.iloc[row])!r} in row {row}: a label is 0 "
                "or 1, or missing where it is not known. Give one target for classes of other names."
            )
        columns[name] = np.where(np.isnan(values), -1, values).astype(np.int8)
    return pd.DataFrame(columns)


def split_labels(
    table: pd.DataFrame, names: Sequence[str], groups: str | None
) -> tuple[pd.DataFrame, pd.DataFrame, None]:
    """Features and labels of a table, as `autobalance.cli.fit.read_columns` gives features and classes.

    Raises
    ------
    InputError
        If a column of groups is named too, or as for `read_labels`.
    """
    if groups is not None:
        raise InputError(
            "--groups is for one target of classes; here are several labels. Leave it out."
        )
    return table.drop(columns=[*names]), read_labels(table, names), None
