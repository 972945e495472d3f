"""What a start of a run ran on, with which versions, and on what data: in result.json, and in `starts.json` at once.

starts.json: {"starts": [{"time", "world_size", "images", "identities", "commit", "version", "torch", "python",
"device", "device_type", "product_flops"}]}, one for each start of the run, so that a report can be made of a run that
goes on or has died. A file that cannot be read is begun anew.
product_flops: on the CPU, what one rank's threads reach in a float32 product, measured at the start; null on a device
whose maker says it.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from partialkd import __version__
from partialkd.context import STARTS, RunContext
from partialkd.errors import StorageError
from partialkd.storage.atomic_files import write_json

SIDE, TRIES = 768, 4  # of the product that is measured
_log = logging.getLogger(__name__)


def facts_of(context: RunContext) -> dict[str, Any]:
    """Collect what the run runs on."""
    world = context.world
    return {
        "world_size": world.size,
        "images": len(context.source),
        "identities": context.source.num_classes,
        "commit": commit(),
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else f"CPU, {os.cpu_count()} cores",
    }


def note_start(context: RunContext) -> None:
    """Add this start to starts.json; on rank 0. A disk that fails ends no run."""
    path, cuda = context.folder / STARTS, context.world.device.type == "cuda"
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts_of(context),
        "device_type": context.world.device.type,
        "product_flops": None if cuda else product_flops(),
    }
    try:
        write_json(path, {"starts": [*_before(path), facts]})
    except (OSError, StorageError) as error:
        _log.warning(f"{path}: not written: {error}")


def _before(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_bytes())["starts"]
        return [dict(one) for one in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _log.warning(f"{path}: cannot be read, and is begun anew: {type(error).__name__}")
        return []


def product_flops() -> float:
    """Measure what this process's threads reach in a float32 product, flop/s; some 50 ms."""
    a, out, seconds = torch.ones(SIDE, SIDE), torch.empty(SIDE, SIDE), []
    for _ in range(TRIES):  # the first one sets things up
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / min(seconds)


def commit() -> str:
    """Return the commit of this source tree, or "unknown" where it is not a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PARTIALKD_COMMIT", "unknown")
