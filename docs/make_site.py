"""Build the documentation of this version beside those of others, for a site with a folder for each.

    python docs/make_site.py [SITE]

SITE, by default docs/_build/site, gets a folder named after the version, and at its top versions.json, which
lists the folders there, the newest first, and index.html, which leads to the newest. Folders of other
versions stay as they are, so that a site grows with each release.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

from autobalance import __version__

HERE = Path(__file__).parent
INDEX = """<!doctype html><meta charset="utf-8"><title>autobalance</title>
<meta http-equiv="refresh" content="0; url={newest}/index.html">
<p>The documentation of <a href="{newest}/index.html">autobalance {newest}</a>.
Other versions: {others}</p>
"""


def write_index(site: Path) -> list[str]:
    """Write versions.json and index.html for the folders that a site has; returns these, newest first."""
    names = [path.name for path in site.iterdir() if re.fullmatch(r"\d+(\.\d+)+\w*", path.name)]
    versions = sorted(names, key=Version, reverse=True)
    others = ", ".join(f'<a href="{name}/index.html">{name}</a>' for name in versions[1:])
    (site / "versions.json").write_text(json.dumps(versions) + "\n", "utf-8")
    page = INDEX.format(newest=versions[0], others=others or "none")
    (site / "index.html").write_text(page, "utf-8")
    return versions


def main() -> None:
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "_build" / "site"
    site.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    subprocess.run([*command, str(HERE), str(site / __version__)], check=True)
    print(f"{site}: {', '.join(write_index(site))}")


if __name__ == "__main__":
    main()
