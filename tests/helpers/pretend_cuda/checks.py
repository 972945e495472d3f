"""What the pretend device must refuse and note, as a program of its own: it ends with an error where it does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest


def refused(act: Callable[[], Any], words: str) -> None:
    """Assert that this raises."""
    with pytest.raises((RuntimeError, TypeError), match=words):
        act()


def waited(act: Callable[[], Any]) -> list[str]:
    """Give what made the host wait."""
    from helpers.pretend_cuda.log import LOG

    LOG.clear()
    act()
    return [what.partition(" at ")[0] for what in LOG.waits]


def check_device() -> None:
    """Mixing, waiting, page-locked memory, gradients, graphs."""
    import torch

    from helpers.pretend_cuda.log import LOG

    x, host = torch.arange(6.0, device="cuda"), torch.arange(6.0)
    assert x.is_cuda
    assert str(x.device) == "cuda:0"
    refused(lambda: x + host, "same device")
    refused(lambda: torch.mm(x[None], host[:, None]), "same device")
    refused(lambda: host[torch.zeros(1, dtype=torch.int64, device="cuda")], "same device")
    refused(lambda: x.numpy(), "numpy")
    assert waited(lambda: x + host[0]) == []  # a number may come from the host
    assert waited(lambda: x.sum().item()) == ["_local_scalar_dense"]
    assert waited(lambda: bool((x > 1).any())) == ["_local_scalar_dense"]
    assert waited(lambda: x.nonzero()) == ["nonzero"]
    assert waited(lambda: x[x > 1]) == ["index by a mask"]
    assert waited(lambda: x.cpu()) == ["copy to the host"]
    assert waited(lambda: host.to("cuda")) == ["copy from pageable memory"]
    assert waited(lambda: host.to("cuda", non_blocking=True)) == ["copy from pageable memory"]
    assert waited(lambda: host.pin_memory().to("cuda", non_blocking=True)) == []
    assert waited(lambda: torch.cuda.synchronize()) == ["torch.cuda.synchronize"]
    assert LOG.copies == {}
    w = torch.ones(6, device="cuda", requires_grad=True)
    (w * x).sum().backward()
    assert w.grad is not None
    assert w.grad.is_cuda
    assert w.grad.tolist() == host.tolist()
    torch.cuda.set_sync_debug_mode("error")
    refused(lambda: x.tolist(), "synchronizing")
    torch.cuda.set_sync_debug_mode("default")
    graph, into = torch.cuda.CUDAGraph(), torch.zeros(6, device="cuda")
    with torch.cuda.graph(graph):
        into.copy_(x * 2)
    x.fill_(5)
    graph.replay()
    assert into.tolist() == [10.0] * 6


def check_batches() -> None:
    """All that augmentation needs goes to the device in one copy, and comes to the same there."""
    import numpy as np
    import torch

    from helpers.pretend_cuda.log import LOG
    from partialkd.config import AugmentConfig
    from partialkd.data.images.augment import NAMES, apply, draw
    from partialkd.data.images.carry import carry

    steps = draw(AugmentConfig(**dict.fromkeys(NAMES, 0.7)), 3, 0, np.arange(64))  # type: ignore[arg-type]
    assert {step.operation for step in steps} > {"crop", "blur", "low_resolution", "occlusion", "rotate"}
    here = torch.rand(64, 3, 32, 32) * 2 - 1
    there = here.to("cuda")
    LOG.clear()
    apply(there, steps)  # with the channels' weights, once
    assert dict(LOG.copies) == {"page-locked, not waited for": 1}
    assert dict(LOG.waits) == {"torch.tensor(numbers, device) at data/images/tensors.py:_luma": 1}
    there.copy_(here)
    LOG.clear()
    apply(there, steps)
    assert (dict(LOG.copies), dict(LOG.waits)) == ({"page-locked, not waited for": 1}, {})
    apply(here, steps)
    assert torch.equal(there.cpu(), here)
    arrays = {"none": np.zeros(0, np.int64), "bools": np.array([[True], [False]]), "one": np.arange(3.0)[1:]}
    carried = carry(arrays, torch.device("cuda"))
    assert all(carried[name].cpu().numpy().tolist() == array.tolist() for name, array in arrays.items())
    assert [carried[name].dtype for name in arrays] == [torch.int64, torch.bool, torch.float64]


def check_cache_pass() -> None:
    """A teacher's embedding that is zero is named, also where it lies on the device."""
    import tempfile
    from pathlib import Path
    from types import SimpleNamespace

    import torch

    from partialkd.errors import TeacherError
    from partialkd.teacher.cache import CacheFacts
    from partialkd.teacher.cache_pass import BlockPlan, _make
    from partialkd.teacher.cache_writer import CacheWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(Path(folder) / "cache", CacheFacts("t", "d", {}, 8, 2, 4))
        plan = BlockPlan(writer, [0], 8)
        batch = SimpleNamespace(images=torch.ones(8, 3, 4, 4, device="cuda"), records=torch.arange(8))
        zero = lambda images: torch.zeros(len(images), 4, device="cuda")
        source: Any = SimpleNamespace(name=lambda record: f"record {record}")
        with pytest.raises(TeacherError, match="record 0: its embedding is zero"):
            _make(plan, [0], iter([batch]), zero, source)  # type: ignore[list-item]


def check_numerics() -> None:
    """One setting governs convolutions and products; networks run channels last unless they are told otherwise."""
    import torch

    from partialkd.config import ModelConfig
    from partialkd.models import build_model
    from partialkd.teacher.network import wrap_teacher
    from partialkd.world.numerics import set_numerics

    for tf32, deterministic in ((False, False), (True, False), (True, True)):
        set_numerics(torch.device("cuda"), tf32, deterministic)
        backends = torch.backends
        assert backends.cudnn.allow_tf32 is backends.cuda.matmul.allow_tf32 is tf32
        assert backends.cudnn.benchmark is not deterministic
    for asked, last in ((None, True), (False, False), (True, True)):
        config = ModelConfig(name="mobilefacenet_gdc", embedding_dim=8, width=0.25, depth=0.5, channels_last=asked)
        seen: list[bool] = []
        network = build_model(config, 32).eval()
        teacher = wrap_teacher(network, 32, "cuda")
        first = next(one for one in teacher.network.modules() if isinstance(one, torch.nn.Conv2d))
        look = lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))  # noqa: B023
        first.register_forward_pre_hook(look)
        found = teacher.embed(torch.zeros(2, 3, 32, 32, device="cuda"))
        assert found.is_cuda
        assert seen == [last]


def check_no_recompile() -> None:
    """Kernels are compiled for the first steps and for none after, whatever batch, learning rate, step and sample."""
    import torch

    from helpers.pretend_cuda.launches import LAUNCHED
    from partialkd.centres import Centres, CentreStore
    from partialkd.centres.row_optimizers import make_row_optimizer
    from partialkd.config import CentresConfig, OptimizerConfig
    from partialkd.methods.margins import margin_softmax
    from partialkd.world.world import World

    world, classes, dim = World(device=torch.device("cuda", 0)), 640, 16
    for rate, name in ((1.0, "sgd"), (0.25, "sgd"), (1.0, "adamw")):
        moments = {"second_moment": "row"} if name == "adamw" else {}
        config = CentresConfig.model_validate({"backend": "fused", "products": "fp32", "sample_rate": rate, **moments})
        store = CentreStore.random(range(classes), classes, dim, torch.float32, world.device, seed=0)
        centres = Centres(store, world, 16.0, config, 0, make_row_optimizer(store, OptimizerConfig(name=name), config))
        LAUNCHED.clear()
        for step in range(5):
            torch.manual_seed(step)
            x = torch.randn(24, dim).to("cuda").requires_grad_()
            found = centres.contrast(x, torch.randint(classes, (24,)).to("cuda"))
            margin_softmax(found.negative, found.target, 16.0).backward()
            centres.step(0.1 / (step + 1))
            if step == 1:  # the second may still be the first of its kind, e.g. with a past
                before = {kernel: set(variants) for kernel, variants in LAUNCHED.items()}
        assert {"sums_kernel", f"{name}_kernel"} <= set(before), before.keys()
        assert {kernel: set(variants) for kernel, variants in LAUNCHED.items()} == before


def main() -> int:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    from helpers.pretend_cuda import install, on_pretend_device

    install()
    from helpers.pretend_cuda.launches import interpret_kernels

    interpret_kernels()
    with on_pretend_device():
        check_device()
        check_batches()
        check_cache_pass()
        check_numerics()
        check_no_recompile()
    return 0


if __name__ == "__main__":
    sys.exit(main())
