"""What a rank takes beside its training: checkpoints written behind the step, a graph of sums, the measuring of sweeps.

`run.checkpoint_async` keeps a copy of all that a rank writes in host memory, from the first save on (snapshot.Staging):
of the centres where anything moves them, and on rank 0 of the student and its moments. What leaves a GPU goes to
page-locked memory, of which torch takes the next power of two for each tensor; what is in host memory already does not.
Not counted: the student's state as it is gathered for the copy, which is let go of after it, and is there for every
save, in the background or not.

`centres.backend = "graphed"` and "gemm" keep a CUDA graph of the sums, with the memory that they need
(centres.sweeps.graphed); "auto" does where that was the fastest, and is counted as if it were.

`centres.backend = "auto"` on CUDA works on copies of at most TUNING_ROWS rows when a shape comes up (sweeps.fastest),
in the first step of a phase unless an earlier run has kept what it found. Counted by the moment at which it holds most.
A run that has no room for it goes on with the chunked sweep. D embedding, N global batch of a micro-step; bytes.
"""

from __future__ import annotations

import torch

from partialkd.centres.row_optimizers import RowOptimizer, make_row_optimizer
from partialkd.centres.store import DTYPES, CentreStore
from partialkd.centres.sweeps.fused import KERNEL_TYPES, RULES, FusedSweep
from partialkd.centres.sweeps.graphed import MOST_CHUNKS
from partialkd.centres.sweeps.products import rounds
from partialkd.centres.sweeps.tuner import LEAST_ROWS, TUNING_ROWS
from partialkd.config import PhaseConfig
from partialkd.planner.step_cost import FLOAT

KERNELS_A_CHUNK, BYTES_A_KERNEL = 15, 10_000  # of a graph, about; what the driver takes (a guess)


def checkpoint_copies(phase: PhaseConfig, rows: int, student: int, locked: bool) -> dict[str, int]:
    """Bytes that rank 0 keeps for checkpoints written in the background, by part.

    student: bytes of its weights, moments and buffers; locked: centres leave a GPU.
    """
    copies = {"copy for checkpoints: student": student}
    if phase.method.centre_kind != "fixed":  # those are made again from the teacher
        sizes = [rows * x.nbytes for x in _one_row(phase)[0].state().values()]
        copies["copy for checkpoints: centres"] = sum(_power_of_two(size) if locked else size for size in sizes)
    return copies


def captured_sums(phase: PhaseConfig, rows: int, chunk_rows: int, sweep: int, measuring: bool) -> int:
    """Bytes of a CUDA graph of a shard's full sums, 0 where there is none.

    rows: of the shard; sweep: bytes that the sums need.
    """
    backend, chunks = phase.centres.backend, -(-rows // chunk_rows)
    chosen = backend == "auto" and measuring and rows >= LEAST_ROWS and not phase.method.bends
    wanted = backend in ("graphed", "gemm") or chosen
    sampled = phase.centres.sample_rate < 1 and backend != "gemm"  # whose graph takes a list of rows
    if not wanted or sampled or chunks > MOST_CHUNKS:
        return 0
    return sweep + chunks * KERNELS_A_CHUNK * BYTES_A_KERNEL


def measuring_sums(phase: PhaseConfig, sampled: int, sweep: int, graph: bool) -> int:
    """Bytes needed while the sweeps' sums are compared; 0 where they are not.

    `sampled`: most rows of a step; `sweep`: its needs; `graph`: whether one is measured, for the memory that it keeps.
    """
    store, _ = _one_row(phase)
    return sweep + _copied(phase, store, sampled) if _measured(phase, sampled, store, graph) else 0


def measuring_moves(phase: PhaseConfig, sampled: int, sweep: int) -> int:
    """Bytes needed while the movement of rows by both sweeps is compared; as `measuring_sums`.

    Both sweeps have rows to move as often as they like, and keep the way that others went (float32). The second one
    adds others that go, and takes the way from two matrices; then results are compared, in float32, with one more.
    """
    store, optimizer = _one_row(phase)
    if not _measured(phase, sampled, store) or phase.accumulation > 1 or not (optimizer and optimizer.rule in RULES):
        return 0
    state = store.state()
    tried = min(TUNING_ROWS, sampled)
    moving = tried * (sum(x.nbytes for x in state.values()) - store.seen.nbytes)
    matrix = tried * store.dim * FLOAT
    rounded = any(x.dtype == torch.bfloat16 for x in state.values())
    going = 3 * moving + matrix + max(sweep, 3 * matrix)
    comparing = 2 * moving + 2 * matrix + (3 if rounded else 1) * matrix
    return _copied(phase, store, sampled) + max(going, comparing)


def _measured(phase: PhaseConfig, sampled: int, store: CentreStore, graph: bool = False) -> bool:
    types = KERNEL_TYPES["bf16" if rounds(phase.centres.products, cuda=True) else "fp32"]
    another = graph or FusedSweep(1.0, types=types).takes(store)
    asked = phase.centres.backend == "auto" and not phase.method.bends  # bent negatives go to chunked
    return asked and sampled >= LEAST_ROWS and another


def _copied(phase: PhaseConfig, store: CentreStore, sampled: int) -> int:
    """Bytes of the copies of the first rows, one per sweep, where these rows do not lie next to each other."""
    apart = phase.centres.sample_rate < 1 and phase.centres.memory == "device"
    return 2 * min(TUNING_ROWS, sampled) * sum(x.nbytes for x in store.state().values()) if apart else 0


def _one_row(phase: PhaseConfig) -> tuple[CentreStore, RowOptimizer | None]:
    """A store of one row as the phase would keep it, with what moves it by gradient."""
    dim, dtype = phase.model.embedding_dim, DTYPES[phase.centres.store]
    store = CentreStore.empty(range(1), 1, dim, dtype, torch.device("cpu"))
    if phase.method.centre_kind != "trainable":
        return store, None
    return store, make_row_optimizer(store, phase.optimizer, phase.centres)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length() if size else 0
