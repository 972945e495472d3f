"""Sets in the form of IJB-C: made, read, embedded on any number of ranks, gone on with, refused where wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from torch import Tensor, nn

from helpers.ranks import run
from partialkd.align.template import TEMPLATE
from partialkd.data.formats.ijb_folder import TemplateSet, read_template_set
from partialkd.data.images.encode import encode_jpeg, encode_png
from partialkd.data.sources.cvlface_templates import read_cvlface
from partialkd.errors import CheckpointError, ConfigError, DataError
from partialkd.evaluate import embedding as embedding_module
from partialkd.evaluate.embedding import Images, Kept, embed_images, look_at
from partialkd.evaluate.made_templates import make_templates
from partialkd.evaluate.template_protocol import (
    Asked,
    check_set,
    faces_of,
    facts_of,
    identification_table,
    score_templates,
    verification_table,
)  # fmt: skip
from partialkd.world.world import World

SIZE = 112


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people of eight smooth patterns that differ less within a person than between them."""
    folder, rng = tmp_path_factory.mktemp("faces") / "faces", np.random.default_rng(2)
    for person in range(10):
        (folder / f"person{person}").mkdir(parents=True)
        base = rng.uniform(0, 255, (7, 7, 3))
        for image in range(8):
            coarse = np.clip(base + rng.normal(0, 25, base.shape), 0, 255)
            pixels = np.kron(coarse, np.ones((16, 16, 1))).astype(np.uint8)
            (folder / f"person{person}" / f"{image}.jpg").write_bytes(encode_jpeg(pixels))
    return folder


@pytest.fixture(scope="module")
def made(faces: Path) -> Path:
    counts = make_templates(faces, faces.parent / "set", seed=4)
    assert counts == {"identities": 10, "images": 10 * (2 + 3 * 4), "templates": 40}
    return faces.parent / "set"


def _network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, 12)).eval()


def _results(world: World, folder: Path, keep: Path | None) -> dict[str, Any]:
    found = read_template_set(folder)
    kept = Kept(keep, facts_of(found)) if keep else None
    embedding_module.PIECE = 16
    return score_templates(embed_images(_network(), faces_of(found, SIZE), SIZE, 5, world, kept), found, Asked())


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # as ranks have: sums are rounded otherwise with more
def test_the_same_numbers_on_any_number_of_ranks(made: Path, tmp_path: Path) -> None:
    expected = _results(World(), made, None)
    one = expected["N1D1F1"]
    assert one["verification"]["genuine"] == 30
    assert one["verification"]["tar_at_far"]["0.001"]["too_few_impostors"]
    assert one["verification"]["tar_at_far"]["0.1"]["tar"] > 0.5
    assert one["identification"]["rank"]["10"] == 1.0
    assert 0.2 < one["identification"]["tpir_at_fpir"]["0.1"]["tpir"] <= 1.0
    for size in (2, 3):
        assert all(result == expected for result in run(_results, size, made, tmp_path / f"kept{size}"))
    rates = one["verification"]["tar_at_far"]
    for rate in rates.values():
        for number in ("", "_published"):
            low, high = rate[f"interval{number}"]
            assert low <= rate[f"tar{number}"] <= high
    shown = verification_table(expected, "student").get_string()
    low, high = (f"{100 * end:.1f}" for end in rates["0.1"]["interval"])
    assert f"| {100 * rates['0.1']['tar']:.2f} [{low}, {high}] |" in shown  # of 570 impostors
    assert f"{100 * rates['0.01']['tar']:.2f}* [" in shown
    strict, published = (line.split("|")[2].strip() for line in shown.splitlines()[3:5])
    assert (strict, published) == ("-", "-")  # FAR 1e-6
    assert rates["1e-06"]["tar_published"] >= 0
    named = identification_table(expected, "student").get_string()
    assert "rank-10 %" in named
    low, high = (f"{100 * end:.1f}" for end in one["identification"]["interval"]["rank"]["10"])
    assert f"100.00 [{low}, {high}]" in named


def test_photographs_are_aligned_by_their_landmarks(made: Path, faces: Path) -> None:
    found = read_template_set(made)
    originals = [embed_of(path) for path in sorted(faces.rglob("*.jpg"))]
    images = faces_of(found, SIZE)
    stills = [image for image in range(images.count) if found.scores[image] == 1][:10]
    for image in stills:
        face = images.pixels(image).astype(float)
        assert face.shape == (SIZE, SIZE, 3)
        nearest = min(np.abs(face - original).mean() for original in originals)
        assert nearest < 12, images.name(image)  # of 255, mostly at the patterns' edges


def embed_of(path: Path) -> np.ndarray:
    from partialkd.data.images.decode import decode

    return decode(path.read_bytes(), str(path)).astype(float)


def test_a_pass_that_was_killed_is_gone_on_with(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_module, "PIECE", 16)
    found = read_template_set(made)
    images, kept, seen = faces_of(found, SIZE), Kept(tmp_path / "kept", facts_of(found)), []
    network = _network()

    def dying(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        if sum(seen) > 100:
            raise DataError("killed")
        return network(pixels)

    with pytest.raises(DataError, match="killed"):
        embed_images(dying, images, SIZE, 8, World(), kept)
    there = sorted(path.name for path in kept.folder.glob("*.npy"))
    assert there == [f"piece_{number:06d}.npy" for number in range(3)]
    seen.clear()

    def counting(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return network(pixels)

    rows = embed_images(counting, images, SIZE, 8, World(), kept)
    assert sum(seen) == 2 * (images.count - 3 * 16)
    assert np.array_equal(rows, embed_images(network, images, SIZE, 8, World()))
    with pytest.raises(ConfigError, match="holds embeddings of another network or list"):
        embed_images(network, images, SIZE, 8, World(), Kept(kept.folder, {"other": 1}))
    damaged = bytearray(kept.path(1).read_bytes())
    damaged[-1] ^= 1
    for content in (bytes(damaged), b"", b"x\n", bytes(damaged[:-3])):
        kept.path(1).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"piece_000001.npy: damaged: .*; remove it"):
            embed_images(network, images, SIZE, 8, World(), kept)


def test_an_image_without_direction_is_named() -> None:
    images = Images(3, lambda _: np.zeros((8, 8, 3), np.uint8), lambda image: f"face {image}", "embedding")
    with pytest.raises(DataError, match="face 1: its embedding is zero or not finite"):
        embed_images(lambda pixels: torch.tensor([[1.0], [0.0], [2.0]])[: len(pixels)], images, 8, 3, World())


Edit = Callable[[Path], None]


def _line(name: str, number: int | slice, text: str | None) -> Edit:
    """Replace a line of a list (or several by one), or take it away."""
    place = number if isinstance(number, slice) else slice(number - 1, number)

    def edit(folder: Path) -> None:
        path = folder / "meta" / f"made_{name}"
        lines = path.read_text().splitlines()
        lines[place] = [] if text is None else [text]
        path.write_text("\n".join(lines) + "\n")

    return edit


def _nothing_detected(folder: Path) -> None:
    path = folder / "meta" / "made_name_5pts_score.txt"
    lines = [line.rpartition(" ")[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(f"{line} {0 if at < 2 else 0.9}" for at, line in enumerate(lines)))


FIVE = " ".join(f"{value}" for value in TEMPLATE.ravel())
WRONG: dict[str, tuple[Edit, str]] = {
    "no meta": (lambda folder: shutil.rmtree(folder / "meta"), "not a set of templates: no folder meta in it"),
    "no list": (
        lambda folder: (folder / "meta" / "made_face_tid_mid.txt").unlink(),
        r"meta: no \*_face_tid_mid.txt in it",
    ),
    "words": (_line("face_tid_mid.txt", 3, "3.jpg 1"), r"face_tid_mid.txt: line 3: must hold 3 words, got 2"),
    "number": (_line("face_tid_mid.txt", 3, "3.jpg one 3"), r"face_tid_mid.txt: line 3: must be a number, got 'one'"),
    "other image": (
        _line("name_5pts_score.txt", 2, f"9.jpg {FIVE} 0.9"),
        r"name_5pts_score.txt: line 2: must be image 2.jpg as in made_face_tid_mid.txt, got 9.jpg",
    ),
    "scores missing": (
        _line("name_5pts_score.txt", 140, None),
        r"must hold a line per image of made_face_tid_mid.txt: 140.jpg and what follows is missing",
    ),
    "nan": (_line("name_5pts_score.txt", 1, f"1.jpg {FIVE} nan"), r"line 1: must be a number, got 'nan'"),
    "unknown template": (
        _line("template_pair_label.txt", 5, "1 999 0"),
        r"template_pair_label.txt: line 5: template 999 has no image in \*_face_tid_mid.txt",
    ),
    "label": (_line("template_pair_label.txt", 5, "1 2 7"), r"line 5: the label must be 1 \(same\) or 0, got 7"),
    "pair": (_line("template_pair_label.txt", 5, "1 2"), r"line 5: must hold 3 words, got 2"),
    "gallery": (
        _line("1N_gallery_G1.csv", 3, "999,1"),
        r"gallery_G1.csv: line 3: template 999 has no image in \*_face_tid_mid.txt",
    ),
    "twice": (_line("1N_gallery_G1.csv", 3, "2,0"), r"gallery_G1.csv: subject 0 has several templates"),
    "probe": (_line("1N_probe_mixed.csv", 2, "2"), r"line 2: must begin with TEMPLATE_ID,SUBJECT_ID, got '2'"),
    "itself": (_line("template_pair_label.txt", 5, "2 2 0"), r"line 5: template 2 and itself are not two people"),
    "blank line": (
        _line("template_pair_label.txt", 5, "\n\n1 999 0"),
        r"template_pair_label.txt: line 7: template 999 has no image in",
    ),
    "long number": (_line("template_pair_label.txt", 5, f"1 {10**22} 0"), r"line 5: must be a whole number of at most"),
    "long template": (_line("face_tid_mid.txt", 1, f"1.jpg {10**22} 1"), r"line 1: must be a whole number of at most"),
    "no pairs": (_line("template_pair_label.txt", slice(None), None), r"template_pair_label.txt: no pairs in it"),
    "genuine only": (
        _line("template_pair_label.txt", slice(None), "1 2 1"),
        r"set: its pairs of templates must be of both kinds, got 1 of one person among 1",
    ),
    "impostors only": (
        _line("template_pair_label.txt", slice(None), "1 2 0"),
        r"set: its pairs of templates must be of both kinds, got 0 of one person among 1",
    ),
    "one point": (
        _line("name_5pts_score.txt", 3, f"3.jpg {'7 ' * 10}0.9"),
        r"name_5pts_score.txt: line 3: its five landmarks are one and the same point",
    ),
    "negative score": (
        _line("name_5pts_score.txt", 3, f"3.jpg {FIVE} -0.5"),
        r"line 3: the score must be 0 or more, got -0.5",
    ),
    "nothing detected": (_nothing_detected, r"face_tid_mid.txt: line 1: template 1 has no image with a detector's"),
    "one score too many": (
        _line("name_5pts_score.txt", 141, f"x.jpg {FIVE} 0.9"),
        r"name_5pts_score.txt: line 141: made_face_tid_mid.txt has 140 images, this is one more",
    ),
    "no header": (_line("1N_gallery_G1.csv", 1, None), r"G1.csv: line 1: must be a header \(TEMPLATE_ID,SUBJECT_ID\)"),
    "no mates": (
        _line("1N_probe_mixed.csv", slice(1, None), "2,777"),
        r"set: no probe shows a subject of the galleries",
    ),
    "no image": (lambda folder: (folder / "loose_crop" / "7.jpg").unlink(), r"7.jpg: no such image \(.*: line 7, of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_before_anything_is_embedded(case: str, made: Path, tmp_path: Path) -> None:
    edit, message = WRONG[case]
    shutil.copytree(made, tmp_path / "set")
    edit(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        check_set(read_template_set(tmp_path / "set"), Asked())


def test_faces_that_are_aligned_already(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "set")
    images = faces_of(read_template_set(made), SIZE)
    shutil.rmtree(tmp_path / "set" / "loose_crop")
    (tmp_path / "set" / "aligned").mkdir()
    for image in range(images.count):
        (tmp_path / "set" / "aligned" / f"{image + 1}.jpg").write_bytes(encode_jpeg(images.pixels(image)))
    found = read_template_set(tmp_path / "set")
    check_set(found, Asked())
    assert found.aligned
    assert np.abs(faces_of(found, SIZE).pixels(5).astype(float) - images.pixels(5)).mean() < 3
    with pytest.raises(DataError, match=r"1\.jpg: must be 64 x 64 pixels"):
        look_at(faces_of(found, 64), World())
    look_at(faces_of(found, SIZE), World())
    (tmp_path / "set" / "aligned" / "3.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.jpg: the image is empty"):
        look_at(faces_of(found, SIZE), World())


def test_too_few_identities(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces / "person1", tmp_path / "few" / "person1")
    with pytest.raises(DataError, match="a set needs four identities of at least 6 images, got 1"):
        make_templates(tmp_path / "few", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _as_cvlface(found: TemplateSet, folder: Path, order: np.ndarray, **changed: Any) -> None:
    """The same set as CVLface has it, rows in another order."""
    folder.mkdir()
    images = faces_of(found, SIZE)
    rows = [{"bytes": encode_png(images.pixels(int(image))), "path": None} for image in order]
    table = pyarrow.table({"image": rows, "index": order})
    with pyarrow.OSFile(str(folder / "data.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    assert found.pairs is not None
    first, second, same = found.pairs
    arrays = {"templates": found.templates, "medias": found.media, "faceness_scores": found.scores}
    torch.save({**arrays, "p1": first, "p2": second, "label": same.astype(np.int64), **changed}, folder / "metadata.pt")


def test_cvlfaces_layout_gives_the_same_numbers(made: Path, tmp_path: Path) -> None:
    found = read_template_set(made)
    order = np.random.default_rng(0).permutation(len(found.names))
    _as_cvlface(found, tmp_path / "set", order)
    other = read_cvlface(tmp_path / "set")
    scored = [
        score_templates(embed_images(_network(), faces_of(one, SIZE), SIZE, 7, World()), one, Asked())
        for one in (found, other)
    ]
    for setting, results in scored[1].items():
        assert results == {"verification": scored[0][setting]["verification"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"medias": np.zeros(3)}, r"metadata.pt: medias must be as long as templates \(140\), got 3"),
        ({"p1": np.full(600, 9999)}, r"metadata.pt: p1: template 9999 has no image"),
        ({"label": None}, r"metadata.pt: label must be a list of finite numbers"),
        ({"label": Path("x")}, r"metadata.pt: must be a dictionary of arrays .* not unpickled"),
    ],
)
def test_wrong_metadata_is_named(changed: dict[str, Any], message: str, made: Path, tmp_path: Path) -> None:
    found = read_template_set(made)
    assert found.pairs is not None
    changed = {key: value[: len(found.pairs[0])] if key == "p1" else value for key, value in changed.items()}
    _as_cvlface(found, tmp_path / "set", np.arange(len(found.names)), **changed)
    with pytest.raises(DataError, match=message):
        read_cvlface(tmp_path / "set")
