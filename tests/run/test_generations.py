"""Chains of students: who teaches whom, with what seed and centres and cache, and resume at any number of ranks."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.jobs import job
from helpers.ranks import run
from helpers.started_jobs import MODEL, made, named, start
from partialkd.commands.networks import phase_name
from partialkd.config import ModelConfig
from partialkd.config.load import parse_config
from partialkd.context import generation_seed
from partialkd.errors import CheckpointError, ConfigError
from partialkd.models.build import build_empty, build_model
from partialkd.models.saved import MODEL as FILE
from partialkd.models.saved import open_model, read_metadata, save_model
from partialkd.teacher.cache import kept_before
from partialkd.teacher.network import wrap_teacher

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("generation_1", "generation_2", "student")
ARCFACE = {"name": "arcface", "scale": 16.0}
CASES: dict[str, dict[str, Any]] = {  # methods of every kind of centres, soft targets and a cache among them
    "fixed": {"method": {"name": "arcdistill", "scale": 16.0}},
    "ema": {"method": {"name": "adadistill", "scale": 16.0}, "ema_decay": 0.5},
    "soft": {"method": ARCFACE, "terms": [{"name": "logit_kd", "temperature": 2.0}]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generations")
    made(folder)
    return folder


def chain(place: Path, name: str, case: str = "ema", generations: int = 3, **teacher: Any) -> dict[str, Any]:
    """Settings of a chain of students of four steps each, that is the same at any number of ranks."""
    settings = named(place, name, **teacher)
    settings["student"] |= {"generations": generations, "freeze_batchnorm": True, **CASES[case]}
    settings["run"] |= {"checkpoint_every": 1, "keep_checkpoints": 9, "deterministic": True, "log_every": 1}
    return settings


def student(place: Path, name: str, phase: str) -> dict[str, Tensor]:
    return load_file(place / "runs" / name / phase / FILE)


def told(place: Path, name: str) -> dict[tuple[str, int], float]:
    """(phase, step) -> the loss that was logged of it."""
    lines = (place / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return {(line["phase"], line["step"]): line["loss"] for line in map(json.loads, lines) if "loss" in line}


def embedding(place: Path, name: str, phase: str) -> str:
    """The fingerprint that a finished student has as a teacher."""
    return wrap_teacher(open_model(place / "runs" / name / phase / FILE)[0], 32, "cpu").fingerprint


def said(place: Path, name: str, phase: str) -> dict[str, Any]:
    return json.loads(read_metadata(place / "runs" / name / phase / FILE)["made_from"])


# ------------------------------------------------------------------------------------------- who teaches whom


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_each_student_learns_from_the_one_before(case: str, place: Path) -> None:
    """The second generation, trained alone with the first one's file as its teacher, is the same bit for bit."""
    more = {"centres": "classifier", "classifier": str(place / "rows.npy"), "label_map": "identity"}
    run(job, 1, chain(place, case, case, **(more if case == "soft" else {})))
    facts = [said(place, case, name) for name in NAMES]
    assert [one["seed"] for one in facts] == [generation_seed(0, number) for number in (1, 2, 3)]
    assert [one["phase"] for one in facts] == list(NAMES)
    assert [one["teacher"] for one in facts[1:]] == [embedding(place, case, name) for name in NAMES[:2]]
    alone = chain(place, f"{case}_alone", case, 1, path=str(place / "runs" / case / "generation_1" / FILE))
    alone["run"]["seed"] = generation_seed(0, 2)
    if case == "soft":  # the classifier that the first generation has trained
        rows = load_rows(place / "runs" / case / "generation_1" / "centres")
        torch.save(rows, place / "first.pt")
        alone["teacher"] |= {**more, "classifier": str(place / "first.pt")}
    run(job, 1, alone)
    own, again = student(place, case, "generation_2"), student(place, f"{case}_alone", "student")
    for key, x in own.items():
        torch.testing.assert_close(x, again[key], rtol=1e-5, atol=1e-7)
    result = json.loads((place / "runs" / case / "result.json").read_text())
    assert set(result["sets"]["pairs"]) >= {*NAMES, "teacher"}


def load_rows(folder: Path) -> Tensor:
    pieces = [load_file(file) for file in sorted((folder / "centres").glob("*.safetensors"))]
    return torch.cat([piece["unit"] * piece["length"][:, None] for piece in pieces])


def test_a_seed_of_its_own_for_every_generation(place: Path) -> None:
    seeds = {generation_seed(seed, number) for seed in range(20) for number in range(1, 6)}
    assert len(seeds) == 100
    assert all(0 <= seed < 18 * 10**12 for seed in seeds)


# ----------------------------------------------------------------------------------- ranks, resume, a cache


def drop(phase: Path, *steps: int) -> None:
    """Remove these checkpoints of a phase, and leave the one of the first step."""
    for step in steps:
        shutil.rmtree(*(phase / "checkpoints").glob(f"step_*{step}"))
    assert list((phase / "checkpoints").glob("step_*1"))


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_and_resumes_change_nothing(place: Path) -> None:
    """One rank; two, then three, then one, stopped within and between generations."""
    case = "ema"
    run(job, 1, chain(place, f"{case}1", case, cache="auto"))
    run(job, 2, chain(place, f"{case}3", case, cache="auto"))
    folder = place / "runs" / f"{case}3"
    for name in ("student", "generation_2"):  # as if stopped after two steps of the second generation
        shutil.rmtree(folder / name) if name == "student" else (folder / name / FILE).unlink()
    drop(folder / "generation_2", 3, 4)
    run(job, 3, chain(place, f"{case}3", case, cache="auto"), "auto")
    assert said(place, f"{case}3", "generation_2")["seed"] == generation_seed(0, 2)
    shutil.rmtree(folder / "student")  # between the second and the third
    run(job, 1, chain(place, f"{case}3", case, cache="auto"), "auto")
    one, many = told(place, f"{case}1"), told(place, f"{case}3")
    assert one.keys() == many.keys() == {(name, step) for name in NAMES for step in (1, 2, 3, 4)}
    for key, loss in one.items():
        assert many[key] == pytest.approx(loss, rel=1e-4), key


@pytest.mark.slow
@pytest.mark.distributed
def test_resumed_on_as_many_ranks_it_is_the_same_run_bit_for_bit(place: Path) -> None:
    run(job, 2, chain(place, "whole", "ema"))
    whole = student(place, "whole", "student")
    folder = place / "runs" / "whole"
    (folder / "generation_2" / FILE).unlink()
    shutil.rmtree(folder / "student")
    drop(folder / "generation_2", 2, 3, 4)
    run(job, 2, chain(place, "whole", "ema"), "auto")
    assert all(torch.equal(x, whole[key]) for key, x in student(place, "whole", "student").items())


@pytest.mark.slow
@pytest.mark.distributed
def test_a_cache_of_another_generation_is_not_used(place: Path) -> None:
    """Each generation has one of its own, of its own teacher; another one in its place is made anew."""
    run(job, 1, chain(place, "cached", "fixed", cache="auto"))
    folder = place / "runs" / "cached"
    caches = [folder / "teacher_cache", *(folder / name / "teacher_cache" for name in NAMES[:2])]
    kept = [kept_before(cache).facts.teacher for cache in caches]
    assert kept[1:] == [embedding(place, "cached", name) for name in NAMES[:2]]
    assert len(set(kept)) == 3
    last = student(place, "cached", "student")
    shutil.rmtree(caches[2])
    shutil.copytree(caches[1], caches[2])
    for name in ("student", "generation_2/teacher_centres"):
        shutil.rmtree(folder / name)
    run(job, 1, chain(place, "cached", "fixed", cache="auto"), "auto")
    assert kept_before(caches[2]).facts.teacher == kept[2]
    assert all(torch.equal(x, last[key]) for key, x in student(place, "cached", "student").items())


@pytest.mark.slow
@pytest.mark.distributed
def test_a_changed_generation_is_not_gone_on_from(place: Path) -> None:
    run(job, 1, chain(place, "changed", "fixed"))
    folder = place / "runs" / "changed"
    shutil.copy(folder / "student" / FILE, folder / "generation_2" / FILE)
    with pytest.raises(CheckpointError, match=r"generation_2\S*: was made by another job, with phase = 'student'"):
        start(chain(place, "changed", "fixed"), "auto")


@pytest.mark.slow
@pytest.mark.distributed
def test_longer_students_begin_with_the_first_of_them(place: Path) -> None:
    """And going back to a checkpoint of a generation moves aside what has followed from it."""
    run(job, 1, chain(place, "long", "fixed", 2))
    longer = chain(place, "long", "fixed", 2)
    longer["student"]["epochs"] = 3
    run(job, 1, longer, "auto", False, True)
    folder = place / "runs" / "long"
    assert {step for phase, step in told(place, "long") if phase == "student"} == {1, 2, 3, 4, 5, 6}
    assert (folder / "student.1").is_dir()
    start(longer, str(*(folder / "generation_1" / "checkpoints").glob("step_*4")))
    assert not (folder / "student").exists()
    assert (folder / "student.2").is_dir()


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": ARCFACE}, "student.generations: must be 1 with arcface and no term that asks for a teacher"),
        ({"weights": "runs/x"}, "student.generations: must be 1 with weights: every generation starts from random"),
        ({"generations": 0}, "student.generations: must be greater than or equal to 1, got 0"),
    ],
)
def test_what_cannot_be_a_chain(changes: dict[str, Any], told: str, place: Path) -> None:
    settings = chain(place, "refused", "fixed")
    settings["student"] |= changes
    with pytest.raises(ConfigError) as raised:
        parse_config(settings)
    assert told in str(raised.value)


def test_centres_of_a_classifier_need_students_that_train_one(place: Path) -> None:
    classifier = {"centres": "classifier", "classifier": str(place / "rows.npy"), "label_map": "identity"}
    with pytest.raises(ConfigError, match=r"student\.generations: must be 1 with arcdistill, whose students have no"):
        parse_config(chain(place, "refused", "fixed", **classifier))


def test_only_the_student_has_generations(place: Path) -> None:
    settings = chain(place, "refused", "fixed")
    settings["alone"] = {**settings["student"], "method": ARCFACE}
    with pytest.raises(ConfigError, match=r"alone\.generations: "):
        parse_config(settings)


@pytest.mark.slow
def test_a_block_that_only_the_first_teacher_has_is_named_at_once(place: Path) -> None:
    other = ModelConfig(name="iresnet18", embedding_dim=16, width=0.125, depth=0.3)
    save_model(place / "other.safetensors", build_model(other, 32).eval(), other, 32)
    settings = chain(place, "refused", "fixed", path=str(place / "other.safetensors"))
    ends = build_empty(ModelConfig.model_validate(MODEL), 32).stage_ends
    settings["student"]["terms"] = [{"name": "fitnets", "student_taps": [ends[3]], "teacher_taps": ["layer4"]}]
    told = (
        r"^student\.generations: a student that teaches has other blocks: student\.terms\.0\.teacher_taps: [^\n]*layer4"
    )
    with pytest.raises(ConfigError, match=told):
        start(settings)
    assert not (place / "runs" / "refused").exists()


def test_a_generation_can_be_named_on_a_command_line() -> None:
    assert [phase_name(name) for name in ("student", "generation_12")] == ["student", "generation_12"]
    for name in ("generation_0", "generation_", "centres"):
        with pytest.raises(
            ArgumentTypeError, match=f"must be teacher, student, alone or generation_<number>, .*{name}"
        ):
            phase_name(name)
