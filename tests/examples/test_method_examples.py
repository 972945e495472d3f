"""docs/extending.md, a method and a term: made in a copy of the package, whose loss is compared with plain formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.examples import copy_with, python

PROGRAM = """
import json
import torch
import torch.nn.functional as F
from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.config.load import parse_config
from partialkd.config.resume import phase_identity
from partialkd.errors import ConfigError
from partialkd.methods import make_method
from partialkd.methods.terms import TermInputs, Terms
from partialkd.planner.plan import Ranks, plan_phase
from partialkd.world.world import World

def tree(**student):
    student = {"model": {"name": "iresnet18"}, "epochs": 1, "global_batch": 8, **student}
    teacher = {"source": "onnx", "path": "t.onnx", "embedding_dim": 512}
    return {"run": {"name": "t"}, "data": {"path": "x"}, "teacher": teacher, "student": student}

def refusal(**student):
    try:
        parse_config(tree(**student))
    except ConfigError as error:
        return str(error)

config = parse_config(tree(
    method={"name": "normface", "scale": 16.0}, terms=[{"name": "length", "weight": 0.5}, {"name": "embedding"}]
))
phase = config.student
generator = torch.Generator().manual_seed(1)
draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
w, x, t, y = draw(10, 6), draw(8, 6).requires_grad_(), 2 * draw(7, 6).repeat(2, 1)[:8], torch.arange(8) % 5
store = CentreStore.empty(range(10), 10, 6, torch.float64, torch.device("cpu"))
store.fill(slice(None), w.clone())
rule = make_row_optimizer(store, OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.0))
method, terms = make_method(phase.method), Terms(phase.terms)
centres = Centres(store, World(), phase.method.scale, CentresConfig(), 0, rule)
outcome = terms.added_to(method.loss(centres, x, y, t), TermInputs(x, y, t, World()))
outcome.loss.backward()
centres.step(0.1)

v, u = x.detach().clone().requires_grad_(), w.clone().requires_grad_()
cross = F.cross_entropy(16 * F.normalize(v) @ F.normalize(u).T, y)
length = sum((v[i].norm() / t[i].norm()).log() ** 2 for i in range(8)) / 8
far = sum(((v[i] - t[i]) ** 2).sum() for i in range(8)) / 8
(cross + 0.5 * length + far).backward()

halves = [terms.added_to(type(outcome)(torch.zeros(())), TermInputs(x[h], y[h], t[h], World())).loss
          for h in (slice(0, 4), slice(4, 8))]
print(json.dumps({
    "loss": (outcome.loss - cross - 0.5 * length - far).abs().item(),
    "gradient": (x.grad - v.grad).abs().max().item(),
    "centres": (store.read(slice(None)) - (w - 0.1 * u.grad)).abs().max().item(), "moved": u.grad.abs().max().item(),
    "halves": (sum(halves) / 2 - 0.5 * length - far).abs().item(),
    "values": sorted(outcome.values), "length": (outcome.values["term_0_length"] - length).abs().item(),
    "identity": phase_identity(phase)["terms"][0],
    "moments": "centres: moments" in plan_phase(phase, config.data, 10, Ranks.of(config, 1, cuda=False), None).resident,
    "method": refusal(method={"name": "normface", "margin": 0.5}),
    "term": refusal(method={"name": "normface"}, terms=[{"name": "length", "weight": float("nan")}]),
    "none": refusal(method={"name": "normface"}, terms=[{"name": "lenght"}]),
}))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    package: Path = copy_with(["A method", "A term"], tmp_path_factory.mktemp("examples"))
    return json.loads(python(package, PROGRAM))


@pytest.mark.slow
def test_loss_gradient_and_centres_are_those_of_the_formulas(said: dict[str, Any]) -> None:
    assert said["loss"] < 1e-9
    assert said["gradient"] < 1e-9
    assert said["moved"] > 0.01
    assert said["centres"] < 1e-9


@pytest.mark.slow
def test_the_term_on_two_ranks_is_the_mean_of_its_parts(said: dict[str, Any]) -> None:
    assert said["halves"] < 1e-10
    assert said["length"] < 1e-10
    assert said["values"] == ["cosine", "term_0_length", "term_1_embedding"]


@pytest.mark.slow
def test_configuration_plan_and_resume_know_them(said: dict[str, Any]) -> None:
    assert said["identity"] == {"name": "length", "weight": 0.5}
    assert said["moments"]  # of centres that are trained
    assert said["method"] == "config: student.method.margin: unknown key here, though others have it"
    assert said["term"].startswith("config: student.terms.0.weight: must be ")
    assert said["none"].startswith("config: student.terms.0.name: must be one of 'embedding', ")
    assert said["none"].endswith("'length', got 'lenght'")
