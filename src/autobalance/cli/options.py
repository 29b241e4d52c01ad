"""What is said where options are wrong, and how help looks. Imports no torch."""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Iterable
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from autobalance._validation import InputError, TrainingDiverged, shown
from autobalance.records import Recipe, SearchSettings

DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
# `autobalance.objectives.NAMED`, whose import would load torch.
OBJECTIVES = (
    "balanced_error",
    "worst_class_error",
    "cvar_error",
    "quantile_error",
    "balanced_error_and_deviation",
    "group_balanced_error",
    "worst_group_error",
    "worst_class_and_group_error",
)


# `autobalance.objectives.GAPS`.
GAP_NAMES = (
    "deo",
    "equalized_odds_difference",
    "equal_opportunity_difference",
    "demographic_parity_difference",
)


def complain(message: object, code: int = DONE) -> int:
    """Print a message on one line of standard error; returns the exit code, 0 of a mere remark."""
    print(f"autobalance: {message}", file=sys.stderr)
    return code


def complain_of_stop(error: BaseException, state: str) -> int:
    """Say that a run diverged or was interrupted, and what remains of it; returns the exit code."""
    if isinstance(error, TrainingDiverged):
        return complain(f"{error} {state}", FAILED)
    return complain(f"Interrupted. {state}", INTERRUPTED)


class BadUse(SystemExit):
    """A mistake in the options. Its options are those of the (sub)command, with their types."""

    def __init__(self, message: str, options: dict[str, Any]) -> None:
        super().__init__(BAD_INPUT)
        self.message = message
        self.options = options


class CommandHelp(DefaultHelpFormatter):
    """Help that says what is required and what holds by default, without the names of Python's types."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        silent = action.default is None or action.default is False or action.default == SUPPRESS
        if silent or isinstance(action.default, (dict, Namespace)):
            return text
        return f"{text} (default: %(default)s)" if action.option_strings else text

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrapped, but for lines that are indented, such as commands to copy."""
        wrap = super()._fill_text
        lines = text.splitlines()
        return "\n".join(
            indent + line if line.startswith(" ") else wrap(line, width, indent) for line in lines
        )


class CommandParser(ArgumentParser):
    """An argument parser that leaves mistakes to `main`, which reports them on one line."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today is another option's, or nobody's, in the next release.
        super().__init__(allow_abbrev=False, formatter_class=CommandHelp, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `BadUse` in place of printing the usage."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        actions = [a for a in parser._actions if a.option_strings]
        raise BadUse(message, {a.dest: getattr(a, "_typehint", a.type) for a in actions})


def explain_mistake(error: BadUse, arguments: list[str], commands: Iterable[str]) -> str:
    """On one line: which file, which option, what is wrong, and what may have been meant."""
    text = " ".join(error.message.split())
    text = re.sub(rf"\b({'|'.join(commands)})\.(?=\w)", "", text)
    text = re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", text)
    command = re.search(r"argument subcommand: invalid choice: '(.*?)'", text)
    if command or '"subcommand"' in text:
        return _no_command(command[1] if command else None, list(commands))
    whole = re.match(r"(recipe|search): Unable to load config '(.*?)'", text)
    if whole:
        text = f"{whole[1]} is no single value; got {whole[2]!r}. Give its settings, as --{whole[1]}.lr 0.01."
    unknown = re.search(r"(?:accept option '|unrecognized arguments: --)([\w.-]+)", text)
    if unknown:
        text = f"there is no option {unknown[1]}. {_suggest(unknown[1], error.options)}"
    text = re.sub(r"^config: File does not exist: ", "there is no file ", text)
    option = unknown or re.match(r"([\w.]+): ", text)
    wrong = re.search(r"(?:Got|Given) value: (.*)$", text)
    if option and wrong and option[1] in error.options:
        text = _describe_kind(option[1], error.options[option[1]], wrong[1]) or text
    given = option and any(a.split("=")[0] == f"--{option[1]}" for a in arguments)
    file = _config_file(arguments)
    in_file = file is not None and not given and (option or "parsing config" in text)
    return f"{file}: {text}" if in_file else text


def _suggest(name: str, known: Iterable[str], otherwise: str = "Add --help for a list.") -> str:
    """What somebody may have wanted who wrote `name`: what it begins, or else what is near to it."""
    known = [*known]
    close = [k for k in known if name and k.startswith(name)] or get_close_matches(name, known, n=1)
    return f"Did you mean {_join_or(close[:3])}?" if close else otherwise


def _join_or(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _no_command(name: str | None, commands: list[str]) -> str:
    known = f"The commands are {', '.join(commands)}; add --help for what they do."
    if name is None:
        return f"which command? {known}"
    return f"there is no command {name}. {_suggest(name, commands, known)}"


_EXPECTED = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def _describe_kind(name: str, kind: Any, value: str) -> str | None:
    """That the option must be of its kind; None where words for that kind are not known."""
    kinds = list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]
    known = [k for k in kinds if k is not NoneType]
    if len(known) != 1:
        return None
    left_out = ", or be left out" if NoneType in kinds else ""
    if get_origin(known[0]) is Literal:
        choices = [*map(str, get_args(known[0]))]
        near = _suggest(value, choices, "")
        text = f"{name} must be {_join_or(choices)}{left_out}; got {value!r}. {near}"
        return text.rstrip()
    if known[0] not in _EXPECTED:
        return None
    return f"{name} must be {_EXPECTED[known[0]]}{left_out}; got {value!r}."


def _config_file(arguments: list[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument == "--config":
            return following
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def training_options(options: Namespace) -> tuple[Recipe | None, SearchSettings]:
    """The recipe, None where no setting of it was given, and the search's settings.

    A file may have put something else in their place.
    """
    for name in ("recipe", "search"):
        if not isinstance(options[name], (dict, Namespace)):
            raise InputError(f"{name} must map settings to values; got {shown(options[name])}.")
    recipe = Recipe(**options.recipe) if options.get("recipe_given", True) else None
    return recipe, SearchSettings(**options.search)
