"""ONNX models run by onnxruntime, the only module that imports it.

onnxruntime's wheels for Linux report to their maker by default and leave a device id in the user's cache: this is
switched off before the import, unless the environment says ORT_DISABLE_TELEMETRY itself.
A session runs on CUDA if its device is and onnxruntime can, else on the CPU with as many threads as torch uses, or as
are asked for. On CUDA `run_on_device` reads torch's memory and writes to it (onnxruntime's "IO binding"), on a stream
of its own that torch's waits for: nothing travels to the host, and the host waits for nothing.
Weights outside the file ("external data") are read by onnxruntime, which refuses paths that leave the file's folder.
Errors: CheckpointError in one line that names the file, MemoryError where onnxruntime cannot allocate.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partialkd.errors import CheckpointError, PartialKDWarning
from partialkd.storage.listed_files import check_exported

CUDA = "CUDAExecutionProvider"
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_LONGEST = 300  # characters of onnxruntime's own words in an error
_NO_MEMORY = ("bad_alloc", "failed to allocate", "out of memory")


class OnnxSession:
    """A loaded model. model: its file or its bytes; where: its name in errors. inputs, outputs: name, type, shape."""

    def __init__(
        self, model: Path | bytes, where: str, device: torch.device | None = None, threads: int | None = None
    ) -> None:
        self.where = where
        if isinstance(model, Path):
            check_exported(model, CheckpointError)
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take cores
        options.log_severity_level = 4  # what it logs comes again as an exception
        self._stream: torch.cuda.Stream | None = None
        device = device or torch.device("cpu")
        if device.type == "cuda" and CUDA in runtime.get_available_providers():
            self._stream = torch.cuda.Stream(device)
        providers = _providers(device, self._stream, where)
        try:
            content = model if isinstance(model, bytes) else str(model)
            self._session = runtime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base
            raise self._failure("load", error) from error
        self.inputs: list[Any] = self._session.get_inputs()
        self.outputs: list[Any] = self._session.get_outputs()

    def run(self, outputs: Sequence[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the model -> the values of these outputs."""
        try:
            return list(self._session.run(list(outputs), inputs))
        except Exception as error:
            raise self._failure("run", error) from error

    @property
    def on_device(self) -> bool:
        """Whether it runs on CUDA, and so takes and gives tensors that lie there."""
        return self._stream is not None

    def run_on_device(self, output: str, name: str, given: Tensor, result: Tensor) -> None:
        """Run the model on one input, contiguous, where it lies, and write its output to `result`, contiguous, there.

        On the CPU this does what `run` does.
        """
        binding = self._session.io_binding()
        for bind, tensor, called in ((binding.bind_input, given, name), (binding.bind_output, result, output)):
            kind, shape, place = numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr()
            bind(called, tensor.device.type, tensor.device.index or 0, kind, shape, place)
        options = _onnxruntime().RunOptions()
        if self._stream is None:
            return self._bound(binding, options)
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        current = torch.cuda.current_stream(given.device)
        self._stream.wait_stream(current)
        self._bound(binding, options)
        current.wait_stream(self._stream)
        return None

    def _bound(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise self._failure("run", error) from error

    def _failure(self, verb: str, error: Exception) -> Exception:
        said = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(words in said.lower() for words in _NO_MEMORY):
            return MemoryError(f"{self.where}: {said[:_LONGEST]}")
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        return CheckpointError(f"{self.where}: onnxruntime cannot {verb} it: {said}")


def switch_reports_off() -> None:
    """Switch onnxruntime's reports off, for whatever imports it later."""
    os.environ.setdefault(NO_TELEMETRY, "1")


def _onnxruntime() -> Any:
    switch_reports_off()
    import onnxruntime

    return onnxruntime


def onnxruntime_part(name: str) -> Any:
    """Import a part of onnxruntime ("quantization"), with reporting switched off before."""
    _onnxruntime()
    return importlib.import_module(f"onnxruntime.{name}")


def numpy_type(x: Tensor) -> type[np.generic]:
    """Return numpy's name for a tensor's type."""
    return torch.empty(0, dtype=x.dtype).numpy().dtype.type


def _providers(device: torch.device, stream: torch.cuda.Stream | None, where: str) -> list[Any]:
    providers: list[Any] = ["CPUExecutionProvider"]
    if stream is not None:
        # To search for the fastest convolutions is onnxruntime's default; TF32 is as in torch (world/numerics.py).
        tf32 = "1" if torch.backends.cuda.matmul.allow_tf32 else "0"
        options = {"device_id": device.index or 0, "user_compute_stream": str(stream.cuda_stream), "use_tf32": tf32}
        providers.insert(0, (CUDA, options))
    elif device.type == "cuda":
        hint = "install onnxruntime-gpu in place of onnxruntime"
        warnings.warn(f"{where}: this onnxruntime runs on the CPU only, slowly; {hint}", PartialKDWarning, stacklevel=3)
    return providers
