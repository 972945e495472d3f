"""Choose the sweep that a configuration and a device call for."""

from __future__ import annotations

import torch

from partialkd.centres.sweeps.base import Sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.products import make_products, rounds
from partialkd.centres.sweeps.reference import ReferenceSweep
from partialkd.config import CentresConfig


def make_sweep(config: CentresConfig, scale: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Sweep:
    """The sweep that centres.backend names, for embeddings of this type; ConfigError if this device cannot run it."""
    if config.backend == "reference":
        return ReferenceSweep(scale)
    chunked = ChunkedSweep(scale, config.chunk_rows, make_products(config.products, device, dtype))
    if config.backend == "fused":
        from partialkd.centres.sweeps.fused import KERNEL_TYPES, FusedSweep, check_fused

        check_fused(device)
        return FusedSweep(scale, config.chunk_rows, chunked.products, KERNEL_TYPES[config.products])
    if config.backend == "graphed":
        from partialkd.centres.sweeps.graphed import GraphedSweep, check_graphed

        check_graphed(device)
        return GraphedSweep(scale, config.chunk_rows, chunked.products)
    if config.backend == "auto" and device.type == "cuda":
        from partialkd.centres.sweeps.fastest import make_measured

        return make_measured(chunked, rounds(config.products, cuda=True))
    return chunked
