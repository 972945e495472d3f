"""Identify a process for other processes: where it runs, when it began, and whether it still lives."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Place:
    """Where a process runs, and which one it is.

    system: equal for processes that see each other's numbers, "" where unknown (no /proc).
    """

    host: str
    pid: int
    born: str  # when the process began, in the system's ticks, since numbers are used again
    system: str
    token: str  # drawn anew by each call of `here`

    @classmethod
    def here(cls) -> Place:
        """The place of this process."""
        stat = _stat(os.getpid())
        system = _BOOT.read_text().strip() + os.readlink("/proc/self/ns/pid") if stat else ""
        return cls(socket.gethostname(), os.getpid(), stat[19] if stat else "", system, secrets.token_hex(8))

    def state(self) -> str:
        """Whether the process is "gone", "stopped" or "running", as far as this one can see; else "unknown"."""
        if not self.system or self.system != Place.here().system:
            return "unknown"
        stat = _stat(self.pid)
        if not stat and _is_hidden(self.pid):
            return "unknown"
        if not stat or stat[19] != self.born or stat[0] in "ZX":
            return "gone"
        return "stopped" if stat[0] == "T" else "running"


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, of another user, that this system does not show (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False  # it ended and another began between the two looks, or it may be looked at after all


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; empty if there is no such process, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
