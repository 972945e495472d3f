"""A claim on a folder: one job at a time writes to it, and another one can see who that is.

The claim on `<name>` is the file `.<name>.owner` beside it: on its first line a counter that the owner raises every
`BEAT_S` seconds, then, as JSON, who that is: host, process, its birth, since when, Slurm job. Another start
- takes over at once where the owner is seen to have ended (it ran on this machine), where it is the same Slurm job
  queued again, or where it is this one's predecessor (`heir_of`: ranks that torchrun starts again);
- takes over where the counter has stood still for `SILENCE_S` seconds of its own monotonic clock: an owner on another
  machine, or in another container. No clock of the owner's matters, so it may jump, and the two may differ;
- else is refused with `InUse`, which names the owner, or waits.
An owner whose claim was taken over (it was stopped, or cut off from the disk, for longer than that) ends at its next
beat, with the status of a failure, before it can write into what is no longer its own.

The file is made with O_EXCL, which shared file systems hold to as well. Errors: `StorageError` naming the file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from partialkd.errors import InUse, text_of
from partialkd.storage.atomic_files import followed, hidden_name, naming
from partialkd.storage.process import Place

BEAT_S = 5.0
SILENCE_S = 120.0
POLL_S = 0.5
SAY_S = 30.0  # how often a start that waits says so
_DIGITS = 20  # of the counter
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who holds a claim. `token`: drawn anew for each claim."""

    host: str = "an unknown machine"
    pid: int = 0
    born: str = ""
    system: str = ""
    token: str = ""
    since: str = "an unknown time"
    job: str = ""  # Slurm's number; with it, how often Slurm has queued it again
    restarts: int = 0

    @classmethod
    def here(cls) -> Owner:
        """This process, now."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
        return cls(**asdict(Place.here()), since=since, job=job, restarts=int(restarts) if restarts.isdigit() else 0)

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host} since {self.since}{job}"

    def state(self) -> str:
        """Whether the owner is "gone", "stopped" or "running", as far as this process can see; else "unknown"."""
        return Place(self.host, self.pid, self.born, self.system, self.token).state()

    def makes_way_for(self, other: Owner, heir_of: str) -> bool:
        """Whether it has ended for certain: seen to be gone, or it is an earlier start of the same job."""
        requeued = bool(self.job) and self.job == other.job and self.restarts < other.restarts
        return requeued or (bool(self.token) and self.token == heir_of) or self.state() == "gone"


@dataclass
class _Watch:
    """The time that an owner's counter has stood still, by this process's monotonic clock."""

    seen: tuple[str, str] | None = None  # token, counter
    since: float = field(default_factory=time.monotonic)
    moved: bool = False

    def look(self, owner: Owner, counter: str) -> None:
        before, self.seen = self.seen, (owner.token, counter)
        if before != self.seen:
            self.since = time.monotonic()
            self.moved = before is not None and before[0] == owner.token

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.since


class Claim:
    """A claim that is held, and kept alive by a thread until `release`."""

    def __init__(self, path: Path, owner: Owner, descriptor: int, lost: Callable[[str], None]) -> None:
        self.path, self.owner = path, owner
        self._descriptor, self._lost = descriptor, lost
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the claim up, so that others can take it."""
        self._done.set()
        self._thread.join()
        os.close(self._descriptor)
        found = _read(self.path)
        if found is not None and found[0].token == self.owner.token:
            with suppress(FileNotFoundError):
                self.path.unlink()

    def _beat(self) -> None:
        counter, failing = 0, False
        while not self._done.wait(BEAT_S):
            counter += 1
            try:
                os.pwrite(self._descriptor, _digits(counter), 0)
                os.fsync(self._descriptor)
                found, failing = _read(self.path), False
            except OSError as error:  # others may take over if this lasts; then the file says so
                if not failing:
                    _log.warning(f"{self.path}: cannot be written ({text_of(error)}); this may be taken for dead")
                found, failing = None, True
            if found is not None and found[0].token not in ("", self.owner.token):
                self._lost(f"{self.path}: {self.owner} was taken for dead, and {found[0]} has taken over")
                return


def claim(
    folder: Path,
    rule: str = "",
    heir_of: str = "",
    waiting_for: str = "",
    say: Callable[[str], None] | None = None,
) -> Claim:
    """Take the claim on a folder, which need not be there; its parent is made.

    rule: what a user can do where another job holds it. heir_of: the token of an owner that this start follows.
    waiting_for: wait for an owner that is alive, saying that it is doing this, instead of raising InUse.
    """
    folder = followed(folder)
    path = folder.with_name(f".{folder.name}.owner")
    mine, watch, said = Owner.here(), _Watch(), -SAY_S
    with naming(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    while (descriptor := _created(path, mine)) is None:
        found = _read(path)
        if found is None:  # released meanwhile
            continue
        owner, state = found[0], found[0].state()
        watch.look(*found)
        if owner.makes_way_for(mine, heir_of) or (state == "unknown" and watch.silent_s >= SILENCE_S):
            _remove(path, owner)
            continue
        alive = watch.moved or state in ("running", "stopped")
        if alive and not waiting_for:
            raise InUse(f"{folder}: in use by {owner}{', which is stopped' * (state == 'stopped')}; {rule}")
        begun = bool(owner.token) or watch.silent_s >= min(BEAT_S, SILENCE_S / 2)  # else it is just being written
        if begun and time.monotonic() - said >= SAY_S:
            doubt = "" if alive else f"; it is taken for dead after {SILENCE_S:g} s without a sign of life"
            (say or _log.info)(f"{folder}: waiting for {owner}{f', which is {waiting_for}' if alive else ''}{doubt}")
            said = time.monotonic()
        time.sleep(POLL_S)
    return Claim(path, mine, descriptor, _end)


@contextmanager
def claimed(folder: Path, rule: str = "", waiting_for: str = "") -> Iterator[Claim]:
    """Hold the claim on a folder inside the `with` block."""
    held = claim(folder, rule, waiting_for=waiting_for)
    try:
        yield held
    finally:
        held.release()


def _created(path: Path, owner: Owner) -> int | None:
    """A descriptor of the new claim, or None where there is one."""
    with naming(path):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        try:
            os.write(descriptor, _digits(0) + b"\n" + json.dumps(asdict(owner)).encode() + b"\n")
            os.fsync(descriptor)
        except OSError:  # a full disk: an empty claim would keep others waiting
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
    return descriptor


def _read(path: Path) -> tuple[Owner, str] | None:
    """Owner and counter; an owner without a token where the file is being written, or is damaged; None: no file."""
    try:
        counter, _, text = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        owner = Owner(**json.loads(text))
        if not isinstance(owner.pid, int) or not isinstance(owner.restarts, int):
            raise TypeError(f"pid {owner.pid!r}, restarts {owner.restarts!r}")
        return owner, counter.decode("ascii", "replace")
    except (ValueError, TypeError, RecursionError):
        return Owner(), counter.decode("ascii", "replace")


def _remove(path: Path, dead: Owner) -> None:
    """Take a dead owner's claim away. Of several starts that do so at once, the rename lets one."""
    aside = hidden_name(path)
    with naming(path, "removed"), _alone_in(path.parent):
        now = _read(path)
        if now is None or now[0].token != dead.token:  # another start was faster: it is its claim
            return
        try:
            os.replace(path, aside)
        except FileNotFoundError:
            return
        found = _read(aside)
        if found is not None and found[0].token != dead.token and not path.exists():
            os.replace(aside, path)  # another start took over in between: it is its claim
        else:
            aside.unlink()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lets one process after the other in, where the file system can do that: between a look and a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # shared file systems need not know it; there the rename decides
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _digits(counter: int) -> bytes:
    return f"{counter:0{_DIGITS}d}".encode()


def _end(text: str) -> None:
    """End this process at once: whatever it wrote now would go into another job's folder."""
    _log.error(f"{text}; this job ends")
    os._exit(1)
