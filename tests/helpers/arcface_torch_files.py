"""Files as arcface_torch leaves them, made by torch's own optimiser, and what it would do next on one process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from partialkd.config import ModelConfig
from partialkd.models.build import build_model
from partialkd.world.shard import shard_of

MODEL = ModelConfig(name="mobilefacenet_gdc", embedding_dim=16, width=0.25, depth=0.5)
SIZE, SCALE, MARGIN = 32, 16.0, 0.2
MOMENTUM, DECAY, CLIP = 0.9, 5e-4, 5.0
RATES = {"sgd": 0.05, "adamw": 0.001}


class Dense:
    """Backbone and all rows on one process, CosFace over them, one optimiser over both; BatchNorm is frozen."""

    def __init__(self, classes: int, optimizer: str = "sgd") -> None:
        torch.manual_seed(3)
        self.network = build_model(MODEL, SIZE).eval()
        self.rows = nn.Parameter(torch.normal(0, 0.01, (classes, MODEL.embedding_dim)))
        groups = [{"params": list(self.network.parameters())}, {"params": [self.rows]}]
        self.lr = RATES[optimizer]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=self.lr, weight_decay=DECAY)
            if optimizer == "adamw"
            else torch.optim.SGD(groups, lr=self.lr, momentum=MOMENTUM, weight_decay=DECAY)
        )

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One optimiser step on images (N, 3, H, W) and labels (N,) -> its loss."""
        self.optimizer.zero_grad()
        cosine = linear(normalize(self.network(images)), normalize(self.rows))
        logits = SCALE * (cosine - MARGIN * nn.functional.one_hot(labels, len(self.rows)))
        loss = cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        return float(loss.detach())

    def save(self, folder: Path, gpus: int, epoch: int) -> None:
        """A file a GPU: each has the network, its rows, and one optimiser's state over both."""
        folder.mkdir(parents=True, exist_ok=True)
        whole = self.optimizer.state_dict()
        last = whole["param_groups"][1]["params"][0]
        for rank in range(gpus):
            shard = shard_of(len(self.rows), rank, gpus)
            mine = slice(shard.start, shard.stop)
            own = {key: kept[mine].clone() if kept.dim() else kept for key, kept in whole["state"][last].items()}
            optimizer = {**whole, "state": {**whole["state"], last: own}}
            content = {
                "epoch": epoch, "global_step": 4, "state_dict_backbone": self.network.state_dict(),
                "state_dict_softmax_fc": {"weight": self.rows.detach()[mine].clone()}, "state_optimizer": optimizer,
                "state_lr_scheduler": {"last_epoch": 4, "base_lrs": [self.lr] * 2, "_last_lr": [self.lr] * 2},
            }  # fmt: skip
            torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
