"""SIGKILL at random moments, again and again: nothing is corrupted, and the end is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from killing import KILLED, Server
from toys import write_toy

pytestmark = pytest.mark.processes
FIT = [
    "fit", "toy.csv", "--target", "kind", "--groups", "site", "--device", "cpu", "--recipe.epochs", "1",
    "--recipe.min_steps", "150", "--search.folds", "2",
]  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_toy(tmp_path)
    started = Server(tmp_path)
    yield started
    started.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def assert_whole(folder: Path) -> None:
    """Each file that is there was written to its end."""
    for path in folder.glob("*.json"):
        assert isinstance(json.loads(path.read_bytes()), dict)
    for path in (*folder.glob("*.checkpoint"), *folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)


def kill_fits(server: Server, folder: Path, kills: int, seed: int) -> None:
    """Fit from anew until so many kills are done; each fit that ends is the undisturbed one's."""
    import random

    draws = random.Random(seed)
    code, lasts = server([*FIT, "--out", "whole"])
    assert code == 0
    expected = contents(folder / "whole")
    done, ended, fits = 0, 0, 0
    while done < kills or not ended:
        out = folder / f"run{fits}"
        fits += 1
        while True:
            # A run that was killed before its first checkpoint has nothing to resume.
            more = ["--resume"] if list(out.glob("*.checkpoint")) else ["--overwrite"]
            seconds = 0.0 if done >= kills else draws.uniform(0.005, 0.6) * lasts
            code, _ = server([*FIT, "--out", out.name, *more], seconds)
            assert code in (0, KILLED)
            if out.exists():
                assert_whole(out)
            if code == 0:
                break
            done += 1
        ended += 1
        found = contents(out)
        assert found.keys() == expected.keys()
        for name in ("model.safetensors", "model.json", "loss.json"):
            assert found[name] == expected[name], name


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_fits(server: Server, tmp_path: Path, kills: int) -> None:
    kill_fits(server, tmp_path, kills, seed=0)
