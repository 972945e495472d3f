"""A folder of photographs aligned: by given landmarks everywhere, by a real detector where its file is at hand."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.places import FACES
from partialkd.align.folder import HEADER, JOURNAL, SETTINGS, AlignOptions, align_folder, given, read_journal
from partialkd.align.landmark_file import LandmarkFile
from partialkd.align.open import detector_maker
from partialkd.align.template import TEMPLATE, moved
from partialkd.commands.align import main
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import DataError

YUNET, TEACHER = FACES / "yunet_detector.onnx", FACES / "sface_128d.onnx"


def picture(path: Path, side: int = 112, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path)


def line(path: str, points: np.ndarray = TEMPLATE) -> str:
    return f"{path} " + " ".join(f"{x:.4f}" for x in points.ravel()) + "\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(["anna/1.png", "anna/2.jpg", "bob/1.png", "bob/broken.jpg", "cleo/deep/1.png"]):
        picture(folder / name, seed=number)
    (folder / "bob" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    picture(folder / ".hidden" / "1.png")
    picture(folder / "anna" / "@eaDir" / "1.png")  # what a network disk leaves
    (tmp_path / "points.txt").write_text(
        "".join(map(line, ["anna/1.png", "anna/2.jpg", "bob/broken.jpg", "bob/1.png"]))
    )
    return folder


def align(photos: Path, *more: str) -> int:
    points = photos.parent / "points.txt"
    return main([str(photos), str(photos.parent / "out"), "--landmarks", str(points), "--workers", "2", *more])


def test_every_image_is_a_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align(photos, "--rec", str(photos.parent / "rec")) == 0
    out = photos.parent / "out"
    rows = {row[0]: row[1:] for row in read_journal(out)}
    assert list(rows) == ["anna/1.png", "anna/2.jpg", "bob/1.png", "bob/broken.jpg", "cleo/deep/1.png"]
    assert rows["anna/1.png"][0] == "anna/1.jpg"
    assert rows["bob/broken.jpg"] == ["", rows["bob/broken.jpg"][1]]
    assert rows["bob/broken.jpg"][1].startswith("broken JPEG")
    assert rows["cleo/deep/1.png"] == ["", "no landmarks given"]
    with Image.open(out / "anna" / "1.jpg") as face, Image.open(photos / "anna" / "1.png") as before:
        assert np.abs(np.array(face).astype(int) - np.array(before)).mean() < 3  # it was aligned already
    said = capsys.readouterr().out
    assert "3 faces of 3 images, of 5" in said
    assert "1 images: no landmarks given" in said
    assert len(RecordIOSource(photos.parent / "rec")) == 3


def test_a_start_that_was_broken_off_goes_on(photos: Path) -> None:
    out, landmarks = photos.parent / "out", LandmarkFile(photos.parent / "points.txt")
    for done in align_folder(photos, out, given(landmarks), {"landmarks": "points.txt"}, AlignOptions()):
        if done.image == "anna/2.jpg":
            break
    whole = (out / JOURNAL).read_text()
    (out / JOURNAL).write_text(whole + "bob/1.png,bob/1.j")  # a line that was cut short
    before = (out / "anna" / "1.jpg").stat().st_mtime_ns
    assert align(photos) == 0
    assert (out / "anna" / "1.jpg").stat().st_mtime_ns == before
    rows = list(csv.reader(io.StringIO((out / JOURNAL).read_text())))
    assert [row[0] for row in rows[1:]] == [
        "anna/1.png",
        "anna/2.jpg",
        "bob/1.png",
        "bob/broken.jpg",
        "cleo/deep/1.png",
    ]


def test_other_settings_are_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align(photos) == 0
    assert align(photos, "--size", "96") == 1
    assert "was made with other settings; choose another folder: size is 112 there, 96 here" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000], ids=["empty", "cut", "list", "too deep"])
def test_damaged_settings_are_named(text: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align(photos) == 0
    (photos.parent / "out" / SETTINGS).write_text(text)
    assert align(photos) == 1
    assert f"{photos.parent / 'out' / SETTINGS}: damaged: not the settings of a folder: " in capsys.readouterr().err


@pytest.mark.parametrize("lines", ["\n", "a.png\n", f"{'x' * 200_000},,\n"], ids=["empty", "short", "long"])
def test_a_damaged_journal_is_named(lines: str, photos: Path) -> None:
    (photos.parent / JOURNAL).write_text(f"{','.join(HEADER)}\n{lines}")
    with pytest.raises(DataError, match=f"{JOURNAL}: (damaged: field larger|not written by this program)"):
        read_journal(photos.parent)


def test_a_folder_of_somebody_else_is_left_alone(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos.parent / "out").mkdir()
    (photos.parent / "out" / "thesis.txt").write_text("years of work")
    assert align(photos) == 1
    assert "exists and was not made by this program" in capsys.readouterr().err
    assert [path.name for path in (photos.parent / "out").iterdir()] == ["thesis.txt"]


def test_landmarks_of_other_images_are_said_before_any_work(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos.parent / "points.txt").write_text(line("elsewhere/9.png"))
    assert align(photos) == 1
    assert "points.txt: 0 of 1 names found, not 'elsewhere/9.png': names no image of" in capsys.readouterr().err
    assert not (photos.parent / "out").exists()


def test_names_that_would_collide_stay_apart(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/1.jpg"):
        picture(tmp_path / "photos" / name)
    (tmp_path / "points.txt").write_text(line("a/1.png") + line("a/1.jpg"))
    assert align(tmp_path / "photos") == 0
    assert {row[1] for row in read_journal(tmp_path / "out")} == {"a/1.png.jpg", "a/1.jpg.jpg"}


def test_a_photograph_without_a_face_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a" / "1.png")
    (done,) = align_folder(tmp_path / "photos", tmp_path / "out", lambda *_: [], {}, AlignOptions())
    assert (done.image, done.faces, done.reason) == ("a/1.png", [], "no face found")
    assert read_journal(tmp_path / "out") == [["a/1.png", "", "no face found"]]


def test_a_pipe_is_a_line_and_not_waited_for(photos: Path) -> None:
    os.mkfifo(photos / "bob" / "2.png")
    assert align(photos) == 0
    rows = {row[0]: row[1:] for row in read_journal(photos.parent / "out")}
    assert rows["bob/2.png"] == ["", "cannot be read: is not a file"]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        list(align_folder(tmp_path / "none", tmp_path / "out", lambda *_: [], {}, AlignOptions()))


# -------------------------------------------------------------------------------------------- real photographs


def crops(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every hundredth aligned photograph."""
    with tarfile.open(FACES / "pubfig112.tar.gz") as archive:
        for number, member in enumerate(one for one in archive if one.isfile() and one.name.endswith(".jpg")):
            if number % 100 == 0:
                stream = archive.extractfile(member)
                assert stream is not None
                yield member.name, np.array(Image.open(stream).convert("RGB"))
                count -= 1
            if not count:
                return


def pasted(face: np.ndarray, degrees: float, scale: float, side: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """A crop turned and scaled into the middle of a grey picture, and where its landmarks then are."""
    angle, middle = np.deg2rad(degrees), (side - 1) / 2
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    transform = np.concatenate([linear, (middle - linear @ np.array([55.5, 55.5]))[:, None]], axis=1)
    inverse = np.linalg.inv(np.concatenate([transform, [[0, 0, 1.0]]]))[:2]
    shift = inverse[:, 2] + 0.5 - inverse[:, :2] @ np.array([0.5, 0.5])
    matrix = np.concatenate([inverse[:, :2], shift[:, None]], axis=1).ravel().tolist()
    image = Image.fromarray(face).transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)
    )
    return np.array(image), moved(TEMPLATE, transform)


@pytest.mark.faces
@pytest.mark.slow
def test_photographs_come_back(tmp_path: Path) -> None:
    """Crops pasted turned and scaled into larger pictures: landmarks within 4 px of 112, cosine above 0.8 for 95 %."""
    pytest.importorskip("cv2")
    if not YUNET.exists() or not TEACHER.exists():
        pytest.skip(f"needs {YUNET.name} and {TEACHER.name} in {FACES} (PARTIALKD_FACES)")
    draw = np.random.default_rng(0)
    known: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
    for number, (_, face) in enumerate(crops(40)):
        scale = float(draw.uniform(0.8, 1.6))
        image, points = pasted(face, float(draw.uniform(-20, 20)), scale)
        name = f"{number:02d}/1.png"
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "photos" / name)
        known[name] = face, points, scale
    assert main([str(tmp_path / "photos"), str(tmp_path / "out"), "--detector", str(YUNET)]) == 0
    rows = {row[0]: row for row in read_journal(tmp_path / "out") if row[1]}
    assert len(rows) >= 38
    errors = []
    for name, row in rows.items():
        found, (_, points, scale) = np.array(row[3:], dtype=float).reshape(5, 2), known[name]
        errors.append(float(np.linalg.norm(found - points, axis=1).mean()) / scale)
    assert np.mean(errors) < 4
    pairs = [(known[name][0], np.array(Image.open(tmp_path / "out" / row[1]))) for name, row in rows.items()]
    cosines = [
        float(a @ b) for a, b in zip(embedded([a for a, _ in pairs]), embedded([b for _, b in pairs]), strict=True)
    ]
    assert np.mean([cosine > 0.8 for cosine in cosines]) >= 0.95


def embedded(images: list[np.ndarray]) -> np.ndarray:
    """Unit embeddings (n, 128) by the real teacher."""
    from partialkd.models.onnx_session import OnnxSession

    session = OnnxSession(TEACHER, TEACHER.name)
    batch = np.stack(images).astype(np.float32).transpose(0, 3, 1, 2)
    (rows,) = session.run([session.outputs[0].name], {session.inputs[0].name: np.ascontiguousarray(batch)})
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.faces
def test_an_embedder_is_no_detector() -> None:
    if not TEACHER.exists():
        pytest.skip(f"needs {TEACHER.name} in {FACES} (PARTIALKD_FACES)")
    with pytest.raises(DataError, match=r"sface_128d\.onnx: a SCRFD or RetinaFace file has one input and 9 outputs"):
        detector_maker(TEACHER)
