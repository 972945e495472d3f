"""One owner at a time: refused while it lives, whoever looks; taken over when it is dead, and by its own successors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.errors import InUse
from partialkd.storage import claim as module
from partialkd.storage.claim import Claim, Owner, claim

HOLDING = """
import sys, time
from pathlib import Path
from partialkd.storage.claim import claim
claim(Path(sys.argv[1]), "rule")
print("held", flush=True)
time.sleep(600)
"""
RULE = "choose another name"


def never(text: str) -> None:
    raise AssertionError(f"waited: {text}")


def taken(folder: Path, heir_of: str = "") -> Claim:
    """The claim, without any waiting."""
    return claim(folder, RULE, heir_of=heir_of, say=never)


def edit(folder: Path, counter: int = 0, **changed: object) -> None:
    """Make the claim on `folder` another process's."""
    path = folder.with_name(f".{folder.name}.owner")
    _, owner = path.read_text().splitlines()
    path.write_text(f"{counter:020d}\n{json.dumps({**json.loads(owner), **changed})}\n")


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A folder claimed by a process that this one cannot see: on another machine."""
    folder = tmp_path / "run"
    held = taken(folder)
    edit(folder, host="node7", system="elsewhere", pid=99, token="theirs")
    yield folder
    held.release()


def test_a_second_start_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    held = taken(tmp_path / "run")
    who = rf"in use by process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC; choose another name$"
    with pytest.raises(InUse, match=f"^{tmp_path / 'run'}: {who}"):
        taken(tmp_path / "run")
    held.release()
    taken(tmp_path / "run").release()
    assert not list(tmp_path.iterdir())


def test_a_dead_owner_is_followed_at_once_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDING, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(InUse, match=f"in use by process {process.pid} on .*, which is stopped; {RULE}"):
            taken(folder)
        process.kill()
        process.wait()
    taken(folder).release()


def test_one_of_many_starts_follows_a_dead_owner(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    dead = taken(folder)
    edit(folder, born="1", token="dead")  # a process that had this number before
    ends: list[object] = []
    ready = threading.Barrier(8)

    def start() -> None:
        ready.wait()
        try:
            ends.append(taken(folder))
        except InUse as error:
            ends.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [end for end in ends if isinstance(end, Claim)]
    assert len(ends) == 8
    assert len(held) == 1
    held[0].release()
    dead.release()


def test_who_has_taken_over_is_left_alone_by_one_that_saw_the_dead_owner(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even moved away for a moment, in which a third could take the name: then two would go on."""
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("moved"))
    module._remove(foreign.with_name(".run.owner"), Owner(token="dead"))
    module._remove(foreign.with_name(".other.owner"), Owner(token="dead"))


def test_an_owner_elsewhere_is_dead_when_its_counter_stands_still(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "SILENCE_S", 0.2)
    monkeypatch.setattr(time, "time", lambda: -1e9)  # whatever the clock of this machine says
    held = claim(foreign, RULE, say=said.append)
    assert [text.partition(" since ")[0] for text in said] == [f"{foreign}: waiting for process 99 on node7"]
    assert said[0].endswith("it is taken for dead after 0.2 s without a sign of life")
    held.release()


def test_an_owner_elsewhere_that_gives_signs_of_life_is_not_followed(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)

    def beat(_: str) -> None:
        edit(foreign, counter=1)

    with pytest.raises(InUse, match=f"in use by process 99 on node7 .*; {RULE}"):
        claim(foreign, RULE, say=beat)


@pytest.mark.parametrize("content", ["", "0", "00\n{", '00\n{"pid": "x"}', "00\n[]"])
def test_a_claim_that_nobody_can_read_is_followed_after_a_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "SILENCE_S", 0.1)
    (tmp_path / ".run.owner").write_text(content)
    said: list[str] = []
    claim(tmp_path / "run", RULE, say=said.append).release()
    assert said[0].startswith(f"{tmp_path / 'run'}: waiting for process 0 on an unknown machine since an unknown time;")


def test_a_requeued_slurm_job_follows_itself_at_once(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(foreign, job="17", restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(AssertionError, match=r"waited: .*Slurm job 17"):  # a second start inside the same job
        taken(foreign)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    taken(foreign).release()


def test_ranks_that_torchrun_starts_again_follow_their_own(foreign: Path) -> None:
    with pytest.raises(AssertionError, match="waited"):
        taken(foreign, heir_of="another's")
    taken(foreign, heir_of="theirs").release()


def test_one_that_waits_says_for_whom_and_goes_on_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    held, said = taken(tmp_path / "data"), []

    def say(text: str) -> None:
        said.append(text)
        held.release()

    claim(tmp_path / "data", RULE, waiting_for="making it", say=say).release()
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'data'}: waiting for process {os.getpid()} on ")
    assert said[0].endswith(", which is making it")


def test_an_owner_that_was_taken_for_dead_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    ended, texts = threading.Event(), []

    def end(text: str) -> None:
        texts.append(text)
        ended.set()

    monkeypatch.setattr(module, "_end", end)
    held = taken(tmp_path / "run")
    old = held.owner
    second = claim(tmp_path / "run", RULE, heir_of=old.token)
    assert ended.wait(60)
    assert texts == [f"{held.path}: {old} was taken for dead, and {second.owner} has taken over"]
    held.release()
    with pytest.raises(InUse):  # its end does not take the claim of the other away
        taken(tmp_path / "run")
    second.release()


def test_the_counter_goes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    held = taken(tmp_path / "run")
    start = time.monotonic()
    while int(held.path.read_text().splitlines()[0]) < 2:
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    assert Owner(**json.loads(held.path.read_text().splitlines()[1])) == held.owner
    held.release()


def test_a_link_and_what_it_points_to_are_one_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    held = taken(tmp_path / "link")
    with pytest.raises(InUse):
        taken(tmp_path / "disk" / "run")
    held.release()
