"""Every Python block of the README runs, and none is longer than 15 lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_each_library_face_is_shown() -> None:
    shown = "\n".join(BLOCKS)
    for face in ("AutoBalanceClassifier(", "search(", "retrain(", "LossTuner("):
        assert face in shown


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.split("import ")[-1].split("\n")[0])
def test_block_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(block.strip().splitlines()) <= 15
    exec(compile(block, str(README), "exec"), {})
    assert capsys.readouterr().out.strip()
