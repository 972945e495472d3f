"""Fixtures of more than one test file."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import onnxruntime themselves

# A shell starts what runs in its background with SIGINT and SIGQUIT ignored, nohup with SIGHUP, and children inherit
# that: the program then does not hear them, as it should, and tests of these signals would wait for ever.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(autouse=True)
def messages_as_before() -> Iterator[None]:
    """What a test makes of the package's messages ends with it: others read them with caplog."""
    logger = logging.getLogger("partialkd")
    propagate, level, handlers = logger.propagate, logger.level, logger.handlers[:]
    yield
    logger.propagate, logger.handlers[:] = propagate, handlers
    logger.setLevel(level)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks and pictures gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def teacher_caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and caches of each number format; made once, for it takes long."""
    from helpers.teacher_cache_cases import make_caches  # others need not wait for what it imports

    return make_caches(tmp_path_factory.mktemp("made"))
