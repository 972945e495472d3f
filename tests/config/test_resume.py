"""A resumed run may change what the marks of the fields say; older checkpoints are compared in what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from partialkd.config import AdaDistillConfig, MethodSection, PhaseConfig
from partialkd.config.load import load_config
from partialkd.config.resume import FREE, identity_changes, phase_identity
from partialkd.errors import CheckpointError, ConfigError
from partialkd.methods import METHODS
from partialkd.run.folder import as_begun_in_its_folder, check_run, open_run

PHASE_KEYS = (
    "accumulation", "zero_stage", "compile", "weights", "centres.weights", "centres.label_map",
    "model.channels_last",
    *(f"centres.{key}" for key in ("store", "moments", "memory", "backend", "products", "chunk_rows")),
)  # fmt: skip

LISTS = ("label_map", "exclude_identities", "exclude_images")


def phase(**changes: Any) -> PhaseConfig:
    settings = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 2.0, "global_batch": 8}
    return PhaseConfig.model_validate(settings | changes)


def test_keys_that_are_free_on_resume() -> None:
    assert set(FREE) == {
        "dist", "evaluate", "health",
        *(f"teacher.{key}" for key in ("path", "classifier", "label_map", "cache", "compile", "accept")),
        "teacher.ensemble.path", "teacher.ensemble.model.channels_last", "teacher.model.channels_last",
        *(f"data.{key}" for key in ("path", *LISTS)),  # what is in them is compared
        *(f"data.prepare.{key}" for key in ("images", "exclude_identities", "pairs_images", "pairs")),
        *(f"data.parts.{key}" for key in ("path", *LISTS)),
        *(f"run.{key}" for key in ("folder", "log_every", "log_level", "checkpoint_every", "keep_checkpoints",
                                   "keep_best", "checkpoint_async", "tensorboard", "tf32", "wandb", "report",
                                   "profile_steps", "profile_ranks")),
        *(f"data.{key}" for key in ("loader", "workers", "index_cache", "on_corrupt", "max_corrupt")),
        *(f"{name}.{key}" for name in ("teacher.train", "student", "alone") for key in PHASE_KEYS),
    }  # fmt: skip


def test_a_checkpoint_is_held_to_what_changes_its_numbers() -> None:
    of = lambda **changes: phase_identity(phase(**changes))
    assert of() == of(max_steps=3, epochs=3.0, accumulation=2, zero_stage=1, centres={"store": "bf16"})
    for changes in (
        {"global_batch": 16}, {"optimizer": {"lr": 0.2}}, {"precision": "bf16"},
        {"centres": {"sample_rate": 0.5}}, {"method": {"name": "cosface"}}, {"model": {"name": "iresnet34"}},
    ):  # fmt: skip
        assert of(**changes) != of()


def test_checkpoints_of_before_are_compared_in_what_they_recorded() -> None:
    now = {"seed": 0, **phase_identity(phase())}
    recorded = {key: now[key] for key in ("seed", "model", "method", "global_batch")}
    assert identity_changes(recorded, now) == {}
    assert identity_changes({**recorded, "global_batch": 16}, now) == {"global_batch": (16, 8)}
    assert identity_changes({**recorded, "seed": None}, now) == {"seed": (None, 0)}
    other = {**recorded, "method": {**now["method"], "scale": 32.0}}
    assert identity_changes(other, now) == {"method.scale": (32.0, 64.0)}
    number, named = {"method": {"margin": 0.4}}, {"method": {"margin": {"name": "adaface", "m": 0.4}}}
    assert identity_changes(number, named) == {"method.margin": (0.4, "a section")}
    assert identity_changes(named, number) == {"method.margin": ("a section", 0.4)}
    assert identity_changes(now, {"seed": 0, **phase_identity(phase(optimizer={"lr": 0.2}))}) == {
        "optimizer.lr": (0.1, 0.2)
    }


def test_every_section_of_a_method_has_a_class_and_says_what_it_needs() -> None:
    assert set(METHODS) == set(MethodSection.__subclasses__())
    told = {section.model_fields["name"].annotation.__args__[0]: section for section in METHODS}  # type: ignore[union-attr]
    assert {name: (section.centre_kind, section.teacher_use) for name, section in told.items()} == {
        "arcface": ("trainable", "none"),
        "cosface": ("trainable", "none"),
        "arcdistill": ("fixed", "centres"),
        "cosdistill": ("fixed", "centres"),
        "adadistill": ("ema", "every batch"),
        "margindistillation": ("fixed", "every batch"),
        "trained_centres": ("trainable", "none"),
        "teacher_centres": ("fixed", "centres"),
    }


SAVED = """
[run]
name = "trial"
[data]
path = "data/trial"
[student]
model = { name = "mobilefacenet" }
method = { name = "arcface" }
epochs = 2
global_batch = 64
"""


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b"[run]\nname = 'trial'\n", "data: required key is missing"),
        (b"[run\n", "Expected ']' at the end of a table"),
        (SAVED.encode()[:-50] + b"\xff\xfe", "must be text in UTF-8"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "checkpoint"])
def test_a_run_whose_configuration_is_lost_or_damaged(
    damage: bytes | None, told: str, resume: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(SAVED)
    config = load_config(path, [f"run.folder={tmp_path / 'runs'}"])
    folder = open_run(config, "never")
    saved = folder / "config.toml"
    checkpoint = folder / "student" / "checkpoints" / "step_000000001"
    checkpoint.mkdir(parents=True)
    saved.unlink() if damage is None else saved.write_bytes(damage)
    with pytest.raises(ConfigError) as error:
        open_run(config, "auto" if resume == "auto" else str(checkpoint))
    assert str(error.value).startswith(f"{saved}: {told}")
    assert str(error.value).endswith("put it back, or start anew under another run.name")
    assert "\n" not in str(error.value).replace(f"\n{saved}: ", "")  # a line for each missing key
    assert saved.exists() == (damage is not None)


ADADISTILL = (
    SAVED.replace('"arcface"', '"adadistill"') + '[teacher]\nsource = "onnx"\npath = "t"\nembedding_dim = 512\n'
)


def test_runs_from_before_a_key_go_on_as_they_began(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(ADADISTILL)
    place = f"run.folder={tmp_path / 'runs'}"
    config = load_config(path, [place])
    assert isinstance(config.student.method, AdaDistillConfig)
    assert config.student.method.clip == "code"
    saved = open_run(config, "never") / "config.toml"
    assert as_begun_in_its_folder(config, "auto") == config
    saved.write_text(saved.read_text().replace('clip = "code"\n', ""))  # as it was before there was a choice
    assert as_begun_in_its_folder(config, "never") == config
    for _ in range(2):  # the second time with what the first one has saved
        went_on = as_begun_in_its_folder(load_config(path, [place]), "auto")
        assert went_on.student.method == config.student.method.model_copy(update={"clip": "poster"})
        open_run(went_on, "auto")
    assert 'clip = "poster"' in saved.read_text()
    given = as_begun_in_its_folder(load_config(path, [place, "student.method.clip=code"]), "auto")
    with pytest.raises(ConfigError, match=r"student\.method\.clip: must be 'poster', got 'code'"):
        open_run(given, "auto")


def test_checkpoints_from_before_a_key_are_of_runs_as_they_were_then() -> None:
    facts = lambda clip: phase_identity(phase(method={"name": "adadistill", "clip": clip}))
    recorded = facts("poster")
    del recorded["method"]["clip"]
    assert identity_changes(recorded, facts("poster")) == {}
    assert identity_changes(recorded, facts("code")) == {"method.clip": ("poster", "code")}


def test_terms_are_part_of_a_run_and_of_its_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(ADADISTILL)
    term, other = (f"student.terms=[{{name='embedding', weight={weight}}}]" for weight in (1.0, 2.0))
    place = f"run.folder={tmp_path / 'runs'}"
    plain, with_term, with_other = (load_config(path, [place, *more]) for more in ((), (term,), (other,)))
    facts = [phase_identity(config.student) for config in (plain, with_term, with_other)]
    for saved in facts:
        assert [identity_changes(saved, given) == {} for given in facts] == [given == saved for given in facts]
        assert all(identity_changes(saved, given).keys() <= {"terms"} for given in facts)
    recorded = {key: value for key, value in facts[0].items() if key != "terms"}  # before there were any
    assert identity_changes(recorded, facts[0]) == {}
    assert identity_changes(recorded, facts[1]).keys() == {"terms"}
    for begun, given in ((plain, with_term), (with_term, plain), (with_term, with_other)):
        open_run(begun, "never")
        open_run(as_begun_in_its_folder(begun, "auto"), "auto")
        with pytest.raises(ConfigError, match=r"--resume goes on with the run of .* only: student\.terms: must be \["):
            open_run(as_begun_in_its_folder(given, "auto"), "auto")


@pytest.mark.parametrize(
    ("changes", "longer", "problem"),
    [
        (["student.epochs=3"], ["student"], None),
        (["student.max_steps=9"], ["student"], None),
        (["student.epochs=1.5"], [], r"student\.epochs: must be 2\.0, got 1\.5$"),
        (["student.max_steps=4"], [], r"student\.max_steps: must be 5, got 4$"),
        (["student.epochs=3", "student.optimizer.lr=1.0"], [], r"student\.optimizer\.lr: must be 0\.1, got 1\.0$"),
    ],
)
def test_a_phase_may_be_made_longer_where_that_is_asked_for(
    changes: list[str], longer: list[str], problem: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "[run]\nname = 'trial'\n[data]\nsource = 'synthetic'\npath = 'none'\n"
        "[student]\nepochs = 2\nmax_steps = 5\nglobal_batch = 8\n"
        "model = {name = 'iresnet18'}\nmethod = {name = 'arcface'}\n"
    )
    place = f"run.folder={tmp_path / 'runs'}"
    folder = open_run(load_config(path, [place]), "never")
    config = load_config(path, [place, *changes])
    with pytest.raises(ConfigError, match=problem or r"got [39](\.0)? \(with --extend a phase may be made longer\)$"):
        check_run(config, "auto")
    with pytest.raises(ConfigError, match="--extend: only with --resume auto or a checkpoint's path"):
        check_run(config, "never", extend=True)
    if problem is not None:
        with pytest.raises(ConfigError, match=problem):
            check_run(config, "auto", extend=True)
        return
    assert check_run(config, "auto", extend=True) == longer
    (folder / "student").mkdir()
    (folder / "student" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="student: --extend goes on from its last checkpoint, and there is none"):
        open_run(config, "auto", extend=True)
    assert (folder / "student" / "model.safetensors").exists()


def test_the_sources_of_prepared_data_may_have_been_moved(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(SAVED + '[data.prepare]\nkind = "archive"\nimages = "a.tar"\n')
    place = f"run.folder={tmp_path / 'runs'}"
    folder = open_run(load_config(path, [place]), "never")
    moved = load_config(path, [place, "data.prepare.images=b/a.tar"])
    assert open_run(moved, "auto") == folder
    with pytest.raises(ConfigError, match=r"data\.prepare\.min_images: must be 1, got 2"):
        open_run(load_config(path, [place, "data.prepare.min_images=2"]), "auto")
