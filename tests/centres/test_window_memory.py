"""Memory of centres on the host: what is page-locked and unlocked again, room for larger batches, bounds on rows."""

from __future__ import annotations

import gc

import pytest
import torch

from helpers import dense
from helpers.centre_cases import SCALE, SEED, SGD, method_of
from helpers.window_cases import CASES, CLASSES, DIM, made
from partialkd.centres import Centres
from partialkd.centres import host_memory as window
from partialkd.centres.host_memory import RowsInWindows
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.sampling import Sampling
from partialkd.centres.store import CentreStore
from partialkd.config import CentresConfig
from partialkd.errors import PartialKDError
from partialkd.world.shard import shard_of
from partialkd.world.world import World


class Runtime:
    """Of CUDA: refuses to page-lock after so many tensors."""

    def __init__(self, room: int) -> None:
        self.room, self.locked = room, list[int]()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if len(self.locked) == self.room:
            return 2
        self.locked.append(address)
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.locked.remove(address)
        return 0

    def check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"out of memory ({status})")


@pytest.mark.parametrize("room", [4, 2])
def test_what_was_page_locked_is_unlocked(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tensors, all of which the system locks, or the first two."""
    runtime = Runtime(room)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", runtime.check)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(window, "LOCKED_FROM", 0)
    centres = made(World(), *CASES["SGD, fp32"], "host")
    owner, store = centres._rows, centres.store
    assert isinstance(owner, RowsInWindows)
    if room == 4:
        window._lock_pages(owner, store)
    else:
        rule = r'centres.memory must be "device" where .*, got "host": seen, 32 bytes: out of memory \(2\)'
        with pytest.raises(PartialKDError, match=rule):
            window._lock_pages(owner, store)
    assert len(runtime.locked) == room
    del centres, owner
    gc.collect()
    assert not runtime.locked


def test_a_larger_batch_makes_more_room() -> None:
    centres = [made(World(), "arcface", {"exact": True}, memory) for memory in ("device", "host")]
    found = []
    for one in centres:
        one.optimizer = None
        for samples in (3, 30):
            p = dense.make_problem(CLASSES, samples, DIM)
            found.append(one.contrast(p.student, p.labels).negative)
        one.step(0.1)
    torch.testing.assert_close(found[2:], found[:2])


@pytest.mark.parametrize(("classes", "rate"), [(61, 0.3), (1000, 0.1), (10_007, 0.37), (3, 0.5)])
def test_no_step_takes_more_rows_than_a_window_has_room_for(classes: int, rate: float) -> None:
    sampling = Sampling(classes, rate, seed=2)
    for rank in range(3):
        shard = shard_of(classes, rank, 3)
        most = max(sum(map(len, sampling.runs(shard, step))) for step in range(40))
        assert most <= sampling.most_rows(shard) <= min(len(shard), rate * 1.1 * len(shard) + 20 * sampling.block)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_large_tensors_on_a_gpu() -> None:
    """Rows and momentum are page-locked as they lie, the rest is moved to memory of its own."""
    classes, dim = 140_000, 64
    world, method = World(device=torch.device("cuda", 0)), method_of("arcface")
    told = []
    for memory in ("device", "host"):
        device = torch.device("cpu") if memory == "host" else world.device
        store = CentreStore.random(range(classes), classes, dim, torch.float32, device, SEED)
        config = CentresConfig.model_validate({"sample_rate": 0.1, "memory": memory})
        centres = Centres(store, world, SCALE, config, SEED, make_row_optimizer(store, SGD, config))
        assert memory == "device" or all(value.is_pinned() for value in store.state().values())
        for step in range(12):
            torch.manual_seed(step)
            x, labels = torch.randn(64, dim).cuda().requires_grad_(), torch.randint(classes, (64,)).cuda()
            loss = method.loss(centres, x, labels, x.detach()).loss
            loss.backward()
            centres.step(0.1)
            told.append(loss.detach())
    assert store.unit.nbytes >= window.LOCKED_FROM
    torch.testing.assert_close(told[12:], told[:12], rtol=1e-3, atol=1e-3)
