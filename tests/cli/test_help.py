"""What ``--help`` shows: commands and options by what one wants to do, with commands to copy."""

from __future__ import annotations

import re
import shlex

import pytest

from autobalance.cli import main
from autobalance.cli.parsers import command_parser

COMMANDS = ["demo", "fit", "adjust", "frontier", "predict", "evaluate", "explain", "report"]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert not ended.value.code
    return capsys.readouterr().out


def examples(text: str) -> list[list[str]]:
    lines = re.findall(r"^  autobalance (.*)$", text, flags=re.M)
    return [shlex.split(line) for line in lines]


def test_every_command_stands_once_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    for title in ("See it work:", "Your own data:", "A finished run:"):
        assert f"\n{title}\n" in text
    listed = re.findall(r"^  ([a-z]+) +\S", text, flags=re.M)
    assert [name for name in listed if name in COMMANDS] == COMMANDS
    assert examples(text)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_the_examples_are_commands_that_can_be_given(
    command: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = examples(shown(capsys, *([command] if command else [])))
    assert given
    for arguments in given:
        assert command_parser().parse_args(arguments).subcommand == (command or arguments[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_no_types_of_python(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, command)
    assert not re.search(r"Literal|\bnull\b|type:|\bstr\b|None\)", text)
    assert text.startswith(f"usage: autobalance {command}")
    assert len(text.split("\n\n")[0]) < 120  # not every option stands in the first lines


def test_options_are_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "fit")
    order = [
        "Your data:", "--target", "--id", "What you want:", "--objective", "--no-baselines",
        "Where it goes:", "--out RUN", "How it runs:", "--seed SEED", "(default: 0)",
        "How the network is trained:", "--recipe.lr", "How the loss is searched for",
    ]  # fmt: skip
    body = text.partition("Your data:")
    places = [(body[1] + body[2]).index(words) for words in order]
    assert places == sorted(places)
