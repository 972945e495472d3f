"""benchmarks/gpu.py: its page, what it runs again, and a whole rehearsal on the pretend device."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.places import ROOT, TESTS
from helpers.pretend_cuda.hooks import COMPILER
from partialkd.centres.sweeps.choose import BACKENDS

FACTS = {
    "device": "NVIDIA H200",
    "torch": "2.11.0",
    "python": "3.12.3",
    "commit": "abc",
    "status": "done",
    "said": "",
    "took": 9,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu
    import gpu_page

    return SimpleNamespace(gpu=gpu, page=gpu_page)


def step(kind: str, backend: str, **more: Any) -> dict[str, Any]:
    made = {"kind": kind, "backend": backend, "store": "bf16", "memory": "device", "products": "auto", "classes": 10}
    figures = {"sample_rate": 1.0, "seconds": 0.1, "over_floor": 1.1, "peak_extra_bytes": 10**8, "speedup": 3.0}
    return {**made, **figures, **more}


def results(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a run found in which every target is met."""
    kinds = ("fixed", "ema", "trainable")
    both = [step(kind, backend) for kind in kinds for backend in ("chunked", "auto")]
    rival = {"ours auto": {"seconds": 0.1}, "liger": {"seconds": 0.2}, "materialised": {"seconds": 0.4}}
    for one in rival.values():
        one |= {"faster_than_materialised": 0.4 / one["seconds"], "peak_extra_bytes": 1e6}
    accuracy = {"accuracy": {"student": 0.9}, "seconds": 3.0}
    found: dict[str, Any] = {
        "tests": {"passed": 3, "failed": 0, "skipped": 1, "names": []},
        "125k": {"measurements": both, "left_out": []},
        "1m": {"measurements": both, "left_out": []},
        "8m": {"measurements": [step(kind, "auto") for kind in kinds], "left_out": []},
        "rivals": {"measurements": [{"kind": "fixed", "found": rival, "absent": {"quack": "not | there"}}]},
        "waits": {"waits": {"fixed, auto": None}},
        "end_to_end": {"speedup": 2.0, "images_per_second": {"live": 1.0}, "seconds": {"live": {"teacher": 0.1}}},
        "job": {"stage 0": accuracy, "stage 2": accuracy},
    }
    return {name: {**FACTS, "found": changed.get(name, value)} for name, value in found.items()}


def test_every_backend_that_auto_may_choose_is_measured(gpu: Any) -> None:
    competing = [name for name, kind in BACKENDS.items() if kind.competes]
    wanted = {"chunked", *competing, "auto"}
    items = {item.name: item.command for item in gpu.gpu.items(small=False)}
    for name in ("125k", "1m", "1m_fp32_products", "waits", "rivals"):
        words = items[name][items[name].index("--backend") + 1 :]
        assert wanted == set(itertools.takewhile(lambda word: not word.startswith("--"), words)), name


def test_a_page_says_which_targets_are_met(gpu: Any) -> None:
    names = [item.name for item in gpu.gpu.items(small=False)]
    text = gpu.page.page("NVIDIA H200", results(), names, rehearsal=False)
    rows = [
        line for line in text.splitlines() if any(line.startswith(f"| {sentence} |") for sentence in gpu.page.TARGETS)
    ]
    assert len(rows) == len(gpu.page.TARGETS) == 10
    assert all("| yes |" in row for row in rows), rows
    assert "not \\| there" in text
    assert "| host | not run | |" in text


@pytest.mark.parametrize(
    ("item", "found", "target"),
    [
        ("tests", {"passed": 3, "failed": 1, "skipped": 0, "names": ["a::b"]}, "every test"),
        ("1m", {"measurements": [step(k, "auto", over_floor=1.3) for k in ("fixed", "ema")]}, "fixed and moving"),
        ("8m", {"measurements": [step("ema", "auto", peak_extra_bytes=3e8)]}, "a step needs"),
        ("125k", {"measurements": [step(k, "auto", speedup=1.9) for k in ("fixed", "ema", "trainable")]}, "at least 2"),
        ("waits", {"waits": {"fixed, auto": "engine.py:3: synchronizing"}}, "no step"),
        ("end_to_end", {"speedup": 0.9, "images_per_second": {}, "seconds": {}}, "kept teacher"),
    ],
)  # fmt: skip
def test_a_target_that_is_missed(gpu: Any, item: str, found: dict[str, Any], target: str) -> None:
    text = gpu.page.page("NVIDIA H200", results(**{item: found}), [item], rehearsal=False)
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {target}")]
    assert "| **no** |" in row, row


def test_what_was_not_measured_is_no_verdict(gpu: Any) -> None:
    text = gpu.page.page("NVIDIA H200", {"tests": {**FACTS, "status": "cut off", "found": None}}, ["tests"], False)
    rows = [line for line in text.splitlines() if "not measured" in line]
    assert len(rows) == len(gpu.page.TARGETS)
    assert all("| ? |" in row for row in rows)


def test_targets_stand_in_the_documentation(gpu: Any) -> None:
    text = (ROOT / "docs" / "centres.md").read_text()
    assert all(f"- {sentence}\n" in text for sentence in gpu.page.TARGETS)


def test_only_what_is_done_and_of_this_commit_is_not_run_again(gpu: Any, tmp_path: Path) -> None:
    path = gpu.gpu.result_file(tmp_path, "NVIDIA H200", "tests")
    assert path.name == "gpu_nvidia_h200_tests.json"
    assert not gpu.gpu.found_before(path, "abc")
    for status, commit, wanted in (("done", "abc", True), ("done", "other", False), ("cut off", "abc", False)):
        path.write_text(json.dumps({"status": status, "commit": commit}))
        assert gpu.gpu.found_before(path, "abc") == wanted
    path.write_text("{")
    assert not gpu.gpu.found_before(path, "abc")


@pytest.mark.slow
def test_an_item_that_is_cut_off_keeps_what_it_wrote(gpu: Any, tmp_path: Path) -> None:
    code = "import sys, time; open(sys.argv[1], 'w').write('{\"a\": 1}'); time.sleep(60)"
    item = gpu.gpu.Item("slow", 1, 3.0, ("-c", code, "{out}"))
    found = gpu.gpu.run(item, 3.0, tmp_path / "slow.json", {"device": "X"})
    assert (found["status"], found["found"]) == ("cut off", {"a": 1})
    assert json.loads((tmp_path / "slow.json").read_text()) == found
    failed = gpu.gpu.Item("bad", 1, 60.0, ("-c", "raise SystemExit('no luck')"))
    found = gpu.gpu.run(failed, 60.0, tmp_path / "bad.json", {})
    assert (found["status"], found["found"]) == ("failed", None)
    assert "no luck" in found["said"]


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_rehearsal_on_the_pretend_device(tmp_path: Path) -> None:
    """Every item of every stage ends well, at small sizes; a second call finds all of it there."""
    places = (TESTS / "helpers" / "pretend_cuda" / "everywhere", ROOT, TESTS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    text = (tmp_path / "gpu_pretend_cuda_device.md").read_text()
    assert "not run" not in text
    assert "| ? |" not in text.replace("installed, 125 k classes | ? |", "")  # rivals may be absent
    again = subprocess.run([*command, "--stage", "1"], env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stdout.count("is there") == 4
