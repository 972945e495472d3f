"""The teacher cache: its files at any number of ranks, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.places import ROOT
from helpers.ranks import run
from helpers.teacher_cache_cases import (
    BLOCK,
    CPU,
    DIM,
    IDENTITIES,
    RECORDS,
    embed_into,
    files,
    refusal,
    teacher_of,
    tree,
)
from partialkd.commands import embed as command
from partialkd.config.load import parse_config, save_config
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.sources.open import open_source
from partialkd.errors import DataError, TeacherError
from partialkd.storage import claim
from partialkd.storage.manifest import read_manifest, write_manifest
from partialkd.teacher import cache_pass as module
from partialkd.teacher.cache import CacheFacts, TeacherCache
from partialkd.teacher.cache_writer import CacheWriter, partial
from partialkd.world.world import World

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


# ---------------------------------------------------------------------------------------------- the file


def test_the_bytes_are_what_the_docstring_says(teacher_caches: Path) -> None:
    torch.set_num_threads(1)
    source, teacher = open_source(parse_config(tree(teacher_caches)).data), teacher_of(teacher_caches)
    plan = TrainingPlan(RECORDS, BatchCut(RECORDS), seed=0, flip=False)
    batch = next(iter(open_loader(parse_config(tree(teacher_caches)).data, source, plan, CPU).epoch(0)))
    kept = np.fromfile(teacher_caches / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    records = batch.records.numpy()
    assert np.array_equal(kept[records, 0], teacher.embed(batch.images).numpy())
    assert np.array_equal(kept[records, 1], teacher.embed(batch.images.flip(3)).numpy())
    means = np.fromfile(teacher_caches / "fp32" / "class_means.bin", "<f4").reshape(IDENTITIES, DIM)
    unit = F.normalize(torch.from_numpy(kept[:, 0])).numpy()
    for label in range(IDENTITIES):
        np.testing.assert_allclose(means[label], unit[source.labels() == label].mean(0), rtol=1e-5, atol=1e-7)
    said = json.loads((teacher_caches / "fp32" / "manifest.json").read_text())
    assert said["shape"] == [RECORDS, 2, DIM]
    assert len(said["blocks"]) == 5
    assert said["made_from"]["teacher"] == teacher.fingerprint
    assert said["made_from"]["data"] == source.fingerprint
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        rows = TeacherCache(teacher_caches / name).rows(torch.arange(RECORDS), torch.ones(RECORDS, dtype=torch.bool))
        assert torch.equal(rows, torch.from_numpy(kept[:, 1]).to(dtype).float())


@pytest.mark.parametrize("size", [2, 3])
def test_files_do_not_depend_on_the_number_of_ranks(teacher_caches: Path, size: int, tmp_path: Path) -> None:
    run(embed_into, size, tree(teacher_caches), tmp_path / "cache", "fp16")
    assert files(tmp_path / "cache") == files(teacher_caches / "fp16")


def test_killed_and_gone_on_with_at_another_number_of_ranks(teacher_caches: Path, tmp_path: Path) -> None:
    """A real process, killed when it has written two blocks; what it wrote is not made again."""
    save_config(parse_config(tree(teacher_caches)), tmp_path / "config.toml")
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from helpers import teacher_cache_cases as t\n"
        "from partialkd.teacher.cache_writer import CacheWriter\n"
        "blocks = t.small_blocks()\n"
        "blocks.__enter__()\n"
        "write, done = CacheWriter.write_block, []\n"
        "def writing(self, block, rows, name):\n"
        "    if len(done) == 2:\n"
        "        os.pwrite(os.open(self.place / 'embeddings.bin', os.O_WRONLY), b'torn', block * 20 * 64)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(self, block, rows, name); done.append(block)\n"
        "CacheWriter.write_block = writing\n"
        f"sys.argv = ['embed.py', {str(tmp_path / 'config.toml')!r}, '--output', {str(tmp_path / 'cache')!r}, "
        "'--dtype', 'fp16']\n"
        f"import runpy; runpy.run_path({str(ROOT / 'launch' / 'embed.py')!r}, run_name='__main__')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    got = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=300, check=False)
    assert got.returncode == -signal.SIGKILL, got.stderr
    assert not (tmp_path / "cache").exists()
    said = run(refusal, 2, embed_into, tree(teacher_caches), tmp_path / "cache", "fp16")
    assert "an unfinished cache; go on with it (--resume) or remove it" in said[1]
    said = run(refusal, 2, embed_into, tree(teacher_caches), tmp_path / "cache", "bf16", True, None)
    assert "an unfinished cache of something else (different: dtype); remove /" in said[1]
    first = partial(tmp_path / "cache") / "embeddings.bin"
    with first.open("r+b") as file:  # a mark in what is done: it must still be there in the end
        file.write(b"mark")
    run(_counted, 2, tree(teacher_caches), tmp_path / "cache")
    ours, whole = files(tmp_path / "cache"), files(teacher_caches / "fp16")
    assert ours["embeddings.bin"][:4] == b"mark"
    assert ours["embeddings.bin"][4:] == whole["embeddings.bin"][4:]
    assert not partial(tmp_path / "cache").exists()


def _counted(world: World, settings: dict[str, Any], output: Path) -> None:
    """Goes on, and must not embed more than the three blocks that are missing; the damaged one is then found."""
    seen: list[int] = []
    make = module._make

    def making(plan: Any, blocks: list[int], *rest: Any) -> None:
        seen.extend(blocks)
        make(plan, blocks, *rest)

    module._make = making
    try:
        with pytest.raises(TeacherError, match=r"records 0 to 19 are damaged"):
            embed_into(world, settings, output, "fp16", True, None)
    finally:
        module._make = make
    assert sorted(block for part in world.gather_objects(seen) for block in part) == [2, 3, 4]


class Loud(torch.nn.Module):
    """Embeddings beyond float16 for one record, the brightest."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :DIM] * self.factor


def _loud(world: World, settings: dict[str, Any], output: Path, factor: float) -> None:
    config = parse_config(settings)
    source = open_source(config.data)
    facts = CacheFacts("loud", source.fingerprint, {}, RECORDS, IDENTITIES, DIM, "fp16")
    module.embed_records(
        CacheWriter(output, facts, BLOCK), Loud(factor), config.data, source, 8, world, "refuse", iter
    )  # fmt: skip


def test_overflow_and_nan_are_refused_by_name(teacher_caches: Path, tmp_path: Path) -> None:
    said = run(refusal, 2, _loud, tree(teacher_caches), tmp_path / "cache", 1e6)[0]
    assert re.search(r"train\.rec: key \d+ .*embedding reaches \S+, fp16 holds at most 65504", said)
    said = run(refusal, 1, _loud, tree(teacher_caches), tmp_path / "other", float("nan"))[0]
    assert re.search(r"train\.rec: key \d+ .*embedding is not finite", said)
    assert not (tmp_path / "cache").exists()


def test_a_record_that_cannot_be_read_is_left_out_and_never_taken_for_an_embedding(
    teacher_caches: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_caches / "data", tmp_path / "data")
    settings = tree(teacher_caches)
    settings["data"] |= {"path": str(tmp_path / "data"), "on_corrupt": "skip"}
    source = open_source(parse_config(settings).data)
    encoded, label = source.read(25)
    records = tmp_path / "data" / "train.rec"
    records.write_bytes(records.read_bytes().replace(encoded, bytes(len(encoded))))
    facts = read_manifest(tmp_path / "data", DataError)
    write_manifest(tmp_path / "data", {key: value for key, value in facts.items() if key != "files"})  # no checksums
    run(embed_into, 2, settings, tmp_path / "cache", "fp32")
    cache, whole = TeacherCache(tmp_path / "cache"), TeacherCache(teacher_caches / "fp32")
    others = torch.tensor([i for i in range(RECORDS) if i != 25])
    plain = torch.zeros(RECORDS, dtype=torch.bool)
    assert torch.equal(cache.rows(others, plain[1:]), whole.rows(others, plain[1:]))
    with pytest.raises(TeacherError, match="record 25 has no embedding: it could not be read when the cache was made"):
        cache.rows(torch.tensor([24, 25]), plain[:2])
    same = [i for i in others.tolist() if source.labels()[i] == label]
    mean = F.normalize(whole.rows(torch.tensor(same), plain[: len(same)])).mean(0)
    torch.testing.assert_close(cache.class_means(range(label, label + 1))[0], mean)


# ------------------------------------------------------------------------------------- what is not the cache


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "0" * 64}, "made by another teacher"),
        ({"data": "0" * 64}, "made of other data, or of the same in another order"),
        ({"preprocessing": {"image_size": 48}}, "made with another preprocessing of the images"),
        ({"dim": 8}, r"has embeddings of another length \(16 there, 8 here\)"),
        ({"records": 95}, r"has another number of records \(96 there, 95 here\)"),
        ({"classes": 13}, r"has another number of classes"),
        ({"dtype": "bf16"}, r"has another number format \(fp16 there, bf16 here\)"),
    ],
)
def test_a_cache_of_something_else_is_refused(teacher_caches: Path, change: dict[str, Any], said: str) -> None:
    cache = TeacherCache(teacher_caches / "fp16")
    cache.check(cache.facts)
    with pytest.raises(TeacherError, match=said):
        cache.check(replace(cache.facts, **change))


def damaged(name: str, act: Any) -> Any:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(act((folder / name).read_bytes()))

    return damage


def flip(content: bytes) -> bytes:
    return content[:3000] + bytes([content[3000] ^ 1]) + content[3001:] if len(content) > 3000 else content[:-1] + b"!"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged("embeddings.bin", lambda content: content[:-1]), r"embeddings\.bin: must have 6144 bytes, .*got 6143"),
        (damaged("embeddings.bin", lambda content: content + b"\0"), "must have 6144 bytes, .*got 6145"),
        (damaged("class_means.bin", lambda content: content[4:]), r"class_means\.bin: must have 768 bytes"),
        (damaged("embeddings.bin", flip), r"embeddings\.bin: records 40 to 59 are damaged"),
        (damaged("class_means.bin", flip), r"class_means\.bin: damaged"),
        (damaged("manifest.json", lambda content: content[:-20]), r"manifest\.json: damaged: "),
        (
            damaged("manifest.json", lambda content: content.replace(b"fp16", b"fp64")),
            r"damaged: it is not what its own checksum",
        ),
        (damaged("manifest.json", lambda content: content.replace(b"cache-1", b"cache-2")), "format must be"),
        (lambda folder: (folder / "embeddings.bin").unlink(), r"embeddings\.bin: cannot be read"),
    ],
    ids=["short", "long", "means", "bit", "means-bit", "json", "dtype", "format", "missing"],
)
def test_a_damaged_cache_is_refused(teacher_caches: Path, damage: Any, said: str, tmp_path: Path) -> None:
    shutil.copytree(teacher_caches / "fp16", tmp_path / "cache")
    damage(tmp_path / "cache")
    with pytest.raises(TeacherError, match=said):
        TeacherCache(tmp_path / "cache").verify()


def test_records_outside_are_refused(teacher_caches: Path) -> None:
    cache = TeacherCache(teacher_caches / "fp16")
    for record in (-1, RECORDS):
        with pytest.raises(IndexError, match=r"records must be in \[0, 96\)"):
            cache.rows(torch.tensor([0, record]), torch.zeros(2, dtype=torch.bool))


def test_a_second_command_waits_for_the_first_and_takes_its_cache(
    teacher_caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first one makes meanwhile is made here where the second one says that it waits."""
    folder, said = tmp_path / "kept", []
    first = claim.claim(folder)

    def info(text: str) -> None:
        said.append(text)
        shutil.copytree(teacher_caches / "fp32", folder)
        first.release()

    def make_again(*_: Any) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(claim._log, "info", info)
    monkeypatch.setattr(claim, "POLL_S", 0.01)
    monkeypatch.setattr(command, "make_cache", make_again)
    embed_into(World(), tree(teacher_caches), folder, "fp32")
    assert len(said) == 1
    assert re.search(rf"kept: waiting for process {os.getpid()} on .*, which is making it$", said[0])
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
