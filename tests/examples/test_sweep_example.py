"""docs/extending.md, a sweep backend: made in a copy of the package, and compared with the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.examples import copy_with, python

STEPS = """
import itertools, json
import torch
from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.world.world import World

def steps(backend, kind, scale, sample_rate, skip_unseen):
    torch.manual_seed(0)
    store = CentreStore.random(range(60), 60, 16, torch.float32, torch.device("cpu"), 1, skip_unseen=skip_unseen)
    store.fill(torch.arange(0, 60, 2), torch.randn(30, 16))
    sgd = OptimizerConfig(lr=0.5)
    rule = make_row_optimizer(store, sgd) if kind == "trainable" else None
    config = CentresConfig(backend=backend, sample_rate=sample_rate)
    centres, results = Centres(store, World(), scale, config, seed=3, optimizer=rule), []
    for step in range(2):
        for micro_step in range(2):
            x, labels = torch.randn(12, 16, requires_grad=True), torch.randint(60, (12,))
            found = centres.contrast(x, labels)
            torch.nn.functional.softplus(found.negative - scale * found.target).mean().backward()
            results += [found.negative.detach(), x.grad]
        centres.step(sgd.lr)
    return [*results, centres.store.read(slice(None))]

def apart(*case):
    pairs = zip(steps("double", *case), steps("reference", *case), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)

cases = itertools.product(("fixed", "trainable"), (30.0, 128.0), (1.0, 0.3), (False, True))
print(json.dumps([[str(case), apart(*case)] for case in cases]))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with(["A sweep backend"], tmp_path_factory.mktemp("example"))


@pytest.mark.slow
def test_the_backend_gives_what_the_reference_gives(package: Path) -> None:
    """Losses, gradients and moved centres; scales, samples, unseen centres, two micro-steps."""
    found = dict(json.loads(python(package, STEPS)))
    assert len(found) == 16
    assert max(found.values()) < 1e-5, found
    assert max(found.values()) > 0, "the same backend twice"
