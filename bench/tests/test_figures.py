"""Tables and pictures of README and documentation are those of the kept results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import figures  # pyright: ignore[reportMissingImports]


def test_pages_and_pictures_equal_the_kept_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main([]) == 0, capsys.readouterr().out
    marked = [
        m for page in figures.pages() for m in figures.MARKER.finditer(page.read_text("utf-8"))
    ]
    assert len(marked) >= 5


def test_a_number_that_is_not_kept_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(
        figures, "printed", lambda _: "| m | e |\n|---|---|\n| a | 1.0 |\n| b | 2.0 |\n"
    )
    page.write_text(
        "<!-- printed by: python x.py -->\n\n| m | e |\n|---|---|\n| a | **1.0** |\n| b | 2.1 |\n"
    )
    found = figures.check(page)
    assert len(found) == 1
    assert "2.1" in found[0]
    figures.write(page)
    assert "2.1" not in page.read_text()
    assert figures.check(page) == []


def test_what_a_picture_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "errors.svg"
    assert len(figures.picture_differs(path)) == 12
    figures.draw(path, dark=True)
    assert figures.picture_differs(path) == []
