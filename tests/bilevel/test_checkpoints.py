"""Checkpoints: nothing is lost on the way, nothing altered is taken, and no code is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from autobalance._validation import InputError
from autobalance.bilevel.checkpoints import (
    Checkpoint,
    fingerprint,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)

IDENTITY = {
    "kind": "search", "seed": 3, "recipe": {"lr": 0.1}, "shapes": {"0.weight": [3, 2]},
    "settings": {"steps": 5},
}  # fmt: skip


def state() -> dict[Any, Any]:
    shared = torch.arange(6.0)
    return {
        "tensors": [shared, shared.view(2, 3), shared[2:4], torch.ones(2, 3).T],
        "kinds": [
            torch.tensor(1.5, dtype=torch.float64),
            torch.tensor([1 / 3], dtype=torch.bfloat16),
            torch.zeros(0, 4),
            torch.tensor([True, False]),
            torch.random.get_rng_state(),
        ],
        0: {1: {"step": torch.tensor(7.0), "lr": 1 / 3}, "x": None},
        "plain": [1, -0.0, 1e-300, float("nan"), "text", True, None, [], {}, ["tensor", "0"]],
    }


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert repr(found) == repr(expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run.checkpoint", state(), IDENTITY)
    return tmp_path / "run.checkpoint"


def test_round_trip_bit_for_bit(path: Path) -> None:
    assert_same(load_checkpoint(path, IDENTITY), state())


def test_tensors_come_back_on_storage_of_their_own(path: Path) -> None:
    found = load_checkpoint(path, IDENTITY)["tensors"]
    found[0].fill_(9.0)
    assert found[1][0, 0] == 0.0


def test_it_is_safetensors_and_json(path: Path) -> None:
    """Any reader of the format can look into it; there is no pickle in it."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["autobalance"])
    assert header["identity"] == IDENTITY


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 4}, "of another run: its seed is 3, this run's is 4"),
        (
            {"recipe": {"lr": 0.2}},
            r"of another run: its recipe.lr is 0.1, this run's is 0.2\. Go on",
        ),
        ({"shapes": {"0.weight": [3, 5]}}, r"its shapes.0.weight is \[3, 2\], .* \[3, 5\]\. Go"),
        ({"more": 1}, "its more is null, this run's is 1"),
        (
            {"seed": 4, "data": "0f" * 32},
            "its seed is 3, this run's is 4; its training data are others.",
        ),
        ({"settings": {"steps": 9}}, "of another run: its steps is 5, this run's is 9."),
        ({"seed": 4, "settings": {"steps": 9}}, r"is 3, this run's is 4\. Go on"),
        ({"objective": "BalancedError(" + 60 * "x"}, r"its objective is another\. Go on"),
    ],
)
def test_another_run_is_refused(path: Path, changed: dict[str, Any], message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        load_checkpoint(path, IDENTITY | changed)
    assert path.read_bytes() == before


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["autobalance"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)
    safetensors.torch.save_file(tensors, path, {"autobalance": json.dumps(header)})


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b""), "not a checkpoint of autobalance, or is truncated"),
        (lambda p: p.write_bytes(b"\x80\x04pickle"), "not a checkpoint of autobalance"),
        (lambda p: p.write_bytes(p.read_bytes()[:-5]), "or is truncated"),
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "or is truncated"),
        (flip_last_byte, "was altered: its digest differs"),
        (lambda p: edit_header(p, lambda h: h["identity"].update(seed=5)), "was altered"),
        (lambda p: edit_header(p, lambda h: h.update(version=1)), "in version 1 of the format"),
        (lambda p: edit_header(p, lambda h: h.pop("digest")), "not a checkpoint"),
        (lambda p: safetensors.torch.save_file({"a": torch.ones(2)}, p), "not a checkpoint"),
    ],
)
def test_what_is_damaged_is_refused(
    path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        load_checkpoint(path, IDENTITY)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_previous_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"a": torch.ones(3)}, IDENTITY)
    assert path.read_bytes() == before


def test_what_a_killed_writer_left_is_cleared_away(path: Path) -> None:
    stale = path.with_name(f".{path.name}.123.part")
    stale.write_bytes(b"half")
    save_checkpoint(path, {"a": torch.ones(3)}, IDENTITY)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_random_state_comes_back() -> None:
    with torch.random.fork_rng(devices=[]):
        saved = random_state()
        first = torch.rand(3)
        set_random_state(saved)
        assert torch.equal(torch.rand(3), first)


def test_each_process_goes_on_with_draws_of_its_own(tmp_path: Path) -> None:
    """The state is the first process's; the others must not drop the same units from then on."""

    def at(rank: int) -> Checkpoint:
        processes: Any = SimpleNamespace(
            rank=rank, run_on_rank_zero=lambda make: make(), all_gather_objects=lambda own: [own]
        )
        return Checkpoint(tmp_path / "state", dict, lambda: {"done": 1}, processes)

    torch.manual_seed(5)
    at(0).save()
    expected, drawn = torch.rand(4), []
    for rank in range(3):
        assert at(rank).load() == {"done": 1}
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], expected)
    assert not torch.equal(drawn[1], drawn[0])
    assert not torch.equal(drawn[2], drawn[1])


def test_a_fingerprint_sees_values_shapes_types_and_absence() -> None:
    base = torch.arange(6.0)
    others = [
        fingerprint(base.view(2, 3)),
        fingerprint(base.double()),
        fingerprint(base.flip(0)),
        fingerprint(base, None),
        fingerprint(base, base),
        fingerprint(None),
        fingerprint(),
    ]
    assert fingerprint(base.clone()) == fingerprint(base)
    assert len({fingerprint(base), *others}) == 8
