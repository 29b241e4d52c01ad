"""Settings of the documentation site.

    sphinx-build -W --keep-going -b html docs docs/_build/html

needs no network: no inventories are fetched, formulas become MathML, and the tutorials train on
samples in the package. For a draft, AUTOBALANCE_NOTEBOOKS=off leaves the notebooks unrun.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
BENCH = HERE.parent / "bench" / "src"
sys.path[:0] = [str(SOURCE), str(BENCH), str(HERE / "_extensions")]
# The tutorials' kernels are processes of their own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(SOURCE), str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TTY_COMPATIBLE"] = "0"  # commands in a notebook: no progress bars
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, of optional widgets
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

from autobalance import __version__  # noqa: E402

project = "autobalance"
author = "the authors of autobalance"
project_copyright = "the authors of autobalance, MIT licence"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "command_line",
    "entries",
    "mathml",
]
exclude_patterns = ["_build", "_extensions"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"autobalance {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False

# Docstrings put a name into single backticks.
default_role = "py:obj"
add_module_names = False
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {
    "members": True,
    # scikit-learn makes these for metadata routing.
    "exclude-members": "set_fit_request, set_predict_request, set_predict_proba_request, "
    "set_decision_function_request, set_score_request",
}
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

nb_execution_mode = os.environ.get("AUTOBALANCE_NOTEBOOKS", "force")
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_merge_streams = True

# Pages of the comparison harness that the site shows too. Each has a file here that stands for it in
# the table of contents; its text is read from where it belongs.
PAGES_OF_THE_BENCH = {
    "results/experiments": "bench/docs/experiments.md",
    "results/benchmarks": "bench/docs/benchmarks.md",
    "results/datasets": "bench/docs/datasets.md",
    "results/suite": "bench/results/BENCHMARKS.md",
    "results/suite_objectives": "bench/results/objectives/BENCHMARKS.md",
    "results/suite_cosine": "bench/results/cosine/BENCHMARKS.md",
}
PAGES = {
    **{path.resolve(): path for path in HERE.rglob("*.md")},
    **{HERE.parent / path: HERE / f"{name}.md" for name, path in PAGES_OF_THE_BENCH.items()},
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def _read_page(_: Sphinx, name: str, source: list[str]) -> None:
    """Take the text from where it belongs, and let links lead to the site's pages.

    In the files links lead to other files, as the code host follows them.
    """
    here = HERE / f"{name}.md"
    if not here.exists():
        return
    origin = HERE.parent / PAGES_OF_THE_BENCH[name] if name in PAGES_OF_THE_BENCH else here
    text = source[0] if origin is here else origin.read_text("utf-8")

    def link(match: re.Match[str]) -> str:
        target = (origin.parent / match[1]).resolve()
        return os.path.relpath(PAGES.get(target, target), here.parent)

    source[0] = LINK.sub(link, text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read_page)
