"""A folder to publish: partialkd.load gives the network, the card has what was measured and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import partialkd
from helpers.edge_cases import CONFIG, drawings, network
from partialkd.commands.model_card import main
from partialkd.errors import CheckpointError
from partialkd.evaluate.card import FORMAT
from partialkd.export.base import planes
from partialkd.export.edge import REPORT
from partialkd.models.model_folder import sha256_of
from partialkd.models.saved import save_model
from partialkd.teacher.network import fingerprint_of

RESULT = {
    "sets": {
        "fa|ces": {
            "student": {
                "accuracy": 0.8867,
                "tar_at_far": {"0.1": 0.866, "0.001": 0.1},
                "too_few_impostors": {"0.1": False, "0.001": True},
                "interval": {"accuracy": [0.872, 0.899], "tar_at_far": {"0.1": [0.83, 0.9], "0.001": [0.0, None]}},
                "impostors": 15,
                "pairs": 3000,
            }
        }
    }
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = network()
    save_model(tmp_path / "run" / "student" / "model.safetensors", made, CONFIG, 32)
    (tmp_path / "run" / "result.json").write_text(json.dumps(RESULT))
    return tmp_path / "run"


def card_of(run: Path, fingerprint: str) -> Path:
    one = {"threshold": 0.5, "interval": [0.4, None], "tar": 0.9, "tar_interval": [0.8, 1.0]}
    at_far = {f"{far:g}": {**one, "too_few_impostors": far < 1e-3} for far in (1e-3, 1e-4, 1e-5, 1e-6)}
    part = {"all": {"at_far": at_far, "curve": [], "images": 60, "impostors": 4000}}
    whole = {"format": FORMAT, "model": "m", "fingerprint": fingerprint, "faces": {"folder": "set", "images": 60}}
    (run.parent / "card.json").write_text(json.dumps({**whole, "thresholds": {"fp32": {"flip": part, "plain": part}}}))
    return run.parent / "card.json"


def test_two_lines_open_a_published_folder(run: Path, tmp_path: Path) -> None:
    card = card_of(run, fingerprint_of(network().state_dict(), 32))
    licences = ["--licence-weights", "cc-by-nc-4.0", "--licence-teacher", "research only"]
    assert main([str(run), str(tmp_path / "out"), "--card", str(card), *licences]) == 0
    images = torch.from_numpy(planes(drawings(3, 32)))
    opened = partialkd.load(tmp_path / "out")
    assert not opened.training
    with torch.no_grad():
        torch.testing.assert_close(opened(images), network()(images))
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: partialkd\n")
    assert "\nlicense: cc-by-nc-4.0\n" in text
    assert "| fa\\|ces | 88.67 [87.2, 89.9] | 86.60* [83.0, 90.0] at 0.1; - at 0.001 | 3000 |" in text
    assert "| fp32 | flip | 0.500* [0.400, ] | - | - | - |" in text
    assert "| training data | not stated |" in text
    assert "| teacher | research only |" in text
    for name in ("config.json", "model.safetensors"):
        assert f"| {name} | `{sha256_of(tmp_path / 'out' / name)}` |" in text
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert facts["thresholds"]["fp32"]["flip"]["all"]["0.001"]["threshold"] == 0.5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.slow
def test_nothing_but_the_packages_own_needs_is_imported(run: Path, tmp_path: Path) -> None:
    """Those of training, export and alignment are absent. `make alone` does the same where they are not installed."""
    assert main([str(run), str(tmp_path / "out")]) == 0
    others = [
        "deepspeed",
        "nvidia",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "cv2",
        "tensorboard",
        "lmdb",
        "pyarrow",
        "triton",
    ]
    code = f"import sys\nfor name in {others}: sys.modules[name] = None\nimport partialkd\n"
    code += f"network = partialkd.load({str(tmp_path / 'out')!r})\nprint(network.embedding_dim)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "32", done.stderr


def test_what_was_not_measured_is_said_so(run: Path, tmp_path: Path) -> None:
    (run / "result.json").unlink()
    assert main([str(run), str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "None were measured by the run." in text
    assert "No thresholds were measured" in text
    assert "Unknown: the network did not come from a run folder." in text
    assert "\nlicense: unknown\n" in text
    assert main([str(run), str(tmp_path / "named"), "--licence-weights", "research: only"]) == 0
    assert '\nlicense: other\nlicense_name: "research: only"\n' in (tmp_path / "named" / "README.md").read_text()


def test_cards_and_exports_of_another_network_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), str(tmp_path / "out"), "--card", str(card_of(run, "x"))]) == 1
    assert "the card of another network" in capsys.readouterr().err
    (tmp_path / REPORT).write_text(json.dumps({"fingerprint": "x", "targets": []}))
    assert main([str(run), str(tmp_path / "out"), "--exported", str(tmp_path)]) == 1
    assert "of another network: export this one anew" in capsys.readouterr().err
    own = {"fingerprint": fingerprint_of(network().state_dict(), 32), "targets": [{"files": ["model.onnx"]}]}
    (tmp_path / REPORT).write_text(json.dumps(own))
    (tmp_path / "model.onnx").touch()
    assert main([str(run), str(tmp_path / "out"), "--exported", str(tmp_path)]) == 1
    assert "export.json: not what export.py --to writes: " in capsys.readouterr().err
    assert main([str(run), str(tmp_path / "out"), "--exported", str(tmp_path / "absent")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_whole_is_refused(run: Path, tmp_path: Path) -> None:
    assert main([str(run), str(tmp_path / "out")]) == 0
    weights = tmp_path / "out" / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        partialkd.load(tmp_path)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged, or of another folder: SHA-256 must be"):
        partialkd.load(tmp_path / "out")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        partialkd.load(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: not of a folder that launch/model_card\.py has written"):
        partialkd.load(tmp_path / "out")
