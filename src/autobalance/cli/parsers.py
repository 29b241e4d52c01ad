"""The options of every command, grouped by what one wants to do. Imports no torch."""

from __future__ import annotations

from argparse import HelpFormatter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from jsonargparse import ArgumentParser

from autobalance import __version__
from autobalance.cli.options import GAP_NAMES, OBJECTIVES, CommandParser
from autobalance.cli.plugins import Command
from autobalance.records import Recipe, SearchSettings

_GROUPS = {
    "See it work": ("demo",),
    "Your own data": ("fit", "adjust", "frontier"),
    "A finished run": ("predict", "evaluate", "explain", "report"),
}
"""Commands by what one wants to do; those of other distributions follow."""

_EXAMPLES = """\
Examples:
  autobalance demo
  autobalance fit train.csv --target label --test test.csv --out run
  autobalance predict run new.csv --out predictions.csv

A RUN is a folder that fit, adjust or frontier writes. It holds the model, result.json and report.html.
autobalance COMMAND --help lists the options of a command."""

_TABLE = "CSV (also .gz, .bz2, .xz, .zip) or Parquet file"
_RUN = "folder that fit, adjust or frontier wrote"
_OVERWRITE = "write into a folder that is not empty"
_REPLACE = "replace an existing file"
_NAMES = ", ".join(OBJECTIVES)
_OBJECTIVE = (
    f"the error that is to become small: {_NAMES}. A bound on a gap between groups is written as "
    "'balanced_error where deo <= 0.05', a compromise as '0.7 * balanced_error + 0.3 * deo'"
)


class _MainParser(CommandParser):
    """The program's own parser, whose help lists the commands by what one wants to do."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Description, commands in groups, examples."""
        assert self._subcommands_action is not None
        helps = {a.dest: a.help or "" for a in self._subcommands_action._choices_actions}
        grouped = {name for names in _GROUPS.values() for name in names}
        others = tuple(name for name in helps if name not in grouped)
        lines = ["usage: autobalance COMMAND [options]", "", str(self.description), ""]
        for title, names in {**_GROUPS, "Comparisons of methods": others}.items():
            known = [name for name in names if name in helps]
            if known:
                lines += [f"{title}:", *(f"  {name:<10} {helps[name]}" for name in known), ""]
        lines += [
            "Options:",
            f"  {'--help':<10} show this help",
            f"  {'--version':<10} show the version",
        ]
        return "\n".join([*lines, "", _EXAMPLES, ""])


def command_parser(added: Mapping[str, Command] = MappingProxyType({})) -> ArgumentParser:
    """The parser of the whole command line.

    Parameters
    ----------
    added : mapping
        Commands of other distributions, by name.
    """
    parser = _MainParser(
        prog="autobalance",
        description="Train classifiers for data whose classes or groups are of very different sizes.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True)
    for name, build, text in (
        ("demo", _demo, "see it work on real images or tables, in two minutes"),
        ("fit", _fit, "train on your table, with a loss or decisions designed for it"),
        ("adjust", _adjust, "design decisions on the scores of a classifier that you have"),
        ("frontier", _frontier, "trade an error for a smaller gap between groups"),
        ("predict", _predict, "predict a table with a RUN"),
        ("evaluate", _evaluate, "measure a RUN's errors on a labelled table"),
        ("explain", _explain, "say in words what a RUN found"),
        ("report", _report, "write the report of a RUN again, or one page of several"),
    ):
        commands.add_subcommand(name, build(), help=text)
    for name, command in added.items():
        commands.add_subcommand(name, command.build_parser(CommandParser), help=command.help)
    return parser


def _demo() -> CommandParser:
    parser = _command(
        "demo [options]",
        "See what designing brings: five losses on long-tailed images in the package, or with --table five "
        "ways to decide with boosted trees on two small tables.",
        "demo",
        "demo --table",
    )
    _add_flag(parser, "--table", "tables and boosted trees in place of images and networks")
    _add_optional(
        parser,
        "--out",
        "folder for result.json and report.html, by default demo-run, or with --table demo-table",
        metavar="FOLDER",
    )
    _add(parser, "--seeds", "how many seeds to take the mean of", int, default=3)
    _add(parser, "--seed", "the first of the seeds", int, default=0)
    _add_flag(parser, "--overwrite", _OVERWRITE)
    return parser


def _fit() -> CommandParser:
    parser = _command(
        "fit TABLE --target COLUMN --out RUN [options]",
        "Train on a table. By default a loss is designed for it and a network trained with that; with "
        "--model another classifier is trained, and decisions on its probabilities are designed.",
        "fit train.csv --target label --test test.csv --out run",
        "fit train.csv --target label --id customer --model lightgbm --out run",
        "fit train.csv --target label --groups region --objective worst_group_error --out run",
    )
    data = parser.add_argument_group("Your data")
    _add_table(data, _TABLE)
    _add_test(data, "labelled table to evaluate the result on. It guides nothing")
    aim = parser.add_argument_group("What you want")
    _add(aim, "--objective", _OBJECTIVE, default="balanced_error")
    model = (
        "network designs a loss and trains with it. lightgbm, xgboost, catboost, random_forest, logistic, or "
        "a class of scikit-learn by its path (sklearn.ensemble.ExtraTreesClassifier), is trained as it is, "
        "and decisions are designed on its out-of-fold probabilities. auto takes network or lightgbm, "
        "whichever is better on held-out rows"
    )
    _add(aim, "--model", model, default="network")
    aim.add_argument(
        "--no_baselines",
        "--no-baselines",
        action="store_true",
        help="leave out two more trainings, plainly and with class weights, that the result is compared with",
    )
    way = parser.add_argument_group("How the network is found (--model network)")
    augment = "also learn an augmentation of the training data, for each class or one for all"
    _add(way, "--augment", augment, Literal["none", "personalised", "shared"], default="none")
    arms = (
        "first compare a few ways to train, such as a cosine classifier, on held-out rows, or train as the "
        "recipe says"
    )
    _add(way, "--arms", arms, Literal["default", "none"], default="default")
    again = "train a new network on all rows with the loss found, or train on the one that was searched with"
    _add(way, "--retrain", again, Literal["anew", "continue"], default="anew")
    log = "write the curves of search and retraining into the folder logs of the RUN"
    _add_optional(way, "--log", log, Literal["csv", "tensorboard"])
    files = _add_output(parser)
    _add_flag(files, "--resume", "continue a run that was stopped in this folder")
    _add_training(parser)
    return parser


def _adjust() -> CommandParser:
    parser = _command(
        "adjust TABLE --target COLUMN --scores 'p_*' --out RUN [options]",
        "Design decisions on scores that any classifier gave to rows that it was not trained on.",
        "adjust out_of_fold.csv --target label --scores 'p_*' --out run",
    )
    data = parser.add_argument_group("Your data")
    table = f"{_TABLE} with scores and labels, such as out-of-fold probabilities"
    _add(data, "table", table, metavar="TABLE")
    _add_target(data)
    scores = (
        "columns with the scores, as a pattern with one star for the class, 'p_*'. Quote it, or the shell "
        "takes it for files"
    )
    _add(data, "--scores", scores, required=True, metavar="PATTERN")
    kinds = "what the scores are. Decision values may be of any size; they are calibrated first"
    kind = Literal["probabilities", "log_probabilities", "decision_values"]
    _add(data, "--kind", kinds, kind, default="probabilities")
    groups = "column with the groups, for objectives over groups. Prediction does not need it"
    _add_optional(data, "--groups", groups, metavar="COLUMN")
    _add_test(data, "labelled table of scores to evaluate the decisions on")
    aim = parser.add_argument_group("What you want")
    objective = f"the error that is to become small: {_NAMES}"
    _add(aim, "--objective", objective, default="balanced_error")
    _add(aim, "--seed", "seed of everything random", int, default=0)
    _add_output(parser)
    return parser


def _frontier() -> CommandParser:
    parser = _command(
        "frontier TABLE --target COLUMN --groups COLUMN --out FOLDER [options]",
        "Show how much of an error a smaller gap between groups costs, and train at the point you pick.",
        "frontier train.csv --target label --groups region --by decisions --out trade",
        "frontier train.csv --target label --groups region --by decisions --out trade --max-gap 0.05",
        note="The second command picks from the sweep of the first, without training it again.",
    )
    data = parser.add_argument_group("Your data")
    _add_table(data, _TABLE, groups_required=True)
    aim = parser.add_argument_group("What you want")
    _add(aim, "--main", f"error to keep small: {_NAMES}", default="balanced_error")
    _add(aim, "--gap", f"gap to trade it for: {', '.join(GAP_NAMES)}", default="deo")
    by = (
        "losses designs a loss for each mix of error and gap. decisions trains one network for the "
        "probability of each class and group, and decides by it; that reaches smaller gaps, and is for "
        "balanced_error or group_balanced_error, and deo"
    )
    _add(aim, "--by", by, Literal["losses", "decisions"], default="losses")
    mixes = "for losses: the weights of the gap, rising, at least 0 and below 1; 0,0.1,0.2 to 0.9 if left out"
    _add_optional(aim, "--mixes", mixes)
    aim.add_argument(
        "--max_gap",
        "--max-gap",
        type=float | None,
        default=None,
        help="pick the lowest error among the points whose held-out gap is at most this (0.05 is 5 points), "
        "and write a RUN that predicts by it. A finished sweep of the same table and options in the folder "
        "is picked from as it is",
    )
    files = parser.add_argument_group("Where it goes")
    out = "folder for frontier.json, .csv and .svg, and for the RUN"
    _add(files, "--out", out, required=True, metavar="FOLDER")
    _add_flag(files, "--overwrite", f"{_OVERWRITE}, and sweep anew")
    _add_training(parser)
    return parser


def _predict() -> CommandParser:
    parser = _command(
        "predict RUN TABLE --out FILE [options]",
        "Predict the rows of a table. The file has the id of each row, its prediction, the rule that decided "
        "it where there are several, and the classes' probabilities.",
        "predict run new.csv --out predictions.csv",
        "predict run new.csv --id customer --prior training --out predictions.csv",
    )
    _add(parser, "run", _RUN, metavar="RUN")
    _add(parser, "table", f"{_TABLE} with the features, or the scores", metavar="TABLE")
    row_id = "column that names the rows, to be copied to the file; that of the fit if left out"
    _add_optional(parser, "--id", row_id, metavar="COLUMN")
    _add(parser, "--out", "CSV or Parquet file to write", required=True, metavar="FILE")
    prior = (
        "calibrate the probabilities for classes as frequent as in training, or equally frequent. Without it "
        "they are the softmax of the raw logits, or of adjusted scores. The predictions stay the same"
    )
    _add_optional(parser, "--prior", prior, Literal["training", "balanced"])
    _add_flag(parser, "--overwrite", _REPLACE)
    return parser


def _explain() -> CommandParser:
    text = "Say what a RUN found, whom it helps, and what to be careful about."
    parser = _command("explain RUN", text, "explain run")
    _add(parser, "run", _RUN, metavar="RUN")
    return parser


def _evaluate() -> CommandParser:
    parser = _command(
        "evaluate RUN TABLE --target COLUMN [options]",
        "Measure the errors of a RUN on labelled rows, and add them to its report.",
        "evaluate run test.csv --target label --groups region",
    )
    _add(parser, "run", _RUN, metavar="RUN")
    _add(parser, "table", f"{_TABLE} with features (or scores) and labels", metavar="TABLE")
    _add_target(parser)
    _add_optional(parser, "--groups", "column with the groups", metavar="COLUMN")
    _add_flag(parser, "--json", "print JSON in place of tables")
    return parser


def _report() -> CommandParser:
    parser = _command(
        "report RUN [RUN ...] [options]",
        "Write the report of a RUN again, or one page with several side by side.",
        "report run",
        "report run-1 run-2 --out both.html",
    )
    _add(parser, "runs", "folders that fit, adjust or frontier wrote", nargs="+", metavar="RUN")
    out = "HTML file to write; report.html in the RUN if left out, or runs.html here for several"
    _add_optional(parser, "--out", out, metavar="FILE")
    _add_flag(parser, "--overwrite", _REPLACE)
    return parser


# Parts of commands --------------------------------------------------------------------------------


def _command(usage: str, description: str, *examples: str, note: str = "") -> CommandParser:
    """A parser whose help ends with commands to copy."""
    title = "Example:" if len(examples) == 1 else "Examples:"
    lines = [title, *(f"  autobalance {example}" for example in examples)]
    epilog = "\n".join([*lines, *([note] if note else [])])
    return CommandParser(usage=f"autobalance {usage}", description=description, epilog=epilog)


def _add(parser: Any, name: str, text: str, kind: Any = str, **options: Any) -> None:
    """Add an option or an argument to a parser or a group of it."""
    parser.add_argument(name, type=kind, help=text, **options)


def _add_optional(parser: Any, name: str, text: str, kind: Any = str, **options: Any) -> None:
    parser.add_argument(name, type=kind | None, default=None, help=text, **options)


def _add_flag(parser: Any, name: str, text: str) -> None:
    parser.add_argument(name, action="store_true", help=text)


def _add_target(parser: Any) -> None:
    text = (
        "column with the labels; or several, 'a b c' or a pattern 'tag_*', each with a 0 or 1 for one label, "
        "after the table"
    )
    _add(parser, "--target", text, list[str] | str, required=True, metavar="COLUMN")


def _add_table(parser: Any, text: str, *, groups_required: bool = False) -> None:
    """The table that is trained on, and what its columns are."""
    _add(parser, "table", text, metavar="TABLE")
    if groups_required:
        _add(parser, "--target", "column with the labels", required=True, metavar="COLUMN")
    else:
        _add_target(parser)
    row_id = "column that names the rows. It is excluded from the features, and predict copies it"
    _add_optional(parser, "--id", row_id, metavar="COLUMN")
    groups = (
        "column with the groups. It is excluded from the features, so prediction does not need it"
    )
    if groups_required:
        _add(parser, "--groups", groups, required=True, metavar="COLUMN")
    else:
        groups += ". Without this option it is an ordinary feature"
        _add_optional(parser, "--groups", groups, metavar="COLUMN")
    parser.add_argument(
        "--missing_groups",
        "--missing-groups",
        type=Literal["refused", "unknown"],
        default="refused",
        help="refuse rows without a group, or train on them and leave them out of the objective",
    )


def _add_test(parser: Any, text: str) -> None:
    _add_optional(parser, "--test", text, metavar="TABLE")


def _add_output(parser: CommandParser) -> Any:
    """The group of options for the RUN folder."""
    files = parser.add_argument_group("Where it goes")
    _add(files, "--out", "RUN folder to write", required=True, metavar="RUN")
    _add_flag(files, "--overwrite", _OVERWRITE)
    return files


def _add_training(parser: CommandParser) -> None:
    """The options of commands that train on a table."""
    running = parser.add_argument_group("How it runs")
    _add(running, "--seed", "seed of everything random", int, default=0)
    _add(running, "--device", "auto, cpu, cuda, cuda:1 or mps", default="auto")
    running.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(SearchSettings, "search")
    titles = {
        "recipe": "How the network is trained",
        "search": "How the loss is searched for on held-out rows",
    }
    groups = parser.groups or {}
    for name, title in titles.items():
        groups[name].title = title
