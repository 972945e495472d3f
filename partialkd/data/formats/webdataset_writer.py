"""Write WebDataset: tar shards of images and class ids, with an index of wids and the names of the identities.

`shard-000000.tar`, ... hold `<number>.<suffix>` and `<number>.cls` of each image, numbered over all shards;
`index.json` lists the shards with their numbers of samples, `identities.txt` the names by class id. Equal images make
equal files: headers hold no time and no user.
Errors: `DataError` for an image whose format is not known, naming its number.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

from partialkd.data.formats.insightface_folder import NAMES
from partialkd.data.formats.webdataset import WIDS_INDEX
from partialkd.data.images.decode import image_suffix
from partialkd.errors import DataError
from partialkd.storage.atomic_files import new_folder, refuse_existing


def write_shards(out: Path, images: Iterable[tuple[bytes, int]], names: Sequence[str], shard_images: int) -> int:
    """Write the folder `out`, which appears when it is complete; returns the number of images.

    images: (encoded bytes, class id), taken one at a time. names: by class id. shard_images: in a shard, but the last.
    """
    refuse_existing(out)
    numbered, counts = enumerate(images), list[int]()
    with new_folder(out) as folder:
        while (first := next(numbered, None)) is not None:
            some = chain([first], islice(numbered, shard_images - 1))
            counts.append(_write_shard(folder / _shard(len(counts)), some))
        if not counts:
            raise DataError("no image to write")
        shards = [{"url": _shard(number), "nsamples": count} for number, count in enumerate(counts)]
        said = {"wids_version": 1, "name": out.name, "shardlist": shards}
        (folder / WIDS_INDEX).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        listed = "".join(f"{label}\t{name}\n" for label, name in enumerate(names))
        (folder / NAMES).write_text(listed, encoding="utf-8")
    return sum(counts)


def _shard(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _write_shard(path: Path, images: Iterable[tuple[int, tuple[bytes, int]]]) -> int:
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (image, label) in images:
            suffix = image_suffix(image)
            if suffix is None:
                raise DataError(f"image {number}: not a known image format (starts with {image[:8]!r})")
            _add(archive, f"{number:09d}{suffix}", image)
            _add(archive, f"{number:09d}.cls", b"%d" % label)
            count += 1
    return count


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
