"""Is a machine, and every rank of a launch, fit for a run: what is looked at, in which order.

Each host is looked at by its first rank; links, clocks and products by all ranks together; then the configuration, as
`train --dry-run` does: data, labels, sets, networks, teacher with its accuracy; and what the planner says of memory.
Collective: every rank gets all findings.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from partialkd.cluster import folders, machine
from partialkd.cluster.findings import Finding, Verdict, attempted, judged
from partialkd.config import Config
from partialkd.data.images.decode import Wanted, decode
from partialkd.errors import PartialKDError, RankLost, printable
from partialkd.planner.advice import phases
from partialkd.planner.plan import Ranks, plan_phase
from partialkd.run.begin import Looked, look_at_job
from partialkd.run.folder import run_folder
from partialkd.world.links import clock_skew, hosts_of, measure_links, product_seconds
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

MOST_SKEW_S = 1.0
SLOW_RANK = 1.5  # times the median of all ranks
SAMPLED = 64  # images that are read and decoded


def examine(config: Config | None, world: World) -> list[Finding]:
    """Look at everything; without a configuration, at the machines alone."""
    hosts = hosts_of(world)
    host = socket.gethostname()
    first_here = hosts.index(host) == world.rank
    own = machine.look_at_machine(world.device, len(set(hosts)) > 1) if first_here else []
    if config is not None and first_here:
        own += _folders(config)
    found = [one for several in world.gather_objects([replace(one, host=host) for one in own]) for one in several]
    found += ranks_together(world)
    if config is not None:
        found += of_configuration(config, world)
    return found


def _folders(config: Config) -> list[Finding]:
    data = [Path(part.path) for part in config.data.parts] or [Path(config.data.path)]
    found = [_attempted("run folder", lambda: folders.room_and_write_speed("run folder", run_folder(config)))]
    if config.data.source == "synthetic":
        return found
    return found + [
        _attempted("data", partial(_data_folder, path, made=config.data.prepare is not None)) for path in data
    ]


def _attempted(name: str, look: Callable[[], Finding]) -> Finding:
    """Only the first rank of a host looks: what it meets is a finding, no error that the other ranks wait for."""
    return attempted(name, look, "what the run would meet there, too: mend it, or name another place")


def _data_folder(path: Path, made: bool) -> Finding:
    """made: the run makes data that are not there."""
    if path.exists():
        return folders.read_speed("data", path)
    if made:
        return folders.room_and_write_speed("data", path, "data.path")
    return judged("data", "bad", f"{path}: is not there", "data.path, or mount it on this host too")


# ----------------------------------------------------------------------------------------------- all ranks


def ranks_together(world: World) -> list[Finding]:
    """Look at links between ranks and hosts, clocks, and ranks that compute more slowly than others; collective."""
    if world.size == 1:
        return [judged("ranks", "good", "one; torchrun ... launch/doctor.py measures the links between several")]
    found = []
    for link in measure_links(world):
        said = f"{link.between} ({link.ranks}): latency {1e6 * link.latency_s:.0f} us, {link.bandwidth / 1e9:.2f} GB/s"
        facts: dict[str, Any] = {"between": link.between, "latency_s": link.latency_s, "bytes_per_s": link.bandwidth}
        found.append(judged("all-reduce", "good", said, **facts))
    return [*found, _clocks(clock_skew(world)), _products(product_seconds(world))]


def _clocks(skew: dict[str, float]) -> Finding:
    most = max(skew, key=lambda host: abs(skew[host]))
    verdict: Verdict = "doubtful" if abs(skew[most]) > MOST_SKEW_S else "good"
    said = f"at most {abs(skew[most]):.2f} s apart" + (f", {printable(most)}" if verdict != "good" else "")
    return judged("clocks", verdict, said, "set them by one source (chrony, ntp)", skew_s=skew)


def _products(seconds: list[float]) -> Finding:
    middle = median(seconds)
    slow = [rank for rank, one in enumerate(seconds) if one > SLOW_RANK * middle]
    said = f"a product of 512 x 512 takes {1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f} ms"
    mend = "what else runs there? every step waits for the slowest rank"
    named = f"; slow: rank {', '.join(map(str, slow))}" if slow else ""
    return judged("compute", "doubtful" if slow else "good", said + named, mend, seconds=seconds)


# ------------------------------------------------------------------------------------------- configuration


def of_configuration(config: Config, world: World) -> list[Finding]:
    """Look at what a run of this configuration would meet; collective. The run's folder is not touched."""
    looked: list[Looked] = []

    def look() -> None:
        with StopSignals() as stop:
            looked.append(look_at_job(config, world, "never", stop))

    problem = _problem(look)
    if problem:
        return [judged("configuration", "bad", problem, "docs/errors.md has each message, with what to do")]
    context, checked = looked[0].context, looked[0].checked
    source, scores = context.source, checked.scores
    found = [judged("labels", "good", f"{len(source)} images of {source.num_classes} identities, every label in range")]
    found.append(_images(looked[0], world))
    if scores:
        (name, first), *_ = scores.items()
        said = f"{100 * first.accuracy:.2f} % on {name}"
        found.append(judged("teacher", "good", said, accuracy={name: one.accuracy for name, one in scores.items()}))
    elif config.teacher.source != "none":
        trained = config.teacher.source == "train"
        said = "the run trains it" if trained else "cannot be judged: no set, or no network"
        found.append(
            judged("teacher", "good" if trained else "doubtful", said, "name a verification set in evaluate.sets")
        )
    return [*found, *_memory(config, source.num_classes, world)]


def _problem(look: Callable[[], None]) -> str | None:
    """What a user can act on; every rank meets it, or none. Ranks that are lost are no finding."""
    try:
        look()
    except RankLost:
        raise
    except PartialKDError as error:
        return str(error)
    return None


def _images(looked: Looked, world: World) -> Finding:
    """Read and decode some images, evenly spaced."""
    data, source = looked.context.config.data, looked.context.source
    wanted = Wanted(data.image_size, data.resize)
    count = min(SAMPLED, len(source))

    def look() -> None:
        for index in range(0, len(source), max(1, len(source) // count)):
            decode(source.read(index)[0], source.name(index), wanted=wanted)

    problem = world.on_main(lambda: _problem(look))
    mend = 'data.on_corrupt = "skip" leaves such records out; launch/pack.py names all of them'
    return judged("images", "bad" if problem else "good", problem or f"{count} of them decoded", mend)


def _memory(config: Config, classes: int, world: World) -> list[Finding]:
    cuda = world.device.type == "cuda"
    ranks = Ranks.of(config, world.size, cuda=cuda)
    room = min(world.gather_objects(_memory_here(world)))
    found = []
    for name, phase, teacher in phases(config):
        plan = plan_phase(phase, config.data, classes, ranks, teacher)
        fits: Verdict = "good" if plan.peak <= room else "bad"
        said = f"{name}: {plan.peak / 1e9:.2f} GB planned for a rank, {room / 1e9:.1f} GB free"
        mend = "launch/plan.py names what would lower it, and by how much"
        found.append(judged("memory", fits, said, mend, planned=plan.peak, free=room))
    return found


def _memory_here(world: World) -> int:
    """Bytes that a rank of this host can have."""
    if world.device.type == "cuda":
        return int(torch.cuda.mem_get_info(world.device)[0])
    text = Path("/proc/meminfo").read_text()
    free = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (most := limit.read_text().strip()).isdecimal():
        free = min(free, int(most))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
