"""Phases of training on the pretend device, as a program of its own, also under torchrun, one rank a process.

    python -m helpers.pretend_cuda.phases FOLDER STAGE ...

Every case at every ZeRO stage, the further ones at the first: a phase is opened, takes STEPS steps, saves, resumes and
takes one more.
FOLDER/rank_<r>.json has, by "<stage>, <case>", the losses and what the log noted of opening and the first step
("first"), of the other steps ("steps"), and of what came after ("after").
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

STEPS = 3
IMAGE, DIM = 32, 16
EVERYTHING = {
    "crop": 0.5,
    "crop_shift": 0.2,
    "rand": 0.8,
    "colour": 0.5,
    "blur": 0.5,
    "low_resolution": 0.5,
    "occlusion": 0.5,
}
ADADISTILL, ARCDISTILL = ({"name": name, "scale": 16.0} for name in ("adadistill", "arcdistill"))
SAMPLED_IN_HOST = {"sample_rate": 0.25, "memory": "host"}
# By case: keys of the phase; "data": of the data; "kept": whether the teacher's embeddings are.
CASES: dict[str, dict[str, Any]] = {
    "trainable": {"method": {"name": "arcface", "scale": 16.0}},
    "moving averages": {"method": ADADISTILL, "data": {"augment": EVERYTHING}},
    "fixed": {"method": ARCDISTILL, "centres": {"store": "int8"}},
}
FURTHER: dict[str, dict[str, Any]] = {
    "trainable, sampled, AdamW": {
        "method": {"name": "arcface", "scale": 16.0},
        "centres": {"sample_rate": 0.25},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    },
    "moving averages, kept teacher": {"method": ADADISTILL, "kept": True},
    "moving averages, in host memory": {"method": ADADISTILL, "centres": SAMPLED_IN_HOST},
    "fixed, kd, bfloat16": {
        "method": ARCDISTILL,
        "terms": [{"name": "logit_kd"}],
        "centres": {"store": "bf16"},
        "precision": "bf16",
    },
}


def settings(folder: Path, stage: int, case: str) -> dict[str, Any]:
    """Give the whole configuration of a case."""
    from helpers.jobs import tree

    said = {**CASES, **FURTHER}[case]
    made = tree(folder, zero_stage=stage, **{key: value for key, value in said.items() if key not in ("data", "kept")})
    made["data"] |= {"image_size": IMAGE, "loader": "jpeg", **said.get("data", {})}
    made["run"] |= {"name": f"{stage}_{[*CASES, *FURTHER].index(case)}", "log_every": 100}
    del made["alone"]
    return made


class Kept:
    """A teacher's embeddings, made up."""

    dim, fingerprint = DIM, "made up"

    def rows(self, records: Any, flipped: Any) -> Any:
        """Give (b, D) on the CPU."""
        import torch

        return torch.sin(1.0 + records[:, None] * 2 + flipped[:, None] + torch.arange(DIM))


def run_case(world: Any, folder: Path, stage: int, case: str) -> dict[str, Any]:
    """Open, train, save and resume one phase."""
    from helpers.pretend_cuda.log import LOG
    from partialkd.config.load import parse_config
    from partialkd.context import RunContext
    from partialkd.data.packing.prepare import prepare
    from partialkd.data.sources.open import open_source
    from partialkd.training.trainer import Trainer
    from partialkd.world.stop_signals import StopSignals

    gc.collect()  # the engine of the case before waits for the device where it ends, which may be within a step of this
    LOG.clear()
    config = parse_config(settings(folder, stage, case))
    world.on_main(lambda: prepare(config.data))
    source, stop = open_source(config.data), StopSignals()
    context = RunContext(config, world, source, Path(config.run.folder) / config.run.name, stop)
    try:
        store = _store(config.student, source.num_classes, world)
        trainer = Trainer("student", config.student, context, store, _teacher(case, config, world))
        batches = iter(trainer.loader)
        losses = [trainer.micro_step(next(batches)).loss.detach()]
        noted = {"first": LOG.taken()}
        losses += [trainer.micro_step(next(batches)).loss.detach() for _ in range(STEPS - 1)]
        noted["steps"] = LOG.taken()
        trainer.save()
        trainer.saver.wait()
        trainer.resume()
        losses.append(trainer.micro_step(next(iter(trainer.loader))).loss.detach())
        trainer.student.network()
        noted["after"] = LOG.taken()
        trainer.close()
    finally:
        stop.forget()
    return noted | {"losses": [float(loss) for loss in losses]}


def _store(phase: Any, classes: int, world: Any) -> Any:
    import torch

    from partialkd.centres import CentreStore
    from partialkd.centres.store import DTYPES
    from partialkd.world.shard import shard_of

    shard, host = shard_of(classes, world.rank, world.size), phase.centres.memory == "host"
    device, dtype = torch.device("cpu") if host else world.device, DTYPES[phase.centres.store]
    store = CentreStore.random(shard, classes, DIM, dtype, device, seed=0)
    store.seen.fill_(True)
    return store


def _teacher(case: str, config: Any, world: Any) -> Any:
    import torch

    from partialkd.models import build_model
    from partialkd.teacher.network import wrap_teacher

    if {**CASES, **FURTHER}[case].get("kept"):
        return Kept()
    torch.manual_seed(1)
    return wrap_teacher(build_model(config.student.model, IMAGE), IMAGE, world.device)


def main() -> int:
    from helpers.pretend_cuda import install, on_pretend_device

    install()
    from partialkd.config import DistConfig
    from partialkd.world.world import World

    folder, *wanted = sys.argv[1:]
    stages = [int(one) for one in wanted if one.isdigit()]
    wanted_cases = [(stage, case) for stage in stages for case in CASES]
    wanted_cases += [(stages[0], case) for case in FURTHER] if "further" in wanted else []
    with on_pretend_device(), World.start(DistConfig(device="cuda")) as world:
        found = {f"{stage}, {case}": run_case(world, Path(folder), stage, case) for stage, case in wanted_cases}
        Path(folder, f"rank_{world.rank}.json").write_text(json.dumps(found), encoding="utf-8")
        world.barrier()
    return world.leave(0)


if __name__ == "__main__":
    sys.exit(main())
