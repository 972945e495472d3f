"""Runs and loaders that learn from kept embeddings, and their configuration."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.ranks import run
from helpers.teacher_cache_cases import CPU, DIM, RECORDS, losses, refusal, save_teacher, settings_of, tree
from partialkd.commands.embed import output_of
from partialkd.config import DataConfig
from partialkd.config.load import parse_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.augment import NAMES
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.orders import make_order
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.order.readahead import make_plan
from partialkd.data.sources.open import open_source
from partialkd.errors import ConfigError
from partialkd.teacher import cache_pass as module
from partialkd.teacher.cache import CacheFacts, TeacherCache
from partialkd.teacher.cache_writer import CacheWriter
from partialkd.teacher.loader import TaughtLoader
from partialkd.world.world import World

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("method", "size", "dtypes"), [("adadistill", 2, ("fp32", "fp16", "bf16")), ("margindistillation", 1, ("fp32",))]
)
def test_cached_losses_are_the_live_ones(teacher_caches: Path, method: str, size: int, dtypes: tuple[str, ...]) -> None:
    """With float32 exactly, from the class means on; with float16 and bfloat16 to a few of their last bits."""
    live = run(losses, size, settings_of(teacher_caches, f"live-{method}", method))[0]
    tolerances = {"fp32": 0.0, "fp16": 5e-4, "bf16": 2e-3}
    for dtype in dtypes:
        cached = run(
            losses, size, settings_of(teacher_caches, f"{dtype}-{method}", method, cache=str(teacher_caches / dtype))
        )[0]
        assert [line["step"] for line in cached] == [1, 2, 3, 4]
        for a, b in zip(live, cached, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=tolerances[dtype], abs=0)
        assert (cached == live) == (dtype == "fp32")


def test_a_run_makes_its_own_cache_and_finds_it_again(teacher_caches: Path) -> None:
    settings = settings_of(teacher_caches, "auto", cache="auto", cache_dtype="fp32")
    first = run(losses, 2, settings)[0]
    assert first == run(losses, 2, settings_of(teacher_caches, "auto-live"))[0]
    folder = teacher_caches / "runs" / "auto"
    assert TeacherCache(folder / "teacher_cache").facts.dtype == "fp32"
    before = (folder / "teacher_cache" / "manifest.json").stat().st_mtime_ns
    shutil.rmtree(folder / "student")
    run(losses, 2, settings, "auto")
    assert (folder / "teacher_cache" / "manifest.json").stat().st_mtime_ns == before


def test_a_teacher_that_the_run_trains_is_kept_too(teacher_caches: Path) -> None:
    """On resume it is the same teacher, and its cache is found; another seed is another teacher."""
    settings = settings_of(teacher_caches, "trained", cache="auto")
    phase = {**settings["student"], "method": {"name": "arcface", "scale": 16.0}}
    settings["teacher"] = {"source": "train", "train": phase, "cache": "auto"}
    first = run(losses, 1, settings)[0]
    folder = teacher_caches / "runs" / "trained"
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
    save_teacher(teacher_caches / "retrained.safetensors", 3)
    (folder / "teacher").mkdir()
    shutil.copy(teacher_caches / "retrained.safetensors", folder / "teacher" / "model.safetensors")
    run(losses, 1, settings, "auto")
    assert json.loads(manifest.read_text())["made_from"]["teacher"] != facts["made_from"]["teacher"]


def test_a_cache_of_another_teacher_stops_the_run(teacher_caches: Path) -> None:
    (teacher_caches / "other").mkdir()
    shutil.copytree(teacher_caches / "data", teacher_caches / "other" / "data")
    save_teacher(teacher_caches / "other" / "teacher.safetensors", 1)
    settings = settings_of(teacher_caches, "wrong", cache=str(teacher_caches / "fp16"))
    settings["teacher"]["path"] = str(teacher_caches / "other" / "teacher.safetensors")
    assert "made by another teacher" in run(refusal, 2, losses, settings)[0]
    nowhere = settings_of(teacher_caches, "none", cache=str(teacher_caches / "nowhere"))
    assert "holds no teacher cache; make it with launch/embed.py" in run(refusal, 2, losses, nowhere)[0]
    exact = settings_of(teacher_caches, "dtype", cache=str(teacher_caches / "fp16"), cache_dtype="fp32")
    assert "has another number format (fp16 there, fp32 here)" in run(refusal, 2, losses, exact)[1]
    assert not list((teacher_caches / "runs").glob("wrong/student/checkpoints/*"))


@pytest.mark.parametrize("loader", ["jpeg", "dali"])
def test_both_loaders_carry_the_embeddings_of_record_and_mirror(teacher_caches: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    data = parse_config(tree(teacher_caches)).data.model_copy(update={"loader": loader})
    source = open_source(data)
    plan = TrainingPlan(RECORDS, BatchCut(24), seed=5, flip=True)
    kept = np.fromfile(teacher_caches / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    taught = TaughtLoader(open_loader(data, source, plan, CPU), TeacherCache(teacher_caches / "fp32"), CPU)
    assert taught.micro_steps == 4
    batches = list(taught.epoch(1, 1))
    assert len(batches) == 3
    for batch in batches:
        assert 0 < batch.flipped.sum() < 24
        assert batch.teacher is not None
        assert np.array_equal(batch.teacher.numpy(), kept[batch.records.numpy(), batch.flipped.numpy().astype(int)])
    half_way = taught.epoch(0)
    next(half_way)
    looking = {thread for thread in threading.enumerate() if thread.name.startswith("partialkd-data")}
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
    plan = make_plan(data, source, make_order(data, source, 12, 3), BatchCut(12), 3)
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


def test_the_configuration_knows_what_alters_images() -> None:
    everything = dict.fromkeys(("crop", "rand", "colour", "blur", "low_resolution", "occlusion"), 0.5)  # fmt: skip
    data = DataConfig.model_validate({"path": "none", "grey": 0.5, "augment": everything})
    assert {name.removeprefix("augment.") for name in data.altering} == {"grey", *NAMES}


def test_what_the_command_needs(teacher_caches: Path) -> None:
    config = parse_config(tree(teacher_caches))
    with pytest.raises(ConfigError, match="--output is required"):
        output_of(config, None, None)
    assert output_of(parse_config(tree(teacher_caches, cache="there")), None, "bf16")[1] == Path("there")
    other = config.model_copy(update={"teacher": config.teacher.model_copy(update={"source": "train"})})
    with pytest.raises(ConfigError, match=r'teacher\.source must be "checkpoint", "onnx" or "ensemble"'):
        output_of(other, "there", None)
