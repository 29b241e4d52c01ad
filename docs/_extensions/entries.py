"""The directive ``entries``: a table of the names that it lists, then the docstring of each.

A name is written as it is imported, ``autobalance.search`` or ``autobalance.losses.LossParameters``.
"""

from __future__ import annotations

import functools
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

    That is the path as written, or else the module that defines its last part, in the same room or in
    another, so that a name that moves is found without an edit here.

    Raises
    ------
    LookupError
        If no module has it.
    """
    path, _, attribute = name.rpartition(".")
    try:
        value = getattr(importlib.import_module(path), attribute)
        if inspect.isclass(value) or inspect.isroutine(value):
            return name
    except (ModuleNotFoundError, AttributeError):
        pass
    # The text that describes a constant stands only in the module that defines it.
    package, *rooms = path.split(".")
    for prefix in (".".join([package, *rooms[:1], ""]), f"{package}."):
        for module in _modules(package):
            if f"{module.__name__}.".startswith(prefix) and _is_defined_in(module, attribute):
                return f"{module.__name__}.{attribute}"
    raise LookupError(f"docs/api names {name}, which no module of {package} defines")


@functools.cache
def _modules(package: str) -> list[ModuleType]:
    path = importlib.import_module(package).__path__
    names = [info.name for info in pkgutil.walk_packages(path, f"{package}.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


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
