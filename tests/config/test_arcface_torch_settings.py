"""arcface_torch's configurations: read as data, over base.py, and made ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from partialkd.commands.import_arcface import main
from partialkd.config.arcface_torch import as_ours, read_settings, unused
from partialkd.config.load import load_config, parse_config
from partialkd.errors import ConfigError

START = "from easydict import EasyDict as edict\n\nconfig = edict()\n"
JOB = (
    START
    + """config.margin_list = (1.0, 0.0, 0.4)
config.network = "r100"
config.fp16 = True
config.batch_size = 128
config.lr = 0.1 * 2
config.rec = "/data/faces"
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.val_targets = ['lfw', "agedb_30"]
config.my_own = {0}
""".replace("{0}", "-1")
)


def written(folder: Path, text: str, base: str | None = None) -> Path:
    (folder / "job.py").write_text(text)
    if base is not None:
        (folder / "base.py").write_text(base)
    return folder / "job.py"


def test_a_job_over_its_base(tmp_path: Path) -> None:
    base = START + 'config.network = "r50"\nconfig.seed = 7\nconfig.wandb_key = "XX"\n' + "".join(
        f"config.{key} = {value!r}\n"
        for key, value in {
            "embedding_size": 256, "sample_rate": 0.1, "gradient_acc": 2, "optimizer": "sgd", "weight_decay": 5e-4,
            "frequent": 10, "dali": True, "num_workers": 2, "fp16": False,
        }.items()
    )  # fmt: skip
    settings = read_settings(written(tmp_path, JOB, base))
    config = parse_config(as_ours(settings, "job", gpus=8))
    student = config.student
    assert (student.model.name, student.model.embedding_dim) == ("iresnet100", 256)
    assert (student.global_batch, student.accumulation, student.precision) == (128 * 8 * 2, 2, "bf16")
    assert (student.method.name, student.method.margin, student.method.scale) == ("cosface", 0.4, 64.0)
    assert (student.optimizer.lr, student.optimizer.momentum, student.optimizer.clip_norm) == (0.2, 0.9, 5.0)
    assert student.schedule.warmup_steps == 5179510 // 1024 // 2 * 2
    assert student.centres.sample_rate == 0.1
    assert (config.data.path, config.data.loader, config.run.seed) == ("/data/faces", "dali", 7)
    assert (config.evaluate.sets, config.evaluate.every) == (("lfw.bin", "agedb_30.bin"), 2000)
    assert unused(settings) == ["my_own"]


def test_without_a_base_the_published_one_counts(tmp_path: Path) -> None:
    text = START + 'config.rec = "synthetic"\nconfig.num_epoch = 3\nconfig["margin_list"] = [1.0, 0.5, 0.0]\n'
    config = parse_config(as_ours(read_settings(written(tmp_path, text)), "job", gpus=1))
    assert (config.student.model.name, config.student.global_batch, config.data.source) == (
        "iresnet50",
        128,
        "synthetic",
    )
    assert config.student.method.name == "arcface"
    assert (config.evaluate.sets, config.evaluate.every) == ((), 0)


def test_as_published_ones_write_it(tmp_path: Path) -> None:
    """-1 for no warm-up, as in 3millions.py; the smallest ViT's name, as in wf42m_pfc03_40epoch_8gpu_vit_t.py."""
    lines = "config.warmup_epoch = -1\nconfig.network = 'vit_t_dp005_mask0'\nconfig.verbose = 500\n"
    config = parse_config(as_ours(read_settings(written(tmp_path, JOB + lines)), "job", gpus=8))
    assert (config.student.schedule.warmup_steps, config.student.model.name) == (0, "vit_tiny")
    assert config.evaluate.every == 500


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.rec = open('x').read()", "line 4: rec: must be a value, got .*which would have to be run"),
        ("import os; os.system('touch ran')", "line 4: must be config.<key> = <value>, got a statement"),
        ("for x in (1, 2): config.lr = x", "line 4: must be config.<key> = <value>, got a statement"),
        ("config.lr = 1 / 0", "line 4: lr: division by zero"),
        ("config.lr = 'a' * 10**9", "line 4: lr: "),
        ("config.lr = config.unset", "line 4: lr: must be a value"),
        ("other = 3", "line 4: must be config.<key> = <value>, got another assignment"),
        ("config = edict(__import__('os'))", "line 4: must be config.<key> = <value>, got another assignment"),
        ("config.lr = (", "is no Python file"),
    ],
)
def test_nothing_is_run(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read_settings(written(tmp_path, START + line + "\n"))
    assert not (tmp_path / "ran").exists()


def test_a_base_of_an_earlier_version(tmp_path: Path) -> None:
    """It has fewer keys, and `loss` in the place of margin_list."""
    base = START + 'config.loss = "cosface"\nconfig.network = "r18"\nconfig.batch_size = 64\n'
    text = START + 'config.rec = "/data/faces"\nconfig.num_epoch = 25\n'
    settings = read_settings(written(tmp_path, text, base))
    student = parse_config(as_ours(settings, "job", gpus=2)).student
    assert (student.method.name, student.method.margin) == ("cosface", 0.4)
    assert (student.model.name, student.global_batch, student.accumulation) == ("iresnet18", 128, 1)
    assert unused(settings) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.gradient_acc = 'two'", "gradient_acc: must be a whole number of at least 1, got 'two'"),
        ("config.batch_size = 0", "batch_size: must be a whole number of at least 1, got '0'"),
        ("config.warmup_epoch = -2", "warmup_epoch: must be a number of at least 0, or -1 for none, got '-2'"),
        ("config.warmup_epoch = 1e999", "warmup_epoch: must be a number of at least 0, or -1 for none, got 'inf'"),
        ("config.verbose = None", "verbose: must be a whole number of at least 0, got 'None'"),
        ("config.lr = None", "lr: must be a number of at least 0, got 'None'"),
        ("config.margin_list = (1.0, 0.5)", "margin_list: must be three numbers, got "),
        ("config.network = 50", "network: must be a text, got '50'"),
        ("config.loss = 'triplet'", "loss: must be 'arcface' or 'cosface', got 'triplet'"),
        ("config.val_targets = 'lfw'", "val_targets: must be a list of texts, got 'lfw'"),
    ],
)
def test_values_of_another_kind(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"job\.py: {re.escape(said)}"):
        read_settings(written(tmp_path, JOB + line + "\n"))


@pytest.mark.parametrize("words", [["--gpus", "0"], ["--gpus", "x"], ["--power", "-1"]])
def test_wrong_options(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["config", str(written(tmp_path, JOB)), str(tmp_path / "job.toml"), *words])
    assert end.value.code == 2
    assert words[0] in capsys.readouterr().err
    assert not (tmp_path / "job.toml").exists()


def test_networks_that_are_not_here(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, JOB.replace("r100", "r2060")))
    with pytest.raises(ConfigError, match="network: 'r2060' is not here"):
        as_ours(settings, "job", 8)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, out = written(tmp_path, JOB), tmp_path / "job.toml"
    assert main(["config", str(job), str(out), "--gpus", "4"]) == 0
    assert load_config(out).student.global_batch == 512
    assert "without a counterpart, left out: my_own" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["config", str(job), str(out)])
    assert end.value.code == 2
    assert "is there already" in capsys.readouterr().err
