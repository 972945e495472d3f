"""A folder that holds a network for use, in the layout of Hugging Face: `partialkd.load(FOLDER)` opens it.

    config.json          the network, its input, SHA-256 of model.safetensors, and the thresholds of its card, if any
    model.safetensors    weights, which describe the network as well (saved.py)
    README.md            the model card (export/model_card.py)

Opening needs torch, numpy, pydantic and safetensors alone. Errors: CheckpointError naming the file; a folder whose
files are not of one another is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models.network import Network
from partialkd.models.saved import INPUT_METADATA, MODEL, open_model
from partialkd.storage.atomic_files import write_json

FORMAT = "partialkd-folder-1"
CONFIG = "config.json"


def load_folder(folder: str | Path) -> Network:
    """Open the network of a folder, on the CPU in eval mode: (b, 3, S, S) in [-1, 1] -> (b, D), not normalised."""
    folder = Path(folder)
    facts = read_config(folder)
    expected = facts.get("sha256", {}).get(MODEL)
    if (folder / MODEL).is_file() and expected != (found := sha256_of(folder / MODEL)):
        raise CheckpointError(
            f"{folder / MODEL}: damaged, or of another folder: SHA-256 must be {expected}, got {found}"
        )
    network, config, image_size = open_model(folder / MODEL)
    if (config.model_dump(mode="json"), image_size) != (facts["network"], facts["image_size"]):
        raise CheckpointError(f"{folder / CONFIG}: describes another network than {MODEL} does")
    return network


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json."""
    path = folder / CONFIG
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT or not isinstance(facts["network"], dict) or "image_size" not in facts:
            raise ValueError(f"its format is {facts['format']!r}")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not of a folder that launch/model_card.py has written: {error}") from error
    return dict(facts)


def write_config(folder: Path, config: ModelConfig, image_size: int, more: dict[str, Any]) -> None:
    """Write config.json beside model.safetensors, which is there."""
    described = {
        "format": FORMAT,
        "model_type": "partialkd",
        "architectures": [config.name],
        "network": config.model_dump(mode="json"),
        "image_size": image_size,
        "embedding_dim": config.embedding_dim,
        "input": {**INPUT_METADATA, "layout": "NCHW", "type": "float32"},
        "sha256": {MODEL: sha256_of(folder / MODEL)},
    }
    write_json(folder / CONFIG, {**described, **more})


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
