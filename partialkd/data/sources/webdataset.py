"""The source of WebDataset shards: the samples of one shard after the other, in their order (formats/webdataset.py).

Class ids are those of the samples, 0 to the highest one, unless the folder has identities.txt (as `pack.py` writes it),
which names all of them.
Opening reads all headers and class ids, about 30,000 samples a second, unless a `cache` folder keeps what came out.
Errors: `DataError` with shard and sample; for an index of wids that counts otherwise than the shard holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from partialkd.data.formats.insightface_folder import NAMES
from partialkd.data.formats.webdataset import find_images, shards_of
from partialkd.data.sources.files import FilesSource, known_classes
from partialkd.data.sources.placed_file import PlacedFile
from partialkd.errors import DataError


class WebDatasetSource(FilesSource[PlacedFile]):
    """Reads the shards of a folder, of an index of wids, or a single .tar."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        path = Path(path)
        files = list(_opened(path, cache))
        classes, names = known_classes(files, (path if path.is_dir() else path.parent) / NAMES)
        super().__init__(files, classes, names)


def _opened(path: Path, cache: Path | None) -> Iterator[PlacedFile]:
    for shard, count in shards_of(path):
        file = PlacedFile.opened(shard, "webdataset", "sample", cache, find_images)
        if count not in (None, len(file)):
            raise DataError(f"{shard}: holds {len(file)} samples, its index says {count}; is it the index of others?")
        yield file
