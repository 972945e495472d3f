"""What the plan counts beside the training itself: copies for checkpoints, a graph, and what measuring sweeps holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from helpers.peaks import peak_of
from helpers.places import ROOT
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES, CentreStore
from partialkd.centres.sweeps import fastest as measured
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fastest import FastestSweep
from partialkd.centres.sweeps.fused import KERNEL_TYPES, FusedSweep
from partialkd.centres.sweeps.graphed import GraphedSweep, Run
from partialkd.centres.sweeps.products import rounds
from partialkd.centres.sweeps.tuner import Tuner
from partialkd.checkpoint.snapshot import Snapshot, Staging
from partialkd.commands.plan import main
from partialkd.config import PhaseConfig
from partialkd.config.load import load_config
from partialkd.planner import overheads as beside
from partialkd.planner import plan as planner
from partialkd.planner.advice import memory_advice, savings
from partialkd.planner.network_cost import NetworkCost
from partialkd.planner.plan import Plan, Ranks, plan_phase

CONFIG = ROOT / "configs" / "ms1mv2_arcface.toml"
SAMPLES, DIM, ROWS, STUDENT = 32, 64, 40_000, 1000
TRIED = 8192  # rows measured with, in the place of TUNING_ROWS, where they are
PIECES = [range(start, start + 1000) for start in range(0, ROWS, 4000)]
MEASURED = Ranks(1, cuda=True)


@pytest.fixture(autouse=True)
def small_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes seconds, and is not asked about here."""
    cost = {**{item.name: 0 for item in fields(NetworkCost)}, "parameters": STUDENT, "buffers": 7}
    monkeypatch.setattr(planner, "network_cost", lambda *_, **__: NetworkCost(**cost))


def phase_of(*overrides: str) -> PhaseConfig:
    keys = [f"global_batch={SAMPLES}", f"model.embedding_dim={DIM}", "centres.chunk_rows=1024", *overrides]
    return load_config(CONFIG, [f"student.{key}" for key in keys]).student


def plan_of(phase: PhaseConfig, ranks: Ranks = MEASURED, classes: int = ROWS) -> Plan:
    return plan_phase(phase, load_config(CONFIG).data, classes, ranks)


class NoKernels(FusedSweep):
    """Chunked, in the place of the kernels, whose own copies hold less than what is compared."""

    sums = ChunkedSweep.sums
    move = ChunkedSweep.move
    version = ChunkedSweep.version


def once(run: Callable[[], object]) -> float:
    run()
    return 1.0


def sweep_of(phase: PhaseConfig, path: Path, monkeypatch: pytest.MonkeyPatch) -> FastestSweep:
    for module in (measured, beside):
        monkeypatch.setattr(module, "TUNING_ROWS", TRIED)
    types = KERNEL_TYPES["bf16" if rounds(phase.centres.products, cuda=True) else "fp32"]
    chunk_rows = phase.centres.chunk_rows
    kernels = NoKernels(64.0, chunk_rows, types=types)
    return FastestSweep(ChunkedSweep(64.0, chunk_rows), {"fused": kernels}, Tuner(path / "tuning.json"), once)


def problem(phase: PhaseConfig, pieces: list[range] | None) -> tuple[CentreStore, Queries]:
    store = CentreStore.random(range(ROWS), ROWS, DIM, DTYPES[phase.centres.store], torch.device("cpu"), 0)
    row = torch.arange(SAMPLES)
    x = torch.nn.functional.normalize(torch.randn(SAMPLES, DIM, generator=torch.Generator().manual_seed(1)))
    return store, Queries(x, row >= 0, row, RowFilter(ROWS, row, pieces))


KEPT = {
    "SGD, fp32": ["centres.products=fp32"],
    "SGD, bf16": ["centres.store=bf16"],
    "SGD, all bf16": ["centres.store=bf16", "centres.moments=bf16"],
    "SGD without momentum, bf16": ["centres.store=bf16", "optimizer.momentum=0.0"],
    "AdamW, bf16": ["centres.store=bf16", "centres.moments=bf16", "centres.second_moment=row", "optimizer.name=adamw"],
}


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_measuring_is_planned_as_it_allocates(
    kept: list[str], sampled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the movement of rows, and of sums where the rows measured with are copies: else there is next to nothing."""
    phase = phase_of("centres.backend=auto", *kept, *(["centres.sample_rate=0.25"] if sampled else []))
    store, queries = problem(phase, PIECES if sampled else None)
    rule = make_row_optimizer(store, phase.optimizer, phase.centres)
    sweep = sweep_of(phase, tmp_path, monkeypatch)
    plan = plan_of(phase)
    target = torch.full((SAMPLES,), -1.0)
    peaks = {
        "centres: measuring the sweeps' sums": peak_of(lambda: sweep.sums(store, queries)),
        "measuring both sweeps' movement of rows": peak_of(
            lambda: sweep.move(store, [(queries, target * -1e-28, target)], rule, 0.1)
        ),
    }
    counted = {**plan.needs, **plan.update}
    for name, peak in peaks.items() if sampled else list(peaks.items())[1:]:
        assert peak > TRIED * DIM * 4
        # Sums are planned with a copy of a chunk's rows that is let go of before most of the rest is there.
        assert counted[name] == pytest.approx(peak, rel=0.1 if "sums" in name else 0.03), name
    if not sampled:  # next to nothing
        graph = plan.resident["centres: graph of the sums"]
        assert plan.needs["centres: measuring the sweeps' sums"] < plan.needs["centres: sums"] + graph


@pytest.mark.parametrize(
    ("overrides", "ranks", "sums", "moves"),
    [
        (["centres.store=bf16"], MEASURED, True, True),
        (["centres.store=bf16", "centres.backend=chunked"], MEASURED, False, False),
        (["centres.store=bf16", "accumulation=2"], MEASURED, True, False),
        (["centres.store=bf16", "optimizer.name=adamw"], MEASURED, True, False),
        (["centres.store=bf16", "centres.sample_rate=0.1"], MEASURED, True, True),
        (["centres.store=bf16"], replace(MEASURED, deterministic=True), False, False),
        (["centres.store=bf16"], replace(MEASURED, cuda=False), False, False),
        (["centres.store=bf16"], replace(MEASURED, size=2), True, True),
        (["centres.store=bf16", "model.embedding_dim=2048"], MEASURED, True, False),  # has no kernels, but a graph
        ([], MEASURED, True, True),  # float32 rows, bfloat16 products: rounded in the kernels
        (["centres.chunk_rows=19"], MEASURED, True, True),  # too many chunks for a graph, not for kernels
        (["centres.products=fp32"], MEASURED, True, True),
    ],
    ids=str,
)
def test_it_is_counted_where_something_is_measured(overrides: list[str], ranks: Ranks, sums: bool, moves: bool) -> None:
    plan = plan_of(phase_of("centres.backend=auto", *overrides), ranks)
    assert any("measuring" in name for name in plan.needs) == sums
    assert any("measuring" in name for name in plan.update) == moves


@pytest.mark.parametrize(
    ("overrides", "ranks", "kept"),
    [
        (["centres.backend=graphed"], MEASURED, True),
        (["centres.backend=graphed"], replace(MEASURED, deterministic=True), True),
        (["centres.backend=auto"], MEASURED, True),  # may turn out the fastest
        (["centres.backend=auto"], replace(MEASURED, deterministic=True), False),
        (["centres.backend=auto"], replace(MEASURED, size=2), True),  # too few rows to measure
        (["centres.backend=graphed"], replace(MEASURED, size=2), True),
        (["centres.backend=graphed", "centres.sample_rate=0.5"], MEASURED, False),
        (["centres.backend=graphed", "centres.chunk_rows=19"], MEASURED, False),
        (["centres.backend=graphed"], replace(MEASURED, cuda=False), False),
        (["centres.backend=fused"], MEASURED, False),
        ([], MEASURED, False),
    ],
    ids=str,
)
def test_a_graph_keeps_the_memory_of_the_sums(overrides: list[str], ranks: Ranks, kept: bool) -> None:
    """The chunk that they would take and give back is counted once."""
    plan, usual = (plan_of(phase_of(*keys), ranks) for keys in (overrides, [*overrides, "centres.backend=chunked"]))
    chunk = usual.needs["centres: sums"] - plan.needs["centres: sums"]
    graph = plan.resident.get("centres: graph of the sums", 0)
    assert (chunk > 0, graph > 0) == (kept, kept)
    if kept:
        chunks = -(-ROWS // (1024 * ranks.size))
        assert graph - chunk == 4 * SAMPLES * DIM * 4 + chunks * 150_000


def test_a_graph_is_planned_as_it_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(run: Run) -> Run:
        run()
        results = run()
        return lambda: results

    monkeypatch.setattr(GraphedSweep, "device", "cpu")
    phase = phase_of("centres.backend=graphed", "centres.products=fp32")
    store, queries = problem(phase, None)
    sweep = GraphedSweep(64.0, phase.centres.chunk_rows, capture=capture)
    planned = plan_of(phase).resident["centres: graph of the sums"] - 40 * 150_000
    assert planned == pytest.approx(peak_of(lambda: sweep.trial_sums(store, queries)), rel=0.1)


def test_less_is_advised_than_to_measure() -> None:
    phase, data = (
        phase_of("centres.backend=auto", "centres.store=bf16", "model.embedding_dim=512"),
        load_config(CONFIG).data,
    )
    found = dict(savings(phase, data, ROWS, MEASURED, None, 80e9))
    saved = plan_of(phase).peak - found['centres.backend = "chunked"'].peak
    assert 0.5e9 < saved < 0.6e9


BEHIND = Ranks(4, cuda=True, checkpoint_async=True)


def copies_of(plan: Plan) -> dict[str, int]:
    return {name: size for name, size in {**plan.resident, **plan.host}.items() if "checkpoints" in name}


@pytest.mark.parametrize("kept", [*KEPT.values(), ["centres.memory=host", "centres.sample_rate=0.1"]], ids=str)
def test_copies_for_checkpoints_are_planned_to_the_byte(kept: list[str]) -> None:
    """A save takes them from the tensors that it is given: where no GPU is, and from a store in host memory."""
    phase = phase_of(*kept)
    shard = range(1001)
    store = CentreStore.empty(shard, 4001, DIM, DTYPES[phase.centres.store], torch.device("cpu"))
    make_row_optimizer(store, phase.optimizer, phase.centres)
    staging = Staging()
    staging.copy(Snapshot(1, {}, {}, store.state(), shard, 4001, {}))
    copied = sum(x.nbytes for x in staging._memory.values())
    assert copied == sum(x.nbytes for x in store.state().values())
    moments = 2 if phase.optimizer.name == "adamw" else int(phase.optimizer.momentum > 0)
    plan = plan_of(phase, replace(BEHIND, cuda=False), classes=4001)
    wanted = {
        "copy for checkpoints: student": (1 + moments) * STUDENT * 4 + 7,
        "copy for checkpoints: centres": copied,
    }
    assert copies_of(plan) == wanted
    assert copies_of(plan_of(phase, replace(BEHIND, cuda=False, checkpoint_async=False))) == {}
    if phase.centres.memory == "host":
        plan = plan_of(phase, BEHIND, classes=4001)
        assert sum(plan.host.values()) == 2 * copied + wanted["copy for checkpoints: student"]


def test_what_leaves_a_gpu_takes_a_power_of_two_a_tensor() -> None:
    """As torch page-locks memory."""
    plan = plan_of(phase_of(), BEHIND, classes=4 * 1000)
    assert plan.host["copy for checkpoints: centres"] == 2 * 2**18 + 2**12 + 2**10  # 256,000 twice, 4,000 and 1,000
    assert not any("checkpoints" in name for name in plan.resident)


def test_fixed_centres_are_not_copied() -> None:
    config = load_config(CONFIG.parent / "ms1mv2_margindistillation.toml")
    plan = plan_phase(config.student, config.data, 10**6, BEHIND)
    assert set(copies_of(plan)) == {"copy for checkpoints: student"}


def test_writing_in_the_step_is_advised(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a rank's host and its device are one it may make the run fit; else it says what the host is spared."""
    keys = ["run.checkpoint_async=true", "student.centres.sample_rate=0.1", "student.centres.memory=host"]
    config = load_config(CONFIG, keys)
    phase, data, classes = config.student, config.data, 10**8
    of_a_rank = classes // 8 * (2 * 512 * 4 + 5)
    text = memory_advice("student", phase, data, classes, Ranks.of(config, 8, cuda=True), None)
    assert f"and {2 * of_a_rank / 1e9:.2f} GB of the host's memory" in text
    assert f"({of_a_rank / 1e9:.2f} GB less with run.checkpoint_async = false)" in text
    found = dict(savings(phase, data, classes, Ranks.of(config, 8, cuda=False), None, 80e9))
    now = plan_phase(phase, data, classes, Ranks.of(config, 8, cuda=False)).peak
    assert now - found["run.checkpoint_async = false"].peak == pytest.approx(of_a_rank, rel=1e-4)
    assert "student.run" not in memory_advice("student", phase, data, classes, Ranks.of(config, 8, cuda=False), None)
    main([str(CONFIG), *keys, "--identities", str(classes), "--ranks", "8"])
    output = capsys.readouterr().out
    assert f"run.checkpoint_async = false: {of_a_rank / 1e9:.2f} GB of the host's memory a rank less\n" in output
    assert f"in the host's memory: copy for checkpoints: centres | {of_a_rank / 1e9:.3f} |" in output.replace("  ", "")
    main([str(CONFIG), *keys[1:], "--identities", str(classes), "--ranks", "8"])
    assert "checkpoint" not in capsys.readouterr().out
