"""Configurations of InsightFace's arcface_torch (`configs/*.py`), read as data, never executed, and written as ours.

Such a file is a Python program that sets keys of one dictionary: `config = edict()`, then `config.key = value`. It is
read with `ast`, and what is no value (numbers, texts, tuples, lists, arithmetic on numbers, keys set before) is an
error that names its line. `base.py` beside it comes first, as there; what neither sets is as in the published one.
Errors: `ConfigError` naming file, line and key, or key, rule and value.
Source: deepinsight/insightface, recognition/arcface_torch (utils/utils_config.py, configs/base.py, train_v2.py).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from partialkd.errors import ConfigError

NETWORKS = {
    **{f"r{depth}": f"iresnet{depth}" for depth in (18, 34, 50, 100, 200)},
    "mbf": "mobilefacenet", "mbf_large": "mobilefacenet_large",
    **{f"vit_{size[0]}{end}": f"vit_{size}" for size in ("tiny", "small", "base") for end in ("", "_dp005_mask_0")},
    "vit_t_dp005_mask0": "vit_tiny", "vit_b_dp005_mask_005": "vit_base",
}  # fmt: skip
PUBLISHED_BASE: dict[str, Any] = {
    "margin_list": (1.0, 0.5, 0.0), "network": "r50", "embedding_size": 512, "sample_rate": 1.0, "fp16": False,
    "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "frequent": 10, "dali": False,
    "gradient_acc": 1, "seed": 2048, "num_workers": 2, "warmup_epoch": 0, "verbose": 2000,
}  # fmt: skip
SCALE, MOMENTUM, CLIP = 64.0, 0.9, 5.0  # written into train_v2.py
USED = {
    *PUBLISHED_BASE, "rec", "num_epoch", "num_image", "num_classes", "val_targets", "momentum", "output", "resume",
    "save_all_states", "loss",
}  # fmt: skip
LOSSES = {"arcface": (1.0, 0.5, 0.0), "cosface": (1.0, 0.0, 0.4)}  # `loss` of 2021, before there was a margin_list


def _whole(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number of at least {least}", lambda value: type(value) is int and value >= least


def _list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(type(one) in kinds for one in value)


_FLAG = "True or False", lambda value: type(value) is bool
_TEXT = "a text", lambda value: type(value) is str
_RATE = "a number of at least 0", lambda value: type(value) in (int, float) and 0 <= value < float("inf")
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("batch_size", "embedding_size", "gradient_acc", "num_epoch"), _whole(1)),
    **dict.fromkeys(("num_image", "num_workers", "seed", "frequent", "verbose"), _whole(0)),
    **dict.fromkeys(("lr", "weight_decay", "sample_rate"), _RATE),
    "warmup_epoch": ("a number of at least 0, or -1 for none", lambda value: value == -1 or _RATE[1](value)),
    **dict.fromkeys(("rec", "network", "optimizer"), _TEXT),
    **dict.fromkeys(("fp16", "dali"), _FLAG),
    "loss": (" or ".join(map(repr, LOSSES)), lambda value: isinstance(value, str) and value in LOSSES),
    "margin_list": ("three numbers", lambda value: _list_of(int, float)(value) and len(value) == 3),
    "val_targets": ("a list of texts", _list_of(str)),
}
_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file's keys, over those of base.py beside it, over what is published in it."""
    base = path.with_name("base.py")
    below = _assigned(base) if base.is_file() and base.resolve() != path.resolve() else {}
    found = {**below, **_assigned(path)}
    for key, (rule, fits) in RULES.items():
        if key in found and not fits(found[key]):
            raise ConfigError(f"{path}: {key}: must be {rule}, got {str(found[key])[:80]!r}")
    if "loss" in found:
        found = {"margin_list": LOSSES[found["loss"]], **found}
    return {**PUBLISHED_BASE, **found}


def as_ours(settings: dict[str, Any], name: str, gpus: int, power: float = 1.0) -> dict[str, Any]:
    """Make the tree of a configuration of ours.

    gpus: how many it ran on, since its batch is that of one. power: of its polynomial schedule (2 until 2022).
    """
    network = settings["network"]
    if network not in NETWORKS:
        raise ConfigError(f"network: {network!r} is not here; there are {', '.join(NETWORKS)}")
    missing = [key for key in ("rec", "num_epoch") if key not in settings]
    if missing:
        raise ConfigError(f"{missing[0]}: is not set, neither in the file nor in base.py")
    accumulation = int(settings["gradient_acc"])
    schedule: dict[str, Any] = {"name": "poly", "power": float(power)}
    if settings["warmup_epoch"] > 0:
        if not settings.get("num_image"):
            raise ConfigError("num_image: must be set where there is a warmup_epoch, whose steps it says")
        each = settings["num_image"] // (settings["batch_size"] * gpus) // accumulation
        schedule["warmup_steps"] = int(each * settings["warmup_epoch"])
    student = {
        "epochs": settings["num_epoch"],
        "global_batch": settings["batch_size"] * gpus * accumulation,
        "accumulation": accumulation,
        "precision": "bf16" if settings["fp16"] else "fp32",
        "model": {"name": NETWORKS[network], "embedding_dim": settings["embedding_size"]},
        "method": _method(settings),
        "centres": {"sample_rate": float(settings["sample_rate"])},
        "optimizer": _optimizer(settings),
        "schedule": schedule,
    }
    drawn = settings["rec"] == "synthetic"
    data = {"source": "synthetic", "path": "data/synthetic"} if drawn else {"path": settings["rec"]}
    data |= {"loader": "dali" if settings["dali"] else "jpeg", "workers": max(1, int(settings["num_workers"]))}
    run = {"name": name, "seed": settings["seed"], "log_every": max(1, int(settings["frequent"]))}
    sets = [] if drawn else [f"{target}.bin" for target in settings.get("val_targets", ())]
    evaluate: dict[str, Any] = {"sets": sets, "every": settings["verbose"] if sets else 0}
    return {"run": run, "data": data, "student": student, "evaluate": evaluate}


def unused(settings: dict[str, Any]) -> list[str]:
    """Keys that are set and have no counterpart."""
    filtered = {"interclass_filtering_threshold"} if settings.get("interclass_filtering_threshold") else set()
    quiet = {key for key in settings if key.startswith(("wandb", "using_wandb", "suffix_", "save_artifacts"))}
    return sorted((set(settings) - USED - quiet - {"interclass_filtering_threshold"}) | filtered)


def _method(settings: dict[str, Any]) -> dict[str, Any]:
    m1, m2, m3 = (float(margin) for margin in settings["margin_list"])
    if m3 > 0:  # m2 is dropped there
        return {"name": "cosface", "scale": SCALE, "margin": m3}
    return {"name": "arcface", "scale": SCALE, "margin": {"m1": m1, "m2": m2, "m3": 0.0}}


def _optimizer(settings: dict[str, Any]) -> dict[str, Any]:
    shared = {"lr": float(settings["lr"]), "weight_decay": float(settings["weight_decay"]), "clip_norm": CLIP}
    if settings["optimizer"] == "sgd":
        return {"name": "sgd", "momentum": MOMENTUM, **shared}
    if settings["optimizer"] == "adamw":
        return {"name": "adamw", **shared}
    raise ConfigError(f'optimizer: must be "sgd" or "adamw", got {settings["optimizer"]!r}')


# ------------------------------------------------------------------------------------------------- reading


def _assigned(path: Path) -> dict[str, Any]:
    """The keys that a file sets, in its order."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"), filename=str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no Python file: {error}") from error
    found: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
            continue
        where = f"{path}: line {statement.lineno}"
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            raise ConfigError(f"{where}: must be config.<key> = <value>, got a statement that would have to be run")
        key = _key(statement.targets[0])
        if key is not None:
            found[key] = _value(statement.value, found, f"{where}: {key}")
        elif not _is_new_dictionary(statement):
            raise ConfigError(f"{where}: must be config.<key> = <value>, got another assignment")
    return found


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_new_dictionary(statement: ast.Assign) -> bool:
    """`config = edict()`."""
    target, value = statement.targets[0], statement.value
    named = isinstance(target, ast.Name) and target.id == "config"
    return named and isinstance(value, ast.Call) and not value.args and not value.keywords


def _key(target: ast.expr) -> str | None:
    """The key of `config.key` or `config["key"]`."""
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "config":
        return target.attr
    if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id == "config":
        index = target.slice
        return index.value if isinstance(index, ast.Constant) and isinstance(index.value, str) else None
    return None


def _value(node: ast.expr, found: dict[str, Any], where: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        return [_value(item, found, where) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(_value(node.operand, found, where), where)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = (_number(_value(side, found, where), where) for side in (node.left, node.right))
        try:
            return _OPERATIONS[type(node.op)](left, right)
        except (ArithmeticError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
    key = _key(node)
    if key is not None and key in found:
        return found[key]
    raise ConfigError(f"{where}: must be a value, got {ast.unparse(node)[:80]!r}, which would have to be run")


def _number(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: arithmetic must be on numbers, got {value!r}")
    return value
