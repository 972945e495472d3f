"""Vision transformers tiny, small and base for faces: patches of 9 pixels, all tokens flattened into the embedding.

Shapes: (b, 3, H, H) -> tokens (b, (H // 9)^2, dim) -> (b, embedding_dim). state_dict keys and shapes are those of
InsightFace's arcface_torch vit_t, vit_s and vit_b, so its checkpoints load unchanged.
Training mode, as published: a tenth of the tokens, other ones for each image, skips the blocks and is replaced by one
learned token before the head; residual branches are dropped for whole images with a probability rising to 0.1.
Both draw from torch's global generator (of the device).
Source: arXiv:2010.11929; layer facts from arcface_torch/backbones/vit.py.
Differs: attention through torch's scaled_dot_product_attention; mixed precision only if the caller asks for it (there:
always on, except in the softmax); recomputation is an option of every size (there: of base only). No tensor has more
than four dimensions, linear layers see rows (b * n, dim), and -1 stands for the batch: so ncnn and OpenCV's classic
engine take an exported file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partialkd.config import ModelConfig
from partialkd.models.network import Block, Network, scaled_blocks, scaled_channels

SIZES = {"vit_tiny": (256, 12), "vit_small": (512, 12), "vit_base": (512, 24)}  # channels, blocks
HEADS = 8
PATCH = 9  # pixels; what is left over at the right and lower edge is not seen
MASKED = 0.1  # share of the tokens
DROP_PATH = 0.1  # of the last block
MLP_RATIO = 4


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Mix values by softmax(q k / sqrt(d)); all (b, 8, n, d). Spelled out where it becomes a file."""
    if not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(queries, keys, values)
    return (queries @ (keys * queries.shape[3] ** -0.5).transpose(2, 3)).softmax(dim=3) @ values


class Attention(nn.Module):
    """(b, n, dim) -> (b, n, dim), 8 heads."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        tokens, dim = x.shape[1:]
        heads = lambda part: part.reshape(-1, tokens, HEADS, dim // HEADS).transpose(1, 2)  # (b, 8, n, dim/8)
        mixed = attention(*map(heads, self.qkv(x.reshape(-1, dim)).chunk(3, dim=1)))
        rows = self.dropout(self.proj(mixed.transpose(1, 2).reshape(-1, dim)))
        return rows.reshape(-1, tokens, dim)


class MLP(nn.Module):
    """(b, n, dim) -> (b, n, dim) through 4 * dim, ReLU6."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu6(self.fc1(x.reshape(-1, x.shape[2]))))
        return self.dropout(self.fc2(hidden)).reshape(-1, *x.shape[1:])


class TransformerBlock(Block):
    """Attention and MLP, each normalised before and added to its input."""

    def __init__(self, dim: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, dropout)

    def compute(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Set whole images to zero with probability `drop_path`, the others scaled up to keep the mean."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep
        return branch * kept.to(branch.dtype) / keep


class PatchEmbed(nn.Module):
    """(b, 3, H, H) -> (b, n, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.proj(images)
        return maps.reshape(-1, maps.shape[1], maps.shape[2] * maps.shape[3]).transpose(1, 2)


class VisionTransformer(Network):
    """No class token: the head sees every token."""

    head_modules = ("feature",)

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        published_dim, published_depth = SIZES[config.name]
        dim, depth = scaled_channels(published_dim, config.width), scaled_blocks(published_depth, config.depth)
        tokens = (image_size // PATCH) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(dim)
        self.dropout = nn.Dropout(config.dropout)
        rates = [DROP_PATH * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.Sequential(*(TransformerBlock(dim, config.dropout, rate) for rate in rates))
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(dim * tokens, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, config.embedding_dim, bias=False),
            nn.BatchNorm1d(config.embedding_dim, eps=2e-5),
        )
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def stage_ends(self) -> tuple[str, str, str, str]:
        depth = len(self.blocks)
        first, second, third, last = (f"blocks.{max(0, quarter * depth // 4 - 1)}" for quarter in (1, 2, 3, 4))
        return first, second, third, last

    def trunk(self, images: Tensor) -> Tensor:
        tokens = self.dropout(self.patch_embed(images) + self.pos_embed)
        if not self.training:
            return self.norm(self.blocks(tokens))
        order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(
            dim=1
        )  # (b, n), a permutation for each image
        visible = order[:, : max(1, int(tokens.shape[1] * (1 - MASKED)))]
        seen = self.norm(self.blocks(tokens.gather(1, _spread(visible, tokens))))
        hidden = self.mask_token.to(seen.dtype).expand(tokens.shape[0], tokens.shape[1] - seen.shape[1], -1)
        return torch.cat([seen, hidden], dim=1).gather(1, _spread(order.argsort(dim=1), seen))

    def embedding(self, maps: Tensor) -> Tensor:
        return self.feature(maps.reshape(-1, maps.shape[1] * maps.shape[2]))


def _spread(index: Tensor, tokens: Tensor) -> Tensor:
    """Expand indices of tokens (b, k) -> (b, k, dim), as gather wants them."""
    return index.unsqueeze(-1).expand(-1, -1, tokens.shape[2])
