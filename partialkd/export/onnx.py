"""A trained network as files that others can run: `model.onnx` and `model.safetensors`, in one folder.

model.onnx (IR 9, opset 20, which onnxruntime 1.17 and onnx 1.15 read): input "images" (batch, 3, S, S) float32, RGB,
(pixel - 127.5) / 127.5; output "embeddings" (batch, D) float32, not normalised; batch is free unless a number is asked
for, which converters to LiteRT and ncnn want; weights inside the file.
Both files carry the description of models/saved.py as metadata. Parity: embeddings of random images from the network
and from onnxruntime, each scaled to length one, may differ by at most `tolerance` (1e-4) in any number, at batch sizes
1 and 3 or at the one asked for; else nothing is written.
Errors: CheckpointError. Each file appears complete or not at all; last comes manifest.json with the size and CRC-32 of
both, which whatever opens model.onnx here compares.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models.build import build_empty
from partialkd.models.network import Network
from partialkd.models.onnx_session import OnnxSession
from partialkd.models.saved import describe, save_model
from partialkd.models.weights import put_weights
from partialkd.storage.atomic_files import discard, write_bytes
from partialkd.storage.finite import not_finite
from partialkd.storage.listed_files import write_export_manifest
from partialkd.storage.manifest import MANIFEST
from partialkd.world.passes import Pass

TOLERANCE = 1e-4
IR_VERSION = 9  # of the file format; the exporter's own, 10, is refused by onnxruntime 1.17
OPSET = 20  # the newest that goes with it
BATCHES = (1, 3)


@dataclass(frozen=True)
class Exported:
    """Paths of the two files and the largest difference found between them."""

    onnx: Path
    safetensors: Path
    difference: float


def export(
    state: dict[str, Tensor],
    config: ModelConfig,
    image_size: int,
    folder: str | Path,
    tolerance: float = TOLERANCE,
    thresholds: str | None = None,
    batch: int | None = None,
) -> Exported:
    """Write both forms of the network `config` with the weights `state`.

    thresholds: JSON that goes into the metadata of both (evaluate/card.py). batch: None, model.onnx takes any.
    """
    more = {} if thresholds is None else {"thresholds": thresholds}
    folder = Path(folder)
    if problem := not_finite(state):
        raise CheckpointError(f"{folder}: not written: {problem}")
    network = plain_network(state, config, image_size)
    with Pass("exporting to ONNX"):
        content = to_onnx(network, {**more, **describe(config, image_size)}, batch)
        difference = largest_difference(network, content, BATCHES if batch is None else (batch,))
    if not difference <= tolerance:  # NaN must fail too
        rule = f"embeddings by onnxruntime must be within {tolerance} of the network's"
        raise CheckpointError(f"{folder / 'model.onnx'}: {rule}, got a difference of {difference}")
    folder.mkdir(parents=True, exist_ok=True)
    discard(folder / MANIFEST)  # of earlier files
    write_bytes(folder / "model.onnx", content)
    save_model(folder / "model.safetensors", network, config, image_size, more)
    write_export_manifest(folder, ("model.onnx", "model.safetensors"))
    return Exported(folder / "model.onnx", folder / "model.safetensors", difference)


def to_onnx(network: Network, metadata: dict[str, str], batch: int | None = None) -> bytes:
    """Return the serialised ONNX model of a network in eval mode; batch: None, any."""
    images = torch.zeros(batch or 2, 3, network.image_size, network.image_size)
    with _quiet():
        program: Any = torch.onnx.export(
            network,
            (images,),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if batch is None else None,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    program.model.ir_version = IR_VERSION
    program.model.metadata_props.update(metadata)
    return bytes(program.model_proto.SerializeToString())


def largest_difference(network: Network, content: bytes, batches: Sequence[int] = BATCHES) -> float:
    """Return the largest difference between embeddings of length one, over random images in batches of these sizes."""
    session = OnnxSession(content, "the exported network")
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch in batches:
        images = torch.rand((batch, 3, network.image_size, network.image_size), generator=generator) * 2 - 1
        with torch.no_grad():
            ours = normalize(network(images))
        theirs = normalize(torch.from_numpy(session.run(["embeddings"], {"images": images.numpy()})[0]))
        differences.append((ours - theirs).abs().max())
    return float(torch.stack(differences).max())


def plain_network(state: dict[str, Tensor], config: ModelConfig, image_size: int) -> Network:
    """Build the network on the CPU, in eval mode, in the ordinary memory format."""
    plain = config.model_copy(update={"channels_last": False, "activation_checkpointing": False})
    network = build_empty(plain, image_size)
    put_weights(
        network, {key: value.detach().cpu().contiguous() for key, value in state.items()}, "export", assign=True
    )
    return network.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and its warnings about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
