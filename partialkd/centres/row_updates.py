"""Choose how rows are moved by a given gradient: on CUDA by one Triton kernel, where it does what torch does.

By torch's operations a chunk of trainable rows takes some fifty launches of a few microseconds, with rounded moments
hundreds. Before the first use on a device the kernel moves a few rows, and so do torch's operations: where Triton is
not there, does not compile or gives other numbers, one warning says so, and the run goes on with torch's.

The kernel draws other random bits for rounding than rounding.Draw, as much a function of (seed, step, class id, column)
alone; 31 bits of key for units and each moment.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from partialkd.centres.rounding import Draw
from partialkd.centres.store import TINY, CentreStore
from partialkd.counter_random import mix_word
from partialkd.errors import PartialKDWarning

LARGEST_DIM = 1024
DEVICES = ("cuda",)  # where kernels run; tests add the CPU, with Triton's interpreter
TRIAL_ROWS, TRIAL_DIM = 24, 40
TOLERANCE = 1e-5  # relative to the norm
FOUND: dict[tuple[str, torch.device], bool] = {}  # by rule and device: whether its kernel agreed


class Rule(Protocol):
    """What is asked of a row optimiser here."""

    @property
    def rule(self) -> str: ...

    def settings(self, lr: float) -> dict[str, Any]: ...

    def trial(self, store: CentreStore) -> Rule: ...

    def by_torch(self, store: CentreStore, rows: slice | Tensor, unit_gradient: Tensor, lr: float) -> None: ...


def moved_by_kernel(
    store: CentreStore, rows: slice | Tensor, gradient: Tensor, rule: Rule, lr: float, valid: Tensor | None
) -> bool:
    """Move those rows of the store that are valid by a kernel -> whether there is one that does."""
    known = store.unit.dtype in (torch.float32, torch.bfloat16) and store.dim <= LARGEST_DIM
    if store.device.type not in DEVICES or not known or not agrees(rule, store.device):
        return False
    if valid is not None:
        assert isinstance(rows, Tensor)
        rows = rows.where(valid, -1)
    run_kernel(store, rows, gradient, rule, lr)
    return True


def run_kernel(store: CentreStore, rows: slice | Tensor, gradient: Tensor, rule: Rule, lr: float) -> None:
    """Move rows by the kernel of this rule; rows: a slice, or a list (r,), each once, -1: none."""
    if not len(gradient):
        return
    kernels = _kernels()
    move = kernels.move_sgd if rule.rule == "sgd" else kernels.move_adamw
    move(store, rows, gradient.contiguous(), keys_of(store.draw), TINY, **rule.settings(lr))


def keys_of(draw: Draw | None) -> tuple[int, int, int] | None:
    """Keys of the random bits by which units and up to two moments are rounded, 31 bits each; None: to nearest."""
    if draw is None:
        return None
    moment = mix_word(draw.seed & 0xFFFFFFFF) ^ mix_word((draw.step * 16 + draw.part) & 0xFFFFFFFF)
    unit, first, second = (mix_word(moment ^ purpose) >> 1 for purpose in range(3))
    return unit, first, second


def agrees(rule: Rule, device: torch.device) -> bool:
    """Find out once whether the kernel of this rule moves a few rows as torch does; warn if not."""
    key = rule.rule, device
    if key not in FOUND:
        problem = "the package triton is not installed"
        if find_spec("triton"):
            try:
                problem = problem_of(rule, device)
            except Exception as error:  # of a compiler, a driver, a device: torch's operations do the same
                problem = f"{type(error).__name__}: {error}".splitlines()[0]
        if problem:
            text = f"rows are moved by torch's operations: {rule.rule}: {problem}"
            warnings.warn(text, PartialKDWarning, stacklevel=2)
        FOUND[key] = not problem
    return FOUND[key]


def problem_of(rule: Rule, device: torch.device) -> str:
    """Say what is off; "": nothing."""
    moved = [_moved(rule, device, move) for move in (run_kernel, _by_torch)]
    for name, wanted in moved[1].items():
        error = float((moved[0][name].float() - wanted.float()).norm() / wanted.float().norm().clamp_min(TINY))
        if not error <= TOLERANCE:
            return f"the kernel's {name} is off by {error:.1e} of its norm"
    return ""


def _moved(rule: Rule, device: torch.device, move: Callable[..., None]) -> dict[str, Tensor]:
    """Tensors of a small store after two steps of such a rule."""
    draw = torch.Generator().manual_seed(0)
    store = CentreStore.empty(range(TRIAL_ROWS), TRIAL_ROWS, TRIAL_DIM, torch.float32, device)
    store.write(slice(None), torch.randn(TRIAL_ROWS, TRIAL_DIM, generator=draw).to(device))
    trial = rule.trial(store)
    for _ in range(2):
        gradient = torch.randn(TRIAL_ROWS, TRIAL_DIM, generator=draw).to(device)
        move(store, slice(0, TRIAL_ROWS), gradient, trial, 0.1)
    return store.state()


def _by_torch(store: CentreStore, rows: slice | Tensor, gradient: Tensor, rule: Rule, lr: float) -> None:
    rule.by_torch(store, rows, gradient, lr)


def _kernels() -> ModuleType:
    from partialkd.centres import update_kernels

    return update_kernels
