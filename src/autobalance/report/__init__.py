"""A run's record as one self-contained HTML file. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from autobalance.files import write_atomically
from autobalance.report.augmentation import policy_picture
from autobalance.report.explain import cautions
from autobalance.report.figures import Picture, pictures
from autobalance.report.record import Run, read_run
from autobalance.report.status import heading, loss_heading, warning
from autobalance.report.tables import (
    choice_table,
    cost_table,
    errors_table,
    gaps_table,
    groups_table,
    methods_table,
    parameters_table,
    settings_table,
    versions_table,
)
from autobalance.report.text import facts, objective_name, sentences

__all__ = ["render_report", "write_report"]

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
    run = read_run(record)
    shown = pictures(run)
    shown["augmentation"] = [policy_picture(run.policy, _rows(run))] if run.policy else []
    drawn = {
        section: [Picture(p.title, Markup(p.svg), p.caption) for p in figures]
        for section, figures in shown.items()
    }
    script = _asset("sort.js")
    return _template().render(
        run=run,
        heading=heading(run, objective_name(run)),
        loss_heading=loss_heading(run),
        parts={part.key for part in run.parts},
        sentences=sentences(run),
        facts=facts(run),
        warning=warning(run),
        cautions=cautions(run),
        pictures=drawn,
        methods=methods_table(run),
        choice=choice_table(run),
        errors=errors_table(run),
        groups=groups_table(run),
        gaps=gaps_table(run),
        parameters=parameters_table(run),
        cost=cost_table(run),
        settings=settings_table(run),
        versions=versions_table(run),
        style=_asset("style.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _rows(run: Run) -> list[float] | None:
    """Training examples of each row of the policy; None where its rows are not the table's."""
    counts = run.counts.ravel() if len(run.policy) == run.counts.size else run.class_totals
    return counts.tolist() if len(counts) == len(run.policy) else None


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("autobalance", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"breakable": _breakable, "options": _options}
    return environment.get_template("template.html.j2")


def _breakable(text: str) -> Markup:
    """A name that may break after its dots and underscores, and nowhere else."""
    shown = str(escape(text))
    return Markup(shown.replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _options(text: str) -> Markup:
    """Prose whose command-line options do not break after their dashes."""
    shown = str(escape(text))
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', shown))


def _asset(name: str) -> Markup:
    """A file of this package, to stand in the page as it is."""
    return Markup(files("autobalance.report").joinpath(name).read_text(encoding="utf-8"))
