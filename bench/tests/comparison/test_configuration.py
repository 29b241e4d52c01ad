"""What a comparison's YAML file may say, and how it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from autobalance import InputError
from autobalance.records.settings import Recipe, SearchSettings
from autobalance_bench.comparison.configuration import (
    DEFAULT_METHODS,
    Configuration,
    read_configuration,
    resolved,
)
from autobalance_bench.comparison.dataset_definitions import DatasetDefinition
from autobalance_bench.comparison.methods import METHODS

OWN = {"name": "toy", "path": "toy.csv", "target": "kind", "groups": ["site"]}


def written(folder: Path, content: Any) -> Path:
    path = folder / "cfg.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_defaults(tmp_path: Path) -> None:
    found = read_configuration(written(tmp_path, {"datasets": ["car"]}))
    assert found == Configuration(datasets=("car",), folder=str(tmp_path))
    assert found.methods == DEFAULT_METHODS
    assert set(DEFAULT_METHODS) <= set(METHODS)
    assert found.seeds == (0, 1, 2, 3, 4)
    assert found.objectives == ("balanced_error",)


def test_everything(tmp_path: Path) -> None:
    content = {
        "datasets": ["car", OWN],
        "methods": ["vs", "cdt"],
        "seeds": [3, 1],
        "objectives": ["balanced_error", "worst_group_error"],
        "recipe": {"epochs": 3, "optimizer": "sgd"},
        "search": {"every": 2, "training_batches": 4},
        "augment": {"name": "standard", "padding": 2},
        "head": "cosine",
        "tuning_runs": 5,
        "subsets": {"small": {"datasets": [OWN], "seeds": 1, "recipe": {"epochs": 1}}},
    }
    found = read_configuration(written(tmp_path, content))
    toy = DatasetDefinition(name="toy", path="toy.csv", target="kind", groups=("site",))
    assert found.datasets == ("car", toy)
    assert (found.methods, found.seeds, found.tuning_runs) == (("vs", "cdt"), (3, 1), 5)
    assert found.objectives == ("balanced_error", "worst_group_error")
    assert found.recipe == Recipe(epochs=3, optimizer="sgd")
    assert found.search == SearchSettings(every=2, training_batches=4)
    assert found.augment == {"name": "standard", "padding": 2}
    assert found.head == "cosine"
    named = read_configuration(written(tmp_path, {**content, "augment": "trivial"}))
    assert named.augment == {"name": "trivial"}
    small = found.subset("small")
    assert small.datasets == (toy,)
    assert small.seeds == (0,)
    assert small.recipe == Recipe(epochs=1)  # its own, not merged into that of the whole
    assert (small.methods, small.search, small.folder) == (
        found.methods,
        found.search,
        found.folder,
    )
    assert small.subsets == {}


def test_a_number_of_seeds_counts_from_0(tmp_path: Path) -> None:
    path = written(tmp_path, {"datasets": ["car"], "seeds": 3})
    assert read_configuration(path).seeds == (0, 1, 2)


def test_names_give_the_packaged_definitions_and_definitions_themselves() -> None:
    assert resolved("car").name == "car"
    assert resolved("car") is resolved("car")  # parsed once, though every cell asks
    own = DatasetDefinition(name="toy", path="toy.csv", target="kind")
    assert resolved(own) is own
    with pytest.raises(InputError, match=r"There is no dataset 'carr'\. Did you mean car"):
        resolved("carr")


def with_(**changes: Any) -> dict[str, Any]:
    return {"datasets": ["car"], **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_(metods=["vs"]), "unknown key 'metods'. Known are: datasets, methods, seeds"),
        (with_(folder="/"), "unknown key 'folder'"),
        ({"methods": ["vs"]}, "lacks datasets: a list of names or definitions"),
        (with_(datasets=[]), "datasets must name at least one"),
        (with_(datasets="car"), "datasets must be a list; got 'car'"),
        (with_(datasets=[3]), "a dataset is a name, or a mapping with name, path, .* got 3"),
        (with_(datasets=[{"path": "x.csv"}]), "a dataset is a name, or a mapping with name"),
        (with_(datasets=[{"name": "toy", "path": "x.csv"}]), "toy: the definition lacks target"),
        (with_(datasets=[{**OWN, "tset_path": "y"}]), "toy: unknown key 'tset_path'. Did you mean"),
        (with_(datasets=["car", "car"]), "datasets names car twice"),
        (with_(datasets=["car", {**OWN, "name": "car"}]), "datasets names car twice"),
        (with_(methods=["vs", "cdt", "vs"]), "methods names vs twice"),
        (with_(methods=["vs", 3]), "methods must be a list of names; got 3 in it"),
        (with_(objectives=[None]), "objectives must be a list of names; got None in it"),
        (with_(methods=None), "methods must be a list; got None"),
        (with_(seeds=0), "seeds must be at least 1; got 0"),
        (with_(seeds=True), "seeds must be a whole number; got True"),
        (with_(seeds=[0, 0]), "seeds names 0 twice"),
        (with_(seeds=[0, -1]), "each of seeds must be at least 0; got -1"),
        (with_(seeds=["0"]), "each of seeds must be a whole number; got '0'"),
        (with_(tuning_runs=1), "tuning_runs must be at least 2; got 1"),
        (with_(tuning_runs="8"), "tuning_runs must be a whole number; got '8'"),
        (with_(head="norm"), "head must be one of cosine, linear; got 'norm'"),
        (
            with_(augment="crops"),
            "augment must be one of random, resized_crop, standard, trivial; got 'crops'",
        ),
        (with_(precision="16-mixed"), "precision must be one of 32-true, bf16-mixed"),
        (with_(compiled=1), "compiled must be true or false; got 1"),
        (with_(channels_last="yes"), "channels_last must be true or false"),
        (with_(augment="resized_crop"), "augment: resized_crop needs size, the pixels"),
        (with_(augment={"name": "standard", "flip": "no"}), "augment: flip must be true or false"),
        (with_(augment={"padding": 4}), "augment must be a name, or a mapping with name"),
        (with_(augment=["standard"]), "augment must be a name, or a mapping with name"),
        (
            with_(augment={"name": "standard", "n": 2}),
            "augment: unknown option 'n' of standard. Known are: padding, flip",
        ),
        (with_(recipe={"epoch": 3}), "recipe: unknown key 'epoch'. Known are: epochs"),
        (with_(recipe={"epochs": "3"}), "epochs must be a number; got '3'"),
        (with_(recipe=3), "recipe must map settings to values; got 3"),
        (with_(search={"folds": 9}), "9 folds of 0.2 each exceed the data"),
        (with_(subsets=["a"]), "subsets must map names to settings"),
        (with_(subsets={"a": ["seeds"]}), "subsets must map names to settings"),
        (with_(subsets={"a": {"sedes": 1}}), "subset a: unknown key 'sedes'"),
        (with_(subsets={"a": {"seeds": 0}}), "seeds must be at least 1; got 0"),
        (with_(subsets={"a": {"subsets": {}}}), "subset a: a subset has none of its own"),
        ("- car\n", "must map settings to values: datasets, methods, seeds"),
        ("datasets: [car\n", "cannot be read as YAML: while parsing .* line 2"),
        ("", "must map settings to values"),
    ],
)
def test_refused_with_the_files_name(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=message) as raised:
        read_configuration(path)
    assert re.match(re.escape(str(path)), str(raised.value))
    assert str(raised.value).count(str(path)) == 1


def test_no_file_and_no_subset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file .*gone.yaml. Give a YAML file"):
        read_configuration(tmp_path / "gone.yaml")
    whole = Configuration(datasets=("car",), subsets={"small": {"seeds": 1}})
    with pytest.raises(InputError, match="subset must be one of small; got 'smal'"):
        whole.subset("smal")
    with pytest.raises(InputError, match="no subset 'x': the configuration names no subsets"):
        Configuration(datasets=("car",)).subset("x")
