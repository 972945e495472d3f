"""The network's own part of a foreign state_dict: under a wrapper's prefix, with other modules beside it.

A trainer's checkpoint has the network under a name ("model.", "net.", "module.model.", whatever its class calls it) and
often a head beside it (the classifier of its training). The prefix is the one under which all keys of the network are
there. Left out, and named in one line of the log, is what stands outside of the prefix, and under it whatever belongs
to a module that the network does not have (`head.kernel`); a key too many inside one of the network's own modules
stays, for then it is another network.
Errors: CheckpointError naming the file where the network is there twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from partialkd.errors import CheckpointError

NAMED = 4  # keys listed in a line
COUNTER = ".num_batches_tracked"
_log = logging.getLogger(__name__)


def own_part(model: nn.Module, state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Take what is the model's out of a state_dict; all of it, without a common prefix, if its keys are not there."""
    keys = [key for key in model.state_dict() if not key.endswith(COUNTER)]
    places = _prefixes(keys, state)
    if len(places) > 1:
        rule = "must hold the network once: save the state_dict of the one that is meant"
        raise CheckpointError(f"{where}: {rule}, got it under {listed([place or 'no name' for place in places])}")
    if not places:
        return without_prefix(state)
    inside = {key.removeprefix(places[0]): x for key, x in state.items() if key.startswith(places[0])}
    modules = {key.partition(".")[0] for key in keys}
    own = {key: x for key, x in inside.items() if key.partition(".")[0] in modules}
    kept = {places[0] + key for key in own}
    if beside := [key for key in state if key not in kept]:
        count = f"{len(beside)} tensor{'s' if len(beside) > 1 else ''}"
        numbers = math.fsum(state[key].numel() for key in beside)
        _log.info(f"{where}: left out {count} beside the network ({numbers:,.0f} numbers): {listed(beside)}")
    return own


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take away the names that all keys begin with."""
    while len({key.partition(".")[0] for key in state}) == 1 and all("." in key for key in state):
        state = {key.partition(".")[2]: x for key, x in state.items()}
    return state


def listed(keys: list[str]) -> str:
    """Name the first keys, and how many there are more."""
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def _prefixes(keys: list[str], state: Iterable[str]) -> list[str]:
    """Find every prefix, also the empty one, under which all of these keys are there."""
    there, anchor = set(state), max(keys, key=len)
    ending = [key.removesuffix(anchor) for key in there if key.endswith(anchor)]
    prefixes = sorted({prefix for prefix in ending if prefix == "" or prefix.endswith(".")})
    return [prefix for prefix in prefixes if all(prefix + key in there for key in keys)]


class Opaque:
    """Stands in a checkpoint for an object of a class that is not known: nothing of that class is imported or run."""

    def __init__(self, *args: object, **named: object) -> None:
        """Take whatever the class would be made of, and forget it."""

    def __setstate__(self, state: object) -> None:
        """Forget it."""


def opaque(names: Iterable[str]) -> torch.serialization.safe_globals:
    """Return a context in which torch.load(weights_only=True) reads objects of these classes or functions as Opaque."""
    return torch.serialization.safe_globals([(Opaque, name) for name in names])
