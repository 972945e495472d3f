"""Verification sets: against one image at a time, the same on every rank and at every world size."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.ranks import run
from partialkd.config import EvaluateConfig
from partialkd.data.formats.verification_bin import write_bin
from partialkd.errors import DataError
from partialkd.evaluate.intervals import identities_of_pairs
from partialkd.evaluate.pairs import PairScores, score_pairs
from partialkd.evaluate.verification import evaluate_sets, look_at_sets, open_sets
from partialkd.evaluate.verification_tables import results_dict, results_table
from partialkd.world.world import World

SIZE = 16


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _write_set(path: Path, pairs: int = 30, size: int = SIZE) -> list[bytes]:
    """Pairs of one pattern with noise, and of two; the first image occurs in every fifth pair."""
    rng = np.random.default_rng(5)
    images: list[bytes] = []
    for pair in range(pairs):
        one, other = rng.integers(0, 256, (2, size, size, 3))
        second = one * 0.7 + other * 0.3 if pair % 2 == 0 else other
        images += [_jpeg(picture.astype(np.uint8)) for picture in (one, second)]
        if pair % 5 == 4:
            images[-2] = images[0]
    write_bin(path, images, [pair % 2 == 0 for pair in range(pairs)])
    return images


def _network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * (SIZE - 2) ** 2, 12)).eval()


def _config(*sets: Path, batch: int = 7, flip: bool = True) -> EvaluateConfig:
    return EvaluateConfig(sets=tuple(map(str, sets)), batch=batch, flip=flip, fars=(0.1, 0.3))


def _evaluate(world: World, config: EvaluateConfig) -> tuple[dict[str, PairScores], int]:
    network, sizes = _network(), []

    def embed(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return network(images)

    scores = evaluate_sets(embed, config, SIZE, False, world)
    return scores, sum(sizes)


def _reference(images: list[bytes], flip: bool) -> np.ndarray:
    network, rows = _network(), []
    for encoded in images:
        pixels = np.array(Image.open(io.BytesIO(encoded)), dtype=np.float32)
        picture = torch.from_numpy((pixels - 127.5) / 127.5).permute(2, 0, 1)[None]
        with torch.no_grad():
            row = network(picture)[0] + (network(picture.flip(3))[0] if flip else 0)
        rows.append(row.double().numpy())
    return np.array(
        [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(rows[0::2], rows[1::2], strict=True)], dtype=np.float64
    )


@pytest.mark.parametrize("flip", [True, False])
def test_scores_are_those_of_one_image_at_a_time(tmp_path: Path, flip: bool) -> None:
    images = _write_set(tmp_path / "faces.bin")
    scores, embedded = _evaluate(World(), _config(tmp_path / "faces.bin", flip=flip))
    cosines = _reference(images, flip)
    distinct = list(dict.fromkeys(images))
    places, same = np.array([distinct.index(image) for image in images]), np.arange(30) % 2 == 0
    people = identities_of_pairs(places[0::2], places[1::2], same)
    expected = score_pairs(cosines, same, 10, (0.1, 0.3), people)
    assert len(set(np.round(cosines, 3))) > 20  # they tell the pairs apart
    assert scores == {"faces": expected}
    assert embedded == len(set(images)) * (2 if flip else 1)  # each image once


@pytest.mark.distributed
def test_same_scores_on_every_rank_and_at_every_world_size(tmp_path: Path) -> None:
    """60 images with 6 repeats in batches of 7: 8 batches, 3 + 3 + 2; and in one batch: two ranks without any."""
    images = _write_set(tmp_path / "a.bin")
    _write_set(tmp_path / "b.bin", pairs=12)
    single = _evaluate(World(), _config(tmp_path / "a.bin", tmp_path / "b.bin"))[0]
    assert list(single) == ["a", "b"]
    for size in (2, 3):
        results = run(_evaluate, size, _config(tmp_path / "a.bin", tmp_path / "b.bin"))
        assert [scores for scores, _ in results] == [single] * size
        assert all(embedded > 0 for _, embedded in results)
        only_a = run(_evaluate, size, _config(tmp_path / "a.bin"))
        assert sum(embedded for _, embedded in only_a) == 2 * len(set(images))
    one_batch = run(_evaluate, 3, _config(tmp_path / "a.bin", batch=1000))
    assert [scores["a"] for scores, _ in one_batch] == [single["a"]] * 3
    assert [embedded for _, embedded in one_batch] == [2 * len(set(images)), 0, 0]


def _error(world: World, config: EvaluateConfig) -> str:
    try:
        _evaluate(world, config)
    except DataError as error:
        return str(error)
    return "evaluated"


@pytest.mark.distributed
def test_a_broken_image_is_everybodys_error(tmp_path: Path) -> None:
    images = _write_set(tmp_path / "faces.bin")
    images[57] = images[57][:40]
    write_bin(tmp_path / "faces.bin", images, [True, False] * 15)
    results = run(_error, 3, _config(tmp_path / "faces.bin"))
    assert results[0] == results[1] == results[2]
    assert results[0].startswith(f"rank 2: {tmp_path / 'faces.bin'}: image 57: ")


def test_another_size_is_an_error_unless_resized(tmp_path: Path) -> None:
    _write_set(tmp_path / "large.bin", size=2 * SIZE)
    config = _config(tmp_path / "large.bin")
    with pytest.raises(DataError, match=r"large.bin: image 0: must be 16 x 16 .* got 32 x 32"):
        evaluate_sets(_network(), config, SIZE, False, World())
    assert evaluate_sets(_network(), config, SIZE, True, World())["large"].pairs == 30


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_embedding_without_direction_is_an_error(tmp_path: Path, value: float) -> None:
    _write_set(tmp_path / "faces.bin")
    with pytest.raises(DataError, match=r"faces.bin: cosines must be finite, got nan for pair 0"):
        evaluate_sets(
            lambda images: torch.full((len(images), 4), value), _config(tmp_path / "faces.bin"), SIZE, False, World()
        )


def test_sets_are_checked_before_anything_runs(tmp_path: Path) -> None:
    _write_set(tmp_path / "few.bin", pairs=4)
    images = _write_set(tmp_path / "good.bin")
    write_bin(tmp_path / "alike.bin", images[:40], [True] * 20)
    (tmp_path / "again").mkdir()
    _write_set(tmp_path / "again" / "good.bin")
    assert open_sets(_config(tmp_path / "good.bin")) == {"good": tmp_path / "good.bin"}
    assert open_sets(EvaluateConfig()) == {}
    for paths, reason in (
        (["good.bin", "missing.bin"], r"missing.bin: cannot be read"),
        (["few.bin"], r"few.bin: must hold at least as many pairs as folds \(10\), got 4"),
        (["alike.bin"], r"alike.bin: must hold pairs of both kinds, got 20 of one person among 20"),
        (["good.bin", "again/good.bin"], r"two files are called 'good'"),
    ):
        with pytest.raises(DataError, match=reason):
            open_sets(_config(*(tmp_path / path for path in paths)))


def test_table_and_json() -> None:
    interval = {"accuracy": [0.99, 0.998], "auc": [0.99, 0.9999], "tar_at_far": {"0.1": [0.97, 1.0], "0.001": [0.9, 1]}}
    few = {"0.1": False, "0.001": True}
    scores = PairScores(0.9963, 0.0031, 0.99871, 0.312, {"0.1": 1.0, "0.001": 0.985}, 6000, 90, interval, few)
    other = PairScores(0.5, 0.01, 0.5, 0.1, {"0.1": 0.1}, 10)
    results = {"lfw": {"teacher": scores, "student": other}}
    lines = results_table(results).get_string().splitlines()
    assert [cell.strip() for cell in lines[1].split("|")[1:-1]] == [
        "set", "network", "accuracy %", "AUC", "TAR % @ FAR 0.1", "TAR % @ FAR 0.001", "threshold", "pairs",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        "lfw", "teacher", "99.63 ± 0.31 [99.0, 99.8]", "0.9987 [0.990, 1.000]", "100.00* [97.0, 100.0]", "-",
        "0.312", "6000",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]][4:6] == ["10.00", ""]
    tree = json.loads(json.dumps(results_dict(results)))
    assert tree["sets"]["lfw"]["teacher"] == {
        "accuracy": 0.9963, "accuracy_std": 0.0031, "auc": 0.99871, "threshold": 0.312,
        "tar_at_far": {"0.1": 1.0, "0.001": 0.985}, "pairs": 6000, "impostors": 90, "interval": interval,
        "too_few_impostors": few,
    }  # fmt: skip
    assert list(tree["sets"]["lfw"]) == ["teacher", "student"]


@pytest.mark.parametrize("damage", ["text", "half", "size"])
def test_every_image_is_looked_at_before_training(damage: str, tmp_path: Path) -> None:
    """The last image of the second set, which no check of the file's form would notice."""
    _write_set(tmp_path / "good.bin")
    images = _write_set(tmp_path / "bad.bin")
    last = {
        "text": b"no image at all",
        "half": images[-1][: len(images[-1]) // 2],
        "size": _jpeg(np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8)),
    }[damage]
    config = _config(tmp_path / "good.bin", tmp_path / "bad.bin")
    assert look_at_sets(config, SIZE, False, World()) == {name: tmp_path / f"{name}.bin" for name in ("good", "bad")}
    write_bin(tmp_path / "bad.bin", [*images[:-1], last], [pair % 2 == 0 for pair in range(len(images) // 2)])
    open_sets(config)
    with pytest.raises(DataError, match=rf"bad\.bin: image {len(images) - 1}: "):
        look_at_sets(config, SIZE, False, World())
    if damage == "size":
        look_at_sets(config, SIZE, True, World())


@pytest.mark.distributed
def test_ranks_share_the_look_and_all_hear_of_a_bad_image(tmp_path: Path) -> None:
    images = _write_set(tmp_path / "bad.bin")
    write_bin(tmp_path / "bad.bin", [b"text", *images[1:]], [pair % 2 == 0 for pair in range(len(images) // 2)])
    for said in run(_refused, 2, _config(tmp_path / "bad.bin")):
        assert "bad.bin: image 0: " in said


def _refused(world: World, config: EvaluateConfig) -> str:
    with pytest.raises(DataError) as refused:
        look_at_sets(config, SIZE, False, world)
    return str(refused.value)
