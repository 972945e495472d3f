"""Weights from files: .pt and .pth (no code is unpickled), .safetensors and Keras's .h5, into a network of ours.

Accepted forms: a plain state_dict; one inside a training checkpoint under any of WRAPPERS ("state_dict_backbone" of
arcface_torch, "state_dict" of Lightning, "module" of DeepSpeed, ...); the network's keys under a prefix, other modules
beside it (wrapped.py). What else a training checkpoint holds (options, states of classes that are not known here) is
read as nothing at all: no class is imported and no code is run.
Every key and shape must match. Errors: CheckpointError naming the file and the keys, and which network the file looks
like. Floating-point values of another type become the network's; sparse and quantised tensors and whole numbers are
refused. A file without BatchNorm's "num_batches_tracked" counters is accepted: they start at zero.

A .safetensors file whose metadata has "crc32" must be what that says: CRC-32 over the other metadata and over name,
type, shape and bytes of each tensor, in the order of names. It finds damage, not forgery, at about 1 GB/s.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from partialkd.errors import CheckpointError
from partialkd.models.foreign_files import strange_kind, why_unreadable
from partialkd.models.keras import ghostfacenet, hdf5
from partialkd.models.network import Network
from partialkd.models.recognise import looks_like
from partialkd.models.wrapped import listed, opaque, own_part
from partialkd.storage.checksum import crc32, hexadecimal

WRAPPERS = (
    "state_dict_backbone", "state_dict", "model_state_dict", "model", "module", "backbone", "net", "network", "weights",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "backbone.")
CHECKSUM = "crc32"  # of a file's metadata


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy a file's weights into the model."""
    put_weights(model, weights_of(model, path), str(path))


def weights_of(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Read what a file holds of this network, on the CPU; what else is in it is named in the log."""
    return own_part(model, read_weights(path), str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state_dict of a file, on the CPU, without wrappers and prefixes."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix in hdf5.ENDINGS:
        return ghostfacenet.of_keras(hdf5.read_layers(path))
    if path.suffix == ".onnx":
        rule = 'an ONNX file holds a whole network: teacher.source = "onnx" takes it, with teacher.embedding_dim'
        raise CheckpointError(f"{path}: cannot be read as weights: {rule}")
    try:
        if path.suffix == ".safetensors":
            content: Any = read_tensors(path)
        else:
            content = _read_pickled(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file raises many kinds
        raise CheckpointError(f"{path}: cannot be read as weights: {why_unreadable(error, path)}") from error
    return ghostfacenet.of_deepface(_without_prefixes(_unwrapped(content, path)))


def _read_pickled(path: Path) -> Any:
    """Read tensors and plain values; objects of unknown classes come as nothing where they stand beside them."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        try:
            with opaque(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # of another form, or objects that cannot be left out
            raise error from None
        if isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in WRAPPERS):
            return content
        raise


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, compared with its checksum if it has one."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    tensors = load_file(path)
    expected = metadata.pop(CHECKSUM, None)
    if expected is not None and (found := _checksum(tensors, metadata)) != expected:
        raise CheckpointError(f"{path}: damaged: the checksum must be {expected}, got {found}")
    return tensors


def checksummed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Return the metadata of a .safetensors file with the checksum of it and the tensors (on the CPU)."""
    return {**metadata, CHECKSUM: _checksum(tensors, metadata)}


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    crc = crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        crc = crc32(f"{name} {x.dtype} {list(x.shape)}".encode(), crc)
        crc = crc32(x.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return hexadecimal(crc)


def put_weights(model: nn.Module, state: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Put a state_dict of exactly its keys and shapes into a model; `assign`: the tensors themselves (meta device)."""
    own = model.state_dict()
    state = dict(state)
    for key in own.keys() - state.keys():
        if key.endswith(".num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
    problems = [
        _named("missing", sorted(own.keys() - state.keys())),
        _named("unexpected", sorted(state.keys() - own.keys())),
        _named(
            "of another shape",
            [_shapes(k, state[k], own[k]) for k in own if k in state and state[k].shape != own[k].shape],
        ),
        _named(
            "of whole numbers",
            [k for k, x in own.items() if k in state and x.is_floating_point() and not state[k].is_floating_point()],
        ),
    ]
    if any(problems):
        said = "; ".join(filter(None, problems))
        raise CheckpointError(f"{where}: does not fit the network: {said}{_hint(model, state)}")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, assign=assign)


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(len(WRAPPERS)):
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state_dict")
        if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
            return _dense(content, path)
        inner = next((content[key] for key in WRAPPERS if key in content), None)
        if inner is None:
            raise CheckpointError(f"{path}: no state_dict in it; its keys: {listed(sorted(map(str, content)))}")
        content = inner
    raise CheckpointError(f"{path}: no state_dict in it, only nested dictionaries")


def _dense(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for key, value in state.items():
        if (kind := strange_kind(value)) is not None:
            raise CheckpointError(f"{path}: {key!r}: must be a dense tensor of real numbers, got one {kind}")
    return state


def _hint(model: nn.Module, state: dict[str, Tensor]) -> str:
    name = looks_like(state, model.image_size) if isinstance(model, Network) else None
    return f"; it looks like {name}" if name else ""


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _named(what: str, keys: list[str]) -> str:
    return f"{len(keys)} keys {what}: {listed(keys)}" if keys else ""


def _shapes(key: str, given: Tensor, own: Tensor) -> str:
    return f"{key} {tuple(given.shape)} instead of {tuple(own.shape)}"
