"""Readers of configurations, embeddings and results, given files that were altered or are hostile.

What comes back is the content or a clear refusal; nothing in a file is run, and none fills the memory.
"""

from __future__ import annotations

import io
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given

from autobalance import InputError, cli
from autobalance_bench.comparison.configuration import read_configuration
from autobalance_bench.comparison.store import Store
from autobalance_bench.datasets.embeddings import read_embeddings
from fuzzing import BOTH, Bomb, altered, clean, with_a_leaf_changed

CONFIGURATION = """datasets:
  - {name: mine, path: table.csv, target: label}
methods: [cross_entropy, autobalance]
seeds: 3
recipe: {epochs: 3, lr: 0.01}
search: {folds: 2}
augment: {name: standard, padding: 4}
subsets: {small: {seeds: 1}}
"""
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_no_pickle_is_run() -> None:
    array = io.BytesIO()
    np.savez(array, inputs=np.array([Bomb()], dtype=object), target=np.zeros(1))
    for bomb in (pickle.dumps(Bomb()), array.getvalue()):
        for name in ("x.parquet", "x.npz", "x.yaml", "cells.jsonl"):
            Path(name).write_bytes(bomb)
        for name in ("x.parquet", "x.npz"):
            clean(lambda name=name: read_embeddings(name))
        clean(lambda: read_configuration("x.yaml"))
        clean(lambda: Store("cells.jsonl").cells())
    assert not Path("touched").exists()


@BOTH
@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
def test_embeddings_with_bytes_altered(name: str, how: Any) -> None:
    x, y = np.ones((6, 2), dtype=np.float32), np.arange(6) % 2
    if name == "x.npz":
        np.savez(name, inputs=x, target=y)
    else:
        pd.DataFrame({"inputs": list(x), "target": y}).to_parquet(name)
    content = Path(name).read_bytes()

    @how
    @given(altered(content))
    def check(changed: bytes) -> None:
        Path(name).write_bytes(changed)
        clean(lambda: read_embeddings(name))

    check()


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    """512 MiB of zeros in a file of less than one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        zipfile.ZipFile("b.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("inputs.npy", "w", force_zip64=True) as stream,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**29, 1)}
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(32):
            stream.write(b"0" * 2**24)
    with pytest.raises(InputError, match=r"b\.npz is compressed more than 200 times"):
        read_embeddings("b.npz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@BOTH
def test_a_configuration_altered(how: Any) -> None:
    @how
    @given(altered(CONFIGURATION.encode()))
    def check(changed: bytes) -> None:
        Path("x.yaml").write_bytes(changed)
        clean(lambda: read_configuration("x.yaml"))

    check()


@BOTH
def test_a_configuration_with_a_value_changed(how: Any) -> None:
    @how
    @given(with_a_leaf_changed(yaml.safe_load(CONFIGURATION)))
    def check(changed: Any) -> None:
        Path("x.yaml").write_text(yaml.safe_dump(changed))
        clean(lambda: read_configuration("x.yaml"))

    check()


def test_yaml_that_grows_or_runs_code_is_refused() -> None:
    for text in (
        LAUGHS,
        f"{LAUGHS}datasets: *i\n",
        "a: &a [*a]\n",
        "datasets: &d [*d]\n",
        "[" * 3000,
        "x: !!python/object/apply:os.mkdir [touched]\n",
        "\0",
        "a: b: c",
    ):
        Path("x.yaml").write_text(text)
        assert isinstance(clean(lambda: read_configuration("x.yaml")), InputError)
    assert not Path("touched").exists()


@BOTH
def test_results_of_a_comparison_altered(how: Any) -> None:
    record = {
        "dataset": "d",
        "method": "m",
        "objective": None,
        "seed": 0,
        "identity": "i",
        "status": "failed",
        "reason": "r",
    }
    store = Store("cells.jsonl")
    for seed in range(3):
        store.append({**record, "seed": seed})
    content = Path("cells.jsonl").read_bytes()

    @how
    @given(altered(content))
    def check(changed: bytes) -> None:
        Path("cells.jsonl").write_bytes(changed)
        clean(lambda: Store("cells.jsonl").cells())

    check()


NAMES = [
    "-",
    "--help",
    "a b.csv",
    "a;rm -rf x.csv",
    "$(touch touched).csv",
    "é\u202e.csv",
    "x" * 300 + ".csv",
    "a\nb.csv",
    "'; --.csv",
    "..",
    "/dev/full",
]


def test_hostile_names_are_names(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        try:
            code = cli.main(["compare", name, "--out", "out"])
        except SystemExit as left:  # --help
            code = left.code
        message = capsys.readouterr().err
        assert code in (0, 2), (name, code, message)
        assert "Traceback" not in message
    assert not Path("touched").exists()
