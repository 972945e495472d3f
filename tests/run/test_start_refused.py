"""Weights, rows and keys that a run cannot start from: one line each, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.started_jobs import DIM, MODEL, SIZE, alone, named, start, started
from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError, ConfigError, DataError, PartialKDError
from partialkd.models import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def network_file(place: Path, file: str, **changes: Any) -> Path:
    model = build_model(ModelConfig.model_validate({**MODEL, **changes}), SIZE)
    save_file(model.state_dict(), place / file)
    return place / file


def without_a_key(place: Path) -> Path:
    state = load_file(network_file(place, "whole.safetensors"))
    del state[next(key for key in state if key.endswith("linear.weight"))]
    save_file(state, place / "part.safetensors")
    return place / "part.safetensors"


def with_nan(place: Path) -> Path:
    state = load_file(network_file(place, "whole.safetensors"))
    key = next(key for key in state if key.endswith("linear.weight"))
    state[key] = torch.full_like(state[key], float("nan"))
    save_file(state, place / "nan.safetensors")
    return place / "nan.safetensors"


def pickled(place: Path) -> Path:
    torch.save({"state_dict": Path("x")}, place / "objects.pt")
    return place / "objects.pt"


def array(place: Path, rows: np.ndarray) -> Path:
    np.save(place / "bad.npy", rows)
    return place / "bad.npy"


def mapped(place: Path, *lines: str) -> Path:
    listed = [f"{row}\tperson{row:02d}" if row != 4 else "4\t-1" for row in range(12)]
    (place / "bad_map.txt").write_text("\n".join([*listed[: len(listed) - len(lines)], *lines]))
    return place / "bad_map.txt"


NETWORKS = {
    "a key that is missing": (without_a_key, r"part\.safetensors: does not fit the network: 1 keys missing: \S+"),
    "another network": (
        lambda place: network_file(place, "r18.safetensors", name="iresnet18", width=1.0, depth=1.0, embedding_dim=512),
        r"r18\.safetensors: does not fit the network: .*; it looks like iresnet18$",
    ),
    "another head": (
        lambda place: network_file(place, "head.safetensors", embedding_dim=2 * DIM),
        r"head\.safetensors: does not fit the network: \d keys of another shape: \S+ \(32, ",
    ),
    "NaN": (with_nan, r"nan\.safetensors: NaN or infinity in \S*linear\.weight$"),
    "objects": (pickled, r"objects\.pt: cannot be read as weights: it holds objects that are not tensors"),
    "nothing": (lambda place: place / "nowhere.pt", r"nowhere\.pt: no such file$"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_that_do_not_fit_are_one_line(kind: str, place: Path) -> None:
    make, said = NETWORKS[kind]
    with pytest.raises(CheckpointError, match=rf"^student\.weights: \S*{said}") as caught:
        start(alone(place, "refused", weights=str(make(place))))
    assert "\n" not in str(caught.value)
    assert not (place / "runs" / "refused").exists()


ROWS = {
    "another dimension": (np.ones((12, DIM + 1)), "identity", r"bad\.npy: rows must have 16 numbers .*, got 17$"),
    "NaN": (np.full((12, DIM), np.nan), "identity", r"bad\.npy: holds rows that are not finite: row 0, .* 7 more$"),
    "zeros": (np.zeros((12, DIM)), "identity", r"bad\.npy: holds rows that are zero: row 0, "),
    "more rows than classes": (np.ones((15, DIM)), "identity", r'"identity": row k .* 15 rows and 14 classes'),
    "no names": (np.ones((12, DIM)), "names", r'"names": no class_ids\.txt of a run says whose rows these are'),
    "an unknown row": (np.ones((12, DIM)), ("12\t-1",), r"line 12: there is no row '12': they are 0 to 11$"),
    "a row twice": (np.ones((12, DIM)), ("3\t-1",), r"line 12: row 3 is listed twice$"),
    "a class twice": (np.ones((12, DIM)), ("11\tperson02",), r"line 12: class 3 has two rows, 2 and 11$"),
    "an unknown name": (np.ones((12, DIM)), ("11\tnobody",), r"line 12: must give a class id below 14, .*'nobody'$"),
    "a row left out": (np.ones((13, DIM)), (), r"has no line for row 12 \(1 such rows; -1: not used\)$"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_centres_that_do_not_fit_are_one_line(kind: str, place: Path) -> None:
    rows, label_map, said = ROWS[kind]
    label_map = label_map if isinstance(label_map, str) else str(mapped(place, *label_map))
    centres = {"weights": str(array(place, rows.astype(np.float32))), "label_map": label_map}
    with pytest.raises(
        (CheckpointError, DataError), match=rf"^student\.centres\.(weights|label_map): .*{said}"
    ) as found:
        start(started(place, "refused", centres=centres))
    assert "\n" not in str(found.value)
    assert not (place / "runs" / "refused").exists()


def test_a_run_does_not_start_from_its_own_folder(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"^student\.weights: must not lie in the run's own folder"):
        start(started(place, "done"))
    assert (place / "runs" / "done" / "student").is_dir()


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"centres": {"label_map": None}}, "student.centres.label_map: is required with weights"),
        ({"weights": None}, 'student.centres.new_identities: must be "random" without weights'),
        (
            {"weights": None, "centres": {"new_identities": "random"}, "freeze_steps": 2},
            "student.freeze_steps: must be 0",
        ),
        ({"method": {"name": "arcdistill"}}, "student.centres.weights: must be left out with arcdistill"),
        ({"ema_decay": 1.0}, "student.ema_decay: must be less than 1"),
        ({"optimizer": {"lr_factors": {"neck": 1.0}}}, "student.optimizer.lr_factors.neck"),
    ],
)
def test_keys_that_do_not_go_together_are_named(student: dict[str, Any], said: str, place: Path) -> None:
    settings = started(place, "refused")
    centres = settings["student"]["centres"] | student.pop("centres", {})
    settings["student"] |= {**student, "centres": centres}
    settings["teacher"] = named(place, "x")["teacher"]
    with pytest.raises(PartialKDError) as caught:
        start(settings)
    assert said in str(caught.value)
