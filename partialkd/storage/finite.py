"""NaN and infinity found before they are saved: a checksum calls them undamaged for ever.

Nothing is copied to look: the least and the greatest value of a tensor are NaN or infinite where any of it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

SHOWN = 5  # names in a message


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the entries that hold NaN or infinity, for a message; None if none does. Waits for each device once."""
    looked: dict[torch.device, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if x.is_floating_point() and x.numel():
            looked.setdefault(x.device, {})[name] = torch.stack(x.detach().aminmax()).isfinite().all()
    found = {
        name: bool(finite)
        for flags in looked.values()
        for name, finite in zip(flags, torch.stack(list(flags.values())).tolist(), strict=True)
    }
    broken = [name for name in tensors if not found.get(name, True)]
    return f"NaN or infinity in {first_few(broken)}" if broken else None


def first_few(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
