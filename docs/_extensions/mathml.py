"""Formulas as MathML, which browsers draw by themselves: no script from elsewhere, no LaTeX."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator


def mathml(tex: str, as_block: bool = False) -> str:
    """The formula, with a thin space between an operator's name and a letter after it."""
    return re.sub(
        r"(<mo>&ApplyFunction;</mo>\s*)(?=<m(?:i|sub|sup)\b)",
        r'\1<mspace width="0.17em"></mspace>',
        tex2mathml(tex, as_block),
    )


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
