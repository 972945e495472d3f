"""`teacher.sees = "clean"`: the teacher's target of an altered image is its embedding of the unaltered one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.ranks import run
from helpers.teacher_cache_cases import CPU, DIM, RECORDS, losses, refusal, save_teacher, settings_of, tree
from partialkd.config.load import parse_config
from partialkd.data.batch import FaceBatch
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.sources.open import open_source
from partialkd.errors import ConfigError
from partialkd.planner.plan import Ranks, plan_phase

ALTERING: dict[str, Any] = {
    "grey": 0.4,
    "augment": {"crop": 0.3, "blur": 0.3, "low_resolution": 0.4, "occlusion": 0.3, "colour": 0.2, "rand": 0.2},
}


def altered(made: Path, name: str, sees: str = "clean", **more: Any) -> dict[str, Any]:
    settings = settings_of(made, name, sees=sees, **more)
    settings["data"] |= ALTERING
    return settings


# ------------------------------------------------------------------------------------------------- loaders


def batches(made: Path, loader: str, resize: bool, with_clean: bool, **data: Any) -> Iterator[FaceBatch]:
    settings = tree(made)
    settings["data"] |= {"loader": loader, "resize": resize, **({"image_size": 24} if resize else {}), **data}
    config = parse_config(settings).data
    plan = TrainingPlan(RECORDS, BatchCut(24), seed=5, flip=True, grey=config.grey)
    yield from open_loader(config, open_source(config), plan, CPU, with_clean).epoch(1)


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("loader", ["jpeg", "dali"])
def test_batches_have_both_images(teacher_caches: Path, loader: str, resize: bool) -> None:
    """The clean ones are those of a run that alters nothing, the others those of a run without clean ones."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    both = list(batches(teacher_caches, loader, resize, True, **ALTERING))
    plain = list(batches(teacher_caches, loader, resize, False))
    alone = list(batches(teacher_caches, loader, resize, False, **ALTERING))
    differ = 0
    for one, unaltered, changed in zip(both, plain, alone, strict=True):
        assert one.clean is not None
        assert unaltered.clean is None
        assert changed.clean is None
        assert torch.equal(one.clean, unaltered.images)
        assert torch.equal(one.images, changed.images)
        assert torch.equal(one.flipped, unaltered.flipped)
        assert 0 < one.flipped.sum() < len(one)
        differ += int((one.images != one.clean).flatten(1).any(1).sum())
    assert RECORDS // 2 < differ < RECORDS


def test_nothing_is_kept_twice_where_nothing_is_altered(teacher_caches: Path) -> None:
    assert all(batch.clean is None for batch in batches(teacher_caches, "jpeg", False, True))


# ------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("method", "size"), [("adadistill", 2), ("margindistillation", 1)])
def test_cached_losses_are_the_live_ones(teacher_caches: Path, method: str, size: int) -> None:
    """Of altered images; exactly so with float32. A teacher that sees the altered ones teaches something else."""
    settings = {"method": method, "noise": {"sigma": 0.1}} if size == 2 else {"method": method}
    live = run(losses, size, altered(teacher_caches, f"clean-live-{method}-{size}", **settings))[0]
    kept = altered(teacher_caches, f"clean-kept-{method}-{size}", cache=str(teacher_caches / "fp32"), **settings)
    assert run(losses, size, kept)[0] == live
    if size == 1:
        same = run(losses, size, altered(teacher_caches, f"same-{method}-{size}", sees="same", **settings))[0]
        assert [line["loss"] for line in same] != [line["loss"] for line in live]


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_and_resume_do_not_change_it(teacher_caches: Path) -> None:
    """One rank, three ranks, and one that goes on from step two; BatchNorm frozen, for it knows of ranks."""
    frozen = lambda settings: {**settings, "student": {**settings["student"], "freeze_batchnorm": True}}
    cache = {"cache": str(teacher_caches / "fp32")}
    whole = run(losses, 1, frozen(altered(teacher_caches, "clean-one", **cache)))[0]
    three = run(losses, 3, frozen(altered(teacher_caches, "clean-three", **cache)))[0]
    for a, b in zip(whole, three, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    settings = frozen(altered(teacher_caches, "clean-cut", **cache))
    settings["run"] |= {"checkpoint_every": 2, "keep_checkpoints": 3}
    assert run(losses, 1, settings)[0] == whole
    student = teacher_caches / "runs" / "clean-cut" / "student"
    (student / "model.safetensors").unlink()
    shutil.rmtree(max((student / "checkpoints").iterdir()))
    assert run(losses, 1, settings, "auto")[0] == whole
    settings["teacher"]["sees"] = "same"
    del settings["teacher"]["cache"]
    assert "teacher.sees" in run(refusal, 1, losses, settings, "auto")[0]


@pytest.mark.slow
@pytest.mark.distributed
def test_ensembles_and_files_of_embeddings(teacher_caches: Path, tmp_path: Path) -> None:
    """An ensemble embeds the clean images; an .npz serves altered ones."""
    save_teacher(teacher_caches / "second.safetensors", 1)
    members = [
        {"source": "checkpoint", "path": str(teacher_caches / f"{name}.safetensors")} for name in ("teacher", "second")
    ]
    found = []
    for cache in ({}, {"cache": "auto", "cache_dtype": "fp32"}):
        settings = altered(teacher_caches, f"clean-ensemble-{len(cache)}")
        settings["teacher"] = {"source": "ensemble", "ensemble": members, "sees": "clean", **cache}
        found.append(run(losses, 1, settings)[0])
    assert found[0] == found[1]
    kept = np.fromfile(teacher_caches / "fp32" / "embeddings.bin", "<f4").reshape(RECORDS, 2, DIM)
    np.savez(tmp_path / "kept.npz", embeddings=kept[:, 0], flipped=kept[:, 1])
    settings = altered(teacher_caches, "clean-npz")
    settings["teacher"] = {"source": "npz", "path": str(tmp_path / "kept.npz"), "sees": "clean"}
    live = run(losses, 1, altered(teacher_caches, "clean-live"))[0]
    for a, b in zip(live, run(losses, 1, settings)[0], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


# ------------------------------------------------------------------------------------------ its configuration


def test_clean_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    settings = tree(tmp_path, "arcdistill", sees="clean")
    with pytest.raises(ConfigError, match=r'teacher\.sees: must be "same" where nothing of the student looks'):
        parse_config(settings)
    with pytest.raises(ConfigError, match=r"which is what teacher\.sees = \"clean\" takes for all"):
        parse_config({**(one := tree(tmp_path, cache="auto")), "data": {**one["data"], "grey": 0.5}})
    parse_config({**(one := tree(tmp_path, cache="auto", sees="clean")), "data": {**one["data"], "grey": 0.5}})


def test_the_plan_has_the_second_images(tmp_path: Path) -> None:
    config = parse_config(altered(tmp_path, "plan"))
    planned = lambda ranks: plan_phase(config.student, config.data, 12, ranks).resident["batches"]
    ranks = Ranks.of(config, 1, cuda=False)
    assert planned(ranks) == 2 * planned(replace(ranks, clean_images=False))
    assert not Ranks.of(parse_config(altered(tmp_path, "plan", cache="auto")), 1, cuda=False).clean_images
