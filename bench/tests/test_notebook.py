"""The laboratory notebook says how each of its numbers was made, or that it cannot be repeated."""

from __future__ import annotations

import re
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "experiments.md"
COMMAND = re.compile(
    r"bench/\w+\.(?:py|yaml)|examples/\w+\.py|autobalance (?:compare|run|demo) |python -c|same script"
)


def test_every_experiment_has_its_command_or_says_that_there_is_none() -> None:
    for section in re.split(r"^#+ ", NOTEBOOK.read_text("utf-8"), flags=re.MULTILINE)[2:]:
        measured = re.search(r"\d\.\d", section)
        title = section.splitlines()[0]
        assert not measured or COMMAND.search(section) or "*No command.*" in section, title
