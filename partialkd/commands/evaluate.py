"""`launch/evaluate.py`: any network file on any verification sets, alone or under torchrun.

MODEL is a .safetensors file that describes its network, a .pt, .pth or .h5 file (or a bare .safetensors) with
`--model` and the sizes that differ from the defaults, an .onnx file, a checkpoint (`<phase>/checkpoints/step_*`), or a
run folder: its finished student, its newest checkpoint where it was stopped, or what `--checkpoint` and `--phase`
choose. A foreign network is told apart by what it expects: size, mean, std and colour order of its input. Rank 0 prints
a table and, with `--json`, writes the same as JSON.
Errors: one line on the error output; status 2 for wrong options and a missing MODEL, 1 for everything else.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from prettytable import PrettyTable
from pydantic import ValidationError

from partialkd.checkpoint.network import checkpoint_network, chosen, is_checkpoint
from partialkd.commands.networks import add_choice
from partialkd.commands.protocols import (
    Network,
    add_protocols,
    check_card,
    judged,
    look_at_opened,
    make_card,
    opened,
)
from partialkd.commands.results import unwritable
from partialkd.config import DistConfig, EvaluateConfig, InputConfig, ModelConfig, TeacherConfig
from partialkd.errors import CheckpointError, ConfigError
from partialkd.evaluate.verification import compare_sets, evaluate_sets, look_at_sets, open_sets
from partialkd.evaluate.verification_tables import (
    differences_table,
    groups_table,
    over_groups,
    results_dict,
    results_table,
)
from partialkd.models.onnx_file import read_model
from partialkd.models.saved import read_description
from partialkd.storage.atomic_files import write_json
from partialkd.teacher.network import Teacher, open_teacher, wrap_teacher
from partialkd.world.command import CommandParser
from partialkd.world.launch import launched
from partialkd.world.messages import output
from partialkd.world.world import World

EXAMPLES = (
    "partialkd evaluate runs/quickstart/student/model.safetensors --sets data/lfw.bin",
    "partialkd evaluate teacher.onnx --sets data/lfw.bin --mean 0 --std 1 --json teacher.json",
    "torchrun --nproc-per-node=2 --no-python partialkd evaluate student.pt --model mobilefacenet --sets data/lfw.bin",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; the exit status."""
    options = _parser().parse_args(arguments)
    return launched(DistConfig(device=options.device), lambda world: _evaluate(options, world))


def _evaluate(options: argparse.Namespace, world: World) -> None:
    config, network, against, others = world.together(lambda: _opened(options, world))
    look_at_sets(config, network.image_size, options.resize, world, "--resize")
    look_at_opened(others, network.image_size, world)
    name = Path(options.file).name
    scores = evaluate_sets(network.embed, config, network.image_size, options.resize, world, "--resize")
    results = {set_name: {name: row} for set_name, row in scores.items()}
    if world.is_main and results:
        _show([results_table(results)])
    found: dict[str, Any] = {}
    if options.groups and results:
        found["groups"] = over_groups(scores)
        if world.is_main:
            _show([groups_table(found["groups"], name)])
    if against is not None:
        networks = (network.embed, network.image_size), (against.embed, against.image_size)
        found["differences"] = compare_sets(networks, config, options.resize, world)
        if world.is_main:
            _show([differences_table(found["differences"], name, Path(options.against).name)])
    judged_network = Network(name, network.embed, network.image_size, network.fingerprint)
    found |= judged(others, judged_network, world, lambda one: _show(one.tables))
    if options.card and (table := make_card(others, options, judged_network, world)):
        _show([table])
    if world.is_main and options.json:
        settings = config.model_dump(mode="json", exclude={"sets"})
        settings |= {"image_size": network.image_size, "resize": options.resize, "world_size": world.size}
        facts = {"model": options.file, "fingerprint": network.fingerprint, "settings": settings}
        write_json(Path(options.json), {**facts, **results_dict(results), **found})


def _show(tables: Sequence[PrettyTable]) -> None:
    output(*(line for table in tables for line in table.get_string().splitlines()))


def _opened(options: argparse.Namespace, world: World) -> tuple[EvaluateConfig, Teacher, Teacher | None, list[Any]]:
    """Everything that can be wrong before the first image is embedded; what costs least is looked at first."""
    config = _evaluate_config(options)
    if options.json and (problem := unwritable(Path(options.json))):
        raise ConfigError(f"--json {options.json}: {problem}")
    if not Path(options.file).exists():
        raise ConfigError(f"{options.file}: no such file")
    options.file = str(chosen(Path(options.file), options.checkpoint, options.phase))
    open_sets(config)
    check_card(options)
    others = opened(options)
    if not config.sets and not others:
        raise ConfigError("nothing to judge by: name --sets, --templates, --identify or --all-pairs")
    return config, open_network(options, world), _other_network(options, config, world), others


def _other_network(options: argparse.Namespace, config: EvaluateConfig, world: World) -> Teacher | None:
    if options.against is None:
        return None
    if not config.sets:
        raise ConfigError("--against compares on verification sets: name --sets")
    if not Path(options.against).exists():
        raise ConfigError(f"--against {options.against}: no such file")
    file = str(chosen(Path(options.against), options.checkpoint, options.phase))
    return open_network(argparse.Namespace(**{**vars(options), "file": file}), world)


def open_network(options: argparse.Namespace, world: World) -> Teacher:
    """Open the file or checkpoint as a frozen embedder; images are decoded at the size it expects."""
    if is_checkpoint(Path(options.file)):
        network, _, size = checkpoint_network(Path(options.file))
        return wrap_teacher(network, size, world.device)
    size = options.input_size or _described_size(options) or InputConfig().size
    named = {key: getattr(options, key) for key in ("mean", "std", "colour") if getattr(options, key) is not None}
    settings: dict[str, Any] = {"source": "checkpoint", "path": options.file}
    try:
        if named or options.file.endswith(".onnx") or _described_size(options) is None or options.input_size:
            settings["input"] = InputConfig(size=size, **named)
        if options.file.endswith(".onnx"):
            settings |= {"source": "onnx", "embedding_dim": options.embedding_dim or onnx_width(options.file)}
        elif options.model is None and _described_size(options) is None:
            rule = "does not say which network it holds: name it with --model, and the sizes that are not the default's"
            raise ConfigError(f"{options.file}: {rule}")
        elif options.model is not None:
            sizes = {key: getattr(options, key) for key in ("embedding_dim", "width", "depth")}
            given = {key: value for key, value in sizes.items() if value is not None}
            settings["model"] = ModelConfig(name=options.model, **given)
        return open_teacher(TeacherConfig(**settings), size, world.device)
    except ValidationError as error:
        raise _config_error(error) from error


def onnx_width(path: str) -> int:
    """Read how many numbers per image an ONNX file's only output declares."""
    shapes = _onnx_shapes(path, "output")
    if len(shapes) != 1 or len(shapes[0]) < 2 or not all(shapes[0][1:]):
        raise ConfigError(f"{path}: does not say how long its embedding is, give --embedding-dim; outputs {shapes}")
    return math.prod(shapes[0][1:])


def _onnx_shapes(path: str, side: Literal["input", "output"]) -> list[list[int]]:
    """Read the shapes of an ONNX file's inputs or outputs, 0 where the file leaves a size open."""
    try:
        values = getattr(read_model(Path(path)).graph, side)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in values]


def _described_size(options: argparse.Namespace) -> int | None:
    """Read the pixels per side of its input, as far as the file says."""
    if options.file.endswith(".onnx"):
        shapes = _onnx_shapes(options.file, "input")
        return (shapes[0][-1] or None) if shapes and len(shapes[0]) == 4 else None
    if options.model is not None or not options.file.endswith(".safetensors"):
        return None
    return read_description(options.file)[1]


def _evaluate_config(options: argparse.Namespace) -> EvaluateConfig:
    try:
        return EvaluateConfig(
            sets=tuple(options.sets),
            fars=tuple(options.fars or EvaluateConfig().fars),
            folds=options.folds,
            flip=options.flip,
            batch=options.batch,
        )
    except ValidationError as error:
        raise _config_error(error) from error


def _config_error(error: ValidationError) -> ConfigError:
    problems = (
        f"{'.'.join(map(str, one['loc'])) or 'model'}: {one['msg']}, got {one['input']!r}" for one in error.errors()
    )
    return ConfigError("; ".join(problems))


def _parser() -> argparse.ArgumentParser:
    defaults = EvaluateConfig()
    parser = CommandParser(examples=EXAMPLES, description="Score a network on verification sets.")
    parser.add_argument(
        "file", metavar="MODEL", help=".safetensors, .pt, .pth, .h5 or .onnx, a checkpoint or a run folder"
    )
    add_choice(parser)
    parser.add_argument("--sets", nargs="+", default=[], metavar="BIN", help="InsightFace .bin files")
    add_protocols(parser)
    groups = "mean, spread and worst over the --sets, which are groups (RFW)"
    parser.add_argument("--groups", action="store_true", help=groups)
    against = "a second network: how much better MODEL is on --sets, with paired intervals"
    parser.add_argument("--against", metavar="MODEL", help=against)
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    network = parser.add_argument_group("a file that does not describe its network")
    names = get_args(ModelConfig.model_fields["name"].annotation)
    network.add_argument("--model", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    network.add_argument("--embedding-dim", type=int, help="numbers of an embedding (default 512)")
    network.add_argument("--width", type=float)
    network.add_argument("--depth", type=float)
    network.add_argument("--input-size", type=int, help="pixels (default: as described, else 112)")
    network.add_argument("--mean", type=float, help="(pixel - mean) / std is its input (default 127.5)")
    network.add_argument("--std", type=float, help="(default 127.5)")
    network.add_argument("--colour", choices=("rgb", "bgr"), help="order of its channels (default rgb)")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--no-flip", dest="flip", action="store_false", help="do not add the mirrored image")
    protocol.add_argument("--resize", action="store_true", help="bring images of another size to the network's")
    protocol.add_argument("--folds", type=int, default=defaults.folds)
    protocol.add_argument("--fars", type=float, nargs="+")
    protocol.add_argument("--batch", type=int, default=defaults.batch, help="images a forward, per rank")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser
