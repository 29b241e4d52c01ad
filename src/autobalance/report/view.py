"""What the templates show of one run, and the environment that fills them in."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from autobalance.report.augmentation import policy_picture
from autobalance.report.explain import cautions
from autobalance.report.figures import Picture, pictures
from autobalance.report.frontier import frontier_picture, frontier_table
from autobalance.report.record import Run
from autobalance.report.samples import samples_picture, unpacked
from autobalance.report.status import heading, loss_heading, warning
from autobalance.report.tables import (
    calibration_table,
    choice_table,
    confusion_table,
    cost_table,
    errors_tables,
    gaps_table,
    groups_change_table,
    groups_table,
    methods_table,
    parameters_table,
    settings_table,
    versions_table,
)
from autobalance.report.text import facts, objective_name, sentences

_OPTION = re.compile(r"--[a-z][a-z_.]{0,40}[a-z]")


def view(run: Run) -> dict[str, Any]:
    """All that the sections of one run show."""
    shown = pictures(run)
    shown["augmentation"] = _augmentation(run)
    shown["frontier"] = [frontier_picture(run)] if run.frontier else []
    return {
        "run": run,
        "heading": heading(run, objective_name(run)),
        "loss_heading": loss_heading(run),
        "parts": {part.key for part in run.parts},
        "sentences": sentences(run),
        "facts": facts(run),
        "warning": warning(run),
        "cautions": cautions(run),
        "pictures": {section: inlined(figures) for section, figures in shown.items()},
        "methods": methods_table(run),
        "choice": choice_table(run),
        "errors": errors_tables(run),
        "groups": groups_table(run),
        "groups_change": groups_change_table(run),
        "gaps": gaps_table(run),
        "frontier": frontier_table(run),
        "calibration": calibration_table(run),
        "confusion": confusion_table(run),
        "parameters": parameters_table(run),
        "cost": cost_table(run),
        "settings": settings_table(run),
        "versions": versions_table(run),
    }


def _augmentation(run: Run) -> list[Picture]:
    """The policy, and where the run kept some images what it does to them."""
    found = [policy_picture(run.policy, _rows(run), run.place)] if run.policy else []
    sheet = unpacked(run.samples) if found else None
    if sheet is not None:
        names = run.samples["names"]
        found.append(samples_picture(sheet, names, len(run.policy), run.place))
    return found


def inlined(figures: list[Picture]) -> list[Picture]:
    """Pictures whose SVG goes into the page as it is."""
    return [Picture(p.title, Markup(p.svg), p.caption) for p in figures]


def sections(shown: dict[str, Any], level: int) -> Markup:
    """The sections of one run as HTML, under headings of this level."""
    macros: Any = environment().get_template("sections.html.j2").module
    return macros.sections(shown, level)


def page(template: str, title: str, **shown: Any) -> str:
    """A whole page."""
    script = asset("sort.js")
    return (
        environment()
        .get_template(template)
        .render(
            **shown,
            title=title,
            style=asset("style.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("autobalance", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"breakable": _breakable, "options": _options}
    return made


def asset(name: str) -> Markup:
    """A file of this package, to stand in the page as it is."""
    return Markup(files("autobalance.report").joinpath(name).read_text(encoding="utf-8"))


def _rows(run: Run) -> list[float] | None:
    """Training examples of each row of the policy; None where its rows are not the table's."""
    counts = run.counts.ravel() if len(run.policy) == run.counts.size else run.class_totals
    return counts.tolist() if len(counts) == len(run.policy) else None


def _breakable(text: str) -> Markup:
    """A name that may break after its dots and underscores, and nowhere else."""
    shown = str(escape(text))
    return Markup(shown.replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _options(text: str) -> Markup:
    """Prose whose command-line options do not break after their dashes."""
    shown = str(escape(text))
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', shown))
