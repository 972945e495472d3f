"""Trainings of README, docs and config headers, cut down through their own command lines: two steps of small networks.

Data and teachers that they name are stood in for by small ones. (configs/methods: tests/benchmarks.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from helpers.page_commands import PLACEHOLDERS, TRAININGS, WRITTEN_BEFORE, Command, arguments_of, name_of
from helpers.places import ROOT
from helpers.ranks import run
from partialkd.config import ModelConfig
from partialkd.config.load import load_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.images.encode import encode_jpeg
from partialkd.models import build_model
from partialkd.run import job as module
from partialkd.world.world import World

SIZE, PEOPLE = 112, 6
TEACHER = {"name": "iresnet18", "embedding_dim": 512, "width": 0.125}
# What they go on from or read is another command's result: an earlier run, a cache, another program's classifier.
ELSEWHERE = {
    "runs/first": "tests/run/test_start_from_weights.py",
    "caches/r50": "tests/teacher/test_cached_teaching.py",
    "work_dirs/ms1mv3_r100": "tests/run/test_start_from_weights.py",
}


def runs_here(command: Command) -> bool:
    arguments = arguments_of(command)
    made = command.words[command.words.index("make") + 1] if "make" in command.words else None
    script = next((word for word in command.words if word.startswith("launch/")), "launch/train.py")
    needs = any(word.partition("=")[2].startswith(place) for word in arguments for place in ELSEWHERE)
    return (
        made in (None, "train")
        and script == "launch/train.py"
        and not needs
        and not {"--dry-run", *WRITTEN_BEFORE} & set(arguments)  # tests/commands/test_dry_run.py
        and not any("configs/methods/" in word for word in arguments)
    )


def words_of(command: Command) -> tuple[str, ...]:
    return tuple(word for word in arguments_of(command) if word not in PLACEHOLDERS)


ALIKE = {words_of(command): command for command in TRAININGS if runs_here(command)}  # launchers and ranks aside


def faces(people: range) -> dict[str, bytes]:
    """Four pictures of noise of each, as paths -> JPEG."""
    draw = np.random.default_rng(people.start)
    names = [f"person_{who}/{number}.jpg" for who in people for number in range(4)]
    return {name: encode_jpeg(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for name in names}


def onnx_teacher(path: Path) -> None:
    """Means of 16 x 16 pixels and one product: 128 numbers."""
    weight = np.random.default_rng(0).normal(size=(147, 128)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    rows = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 128])
    graph = helper.make_graph(nodes, "g", [images], [rows], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    trained, others = faces(range(PEOPLE)), faces(range(PEOPLE, 2 * PEOPLE))
    for place, files in (("pubfig", trained), ("lfw", others)):
        for path, encoded in files.items():
            (folder / place / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / place / path).write_bytes(encoded)
    labelled = ((encoded, int(path.split("/")[0].removeprefix("person_"))) for path, encoded in trained.items())
    pack_records(folder / "data", labelled, PEOPLE, SIZE)
    names = list(others)
    same = [(names[4 * k], names[4 * k + 1], 1) for k in range(PEOPLE)]
    different = [(names[4 * k], names[(4 * k + 5) % len(names)], 0) for k in range(PEOPLE)]
    pairs = [pair for both in zip(same, different, strict=True) for pair in both]
    (folder / "lfw_pairs.csv").write_text("a,b,same\n" + "".join(f"{a},{b},{is_same}\n" for a, b, is_same in pairs))
    images = [others[path] for first, second, _ in pairs for path in (first, second)]
    for name in ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw"):
        write_bin(folder / "data" / f"{name}.bin", images, [bool(is_same) for *_, is_same in pairs])
    torch.manual_seed(0)
    torch.save(build_model(ModelConfig.model_validate(TEACHER), SIZE).state_dict(), folder / "teacher.pt")
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(PEOPLE, 512)).astype(np.float32))
    onnx_teacher(folder / "teacher.onnx")
    return folder


def cut_down(tree: dict[str, Any], stage: Path, out: Path) -> list[str]:
    """Overrides that make a configuration small; `tree`: what it is without them."""
    cut = [f"run.folder={out}", "dist.device=cpu", "data.loader=jpeg", "data.workers=1"]
    cut += ["run.tensorboard=false", "run.report=false", "evaluate.folds=2", "evaluate.fars=[0.5]"]
    phases = [name for name in ("student", "alone") if tree.get(name)]
    for key in phases + ["teacher.train"] * (tree["teacher"]["source"] == "train"):
        phase = tree["teacher"]["train"] if key == "teacher.train" else tree[key]
        cut += [f"{key}.{what}" for what in ("max_steps=2", "global_batch=8", "precision=fp32", "zero_stage=0")]
        cut += [f"{key}.accumulation=1", f"{key}.model.width=0.25", f"{key}.schedule.warmup_steps=0"]
        cut += [f"{key}.model.depth=0.1"] if phase["model"]["name"] != "mobilefacenet" else []
    prepare = tree["data"].get("prepare")
    if prepare and prepare["kind"] == "procedural":
        small = {"identities": PEOPLE, "images_per_identity": 4, "held_out_identities": 4, "pairs": 20}
        cut += [f"data.path={out}/data", *(f"data.prepare.{key}={value}" for key, value in small.items())]
        cut += ["data.image_size=32"]
    elif prepare:
        cut += [f"data.path={out}/data", f"data.prepare.images={stage}/pubfig", "data.prepare.min_images=1"]
        cut += [f"data.prepare.pairs_images={stage}/lfw", f"data.prepare.pairs={stage}/lfw_pairs.csv"]
    else:
        cut += [f"data.path={stage}/data"]
    if tree["teacher"]["source"] == "onnx":
        cut += [f"teacher.path={stage}/teacher.onnx", "teacher.accept=true"]
    elif tree["teacher"]["source"] == "checkpoint":
        model = ", ".join(f"{key} = {json.dumps(value)}" for key, value in TEACHER.items())
        cut += [f"teacher.classifier={stage}/rows.npy", "teacher.label_map=identity"]
        cut += [f"teacher.path={stage}/teacher.pt", f"teacher.model={{ {model} }}", "teacher.accept=true"]
    return cut


def trained(world: World, file: str, overrides: list[str], resume: str) -> dict[str, Any]:
    """Run the job of a command; the export takes longer than all the rest."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "export", lambda *_: None)
        return module.run_job(load_config(file, overrides), world, resume)


def test_most_of_them_run_here() -> None:
    assert len(ALIKE) >= 16
    assert {Path(ROOT / place).exists() for place in ELSEWHERE.values()} == {True}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("command", ALIKE.values(), ids=name_of)
def test_a_training_runs(command: Command, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = list(words_of(command))
    resume = arguments[arguments.index("--resume") + 1] if "--resume" in arguments else "never"
    files = [str(ROOT / word) for word in arguments if word.endswith(".toml")] or [
        str(ROOT / "configs/quickstart.toml")
    ]
    given = [word for word in arguments if "=" in word]
    tree = load_config(files[0], given).model_dump(mode="json")
    (result,) = run(trained, 1, files[0], [*given, *cut_down(tree, stage, tmp_path)], resume)
    folder = tmp_path / result["name"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (folder / "student" / "model.safetensors").is_file()
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert bool(result["sets"]) == bool(tree["evaluate"]["sets"])
    assert all("student" in scores for scores in result["sets"].values())
