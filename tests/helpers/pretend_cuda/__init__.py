"""A pretend CUDA device: tensors that are labelled as CUDA's, hold real numbers, and are computed with on the CPU.

What a GPU would refuse is refused: an operation on tensors of both devices raises, and so does reading a tensor of the
device as numpy. What would make the host wait, or what NCCL would refuse, is written down with the place of ours that
did it (`log.py`). Streams and events are there and do nothing, page-locked memory is only marked. It shows nothing
about speed, about what kernels do on a GPU, or about races between streams.

`install()`, before torch is imported; then `with on_pretend_device():`. Needs a C++ compiler once.

    python -m helpers.pretend_cuda.phases FOLDER STAGE ...    # training on it, also under torchrun
    python -m pytest -p helpers.pretend_cuda.plugin -m gpu    # the tests that need a GPU, as far as they go on it
"""

from __future__ import annotations

from contextlib import AbstractContextManager


def install() -> None:
    """Make this process's torch have a pretend device."""
    from helpers.pretend_cuda import hooks

    hooks.load()
    from helpers.pretend_cuda import launches, runtime

    runtime.install()
    launches.install()


def on_pretend_device() -> AbstractContextManager[object]:
    """Compute on it in here; without, tensors cannot be made on it."""
    from helpers.pretend_cuda.tensor import Mode

    return Mode()
