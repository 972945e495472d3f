"""The teacher cache: its files at any number of ranks, what is refused, and runs that learn from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run

from partialkd import embedding as module
from partialkd.config import DataConfig
from partialkd.config_files import parse_config, save_config
from partialkd.data.augment import NAMES
from partialkd.data.decode import encode_jpeg
from partialkd.data.embedded_records import RecordEmbeddings
from partialkd.data.layout import pack_records
from partialkd.data.loader import open_loader
from partialkd.data.order import TrainingPlan
from partialkd.data.prepare import prepare
from partialkd.data.readahead import make_plan
from partialkd.data.samplers import make_order
from partialkd.data.sources import open_source
from partialkd.data.teacher_cache import CacheFacts, TaughtLoader, TeacherCache
from partialkd.data.teacher_cache_writer import CacheWriter, partial
from partialkd.dist import World
from partialkd.embed_command import embed, output_of
from partialkd.errors import ConfigError, DataError, PartialKDError, TeacherError
from partialkd.job import make_teacher, prepare_job, run_phase
from partialkd.methods import METHODS
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.models.teacher import Teacher, open_teacher
from partialkd.stopping import StopSignals

ROOT = Path(__file__).parent.parent
IDENTITIES, IMAGES, DIM, BLOCK = 12, 8, 16, 20  # 96 records: four blocks of 20 and one of 16
RECORDS = IDENTITIES * IMAGES
MODEL = {"name": "mobilefacenet_gdc", "embedding_dim": DIM, "width": 0.25, "depth": 0.5}
CPU = torch.device("cpu")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def tree(folder: Path, method: str = "adadistill", **teacher: Any) -> dict[str, Any]:
    """A student of four steps and a teacher from a file."""
    return {
        "run": {"name": "trial", "folder": str(folder / "runs"), "log_every": 1, "tensorboard": False},
        "data": {
            "path": str(folder / "data"), "image_size": 32, "loader": "jpeg", "workers": 1,
            "prepare": {
                "kind": "procedural", "identities": IDENTITIES, "images_per_identity": IMAGES,
                "held_out_identities": 4, "pairs": 20,
            },
        },
        "teacher": {"source": "checkpoint", "path": str(folder / "teacher.safetensors"), **teacher},
        "student": {
            "model": MODEL, "epochs": 1, "global_batch": 24, "schedule": {"name": "poly", "warmup_steps": 1},
            "method": {"name": method, "scale": 16.0}, "optimizer": {"lr": 1e-3},
        },
        "evaluate": {"batch": 12},
    }  # fmt: skip


def save_teacher(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config, data = parse_config(tree(path.parent)).student.model, parse_config(tree(path.parent)).data
    model = build_model(config, 32)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            layer.momentum = 1.0
    plan = TrainingPlan(RECORDS, RECORDS, 1, 0, 1, seed=0, flip=False)
    with torch.no_grad():  # running statistics of these images: their embeddings spread, as a trained teacher's do
        model(next(iter(open_loader(data, open_source(data), plan, CPU).epoch(0))).images)
    save_model(path, model.eval(), config, 32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and caches of each number format."""
    folder = tmp_path_factory.mktemp("made")
    prepare(parse_config(tree(folder)).data)
    save_teacher(folder / "teacher.safetensors", 0)
    for dtype in ("fp32", "fp16", "bf16"):
        run(_embed, 1, tree(folder), folder / dtype, dtype)
    return folder


def _embed(world: World, settings: dict[str, Any], output: Path, dtype: str, *more: Any) -> None:
    config, folder = output_of(parse_config(settings), str(output), dtype)
    with small_blocks():
        embed(config, world, folder, *more or (False, None))


@contextmanager
def small_blocks() -> Iterator[None]:
    """So that there are several."""
    make, before = CacheWriter.__init__, CacheWriter.__init__.__defaults__
    make.__defaults__ = (BLOCK,)
    try:
        yield
    finally:
        make.__defaults__ = before


def refusal(world: World, act: Callable[..., Any], *arguments: Any) -> str:
    """What `act` raises, on every rank."""
    with pytest.raises(PartialKDError) as refused:
        act(world, *arguments)
    return str(refused.value)


def teacher_of(folder: Path) -> Teacher:
    return open_teacher(parse_config(tree(folder)).teacher, 32, CPU)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------------- the file


def test_the_bytes_are_what_the_docstring_says(made: Path) -> None:
    torch.set_num_threads(1)
    source, teacher = open_source(parse_config(tree(made)).data), teacher_of(made)
    plan = TrainingPlan(RECORDS, RECORDS, 1, 0, 1, seed=0, flip=False)
    batch = next(iter(open_loader(parse_config(tree(made)).data, source, plan, CPU).epoch(0)))
    kept = np.fromfile(made / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    records = batch.records.numpy()
    assert np.array_equal(kept[records, 0], teacher.embed(batch.images).numpy())
    assert np.array_equal(kept[records, 1], teacher.embed(batch.images.flip(3)).numpy())
    means = np.fromfile(made / "fp32" / "class_means.bin", "<f4").reshape(IDENTITIES, DIM)
    unit = F.normalize(torch.from_numpy(kept[:, 0])).numpy()
    for label in range(IDENTITIES):
        np.testing.assert_allclose(means[label], unit[source.labels() == label].mean(0), rtol=1e-5, atol=1e-7)
    said = json.loads((made / "fp32" / "manifest.json").read_text())
    assert said["shape"] == [RECORDS, 2, DIM]
    assert len(said["blocks"]) == 5
    assert said["made_from"]["teacher"] == teacher.fingerprint
    assert said["made_from"]["data"] == source.fingerprint
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        rows = TeacherCache(made / name).rows(torch.arange(RECORDS), torch.ones(RECORDS, dtype=torch.bool))
        assert torch.equal(rows, torch.from_numpy(kept[:, 1]).to(dtype).float())


@pytest.mark.parametrize("size", [2, 3])
def test_files_do_not_depend_on_the_number_of_ranks(made: Path, size: int, tmp_path: Path) -> None:
    run(_embed, size, tree(made), tmp_path / "cache", "fp16")
    assert files(tmp_path / "cache") == files(made / "fp16")


def test_killed_and_gone_on_with_at_another_number_of_ranks(made: Path, tmp_path: Path) -> None:
    """A real process, killed when it has written two blocks; what it wrote is not made again."""
    save_config(parse_config(tree(made)), tmp_path / "config.toml")
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import test_teacher_cache as t\n"
        "from partialkd.data.teacher_cache_writer import CacheWriter\n"
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
    said = run(refusal, 2, _embed, tree(made), tmp_path / "cache", "fp16")
    assert "an unfinished cache; go on with it (--resume) or remove it" in said[1]
    said = run(refusal, 2, _embed, tree(made), tmp_path / "cache", "bf16", True, None)
    assert "an unfinished cache of something else (different: dtype); remove it" in said[1]
    first = partial(tmp_path / "cache") / "embeddings.bin"
    with first.open("r+b") as file:  # a mark in what is done: it must still be there in the end
        file.write(b"mark")
    run(_counted, 2, tree(made), tmp_path / "cache")
    ours, whole = files(tmp_path / "cache"), files(made / "fp16")
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
            _embed(world, settings, output, "fp16", True, None)
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


def test_overflow_and_nan_are_refused_by_name(made: Path, tmp_path: Path) -> None:
    said = run(refusal, 2, _loud, tree(made), tmp_path / "cache", 1e6)[0]
    assert re.search(r"train\.rec: key \d+ .*embedding reaches \S+, fp16 holds at most 65504", said)
    said = run(refusal, 1, _loud, tree(made), tmp_path / "other", float("nan"))[0]
    assert re.search(r"train\.rec: key \d+ .*embedding is not finite", said)
    assert not (tmp_path / "cache").exists()


def test_a_record_that_cannot_be_read_is_left_out_and_never_taken_for_an_embedding(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "data", tmp_path / "data")
    settings = tree(made)
    settings["data"] |= {"path": str(tmp_path / "data"), "on_corrupt": "skip"}
    source = open_source(parse_config(settings).data)
    encoded, label = source.read(25)
    records = tmp_path / "data" / "train.rec"
    records.write_bytes(records.read_bytes().replace(encoded, bytes(len(encoded))))
    run(_embed, 2, settings, tmp_path / "cache", "fp32")
    cache, whole = TeacherCache(tmp_path / "cache"), TeacherCache(made / "fp32")
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
def test_a_cache_of_something_else_is_refused(made: Path, change: dict[str, Any], said: str) -> None:
    cache = TeacherCache(made / "fp16")
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
        (damaged("manifest.json", lambda content: content[:-20]), "not a usable manifest"),
        (damaged("manifest.json", lambda content: content.replace(b"fp16", b"fp64")), "not a usable manifest"),
        (damaged("manifest.json", lambda content: content.replace(b"cache-1", b"cache-2")), "format must be"),
        (lambda folder: (folder / "embeddings.bin").unlink(), r"embeddings\.bin: cannot be read"),
    ],
    ids=["short", "long", "means", "bit", "means-bit", "json", "dtype", "format", "missing"],
)
def test_a_damaged_cache_is_refused(made: Path, damage: Any, said: str, tmp_path: Path) -> None:
    shutil.copytree(made / "fp16", tmp_path / "cache")
    damage(tmp_path / "cache")
    with pytest.raises(TeacherError, match=said):
        TeacherCache(tmp_path / "cache").verify()


def test_records_outside_are_refused(made: Path) -> None:
    cache = TeacherCache(made / "fp16")
    for record in (-1, RECORDS):
        with pytest.raises(IndexError, match=r"records must be in \[0, 96\)"):
            cache.rows(torch.tensor([0, record]), torch.zeros(2, dtype=torch.bool))


# ---------------------------------------------------------------------------------------------- training


def losses(world: World, settings: dict[str, Any], resume: str = "never") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run's student."""
    config, stop = parse_config(settings), StopSignals()
    try:
        job = prepare_job(config, world, resume, stop)
        run_phase(job, "student", config.student, make_teacher(job))
    finally:
        stop.forget()
    world.barrier()
    lines = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]


def settings_of(made: Path, name: str, method: str = "adadistill", **teacher: Any) -> dict[str, Any]:
    settings = tree(made, method, **teacher)
    settings["run"]["name"] = name
    return settings


@pytest.mark.parametrize(
    ("method", "size", "dtypes"), [("adadistill", 2, ("fp32", "fp16", "bf16")), ("margindistillation", 1, ("fp32",))]
)
def test_cached_losses_are_the_live_ones(made: Path, method: str, size: int, dtypes: tuple[str, ...]) -> None:
    """With float32 exactly, from the class means on; with float16 and bfloat16 to a few of their last bits."""
    live = run(losses, size, settings_of(made, f"live-{method}", method))[0]
    tolerances = {"fp32": 0.0, "fp16": 5e-4, "bf16": 2e-3}
    for dtype in dtypes:
        cached = run(losses, size, settings_of(made, f"{dtype}-{method}", method, cache=str(made / dtype)))[0]
        assert [line["step"] for line in cached] == [1, 2, 3, 4]
        for a, b in zip(live, cached, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=tolerances[dtype], abs=0)
        assert (cached == live) == (dtype == "fp32")


def test_a_run_makes_its_own_cache_and_finds_it_again(made: Path) -> None:
    settings = settings_of(made, "auto", cache="auto", cache_dtype="fp32")
    first = run(losses, 2, settings)[0]
    assert first == run(losses, 2, settings_of(made, "auto-live"))[0]
    folder = made / "runs" / "auto"
    assert TeacherCache(folder / "teacher_cache").facts.dtype == "fp32"
    before = (folder / "teacher_cache" / "manifest.json").stat().st_mtime_ns
    shutil.rmtree(folder / "student")
    run(losses, 2, settings, "auto")
    assert (folder / "teacher_cache" / "manifest.json").stat().st_mtime_ns == before


def test_a_teacher_that_the_run_trains_is_kept_too(made: Path) -> None:
    """On resume it is the same teacher, and its cache is found; another seed is another teacher."""
    settings = settings_of(made, "trained", cache="auto")
    phase = {**settings["student"], "method": {"name": "arcface", "scale": 16.0}}
    settings["teacher"] = {"source": "train", "train": phase, "cache": "auto"}
    first = run(losses, 1, settings)[0]
    folder = made / "runs" / "trained"
    manifest = folder / "teacher_cache" / "manifest.json"
    before, facts = manifest.stat().st_mtime_ns, json.loads(manifest.read_text())
    assert facts["dtype"] == "fp16"
    shutil.rmtree(folder / "student")
    again = run(losses, 1, settings, "auto")[0]
    assert [line for line in again if line["phase"] == "student"] == [
        line for line in first if line["phase"] == "student"
    ]
    assert manifest.stat().st_mtime_ns == before
    for phase_folder in ("teacher", "student"):
        shutil.rmtree(folder / phase_folder)
    save_teacher(made / "retrained.safetensors", 3)
    (folder / "teacher").mkdir()
    shutil.copy(made / "retrained.safetensors", folder / "teacher" / "model.safetensors")
    run(losses, 1, settings, "auto")
    assert json.loads(manifest.read_text())["made_from"]["teacher"] != facts["made_from"]["teacher"]


def test_a_cache_of_another_teacher_stops_the_run(made: Path) -> None:
    (made / "other").mkdir()
    shutil.copytree(made / "data", made / "other" / "data")
    save_teacher(made / "other" / "teacher.safetensors", 1)
    settings = settings_of(made, "wrong", cache=str(made / "fp16"))
    settings["teacher"]["path"] = str(made / "other" / "teacher.safetensors")
    assert "made by another teacher" in run(refusal, 2, losses, settings)[0]
    nowhere = settings_of(made, "none", cache=str(made / "nowhere"))
    assert "holds no teacher cache; make it with launch/embed.py" in run(refusal, 2, losses, nowhere)[0]
    exact = settings_of(made, "dtype", cache=str(made / "fp16"), cache_dtype="fp32")
    assert "has another number format (fp16 there, fp32 here)" in run(refusal, 2, losses, exact)[1]
    assert not list((made / "runs").glob("wrong/student/checkpoints/*"))


@pytest.mark.parametrize("loader", ["jpeg", "dali"])
def test_both_loaders_carry_the_embeddings_of_record_and_mirror(made: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    data = parse_config(tree(made)).data.model_copy(update={"loader": loader})
    source = open_source(data)
    plan = TrainingPlan(RECORDS, 24, 1, 0, 1, seed=5, flip=True)
    kept = np.fromfile(made / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    taught = TaughtLoader(open_loader(data, source, plan, CPU), TeacherCache(made / "fp32"), CPU)
    assert taught.micro_steps == 4
    batches = list(taught.epoch(1, 1))
    assert len(batches) == 3
    for batch in batches:
        assert 0 < batch.flipped.sum() < 24
        assert batch.teacher is not None
        assert np.array_equal(batch.teacher.numpy(), kept[batch.records.numpy(), batch.flipped.numpy().astype(int)])
    half_way = taught.epoch(0)
    next(half_way)
    looking = {thread for thread in threading.enumerate() if thread.name.startswith("partialkd-loader")}
    assert looking
    taught.close()
    assert not any(thread.is_alive() for thread in looking)


@pytest.mark.parametrize("loader", ["jpeg", "dali"])
def test_the_row_is_the_records_own_in_merged_weighted_filtered_data(loader: str, tmp_path: Path) -> None:
    """Two unreadable records among them: what takes their place brings its own row."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    noise = np.random.default_rng(0)
    for name, images, classes, bad in (("a", 40, 8, (5, 17)), ("b", 20, 5, ())):
        pictures = [encode_jpeg(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(images)]
        broken = [b"no image" if place in bad else picture for place, picture in enumerate(pictures)]
        pack_records(
            tmp_path / name, ((picture, n * classes // images) for n, picture in enumerate(broken)), classes, 32
        )
    (tmp_path / "out.txt").write_text("2\n")
    first = {"path": str(tmp_path / "a"), "weight": 1.5, "exclude_identities": str(tmp_path / "out.txt")}
    keys = {"image_size": 32, "workers": 1, "loader": loader, "on_corrupt": "skip"}
    data = DataConfig.model_validate({"parts": (first, {"path": str(tmp_path / "b"), "weight": 0.5}), **keys})
    source, look = open_source(data), lambda images: images.flatten(1)[:, 100 : 100 + DIM]  # both sides of the mirror
    facts = CacheFacts("look", source.fingerprint, {}, len(source), source.num_classes, DIM, "fp32")
    with World.start() as world:
        altering = DataConfig.model_validate(
            {**data.model_dump(), "grey": 1.0, "augment": {"crop": 1.0}}
        )  # of no effect
        module.embed_records(
            CacheWriter(tmp_path / "cache", facts, 7), look, altering, source, 5, world, "refuse", iter
        )
    plan = make_plan(data, source, make_order(data, source, 12, 3), 12, 1, 0, 1, 3)
    taught = TaughtLoader(open_loader(data, source, plan, CPU), TeacherCache(tmp_path / "cache"), CPU)
    batches = [batch for epoch in (0, 1) for batch in taught.epoch(epoch)]
    assert sum(len(batch) for batch in batches) == 2 * 60 // 12 * 12
    assert {index for batch in batches for index in batch.records.tolist()}.isdisjoint({5, 17 - 5})
    for batch in batches:
        assert batch.teacher is not None
        torch.testing.assert_close(batch.teacher, look(batch.images), atol=2e-6, rtol=0)
        assert batch.labels.tolist() == [source.labels(i, i + 1)[0] for i in batch.records.tolist()]
    taught.close()


# ---------------------------------------------------------------------------------------------- its configuration


def test_augmentations_that_no_cache_covers_are_refused(tmp_path: Path) -> None:
    settings = tree(tmp_path, cache="auto")
    settings["data"]["grey"] = 0.5
    with pytest.raises(ConfigError, match=r"data\.grey: must be off with teacher\.cache"):
        parse_config(settings)
    settings["data"] |= {"grey": 0.0, "augment": {"blur": 0.5, "crop": 0.1, "blur_sigma": 2.0}}
    with pytest.raises(ConfigError, match=r"\(on: augment\.crop, augment\.blur\)"):
        parse_config(settings)
    settings["student"]["method"]["name"] = "arcdistill"  # looks at class means only
    parse_config(settings)
    settings["student"]["method"]["name"] = "adadistill"
    settings["data"]["augment"] = {"blur_sigma": 2.0}  # the strength of what is off
    parse_config(settings)
    with pytest.raises(ConfigError, match=r'teacher\.cache: must be left out with source = "none"'):
        parse_config({**settings, "teacher": {"source": "none", "cache": "auto"}})


def test_the_configuration_knows_methods_and_augmentations() -> None:
    from partialkd.config import methods

    assert {name for name, method in METHODS.items() if method.needs_teacher} == methods.METHODS_THAT_EMBED
    everything = dict.fromkeys(("crop", "rand", "colour", "blur", "low_resolution", "occlusion"), 0.5)  # fmt: skip
    data = DataConfig.model_validate({"path": "none", "grey": 0.5, "augment": everything})
    assert {name.removeprefix("augment.") for name in data.altering} == {"grey", *NAMES}


def test_what_the_command_needs(made: Path) -> None:
    config = parse_config(tree(made))
    with pytest.raises(ConfigError, match="--output is required"):
        output_of(config, None, None)
    assert output_of(parse_config(tree(made, cache="there")), None, "bf16")[1] == Path("there")
    other = config.model_copy(update={"teacher": config.teacher.model_copy(update={"source": "train"})})
    with pytest.raises(ConfigError, match=r'teacher\.source must be "checkpoint" or "onnx"'):
        output_of(other, "there", None)


# ---------------------------------------------------------------------------------------------- in the records


@pytest.fixture(scope="module")
def embedded(made: Path) -> Path:
    """The records again, with the embeddings in them."""
    run(_embed, 1, tree(made), made / "fp32", "fp32", False, made / "embedded")
    return made / "embedded"


def embedded_data(folder: Path) -> DataConfig:
    return DataConfig(path=str(folder), image_size=32, loader="jpeg", flip=False, embeddings=DIM)


def test_embeddings_go_into_records_and_come_back(made: Path, embedded: Path) -> None:
    before, after = open_source(parse_config(tree(made)).data), open_source(embedded_data(embedded))
    assert len(after) == RECORDS
    assert np.array_equal(after.labels(), before.labels())
    kept = np.fromfile(made / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    plain = torch.zeros(RECORDS, dtype=torch.bool)
    assert np.array_equal(RecordEmbeddings(after, DIM).rows(torch.arange(RECORDS), plain).numpy(), kept[:, 0])
    index = {int(key): int(at) for key, at in (line.split() for line in (embedded / "train.idx").open())}
    content = (embedded / "train.rec").read_bytes()
    for i in (0, 7, RECORDS - 1):
        payload = content[index[i + 1] + 8 :]
        flag, unused, key, other = struct.unpack_from("<IfQQ", payload)
        assert (flag, unused, key, other) == (DIM + 1, 0.0, i + 1, 0)
        numbers = struct.unpack_from(f"<{DIM + 1}f", payload, 24)
        assert np.array_equal(np.float32(numbers[:DIM]), kept[i, 0])
        assert numbers[DIM] == before.labels()[i]
        assert payload[24 + 4 * (DIM + 1) :].startswith(before.read(i)[0])


def test_a_run_learns_from_its_records(made: Path, embedded: Path) -> None:
    """The same losses as live, without mirroring; no teacher is there."""
    live = settings_of(made, "live-plain", "margindistillation")
    live["data"]["flip"] = False
    carried = settings_of(made, "carried", "margindistillation")
    carried["teacher"] = {"source": "records"}
    carried["data"] = embedded_data(embedded).model_dump(mode="json", exclude_none=True)
    assert run(losses, 2, carried)[0] == run(losses, 2, live)[0]
    carried["data"]["flip"] = True
    with pytest.raises(ConfigError, match=r'data\.flip: must be false with teacher\.source = "records"'):
        parse_config(carried)


def test_records_that_carry_something_else(made: Path, embedded: Path) -> None:
    with pytest.raises(DataError, match=r"key 1 at byte 0: must carry 9 labels, .*\(data\.embeddings\), got 17"):
        open_source(embedded_data(embedded).model_copy(update={"embeddings": 8}))
    with pytest.raises(DataError, match=r"must carry 17 labels, .* got 1 \(96 such records\)"):
        open_source(embedded_data(made / "data"))
    source = open_source(embedded_data(embedded))
    with pytest.raises(DataError, match="carries no embedding of its mirrored image"):
        RecordEmbeddings(source, DIM).rows(torch.tensor([3]), torch.tensor([True]))


def test_records_of_another_teacher_have_another_fingerprint(tmp_path: Path) -> None:
    """Sizes, order and class ids are the same."""
    sources = []
    for factor in (1.0, 2.0):
        folder = tmp_path / str(factor)
        embed_one = lambda index, factor=factor: [factor * (index + 1)] * DIM
        pack_records(folder, ((b"image", label) for label in (0, 0, 1)), 2, 32, None, embed_one)
        sources.append(open_source(embedded_data(folder)))
    first, second = (RecordEmbeddings(source, DIM).fingerprint for source in sources)
    assert first != second
    assert first == RecordEmbeddings(open_source(embedded_data(tmp_path / "1.0")), DIM).fingerprint
