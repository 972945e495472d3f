"""What makes the program say the messages of docs/troubleshooting.md: some words of each -> what raises it.

A trigger works in a folder of its own. What takes several ranks has none here: the page names its test.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.jobs import tree
from helpers.packing_cases import make_folder
from helpers.started_jobs import made, named, start
from partialkd.align.folder import AlignOptions, align_folder
from partialkd.config import DataConfig, EvaluateConfig, ModelConfig, PhaseConfig
from partialkd.config.load import load_config, parse_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.decode import Wanted, decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import SequentialPlan
from partialkd.data.packing.pack import pack
from partialkd.data.sources.open import open_source
from partialkd.evaluate.verification import open_sets
from partialkd.models.build import build_empty
from partialkd.models.weights import load_weights, read_weights
from partialkd.run.folder import IN_USE, open_run
from partialkd.run.out_of_memory import advising
from partialkd.storage.atomic_files import write_bytes
from partialkd.storage.claim import claimed
from partialkd.storage.tensor_file import check_file, write_summed
from partialkd.teacher.classifier import read_matrix
from partialkd.training.phase_plan import check_batch
from partialkd.training.schedule import Schedule
from partialkd.world.launch import refuse_tasks_that_are_no_ranks
from partialkd.world.world import World

ROOT_CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.toml"


def phase(**changes: object) -> PhaseConfig:
    model = {"name": "mobilefacenet_gdc", "embedding_dim": 16}
    return PhaseConfig.model_validate({"model": model, "method": {"name": "arcface"}, "epochs": 1, **changes})


def unknown_key(_: Path) -> None:
    load_config(ROOT_CONFIG, ["student.lrr=0.1"])


def in_use(folder: Path) -> None:
    with claimed(folder / "run", IN_USE), claimed(folder / "run", IN_USE):
        pass


def lone_tasks(_: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        patch.setenv("SLURM_STEP_NUM_TASKS", "2")
        refuse_tasks_that_are_no_ranks()


def out_of_memory(_: Path) -> None:
    with advising("student", World(), lambda: "less would do"):
        torch.empty(1 << 46)


def guessing(folder: Path) -> None:
    made(folder)
    start(named(folder, "first", accept=False))


def another_network(folder: Path) -> None:
    state = build_empty(ModelConfig(name="iresnet18"), 32).state_dict()
    torch.save({key: torch.zeros(x.shape, dtype=x.dtype) for key, x in state.items()}, folder / "w.pt")
    load_weights(build_empty(ModelConfig(name="iresnet50"), 32), folder / "w.pt")


def onnx_weights(folder: Path) -> None:
    (folder / "t.onnx").write_bytes(b"\x08\x09")
    read_weights(folder / "t.onnx")


def objects(folder: Path) -> None:
    torch.save({"weight": torch.randn(3, 3), "evil": np.dtype}, folder / "c.pt")
    read_matrix(folder / "c.pt")


def gaps(folder: Path) -> None:
    files = make_folder(folder)
    (folder / "list.txt").write_text("".join(f"{path}\t3\n" for path in files))
    pack(folder / "list.txt", folder / "set")


def not_square(_: Path) -> None:
    decode(encode_jpeg(np.zeros((8, 9, 3), np.uint8)), "train.rec: key 3", wanted=Wanted(8))


def records(folder: Path) -> None:
    face = encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    pack_records(folder / "set", [(face, 0), (b"no image", 0), (b"nor this", 1)], 2, 32)


def label_without_a_class(folder: Path) -> None:
    face = encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    pack_records(folder / "set", [(face, 0), (face, 1)], 2, 32)
    (folder / "set" / "property").write_text("1,32,32")
    open_source(DataConfig(path=str(folder / "set"), image_size=32))


def no_such_set(folder: Path) -> None:
    open_sets(EvaluateConfig(sets=(str(folder / "lfw.bin"),)))


def nobody_left_out(folder: Path) -> None:
    make_folder(folder / "photos")
    (folder / "out.txt").write_text("dora\n")
    data = {"source": "folder", "path": str(folder / "photos"), "exclude_identities": str(folder / "out.txt")}
    open_source(DataConfig.model_validate(data))


def no_face(folder: Path) -> str:
    write_bytes_of_a_face(folder / "photos" / "1.jpg")
    (done,) = align_folder(folder / "photos", folder / "out", lambda *_: [], {}, AlignOptions())
    return str(done.reason)


def write_bytes_of_a_face(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(encode_jpeg(np.zeros((32, 32, 3), np.uint8)))


def unreadable(folder: Path) -> None:
    records(folder)
    data = DataConfig(path=str(folder / "set"), image_size=32, workers=1, on_corrupt="skip", max_corrupt=1)
    list(open_loader(data, open_source(data), SequentialPlan(3, 3, 0, 1), torch.device("cpu")).epoch(0))


def another_run(folder: Path) -> None:
    open_run(parse_config(tree(folder)), "never")
    open_run(parse_config(tree(folder, freeze_batchnorm=True)), "auto")


def damaged(folder: Path) -> None:
    total = write_summed(folder / "x", [b"abc"])
    (folder / "x").write_bytes(b"abd")
    check_file(folder / "x", total)


def not_written(folder: Path) -> None:
    os.mkdir(folder / "x")
    write_bytes(folder / "x", b"a folder is in its place")


TRIGGERS: dict[str, Callable[[Path], str | None]] = {
    "unknown key": unknown_key,
    "in use by": in_use,
    "tasks are not joined": lone_tasks,
    "divisible by accumulation x world size": lambda _: check_batch("student", phase(global_batch=6), 4),
    "an epoch must hold": lambda _: Schedule.of_phase(phase(global_batch=8), 0) and None,
    "must be below the": lambda _: Schedule.of_phase(phase(global_batch=8, schedule={"warmup_steps": 20}), 10) and None,
    "(or set teacher.project_to": lambda _: load_config(ROOT_CONFIG, ["student.model.embedding_dim=72"]) and None,
    "label must be an integer": label_without_a_class,
    ": cannot be read:": no_such_set,
    "BatchNorm cannot train on a single image": lambda _: check_batch("student", phase(global_batch=4), 4),
    "is out of memory": out_of_memory,
    "little better than guessing": guessing,
    "it looks like": another_network,
    "an ONNX file holds": onnx_weights,
    "may be code": objects,
    "--renumber": gaps,
    "must be square": not_square,
    "names found": nobody_left_out,
    "no face found": no_face,
    "records cannot be read by rank": unreadable,
    "--resume goes on with the run of": another_run,
    "damaged: the checksum must be": damaged,
    "cannot be written": not_written,
}
