"""Terms of soft targets: what is refused before anything is trained, and what their settings become."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from partialkd.config import PhaseConfig
from partialkd.config.load import load_config
from partialkd.config.terms import GkdTermConfig
from partialkd.errors import ConfigError
from partialkd.methods.terms import Terms, TermSetting
from partialkd.methods.terms.soft import GroupKD, LogitKD, soft_targets

FILE = """
[run]
name = "trial"
[data]
path = "data/trial"
[teacher]
source = "onnx"
path = "teacher.onnx"
embedding_dim = 512
[student]
model = { name = "mobilefacenet", embedding_dim = 128 }
method = { name = "arcface" }
terms = [{ name = "logit_kd" }]
epochs = 2
global_batch = 64
"""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (['teacher={source="none"}'], 'teacher.source: must not be "none" with student.terms.0.name = "logit_kd"'),
        (["student.terms=[{name='logit_kd', temperature=0.0}]"], "student.terms.0.temperature: must be greater than 0"),
        (
            ["student.terms=[{name='logit_kd', temperature=-4.0}]"],
            "student.terms.0.temperature: must be greater than 0",
        ),
        (["student.terms=[{name='margin_t', temperature=nan}]"], "student.terms.0.temperature: must be "),
        (
            ["student.terms=[{name='gkd', share=1.5}]"],
            "student.terms.0.share: must be less than or equal to 1, got 1.5",
        ),
        (["student.terms=[{name='gkd', most=0}]"], "student.terms.0.most: must be greater than 0, got 0"),
        (["student.terms=[{name='logit_kd', teacher_scale=inf}]"], "student.terms.0.teacher_scale: must be "),
        (
            ["student.terms=[{name='logit_kd'}, {name='embedding'}, {name='gkd'}]", "student.model.embedding_dim=512"],
            'terms.2.name must be left out beside terms.0.name = "logit_kd"',
        ),
        (
            ["student.centres={memory='host', sample_rate=0.1}"],
            'centres.memory must be "device" with terms.0.name = "logit_kd" and arcface',
        ),
        (
            ["teacher.centres=classifier"],
            'teacher.classifier: is required with centres = "classifier"',
        ),
        (["student.method={name='arcdistill'}"], "must be the teacher's 512"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(changes: list[str], told: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    assert load_config(path).student.teacher_rows
    with pytest.raises(ConfigError) as error:
        load_config(path, changes)
    assert told.replace(": ", " ") in str(error.value).replace(": ", " ")
    assert "\n" not in str(error.value)


def test_windows_of_the_teachers_own_centres_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    changes = ["student.centres={memory='host', sample_rate=0.1}", "student.method={name='arcdistill'}"]
    phase = load_config(path, [*changes, "student.model.embedding_dim=512"]).student
    assert not phase.teacher_rows
    assert soft_targets(phase, None) is not None


def test_a_classifier_is_read_for_the_term_where_averages_begin_at_random(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    method = "student.method={name='adadistill', initial_centres='random'}"
    changes = [method, "student.model.embedding_dim=512", "teacher.classifier=rows.npy", "teacher.label_map=identity"]
    assert load_config(path, [*changes, "teacher.centres=classifier"]).student.teacher_rows
    with pytest.raises(ConfigError, match="initial_centres"):
        load_config(path, [*changes, "teacher.centres=classifier", "student.terms=[]"])


def test_the_teachers_scale_is_the_methods_unless_it_is_given() -> None:
    settings = {"model": {"name": "iresnet18"}, "method": {"name": "arcface", "scale": 30.0}, "epochs": 1.0}
    for given, wanted in (({}, 30.0), ({"teacher_scale": 64.0}, 64.0)):
        phase = PhaseConfig.model_validate({**settings, "global_batch": 8, "terms": ({"name": "logit_kd", **given},)})
        targets = soft_targets(phase, None)
        assert targets is not None
        assert (targets.teacher_scale, targets.temperature, targets.share) == (wanted, 4.0, None)


def test_the_margin_is_the_students_or_of_both() -> None:
    settings = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 1.0, "global_batch": 8}
    for term, wanted in (
        ({"name": "logit_kd"}, (0.0, 0.0)),
        ({"name": "logit_kd", "margin": 0.3}, (0.3, 0.0)),
        ({"name": "margin_t"}, (0.5, 0.5)),
    ):
        made = Terms(PhaseConfig.model_validate(settings | {"terms": (term,)}).terms).named[f"term_0_{term['name']}"]
        assert isinstance(made, LogitKD)
        assert made.margins == wanted


def test_the_ramp_counts_optimiser_steps_and_goes_on_with_them() -> None:
    term = GroupKD(GkdTermConfig(name="gkd", ramp_steps=4), TermSetting())
    factors = []
    for _ in range(6):
        factors.append(term.ramped())
        term.stepped()
    assert factors == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    term.skipped()
    other = GroupKD(GkdTermConfig(name="gkd", ramp_steps=8), TermSetting())
    other.load_state({key: value.clone() for key, value in term.state().items()})
    assert other.ramped() == 6 / 8
    assert GroupKD(GkdTermConfig(name="gkd"), TermSetting()).ramped() == 1.0
    assert torch.equal(term.state()["steps"], torch.tensor([6.0], dtype=torch.float64))
