"""`autobalance compare`, as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autobalance.cli import main
from commands import run
from tables import table

COMPARISON = """\
datasets:
  - {name: sites, path: data.csv, target: kind, groups: [site], network: linear}
  - {name: plain, path: data.csv, target: kind, drop: [site], network: linear}
methods: [cross_entropy, logit_adjustment, autobalance]
seeds: 2
objectives: [balanced_error, worst_class_error]
recipe: {epochs: 1, min_steps: 30}
search: {every: 10}
subsets:
  small: {methods: [cross_entropy], seeds: 1}
  broken: {methods: [cross_entropy, focal], seeds: 2}
  plain: {methods: [cross_entropy, logit_adjustment]}
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data.csv, compare.yaml and the results of it; no data folder is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AUTOBALANCE_DATA", raising=False)
        yield compared_in(tmp_path_factory.mktemp("compare"))


class Here:
    """`autobalance compare` in this process, which is quicker."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        self.capsys.readouterr()
        code = main(["compare", *arguments])
        return code, *self.capsys.readouterr()


@pytest.fixture
def here(
    compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    monkeypatch.chdir(compared)
    return Here(capsys)


def compared_in(folder: Path) -> Path:
    table().to_csv(folder / "data.csv", index=False)
    (folder / "compare.yaml").write_text(COMPARISON)
    done = run("compare", "compare.yaml", "--out", "results", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 16  # 2 datasets x 2 seeds x (1 + 1 + 2 objectives)
    assert re.fullmatch(
        r"1/16 sites, cross_entropy, seed 0: balanced error [\d.]+ %, [\d.]+ s", lines[0]
    )
    # What a cell was for, not always the first objective.
    assert re.match(
        r"4/16 sites, autobalance for worst_class_error, seed 0: worst class error", lines[3]
    )
    for text in ("Methods by average rank, balanced error", "worst class error (percent)", "plain"):
        assert text in done.stdout
    assert "Results: results/cells.jsonl\nTables: results/BENCHMARKS.md\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    return folder


def test_a_comparison_leaves_its_cells_and_tables(compared: Path) -> None:
    names = {p.name for p in (compared / "results").iterdir()}
    pictures = {"ranks-balanced_error.svg", "ranks-worst_class_error.svg"}
    assert names == {"cells.jsonl", "BENCHMARKS.md", "summary.json", *pictures}
    text = (compared / "results/BENCHMARKS.md").read_text()
    assert "    autobalance compare compare.yaml --out results\n" in text
    assert len((compared / "results/cells.jsonl").read_text().splitlines()) == 16


def test_the_same_command_runs_nothing_again(here: Here) -> None:
    before = Path("results/cells.jsonl").read_bytes()
    code, _, err = here("compare.yaml", "--out", "results")
    assert (code, err) == (0, "")
    assert Path("results/cells.jsonl").read_bytes() == before


def test_the_summary_only_reads(here: Here) -> None:
    files = {p: p.read_bytes() for p in Path("results").iterdir()}
    arguments = ["compare.yaml", "--out", "results", "--summary"]
    code, out, err = here(*arguments, "--json", "found.json")
    assert (code, err) == (0, "")
    assert {p: p.read_bytes() for p in Path("results").iterdir()} == files
    found = json.loads(Path("found.json").read_text())
    methods = {"cross_entropy", "logit_adjustment", "autobalance"}
    for summary in (found, found["objectives"]["worst_class_error"]):
        assert summary["average_rank"].keys() == methods
        assert summary["mean"].keys() == methods
        assert summary["cost"]["autobalance"] == 3.0  # Two arms of half a run race.
        assert summary["per_dataset"].keys() == {"sites", "plain"}
    assert found["metric"] == "balanced_error"
    assert here(*arguments) == (0, out, "")


def test_the_summary_loads_no_torch(compared: Path) -> None:
    code = (
        "import sys; from autobalance.cli import main\n"
        "code = main(['compare', 'compare.yaml', '--out', 'results', '--summary'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=compared, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_failed_cells_are_told_once_per_reason(here: Here) -> None:
    code, out, err = here("compare.yaml", "--out", "broken", "--subset", "broken")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith(
        "autobalance: 4 cells failed: focal on sites and plain, seeds 0, 1: "
        "There is no method 'focal'. Known: cross_entropy, "
    )
    assert err.startswith(
        "autobalance: focal will fail: there is no such method. Mend that first, or let the others "
        "run; the same command then runs what failed\n1/"
    )
    live = [line for line in err.splitlines() if ", focal, " in line]
    assert len(live) == 4
    assert all(len(line) < 200 for line in live)
    assert "There is no method" in Path("broken/BENCHMARKS.md").read_text()
    assert "Cross-entropy" in out


def test_methods_that_lack_a_library_are_told_of_before_anything_runs(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tuned.yaml").write_text(
        COMPARISON.replace(
            "methods: [cross_entropy, logit_adjustment, autobalance]",
            "methods: [cross_entropy, logit_adjustment_tuned, cdt_tuned]",
        )
    )
    monkeypatch.setitem(sys.modules, "optuna", None)
    command = ["tuned.yaml", "--out", "tuned"]
    code, out, err = here(*command)
    first, *live, last = err.splitlines()
    assert (code, len(live)) == (1, 20)
    assert first == (
        "autobalance: logit_adjustment_tuned and cdt_tuned will fail: Optuna is not installed "
        "(pip install optuna). Mend that first, or let the others run; the same "
        "command then runs what failed"
    )
    assert last == (
        "autobalance: 16 cells failed: logit_adjustment_tuned and cdt_tuned on sites and plain, "
        "seeds 0, 1: Tuned methods need Optuna. Install it: pip install optuna."
    )
    assert "Cross-entropy" in out
    # What has finished is not told of, and with the library there is nothing to tell.
    monkeypatch.delitem(sys.modules, "optuna")
    assert here(*command, "--subset", "small")[2] == ""


def test_where_all_fail_there_are_no_tables(here: Here) -> None:
    Path("lost.yaml").write_text(COMPARISON.replace("data.csv", "gone.csv"))
    code, out, err = here("lost.yaml", "--out", "gone", "--subset", "small")
    assert (code, out) == (1, "")
    assert re.search(
        r"1 cell failed: cross_entropy on sites, seed 0: sites needs .*gone.csv, which is not there\. "
        r"Name the data folder by --data DIR or the environment variable AUTOBALANCE_DATA; the "
        r"file's place in it is gone.csv\.",
        err,
    )
    assert {p.name for p in Path("gone").iterdir()} == {"cells.jsonl"}


def test_the_data_folder_is_an_option_or_in_the_environment(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "compare.yaml").write_text(COMPARISON)
    monkeypatch.chdir(tmp_path)
    command = ["compare", "compare.yaml", "--subset", "small", "--out"]
    assert main([*command, "none"]) == 1
    assert main([*command, "option", "--data", str(compared)]) == 0
    monkeypatch.setenv("AUTOBALANCE_DATA", str(compared))
    assert main([*command, "environment"]) == 0
    assert "2/2 plain, cross_entropy, seed 0: balanced error" in capsys.readouterr().err


def test_methods_run_again_on_demand(here: Here) -> None:
    command = ["compare.yaml", "--out", "again", "--subset", "plain"]
    assert here(*command)[0] == 0
    assert here(*command, "--again", "cross_entropy")[0] == 0
    lines = Path("again/cells.jsonl").read_text().splitlines()
    methods = [json.loads(line)["method"] for line in lines]
    assert len(methods) == 12
    assert methods[8:] == ["cross_entropy"] * 4


@pytest.mark.parametrize(
    "signal_", [pytest.param("SIGINT", marks=pytest.mark.processes), "SIGTERM"]
)
def test_a_comparison_that_is_stopped_goes_on(compared: Path, signal_: str) -> None:
    """What is finished stays, and the same command takes it from there."""
    code = (
        "import os, signal\n"
        "from autobalance import cli\nfrom autobalance_bench import terminal\n"
        "def update(self, done, total, record):\n"
        f"    if done == 3:\n        os.kill(os.getpid(), signal.{signal_})\n"
        "terminal.CellProgress.update = update\n"
        # a shell's background jobs ignore it, and what they start does too
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.entry()"
    )
    command = ["compare", "compare.yaml", "--out", f"stopped-{signal_}", "--subset", "plain"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=compared,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == {"SIGINT": 130, "SIGTERM": 143}[signal_]
    cells = f"stopped-{signal_}/cells.jsonl"
    assert done.stderr == (
        f"autobalance: 3 of 8 cells are kept in {cells}; the same command goes on from there.\n"
        "autobalance: Interrupted.\n"
    )
    kept = (compared / cells).read_text()
    assert len(kept.splitlines()) == 3
    again = run(*command, cwd=compared)
    assert again.returncode == 0, again.stderr
    assert again.stderr.startswith("4/8 ")
    assert (compared / cells).read_text().startswith(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare.yaml"], "out"),
        (["gone.yaml", "--out", "x"], "There is no file gone.yaml. Give a YAML file"),
        (
            ["compare.yaml", "--out", "x", "--subset", "smal"],
            "subset must be one of broken, plain, small",
        ),
        (["compare.yaml", "--out", "x", "--jobs", "0"], "jobs must be at least 1; got 0"),
        (["compare.yaml", "--out", "x", "--threads", "0"], "threads must be at least 1; got 0"),
        (["compare.yaml", "--out", "x", "--again", "vs"], "again must be one of .*; got 'vs'"),
        (["compare.yaml", "--out", "x", "--summary"], r"There are no results in x/cells.jsonl"),
        (["compare.yaml", "--out", "x", "--backend", "abacus"], "There is no backend 'abacus'"),
        (["bad.yaml", "--out", "x"], "bad.yaml: unknown key 'metods'"),
    ],
)
def test_a_comparison_refused(here: Here, arguments: list[str], message: str) -> None:
    Path("bad.yaml").write_text("metods: [vs]\n")
    code, _, shown = here(*arguments)
    assert code == 2
    assert re.fullmatch(f"autobalance: .*{message}.*\n", shown), shown
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "option", "meant"),
    [
        ("compare c.yaml --out r --job 2", "job", "jobs"),
        ("run c.yaml --out r --summ", "summ", "summary"),
    ],
)
def test_abbreviations_are_refused_with_the_whole_name(
    arguments: str, option: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    message = capsys.readouterr().err
    assert message == f"autobalance: there is no option {option}. Did you mean {meant}?\n"


def test_the_help_lists_both_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    listed = capsys.readouterr().out
    assert "compare" in listed
    assert "another name of compare" in listed
