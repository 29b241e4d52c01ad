"""The command line: from argv to calls of the library. Importing it loads no torch."""

from autobalance.cli.main import entry, main
from autobalance.cli.options import DONE, FAILED, complain
from autobalance.cli.plugins import Command
from autobalance.cli.terminal import FILE_WIDTH, format_percent, narrow_table, plain_text

__all__ = [
    "Command",
    "DONE",
    "FAILED",
    "FILE_WIDTH",
    "complain",
    "entry",
    "format_percent",
    "main",
    "narrow_table",
    "plain_text",
]
