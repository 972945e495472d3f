"""Imports point one way, some libraries belong to one module, and heavy ones wait until they are needed.

The rules are held over every module of partialkd/ and launch/, read with ast; a folder without a place fails.
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

# From the bottom up: what stands in a room imports from its own room and from those before it, at import time or inside
# a function. The package itself has `load`, which opens a network: it stands above the networks.
ROOMS = (
    "errors", "counter_random", "storage", "config", "world", "data", "centres", "models", "align", "evaluate",
    "checkpoint", "methods", "context", "teacher", "training", "planner", "export", "report", "run", "cluster",
    "commands",
)  # fmt: skip
DOOR = "models"  # what the package itself may import
AT_THE_TOP = {"errors.py", "counter_random.py", "context.py", "__init__.py", "__main__.py"}

# Library -> the modules that may name it, anywhere in their code.
OWNERS = {
    "torch.distributed": {"world.world", "world.launcher", "world.links"},
    "deepspeed": {"training.student"},
    "nvidia.dali": {"data.loading.dali"},
    "cv2": {"align.yunet", "export.opencv"},
    "h5py": {"models.keras.hdf5"},
    "lmdb": {"data.formats.lmdb_file"},
    "pyarrow": {"data.formats.arrow_file"},
    "msgpack": {"data.formats.lmdb_file"},
    "onnxruntime": {"models.onnx_session"},
    "openvino": {"export.openvino"},
    "ncnn": {"export.ncnn"},
    "litert_torch": {"export.litert"},
    "ai_edge_litert": {"export.litert"},
    "insightface": {"export.onnx_targets"},
    "triton": {
        "centres.sweeps.sum_kernel",
        "centres.sweeps.row_kernels",
        "centres.sweeps.term_kernel",
        "centres.sweeps.trial_kernel",
        "centres.update_kernels",
    },
    "matplotlib": {"report.plots"},
    "wandb": {"training.outlets"},
}
HEAVY = (
    "deepspeed",
    "nvidia.dali",
    "triton",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tensorboard",
    "matplotlib",
    "cv2",
    "h5py",
    "lmdb",
    "pyarrow",
    "openvino",
    "ncnn",
    "litert_torch",
    "ai_edge_litert",
    "insightface",
    "wandb",
)
# Themselves imported only inside functions, so that they may import at the top.
LAZY_MODULES = {"data.loading.dali", *OWNERS["triton"]}


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


def floor(module: str) -> int:
    """How high a module's room lies; the scripts of launch/ and `python -m partialkd` stand above all of them."""
    room = module.partition(".")[0]
    if room in ("launch", "__main__"):
        return len(ROOMS)
    if room and room not in ROOMS:
        raise AssertionError(f"partialkd.{module} is in no room: give its folder a place in ROOMS")
    return ROOMS.index(room or DOOR)


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
    up = [f"{m} -> {other}" for m in MODULES for other in sorted(imported(m)) if floor(other) > floor(m)]
    assert not up, "imports from a room above"


def test_no_circles() -> None:
    """Between modules, imports inside functions and for type checking included. CycleError shows the circle."""
    TopologicalSorter({module: imported(module) for module in MODULES}).prepare()


def test_no_subject_lies_in_the_hall() -> None:
    assert {path.name for path in (ROOT / "partialkd").glob("*.py")} <= AT_THE_TOP


def test_a_library_stays_with_its_module() -> None:
    wrong = [f"{module}, {what}" for module in MODULES for what in strangers(module, USES[module])]
    assert not wrong


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    for module in MODULES:
        early = {use.name for use in USES[module] if use.top and any(within(use.name, name) for name in HEAVY)}
        assert module in LAZY_MODULES or not early, f"{module} imports at its top: {sorted(early)}"
        lazy = imported(module, top_only=True) & LAZY_MODULES
        assert module in LAZY_MODULES or not lazy, f"{module} imports a lazy module at its top"


@pytest.mark.slow
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


def test_a_module_outside_the_rooms_is_found() -> None:
    with pytest.raises(AssertionError, match=r"partialkd\.database\.rows is in no room"):
        floor("database.rows")
    assert floor("data.order.plan") < floor("") < floor("methods") < floor("launch.train")
    assert floor("world.shard") == floor("world.world") < floor("centres.store")


def test_imports_of_every_kind_are_seen() -> None:
    """Inside functions, and for type checking only."""
    code = "if TYPE_CHECKING:\n    import partialkd.run.job\ndef f():\n    from partialkd.config import load"
    assert {use.name for use in uses(code)} == {"partialkd.run.job", "partialkd.config.load"}
