"""Centres in host memory: the same numbers as centres on the device, whatever moves them, and what may change between.

Sweeps of single rows take the same products in the same order in both, so everything is equal bit for bit there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import centre_cases as test_centres
from helpers import kernel_cases
from helpers.centre_cases import ADAMW, SGD, problem, sampled
from helpers.places import TESTS
from helpers.processor import products_depend_on_place
from helpers.ranks import run
from helpers.window_cases import BATCH, CASES, CLASSES, DIM, RATE, Settings, go_on, made
from partialkd.centres import Centres, CentresState
from partialkd.centres.host_memory import Window
from partialkd.training.silent_changes import CentreSweep
from partialkd.world.world import World

STEPS = range(6)  # over more than a cycle
sizes = pytest.mark.parametrize("size", [1, 3])

Told = tuple[list[Tensor], dict[str, Tensor]]  # losses and gradients in order; the store at the end


def state_of(centres: Centres) -> dict[str, Tensor]:
    return {key: value.to("cpu", copy=True) for key, value in centres.store.state().items()}


# Of one row a chunk, in a window and in the store: equal bits, unless the processor makes others elsewhere.
TOLERANCE = 0.02 if products_depend_on_place(DIM, BATCH) else 0.0


def alike(some: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True) for a, b in pairs)


def both(world: World, cases: dict[str, tuple[str, Settings]], splits: int) -> dict[str, list[Told]]:
    """Each case with its centres on the device, then in host memory."""
    told: dict[str, list[Told]] = {}
    for case, (name, settings) in cases.items():
        for memory in ("device", "host"):
            centres = made(world, name, settings, memory)
            told.setdefault(case, []).append((go_on(centres, name, STEPS, splits), state_of(centres)))
    return told


def compare(size: int, cases: dict[str, tuple[str, Settings]], tolerance: float, splits: int = 1) -> None:
    for told in run(both, size, cases, splits):
        for case, ((seen, there), (losses, here)) in told.items():
            assert there.keys() == here.keys()
            pairs = [*zip(seen, losses, strict=True), *((there[key], here[key]) for key in there)]
            for wanted, got in pairs:
                torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=f"{case}: {got} {wanted}")


@pytest.mark.slow
@pytest.mark.distributed
def test_everything_is_equal_bit_for_bit() -> None:
    """On three ranks, with uneven shards. What is rounded least is covered by what is rounded more.

    Where the processor's products depend on where a row lies: to their rounding, after which some go on another way.
    """
    cases = {case: (name, {**more, "chunk_rows": 1}) for case, (name, more) in CASES.items() if "fp32" not in case}
    compare(3, cases, tolerance=TOLERANCE)


@pytest.mark.slow
@pytest.mark.distributed
def test_chunks_of_many_rows_and_several_micro_steps() -> None:
    """To the rounding of sums in float64. The second micro-step, which nobody announced, makes the windows grow."""
    settings = {"arcface": {"optimizer": SGD}, "cosface": {"optimizer": ADAMW}, "ada_weighted": {}, "arcdistill": {}}
    cases = {name: (name, {**more, "exact": True}) for name, more in settings.items()}
    cases["reference"] = ("arcface", {"exact": True, "backend": "reference"})
    compare(3, cases, tolerance=1e-9, splits=2)


@pytest.mark.slow
@pytest.mark.distributed
@sizes
def test_classes_not_seen_yet_and_the_correction(size: int) -> None:
    cases = {
        f"{name} {unseen}": (name, {"exact": True, "unseen": unseen, "importance_correction": True})
        for name, unseen in (("ada_weighted", 3), ("arcdistill", 3), ("arcdistill", None))
    }
    compare(size, cases, tolerance=1e-9, splits=2)


@pytest.mark.distributed
@sizes
@pytest.mark.parametrize(
    ("name", "classes"), [("arcface", 40), ("ada_weighted", 40), ("arcdistill", 4), ("cosface", 4)]
)
def test_the_dense_reference(name: str, classes: int, size: int) -> None:
    """With four classes there are ranks that take no row of their shard."""
    p = sampled(problem(classes=classes), RATE)
    test_centres.compare(name, p, size, sample_rate=RATE, memory="host", chunk_rows=7)


MOVING = ["ema, int8", "SGD, all bf16", "AdamW"]


@pytest.mark.parametrize("case", MOVING)
def test_rows_that_change_after_they_were_copied_are_copied_again(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = CASES[case]
    settings = {**settings, "chunk_rows": 1}

    def told(memory: str) -> Told:
        centres = made(World(), name, settings, memory)
        return go_on(centres, name, STEPS), state_of(centres)

    (losses, there), (same, here) = told("device"), told("host")
    assert alike(losses, same)
    assert alike([there[key] for key in there], [here[key] for key in there])
    monkeypatch.setattr(Window, "copy_from", lambda *_: None)
    late, without = told("host")
    assert not all(torch.equal(a, b) for a, b in zip(losses, late, strict=True))
    assert not torch.equal(without["unit"], there["unit"])


@pytest.mark.parametrize("case", MOVING)
def test_a_step_that_is_left_out_leaves_no_trace(case: str) -> None:
    name, settings = CASES[case]
    centres = [made(World(), name, {**settings, "chunk_rows": 1}, memory) for memory in ("device", "host")]
    for one in centres:
        go_on(one, name, range(4), splits=2)
        before = state_of(one)
        go_on(one, name, range(50, 51), splits=2, skip=True)
        assert one.steps == 4
        assert all(torch.equal(value, before[key]) for key, value in state_of(one).items())
    after = [go_on(one, name, range(4, 12)) for one in centres]
    torch.testing.assert_close(after[1], after[0], rtol=1e-4, atol=1e-4)
    moved = [one.store.read(slice(None)) for one in centres]
    torch.testing.assert_close(moved[1], moved[0], rtol=0.02 if "bf16" in case else 1e-4, atol=1e-4)


@pytest.mark.parametrize("case", MOVING)
@pytest.mark.parametrize("order", [("host", "device"), ("device", "host")])
def test_a_run_goes_on_from_its_state_in_either_memory(case: str, order: tuple[str, str]) -> None:
    name, settings = CASES[case]
    settings = {**settings, "chunk_rows": 1}
    straight = made(World(), name, settings, "device")
    wanted = go_on(straight, name, STEPS)
    first, second = (made(World(), name, settings, memory) for memory in order)
    got = go_on(first, name, STEPS[:4])
    second.load_state(CentresState(4, state_of(first)))
    got += go_on(second, name, STEPS[4:])
    assert alike(wanted, got)
    here = state_of(second)
    assert all(alike([value], [here[key]]) for key, value in state_of(straight).items())


def test_a_state_may_be_taken_over_between_steps() -> None:
    """What the windows hold by then, and what is on its way back, belongs to what was before."""
    name, settings = CASES["SGD, fp32"]
    one = made(World(), name, settings, "host")
    go_on(one, name, STEPS[:2])
    state = state_of(one)
    wanted = go_on(one, name, STEPS[2:])
    one.load_state(CentresState(2, state))
    assert all(torch.equal(value, state[key]) for key, value in state_of(one).items())
    assert alike(wanted, go_on(one, name, STEPS[2:]))


@pytest.mark.parametrize("where", ["taken", "not taken"])
def test_the_search_for_nan_looks_at_the_window(where: str) -> None:
    """And at nothing else in a step: what is broken in another row is found before a checkpoint."""
    name, settings = CASES["fixed, fp32"]
    one = made(World(), name, settings, "host")
    go_on(one, name, STEPS[:1])
    assert one.working.ids is not None
    held = set(one.working.ids.tolist())
    row = next(row for row in range(CLASSES) if (row in held) == (where == "taken"))
    again = made(World(), name, settings, "host")
    sweep = CentreSweep(again.store, 1)
    again.store.unit[row] = torch.nan
    go_on(again, name, STEPS[:1])
    sweep.step(again.working)
    said = f"NaN or infinity in the centres of classes {row}"
    assert sweep.problem(everything=False) == (said if where == "taken" else None)
    assert sweep.problem(everything=True) == said


def by_kernels() -> None:
    """In a process that interprets them."""
    kernel_cases.loop_bounds()
    for case in ("ema, bf16", "SGD, all bf16"):
        name, settings = CASES[case]
        centres = [made(World(), name, {**settings, "backend": "fused"}, memory) for memory in ("device", "host")]
        told = [go_on(one, name, STEPS[:3]) for one in centres]
        assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))
        there, here = (state_of(one) for one in centres)
        assert all(torch.equal(value, here[key]) for key, value in there.items())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_fused_kernels_work_on_a_window_as_on_a_store() -> None:
    """Bit for bit, random bits included: they list rows in the same order."""
    env = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{TESTS}:{Path(__file__).parent}",
    }
    code = "import test_window; test_window.by_kernels()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(case: str) -> None:
    """Page-locked memory, copies on a stream of their own; all else is as above."""
    name, settings = CASES[case]
    world = World(device=torch.device("cuda", 0))
    centres = [made(world, name, {**settings, "chunk_rows": 1}, memory) for memory in ("device", "host")]
    told = [go_on(one, name, STEPS, splits=2) for one in centres]
    torch.testing.assert_close(told[1], told[0], rtol=1e-3, atol=1e-3)
    there, here = (state_of(one) for one in centres)
    assert centres[1].store.device.type == "cpu"
    if settings.get("optimizer") is None:
        assert all(torch.equal(value, here[key]) for key, value in there.items())
    torch.testing.assert_close(here["length"], there["length"], rtol=0.01, atol=1e-3)
