"""List the files that make one data set: a file, all of a folder with one ending, or those of a pattern with `*`.

Names as Hugging Face gives them, `train-00000-of-00012.parquet`, say how many there should be and of which split.
Errors: `DataError` with the folder and the file that is missing, or the splits between which to choose.
"""

from __future__ import annotations

import re
from pathlib import Path

from partialkd.data.formats.image_tree import is_hidden
from partialkd.errors import DataError

_OF = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")


def list_shards(path: Path, suffix: str) -> list[Path]:
    """List the files with this suffix, by name."""
    if "*" in path.name:
        found = sorted(path.parent.glob(path.name))
    elif path.is_dir():
        found = sorted(shard for shard in path.glob(f"*{suffix}") if not is_hidden(shard.name))
    else:
        return [path]
    if not found:
        raise DataError(f"{path}: holds no {suffix} file" if path.is_dir() else f"{path}: there is no such file")
    _check_complete(path, found)
    return found


def _check_complete(path: Path, found: list[Path]) -> None:
    matches = [match for shard in found if (match := _OF.fullmatch(shard.name))]
    splits = sorted({match[1] for match in matches})
    if len(splits) > 1:
        rule = f"holds files of several splits, {', '.join(splits)}; name one"
        raise DataError(f"{path}: {rule}: {found[0].parent / f'{splits[-1]}-*{matches[0][4]}'}")
    names = {shard.name for shard in found}
    for split, _, count, suffix in (match.groups() for match in matches[:1]):
        for number in range(int(count)):
            name = f"{split}-{number:05d}-of-{count}{suffix}"
            if name not in names:
                raise DataError(f"{found[0].parent / name}: is missing, one of {int(count)} files")
