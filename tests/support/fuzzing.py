"""Files and records that were altered, and a check that they are read or clearly refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st

from autobalance import InputError

FEW = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
BOTH = pytest.mark.parametrize(
    "how", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)


class Bomb:
    """A pickle that makes the file "touched" where it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("touched", "w")


@st.composite
def altered(draw: Callable[..., Any], content: bytes) -> bytes:
    """Cut short, with bytes flipped, put in or taken out."""
    if draw(st.booleans()):
        content = content[: draw(st.integers(0, len(content)))]
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        if changed:
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    at = draw(st.integers(0, len(changed)))
    changed[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(changed)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just([[]]),
    st.just([1, "a", None]),
    st.just({"a": 1}),
    st.just(10**30),
    st.just("../../x"),
)


@st.composite
def with_a_leaf_changed(draw: Callable[..., Any], record: Any) -> Any:
    """The record with a value somewhere within replaced, or missing."""
    record = json.loads(json.dumps(record))
    place, key = {"": record}, ""
    inner = record
    while isinstance(inner, (dict, list)) and inner and (key == "" or draw(st.integers(0, 3))):
        place = inner
        key = draw(
            st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(min(len(inner), 3)))
        )
        inner = inner[key]
    if draw(st.integers(0, 3)):
        place[key] = draw(JUNK)
    else:
        del place[key]
    return record


def clean(call: Callable[[], Any]) -> Any:
    """What it returns, or the InputError with a message of moderate length."""
    try:
        return call()
    except InputError as caught:
        error = caught
    assert 15 < len(str(error)) < 2000, str(error)
    return error
