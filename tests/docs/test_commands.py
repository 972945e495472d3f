"""Every command of README, docs and the headers of configs/ works as it is written.

Commands that start a training are read as its configuration (test_trainings.py runs them cut down), options of torchrun
by its own parser; all other commands run, in a folder that holds what they name, in small.
"""

from __future__ import annotations

import io
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.format_cases import drawn, write_lmdb, write_parquet
from helpers.jobs import job
from helpers.page_commands import (
    COMMANDS,
    OTHERS,
    PLACEHOLDERS,
    TRAININGS,
    WRITTEN_BEFORE,
    Command,
    arguments_of,
    commands_in,
    name_of,
)
from helpers.places import FACES, ROOT
from helpers.ranks import run
from helpers.run_folders import made_run
from partialkd.config import ModelConfig
from partialkd.config.load import load_config
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.packing.face_drawing import draw_jpegs
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.training.schedule import Schedule


def test_all_kinds_are_found() -> None:
    assert len(TRAININGS) > 20
    assert len(OTHERS) > 10
    rest = {command.words[0] for command in COMMANDS} - {"make", "torchrun", "python"}
    assert {word for word in rest if "=" not in word} == {"docker", "sbatch"}
    assert {"launch/submit.py", "launch/import_arcface.py"} <= {command.words[1] for command in OTHERS}
    assert any("--resume" in " ".join(command.words) for command in TRAININGS)


@pytest.mark.parametrize("command", TRAININGS, ids=name_of)
def test_a_training_is_configured(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = [WRITTEN_BEFORE.get(word, word) for word in arguments_of(command) if word not in PLACEHOLDERS]
    options = [word for word in arguments if word.startswith("--")]
    assert set(options) <= {"--resume", "--dry-run", "--output", "--dtype", "--records", "--cache", "--out"}
    files = [word for word in arguments if word.endswith(".toml")]
    load_config(files[0] if files else "configs/quickstart.toml", [word for word in arguments if "=" in word])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "sbatch"], ids=name_of)
def test_a_batch_script_is_configured(command: Command) -> None:
    script, config = command.words[-2:]
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    load_config(ROOT / config)
    assert all(re.fullmatch(r"--(nodes|gpus-per-node|cpus-per-task)=\d+", word) for word in command.words[1:-2])


# ------------------------------------------------------------------------------------------ commands that run


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's folder with small stand-ins for what the commands name."""
    folder = tmp_path_factory.mktemp("stage")
    for part in ("launch", "configs", "benchmarks", "docs"):
        (folder / part).symlink_to(ROOT / part)
    draw = np.random.default_rng(0)
    faces = {
        f"{name}/{name}_{number:04d}.jpg": encode_jpeg(draw.integers(0, 256, (112, 112, 3), dtype=np.uint8))
        for name in (f"Person_{k}" for k in range(12))
        for number in (1, 2)
    }
    for place in ("photos", "lfw112", "images"):
        for path, encoded in faces.items():
            (folder / place / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / place / path).write_bytes(encoded)
    paths = list(faces)
    pairs = [(paths[2 * k], paths[2 * k + 1], 1) for k in range(10)] + [
        (paths[2 * k], paths[2 * k + 2], 0) for k in range(10)
    ]
    (folder / "data" / "quickstart").mkdir(parents=True)
    images = [faces[path] for first, second, _ in pairs for path in (first, second)]
    for place in ("data/lfw.bin", "data/quickstart/faces.bin", "given.bin"):
        write_bin(folder / place, images, np.array([same == 1 for *_, same in pairs]))
    (folder / "pairs.csv").write_text("a,b,same\n" + "".join(f"{a},{b},{same}\n" for a, b, same in pairs))
    write_lfw_pairs(folder / "pairs.txt")
    (folder / "val" / "lfw").mkdir(parents=True)
    np.save(folder / "val" / "lfw" / "lfw.npy", draw.integers(0, 256, (4, 3, 112, 112), dtype=np.uint8))
    np.save(folder / "val" / "lfw_list.npy", np.array([True, False]))
    write_lmdb(folder / "hsface.lmdb", drawn())
    write_parquet(folder / "table", drawn())
    theirs = folder / "arcface_torch" / "configs" / "ms1mv3_r50.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text('config = edict()\nconfig.rec = "/data/ms1m-retinaface-t1"\nconfig.num_epoch = 20\n')
    network = build_model(ModelConfig(name="mobilefacenet_gdc", embedding_dim=16, width=0.25, depth=0.5), 112).eval()
    described = ModelConfig(name="mobilefacenet_gdc", embedding_dim=16, width=0.25, depth=0.5)
    save_model(folder / "runs" / "quickstart" / "student" / "model.safetensors", network, described, 112)
    shutil.copy(folder / "runs" / "quickstart" / "student" / "model.safetensors", folder / "MODEL.safetensors")
    for name, kind in (("adadistill", {}), ("arcdistill", {"name": "arcdistill"})):
        made_run(folder, name, steps=2, **kind)
    return folder


def write_lfw_pairs(path: Path) -> None:
    """Ten folds of one pair of each kind."""
    lines = ["10\t1"]
    for fold in range(10):
        lines += [f"Person_{fold}\t1\t2", f"Person_{fold}\t1\tPerson_{fold + 1}\t1"]
    path.write_text("\n".join(lines) + "\n")


# What a command names and a test cannot have: where its own test is. The command line itself is still read.
ELSEWHERE = {
    "launch/import_mxnet.py": "tests/models/test_mxnet_checkpoint.py",  # needs a network of MXNet
    "launch/align.py": "tests/align",  # needs a detector
    "launch/doctor.py": "tests/cluster/test_doctor.py",  # its status is this machine's
    "benchmarks/": "tests/benchmarks",
}
# Published lists (tests/data/formats/test_pair_lists.py); a run (tests/checkpoint/test_checkpoint_network.py).
NOT_HERE = {
    "cfp-fp",
    "calfw",
    "cplfw",
    "sllfw",
    "xqlfw",
    "rfw",
    "paths",
    "runs/first",
    "work_dirs/ms1mv3_r100/model.pt",
    "work_dirs/ms1mv3_r50",  # tests/run/test_arcface_torch.py
}


# What a command reads and another one has packed.
MADE_BEFORE = {"data/mine": ["photos"], "data/hsface": ["hsface.lmdb", "--from", "lmdb"]}


@pytest.mark.slow
@pytest.mark.parametrize("command", OTHERS, ids=name_of)
def test_a_command_runs(
    command: Command, stage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = command.words[1:]
    assert (ROOT / script).is_file()
    if any(script.startswith(known) for known in ELSEWHERE) or NOT_HERE & set(arguments):
        known_options(script, arguments)
        return
    arguments = ["MODEL.safetensors" if word == "MODEL" else word for word in arguments]
    if script == "launch/make_bin.py" and "extract" in arguments:
        arguments = ["given.bin" if word.endswith(".bin") else word for word in arguments]
    if script == "launch/submit.py":  # tests/cluster/test_slurm_jobs.py submits
        arguments = ["--dry-run", *arguments]
    for word in arguments:
        clear_away(stage / word, made_by=arguments)
    monkeypatch.chdir(stage)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    for needed, made in MADE_BEFORE.items():
        if needed in arguments[1:2] and not (stage / needed).exists():
            subprocess.run([sys.executable, "launch/pack.py", "pack", *made, needed], check=True, cwd=stage)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code in (0, None), capfd.readouterr().err


def clear_away(path: Path, made_by: list[str]) -> None:
    """Results of a command that stands on another page too."""
    made = {"pack": made_by[2:3], "unpack": made_by[2:3], "build": made_by[-1:], "extract": made_by[-1:]}
    out = made.get(made_by[0], made_by[1:2] if len(made_by) == 2 else [])
    a_run = (path / "config.toml").exists()  # which is only read
    if out and path.name and path == path.parent / Path(out[0]).name and path.exists() and not a_run:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def known_options(script: str, arguments: list[str]) -> None:
    """The options of a command line are those its --help names."""
    done = subprocess.run(
        [sys.executable, ROOT / script, *(["build"] if "make_bin" in script else []), "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert {word for word in arguments if word.startswith("--")} <= set(re.findall(r"--[\w-]+", done.stdout))


def test_a_wrong_command_would_be_found() -> None:
    text = 'make train ARGS="configs/quickstart.toml \\\n student.lrr=1" && docker run x   # not this\nplain words\n'
    text += "partialkd model-card a b\ntorchrun --nproc-per-node=2 --no-python partialkd train a.toml\n"
    train, docker, card, ranks = commands_in(text, "page")
    assert card.words == ("python", "launch/model_card.py", "a", "b")
    assert ranks.words == ("torchrun", "--nproc-per-node=2", "launch/train.py", "a.toml")
    assert arguments_of(ranks) == ["a.toml"]
    assert train.words == ("make", "train", "ARGS=configs/quickstart.toml   student.lrr=1")
    assert docker.words == ("docker", "run", "x")
    with pytest.raises(Exception, match="lrr"):
        load_config(ROOT / "configs" / "quickstart.toml", arguments_of(train)[1:])


@pytest.mark.parametrize(("data", "images"), [("data/look", 100 * 16), ("data/faces_look", 414)])
def test_a_short_look_is_longer_than_its_warm_up(data: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And long enough for BatchNorm's running statistics: else the scores are those of chance. 414: of 8 identities."""
    monkeypatch.chdir(ROOT)
    (look,) = (command for command in TRAININGS if f"data.path={data} " in " ".join(command.words))
    arguments = arguments_of(look)
    files = [word for word in arguments if word.endswith(".toml")]
    config = load_config(files[0] if files else "configs/quickstart.toml", [word for word in arguments if "=" in word])
    for phase in (config.teacher.train, config.student, config.alone):
        if phase is not None:
            schedule = Schedule.of_phase(phase, images // phase.global_batch * phase.accumulation)
            assert min(schedule.total_steps, phase.max_steps or schedule.total_steps) >= 30


# ------------------------------------------------------------------------------------- photographs to a job

SMALL = [f"student.model.{word}" for word in ("embedding_dim=16", "width=0.25", "depth=0.5")]
SMALL += [
    "data.loader=jpeg",
    "data.workers=1",
    "run.tensorboard=false",
    "run.report=false",
    "student.global_batch=8",
    "student.max_steps=2",
]


@pytest.mark.slow
@pytest.mark.faces
@pytest.mark.distributed
def test_photographs_become_a_running_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of docs/data.md, line by line; the job with a small network, for two steps."""
    if not (FACES / "yunet_detector.onnx").exists():
        pytest.skip(f"no {FACES}/yunet_detector.onnx")
    pytest.importorskip("cv2")
    block = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("```\n", 2)[1]
    assert len(block.splitlines()) <= 10
    _, align, pack, train = commands_in(block, "data.md")
    (tmp_path / "face_detection_yunet.onnx").symlink_to(FACES / "yunet_detector.onnx")
    take_photographs(tmp_path / "photographs")
    monkeypatch.chdir(tmp_path)
    for _, script, *arguments in (align.words, pack.words):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert ended.value.code in (0, None)
    config, *overrides = arguments_of(train)
    places = [f"data.path={tmp_path / 'data' / 'mine'}", f"run.folder={tmp_path / 'runs'}"]
    settings = load_config(ROOT / config, [*overrides, *SMALL, *places])
    result = run(job, 1, settings.model_dump(mode="json", exclude_unset=True))[0]
    assert (result["identities"], result["images"]) == (5, 20)


def take_photographs(folder: Path) -> None:
    """Five persons with four pictures each, faces large and small in them."""
    keys = [(person, picture) for person in range(5) for picture in range(4)]
    for (person, picture), face in zip(keys, draw_jpegs(0, 112, keys), strict=True):
        side = 120 + 30 * picture
        photograph = Image.new("RGB", (400, 300), (90, 110, 130))
        photograph.paste(Image.open(io.BytesIO(face)).resize((side, side)), (80 + 20 * picture, 40))
        (folder / f"person_{person}").mkdir(parents=True, exist_ok=True)
        photograph.save(folder / f"person_{person}" / f"IMG_{picture:04d}.jpg")
