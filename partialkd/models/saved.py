"""Self-describing networks: a .safetensors file that carries the model's configuration, image size and input format.

Metadata (text): "format" = "partialkd-model-1", "model" (ModelConfig as JSON), "image_size", and the input convention
of this project: "mean", "std" (127.5: pixels 0..255 become (pixel - mean) / std), "colour" = "rgb"; and "crc32", the
checksum of all of these and the tensors (weights.py), compared whenever the file is read. A file without it is read as
well: earlier versions wrote none, and other programs that change such a file keep none.
A file appears complete or not at all. Errors: CheckpointError naming the file. Reading draws no random numbers.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models.build import build_empty, in_memory_format
from partialkd.models.network import Network
from partialkd.models.weights import checksummed, put_weights, read_tensors
from partialkd.storage.atomic_files import write_bytes
from partialkd.storage.finite import not_finite

FORMAT = "partialkd-model-1"
LARGEST_IMAGE = 4096  # pixels per side: a description may come from anywhere
INPUT_METADATA = {"mean": "127.5", "std": "127.5", "colour": "rgb"}


def describe(config: ModelConfig, image_size: int) -> dict[str, str]:
    """Return the metadata of a saved or exported network."""
    return {"format": FORMAT, "model": config.model_dump_json(), "image_size": str(image_size), **INPUT_METADATA}


def save_model(
    path: str | Path, model: nn.Module, config: ModelConfig, image_size: int, more: dict[str, str] | None = None
) -> None:
    """Write the network's state_dict, which must fit its description and be finite, with `more` metadata."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if problem := not_finite(state):
        raise CheckpointError(f"{path}: not written: {problem}")
    put_weights(build_empty(config, image_size), state, str(path), assign=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(Path(path), save(state, checksummed(state, {**(more or {}), **describe(config, image_size)})))


def open_model(path: str | Path) -> tuple[Network, ModelConfig, int]:
    """Open a file -> the network on the CPU in eval mode, its configuration and image size."""
    config, image_size = read_description(path)
    state = read_tensors(path)
    if problem := not_finite(state):
        raise CheckpointError(f"{path}: {problem}")  # earlier versions have saved such
    model = build_empty(config, image_size)
    put_weights(model, state, str(path), assign=True)
    return in_memory_format(model).eval(), config, image_size


def read_description(path: str | Path) -> tuple[ModelConfig, int]:
    """Read configuration and image size from a file's metadata; its input convention must be this project's."""
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: does not describe its network: format must be {FORMAT!r}, got {metadata.get('format')!r}"
        )
    for key, value in INPUT_METADATA.items():
        if metadata.get(key, value) != value:
            rule = "its images would be fed to it wrongly"
            raise CheckpointError(f"{path}: {key} must be {value!r}, {rule}, got {metadata[key]!r}")
    try:
        config, image_size = ModelConfig.model_validate_json(metadata["model"]), int(metadata["image_size"])
        if not 1 <= image_size <= LARGEST_IMAGE:
            raise ValueError(f"image_size must be in 1..{LARGEST_IMAGE}, got {image_size}")
        return config, image_size
    except (ValidationError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable description: {error}") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read all that a .safetensors file says beside its tensors."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        hint = (
            ""
            if str(path).endswith(".safetensors")
            else "; other programs' weights go to student.weights or teacher.path"
        )
        raise CheckpointError(f"{path}: not a safetensors file: {error}{hint}") from error


MODEL = "model.safetensors"  # a phase that has it is finished
