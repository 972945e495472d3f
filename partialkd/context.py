"""What every part of a run needs to know: its configuration, world, data, folder and stop signals.

In a chain of students (`student.generations`) each has a context of its own, in which its predecessor is the teacher
that the run has trained (`as_generation`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from partialkd.config import Config, TeacherConfig
from partialkd.data.sources.source import Source
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

# In a run's folder:
SAVED_CONFIG = "config.toml"
METRICS = "metrics.jsonl"
RESULT, TIMES, STARTS = "result.json", "times.json", "starts.json"
REPORT = "report.html"


@dataclass(frozen=True)
class RunContext:
    """One rank's view of a run; what has come out of it so far is no part of this."""

    config: Config
    world: World
    source: Source
    folder: Path  # of the run; each phase has its own within
    stop: StopSignals
    teacher_phase: str = "teacher"  # whose network teaches, where the run has trained the teacher itself
    learner: str = "student"  # the phase that learns from the teacher

    @property
    def image_size(self) -> int:
        """Pixels per side of the images that the networks see."""
        return self.config.data.image_size

    @property
    def teaching_folder(self) -> Path:
        """Where what is made of the teacher is kept: its class means, its cache."""
        return self.folder if self.teacher_phase == "teacher" else self.folder / self.teacher_phase


def as_generation(context: RunContext, name: str) -> RunContext:
    """Return the context in which a phase is trained: the run's own, unless it is one of a chain of students.

    Each of these draws from a seed of its own. From the second on the one before is the teacher, under the keys of
    `teacher` that can be meant of it; a cache of the run's own making is then of that student, any other is left.
    """
    config = context.config
    names = config.student.names
    if name not in names:
        return context
    number = names.index(name)
    if number > 0:
        given = config.teacher
        teacher = TeacherConfig(
            source="train",
            train=config.student,
            centres=given.centres,
            cache="auto" if given.cache == "auto" else None,
            cache_dtype=given.cache_dtype,
            sees=given.sees,
            precision=given.precision,
            compile=given.compile,
            noise=given.noise,
        )
        config = config.model_copy(update={"teacher": teacher})
    if len(names) > 1:
        run = config.run.model_copy(update={"seed": generation_seed(config.run.seed, number + 1)})
        config = config.model_copy(update={"run": run})
    before = names[number - 1] if number > 0 else context.teacher_phase
    return replace(context, config=config, teacher_phase=before, learner=name)


def generation_seed(seed: int, number: int) -> int:
    """Make the seed of the `number`-th generation of a run: students of one seed would begin as the same network."""
    digest = hashlib.blake2b(f"{seed} generation {number}".encode(), digest_size=5).digest()
    return int.from_bytes(digest, "big")
