"""Commands that other distributions add, whether they are there, missing or broken."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint

import pytest
from jsonargparse import ArgumentParser, Namespace

from autobalance.cli import main, plugins
from autobalance.cli.plugins import Command

Install = Callable[..., None]


def build_parser(parser: type[ArgumentParser]) -> ArgumentParser:
    greet = parser(description="Greets.")
    greet.add_argument("--name", type=str, default="world", help="who is greeted")
    return greet


def run(options: Namespace, command: str) -> int:
    print(f"{command}: hello {options.name}")
    return 3


GREET = Command("greets", build_parser, run)
ANYWHERE = Command("greets", build_parser, run, all_processes=True)
NO_COMMAND = "text"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make the given commands, by name, those that distributions add; none by default."""

    def replace(**values: str) -> None:
        entries = [
            EntryPoint(name, value if ":" in value else f"{__name__}:{value}", plugins.GROUP)
            for name, value in values.items()
        ]
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries)
        for entry in entries:
            if entry.module == __name__:
                monkeypatch.setattr(EntryPoint, "load", lambda entry: load(entry.value))

    def load(value: str) -> object:
        module, name = value.split(":")
        if module != __name__:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return globals()[name]

    replace()
    return replace


def test_an_added_command_runs_and_is_listed(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(greet="GREET")
    assert main(["greet", "--name", "you"]) == 3
    assert capsys.readouterr().out == "autobalance greet --name you: hello you\n"
    assert main(["greet", "--nam", "you"]) == 2
    assert "Did you mean name?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "greets" in capsys.readouterr().out


def test_an_added_command_replaces_none_of_the_cores(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(explain="GREET")
    assert main(["explain", "gone"]) == 2
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["compare", "run"])
def test_without_the_benchmarks_it_is_said_how_to_install_them(
    install: Install, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "suite.yaml", "--out", "results"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"autobalance {name} belongs to the distribution autobalance-bench" in err
    assert "pip install" in err


@pytest.mark.parametrize(
    ("value", "reason"),
    [("no_such_module:COMMAND", "ModuleNotFoundError"), ("NO_COMMAND", "TypeError")],
)
def test_a_broken_command_breaks_no_other(
    install: Install, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install(broken=value, greet="GREET")
    assert main(["broken"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "autobalance broken cannot be loaded from" in err
    assert reason in err
    assert main(["greet"]) == 3
    assert main(["explain", "gone"]) == 2
    assert "broken" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "greets" in capsys.readouterr().out


def test_only_commands_for_all_processes_run_under_torchrun(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    install(greet="GREET", anywhere="ANYWHERE")
    assert main(["greet"]) == 2
    assert "torchrun" in capsys.readouterr().err
    assert main(["anywhere"]) == 3
