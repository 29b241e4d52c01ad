"""The options of every command, and what is said where they are wrong. Imports no torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from autobalance import __version__
from autobalance._validation import InputError, shown
from autobalance.cli.plugins import Command
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


def complain(message: object, code: int) -> int:
    print(f"autobalance: {message}", file=sys.stderr)
    return code


class BadUse(SystemExit):
    """A mistake in the options. Its options are those of the (sub)command, with their types."""

    def __init__(self, message: str, options: dict[str, Any]) -> None:
        super().__init__(BAD_INPUT)
        self.message = message
        self.options = options


class CommandParser(ArgumentParser):
    """An argument parser that leaves mistakes to `main`, which reports them on one line."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today is another option's, or nobody's, in the next release.
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        actions = [a for a in parser._actions if a.option_strings]
        raise BadUse(message, {a.dest: getattr(a, "_typehint", a.type) for a in actions})


def explained(error: BadUse, arguments: list[str], commands: Iterable[str]) -> str:
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
        text = f"there is no option {unknown[1]}. {_meant(unknown[1], error.options)}"
    text = re.sub(r"^config: File does not exist: ", "there is no file ", text)
    option = unknown or re.match(r"([\w.]+): ", text)
    wrong = re.search(r"(?:Got|Given) value: (.*)$", text)
    if option and wrong and option[1] in error.options:
        text = _refused(option[1], error.options[option[1]], wrong[1]) or text
    given = option and any(a.split("=")[0] == f"--{option[1]}" for a in arguments)
    file = _config_file(arguments)
    in_file = file is not None and not given and (option or "parsing config" in text)
    return f"{file}: {text}" if in_file else text


def _meant(name: str, known: Iterable[str], otherwise: str = "Add --help for a list.") -> str:
    """What somebody may have wanted who wrote `name`: what it begins, or else what is near to it."""
    known = [*known]
    close = [k for k in known if name and k.startswith(name)] or get_close_matches(name, known, n=1)
    return f"Did you mean {_either(close[:3])}?" if close else otherwise


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _no_command(name: str | None, commands: list[str]) -> str:
    known = f"The commands are {', '.join(commands)}; add --help for what they do."
    if name is None:
        return f"which command? {known}"
    return f"there is no command {name}. {_meant(name, commands, known)}"


_EXPECTED = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def _refused(name: str, kind: Any, value: str) -> str | None:
    """That the option must be of its kind; None where words for that kind are not known."""
    kinds = list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]
    known = [k for k in kinds if k is not NoneType]
    if len(known) != 1:
        return None
    left_out = ", or be left out" if NoneType in kinds else ""
    if get_origin(known[0]) is Literal:
        choices = [*map(str, get_args(known[0]))]
        near = _meant(value, choices, "")
        said = f"{name} must be {_either(choices)}{left_out}; got {value!r}. {near}"
        return said.rstrip()
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


def training_options(options: Namespace) -> tuple[Recipe, SearchSettings]:
    """The recipe and the search's settings; a file may have put something else in their place."""
    for name in ("recipe", "search"):
        if not isinstance(options[name], (dict, Namespace)):
            raise InputError(f"{name} must map settings to values; got {shown(options[name])}.")
    return Recipe(**options.recipe), SearchSettings(**options.search)


def command_parser(added: Mapping[str, Command] = MappingProxyType({})) -> ArgumentParser:
    parser = CommandParser(
        prog="autobalance",
        description="Designs the training loss for imbalanced and group-sensitive data.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True)

    demo = CommandParser(description="Design a loss for long-tailed images in the package.")
    demo.add_argument(
        "--out", type=str, default="demo-run", help="folder for result.json, report.html"
    )
    demo.add_argument("--seed", type=int, default=0, help="for everything random")
    demo.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    commands.add_subcommand("demo", demo, help="see it work on real images, in about a minute")

    fit = CommandParser(description="Design a loss for a table and train a network with it.")
    fit.add_argument("table", type=str, help="CSV (also .gz, .xz) or Parquet file")
    fit.add_argument("--target", type=str, required=True, help="column with the labels")
    fit.add_argument(
        "--groups",
        type=str | None,
        default=None,
        help="column with the groups; not a feature then, and not needed to predict",
    )
    _add_missing_groups(fit)
    fit.add_argument(
        "--objective",
        type=str,
        default="balanced_error",
        help=f"what the loss is for: {', '.join(OBJECTIVES)}",
    )
    fit.add_argument(
        "--augment",
        type=Literal["none", "personalised", "shared"],
        default="none",
        help="learn an augmentation of the training data too: for each class, or one for all",
    )
    fit.add_argument(
        "--test",
        type=str | None,
        default=None,
        help="labelled table to watch the search on and to evaluate the network on; guides nothing",
    )
    fit.add_argument(
        "--log",
        type=Literal["csv", "tensorboard"] | None,
        default=None,
        help="write the numbers of search and retraining into logs/ of the RUN as it goes",
    )
    fit.add_argument("--out", type=str, required=True, help="RUN folder to write")
    fit.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    fit.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped in this folder"
    )
    _add_training(fit)
    commands.add_subcommand("fit", fit, help="design a loss for your table")

    sweep = CommandParser(
        description="Losses along the trade-off of an error and a gap between groups."
    )
    sweep.add_argument("table", type=str, help="CSV (also .gz, .xz) or Parquet file")
    sweep.add_argument("--target", type=str, required=True, help="column with the labels")
    sweep.add_argument(
        "--groups",
        type=str,
        required=True,
        help="column with the groups; not a feature then, and not needed to predict",
    )
    _add_missing_groups(sweep)
    sweep.add_argument(
        "--main",
        type=str,
        default="balanced_error",
        help=f"what is to stay small: {', '.join(OBJECTIVES)}",
    )
    sweep.add_argument(
        "--gap", type=str, default="deo", help=f"what it is traded for: {', '.join(GAP_NAMES)}"
    )
    sweep.add_argument(
        "--by",
        type=Literal["losses", "decisions"],
        default="losses",
        help="losses, designed for mixes of the two; or decisions from one network's p(class, group | "
        "x), which reach smaller gaps, for balanced_error or group_balanced_error and deo",
    )
    sweep.add_argument(
        "--mixes",
        type=str | None,
        default=None,
        help="for losses: weights of the gap, rising, at least 0 and below 1: by default 0,0.1,0.2 to 0.9",
    )
    sweep.add_argument(
        "--max_gap",
        "--max-gap",
        type=float | None,
        default=None,
        help="keep the network with the lowest error whose held-out gap is at most this (0.05 is 5 "
        "points), trained on all data: the folder is a RUN then",
    )
    sweep.add_argument(
        "--out", type=str, required=True, help="folder for frontier.json, .csv and .svg"
    )
    sweep.add_argument(
        "--overwrite", action="store_true", help="write into a folder that is not empty"
    )
    _add_training(sweep)
    commands.add_subcommand("frontier", sweep, help="trade an error for a gap between groups")

    predict = CommandParser(description="Predict with a fitted RUN.")
    predict.add_argument("run", type=str, help="RUN folder")
    predict.add_argument("table", type=str, help="CSV or Parquet file with the features")
    predict.add_argument("--out", type=str, required=True, help="CSV or Parquet file to write")
    predict.add_argument(
        "--prior",
        type=Literal["training", "balanced"] | None,
        default=None,
        help="calibrated probabilities, where classes are as frequent as in training, or all alike; "
        "without it the softmax of the raw logits. The prediction stays the same",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace an existing file")
    commands.add_subcommand("predict", predict, help="predict with a fitted RUN")

    explain = CommandParser(
        description="Say what a RUN found, whom it helps, and what to be careful about."
    )
    explain.add_argument("run", type=str, help="RUN folder")
    commands.add_subcommand("explain", explain, help="what a RUN found, in words")

    evaluate = CommandParser(description="Evaluate a fitted RUN on labelled data.")
    evaluate.add_argument("run", type=str, help="RUN folder")
    evaluate.add_argument("table", type=str, help="CSV or Parquet file with features and labels")
    evaluate.add_argument("--target", type=str, required=True, help="column with the labels")
    evaluate.add_argument("--groups", type=str | None, default=None, help="column with the groups")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of tables")
    commands.add_subcommand("evaluate", evaluate, help="error rates of a fitted RUN")

    report = CommandParser(
        description="Write the report of a RUN again, or one page with several side by side."
    )
    report.add_argument("runs", type=str, nargs="+", metavar="RUN", help="RUN folders")
    report.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="HTML file to write; by default report.html in the RUN, or of several runs.html here",
    )
    report.add_argument("--overwrite", action="store_true", help="replace an existing file")
    commands.add_subcommand("report", report, help="the report of one RUN, or of several")

    for name, command in added.items():
        commands.add_subcommand(name, command.build_parser(CommandParser), help=command.help)
    return parser


def _add_missing_groups(parser: CommandParser) -> None:
    parser.add_argument(
        "--missing_groups",
        "--missing-groups",
        type=Literal["refused", "unknown"],
        default="refused",
        help="rows without a group: refused, or trained on and left out of the objective",
    )


def _add_training(parser: CommandParser) -> None:
    """The options of commands that train on a table."""
    parser.add_argument("--seed", type=int, default=0, help="for everything random")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(SearchSettings, "search")
