"""A run goes on at another number of ranks, stage, accumulation, store and memory as if nothing had happened.

One chain of checkpoints, 4 -> 3 -> 2 -> 1 -> 4 ranks, is compared with runs that nobody disturbed on 1 and on 2 ranks.
The network is tiny, everything else is the trainer's own. Cases share launches, since starting ranks costs seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.ranks import run
from partialkd import checkpoint
from partialkd.centres.store import DTYPES, CentreStore
from partialkd.config import Config
from partialkd.config.load import load_config, parse_config, save_config
from partialkd.config.resume import check_same_run
from partialkd.context import RunContext
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.sources.open import open_source
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import ConfigError
from partialkd.teacher.network import wrap_teacher
from partialkd.training import trainer
from partialkd.training.phase_plan import check_batch
from partialkd.training.state import stream_seed
from partialkd.world import stop_signals as stopping
from partialkd.world.shard import shard_of
from partialkd.world.world import World

IMAGES, BATCH, DIM, SIDE = 62, 12, 8, 16  # five steps an epoch, two records left out of each
CHAIN = ((4, 2), (3, 5), (2, 7), (1, 8), (4, 10))  # ranks, and the step they stop at: in and between epochs
STEPS = CHAIN[-1][1]
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 0.005, "weight_decay": 0.05}
ARCFACE = {"name": "arcface", "scale": 16.0}
ADADISTILL = {"name": "adadistill", "scale": 16.0, "initial_centres": "exclude"}
MARGINDISTILLATION = {"name": "margindistillation", "scale": 16.0}
ADAFACE = {**ADADISTILL, "margin": {"name": "adaface", "t_alpha": 0.3, "geometry": 2.0, "geometry_warmup_steps": 6}}
ELASTIC = {"name": "trained_centres", "scale": 16.0, "margin": {"name": "elastic_arc", "std": 0.3}}


class TinyNet(nn.Module):
    """Two convolutions with their BatchNorms, PReLU, dropout and a linear layer: (b, 3, 16, 16) -> (b, 8)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)  # SyncBatchNorm would leave it no gradient
        self.bn2 = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(32, DIM)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.act(self.bn(self.conv(images)))))
        return self.fc(self.dropout(x.flatten(1))).float()


@dataclass(frozen=True)
class Case:
    name: str
    method: dict[str, Any]
    optimizer: dict[str, Any]
    stages: tuple[int, ...]  # ZeRO, of each leg of the chain
    accumulation: tuple[int, ...] = (1, 1, 1, 1, 1)
    centres: dict[str, Any] = field(default_factory=dict)
    memory: tuple[str, ...] = ("device",) * 5  # of the centres
    phase: dict[str, Any] = field(default_factory=lambda: {"freeze_batchnorm": True})
    identities: int = 23


CASES = (
    Case("trainable", ARCFACE, SGD, (0, 3, 1, 2, 0), (1, 2, 3, 2, 1), identities=IMAGES),
    Case(
        "sampled",
        ARCFACE,
        ADAMW,
        (2, 0, 3, 0, 2),
        centres={"sample_rate": 0.4},
        memory=("host", "device", "host", "host", "device"),
    ),
    Case("ema", ADADISTILL, SGD, (3, 1, 0, 2, 1)),
    Case("fixed", MARGINDISTILLATION, ADAMW, (1, 2, 1, 3, 2), phase={"sync_batchnorm": True}),
    Case("moving statistics", ADAFACE, SGD, (0, 2, 1, 0, 3)),
    Case("drawn", ELASTIC, SGD, (0, 1, 0, 2, 0), (1, 2, 3, 2, 1)),
)


def config_of(case: Case, leg: int, folder: Path, **changes: Any) -> Config:
    phase = {
        "model": {"name": "iresnet18", "embedding_dim": DIM}, "method": case.method, "optimizer": case.optimizer,
        "epochs": 3, "max_steps": CHAIN[leg][1], "global_batch": BATCH,
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "zero_stage": case.stages[leg], "accumulation": case.accumulation[leg],
        "centres": {**case.centres, "memory": case.memory[leg]}, **case.phase, **changes,
    }  # fmt: skip
    tree: dict[str, Any] = {
        "run": {"name": "trial", "folder": str(folder), "log_every": 1, "tensorboard": False},
        "data": {
            "source": "synthetic", "path": "none", "image_size": SIDE, "loader": "jpeg", "workers": 1,
            "synthetic_identities": case.identities, "synthetic_images": IMAGES,
        },
        "teacher": {"source": "onnx", "path": "none", "embedding_dim": DIM},
        "student": phase,
    }  # fmt: skip
    return parse_config(tree)


class Watched(trainer.Trainer):
    """Keeps the labels of every optimiser step."""

    labels: list[list[int]]

    def micro_step(self, batch: Any) -> Any:
        if not self._outcomes:
            self.labels.append([])
        self.labels[-1] += batch.labels.tolist()
        return super().micro_step(batch)


@contextmanager
def opened(world: World, config: Config, dropout: float = 0.0) -> Iterator[Watched]:
    """A trainer of the tiny network, its teacher and its centres the same at any number of ranks."""
    torch.manual_seed(3)
    teacher = wrap_teacher(TinyNet(0.0).eval(), SIDE, world.device)
    source, phase, kind = open_source(config.data), config.student, config.student.method.centre_kind
    shard = shard_of(source.num_classes, world.rank, world.size)
    dtype, averaged = DTYPES[phase.centres.store], kind == "ema"
    store = CentreStore.random(shard, source.num_classes, DIM, dtype, world.device, seed=2, skip_unseen=averaged)
    stop, build = stopping.StopSignals(), trainer.build_model
    context = RunContext(config, world, source, Path(config.run.folder), stop)
    trainer.build_model = lambda *_: TinyNet(dropout)  # type: ignore[assignment]
    try:
        made = Watched("student", phase, context, store, teacher)
        made.labels = []
        yield made
        made.close()
    finally:
        trainer.build_model = build
        stop.forget()


def train(world: World, configs: list[Config], dropout: float = 0.0) -> list[dict[str, Any]]:
    """Go on with each run to its max_steps -> by run: labels of each step on all ranks, what this rank ends with."""
    results = []
    for config in configs:
        with opened(world, config, dropout) as made:
            network = made.run(resume=True)
            numbers = torch.rand(8).tolist()
            steps = zip(*world.gather_objects(made.labels), strict=True)
            labels = [sorted(chain.from_iterable(ranks)) for ranks in steps]
            results.append({
                "labels": labels, "network": network.state_dict(), "centres": made.store.read(slice(None)).clone(),
                "numbers": numbers, "buffers": made.student.local_state(),
            })  # fmt: skip
    return results


def losses_of(folder: Path, steps: int = STEPS) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]  # others are the scores of checkpoints
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    return [line["loss"] for line in lines]


@dataclass
class Told:
    """What a run did, step by step, and its end."""

    losses: list[float]
    labels: list[list[int]]
    network: dict[str, Tensor]
    centres: Tensor


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Told]]:
    """By case: the "chain", and runs "1" and "2" on as many ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    legs = {"1": ((1, 4),), "2": ((2, 4),), "chain": tuple((size, leg) for leg, (size, _) in enumerate(CHAIN))}
    told: dict[str, dict[str, Told]] = {case.name: {} for case in CASES}
    for kind, parts in legs.items():
        labels: dict[str, list[list[int]]] = {case.name: [] for case in CASES}
        for size, leg in parts:
            configs = [config_of(case, leg, folder / kind / case.name) for case in CASES]
            ranks = run(train, size, configs)
            for case, *results in zip(CASES, *ranks, strict=True):
                labels[case.name] += results[0]["labels"]
                centres = torch.cat([result["centres"] for result in results])
                losses = losses_of(folder / kind / case.name) if leg == 4 else []
                told[case.name][kind] = Told(losses, labels[case.name], results[0]["network"], centres)
    return told


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("undisturbed", ["1", "2"])
def test_the_chain_learns_what_an_undisturbed_run_learns(
    case: Case, undisturbed: str, runs: dict[str, dict[str, Told]]
) -> None:
    """Losses, the network and the centres."""
    broken, straight = runs[case.name]["chain"], runs[case.name][undisturbed]
    assert broken.losses == pytest.approx(straight.losses, rel=1e-6)
    assert max(straight.losses) > min(straight.losses) * 1.01  # they are not all alike
    torch.testing.assert_close(broken.network, straight.network, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(broken.centres, straight.centres, rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
def test_every_record_is_read_once_an_epoch(runs: dict[str, dict[str, Told]]) -> None:
    """Each record is a class of its own here: over resumes in mid-epoch at other world sizes and accumulations."""
    steps, straight = runs["trainable"]["chain"].labels, runs["trainable"]["1"].labels
    assert steps == straight
    for epoch in (steps[:5], steps[5:]):
        read = list(chain.from_iterable(epoch))
        assert len(read) == len(set(read)) == IMAGES - IMAGES % BATCH
    assert steps[0] != steps[5]


# --------------------------------------------------------------------- what differs at another number of ranks

LIVE = Case("live", ARCFACE, SGD, (0, 1, 0, 0, 0), phase={})


def look(world: World, config: Config) -> dict[str, Any]:
    with opened(world, config, dropout=0.5) as made:
        made.resume()
        return {"buffers": made.student.local_state(), "numbers": torch.rand(8).tolist()}


@pytest.mark.distributed
def test_random_numbers_and_running_statistics_at_another_number_of_ranks(tmp_path: Path) -> None:
    config = config_of(LIVE, 0, tmp_path)
    saved = [rank[0] for rank in run(train, 2, [config], 0.5)]
    same, other, again = run(look, 2, config), run(look, 3, config), run(look, 3, config)
    assert [rank["numbers"] for rank in same] == [rank["numbers"] for rank in saved]
    streams = [rank["numbers"] for rank in (*saved, *other)]
    assert len({tuple(numbers) for numbers in streams}) == 5  # no two ranks draw the same, and nothing is drawn twice
    assert [rank["numbers"] for rank in again] == [rank["numbers"] for rank in other]
    for name in ("buffer.bn.running_mean", "buffer.bn2.running_var"):
        first, second = (rank["buffers"][name] for rank in saved)
        assert not torch.equal(first, second)  # live BatchNorm: of each rank's own batches
        assert torch.equal(same[1]["buffers"][name], second)
        for rank in other:
            torch.testing.assert_close(rank["buffers"][name], (first + second) / 2)


def test_seeds_of_streams_are_all_different() -> None:
    seeds = {stream_seed(seed, rank, step) for seed in range(4) for rank in range(16) for step in range(50)}
    assert len(seeds) == 4 * 16 * 50
    assert all(0 <= seed < 1 << 63 for seed in seeds)  # what torch.manual_seed takes


def one_rank(config: Config) -> list[float]:
    run(train, 1, [config])
    return losses_of(Path(config.run.folder), config.student.max_steps or STEPS)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("method", "narrow"),
    [(ARCFACE, "bf16"), (ADADISTILL, "bf16"), (ADADISTILL, "int8")],
    ids=["trainable", "ema", "ema-int8"],
)
def test_the_precision_of_the_store_may_change(method: dict[str, Any], narrow: str, tmp_path: Path) -> None:
    """There and back: the losses stay within the rounding of the cosines (bf16: 2**-8, int8: 1 / 127, at scale 16)."""
    case = Case("store", method, SGD, (0,) * 5)
    straight = one_rank(config_of(case, 2, tmp_path / "a"))
    for leg, store in enumerate(("fp32", narrow, "fp32")):
        changed = one_rank(config_of(case, leg, tmp_path / "b", centres={"store": store}))
    assert changed[:2] == straight[:2]
    assert changed[2] != straight[2]
    assert changed == pytest.approx(straight, rel=0.02)


# ------------------------------------------------------------------------------------------ what may be changed


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused_with_those_that_do() -> None:
    phase = config_of(CASES[0], 1, Path("runs")).student  # accumulation 2
    with pytest.raises(ConfigError) as caught:
        check_batch("student", phase, 4)
    assert str(caught.value) == (
        "student.global_batch must be divisible by accumulation x world size (2 x 4 = 8), got 12; "
        "with this batch and accumulation the world size may be 1, 2, 3, 6"
    )


@pytest.mark.parametrize("phase", ["teacher.train", "student", "alone"])
def test_keys_that_may_differ_on_resume(phase: str, tmp_path: Path) -> None:
    trained = config_of(CASES[1], 0, tmp_path).model_dump(mode="json")
    other = {key: value for key, value in trained["student"].items() if key != "generations"}
    tree = {**trained, "alone": other, "teacher": {"source": "train", "train": other}}
    save_config(parse_config(tree), tmp_path / "config.toml")
    free = (
        "accumulation=3",
        "zero_stage=3",
        'centres.store="bf16"',
        'centres.moments="bf16"',
        "centres.memory=device",
        "centres.backend=reference",
        "centres.chunk_rows=7",
        "centres.products=fp32",
    )
    changed = load_config(tmp_path / "config.toml", [f"{phase}.{key}" for key in free])
    check_same_run(changed, tmp_path / "config.toml")
    other = load_config(tmp_path / "config.toml", [f"{phase}.centres.sample_rate=0.3"])
    with pytest.raises(ConfigError, match=rf"{phase}.centres.sample_rate: must be 0.4, got 0.3"):
        check_same_run(other, tmp_path / "config.toml")


# ------------------------------------------------------------------------------------- what is kept of a run


@pytest.mark.distributed
def test_the_best_is_kept_and_training_does_not_notice(tmp_path: Path) -> None:
    """Scored, written in the background, with live BatchNorm and dropout: the same losses, bit for bit."""
    images = [SyntheticSource(LIVE.identities, IMAGES, SIDE).read(index)[0] for index in range(40)]
    write_bin(tmp_path / "pairs.bin", images, [True, False] * 10)
    sets = {"sets": [str(tmp_path / "pairs.bin")], "folds": 2, "fars": [0.5], "every": 3, "metric": "tar@0.5"}
    plain, kept = config_of(LIVE, 4, tmp_path / "a"), config_of(LIVE, 4, tmp_path / "b")
    saving = {"keep_best": True, "checkpoint_async": True, "keep_checkpoints": 1, "checkpoint_every": 2}
    kept = parse_config(kept.model_dump(mode="json") | {"evaluate": sets, "run": kept.run.model_dump() | saving})
    run(train, 2, [plain, kept], 0.5)
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    folder = tmp_path / "b" / "student" / "checkpoints"
    manifests = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("step_*/manifest.json")}
    assert 1 <= len(manifests) <= 2
    assert "step_000000010" in manifests
    assert all(0 <= one["score"] <= 1 for one in manifests.values())
    best = checkpoint.best(folder)
    assert best is not None
    assert manifests[best.name]["score"] == min(one["score"] for one in manifests.values())
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "scoring_s" in line] == [2, 3, 4, 6, 8, 9, 10]


@pytest.mark.distributed
def test_a_phase_that_gets_no_better_ends(tmp_path: Path) -> None:
    """Also where it was stopped between a step and its judgement, and goes on."""
    images = [SyntheticSource(LIVE.identities, IMAGES, SIDE).read(index)[0] for index in range(40)]
    write_bin(tmp_path / "pairs.bin", images, [True, False] * 10)
    sets = {"sets": [str(tmp_path / "pairs.bin")], "folds": 2, "fars": [0.5], "every": 1, "patience": 2}

    def judgements(folder: Path) -> list[float]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [1 - line["accuracy/pairs"] for line in lines if "scoring_s" in line]

    def config(folder: Path, steps: int) -> Config:
        tree = config_of(LIVE, 4, folder, max_steps=steps).model_dump(mode="json")
        return parse_config(tree | {"evaluate": sets, "run": tree["run"] | {"checkpoint_every": 1}})

    ((whole,),) = run(train, 1, [config(tmp_path / "a", 30)])
    found = judgements(tmp_path / "a")
    ends = [at for at in range(2, len(found)) if min(found[: at - 1]) <= min(found[at - 1 : at + 1])]
    assert ends == [len(found) - 1]
    assert len(found) < 30
    shorter = len(found) - 1
    run(train, 1, [config(tmp_path / "b", shorter)])  # the last step is not judged: it is scored at the end
    ((rest,),) = run(train, 1, [config(tmp_path / "b", 30)])
    assert judgements(tmp_path / "b") == found
    assert rest["numbers"] == whole["numbers"]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"every": 5}, "evaluate.every: must be 0 without sets, got 5"),
        ({"sets": ["a.bin"], "patience": 2}, "evaluate.patience: must be 0 with every = 0, got 2"),
        ({"sets": ["a.bin"], "during": ["b"]}, r"evaluate.during: must name sets \(a\), got 'b'"),
        ({"sets": ["a.bin"], "metric": "tar@0.5"}, r"evaluate.metric: must name one of the fars \(0.1, 0.01, 0.001\)"),
    ],
)
def test_judgements_that_cannot_be_made(evaluate: dict[str, Any], message: str, tmp_path: Path) -> None:
    tree = config_of(LIVE, 0, tmp_path).model_dump(mode="json")
    with pytest.raises(ConfigError, match=message):
        parse_config(tree | {"evaluate": evaluate})


def test_the_best_needs_something_to_be_scored_on(tmp_path: Path) -> None:
    tree = config_of(LIVE, 0, tmp_path).model_dump(mode="json")
    tree["run"]["keep_best"] = True
    with pytest.raises(ConfigError, match=r"run.keep_best: must be false without evaluate.sets, got true"):
        parse_config(tree)
