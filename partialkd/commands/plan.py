"""`launch/plan.py`: will it fit, how many identities would, what does a step cost at least, and what would help.

Where neither --identities nor the data say how many there are, the plan is that of the most that fit. "At least" is
the largest of the times that nothing but its own device, link or direction can shorten: products, what is sent, what
is copied each way; as if all of it went on side by side.

Errors: one line on the error output and status 2 for wrong options or a wrong configuration; status 1 when a phase
does not fit.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from partialkd.commands.results import add_json, show
from partialkd.config import DataConfig, PhaseConfig, ProceduralConfig
from partialkd.config.load import load_config
from partialkd.data.formats.insightface_folder import PROPERTY
from partialkd.data.formats.property_file import read_property
from partialkd.errors import ConfigError
from partialkd.planner.advice import AT_ONCE, behind_the_step, identities_that_fit, phases, sampling, savings
from partialkd.planner.devices import DEVICES, Device
from partialkd.planner.plan import Plan, Ranks, plan_phase
from partialkd.world.command import CommandParser
from partialkd.world.launch import configured

EXAMPLES = (
    "partialkd plan configs/webface42m_adadistill_8gpu.toml --identities 2059906 --ranks 8 --device a100-80",
    "partialkd plan configs/ms1mv2_adadistill.toml --identities 85742 --memory 24GB student.centres.store=bf16",
    "partialkd plan configs/webface42m_adadistill_8gpu.toml student.centres.store=int8 --memory 80GB",
)

GB = 10**9
_NUMBER = r"(\d+(?:\.\d*)?(?:e\d+)?)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    options = _parser().parse_intermixed_args(arguments)
    config = configured(lambda: load_config(options.config, options.overrides))
    device = DEVICES[options.device]
    memory = options.memory or device.memory
    known = options.identities or configured(lambda: _classes(config.data))
    ranks = Ranks.of(config, options.ranks, cuda=True)
    facts: dict[str, Any] = {"device": options.device, "memory": memory, "ranks": ranks.size, "phases": {}}
    lines: list[str] = []
    for name, phase, teacher in phases(config):
        key = "student" if name.startswith("generation") else name
        configured(lambda phase=phase, key=key: _divisible(phase, ranks.size, key))  # type: ignore[misc]
        room = identities_that_fit(phase, config.data, ranks, teacher, memory)
        classes = known or max(room, ranks.size)
        plan = plan_phase(phase, config.data, classes, ranks, teacher)
        most = "" if known else ", the most that fit" if room else ", and not even these fit"
        lines += ["", f"{name}: {classes} identities{most}, on {ranks.size} x {options.device}, {_size(memory)} each"]
        lines += memory_table(plan, memory).get_string().splitlines()
        lines += cost_table(plan, device).get_string().splitlines()
        if freed := behind_the_step(phase, config.data, classes, ranks, teacher):
            lines.append(f"{AT_ONCE}: {_size(freed)} of the host's memory a rank less")
        beside = _beside(plan_phase(phase, config.data, room or 1, ranks, teacher))
        lines.append(f"room for {room} identities in all{beside}")
        for change, then in sampling(phase, config.data, classes, ranks, teacher):
            lines.append(f"most products are the centres'; {change}: {_least_text(then, device)}")
        if plan.peak > memory:
            advice = savings(phase, config.data, classes, ranks, teacher, memory)
            lines += _advice_lines(advice, memory, device)
        facts["phases"][name] = {"identities": classes, "room": room, **_facts(plan, memory, device)}
    fits = all(one["fits"] for one in facts["phases"].values())
    show(options.json, {"fits": fits, **facts}, *lines)
    return 0 if fits else 1


def _facts(plan: Plan, memory: float, device: Device) -> dict[str, Any]:
    """A plan in bytes, operations and seconds, as programs read it."""
    seconds = {"least_step_seconds": least_seconds(plan, device)}
    return {"fits": plan.peak <= memory, "peak": plan.peak, **seconds, **asdict(plan)}


def _advice_lines(advice: Iterable[tuple[str, Plan]], memory: float, device: Device) -> list[str]:
    lines = ["does not fit; what would help, one line at a time:"]
    for change, then in advice:
        fitting = ", fits" if then.peak <= memory else ""
        lines.append(f"  {change}: {_size(then.peak)} a rank{_beside(then)}, {_least_text(then, device)}{fitting}")
    return lines


def least_seconds(plan: Plan, device: Device) -> float:
    """The least seconds of an optimiser step, reached if everything that can go on side by side does."""
    products, sent = sum(plan.flops.values()) / device.flops, sum(plan.wire.values()) / device.link
    return max(products, sent, *(size / device.host for size in plan.copied.values()))


def memory_table(plan: Plan, memory: float) -> PrettyTable:
    """The items of a rank's memory and their peak."""
    table = PrettyTable(["memory of a rank", "GB"], align="r")
    table.align["memory of a rank"] = "l"
    for name, size in plan.resident.items():
        table.add_row([name, f"{size / GB:.3f}"])
    table.add_row(["activations of the student", f"{plan.activations / GB:.3f}"])
    for name, size in plan.needs.items():
        table.add_row([f"for a while: {name}", f"{size / GB:.3f}"])
    for name, size in plan.update.items():
        table.add_row([f"after the backward: {name}", f"{size / GB:.3f}"])
    table.add_row([f"peak, {100 * plan.peak / memory:.0f} % of the device", f"{plan.peak / GB:.3f}"])
    for name, size in plan.host.items():
        table.add_row([f"in the host's memory: {name}", f"{size / GB:.3f}"])
    return table


def cost_table(plan: Plan, device: Device) -> PrettyTable:
    """Work and traffic of an optimiser step, and the time below which it cannot be done.

    Products at the device's bfloat16 rate, whatever the precision: in float32 they take many times as long.
    """
    table = PrettyTable(["an optimiser step of a rank", "TFLOP or MB", "at least, ms"], align="r")
    table.align["an optimiser step of a rank"] = "l"
    for name, flops in plan.flops.items():
        table.add_row([f"products, as in bf16: {name}", f"{flops / 1e12:.3f}", f"{1000 * flops / device.flops:.2f}"])
    for name, size in plan.wire.items():
        table.add_row([f"sent: {name}", f"{size / 1e6:.1f}", f"{1000 * size / device.link:.2f}"])
    for name, size in plan.copied.items():
        table.add_row([f"copied beside it: {name}", f"{size / 1e6:.1f}", f"{1000 * size / device.host:.2f}"])
    table.add_row(["all of it side by side", "", f"{1000 * least_seconds(plan, device):.2f}"])
    return table


def _classes(data: DataConfig) -> int | None:
    """The number of classes: as the configuration says if it makes the data, else as the data do; None without data."""
    if data.source == "synthetic":
        return data.synthetic_identities
    if isinstance(data.prepare, ProceduralConfig):
        return data.prepare.identities
    path = Path(data.path) / PROPERTY
    return read_property(path)[0] if data.source == "recordio" and path.is_file() else None


def _beside(plan: Plan) -> str:
    return f" and {_size(sum(plan.host.values()))} of the host's memory a rank" if plan.host else ""


def _least_text(plan: Plan, device: Device) -> str:
    return f"a step at least {1000 * least_seconds(plan, device):.2f} ms"


def _divisible(phase: PhaseConfig, ranks: int, name: str) -> None:
    parts = phase.accumulation * ranks
    if phase.global_batch % parts:
        rule = f"must be divisible by accumulation x ranks ({phase.accumulation} x {ranks})"
        raise ConfigError(f"{name}.global_batch: {rule}, got {phase.global_batch}")
    if phase.global_batch == parts:
        rule = f"must leave every rank two images a micro-step ({parts} parts): BatchNorm needs a variance"
        raise ConfigError(f"{name}.global_batch: {rule}, got {phase.global_batch}")


def _size(size: float) -> str:
    return f"{size / GB:.2f} GB"


def parse_size(text: str) -> float:
    """Bytes of "80GB", "80GiB" or "141e9"."""
    found = re.fullmatch(rf"{_NUMBER}\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    if not found or (found[3] and not found[2]):
        raise argparse.ArgumentTypeError(f"must be a number of bytes like 80GB or 80GiB, got {text!r}")
    size = float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " ")
    if size < 1e6:
        raise argparse.ArgumentTypeError(f"must be at least a megabyte, e.g. 80GB, got {text!r}")
    return size


def parse_count(text: str) -> int:
    """The number that "2000000", "2_000_000", "2,000,000", "2M" or "2e6" says."""
    found = re.fullmatch(rf"{_NUMBER}\s*([kmg]?)", re.sub(r"(?<=\d)[_,](?=\d{3})", "", text.strip()), re.IGNORECASE)
    count = float(found[1]) * 1000 ** " kmg".index(found[2].lower() or " ") if found else 0.0
    if not 1 <= count <= 10**12 or count != int(count):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, like 2000000 or 2M, got {text!r}")
    return int(count)


def _parser() -> argparse.ArgumentParser:
    description = "Memory, traffic and least time of a run, before it waits in a queue."
    parser = CommandParser(examples=EXAMPLES, description=description)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument(
        "--identities",
        type=parse_count,
        help="e.g. 2M; instead of the number in the configuration or the data; with none of them, as many as fit",
    )
    parser.add_argument("--ranks", type=parse_count, default=8)
    parser.add_argument("--device", choices=DEVICES, default="h100-80")
    parser.add_argument("--memory", type=parse_size, help="of a rank, e.g. 80GB or 80GiB; instead of the device's")
    add_json(parser)
    return parser
