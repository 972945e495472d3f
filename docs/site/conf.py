"""The documentation site: `make docs` makes pages of docs/*.md that open from disk and load nothing from elsewhere.

Equations become MathML, which browsers draw themselves: no script, no fonts from a network. Two pages are made here,
the configuration's reference (configuration.py) and the API (api.py), into docs/generated, which is not committed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import api  # noqa: E402
import configuration  # noqa: E402

import partialkd  # noqa: E402

project = "partialkd"
version = release = partialkd.__version__
copyright = "the partialkd authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["site", "**/README.md"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "partialkd"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
LINK_OUT = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)\)")


class Translator(HTML5Translator):
    """Writes equations as MathML."""

    def visit_math(self, node: nodes.Element, _math_env: str = "") -> None:
        self.body.append(convert(node.astext()))
        raise nodes.SkipNode

    def visit_math_block(self, node: nodes.Element, _math_env: str = "") -> None:
        self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
        raise nodes.SkipNode


def leave_the_site(_app: Sphinx, page: str, source: list[str]) -> None:
    """Links to what is in the repository and no page of the site become its path."""
    if page.startswith("generated/"):
        return
    source[0] = LINK_OUT.sub(lambda m: f"`{m[2]}`" if m[1].strip("`") in m[2] else f"{m[1]} (`{m[2]}`)", source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what the site adds to Sphinx, and write the pages that are made."""
    made = ROOT / "docs" / "generated"
    configuration.write(made)
    api.write(made)
    app.set_translator("html", Translator, override=True)
    app.connect("source-read", leave_the_site)
    app.connect("autodoc-process-docstring", api.as_text)
    return {"parallel_read_safe": True}
