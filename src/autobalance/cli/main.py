"""The command line: from argv to calls of the library; no logic of its own.

A command's module is imported when it runs, so that ``--help`` shows at once.
Exit codes: 0 done, 2 bad use or bad input, 130 Ctrl-C, 143 SIGTERM, 1 anything else.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pkgutil import resolve_name

from autobalance._validation import InputError
from autobalance.cli.options import (
    BAD_INPUT,
    FAILED,
    GAP_NAMES,
    INTERRUPTED,
    OBJECTIVES,
    TERMINATED,
    BadUse,
    complain,
    explain_mistake,
)
from autobalance.cli.parsers import command_parser
from autobalance.cli.plugins import Command, load_commands
from autobalance.cli.targets import join_targets

__all__ = ["GAP_NAMES", "OBJECTIVES", "entry", "main"]

# Each is imported when it is called: help and mistakes in the options need no torch.
_COMMANDS = {
    "demo": "autobalance.cli.demo:run_demo",
    "fit": "autobalance.cli.fit:run_fit",
    "adjust": "autobalance.cli.adjust:run_adjust",
    "frontier": "autobalance.cli.frontier:run_frontier",
    "predict": "autobalance.cli.predict:run_predict",
    "explain": "autobalance.cli.report:run_explain",
    "evaluate": "autobalance.cli.predict:run_evaluate",
    "report": "autobalance.cli.report:run_report",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    words = join_targets(arguments)
    # OpenMP's threads wait by spinning, which on a shared machine slows training many times over.
    # It is read when torch is imported, which only the commands do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    added: dict[str, Command] = {}
    try:
        added = load_commands(arguments[0] if arguments else "", _COMMANDS)
        parser = command_parser(added)
        parsed = parser.parse_args(words)
        command = parsed.subcommand
        if "recipe" in parsed[command]:  # its defaults count only beside a setting that was given
            given = parser.parse_args(words, defaults=False)[command]
            parsed[command]["recipe_given"] = "recipe" in given
        if not (command in added and added[command].all_processes):
            _check_alone()
        run = added[command].run if command in added else resolve_name(_COMMANDS[command])
        return run(parsed[command], shlex.join(["autobalance", *arguments]))
    except BadUse as error:
        return complain(explain_mistake(error, arguments, [*_COMMANDS, *added]), BAD_INPUT)
    except InputError as error:
        return complain(error, BAD_INPUT)
    except KeyboardInterrupt:
        return complain("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        return FAILED
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        return complain(
            f"{error.filename} cannot be read or written: {error.strerror}. Give another path, or the right "
            "to use it.",
            BAD_INPUT,
        )
    except Exception as error:
        return complain(f"{type(error).__name__}: {error}", FAILED)


def _check_alone() -> None:
    """Commands write files and talk to a terminal; under torchrun each process would."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return  # without importing torch
    from autobalance.functional import processes_started

    if processes_started() > 1:
        raise InputError(
            "Of the commands only compare (run) can be started by torchrun, here as "
            f"{processes_started()} processes. "
            "For your own data call search and retrain from a script, which torchrun starts as it is."
        )


def entry() -> None:
    """Console script: `main`, with SIGTERM handled as Ctrl-C is."""
    terminated = False

    def terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    code = main()
    for late in (signal.SIGINT, signal.SIGTERM):  # the work is done, only Python has yet to end
        signal.signal(late, signal.SIG_IGN)
    sys.exit(TERMINATED if terminated and code == INTERRUPTED else code)
