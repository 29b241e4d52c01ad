"""A run's record as one self-contained HTML file. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from autobalance.records import write_atomically
from autobalance.report import tables
from autobalance.report.augmentation import augmentation_pictures
from autobalance.report.cautions import cautions, warning
from autobalance.report.figures import pictures
from autobalance.report.frontier import drawable, frontier_picture
from autobalance.report.label_run import LabelRun
from autobalance.report.labels import view_labels
from autobalance.report.record import read_run
from autobalance.report.run import Run
from autobalance.report.templates import environment, render_page
from autobalance.report.text import describe_rules, facts, heading, loss_heading, sentences
from autobalance.report.verdicts import bound_sentences, doubts


def write_report(record: dict[str, Any], path: Path) -> None:
    """Write a run's report.

    Parameters
    ----------
    record : dict
        A run's result.json: "kind", "class_counts", "class_names", "search", "methods" and so on.
        What is missing is left out of the report.
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
    of_labels = isinstance(run, LabelRun)
    content = view_labels(run) if of_labels else view(run)
    title = content["heading"]
    template = "labels.html.j2" if of_labels else "run.html.j2"
    return render_page(template, title[:1].lower() + title[1:], v=content)


def view(run: Run) -> dict[str, Any]:
    """All that the sections of one run show."""
    content = {
        "run": run,
        "heading": heading(run),
        "loss_heading": loss_heading(run),
        "parts": {part.key for part in run.parts},
        "sentences": [*bound_sentences(run), *sentences(run)],
        "facts": facts(run),
        "rules_sentence": describe_rules(run.rules["count"], run.rules["shares"])
        if run.rules
        else "",
        "warning": warning(run),
        "cautions": [*cautions(run), *doubts(run)],
        "errors": tables.errors_tables(run),
        "pictures": pictures(run)
        | {
            "augmentation": augmentation_pictures(run),
            "frontier": [frontier_picture(run)] if drawable(run.frontier.get("points", [])) else [],
        },
    }
    builders = (
        tables.methods_table,
        tables.baselines_table,
        tables.race_table,
        tables.choice_table,
        tables.adjustment_table,
        tables.rules_table,
        tables.groups_table,
        tables.groups_change_table,
        tables.gaps_table,
        tables.frontier_table,
        tables.calibration_table,
        tables.confusion_table,
        tables.parameters_table,
        tables.cost_table,
        tables.settings_table,
        tables.versions_table,
    )
    return content | {build.__name__.removesuffix("_table"): build(run) for build in builders}


def render_sections(content: dict[str, Any], level: int) -> Markup:
    """The sections of one run's `view` as HTML, under headings of this level."""
    macros: Any = environment().get_template("sections.html.j2").module
    return macros.sections(content, level)
