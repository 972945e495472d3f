"""What the study on real faces runs: every method and ablation by name, what it changes, and how a run is made of it.

A method's section, terms and sampler are those of configs/methods/; an ablation is a method with keys of its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faces_data import DIM, LARGER, OF_GREY, SIZE, TEACHER, sets_folder, train_folder

from partialkd.config import Config
from partialkd.config.load import parse_config

ROOT = Path(__file__).parents[1]
BATCH, STEPS, SEEDS = 128, 256, 3
MORE_STEPS = 4 * STEPS
ALONE = "alone"
FARS = (0.1, 0.01)
CORE = (ALONE, "arcdistill", "adadistill_alpha", "adadistill", "vanilla_l2", "margindistillation")  # of the hypotheses
METHODS = (
    *CORE, "vanilla_cosine", "cosdistill", "adadistill_cos", "kd", "rkd", "ekd", "unified", "margin_kd"
)  # fmt: skip


Tree = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One kind of run. changes: dotted keys below the configuration, and their values."""

    name: str
    method: str  # a file of configs/methods/
    data: str = "all"  # the training set
    changes: Tree = field(default_factory=dict)
    size: int = SIZE  # pixels per side
    steps: int = STEPS
    teacher: str = TEACHER  # whose file of embeddings


PUBLISHED: Tree = {"student.method.scale": 64.0}
PUBLISHED_ARC: Tree = {**PUBLISHED, "student.method.margin": 0.45}
PUBLISHED_MARGINS: Tree = {**PUBLISHED, "student.method.margin_min": 0.2, "student.method.margin_max": 0.5}
GREY: Tree = {"data.grey": 0.5}
CLEAN: Tree = {**GREY, "teacher.sees": "clean"}
ALL_GREY: Tree = {"data.grey": 1.0, "teacher.sees": "clean"}
COSINE_ALONE: Tree = {"student.method.scale": 1e-3}  # so that the loss over centres has no gradient to speak of
COSINE: Tree = {"student.terms": [{"name": "embedding", "weight": 10.0, "distance": "cosine"}]}


def _ablations() -> list[Case]:
    cases = [
        Case("adadistill, published", "adadistill", changes=PUBLISHED_ARC),
        Case("arcdistill, published", "arcdistill", changes=PUBLISHED_ARC),
        Case("margindistillation, published", "margindistillation", changes=PUBLISHED_MARGINS),
        Case("cosine alone", "vanilla_cosine", changes=COSINE_ALONE),
        Case("arcdistill with cosine", "arcdistill", changes=COSINE),
        Case("adadistill with cosine", "adadistill", changes=COSINE),
        Case("arcdistill, grey", "arcdistill", changes=GREY),
        Case("adadistill, grey, teacher sees clean", "adadistill", changes=CLEAN),
        Case("arcdistill with cosine, grey, teacher sees clean", "arcdistill", changes={**COSINE, **CLEAN}),
    ]
    for name, changes in (("adadistill", ALL_GREY), ("arcdistill with cosine", {**COSINE, **ALL_GREY})):
        method = name.partition(" ")[0]
        cases.append(Case(f"{name}, all grey, teacher sees clean", method, changes=changes))
        # The kept embeddings are those of the grey images, which all students see.
        cases.append(Case(f"{name}, all grey, teacher sees the same", method, changes=changes, teacher=OF_GREY))
    for data in ("20", "120", "1000"):
        for name in (ALONE, "arcdistill", "adadistill"):
            cases.append(Case(f"{name}, {data} identities", name, data))
        cases.append(Case(f"cosine alone, {data} identities", "vanilla_cosine", data, COSINE_ALONE))
    return [
        *cases,
        Case("alone, published", ALONE, changes={**PUBLISHED, "student.method.margin.m2": 0.5}),
        Case("alone, grey", ALONE, changes=GREY),
        Case("arcdistill, margin 0", "arcdistill", changes={"student.method.margin": 0.0}),
        Case("arcdistill, scale 16", "arcdistill", changes={"student.method.scale": 16.0}),
        Case("adadistill, margin 0", "adadistill", changes={"student.method.margin": 0.0}),
        Case("adadistill, scale 16", "adadistill", changes={"student.method.scale": 16.0}),
        Case("adadistill, random centres", "adadistill", changes={"student.method.initial_centres": "random"}),
    ]


RECIPES = ("adadistill, published", "arcdistill, published", "margindistillation, published")
SCALE_16 = ("arcdistill, scale 16", "adadistill, scale 16")  # contenders for a default
LONG = (ALONE, *RECIPES[:2], *SCALE_16)


def larger(name: str) -> str:
    """Name the case that is this one of `LARGER` pixels."""
    return f"{name}, {LARGER} px"


def longer(name: str) -> str:
    """Name the case that is this one of `MORE_STEPS` steps."""
    return f"{name}, {MORE_STEPS} steps"


def _of_larger(small: dict[str, Case]) -> list[Case]:
    """All methods, recipes as published, contenders for a default, and what else a scale could be."""
    return [
        *(small[name] for name in (*METHODS, *RECIPES, *SCALE_16)),
        Case("alone, scale 16", ALONE, changes={"student.method.scale": 16.0}),
        Case("alone, scale 8", ALONE, changes={"student.method.scale": 8.0}),
        Case("arcdistill, scale 8", "arcdistill", changes={"student.method.scale": 8.0}),
        Case("adadistill, scale 8", "adadistill", changes={"student.method.scale": 8.0}),
    ]


def _cases() -> list[Case]:
    small = {case.name: case for case in [*(Case(name, name) for name in METHODS), *_ablations()]}
    again = [replace(case, name=larger(case.name), size=LARGER) for case in _of_larger(small)]
    again += [replace(small[name], name=longer(name), steps=MORE_STEPS) for name in LONG]
    return [*small.values(), *again]


CASES = {case.name: case for case in _cases()}
AT_LARGER = tuple(name for name, case in CASES.items() if case.size == LARGER)
AT_LONGER = tuple(name for name, case in CASES.items() if case.steps == MORE_STEPS)


def tree_of(case: Case) -> Tree:
    """The configuration of a case, without the places of its files."""
    file = tomllib.loads((ROOT / "configs" / "methods" / f"{case.method}.toml").read_text(encoding="utf-8"))
    student = {key: value for key, value in file["student"].items() if key not in ("epochs", "global_batch")}
    student |= {"global_batch": BATCH, "epochs": 1.0, "max_steps": case.steps}
    sampler = {key: file["data"][key] for key in ("sampler", "images_per_identity") if key in file["data"]}
    data = {"source": "recordio", "path": "", "image_size": case.size, "workers": 1, "flip": False, **sampler}
    tree = {
        "run": {"name": "student", "log_every": 80, "checkpoint_every": 0, "tensorboard": False},
        "data": data,
        "student": student,
        "evaluate": {"fars": list(FARS), "flip": False},
    }
    if "teacher" in file:
        tree["teacher"] = {"source": "npz", "embedding_dim": DIM}
    for key, value in case.changes.items():
        put(tree, key.split("."), value)
    return tree


def put(tree: Any, keys: list[str], value: Any) -> None:
    """Set tree[a][b][c] for keys a, b, c; numbers index lists."""
    for key in keys[:-1]:
        tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
    tree[keys[-1]] = value


def settings_of(case: Case) -> str:
    """A digest of what makes the numbers of a case."""
    tree = {"data set": case.data, **tree_of(case)}
    if case.teacher != TEACHER:
        tree["teacher's file"] = case.teacher
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def config_of(case: Case, seed: int, work: Path, records: int) -> Config:
    """The configuration of a run: its epochs are as many steps as all runs have."""
    tree = copy.deepcopy(tree_of(case))
    train = train_folder(work, case.data, case.size)
    tree["run"] |= {"folder": str(work / "runs"), "seed": seed}
    tree["data"]["path"] = str(train)
    tree["student"]["epochs"] = case.steps / (records // BATCH)
    tree["evaluate"]["sets"] = [str(sets_folder(work, case.size) / f"{name}.bin") for name in ("lfw", "pubfig")]
    if "teacher" in tree:
        tree["teacher"]["path"] = str(train / f"{case.teacher}.npz")
    return parse_config(tree)


def planned() -> list[tuple[Case, int]]:
    """All runs by seed, methods of the hypotheses first; longer ones have two seeds."""
    runs = [(name, seed) for seed in range(SEEDS) for name in CORE]
    runs += [(name, seed) for seed in range(SEEDS) for name in CASES if name not in AT_LONGER]
    runs += [(name, seed) for seed in range(2) for name in AT_LONGER]
    return [(CASES[name], seed) for name, seed in dict.fromkeys(runs)]


def file_name(case: Case, seed: int) -> str:
    """Name the file of a run."""
    return f"{case.name.replace(', ', '-').replace(' ', '_')}-{seed}"
