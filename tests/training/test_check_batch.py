"""A batch that ranks cannot share, or of which BatchNorm would see single images, is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.jobs import tree
from partialkd.config import PhaseConfig
from partialkd.config.load import parse_config
from partialkd.errors import ConfigError
from partialkd.run import begin
from partialkd.training.phase_plan import check_batch
from partialkd.world.stop_signals import StopSignals
from partialkd.world.world import World


def phase(**changes: Any) -> PhaseConfig:
    model = {"name": "mobilefacenet_gdc", "embedding_dim": 16}
    return PhaseConfig.model_validate({"model": model, "method": {"name": "arcface"}, "epochs": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "ranks", "said"),
    [
        ({"global_batch": 1}, 1, r"at least 2 \(2 images x accumulation 1\): .*, got 1"),
        ({"global_batch": 4}, 4, r"at least 8 \(2 images x accumulation 1 x world size 4\): .*, got 4"),
        ({"global_batch": 6, "accumulation": 3}, 2, r"at least 12 \(2 images x accumulation 3 x world size 2\): "),
        (
            {"global_batch": 3, "accumulation": 3, "sync_batchnorm": True},
            1,
            r"at least 6 \(2 images x acc",
        ),
    ],
)
def test_single_images_are_refused(changes: dict[str, Any], ranks: int, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^alone\.global_batch must be {said}"):
        check_batch("alone", phase(**changes), ranks)


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({"global_batch": 2}, 1),
        ({"global_batch": 4, "freeze_batchnorm": True}, 4),
        ({"global_batch": 4, "sync_batchnorm": True}, 4),
        ({"global_batch": 12, "accumulation": 3}, 2),
    ],
)
def test_what_batchnorm_can_train_on_is_not(changes: dict[str, Any], ranks: int) -> None:
    check_batch("alone", phase(**changes), ranks)


def test_the_numbers_of_ranks_that_are_named_would_do() -> None:
    with pytest.raises(ConfigError, match=r"the world size may be 1, 2, 3$"):
        check_batch("student", phase(global_batch=6), 4)
    for ranks in (1, 2, 3):
        check_batch("student", phase(global_batch=6), ranks)


def test_nothing_is_made_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin, "prepare", lambda _: pytest.fail("data were made"))
    settings = tree(tmp_path)
    settings["student"]["global_batch"] = 1
    with StopSignals() as stop, pytest.raises(ConfigError, match=r"^student\.global_batch must be at least 2"):
        begin.prepare_job(parse_config(settings), World(), "never", stop)
    assert list(tmp_path.iterdir()) == []
