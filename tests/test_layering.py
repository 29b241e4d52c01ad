"""Imports point only downward, wherever in a file they stand."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autobalance

ROOT = Path(autobalance.__file__).parent

# From top to bottom. A module may import from layers below its own and from its own package;
# modules in one layer know nothing of each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"export"},
    {"sklearn"},
    {"posthoc"},
    {"heads"},
    {"bilevel"},
    {"hypergrad"},
    {"calibration"},
    {"functional"},
    {"networks", "spaces"},
    {"losses"},
    {"augment"},
    {"report"},
    {"data"},
    {"objectives"},
    {"records"},
    {"_validation"},
]
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path: Path) -> str:
    """Module or package directly within autobalance that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(source: str) -> set[str]:
    """Rooms of autobalance that a file imports from; "" for the package itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they point to"
            # `from autobalance import spaces` imports a room as much as `import autobalance.spaces.spaces`
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        found |= {[*name.split("."), ""][1] for name in names if name.split(".")[0] == ROOT.name}
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_point_only_downward(path: Path) -> None:
    own = room(path)
    assert own in DEPTH, f"{own} has no layer: give it one in LAYERS"
    for other in imported(path.read_text(encoding="utf-8")) - {own, "__version__"}:
        assert other in DEPTH, f"{path.name} imports autobalance.{other}, which has no layer"
        assert DEPTH[other] > DEPTH[own], f"{own} must not import {other}, which lies above it"


def test_every_layer_exists() -> None:
    assert set(DEPTH) == {room(path) for path in FILES}


@pytest.mark.parametrize("folder", [ROOT, Path(__file__).parent], ids=["library", "tests"])
def test_nothing_here_imports_the_benchmarks(folder: Path) -> None:
    """The library and its tests run where autobalance-bench is not installed."""
    pattern = re.compile(r"^\s*(from|import) autobalance_bench\b", re.MULTILINE)
    files = sorted(folder.rglob("*.py"))
    assert len(files) > 20
    assert [p.name for p in files if pattern.search(p.read_text(encoding="utf-8"))] == []


LIGHT = ["autobalance", "autobalance.cli", "autobalance.report", "autobalance.records"]


def test_what_only_reads_loads_no_torch() -> None:
    """So that help and the summary of a comparison show at once."""
    code = f"import sys, {', '.join(LIGHT)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    from autobalance.spaces.spaces import x", {"spaces"}),
        ("import autobalance.data.batches as b, os", {"data"}),
        ("from autobalance import spaces, __version__", {"spaces", "__version__"}),
        ("import autobalance", {""}),
        ("if TYPE_CHECKING:\n    from autobalance.losses.modules import x", {"losses"}),
        ("import autobalances.other", set()),
    ],
)
def test_what_counts_as_an_import(source: str, expected: set[str]) -> None:
    assert imported(source) == expected
