"""Identification sets and all pairs by the command, and their folders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pytest
import torch

from partialkd.commands import protocols
from partialkd.commands.evaluate import main
from partialkd.commands.export import main as export
from partialkd.config import ModelConfig
from partialkd.data.formats.identification_folder import read_identification_set
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.sources.cvlface_tinyface import read_cvlface_identification
from partialkd.errors import ConfigError, DataError
from partialkd.evaluate.all_pair_intervals import threshold_interval
from partialkd.evaluate.all_pairs import all_pairs
from partialkd.evaluate.card import FORMAT, read_card
from partialkd.evaluate.embedding import embed_images
from partialkd.evaluate.identification_protocol import read_identities
from partialkd.evaluate.intervals import People, threshold
from partialkd.models import build_model
from partialkd.models.saved import read_metadata, save_model

MODEL = ModelConfig(name="mobilefacenet", embedding_dim=16, width=0.25)
SIZE = 32


pytestmark = pytest.mark.usefixtures("own_world")


def _write(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (4, 4, 3))
    path.write_bytes(encode_jpeg(np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for person in range(6):
        for image in range(3):
            _write(tmp_path / "set" / "probes" / f"p{person}" / f"{image}.jpg", rng)
    for number in range(40):
        _write(tmp_path / "set" / "distractors" / "a" / f"{number}.jpg", rng)
    return tmp_path / "set"


def _judge(tmp_path: Path, *arguments: str) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    torch.manual_seed(0)
    save_model(tmp_path / "net.safetensors", build_model(MODEL, SIZE).eval(), MODEL, SIZE)
    out = tmp_path / "out.json"
    assert main([str(tmp_path / "net.safetensors"), *arguments, "--device", "cpu", "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_distractors_by_the_command(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "noisy.txt").write_text("# published\n3\ta/7.jpg\nprobes/p0/0.jpg\n")
    found = _judge(tmp_path, "--identify", str(folder), "--fars", "0.01", "1e-6")
    one = found["identification"]["set"]["net.safetensors"]
    assert (one["probes"], one["distractors"], one["noisy"], one["impostors"]) == (17, 39, 2, 17 * 39)
    assert [one["tar_at_far"][far]["too_few_impostors"] for far in ("0.01", "1e-06")] == [False, True]
    assert 0 < one["rank"]["1"] <= one["rank"]["100"] == 1.0
    assert "rank-100 %" in capsys.readouterr().out


def test_one_row_an_image_is_held_of_what_is_looked_for(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million distractors both embeddings would be 4 GB; with and without files that keep both of them."""
    shapes = []

    def embedded(*arguments: Any) -> np.ndarray:
        shapes.append((rows := embed_images(*arguments)).shape)
        return rows

    monkeypatch.setattr(protocols, "embed_images", embedded)
    options = "--identify", str(folder), "--all-pairs", str(folder / "probes"), "--fars", "0.1"
    plain, kept = _judge(tmp_path, *options), _judge(tmp_path, *options, "--keep", str(tmp_path / "kept"))
    assert shapes == [(1, 58, 16), (1, 18, 16)] * 2
    assert plain["identification"] == kept["identification"]


def test_a_gallery_by_the_command(tmp_path: Path, folder: Path) -> None:
    rng = np.random.default_rng(1)
    for person in range(6):
        _write(folder / "gallery" / f"p{person}_9.jpg", rng)
    found = _judge(tmp_path, "--identify", str(folder), "--keep", str(tmp_path / "kept"))
    one = found["identification"]["set"]["net.safetensors"]
    assert (one["probes"], one["gallery"], one["distractors"]) == (18, 6, 40)
    assert (tmp_path / "kept" / "set_identification" / "manifest.json").exists()


def test_all_pairs_with_groups_by_the_command(tmp_path: Path, folder: Path) -> None:
    people = folder / "probes"
    lines = [f"p{person},{'odd' if person % 2 else 'even'}" for person in range(6)]
    (people / "groups.csv").write_text("identity,group\n" + "\n".join(lines) + "\n")
    found = _judge(tmp_path, "--all-pairs", str(people), "--fars", "0.1")
    one = found["all_pairs"]["probes"]["net.safetensors"]
    assert {name: (part["genuine"], part["impostors"]) for name, part in one.items()} == {
        "all": (18, 135), "even": (9, 27), "odd": (9, 27),
    }  # fmt: skip
    for text, message in (
        ("identity,group\nsomebody,odd\n", "line 2: no identity 'somebody' in"),
        ("p0,odd\np1,odd\n", "line 1: must be identity,group, got 'p0,odd'"),
        ("identity,group\np0,\n", "line 2: a group must have a name, and not 'all', got ''"),
        ("identity,group\np0,all\n", "line 2: a group must have a name, and not 'all', got 'all'"),
    ):
        (people / "groups.csv").write_text(text)
        with pytest.raises(DataError, match=rf"groups.csv: {message}"):
            read_identities(people)


def _as_cvlface(folder: Path, out: Path, **changed: object) -> None:
    """The same set as CVLface has TinyFace: rows in another order, subjects as numbers in the names."""
    name = lambda path: f"x/{path.parent.name[1:]}_{path.stem}.jpg" if path.parent.name != "a" else f"x/d{path.name}"
    parts = {part: sorted((folder / part).rglob("*.jpg")) for part in ("probes", "gallery", "distractors")}
    files = [path for paths in parts.values() for path in paths][::-1]
    rows = [{"bytes": path.read_bytes(), "path": None} for path in files]
    columns = {"image": rows, "index": range(len(files)), "path": [name(path) for path in files]}
    table = pyarrow.table(columns)
    out.mkdir()
    with pyarrow.OSFile(str(out / "data.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    lists = {
        "image_paths": columns["path"],
        "probe_paths": np.array([name(path) for path in parts["probes"]]),
        "gallery_paths": [name(path) for path in parts["gallery"]],
        "distractor_paths": [name(path).removesuffix(".jpg") for path in parts["distractors"]],
    }
    torch.save({**lists, **changed}, out / "metadata.pt")


def test_tinyface_as_cvlface_has_it_gives_the_same_numbers(tmp_path: Path, folder: Path) -> None:
    rng = np.random.default_rng(1)
    for person in range(5):
        _write(folder / "gallery" / f"p{person}" / "9.jpg", rng)
    _as_cvlface(folder, tmp_path / "cvl")
    found = _judge(tmp_path, "--identify", str(folder), str(tmp_path / "cvl"))["identification"]
    assert found["cvl"] == found["set"]
    assert found["cvl"]["net.safetensors"]["probes"] == 18
    for number, (key, value, message) in enumerate(
        [
            ("gallery_paths", ["x/7_1.jpg"], "gallery_paths: entry 0: no face '7_1' in the table"),
            ("probe_paths", [3], "probe_paths must be a list of strings, got list"),
            ("gallery_paths", [], "must name probes and a gallery, got 18 and 0"),
        ]
    ):
        _as_cvlface(folder, tmp_path / f"wrong{number}", **{key: value})
        with pytest.raises(DataError, match=message):
            read_cvlface_identification(tmp_path / f"wrong{number}")


def test_results_are_named_by_folders(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder one stands in has a name, too; two of one name are refused."""
    monkeypatch.chdir(folder / "probes")
    found = _judge(tmp_path, "--all-pairs", ".", "--fars", "0.1", "--card", str(tmp_path / "card.json"))
    assert list(found["all_pairs"]) == ["probes"]
    assert json.loads((tmp_path / "card.json").read_text())["faces"]["folder"] == "probes"
    for number in range(4):
        _write(tmp_path / "probes" / f"q{number // 2}" / f"{number}.jpg", np.random.default_rng(number))
    both = argparse.Namespace(
        templates=[], identify=[], all_pairs=[".", str(tmp_path / "probes")], fars=None, card=None
    )
    with pytest.raises(ConfigError, match=r"^\. and .*/probes are both called 'probes': results are named by"):
        protocols.opened(both)


def test_wrong_folders(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="not a set for identification: no folder probes in it"):
        read_identification_set(tmp_path)
    (folder / "noisy.txt").write_text("other/list.jpg\n")
    with pytest.raises(DataError, match=r"noisy.txt: line 1: no image other/list.jpg, nor any other of the list"):
        read_identification_set(folder)
    torch.manual_seed(0)
    save_model(tmp_path / "net.safetensors", build_model(MODEL, SIZE).eval(), MODEL, SIZE)
    assert main([str(tmp_path / "net.safetensors")]) == 2
    assert "nothing to judge by: name --sets, --templates, --identify or --all-pairs" in capsys.readouterr().err


def test_what_cannot_be_judged_is_named_before_anything_is_embedded(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    people = folder / "probes"
    torch.manual_seed(0)
    save_model(tmp_path / "net.safetensors", build_model(MODEL, SIZE).eval(), MODEL, SIZE)

    def refused(*arguments: str) -> str:
        assert main([str(tmp_path / "net.safetensors"), *arguments, "--keep", str(tmp_path / "kept")]) in (1, 2)
        assert not (tmp_path / "kept").exists()
        (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return said

    (people / "groups.csv").write_text("identity,group\np0,alone\n")
    rule = "group 'alone': must hold pairs of both kinds, got 3 of one person and 0 of two"
    assert f"groups.csv: {rule}" in refused("--all-pairs", str(people))
    (people / "groups.csv").unlink()
    monkeypatch.setattr("partialkd.evaluate.all_pairs.MOST_KEPT", 20)
    assert "probes: a FAR of 0.2 among 135 impostor pairs is too loose" in refused(
        "--all-pairs", str(people), "--fars", "0.1"
    )
    monkeypatch.undo()
    (folder / "distractors" / "a" / "7.jpg").write_bytes(encode_jpeg(np.zeros((24, 24, 3), np.uint8)))
    both = ("--all-pairs", str(people), "--identify", str(folder))
    assert f"{folder}/distractors/a/7.jpg: must be 32 x 32 pixels (--resize brings" in refused(*both)
    for person in range(6):
        for image in (1, 2):
            (people / f"p{person}" / f"{image}.jpg").unlink()
    assert f"{folder}: no person has two probes" in refused("--identify", str(folder))
    _write(folder / "gallery" / "q" / "0.jpg", np.random.default_rng(1))
    assert f"{folder}: no probe shows a subject of the gallery" in refused("--identify", str(folder))


@pytest.mark.slow
def test_a_threshold_card_and_its_way_into_exported_files(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, people = tmp_path / "card.json", folder / "probes"
    _judge(tmp_path, "--all-pairs", str(people), "--fars", "0.1", "--card", str(card), "--precision", "fp32", "bf16")
    assert "cosine @ FAR 0.001" in capsys.readouterr().out
    found = json.loads(card.read_text())
    assert set(found["thresholds"]) == {"fp32", "bf16"}
    one = found["thresholds"]["fp32"]["flip"]["all"]
    assert (one["images"], one["identities"], one["genuine"], one["impostors"]) == (18, 6, 18, 135)
    assert one["at_far"]["0.001"]["too_few_impostors"]
    assert export([str(tmp_path / "net.safetensors"), str(tmp_path / "out"), "--card", str(card)]) == 0
    written = json.loads(read_metadata(tmp_path / "out" / "model.safetensors")["thresholds"])
    assert written["fp32"]["plain"]["all"]["0.001"]["threshold"] == pytest.approx(
        found["thresholds"]["fp32"]["plain"]["all"]["at_far"]["0.001"]["threshold"]
    )
    properties = {one.key: one.value for one in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert json.loads(properties["thresholds"]) == written
    save_model(tmp_path / "other.safetensors", build_model(MODEL, SIZE).eval(), MODEL, SIZE)
    assert export([str(tmp_path / "other.safetensors"), str(tmp_path / "no"), "--card", str(card)]) == 1
    assert "the card of another network ('net.safetensors')" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_card_that_cannot_be_made(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "net.safetensors", build_model(MODEL, SIZE).eval(), MODEL, SIZE)
    assert main([str(tmp_path / "net.safetensors"), "--card", str(tmp_path / "card.json")]) == 2
    assert "--card needs one folder of identities: --all-pairs FOLDER, got 0" in capsys.readouterr().err
    assert main([str(tmp_path / "net.safetensors"), "--all-pairs", str(folder), "--card", str(tmp_path)]) == 2
    assert f"--card {tmp_path}: must be a file, is a folder" in capsys.readouterr().err
    whole: dict[str, Any] = {"format": FORMAT, "fingerprint": ""}
    part = {"at_far": {"0.001": {"threshold": 0.1, "interval": [0, 1], "too_few_impostors": False}}, "impostors": 9}
    for content in (
        {}, {**whole, "thresholds": {}}, {**whole, "thresholds": {"fp32": []}}, {**whole, "thresholds": {"fp32": {}}},
        {**whole, "thresholds": {"fp32": {"flip": {"all": part}, "plain": {"all": part}}}},
    ):  # fmt: skip
        (tmp_path / "card.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r"card.json: not a threshold card"):
            read_card(tmp_path / "card.json", "")


def test_the_cards_interval_is_that_of_a_list_of_pairs() -> None:
    rng = np.random.default_rng(3)
    identities = np.repeat(np.arange(40), 4)
    rows = rng.normal(size=(160, 16)) + rng.normal(size=(40, 16))[identities]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    a, b = np.triu_indices(160, 1)
    apart = identities[a] != identities[b]
    scores = (rows[a] * rows[b]).sum(1)[apart]
    expected = threshold(scores, People(identities[a][apart], identities[b][apart]), 1e-2)
    assert threshold_interval(all_pairs(rows, identities, (0.05,)), identities, 1e-2) == pytest.approx(
        expected, abs=1e-5
    )
