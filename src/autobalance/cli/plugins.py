"""Commands that other distributions add to `autobalance`, found through an entry-point group.

A distribution adds a command by naming a `Command` in its ``pyproject.toml``::

    [project.entry-points."autobalance.commands"]
    compare = "autobalance_bench.cli:COMPARE"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace

from autobalance._validation import InputError

GROUP = "autobalance.commands"
OF_BENCH = ("compare", "run")
"""Commands of autobalance-bench, which the command line knows by name to say how to install it."""


class Command(NamedTuple):
    """A subcommand of `autobalance`.

    Attributes
    ----------
    help : str
        One line for the list of commands.
    build_parser : callable
        Takes the parser class of the command line and returns a parser with the command's options.
    run : callable
        Takes the parsed options and the command as it was typed, and returns the exit code.
    all_processes : bool
        Whether the processes that torchrun started run the command together. Other commands are
        refused there, because each process would write the same files.
    """

    help: str
    build_parser: Callable[[type[ArgumentParser]], ArgumentParser]
    run: Callable[[Namespace, str], int]
    all_processes: bool = False


def load_commands(name: str, own: Iterable[str]) -> dict[str, Command]:
    """The added commands that a command line beginning with `name` needs, by name.

    A call of one added command needs that one, a call of one of the core's (`own`) needs none, and any
    other (`--help`, a misspelt name) needs all. In that last case commands that do not load are left
    out, so that a broken distribution hides nobody else's commands.

    Raises
    ------
    InputError
        If `name` is an added command that does not load, or a command of autobalance-bench while
        that distribution is not installed.
    """
    own = {*own}
    if name in own:
        return {}
    entries = {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in own}
    if name in entries:
        return {name: _load(entries[name])}
    if name in OF_BENCH:
        raise InputError(
            f"autobalance {name} belongs to the distribution autobalance-bench, which is not "
            "installed. Install it from a clone of the repository: pip install ./bench"
        )
    commands = {}
    for added, entry in entries.items():
        with suppress(InputError):
            commands[added] = _load(entry)
    return commands


def _load(entry: EntryPoint) -> Command:
    try:
        command = entry.load()
        if not isinstance(command, Command):
            raise TypeError(f"{entry.value} is no autobalance.cli.Command")
    except Exception as error:  # importing a distribution can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(".")
        source = entry.dist.name if entry.dist else entry.value
        raise InputError(
            f"autobalance {entry.name} cannot be loaded from {source} ({reason}). Install that "
            "distribution anew, or remove it."
        ) from None
    return command
