"""The worked examples of docs/extending.md: their blocks, applied to a copy of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers.places import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
_FILE = r"(?:^`(?P<file>[\w/.]+\.py)`(?:, new)?:\n\n)?"
_BLOCK = re.compile(_FILE + r"^```(?P<kind>python|diff)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A new file, or a change of one."""

    file: str  # from the repository's root
    text: str
    new: bool


def blocks(section: str) -> list[Block]:
    """The blocks of a section, in order; one that names no file changes the file of the block before it."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        found.append(Block(match["file"] or found[-1].file, match["text"], match["kind"] == "python"))
    return found


def changed(content: str, diff: str) -> str:
    """A file's content with a change made: the lines that stay (" ") or go ("-") must be there, together and once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    if old.count("\n") == 1:  # the rest of a line may be a comment
        old, new = old.rstrip("\n"), new.rstrip("\n")
    assert content.count(old) == 1, f"not once in the file:\n{old}"
    return content.replace(old, new)


def copy_with(sections: list[str], folder: Path) -> Path:
    """A copy of the package in `folder`, with the examples of these sections made."""
    shutil.copytree(ROOT / "partialkd", folder / "partialkd", ignore=shutil.ignore_patterns("__pycache__"))
    for block in (block for section in sections for block in blocks(section)):
        path = folder / block.file
        assert path.exists() != block.new, path
        path.write_text(block.text if block.new else changed(path.read_text(encoding="utf-8"), block.text), "utf-8")
    return folder


def python(package: Path, code: str, *arguments: object) -> str:
    """What a program prints that uses this copy of the package."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(package)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=package, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
