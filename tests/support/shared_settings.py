"""Settings of both suites: threads, Hypothesis and seeds, and what would only cost time."""

from __future__ import annotations

import functools
import os
from html import escape
from importlib.metadata import entry_points
from typing import Any

import hypothesis
import pytest
import torch
from lightning_fabric.utilities import registry

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the subprocesses that tests start

# The same examples on every machine and no deadline: a failure can be repeated, and a slow
# machine is no failure.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=40, database=None
)
hypothesis.settings.load_profile("repeatable")

# Each Fabric reads the metadata of all installed packages for plug-ins, which no test installs.
registry.entry_points = functools.cache(entry_points)  # pyright: ignore[reportPrivateImportUsage]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever a test draws from the global random state is the same in each run and order."""
    torch.manual_seed(0)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard errors of a final choice from 100 draws: for tests that do not look at them."""
    monkeypatch.setattr("autobalance.bilevel.candidate_selection.DRAWS", 100)


@pytest.fixture
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of reports have their words and nothing drawn, which takes a second a page.

    For tests of commands and of words: those of `tests/report` look at what is drawn.
    """

    def inline_svg(figure: Any, name: str, title: str, description: str) -> str:
        words = [
            f'<{tag} id="{name}-{tag}">{escape(text)}</{tag}>'
            for tag, text in (("title", title), ("desc", description))
        ]
        texts = (text for owner in (figure, *figure.axes) for text in owner.texts)
        words += [f"<text>{escape(text.get_text())}</text>" for text in texts]
        labels = f'aria-labelledby="{name}-title {name}-desc"'
        return f'<svg viewBox="0 0 1 1" role="img" {labels}>{"".join(words)}</svg>'

    monkeypatch.setattr("autobalance.report.drawing.inline_svg", inline_svg)
