"""What every part of a run needs to know: its configuration, world, data, folder and stop signals."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from partialkd.config import Config
from partialkd.data.sources.source import Source
from partialkd.evaluate.pairs import PairScores
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World


@dataclass
class Job:
    """One rank's view of the job."""

    config: Config
    world: World
    resumed: bool
    folder: Path
    source: Source
    stop: StopSignals
    data_facts: dict[str, Any] | None = None  # of data the run made for itself: what is in it and what was left out
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    scores: dict[str, dict[str, PairScores]] = field(default_factory=dict)  # by set, by network

    @property
    def image_size(self) -> int:
        return self.config.data.image_size
