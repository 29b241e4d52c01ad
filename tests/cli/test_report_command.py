"""`autobalance report`, and what fit and evaluate keep for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autobalance.cli import main
from helpers import blobs

FIT = [
    "fit", "data.csv", "--target", "kind", "--device", "cpu", "--recipe.epochs", "1",
    "--recipe.min_steps", "40", "--overwrite", "--out",
]  # fmt: skip


def write(path: Path, seed: int, counts: tuple[int, ...] = (60, 30, 12)) -> None:
    data = blobs(counts, seed=seed)
    lines = [
        f"{x:.4f},{y:.4f},{'abc'[t]}"
        for (x, y), t in zip(data.inputs.tolist(), data.target.tolist(), strict=True)
    ]
    path.write_text("x,y,kind\n" + "\n".join(lines))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with test data, and one without."""
    folder = tmp_path_factory.mktemp("runs")
    write(folder / "data.csv", 0)
    write(folder / "test.csv", 1, (20, 20, 20))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*FIT, "tested", "--test", "test.csv"]) == 0
        assert main([*FIT, "plain", "--seed", "1"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def test_fit_with_test_data_watches_and_evaluates(here: Path) -> None:
    record = json.loads(Path("tested/result.json").read_text())
    assert record["evaluation_data"] == "60 examples of test.csv"
    method = record["methods"]["autobalance"]
    assert sum(method["class_n"]) == 60
    assert {"confused", "calibration", "balanced_error"} <= method.keys()
    assert all(0 <= e["test_objective"] <= 1 for e in record["search"]["history"])
    plain = json.loads(Path("plain/result.json").read_text())
    assert plain["methods"] == {}
    page = Path("tested/report.html").read_text(encoding="utf-8")
    for said in ("Calibration", "Confusion between classes", "validation and test data"):
        assert said in page


def test_the_report_of_one_run_is_written_again_into_its_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path("tested/report.html")
    before = page.read_bytes()
    page.write_text("lost")
    assert main(["report", "tested"]) == 0
    assert page.read_bytes() == before
    assert capsys.readouterr().out == f"Report: {page}\n"
    assert main(["report", "tested", "--out", "copy.html"]) == 0
    assert Path("copy.html").read_bytes() == before
    assert main(["report", "tested", "--out", "copy.html"]) == 2
    assert "copy.html exists. Add --overwrite" in capsys.readouterr().err
    assert main(["report", "tested", "--out", "copy.html", "--overwrite"]) == 0


@pytest.mark.usefixtures("empty_pictures")
def test_evaluate_keeps_what_it_measured_for_the_report(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Path("plain/result.json").read_bytes()
    assert main(["evaluate", "plain", "test.csv", "--target", "kind", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert "confused" not in found
    kept = json.loads(Path("plain/evaluation.json").read_text())
    assert kept["data"] == "60 examples of test.csv"
    assert kept["method"]["class_errors"] == found["class_errors"]
    assert Path("plain/result.json").read_bytes() == result
    assert "60 examples of test.csv" in Path("plain/report.html").read_text(encoding="utf-8")
    # Another network in the folder: what was measured of the old one goes.
    assert main([*FIT, "plain", "--seed", "1"]) == 0
    assert not Path("plain/evaluation.json").exists()


@pytest.mark.usefixtures("empty_pictures")
def test_evaluate_works_where_nothing_can_be_kept(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("autobalance.report.folders.write_atomically", full)
    assert main(["evaluate", "tested", "test.csv", "--target", "kind", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 60
    assert "the report of tested stays without this evaluation" in err
    assert "No space left on device" in err


@pytest.mark.usefixtures("empty_pictures")
def test_several_runs_on_one_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "tested", "plain", "--out", "both.html"]) == 0
    assert capsys.readouterr().out == "Report: both.html\n"
    page = Path("both.html").read_text(encoding="utf-8")
    assert "2 runs side by side" in page
    assert "tested and plain" in page


@pytest.mark.usefixtures("empty_pictures")
def test_the_page_of_several_says_which_options_differ(here: Path) -> None:
    assert main(["report", "tested", "plain", "--out", "options.html"]) == 0
    page = Path("options.html").read_text(encoding="utf-8")
    differing = page.partition('id="caption-differing"')[2].partition("</table>")[0]
    cells = re.findall(r"<bdi>(.*?)</bdi>|<td[^>]*>(.*?)</td>", differing)
    assert [a or b for a, b in cells] == ["test", "test.csv", "none", "seed", "0", "1"]


@pytest.mark.usefixtures("empty_pictures")
def test_runs_of_the_same_name_go_by_their_paths(here: Path) -> None:
    other = Path("other/plain")
    other.mkdir(parents=True)
    (other / "result.json").write_bytes(Path("plain/result.json").read_bytes())
    assert main(["report", "plain", "other/plain"]) == 0
    page = Path("runs.html").read_text(encoding="utf-8")
    Path("runs.html").unlink()
    assert "plain and other/plain" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no folder nowhere"),
        (["data.csv"], "There is no folder data.csv"),
        (["tested", "empty"], "empty is not a RUN folder: it has no result.json"),
        (["tested", "tested"], "The run tested is given twice"),
        (["tested", "--out", "empty"], "empty is a folder"),
    ],
)
def test_bad_runs_are_one_clear_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("empty").mkdir(exist_ok=True)
    assert main(["report", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"autobalance: {message}")
    assert err.count("\n") == 1


def test_test_tables_that_do_not_fit_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("narrow.csv").write_text("x,kind\n1,a\n2,b\n")
    assert main([*FIT, "none", "--test", "narrow.csv"]) == 2
    assert "narrow.csv lacks columns of data.csv: y." in capsys.readouterr().err
    assert not Path("none").exists()


def test_the_report_loads_no_torch(here: Path) -> None:
    code = (
        "import sys; from autobalance.cli import main; main(['report', 'tested']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=here, check=False).returncode == 0
