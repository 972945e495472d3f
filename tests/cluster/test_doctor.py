"""`partialkd doctor`: every thing it looks at, in a good and a bad state, and ranks of a real launch."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.jobs import tree
from helpers.ranks import run
from partialkd.cluster import doctor, folders, machine
from partialkd.cluster.doctor import _clocks, _folders, _products, of_configuration, ranks_together
from partialkd.cluster.findings import attempted, judged, lines_of, worst
from partialkd.commands.doctor import main
from partialkd.config import ModelConfig
from partialkd.config.load import parse_config, save_config
from partialkd.data.packing.prepare import prepare
from partialkd.errors import DataError
from partialkd.models.build import build_model
from partialkd.models.saved import save_model
from partialkd.world import links
from partialkd.world.links import measure_links
from partialkd.world.world import World

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COMPILERS = [(CUDA, None, "bad"), (CPU, None, "doubtful"), (CUDA, "/x", "good")]
DRIVERS = [("535.104.05", "13.0", "bad"), ("580.65", "13.0", "good"), ("535.1", "12.8", "good")]


@pytest.fixture(autouse=True)
def _little_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WRITTEN", "READ"):
        monkeypatch.setattr(folders, name, folders.PIECE)


def settings_of(folder: Path) -> dict[str, Any]:
    """A student alone, on data that the configuration makes."""
    settings = tree(folder)
    del settings["alone"], settings["evaluate"]
    student = {**settings["student"], "method": {"name": "cosface", "scale": 16.0}}
    return {**settings, "teacher": {"source": "none"}, "student": student, "dist": {"device": "cpu"}}


# ------------------------------------------------------------------------------------------------ findings


def test_findings_are_lines_with_how_to_mend_them() -> None:
    found = [judged("a", "good", "fine", "never said"), judged("bc", "bad", "no\x1broom", "make room")]
    assert worst(found) == "bad"
    assert worst([]) == "good"
    assert lines_of(found) == ["good      a   fine", "bad       bc  no\\x1broom", "              -> make room"]


def test_what_is_alike_on_hosts_is_said_once() -> None:
    from dataclasses import replace

    found = [replace(judged("x", "good", "1"), host=host) for host in ("a", "b", "c")]
    assert lines_of(found) == ["good      x  1"]
    found[1] = replace(judged("x", "doubtful", "2"), host="b")
    assert lines_of(found) == ["good      x  1 [a, c]", "doubtful  x  2 [b]"]


def test_an_error_is_a_finding() -> None:
    def fail() -> None:
        raise DataError("a.rec: cut short")

    found = attempted("data", fail, "copy it again")  # type: ignore[arg-type]
    assert (found.verdict, found.said, found.mend) == ("bad", "a.rec: cut short", "copy it again")


# ------------------------------------------------------------------------------------------------- machine


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=2", "torch>=2.11", 'lmdb>=1.4; extra == "formats"', 'deepspeed==0.1; extra == "train"']
    there = {"numpy": "2.4.6", "torch": "2.13.0+cpu", "deepspeed": "0.1"}

    def version(name: str) -> str:
        if name not in there:
            raise machine.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(machine, "requires", lambda _: asked)
    monkeypatch.setattr(machine, "version", version)
    first, optional = machine.packages()
    assert (first.verdict, first.said) == ("good", "3 fit")
    assert (optional.verdict, optional.said) == ("good", "without lmdb: no LMDB, Arrow and Parquet")
    there |= {"numpy": "1.26.4", "lmdb": "1.5"}
    del there["deepspeed"]
    first, optional = machine.packages()
    assert (first.verdict, first.said) == ("bad", "numpy is 1.26.4, not >=2")
    assert first.mend == "pip install -r requirements.txt"
    assert (optional.verdict, optional.said) == ("doubtful", "without deepspeed: no training")
    asked.append('nvidia-dali-cuda130==2.4.0; extra == "train"')
    found = machine.packages()[-1]
    assert (found.verdict, found.said) == ("good", 'without nvidia-dali-cuda130: no data.loader = "dali"')


@pytest.mark.parametrize(
    ("device", "found", "verdict"), [(CUDA, None, "bad"), (CPU, None, "doubtful"), (CUDA, "/x", "good")]
)
def test_compilers(device: torch.device, found: str | None, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda _: found)
    assert machine.compilers(device).verdict == verdict


@pytest.mark.parametrize(("blocks", "verdict"), [(16_384, "doubtful"), (1 << 20, "good")])
def test_shared_memory(blocks: int, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "statvfs", lambda _: SimpleNamespace(f_bavail=blocks, f_frsize=4096))
    found = machine.shared_memory()
    assert found.verdict == verdict
    assert ("--shm-size=8g" in found.mend) == (verdict != "good")


@pytest.mark.parametrize(("most", "verdict"), [(1024, "doubtful"), (65_536, "good"), (resource.RLIM_INFINITY, "good")])
def test_open_files(most: int, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (most, most))
    assert machine.open_files().verdict == verdict


def test_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    assert machine.addresses()["lo"] == "127.0.0.1"
    assert machine.interface(distributed=False).said.startswith("lo (127.0.0.1)")
    assert machine.interface(distributed=True).verdict == "doubtful"  # other hosts do not reach it by that
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert machine.interface(distributed=True).verdict == "good"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    found = machine.interface(distributed=True)
    assert (found.verdict, "no interface is called nosuch0" in found.said) == ("bad", True)


@pytest.mark.parametrize(("driver", "cuda", "verdict"), DRIVERS)
def test_drivers(driver: str, cuda: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Sat Jan 1 00:00:00 UTC 2025"
    monkeypatch.setattr(machine.Path, "is_file", lambda self: True)
    monkeypatch.setattr(machine.Path, "read_text", lambda self: line)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA X")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = machine.gpus(CUDA)
    assert (found.verdict, found.said) == (verdict, f"2 x NVIDIA X, CUDA {cuda}, driver {driver}")
    assert machine.gpus(CPU).verdict == "doubtful"  # a driver, but no device in use


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.clock().verdict == "good"
    monkeypatch.setattr(machine.time, "time", lambda: 1e9)
    assert machine.clock().verdict == "bad"


# ------------------------------------------------------------------------------------------------- folders


def test_room_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = folders.room_and_write_speed("run folder", tmp_path / "runs" / "first")
    assert found.said.startswith(f"{tmp_path}: ")
    assert found.facts["write_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "train.rec").write_bytes(bytes(1000))
    (tmp_path / "train.idx").write_bytes(bytes(10))
    assert "train.rec: 0.00 GB" in folders.read_speed("data", tmp_path).said
    assert attempted("data", lambda: folders.read_speed("data", tmp_path / "absent")).verdict == "bad"
    full = SimpleNamespace(f_bavail=1000, f_frsize=4096)
    monkeypatch.setattr(folders.os, "statvfs", lambda _: full)
    assert folders.room_and_write_speed("run folder", tmp_path).verdict == "bad"
    monkeypatch.setattr(folders.os, "access", lambda *_: False)
    assert "cannot be written to" in folders.room_and_write_speed("run folder", tmp_path).said


def test_folders_that_cannot_be_looked_at_are_findings(tmp_path: Path) -> None:
    """Whatever the first rank of a host meets there; an error of it would take the other findings along."""
    (tmp_path / "file").write_text("")
    settings = settings_of(tmp_path)
    settings["run"]["folder"] = str(tmp_path / "file" / "runs")
    del settings["data"]["prepare"]
    (tmp_path / "data").mkdir()
    run_folder, data = _folders(parse_config(settings))
    assert (run_folder.verdict, run_folder.said) == ("bad", f"{tmp_path / 'file'}: is no folder")
    assert (data.verdict, data.said) == ("bad", f"{tmp_path / 'data'}: no file to read")
    assert run_folder.mend == data.mend != ""


# --------------------------------------------------------------------------------------------------- ranks


def test_slow_ranks_and_wrong_clocks() -> None:
    assert _products([1.0, 1.1, 1.0, 1.2]).verdict == "good"
    found = _products([1.0, 1.1, 1.0, 2.0])
    assert (found.verdict, "slow: rank 3" in found.said) == ("doubtful", True)
    assert _clocks({"a": 0.0, "b": 0.2}).verdict == "good"
    assert _clocks({"a": 0.0, "b": -5.0}).said == "at most 5.00 s apart, b"


def _hosts(world: World) -> list[tuple[str, int]]:
    """Of three ranks, two are on one host, as far as names go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "hosts_of", lambda _: ["a", "b", "b"])
        found = measure_links(world)
        assert all(link.latency_s > 0 and link.bandwidth > 0 for link in found)
        return [(link.between, link.ranks) for link in found]


@pytest.mark.slow
@pytest.mark.distributed
def test_links_between_hosts() -> None:
    assert run(_hosts, 3) == [[("all ranks", 3), ("a - b", 2)]] * 3


def _all_of_it(world: World, settings: dict[str, Any]) -> list[tuple[str, str]]:
    found = [*ranks_together(world), *of_configuration(parse_config(settings), world)]
    return [(one.name, one.verdict) for one in found]


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_of_a_launch(tmp_path: Path, drawn: Path) -> None:
    """Every rank gets the same findings, and the run's folder is not there afterwards."""
    shutil.copytree(drawn, tmp_path / "data")
    found = run(_all_of_it, 3, settings_of(tmp_path))
    assert found[0] == found[1] == found[2]
    names = [name for name, _ in found[0]]
    assert names == ["all-reduce", "clocks", "compute", "labels", "images", "memory"]
    assert all(verdict != "bad" for _, verdict in found[0])
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------- configuration


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that are there."""
    folder = tmp_path_factory.mktemp("drawn")
    prepare(parse_config(settings_of(folder)).data)
    return folder / "data"


@pytest.fixture
def trained_on(tmp_path: Path, drawn: Path) -> Path:
    """A configuration file whose data are there."""
    shutil.copytree(drawn, tmp_path / "data")
    save_config(parse_config(settings_of(tmp_path)), tmp_path / "run.toml")
    return tmp_path / "run.toml"


def report(config: Path) -> tuple[int, dict[str, Any]]:
    result = config.with_name("doctor.json")
    status = main([str(config), "--json", str(result)])
    return status, json.loads(result.read_text())


@pytest.mark.slow
def test_a_configuration_that_fits(trained_on: Path) -> None:
    status, found = report(trained_on)
    assert status == 0
    assert found["verdict"] != "bad"
    assert {"data", "run folder", "labels", "images", "memory"} <= {one["name"] for one in found["findings"]}


def test_memory_that_does_not_suffice_is_bad(trained_on: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory_here", lambda _: 1_000_000)
    status, found = report(trained_on)
    (bad,) = [one for one in found["findings"] if one["verdict"] == "bad"]
    assert (status, bad["name"], bad["facts"]["free"]) == (1, "memory", 1_000_000)
    assert "plan.py" in bad["mend"]


def test_a_damaged_image_is_bad(trained_on: Path) -> None:
    settings = settings_of(trained_on.parent)
    del settings["data"]["prepare"]  # which would compare checksums
    save_config(parse_config(settings), trained_on)
    record = trained_on.parent / "data" / "train.rec"
    content = bytearray(record.read_bytes())
    at = content.index(b"\xff\xd8\xff", len(content) // 3)
    content[at : at + 64] = bytes(64)
    record.write_bytes(content)
    status, found = report(trained_on)
    assert status == 1
    (bad,) = [one for one in found["findings"] if one["verdict"] == "bad"]
    assert bad["name"] == "images"
    assert "train.rec" in bad["said"]


def test_a_random_teacher_is_caught(trained_on: Path) -> None:
    folder = trained_on.parent
    model = ModelConfig(name="mobilefacenet_gdc", embedding_dim=16, width=0.25, depth=0.5)
    torch.manual_seed(0)
    save_model(folder / "random.safetensors", build_model(model, 32), model, 32)
    settings = {**tree(folder), "dist": {"device": "cpu"}}
    del settings["alone"]
    settings["teacher"] = {"source": "checkpoint", "path": str(folder / "random.safetensors")}
    save_config(parse_config(settings), folder / "taught.toml")
    status, found = report(folder / "taught.toml")
    assert status == 1
    (bad,) = [one for one in found["findings"] if one["verdict"] == "bad"]
    assert "is little better than guessing" in bad["said"]
    assert not (folder / "runs").exists()


def test_wrong_use(trained_on: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a.toml", "b.toml"], ["run.seed=1"], [str(trained_on), "student.lrr=1"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
    assert "unknown key" in capsys.readouterr().err
    assert os.path.exists(trained_on)
