"""The fused kernels against float64: their logic in Triton's interpreter, themselves on a GPU; the choice of tiles."""

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
import torch

from helpers import kernel_cases
from helpers.kernel_cases import CASES, Case
from helpers.places import ROOT, TESTS
from partialkd.centres.row_optimizers import RowAdamW, RowSGD
from partialkd.centres.sweeps.choose import make_sweep
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest_products import make_products
from partialkd.centres.sweeps.fused import KERNEL_TYPES, FusedSweep
from partialkd.centres.sweeps.listed_rows import kept_rows
from partialkd.centres.sweeps.products import Products
from partialkd.centres.sweeps.tiles import PINNED, Tiles, candidates, splits_of
from partialkd.centres.sweeps.tuner import Tuner
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError

CPU = torch.device("cpu")
HOPPER_BYTES, AMPERE_BYTES, SMALL_BYTES = 227 * 1024, 163 * 1024, 99 * 1024
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Relative errors: float32 products under exp of up to 128 times a cosine; bfloat16 rounds x, p and what is written.
FLOAT32 = {"Z": 1e-5, "O": 1e-5, "gradient": 1e-5, "worst row": 1e-5, "centre": 1e-5, "unit": 1e-6, "length": 1e-5}
BFLOAT16 = {"Z": 4e-2, "O": 4e-2, "gradient": 1e-2, "worst row": 3e-2, "centre": 1e-2, "unit": 5e-3, "length": 1e-4}
# Three steps: units are rounded by 2^-9 each time, against a way of a twentieth of the centre.
FLOAT32_ADAMW = {"first": 1e-5, "second": 1e-5, "way": 1e-5, "centre": 1e-5, "unit": 1e-6, "length": 1e-5}
BFLOAT16_ADAMW = {"first": 2e-2, "second": 2e-2, "way": 0.1, "centre": 1e-2, "unit": 5e-3, "length": 5e-3}


def check(found: dict[str, float], case: Case) -> None:
    rounded = case.rounded or case.dtype == "bfloat16"
    by_type = (BFLOAT16, BFLOAT16_ADAMW) if rounded else (FLOAT32, FLOAT32_ADAMW)
    allowed = {"rows that should stay": 0.0, "count": 0.0, **by_type["count" in found]}
    assert found
    wrong = {what: error for what, error in found.items() if not error <= allowed[what]}
    assert not wrong


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """Every case, run once by the interpreter in a process of its own."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{ROOT}"}
    command = [sys.executable, "-m", "helpers.kernel_cases"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sums", "move", "adamw"])
@pytest.mark.parametrize("name", CASES)
def test_case_in_the_interpreter(interpreted: dict[str, Any], name: str, kind: str) -> None:
    check(interpreted[f"{kind}, {name}"], CASES[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "allowed"), [("tiles", 1e-5), ("repeats", 0.0), ("rounding", 0.1), ("engine", 1e-4), ("measured", 0.0)]
)
def test_all_of_it_in_the_interpreter(interpreted: dict[str, Any], what: str, allowed: float) -> None:
    assert interpreted[what]
    assert max(interpreted[what].values()) <= allowed


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", CASES)
def test_case_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        check(kernel_cases.check_sums(CASES[name], torch.device("cuda")), CASES[name])
        check(kernel_cases.check_move(CASES[name], torch.device("cuda")), CASES[name])
        check(kernel_cases.check_adamw(CASES[name], torch.device("cuda")), CASES[name])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [30.0, 64.0, 128.0])
@pytest.mark.parametrize(("samples", "rows", "dim"), [(1000, 40_000, 512), (200, 33_333, 64), (130, 9_999, 1024)])
def test_large_case_on_a_gpu(
    samples: int, rows: int, dim: int, scale: float, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles measured first, at 32768 rows and more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case = Case(samples=samples, rows=rows, dim=dim, scale=scale, dtype=dtype)
    check(kernel_cases.check_sums(case, torch.device("cuda")), case)
    check(kernel_cases.check_move(case, torch.device("cuda")), case)
    check(kernel_cases.check_adamw(case, torch.device("cuda")), case)
    assert (tmp_path / "partialkd" / "tuning.json").exists() == (rows >= 32768)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("check_it", [kernel_cases.check_tiles, kernel_cases.check_repeats, kernel_cases.check_engine])
def test_all_of_it_on_a_gpu(check_it: Any) -> None:
    assert max(check_it(torch.device("cuda")).values()) < (1e-4 if check_it is kernel_cases.check_engine else 1e-5)


@pytest.mark.gpu
@needs_gpu
def test_more_than_two_to_the_31_numbers() -> None:
    """The last rows, beyond 32-bit offsets, hold the batch's classes and count in Z and O; only they move."""
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB")
    case = Case(samples=256, rows=2**22 + 5000, dim=512, dtype="bfloat16", labels="last", momentum=0.0)
    store, queries = kernel_cases.build(case, torch.device("cuda"), 1)
    got, wanted = FusedSweep(64.0).sums(store, queries), ChunkedSweep(64.0).sums(store, queries)
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-2
    old = store.unit[-4:].clone()
    weight, target = torch.zeros(256, device="cuda"), torch.full((256,), -0.25, device="cuda")
    FusedSweep(64.0).move(store, [(queries, weight, target)], kernel_cases.RowSGD(store, 0.0, 0.0), 10.0)
    assert torch.equal(store.unit[-4:-1], old[:-1])
    assert float((store.unit[-1].float() - old[-1].float()).norm()) > 0.1


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


@pytest.mark.parametrize("name", ["everything", "sampled", "seen", "both", "unseen"])
def test_listed_rows_are_those_the_filter_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialkd.centres.sweeps.listed_rows.LISTED_AT_ONCE", 7)
    _, queries = kernel_cases.build(Case(rows=200, filter=name), CPU, 1)
    lists, kept = list(kept_rows(queries.filter)), queries.filter.keep(0, 200)
    assert (lists == [None]) == (name == "everything")
    if name != "everything":
        assert {one.dtype for one in lists} == {torch.int32}
        assert max(len(one) for one in lists[:-1]) == 7
        listed = torch.cat(lists)
        assert torch.equal(listed[listed >= 0].sort().values.long(), kept.nonzero().squeeze(1))


def test_stores_without_a_kernel_take_the_chunked_path() -> None:
    case = Case(dtype="float64")
    store, queries = kernel_cases.build(case, CPU, 1)
    assert "triton" not in sys.modules or find_spec("triton")
    for got, wanted in zip(FusedSweep(64.0).sums(store, queries), ChunkedSweep(64.0).sums(store, queries), strict=True):
        assert torch.equal(got, wanted)


def test_exact_products_of_rounded_rows_take_the_chunked_path() -> None:
    """On the CPU the kernels would not even load without Triton's interpreter."""
    store, queries = kernel_cases.build(Case(dtype="bfloat16"), CPU, 1)
    fused = FusedSweep(64.0, None, make_products("fp32", CPU), KERNEL_TYPES["fp32"])
    chunked = ChunkedSweep(64.0, None, make_products("fp32", CPU))
    for got, wanted in zip(fused.sums(store, queries), chunked.sums(store, queries), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("products", "rounded"), [("auto", True), ("bf16", True), ("fp32", False)], ids=lambda value: str(value)
)
def test_float32_rows_are_multiplied_as_the_configuration_says(products: Any, rounded: bool) -> None:
    cuda = torch.device("cuda")
    sweep = make_sweep(CentresConfig(backend="fused", products=products), 64.0, cuda)
    assert isinstance(sweep, FusedSweep)
    store, _ = kernel_cases.build(Case(), CPU, 1)
    assert sweep.takes(store)
    assert (sweep.multiplied(store) == torch.bfloat16) == rounded
    assert type(sweep.after_kernels(store).products) is type(make_products("bf16" if rounded else "fp32", CPU))


def test_other_optimisers_take_the_chunked_path() -> None:
    moved = []
    for sweep in (FusedSweep(64.0), ChunkedSweep(64.0)):
        store, queries = kernel_cases.build(Case(), CPU, 1)
        batch = (queries, torch.full((37,), 1e-30), torch.full((37,), -0.1))
        sweep.move(store, [batch], RowAdamW(store, (0.9, 0.999), 1e-8, 0.1), 0.1)
        moved.append(store.unit)
    assert torch.equal(*moved)


class Untouched(Products):
    """Stands for the bfloat16 products of CUDA, which must not be used."""

    def multiply(self, *_: Any) -> None:
        raise AssertionError

    def add(self, *_: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_rows_move_in_the_precision_of_their_sums(dtype: str, precision: Any) -> None:
    """Sums of these stores come from the kernels; AdamW and accumulated steps have none."""
    products = make_products(precision, CPU)
    fused = FusedSweep(64.0, 16, Untouched())
    for optimizer, count in ((RowAdamW, 1), (RowAdamW, 2), (RowSGD, 2)):
        moved = []
        for sweep in (fused, ChunkedSweep(64.0, 16, products)):
            store, queries = kernel_cases.build(Case(dtype=dtype), CPU, 1)
            batch = (queries, torch.full((37,), 1e-30), torch.full((37,), -0.1))
            rows = RowSGD(store, 0.9, 0.1) if optimizer is RowSGD else RowAdamW(store, (0.9, 0.999), 1e-8, 0.1)
            sweep.move(store, [batch] * count, rows, 0.1)
            moved.append(store.unit)
        assert torch.equal(*moved)
    chunked = fused.after_kernels(store)
    assert type(chunked.products) is type(products)
    assert chunked.chunk_rows == 16


def test_fused_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r'centres.backend: must be "chunked" or "auto" .* got "fused" on cpu'):
        make_sweep(CentresConfig(backend="fused"), 64.0, CPU)


def test_auto_is_chunked_until_measured() -> None:
    assert type(make_sweep(CentresConfig(backend="auto"), 64.0, CPU)) is ChunkedSweep
