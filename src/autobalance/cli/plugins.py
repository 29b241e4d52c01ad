"""Commands that other distributions add to `autobalance`, found through an entry-point group.

A distribution adds a command by naming a `Command` in its ``pyproject.toml``::

    [project.entry-points."autobalance.commands"]
    compare = "autobalance_bench.cli:COMPARE"
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
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


def load_commands() -> dict[str, Command]:
    """The commands that installed distributions add, by name."""
    return {entry.name: entry.load() for entry in entry_points(group=GROUP)}


def check_installed(name: str, commands: dict[str, Command]) -> None:
    """Refuse a command of autobalance-bench where that distribution is not installed.

    Raises
    ------
    InputError
        With the way to install it.
    """
    if name in OF_BENCH and name not in commands:
        raise InputError(
            f"autobalance {name} belongs to the distribution autobalance-bench, which is not "
            "installed. Install it from this repository: pip install ./bench"
        )
