"""Additive terms: values and gradients at any number of ranks against formulas in float64; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import dense
from helpers.centre_cases import SCALE, SEED, method_of, problem, store_of
from helpers.ranks import run
from partialkd.centres import Centres
from partialkd.config import CentresConfig, PhaseConfig, TermSection
from partialkd.config.base import leaves
from partialkd.config.load import load_config
from partialkd.errors import ConfigError
from partialkd.methods.terms import TERMS, TermInputs, Terms
from partialkd.world.world import World

TERMS_OF = {
    "l2": [{"name": "embedding", "weight": 0.7}],
    "cosine": [{"name": "embedding", "weight": 3.0, "distance": "cosine"}],
    "both": [{"name": "embedding", "weight": 0.7}, {"name": "embedding", "weight": 3.0, "distance": "cosine"}],
}


def terms_of(name: str) -> Terms:
    settings = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 1.0, "global_batch": 8}
    return Terms(PhaseConfig.model_validate(settings | {"terms": tuple(TERMS_OF[name])}).terms)


def wanted(name: str, x: Tensor, t: Tensor) -> Tensor:
    """Written out, image by image."""
    total = torch.zeros((), dtype=torch.float64)
    for term in TERMS_OF[name]:
        for one, other in zip(x, t, strict=True):
            if term.get("distance") == "cosine":
                far = 1 - one @ other / (one @ one).sqrt() / (other @ other).sqrt()
            else:
                far = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
            total = total + term["weight"] * far / len(x)
    return total


def step(world: World, name: str, method: str, p: dense.Problem) -> dict[str, Any]:
    """The loss of a method with its terms, on this rank's part of the batch."""
    loss_of, terms = method_of(method), terms_of(name)
    store = store_of(p, world, loss_of.config.centre_kind, torch.float64)
    centres = Centres(store, world, SCALE, CentresConfig(), SEED, None)
    mine = torch.arange(len(p.labels)).chunk(world.size)[world.rank]
    x = p.student[mine].clone().requires_grad_()
    outcome = loss_of.loss(centres, x, p.labels[mine], p.teacher[mine])
    outcome = terms.added_to(outcome, TermInputs(x, p.labels[mine], p.teacher[mine], world))
    outcome.loss.backward()
    return {"loss": outcome.loss.detach(), "gradient": x.grad, "values": outcome.values}


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("name", "labels"), [("l2", "random"), ("cosine", "duplicates"), ("both", "random")])
def test_loss_and_gradient_are_those_of_the_global_batch(name: str, labels: str, size: int) -> None:
    p = problem(labels)
    ranks = run(step, size, name, "arcdistill", p)
    x = p.student.clone().requires_grad_()
    loss = dense.cross_entropy(x, p.centres, p, SCALE, lambda c: dense.arc(c, 0.45)) + wanted(name, x, p.teacher)
    loss.backward()
    close = lambda got, want: torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-8)
    close(torch.stack([rank["loss"] for rank in ranks]).mean(), loss.detach())
    close(torch.cat([rank["gradient"] for rank in ranks]) / size, x.grad)
    for at, term in enumerate(TERMS_OF[name]):
        told = torch.stack([rank["values"][f"term_{at}_embedding"] for rank in ranks]).mean()
        alone = "cosine" if term.get("distance") else "l2"
        close(told, wanted(alone, p.student, p.teacher) / TERMS_OF[alone][0]["weight"])
    assert {"cosine"} < ranks[0]["values"].keys()  # the method's own are still there


def test_every_section_of_a_term_has_a_class() -> None:
    assert set(TERMS) == set(leaves(TermSection))


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
model = { name = "mobilefacenet" }
method = { name = "arcface" }
terms = [{ name = "embedding", weight = 2.0 }]
epochs = 2
global_batch = 64
"""
PHASE = "{model={name='iresnet18'}, method={name='arcface'}, epochs=1, global_batch=8, terms=[{name='embedding'}]}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (['teacher={source="none"}'], 'teacher={source="none"}: teacher.source: must not be "none" with '
         'student.terms.0.name = "embedding"'),
        ([f"alone={PHASE}"], 'alone.terms.0.name: must be a term without teacher, got "embedding"'),
        (["student.terms=[{name='embedding', weight=nan}]"], "student.terms.0.weight: must be "),
        (["student.terms=[{name='embedding', weight=-1.0}]"], "student.terms.0.weight: must be greater than 0, got"),
        (["student.terms=[{name='embedding', weight=1e300}]"], "student.terms.0.weight: must be less than or equal to"),
        (["student.terms=[{name='embedding', wieght=1}]"], "student.terms.0.wieght: unknown key, did you mean "
         "student.terms.weight?"),
        (["student.terms=[{name='rdk'}]"], "student.terms.0.name: must be one of 'embedding', 'rkd', "),
        (["student.terms=[{weight=1}]"], "student.terms.0.name: required key is missing"),
        (["student.terms=embedding"], "must be a list, got 'embedding'"),
        (["student.model.embedding_dim=128"], "must be the teacher's 512 (or set teacher.project_to = 128), got 128"),
        (["data.augment.blur=0.5", "teacher.cache=cache"], "data.augment.blur"),
        (["student.terms=[{name='embedding'},{name='sp'}]", "student.accumulation=2"],
         'student.accumulation=2: must be 1 with terms.1.name = "sp", which looks at the global batch at once, got 2'),
        (["student.terms=[{name='triplet'}]"],
         'data.sampler: must be "pk" or "half_pk" with student.terms.0.name = "triplet", got "shuffle"'),
        (["student.terms=[{name='ekd'}]", "data.sampler=balanced"],
         'data.sampler=balanced: must be "half_pk" or "pk" with student.terms.0.name = "ekd", got "balanced"'),
        (["student.terms=[{name='darkrank', length=9}]", "student.global_batch=9"],
         'student.global_batch=9: must be at least 10 with terms.0.name = "darkrank", got 9'),
        (["student.terms=[{name='darkrank', kind='soft', length=6}]"],
         'student.terms.0.length: must be at most 5 with kind = "soft", got 6'),
        (["student.terms=[{name='rkd', distance_weight=0.0, angle_weight=0.0}]"],
         "student.terms.0.angle_weight: must be greater than 0 with distance_weight = 0, got 0"),
        (["student.terms=[{name='triplet', margin_max=0.1}]"],
         "student.terms.0.margin_max: must be at least margin_min (0.2), got 0.1"),
        (["student.terms=[{name='sp'},{name='embedding'}]", "student.model.embedding_dim=128"],
         "student.model.embedding_dim=128: must be the teacher's 512"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_key(changes: list[str], told: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    assert load_config(path).student.teacher_use == "every batch"
    with pytest.raises(ConfigError) as error:
        load_config(path, changes)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_relations_know_no_dimension(tmp_path: Path) -> None:
    """Those of a student of 128 numbers are compared with those of a teacher of 512."""
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    names = ("rkd", "sp", "cckd", "darkrank", "triplet", "ekd")
    terms = "student.terms=[" + ",".join(f"{{name='{name}'}}" for name in names) + "]"
    config = load_config(path, [terms, "student.model.embedding_dim=128", "data.sampler=half_pk"])
    assert [term.name for term in config.student.terms] == list(names)
