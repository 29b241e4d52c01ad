"""Whatever is wrong in the place of an argument is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance import InputError
from autobalance_bench.datasets.embeddings import read_embeddings
from autobalance_bench.datasets.longtail import long_tailed

TARGET = np.arange(90) % 3
NO_NUMBER: list[Any] = [None, "1", [1.0], {}, 1j, float("nan"), object(), np.array([1.0, 2.0])]
NO_INT: list[Any] = [*NO_NUMBER[1:], float("inf"), -1, 0, 1.5]
CASES: dict[str, list[Any]] = {
    "target": [None, "text", [], [0.5] * 5, TARGET - 1, [["a"]]],
    "imbalance": [*NO_NUMBER, 0.0, -1.0, float("inf"), 0.5],
    "profile": ["", "nonsense", "x" * 100_000, "a\0b", 3, float("nan"), ["linear"], object()],
    "largest": NO_INT,
    "order": ["text", [0], [0, 0, 1], 3, [5, 6, 7]],
    "seed": ["1", float("nan"), 1.5, -1, [], {}, 2**70, object()],
    "path": [
        None,
        3,
        [],
        "",
        "gone.csv",
        "a\0b.csv",
        "x" * 100_000,
        "/dev/null",
        ".",
        "../..",
        b"a",
    ],
}


def long_tail(**changed: Any) -> Any:
    return long_tailed(**{"target": TARGET, "imbalance": 10.0, **changed})


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long_tail()
    call: Callable[..., Any] = read_embeddings if name == "path" else long_tail
    for value in CASES[name]:
        with pytest.raises(InputError) as caught:
            call(**{name: value})
        assert 15 < len(str(caught.value)) < 1000
