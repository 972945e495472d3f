"""The check that Triton works; that it does is seen on the pretend device (test_on_pretend_cuda.py) and on a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from partialkd.centres.sweeps.choose import make_sweep
from partialkd.centres.sweeps.fastest import FastestSweep
from partialkd.centres.sweeps.fused import FusedSweep
from partialkd.config import CentresConfig
from partialkd.errors import ConfigError, PartialKDWarning

pytest.importorskip("triton")
PROBLEM = '"fused": Triton cannot launch a kernel here: no compiler'


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter launches it")
def test_where_nothing_can_be_launched_one_line_says_why_and_what_is_wanted() -> None:
    from partialkd.centres.sweeps.trial_kernel import problem_with_triton

    problem = problem_with_triton(torch.device("cpu"))  # of which Triton takes no tensors, nor finds a driver
    assert problem is not None
    assert problem.startswith('"fused": Triton cannot launch a kernel here: ')
    assert "TRITON_CACHE_DIR" in problem
    assert "\n" not in problem


def test_fused_is_refused_and_auto_goes_without_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedSweep, "unable", classmethod(lambda *_: PROBLEM))
    with pytest.raises(ConfigError, match=r"centres\.backend: \"fused\": Triton cannot launch a kernel here"):
        make_sweep(CentresConfig(backend="fused"), 64.0, torch.device("cuda"))
    with pytest.warns(PartialKDWarning, match='"auto" goes without "fused": Triton cannot launch'):
        sweep = make_sweep(CentresConfig(backend="auto"), 64.0, torch.device("cuda"))
    assert isinstance(sweep, FastestSweep)
    assert set(sweep.others) == {"graphed"}
