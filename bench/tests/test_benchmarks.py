"""The cost and accuracy benchmarks run, and write the numbers that they promise."""

from __future__ import annotations

import gzip
import json
import math
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from autobalance.bilevel.network_search import search
from autobalance.data.array_data import ArrayData
from autobalance.records.settings import Recipe, SearchSettings
from autobalance.spaces.hierarchical_space import HierarchicalSpace
from autobalance_bench.comparison.configuration import read_configuration
from autobalance_bench.comparison.methods import METHODS
from helpers import blobs

FOLDER = Path(__file__).parents[1]


def quick(script: str, tmp_path: Path, *extra: str) -> tuple[dict[str, Any], str]:
    """The JSON and the table of a quick run."""
    path = tmp_path / "numbers.json"
    command = [sys.executable, str(FOLDER / script), "--quick", "--json", str(path), *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def positive(ratios: dict[str, float]) -> bool:
    return all(math.isfinite(r) and r > 0 for r in ratios.values())


def test_a_small_case_of_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import scaling

    costs = {n: scaling.cost(width=8, classes=3, batch=n, rounds=1) for n in (8, 16)}
    assert all(c.seconds > 0 and c.ratio > 0 for c in costs.values())
    assert math.isfinite(scaling.slopes(costs)["slope"])
    assert scaling.width_for(1_000_000) == 969


@pytest.mark.slow
def test_hypergradient(tmp_path: Path) -> None:
    numbers, table = quick("hypergradient.py", tmp_path)
    assert set(numbers) == {"default", "step_ratio", "memory_ratio"}
    assert numbers["step_ratio"].keys() == numbers["memory_ratio"].keys()
    assert {"identity", numbers["default"]} <= numbers["step_ratio"].keys()
    assert positive(numbers["step_ratio"])
    assert positive(numbers["memory_ratio"])
    assert "target" in table


@pytest.mark.slow
def test_accuracy(tmp_path: Path) -> None:
    numbers, _ = quick("accuracy.py", tmp_path)
    for network in ("linear", "mlp"):
        exact = numbers[network]["estimators"]["exact_hessian"]["1"]
        assert exact["cosine"] == pytest.approx(1.0, abs=1e-6)
        assert exact["scale"] == pytest.approx(1.0, abs=1e-4)
    assert all(p["residual"] <= 1e-3 for p in numbers["training"]["points"].values())


@pytest.mark.slow
def test_search_cost(tmp_path: Path) -> None:
    numbers, _ = quick("search_cost.py", tmp_path, "--turns", "1")
    assert set(numbers) == {"search_ratio", "end_to_end_ratio"}
    for ratios in numbers.values():
        assert set(ratios) == {"cnn", "mlp"}
        assert positive(ratios)


def test_gpu_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    path = tmp_path / "numbers.json"
    command = ["gpu.py", "--precision", "bf16-mixed", "--peak-tflops", "0.01", "--json", str(path)]
    for extra, row in (
        (["--channels-last", "--augment"], gpu.measured),
        (["--whole", "--epochs", "1"], gpu.whole),
    ):
        monkeypatch.setattr(gpu.sys, "argv", [*command, *extra])
        assert gpu.main() == 0, row
        numbers = json.loads(path.read_text())
        assert numbers["environment"]["command"].endswith(shlex.join([*command, *extra]))
        assert numbers["environment"]["torch"] == torch.__version__
        [found] = numbers["rows"]
        assert (found.pop("precision"), found.pop("batch")) == ("bf16-mixed", 8)
        assert (found.pop("device"), found.pop("compiled"), found.pop("augmented")) == (
            "cpu", False, "--augment" in extra,
        )  # fmt: skip
        assert found.pop("channels_last") == ("--channels-last" in extra)
        if row is gpu.measured:  # what ResNet-32 has; more would make searches dear on a GPU
            assert found["training_step_kernels"] < 330
            assert found["upper_step_kernels"] < 1250
            assert found["line_search_kernels"] < 1650
        assert found.pop("name") == "bf16-mixed, batches of 8"
        assert positive(found)
        if row is gpu.measured:
            assert found["training_step_flops"] < found["upper_step_flops"]
            steps = found["training_step_flops"] / (8 / found["plain_images_per_second"])
            assert found["plain_share_of_peak"] == pytest.approx(steps / 1e10)
    torch.set_num_threads(threads)
    assert "share of peak" in capsys.readouterr().out


def test_gpu_knows_cards_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    for name, expected in (
        ("NVIDIA H200", (989.0, 494.0)),
        ("NVIDIA H100 PCIe", (756.0, 378.0)),
        ("NVIDIA L40S", (362.0, 183.0)),
        ("NVIDIA L4", (121.0, 60.0)),
        ("NVIDIA A100-SXM4-80GB", (312.0, 156.0)),
        ("Tesla T4", (None, None)),
    ):
        assert tuple(gpu.peak_tflops(name, p) for p in gpu.PRECISIONS) == expected
    names = list(gpu.PEAKS)
    assert all(a not in b for i, a in enumerate(names) for b in names[i + 1 :])


def test_the_table_for_one_gpu_has_the_recipe_of_cifar() -> None:
    table, cifar = (
        read_configuration(path)
        for path in (
            FOLDER / "fashion_resnet32.yaml",
            FOLDER.parent / "bench/configs/cifar10_lt.yaml",
        )
    )
    assert table.recipe == cifar.recipe
    assert (table.search, table.augment, table.tuning_runs, table.seeds) == (
        cifar.search, cifar.augment, cifar.tuning_runs, cifar.seeds,
    )  # fmt: skip
    assert set(table.methods) <= set(METHODS)
    assert table.subset("short").recipe == replace(table.recipe, epochs=60)


@pytest.mark.slow
def test_the_table_runs(tmp_path: Path) -> None:
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    for name, each in (("train", 5000), ("t10k", 2)):
        for kind, values in (
            ("images-idx3", np.arange(40 * each).reshape(-1, 2, 2) % 256),
            ("labels-idx1", np.tile(np.arange(10), each)),
        ):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            path = folder / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    options = ("--table", "--subset", "quick", "--data", str(tmp_path), "--out")
    numbers, _ = quick("gpu.py", tmp_path, *options, str(tmp_path / "out"))
    assert set(numbers) == {"environment", "seconds", "table"}
    assert numbers["table"]["metric"] == "balanced_error"
    cells = (tmp_path / "out/cells.jsonl").read_text().splitlines()
    records = [json.loads(cell) for cell in cells]
    assert [r["method"] for r in records] == ["cross_entropy", "autobalance"]
    assert [r["status"] for r in records] == ["finished"] * 2
    assert records[0]["sizes"] == {"train": 12406, "test": 20}


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    numbers, _ = quick("scaling.py", tmp_path)
    assert set(numbers) == {"parameters", "classes", "batch"}
    assert all(math.isfinite(axis["slope"]) for axis in numbers.values())


@pytest.mark.processes
def test_stored(tmp_path: Path) -> None:
    numbers, shown = quick("stored.py", tmp_path)
    assert numbers["file_bytes"] > 200 * 3 * 256 * 256
    assert all(
        numbers[f"{what}_per_{unit}"] > 10
        for what, unit in (("decoded", "second"), ("read", "cpu_second"), ("copied", "cpu_second"))
    )
    assert numbers["bytes_loaded"] - numbers["bytes_reading"] > 0.8 * 200 * 3 * 256 * 256
    assert "200 images of 256 pixels" in shown


@pytest.mark.slow
def test_large_classes(tmp_path: Path) -> None:
    numbers, _ = quick("large_classes.py", tmp_path)
    for cases in numbers["loss"].values():
        assert all(positive(case) for case in cases.values())
    assert numbers["loss"]["8142x512"]["l"]["memory"] < 0.5
    assert all(positive(case) for case in numbers["steps"]["1000"].values())


def test_consistency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton's method on the library's loss gives the formula; the verdicts are those of it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import consistency as c

    for prior, rows in ((c.PRIOR, c.LIKELIHOOD), ((0.9, 0.1), c.LIKELIHOOD[::2])):
        numbers = c.study(prior, rows)["losses"]
        verdicts = {name: row["consistent"] for name, row in numbers.items()}
        assert verdicts["class weights 1 / pi"]
        assert verdicts["LA, tau = 1, delta = 2 for all"]
        assert not verdicts["class weights and LA, both"]
        assert verdicts["VS, gamma = 0.3, tau = 1"] == (len(prior) == 2)
        for name, row in numbers.items():
            for gauge in c.GAUGES:
                assert row[gauge]["formula"] < 1e-8
                assert (row[gauge]["bayes"] == 1.0) == verdicts[name]


def test_the_gauge_that_weight_decay_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import consistency as c

    known = c.Distribution(np.array(c.PRIOR), np.array(c.LIKELIHOOD))
    loss = c.cases(known.prior)["VS, gamma = 0.3, tau = 1"]
    delta = c.Losses.of(loss, 3).multiplicative
    f = c.by_decay(known.joint, loss, 1e-4)
    assert np.abs(f @ (1 / delta)).max() < 1e-9
    assert np.abs(f.sum(axis=1)).max() > 0.1
    moved = c.drift_in_training(known.joint, loss, steps=20)
    assert moved["decay"] < 1e-12 < 0.1 < moved["sum"]


@pytest.mark.parametrize("learn", [("additive",), ("additive", "multiplicative")])
def test_why_follows_the_search(learn: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit, with a network that draws at random and has buffers."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import why

    def noisy() -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )

    data, test = blobs(), blobs(seed=1)
    recipe = Recipe(epochs=1, min_steps=40, batch_size=32, lr=0.05)
    settings = SearchSettings(every=4, warmup=0.25, validation_batch_size=16)
    found = why.tracked_search(
        noisy, data, test, recipe=recipe, settings=settings, seed=3, learn=learn, look_every=7
    )
    truth = search(
        noisy, data, recipe=recipe, settings=settings, seed=3, device="cpu",
        space=lambda counts: HierarchicalSpace(counts, learn=learn),
    )  # fmt: skip
    assert found.loss.to_dict() == truth.loss.to_dict()
    assert found.loss.to_dict() != truth.start.to_dict()
    assert found.values.items() <= truth.design.items()
    assert found.steps == [7, 14, 21, 28, 35, 40]
    assert all(len(errors) == 6 for errors in found.errors.values())


def test_why_tells_the_search_phase_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import why

    errors = {
        "training": [0.0] * 4,
        "validation": [0.8, 0.3, 0.2, 0.1],
        "test": [0.9, 0.1, 0.2, 0.3],
    }
    loss = why.ParametricCrossEntropy.cross_entropy()
    run = why.Tracked(loss, {"tau": 1.0}, [5, 15, 20, 25], errors, 10, 25)
    found = why.summary_of([run, run])
    assert found["correlation_in_search_phase"]["mean"] == pytest.approx(-1.0)
    assert found["correlation"]["mean"] > 0.5
    for column, expected in (
        ("final_gap_to_test", {"training": -0.3, "validation": -0.2, "test": 0.0}),
        ("change_in_search_phase", {"training": 0.0, "validation": -0.2, "test": 0.2}),
        ("sd_in_search_phase", {"training": 0.0, "validation": 0.1, "test": 0.1}),
    ):
        assert {n: v["mean"] for n, v in found[column].items()} == pytest.approx(expected)


@pytest.mark.slow
def test_why(tmp_path: Path) -> None:
    numbers, table = quick("why.py", tmp_path, "--figures", str(tmp_path / "figures"))
    assert set(numbers["fractions"]["rows"]) == {"0.1", "0.2"}
    assert len(numbers["learned"]["additive_minus_start"]) == len(numbers["seeds"]) == 2
    assert set(numbers["search"]) == {"logit adjustment", "cross-entropy"}
    for found in numbers["search"].values():
        assert -1.0 <= found["summary"]["correlation"]["mean"] <= 1.0
        for run in found["runs"]:
            assert all(0.0 <= e <= 1.0 for errors in run["errors"].values() for e in errors)
    assert "in the search phase alone" in table
    figures = {path.name: path.read_text() for path in (tmp_path / "figures").iterdir()}
    assert set(figures) == {"search.svg", "fractions.svg", "learned.svg"}
    assert all(text.startswith("<?xml") and "<dc:date>" not in text for text in figures.values())


@pytest.mark.slow
def test_augmentation(tmp_path: Path) -> None:
    numbers, table = quick("augmentation.py", tmp_path)
    assert positive(numbers["step_ratio"])
    assert positive(numbers["memory_ratio"])
    assert numbers["step_ratio"]["8 operations, with gradient"] < 0.25
    assert "target" in table


def recidivism(folder: Path) -> None:
    """A table like COMPAS's: three groups of unlike base rates, one of them too small to stand alone."""
    draw = np.random.default_rng(0)
    race = draw.choice(["A", "B", "C", "Other"], size=1200, p=[0.5, 0.35, 0.05, 0.1])
    rate = np.where(race == "A", 0.6, 0.35)
    target = (draw.random(1200) < rate).astype(int)
    columns = {
        "age": draw.integers(18, 70, size=1200), "sex": draw.choice(["Male", "Female"], size=1200),
        "juv_fel_count": 0, "juv_misd_count": 0, "juv_other_count": draw.poisson(0.2, size=1200),
        "priors_count": draw.poisson(1.0 + 3.0 * target + (race == "A")),
        "c_charge_degree": draw.choice(["F", "M"], size=1200), "race": race,
        "two_year_recid": target,
    }  # fmt: skip
    path = folder / "fairness/compas_two_years.csv.gz"
    path.parent.mkdir(parents=True)
    pd.DataFrame(columns).to_csv(path, index=False)


@pytest.mark.slow
def test_groups(tmp_path: Path) -> None:
    recidivism(tmp_path)
    out = tmp_path / "out"
    options = ("--data", str(tmp_path), "--out", str(out), "--sets", "compas_race", "--splits", "1")
    numbers, table = quick("groups.py", tmp_path, *options, "--methods", "losses,autobalance")
    assert set(numbers) == {"compas_race"}
    assert set(numbers["compas_race"]) == {"methods", "hypervolume"}
    methods = numbers["compas_race"]["methods"]
    own = {"autobalance", "autobalance_equal", "autobalance_worst_cell", "ceiling"}
    assert set(methods) == own | {"cross_entropy", "logit_adjustment", "group_logit_adjustment"}
    for values in methods.values():
        assert set(values) == {"balanced", "worst", "deo"}
        assert all(0 <= mean <= 200 and error is None for mean, error in values.values())
        assert values["worst"] >= values["balanced"]
    assert set(numbers["compas_race"]["hypervolume"]) == set(methods) - {"autobalance_equal"}
    assert "within 2 points of group-wise LA" in table
    lines = (out / "points.jsonl").read_text().splitlines()
    assert all(
        len(json.loads(line).get("errors", [0] * 3)) == 3 or "done" in line for line in lines
    )

    again, _ = quick("groups.py", tmp_path, *options, "--methods", "losses,autobalance")
    assert again == numbers
    assert (out / "points.jsonl").read_text().splitlines() == lines
    shown, _ = quick("groups.py", tmp_path, "--out", str(out), "--summary")
    assert shown == numbers


def line(method: str, split: int, balanced: float, deo: float, held: Any = None) -> dict[str, Any]:
    return {
        "set": "adult_sex", "split": split, "run": method, "method": method,
        "point": f"{balanced}", "held": held, "balanced": balanced, "worst": balanced, "deo": deo,
    }  # fmt: skip


def test_groups_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups, two classes: E|a - b| of two binomial rates, about 2 sqrt(r (1 - r) / (pi n))."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import groups

    cells = np.array([[400, 900], [400, 900]])
    data = ArrayData.of(
        torch.zeros(2600, 1),
        torch.tensor([0, 1]).repeat(2).repeat_interleave(torch.tensor(cells.ravel())),
        groups=torch.tensor([0, 0, 1, 1]).repeat_interleave(torch.tensor(cells.ravel())),
    )
    monkeypatch.setattr(groups, "load", lambda *a: SimpleNamespace(test=data))
    row = line("group_logit_adjustment", 3, 20.0, 9.0) | {"errors": [[0.3, 0.1], [0.1, 0.1]]}
    (found,) = groups.noise("adult_sex", [row, line("group_dro", 3, 20.0, 9.0)], "", quick=False)
    rates, n = np.array([0.2, 0.1]), cells[0]
    assert found == pytest.approx(
        100 * (2 * np.sqrt(rates * (1 - rates) / (np.pi * n))).sum(), rel=0.05
    )


def test_groups_choose_on_held_out_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the test rows, on which here each choice turns out for the worse."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import groups

    lines = [
        line("group_logit_adjustment", 0, 18.0, 20.0, [0.18, 0.2]),
        line("autobalance", 0, 17.0, 5.0, [0.21, 0.01]),  # more than 2 points above
        line("autobalance", 0, 25.0, 50.0, [0.199, 0.05]),
        line("autobalance", 0, 24.0, 40.0, [0.184, 0.10]),
        line("autobalance", 0, 16.0, 10.0, [0.175, 0.19]),
        line("autobalance", 1, 30.0, 30.0, [0.3, 0.1]),  # not finished
    ]
    done = [{"set": "adult_sex", "split": 0, "run": m, "done": True} for m in
            ("group_logit_adjustment", "autobalance")]  # fmt: skip
    found = groups.summary([*lines, *done])["adult_sex"]
    assert found["methods"]["autobalance"]["deo"] == [50.0, None]
    assert found["methods"]["autobalance_equal"]["balanced"] == [24.0, None]
    assert found["hypervolume"]["group_logit_adjustment"] == pytest.approx(32.0 * 40.0)
    assert found["hypervolume"]["autobalance"] == pytest.approx(33.0 * 55.0 + 1.0 * 50.0)
