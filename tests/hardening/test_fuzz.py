"""Readers of tables, options, RUN folders and checkpoints, given files that were altered.

What comes back is the content or a clear refusal; nothing in a file is run, and none fills the memory.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given

from autobalance import InputError, SearchResult, cli
from autobalance.bilevel.checkpoints import load_checkpoint, save_checkpoint
from autobalance.cli.run_folder import load_run
from autobalance.data.tables import read_table
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.records.files import read_json
from fuzzing import BOTH, Bomb, altered, clean, with_a_leaf_changed

FIT = [
    "fit",
    "data.csv",
    "--target",
    "kind",
    "--device",
    "cpu",
    "--recipe.epochs",
    "1",
    "--recipe.min_steps",
    "10",
]
RECORDS = ("result.json", "model.json", "loss.json", "model.safetensors")


def table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    kind = generator.choice(["common", "rare"], size=60, p=[0.7, 0.3])
    return pd.DataFrame(
        {
            "x": generator.normal(size=60),
            "size": generator.choice(["S", "M"], size=60),
            "kind": kind,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.csv and a RUN fitted on it."""
    folder = tmp_path_factory.mktemp("run")
    table().to_csv(folder / "data.csv", index=False)
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main([*FIT, "--out", "run"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# RUN folders -----------------------------------------------------------------------------------


def commands_are_clean(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    """`predict` and `explain` end in order or say what is wrong: never by an error within."""
    Path("new.csv").write_text("x,size\n0.5,S\n")
    for command in (
        ["predict", folder, "new.csv", "--out", "out.csv", "--overwrite"],
        ["explain", folder],
    ):
        assert cli.main(command) in (0, 2), capsys.readouterr().err
    capsys.readouterr()


@BOTH
@pytest.mark.parametrize("name", RECORDS)
def test_a_run_with_bytes_altered(run: Path, name: str, how: Any, capsys: Any) -> None:
    content = (run / "run" / name).read_bytes()

    @how
    @given(altered(content))
    def check(changed: bytes) -> None:
        shutil.copytree(run / "run", "run", dirs_exist_ok=True)
        Path("run", name).write_bytes(changed)
        clean(lambda: load_run("run"))
        commands_are_clean(capsys, "run")
        assert Path("run", name).read_bytes() == changed

    check()


@BOTH
@pytest.mark.parametrize("name", ["result.json", "model.json"])
def test_a_run_with_a_value_changed(run: Path, name: str, how: Any, capsys: Any) -> None:
    record = json.loads((run / "run" / name).read_bytes())

    @how
    @given(with_a_leaf_changed(record))
    def check(changed: Any) -> None:
        shutil.copytree(run / "run", "run", dirs_exist_ok=True)
        Path("run", name).write_text(json.dumps(changed))
        clean(lambda: load_run("run"))
        commands_are_clean(capsys, "run")

    check()


@BOTH
@pytest.mark.parametrize("name", ["result.json", "model.json", "adjustment.json"])
def test_a_run_of_decisions_with_a_value_changed(
    name: str, how: Any, capsys: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = tmp_path_factory.mktemp("scores")
    p = np.random.default_rng(0).dirichlet([3.0, 1.0], size=60)
    frame = pd.DataFrame(p, columns=["p_a", "p_b"]).assign(y=np.where(p[:, 1] > 0.4, "b", "a"))
    frame.to_csv(kept / "scores.csv", index=False)
    given_options = ["--target", "y", "--scores", "p_*", "--out", str(kept / "run")]
    assert cli.main(["adjust", str(kept / "scores.csv"), *given_options]) == 0
    record = json.loads((kept / "run" / name).read_bytes())

    @how
    @given(with_a_leaf_changed(record))
    def check(changed: Any) -> None:
        shutil.copytree(kept / "run", "run", dirs_exist_ok=True)
        Path("run", name).write_text(json.dumps(changed))
        Path("scores.csv").write_text("p_a,p_b\n0.5,0.5\n")
        for command in (
            ["predict", "run", "scores.csv", "--out", "out.csv", "--overwrite"],
            ["explain", "run"],
            ["report", "run"],
        ):
            assert cli.main(command) in (0, 2), capsys.readouterr().err
        capsys.readouterr()

    check()


@BOTH
def test_records_with_a_value_changed(run: Path, how: Any) -> None:
    record = json.loads((run / "run/result.json").read_bytes())["search"]

    @how
    @given(with_a_leaf_changed(record))
    def check(changed: Any) -> None:
        clean(lambda: SearchResult.from_dict(changed))
        if isinstance(changed, dict):
            clean(lambda: ParametricCrossEntropy.from_dict(changed.get("loss", {})))

    check()


def test_no_pickle_is_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    torch.save(Bomb(), stream)
    array = io.BytesIO()
    np.savez(array, inputs=np.array([Bomb()], dtype=object), target=np.zeros(1))
    shutil.copy(run / "data.csv", "data.csv")
    bombs = [pickle.dumps(Bomb()), stream.getvalue(), array.getvalue()]
    for bomb in bombs:
        for name in (*RECORDS, "search.checkpoint", "search.checkpoint.training"):
            shutil.copytree(run / "run", "run", dirs_exist_ok=True)
            Path("run", name).write_bytes(bomb)
            clean(lambda: load_run("run"))
            commands_are_clean(capsys, "run")
            if name.endswith("checkpoint"):
                assert cli.main([*FIT, "--out", "run", "--resume"]) == 2
                assert "is not a checkpoint" in capsys.readouterr().err
                assert Path("run", name).read_bytes() == bomb
            shutil.rmtree("run")
        for name in ("x.csv", "x.csv.gz", "x.parquet"):
            Path(name).write_bytes(bomb)
            clean(lambda name=name: read_table(name))
    assert not Path("touched").exists()
    pickle.loads(bombs[0]).close()  # the bomb does go off where a pickle is loaded
    assert Path("touched").exists()


# Checkpoints -----------------------------------------------------------------------------------


@BOTH
def test_a_checkpoint_with_bytes_altered(tmp_path: Path, how: Any) -> None:
    state = {
        "weights": torch.arange(5.0),
        "done": 3,
        "more": [None, True, "text", torch.tensor([7])],
    }
    whole = tmp_path / "whole"
    save_checkpoint(whole, state, {"run": 1})

    @how
    @given(altered(whole.read_bytes()))
    def check(changed: bytes) -> None:
        (tmp_path / "changed").write_bytes(changed)
        found = clean(lambda: load_checkpoint(tmp_path / "changed", {"run": 1}))
        if not isinstance(found, InputError):  # then it is all there, to the bit
            assert str(found) == str(state)

    check()


# Tables ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.csv.xz", "x.parquet"])
def test_a_table_with_bytes_altered(name: str, how: Any) -> None:
    part = table()
    if name.endswith("parquet"):
        part.to_parquet(name)
    else:
        part.to_csv(name, index=False)
    content = Path(name).read_bytes()

    @how
    @given(altered(content))
    def check(changed: bytes) -> None:
        Path(name).write_bytes(changed)
        found = clean(lambda: read_table(name))
        assert isinstance(found, InputError) or len(found) > 0

    check()


def bombs(folder: Path) -> dict[str, Callable[[], Any]]:
    """Files of at most a few MB with 512 MiB of zeros in each, and what reads them."""
    part = b"0" * 2**24
    for name, opened in (("b.csv.gz", gzip.open), ("b.csv.xz", lzma.open)):
        with opened(folder / name, "wb") as stream:
            stream.write(b"x,kind\n")
            for _ in range(32):
                stream.write(part)
    with (
        zipfile.ZipFile(folder / "b.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("b.csv", "w", force_zip64=True) as stream,
    ):
        for _ in range(32):
            stream.write(part)
    return {
        "b.csv.gz": lambda: read_table(folder / "b.csv.gz"),
        "b.csv.xz": lambda: read_table(folder / "b.csv.xz"),
        "b.csv.zip": lambda: read_table(folder / "b.csv.zip"),
    }


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, read in bombs(tmp_path).items():
        with pytest.raises(InputError, match=f"{name} is compressed more than 200 times"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


# Configurations --------------------------------------------------------------------------------


def test_options_of_a_file_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.csv").write_text(table().to_csv(index=False))
    texts = [
        "x: !!python/object/apply:os.mkdir [touched]\n",
        "recipe: 3\n",
        "recipe: {epochs: [1]}\n",
        "recipe: {epochs: .nan}\n",
        "- 1\n",
        "text\n",
        "\xff\n",
        "recipe: {epochs: 1e400}\n",
        "search: {folds: 1.5}\n",
        "seed: -1\n",
        "objective: {}\n",
    ]
    for text in texts:
        Path("x.yaml").write_text(text)
        assert cli.main([*FIT, "--out", "new", "--config", "x.yaml"]) == 2, text
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
    assert not Path("touched").exists()
    assert not Path("new").exists()


def test_json_that_is_nested_too_deeply() -> None:
    Path("x.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        read_json(Path("x.json"))
    for kind in (SearchResult, ParametricCrossEntropy):
        with pytest.raises(InputError, match="nested too deeply"):
            kind.from_json("[" * 100_000)


# Names of files --------------------------------------------------------------------------------

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


def test_hostile_names_are_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        for arguments in (
            ["fit", name, "--target", "kind", "--out", "new"],
            ["predict", str(run / "run"), name, "--out", "out.csv"],
            ["predict", str(run / "run"), str(run / "data.csv"), "--out", f"gone/{name}/"],
            ["evaluate", name, str(run / "data.csv"), "--target", "kind"],
            ["explain", name],
            ["frontier", name, "--target", "kind", "--groups", "size", "--out", "new"],
        ):
            try:
                code = cli.main(arguments)
            except SystemExit as left:  # --help
                code = left.code
            said = capsys.readouterr().err
            assert code in (0, 2), (arguments, code, said)
            assert "Traceback" not in said
    assert not Path("touched").exists()
    assert not Path("new").exists()


def test_a_command_line_of_bytes_that_are_no_text() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autobalance", "explain", b"\xff\xfe"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
