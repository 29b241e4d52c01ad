"""The directive ``command-line``: every command with its options, read from the parser itself."""

from __future__ import annotations

import argparse
import typing
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

PROGRAM = "autobalance"
GROUPS = {
    "recipe": "How the network is trained (`Recipe <autobalance.Recipe>`)",
    "search": "How the loss is searched (`SearchSettings <autobalance.SearchSettings>`)",
}


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of all commands, by name."""
    from autobalance.cli.parsers import command_parser

    parser = command_parser()
    return dict(parser._subcommands_action.choices)


def page() -> str:
    """The reference as reStructuredText."""
    return "\n".join(line for name, parser in commands().items() for line in _command(name, parser))


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (name, "-" * len(name), "", str(parser.description), "")
    shown = [action for action in parser._actions if _is_shown(action)]
    required = [action for action in shown if action.required]
    places = [a.dest.upper() for a in required if not a.option_strings]
    options = [f"{a.option_strings[0]} {_value(a)}" for a in required if a.option_strings]
    usage = " ".join([PROGRAM, name, *places, *options, "[options]"])
    yield from (".. code-block:: console", "", f"   $ {usage}", "")
    for prefix, title in {"": "", **GROUPS}.items():
        rows = [a for a in shown if a.dest.rpartition(".")[0] == prefix]
        if rows:
            yield from _table(title, rows)


def _table(title: str, actions: list[argparse.Action]) -> Iterator[str]:
    if title:
        yield from (f"{title}:", "")
    yield from (".. list-table::", "   :header-rows: 1", "   :widths: 30 12 58", "")
    yield from ("   * - option", "     - default", "     - meaning")
    for action in actions:
        names = ", ".join(f"``{n}``" for n in _names(action))
        what = " ".join((action.help or "").split()).replace("*", r"\*").replace("_", r"\_")
        values = _choices(action)
        yield f"   * - {names}"
        yield f"     - {_default(action)}"
        yield f"     - {what}{f' (``{values}``)' if values else ''}"
    yield ""


def _is_shown(action: argparse.Action) -> bool:
    kind = type(action).__name__
    # `--recipe FILE` and `--search FILE` read a group of options; `--config FILE` reads all.
    return kind not in ("_HelpAction", "_ActionPrintConfig", "_ActionConfigLoad")


def _names(action: argparse.Action) -> list[str]:
    names = action.option_strings or [action.dest.upper()]
    # One spelling where an option has two that differ in their dashes.
    return names[-1:] if len({n.replace("_", "-") for n in names}) == 1 else list(names)


def _value(action: argparse.Action) -> str:
    return action.dest.rpartition(".")[2].upper()


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.nargs == 0:
        return "off"
    if action.default in (None, "==SUPPRESS==", []):
        return "none"
    value = str(action.default)
    return f"``{value.lower() if isinstance(action.default, bool) else value}``"


def _choices(action: Any) -> str:
    hint = getattr(action, "_typehint", None)
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            return " | ".join(map(str, typing.get_args(part)))
    return ""


class CommandLine(SphinxDirective):
    """Every command of the program."""

    def run(self) -> list[nodes.Node]:
        text = StringList(page().splitlines(), source="the parser of the command line")
        holder = nodes.section()
        holder.document = self.state.document
        self.state.nested_parse(text, 0, holder, match_titles=True)
        return holder.children


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
