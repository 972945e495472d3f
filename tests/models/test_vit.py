"""Vision transformers mask tokens in training, where they stand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.network_cases import pictures, small
from partialkd.models import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_vit_masks_a_tenth_of_the_tokens_in_training_only() -> None:
    model = build_model(small("vit_tiny", depth=0.01), 64)  # 49 tokens, one block
    lengths: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    first, second = model(pictures(4, 64)), model(pictures(4, 64))
    assert lengths == [44, 44]
    assert not torch.equal(first, second)
    first.square().sum().backward()
    assert model.mask_token.grad is not None
    assert model.mask_token.grad.abs().sum() > 0
    model.eval()
    assert torch.equal(model(pictures(4, 64)), model(pictures(4, 64)))
    assert lengths[2:] == [49, 49]


def test_vit_replaces_masked_tokens_where_they_stood() -> None:
    model = build_model(small("vit_tiny", depth=0.01), 64)
    nn.init.constant_(model.mask_token, 1e4)
    masked = (model.trunk(pictures(3, 64)) == 1e4).all(dim=2)  # (3, 49)
    assert masked.sum(1).tolist() == [5, 5, 5]
    assert not torch.equal(masked[0], masked[1])
    # With an identity in place of blocks and norm, every other token is the one of its own position.
    model.blocks, model.norm = nn.Sequential(), nn.Identity()
    tokens = model.patch_embed(pictures(3, 64)) + model.pos_embed
    got = model.trunk(pictures(3, 64))
    kept = (got != 1e4).all(dim=2)
    torch.testing.assert_close(got[kept], tokens[kept])
