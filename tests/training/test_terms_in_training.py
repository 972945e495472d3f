"""Terms of the whole batch in a run: the same at every number of ranks and ZeRO stage, what they keep goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.health_cases import CLASSES, STEPS, config_of, make
from helpers.ranks import RankFailure, run
from partialkd.config import Config
from partialkd.methods.stateful import Stateful
from partialkd.training.progress import MEASURED
from partialkd.world.shard import shard_of
from partialkd.world.world import World

TERMS = tuple({"name": name} for name in ("embedding", "rkd", "sp", "cckd", "darkrank", "ekd", "triplet"))
HALF = {"sampler": "half_pk", "images_per_identity": 2}

pytestmark = pytest.mark.distributed


class Seen(Stateful):
    """Keeps, for each class of the shard, how many steps have been taken, and the class id."""

    def __init__(self, world: World) -> None:
        shard = shard_of(CLASSES, world.rank, world.size)
        self.steps = torch.zeros(len(shard))
        self.ids = torch.arange(shard.start, shard.stop)[:, None]

    def rows(self) -> dict[str, Tensor]:
        return {"steps": self.steps, "ids": self.ids}

    def stepped(self) -> None:
        self.steps += 1


def config(folder: Path, steps: int = STEPS, **phase: Any) -> Config:
    return config_of(folder, data=HALF, terms=TERMS, max_steps=steps, freeze_batchnorm=True, **phase)


def train(world: World, config: Config, resume: bool = False) -> dict[str, Any]:
    """Train -> what was logged, and what is kept; with `Seen` as one more part that keeps something."""
    one, stop = make(world, config)
    one.states.parts["seen"] = seen = Seen(world)
    if resume:
        seen.ids.fill_(-1)
    try:
        one.run(resume)
        student = {key: value for key, value in one.student.state().items() if key.startswith("param.")}
        kept = {key: value.clone() for key, value in one.states.state().items()}
    finally:
        one.close()
        stop.forget()
    world.barrier()
    lines = (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()
    lines = [{k: v for k, v in json.loads(line).items() if isinstance(v, float)} for line in lines]
    return {
        "lines": lines,
        "kept": kept,
        "student": student,
        "seen": (seen.steps.tolist(), seen.ids.flatten().tolist()),
    }


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for a, b in zip(found["lines"], wanted["lines"], strict=True):
        known = {key for key in a if not key.startswith(MEASURED)}
        assert len([key for key in known if key.startswith("term_")]) == len(TERMS)
        assert {key: a[key] for key in known} == pytest.approx({key: b[key] for key in known}, rel=2e-3, abs=2e-4)
    for part in ("kept", "student"):
        assert found[part].keys() == wanted[part].keys()
        for key, value in found[part].items():
            torch.testing.assert_close(
                value, wanted[part][key], rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.slow
def test_ranks_and_stages_train_alike_and_go_on_alike(tmp_path: Path) -> None:
    """Seven terms at once: 1, 2 and 3 ranks at all stages; and a run of two ranks that goes on with three."""
    alone = run(train, 1, config(tmp_path / "alone"))[0]
    assert alone["kept"].keys() == {"state.term_5_ekd.student", "state.term_5_ekd.teacher"}
    assert all(value.abs().min() > 0 for value in alone["kept"].values())
    for size, stage in ((3, 1), (2, 3)):
        same(run(train, size, config(tmp_path / f"{size}{stage}", zero_stage=stage))[0], alone)
    run(train, 2, config(tmp_path / "broken", steps=3, zero_stage=2))
    ranks = run(train, 3, config(tmp_path / "broken", zero_stage=2), True)
    same(ranks[0], alone)
    assert [rank["seen"] for rank in ranks] == [
        ([float(STEPS)] * len(shard), list(shard)) for shard in (shard_of(CLASSES, rank, 3) for rank in range(3))
    ]


def test_data_that_cannot_give_positives_are_refused_before_the_first_step(tmp_path: Path) -> None:
    data = {"sampler": "pk", "synthetic_identities": 48, "images_per_identity": 2}
    with pytest.raises(RankFailure, match=r"ConfigError: data\.sampler: no identity of the data has two images"):
        run(train, 1, config_of(tmp_path, data=data, terms=({"name": "triplet"},)))
    assert not (tmp_path / "student").exists()
