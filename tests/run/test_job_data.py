"""The job on merged and filtered data sets: which class id is whom, counts in the result, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.jobs import job
from helpers.ranks import RankFailure, run
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.encode import encode_jpeg

SIZE = 32

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a: records of 6 identities with 1, 2, ... 6 images; b: a folder of anna, bob and cleo with 4 each."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    draw = lambda: encode_jpeg(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8), 80)
    pack_records(root / "a", [(draw(), label) for label in range(6) for _ in range(label + 1)], 6, SIZE)
    for name in ("anna", "bob", "cleo"):
        (root / "b" / name).mkdir(parents=True)
        for number in range(4):
            (root / "b" / name / f"{number}.jpg").write_bytes(draw())
    (root / "evaluated.txt").write_text("bob\nsomebody else\n")
    return root


def tree(sets: Path, folder: Path, **data: Any) -> dict[str, Any]:
    model = {"name": "mobilefacenet_gdc", "embedding_dim": 16, "width": 0.25, "depth": 0.5}
    parts = [
        {"path": str(sets / "a")},
        {"path": str(sets / "b"), "source": "folder", "exclude_identities": str(sets / "evaluated.txt")},
    ]
    return {
        "run": {"name": "trial", "folder": str(folder), "tensorboard": False},
        "data": {"parts": parts, "min_images": 2, "image_size": SIZE, "loader": "jpeg", "workers": 1, **data},
        "student": {"model": model, "method": {"name": "arcface", "scale": 16.0}, "epochs": 1, "global_batch": 6},
    }


def test_a_job_on_two_data_sets(sets: Path, tmp_path: Path) -> None:
    settings = tree(sets, tmp_path, sampler="pk", images_per_identity=2)
    result = run(job, 2, settings)[0]
    assert (result["images"], result["identities"]) == (2 + 3 + 4 + 5 + 6 + 8, 7)
    records, folder = result["data"]["parts"]
    assert (records["images"], records["too_few_images"], records["identities_used"]) == (21, 1, 5)
    assert (folder["excluded"], folder["identities_used"], folder["images_used"]) == (1, 2, 8)
    run_folder = tmp_path / "trial"
    assert json.loads((run_folder / "result.json").read_text())["data"] == result["data"]
    lines = (run_folder / "class_ids.txt").read_text().splitlines()
    assert lines == ["0\t0\t1", "1\t0\t2", "2\t0\t3", "3\t0\t4", "4\t0\t5", "5\t1\tanna", "6\t1\tcleo"]


def test_what_does_not_fit_is_said_before_anything_is_trained(sets: Path, tmp_path: Path) -> None:
    settings = tree(sets, tmp_path, sampler="pk", images_per_identity=4)
    with pytest.raises(RankFailure, match=r"data\.images_per_identity must divide the global batch \(6\), got 4"):
        run(job, 2, settings)
    settings["data"]["parts"][1]["label_offset"] = 5
    with pytest.raises(RankFailure, match=r"data\.shared_identities: must be true where parts have ids in common"):
        run(job, 2, settings)
    assert not os.listdir(tmp_path)
