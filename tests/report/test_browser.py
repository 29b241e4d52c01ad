"""The pages in headless Chromium: they fit a phone, sort by keyboard, print, and need no JavaScript."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autobalance.report.html import render_report
from autobalance.report.multi_run_page import render_runs
from autobalance.report.samples import Sheet, pack_sheet
from report_records import measured_record

pytestmark = pytest.mark.slow
NAMES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
]  # fmt: skip
# What the page looks like from inside: appended, for its own policy lets no other script run.
PROBE = """
const all = (s) => [...document.querySelectorAll(s)];
const sorted = all("table.sortable")[0];
const before = [...sorted.tBodies[0].rows].map((r) => r.cells[0].textContent.trim());
const button = sorted.tHead.rows[0].cells[0].querySelector("button");
button.focus();
const focused = document.activeElement === button;
button.click();
const once = [...sorted.tBodies[0].rows].map((r) => r.cells[0].textContent.trim());
button.click();
const twice = [...sorted.tBodies[0].rows].map((r) => r.cells[0].textContent.trim());
const seen = {
  width: innerWidth,
  page: document.documentElement.scrollWidth,
  sideways: all(".scroll").filter((e) => e.scrollWidth > e.clientWidth + 1)
    .map((e) => e.getAttribute("aria-labelledby").replace("caption-", "")),
  ink: getComputedStyle(document.body).color,
  paper: getComputedStyle(document.body).backgroundColor,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  buttons: all("table.sortable thead th").map((th) => th.querySelectorAll("button").length),
  tabbable: all("table.sortable thead button").filter((b) => b.tabIndex === 0).length,
  headers: all("table.sortable thead th").length,
  regions: all(".scroll").map((e) => e.tabIndex),
  before, once, twice, focused,
  captions: all("caption").filter((e) => e.checkVisibility()).map((e) => {
    const text = document.createRange();
    text.selectNodeContents(e);
    const lines = new Set([...text.getClientRects()].map((r) => Math.round(r.top)));
    return {
      name: e.id, lines: lines.size, text: text.getBoundingClientRect().width,
      table: e.parentElement.getBoundingClientRect().width,
      cells: e.parentElement.tBodies[0].getBoundingClientRect().width,
      room: e.closest(".scroll").clientWidth,
    };
  }),
  sort: sorted.tHead.rows[0].cells[0].getAttribute("aria-sort"),
  small: all("svg").map((e) => e.getBoundingClientRect().width),
};
const out = parent.document.createElement("pre");
out.id = "seen";
out.textContent = JSON.stringify(seen);
parent.document.body.append(out);
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.fail("These tests need Chromium: install it, so that `chromium` is on the PATH.")


def run(chromium: str, tmp_path: Path, page: Path, *options: str) -> str:
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run",
            "--disable-background-networking", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return done.stdout


def pages() -> dict[str, str]:
    one, two = measured_record(10, seed=1), measured_record(10, seed=2, groups=2)
    for record in (one, two):
        record["class_names"] = NAMES
    two["seed"] = 7  # so that the page of both has the table of settings that differ
    one["search"]["augment"] = {
        "per_class": {
            str(y): {
                "rotation": {"probability": 0.5, "magnitude": y / 10},
                "flip": {"probability": 0.5},
            }
            for y in range(10)
        }
    }
    draw = np.random.default_rng(0)
    sheet = Sheet([(y, None) for y in range(10)], draw.uniform(size=(10, 8, 3, 16, 16)), 2)
    one["samples"] = json.loads(pack_sheet(sheet))
    return {"single": render_report(one), "runs": render_runs({"first": one, "second": two})}


@pytest.fixture(scope="module", params=["single", "runs"])
def page(request: pytest.FixtureRequest) -> str:
    return pages()[request.param]


def seen(chromium: str, tmp_path: Path, page: str, width: int, *options: str) -> dict[str, Any]:
    """What the probe sees of the page, in a copy without the policy against other scripts.

    The page is in a frame of that width, for Chromium's own windows are no narrower than 500 pixels.
    """
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    probed = probed.replace("</body>", f"<script>{PROBE}</script></body>")
    return framed(chromium, tmp_path, probed, width, "", "", *options)


def framed(
    chromium: str, tmp_path: Path, page: str, width: int, sandbox: str, after: str, *options: str
) -> dict[str, Any]:
    """What a script in the page, or `after` in that around it, leaves in the element "seen"."""
    file = tmp_path / "framed.html"
    file.write_text(
        f'<!doctype html><body><iframe id="frame" {sandbox} width="{width}" height="900" '
        f'style="border: 0" srcdoc="{escape(page)}"></iframe>'
        f'<script>const frame = document.getElementById("frame"); {after}</script></body>',
        "utf-8",
    )
    dom = run(chromium, tmp_path, file, "--dump-dom", "--window-size=1400,1000", *options)
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    return json.loads(unescape(found[1]))


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_page_is_wider_than_its_window(
    chromium: str, tmp_path: Path, page: str, width: int
) -> None:
    found = seen(chromium, tmp_path, page, width)
    assert found["width"] == width
    assert found["page"] <= width
    assert all(w <= width for w in found["small"])


def test_captions_are_as_wide_as_the_page_allows_and_not_as_their_tables(
    chromium: str, tmp_path: Path
) -> None:
    most = 42 * 16 + 1  # pixels of the longest line of text
    for width in (390, 1280):
        found = seen(chromium, tmp_path, pages()["runs"], width)["captions"]
        assert len(found) > 3
        for caption in found:
            assert caption["text"] <= min(caption["room"], most) + 1, caption
            if caption["lines"] > 1:  # only where the room is used up
                assert caption["text"] > 0.75 * min(caption["room"], most), caption
        narrow = [c for c in found if c["cells"] < 0.7 * min(c["room"], most)]
        assert any(c["text"] > 1.2 * c["cells"] for c in narrow) or width == 390


def test_errors_per_class_fit_a_phone(chromium: str, tmp_path: Path) -> None:
    found = seen(chromium, tmp_path, pages()["single"], 390)
    assert found["sideways"] == []


def test_tables_sort_by_buttons_that_the_keyboard_reaches(
    chromium: str, tmp_path: Path, page: str
) -> None:
    found = seen(chromium, tmp_path, page, 1280)
    assert found["headers"] > 5
    assert set(found["buttons"]) == {1}
    assert found["tabbable"] == found["headers"]
    assert set(found["regions"]) == {0}  # what scrolls can be scrolled by keys
    assert found["focused"]
    assert found["once"] == sorted(found["once"], key=str.casefold)
    assert found["twice"] == found["once"][::-1]
    assert found["sort"] == "descending"


def test_dark_mode_is_dark(chromium: str, tmp_path: Path, page: str) -> None:
    light = seen(chromium, tmp_path, page, 1280, "--blink-settings=preferredColorScheme=1")
    dark = seen(chromium, tmp_path, page, 1280, "--blink-settings=preferredColorScheme=0")
    assert (light["dark"], dark["dark"]) == (False, True)

    def level(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert level(light["paper"]) > 240 > 60 > level(light["ink"])
    assert level(dark["paper"]) < 60 < 200 < level(dark["ink"])


# Of the frame's page, from around it, where its own scripts do not run.
COUNTS = """
frame.onload = () => {
  const page = frame.contentDocument, all = (s) => [...page.querySelectorAll(s)];
  for (const details of all("details")) details.querySelector("summary").click();
  const high = (e) => e.getBoundingClientRect().height;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify({
    buttons: all("button").length, cells: all("td").length, pictures: all("svg").length,
    tables: all("table").length, high: page.documentElement.scrollHeight,
    drawn: all("svg").map(high), images: all("svg image").map(high),
    closed: all("details:not([open])").length,
    sections: all("section").map((e) => [page.getElementById(e.getAttribute("aria-labelledby"))
      .innerText, high(e), e.innerText.length]),
    rows: all("table").map((e) => [...e.tBodies[0].rows].filter((r) => high(r) > 5).length),
    captions: all("caption").map((e) => e.innerText),
    text: page.body.innerText.slice(0, 100000),
  });
  document.body.append(out);
};
"""


def test_without_javascript_the_page_is_whole(chromium: str, tmp_path: Path, page: str) -> None:
    found = framed(chromium, tmp_path, page, 1280, 'sandbox="allow-same-origin"', COUNTS)
    assert found["buttons"] == 0
    assert found["cells"] == page.count("<td") > 50
    assert found["pictures"] == page.count("<svg") >= 5
    assert found["tables"] == page.count("<table")
    assert found["high"] > 2000
    assert min(found["drawn"]) > 50
    assert "T-shirt/top" in found["text"]
    # Details open by themselves; every section has its heading and something below it, and every
    # table all of its rows.
    assert found["closed"] == 0
    bodies = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert found["rows"] == [body.count("<tr>") for body in bodies]
    assert all(found["captions"])
    headings = re.findall(r'class="part" id="[^"]*">(.*?)</h', page)
    assert [text for text, *_ in found["sections"]] == [unescape(h) for h in headings]
    assert all(high > 60 and length > len(text) for text, high, length in found["sections"])
    assert len(found["images"]) == page.count("<image") == (1 if "h-augmentation" in page else 0)
    assert min(found["images"], default=100) > 50
    file = tmp_path / "page.html"
    file.write_text(page, "utf-8")
    with_script = run(chromium, tmp_path, file, "--dump-dom")
    assert with_script.count("<button") > 5  # the policy lets the page's own script run


def test_without_javascript_the_page_looks_as_with_it(
    chromium: str, tmp_path: Path, page: str
) -> None:
    """Headings of sortable tables are buttons with it, and nothing else differs."""
    from PIL import Image

    file = tmp_path / "page.html"
    shots = []
    for name, text in (
        ("with", page),
        ("without", re.sub(r"<script>.*?</script>", "", page, flags=re.S)),
    ):
        file.write_text(text, "utf-8")
        out = tmp_path / f"{name}.png"
        run(chromium, tmp_path, file, f"--screenshot={out}", "--window-size=1280,5000")
        with Image.open(out) as image:
            shots.append(np.asarray(image.convert("RGB"), dtype=float))
    assert shots[0].shape == (5000, 1280, 3)
    assert np.ptp(shots[1], axis=(1, 2)).astype(bool).mean() > 0.5  # most lines have ink
    colours = len(np.unique(shots[1].reshape(-1, 3), axis=0))
    # The policy lets the pictures' pixels be drawn; beside others they are in a closed part.
    assert colours > (50 if "runs side by side" in page else 5000)
    assert (np.abs(shots[0] - shots[1]).max(axis=2) > 20).mean() < 1e-3


def test_it_prints(chromium: str, tmp_path: Path, page: str) -> None:
    file, out = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text(page, "utf-8")
    run(chromium, tmp_path, file, f"--print-to-pdf={out}", "--no-pdf-header-footer")
    content = out.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 3


def test_a_screenshot_is_not_blank(chromium: str, tmp_path: Path, page: str) -> None:
    from PIL import Image

    file, out = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(page, "utf-8")
    run(chromium, tmp_path, file, f"--screenshot={out}", "--window-size=390,1200")
    with Image.open(out) as image:
        assert image.size == (390, 1200)
        colours = image.convert("RGB").getcolors(1_000_000)
    assert colours is not None
    assert len(colours) > 50
