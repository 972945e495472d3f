"""From the command line to an exit status: starts the world, runs the job, shows a failure once.

A wrong configuration is shown by rank 0. Of ranks that fail, the first shows its error: one line if it is the
input's fault, a traceback otherwise; the ranks that go down with it stay quiet, so that the cause is not buried.
Errors that another start would meet again (`PartialKDError.permanent`) end with status 2, and ranks that torchrun
starts again after one leave at once.

A collective that fails is another rank's doing. Each rank that it fails on reports so into the store, and the first
one waits `GRACE_S` for the others and names those that did not: dead, stopped or out of reach. Stopped ones of the
same machine are killed, so that they do not keep the job alive. On NCCL a collective that outlasts the timeout ends
the process from within (torch's watchdog), and torchrun names the rank (docs/gpu.md).
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from partialkd.config import DistConfig
from partialkd.errors import ConfigError, PartialKDError, Preempted, RankLost
from partialkd.storage import launcher_notes as notes
from partialkd.world import flight_recorder
from partialkd.world.command import FAILED, place_of, say_error
from partialkd.world.messages import begin, begun, rank
from partialkd.world.rendezvous import Membership, with_timeout
from partialkd.world.stop_signals import SIGNALS
from partialkd.world.world import World, collective_failed

T = TypeVar("T")
PERMANENT = "permanent"  # what ranks of the same torchrun tell the next ones
STATUS_FILE = "PARTIALKD_STATUS_FILE"  # in the environment: where a batch script looks for the status
WRONG_CONFIG, STOPPED = 2, 75  # 75: EX_TEMPFAIL, try again later
QUIET_S = 3.0  # a rank with nothing to say leaves this much later, so that rank 0 has said it
_log = logging.getLogger(__name__)
GRACE_S = 5.0  # how long the ranks may take to report that a collective failed, and the store to answer
_TASKS = (  # what launchers of many tasks say: how many there are, and which one this is
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("SLURM_NTASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"),
)  # fmt: skip


def configured(load: Callable[[], T]) -> T:
    """Return what `load` returns, or end the process with status 2 when rank 0 has shown the error."""
    try:
        begin_once()
        return load()
    except ConfigError as error:
        if rank() == 0:
            note_permanent()
            if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":  # else it has been said
                say_error(error)
        else:
            time.sleep(QUIET_S)  # torchrun ends all ranks when the first one ends
        raise SystemExit(WRONG_CONFIG) from None


def begin_once() -> None:
    """Set up messages in a program that did not begin with world/command.py."""
    if not begun():
        begin()


def launched(config: DistConfig, body: Callable[[World], Any], goes_on: Sequence[str] = ()) -> int:
    """Run `body` on every rank -> exit status. `goes_on`: what to add to the command to go on after a stop."""
    begin_once()
    try:
        refuse_tasks_that_are_no_ranks()
    except ConfigError as error:
        if next((os.environ[place] for _, place in _TASKS if place in os.environ), "0") == "0":
            say_error(error)
        return WRONG_CONFIG
    try:
        world = World.start(config)
    except RankLost as error:
        say_error(error)
        return FAILED
    if world.remembers(PERMANENT):  # torchrun starts ranks again whatever they ended with
        return world.leave(WRONG_CONFIG)
    try:
        with world:
            body(world)
    except Preempted as stop:
        if world.is_main:
            _log.warning(str(stop))
            say_how_to_go_on(goes_on)
        return world.leave(STOPPED)
    except Exception as error:
        permanent = isinstance(error, PartialKDError) and error.permanent
        if permanent and world.is_main:
            world.remember(PERMANENT)
            note_permanent()
        explain(error, world)
        return world.leave(WRONG_CONFIG if permanent else FAILED)
    return world.leave(0)


def note_permanent() -> None:
    """Tell a batch script, which sees nothing but torchrun's status, that starting the job again is of no use."""
    if STATUS_FILE in os.environ:
        Path(os.environ[STATUS_FILE]).write_text(f"{WRONG_CONFIG}\n")


def refuse_tasks_that_are_no_ranks() -> None:
    """ConfigError where srun or mpirun started several tasks without torchrun: each would be a whole job of its own."""
    key = next((key for key, _ in _TASKS if key in os.environ), None)
    count = os.environ[key] if key and "RANK" not in os.environ else "1"
    if count.isdigit() and int(count) > 1:
        rule = "each would train all of it by itself; start one torchrun per node, as launch/slurm/train.sbatch does"
        raise ConfigError(f"{key} is {count}, but these {count} tasks are not joined (no RANK): {rule}, or one task")


def explain(error: Exception, world: World) -> None:
    """Show the error if this rank is the first to fail; never waits for a rank that is gone."""
    members = world.members
    if members is None or world.size == 1:
        show(error, world)
        return
    for number in SIGNALS:  # torchrun ends the others when the first one has left, and this one is to say why
        signal.signal(number, signal.SIG_IGN)
    first = with_timeout(GRACE_S, members.report_failure)
    if collective_failed(error) or isinstance(error, RankLost):
        error = lost(error, world, members, first)
        with_timeout(GRACE_S, members.kill_stopped)
    if first is not False:
        show(error, world)


def lost(error: Exception, world: World, members: Membership, first: bool | None) -> Exception:
    """Make the error of a collective name the ranks that caused it; `first`: None where the store does not answer."""
    if first is False:
        return error
    suspects = with_timeout(3 * GRACE_S, lambda: members.describe(members.without_report(GRACE_S))) if first else None
    if suspects is None:
        cause = (
            f"the store on {os.environ['MASTER_ADDR']} does not answer: its machine, its launcher or the link is down"
        )
    elif suspects:
        cause = f"no report from {suspects}"
    else:
        cause = "every rank is there: a link between them broke, or one was slower than dist.timeout_s"
    said = re.sub(r"^\[[^]]*\] ", "", str(error).strip().splitlines()[0]).split(". ")[0]  # without torch's source file
    if not isinstance(error, RankLost):
        said = f"rank {world.rank} of {world.size}: a collective failed in {place_of(error)}: {said}"
    return RankLost(f"{said}; {cause}" + flight_recorder.note())


def show(error: Exception, world: World) -> None:
    """Show on the error output what a user can act on, or where the program failed."""
    say_error(error, f"rank {world.rank} of {world.size}")


def say_how_to_go_on(options: Sequence[str]) -> None:
    """The last line of a stopped run: the command that goes on with it, unless the launcher says it later still."""
    if options and notes.launched():
        notes.note_stopped(options)
    elif options:
        print(f"to go on: {command_again(options)}", file=sys.stderr, flush=True)


def command_again(options: Sequence[str]) -> str:
    """The command line of this process, or of torchrun where it started it, as a shell takes it, with `options`.

    options: an option and its value, if it takes one, instead of those that it has in the command line.
    """
    words = [sys.executable, *sys.argv]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(OSError):  # elsewhere than on Linux
            words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return shlex.join(notes.with_options(words, options))
