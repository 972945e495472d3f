"""The whole job on real files, small: what it writes, what resume skips, what stops it before anything is trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.jobs import ENVIRONMENT, TORCHRUN, job, tree
from helpers.places import ROOT
from helpers.ranks import RankFailure, run
from partialkd.config.load import load_config, parse_config, save_config
from partialkd.errors import CheckpointError, ConfigError, DataError, Preempted
from partialkd.run import job as module
from partialkd.storage.manifest import read_manifest, write_manifest
from partialkd.training.step_log import PARTS
from partialkd.world.stop_signals import SIGNALS
from partialkd.world.world import World

FACES = Path(os.environ.get("PARTIALKD_FACES", ROOT.parent / "shared" / "data"))

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_the_chain_and_its_resume(tmp_path: Path) -> None:
    settings = tree(tmp_path)
    settings["run"] |= {"deterministic": True, "report": True}
    result, other = run(job, 2, settings, "never", True)
    folder = tmp_path / "runs" / "trial"
    assert result["sets"] == other["sets"]
    on_disk = json.loads((folder / "result.json").read_text())
    assert {"teacher", "student", "alone"} == on_disk["sets"]["faces"].keys()
    for scores in on_disk["sets"]["faces"].values():
        assert 0.3 < scores["accuracy"] <= 1  # four steps: still near chance
        assert 0 <= scores["auc"] <= 1
        assert scores["tar_at_far"].keys() == {"0.1"}
    assert on_disk["world_size"] == 2
    assert on_disk["seconds"] > 0
    assert on_disk["commit"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [
        (phase, step) for phase in ("teacher", "student", "alone") for step in (2, 4)
    ]
    assert all({"epoch", "loss", "lr", "images_per_s"} <= line.keys() for line in lines)
    for line in lines:
        assert {name.removeprefix("time/") for name in line if name.startswith("time/")} == set(PARTS)
        assert line["time/collectives"] > 0
        assert line["grad_norm"] > 0
    assert load_config(folder / "config.toml") == parse_config(settings)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "ROC: faces" in page
    assert (page.count("<img "), "of the device (MFU)" in page) == (24, True)
    settings["run"]["report"] = False
    student = load_file(folder / "student" / "model.safetensors")
    exported = load_file(folder / "export" / "model.safetensors")
    assert all(torch.equal(student[key], exported[key]) for key in student)
    assert (folder / "export" / "model.onnx").stat().st_size > 10_000

    # All phases are finished: a resumed run trains nothing and finds the same scores, at another world size too.
    again = run(job, 1, settings, "auto")[0]
    assert [list(start["phase_seconds"]) for start in again["starts"]] == [["teacher", "student", "alone"], []]
    assert again["seconds"] > result["seconds"]
    assert again["phase_seconds"] == result["phase_seconds"]
    assert again["sets"]["faces"]["student"]["accuracy"] == pytest.approx(
        result["sets"]["faces"]["student"]["accuracy"]
    )
    # Without resume the old run is moved aside, not overwritten.
    settings["alone"] = None
    run(job, 1, {key: value for key, value in settings.items() if value}, "never")
    assert json.loads((tmp_path / "runs" / "trial.1" / "result.json").read_text())["sets"] == again["sets"]


@pytest.mark.parametrize(
    ("method", "centres"), [({"name": "arcdistill"}, "classifier"), ({"name": "margindistillation"}, "means")]
)
def test_fixed_centres(method: dict[str, Any], centres: str, tmp_path: Path) -> None:
    settings = tree(tmp_path, method=method)
    del settings["alone"]
    settings["teacher"]["centres"] = centres
    result = run(job, 2, settings)[0]
    assert result["sets"]["faces"].keys() == {"teacher", "student"}
    manifest = json.loads((tmp_path / "runs" / "trial" / "teacher_centres" / "manifest.json").read_text())
    assert manifest["how"] == centres
    assert manifest["classes"] == 12
    assert len(manifest["teacher"]) == 64
    assert manifest["data"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["student"]["model"].update(embedding_dim=8), "embedding_dim: must be the teacher's 16"),
        (lambda s: s["evaluate"].update(sets=["nowhere.bin"]), r"nowhere\.bin"),
        (lambda s: s["student"].update(global_batch=25), r"student\.global_batch must be divisible by"),
        (lambda s: s["alone"].update(epochs=0.01), r"alone\."),
        (
            lambda s: s["teacher"].update(
                source="checkpoint", path="nowhere.pt", model={"name": "vit_tiny", "embedding_dim": 16}
            ),
            "nowhere",
        ),
    ],
    ids=["dimension", "set", "batch", "schedule", "teacher"],
)
def test_what_stops_a_run(change: Any, said: str, tmp_path: Path) -> None:
    settings = json.loads(json.dumps(tree(tmp_path)))
    change(settings)  # the section teacher.train stays: overrides cannot delete one
    with pytest.raises((RankFailure, ConfigError), match=said):
        run(job, 2, settings)
    assert not list((tmp_path / "runs").glob("trial/*/checkpoints"))  # nothing was trained


def changed(settings: dict[str, Any], **phase: Any) -> dict[str, Any]:
    return {**settings, "student": {**settings["student"], **phase}}


def refusal(world: World, settings: dict[str, Any]) -> str:
    """The beginning of what a resumed run says to this rank."""
    with pytest.raises(CheckpointError) as error:
        job(world, settings, "auto")
    return str(error.value).partition(": the checksum")[0]


def test_resume_in_a_phase_goes_back_and_is_refused_for_another_run(tmp_path: Path) -> None:
    settings = tree(tmp_path)
    settings["run"]["checkpoint_every"] = 2
    settings["run"]["log_every"] = 1
    first = run(job, 2, settings)[0]
    folder = tmp_path / "runs" / "trial"
    names = lambda path: sorted(p.name for p in path.iterdir())
    assert names(folder / "student" / "checkpoints") == ["step_000000002", "step_000000004"]

    # Other settings are another run; where and how it runs may change.
    with pytest.raises(RankFailure, match=r"student\.optimizer\.lr: must be 0\.1, got 0\.2"):
        run(job, 2, changed(settings, optimizer={"lr": 0.2}), "auto")
    settings["data"]["workers"] = 2

    # Back to step 2 of the student: its end and the phase after it are made again, the earlier ones are kept aside.
    again = run(job, 2, settings, str(folder / "student" / "checkpoints" / "step_000000002"))[0]
    assert again["sets"] == first["sets"]
    assert list(again["starts"][-1]["phase_seconds"]) == ["student", "alone"]
    assert names(folder / "student" / "checkpoints") == ["step_000000002", "step_000000004", "step_000000004.1"]
    assert {"alone", "alone.1"} <= set(names(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "student"] == [1, 2, 3, 4]

    # A finished phase whose network was damaged is not gone on with: all ranks say which file.
    damaged = folder / "student" / "model.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    assert run(refusal, 2, settings) == [f"{damaged}: damaged"] * 2

    # An unfinished phase is gone on with by itself.
    damaged.unlink()
    assert run(job, 2, settings, "auto")[0]["sets"] == first["sets"]
    with pytest.raises(RankFailure, match="must be a complete checkpoint"):
        run(job, 2, settings, str(folder / "student"))


def _stopped(world: World, settings: dict[str, Any]) -> str:
    """A signal to one rank after networks were evaluated, between two phases."""
    original = module.evaluate

    def evaluate(*arguments: Any) -> None:
        original(*arguments)
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    module.evaluate = evaluate
    try:
        with pytest.raises(Preempted) as stop:
            job(world, settings)
    finally:
        module.evaluate = original
    for number in SIGNALS:
        assert signal.getsignal(number) == signal.SIG_IGN  # on rank 0 too: its signal may be on its way
        signal.signal(number, signal.SIG_DFL)
    return str(stop.value)


def test_a_signal_between_phases_is_not_lost(tmp_path: Path) -> None:
    assert run(_stopped, 2, tree(tmp_path)) == ["stopped before alone"] * 2


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, str(ROOT / "launch" / "train.py"), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def test_usr1_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    settings = tree(tmp_path)
    settings["teacher"]["train"] = {**settings["teacher"]["train"], "epochs": 25}
    settings["run"]["log_every"] = 1
    save_config(parse_config(settings), tmp_path / "run.toml")
    metrics = tmp_path / "runs" / "trial" / "metrics.jsonl"
    command = [sys.executable, str(ROOT / "launch" / "train.py"), str(tmp_path / "run.toml"), "--resume", "auto"]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(2400):
            if process.poll() is not None or (metrics.exists() and metrics.read_text()):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 75
    assert said.count("teacher: stopped and saved at step ") == 1
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert lines[-1]["step"] < 100
    assert subprocess.run(command, env=ENVIRONMENT, timeout=300, check=False).returncode == 0
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "teacher"] == list(range(1, 101))
    assert (tmp_path / "runs" / "trial" / "result.json").exists()


def test_a_signal_to_the_launcher_saves_and_starts_nothing_again(tmp_path: Path) -> None:
    """Sent twice, through launch/local.sh and torchrun, with a restart to spare."""
    settings = tree(tmp_path)
    settings["teacher"]["train"] = {**settings["teacher"]["train"], "epochs": 100}
    settings["run"]["log_every"] = 1
    save_config(parse_config(settings), tmp_path / "run.toml")
    metrics = tmp_path / "runs" / "trial" / "metrics.jsonl"
    environment = {**ENVIRONMENT, "NPROC": "2", "MAX_RESTARTS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [str(ROOT / "launch" / "local.sh"), str(tmp_path / "run.toml"), "dist.device=cpu"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        for _ in range(2400):
            if launcher.poll() is not None or (metrics.exists() and metrics.read_text()):
                break
            time.sleep(0.05)
        launcher.send_signal(signal.SIGUSR1)  # torchrun would not pass it on without --signals-to-handle
        launcher.send_signal(signal.SIGUSR1)
        _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, said
    assert said.count("teacher: stopped and saved at step ") == 1
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) < 400
    assert [path.name for path in metrics.parent.glob("teacher/checkpoints/step_*")] == [f"step_{len(steps):09d}"]


def test_wrong_configuration_is_said_once() -> None:
    """Where torchrun is started by hand; launch/local.sh looks before it starts any rank."""
    got = torchrun("student.centres.sample_rate=1.5", "student.optimizer.learning_rate=0.1")
    assert got.returncode != 0
    assert got.stderr.count("override student.centres.sample_rate=1.5: must be less than or equal to 1, got 1.5") == 1
    assert got.stderr.count("override student.optimizer.learning_rate=0.1: unknown key") == 1


@pytest.mark.parametrize("wrong", ["student.centres.sample_rate=1.5", "alone.epochs=0.01"])
def test_the_status_of_a_wrong_configuration(wrong: str, tmp_path: Path) -> None:
    """Found when it is read, or when it meets the data."""
    save_config(parse_config(tree(tmp_path)), tmp_path / "run.toml")
    command = [sys.executable, str(ROOT / "launch" / "train.py"), str(tmp_path / "run.toml"), wrong]
    got = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert got.returncode == 2
    assert wrong.partition("=")[0].partition(".")[0] in got.stderr
    assert got.stderr.count("error: ") == 1


def test_failure_of_one_rank_ends_all_and_is_said_once(tmp_path: Path) -> None:
    """A record whose image is destroyed: one rank reads it and fails, the other goes down with it, quietly."""
    settings = tree(tmp_path)
    run(job, 1, {**settings, "student": {**settings["student"], "max_steps": 1}})
    records = tmp_path / "data" / "train.rec"
    content = bytearray(records.read_bytes())
    start = content.index(b"\xff\xd8\xff")  # the first JPEG
    content[start : start + 64] = bytes(64)
    records.write_bytes(content)
    facts = read_manifest(tmp_path / "data", DataError)
    write_manifest(tmp_path / "data", {key: value for key, value in facts.items() if key != "files"})  # no checksums
    got = torchrun(str(tmp_path / "runs" / "trial" / "config.toml"), "run.name=broken", "dist.timeout_s=60")
    assert got.returncode != 0
    errors = [line for line in got.stderr.splitlines() if line.startswith(("error:", "rank "))]
    assert len(errors) == 1
    assert "train.rec" in errors[0]


def test_the_default_job_learns(tmp_path: Path) -> None:
    """The command of the README with fewer faces: the distilled student is clearly above chance on other people."""
    phases = {"teacher.train": 4, "student": 4, "alone": 1}
    small = [f"{phase}.epochs={epochs}" for phase, epochs in phases.items()]
    small += [f"{phase}.schedule.warmup_steps=5" for phase in phases] + ["run.name=learns"]
    faces = ["data.prepare.identities=100", "data.prepare.images_per_identity=16", "data.prepare.pairs=600"]
    places = [f"run.folder={tmp_path}", f"data.path={tmp_path}/data", f"evaluate.sets=['{tmp_path}/data/faces.bin']"]
    got = torchrun(*small, *faces, *places)
    assert got.returncode == 0, got.stderr
    result = json.loads((tmp_path / "learns" / "result.json").read_text())["sets"]["faces"]
    assert result["teacher"]["accuracy"] > 0.65
    assert result["student"]["accuracy"] > 0.65  # measured 0.78; chance is 0.5 with a deviation of 0.02
    assert result["student"]["auc"] > 0.7


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first run that needs them packs them."""
    return tmp_path_factory.mktemp("photographs") / "data"


@pytest.mark.faces
@pytest.mark.skipif(not FACES.is_dir(), reason=f"the face photographs are not at {FACES} (PARTIALKD_FACES)")
@pytest.mark.parametrize("name", ["faces_adadistill", "faces_arcdistill", "faces_margindistillation"])
def test_real_faces_and_a_real_teacher(name: str, photographs: Path, tmp_path: Path) -> None:
    """A shipped configuration, shortened: photographs, an ONNX teacher, LFW pairs without trained identities."""
    data = photographs
    config = load_config(
        ROOT / "configs" / f"{name}.toml",
        [
            f"run.folder={tmp_path}", f"data.path={data}", f"evaluate.sets=['{data}/lfw_pairs.bin']",
            f"data.prepare.images={FACES}/pubfig112.tar.gz", f"data.prepare.pairs_images={FACES}/lfw112.tar.gz",
            f"data.prepare.pairs={FACES}/lfw_pairs.csv", f"teacher.path={FACES}/sface_128d.onnx",
            "data.prepare.max_identities=4", "data.prepare.max_pairs=40", "student.global_batch=8",
            "student.max_steps=4", "student.schedule.warmup_steps=1", "evaluate.flip=false", "run.log_every=1",
            *(["alone.max_steps=1", "alone.global_batch=8"] if name == "faces_adadistill" else []),
        ],
    )  # fmt: skip
    result = run(job, 2, config.model_dump(mode="json", exclude_none=True))[0]
    scores = result["sets"]["lfw_pairs"]
    assert scores["teacher"]["accuracy"] > 0.9  # the real teacher: a wrong colour order or scale would show
    assert result["identities"] == 4
    facts = json.loads((data / "manifest.json").read_text())["facts"]
    assert facts["pairs"]
