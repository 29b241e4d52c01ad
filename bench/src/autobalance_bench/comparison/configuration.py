"""What to compare, from a YAML file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from autobalance import InputError
from autobalance.records import Precision, Recipe, SearchSettings
from autobalance_bench._checks import check_choice, check_int, check_path, format_value
from autobalance_bench.comparison.dataset_definitions import (
    DatasetDefinition,
    definition_of,
    packaged_definitions,
    read_definitions,
)

Head = Literal["linear", "cosine"]
DEFAULT_METHODS = (
    "cross_entropy",
    "class_weighted",
    "logit_adjustment",
    "logit_adjustment_tuned",
    "autobalance",
)
MOST_SETTINGS = 100_000
_LISTS = ("datasets", "methods", "seeds", "objectives")
AUGMENTATIONS = {
    "standard": ("padding", "flip"),
    "trivial": ("share",),
    "random": ("n", "m", "share"),
    "resized_crop": ("size", "scale", "ratio", "flip", "colour", "hue"),
}
"""What `augment` may name, and the options of each."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Methods x datasets x seeds, under one recipe.

    Parameters
    ----------
    datasets : tuple of str or DatasetDefinition
        Names of packaged datasets, or definitions of your own.
    methods : tuple of str
        Names of `autobalance_bench.comparison.methods.METHODS`.
    seeds : tuple of int
        Each decides a split of every dataset, and everything random in a method.
    objectives : tuple of str
        What every network is evaluated by. Methods that design or tune for an objective run once
        for each.
    recipe : Recipe
        How every network is trained, but for what a dataset's own definition changes.
    search : SearchSettings
        For the methods that search; its `validation_fraction` for those that tune, too.
    augment : mapping, optional
        How all methods augment images in training, but for those that name an augmentation of
        their own: ``{"name": "standard", "padding": 4, "flip": True}`` for random crops and flips,
        "resized_crop" (`size`, `scale`, `ratio`, `flip`, `colour`, `hue`) for crops of any size as networks
        are trained with on ImageNet, "trivial" (`share`) and "random" (`n`, `m`, `share`) for
        TrivialAugment and RandAugment; see `autobalance.augment`. In YAML the name alone will do where no
        option is needed.
    head : {"linear", "cosine"}
        The last layer of every network: its own, or in its place a cosine classifier, see
        `autobalance.with_normalized_head`. LDAM always has one, as published.
    precision : {"32-true", "bf16-mixed"}
        Of passes through networks, as for `search`.
    channels_last, compiled : bool
        Whether convolutions' weights lie so, and whether networks train by `torch.compile`; on a GPU
        both can be faster.
    tuning_runs : int
        Training runs that a tuned method spends before it retrains.
    subsets : mapping
        By name, other values of these settings, for a part of the comparison.
    folder : str, optional
        Where relative paths of definitions of your own lead from, without a data folder.

    Raises
    ------
    InputError
        If a value is not of its kind, or something is named twice.
    """

    datasets: tuple[str | DatasetDefinition, ...]
    methods: tuple[str, ...] = DEFAULT_METHODS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    objectives: tuple[str, ...] = ("balanced_error",)
    recipe: Recipe = field(default_factory=Recipe)
    search: SearchSettings = field(default_factory=SearchSettings)
    augment: Mapping[str, Any] | None = None
    head: Head = "linear"
    precision: Precision = "32-true"
    channels_last: bool = False
    compiled: bool = False
    tuning_runs: int = 8
    subsets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folder: str | None = None

    def __post_init__(self) -> None:
        for key in _LISTS:
            if not getattr(self, key):
                raise InputError(f"{key} must name at least one.")
        for key in ("methods", "objectives"):
            for value in getattr(self, key):
                if not isinstance(value, str):
                    raise InputError(
                        f"{key} must be a list of names; got {format_value(value)} in it."
                    )
        for seed in self.seeds:
            check_int("each of seeds", seed, least=0)
        names = [d if isinstance(d, str) else d.name for d in self.datasets]
        for key, values in (("datasets", names), *((k, getattr(self, k)) for k in _LISTS[1:])):
            twice = [v for i, v in enumerate(values) if v in values[:i]]
            if twice:
                raise InputError(f"{key} names {twice[0]} twice. Name each once.")
        check_int("tuning_runs", self.tuning_runs, least=2)
        check_choice("head", self.head, get_args(Head))
        check_choice("precision", self.precision, get_args(Precision))
        for key in ("channels_last", "compiled"):
            if not isinstance(getattr(self, key), bool):
                raise InputError(
                    f"{key} must be true or false; got {format_value(getattr(self, key))}."
                )
        if self.augment is not None:
            _check_augment(self.augment)

    def subset(self, name: str) -> Configuration:
        """The comparison with the settings of a subset in place of its own."""
        if not self.subsets:
            raise InputError(f"There is no subset {name!r}: the configuration names no subsets.")
        check_choice("subset", name, self.subsets)
        changes = _settings(self.subsets[name], f"subset {name}")
        if "subsets" in changes:
            raise InputError(
                f"subset {name}: a subset has none of its own. Name it beside this one."
            )
        return replace(self, **changes, subsets={})


def read_configuration(path: str | Path) -> Configuration:
    """A configuration from a YAML file.

    A dataset is the name of a packaged one, or a mapping with the settings of a
    `DatasetDefinition`. Its relative `path` leads from the data folder, and where none is given
    from that of the YAML file. `seeds` may be a number n, for 0 to n - 1.

    Raises
    ------
    InputError
        If the file is missing, no YAML, or has an unknown key or a bad value.
    """
    path = check_path("The configuration", path)
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give a YAML file that says what to compare.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as YAML: {' '.join(str(error).split())}."
        ) from None
    if _expanded(content, {}) > MOST_SETTINGS:
        raise InputError(
            f"{path} holds more than {MOST_SETTINGS} settings. Use fewer YAML aliases."
        )
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must map settings to values: datasets, methods, seeds, ...")
    try:
        values = _settings(content, str(path))
        if "datasets" not in values:
            raise InputError(f"{path} lacks datasets: a list of names or definitions.")
        subsets = values.get("subsets", {})
        if not isinstance(subsets, Mapping) or not all(
            isinstance(v, Mapping) for v in subsets.values()
        ):
            raise InputError(f"{path}: subsets must map names to settings.")
        configuration = Configuration(**values, folder=str(path.parent))
        for name in subsets:
            configuration.subset(name)
    except (TypeError, ValueError) as error:
        where = "" if str(path) in str(error) else f"{path}: "
        end = "" if str(error).endswith((".", "?")) else "."
        raise InputError(f"{where}{error}{end}") from None
    return configuration


def _expanded(value: Any, known: dict[int, int]) -> int:
    """How many values it holds where each alias counts as what it stands for."""
    if not isinstance(value, (Mapping, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_SETTINGS  # of one that holds itself
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(value)]


def _settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments of `Configuration` from what YAML gives."""
    known = [f.name for f in fields(Configuration) if f.name != "folder"]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}. Known are: {', '.join(known)}.")
        if key == "recipe":
            value = _record(Recipe, value, f"{where}: recipe")
        elif key == "search":
            value = _record(SearchSettings, value, f"{where}: search")
        elif key == "augment" and isinstance(value, str):
            value = {"name": value}
        elif key == "seeds" and isinstance(value, int):
            value = tuple(range(check_int("seeds", value, least=1)))
        elif key in _LISTS:
            if not isinstance(value, list):
                raise InputError(f"{where}: {key} must be a list; got {format_value(value)}.")
            value = tuple(_dataset(v, where) for v in value) if key == "datasets" else tuple(value)
        values[key] = value
    return values


def _check_augment(value: Any) -> None:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise InputError(
            f"augment must be a name, or a mapping with name and options; got {format_value(value)}."
        )
    known = AUGMENTATIONS[check_choice("augment", value["name"], AUGMENTATIONS)]
    for key in value:
        if key not in ("name", *known):
            raise InputError(
                f"augment: unknown option {key!r} of {value['name']}. Known are: {', '.join(known)}."
            )
    if value["name"] == "resized_crop" and "size" not in value:
        raise InputError("augment: resized_crop needs size, the pixels that networks train on.")
    if not isinstance(value.get("flip", True), bool):
        raise InputError(f"augment: flip must be true or false; got {format_value(value['flip'])}.")


def _record(kind: type, value: Any, where: str) -> Any:
    known = [f.name for f in fields(kind)]
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must map settings to values; got {format_value(value)}.")
    for key in value:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}. Known are: {', '.join(known)}.")
    return kind(**value)


def _dataset(value: Any, where: str) -> str | DatasetDefinition:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or "name" not in value:
        raise InputError(
            f"{where}: a dataset is a name, or a mapping with name, path, target and more; "
            f"got {format_value(value)}."
        )
    settings = {k: v for k, v in value.items() if k != "name"}
    return read_definitions({value["name"]: settings})[str(value["name"])]


def resolved(dataset: str | DatasetDefinition) -> DatasetDefinition:
    """The definition of a dataset given by name, or as it is."""
    return (
        dataset if isinstance(dataset, DatasetDefinition) else definition_of(dataset, _packaged())
    )


@lru_cache  # asked for by every cell
def _packaged() -> dict[str, DatasetDefinition]:
    return packaged_definitions()
