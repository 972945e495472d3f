"""A report in Chromium: no error on the console, nothing wider than a phone, readable in light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.run_folders import faces_bin, made_run
from partialkd.report.comparison import compare, read_runs
from partialkd.report.comparison_page import comparison_html
from partialkd.report.run_report import write_report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed (apt-get install chromium)"),
]
DARK, LIGHT = 0, 1
# Lays the page out in a frame as wide as a phone, measures it, and writes what it found as the frame's own title.
_MEASURE = """<body style="margin:0"><pre id="found"></pre>
<iframe id="page" src="{page}" style="width:375px;height:900px;border:0"></iframe><script>
page.onload = () => {{
  const inside = page.contentDocument, view = page.contentWindow;
  const colour = (one, what) => view.getComputedStyle(one)[what].match(/[0-9.]+/g).slice(0, 3).map(Number);
  const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = rgb => rgb.map(x => linear(x / 255))
    .reduce((sum, x, at) => sum + x * [0.2126, 0.7152, 0.0722][at], 0);
  const ratio = ([x, y]) => (x + 0.05) / (y + 0.05);
  const contrast = (a, b) => ratio([light(a), light(b)].sort((p, q) => q - p));
  const paper = colour(inside.body, "backgroundColor");
  const text = [...inside.querySelectorAll("h1, h2, p, a, summary, td, th, caption, figcaption")];
  const card = one => one.closest("figure") ? colour(one.closest("figure"), "backgroundColor") : paper;
  const strokes = [...inside.querySelectorAll("svg path")]
    .filter(one => view.getComputedStyle(one).stroke.startsWith("rgb"))
    .filter(one => parseFloat(view.getComputedStyle(one).strokeWidth) > 1.2);
  const letters = [...inside.querySelectorAll("svg text")].map(one => one.getBoundingClientRect().height);
  const focused = [...inside.querySelectorAll("a, summary, [tabindex='0']")].length;
  found.textContent = JSON.stringify({{
    width: inside.documentElement.scrollWidth, paper: light(paper), focused,
    text: Math.min(...text.map(one => contrast(colour(one, "color"), card(one)))),
    lines: Math.min(...strokes.map(one => contrast(colour(one, "stroke"), card(one)))),
    letters: Math.min(...letters.filter(x => x > 0)), drawings: inside.querySelectorAll("svg").length,
  }});
}};
</script>"""


def visit(folder: Path, page: Path, scheme: int) -> tuple[dict[str, float], str]:
    """-> what was measured, what the console said."""
    frame = folder / f"frame{scheme}.html"
    frame.write_text(_MEASURE.format(page=page.as_uri()))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}",
        "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout)
    return json.loads(found), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_a_phone_shows_it(scheme: int, tmp_path: Path, draws: None) -> None:
    faces_bin(tmp_path / "data" / "faces.bin")
    found, console = visit(tmp_path, write_report(made_run(tmp_path)), scheme)
    assert console == ""
    assert found["width"] <= 375
    assert found["paper"] < 0.05 if scheme == DARK else found["paper"] > 0.9
    assert found["text"] >= 4.5  # WCAG AA
    assert found["lines"] >= 3
    assert found["letters"] >= 9  # pixels of a label's box
    assert found["drawings"] == 12
    assert found["focused"] > 20  # links, tables that scroll, numbers to unfold: all by keyboard


def test_a_comparison_too(tmp_path: Path, draws: None) -> None:
    runs = [made_run(tmp_path, name, seed, steps=3) for seed, name in enumerate(("one", "two"))]
    page = tmp_path / "page.html"
    page.write_text(comparison_html(compare(read_runs(runs))), encoding="utf-8")
    found, console = visit(tmp_path, page, DARK)
    assert console == ""
    assert found["width"] <= 375
    assert found["text"] >= 4.5
