"""The named margins against dense float64 transcriptions: losses, gradients, centres, what moves, at 1, 2 and 3 ranks.

All cases of a number of ranks go through one start of them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import dense, dense_margins
from helpers.centre_cases import SCALE, SEED, SGD, problem, sampled, store_of
from helpers.ranks import run
from partialkd.centres import Centres
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.config import AdaFaceMarginConfig, CentresConfig, MarginSection
from partialkd.config.load import load_config, parse_config, save_config
from partialkd.errors import ConfigError
from partialkd.methods import make_method
from partialkd.methods.margin_softmax import MarginSoftmax
from partialkd.methods.margins import NAMED, MarginInputs
from partialkd.methods.margins.elastic import ElasticMargin
from partialkd.world.world import World

STEPS = 3
MARGINS: dict[str, dict[str, Any]] = {
    "adaface": {"name": "adaface", "t_alpha": 0.6},
    "adaface_far": {"name": "adaface", "h": 4.0, "m": 1.0},  # z and angle beyond their bounds
    "magface": {"name": "magface", "l_a": 2.7, "u_a": 4.0, "lambda_g": 3.0},
    "magface_hard": {"name": "magface", "l_a": 1.0, "u_a": 20.0, "u_margin": 3.0, "easy_margin": False},
    "elastic_arc": {"name": "elastic_arc", "std": 0.3},
    "elastic_cos": {"name": "elastic_cos", "std": 0.2},
    "elastic_arc_plus": {"name": "elastic_arc", "std": 0.3, "plus": True},
    "elastic_cos_plus": {"name": "elastic_cos", "std": 0.2, "plus": True},
    "curricular": {"name": "curricular", "t_alpha": 0.5},
    "sphere": {"name": "sphere", "m": 3.0},
    "sphere_through": {"name": "sphere", "gradient": "straight_through"},
    "sphere_annealed": {"name": "sphere", "m": 4.0, "base": 10.0, "lambda_min": 7.0},
}
GEOMETRY = {"name": "adaface", "t_alpha": 0.6, "geometry": 2.0, "geometry_warmup_steps": 2}
KINDS = ("trained_centres", "teacher_centres", "adadistill")


def tree(method: dict[str, Any], **phase: Any) -> dict[str, Any]:
    return {
        "run": {"name": "t"}, "data": {"path": "x"}, "teacher": {"source": "onnx", "path": "t", "embedding_dim": 8},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": 8}, "method": method, "epochs": 1, "global_batch": 12,
            **phase,
        },
    }  # fmt: skip


def made(method: dict[str, Any], scale: float = SCALE) -> Any:
    return make_method(parse_config(tree({**method, "scale": scale})).student.method)


def opened(world: World, p: dense.Problem, method: Any, scale: float = SCALE, **settings: Any) -> Centres:
    store = store_of(p, world, method.config.centre_kind, torch.float64)
    trained = method.config.centre_kind == "trainable"
    return Centres(
        store, world, scale, CentresConfig(**settings), SEED, make_row_optimizer(store, SGD) if trained else None
    )


def steps(world: World, p: dense.Problem, method: Any, centres: Centres, splits: int = 1) -> dict[str, Any]:
    """STEPS optimiser steps on this rank's part of the batch, in `splits` micro-steps."""
    losses, gradients = [], []
    for _ in range(STEPS):
        of_step: tuple[list[Any], list[Any]] = ([], [])
        for part in torch.arange(len(p.labels)).chunk(splits):
            mine = part.chunk(world.size)[world.rank]
            x = p.student[mine].clone().requires_grad_()
            outcome = method.loss(centres, x, p.labels[mine], p.teacher[mine])
            outcome.loss.backward()
            of_step[0].append(outcome.loss.detach())
            of_step[1].append(x.grad / (world.size * splits))
        centres.step(SGD.lr)
        method.stepped()
        losses.append(torch.stack(of_step[0]).mean())
        gradients.append(of_step[1])
    return {
        "losses": torch.stack(losses), "gradients": gradients, "centres": centres.store.read(slice(None)),
        "state": {name: x.clone() for name, x in method.state().items()}, "values": outcome.values,
    }  # fmt: skip


Trial = tuple[str, dict[str, Any], dense.Problem, float, dict[str, Any], int]  # last: micro-steps


def trials() -> list[Trial]:
    """By name: every margin over every kind of centres, and what else may differ."""
    found: list[Trial] = []
    for margin, of in MARGINS.items():
        for kind in KINDS:
            labels = "duplicates" if kind == "trained_centres" else "random"
            found.append((f"{margin} {kind}", {"name": kind, "margin": of}, problem(labels), SCALE, {}, 1))
    ada = {"name": "adadistill", "margin": GEOMETRY}
    found.append(("geometry", ada, problem("duplicates"), SCALE, {}, 1))
    hard = {"name": "trained_centres", "margin": MARGINS["curricular"]}
    fewer = problem(classes=2)
    many = problem(classes=40)
    found += [
        ("curricular of few classes", hard, fewer, SCALE, {}, 1),
        ("curricular in chunks", hard, many, 64.0, {"chunk_rows": 7}, 1),
        ("curricular at scale 100", hard, many, 100.0, {}, 1),
        ("curricular by autograd", hard, many, 64.0, {"backend": "reference"}, 1),
        ("adadistill curricular, chunks", {**ada, "margin": hard["margin"]}, many, SCALE, {"chunk_rows": 7}, 1),
    ]
    for of in (MARGINS["elastic_arc"], MARGINS["magface"]):
        method = {"name": "trained_centres", "margin": of}
        found.append((f"{of['name']} in micro-steps", method, problem("duplicates"), SCALE, {}, 2))
    return found


def sampled_trials() -> list[Trial]:
    """One step each: the next has other rows."""
    p, found = sampled(problem(classes=40), 0.3), []
    for margin in ("curricular", "adaface"):
        for backend in ("chunked", "reference"):
            settings = {"sample_rate": 0.3, "chunk_rows": 7, "backend": backend}
            method = {"name": "trained_centres", "margin": MARGINS[margin]}
            found.append((f"{margin} sampled {backend}", method, p, SCALE, settings, 1))
    return found


def all_steps(world: World, count: int) -> dict[str, Any]:
    global STEPS
    results = {}
    before, STEPS = STEPS, count
    for name, of, p, scale, settings, splits in trials() if count > 1 else sampled_trials():
        method = made(of, scale)
        results[name] = steps(world, p, method, opened(world, p, method, scale, **settings), splits)
    STEPS = before
    return results


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("count", [STEPS, 1], ids=["all rows", "sampled"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_margin_equals_its_transcription(size: int, count: int) -> None:
    ranks = run(all_steps, size, count)
    close = lambda got, want, name: torch.testing.assert_close(
        got, want, atol=1e-9, rtol=1e-7, msg=lambda text: f"{name}: {text}"
    )
    for name, of, p, scale, _, splits in trials() if count > 1 else sampled_trials():
        results = [rank[name] for rank in ranks]
        want = dense_margins.train(p, of, scale, SGD, count, SEED)
        close(torch.stack([one["losses"] for one in results]).mean(0), want["losses"], f"{name}: losses")
        for step in range(count):
            parts = [one["gradients"][step][part] for part in range(splits) for one in results]
            close(torch.cat(parts), want["gradients"][step], f"{name}: gradient of step {step}")
        close(torch.cat([one["centres"] for one in results]), want["centres"], f"{name}: centres")
        moving = {"adaface": ["mean", "std"], "curricular": ["t"]}.get(of["margin"]["name"], [])
        for one in results:
            wanted = {"moving": torch.tensor([getattr(want["state"], key) for key in moving], dtype=torch.float64)}
            close(one["state"], wanted if moving else {}, f"{name}: what moves")


def test_cases_reach_what_they_are_for() -> None:
    """Hard negatives and easy ones, norms and angles beyond their bounds, teachers that are surer than students."""
    p = problem(classes=40)
    cosine = dense.unit(p.student) @ dense.unit(p.centres).T
    own = cosine.gather(1, p.labels[:, None])
    hard = cosine > dense.arc(own, 0.5)
    assert 20 < (hard.sum() - len(own)) < 300
    norms = problem().student.norm(dim=1)
    assert [int(part.sum()) for part in (norms < 2.7, norms > 4, (norms > 2.7) & (norms < 4))] == [5, 2, 5]
    assert not torch.equal(dense_margins.target(cosine, p.labels) > 0, torch.ones(12).bool())
    of, state = {"name": "adadistill", "margin": GEOMETRY}, dense_margins.State(SEED)
    told = dense_margins.train(problem("duplicates"), of, SCALE, SGD, 1, SEED)["state"]
    assert (told.lag > 0).any()
    assert state.t == 0


# ------------------------------------------------------------------------------------------ steps left out, states


@pytest.mark.parametrize("name", ["adaface", "curricular"])
def test_a_step_left_out_leaves_no_trace(name: str) -> None:
    """And what moves goes on from a state that was saved."""
    p, of = problem(), {"name": "teacher_centres", "margin": MARGINS[name]}
    straight, broken, resumed = (made(of) for _ in range(3))
    wanted = steps(World(), p, straight, opened(World(), p, straight))["losses"]
    centres, losses = opened(World(), p, broken), []
    for step in range(STEPS):
        for left_out in (True, False):
            x = (p.student * (3 if left_out else 1)).requires_grad_()
            loss = broken.loss(centres, x, p.labels, None).loss
            loss.backward()
            (centres.skip if left_out else lambda: centres.step(0.1))()
            (broken.skipped if left_out else broken.stepped)()
        losses.append(loss.detach())
        if step == 1:
            resumed.load_state({key: value.clone() for key, value in broken.state().items()})
    torch.testing.assert_close(torch.stack(losses), wanted)
    again = opened(World(), p, resumed)
    assert resumed.loss(again, p.student.requires_grad_(), p.labels, None).loss.item() == pytest.approx(
        float(wanted[2]), rel=1e-12
    )


@pytest.mark.parametrize("name", ["adaface", "curricular"])
def test_an_embedding_that_is_not_finite_is_its_samples_alone(name: str) -> None:
    p, method = problem(), made({"name": "teacher_centres", "margin": MARGINS[name]})
    p.student[3] = torch.nan
    centres = opened(World(), p, method)
    x = p.student.requires_grad_()
    found = centres.contrast(x, p.labels, bending=method.margin.bending)
    moved = method.margin.moved(MarginInputs(found, x, centres))
    finite = (found.negative + moved.target).isfinite()
    assert finite.tolist() == [at != 3 for at in range(12)]
    method.stepped()
    assert method.state()["moving"].isfinite().all()


def test_draws_are_those_of_the_distribution() -> None:
    p, method = problem(), made({"name": "teacher_centres", "margin": {"name": "elastic_arc"}})
    centres = opened(World(), p, method)
    found = centres.contrast(p.student.requires_grad_(), p.labels)
    margin = method.margin
    assert isinstance(margin, ElasticMargin)
    inputs = MarginInputs(found, p.student, centres)
    drawn = margin._draw(inputs, range(100_000)).numpy()
    assert drawn.mean() == pytest.approx(0.5, abs=2e-4)
    assert drawn.std() == pytest.approx(0.0125, rel=0.01)
    assert np.mean(np.abs(drawn - 0.5) < 0.0125) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=5e-3)
    centres.step(0.1)
    assert not np.isin(margin._draw(inputs, range(1000)).numpy(), drawn).any()  # the next step's are others


def test_one_sample_has_no_deviation() -> None:
    p, method = problem(samples=1), made({"name": "teacher_centres", "margin": {"name": "adaface", "t_alpha": 1.0}})
    assert method.loss(opened(World(), p, method), p.student.requires_grad_(), p.labels, None).loss.isfinite()
    method.stepped()
    assert method.state()["moving"].tolist() == [pytest.approx(float(p.student.detach().norm())), 0.0]


# --------------------------------------------------------------------------------------------------- configuration


def test_every_section_of_a_margin_has_a_class() -> None:
    assert set(NAMED) == set(MarginSection.__subclasses__())


@pytest.mark.parametrize("margin", NAMED)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_back(kind: str, margin: type[MarginSection], tmp_path: Path) -> None:
    name = margin.model_fields["name"].annotation.__args__[0]  # type: ignore[union-attr]
    config = parse_config(tree({"name": kind, "margin": {"name": name}}))
    save_config(config, tmp_path / "config.toml")
    again = load_config(tmp_path / "config.toml")
    assert again == config
    assert isinstance(again.student.method.named_margin, margin)
    assert isinstance(make_method(again.student.method), MarginSoftmax)


def test_a_number_is_a_margin_of_adadistill_still() -> None:
    method = parse_config(tree({"name": "adadistill", "margin": 0.3})).student.method
    assert method.named_margin is None
    assert method.model_dump(mode="json")["margin"] == 0.3


@pytest.mark.parametrize(
    ("kind", "margin", "phase", "told"),
    [
        ("adadistill", {"h": -1.0}, {}, "margin.h: must be greater than or equal to 0, got -1.0"),
        ("trained_centres", {"m": math.nan}, {}, "margin.m: must be "),
        ("adadistill", {"t_alpha": 0.0}, {}, "margin.t_alpha: must be greater than 0, got 0.0"),
        ("trained_centres", {"geometry": 1.0}, {}, "margin.geometry: must be 0 but with adadistill, got 1"),
        ("teacher_centres", {"name": "magface", "u_a": 5.0}, {}, "margin.u_a: must be greater than l_a (10), got 5"),
        ("adadistill", {"name": "magface", "u_margin": 0.1}, {}, "margin.u_margin: must be at least l_margin (0.45), "),
        ("trained_centres", {"name": "sphere", "m": 0.5}, {}, "margin.m: must be greater than or equal to 1, got 0.5"),
        ("trained_centres", {"name": "arc"}, {}, "margin.name: must be one of 'adaface', 'magface', "),
        ("adadistill", {"name": "arc"}, {}, "margin.name: must be one of 'adaface', 'magface', "),
        ("adadistill", {}, {"margin": 4.0}, "margin: must be less than 3.1416, got 4.0"),
        ("adadistill", {}, {"margin": "wide"}, "margin: must be a valid number, got 'wide'"),
        ("adadistill", {}, {"margin": {"m": 0.3}}, "margin.name: required key is missing"),
        ("trained_centres", {}, {"margin": 0.5}, "margin: must be a section, got 0.5"),
        ("adadistill", {}, {"kind": "cos"}, 'kind: must be left out with margin.name = "adaface", got "cos"'),
        ("trained_centres", {"name": "elastic_cos", "stdd": 1.0}, {}, "margin.stdd: unknown key, did you mean "
         "student.method.margin.std?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_key(
    kind: str, margin: dict[str, Any], phase: dict[str, Any], told: str
) -> None:
    method = {"name": kind, "margin": {"name": "adaface", **margin}, **phase}
    with pytest.raises(ConfigError) as error:
        parse_config(tree(method))
    assert str(error.value).startswith(f"config: student.method.{told}")
    assert "\n" not in str(error.value)


def test_margins_dealt_out_anew_refuse_accumulation() -> None:
    method = {"name": "trained_centres", "margin": MARGINS["elastic_arc_plus"]}
    with pytest.raises(ConfigError, match=r"student.accumulation: must be 1 with method.margin.plus = true, got 2"):
        parse_config(tree(method, accumulation=2))


def test_bent_negatives_have_no_soft_targets() -> None:
    method = {"name": "teacher_centres", "margin": MARGINS["curricular"]}
    with pytest.raises(ConfigError, match=r"student.terms.0.name: must be left out with a margin that bends negatives"):
        parse_config(tree(method, terms=({"name": "logit_kd"},)))


def test_geometry_is_allowed_with_a_teacher_of_every_batch() -> None:
    margin = parse_config(tree({"name": "adadistill", "margin": GEOMETRY})).student.method.named_margin
    assert isinstance(margin, AdaFaceMarginConfig)
    assert margin.geometry == 2.0
