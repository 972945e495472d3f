"""A run of InsightFace's arcface_torch goes on as one of ours: its checkpoint becomes a checkpoint of ours.

With `save_all_states` its rank r of W leaves `checkpoint_gpu_<r>.pt` at the end of every epoch: "epoch" (done),
"global_step", "state_dict_backbone", "state_dict_softmax_fc" (the rank's rows: `weight`), and "state_optimizer", of one
torch optimiser over the network's parameters in their order and, last, the rows. The network and its moments are
alike on all ranks, and are taken from rank 0's file; rows and their moments lie one after the other, in the order of
ranks (teacher/classifier.py). What is made of them does not depend on W, nor on the number of ranks that make it.

Taken over: network, running statistics (rank 0's: there they differ by rank), centres, the moments of both, the epoch.
Not taken over: the state of random numbers, and the loss scaling of fp16. The step is that of our epochs, which leave
the last incomplete global batch out.
Errors: `CheckpointError` naming the file, `ConfigError` naming the key; no run's folder has been touched then. Nothing
is unpickled but tensors and plain values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partialkd.centres.store import MOMENT, CentreStore
from partialkd.checkpoint.snapshot import Snapshot
from partialkd.config import Config, PhaseConfig
from partialkd.errors import CheckpointError, ConfigError
from partialkd.models.build import build_empty
from partialkd.models.foreign_files import why_unreadable
from partialkd.run.begin import look_at_job, prepare_job
from partialkd.run.first_centres import make_store
from partialkd.run.folder import owned_run
from partialkd.teacher.classifier import read_shards, taken
from partialkd.training.start import read_network
from partialkd.training.trainer import Trainer
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

FILE = "checkpoint_gpu_{}.pt"
NETWORK, ROWS, OPTIMIZER = "state_dict_backbone", "state_dict_softmax_fc", "state_optimizer"
# Their optimiser's moment -> ours of the rows; of the network the names are the same.
MOMENTS = {"sgd": {"momentum_buffer": "momentum"}, "adamw": {"exp_avg": "first", "exp_avg_sq": "second"}}


def take_over(config: Config, world: World, folder: Path) -> Path:
    """Begin the run of a configuration where the files end, collectively -> its checkpoint."""
    check_trains_the_same(config)
    with StopSignals() as stop, owned_run(config, world, stop):
        source = look_at_job(config, world, "never", stop).context.source
        part = world.together(lambda: check_parts(folder, config.student, config.data.image_size))
        state = world.together(lambda: _network(config, folder, source.num_classes))
        context = prepare_job(config, world, "never", stop).context
        store = make_store(context, config.student, None)
        trainer = Trainer("student", config.student, context, store, None)
        try:
            snapshot = world.together(lambda: _snapshot(folder, part, state, trainer))
            return trainer.begin_at(snapshot, folder)
        finally:
            trainer.close()


def check_trains_the_same(config: Config) -> None:
    """ConfigError where what the configuration trains has no counterpart there."""
    student = config.student
    if config.teacher.source != "none" or student.method.centre_kind != "trainable":
        raise ConfigError("student.method: must be one with trainable centres and no teacher (arcface, cosface)")
    given = [key for key in ("weights", "ema_decay") if getattr(student, key) is not None]
    given += ["centres.weights"] if student.centres.weights is not None else []
    given += ["centres.second_moment"] if student.centres.second_moment != "full" else []
    if given:
        raise ConfigError(f"student.{given[0]}: must be left out where a run of arcface_torch is taken over")


def _network(config: Config, folder: Path, classes: int) -> dict[str, Tensor]:
    """The state_dict of the network, which fits; CheckpointError also where there are too few rows."""
    shards = read_shards(folder)
    dim = config.student.model.embedding_dim
    found = (sum(map(len, shards)), shards[0].shape[1])
    if found != (classes, dim):
        rule = f"the rows of {classes} classes of {dim} numbers are wanted; its files, {len(shards)} of them, hold"
        raise CheckpointError(f"{folder}: {rule} {found[0]} of {found[1]}")
    return read_network(folder / FILE.format(0), config.student.model, config.data.image_size)


def read_part(path: Path) -> dict[str, Any]:
    """Read one rank's file."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged file raises many kinds
        raise CheckpointError(f"{path}: cannot be read: {why_unreadable(error, path)}") from error
    kinds = {"epoch": int, NETWORK: dict, ROWS: dict, OPTIMIZER: dict}
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: must hold {key!r}, as arcface_torch saves it with save_all_states")
    return dict(content)


def check_parts(folder: Path, phase: PhaseConfig, image_size: int) -> dict[str, Any]:
    """CheckpointError where the ranks' files do not go together, or have nothing to go on with -> rank 0's."""
    first, shards = read_part(folder / FILE.format(0)), read_shards(folder)
    parameters = sum(1 for _ in build_empty(phase.model, image_size).parameters())
    for rank, rows in enumerate(shards):
        path = folder / FILE.format(rank)
        content = first if rank == 0 else read_part(path)
        if content["epoch"] != first["epoch"]:
            found = f"is of the end of epoch {content['epoch']}, rank 0's file of {first['epoch']}"
            raise CheckpointError(f"{path}: {found}")
        kept = _moments_of(content, parameters, path).get(parameters, {})
        for theirs in MOMENTS[phase.optimizer.name]:
            _fitting(kept.get(theirs), rows, path)
    if not 0 < first["epoch"] < phase.epochs:
        found = f"is of the end of epoch {first['epoch']}, and student.epochs is {phase.epochs:g}"
        raise CheckpointError(f"{folder / FILE.format(0)}: {found}")
    return first


def _snapshot(folder: Path, first: dict[str, Any], state: dict[str, Tensor], trainer: Trainer) -> Snapshot:
    """All that the files say, as what a rank would have loaded of a checkpoint of ours."""
    path, phase, store = folder / FILE.format(0), trainer.phase, trainer.store
    epoch, kinds = first["epoch"], MOMENTS[phase.optimizer.name]
    trained = {name: value.requires_grad for name, value in trainer.student.network().named_parameters()}
    order = [name for name in state if name in trained]  # a module's parameters come before its buffers
    moments = _moments_of(first, len(order), path)
    student = {f"param.{name}": state[name] for name in trained}
    for place, name in enumerate(order):
        for kind in kinds if trained[name] else ():
            kept = moments.get(place, {}).get(kind)
            student[f"moment.{kind}.{name}"] = _fitting(kept, state[name], path)
    steps = epoch * (trainer.plan.micro_steps // phase.accumulation)
    student["counter.steps"] = torch.tensor(steps)
    buffers = {f"buffer.{name}": value for name, value in state.items() if name not in trained}
    centres = _centres(folder, store, kinds, len(order), steps)
    position = {"epoch": epoch, "samples": 0}
    return Snapshot(steps, student, buffers, centres, store.shard, store.num_classes, position)


def _centres(folder: Path, store: CentreStore, kinds: dict[str, str], place: int, steps: int) -> dict[str, Tensor]:
    """Put the rows of this rank into the store -> its tensors, with the moments off all files."""
    shards = read_shards(folder)
    mine = torch.arange(store.shard.start, store.shard.stop)
    store.replace(slice(0, len(mine)), taken(shards, mine).to(store.length))
    store.seen.fill_(True)
    tensors = dict(store.state())
    for theirs, ours in kinds.items():
        parts = []
        for rank, rows in enumerate(shards):
            path = folder / FILE.format(rank)
            parts.append(_fitting(_moments_of(read_part(path), place, path).get(place, {}).get(theirs), rows, path))
        if MOMENT + ours in tensors:
            tensors[MOMENT + ours] = taken(parts, mine).to(tensors[MOMENT + ours])
    if MOMENT + "count" in tensors:
        tensors[MOMENT + "count"] = torch.full_like(tensors[MOMENT + "count"], steps)
    return tensors


def _moments_of(content: dict[str, Any], parameters: int, path: Path) -> dict[int, dict[str, Any]]:
    """What the optimiser keeps of each parameter, by its place: the network's in their order, then the rows."""
    found = content[OPTIMIZER]
    groups = found.get("param_groups")
    places = [list(group.get("params", ())) for group in groups] if isinstance(groups, list) else []
    if places != [list(range(parameters)), [parameters]]:
        rule = f"must be over the {parameters} parameters of the network, and the rows"
        raise CheckpointError(f"{path}: its optimiser {rule}")
    state = found.get("state")
    return {place: kept for place, kept in state.items() if isinstance(kept, dict)} if isinstance(state, dict) else {}


def _fitting(moment: Any, like: Tensor, path: Path) -> Tensor:
    """A moment in float32; zeros where the optimiser has none yet, as torch would begin."""
    if moment is None:
        return torch.zeros(like.shape)
    if not isinstance(moment, Tensor) or moment.shape != like.shape:
        raise CheckpointError(f"{path}: a moment of its optimiser must be {tuple(like.shape)}, as what it is of")
    return moment.float()
