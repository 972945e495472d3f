"""A page of HTML in one file: no script, nothing from outside, light and dark, for phones and screen readers.

Every text that comes from elsewhere goes through `escaped`. A figure stands with its words (`alt`) and the table of its
numbers. The page's own policy (a meta element) forbids it to load anything.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.images.tensors import to_pixels
from partialkd.errors import DataError, printable

THUMB = 96  # pixels per side of a photograph
Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """Plain texts; they are escaped where the table is written. The first column names the row."""

    caption: str
    head: Row
    rows: Sequence[Row]


@dataclass(frozen=True)
class Figure:
    """A drawing, what it shows in words, and its numbers. svg: trusted; "" where nothing can draw."""

    title: str
    svg: str
    alt: str
    table: Table


def escaped(text: str) -> str:
    """Text as HTML, with characters that are not visible made so."""
    return html.escape(printable(text))


def table_html(table: Table) -> str:
    """A table that scrolls by itself, by keyboard too."""
    head = "".join(f'<th scope="col">{escaped(text)}</th>' for text in table.head)
    rows = "".join(_row(row) for row in table.rows)
    caption = escaped(table.caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(row: Row) -> str:
    first, *rest = row
    return f'<tr><th scope="row">{escaped(first)}</th>{"".join(f"<td>{escaped(text)}</td>" for text in rest)}</tr>'


def figure_html(figure: Figure) -> str:
    """The drawing with its title, and its numbers to unfold; the numbers alone where there is no drawing."""
    title = escaped(figure.title)
    if not figure.svg:
        return f"<figure><figcaption>{title}: {escaped(figure.alt)}</figcaption>{table_html(figure.table)}</figure>"
    drawing = figure.svg.replace("<svg ", f'<svg role="img" aria-label="{escaped(figure.alt)}" ', 1)
    numbers = f"<details><summary>Numbers: {title}</summary>{table_html(figure.table)}</details>"
    return f"<figure><figcaption>{title}</figcaption>{drawing}{numbers}</figure>"


def figures_html(figures: Sequence[Figure]) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="figures">{"".join(map(figure_html, figures))}</div>' if figures else ""


def section_html(title: str, body: str, level: int = 2) -> str:
    """A section that the contents link to; "" without a body."""
    if not body:
        return ""
    name = anchor(title)
    return f'<section aria-labelledby="{name}"><h{level} id="{name}">{escaped(title)}</h{level}>{body}</section>'


def anchor(title: str) -> str:
    """What a link to a section of our own says: letters, digits and hyphens."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escaped(text)}</p>"


def picture(encoded: bytes, name: str) -> str:
    """A photograph, decoded and encoded anew, so that nothing but pixels comes from its file."""
    try:
        source = thumbnail(encoded, name)
    except DataError as error:
        return f'<span class="missing">{escaped(str(error))}</span>'
    return f'<img alt="{escaped(name)}" width="{THUMB}" height="{THUMB}" src="{source}">'


def thumbnail(encoded: bytes, name: str) -> str:
    """A small picture of a photograph, of its pixels alone, as a data: address; DataError if it cannot be decoded."""
    pixels = to_pixels(decode(encoded, name), THUMB)
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(pixels, 85)).decode('ascii')}"


def page_html(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page. lead: HTML below the title; sections: (title, HTML), the empty ones left out."""
    there = [(name, body) for name, body in sections if body]
    links = "".join(f'<li><a href="#{anchor(name)}">{escaped(name)}</a></li>' for name, _ in there)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{escaped(title)}</title><style>{STYLE}</style></head><body>'
        f'<a class="skip" href="#main">Skip to the content</a><header><h1>{escaped(title)}</h1>{lead}'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header><main id="main" tabindex="-1">'
        + "\n".join(section_html(name, body) for name, body in there)
        + "</main></body></html>\n"
    )


SERIES = ("#1d5fc4", "#b93a06", "#0b6e62", "#9b1fb0", "#57606f", "#8a6100")
SERIES_DARK = ("#7db4ff", "#ff9f61", "#5fe0c9", "#eea5fb", "#c5ccd6", "#e6c35c")
_LIGHT = "".join(f"--s{i}: {colour}; " for i, colour in enumerate(SERIES))
_DARK = "".join(f"--s{i}: {colour}; " for i, colour in enumerate(SERIES_DARK))
STYLE = f"""
:root {{ color-scheme: light dark; --ink: #16191d; --soft: #535b66; --line: #d8dce2; --paper: #ffffff; --card: #f5f6f8;
  --link: #0b57b8; {_LIGHT}}}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e9ecf0; --soft: #aab2bd; --line: #3b424c; --paper: #14171b;
  --card: #1c2026; --link: #8cc0ff; {_DARK}}} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 78rem; padding: 1rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .2rem 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }}
h3 {{ font-size: 1.05rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }}
p {{ margin: .4rem 0; max-width: 48rem; overflow-wrap: anywhere; }}
a {{ color: var(--link); }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
.skip {{ position: absolute; left: -9999px; }} .skip:focus {{ position: static; }}
nav ul {{ list-style: none; margin: .8rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }}
nav a {{ display: inline-block; padding: .25rem 0; }}
dl.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }}
dl.facts div {{ background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }}
dl.facts dt {{ color: var(--soft); font-size: .85rem; }}
dl.facts dd {{ margin: 0; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }}
dl.facts small {{ font-weight: 400; color: var(--soft); display: block; font-size: .8rem; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }}
figure {{ margin: 0; background: var(--card); border-radius: .5rem; padding: .7rem; min-width: 0; }}
figcaption {{ font-weight: 600; font-size: .95rem; overflow-wrap: anywhere; }}
svg {{ display: block; width: 100%; height: auto; }}
details {{ margin-top: .4rem; }} summary {{ cursor: pointer; color: var(--soft); font-size: .9rem; }}
.scroll {{ overflow-x: auto; max-height: 32rem; overflow-y: auto; margin: .5rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--soft); padding: .2rem 0; }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }}
tbody th {{ font-weight: 500; }}
td.wrap, .settings td {{ white-space: normal; overflow-wrap: anywhere; }}
.pairs {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .6rem; list-style: none;
  padding: 0; margin: .5rem 0; }}
.pairs li {{ background: var(--card); border-radius: .5rem; padding: .5rem; font-size: .85rem; }}
.pairs img {{ width: 96px; height: 96px; margin-right: .3rem; background: var(--line); }}
.missing {{ color: var(--soft); }}
ul.warnings {{ padding-left: 1.2rem; }} ul.warnings li {{ overflow-wrap: anywhere; }}
code {{ font-size: .9em; overflow-wrap: anywhere; }}
@media print {{ nav, .skip {{ display: none; }} figure {{ break-inside: avoid; }} }}
"""
