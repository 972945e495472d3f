"""pytest plugin: the tests that need a GPU, on the pretend device. Kernels run in Triton's interpreter.

    PYTHONPATH=tests python -m pytest -p helpers.pretend_cuda.plugin -m gpu

What it cannot stand in for is skipped with the reason. --first-and-last: of every test that has many cases two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from helpers.pretend_cuda import install, on_pretend_device

install()

import pytest  # noqa: E402

from helpers.pretend_cuda.launches import interpret_kernels  # noqa: E402

interpret_kernels()

SLOW = "takes hours in Triton's interpreter"
NO_BFLOAT16 = "the interpreter cannot multiply bfloat16 numbers"
# Names of tests, or the beginnings of their ids, and why they are left out.
LEFT_OUT = {
    "test_large_case_on_a_gpu": SLOW,
    "test_more_than_two_to_the_31_numbers": SLOW,
    "test_they_agree_on_a_gpu": SLOW,
    "test_case_on_a_gpu[bfloat16": NO_BFLOAT16,
    "test_peak_of_a_gpu_is_within_ten_percent": "no memory is allocated on the device",
    "test_cuda_gives_the_same_batches[dali": "DALI decodes on a real device only",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--first-and-last", action="store_true", help="of the cases of each test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is left out."""
    if config.getoption("--first-and-last"):
        cases: dict[str, list[pytest.Item]] = {}
        for item in items:
            if not item.name.startswith(tuple(LEFT_OUT)):
                cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        between = {item for some in cases.values() for item in some[1:-1]}
        config.hook.pytest_deselected(items=[item for item in items if item in between])
        items[:] = [item for item in items if item not in between]
    for item in items:
        why = next((why for name, why in LEFT_OUT.items() if item.name.startswith(name)), None)
        if why:
            item.add_marker(pytest.mark.skip(reason=f"pretend device: {why}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Every test, its fixtures too, with the device."""
    with on_pretend_device():
        yield
