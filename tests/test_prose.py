"""How the documentation reads: spelling, words to do without, and years of school that it asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pyphen
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RULES = tomllib.loads((DOCS / "style.toml").read_text("utf-8"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts),
]
HOW_TO = sorted(p for p in (DOCS / "how_to").rglob("*.md") if p.name != "index.md")
SYLLABLES = pyphen.Pyphen(lang="en_US")


def prose_of(text: str) -> str:
    """The sentences of a page, without code, tables, formulas, headings and the targets of links."""
    text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.S | re.M)
    text = re.sub(r"^(```+|~~~+).*?^\1\s*$", "", text, flags=re.S | re.M)
    text = re.sub(r"^\$\$.*?^\$\$", "", text, flags=re.S | re.M)
    text = re.sub(r"^[|#].*$", "", text, flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "it", text)
    return re.sub(r"[*_]", "", re.sub(r"\$[^$]*\$", "x", text))


def reading_grade(text: str) -> float:
    """The grade of Flesch and Kincaid, with syllables by hyphenation as textstat counted them.

    textstat itself reads a dictionary that has to be fetched, which a test must not do.
    """
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", text)
    sentences = max(1, len(re.findall(r"[.!?](?:\s|$)|\n\s*\n", text.strip())))
    syllables = sum(SYLLABLES.inserted(word).count("-") + 1 for word in words)
    return 0.39 * len(words) / sentences + 11.8 * syllables / len(words) - 15.59


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_the_grade_tells_hard_prose_from_easy() -> None:
    easy = "The cat sat. It was on a mat. The dog ran to it."
    hard = (
        "Notwithstanding considerable methodological heterogeneity, contemporary investigations "
        "demonstrate statistically significant improvements in classification performance."
    )
    assert reading_grade(easy) < 3.0
    assert reading_grade(hard) > 18.0


@pytest.mark.parametrize("page", HOW_TO, ids=names(HOW_TO))
def test_a_how_to_page_is_easy_to_read(page: Path) -> None:
    assert reading_grade(prose_of(page.read_text("utf-8"))) <= RULES["reading"]["how_to"]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_words_to_do_without(page: Path) -> None:
    text = prose_of(page.read_text("utf-8"))
    found = {
        word: instead
        for word, instead in RULES["instead"].items()
        if re.search(rf"\b{re.escape(word)}\b", text, flags=re.I)
    }
    assert not found, f"{page.name}: write {found}"


def test_spelling() -> None:
    # Tests misspell on purpose.
    places = (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs",
        "src",
        "examples",
        "bench/src",
        "bench/docs",
    )
    known = ",".join(RULES["spelling"]["known"])
    skipped = "*.svg,*.json,*.jsonl,*.csv,*.xz,*.gz,*.html,_build,__pycache__"
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "-L", known, "--skip", skipped,
         *(str(ROOT / place) for place in places if (ROOT / place).exists())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
