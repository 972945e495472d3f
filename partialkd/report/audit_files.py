"""What an audit leaves: lists that training reads, all suspicions as CSV, and a page of contact sheets.

    findings.csv    kind, identity, other, images, cosine, threshold
    exclude.txt     identities that are evaluated, or two people: data.exclude_identities
    exclude_images.txt   images with a wrong label, `image<TAB>identity`: data.exclude_images
    label_map.txt   every identity with its new class id, -1 for those of exclude.txt, one id for those that are one
                    person: data.label_map
    index.html      the images of the findings, most certain first, at most `MOST` of a kind; opens from the disk

Names and paths come from others: they are escaped, and images are encoded anew.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from partialkd.data.sources.source import Source
from partialkd.errors import DataError, printable
from partialkd.report.audit import KINDS, Finding
from partialkd.report.page import escaped, thumbnail
from partialkd.storage.atomic_files import new_folder

MOST = 100  # findings of a kind on the page
LEFT_OUT = -1

Person = Callable[[int], tuple[str, bytes]]  # the name of an evaluated person, and an image of it


def write_audit(out: Path, source: Source, findings: Sequence[Finding], person: Person) -> None:
    """Write the folder, which must not be there."""
    excluded, together = decisions(findings)
    with new_folder(out) as hidden:
        (hidden / "findings.csv").write_text(_csv(source, findings, person), encoding="utf-8")
        names = [source.names[label] for label in sorted(excluded)]
        (hidden / "exclude.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        (hidden / "exclude_images.txt").write_text(_wrong_images(source, findings), encoding="utf-8")
        (hidden / "label_map.txt").write_text(_label_map(source, excluded, together), encoding="utf-8")
        (hidden / "index.html").write_text(_page(source, findings, person), encoding="utf-8")


def decisions(findings: Sequence[Finding]) -> tuple[set[int], dict[int, int]]:
    """-> classes to leave out, and for classes that are one person the smallest of them."""
    excluded = {one.label for one in findings if one.kind in ("evaluated", "two people")}
    first: dict[int, int] = {}

    def root(label: int) -> int:
        while first.get(label, label) != label:
            label = first[label]
        return label

    for one in findings:
        if one.kind == "one person" and not {one.label, one.other} & excluded:
            low, high = sorted((root(one.label), root(one.other)))
            first[high] = low
    return excluded, {label: root(label) for label in first}


def _wrong_images(source: Source, findings: Sequence[Finding]) -> str:
    images = sorted((image, one.label) for one in findings if one.kind == "wrong label" for image in one.images)
    return "".join(f"{image}\t{source.names[label]}\n" for image, label in images)


def _label_map(source: Source, excluded: set[int], together: dict[int, int]) -> str:
    kept = [label for label in range(source.num_classes) if label not in excluded]
    new = {label: at for at, label in enumerate(label for label in kept if together.get(label, label) == label)}
    ids = {label: new[together.get(label, label)] for label in kept}
    lines = (f"{source.names[label]}\t{ids.get(label, LEFT_OUT)}\n" for label in range(source.num_classes))
    return "".join(lines)


def _other(source: Source, one: Finding, person: Person) -> str:
    if one.other < 0:
        return ""
    return person(one.other)[0] if one.kind == "evaluated" else source.names[one.other]


def _csv(source: Source, findings: Sequence[Finding], person: Person) -> str:
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["kind", "identity", "other", "images", "cosine", "threshold"])
    for one in findings:
        images = "; ".join(printable(source.name(image)) for image in one.images)
        names = [printable(source.names[one.label]), printable(_other(source, one, person))]
        table.writerow([one.kind, *names, images, f"{one.cosine:.4f}", f"{one.threshold:.4f}"])
    return lines.getvalue()


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 1rem; }
section > div { border-top: 1px solid #8886; padding: .5rem 0; display: flex; flex-wrap: wrap; gap: .5rem 1rem; }
figure { margin: 0; } figcaption { font-size: 12px; overflow-wrap: anywhere; max-width: 20rem; }
img { width: 96px; height: 96px; }
"""


def _page(source: Source, findings: Sequence[Finding], person: Person) -> str:
    parts = [_section(kind, [one for one in findings if one.kind == kind], source, person) for kind in KINDS]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit</title><style>{_STYLE}</style></head><body><h1>Audit: {len(findings)} suspicions</h1>"
        f"<p>{source.num_classes} identities, {len(source)} images. Each is to be looked at by a person.</p>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _section(kind: str, found: Sequence[Finding], source: Source, person: Person) -> str:
    more = f"; the {MOST} most certain are shown" if len(found) > MOST else ""
    rows = "\n".join(_row(one, source, person) for one in found[:MOST])
    return f"<section><h2>{html.escape(kind)}: {len(found)}{more}</h2>\n{rows}</section>"


def _row(one: Finding, source: Source, person: Person) -> str:
    names = escaped(source.names[one.label])
    if other := _other(source, one, person):
        names += f" / {escaped(other)}"
    text = f"<p>{names}<br>cosine {one.cosine:.3f}, threshold {one.threshold:.3f}</p>"
    pictures = [_figure(source.read(image)[0], source.name(image)) for image in one.images]
    if one.kind == "evaluated":
        name, image = person(one.other)
        pictures.append(_figure(image, name))
    return f"<div>{text}{''.join(pictures)}</div>"


def _figure(encoded: bytes, name: str) -> str:
    try:
        source = thumbnail(encoded, name)
    except DataError as error:
        return f"<figure><figcaption>{escaped(str(error))}</figcaption></figure>"
    shown = escaped(name)
    return f'<figure><img alt="{shown}" src="{source}"><figcaption>{shown}</figcaption></figure>'
