"""BatchNorm over ranks against torch's BatchNorm on all their batches together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.ranks import run
from partialkd.models.sync_batchnorm import synchronise
from partialkd.world.world import World

SHAPES: dict[str, tuple[int, ...]] = {"maps": (4, 5, 3), "rows": (4,)}
SIZES = (3, 1, 4)  # samples of each rank


def _network(kind: str, **settings: Any) -> nn.Sequential:
    torch.manual_seed(5)
    norm = (nn.BatchNorm2d if kind == "maps" else nn.BatchNorm1d)(4, **settings)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return nn.Sequential(norm, nn.Tanh()).double()


def _data(kind: str, size: int, seed: int) -> list[Tensor]:
    """A batch for each rank."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *SHAPES[kind], generator=draw, dtype=torch.float64) + 7 for n in SIZES[:size]]


def _step(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Two forward passes in training, gradients of the second, one pass in eval mode."""
    model.zero_grad()
    images = images.clone().requires_grad_()
    output = model(images)
    output.pow(3).sum().backward()
    assert images.grad is not None
    found = {"output": output.detach(), "images": images.grad, "eval": model.eval()(images).detach()}
    model.train()
    found |= {f"grad.{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def synchronised(world: World, kind: str, settings: dict[str, Any]) -> list[dict[str, Tensor]]:
    model = synchronise(_network(kind, **settings), world)
    assert list(model.state_dict()) == list(_network(kind, **settings).state_dict())
    return [_step(model, _data(kind, world.size, seed)[world.rank]) for seed in (1, 2)]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("maps", {}), ("rows", {"affine": False}), ("rows", {"momentum": None, "eps": 1e-2})],
    ids=["maps", "rows", "cumulative"],
)
def test_equals_batchnorm_of_all_batches(kind: str, settings: dict[str, Any], size: int) -> None:
    model = _network(kind, **settings)
    expected = [_step(model, torch.cat(_data(kind, size, seed))) for seed in (1, 2)]
    ranks = run(synchronised, size, kind, settings)
    for step, whole in enumerate(expected):
        for name, value in whole.items():
            parts = [rank[step][name] for rank in ranks]
            if name in ("output", "images", "eval"):
                torch.testing.assert_close(torch.cat(parts), value)
            elif name.startswith("grad."):  # each rank holds its share
                torch.testing.assert_close(sum(parts), value)
            else:
                for part in parts:
                    torch.testing.assert_close(part, value)


def bfloat16(world: World) -> tuple[torch.dtype, Tensor]:
    model = synchronise(_network("maps").float(), world)
    output = model.get_submodule("0")(_data("maps", world.size, 1)[world.rank].bfloat16())
    return output.dtype, output.detach().float()


@pytest.mark.distributed
def test_statistics_are_float32_under_autocast() -> None:
    """The mean of 7 + noise, summed in bfloat16, would be off by far more than rounding the output is."""
    whole = torch.cat(_data("maps", 2, 1)).bfloat16().float()
    expected = _network("maps").float()[0](whole).detach()
    got = run(bfloat16, 2)
    assert {kind for kind, _ in got} == {torch.bfloat16}
    torch.testing.assert_close(torch.cat([part for _, part in got]), expected, rtol=1e-2, atol=1e-2)
