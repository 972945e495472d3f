"""Memory per rank, bytes on the wire and the floor of the step time of one phase, from its configuration.

Counts what the code allocates, item by item: the store (unit rows, lengths, scales, seen, moments), the student with
its gradients and optimiser state as ZeRO shards them, DeepSpeed's buckets, activations (network_cost.py), the teacher,
what the sweep needs beside the store, and the batches that the loader reads ahead; copies for checkpoints and the
measuring of sweeps (overheads.py); bytes sent and flops (step_cost.py). With `centres.memory = "host"` the store is
counted apart, as memory of the host, and its two windows as the device's; without CUDA both are one. C classes, D
embedding, W ranks, R = rows of the largest shard, b local batch, N global batch of a micro-step.

Not counted: workspaces inside libraries and the allocator's fragments. CONTEXT_BYTES stands for CUDA's context and
NCCL's buffers. With activation checkpointing the true peak may be a quarter higher: what Python's garbage collector has
not met yet is still held.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from partialkd.centres.sampling import Sampling, block_rows
from partialkd.centres.sweeps.chunked import GRADIENTS_CHUNK, SUMS_CHUNK
from partialkd.centres.sweeps.chunks import ChunkSize
from partialkd.centres.sweeps.products import rounds
from partialkd.config import Config, DataConfig, ModelConfig, PhaseConfig
from partialkd.planner.network_cost import NetworkCost, network_cost
from partialkd.planner.overheads import captured_sums, checkpoint_copies, measuring_moves, measuring_sums
from partialkd.planner.soft_cost import soft_memory, teacher_row_bytes
from partialkd.planner.step_cost import FLOAT, flops_of, wire_of
from partialkd.planner.term_cost import term_bytes
from partialkd.teacher.network import GROUP
from partialkd.training.student import BUCKET
from partialkd.world.shard import shard_of

CONTEXT_BYTES = 1_500_000_000  # on CUDA
L2_BYTES = 50 << 20  # of an H100; the sweep asks the device
HALF = 2
SGD_COPIES, ADAMW_COPIES = 3, 10  # of a chunk of rows, in the row optimisers
STORE_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Plan:
    """What one rank needs, sends and computes: the rank with the most rows."""

    rows: int
    resident: dict[str, int]  # bytes held all the time, by item
    activations: int  # bytes held from the student's forward to its backward
    needs: dict[str, int]  # bytes beside both of these that one part of a step needs, by part
    update: dict[str, int]  # bytes that the movement of rows needs, when the activations are gone, by part
    backward: int  # most bytes of the student's forward and backward alone
    wire: dict[str, int]  # bytes that a rank sends in an optimiser step, by collective
    flops: dict[str, int] = field(default_factory=dict)  # of an optimiser step, by part
    host: dict[str, int] = field(default_factory=dict)  # bytes of the host's memory that a GPU's rank holds, by item
    copied: dict[str, int] = field(default_factory=dict)  # bytes between the two in an optimiser step, by direction

    @property
    def peak(self) -> int:
        """The most bytes that are held at once."""
        beside_activations = self.activations + max(self.needs.values(), default=0)
        return sum(self.resident.values()) + max(beside_activations, self.backward, *self.update.values())


@dataclass(frozen=True)
class Rows:
    """Rows of the largest shard."""

    all: int
    used: int  # about so many in a step
    together: int  # of them at most in one piece
    sampled: int  # never more in a step, of any rank: shards are cut without regard to blocks


@dataclass(frozen=True)
class Ranks:
    """What the phase runs on, and how."""

    size: int
    cuda: bool
    checkpoint_async: bool = False
    deterministic: bool = False
    clean_images: bool = False  # beside altered ones, for a teacher that runs with the student

    @classmethod
    def of(cls, config: Config, size: int, cuda: bool) -> Ranks:
        """The ranks of a run with this configuration."""
        live = config.teacher.cache is None and not config.teacher.embeddings_alone
        clean = live and config.teacher.sees == "clean" and bool(config.data.altering)
        return cls(size, cuda, config.run.checkpoint_async, config.run.deterministic, clean)


@dataclass(frozen=True)
class Beside:
    """Networks of ours that embed each batch beside the student, and the length of what they say together."""

    networks: tuple[ModelConfig, ...]
    dim: int

    @classmethod
    def of(cls, network: ModelConfig) -> Beside:
        """One network."""
        return cls((network,), network.embedding_dim)


def plan_phase(phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: Beside | None = None) -> Plan:
    """The plan of a phase for the rank with the most rows.

    teacher: what runs with the student; None where there is none or a cache of its embeddings.
    """
    local = phase.global_batch // phase.accumulation // ranks.size
    student = network_cost(phase.model, data.image_size, local, phase.precision, training=True)
    together = local if ranks.cuda else GROUP
    networks = teacher.networks if teacher else ()
    beside = [network_cost(one, data.image_size, together, "fp32", training=False) for one in networks]
    rows = -(-classes // ranks.size)
    shard = _rows(phase, classes, ranks.size)
    centre_items, needs, update = _centres(phase, shard, local * ranks.size, ranks)
    taught = teacher.dim if teacher else phase.model.embedding_dim
    needs["centres: sums"] += soft_memory(phase, local * ranks.size, taught, ranks.size)
    host: dict[str, int] = {}
    copied: dict[str, int] = {}
    if phase.centres.memory == "host":
        windows, copied = _windows(phase, shard, local, ranks.size)
        host, centre_items = (centre_items, windows) if ranks.cuda else ({}, centre_items | windows)
    twice = ranks.clean_images and phase.teacher_use == "every batch"
    batches = _batches(data, local, ranks.cuda) * (2 if twice else 1)
    resident = {**centre_items, **_student(phase, student, ranks.size), "batches": batches}
    if ranks.checkpoint_async:
        whole = student.parameters * FLOAT * (1 + _moments(phase)) + student.buffers
        locked = ranks.cuda and phase.centres.memory == "device"
        (host if ranks.cuda else resident).update(checkpoint_copies(phase, rows, whole, locked))
    if phase.teacher_rows:
        bytes_ = teacher_row_bytes(phase, STORE_BYTES[phase.centres.store], taught)
        resident["teacher's centres"] = rows * bytes_
    if beside:
        resident["teacher"] = sum(one.parameters * FLOAT + one.buffers for one in beside)
        needs["teacher forward"] = max(one.peak for one in beside)  # several run one after the other
    if relations := term_bytes(phase, data):
        needs["terms of the whole batch"] = relations
    if ranks.cuda:
        resident["CUDA context and NCCL (a guess)"] = CONTEXT_BYTES
    gradients = student.parameters * FLOAT  # are part of the traced backward, and of the resident items
    return Plan(
        rows=rows,
        resident=resident,
        activations=student.kept,
        needs=needs,
        update=update,
        backward=max(student.kept, student.peak - gradients),
        wire=wire_of(phase, student.parameters, local, ranks.size),
        flops=flops_of(phase, rows, local, ranks.size, ranks.cuda, student, beside, local / together),
        host=host,
        copied=copied,
    )


def bytes_a_row(phase: PhaseConfig) -> int:
    """Bytes that the store keeps per row, moments included."""
    return sum(_row_items(phase).values())


def _row_items(phase: PhaseConfig) -> dict[str, int]:
    dim, optimizer = phase.model.embedding_dim, phase.optimizer
    items = {"centres: rows": dim * STORE_BYTES[phase.centres.store], "centres: lengths and seen": FLOAT + 1}
    if phase.centres.store == "int8":
        items["centres: scales"] = FLOAT
    if phase.method.centre_kind == "trainable":
        moment = dim * STORE_BYTES[phase.centres.moments]
        if optimizer.name == "adamw":
            second = FLOAT if phase.centres.second_moment == "row" else moment
            items["centres: moments"] = moment + second + FLOAT
        elif optimizer.momentum:
            items["centres: moments"] = moment
    return items


def _rows(phase: PhaseConfig, classes: int, ranks: int) -> Rows:
    rows, rate = -(-classes // ranks), phase.centres.sample_rate
    if rate == 1:
        return Rows(rows, rows, rows, rows)
    block = block_rows(classes, rate)
    used = min(rows, int(rows * rate) + block)
    apart = rate <= 0.5 and phase.centres.memory == "device"
    together = min(used, 2 * block) if apart else used  # blocks of two groups may touch
    sampling = Sampling(classes, rate, seed=0)
    most = max(sampling.most_rows(shard_of(classes, rank, ranks)) for rank in range(ranks))
    return Rows(rows, used, together, most)


def _windows(phase: PhaseConfig, rows: Rows, local: int, ranks: int) -> tuple[dict[str, int], dict[str, int]]:
    """Two windows on the device, with room for every micro-step's own classes, and the bytes copied per step.

    Of the batch's classes a rank owns about `local` a micro-step; moving averages send back a row for every sample.
    """
    bytes_, own = bytes_a_row(phase), phase.accumulation * local
    ids = 8
    windows = {
        "centres: two windows": 2 * rows.sampled * (bytes_ + ids),
        "own classes in the windows": 2 * own * ranks * (bytes_ + ids),
    }
    there = int(rows.all * phase.centres.sample_rate + own * (1 - phase.centres.sample_rate))
    back = {"trainable": there, "ema": own * ranks, "fixed": 0}[phase.method.centre_kind]
    return windows, {"to the device": there * bytes_, "to the host": back * bytes_}


def _centres(
    phase: PhaseConfig, rows: Rows, batch: int, ranks: Ranks
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Items held all the time; what the first sweep needs; what the second one and its optimiser need.

    `batch`: N.
    """
    cuda, alone = ranks.cuda, phase.soft_term is None  # else all sums are made chunk by chunk, in one pass
    measuring = cuda and alone and not ranks.deterministic
    dim = phase.model.embedding_dim
    resident = {name: rows.all * bytes_ for name, bytes_ in _row_items(phase).items()}
    matrix = batch * dim * FLOAT
    both = 2 if phase.method.centre_kind == "ema" else 1  # which send the teacher's
    # Gathered, then split: x [and f_t]; x times the scale, O, the targets' rows, and the three of them side by side.
    chunk = _chunk(phase, batch, rows, SUMS_CHUNK, copies=1, cuda=cuda)
    sums, chunk_rows = (2 * both + 6) * matrix + chunk, _chunk_rows(phase, batch, SUMS_CHUNK, cuda)
    # x, x times the scale, O and a product to add to O.
    graph = captured_sums(phase, rows.all, chunk_rows, 4 * matrix + chunk, measuring) if cuda and alone else 0
    if graph:
        resident["centres: graph of the sums"] = graph
        sums -= chunk
    if phase.method.centre_kind == "ema":  # moved before: f_t - w and what becomes of it, w before and after
        sums = max(sums, (2 * both + 8) * matrix)
    needs, update = {"centres: sums": sums}, {}
    # Gathered, split, x times the scale, a product to add to O, and the O of two sweeps.
    if measuring and (measured := measuring_sums(phase, rows.sampled, (2 * both + 4) * matrix + chunk, bool(graph))):
        needs["centres: measuring the sweeps' sums"] = measured
    if phase.method.centre_kind == "trainable":
        copies = ADAMW_COPIES if phase.optimizer.name == "adamw" else SGD_COPIES
        moves = 2 * matrix + _chunk(phase, batch, rows, GRADIENTS_CHUNK, copies, cuda)
        update["gradients of rows"] = moves
        if measuring and (measured := measuring_moves(phase, rows.sampled, moves)):
            update["measuring both sweeps' movement of rows"] = measured
    return resident, needs, update


def _chunk(phase: PhaseConfig, batch: int, rows: Rows, size: ChunkSize, copies: int, cuda: bool) -> int:
    """Bytes of a chunk: its logits, and `copies` float32 copies of its rows, one more where the store is not float32.

    All but the gradient and what is multiplied with are copies of one piece at a time. Where rows are sampled, those of
    the batch that were not are listed, a chunk at a time: copies throughout, and where they move a second gradient and
    what the rows were before. Products of bfloat16 take copies of rows and logits on CUDA.
    """
    dim, other = phase.model.embedding_dim, phase.centres.store != "fp32"
    copied, most = _copied_bytes(phase, cuda), _chunk_rows(phase, batch, size, cuda)
    width = min(rows.used, most)
    gathered = other + (copies > 1)
    beside = width * dim * gathered + min(rows.together, width) * dim * max(0, copies - 2)
    if phase.centres.sample_rate < 1:
        listed = min(phase.accumulation * batch, most)
        before = dim + bytes_a_row(phase) // FLOAT if copies > 1 else 0
        beside, width = max(beside, listed * (dim * copies + before)), max(width, listed)
    bent = width * batch * (FLOAT + 1) * phase.method.bends  # df/dc, and where it is 1
    return (width * batch + beside) * FLOAT + copied * width * (batch + dim) + bent


def _chunk_rows(phase: PhaseConfig, batch: int, size: ChunkSize, cuda: bool) -> int:
    cache = L2_BYTES if cuda else 0
    usual = size.rows(cache, batch, phase.model.embedding_dim, FLOAT, _copied_bytes(phase, cuda))
    return phase.centres.chunk_rows or usual


def _copied_bytes(phase: PhaseConfig, cuda: bool) -> int:
    """Bytes per number of the copies that products work on."""
    return HALF if cuda and rounds(phase.centres.products, cuda) else 0


def _student(phase: PhaseConfig, cost: NetworkCost, ranks: int) -> dict[str, int]:
    """Bytes of weights, gradients and optimiser state per rank, as DeepSpeed's ZeRO keeps them in float32."""
    stage, whole = phase.zero_stage, cost.parameters * FLOAT
    share = -(-whole // ranks)
    items = {
        "student: weights": (share if stage == 3 else whole) + cost.buffers,
        "student: gradients": share if stage >= 2 else whole,
        "student: moments": _moments(phase) * (share if stage else whole),
    }
    if stage:
        bucket = BUCKET * FLOAT  # stage 3 takes it at once, the others no more than there is to reduce
        items["student: DeepSpeed's copies and buckets"] = share + (bucket if stage == 3 else min(bucket, whole))
    return items


def _moments(phase: PhaseConfig) -> int:
    """Numbers that the optimiser keeps per parameter of the student: moments, and the moving average if asked."""
    moments = 2 if phase.optimizer.name == "adamw" else int(phase.optimizer.momentum > 0)
    return moments + (phase.ema_decay is not None)


def _batches(data: DataConfig, local: int, cuda: bool) -> int:
    """Bytes of decoded images on the device: all that are read ahead on the CPU, the current ones on CUDA."""
    return local * 3 * data.image_size**2 * FLOAT * (1 if cuda else data.workers + 2)
