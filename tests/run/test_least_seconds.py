"""What the log's share of the device's full rate is counted from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.jobs import tree
from partialkd.config.load import parse_config
from partialkd.planner.devices import DEVICES, device_named
from partialkd.planner.plan import Beside, Ranks, plan_phase
from partialkd.run.job import least_seconds


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA H100 PCIe", None),  # another rate than the one with HBM3
        ("Tesla T4", None),
    ],
)
def test_devices_by_the_name_that_torch_has_for_them(name: str, key: str | None) -> None:
    assert device_named(name) is (DEVICES[key] if key else None)


@pytest.mark.slow
def test_least_seconds_are_the_plans_products_at_the_full_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    config, world = parse_config(tree(tmp_path)), SimpleNamespace(device=torch.device("cuda"), size=2)
    context: Any = SimpleNamespace(config=config, world=world, source=SimpleNamespace(num_classes=500))
    live: Any = SimpleNamespace(network=object())
    assert config.teacher.train is not None
    beside = Beside.of(config.teacher.train.model)
    plan = plan_phase(config.student, config.data, 500, Ranks.of(config, 2, cuda=True), beside)
    assert "teacher" in plan.flops
    seconds = least_seconds(context, "student", config.student, live)
    assert seconds == pytest.approx(sum(plan.flops.values()) / 989e12)
    kept = least_seconds(context, "student", config.student, SimpleNamespace(network=None))  # type: ignore[arg-type]
    assert kept is not None
    assert kept < seconds
    world.device = torch.device("cpu")
    assert least_seconds(context, "student", config.student, live) is None
