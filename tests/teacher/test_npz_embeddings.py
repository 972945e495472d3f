"""A teacher's embeddings out of an .npz: the same losses as live, and what is said of a file that does not fit."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.ranks import run
from helpers.teacher_cache_cases import DIM, RECORDS, losses, settings_of
from partialkd.config.load import parse_config
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import ConfigError, TeacherError
from partialkd.teacher.npz_embeddings import NpzEmbeddings

SOURCE = SyntheticSource(3, 7, 16)
PLAIN, MIRRORED = (np.random.default_rng(seed).normal(size=(7, 5)).astype(np.float32) for seed in (0, 1))
ALL: dict[str, Any] = {"embeddings": PLAIN, "flipped": MIRRORED, "labels": SOURCE.labels()}


def save(path: Path, **changes: Any) -> Path:
    np.savez(path, **{name: value for name, value in (ALL | changes).items() if value is not None})
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_rows_are_those_of_the_file(dtype: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", embeddings=PLAIN.astype(dtype), flipped=MIRRORED.astype(dtype))
    kept = NpzEmbeddings(path, SOURCE)
    records, flipped = torch.tensor([6, 0, 3, 0]), torch.tensor([True, False, False, True])
    expected = np.stack([MIRRORED[6], PLAIN[0], PLAIN[3], MIRRORED[0]]).astype(dtype).astype(np.float32)
    for one in (kept, pickle.loads(pickle.dumps(kept))):
        np.testing.assert_array_equal(one.rows(records, flipped).numpy(), expected)
    assert one.rows(records[:0], flipped[:0]).shape == (0, 5)
    assert kept.fingerprint != NpzEmbeddings(save(tmp_path / "b.npz", embeddings=2 * PLAIN), SOURCE).fingerprint


def _spoilt(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))  # type: ignore[return-value]


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another number": (lambda p: save(p, embeddings=PLAIN[:6]), r"must have a row for each of the 7 images .*, got 6"),
    "no embeddings": (lambda p: np.savez(p, PLAIN), r"needs an array embeddings \(n, D\), has arr_0"),
    "other labels": (lambda p: save(p, labels=SOURCE.labels()[::-1]), r"labels: row 1 is of class 2"),
    "labels as floats": (lambda p: save(p, labels=np.zeros(7)), r"labels must be \(7,\) integers, got \(7,\) float64"),
    "integers": (lambda p: save(p, embeddings=PLAIN.astype(int)), r"embeddings must be \(n, D\) floats, got"),
    "a vector": (lambda p: save(p, embeddings=PLAIN[0]), r"embeddings must be \(n, D\) floats, got \(5,\)"),
    "another width": (lambda p: save(p, flipped=MIRRORED[:, :4]), r"flipped must be as large as embeddings, \(7, 5\)"),
    "compressed": (lambda p: np.savez_compressed(p, **ALL), r"array embeddings: is compressed; write it with numpy"),
    "columns first": (lambda p: save(p, embeddings=np.asfortranarray(PLAIN)), r"cannot be read: it is not a whole"),
    "objects": (lambda p: save(p, embeddings=np.array([[{}]], object)), r"cannot be read: it is not a whole array"),
    "cut": (_spoilt(lambda b: b[:-30]), r"not an \.npz that can be read"),
    "a .npy": (lambda p: p.write_bytes(b"\x93NUMPY" + bytes(300)), r"not an \.npz that can be read"),
    "a bit": (_spoilt(lambda b: b.replace(PLAIN.tobytes(), PLAIN.tobytes()[:-1] + b"\0")), r"embeddings: is damaged"),
    "gone": (Path.unlink, r"a\.npz: cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_does_not_fit_is_named(what: str, tmp_path: Path) -> None:
    path, (spoil, says) = save(tmp_path / "a.npz"), WRONG[what]
    spoil(path)
    with pytest.raises(TeacherError) as caught:
        NpzEmbeddings(path, SOURCE)
    assert re.search(says, str(caught.value)), caught.value
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_rows_that_are_none(tmp_path: Path) -> None:
    bad = PLAIN.copy()
    bad[2], bad[4, 1] = 0, np.nan
    kept = NpzEmbeddings(save(tmp_path / "a.npz", embeddings=bad, flipped=None), SOURCE)
    for row in (2, 4):
        with pytest.raises(TeacherError, match=rf"embeddings: row {row} is zero or not finite, the embedding of"):
            kept.rows(torch.tensor([0, row]), torch.tensor([False, False]))
    with pytest.raises(TeacherError, match=r"has no array flipped, and an image is mirrored \(data\.flip\)"):
        kept.rows(torch.tensor([0]), torch.tensor([True]))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_learns_from_it(teacher_caches: Path, tmp_path: Path) -> None:
    """With mirrored images, the losses of the live teacher; without their embeddings the run is refused."""
    kept = np.fromfile(teacher_caches / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    np.savez(tmp_path / "teacher.npz", embeddings=kept[:, 0], flipped=kept[:, 1])
    settings = settings_of(teacher_caches, "npz", "margindistillation")
    settings["teacher"] = {"source": "npz", "path": str(tmp_path / "teacher.npz")}
    live = settings_of(teacher_caches, "live-of-npz", "margindistillation")
    assert run(losses, 2, settings)[0] == run(losses, 2, live)[0]
    np.savez(tmp_path / "teacher.npz", embeddings=kept[:, 0])
    settings["run"]["name"] = "npz-refused"
    with pytest.raises(Exception, match=r"data\.flip must be false: .*teacher\.npz has no array flipped"):
        run(losses, 2, settings)
    with pytest.raises(ConfigError, match=r'teacher\.cache: must be left out with source = "npz"'):
        parse_config({**settings, "teacher": {**settings["teacher"], "cache": "auto"}})
    with pytest.raises(ConfigError, match=r'teacher\.path: is required with source = "npz"'):
        parse_config({**settings, "teacher": {"source": "npz"}})
