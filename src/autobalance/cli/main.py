"""The command line: from argv to calls of the library; no logic of its own.

Heavy imports happen inside the commands, so that ``--help`` shows at once.
Exit codes: 0 done, 2 bad use or bad input, 130 Ctrl-C, 143 SIGTERM, 1 anything else.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys

from autobalance._validation import InputError
from autobalance.cli.explain import run_explain
from autobalance.cli.fit import run_demo, run_fit
from autobalance.cli.frontier import run_frontier
from autobalance.cli.options import (
    BAD_INPUT,
    FAILED,
    GAP_NAMES,
    INTERRUPTED,
    OBJECTIVES,
    TERMINATED,
    BadUse,
    command_parser,
    complain,
    explained,
)
from autobalance.cli.plugins import Command, load_commands
from autobalance.cli.predict import run_evaluate, run_predict
from autobalance.cli.report import run_report

__all__ = ["GAP_NAMES", "OBJECTIVES", "entry", "main"]

_COMMANDS = {
    "demo": run_demo,
    "fit": run_fit,
    "frontier": run_frontier,
    "predict": run_predict,
    "explain": run_explain,
    "evaluate": run_evaluate,
    "report": run_report,
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # OpenMP's threads wait by spinning, which on a shared machine slows training many times over.
    # It is read when torch is imported, which only the commands do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    added: dict[str, Command] = {}
    try:
        added = load_commands(arguments[0] if arguments else "", _COMMANDS)
        parsed = command_parser(added).parse_args(arguments)
        command = parsed.subcommand
        if not (command in added and added[command].all_processes):
            _check_alone()
        run = added[command].run if command in added else _COMMANDS[command]
        return run(parsed[command], shlex.join(["autobalance", *arguments]))
    except BadUse as error:
        return complain(explained(error, arguments, [*_COMMANDS, *added]), BAD_INPUT)
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
