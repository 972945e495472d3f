"""Fixtures of more than one test file."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from partialkd.world.world import free_port

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import onnxruntime themselves


def hear_signals() -> None:
    """Give signals that are ignored their usual handlers.

    A shell starts what runs in its background with SIGINT and SIGQUIT ignored, nohup with SIGHUP, and a job that ends
    ignores all of its own. Children inherit that and do not hear them, as they should: their tests would wait for ever.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def messages_as_before() -> Iterator[None]:
    """What a test makes of the package's messages ends with it: others read them with caplog."""
    logger = logging.getLogger("partialkd")
    propagate, level, handlers = logger.propagate, logger.level, logger.handlers[:]
    yield
    logger.propagate, logger.handlers[:] = propagate, handlers
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def signals_are_heard() -> Iterator[None]:
    """Whatever tests and fixtures before this one, or the shell, have left ignored."""
    hear_signals()
    yield
    hear_signals()


_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher_is_left() -> Iterator[None]:
    """What a world that a test has started in this process says of itself: the processes of later tests inherit it."""
    before = {name: os.environ.get(name) for name in _LAUNCHER}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks and pictures gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun would set, and gone afterwards."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture(scope="session")
def teacher_caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and caches of each number format; made once, for it takes long."""
    from helpers.teacher_cache_cases import make_caches  # others need not wait for what it imports

    return make_caches(tmp_path_factory.mktemp("made"))
