"""Run the tests with their coverage measured, and keep how many passed and how much of the code ran.

    python bench/record_tests.py

Both suites run as in `make test`, but take about twice as long. bench/results/tests.json has the numbers that
the README's badges show: tests passed in all, and the share of lines of `autobalance` that the core's
tests ran, in percent. Nothing is kept of a run with a failure.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
OPTIONS = ["-q", "-n", "2", "-m", "not slow and not gpu and not processes"]


def passed(folder: Path, extra: list[str], scratch: Path) -> int:
    """How many tests of a folder's suite passed; ends the program where one failed."""
    report = scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", *OPTIONS, f"--junitxml={report}", *extra]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise SystemExit(f"The tests of {folder} failed; nothing was kept.")
    [suite] = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {
        name: int(suite.get(name, "0")) for name in ("tests", "skipped", "failures", "errors")
    }
    return counts["tests"] - counts["skipped"] - counts["failures"] - counts["errors"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        measured = scratch / "coverage.json"
        os.environ["COVERAGE_FILE"] = str(scratch / "coverage")
        extra = ["--cov=autobalance", "--cov-report", f"json:{measured}"]
        number = passed(ROOT, extra, scratch) + passed(ROOT / "bench", [], scratch)
        share = json.loads(measured.read_text("utf-8"))["totals"]["percent_covered"]
    record = {
        "date": datetime.date.today().isoformat(),
        "passed": number,
        "coverage": round(share, 1),
    }
    path = ROOT / "bench" / "results" / "tests.json"
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(record)


if __name__ == "__main__":
    main()
