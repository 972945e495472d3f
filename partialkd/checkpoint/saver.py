"""Writing checkpoints, in the step or behind it.

In the background: `save` copies the snapshot to host memory (as much again as this rank writes) and returns; a thread
of each rank writes its files, and rank 0's publishes the checkpoint as soon as all ranks have told it, through the
store of the World, what they wrote. No thread calls a collective, and nobody waits for a thread but in `save` and
`wait`, where all ranks first agree that all have written: a rank that failed has told nobody, and one that died is met
by the collective, which has a timeout. Until then the checkpoint is invisible and the one before stands.

Errors: `CheckpointError` naming rank and file, on every rank: of a failure in the background at the next `save` or
`wait`. A failed save leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from partialkd.checkpoint.folder import Manifest, Target, open_target, publish
from partialkd.checkpoint.snapshot import Snapshot, Staging, check, everywhere, write_own
from partialkd.errors import CheckpointError
from partialkd.storage.atomic_files import discard
from partialkd.storage.tensor_file import Files, sums_from_json, sums_to_json
from partialkd.world.world import World

POLL_S = 0.05  # how often rank 0 looks whether the others have written
GRACE_S = 10.0  # how long `close` waits for a save that nobody has waited for


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `newest` so many, and the one with the lowest score."""

    newest: int
    best: bool = False


class Saver:
    """Writes the checkpoints of one run into `root`, a folder that all ranks see and that no other run uses."""

    def __init__(
        self, root: Path, world: World, keep: int, asynchronous: bool = False, keep_best: bool = False
    ) -> None:
        self.root, self.world, self.keep = root, world, Keep(keep, keep_best)
        self.asynchronous = asynchronous
        self._staging = Staging()
        self._pending: _Background | None = None

    def save(self, snapshot: Snapshot, score: float | None = None) -> Path:
        """Write a checkpoint, or begin to, collectively -> what it is or will be called.

        The snapshot's tensors may change once this returns. Raises what this save, or one before in the background,
        met. `score`: lower is better; with keep_best, the lowest one is kept beside the newest.
        """
        self.wait()
        world = self.world
        check(snapshot, score, world)
        doing = f"saving step {snapshot.step}"
        target = world.broadcast_object(
            everywhere(world, doing, lambda: open_target(self.root, snapshot.step) if world.is_main else None)
        )
        assert target is not None
        work = _Work(target, snapshot, score, self.keep, world)
        try:
            if self.asynchronous:
                copied = everywhere(world, doing, lambda: self._staging.copy(snapshot))
                self._pending = _Background(replace(work, snapshot=copied))
            else:
                files = everywhere(world, doing, work.write)
                everyone = world.gather_objects(files)
                everywhere(world, doing, lambda: work.publish(everyone))
        except CheckpointError:
            work.discard()
            raise
        return target.final

    def wait(self) -> None:
        """Wait until the last save is complete, collectively; CheckpointError on every rank if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        doing = f"saving step {pending.work.snapshot.step}"
        try:
            pending.told.wait()
            everywhere(self.world, doing, pending.check)  # from here on, everybody has told rank 0
            pending.join()
            everywhere(self.world, doing, pending.check)
        except CheckpointError:
            pending.abandon()
            pending.join()
            pending.work.discard()
            raise
        finally:
            pending.abandon()  # whatever else went wrong: a peer that died, say

    def close(self) -> None:
        """End, with the run, failed or not; not collective. A save in the background gets `GRACE_S` to end in."""
        if self._pending is not None:
            self._pending.join(GRACE_S)
            self._pending.abandon()
            self._pending = None


@dataclass(frozen=True)
class _Work:
    """One checkpoint to write, as one rank sees it."""

    target: Target
    snapshot: Snapshot
    score: float | None
    keep: Keep
    world: World

    def write(self) -> Files:
        return write_own(self.target.partial, self.snapshot, self.world.rank)

    def publish(self, everyone: list[Files]) -> None:
        """Publish the checkpoint, given the files of all ranks; on rank 0."""
        if self.world.is_main:
            files = {name: total for files in everyone for name, total in files.items()}
            snapshot = self.snapshot
            manifest = Manifest(snapshot.step, self.world.size, snapshot.num_classes, self.score, files)
            publish(self.target, manifest, self.keep.newest, self.keep.best)

    def discard(self) -> None:
        """Give the space back; the failure itself is what the caller must hear of."""
        if self.world.is_main:
            discard(self.target.partial)


class _Background:
    """A thread that does one rank's part of one save."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.told = threading.Event()  # set when this rank's files are written and rank 0 knows, or that failed
        self._abandoned = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread met."""
        if self._failure is not None:
            raise self._failure

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def abandon(self) -> None:
        """Do not wait for other ranks any more."""
        self._abandoned.set()

    def _run(self) -> None:
        try:
            files = self.work.write()
            if not self.work.world.is_main:
                self._tell(files)
            self.told.set()
            if self.work.world.is_main:
                self._publish(files)
        except Exception as error:  # raised by `check`, on the thread that asks
            self._failure = error
        finally:
            self.told.set()

    def _key(self, rank: int) -> str:
        return f"checkpoint/{self.work.target.partial.name}/{rank}"

    def _tell(self, files: Files) -> None:
        store = self.work.world.store
        assert store is not None
        store.set(self._key(self.work.world.rank), json.dumps(sums_to_json(files)))

    def _publish(self, own: Files) -> None:
        """When all other ranks have told; not at all once abandoned."""
        others, store = [self._key(rank) for rank in range(1, self.work.world.size)], self.work.world.store
        everyone = [own]
        for key in others:
            assert store is not None
            while not store.check([key]):
                if self._abandoned.wait(POLL_S):
                    return
            everyone.append(sums_from_json(json.loads(store.get(key))))
            store.delete_key(key)
        self.work.publish(everyone)
