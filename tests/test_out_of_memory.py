"""A rank without memory: told apart from other failures, named with advice, and all ranks end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from partialkd.centres.store import CentreStore
from partialkd.centres.update import make_row_optimizer
from partialkd.config import ArcFaceConfig, MarginDistillationConfig, ModelConfig, OptimizerConfig, PhaseConfig
from partialkd.dist import World, free_port
from partialkd.errors import OutOfMemory
from partialkd.out_of_memory import advising, centre_bytes, is_out_of_memory, memory_advice

TESTS = Path(__file__).parent


def phase_of(**changes: object) -> PhaseConfig:
    settings: dict[str, object] = {
        "model": ModelConfig(name="iresnet18", embedding_dim=64), "method": ArcFaceConfig(name="arcface"),
        "epochs": 1.0, "global_batch": 32, **changes,
    }  # fmt: skip
    return PhaseConfig.model_validate(settings)


def test_failed_allocations_are_recognised() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 46)
    with pytest.raises(MemoryError) as of_python:
        bytearray(1 << 62)
    assert is_out_of_memory(of_torch.value)
    assert is_out_of_memory(of_python.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), advising("student", phase_of(), 10, World()):
        _ = 1 / 0


@pytest.mark.parametrize("store", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [{"name": "sgd"}, {"name": "sgd", "momentum": 0.0}, {"name": "adamw"}])
def test_bytes_of_centres_are_those_of_the_store(store: str, optimizer: dict[str, object]) -> None:
    phase = phase_of(centres={"store": store}, optimizer=OptimizerConfig.model_validate(optimizer))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[store]
    real = CentreStore.empty(range(7), 20, 64, dtype, torch.device("cpu"))
    make_row_optimizer(real, phase.optimizer)
    sizes = {name: value.numel() * value.element_size() for name, value in real.state().items()}
    moments = sum(size for name, size in sizes.items() if name.startswith("moment."))
    assert centre_bytes(phase, 7) == (sum(sizes.values()) - moments, moments)


def test_advice_names_what_is_not_set_yet() -> None:
    plain = memory_advice("student", phase_of(optimizer=OptimizerConfig(name="adamw")), 2_000_001, 2)
    assert "1000001 of 2000001 centres take 0.26 GB on this rank, their moments 0.52 GB" in plain
    keys = ("more ranks (now 2)", 'student.centres.store = "bf16" (saves 0.13 GB', "student.optimizer.name",
            "student.accumulation (now 1: 16", "activation_checkpointing = true", "zero_stage (now 0)")  # fmt: skip
    assert [key for key in keys if key not in plain] == []
    model = ModelConfig(name="iresnet18", embedding_dim=64, activation_checkpointing=True)
    method = MarginDistillationConfig(name="margindistillation")
    lean = phase_of(model=model, method=method, centres={"store": "bf16"}, zero_stage=3, global_batch=2)
    assert memory_advice("alone", lean, 10, 2).endswith(
        "moments 0.00 MB; any of these lowers what a rank needs: more ranks (now 2)"
    )


JOB = """
import sys
sys.path.insert(0, {tests!r})
from test_out_of_memory import ends
ends()
"""


def ends() -> None:
    """One of two ranks: training, in which rank 1 asks for more than there is."""
    import torch
    from test_health import CLASSES, config_of, make

    from partialkd.config import DistConfig
    from partialkd.launching import launched

    torch.set_num_threads(1)

    def body(world: World) -> None:
        config = config_of(Path(sys.argv[1]))
        with advising("student", config.student, CLASSES, world):
            one, _ = make(world, config, lambda *_: torch.empty(1 << 46))
            one.run()

    raise SystemExit(launched(DistConfig(device="cpu", timeout_s=100_000.0), body))


@pytest.mark.distributed
@pytest.mark.slow
def test_all_ranks_end_with_the_advice(tmp_path: Path) -> None:
    """Not by the timeout, which is a day away."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", JOB.format(tests=str(TESTS)), str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
            cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1], said
    assert "error: student: rank 1 of 2 is out of memory: " in said[1]
    assert "centres take" in said[1]
    assert 'student.centres.store = "bf16"' in said[1]
    assert "error" not in said[0]


def test_the_error_names_the_rank_and_has_its_own_kind() -> None:
    expected = r"student: rank 0 of 1 is out of memory: .*can't allocate memory.*; 10 of 10 centres"
    with pytest.raises(OutOfMemory, match=expected), advising("student", phase_of(), 10, World()):
        torch.empty(1 << 46)
