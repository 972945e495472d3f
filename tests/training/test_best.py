"""The best network is kept by its scores, and a phase that gets no better ends; what cannot be judged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.ranks import run
from helpers.run_state_cases import IMAGES, LIVE, SIDE, config_of, losses_of, train
from partialkd import checkpoint
from partialkd.config import Config
from partialkd.config.load import parse_config
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import ConfigError


@pytest.mark.slow
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
