"""Two networks that are one: equal numbers bit for bit, equal outputs to rounding.

On some processors the last bits of a product hang on where its operands lie in memory and on the number of threads, so
that two copies of a network may differ in them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def assert_same_network(got: nn.Module, expected: nn.Module, images: Tensor) -> None:
    """All parameters and running statistics bit for bit, embeddings of these images to rounding."""
    found, wanted = got.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    counted = [key for key in wanted if not key.endswith("num_batches_tracked")]  # no output hangs on them
    assert all(torch.equal(found[key], wanted[key]) for key in counted)
    with torch.no_grad():
        assert_same_outputs(got(images), expected(images))


def assert_same_outputs(got: Tensor, expected: Tensor) -> None:
    """Equal to rounding."""
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))
