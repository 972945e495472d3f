"""partialkd: knowledge distillation of face recognition networks with class centres sharded over ranks.

network = partialkd.load("folder")      # that launch/model_card.py has written, or that was downloaded
embeddings = network(images)            # (b, 3, S, S) float32 RGB, (pixel - 127.5) / 127.5 -> (b, D)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from partialkd.models.network import Network

__version__ = "0.1.0"


def load(folder: str | Path) -> Network:
    """Open the network of a folder (models/model_folder.py), on the CPU in eval mode."""
    from partialkd.models.model_folder import load_folder  # `import partialkd` alone loads no torch

    return load_folder(folder)
