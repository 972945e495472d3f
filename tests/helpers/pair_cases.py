"""A list of pairs in LFW's form, and lists written into a folder."""

from __future__ import annotations

from pathlib import Path

LFW = (
    "2\t2\nAnn\t1\t2\nBob\t2\t3\nAnn\t1\tBob\t1\nCay\t1\tBob\t2\n"
    "Cay\t1\t2\nDee\t1\t12\nAnn\t2\tDee\t1\nBob\t1\tCay\t2\n"
)


def write(folder: Path, text: str, name: str = "pairs.txt") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode())
    return folder / name
