"""Small image files for the tests of readers."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def picture(path: Path, red: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    """One colour, whose red tells which image it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 100, 50)).save(path)
    return path
