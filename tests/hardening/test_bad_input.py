"""Whatever is wrong in the place of an argument is refused in words, and nothing is lost by it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from autobalance import InputError
from entries import BACKBONE, CLASSIFIER, ENTRIES, GENERATED, SKLEARN, Entry

CASES = [(entry, name) for entry in ENTRIES for name in entry.bad]
IDS = [f"{entry.name}-{name}" for entry, name in CASES]
LONGEST = 1000


def refused(entry: Entry, **wrong: Any) -> None:
    """Refused with a message for people; the random state and the modules are as they were."""
    before = torch.random.get_rng_state()
    modes = [BACKBONE.training, CLASSIFIER.module_.training]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Whatever else is raised, of a library within, fails the test.
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            entry(**wrong)
    message = str(caught.value)
    # scikit-learn's own checks of X and y say ValueError, as its conventions want.
    assert isinstance(caught.value, InputError) or entry.name in SKLEARN, repr(caught.value)
    assert 15 < len(message) <= LONGEST, message
    assert "object at 0x" not in message or len(message) < 300
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [BACKBONE.training, CLASSIFIER.module_.training] == modes


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_what_is_in_order_is_taken(entry: Entry) -> None:
    """Else a refusal would say nothing of what is wrong in the place of one argument."""
    if entry.complete:
        entry()


@pytest.mark.parametrize(("entry", "name"), CASES, ids=IDS)
def test_what_is_wrong_is_refused(
    entry: Entry, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in entry.bad[name]:
        refused(entry, **{name: value})
    assert not list(tmp_path.iterdir())


def test_there_are_enough() -> None:
    assert sum(len(entry.bad[name]) for entry, name in CASES) >= 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "name"),
    [(entry, name) for entry, name in CASES if id(entry.bad[name]) in GENERATED],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_is_generated_is_refused(
    entry: Entry, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    @settings(max_examples=60)
    @given(value=GENERATED[id(entry.bad[name])])
    def check(value: Any) -> None:
        refused(entry, **{name: value})

    check()
    assert not list(tmp_path.iterdir())


# A refused call loses nothing ------------------------------------------------------------------


@given(st.sampled_from([b"", b"x" * 10, b"PK\x03\x04" + b"\0" * 40, b"\x80\x05."]))
def test_a_checkpoint_that_is_none_is_refused_and_stays(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.checkpoint"
        path.write_bytes(content)
        for entry in ENTRIES:
            if entry.name in ("search", "retrain"):
                refused(entry, checkpoint=path)
        assert path.read_bytes() == content
        assert [p.name for p in Path(folder).iterdir()] == ["run.checkpoint"]
