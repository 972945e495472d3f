"""List the backends of the sweep, and choose the one that a configuration and a device call for."""

from __future__ import annotations

import warnings

import torch

from partialkd.centres.sweeps.base import Sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest import FastestSweep
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.centres.sweeps.fused import FusedSweep
from partialkd.centres.sweeps.gemm import GemmSweep
from partialkd.centres.sweeps.graphed import GraphedSweep
from partialkd.centres.sweeps.products import Products, rounds
from partialkd.centres.sweeps.reference import ReferenceSweep
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError, PartialKDWarning

BACKENDS: dict[str, type[Sweep]] = {  # by the names of centres.backend
    "chunked": ChunkedSweep,
    "graphed": GraphedSweep,
    "gemm": GemmSweep,
    "fused": FusedSweep,
    "reference": ReferenceSweep,
}


def make_sweep(config: CentresConfig, scale: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Sweep:
    """Make the sweep that centres.backend names, for embeddings of `dtype`; ConfigError if the device cannot run it."""
    products = make_products(config.products, device, dtype)
    if config.backend == "auto":
        return _automatic(config, scale, device, products)
    kind = BACKENDS[config.backend]
    if problem := kind.unable(device):
        raise ConfigError(f"centres.backend: {problem}")
    return kind.make(scale, config, products)


def _automatic(config: CentresConfig, scale: float, device: torch.device, products: Products) -> Sweep:
    """Make the chunked sweep, or on CUDA one that measures what is faster in the same precision."""
    chunked = ChunkedSweep.make(scale, config, products)
    if device.type != "cuda":
        return chunked
    alike = config.model_copy(update={"products": "bf16" if rounds(config.products, cuda=True) else "fp32"})
    competing = {name: kind for name, kind in BACKENDS.items() if kind.competes}
    problems = {name: kind.unable(device) for name, kind in competing.items()}
    for problem in filter(None, problems.values()):
        warnings.warn(f'centres.backend = "auto" goes without {problem}', PartialKDWarning, stacklevel=3)
    able = {name: kind for name, kind in competing.items() if problems[name] is None}
    return FastestSweep(chunked, {name: kind.make(scale, alike, products) for name, kind in able.items()})
