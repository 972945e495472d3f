"""`launch/plan.py`: its own examples, how many identities fit, and what it advises for memory and for time."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.commands.plan import DEVICES, EXAMPLES, least_seconds, main, parse_count, parse_size
from partialkd.config import PhaseConfig
from partialkd.config.load import load_config
from partialkd.planner.advice import identities_that_fit, memory_advice, sampling, savings
from partialkd.planner.plan import Plan, Ranks, plan_phase

CONFIG = ROOT / "configs" / "ms1mv2_arcface.toml"
SMALL = ["student.model.name=iresnet18", "student.model.depth=0.25", "student.model.width=0.25",
         "student.global_batch=64", "data.image_size=32"]  # fmt: skip
RANKS = Ranks(8, cuda=True)
COMBINED = 'centres.sample_rate = 0.1 with centres.memory = "host"'


def phase_of(*overrides: str) -> PhaseConfig:
    return load_config(CONFIG, [*SMALL, *(f"student.{key}" for key in overrides)]).student


DATA = load_config(CONFIG, SMALL).data


@pytest.mark.slow
@pytest.mark.parametrize("command", EXAMPLES)
def test_the_examples_of_its_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[2:]) == 0
    assert re.search(r"^room for [1-9]\d+ identities in all", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["centres.store=bf16", "centres.sample_rate=0.1"],
        ["centres.memory=host", "centres.sample_rate=0.1"],
        ["centres.memory=host", "centres.sample_rate=0.3", "optimizer.name=adamw"],
    ],
    ids=str,
)
@pytest.mark.parametrize("memory", [24e9, 80e9])
def test_so_many_identities_fit_and_two_percent_more_do_not(keys: list[str], memory: float) -> None:
    phase = phase_of(*keys)
    room = identities_that_fit(phase, DATA, RANKS, None, memory)
    assert room > 10_000_000
    assert plan_phase(phase, DATA, room, RANKS).peak <= memory
    assert plan_phase(phase, DATA, int(1.02 * room), RANKS).peak > memory


@pytest.mark.slow
def test_identities_are_asked_for_where_none_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(CONFIG), *SMALL, f"data.path={tmp_path}"]
    assert main(arguments) == 0
    room = identities_that_fit(phase_of(), DATA, RANKS, None, DEVICES["h100-80"].memory)
    output = capsys.readouterr().out
    assert f"student: {room} identities, the most that fit, on 8 x h100-80" in output
    assert f"room for {room} identities in all\n" in output
    assert main([*arguments, "--memory", "1MB"]) == 1
    assert "student: 8 identities, and not even these fit, on " in capsys.readouterr().out


@pytest.mark.slow
def test_a_sample_in_the_hosts_memory_is_advised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONFIG), *SMALL, "--identities", "600000000", "--ranks", "8"]) == 1
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if COMBINED in line]
    assert re.search(r"GB a rank and \d+\.\d\d GB of the host's memory a rank, a step at least [\d.]+ ms, fits$", line)
    for change in COMBINED.split(" with "):
        load_config(CONFIG, [*SMALL, "student.centres.sample_rate=0.1", f"student.{change}"])


def test_sample_rates_are_advised_where_they_save_memory() -> None:
    """Of rows on the device a sample keeps all; of the windows it is all there is."""
    found = dict(savings(phase_of(), DATA, 10**9, RANKS, None, 80e9))
    assert COMBINED in found
    assert not any(change.startswith("centres.sample_rate") for change in found.keys() - {COMBINED})
    kept = phase_of("centres.sample_rate=0.3", "centres.memory=host")
    found = dict(savings(kept, DATA, 10**9, RANKS, None, 80e9))
    assert "centres.sample_rate = 0.1" in found
    assert COMBINED not in found
    text = memory_advice("student", phase_of(), DATA, 10**9, RANKS, None)
    assert 'student.centres.sample_rate = 0.1 with student.centres.memory = "host" (' in text


def test_sample_rates_are_advised_where_they_save_time(capsys: pytest.CaptureFixture[str]) -> None:
    now = plan_phase(phase_of(), DATA, 10**7, RANKS)
    found = dict(sampling(phase_of(), DATA, 10**7, RANKS, None))
    assert list(found) == ["centres.sample_rate = 0.3", "centres.sample_rate = 0.1"]
    # And some rows of the batch's own classes, few beside a million.
    assert found["centres.sample_rate = 0.1"].flops["centres"] == pytest.approx(0.1 * now.flops["centres"], rel=1e-3)
    assert not dict(sampling(phase_of(), DATA, 1000, RANKS, None))
    assert main([str(CONFIG), *SMALL, "--identities", "10000000"]) == 0
    assert "most products are the centres'; centres.sample_rate = 0.1: a step at least " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "seconds"),
    [
        ({"flops": {"student": 10**15, "centres": 10**15}}, 2e15 / 989e12),
        ({"wire": {"gradients": 10**12}}, 1e12 / 450e9),
        ({"copied": {"to the device": 64 * 10**9, "to the host": 128 * 10**9}}, 2.0),
        ({"flops": {"student": 989 * 10**12}, "wire": {"gradients": 450 * 10**8}, "copied": {"to": 64 * 10**8}}, 1.0),
    ],
)
def test_the_least_time_is_that_of_what_takes_longest(part: dict[str, dict[str, int]], seconds: float) -> None:
    nothing: dict[str, dict[str, int]] = {"wire": {}, "flops": {}, "copied": {}}
    plan = Plan(rows=1, resident={}, activations=0, needs={}, update={}, backward=0, **{**nothing, **part})
    assert least_seconds(plan, DEVICES["h100-80"]) == pytest.approx(seconds)


def test_a_memory_without_a_unit_is_a_slip(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(CONFIG), "--memory", "80"])
    assert "argument --memory: must be at least a megabyte, e.g. 80GB, got '80'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80e9), ("80 GB", 80e9), ("80gb", 80e9), ("80G", 80e9), ("80GiB", 80 * 1024**3),
        ("80gib", 80 * 1024**3), ("1.5TB", 1.5e12), ("24576MiB", 24 * 1024**3), ("141e9", 141e9),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["80", "80iB", "GB", "-80GB", "80PB", "1..5GB", "80GB x", "nan", "inf"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be (a number of bytes like 80GB|at least a megabyte)"):
        parse_size(text)


@pytest.mark.parametrize("text", ["2000000", "2M", "2m", "2_000_000", "2,000,000", "2e6", "2000k", "0.002G", " 2 M "])
def test_counts_as_people_write_them(text: str) -> None:
    assert parse_count(text) == 2_000_000


@pytest.mark.parametrize("text", ["0", "-2M", "1.5", "2MB", "many", "2,00", "1e300", ""])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number of at least 1, like 2000000 or 2M"):
        parse_count(text)
