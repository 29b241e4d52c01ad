"""The documentation: complete, its links lead somewhere, its numbers say how they were made."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import autobalance
from autobalance.cli import main

ROOT = Path(__file__).parents[1]
DOCS, BENCH = ROOT / "docs", ROOT / "bench"
PAGES = sorted(
    path
    for kind in ("*.md", "*.rst")
    for path in DOCS.rglob(kind)
    if path.relative_to(DOCS).parts[0] not in ("_build", "_extensions")
)
MARKDOWN = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in PAGES if page.suffix == ".md"),
]
ENTRIES = [
    name
    for page in sorted((DOCS / "reference" / "api").glob("*.rst"))
    for block in re.findall(r"^\.\. entries::\n\n((?: {3}\S+\n)+)", page.read_text("utf-8"), re.M)
    for name in block.split()
]
COMMAND = re.compile(
    r"bench/\w+\.(?:py|yaml)|examples/\w+\.py|autobalance (?:compare|run|demo) |python -c|same command"
)


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def without_code(text: str) -> str:
    return re.sub(r"^(```+|~~~+).*?^\1\s*$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


def sections(text: str) -> list[str]:
    """Text between headings of any level, outside of code."""
    plain = re.sub(
        r"^```.*?^```\s*$", lambda m: m[0].replace("\n#", "\n "), text, flags=re.S | re.M
    )
    return re.split(r"^#+ ", plain, flags=re.MULTILINE)


def extension(name: str) -> ModuleType:
    """A module of docs/_extensions."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_extensions" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, on the code host and on the site."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).replace(" ", "-") for h in headings}


# Names ----------------------------------------------------------------------------------------


def test_every_public_name_has_an_entry() -> None:
    missing = {f"autobalance.{name}" for name in autobalance.__all__} - set(ENTRIES)
    assert not missing, f"give {sorted(missing)} an entry on a page of docs/reference/api"


def test_every_entry_is_there_and_stands_once() -> None:
    places = list(map(extension("entries").resolve, ENTRIES))
    assert len(set(places)) == len(places)


def test_an_entry_is_found_where_its_room_defines_it() -> None:
    resolve = extension("entries").resolve
    assert resolve("autobalance.search") == "autobalance.search"
    moved = resolve("autobalance.losses.elsewhere.ParametricCrossEntropy")
    assert re.fullmatch(r"autobalance\.losses\.\w+\.ParametricCrossEntropy", moved)
    for absent in ("autobalance.losses.absent", "autobalance.absent"):
        with pytest.raises(LookupError, match=absent):
            resolve(absent)


# Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", MARKDOWN, ids=names(MARKDOWN))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        if target.is_relative_to(BENCH) and not BENCH.exists():
            continue  # the core is also tested without the harness beside it
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_is_in_a_table_of_contents() -> None:
    found, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        found.add(page)
        text = page.read_text("utf-8")
        for block in re.findall(
            r"```\{toctree\}\n(.*?)```|^\.\. toctree::\n((?:(?: {3}.*)?\n)+)", text, re.S | re.M
        ):
            for line in filter(None, map(str.strip, "".join(block).splitlines())):
                if not line.startswith(":"):
                    name = re.sub(r".*<(.*)>", r"\1", line)
                    [child] = [p for p in PAGES if p.with_suffix("") == page.parent / name]
                    waiting += [] if child in found else [child]
    assert not set(PAGES) - found, "add them to a toctree"


# Numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", MARKDOWN, ids=names(MARKDOWN))
def test_every_figure_has_its_command_beside_it(page: Path) -> None:
    for section in sections(page.read_text("utf-8")):
        for before, image in re.findall(r"(.*?)!\[[^\]]*\]\(([^)]+)\)", section, flags=re.DOTALL):
            after = section.split(image, 1)[1][:400]
            assert COMMAND.search(before[-400:] + after), f"say what makes {image}"


@pytest.mark.parametrize("page", MARKDOWN, ids=names(MARKDOWN))
def test_every_measurement_has_its_command_or_leads_to_it(page: Path) -> None:
    for section in re.split(r"^## ", page.read_text("utf-8"), flags=re.MULTILINE):
        measured = re.search(r"\d (?:\+-|±) \d", section)
        source = COMMAND.search(section) or re.search(r"\]\(\S*(?:results/index|why)\.md#", section)
        assert not measured or source, (
            f"say what measures the numbers of: {section.splitlines()[0]}"
        )


# Code -----------------------------------------------------------------------------------------

BLOCK = re.compile(r"^```(?:python|\{code-cell\} ipython3)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", MARKDOWN, ids=names(MARKDOWN))
def test_code_is_python_and_imports_what_there_is(page: Path) -> None:
    for block in BLOCK.findall(page.read_text("utf-8")):
        code = re.sub(r"^[%!].*$", "", block, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autobalance"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_the_command_lines_page_holds_what_help_shows(capsys: pytest.CaptureFixture[str]) -> None:
    module = extension("command_line")
    page = module.page()
    for command in module.commands():
        start = page.index(f"{command}\n{'-' * len(command)}\n")
        shown = page[start:]
        with pytest.raises(SystemExit):
            main([command, "--help"])
        options = set(re.findall(r"^  (--[\w.-]+)", capsys.readouterr().out, flags=re.MULTILINE))
        left_out = {"--print_config", "--recipe", "--search"}
        spellings = {option.replace("_", "-") for option in re.findall(r"``(--[\w.-]+)``", shown)}
        assert {o.replace("_", "-") for o in options - left_out} <= spellings, command
    assert {"demo", "fit", "predict"} <= set(module.commands())


# The site -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """All of it, tutorials run; nothing in it is fetched from elsewhere when it is read."""
    out = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "AUTOBALANCE_NOTEBOOKS": "force"},
    )
    assert done.returncode == 0, done.stderr
    built = [page for page in PAGES if (out / page.relative_to(DOCS)).with_suffix(".html").exists()]
    assert built == PAGES
    for page in out.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r"<(?:script|img)[^>]+src=\"(?:https?:)?//", text), page
        assert not re.search(r"<link[^>]+stylesheet[^>]+href=\"(?:https?:)?//", text), page
    assert "balanced error" in (out / "tutorials" / "table.html").read_text("utf-8")
    assert "--recipe.epochs" in (out / "reference" / "cli.html").read_text("utf-8")
    assert "<math" in (out / "explanation" / "method.html").read_text("utf-8")


def test_tutorials_become_notebooks_of_the_same_cells(tmp_path: Path) -> None:
    """Each has the cells of its page, and the first one installs the wheel."""
    command = [sys.executable, str(DOCS / "make_notebooks.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    pages = [p for p in (DOCS / "tutorials").glob("*.md") if "mystnb" in p.read_text("utf-8")]
    assert {p.stem for p in tmp_path.glob("*.ipynb")} == {p.stem for p in pages} != set()
    for page in pages:
        cells = json.loads((tmp_path / f"{page.stem}.ipynb").read_text("utf-8"))["cells"]
        code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        assert f"autobalance-{autobalance.__version__}-py3-none-any.whl" in "".join(code[0])
        assert len(code) - 1 == page.read_text("utf-8").count("```{code-cell}")
        assert not any("](../" in "".join(cell["source"]) for cell in cells)


def test_a_site_leads_to_its_newest_version(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_site", DOCS / "make_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("0.2.0", "0.10.0", "0.9.1", "notes"):
        (tmp_path / name).mkdir()
    assert module.write_index(tmp_path) == ["0.10.0", "0.9.1", "0.2.0"]
    assert json.loads((tmp_path / "versions.json").read_text()) == ["0.10.0", "0.9.1", "0.2.0"]
    assert "url=0.10.0/index.html" in (tmp_path / "index.html").read_text()
