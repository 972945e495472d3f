"""One network trained once: a batch from disk to the optimiser step, readable top to bottom.

`Trainer.micro_step` is the method's paragraph in the paper; `Trainer.run` repeats it, logs, saves and resumes.
A micro-step: embeddings (b, D) of the student, of the teacher if the method asks for it, the method's loss over
the sharded centres, its gradient back to the embeddings and through the student. After `accumulation` of them
the student takes its step and, at the same learning rate, trainable centres take theirs.

When a rank is asked to stop (stop_signals.py), all ranks finish the step they agree on, save, and raise `Preempted`.
The agreement costs a collective about once a second.

A step whose loss or gradient is not finite ends the phase or is left out (health.py); so do other numbers gone wrong.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from partialkd import checkpoint
from partialkd.centres import Centres, CentreStore
from partialkd.centres.logit_noise import LogitNoise
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.soft_targets import SoftTargets
from partialkd.checkpoint.snapshot import Snapshot
from partialkd.config import Config, PhaseConfig
from partialkd.config.resume import phase_length
from partialkd.context import RunContext
from partialkd.data.batch import FaceBatch
from partialkd.data.loading.loader import open_loader
from partialkd.data.loading.ordered import Loader
from partialkd.errors import PartialKDError, Preempted, RankLost
from partialkd.methods import Outcome, make_method
from partialkd.methods.stateful import States
from partialkd.methods.terms import TermInputs, Terms, TermSetting
from partialkd.methods.terms.soft import soft_targets
from partialkd.models import build_model
from partialkd.models.weights import put_weights
from partialkd.teacher.cache import KeptEmbeddings
from partialkd.teacher.loader import TaughtLoader
from partialkd.teacher.network import Teacher
from partialkd.teacher.noise import Noise
from partialkd.training.health import Health, skipping
from partialkd.training.patience import Patience, shortfall
from partialkd.training.phase_plan import key_of, plan_of
from partialkd.training.profiler import Profiler
from partialkd.training.scoring import Scoring
from partialkd.training.start import Start
from partialkd.training.state import Parts, capture, identity, restore
from partialkd.training.step_log import LEFT_OUT, StepLog
from partialkd.training.student import Student
from partialkd.training.tapping import tapping_of
from partialkd.world.part_clock import forget_peak
from partialkd.world.world import World, collective_failed, seed_rank

_log = logging.getLogger(__name__)


class Trainer:
    """One phase of a run on one rank."""

    def __init__(
        self,
        name: str,
        phase: PhaseConfig,
        context: RunContext,
        store: CentreStore,
        teacher: Teacher | KeptEmbeddings | None,
        on_save: Callable[[], None] = lambda: None,
        teacher_rows: CentreStore | None = None,
        start: Start | None = None,
        least_seconds: float | None = None,
    ) -> None:
        """on_save: called after every save, on every rank. teacher_rows: its centres, where the method's are others.

        start: what the network starts from, if not from random numbers. least_seconds: of a step at the device's full
        rate of products, to say how much of it is used.
        """
        self.name, self.phase, self.context, self.store = name, phase, context, store
        self.config, self.world, source = context.config, context.world, context.source
        config, world, seed = self.config, self.world, self.config.run.seed
        self.folder = context.folder / name
        self._least_seconds = least_seconds
        self.plan = plan_of(name, phase, config, source, world)
        self.method = make_method(phase.method)
        self.terms = Terms(phase.terms, TermSetting(world, store.num_classes, phase.model.embedding_dim))
        self.states = States({"method": self.method, **self.terms.named})
        teacher = teacher if phase.teacher_use == "every batch" else None
        self._taught_by = teacher.fingerprint if teacher else None
        self.teacher = teacher if isinstance(teacher, Teacher) else None
        with_clean = self.teacher is not None and config.teacher.sees == "clean"
        self.loader: Loader = open_loader(config.data, source, self.plan, world.device, with_clean)
        noise = config.teacher.noise if teacher is not None else None
        self.noise = Noise(noise, seed) if noise and noise.on == "embedding" else None
        on_logits = LogitNoise(noise.sigma, noise.share, seed) if noise and noise.on == "logits" else None
        if teacher is not None and not isinstance(teacher, Teacher):  # embeddings that were kept
            self.loader = TaughtLoader(self.loader, teacher, world.device)
        self.centres = _centres(phase, store, world, config, soft_targets(phase, teacher_rows, on_logits))
        torch.manual_seed(seed)  # every rank builds the same network
        network = build_model(phase.model, config.data.image_size)
        start = start or Start()
        self._started_from = start.facts
        if start.weights is not None:
            put_weights(network, start.weights, f"{key_of(name)}.weights")
        guarded = skipping(config)
        self.taps = tapping_of(phase, key_of(name), network, self.teacher)
        self.student = Student(network, phase, world, self.plan.micro_steps, key_of(name), guarded, self.taps)
        seed_rank(seed, world)
        run = config.run
        self.saver = checkpoint.Saver(
            self._checkpoints, world, run.keep_checkpoints, run.checkpoint_async, run.keep_best
        )
        newest = lambda: checkpoint.newest(self._checkpoints)
        self.health = Health(name, context, self.student, self.centres, self.teacher, newest)
        moving = phase.method.centre_kind != "fixed"
        self.patience = Patience(config.evaluate)
        self._parts = Parts(self.student, self.centres, moving, (self.loader, self.health, self.patience), self.states)
        self.scoring, self._on_save = Scoring(context), on_save
        self.profiler = Profiler(context.folder, name, config.run, world)
        self._judged: tuple[int, float] | None = None  # the newest judgement: after which step, its number
        self._saved_step, self._scored = -1, False  # of the newest checkpoint; True also where none are scored
        self._outcomes: list[Outcome] = []  # of the micro-steps since the last optimiser step

    @property
    def last_step(self) -> int:
        return min(self.student.total_steps, self.phase.max_steps or self.student.total_steps)

    def run(self, resume: bool = False) -> torch.nn.Module:
        """Train to the end, collectively -> the trained network, in eval mode, equal on all ranks."""
        if resume:
            self.resume()
        try:
            self._step_log = self._telling()
            with self._step_log.progress:
                try:
                    self._train()
                finally:
                    self.profiler.close()
                    self.world.clock.stop()
                self._save_last()
        except Exception as error:
            if not (collective_failed(error) or isinstance(error, RankLost)):
                self.saver.close()  # what it still writes was good; a lost rank's part would not come
            raise
        return self.student.network()

    def _telling(self) -> StepLog:
        """Begin to tell what the run does, from here on."""
        context, live, done = self.context, self.teacher is not None, self.student.steps
        return StepLog(self.name, self.phase, context, self.last_step, done, live, self._least_seconds)

    def _save_last(self) -> None:
        """Save the last step, collectively, scored if `run.keep_best`: a resumed run makes up for it."""
        if self._saved_step != self.student.steps or not self._scored:
            self.save(self._score())
        self.saver.wait()
        if not self._scored:
            raise Preempted(f"{self.name}: stopped and saved at step {self.student.steps}, not scored yet")

    def close(self) -> None:
        """Give back the loader's threads and DeepSpeed's hooks, and what writes checkpoints."""
        self.saver.close()
        self.loader.close()
        self.health.close()
        self.student.close()

    def _train(self) -> None:
        self._watch = self.context.stop.watch(self.world)
        if self.phase.compile and self.world.is_main:
            _log.info(f"{self.name}: the first step compiles the network, which may take minutes")
        self._judge_if_due()  # a stop may have come between
        batches = iter(self.loader)
        self.world.clock.start(self.world.device, "other")
        forget_peak(self.world.device)
        while self.student.steps < self.last_step and not self.patience.over:
            lr, steps = self.student.lr, self.student.steps
            self.profiler.before(steps + 1)
            with self.world.clock.within("data"):
                batch = next(batches)
            self._outcomes.append(self.micro_step(batch))
            if self.student.steps > steps:
                self._after_step(lr)
            elif len(self._outcomes) == self.phase.accumulation:
                self._outcomes.clear()  # of a step that was left out

    def micro_step(self, batch: FaceBatch) -> Outcome:
        """Forward, loss, backward; at the end of an optimiser step also the step of student and centres."""
        part = self.world.clock.within
        with part("student forward"):
            embeddings = self.student.embed(batch.images)  # (b, D)
        student = embeddings.detach().requires_grad_()
        averaged = self.phase.method.centre_kind == "ema"  # these send the teacher's embeddings as well
        if self.teacher and not averaged:
            self.centres.begin(student, batch.labels)
        with part("teacher"):
            teacher = self._taught(batch)  # (b, D)
        if self.noise and teacher is not None:
            teacher = self.noise(teacher, batch.records, self.student.steps)
        with part("centres"):
            self.centres.teach(teacher, batch.records)
            outcome = self.method.loss(self.centres, student, batch.labels, teacher)
            maps = self.taps.pairs(len(student)) if self.taps else {}
            inputs = TermInputs(student, batch.labels, teacher, self.world, self.centres, maps)
            outcome = self.terms.added_to(outcome, inputs)
            outcome.loss.backward()
        assert student.grad is not None
        gradient = self.health.watch(batch, embeddings, teacher, outcome.loss, student.grad)
        with part("student backward"):
            self.student.backward(embeddings, gradient)
        lr = self.student.lr
        try:
            with part("student step"):
                stepped = self.student.step()
            if stepped:
                with part("centres"):
                    self.centres.step(lr * self.phase.optimizer.lr_factors.centres)
                self.states.stepped()
                self.health.stepped()
        except FloatingPointError:
            self.health.failed()
            self.states.skipped()
        return outcome

    def _taught(self, batch: FaceBatch) -> torch.Tensor | None:
        """The teacher's embeddings of a batch (b, D)."""
        if self.teacher is None:
            return batch.teacher
        return self.teacher.embed(batch.images if batch.clean is None else batch.clean)

    def _after_step(self, lr: float) -> None:
        step, run, last = self.student.steps, self.config.run, self.student.steps == self.last_step
        outcomes, self._outcomes = self._outcomes, []
        self._step_log.progress.stepped()
        self.profiler.after(step)
        if step % run.log_every == 0 or last:
            self._tell(outcomes, lr)
        if not last and self._watch.asked():
            self.save()  # without a score: there may be little time
            self.saver.wait()
            raise Preempted(f"{self.name}: stopped and saved at step {step}")
        if not last:
            self._judge_if_due()
        if not last and run.checkpoint_every and step % run.checkpoint_every == 0:
            self.save(self._score())

    def _tell(self, outcomes: list[Outcome], lr: float) -> None:
        """Log this step, collectively; PartialKDError if its loss is not finite."""
        values = self._step_log.means(outcomes, self.student.steps)
        loss = values.pop("loss")
        if not math.isfinite(loss):
            self.health.check()
            raise PartialKDError(f"{self.name}: the loss is {loss} at step {self.student.steps}")
        norm = self.student.grad_norm
        values |= self.health.logged(loss) | ({} if norm is None else {"grad_norm": norm})
        self._step_log.log(self.student.steps, self.loader.position[0], loss, lr, values)

    def _judge_if_due(self) -> None:
        """Score the student if `evaluate.every` says so; collective."""
        if self.patience.due(self.student.steps) and self._judgement() is not None and self.patience.over:
            step, best = self.student.steps, 1 - self.patience.best
            if self.world.is_main:
                said = f"{self.patience.since} judgements in a row were not better than {best:.4f}"
                _log.info(f"{self.name}: ends at step {step} of {self.last_step}: {said} (evaluate.patience)")

    # ------------------------------------------------------------------------------------- save and resume

    def save(self, score: float | None = None) -> Path:
        """Save all that the run needs to go on from here, collectively; refused if numbers went wrong.

        Complete when `saver.wait` returns; with `run.checkpoint_async` not before.
        """
        self.health.check(everything=True)
        described = {**self._identity(), **phase_length(self.phase), "image_size": self.config.data.image_size}
        snapshot = capture(self._parts, described)
        self._saved_step, self._scored = snapshot.step, score is not None or not self.config.run.keep_best
        path = self.saver.save(snapshot, score)
        self._on_save()
        return path

    def _score(self) -> float | None:
        """Score the student now, collectively, for `run.keep_best`: by how much it falls short of the best possible."""
        return self._judgement() if self.config.run.keep_best else None

    def _judgement(self) -> float | None:
        """Score the student after this step, once; collective. None: asked to stop meanwhile."""
        step = self.student.steps
        if self._judged is None or self._judged[0] != step:
            with self.world.clock.within(LEFT_OUT):
                scores, seconds = self.scoring.scores(self.student.network())
            self._step_log.leave_out(seconds)
            if scores is None:
                return None
            self._step_log.progress.scored(step, self.loader.position[0], scores, seconds)
            self._judged = step, shortfall(scores, self.config.evaluate.metric)
            self.patience.hear(*self._judged)
        return self._judged[1]

    def begin_at(self, snapshot: Snapshot, origin: Path) -> Path:
        """Begin where another program was, and save that, collectively -> the checkpoint.

        snapshot: what it says of progress is the position in the data. origin: named in errors.
        """
        counts = {key: value for part in self._parts.counting for key, value in part.state().items()}
        progress = {**self._identity(), **counts, **snapshot.progress}
        restore(replace(snapshot, progress=progress), self._parts, self._identity(), origin)
        path = self.save()
        self.saver.wait()
        return path

    def resume(self) -> None:
        """Go on from the newest undamaged checkpoint, of any number of ranks, if there is one; collective."""
        shard, classes = self.store.shard, self.store.num_classes
        found = checkpoint.load_newest(self._checkpoints, self.world, shard, classes)
        if found is None:
            return
        path, snapshot = found
        restore(snapshot, self._parts, self._identity(), path)
        score = self.world.on_main(lambda: checkpoint.read_manifest(path).score)
        self._saved_step, self._scored = snapshot.step, score is not None or not self.config.run.keep_best
        if self.world.is_main:
            _log.info(f"going on from step {snapshot.step} of {self.last_step} of {self.name}: {path}")

    def _identity(self) -> dict[str, Any]:
        data = self.context.source.fingerprint
        return identity(self.name, self.phase, self.config, data, self._taught_by, self._started_from)

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def _centres(phase: PhaseConfig, store: CentreStore, world: World, config: Config, soft: SoftTargets | None) -> Centres:
    trainable = phase.method.centre_kind == "trainable"
    optimizer = make_row_optimizer(store, phase.optimizer, phase.centres) if trainable else None
    return Centres(
        store, world, phase.method.scale, phase.centres, config.run.seed, optimizer, phase.accumulation,
        undoable=skipping(config), soft=soft,
    )  # fmt: skip
