"""What every part of a run needs to know: its configuration, world, data, folder and stop signals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partialkd.config import Config
from partialkd.data.sources.source import Source
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World


@dataclass(frozen=True)
class RunContext:
    """One rank's view of a run; what has come out of it so far is no part of this."""

    config: Config
    world: World
    source: Source
    folder: Path  # of the run; each phase has its own within
    stop: StopSignals

    @property
    def image_size(self) -> int:
        """Pixels per side of the images that the networks see."""
        return self.config.data.image_size
