"""The flight recorder: torch's list of this rank's last collectives, on the disk when one fails.

torch keeps the last `ENTRIES` collectives of a process. `enable`, before the process group is made, switches that on
and says where it goes; `dump` writes <folder>/rank_<rank>.json, oldest first, an object each:
`number` (counted alike on all ranks: the rank whose list ends first is the one that did not come), `operation`,
`shapes`, `asked` (seconds since 1970), `state` (on gloo always "scheduled") and `lines`, the Python lines that asked
for it, innermost first, without torch's own. NCCL's watchdog writes <folder>/rank_<rank> by itself when a collective
outlasts the timeout, before it ends the process; that is for torch's reader,
`python -m torch.distributed.flight_recorder.fr_trace <folder> --prefix rank_`, which in torch 2.13 fails on gloo's
lists: hence our own form.
What a user has set in the environment stands: TORCH_FR_BUFFER_SIZE = 0: no list; TORCH_FR_DUMP_TEMP_FILE: the prefix.
Errors: `dump` raises OSError from the disk; `note`, made for the text of another error, says it instead.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
import typing_extensions

from partialkd.errors import StorageError
from partialkd.storage.atomic_files import write_text

ENTRIES = 2000
FOLDER = "flight_recorder"  # in a run's folder
_TORCH = (os.path.dirname(torch.__file__), typing_extensions.__file__)  # the latter wraps what torch calls deprecated
_SIZE, _PREFIX = "TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE"
_OURS = "PARTIALKD_FR_PREFIX"  # the prefix that this module, and not the user, put into the environment


def enable(folder: Path | None = None) -> None:
    """Switch the recorder on; files go to `folder`, by default one in the system's temporary folder.

    Must first be called before the process group is made; called again it changes the folder only.
    """
    os.environ.setdefault(_SIZE, str(ENTRIES))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if os.environ.get(_PREFIX) == os.environ.get(_OURS):
        folder = Path(folder or Path(tempfile.gettempdir()) / f"partialkd_{FOLDER}_{os.getuid()}").absolute()
        if torch.cuda.is_available():
            folder.mkdir(parents=True, exist_ok=True)  # NCCL's watchdog would not make it; `dump` does
        os.environ[_PREFIX] = os.environ[_OURS] = f"{folder}/rank_"


def dump(path: Path | None = None) -> Path | None:
    """Write this rank's list -> its file (by default where `enable` said), or None if nothing was recorded."""
    collectives = _collectives()
    prefix = os.environ.get(_PREFIX)
    if not collectives or not (path or prefix):
        return None
    path = Path(path or f"{prefix}{os.environ.get('RANK', '0')}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "[\n" + ",\n".join(json.dumps(one) for one in collectives) + "\n]\n")
    return path


def note() -> str:
    """The last clause of an error about a collective: which came last on this rank, and where the list is, or ""."""
    try:
        path = dump()
    except (OSError, StorageError) as error:
        return f"; its last collectives could not be written: {error}"
    if path is None:
        return ""
    last = _collectives()[-1]
    lines = " < ".join(line.rpartition("/")[2] for line in last["lines"][:3])
    return f"; its last collective: number {last['number']}, {last['operation']}, at {lines}; the list: {path}"


def _collectives() -> list[dict[str, Any]]:
    """The recorded collectives, oldest first: of NCCL on CUDA, else of gloo."""
    recorder: Any = torch._C._distributed_c10d
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    taken = recorder._dump_nccl_trace() if on_cuda else recorder._dump_fr_trace()
    return [_described(entry) for entry in _Plain(io.BytesIO(taken)).load().get("entries", [])]


class _Plain(pickle.Unpickler):
    """The form in which torch hands its list over: dictionaries, lists, texts and numbers, no names to look up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in the list of collectives")


def _described(entry: dict[str, Any]) -> dict[str, Any]:
    lines = [
        f"{frame['filename']}:{frame['line']} {frame['name']}"
        for frame in entry["frames"]
        if not frame["filename"].startswith(_TORCH)
    ]
    return {
        "number": entry["collective_seq_id"],
        "operation": entry["profiling_name"],
        "shapes": entry["input_sizes"],
        "asked": entry["time_created_ns"] / 1e9,
        "state": entry["state"],
        "lines": lines,
    }
