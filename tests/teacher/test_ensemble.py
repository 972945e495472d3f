"""Several teachers as one, and noise on what a teacher says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.ranks import run
from helpers.teacher_cache_cases import losses, refusal, save_teacher, settings_of
from partialkd.config import InputConfig, ModelConfig, NoiseConfig, TeacherConfig
from partialkd.config.load import parse_config
from partialkd.errors import ConfigError, TeacherError
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.teacher.cache import TeacherCache
from partialkd.teacher.ensemble import Ensemble, described, open_teacher
from partialkd.teacher.network import Teacher
from partialkd.teacher.noise import Noise

CPU = torch.device("cpu")


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(3)) * 2 - 1


def linear(dim: int, seed: int, **accepts: Any) -> Teacher:
    """A teacher that is one matrix."""
    torch.manual_seed(seed)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, dim))
    return Teacher(layer, InputConfig(size=32, **accepts), 32, CPU, None, f"teacher {seed}", str(seed))


def cosines(rows: Tensor) -> Tensor:
    return F.normalize(rows.double()) @ F.normalize(rows.double()).T


# --------------------------------------------------------------------------------------------- what it embeds


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0]])
def test_cosines_are_the_mean_of_the_teachers_cosines_where_there_is_room(weights: list[float]) -> None:
    members = [linear(20, 1), linear(12, 2, mean=100.0, std=50.0, colour="bgr")]
    together = Ensemble(members, weights, 40)
    rows = together.embed(pictures(9))
    squares = [weight**2 / sum(w**2 for w in weights) for weight in weights]
    wanted = sum(share * cosines(member.embed(pictures(9))) for share, member in zip(squares, members, strict=True))
    torch.testing.assert_close(cosines(rows), wanted, rtol=0, atol=1e-6)
    assert rows.shape == (9, 40)
    assert together.embed(pictures(9)[:0]).shape == (0, 40)


def test_the_mean_is_of_projected_directions() -> None:
    """By hand, in float64; teachers of one length, and less room than they need together."""
    members = [linear(24, 1), linear(24, 2)]
    together = Ensemble(members, [1.0, 3.0], None)
    assert together.embedding_dim == 24
    projections = together._matrix.double().split([24, 24])  # with the weights in them
    wanted = sum(
        F.normalize(member.embed(pictures(5))).double() @ projection
        for member, projection in zip(members, projections, strict=True)
    )
    torch.testing.assert_close(together.embed(pictures(5)).double(), wanted, rtol=1e-5, atol=1e-6)
    whole = torch.cat([projections[0] * 4, projections[1] * 4 / 3])  # orthonormal columns times sqrt(48 / 24)
    torch.testing.assert_close(whole.T @ whole, 2 * torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch() -> None:
    together = Ensemble([linear(20, 1), linear(12, 2)], [1.0, 2.0], 16)
    rows = together.embed(pictures(37))
    for start, stop in ((0, 1), (5, 23), (36, 37)):
        assert torch.equal(together.embed(pictures(37)[start:stop]), rows[start:stop])


def test_what_makes_another_ensemble_changes_its_fingerprint() -> None:
    one, other = linear(16, 1), linear(16, 2)
    prints = {
        Ensemble(members, weights, dim).fingerprint
        for members, weights, dim in [
            ([one, other], [1.0, 1.0], None), ([other, one], [1.0, 1.0], None), ([one, other], [2.0, 1.0], None),
            ([one, other], [1.0, 1.0], 16), ([one, linear(16, 3)], [1.0, 1.0], None),
        ]
    }  # fmt: skip
    assert len(prints) == 5


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.new_ones(len(images), 16)


def test_a_teacher_that_says_nothing_is_named() -> None:
    mute = Teacher(Constant(), InputConfig(size=32), 32, CPU, None, "mute.pt", "mute")
    with pytest.raises(TeacherError, match=r"^mute\.pt: emits the same embedding for every image$"):
        Ensemble([linear(16, 1), mute], [1.0, 1.0], None).check(pictures(2))
    with pytest.raises(TeacherError, match=r"the ensemble of teacher 1, mute\.pt: has no classifier"):
        Ensemble([linear(16, 1), mute], [1.0, 1.0], None).project(torch.zeros(3, 16))


# --------------------------------------------------------------------------------------------- from files


def member(path: Path, **changes: Any) -> dict[str, Any]:
    return {"source": "checkpoint", "path": str(path), **changes}


def ensemble(*members: dict[str, Any], **changes: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"source": "ensemble", "ensemble": members, **changes})


def test_teachers_are_opened_from_files_as_the_configuration_says(tmp_path: Path) -> None:
    for name, dim in (("a", 16), ("b", 24)):
        config = ModelConfig(name="mobilefacenet_gdc", width=0.125, depth=0.2, embedding_dim=dim)
        torch.manual_seed(dim)
        save_model(tmp_path / f"{name}.safetensors", build_model(config, 32).eval(), config, 32)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    config = ensemble(member(paths[0]), member(paths[1], weight=2.0), project_to=40)
    teacher = open_teacher(config, 32, CPU)
    assert (teacher.embedding_dim, teacher.fingerprint) == (40, described(config, 32)[0])
    assert teacher.inputs == described(config, 32)[1]
    alone = [open_teacher(TeacherConfig.model_validate(member(path)), 32, CPU).embed(pictures(3)) for path in paths]
    wanted = (cosines(alone[0]) + 4 * cosines(alone[1])) / 5
    torch.testing.assert_close(cosines(teacher.embed(pictures(3))), wanted, rtol=0, atol=1e-6)
    with pytest.raises(TeacherError, match=r"teacher\.project_to is required .*, got 16 of \S*a\.\S*, 24 of \S*b\."):
        open_teacher(ensemble(member(paths[0]), member(paths[1])), 32, CPU)
    with pytest.raises(TeacherError, match=r"c\.safetensors: no such file"):
        open_teacher(ensemble(member(paths[0]), member(tmp_path / "c.safetensors")), 32, CPU)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ensemble": (member(Path("a.safetensors")),)}, 'ensemble must name two teachers or more with .*, got 1'),
        ({"source": "onnx", "path": "t.onnx", "embedding_dim": 8}, 'ensemble must be left out with source = "onnx"'),
        ({"path": "a.pt"}, "path must stand with each of ensemble"),
        ({"centres": "classifier"}, 'centres must be "means" with source = "ensemble", got "classifier"'),
        ({"ensemble": (member(Path("a.pt")), member(Path("b.safetensors")))}, 'model is required with source = "chec'),
        ({"ensemble": tuple({"source": "onnx", "path": "t.onnx", "embedding_dim": dim} for dim in (8, 16))},
         "project_to is required where embeddings of ensemble differ in length, got 16, 8"),
        ({"ensemble": (member(Path("a.safetensors"), weight=0.0),) * 2}, "greater than 0"),
    ],
)  # fmt: skip
def test_an_ensemble_that_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    members = (member(Path("a.safetensors")), member(Path("b.safetensors")))
    with pytest.raises(ValueError, match=told):
        TeacherConfig.model_validate({"source": "ensemble", "ensemble": members, **changes})


# --------------------------------------------------------------------------------------------- in training


def taught_by_two(folder: Path, name: str, **teacher: Any) -> dict[str, Any]:
    """Four steps, the batch's statistics over all ranks."""
    if not (folder / "second.safetensors").exists():
        save_teacher(folder / "second.safetensors", 1)
    settings = settings_of(folder, name, "margindistillation")
    members = [member(folder / "teacher.safetensors"), member(folder / "second.safetensors", weight=2.0)]
    settings["teacher"] = {"source": "ensemble", "ensemble": members, **teacher}
    settings["student"] |= {"sync_batchnorm": True}
    settings["run"] |= {"checkpoint_every": 2, "keep_checkpoints": 5}
    return settings


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_with_several_noisy_teachers_goes_on_at_another_number_of_ranks(teacher_caches: Path) -> None:
    noise = {"sigma": 0.5, "share": 0.5}
    straight = run(losses, 1, taught_by_two(teacher_caches, "two-straight", noise=noise))[0]
    settings = taught_by_two(teacher_caches, "two-resumed", noise=noise)
    run(losses, 3, settings)
    folder = teacher_caches / "runs" / "two-resumed" / "student"
    (folder / "model.safetensors").unlink()
    for path in (folder / "checkpoints").iterdir():
        if "2" not in path.name:
            shutil.rmtree(path)
    resumed = run(losses, 2, settings, "auto")[0]
    assert [line["step"] for line in resumed] == [line["step"] for line in straight] == [1, 2, 3, 4]
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in straight], rel=1e-3)


@pytest.mark.slow
@pytest.mark.distributed
def test_kept_embeddings_of_an_ensemble_are_the_live_ones(teacher_caches: Path) -> None:
    live = run(losses, 2, taught_by_two(teacher_caches, "two-live"))[0]
    noisy = taught_by_two(teacher_caches, "two-noisy", noise={"sigma": 0.5}, cache="auto", cache_dtype="fp32")
    losses_of = lambda lines: np.array([line["loss"] for line in lines])
    assert (abs(losses_of(run(losses, 2, noisy)[0]) / losses_of(live) - 1) > 1e-3).all()
    settings = taught_by_two(teacher_caches, "two-kept", cache="auto", cache_dtype="fp32")
    assert run(losses, 2, settings)[0] == live
    facts = TeacherCache(teacher_caches / "runs" / "two-kept" / "teacher_cache").facts
    assert facts.teacher == described(parse_config(settings).teacher, 32)[0]
    assert len(facts.preprocessing["input"]["members"]) == 2


@pytest.mark.slow
@pytest.mark.distributed
def test_each_teacher_is_judged_before_training(teacher_caches: Path) -> None:
    """These two are random, and so refused."""
    settings = taught_by_two(teacher_caches, "two-judged")
    settings["evaluate"] |= {"sets": [str(teacher_caches / "data" / "faces.bin")]}
    (told,) = run(refusal, 1, losses, settings)
    assert told.startswith(f"{teacher_caches / 'teacher.safetensors'}: this teacher is little better than guessing: ")
    assert "teacher.accept = true" in told
    assert not (teacher_caches / "runs" / "two-judged").exists()


# --------------------------------------------------------------------------------------------- noise


def test_noise_is_that_of_the_paper() -> None:
    noise = Noise(NoiseConfig(sigma=0.5, share=0.25), seed=7)
    rows = torch.full((4000, 64), 2.0)
    found = noise(rows, torch.arange(4000), 3) / rows - 1
    touched = found.any(1)
    assert touched.float().mean().item() == pytest.approx(0.25, abs=0.03)
    z = found[touched] / 0.5
    assert (z.mean().item(), z.std().item()) == (pytest.approx(0, abs=0.02), pytest.approx(1, rel=0.01))
    assert z.pow(4).mean().item() == pytest.approx(3, rel=0.05)
    assert abs(np.corrcoef(z[:, 0], z[:, 1])[0, 1]) < 0.1


def test_noise_of_a_record_depends_on_seed_step_and_record_alone() -> None:
    noise, rows = Noise(NoiseConfig(sigma=1.0, share=1.0), 7), torch.ones(6, 8)
    whole = noise(rows, torch.tensor([5, 9, 2, 7, 1, 30]), 3)
    assert torch.equal(noise(rows[:2], torch.tensor([30, 9]), 3), whole[[5, 1]])
    assert not torch.equal(noise(rows, torch.tensor([5, 9, 2, 7, 1, 30]), 4), whole)
    other = Noise(NoiseConfig(sigma=1.0, share=1.0), 8)
    assert not torch.equal(other(rows, torch.tensor([5, 9, 2, 7, 1, 30]), 3), whole)
    assert noise(rows[:0], torch.zeros(0, dtype=torch.int64), 3).shape == (0, 8)


def test_layers_of_several_teachers_cannot_be_looked_at(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "taps", "margindistillation")
    members = [member(tmp_path / "teacher.safetensors")] * 2
    settings["teacher"] = {"source": "ensemble", "ensemble": members}
    settings["student"]["terms"] = [{"name": "fitnets"}]
    with pytest.raises(ConfigError) as error:
        parse_config(settings)
    told = 'teacher.source: must be "train" or "checkpoint" with student.terms.0.name = "fitnets", which looks at'
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_noise_that_nothing_would_hear_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "deaf", "margindistillation", noise={"sigma": 0.1, "on": "logits"})
    with pytest.raises(ConfigError, match=r'teacher\.noise\.on: must be "embedding" without a term of soft targets'):
        parse_config(settings)
    settings["student"] |= {"terms": [{"name": "logit_kd"}], "centres": {"memory": "host", "sample_rate": 0.1}}
    with pytest.raises(ConfigError, match=r'student\.centres\.memory: must be "device" with teacher\.noise\.on'):
        parse_config(settings)
    settings = settings_of(tmp_path, "deaf", "arcdistill", noise={"sigma": 0.1})
    with pytest.raises(ConfigError, match=r"teacher\.noise: must be left out where nothing of the student looks"):
        parse_config(settings)
