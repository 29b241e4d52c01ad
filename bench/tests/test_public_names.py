"""Of the core, this distribution imports only public names, and it loads little by itself."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autobalance_bench

ROOT = Path(autobalance_bench.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def core_imports(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import from the core, wherever in the source it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported = [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [(alias.name, "") for alias in node.names]
        else:
            continue
        yield from ((m, name) for m, name in imported if m.split(".")[0] == "autobalance")


def is_public(module: str, name: str) -> bool:
    """Whether a name stands in `__all__` of `autobalance` or of one of its rooms."""
    if module.count(".") > 1 or "._" in module:
        return False
    return name in ("", "__version__") or name in importlib.import_module(module).__all__


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_only_public_names_of_the_core(path: Path) -> None:
    for module, name in core_imports(path.read_text(encoding="utf-8")):
        assert is_public(module, name), f"{path.name} imports {name} from {module}: not public"


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("from autobalance import search", True),
        ("def f():\n    from autobalance.records import Recipe", True),
        ("from autobalance.cli import main", True),
        ("from autobalance.cli.main import main", False),
        ("from autobalance.records import no_such_name", False),
        ("from autobalance._validation import InputError", False),
        ("import autobalance.data.splits", False),
    ],
)
def test_what_counts_as_public(source: str, public: bool) -> None:
    assert [is_public(*name) for name in core_imports(source)] == [public]


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("autobalance_bench, autobalance_bench.cli", ["torch", "torchvision", "scikit_posthocs"]),
        ("autobalance_bench.comparison.statistics", ["torch", "scikit_posthocs"]),
        pytest.param(
            "autobalance_bench.comparison.methods",
            ["torchvision", "datasets"],
            marks=pytest.mark.processes,
        ),
    ],
)
def test_an_import_loads_no_more_than_it_needs(code: str, heavy: list[str]) -> None:
    """So that the core's command line starts at once, and works without the extra `images`."""
    test = f"import sys, {code}; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", test], capture_output=True, text=True, check=False)
    assert not done.stderr.strip()
