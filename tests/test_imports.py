"""Imports point one way, some libraries belong to one module, and heavy ones wait until they are needed.

The rules are held over every module of partialkd/ and launch/, read with ast; a module that no layer names fails.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from helpers.places import ROOT

# From the bottom up: a module imports from its own layer and those below. The longest name that fits counts.
LAYERS = (
    (
        "",
        "errors",
        "config",
        "config_problems",
        "storage.atomic_files",
        "storage.process",
        "world.shard",
        "world.flight_recorder",
        "world.parent_death",
        "world.rendezvous",
        "config.load",
    ),
    ("world.world",),
    (
        "world.launch",
        "world.stop_signals",
    ),
    (
        "centres",
        "models",
        "data",
        "storage.sharded_file",
        "storage.tensor_file",
        "storage.made_folder",
        "counter_random",
        "teacher.loader",
        "teacher.embedded_records",
        "teacher.cache",
        "teacher.cache_writer",
        "teacher.onnx_network",
        "teacher.network",
        "data.ordered_threads",
        "data.formats.image_tree",
        "data.images.decode",
        "data.loading.ordered",
        "data.sources.source",
        "data.sources.synthetic",
        "data.formats.verification_bin",
        "data.formats.insightface_folder",
        "data.formats.pair_lists",
        "data.formats.record_index",
        "data.formats.recordio",
        "data.images.augment",
        "data.images.pixel_operations",
        "data.loading.dali",
        "data.loading.jpeg",
        "data.loading.loader",
        "data.loading.unreadable",
        "data.order.plan",
        "data.order.readahead",
        "data.order.orders",
        "data.packing.archive",
        "data.packing.verification_sets",
        "data.packing.face_drawing",
        "data.packing.face_traits",
        "data.packing.drawn_faces",
        "data.packing.pack",
        "data.packing.prepare",
        "data.sources.folder",
        "data.sources.identities",
        "data.sources.merged",
        "data.sources.insightface",
        "data.sources.open",
        "centres.row_filter",
        "centres.gathered",
        "centres.moving_average",
        "centres.sweeps.base",
        "centres.sweeps.choose",
        "centres.sweeps.reference",
        "centres.sweeps.tiles",
        "centres.device_io",
        "centres.row_memory",
        "centres.row_optimizers",
        "centres.host_memory",
        "centres.sweeps.chunks",
        "centres.sweeps.chunked",
        "centres.sweeps.fused",
        "centres.sweeps.graphed",
        "centres.sweeps.sum_kernel",
        "centres.sweeps.fastest",
        "centres.sweeps.products",
        "centres.sweeps.row_kernels",
        "centres.sweeps.tuner",
        "methods.margins",
        "models.mxnet.checkpoint",
        "models.mxnet.graph",
        "models.mxnet.params",
        "training.zero_values",
        "training.optimizer",
        "training.schedule",
        "commands.make_bin",
    ),
    ("methods",),
    (
        "planner",
        "evaluate",
        "teacher.classifier",
        "teacher.cache_pass",
        "teacher.centres",
        "checkpoint",
        "export.onnx",
        "training.progress",
        "training.student",
        "planner.overheads",
        "planner.network_cost",
        "planner.step_cost",
        "commands.evaluate",
        "commands.plan",
    ),
    (
        "training.silent_changes",
        "training.health",
        "training.nonfinite",
        "training.state",
        "run.out_of_memory",
    ),
    (
        "training.trainer",
        "run.folder",
    ),
    (
        "teacher.supervision",
        "context",
        "run.job",
        "commands.embed",
    ),
    ("launch",),
)

# Library -> the modules that may name it, anywhere in their code.
OWNERS = {
    "torch.distributed": {"world.world"},
    "deepspeed": {"training.student"},
    "nvidia.dali": {"data.loading.dali"},
    "triton": {"centres.sweeps.sum_kernel", "centres.sweeps.row_kernels"},
}
HEAVY = ("deepspeed", "nvidia.dali", "triton", "onnx", "onnxruntime", "onnxscript", "tensorboard", "matplotlib")
# Themselves imported only inside functions, so that they may import at the top.
LAZY_MODULES = {"data.loading.dali", "centres.sweeps.sum_kernel", "centres.sweeps.row_kernels"}


@dataclass(frozen=True)
class Use:
    """A dotted name that a module imports or reaches through an import; `top`: when the module itself is imported."""

    name: str
    top: bool
    line: int


def uses(source: str) -> list[Use]:
    return list(_uses(ast.parse(source), top=True))


def _uses(node: ast.AST, top: bool) -> Iterator[Use]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Use(alias.name, top, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute"
            yield from (Use(f"{child.module}.{alias.name}", top, child.lineno) for alias in child.names)
        elif isinstance(child, ast.Attribute) and (name := _dotted(child)):
            yield Use(name, top, child.lineno)
            continue
        elif isinstance(child, ast.Call) and _dotted(child.func) in ("importlib.import_module", "__import__"):
            yield from (Use(a.value, top, child.lineno) for a in child.args if isinstance(a, ast.Constant))
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _uses(child, top=False)
        else:
            yield from _uses(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def within(name: str, package: str) -> bool:
    return package == "" or name == package or name.startswith(f"{package}.")


def layer(module: str) -> int:
    found = [
        (len(name), level) for level, names in enumerate(LAYERS) for name in names if name and within(module, name)
    ]
    if module and not found:
        raise AssertionError(f"partialkd.{module} is in no layer: place it in LAYERS")
    return max(found)[1] if module else 0


def modules() -> dict[str, Path]:
    """`data.order` -> its file; launch/train.py is `launch.train`; the package itself is ``."""
    found = {_module(path, "partialkd"): path for path in sorted((ROOT / "partialkd").rglob("*.py"))}
    return found | {f"launch.{path.stem}": path for path in sorted((ROOT / "launch").glob("*.py"))}


def _module(path: Path, package: str) -> str:
    parts = path.relative_to(ROOT / package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = modules()
USES = {module: uses(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def imported(module: str, top_only: bool = False) -> set[str]:
    """Modules of ours that `module` imports: `partialkd.data.order.plan.Plan` counts as `data.order`."""
    names = {use.name for use in USES[module] if (use.top or not top_only) and within(use.name, "partialkd")}
    known = {name.removeprefix("partialkd").removeprefix(".") for name in names}
    return {_longest(name) for name in known} - {module}


def _longest(name: str) -> str:
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def strangers(module: str, found: list[Use]) -> list[str]:
    """What a module names although another owns it. The longest library that fits a name counts."""
    wrong = []
    for use in found:
        library = max((name for name in OWNERS if within(use.name, name)), key=len, default=None)
        if library and not any(within(module, owner) for owner in OWNERS[library]):
            wrong.append(f"line {use.line}: {use.name} belongs to {sorted(OWNERS[library])}")
    return wrong


def test_imports_point_down() -> None:
    up = [f"{m} -> {other}" for m in MODULES for other in sorted(imported(m)) if layer(other) > layer(m)]
    assert not up, "imports from a layer above"


def test_no_cycles() -> None:
    """Between modules, at import time. CycleError shows the cycle."""
    TopologicalSorter({module: imported(module, top_only=True) for module in MODULES}).prepare()


def test_a_library_stays_with_its_module() -> None:
    wrong = [f"{module}, {what}" for module in MODULES for what in strangers(module, USES[module])]
    assert not wrong


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    for module in MODULES:
        early = {use.name for use in USES[module] if use.top and any(within(use.name, name) for name in HEAVY)}
        assert module in LAZY_MODULES or not early, f"{module} imports at its top: {sorted(early)}"
        lazy = imported(module, top_only=True) & LAZY_MODULES
        assert module in LAZY_MODULES or not lazy, f"{module} imports a lazy module at its top"


def test_importing_everything_loads_nothing_heavy() -> None:
    ours = ["partialkd", *(f"partialkd.{name}" for name in MODULES if name and name.split(".")[0] != "launch")]
    light = [name for name in ours if name.removeprefix("partialkd.") not in LAZY_MODULES]
    heavy = [name for name in HEAVY if name != "triton"]  # a CUDA build of torch may bring it
    code = f"import sys\nfor name in {light}: __import__(name)\nprint([h for h in {heavy} if h in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("code", "name", "top"),
    [
        ("import torch.distributed as dist", "torch.distributed", True),
        ("from torch import distributed", "torch.distributed", True),
        ("import torch\ndef f(): torch.distributed.barrier()", "torch.distributed.barrier", False),
        ("try:\n    import deepspeed\nexcept ImportError: pass", "deepspeed", True),
        ("class A:\n    from nvidia import dali", "nvidia.dali", True),
        ("def f():\n    import triton.language", "triton.language", False),
        ("import importlib\nx = importlib.import_module('deepspeed')", "deepspeed", True),
        ("from torch.distributed.checkpoint import save", "torch.distributed.checkpoint.save", True),
    ],
)
def test_the_reader_finds_what_it_forbids(code: str, name: str, top: bool) -> None:
    assert name in {use.name for use in uses(code) if use.top == top}
    assert strangers("methods.margins", uses(code))


def test_owners_may_use_what_is_theirs_and_no_more() -> None:
    assert not strangers("world.world", uses("import torch.distributed as dist"))
    assert strangers("storage.sharded_file", uses("import torch.distributed.checkpoint as dcp"))
    assert strangers("checkpoint.load", uses("import torch.distributed as dist"))
    assert strangers("centres.sweeps.chunked", uses("import triton"))
    assert not strangers("methods.margins", uses("import torch.distributions"))


def test_a_module_outside_the_layers_is_found() -> None:
    with pytest.raises(AssertionError, match=r"partialkd\.database is in no layer"):
        layer("database")
    assert layer("data.order.plan") < layer("methods") < layer("launch.train")
    assert layer("world.shard") < layer("world.world") < layer("centres.store")
