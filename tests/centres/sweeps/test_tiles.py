"""Tiles of the fused kernels: what they compile to, which ones there are, the fastest measured and kept."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from helpers.places import ROOT
from partialkd.centres.sweeps.tiles import PINNED, Tiles, candidates, splits_of
from partialkd.centres.sweeps.tuner import Tuner

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
HOPPER_BYTES, AMPERE_BYTES, SMALL_BYTES = 227 * 1024, 163 * 1024, 99 * 1024


REPORT = ROOT / "benchmarks" / "results" / "kernels_sm90.json"
SWEEPS, DIMS = ("sums", "sgd", "adamw"), (64, 128, 256, 512, 1024)


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """What benchmarks/compiled_kernels.py counts; it must not be imported here, where Triton may be interpreted."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "compiled_kernels.py"), *arguments, "--out", str(out)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())["kernels"]


def check_counts(one: dict[str, Any]) -> None:
    """Nothing is computed twice, and nothing lies on the stack that would be missed in the loop; it all fits."""
    assert one["executed / needed"] <= 1.05, one
    assert one["stack"] <= 256, one
    assert one["registers"] <= 255, one
    assert one["shared"] <= HOPPER_BYTES, one
    wide = [name for name in one["instructions"] if name.startswith("m64")]
    assert bool(wide) == (one["kernel"] in SWEEPS and one["kind"] != "fp32" and one["dim"] <= 512), one


@needs_triton
@pytest.mark.slow
def test_default_tiles_compile_for_hopper() -> None:
    """No device is needed. At D = 512, the width of most face networks."""
    kernels = ("sums", "sgd", "sum_terms", "adamw_update")
    found = compiled("--dims", "512", "--first", "1", "--kernels", *kernels, "--kinds", "bf16", "rounded")
    assert len(found) == 6
    for one in found:
        check_counts(one)


def test_every_candidate_is_in_the_report() -> None:
    """Of every kernel, type and width: nothing computes or reads anything twice, no tile spills much."""
    found = json.loads(REPORT.read_text())["kernels"]
    rows = {(one["kernel"], one["kind"], one["dim"], *one["tiles"]): one for one in found}
    for one in found:
        check_counts(one)
    for kernel, kind, dim in itertools.product(SWEEPS, PINNED, DIMS):
        streamed = "bf16" if kernel != "sums" and kind == "rounded" else kind
        for tiles in candidates(dim, streamed, HOPPER_BYTES):
            assert (kernel, kind, dim, *astuple(tiles)) in rows
    others = {(one["kernel"], one["kind"], one["dim"]) for one in found if one["kernel"] not in SWEEPS}
    updates = ("sgd_update", "adamw_update", "adamw_update, by row")
    wanted = set(itertools.product(updates, ("bf16", "fp32"), DIMS))
    wanted |= set(itertools.product(("sum_terms", "weigh_terms"), ("bf16", "fp32"), (None,)))
    assert others == wanted | {("sum_terms", "int8", None)}


@pytest.mark.slow
@needs_triton
def test_the_report_is_of_these_kernels() -> None:
    """Else: python benchmarks/compiled_kernels.py --out benchmarks/results/kernels_sm90.json"""
    ask = "import compiled_kernels; print(compiled_kernels.fingerprint())"
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", ask], env=paths, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == json.loads(REPORT.read_text())["fingerprint"]


@pytest.mark.parametrize("shared_bytes", [HOPPER_BYTES, AMPERE_BYTES, SMALL_BYTES])
@pytest.mark.parametrize("kind", PINNED)
@pytest.mark.parametrize("dim", [1, 64, 100, 128, 256, 512])
def test_there_are_tiles_for_every_width(dim: int, kind: Any, shared_bytes: int) -> None:
    found = candidates(dim, kind, shared_bytes)
    assert 1 <= len(found) <= 4
    width = max(16, 2 ** (dim - 1).bit_length())
    for tiles in found:
        assert tiles.held * width <= 32 * tiles.warps * 128
        assert (tiles.held + tiles.streamed) * width * (4 if kind == "fp32" else 2) <= shared_bytes


def test_width_1024_needs_a_large_shared_memory() -> None:
    assert candidates(1024, "bf16", HOPPER_BYTES) == [Tiles(32, 32, 8, 3), Tiles(32, 32, 8, 2)]
    assert candidates(1024, "bf16", AMPERE_BYTES) == [Tiles(32, 32, 8, 2)]
    assert candidates(1024, "fp32", HOPPER_BYTES)
    with pytest.raises(ValueError, match="no tiles for D = 1024 in 49152 bytes"):
        candidates(1024, "fp32", 48 * 1024)


@pytest.mark.parametrize(
    ("blocks", "tiles", "wanted"),
    [(16, 10_000, 8), (1, 10_000, 132), (4, 10_000, 33), (24, 10_000, 11), (500, 9, 1), (1, 3, 3)],
)
def test_splits_leave_few_processors_idle(blocks: int, tiles: int, wanted: int) -> None:
    assert splits_of(blocks, tiles, 132) == wanted


def test_the_fastest_tiles_are_kept_on_the_disk(tmp_path: Path) -> None:
    tried, measured = list(PINNED["bf16"][:3]), []

    def seconds(tiles: Tiles) -> float | None:
        measured.append(tiles)
        return {tried[0]: None, tried[1]: 2.0, tried[2]: 1.0}[tiles]

    path = tmp_path / "new" / "tuning.json"
    assert Tuner(path).choose("a", tried, seconds) == tried[2]
    assert measured == tried
    assert Tuner(path).choose("a", tried, seconds) == tried[2]
    assert measured == tried  # not measured again
    assert Tuner(path).choose("b", tried[:2], seconds) == tried[1]
    assert json.loads(path.read_text()).keys() == {"a", "b"}
    assert Tuner(path).choose("a", tried[:2], seconds) == tried[1]  # what was kept is no candidate any more


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": {"held": 3}}', '{"a": 7}', "\x00"])
def test_a_damaged_tuning_file_is_measured_anew(content: str, tmp_path: Path) -> None:
    path, tiles = tmp_path / "tuning.json", PINNED["bf16"][0]
    path.write_text(content)
    assert Tuner(path).choose("a", [tiles], lambda _: 1.0) == tiles
    assert json.loads(path.read_text())["a"]["held"] == tiles.held


def test_tuning_that_cannot_be_kept_is_said_and_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the tuning of a is not kept"):
        assert (
            Tuner(tmp_path / "file" / "tuning.json").choose("a", [PINNED["bf16"][0]], lambda _: 1.0)
            == PINNED["bf16"][0]
        )


def test_no_tiles_that_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a: none of the tiles fits this device"):
        Tuner(tmp_path / "tuning.json").choose("a", [PINNED["bf16"][0]], lambda _: None)
