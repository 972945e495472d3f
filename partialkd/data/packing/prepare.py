"""Prepare data that a run makes for itself: `data.prepare` fills `data.path` once, before any rank opens it.

Call on one rank only; the others wait. A folder already made from equal settings costs a look at its manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partialkd.config import DataConfig, ProceduralConfig
from partialkd.data.packing.archive import pack_archive
from partialkd.data.packing.drawn_faces import make_faces
from partialkd.errors import ConfigError


def prepare(data: DataConfig) -> dict[str, Any] | None:
    """Make `data.path` if it is not there; returns the facts of its manifest, None without `data.prepare`."""
    if data.prepare is None:
        return None
    if data.source != "recordio":
        raise ConfigError(f'data.source must be "recordio" with data.prepare, got "{data.source}"')
    if isinstance(data.prepare, ProceduralConfig):
        return make_faces(data.prepare, data.image_size, Path(data.path))
    return pack_archive(data.prepare, data, Path(data.path))
