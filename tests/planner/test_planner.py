"""What the planner says a rank will need, against what ranks were measured to take."""

from __future__ import annotations

import gc
from dataclasses import fields
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.peaks import peak_of
from helpers.places import ROOT
from helpers.ranks import run
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES, CentreStore
from partialkd.commands.plan import main, parse_size
from partialkd.config import Config, DistConfig, ModelConfig
from partialkd.config.load import load_config, parse_config
from partialkd.context import RunContext
from partialkd.data.sources.open import open_source
from partialkd.models import build_model
from partialkd.planner import plan as planner
from partialkd.planner.advice import memory_advice, phases, savings
from partialkd.planner.network_cost import NetworkCost, network_cost
from partialkd.planner.plan import CONTEXT_BYTES, Beside, Plan, Ranks, bytes_a_row, plan_phase
from partialkd.teacher.network import wrap_teacher
from partialkd.training.trainer import Trainer
from partialkd.world.shard import shard_of
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World

CONFIGS = ROOT / "configs"
SIZE, DIM = 48, 64
TEACHER = ModelConfig(name="iresnet18", embedding_dim=DIM, width=0.5, depth=0.5)
MODEL = {"name": "iresnet18", "embedding_dim": DIM, "width": 0.5, "depth": 0.5}

# What is large differs: activations, centres with moments, the sweep, the teacher, DeepSpeed's buckets.
CASES: dict[str, dict[str, Any]] = {
    "activations": {"method": {"name": "arcface"}, "classes": 2000, "global_batch": 96},
    "centres": {"method": {"name": "arcface"}, "classes": 300_001, "global_batch": 12},
    "bf16 centres": {"method": {"name": "arcface"}, "classes": 300_001, "global_batch": 12,
                     "centres": {"store": "bf16"}},
    "int8 centres": {"method": {"name": "adadistill", "initial_centres": "random"}, "classes": 400_000,
                     "global_batch": 12, "centres": {"store": "int8"}},
    "bf16 moments": {"method": {"name": "arcface"}, "classes": 300_001, "global_batch": 12,
                     "centres": {"store": "bf16", "moments": "bf16"}},
    "AdamW, stage 2": {"method": {"name": "cosface"}, "classes": 150_000, "global_batch": 24, "zero_stage": 2,
                       "optimizer": {"name": "adamw", "lr": 0.001}},
    "EMA, stage 3": {"method": {"name": "adadistill", "initial_centres": "random"}, "classes": 100_000,
                     "global_batch": 48, "zero_stage": 3},
    "sampled": {"method": {"name": "arcface"}, "classes": 200_000, "global_batch": 12,
                "centres": {"sample_rate": 0.1}},
    "host memory": {"method": {"name": "arcface"}, "classes": 150_000, "global_batch": 12,
                    "centres": {"sample_rate": 0.2, "memory": "host"}},
    "wide batch": {"method": {"name": "adadistill", "initial_centres": "random"}, "classes": 60_000,
                   "global_batch": 192, "model": {**MODEL, "width": 0.25, "depth": 0.5, "embedding_dim": DIM}},
    "saved behind the step": {"method": {"name": "arcface"}, "classes": 150_000, "global_batch": 12,
                              "run": {"checkpoint_async": True}},
}  # fmt: skip


def config_of(case: dict[str, Any]) -> Config:
    others = ("classes", "run")
    phase = {"model": MODEL, "epochs": 1, **{key: value for key, value in case.items() if key not in others}}
    return parse_config(
        {
            "run": {"name": "trial", "folder": "none", **case.get("run", {})},
            "data": {
                "source": "synthetic", "path": "none", "image_size": SIZE, "loader": "jpeg", "workers": 1,
                "synthetic_identities": case["classes"], "synthetic_images": 4 * case["global_batch"],
            },
            "teacher": {"source": "onnx", "path": "none", "embedding_dim": DIM},
            "student": phase,
        }
    )  # fmt: skip


def two_steps(world: World, config: Config, source: Any) -> None:
    """A store, a trainer, a teacher where the method has one, and two steps with them, a save between them if asked."""
    shard, dtype = shard_of(source.num_classes, world.rank, world.size), DTYPES[config.student.centres.store]
    store = CentreStore.random(shard, source.num_classes, DIM, dtype, world.device, 0)
    network = build_model(TEACHER, SIZE) if taught(config) else None
    teacher = wrap_teacher(network, SIZE, world.device, None) if network else None
    with TemporaryDirectory() as folder:
        place = world.on_main(lambda: Path(folder))
        trainer = Trainer(
            "student", config.student, RunContext(config, world, source, place, StopSignals()), store, teacher
        )
        batches = trainer.loader.epoch(0)
        trainer.micro_step(next(batches))
        if config.run.checkpoint_async:
            trainer.save()
        trainer.micro_step(next(batches))
        trainer.saver.wait()
        trainer.close()


def taught(config: Config) -> bool:
    return config.student.method.name == "adadistill"


def planned(config: Config, ranks: Ranks) -> Plan:
    teacher = Beside.of(TEACHER) if taught(config) else None
    return plan_phase(config.student, config.data, config.data.synthetic_identities, ranks, teacher)


def measured(world: World, name: str) -> tuple[int, int]:
    """-> most bytes that torch held at once from before the store was made to the end of a second step; planned."""
    config = config_of(CASES[name])
    source = open_source(config.data)
    gc.collect()  # what earlier cases left would be let go of, and counted, below
    peak = peak_of(lambda: two_steps(world, config, source))
    return peak, planned(config, Ranks.of(config, world.size, cuda=False)).peak


def measured_all(world: World, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    return {name: measured(world, name) for name in names}


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_peak_of_real_ranks_is_within_ten_percent(world_size: int) -> None:
    names = tuple(CASES)[world_size - 1 :: 2]
    for rank, cases in enumerate(run(measured_all, world_size, names)):
        for name, (peak, planned) in cases.items():
            print(name, rank, f"{peak:,} {planned:,}")
            assert peak > 50_000_000, (name, peak)  # nothing is shown by a small one
            assert abs(planned - peak) < 0.1 * peak, f"{name}, rank {rank}: measured {peak:,}, planned {planned:,}"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_peak_of_a_gpu_is_within_ten_percent() -> None:
    """Compared with what torch allocates, so without CUDA's context."""
    off = {}
    with World.start(DistConfig(device="cuda")) as world:
        for name in ("activations", *CASES):  # the first one twice: what libraries keep is then there
            config = config_of(CASES[name])
            source = open_source(config.data)
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            two_steps(world, config, source)
            peak = torch.cuda.max_memory_allocated() - before
            off[name] = (planned(config, Ranks.of(config, 1, cuda=True)).peak - CONTEXT_BYTES) / peak
    assert all(0.9 < ratio < 1.1 for ratio in off.values()), off


def plan_of(classes: int, ranks: int = 8, **changes: Any) -> Plan:
    phase = load_config(CONFIGS / "ms1mv2_arcface.toml").student.model_copy(update=changes)
    return plan_phase(phase, load_config(CONFIGS / "ms1mv2_arcface.toml").data, classes, Ranks(ranks, cuda=True))


@pytest.mark.slow
def test_a_network_is_counted_as_its_tensors_are() -> None:
    model = ModelConfig(name="iresnet18", embedding_dim=16, width=0.25)
    cost = network_cost(model, 32, 4, "fp32", training=True)
    network = build_model(model, 32)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert network_cost(model, 32, 8, "fp32", training=True).kept == pytest.approx(2 * cost.kept, rel=0.01)
    assert network_cost(model, 32, 4, "fp32", training=False).kept < cost.kept / 10
    recomputed = network_cost(model.model_copy(update={"activation_checkpointing": True}), 32, 4, "fp32", True)
    assert recomputed.kept < cost.kept
    assert recomputed.flops > cost.flops


KINDS = ["ir_se50", "edgeface_xs", "facelivtv2_xs", "ghostfacenet_v1_s1", "ghostfacenet_v2_s2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_is_counted(name: str) -> None:
    model = ModelConfig(name=name, embedding_dim=16, width=0.125, depth=0.1)
    cost = network_cost(model, 48, 4, "bf16", training=True)
    network = build_model(model, 48)
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(4, 3, 48, 48)).sum().backward()
    assert cost.flops == counter.get_total_flops()
    assert cost.peak > cost.kept > 0


@pytest.mark.slow
def test_centres_are_planned_to_the_byte() -> None:
    plan = plan_of(1_000_001)
    rows, dim = 125_001, 512
    assert plan.rows == rows
    assert plan.resident["centres: rows"] == rows * dim * 4
    assert plan.resident["centres: moments"] == rows * dim * 4
    local = load_config(CONFIGS / "ms1mv2_arcface.toml").student.global_batch // 8
    assert plan.wire["all_gather of row weights"] == 7 * local * 2 * 4


@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("store", ["fp32", "bf16"])
def test_second_sweep_needs_at_most_256_mb(
    store: str, optimizer: str, cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = NetworkCost(**{item.name: 0 for item in fields(NetworkCost)})
    monkeypatch.setattr(planner, "network_cost", lambda *_, **__: nothing)  # takes seconds, and is not asked about here
    config = load_config(CONFIGS / "ms1mv2_arcface.toml")
    phase, needs = config.student, []
    for batch, dim, rate in product((64, 256, 1024, 8192), (128, 512, 1024), (1.0, 0.1)):
        changes = {
            "global_batch": batch,
            "model": phase.model.model_copy(update={"embedding_dim": dim}),
            "optimizer": phase.optimizer.model_copy(update={"name": optimizer}),
            "centres": phase.centres.model_copy(update={"store": store, "sample_rate": rate}),
        }
        plan = plan_phase(phase.model_copy(update=changes), config.data, 10_000_000, Ranks(1, cuda))
        needs.extend(plan.update.values())
    assert min(needs) > 5_000_000
    assert max(needs) < 256_000_000


def test_bytes_of_a_row_with_momentum() -> None:
    assert bytes_a_row(load_config(CONFIGS / "ms1mv2_arcface.toml").student) == 512 * 4 * 2 + 5


@pytest.mark.slow
def test_savings_name_keys_and_the_ranks_that_would_do() -> None:
    config = load_config(CONFIGS / "ms1mv2_arcface.toml")
    found = dict(savings(config.student, config.data, 50_000_000, Ranks(2, True), None, 80e9))
    assert {'centres.store = "bf16"', 'centres.moments = "bf16"', "accumulation = 2", "4 ranks"} <= found.keys()
    assert 'centres.store = "int8"' not in found  # its centres are trained
    assert found["4 ranks"].peak <= 80e9
    text = memory_advice("student", config.student, config.data, 50_000_000, Ranks(2, True), None)
    assert text.startswith("the plan for 25000000 of 50000000 centres a rank is ")
    assert "centres: rows 51.20 GB" in text
    assert 'any of these lowers it: student.centres.store = "bf16" (' in text


SMALL = ["student.model.name=iresnet18", "student.model.depth=0.25", "student.model.width=0.25",
         "student.centres.chunk_rows=256", "data.image_size=32"]  # fmt: skip


@pytest.mark.slow
def test_advice_keeps_two_images_a_rank() -> None:
    """BatchNorm does not train with one."""
    overrides = [*SMALL, "student.method.per_rank_maximum=true", "student.global_batch=4"]
    config = load_config(CONFIGS / "ms1mv2_margindistillation.toml", overrides)
    found = {change for change, _ in savings(config.student, config.data, 9000, Ranks(2, False), None, memory=1e3)}
    assert 'centres.store = "bf16"' in found
    assert not any("accumulation" in change or "ranks" in change for change in found)


@pytest.mark.slow
def test_advice_names_only_what_the_configuration_allows() -> None:
    """MarginDistillation's largest confidence is that of the global batch, which must be there at once."""
    path, overrides = CONFIGS / "ms1mv2_margindistillation.toml", [*SMALL, "student.global_batch=8"]
    config = load_config(path, overrides)
    found = {change for change, _ in savings(config.student, config.data, 9000, Ranks(2, False), None, memory=1e3)}
    assert {'centres.store = "bf16"', 'centres.store = "int8"', 'precision = "bf16"', "4 ranks"} <= found
    assert "accumulation = 2" not in found
    for change in found - {"4 ranks"}:  # of more none, for that would be one image each
        load_config(path, [*overrides, f"student.{change}"])


@pytest.mark.parametrize("store", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("optimizer", [{"name": "sgd"}, {"name": "sgd", "momentum": 0.0}, {"name": "adamw"}])
@pytest.mark.parametrize("kept", [{}, {"moments": "bf16"}, {"moments": "bf16", "second_moment": "row"}])
def test_bytes_of_a_row_are_those_of_the_store(store: str, optimizer: dict[str, Any], kept: dict[str, str]) -> None:
    case = CASES["EMA, stage 3" if store == "int8" else "centres"]
    phase = config_of({**case, "centres": {"store": store, **kept}, "optimizer": optimizer}).student
    real = CentreStore.empty(range(7), 20, DIM, DTYPES[store], torch.device("cpu"))
    if store != "int8":
        make_row_optimizer(real, phase.optimizer, phase.centres)
    assert 7 * bytes_a_row(phase) == sum(value.nbytes for value in real.state().values())


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "ms1mv2_arcface.toml")
    assert main([config, "--identities", "85742", "--ranks", "2"]) == 0
    output = capsys.readouterr().out
    for text in ("centres: moments", "peak, ", "all_gather of embeddings", "room for "):
        assert text in output
    assert main([config, "--identities", "90000000", "--ranks", "2", "--memory", "24GB"]) == 1
    assert "does not fit" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([config, "--identities", "85742", "--ranks", "7"])
    assert "student.global_batch: must be divisible by accumulation x ranks (1 x 7)" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([config, "student.global_batch=2", "--identities", "85742", "--ranks", "2"])
    assert "student.global_batch: must leave every rank two images a micro-step" in capsys.readouterr().err


@pytest.mark.slow
def test_identities_of_data_that_the_run_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No data are needed for it; where there are others' data, they say how many."""
    config, place = str(CONFIGS / "quickstart.toml"), f"data.path={tmp_path}"
    assert main([config, place, "data.prepare.identities=60", "--ranks", "2"]) == 0
    assert "teacher.train: 60 identities, on 2 x " in capsys.readouterr().out
    (tmp_path / "property").write_text("85742,112,112")
    assert main([str(CONFIGS / "ms1mv2_arcface.toml"), place, "--ranks", "2"]) == 0
    assert "student: 85742 identities" in capsys.readouterr().out


def test_sizes() -> None:
    assert parse_size("80GB") == 80e9
    assert parse_size("141e9") == 141e9
    with pytest.raises(Exception, match="80GB"):
        parse_size("eighty")


@pytest.mark.slow
def test_several_teachers_and_generations_are_counted() -> None:
    """Parameters of all teachers together, the largest forward of them; then a student that teaches the next."""
    config = load_config(CONFIGS / "ms1mv2_adadistill.toml")
    names = ("iresnet50", "iresnet18")
    members = tuple({"source": "checkpoint", "path": "t.pt", "model": {"name": name}} for name in names)
    tree = config.model_dump(mode="json", exclude_none=True)
    tree["teacher"] = {"source": "ensemble", "ensemble": list(members)}
    tree["student"]["generations"] = 3
    config = parse_config(tree)
    found = {name: (phase, beside) for name, phase, beside in phases(config)}
    assert list(found) == ["generation_1", "generation_2 to student"]
    plans = {}
    for name, (phase, beside) in found.items():
        plans[name] = plan_phase(phase, config.data, 1000, Ranks(8, True), beside)
    each = [plan_phase(config.student, config.data, 1000, Ranks(8, True), Beside.of(ModelConfig(name=name)))
            for name in (*names, config.student.model.name)]  # fmt: skip
    first, later = plans.values()
    assert first.resident["teacher"] == each[0].resident["teacher"] + each[1].resident["teacher"]
    assert first.needs["teacher forward"] == each[0].needs["teacher forward"]
    assert first.flops["teacher"] == each[0].flops["teacher"] + each[1].flops["teacher"]
    assert later == each[2]
    cached = tree | {"teacher": tree["teacher"] | {"cache": "auto"}}
    assert [beside for _, _, beside in phases(parse_config(cached))] == [None, None]
