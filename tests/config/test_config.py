"""Configurations: every shipped file loads; a bad key is named with its rule and value; what is saved loads again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.config import AdaDistillConfig
from partialkd.config.load import load_config, parse_config, save_config
from partialkd.errors import ConfigError

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.glob("*.toml"))

MINIMAL = """
[run]
name = "trial"
[data]
path = "data/trial"
[teacher]
source = "checkpoint"
path = "teacher.pth"
model = { name = "iresnet18" }
[student]
model = { name = "mobilefacenet" }
method = { name = "adadistill" }
epochs = 2
global_batch = 64
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_load_and_say_how_to_run_them(path: Path) -> None:
    config = load_config(path)
    assert config.run.name == path.stem  # results of different files never share a folder
    command = path.read_text().partition("#\n")[0]  # the first comment, up to an empty one
    assert command.startswith(("# make train", "# sbatch"))
    assert path.name in command or path.stem == "quickstart"  # which is what `make train` runs by itself


def test_there_are_shipped_files() -> None:
    assert {"ms1mv2_adadistill", "ms1mv2_margindistillation", "webface42m_adadistill_32gpu"} <= {p.stem for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_saved_configuration_loads_to_an_equal_one(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["run.seed=7", "student.optimizer.lr=0.05"])
    save_config(config, tmp_path / "resolved.toml")
    again = load_config(tmp_path / "resolved.toml")
    assert again == config
    assert again.run.seed == 7
    assert "milestone_epochs" in tomllib.loads((tmp_path / "resolved.toml").read_text())["student"]["schedule"]


def test_published_adadistill_recipe() -> None:
    """What the paper's figures depend on; arXiv 2407.01332 and its published code."""
    config = load_config(CONFIGS / "ms1mv2_adadistill.toml")
    phase, method = config.student, config.student.method
    assert isinstance(method, AdaDistillConfig)
    assert (method.kind, method.margin, method.scale, method.weighted) == ("arc", 0.45, 64.0, True)
    assert (method.initial_centres, method.first_sight, method.renormalise) == ("random", False, False)
    assert (phase.global_batch, phase.epochs, phase.schedule.milestone_epochs) == (512, 26, (7, 13, 19, 24))
    optimizer = phase.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm) == (0.1, 0.9, 5e-4, 5.0)
    cosine = load_config(CONFIGS / "ms1mv2_adadistill_cos.toml")
    assert cosine.student.method == method.model_copy(update={"kind": "cos", "margin": 0.35})
    assert cosine.student.model_copy(update={"method": method}) == phase
    assert (cosine.data, cosine.teacher, cosine.evaluate) == (config.data, config.teacher, config.evaluate)


def test_overrides_take_toml_values_or_text(minimal: Path) -> None:
    config = load_config(
        minimal,
        [
            "student.epochs=0.5",
            "student.schedule={name='step', milestone_steps=[10, 20]}",
            "dist.device=cpu",
            "data.flip=false",
            'run.name="second-2"',
            "evaluate.sets=['a=b.bin']",
        ],
    )
    assert (config.student.epochs, config.student.schedule.milestone_steps) == (0.5, (10, 20))
    assert (config.dist.device, config.data.flip, config.run.name) == ("cpu", False, "second-2")
    assert config.evaluate.sets == ("a=b.bin",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.sample_rate=0.1", "{override}: unknown key, did you mean student.centres.sample_rate?"),
        ("student.lrr=0.1", "{override}: unknown key, did you mean student.optimizer.lr?"),
        ("student.optimizer={lrr=1}", "{override}: student.optimizer.lrr: unknown key, did you mean student.opt"),
        ("sudent.epochs=3", "{override}: unknown key, did you mean student.epochs?"),
        ("student.method.m2=0.5", "{override}: unknown key, did you mean student.method.margin.m2?"),
        ("student.method.margin_min=0.5", "{override}: unknown key here, though others have it"),
        ("student.centres.sample_rate=1.5", "{override}: must be less than or equal to 1, got 1.5"),
        ("student.centres.sample_rate=0", "{override}: must be greater than 0, got 0"),
        ("student.optimizer.lr=inf", "{override}: must be a finite number, got inf"),
        ("student.optimizer.lr=fast", "{override}: must be a valid number, got 'fast'"),
        ("run.seed=1.0", "{override}: must be a valid integer, got 1.0"),
        ("run.seed=true", "{override}: must be a valid integer, got True"),
        ("data.flip=1", "{override}: must be a valid boolean, got 1"),
        ("run.name=a/b", "{override}: must match pattern"),
        ("dist.device=tpu", "{override}: must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("evaluate.fars=[0.1, 2.0]", "{override}: evaluate.fars.1: must be less than or equal to 1, got 2.0"),
        ("evaluate.sets=lfw.bin", "{override}: must be a list, got 'lfw.bin'"),
        ("student.model={}", "{override}: student.model.name: required key is missing"),
        ("student.method={}", "{override}: student.method.name: required key is missing"),
        ("student.method.name=kd", "{override}: must be one of 'arcface', "),
        ("student.method.margin=4.0", "{override}: must be less than 3.1416, got 4.0"),
        ("student.method=3", "{override}: must be a section, got 3"),
        ("student=3", "{override}: must be a section, got 3"),
        ("data.prepare.kind=zip", "{override}: must be one of 'procedural', 'archive', got 'zip'"),
        ("student.accumulation=3", "{file}: student.global_batch: must be divisible by accumulation (3), got 64"),
        (
            "student.schedule={milestone_epochs=[1], milestone_steps=[5]}",
            "{override}: student.schedule.milestone_steps: must be ",
        ),
        ("teacher.source=none", '{override}: must not be "none" with student.method.name = "adadistill"'),
        ("teacher.source=train", '{file}: teacher.train: is required with source = "train"'),
        ("teacher.centres=classifier", '{file}: teacher.classifier: is required with centres = "classifier"'),
    ],
)
def test_a_bad_key_is_named_with_its_rule_and_value(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(minimal, [override])
    assert str(error.value).startswith(message.format(file=minimal, override=f"override {override}"))
    assert "\n" not in str(error.value)


def test_every_problem_is_told_at_once(minimal: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(minimal, ["run.seeds=1", "student.epochs=0", "student.model.name=vgg"])
    told = [line.partition("=")[0] for line in str(error.value).splitlines()]
    assert sorted(told) == ["override run.seeds", "override student.epochs", "override student.model.name"]


@pytest.mark.parametrize("override", ["student.epochs", "=3", "student..epochs=3", "student.epochs.x=3"])
def test_a_malformed_override_is_shown(minimal: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="override") as error:
        load_config(minimal, [override])
    assert repr(override) in str(error.value)


def test_a_method_without_teacher_is_required_of_teacher_and_comparison(minimal: Path) -> None:
    phase = "{model={name='iresnet18'}, method={name='arcdistill'}, epochs=1, global_batch=8}"
    for key in ("alone", "teacher.train"):
        with pytest.raises(ConfigError, match=rf"{key}\.method\.name: must be a method without teacher"):
            load_config(minimal, [f"{key}={phase}"])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[run\nname=")
    with pytest.raises(ConfigError, match=r"broken\.toml: .*line 1"):
        load_config(tmp_path / "broken.toml")


def test_sections_are_frozen(minimal: Path) -> None:
    config = load_config(minimal)
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]
    assert parse_config(tomllib.loads(MINIMAL)) == config


def test_a_classifier_that_no_centre_would_start_from_is_refused(minimal: Path) -> None:
    given = ["teacher.centres=classifier", "teacher.classifier=fc.npy", "teacher.label_map=identity"]
    assert load_config(minimal, given).teacher.classifier == "fc.npy"
    rule = 'initial_centres=exclude: must be "teacher_means" with teacher.centres = "classifier", got "exclude"'
    with pytest.raises(ConfigError, match=rule):
        load_config(minimal, [*given, "student.method.initial_centres=exclude"])
