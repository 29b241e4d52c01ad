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
from autobalance._validation import InputError, TrainingDiverged, shown
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


class CommandParser(ArgumentParser):
    """An argument parser that leaves mistakes to `main`, which reports them on one line."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today is another option's, or nobody's, in the next release.
        super().__init__(allow_abbrev=False, **options)

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


_TABLE = "CSV (also .gz, .bz2, .xz, .zip) or Parquet file"
_OVERWRITE_FOLDER = "write into a folder that is not empty"
_GROUPS = (
    "column with the groups. It is excluded from the features, so prediction does not need it. "
    "Without this option it is an ordinary feature"
)


def command_parser(added: Mapping[str, Command] = MappingProxyType({})) -> ArgumentParser:
    """The parser of the whole command line.

    Parameters
    ----------
    added : mapping
        Commands of other distributions, by name.
    """
    parser = CommandParser(
        prog="autobalance",
        description="Designs the training loss for imbalanced and group-sensitive data.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True)

    demo = CommandParser(description="Design a loss for long-tailed images in the package.")
    _add(demo, "--out", "folder for result.json and report.html", default="demo-run")
    _add(demo, "--seed", "seed of everything random", int, default=0)
    _add_flag(demo, "--overwrite", _OVERWRITE_FOLDER)
    commands.add_subcommand("demo", demo, help="see it work on real images, in about a minute")

    fit = CommandParser(description="Design a loss for a table and train a network with it.")
    _add_table(fit, _TABLE)
    model = (
        "network: design a loss and train with it. lightgbm, xgboost, catboost, random_forest, logistic, or "
        "a class of scikit-learn by its path (sklearn.ensemble.ExtraTreesClassifier): fit that, and design "
        "decisions on its out-of-fold probabilities. auto: network or lightgbm, whichever is better on "
        "held-out rows"
    )
    _add(fit, "--model", model, default="network")
    _add_optional(fit, "--groups", _GROUPS)
    _add_missing_groups(fit)
    objectives = (
        f"what the loss is designed for: {', '.join(OBJECTIVES)}; of several labels also macro_f1"
    )
    _add(fit, "--objective", objectives, default="balanced_error")
    augment = "also learn an augmentation of the training data, for each class or one for all"
    _add(fit, "--augment", augment, Literal["none", "personalised", "shared"], default="none")
    arms = (
        "race a few ways to train first, such as a cosine classifier, or train as the recipe says"
    )
    _add(fit, "--arms", arms, Literal["default", "none"], default="default")
    again = "train a new network on all rows with the loss found, or let the search's own train on with them"
    _add(fit, "--retrain", again, Literal["anew", "continue"], default="anew")
    test = "labelled table to watch during the search and to evaluate the network on; no choice depends on it"
    _add_optional(fit, "--test", test)
    log = "write the curves of search and retraining into the folder logs of the RUN"
    _add_optional(fit, "--log", log, Literal["csv", "tensorboard"])
    _add(fit, "--out", "RUN folder to write", required=True)
    _add_flag(fit, "--overwrite", _OVERWRITE_FOLDER)
    _add_flag(fit, "--resume", "continue a run that was stopped in this folder")
    _add_training(fit)
    commands.add_subcommand("fit", fit, help="design a loss for your table")

    adjust = CommandParser(
        description="Design decisions on scores that any classifier gave to examples it was not trained on."
    )
    _add(adjust, "table", f"{_TABLE} with scores and labels, such as out-of-fold probabilities")
    _add_target(adjust)
    scores = (
        "columns with the scores, as a pattern with one star for the class, 'p_*'. Quote it, or the shell "
        "takes it for files"
    )
    _add(adjust, "--scores", scores, required=True)
    kinds = "what the scores are. Decision values may be of any size; they are calibrated first"
    kind = Literal["probabilities", "log_probabilities", "decision_values"]
    _add(adjust, "--kind", kinds, kind, default="probabilities")
    objectives = f"what the decisions are designed for: {', '.join(OBJECTIVES)}"
    _add(adjust, "--objective", objectives, default="balanced_error")
    groups = "column with the groups, for objectives over groups. Prediction does not need it"
    _add_optional(adjust, "--groups", groups)
    _add_optional(adjust, "--test", "labelled table of scores to evaluate the decisions on")
    _add(adjust, "--seed", "seed of everything random", int, default=0)
    _add(adjust, "--out", "RUN folder to write", required=True)
    _add_flag(adjust, "--overwrite", _OVERWRITE_FOLDER)
    commands.add_subcommand("adjust", adjust, help="design decisions on scores from anywhere")

    sweep = CommandParser(
        description="Design losses along the trade-off of an error and a gap between groups."
    )
    _add(sweep, "table", _TABLE)
    _add(sweep, "--target", "column with the labels", required=True)
    _add(sweep, "--groups", _GROUPS.split(". Without")[0], required=True)
    _add_missing_groups(sweep)
    objectives = f"error to keep small: {', '.join(OBJECTIVES)}"
    _add(sweep, "--main", objectives, default="balanced_error")
    _add(sweep, "--gap", f"gap to trade it for: {', '.join(GAP_NAMES)}", default="deo")
    by = (
        "design a loss for each mix of error and gap, or decide by one network's p(class, group | "
        "x). Decisions reach smaller gaps; they are for balanced_error or group_balanced_error, and deo"
    )
    _add(sweep, "--by", by, Literal["losses", "decisions"], default="losses")
    mixes = "for losses: the weights of the gap, rising, at least 0 and below 1; by default 0,0.1,0.2 to 0.9"
    _add_optional(sweep, "--mixes", mixes)
    sweep.add_argument(
        "--max_gap",
        "--max-gap",
        type=float | None,
        default=None,
        help="also train the network with the lowest error among those whose held-out gap is at most "
        "this (0.05 is 5 points), on all data, and write it as a RUN",
    )
    _add(sweep, "--out", "folder for frontier.json, .csv and .svg", required=True)
    _add_flag(sweep, "--overwrite", _OVERWRITE_FOLDER)
    _add_training(sweep)
    commands.add_subcommand("frontier", sweep, help="trade an error for a gap between groups")

    predict = CommandParser(description="Predict with a RUN.")
    _add(predict, "run", "RUN folder")
    _add(predict, "table", f"{_TABLE} with the features, or the scores")
    _add(predict, "--out", "CSV or Parquet file to write", required=True)
    prior = (
        "calibrate the probabilities for classes as frequent as in training, or equally frequent. By "
        "default they are the softmax of the raw logits, or of adjusted scores. The predictions stay the same"
    )
    _add_optional(predict, "--prior", prior, Literal["training", "balanced"])
    _add_flag(predict, "--overwrite", "replace an existing file")
    commands.add_subcommand("predict", predict, help="predict with a fitted RUN")

    explain = CommandParser(
        description="Say what a RUN found, whom it helps, and what to be careful about."
    )
    _add(explain, "run", "RUN folder")
    commands.add_subcommand("explain", explain, help="what a RUN found, in words")

    evaluate = CommandParser(description="Evaluate a fitted RUN on labelled data.")
    _add(evaluate, "run", "RUN folder")
    _add_table(evaluate, f"{_TABLE} with features (or scores) and labels")
    _add_optional(evaluate, "--groups", "column with the groups")
    _add_flag(evaluate, "--json", "print JSON in place of tables")
    commands.add_subcommand("evaluate", evaluate, help="error rates of a fitted RUN")

    report = CommandParser(
        description="Write the report of a RUN again, or one page with several side by side."
    )
    _add(report, "runs", "RUN folders", nargs="+", metavar="RUN")
    out = "HTML file to write; by default report.html in the RUN, or runs.html here for several"
    _add_optional(report, "--out", out)
    _add_flag(report, "--overwrite", "replace an existing file")
    commands.add_subcommand("report", report, help="the report of one RUN, or of several")

    for name, command in added.items():
        commands.add_subcommand(name, command.build_parser(CommandParser), help=command.help)
    return parser


def _add(parser: CommandParser, name: str, text: str, kind: Any = str, **options: Any) -> None:
    parser.add_argument(name, type=kind, help=text, **options)


def _add_optional(parser: CommandParser, name: str, text: str, kind: Any = str) -> None:
    parser.add_argument(name, type=kind | None, default=None, help=text)


def _add_table(parser: CommandParser, text: str) -> None:
    _add(parser, "table", text)
    _add_target(parser)


def _add_target(parser: CommandParser) -> None:
    text = (
        "column with the labels; or several, 'a b c' or a pattern 'tag_*', each with a 0 or 1 for one label, "
        "after the table"
    )
    _add(parser, "--target", text, list[str] | str, required=True)


def _add_flag(parser: CommandParser, name: str, text: str) -> None:
    parser.add_argument(name, action="store_true", help=text)


def _add_missing_groups(parser: CommandParser) -> None:
    parser.add_argument(
        "--missing_groups",
        "--missing-groups",
        type=Literal["refused", "unknown"],
        default="refused",
        help="refuse rows without a group, or train on them and leave them out of the objective",
    )


def _add_training(parser: CommandParser) -> None:
    """The options of commands that train on a table."""
    _add(parser, "--seed", "seed of everything random", int, default=0)
    _add(parser, "--device", "auto, cpu, cuda, cuda:1 or mps", default="auto")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(SearchSettings, "search")
