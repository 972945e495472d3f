"""How often ranks meet in a step, and that none waits for its GPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from helpers import dense
from helpers.centre_cases import METHODS, NAMED, method_of, store_of
from helpers.ranks import run
from partialkd.centres import Centres, CentreStore, row_filter
from partialkd.centres import labels as label_check
from partialkd.centres import store as store_module
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.methods.base import Method
from partialkd.world.world import World

COUNTED = (
    "start_all_gather",
    "reduce_scatter",
    "sum",
    "max",
    "mean",
    "gather_objects",
    "broadcast_object",
    "barrier",
    "agree",
)
on_a_gpu = lambda test: pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test))
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"sample_rate": 0.3, "importance_correction": True})


class CountingWorld(World):
    """Notes every collective that is called, and how many numbers a sample it carries."""

    def __getattribute__(self, name: str) -> Any:
        if name in COUNTED:
            object.__getattribute__(self, "__dict__").setdefault("calls", []).append(name)
        return super().__getattribute__(name)


def collectives(world: World, name: str, settings: dict[str, Any]) -> Counter[str]:
    """-> calls in one step."""
    counting = CountingWorld(**{f.name: getattr(world, f.name) for f in fields(World)})
    p, method = dense.make_problem(40, 12, 8), method_of(name)
    store = store_of(p, world, method.config.centre_kind, torch.float32)
    optimizer = make_row_optimizer(store, OptimizerConfig()) if method.config.centre_kind == "trainable" else None
    centres = Centres(store, counting, method.config.scale, CentresConfig(**settings), optimizer=optimizer)
    one_step(centres, method, p, slice(6 * world.rank, 6 * world.rank + 6))
    return Counter(counting.__dict__["calls"])


def one_step(centres: Centres, method: Method, p: dense.Problem, mine: slice) -> None:
    student = p.student[mine].float().requires_grad_()
    method.loss(centres, student, p.labels[mine], p.teacher[mine].float()).loss.backward()
    centres.step(0.1)


@pytest.mark.distributed
@pytest.mark.parametrize("settings", SETTINGS, ids=["all rows", "sampled"])
@pytest.mark.parametrize("name", METHODS)
def test_collectives_of_a_step(name: str, settings: dict[str, Any]) -> None:
    """One all_gather, one reduce_scatter; a second all_gather moves centres, a maximum is MarginDistillation's."""
    wanted = Counter(start_all_gather=1, reduce_scatter=1)
    if METHODS[name]["name"] in ("arcface", "cosface"):
        wanted["start_all_gather"] += 1
    if name == "margindistillation":
        wanted["max"] += 1
    assert run(collectives, 2, name, settings) == [wanted, wanted]


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMED)
def test_collectives_of_named_margins(name: str) -> None:
    """AdaFace gathers norms, ElasticFace+ cosines, CurricularFace sums cosines."""
    wanted = Counter(start_all_gather=1, reduce_scatter=1)
    wanted["start_all_gather"] += (NAMED[name]["name"] == "trained_centres") + (name in ("ada_adaface", "elastic_plus"))
    if "curricular" in name:
        wanted["sum"] += 1
    assert run(collectives, 2, name, {}) == [wanted, wanted]


def begun(world: World, name: str) -> bool:
    """Whether an early start of the all_gather changes a bit of the loss, the gradient or the values reported."""
    p, method, mine = dense.make_problem(40, 12, 8), method_of(name), slice(6 * world.rank, 6 * world.rank + 6)
    found = []
    for early in (False, True):
        centres = Centres(
            store_of(p, world, method.config.centre_kind, torch.float32), world, method.config.scale, CentresConfig()
        )
        student = p.student[mine].float().requires_grad_()
        if early:
            centres.begin(student, p.labels[mine])
        outcome = method.loss(centres, student, p.labels[mine], p.teacher[mine].float())
        outcome.loss.backward()
        centres.step(0.1)
        found.append([outcome.loss.detach(), student.grad, *outcome.values.values()])
    return all(map(torch.equal, *found))


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["margindistillation", "arcdistill"])
def test_an_early_start_changes_nothing(name: str) -> None:
    assert run(begun, 2, name) == [True, True]


def test_what_was_begun_must_go_on() -> None:
    p = dense.make_problem(40, 12, 8)
    centres = Centres(store_of(p, World(), "fixed", torch.float32), World(), 16.0, CentresConfig())
    student = p.student.float()
    centres.begin(student, p.labels)
    with pytest.raises(AssertionError, match="other embeddings than were begun with"):
        centres.contrast(student.clone(), p.labels)


STEPS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("arcdistill", "sgd", "int8", {}),
    ("margindistillation", "sgd", "fp32", {"sample_rate": 0.3}),
    ("ada_weighted", "sgd", "fp32", {}),
    ("ada_weighted", "sgd", "int8", SETTINGS[1]),
    ("arcface", "sgd", "bf16", {"moments": "bf16"}),
    ("arcface", "sgd", "fp32", SETTINGS[1]),
    ("arcface", "adamw", "bf16", {"second_moment": "row", "sample_rate": 0.3}),
    ("curricular", "sgd", "fp32", {}),
    ("elastic_plus", "sgd", "fp32", {}),
    ("ada_adaface", "sgd", "fp32", SETTINGS[1]),
    ("magface", "sgd", "fp32", {}),
)


def centres_on(world: World, method: Method, optimizer: str, kept: str, settings: dict[str, Any]) -> Centres:
    """Of moving averages none is seen yet."""
    store = CentreStore.empty(
        range(40), 40, 8, DTYPES[kept], world.device, skip_unseen=method.config.centre_kind == "ema"
    )
    store.write(torch.arange(40, device=world.device), torch.ones(40, 8, device=world.device))
    config = CentresConfig.model_validate({"store": kept, **settings})
    trained = OptimizerConfig(name=optimizer) if method.config.centre_kind == "trainable" else None
    rule = make_row_optimizer(store, trained, config) if trained else None
    return Centres(store, world, method.config.scale, config, optimizer=rule, accumulation=2, undoable=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(("name", "optimizer", "kept", "settings"), STEPS)
def test_a_step_asks_the_device_nothing(
    name: str, optimizer: str, kept: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without content: whatever would depend on it, be it a number of rows, is an error. Two micro-steps."""
    for module in (label_check, store_module):  # as on CUDA, with an answer that does not come
        monkeypatch.setattr(module, "to_host", lambda x: (x, lambda: False))
    monkeypatch.setattr(row_filter, "without_gaps", lambda rows, valid: (rows, valid))
    method = method_of(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        centres = centres_on(World(), method, optimizer, kept, settings)
        student, teacher = torch.randn(12, 8, requires_grad=True), torch.randn(12, 8)
        labels = torch.zeros(12, dtype=torch.int64)
        for end in (lambda: centres.step(0.1), centres.skip):
            for _ in range(2):
                method.loss(centres, student, labels, teacher).loss.backward()
            end()
        with pytest.raises(DynamicOutputShapeException):  # so would any of these have been
            labels.nonzero()


@on_a_gpu
@pytest.mark.parametrize(("name", "optimizer", "kept", "settings"), STEPS)
@pytest.mark.parametrize("backend", ["chunked", "fused"])
def test_no_host_synchronisation_in_a_step(
    backend: str, name: str, optimizer: str, kept: str, settings: dict[str, Any]
) -> None:
    settings = {**settings, "backend": backend}
    world, method = World(device=torch.device("cuda")), method_of(name)
    p = dense.make_problem(40, 12, 8)
    centres = centres_on(world, method, optimizer, kept, settings)
    p.student, p.teacher, p.labels = p.student.cuda(), p.teacher.cuda(), p.labels.cuda()
    one_step(centres, method, p, slice(None))  # libraries start
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one_step(centres, method, p, slice(None))
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_the_last_wrong_label_is_named_when_the_store_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(label_check, "to_host", lambda found: (found, lambda: next(answers)))
    store = CentreStore.random(range(40), 40, 8, torch.float32, torch.device("cpu"), 0)
    centres = Centres(store, World(), 16.0, CentresConfig())
    centres.contrast(torch.randn(3, 8), torch.tensor([1, 40, 2]))
    with pytest.raises(ValueError, match=r"rank 0, sample 1: label must be in \[0, 40\), got 40"):
        centres.settle()


def test_a_wrong_label_is_named_once_the_answer_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, whose event is said to happen at the fourth call; nobody waits for it, and nothing is overlooked."""
    happened = False
    monkeypatch.setattr(label_check, "to_host", lambda found: (found, lambda: happened))
    store = CentreStore.random(range(40), 40, 8, torch.float32, torch.device("cpu"), 0)
    centres = Centres(store, World(), 16.0, CentresConfig())
    for labels in ([1, 40, 2], [3, 4, 5]):
        found = centres.contrast(torch.randn(3, 8), torch.tensor(labels))
        assert found.negative.isnan().tolist() == [label == 40 for label in labels]
        centres.step(0.1)
    happened = True
    with pytest.raises(ValueError, match=r"rank 0, sample 1: label must be in \[0, 40\), got 40"):
        centres.contrast(torch.randn(3, 8), torch.tensor([0, 1, 2]))


@on_a_gpu
@pytest.mark.parametrize("label", [40, -1])
def test_a_wrong_label_on_the_gpu_is_named_at_the_step(label: int) -> None:
    """Which finds the answer there, since N has been read in between."""
    world = World(device=torch.device("cuda"))
    store = CentreStore.random(range(40), 40, 8, torch.float32, world.device, 0)
    centres = Centres(store, world, 16.0, CentresConfig())
    found = centres.contrast(torch.randn(3, 8).cuda(), torch.tensor([1, label, 2]).cuda())
    assert found.negative.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=rf"rank 0, sample 1: label must be in \[0, 40\), got {label}"):
        centres.step(0.1)
