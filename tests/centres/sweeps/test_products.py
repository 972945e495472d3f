"""Products of rounded numbers in the sweep: their errors against float64, and that rounding ends where it began."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import dense
from helpers.centre_cases import SGD, assembled, expected, one_step
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.centres.sweeps.products import OneDNNProducts, Products, RoundedOnCUDA, effect_of_setting, rounds
from partialkd.config import CentresConfig
from partialkd.config.load import parse_config
from partialkd.errors import ConfigError
from partialkd.world.world import World

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
METHODS = ("arcface", "arcdistill", "ada_weighted")  # trained, fixed, moved
on_a_gpu = lambda test: pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def errors(name: str, labels: str, scale: float, device: torch.device, **settings: Any) -> dict[str, float]:
    """Of a step, against float64; of centres that move: of their movement, of trained ones as their momentum has it."""
    p = dense.make_problem(2000, 48, 128, labels)
    step = on(device, name, p, scale, settings)
    loss, gradient, centres, _ = (value.cpu() for value in assembled([step]))
    wanted = expected(name, p, scale, SGD)
    found, way = {"loss": relative(loss, wanted[0]), "gradient": relative(gradient, wanted[1])}, wanted[2] - p.centres
    if step["momentum"] is not None:
        found["momentum"] = relative(step["momentum"].cpu() * -SGD.lr, way)
    if way.any():
        found["movement"] = relative(centres.double() - p.centres, way)
    return found


def on(device: torch.device, name: str, p: dense.Problem, scale: float, settings: dict[str, Any]) -> dict[str, Any]:
    p = dense.Problem(*(value.to(device) for value in vars(p).values()))
    return one_step(World(device=device), name, p, {"dtype": torch.float32, "scale": scale, **settings})


@pytest.mark.parametrize("scale", [30.0, 64.0, 128.0])
@pytest.mark.parametrize("labels", ["random", "duplicates"])
@pytest.mark.parametrize("name", METHODS)
def test_rounded_products_are_within_a_hundredth_of_float64(name: str, labels: str, scale: float) -> None:
    found = errors(name, labels, scale, CPU, products="bf16")
    assert all(error < 1e-2 for error in found.values()), found
    assert (found["gradient"] > 1e-5) == (effect_of_setting() == "rounds"), found


@on_a_gpu
@pytest.mark.parametrize("scale", [30.0, 64.0, 128.0])
@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_rounded_products_on_a_gpu(name: str, store: torch.dtype, scale: float) -> None:
    """bfloat16 rows are rounded before and after they move, whatever the products: by up to half of their way."""
    found = errors(name, "random", scale, CUDA, dtype=store)
    movement = found.pop("movement", 0.0)
    assert all(error < 1e-2 for error in found.values()), found
    assert movement < (1e-2 if store == torch.float32 else 0.6), found


@pytest.mark.parametrize("settings", [{"sample_rate": 0.3}, {"chunk_rows": 7}, {"splits": 2}], ids=str)
def test_rounded_products_in_every_shape_of_a_step(settings: dict[str, Any]) -> None:
    p = dense.make_problem(300, 24, 64)
    exact, rounded = (
        assembled([on(CPU, "arcface", p, 30.0, {**settings, "products": kind})])[:3] for kind in ("fp32", "bf16")
    )
    for one, other in zip(exact, rounded, strict=True):
        assert relative(other, one.double()) < 1e-2


def test_the_setting_is_put_back() -> None:
    matmul, products = torch.backends.mkldnn.matmul, OneDNNProducts()
    before = matmul.fp32_precision
    a, out = torch.randn(64, 64), torch.empty(64, 64)
    products.multiply(a, a, out)
    assert matmul.fp32_precision == before
    with pytest.raises(RuntimeError, match="shapes"):
        products.add(a, torch.randn(3, 3), out)
    assert matmul.fp32_precision == before
    assert torch.equal(a @ a, torch.mm(a, a))


def test_operands_are_rounded_or_not_and_sums_are_not() -> None:
    """In other shapes as in that which the processor was asked with."""
    a, b = torch.randn(64, 512), torch.randn(512, 32)
    out, total = torch.empty(64, 32), torch.ones(64, 32)
    OneDNNProducts().multiply(a, b, out)
    OneDNNProducts().add(a, b, total)
    wanted = a.double() @ b.double()
    if effect_of_setting() == "rounds":
        wanted = a.bfloat16().double() @ b.bfloat16().double()
    torch.testing.assert_close(out.double(), wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(total.double(), wanted + 1, atol=1e-4, rtol=1e-5)


def test_which_products_are_meant() -> None:
    assert [rounds(kind, cuda) for kind in ("auto", "fp32", "bf16") for cuda in (False, True)] == [
        False, True, False, False, True, True,
    ]  # fmt: skip
    assert type(make_products("fp32", CUDA)) is Products
    assert type(make_products("auto", CUDA)) is RoundedOnCUDA
    assert type(make_products("bf16", CUDA, torch.float64)) is Products
    assert CentresConfig().products == "auto"


def test_the_reference_is_exact() -> None:
    with pytest.raises(
        ConfigError, match=r'student.centres.products: must be "auto" or "fp32" with backend = "reference"'
    ):
        parse_config(
            {
                "run": {"name": "t"},
                "data": {"path": "x"},
                "teacher": {"source": "onnx", "path": "t", "embedding_dim": 8},
                "student": {
                    "model": {"name": "iresnet18", "embedding_dim": 8},
                    "method": {"name": "arcdistill"},
                    "epochs": 1,
                    "global_batch": 1,
                    "centres": {"backend": "reference", "products": "bf16"},
                },
            }
        )
