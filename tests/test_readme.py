"""The README: its Python blocks run, each is short, and the whole is read in a few minutes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a table of one's own: text labels, categories, missing values."""
    generator = np.random.default_rng(0)
    label = generator.choice(["on time", "late", "lost"], 300, p=[0.8, 0.15, 0.05])
    shift = pd.Series(label).map({"on time": 0, "late": 1, "lost": 2})
    table = pd.DataFrame({"weight": generator.normal(size=300) + shift, "label": label})
    table["route"] = generator.choice(["a", "b", "c"], 300)
    table.loc[::17, "weight"] = np.nan
    table.loc[::23, "route"] = None
    table.to_csv(tmp_path / "train.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_face_is_shown() -> None:
    for face in (
        "LogitAdjustedClassifierCV(",
        "search(",
        "retrain(",
        "LossTuner",
        "autobalance fit",
    ):
        assert face in TEXT


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.split("import ")[-1].split("\n")[0])
def test_block_runs(block: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(block.strip().splitlines()) <= 15
    exec(compile(block, str(README), "exec"), {})
    assert capsys.readouterr().out.strip()


def test_it_has_at_most_600_words() -> None:
    """Code, tables, pictures and badges aside."""
    text = re.sub(
        r"^```.*?^```\s*$|^\|[^\n]*$|<picture>.*?</picture>|<!--.*?-->", "", TEXT, flags=re.S | re.M
    )
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    assert len(re.findall(r"[\w'-]*[A-Za-z][\w'-]*", text)) <= 600
