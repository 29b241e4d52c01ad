"""The command line: from argv to calls of the library. Importing it loads no torch."""

from typing import TYPE_CHECKING, Any

from autobalance.cli.main import entry, main
from autobalance.cli.options import DONE, FAILED, complain
from autobalance.cli.plugins import Command
from autobalance.cli.terminal import FILE_WIDTH, format_percent, narrow_table, plain_text

if TYPE_CHECKING:
    from autobalance.cli.run_folder import save_search

__all__ = [
    "DONE",
    "FAILED",
    "FILE_WIDTH",
    "Command",
    "complain",
    "entry",
    "format_percent",
    "main",
    "narrow_table",
    "plain_text",
    "save_search",
]


def __getattr__(name: str) -> Any:
    if name != "save_search":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autobalance.cli.run_folder import save_search  # loads torch

    return save_search
