"""NaN and infinity are found whatever the type, and named."""

from __future__ import annotations

import pytest
import torch

from partialkd.storage.finite import not_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, value: str) -> None:
    largest = torch.finfo(dtype).max  # of sums it would make infinity
    x = torch.full((3, 70), largest, dtype=dtype)
    rows = {"good": x.clone(), "empty": x[:0], "count": torch.arange(3), "bad": x.T}
    assert not_finite(rows) is None
    x[2, 61] = float(value)
    assert not_finite(rows) == "NaN or infinity in bad"


def test_the_first_few_are_named() -> None:
    bad = {f"layer{number}": torch.tensor(float("nan")) for number in range(7)}
    assert not_finite(bad) == "NaN or infinity in layer0, layer1, layer2, layer3, layer4 and 2 more"
    assert not_finite({}) is None
