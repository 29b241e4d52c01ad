"""What a dataset of a comparison is, as plain records that YAML can carry. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from autobalance import InputError
from autobalance.records import Recipe
from autobalance_bench._checks import check_choice, check_fraction, check_int, check_positive

PACKAGED = "datasets.yaml"
NETWORKS = ("table", "linear", "cnn", "resnet32")
_CIFAR, _LONG_TAIL = ("download",), ("download", "imbalance", "profile", "seed")
LAYOUTS = {
    "fashion": ("padding",),
    "fashion-textures": (),
    "waterbirds": ("allowed_missing", "download"),
    "celeba": ("allowed_missing", "download"),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "cifar10_lt": _LONG_TAIL,
    "cifar100_lt": _LONG_TAIL,
    "imagenet_lt": ("allowed_missing", "lists"),
    "inaturalist_2018": ("allowed_missing", "download"),
    "class_folders": ("square",),
    "image_table": ("allowed_missing", "folder", "path", "square"),
    "embeddings": ("inputs",),
    "hugging_face": ("image", "inputs", "split", "square"),
}
"""Layouts of what `path` names, and the options of their readers."""
PHOTOGRAPHS = (
    "waterbirds",
    "celeba",
    "imagenet_lt",
    "inaturalist_2018",
    "class_folders",
    "image_table",
    "hugging_face",
)
"""Layouts of image files, which are decoded."""
WITH_VALIDATION = ("waterbirds", "celeba", "imagenet_lt")
"""Layouts with a validation part besides the test set."""
PROFILES = {"exponential": (), "pareto": ("power",), "step": ("minority",)}
"""What `long_tail` may be drawn to, and the options of each."""


@dataclass(frozen=True, kw_only=True)
class DatasetDefinition:
    """One dataset of a comparison.

    Parameters
    ----------
    name : str
        What results call it.
    path : str
        Relative to the data folder, or absolute. By its suffix a table (.csv, .tsv, also .gz or
        .xz; .parquet), arrays (.npz), or else what `layout` says.
    layout : str
        How to read a folder, or some files. With a test set of their own: "fashion" has
        Fashion-MNIST's four IDX files (target "label"; with `padding` 2 they are 32 x 32);
        "fashion-textures" the same, for the images of `build_fashion_textures` (target "object",
        group "background"); "waterbirds" (target "bird", group "place") and "celeba" (target
        "hair", group "sex") what `load_waterbirds` and `load_celeba` read; "cifar10", "cifar100",
        "cifar10_lt", "cifar100_lt", "imagenet_lt" and "inaturalist_2018" (target "class") what the
        functions of these names in `autobalance_bench.datasets` read; iNaturalist's validation
        images are the test set. Without one: "class_folders" (target "class"), "image_table", a
        file whose columns are named by `target` and `groups`, "embeddings", a file likewise, and
        "hugging_face", a folder that ``save_to_disk`` wrote or ``load_dataset`` reads, for the
        functions `read_class_folders`, `read_image_table`, `read_embeddings` and
        `read_hugging_face` (or `read_hugging_face_vectors`, where `inputs` names a column of
        numbers).
    options : mapping
        Options of that reader, such as ``{imbalance: 100}`` for "cifar10_lt", whose draw does not depend on
        the comparison's seed; see `LAYOUTS`. A path among them leads from the data folder.
    image_size : int
        Height and width that photographs are scaled to. CIFAR's stay 32 x 32.
    limit : int, optional
        At most so many photographs of each part are decoded, whatever the seed: for memory.
    allowed_broken : int
        At most so many photographs that cannot be decoded are left out.
    store : str, optional
        A folder, in the data folder unless it is absolute, where photographs are kept decoded. They
        are read from there as they are needed, so that neither memory nor a GPU has to hold them, and
        decoded once for all cells and commands. With `as_bytes`.
    validation : {"held_out", "published"}
        What methods that search or tune are guided by: rows of the training set that each holds out
        itself; or the validation part that a layout comes with ("waterbirds", "celeba",
        "imagenet_lt"), on which no network is then trained. "held_out" does not use that part.
    target : str
        Column, or array, of the classes.
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
        Classes of fewer members, over all rows, are merged: see `merge_classes`.
    long_tail : mapping, optional
        ``{"largest": n, "imbalance": r}``: training rows are drawn to the exponential profile,
        the first class in sorted order being the largest. With ``"profile": "pareto"`` (and
        `power`) or ``"step"`` (and `minority`) to another of `autobalance_bench.datasets.longtail`.
    test_fraction : float
        Share of each class's members that is for testing, in (0, 1), rounded, but at least one
        on either side; a class of one member stays in training. With `split_by`, of the values of
        that column; with `groups`, of each class within each group.
    train_size, test_size : int, optional
        At most so many rows, drawn in proportion to the classes (and groups), at least one each.
    as_bytes : bool
        Whether images stay bytes in memory, a quarter of the room; the network then scales each
        batch to [0, 1].
    backbone : mapping, optional
        A frozen network whose features of the images are the inputs, computed once for all cells
        that one process runs: ``{path: torchvision.models.resnet50, weights: IMAGENET1K_V2,
        normalize: true}``, with the keys of `network`. Its last linear layer is left out.
    network : str or mapping
        "table" (two hidden layers of 256) or "linear" on flat inputs, "cnn" or "resnet32" on images,
        or an import path as for `autobalance.networks.by_path`. What is there is passed
        `num_features`, `num_classes`, `channels` and `size` as far as it has parameters of these
        names. In a mapping, ``{path: torchvision.models.resnet50, weights: null}``, the other keys
        are arguments of its own, but for `normalize`, true or ``{mean: [...], std: [...]}``, which
        puts `autobalance.networks.Normalize` first; `crop`, pixels to which
        `autobalance.networks.CentralCrop` cuts images before that; and `new_head`, true for a
        pretrained network, which is built with the classes that it has and gets a last linear layer
        for these.
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
    layout: str = "fashion"
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 64
    limit: int | None = None
    allowed_broken: int = 0
    store: str | None = None
    validation: Literal["held_out", "published"] = "held_out"
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
    long_tail: Mapping[str, Any] | None = None
    test_fraction: float = 0.5
    train_size: int | None = None
    test_size: int | None = None
    as_bytes: bool = False
    backbone: Mapping[str, Any] | None = None
    network: str | Mapping[str, Any] = "table"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    half: Literal["develop", "confirm"] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for key in ("name", "path", "target"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key):
                raise InputError(f"{key} must be a text; got {getattr(self, key)!r}.")
        for key in ("inputs", "family", "source"):
            if not isinstance(getattr(self, key), str):
                raise InputError(f"{self._key(key)} must be a text; got {getattr(self, key)!r}.")
        for key in ("test_path", "split_by", "text", "class_names", "store"):
            if not isinstance(getattr(self, key), (str, type(None))):
                raise InputError(f"{self._key(key)} must be a text; got {getattr(self, key)!r}.")
        for key in ("groups", "drop", "features", "columns"):
            value = getattr(self, key)
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
                raise InputError(f"{self._key(key)} must be a list of column names; got {value!r}.")
            object.__setattr__(self, key, tuple(value))
        if not self.family:
            object.__setattr__(self, "family", self.name)
        check_fraction(self._key("test_fraction"), self.test_fraction)
        check_int(self._key("merge_below"), self.merge_below, least=0)
        check_int(self._key("vocabulary"), self.vocabulary, least=1)
        check_int(self._key("image_size"), self.image_size, least=1)
        check_int(self._key("allowed_broken"), self.allowed_broken, least=0)
        self._check_layout()
        for key in ("train_size", "test_size", "limit"):
            if getattr(self, key) is not None:
                check_int(self._key(key), getattr(self, key), least=1)
        if self.half is not None:
            check_choice(self._key("half"), self.half, ("develop", "confirm"))
        self._check_networks()
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

    def _check_layout(self) -> None:
        check_choice(self._key("layout"), self.layout, LAYOUTS)
        if not isinstance(self.options, Mapping):
            raise InputError(
                f"{self._key('options')} must map options of the layout {self.layout} to values; "
                f"got {self.options!r}."
            )
        known = LAYOUTS[self.layout]
        if self.options and not known:
            raise InputError(f"{self._key('options')}: the layout {self.layout} has none.")
        _known_keys(self.options, known, self._key("options"))
        if not isinstance(self.as_bytes, bool):
            raise InputError(
                f"{self._key('as_bytes')} must be true or false; got {self.as_bytes!r}."
            )

        check_choice(self._key("validation"), self.validation, ("held_out", "published"))
        if self.validation == "published" and self.layout not in WITH_VALIDATION:
            raise InputError(
                f"{self._key('validation')}: the layout {self.layout} comes with no validation part; "
                f"these do: {', '.join(WITH_VALIDATION)}. Leave it out."
            )
        if self.store is not None and not self.as_bytes:
            raise InputError(f"{self._key('store')} keeps images as bytes. Add as_bytes: true.")
        if self.store is not None and self.layout not in PHOTOGRAPHS:
            raise InputError(
                f"{self._key('store')} is for photographs, the layouts {', '.join(PHOTOGRAPHS)}. "
                "Leave it out."
            )

    def _check_networks(self) -> None:
        if isinstance(self.network, str):
            if not set(":.") & set(self.network):
                check_choice(f"{self._key('network')} (or an import path)", self.network, NETWORKS)
        else:
            self._check_built("network", self.network)
        if self.backbone is not None:
            self._check_built("backbone", self.backbone)
        if self.as_bytes and (self.backbone is not None or self.network in ("table", "linear")):
            raise InputError(
                f"{self._key('as_bytes')} is for networks on images; leave it out for table, linear "
                "and a backbone's features."
            )

    def _check_built(self, key: str, value: Any) -> None:
        """A network as a mapping; what it builds is checked when it is built."""
        path = value.get("path") if isinstance(value, Mapping) else None
        if not isinstance(path, str):
            name = "a text, or " if key == "network" else ""
            raise InputError(
                f"{self._key(key)} must be {name}a mapping with path, an import path, and the "
                f"arguments of what it names; got {value!r}."
            )
        normalize, new_head = value.get("normalize", False), value.get("new_head", False)
        if not isinstance(normalize, bool) and not (
            isinstance(normalize, Mapping) and set(normalize) == {"mean", "std"}
        ):
            raise InputError(
                f"{self._key(key)}: normalize must be true, false or {{mean: [...], std: [...]}}; "
                f"got {normalize!r}."
            )
        if value.get("crop") is not None:
            check_int(f"{self._key(key)}: crop", value["crop"], least=1)
        if not isinstance(new_head, bool):
            raise InputError(f"{self._key(key)}: new_head must be true or false; got {new_head!r}.")

    def _check_long_tail(self) -> None:
        if self.long_tail is None:
            return
        tail = self.long_tail if isinstance(self.long_tail, Mapping) else {}
        profile = tail.get("profile", "exponential")
        own = PROFILES.get(profile, ()) if isinstance(profile, str) else ()
        if not {"largest", "imbalance"} <= set(tail) <= {"largest", "imbalance", "profile", *own}:
            raise InputError(
                f"{self._key('long_tail')} must be {{largest: rows, imbalance: ratio}}, perhaps with "
                f"profile (pareto with power, step with minority); got {self.long_tail!r}."
            )
        check_choice(self._key("profile"), profile, PROFILES)
        check_int(self._key("largest"), tail["largest"], least=1)
        if "power" in tail:
            check_positive(self._key("power"), tail["power"])
        if "minority" in tail:
            check_fraction(self._key("minority"), tail["minority"])
        if check_positive(self._key("imbalance"), self.long_tail["imbalance"]) < 1:
            raise InputError(f"{self._key('imbalance')} must be 1 or more.")
        if self.train_size is not None:
            raise InputError(f"{self._key('train_size')} and long_tail exclude each other.")


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
    text = files("autobalance_bench.comparison").joinpath(PACKAGED).read_text(encoding="utf-8")
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


def _known_keys(values: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    allowed = list(allowed)
    for key in values:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {key!r}. {_suggestion(str(key), allowed)}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known are: {', '.join(known)}."
