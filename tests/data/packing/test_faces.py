"""Procedural faces: reproducible pictures, disjoint identities, a task that pixels cannot solve and a network can."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from partialkd.config import ProceduralConfig
from partialkd.data.formats.verification_bin import read_bin
from partialkd.data.images.decode import decode
from partialkd.data.images.tensors import to_tensor
from partialkd.data.packing import drawn_faces as faces
from partialkd.data.packing.drawn_faces import HELD_OUT, make_faces, verification_pairs
from partialkd.data.packing.face_drawing import draw_face, draw_jpegs
from partialkd.data.packing.face_traits import IDENTITY, NUISANCE, identity_traits
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import DataError
from partialkd.storage.manifest import MANIFEST

SMALL = ProceduralConfig(
    kind="procedural", identities=5, images_per_identity=4, held_out_identities=6, pairs=20, seed=7
)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_folder_holds_what_its_settings_say(tmp_path: Path) -> None:
    facts = make_faces(SMALL, 32, tmp_path / "faces")
    assert facts == {"images": 20, "identities": 5, "pairs": {"faces.bin": 20}}
    source = RecordIOSource(tmp_path / "faces")
    assert (source.num_classes, source.height, source.width) == (5, 32, 32)
    np.testing.assert_array_equal(source.labels(), np.repeat(np.arange(5), 4))
    pictures = [source.read(index)[0] for index in range(len(source))]
    assert pictures == draw_jpegs(7, 32, [(who, image) for who in range(5) for image in range(4)])
    assert decode(pictures[0], "first").shape == (32, 32, 3)
    evaluated = read_bin(tmp_path / "faces" / "faces.bin")
    assert evaluated.same.tolist() == [True, False] * 10
    assert set(pictures).isdisjoint(evaluated.images)


def test_pairs_are_of_held_out_identities() -> None:
    config = ProceduralConfig(kind="procedural", held_out_identities=9, pairs=400)
    keys, same = verification_pairs(config)
    people = np.array(keys)[:, 0].reshape(-1, 2) - HELD_OUT
    images = np.array(keys)[:, 1].reshape(-1, 2)
    np.testing.assert_array_equal(people[:, 0] == people[:, 1], same)
    assert (images[same, 0] != images[same, 1]).all()
    assert set(people.ravel().tolist()) == set(range(9))
    assert images.min() == 0
    assert images.max() == config.images_per_identity - 1
    fewer = ProceduralConfig(kind="procedural", identities=3, held_out_identities=9, pairs=400)
    assert verification_pairs(fewer)[0] == keys  # the size of the training set does not matter


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(faces, "_CHUNK", 7)
    make_faces(SMALL, 32, tmp_path / "one", processes=1)
    make_faces(SMALL, 32, tmp_path / "two", processes=2)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")


def test_pictures_depend_on_seed_identity_and_image() -> None:
    base = draw_jpegs(0, 32, [(3, 1)])
    assert draw_jpegs(0, 32, [(8, 8), (3, 1)])[1:] == base
    assert len({*base, *draw_jpegs(1, 32, [(3, 1)]), *draw_jpegs(0, 32, [(4, 1), (3, 2)])}) == 4


def test_every_trait_is_in_its_range_and_changes_the_picture() -> None:
    """At one end or the other of its range; all other traits at rest."""
    drawn = np.array([list(identity_traits(0, who).values()) for who in range(300)])
    low, high = np.array(list(IDENTITY.values())).T
    assert ((drawn >= low) & (drawn <= high)).all()
    assert (np.ptp(drawn, axis=0) > 0.9 * (high - low)).all()
    who = {key: (low + high) / 2 for key, (low, high) in IDENTITY.items()} | {
        "hair_length": -0.5,
        "mole": 1.0,
        "mole_x": 0.3,
        "fringe": 0.3,
    }
    how = {key: (low + high) / 2 for key, (low, high) in NUISANCE.items()} | {"blob": 1.0, "blob_x": 0.7}

    def picture(changed: dict[str, float]) -> np.ndarray:
        traits = {key: changed.get(key, value) for key, value in (who | how).items()}
        return draw_face(traits, traits, 64, np.random.default_rng(0)).astype(float)

    rest = picture({})
    for key, ends in (IDENTITY | NUISANCE).items():
        if key != "quality":  # of the JPEG
            assert max(np.abs(picture({key: end}) - rest).max() for end in ends) > 0, key


def test_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    facts = make_faces(SMALL, 32, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make_faces(SMALL, 32, folder) == facts
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other = SMALL.model_copy(update={"identities": 6})
    with pytest.raises(DataError, match=r"faces: .*other settings.*identities is 5 there, 6 here"):
        make_faces(other, 32, folder)
    with pytest.raises(DataError, match="image_size is 32 there, 48 here"):
        make_faces(SMALL, 48, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.rec").write_bytes(b"precious")
    with pytest.raises(DataError, match="mine: exists and was not made by this program"):
        make_faces(SMALL, 32, tmp_path / "mine")
    (tmp_path / "mine" / MANIFEST).write_text("{]")
    with pytest.raises(DataError, match="mine: exists and was not made by this program"):
        make_faces(SMALL, 32, tmp_path / "mine")
    assert (tmp_path / "mine" / "train.rec").read_bytes() == b"precious"


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(faces, "write_bin", full)
    with pytest.raises(OSError, match="no space left"):
        make_faces(SMALL, 32, tmp_path / "faces")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ difficulty


def _accuracy(embeddings: Tensor) -> float:
    """10-fold verification accuracy of (2n, ...) embeddings, pairs alternately of one person and of two."""
    rows = normalize(embeddings.reshape(len(embeddings), -1).double())
    cosines = (rows[0::2] * rows[1::2]).sum(1).numpy()
    same = np.arange(len(cosines)) % 2 == 0
    accuracies = []
    for fold in np.array_split(np.arange(len(cosines)), 10):
        rest = np.setdiff1d(np.arange(len(cosines)), fold)
        thresholds = np.sort(cosines[rest])
        correct = [((cosines[rest] >= threshold) == same[rest]).mean() for threshold in thresholds]
        accuracies.append(((cosines[fold] >= thresholds[int(np.argmax(correct))]) == same[fold]).mean())
    return float(np.mean(accuracies))


def _images(keys: list[tuple[int, int]]) -> Tensor:
    return to_tensor([decode(picture, "face") for picture in draw_jpegs(0, 32, keys)], 32)


def _network(classes: int) -> tuple[nn.Module, nn.Parameter]:
    def block(channels: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.PReLU(out)]

    layers = [*block(3, 24), *block(24, 48), *block(48, 96), nn.Flatten(), nn.Linear(96 * 16, 64), nn.BatchNorm1d(64)]
    return nn.Sequential(*layers), nn.Parameter(0.1 * torch.randn(classes, 64))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_network_recognises_unseen_people_where_pixels_do_not() -> None:
    config = ProceduralConfig(kind="procedural", held_out_identities=60, images_per_identity=12, pairs=400)
    held_out = _images(verification_pairs(config)[0])
    images = _images([(who, image) for who in range(120) for image in range(12)])
    labels = torch.arange(120).repeat_interleave(12)
    torch.manual_seed(0)
    network, centres = _network(120)
    optimizer = torch.optim.SGD([*network.parameters(), centres], lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8 * 22)
    for _ in range(8):
        for rows in torch.randperm(1440)[: 22 * 64].split(64):
            cosines = normalize(network(images[rows])) @ normalize(centres).T
            cross_entropy(24 * (cosines - 0.2 * one_hot(labels[rows], 120)), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    network.eval()
    with torch.no_grad():
        learned = _accuracy(network(held_out) + network(held_out.flip(3)))
    pixels = max(_accuracy(held_out), _accuracy(held_out - held_out.mean(0)))
    assert 0.5 < pixels < 0.66
    assert learned > 0.7
