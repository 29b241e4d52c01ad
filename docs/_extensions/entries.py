"""The directive ``entries``: a table of the names that it lists, then the docstring of each.

A name is written as it is imported, ``autobalance.search`` or ``autobalance.losses.LossParameters``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from sphinx.application import Sphinx


def resolve(name: str) -> str:
    """Where a name can be imported from.

    That is the path as written, or else the module within the same room that defines the last part,
    so that a name that moves between the modules of a room is found without an edit here.

    Raises
    ------
    LookupError
        If neither the path as written nor a module of the room has it.
    """
    path, _, attribute = name.rpartition(".")
    try:
        value = getattr(importlib.import_module(path), attribute)
        if inspect.isclass(value) or inspect.isroutine(value):
            return name
    except (ModuleNotFoundError, AttributeError):
        pass
    # The text that describes a constant stands only in the module that defines it.
    room = importlib.import_module(".".join(path.split(".")[:2]))
    for info in pkgutil.walk_packages(getattr(room, "__path__", []), f"{room.__name__}."):
        module = importlib.import_module(info.name)
        if _is_defined_in(module, attribute):
            return f"{info.name}.{attribute}"
    raise LookupError(f"docs/api names {name}, which {room.__name__} does not define")


def _is_defined_in(module: ModuleType, name: str) -> bool:
    value = getattr(module, name, None)
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__module__ == module.__name__
    return ("", name) in ModuleAnalyzer.for_module(module.__name__).find_attr_docs()


def entry(name: str) -> list[str]:
    """The autodoc directive for a name that can be imported."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    if not inspect.isclass(value):
        if inspect.isroutine(value):
            return [f".. autofunction:: {name}", ""]
        # The values of a table of names are objects, whose text says nothing.
        return [
            f".. autodata:: {name}",
            *(["   :no-value:"] if isinstance(value, dict) else []),
            "",
        ]
    if issubclass(value, BaseException):
        return [f".. autoexception:: {name}", ""]
    # The fields of a named tuple are described in its docstring.
    is_tuple = issubclass(value, tuple)
    return [f".. autoclass:: {name}", *(["   :no-members:"] if is_tuple else []), ""]


class Entries(SphinxDirective):
    """A summary of the names in the directive's body, and an entry for each."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            names = [resolve(line.strip()) for line in self.content if line.strip()]
        except LookupError as error:
            raise self.error(str(error)) from error
        text = StringList(list(_lines(names)), source="docs/api")
        holder = nodes.section()
        holder.document = self.state.document
        self.state.nested_parse(text, 0, holder)
        return holder.children


def _lines(names: list[str]) -> Iterator[str]:
    yield from (".. autosummary::", "   :nosignatures:", "")
    yield from (f"   {name}" for name in names)
    yield ""
    for name in names:
        yield from entry(name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("entries", Entries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
