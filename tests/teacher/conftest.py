"""Fixtures of more than one test file of teachers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.teacher_cases import CONFIG, pictures
from partialkd.models import build_model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """With running statistics of its own, in eval mode."""
    torch.manual_seed(0)
    model = build_model(CONFIG, 32)
    with torch.no_grad():
        model(pictures(8, seed=9))
    return model.eval()
