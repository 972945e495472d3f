"""How a process ends that runs out of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from partialkd.planner.advice import memory_advice
from partialkd.planner.plan import Ranks
from partialkd.run.out_of_memory import advising
from partialkd.world.world import World


def ends() -> None:
    """One of two ranks: training, in which rank 1 asks for more than there is."""
    from helpers.health_cases import CLASSES, config_of, make
    from partialkd.config import DistConfig
    from partialkd.world.launch import launched

    torch.set_num_threads(1)

    def body(world: World) -> None:
        config = config_of(Path(sys.argv[1]))

        def advise() -> str:
            return memory_advice("student", config.student, config.data, CLASSES, Ranks(2, False), None)

        with advising("student", world, advise):
            one, _ = make(world, config, lambda *_: torch.empty(1 << 46))
            one.run()

    raise SystemExit(launched(DistConfig(device="cpu", timeout_s=100_000.0), body))
