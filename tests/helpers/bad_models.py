"""Makers of verification sets and of teachers' files that are wrong, as in bad_files.py."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from helpers.arcface_torch_files import MODEL, Dense
from helpers.bad_files import CPU, Action, Maker, Run, file, put
from helpers.bad_images import SIZE
from partialkd.config import InputConfig, ModelConfig, PhaseConfig, TeacherConfig
from partialkd.config.arcface_torch import read_settings
from partialkd.data.formats.verification_bin import read_bin
from partialkd.models.mxnet.params import read_params
from partialkd.models.saved import open_model, save_model
from partialkd.models.weights import read_weights
from partialkd.run.arcface_torch import check_parts
from partialkd.teacher.cache import EMBEDDINGS, CacheFacts, TeacherCache
from partialkd.teacher.cache_writer import CacheWriter
from partialkd.teacher.classifier import read_label_map, read_matrix
from partialkd.teacher.network import described, open_teacher

# ------------------------------------------------------------------------------------------------- verification sets


def bin_file(content: bytes) -> Maker:
    return file("lfw.bin", content, read_bin)


def bin_of(value: object) -> Maker:
    return bin_file(pickle.dumps(value))


def bin_that_runs(folder: Path) -> Action:
    return bin_of(([b"x", b"y"], [Run(folder)]))(folder)


# ------------------------------------------------------------------------------------------------- teachers


def matrix(name: str, content: bytes) -> Maker:
    """A classifier file."""
    return file(name, content, read_matrix)


def npy(shape: str, kind: str = "<f4", data: bytes = b"") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def pickled_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy("(1000, 1000)", data=bytes(4_000_000)))
    return file.getvalue()


def checkpoint_that_runs(read: Callable[[Path], object]) -> Maker:
    def make(folder: Path) -> Action:
        torch.save({"state_dict": Run(folder)}, folder / "r50.pt")
        return lambda: read(folder / "r50.pt")

    return make


def truncated_checkpoint(folder: Path) -> Action:
    torch.save({"w": torch.zeros(64, 64)}, folder / "r50.pt")
    os.truncate(folder / "r50.pt", 9000)
    return lambda: read_weights(folder / "r50.pt")


def safetensors(change: Callable[[bytes], bytes]) -> Maker:
    def make(folder: Path) -> Action:
        path = folder / "r50.safetensors"
        save_file({"w": torch.zeros(8, 8)}, path)
        path.write_bytes(change(path.read_bytes()))
        return lambda: read_weights(path)

    return make


def model_metadata(key: str, value: str) -> Maker:
    """Our own file with another description."""

    def make(folder: Path) -> Action:
        from safetensors import safe_open
        from safetensors.torch import load_file

        from partialkd.models import build_model

        config, path = ModelConfig(name="mobilefacenet", embedding_dim=16), folder / "model.safetensors"
        save_model(path, build_model(config, SIZE), config, SIZE)
        with safe_open(path, framework="pt") as file:
            metadata = {**file.metadata(), key: value}
        save_file(load_file(path), path, metadata)
        return lambda: open_model(path)

    return make


def onnx_model(width: int = SIZE, place: str | None = None) -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3 * width * width, 4], bytes(48 * width * width), raw=True)
    if place is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", place
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, width, width])
    rows = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [images], [rows], [weight])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def endless_onnx() -> bytes:
    """The same network behind a Loop without a number of turns, whose condition stays true."""
    model = onnx.load_from_string(onnx_model())
    value = lambda name, kind: helper.make_tensor_value_info(name, kind, None)
    again = [helper.make_node("Identity", ["go"], ["more"]), helper.make_node("Relu", ["h"], ["k"])]
    inputs = [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("h", TensorProto.FLOAT)]
    body = helper.make_graph(again, "body", inputs, [value("more", TensorProto.BOOL), value("k", TensorProto.FLOAT)])
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node[1].output[:] = ["z"]
    model.graph.node.extend([yes, helper.make_node("Loop", ["", "yes", "z"], ["y"], body=body)])
    return bytes(model.SerializeToString())


def onnx_teacher(content: bytes, only_described: bool = False) -> Maker:
    """In a folder of its own, beside a file that its external data may lead to."""

    def make(folder: Path) -> Action:
        put(folder / "secret", bytes(48 * SIZE * SIZE))
        path = put(folder / "in" / "t.onnx", content)
        (folder / "in" / "link").symlink_to(folder / "secret")
        config = TeacherConfig(source="onnx", path=str(path), embedding_dim=4, input=InputConfig(size=SIZE))
        return lambda: described(config, SIZE) if only_described else open_teacher(config, SIZE, CPU)

    return make


def mxnet_params(content: bytes) -> Maker:
    return file("model.params", content, read_params)


def label_map(content: bytes) -> Maker:
    return file("rows.txt", content, lambda path: read_label_map(str(path), 3, 3))


def arcface_torch_run(change: Callable[[Path], object]) -> Maker:
    """Files that a run of arcface_torch leaves, of 2 GPUs and 4 classes, taken over into a run of ours."""

    def make(folder: Path) -> Action:
        theirs = Dense(4)
        theirs.step(torch.zeros(4, 3, SIZE, SIZE), torch.arange(4))
        theirs.save(folder / "work", 2, 1)
        change(folder / "work")
        phase = PhaseConfig.model_validate(
            {"model": MODEL, "method": {"name": "cosface"}, "epochs": 2, "global_batch": 8}
        )
        return lambda: check_parts(folder / "work", phase, SIZE)

    return make


def changed(rank: int, **values: object) -> Callable[[Path], None]:
    """Other values in one rank's file."""

    def change(work: Path) -> None:
        path = work / f"checkpoint_gpu_{rank}.pt"
        torch.save({**torch.load(path, weights_only=True), **values}, path)

    return change


def arcface_torch_config(lines: str) -> Maker:
    return file("job.py", f"config = edict()\n{lines}\n".encode(), read_settings)


def teacher_cache(change: Callable[[Path], object]) -> Maker:
    def make(folder: Path) -> Action:
        facts = CacheFacts("teacher", "data", {}, records=3, classes=2, dim=4, dtype="fp16")
        writer = CacheWriter(folder / "cache", facts)
        writer.begin("refuse")
        writer.write_block(0, torch.ones(3, 2, 4), str)
        writer.write_means(range(2), torch.ones(2, 4))
        writer.finish()
        change(folder / "cache")
        return lambda: TeacherCache(folder / "cache").verify()

    return make


def unfinished_cache(change: Callable[[Path], object]) -> Maker:
    def make(folder: Path) -> Action:
        writer = CacheWriter(folder / "cache", CacheFacts("teacher", "data", {}, records=3, classes=2, dim=4))
        writer.begin("refuse")
        change(writer.place)
        return lambda: writer.begin("resume")

    return make


def cached_embeddings_cut_in_use(folder: Path) -> Action:
    teacher_cache(lambda _: None)(folder)
    cache = TeacherCache(folder / "cache")
    os.truncate(folder / "cache" / EMBEDDINGS, 8)
    return lambda: cache.rows(torch.tensor([2]), torch.tensor([False]))


def flip_embedding(cache: Path) -> None:
    content = bytearray((cache / EMBEDDINGS).read_bytes())
    content[5] ^= 1
    (cache / EMBEDDINGS).write_bytes(content)
