"""Real MXNet on the other side: records byte for byte in both directions, and its teachers' embeddings.

Needs the environment of requirements-mxnet.txt: `make mxnet`, or PARTIALKD_MXNET = its python.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.places import ROOT, TESTS
from partialkd.config import TeacherConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.recordio import MAGIC, RecordReader, open_writer, pack_payload
from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import CheckpointError
from partialkd.models.build import build_empty
from partialkd.models.mxnet.checkpoint import configuration, import_checkpoint, layers
from partialkd.models.mxnet.graph import read_graph
from partialkd.models.mxnet.params import read_params
from partialkd.teacher.classifier import read_label_map, read_matrix
from partialkd.teacher.network import open_teacher

M = struct.pack("<I", MAGIC)
TOLERANCE = 1e-5  # relative, float32 on both sides


def peer_python() -> Path:
    named = os.environ.get("PARTIALKD_MXNET")
    python = Path(named or ROOT / ".venv-mxnet" / "bin" / "python")
    if not named and not python.exists():
        pytest.skip("no MXNet here: `make mxnet`, or PARTIALKD_MXNET = a python of requirements-mxnet.txt")
    return python


def peer(command: str, folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    arguments = [peer_python(), TESTS / "helpers" / "mxnet_peer.py", command, folder]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------- records


PICTURE = np.random.RandomState(1).randint(0, 256, (12, 16, 3)).astype(np.uint8)
PAYLOADS = [
    b"",
    b"x",
    b"12",
    b"123",
    b"1234567",
    M,
    M * 3,
    b"abcd" + M + b"xyz",
    b"a" + M,
    M[:3] * 9,
    b"ab" + M + b"cd" + M,
]
RECORDS: list[dict[str, Any]] = [
    *({"key": key, "label": 7, "image": image.hex()} for key, image in enumerate(PAYLOADS)),
    {"key": 20, "label": 3.5, "image": b"scalar".hex()},
    {"key": 21, "label": [1.0, 2.0], "image": M.hex()},
    {"key": 22, "label": np.linspace(-1, 1, 513).astype(np.float32).tolist(), "image": b"embedding".hex()},
    {"key": 23, "label": [4.0], "image": ""},
]
PICTURES: list[dict[str, Any]] = [
    {"key": 1, "label": 0, "pixels": PICTURE.tolist(), "quality": 9, "format": ".png"},
    {"key": 2, "label": 1, "pixels": PICTURE.tolist(), "quality": 95, "format": ".jpg"},
    {"key": 3, "label": 1, "pixels": PICTURE[::-1].tolist(), "quality": 90, "format": ".jpg"},
]
# InsightFace's layout: images 1..3, an identity record a class with its range of keys, the header record 0 last.
IDENTITIES: list[dict[str, Any]] = [
    {"key": 4, "label": [1.0, 2.0], "image": ""},
    {"key": 5, "label": [2.0, 4.0], "image": ""},
    {"key": 0, "label": [4.0, 6.0], "image": ""},
]


def write_ours(stem: Path, cases: list[tuple[int, Any, bytes]]) -> None:
    with open_writer(stem.with_suffix(".rec"), stem.with_suffix(".idx")) as writer:
        for key, label, image in cases:
            writer.write(key, pack_payload(label, key, image))


def encoded(count: int) -> list[tuple[bytes, int]]:
    rng = np.random.RandomState(2)
    return [(encode_jpeg(rng.randint(0, 256, (16, 16, 3)).astype(np.uint8)), label // 2) for label in range(count)]


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """theirs/ written by MXNet, ours/ by us, read.json what MXNet found in all of them."""
    folder = tmp_path_factory.mktemp("exchanged")
    (folder / "ours").mkdir()
    write_ours(folder / "ours" / "a", [(case["key"], case["label"], bytes.fromhex(case["image"])) for case in RECORDS])
    pack_records(folder / "ours", encoded(6), 3, 16)
    (folder / "cases.json").write_text(json.dumps({"theirs/a": RECORDS, "theirs/train": PICTURES + IDENTITIES}))
    peer("records", folder)
    return folder


def read(folder: Path, stem: str) -> dict[int, dict[str, Any]]:
    return {record["key"]: record for record in json.loads((folder / "read.json").read_text())[stem]}


@pytest.mark.slow
def test_we_write_what_mxnet_writes(exchanged: Path) -> None:
    for suffix in (".rec", ".idx"):
        theirs = (exchanged / "theirs" / "a").with_suffix(suffix).read_bytes()
        assert (exchanged / "ours" / "a").with_suffix(suffix).read_bytes() == theirs
        assert theirs


@pytest.mark.slow
def test_mxnet_reads_what_we_write(exchanged: Path) -> None:
    found = read(exchanged, "ours/a")
    assert list(found) == [case["key"] for case in RECORDS]
    for case in RECORDS:
        record, label = found[case["key"]], case["label"]
        assert (record["image"], record["id"]) == (case["image"], case["key"])
        assert record["label"] == (label if isinstance(label, list) else [label])
        assert record["flag"] == (len(label) if isinstance(label, list) else 0)


@pytest.mark.slow
def test_we_read_what_mxnet_writes(exchanged: Path) -> None:
    reader = RecordReader(exchanged / "theirs" / "a.rec", exchanged / "theirs" / "a.idx")
    assert reader.keys.tolist() == [case["key"] for case in RECORDS]
    for position, case in enumerate(RECORDS):
        labels, image = reader.read(position)
        assert image.hex() == case["image"]
        assert labels.tolist() == (case["label"] if isinstance(case["label"], list) else [case["label"]])


@pytest.mark.slow
def test_images_that_mxnet_packed(exchanged: Path) -> None:
    """PNG pixels are exact; JPEG pixels equal those of MXNet's own decoder to one level of its rounding."""
    (exchanged / "theirs" / "property").write_text("2,12,16\n")
    source, theirs = RecordIOSource(exchanged / "theirs"), read(exchanged, "theirs/train")
    assert source.labels().tolist() == [0, 1, 1]  # the header and identity records are none of them
    for index, case in enumerate(PICTURES):
        image, label = source.read(index)
        assert image.hex() == theirs[case["key"]]["image"]
        assert label == case["label"]
        difference = decode(image, "here").astype(int) - np.array(theirs[case["key"]]["pixels"])
        assert np.abs(difference).max() <= (0 if case["format"] == ".png" else 2)
    assert (decode(source.read(0)[0], "here") == PICTURE).all()


@pytest.mark.slow
def test_mxnet_finds_the_images_of_our_folder(exchanged: Path) -> None:
    """As InsightFace's dataset does: key 0 gives the range of identity records, each of them a range of images."""
    found, expected = read(exchanged, "ours/train"), encoded(6)
    first, end = (int(number) for number in found[0]["label"])
    assert (first, end, found[0]["image"]) == (7, 10, "")
    images = []
    for key in range(first, end):
        start, stop = (int(number) for number in found[key]["label"])
        images += [(found[place]["image"], key - first) for place in range(start, stop)]
        assert {found[place]["label"][0] for place in range(start, stop)} == {key - first}
    assert images == [(image.hex(), label) for image, label in expected]


# ------------------------------------------------------------------------------------- parameters, teachers


@pytest.fixture(scope="module")
def saved_arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    peer("arrays", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain.params", "numpy.params"])
def test_arrays_of_all_types(saved_arrays: Path, name: str) -> None:
    found = read_params(saved_arrays / name)
    with np.load(saved_arrays / "values.npz") as values:
        assert sorted(found) == sorted(f"arg:{kind}" for kind in values.files)
        for kind in values.files:
            assert found[f"arg:{kind}"].dtype == values[kind].dtype
            assert (found[f"arg:{kind}"] == values[kind]).all()


@pytest.mark.slow
def test_sparse_arrays_are_refused(saved_arrays: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sparse\.params: byte \d+: array 1: must be dense .* storage type 1"):
        read_params(saved_arrays / "sparse.params")


def make_network(folder: Path, **settings: Any) -> Path:
    (folder / "network.json").write_text(json.dumps(settings))
    peer("network", folder)
    return folder


def check_embeddings(folder: Path, classes: int) -> None:
    """The imported teacher, as a run opens it, against MXNet's own forward pass."""
    found = import_checkpoint(folder / "model-symbol.json", folder / "model-0000.params", folder / "ours")
    assert found.unused == []
    config = TeacherConfig(source="checkpoint", path=str(folder / "ours" / "model.safetensors"))
    teacher = open_teacher(config, found.image_size, "cpu")
    images = (torch.from_numpy(np.load(folder / "images.npy")).float() - 127.5) / 127.5
    expected = torch.from_numpy(np.load(folder / "embeddings.npy"))
    got = teacher.embed(images)
    assert (expected[0] - expected[1]).norm() > 0.1 * expected.norm()  # they say something of the images
    assert (got - expected).norm() <= TOLERANCE * expected.norm()
    assert (got - expected).norm(dim=1).max() <= TOLERANCE * expected.norm(dim=1).min()
    rows = folder / "ours" / "classifier.safetensors"
    assert rows.exists() == bool(classes)
    if classes:
        stored = read_params(folder / "model-0000.params")["arg:fc7_weight"]
        assert torch.equal(read_matrix(rows), torch.from_numpy(stored.copy()))
        assert read_label_map("identity", classes, classes).tolist() == list(range(classes))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 10])  # a deployed network; a training checkpoint with its classifier
def test_small_teacher(tmp_path: Path, classes: int) -> None:
    size = 48 if classes else 32  # maps of 3 x 3 and 2 x 2 reach the fully connected layer
    make_network(tmp_path, units=[1, 1, 2, 1], channels=8, dim=16, size=size, images=4, classes=classes)
    check_embeddings(tmp_path, classes)


@pytest.mark.slow
def test_full_r50(tmp_path: Path) -> None:
    make_network(tmp_path, units=[3, 4, 14, 3], channels=64, dim=512, size=112, images=3, classes=100)
    check_embeddings(tmp_path, 100)


@pytest.mark.slow
def test_r100_has_our_layers_and_uses_every_name(tmp_path: Path) -> None:
    folder = make_network(tmp_path, units=[3, 13, 30, 3], channels=64, dim=512, size=112, images=0, classes=10)
    graph = read_graph(folder / "model-symbol.json")
    config = configuration(graph, "here")
    assert (config.name, config.depth, config.width, config.embedding_dim) == ("iresnet100", 1.0, 1.0, 512)
    found = list(layers(graph))
    arguments, moving = json.loads((folder / "names.json").read_text())
    used = [name for _, _, layer in found for name in layer.variables]
    assert sorted(used) == sorted(set(arguments + moving) - {"data"})
    parts = {"conv": ["weight"], "prelu": ["weight"], "linear": ["weight", "bias"]}
    parts["norm"] = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    keys = [f"{module}.{part}" for module, kind, _ in found for part in parts[kind]]
    assert sorted(keys) == sorted(build_empty(config, 112).state_dict())
