"""`--json FILE` of commands whose results lie in a folder: what it holds is what the folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.jobs import tree
from helpers.teacher_cache_cases import tree as taught
from partialkd.commands import embed, train
from partialkd.config.load import parse_config, save_config
from partialkd.storage.manifest import MANIFEST


@pytest.mark.slow
def test_a_training_writes_its_result(tmp_path: Path) -> None:
    settings = {**tree(tmp_path), "teacher": {"source": "none"}, "dist": {"device": "cpu"}}
    del settings["alone"]
    settings["student"] = {**settings["student"], "method": {"name": "cosface", "scale": 16.0}, "max_steps": 2}
    save_config(parse_config(settings), tmp_path / "run.toml")
    assert train.main([str(tmp_path / "run.toml"), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads((tmp_path / "runs" / "trial" / "result.json").read_text())
    assert found["name"] == "trial"


@pytest.mark.slow
def test_a_cache_says_what_it_is_of(teacher_caches: Path, tmp_path: Path) -> None:
    settings = taught(teacher_caches)
    save_config(parse_config(settings), tmp_path / "run.toml")
    cache, out = str(teacher_caches / "fp16"), tmp_path / "found.json"
    assert embed.main([str(tmp_path / "run.toml"), "--output", cache, "--dtype", "fp16", "--json", str(out)]) == 0
    found, kept = json.loads(out.read_text()), json.loads((teacher_caches / "fp16" / MANIFEST).read_text())
    assert (found.pop("cache"), found.pop("with_embeddings")) == (cache, None)
    assert {key: found[key] for key in ("teacher", "data", "preprocessing")} == kept["made_from"]
    assert [found["records"], 2, found["dim"]] == kept["shape"]
    assert (found["classes"], found["dtype"]) == (kept["classes"], "fp16")
