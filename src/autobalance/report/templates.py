"""The page's templates, with all that stands in a page as it is."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_OPTION = re.compile(r"--[a-z][a-z_.]{0,40}[a-z]")


def render_page(template: str, title: str, **content: Any) -> str:
    """A whole page."""
    script, style = (
        Markup(files("autobalance.report").joinpath(name).read_text(encoding="utf-8"))
        for name in ("sort.js", "style.css")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content |= {"style": style, "script": script, "script_hash": digest}
    return environment().get_template(template).render(**content, title=title)


@cache
def environment() -> Environment:
    """The templates, which escape all text that is not marked as HTML."""
    templates = Environment(
        loader=PackageLoader("autobalance", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {"breakable": _breakable, "options": _options}
    return templates


def _breakable(text: str) -> Markup:
    """A name that may break after its dots and underscores, and nowhere else."""
    return Markup(str(escape(text)).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _options(text: str) -> Markup:
    """Prose whose command-line options do not break after their dashes."""
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', str(escape(text))))
