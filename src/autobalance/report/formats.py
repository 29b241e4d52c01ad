"""Numbers, names and settings as a reader wants them."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np


def phrase(name: str, /, **values: Any) -> str:
    """The sentence ``section.key`` of phrases.toml, its values filled in."""
    section, key = name.split(".")
    return read_words(section)[key].format(**values)


@cache
def read_words(section: str) -> dict[str, str]:
    """A section of phrases.toml, in its order."""
    text = files("autobalance.report").joinpath("phrases.toml").read_text("utf-8")
    return tomllib.loads(text)[section]


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, or a dash."""
    return "–" if share is None or not np.isfinite(share) else f"{100 * share:.{digits}f}%"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = round(100 * difference, 1)
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{abs(value):.1f}"


def number(value: float, digits: int = 2) -> str:
    """A number with a real minus sign, or a dash."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them, or a dash."""
    if seconds is None or not np.isfinite(seconds):
        return "–"
    if seconds < 0.1:
        return "under 0.1 s"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def setting_text(value: Any) -> str:
    """A setting's value in words; an object of the library by its "kind" and its own settings."""
    if isinstance(value, dict) and isinstance(value.get("kind"), str):
        return _object_text(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(setting_text(v) for v in value[:50])
        return text + (", …" if len(value) > 50 else "")
    return read_words("curvatures").get(str(value), str(value))


def _object_text(record: dict[str, Any]) -> str:
    options = {key: value for key, value in record.items() if key != "kind"}
    kind = record["kind"]
    if kind == "SmoothError":
        fixed, relative = options.get("temperature"), setting_text(options.get("relative"))
        scale = f"{relative} × mean margin" if fixed is None else setting_text(fixed)
        return f"smooth error with temperature {scale}"
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()
    parts = [
        read_words("kinds").get(kind, spaced)
        + read_words("over").get(str(options.pop("over", "")), "")
    ]
    if kind == "Blend" and isinstance(options.get("parts"), list):
        pairs = [part for part in options.pop("parts") if isinstance(part, list) and len(part) == 2]
        parts = [" + ".join(f"{setting_text(w)} × ({setting_text(each)})" for w, each in pairs)]
    for key, value in options.items():
        name = key.replace("_", " ")
        if key == "surrogate":
            parts.insert(1, setting_text(value))
        elif key == "curvature":
            parts.append(f"{setting_text(value)} curvature")
        elif isinstance(value, bool):
            parts.append(name if value else f"not {name}")
        else:
            parts.append(f"{name} {setting_text(value)}")
    return ", ".join(parts)


def short(name: str, length: int) -> str:
    """The name, or its beginning."""
    return name if len(name) <= length else name[: length - 1] + "…"


def name_list(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
