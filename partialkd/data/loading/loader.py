"""Open the loader that `data.loader` names.

Both give the same records, labels and flips in the same order; on the CPU the same pixels up to float32 rounding.
Errors: `ConfigError` if DALI is asked for and not installed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from partialkd.config import DataConfig
from partialkd.data.loading.jpeg import JpegLoader
from partialkd.data.loading.ordered import Loader
from partialkd.data.order.plan import Plan
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError


def open_loader(data: DataConfig, source: Source, plan: Plan, device: torch.device, with_clean: bool = False) -> Loader:
    """Open the loader of one rank. with_clean: where images are altered, batches have them unaltered too."""
    return LOADERS[data.loader](data, source, plan, device, with_clean)


def _dali(data: DataConfig, source: Source, plan: Plan, device: torch.device, with_clean: bool) -> Loader:
    try:
        from partialkd.data.loading.dali import DaliLoader  # a second, and a library not every machine has
    except ImportError as error:
        rule = 'must be "jpeg" where DALI is not installed (pip install nvidia-dali-cuda130)'
        raise ConfigError(f'data.loader: {rule}, got "dali": {error}') from error
    return DaliLoader(data, source, plan, device, with_clean)


LOADERS: dict[str, Callable[[DataConfig, Source, Plan, torch.device, bool], Loader]] = {
    "jpeg": JpegLoader,
    "dali": _dali,
}
