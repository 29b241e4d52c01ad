"""Definitions of datasets, the files they name, and how rows are divided and encoded."""

from __future__ import annotations

import gzip
import lzma
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from autobalance import InputError
from autobalance.data.fashion import CLASSES
from autobalance.networks import SmallCNN, TableNetwork
from autobalance.records.settings import Recipe
from autobalance_bench.comparison.dataset_definitions import (
    DatasetDefinition,
    definition_of,
    packaged_definitions,
    read_definitions,
)
from autobalance_bench.comparison.dataset_split import hold_out, proportional
from autobalance_bench.comparison.datasets import Problem, load_problem, merge_classes
from autobalance_bench.datasets.longtail import exponential_counts


def define(**values: Any) -> DatasetDefinition:
    return DatasetDefinition(**{"name": "small", "path": "t.csv.gz", "target": "y", **values})


def table(counts: dict[Any, int], seed: int = 0) -> pd.DataFrame:
    """Rows with a number of their own, a category, a group column and the class."""
    y = np.repeat(list(counts), list(counts.values()))
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(y))
    return pd.DataFrame(
        {
            "row": np.arange(len(y)),
            "colour": generator.choice(["red", "green"], len(y)),
            "sex": generator.choice(["f", "m"], len(y)),
            "y": y[order],
        }
    )


def write(folder: Path, frame: pd.DataFrame, name: str = "t.csv.gz") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def same(a: Problem, b: Problem) -> bool:
    return all(
        torch.equal(x.inputs, y.inputs) and torch.equal(x.target, y.target)
        for x, y in ((a.train, b.train), (a.test, b.test))
        if x.inputs.shape == y.inputs.shape
    ) and (len(a.train), len(a.test)) == (len(b.train), len(b.test))


# Definitions ------------------------------------------------------------------------------


def test_definitions_are_read_from_a_file_and_from_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "a: {path: a.csv, target: y, groups: [sex], recipe: {epochs: 3}}\n"
        "b: {path: b.npz, target: y, family: f, half: confirm, network: cnn}\n"
    )
    read = read_definitions(path)
    assert list(read) == ["a", "b"]
    assert read["a"].groups == ("sex",)
    assert (read["a"].family, read["a"].half, read["b"].family) == ("a", None, "f")
    assert read["a"].recipe == {"epochs": 3}
    mapping = {"a": {"path": "a.csv", "target": "y", "groups": ["sex"], "recipe": {"epochs": 3}}}
    assert read_definitions(mapping)["a"] == read["a"]


def test_packaged_definitions_are_complete() -> None:
    packaged = packaged_definitions()
    halves: dict[Any, set[str]] = {"develop": set(), "confirm": set(), None: set()}
    for name, definition in packaged.items():
        assert definition.name == name
        assert not Path(definition.path).is_absolute()
        assert "https://" in definition.source, name
        Recipe(**definition.recipe)
        halves[definition.half].add(definition.family)
        if definition.half is None:
            assert definition.groups, name
    assert halves["develop"] == {"letter", "fashion", "satellite", "yeast", "page-blocks"}
    assert halves["confirm"] >= {"shuttle", "noto-scripts", "debian-sections", "census-household"}
    assert not halves["develop"] & halves["confirm"]


def test_definitions_need_no_torch() -> None:
    code = (
        "import sys; from autobalance_bench.comparison.datasets import packaged_definitions as p; p();"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tset_path": "x"}, "a: unknown key 'tset_path'. Did you mean test_path"),
        (
            {"zzz": 1},
            "a: unknown key 'zzz'. Known are: allowed_broken, as_bytes, backbone, class_names, ",
        ),
        ({"recipe": {"epoch": 3}}, "a: recipe: unknown key 'epoch'. Did you mean epochs"),
        ({"recipe": {"epochs": 0}}, "epochs must be a finite number above 0"),
        ({"recipe": 3}, "a: recipe must map settings of Recipe to values"),
        ({"groups": "sex"}, "a: groups must be a list of column names; got 'sex'"),
        ({"half": "test"}, "a: half must be one of confirm, develop; got 'test'"),
        (
            {"network": "resnet"},
            "a: network .* must be one of cnn, linear, resnet32, table; got 'resnet'",
        ),
        ({"network": 3}, "a: network must be a text, or a mapping with path, .*; got 3"),
        ({"text": ["t"]}, r"a: text must be a text; got \['t'\]"),
        ({"test_fraction": 1}, "a: test_fraction must lie strictly between 0 and 1"),
        ({"train_size": 0}, "a: train_size must be at least 1"),
        ({"limit": 0}, "a: limit must be at least 1"),
        ({"image_size": 1.5}, "a: image_size must be a whole number"),
        ({"network": {"weights": None}}, "a: network must be a text, or a mapping with path"),
        ({"network": {"path": "m.f", "normalize": 1}}, "a: network: normalize must be true, false"),
        ({"network": {"path": "m.f", "new_head": "yes"}}, "a: network: new_head must be true"),
        ({"backbone": "m.f"}, "a: backbone must be a mapping with path"),
        ({"as_bytes": 1}, "a: as_bytes must be true or false; got 1"),
        ({"as_bytes": True}, "a: as_bytes is for networks on images"),
        ({"allowed_broken": -1}, "a: allowed_broken must be at least 0"),
        ({"validation": "given"}, "a: validation must be one of held_out, published; got 'given'"),
        ({"store": 3}, "a: store must be a text; got 3"),
        (
            {"long_tail": {"largest": 9, "imbalance": 3, "profile": "zipf"}},
            "a: profile must be one of exponential, pareto, step; got 'zipf'",
        ),
        (
            {"long_tail": {"largest": 9, "imbalance": 3, "power": 2}},
            "a: long_tail must be .* perhaps with profile",
        ),
        (
            {"long_tail": {"largest": 9, "imbalance": 3, "profile": "step", "minority": 1.5}},
            "a: minority must lie strictly between 0 and 1",
        ),
        ({"options": 3}, "a: options must map options of the layout fashion to values; got 3"),
        (
            {"layout": "fashion-textures", "options": {"imbalance": 9}},
            "a: options: the layout fashion-textures has none",
        ),
        ({"options": {"imbalance": 9}}, "a: options: unknown key 'imbalance'. Known are: padding"),
        (
            {"layout": "cifar10_lt", "options": {"imbalanse": 9}},
            "a: options: unknown key 'imbalanse'. Did you mean imbalance",
        ),
        ({"layout": "birds"}, "a: layout must be one of celeba, cifar10, .*; got 'birds'"),
        ({"merge_below": -1}, "a: merge_below must be at least 0"),
        (
            {"long_tail": {"largest": 5}},
            r"a: long_tail must be \{largest: rows, imbalance: ratio\}",
        ),
        ({"long_tail": {"largest": 5, "imbalance": 0.5}}, "a: imbalance must be 1 or more"),
        (
            {"long_tail": {"largest": 5, "imbalance": 2}, "train_size": 3},
            "a: train_size and long_tail exclude each other",
        ),
        ({"test_path": "u.csv", "split_by": "s"}, "a: split_by splits .* but test_path gives"),
    ],
)
def test_bad_definitions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_definitions({"a": {"path": "a.csv", "target": "y", **values}})


def test_bad_files_of_definitions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(InputError, match=r"There is no file .*mine.yaml"):
        read_definitions(path)
    for text, message in (
        ("a: [", "mine.yaml cannot be read as YAML: "),
        ("- a", "mine.yaml must map names of datasets"),
        ("", "mine.yaml must map names of datasets"),
        ("a: 3", "a: a definition must map settings to values; got 3"),
        ("a: {target: y}", "a: the definition lacks path. Add it"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message) as error:
            read_definitions(path)
        assert "\n" not in str(error.value)


def test_an_unknown_name_brings_close_ones() -> None:
    assert definition_of("yeast").path.endswith("yeast.csv.gz")
    with pytest.raises(InputError, match=r"no dataset 'yeats'. Did you mean yeast"):
        definition_of("yeats")
    with pytest.raises(InputError, match=r"no dataset 'yeast'. Known are: small"):
        definition_of("yeast", {"small": define()})


# Division ---------------------------------------------------------------------------------


# Rows of either side are told by a column whose values only that side has, of which a warning tells.
@pytest.mark.filterwarnings("ignore:column .* of its values are categories that training never saw")
def test_the_split_keeps_each_class_on_both_sides_and_no_row_twice(tmp_path: Path) -> None:
    frame = table({"a": 40, "b": 7, "c": 2, "d": 1})
    frame["row"] = "r" + frame["row"].astype(str)  # one-hot: which rows a side has can be read off
    write(tmp_path, frame)
    problem = load_problem(define(features=["row"]), 3, tmp_path)
    assert problem.class_names == ("a", "b", "c", "d")
    assert problem.train.counts().tolist() == [20, 3, 1, 1]  # 3.5 of 7 round to 4 for testing
    assert problem.test.counts().tolist() == [20, 4, 1, 0]
    assert bool((problem.train.inputs.sum(dim=1) == 1).all())
    assert float(problem.test.inputs.abs().sum()) == 0.0  # no test row is one seen in training
    assert problem.recipe == {}


def test_the_split_depends_on_the_seed_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 40, "b": 9}))
    torch.manual_seed(1)
    first = load_problem(define(), 0, tmp_path)
    torch.manual_seed(2)
    np.random.default_rng(5).random()
    assert same(first, load_problem(define(network="linear", recipe={"epochs": 2}), 0, tmp_path))
    assert not same(first, load_problem(define(), 1, tmp_path))


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 40, "b": 9}))
    assert len(load_problem(define(), 0, tmp_path).class_names) == 2
    write(tmp_path, table({"a": 40, "b": 9, "c": 8}))
    assert len(load_problem(define(), 0, tmp_path).class_names) == 3


def test_held_out_units_stay_whole_and_classes_are_on_both_sides() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        units = generator.integers(0, 60, 300)
        cells = np.minimum(generator.geometric(0.4, 300) - 1, 4)
        held = hold_out(cells, units, 0.4, generator)
        assert not set(units[held]) & set(units[~held])
        for cell in range(4):
            if len(np.unique(units[cells == cell])) > 20:
                assert 0.2 < held[cells == cell].mean() < 0.6


def test_held_out_shares_of_rows_are_exact() -> None:
    cells = np.repeat([0, 1, 2, 3], [10, 5, 2, 1])
    held = hold_out(cells, np.arange(18), 0.3, np.random.default_rng(0))
    assert [int(held[cells == c].sum()) for c in range(4)] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([50, 30, 20], 10, [5, 3, 2]),
        ([97, 2, 1], 10, [8, 1, 1]),
        ([0, 6, 4], 5, [0, 3, 2]),
        ([5, 5, 5], 15, [5, 5, 5]),
        ([100, 1, 1, 1], 4, [1, 1, 1, 1]),
    ],
)
def test_proportional_shares(counts: list[int], size: int, expected: list[int]) -> None:
    assert proportional(np.array(counts), size).tolist() == expected


def test_sizes_are_capped_in_proportion(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 100, "b": 60, "c": 4}))
    problem = load_problem(define(train_size=20, test_size=9), 0, tmp_path)
    assert problem.train.counts().tolist() == [12, 7, 1]
    assert problem.test.counts().tolist() == [5, 3, 1]
    with pytest.raises(InputError, match="small: train_size is 2, but there are 3 classes"):
        load_problem(define(train_size=2), 0, tmp_path)


def test_long_tailed_training_leaves_the_test_side_alone(tmp_path: Path) -> None:
    write(tmp_path, table({"b": 40, "a": 40, "c": 40}))
    definition = define(long_tail={"largest": 16, "imbalance": 4})
    problem = load_problem(definition, 0, tmp_path)
    assert problem.train.counts().tolist() == exponential_counts(3, 16, 4).tolist()
    assert problem.test.counts().tolist() == [20, 20, 20]
    with pytest.raises(InputError, match=r"small: Class 0 has 20 examples; 30 .* Lower `largest`"):
        load_problem(define(long_tail={"largest": 30, "imbalance": 2}), 0, tmp_path)


# Rows of either side are told by a column whose values only that side has, of which a warning tells.
@pytest.mark.filterwarnings("ignore:column .* of its values are categories that training never saw")
def test_rows_of_one_source_go_to_one_side(tmp_path: Path) -> None:
    frame = table({"a": 60, "b": 20})
    frame["origin"] = "s" + (frame["row"] // 2).astype(str)
    frame["again"] = frame["origin"]
    write(tmp_path, frame)
    problem = load_problem(define(split_by="origin", features=["again", "origin"]), 0, tmp_path)
    assert problem.train.inputs.shape[1] < 40  # `origin` itself is no feature
    assert float(problem.test.inputs.abs().sum()) == 0.0
    assert 25 < len(problem.test) < 55


def test_a_class_without_training_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 20, "b": 20}))
    write(tmp_path, table({"a": 20, "zebra": 20}), "u.csv.gz")
    with pytest.raises(InputError, match="small: the class 'zebra' has no training row"):
        load_problem(define(test_path="u.csv.gz"), 0, tmp_path)


def test_a_given_test_set_is_kept(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 20, "b": 10}))
    write(tmp_path, table({"b": 4, "a": 3}, seed=1), "u.csv.gz")
    problem = load_problem(define(test_path="u.csv.gz"), 0, tmp_path)
    assert problem.train.counts().tolist() == [20, 10]
    assert problem.test.counts().tolist() == [3, 4]
    write(tmp_path, table({"b": 4, "a": 3}).drop(columns="sex"), "u.csv.gz")
    with pytest.raises(InputError, match=r"u.csv.gz lacks the column 'sex' of t.csv.gz"):
        load_problem(define(test_path="u.csv.gz"), 0, tmp_path)


# Classes and groups -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "counts", "least", "expected"),
    [
        ([1, 2, 3, 9, 24, 25], [1, 1, 15, 9, 2, 1], 5, ("1-3", "9-25")),
        ([1, 2, 3], [5, 6, 7], 5, ("1", "2", "3")),
        ([1, 2, 3], [9, 2, 8], 5, ("1", "2-3")),
        ([1, 2, 3], [8, 2, 8], 5, ("1-2", "3")),
        ([1, 2], [1, 1], 5, ("1-2",)),
        (["a", "b", "z"], [9, 1, 2], 5, ("a", "other")),
        (["a", "b"], [9, 8], 5, ("a", "b")),
    ],
)
def test_small_classes_are_merged(
    values: list[Any], counts: list[int], least: int, expected: tuple[str, ...]
) -> None:
    merged, names = merge_classes(np.array(values), np.array(counts), least)
    assert names == expected
    for value, index in zip(values, merged.tolist(), strict=True):
        if isinstance(value, int):
            low, _, high = names[index].partition("-")
            assert int(low) <= value <= int(high or low)
        else:
            assert names[index] in (value, "other")


def test_numeric_targets_are_classes_in_numeric_order(tmp_path: Path) -> None:
    write(tmp_path, table({9.0: 6, 10.0: 8, 2.0: 1}))
    problem = load_problem(define(merge_below=2), 0, tmp_path)
    assert problem.class_names == ("2-9", "10")
    write(tmp_path, table({0.5: 6, 10.0: 8}))
    with pytest.raises(InputError, match=r"small: the target 'y' looks continuous .such as 0.5"):
        load_problem(define(), 0, tmp_path)


def test_groups_are_numbered_alike_and_are_no_features(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 60, "b": 30}))
    problem = load_problem(define(groups=["sex"], drop=["row"]), 0, tmp_path)
    assert problem.group_names == ("f", "m")
    assert problem.train.inputs.shape[1] == 2  # colour alone
    assert problem.train.counts().shape == (2, 2)
    both = load_problem(define(groups=["sex", "colour"]), 0, tmp_path)
    assert both.group_names == ("f, green", "f, red", "m, green", "m, red")
    assert both.train.inputs.shape[1] == 1
    cells = both.train.counts() + both.test.counts()
    np.testing.assert_array_less(np.abs(both.test.counts() - cells / 2), 0.51)


# Kinds of files ---------------------------------------------------------------------------


def test_tables_are_scaled_by_training_rows_only(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 60, "b": 30}))
    problem = load_problem(define(features=["row"]), 0, tmp_path)
    assert float(problem.train.inputs.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(problem.train.inputs.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    model = problem.network()
    assert isinstance(model, TableNetwork)
    assert model.settings["num_classes"] == 2
    frame = table({"a": 60, "b": 30})
    frame.to_parquet(tmp_path / "t.parquet")
    assert same(problem, load_problem(define(path="t.parquet", features=["row"]), 0, tmp_path))
    absolute = define(path=str(tmp_path / "t.parquet"), features=["row"])
    assert same(problem, load_problem(absolute, 0, None))


def arrays(folder: Path, shape: tuple[int, ...], **more: Any) -> None:
    n = shape[0]
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    pixels.flat[:2] = 0, 255
    y = (np.arange(n) % 3).astype(np.int16)
    np.savez_compressed(folder / "t.npz", **{"X": pixels, "y": y, **more})


def test_images_become_a_cnns_input(tmp_path: Path) -> None:
    names = np.array(["zeta", "eta", "theta"])
    arrays(tmp_path, (60, 12, 9), names=names, codepoint=np.arange(60) // 2)
    definition = define(path="t.npz", network="cnn", class_names="names", split_by="codepoint")
    problem = load_problem(definition, 0, tmp_path)
    assert problem.class_names == ("eta", "theta", "zeta")
    with np.load(tmp_path / "t.npz") as stored:
        known = {
            image.tobytes(): names[k] for image, k in zip(stored["X"], stored["y"], strict=True)
        }
        pairs = {
            image.tobytes(): c for image, c in zip(stored["X"], stored["codepoint"], strict=True)
        }
    sides = []
    for part in (problem.train, problem.test):
        assert part.inputs.dtype == torch.float32
        assert part.inputs.shape[1:] == (1, 12, 9)
        raw = [(image[0] * 255).round().byte().numpy().tobytes() for image in part.inputs]
        assert [known[r] for r in raw] == [problem.class_names[k] for k in part.target.tolist()]
        sides.append({int(pairs[r]) for r in raw})
    assert not sides[0] & sides[1]
    highest = max(float(problem.train.inputs.max()), float(problem.test.inputs.max()))
    assert highest == 1.0
    model = pickle.loads(pickle.dumps(problem.network))()
    assert isinstance(model, SmallCNN)
    assert model(problem.train.inputs).shape == (len(problem.train), 3)


def test_arrays_of_colour_images_and_of_features(tmp_path: Path) -> None:
    arrays(tmp_path, (30, 3, 8, 8))
    problem = load_problem(define(path="t.npz", network="cnn"), 0, tmp_path)
    assert problem.train.inputs.shape[1:] == (3, 8, 8)
    assert problem.network()(problem.test.inputs).shape[1] == 3
    flat = load_problem(define(path="t.npz", network="linear"), 0, tmp_path)
    assert flat.train.inputs.shape[1:] == (192,)
    resnet = define(path="t.npz", network="autobalance.networks:ResNet32")
    assert load_problem(resnet, 0, tmp_path).network()(problem.test.inputs).shape[1] == 3
    arrays(tmp_path, (30, 5))
    features = load_problem(define(path="t.npz", network="linear"), 0, tmp_path)
    assert isinstance(features.network(), nn.Linear)
    np.testing.assert_allclose(features.train.inputs.mean(dim=0), np.zeros(5), atol=1e-6)
    with pytest.raises(InputError, match=r"small: the network cnn takes images, but .* 5 numbers"):
        load_problem(define(path="t.npz", network="cnn"), 0, tmp_path)


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    arrays(tmp_path, (30, 5))
    for values, message in (
        ({"inputs": "images"}, "has no array 'images'; it has: X, y"),
        ({"class_names": "names"}, "has no array 'names'"),
        ({"target": "label"}, "target column 'label' is not in the table, which has: y"),
        ({"inputs": "y"}, r"must be \(n, d\), .*; got shape \(30,\)"),
    ):
        with pytest.raises(InputError, match=message):
            load_problem(define(path="t.npz", **values), 0, tmp_path)
    arrays(tmp_path, (30, 5), names=np.array(["a", "b"]))
    with pytest.raises(
        InputError, match="'y' must index 'names', so hold whole numbers from 0 to 1"
    ):
        load_problem(define(path="t.npz", class_names="names"), 0, tmp_path)
    (tmp_path / "t.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"t.npz cannot be read as .npz: "):
        load_problem(define(path="t.npz"), 0, tmp_path)


def write_texts(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    text = "".join("\t".join(row) + "\n" for row in rows)
    path.write_bytes(
        lzma.compress(text.encode()) if path.suffix == ".xz" else gzip.compress(text.encode())
    )


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_texts_are_weighted_by_training_rows_only(tmp_path: Path, suffix: str) -> None:
    words = {"libs": 'library "shared', "doc": "manual pages"}
    rows = [
        (f"p{i}", f"s{i // 2}", section, f"{words[section]} common only{i} NA\\n more")
        for i, section in enumerate(["libs", "doc", "libs"] * 20)
    ]
    write_texts(tmp_path / f"t.tsv.{suffix}", rows)
    definition = define(
        path=f"t.tsv.{suffix}",
        columns=["package", "source", "section", "text"],
        target="section", text="text", split_by="source", network="linear", vocabulary=6,
    )  # fmt: skip
    problem = load_problem(definition, 0, tmp_path)
    assert problem.class_names == ("doc", "libs")
    assert len(problem.train) + len(problem.test) == 60
    inputs = torch.cat([problem.train.inputs, problem.test.inputs])
    assert inputs.dtype == torch.float32
    # The six most frequent: common, more, na, library, shared, and manual or pages.
    np.testing.assert_allclose(inputs.norm(dim=1), np.ones(60), rtol=1e-5)
    libs = torch.cat([problem.train.target, problem.test.target]) == 1
    assert int((inputs > 0).sum(dim=1)[libs].min()) == 5
    unlimited = load_problem(define(**{**vars(definition), "vocabulary": 1000}), 0, tmp_path)
    assert unlimited.train.inputs.shape[1] == 7 + len(problem.train)
    assert int((unlimited.test.inputs > 0).sum(dim=1).max()) == 5  # "only<i>" is new there


def test_delimited_files_without_a_header(tmp_path: Path) -> None:
    frame = table({"a": 20, "b": 10})
    frame.to_csv(tmp_path / "t.csv", index=False, header=False)
    with_header = load_problem(define(path=str(write(tmp_path, frame))), 0, None)
    names = ["row", "colour", "sex", "y"]
    assert same(with_header, load_problem(define(path="t.csv", columns=names), 0, tmp_path))
    with pytest.raises(InputError, match=r"t.csv has 4 columns, but `columns` names 2"):
        load_problem(define(path="t.csv", columns=["row", "y"]), 0, tmp_path)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    assert same(with_header, load_problem(define(path="t.tsv"), 0, tmp_path))
    (tmp_path / "t.tsv").write_text("a\ty\n1\t2\n1\t2\t3\n")
    with pytest.raises(InputError, match=r"t.tsv cannot be read as a table: .*Expected 2 fields"):
        load_problem(define(path="t.tsv"), 0, tmp_path)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def test_fashions_folder_has_a_given_test_set(tmp_path: Path) -> None:
    folder = tmp_path / "fashion"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, each in (("train", 20), ("t10k", 4)):
        target = np.tile(np.arange(10), each)
        write_idx(
            folder / f"{name}-images-idx3-ubyte.gz", generator.integers(0, 256, (10 * each, 8, 8))
        )
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", target)
    values = {"path": "fashion", "target": "label", "long_tail": {"largest": 16, "imbalance": 8}}
    flat = load_problem(define(**values), 0, tmp_path)
    assert flat.class_names[:2] == ("Ankle boot", "Bag")
    assert flat.train.counts().tolist() == exponential_counts(10, 16, 8).tolist()
    assert flat.test.counts().tolist() == [4] * 10
    assert flat.train.inputs.shape[1:] == (64,)
    images = load_problem(define(**values, network="cnn"), 0, tmp_path)
    assert torch.equal(images.train.inputs.flatten(1), flat.train.inputs)
    assert torch.equal(images.test.target, flat.test.target)
    padded = load_problem(define(**values, network="cnn", options={"padding": 2}), 0, tmp_path)
    assert torch.equal(padded.train.inputs[:, :, 2:-2, 2:-2], images.train.inputs)
    assert padded.train.inputs.count_nonzero() == images.train.inputs.count_nonzero()
    assert images.network()(images.test.inputs).shape == (40, 10)


def test_objects_on_textures_are_built_from_fashions_folder(tmp_path: Path) -> None:
    """As packaged: 8,000 images, of which each seed draws 2,000 to train on."""
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    for name, each in (("train", 4000), ("t10k", 1000)):
        target = np.repeat([CLASSES.index("Sneaker"), CLASSES.index("Ankle boot")], each)
        images = np.broadcast_to(target[:, None, None] * 20, (2 * each, 28, 28))
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", target)
    definition = packaged_definitions()["fashion-textures"]
    problem = load_problem(definition, 0, tmp_path)
    assert problem.class_names == ("Ankle boot", "Sneaker")
    assert problem.group_names == ("grass", "gravel")
    assert problem.train.counts().tolist() == [[950, 50], [50, 950]]
    assert problem.test.counts().tolist() == [[500, 500], [500, 500]]
    assert problem.network()(problem.test.inputs[:3]).shape == (3, 2)
    other = load_problem(definition, 1, tmp_path)
    assert not torch.equal(problem.train.inputs, other.train.inputs)
    assert torch.equal(problem.test.inputs, other.test.inputs)


def write_photographs(folder: Path, names: list[str]) -> None:
    for row, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (8 * row, 0, 0)).save(folder / name, quality=95)


def test_waterbirds_folder_gives_its_training_and_test_parts(tmp_path: Path) -> None:
    rows = pd.DataFrame({"img_filename": [f"b/{i:02d}.jpg" for i in range(24)]})
    rows = rows.assign(y=rows.index % 2, place=rows.index // 2 % 2, split=rows.index // 8)
    folder = tmp_path / "waterbird_complete95_forest2water2"
    write_photographs(folder, list(rows["img_filename"]))
    rows.to_csv(folder / "metadata.csv", index=False)
    definition = packaged_definitions()["waterbirds"]
    problem = load_problem(definition, 0, tmp_path)
    assert problem.class_names == ("landbird", "waterbird")
    assert problem.group_names == ("land", "water")
    assert problem.train.counts().tolist() == problem.test.counts().tolist() == [[2, 2], [2, 2]]
    assert problem.train.inputs.shape == (8, 3, 64, 64)
    reds = (problem.test.inputs[:, 0, 9, 9] * 255).numpy()
    np.testing.assert_allclose(reds, [8 * i for i in range(16, 24)], atol=3)
    few = load_problem(replace(definition, image_size=16, limit=4), 0, tmp_path)
    assert few.train.inputs.shape == few.test.inputs.shape == (4, 3, 16, 16)
    with pytest.raises(InputError, match=r"target column 'y' is not in .* has: bird, place"):
        load_problem(replace(definition, target="y"), 0, tmp_path)


# Errors -----------------------------------------------------------------------------------


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path) -> None:
    definition = define(source="Some Repository, https://example.org")
    with pytest.raises(InputError) as error:
        load_problem(definition, 0, tmp_path)
    message = str(error.value)
    for part in (
        str(tmp_path / "t.csv.gz"),
        "https://example.org",
        "--data DIR",
        "AUTOBALANCE_DATA",
    ):
        assert part in message
    assert "\n" not in message
    with pytest.raises(InputError, match=r"small needs t.csv.gz. Name the data folder by --data"):
        load_problem(definition, 0, None)


def test_a_network_that_does_not_import_is_said_before_anything_is_read(tmp_path: Path) -> None:
    definition = replace(definition_of("letter-lt-10"), network={"path": "no_such_module.net"})
    with pytest.raises(InputError, match=r"letter-lt-10: no_such_module\.net cannot be imported"):
        load_problem(definition, 0, tmp_path)  # where there is no table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "label"}, "target column 'label' is not in the table, which has: row, colour"),
        ({"groups": ["race"]}, "group column 'race' is not in the table"),
        ({"split_by": "origin"}, "split_by column 'origin' is not in the table"),
        ({"text": "words"}, "text column 'words' is not in the table"),
        ({"drop": ["rows"]}, "small: the column 'rows' is not in the table, which has: row, "),
        ({"features": ["rows"]}, "small: the column 'rows' is not in the table"),
        ({"merge_below": 99}, "small: classification needs two classes; 'y' has 1"),
        ({"network": "no_such_module:f"}, "small: no_such_module:f cannot be imported: No module"),
        (
            {"network": "autobalance.networks:F0"},
            "networks has nothing to call by the name 'F0'",
        ),
        (
            {"network": "autobalance:__version__"},
            "has nothing to call by the name '__version__'",
        ),
        (
            {"network": "torch.nn:Linear"},
            "needs in_features, out_features, but only num_features, ",
        ),
    ],
)
def test_what_does_not_fit_the_table_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    write(tmp_path, table({"a": 20, "b": 10}))
    with pytest.raises(InputError, match=message):
        load_problem(define(**values), 0, tmp_path)


def test_one_group_and_untestable_classes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, table({"a": 20, "b": 10}).assign(sex="f"))
    with pytest.raises(InputError, match="small: there is one group only, 'f'"):
        load_problem(define(groups=["sex"]), 0, tmp_path)
    write(tmp_path, table({"a": 1, "b": 1}))
    with pytest.raises(InputError, match="small: no class has two members"):
        load_problem(define(), 0, tmp_path)
