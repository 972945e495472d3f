"""Archives, folders and lists of pairs to prepare data from."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.config import ArchiveConfig, DataConfig
from partialkd.data.images.encode import encode_jpeg

SIZE = 24
TRAINING = {"anna": 3, "berta": 1, "carl": 2, "dora": 4, "emil": 2}
EVALUATED = {"anna": 2, "xaver": 2, "yann": 3, "zoe": 2}


def picture(identity: str, number: int, size: int = SIZE) -> bytes:
    rng = np.random.default_rng([*identity.encode(), number])
    return encode_jpeg(rng.integers(0, 255, (size, size, 3), dtype=np.uint8), 90)


def write_tar(path: Path, counts: dict[str, int], size: int = SIZE, prefix: str = "") -> Path:
    """Identities in the reverse of their order, to see that it does not matter."""
    with tarfile.open(path, "w:gz") as archive:
        add_member(archive, "README.txt", b"beside the identities")
        for identity in sorted(counts, reverse=True):
            for number in range(counts[identity]):
                add_member(archive, f"{prefix}{identity}/{number}.jpg", picture(identity, number, size))
    return path


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_folder(path: Path, counts: dict[str, int]) -> Path:
    for identity, count in counts.items():
        (path / identity).mkdir(parents=True)
        for number in range(count):
            (path / identity / f"{number}.jpg").write_bytes(picture(identity, number))
    return path


def write_pairs(path: Path) -> Path:
    rows = ("xaver/0.jpg,xaver/1.jpg,1", "yann/0.jpg,yann/2.jpg,1", "anna/0.jpg,anna/1.jpg,1",
            "xaver/0.jpg,yann/0.jpg,0", "zoe/0.jpg,anna/1.jpg,0", "zoe/1.jpg,yann/1.jpg,0")  # fmt: skip
    path.write_text("a,b,same\n" + "".join(f"{row}\n" for row in rows))
    return path


def prepare_config(folder: Path, **settings: Any) -> DataConfig:
    data: dict[str, Any] = {key: settings.pop(key) for key in ("resize", "image_size") if key in settings}
    given: dict[str, Any] = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    archive = ArchiveConfig(kind="archive", **given)
    return DataConfig(path=str(folder / "made"), prepare=archive, **{"image_size": SIZE, **data})
