"""A run's record as one self-contained HTML file. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from autobalance.records import write_atomically
from autobalance.report import tables
from autobalance.report.augmentation import policy_picture
from autobalance.report.drawing import Picture
from autobalance.report.explain import cautions
from autobalance.report.figures import pictures
from autobalance.report.frontier import frontier_picture, frontier_table
from autobalance.report.record import Run, read_run
from autobalance.report.samples import samples_picture, unpacked
from autobalance.report.status import heading, loss_heading, warning
from autobalance.report.text import facts, objective_name, sentences
from autobalance.report.verdicts import bound_sentences, doubts

_OPTION = re.compile(r"--[a-z][a-z_.]{0,40}[a-z]")


def write_report(record: dict[str, Any], path: Path) -> None:
    """Write a run's report.

    Parameters
    ----------
    record : dict
        A run's result.json: "kind", "class_counts", "class_names", "search", "methods" and so on.
        What is missing is left out of the report. A method may hold "class_n", its test examples
        per class; without it intervals are shown only where the test data can be balanced.
    path : Path
        The HTML file to write. An existing one is replaced as a whole, or not at all.

    Raises
    ------
    InputError
        If the record is no run's record.
    OSError
        If the file cannot be written.
    """
    write_atomically(path, render_report(record).encode())


def render_report(record: dict[str, Any]) -> str:
    """The report as HTML; the same record gives the same text.

    Raises
    ------
    InputError
        If the record is no run's record.
    """
    content = view(read_run(record))
    title = content["heading"]
    return render_page("run.html.j2", title[:1].lower() + title[1:], v=content)


def view(run: Run) -> dict[str, Any]:
    """All that the sections of one run show."""
    figures = pictures(run)
    figures["augmentation"] = _augmentation(run)
    figures["frontier"] = [frontier_picture(run)] if run.frontier else []
    return {
        "run": run,
        "heading": heading(run, objective_name(run)),
        "loss_heading": loss_heading(run),
        "parts": {part.key for part in run.parts},
        "sentences": [*bound_sentences(run), *sentences(run)],
        "facts": facts(run),
        "warning": warning(run),
        "cautions": [*cautions(run), *doubts(run)],
        "pictures": {section: inlined(group) for section, group in figures.items()},
        "methods": tables.methods_table(run),
        "choice": tables.choice_table(run),
        "errors": tables.errors_tables(run),
        "groups": tables.groups_table(run),
        "groups_change": tables.groups_change_table(run),
        "gaps": tables.gaps_table(run),
        "frontier": frontier_table(run),
        "calibration": tables.calibration_table(run),
        "confusion": tables.confusion_table(run),
        "parameters": tables.parameters_table(run),
        "cost": tables.cost_table(run),
        "settings": tables.settings_table(run),
        "versions": tables.versions_table(run),
    }


def _augmentation(run: Run) -> list[Picture]:
    """The policy, and where the run kept some images what it does to them."""
    if not run.policy:
        return []
    # Training examples of each row, unless the rows are not those of the counts.
    counts = run.counts.ravel() if len(run.policy) == run.counts.size else run.class_totals
    sizes = counts.tolist() if len(counts) == len(run.policy) else None
    figures = [policy_picture(run.policy, sizes, run.place)]
    sheet = unpacked(run.samples)
    if sheet is not None:
        names = run.samples["names"]
        figures.append(samples_picture(sheet, names, len(run.policy), run.place))
    return figures


def inlined(figures: list[Picture]) -> list[Picture]:
    """Pictures whose SVG goes into the page as it is."""
    return [Picture(p.title, Markup(p.svg), p.caption) for p in figures]


def render_sections(content: dict[str, Any], level: int) -> Markup:
    """The sections of one run's `view` as HTML, under headings of this level."""
    macros: Any = environment().get_template("sections.html.j2").module
    return macros.sections(content, level)


def render_page(template: str, title: str, **content: Any) -> str:
    """A whole page."""
    script = asset("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content |= {"style": asset("style.css"), "script": script, "script_hash": digest}
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


def asset(name: str) -> Markup:
    """A file of this package, to stand in the page as it is."""
    return Markup(files("autobalance.report").joinpath(name).read_text(encoding="utf-8"))


def _breakable(text: str) -> Markup:
    """A name that may break after its dots and underscores, and nowhere else."""
    return Markup(str(escape(text)).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _options(text: str) -> Markup:
    """Prose whose command-line options do not break after their dashes."""
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', str(escape(text))))
