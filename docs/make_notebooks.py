"""Write the tutorials as notebooks, for Jupyter or Colab.

    python docs/make_notebooks.py [FOLDER]

Those of the tutorials that run when the site is built become FOLDER/NAME.ipynb, by default under
docs/_build/notebooks. They need no GPU, and no file but the package's wheel, which the first cell installs.
Links to other pages stay as text, since a notebook stands alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig

from autobalance import __version__

HERE = Path(__file__).parent
INSTALL = f"""# `make wheel` writes the wheel. In Colab, upload it to the session's files first.
%pip install --quiet autobalance-{__version__}-py3-none-any.whl matplotlib"""
LOCAL_LINK = re.compile(r"\[([^\]]+)\]\((?![a-z]+:)[^)]*\)")


def is_notebook(page: Path) -> bool:
    """Whether the page has cells that run."""
    return "file_format: mystnb" in page.read_text("utf-8")


def notebook_of(page: Path) -> nbformat.NotebookNode:
    """A tutorial as a notebook whose first cell installs the package."""
    notebook = read_myst_markdown_notebook(page.read_text("utf-8"), MdParserConfig())
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LOCAL_LINK.sub(r"\1", cell.source)
        cell.metadata = nbformat.NotebookNode()
    notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTALL))
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    nbformat.validator.normalize(notebook)
    nbformat.validate(notebook)
    return notebook


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "_build" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted((HERE / "tutorials").glob("*.md")):
        if is_notebook(page):
            nbformat.write(notebook_of(page), folder / f"{page.stem}.ipynb")
            print(folder / f"{page.stem}.ipynb")


if __name__ == "__main__":
    main()
