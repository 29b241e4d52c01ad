"""From a matplotlib figure to an inline SVG that follows the page's fonts and colours.

Figures are drawn in stand-in colours, which become CSS variables here, so that one picture
serves light and dark pages and print. Identifiers that nothing refers to go; the others get the
figure's name in front, because a page holds several figures.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

_LONG_DECIMAL = re.compile(r"-?\d+\.\d{3,}")

RAMP = tuple(f"#00{i:02x}0b" for i in range(6))
INK, MUTED, RULE, BEFORE, AFTER = (f"#00{i:02x}0a" for i in range(5))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    BEFORE: "--before",
    AFTER: "--after",
    **{colour: f"--ramp-{i}" for i, colour in enumerate(RAMP)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "autobalance",
    # Class names may hold dollar signs; nothing here is meant as mathematics.
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 13,
    "axes.labelsize": 13,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.75,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 13,
    "legend.handlelength": 1.4,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults with the report's style, whatever the user's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks: the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an SVG element to stand inside HTML. Call it within `house_style`.

    Parameters
    ----------
    figure : Figure
        Drawn in the stand-in colours of this module.
    name : str
        Unique in the page; letters, digits and hyphens.
    title, description : str
        Alternative text.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
    root = ElementTree.fromstring(stream.getvalue())
    _without_styles(root)
    used = {_target(value) for e in root.iter() for value in e.attrib.values()} - {None}
    for element in root.iter():
        _share_style(element)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = _attributes(element, used, name)
        if element.tag != "text":
            element.text = None
        element.tail = None
    for tag, text in (("desc", description), ("title", title)):
        child = ElementTree.Element(tag, id=f"{name}-{tag}")
        child.text = text
        root.insert(0, child)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
    }
    return ElementTree.tostring(root, encoding="unicode")


def standalone_svg(svg: str) -> str:
    """An inline figure as the text of a file of its own: on white, in the page's light colours."""
    style = files("autobalance.report").joinpath("style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[\w-]+): (#\w+)", style.partition("@media")[0]))
    svg = re.sub(r"var\((--[\w-]+)\)", lambda m: light[m[1]], svg)
    look = "background:#fff;font-family:sans-serif"
    return svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{look}" ', 1)


def _without_styles(root: ElementTree.Element) -> None:
    """Drop style elements, which inside HTML would act on the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)


def _share_style(group: ElementTree.Element) -> None:
    """State what all markers of a group have in common once, on the group."""
    styles = {child.get("style") for child in group}
    if len(group) > 1 and len(styles) == 1 and all(c.tag.endswith("}use") for c in group):
        group.set("style", styles.pop() or "")
        for child in group:
            child.attrib.pop("style", None)


def _target(value: str) -> str | None:
    if value.startswith("url(#"):
        return value[5:-1]
    return value[1:] if value.startswith("#") else None


def _attributes(element: ElementTree.Element, used: set[Any], name: str) -> dict[str, str]:
    attributes = {}
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        target = _target(value)
        if key == "id":
            if value in used:
                attributes[key] = f"{name}-{value}"
        elif key == "style":
            attributes[key] = _style(value)
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        elif value.startswith("data:"):
            attributes[key] = "".join(value.split())
        elif target:
            attributes[key] = value.replace(target, f"{name}-{target}")
        else:
            # A hundredth of a point is far below what a screen shows.
            short = _LONG_DECIMAL.sub(lambda m: f"{float(m[0]):.2f}", value)
            attributes[key] = " ".join(short.split())
    return attributes


def _style(value: str) -> str:
    declarations = []
    for declaration in value.split(";"):
        key, _, setting = (s.strip() for s in declaration.partition(":"))
        if key != "font-family":
            variable = _VARIABLES.get(setting)
            declarations.append(f"{key}:{f'var({variable})' if variable else setting}")
    return ";".join(declarations)
