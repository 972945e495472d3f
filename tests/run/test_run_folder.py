"""A run's folder has one owner, and is followed where it is a link."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import HashStore

from helpers.jobs import job, tree
from partialkd.config.load import parse_config
from partialkd.errors import DataError, InUse, Preempted
from partialkd.run import job as module
from partialkd.run.folder import IN_USE, open_run, owned_run
from partialkd.storage import claim
from partialkd.storage.claim import claimed
from partialkd.storage.process import Place
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_run_that_another_job_is_at_is_refused_before_anything_is_touched(tmp_path: Path, resume: str) -> None:
    run = tmp_path / "runs" / "trial"
    run.mkdir(parents=True)
    (run / "result.json").write_text("of the other job")
    with claimed(run, IN_USE), pytest.raises(InUse, match=f"^{run}: in use by process .*choose another run.name$"):
        job(World(), tree(tmp_path), resume)
    assert InUse.permanent  # torchrun need not try again
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["trial"]
    assert [path.name for path in run.iterdir()] == ["result.json"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("end", [DataError("a bad record"), Preempted("stopped"), KeyboardInterrupt()])
def test_the_claim_is_given_back_whatever_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    owners: list[list[str]] = []

    def fail(*_: object) -> None:
        owners.append([path.name for path in (tmp_path / "runs").iterdir()])
        raise end

    monkeypatch.setattr(module, "prepare_job", fail)
    with pytest.raises(type(end)):
        job(World(), tree(tmp_path))
    assert owners == [[".trial.owner"]]
    assert not list((tmp_path / "runs").iterdir())


def _opened(tmp_path: Path, resume: str) -> Path:
    return open_run(parse_config(tree(tmp_path)), resume)


def _to_a_run(disk: Path) -> None:
    disk.mkdir()
    (disk / "result.json").write_text("earlier")


@pytest.mark.parametrize(
    ("make", "aside"),
    [(_to_a_run, ["there.1"]), (Path.mkdir, []), (lambda _: None, [])],
    ids=["run", "empty", "dangling"],
)
def test_a_link_is_followed(tmp_path: Path, make: Callable[[Path], None], aside: list[str]) -> None:
    link, disk = tmp_path / "runs" / "trial", tmp_path / "disk" / "there"
    disk.parent.mkdir()
    make(disk)
    link.parent.mkdir()
    link.symlink_to(disk)
    assert _opened(tmp_path, "never") == disk
    assert link.is_symlink()
    assert sorted(path.name for path in disk.parent.iterdir()) == ["there", *aside]
    assert [path.name for path in disk.iterdir()] == ["config.toml"]
    assert _opened(tmp_path, "auto") == disk  # what is there is gone on with
    assert [path.name for path in link.parent.iterdir()] == ["trial"]


def test_ranks_that_torchrun_starts_again_take_over_from_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank 0 before was on another node, where nobody here can see whether it has ended."""

    def wait(text: str) -> None:
        raise AssertionError(text)

    monkeypatch.setattr(claim._log, "info", wait)
    monkeypatch.setattr(claim, "_end", lambda _: None)  # of the first one, were it to look just then
    config = parse_config(tree(tmp_path))
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(Place, "here", lambda: Place("node7", 99, "1", "elsewhere", "theirs"))
        world = World(launch_store=HashStore())
        with StopSignals() as stop, owned_run(config, world, stop):
            elsewhere.undo()
            with owned_run(config, World(launch_store=world.launch_store), stop):
                owner = json.loads((tmp_path / "runs" / ".trial.owner").read_text().splitlines()[1])
            assert owner["pid"] == os.getpid()
    assert not list((tmp_path / "runs").iterdir())
