"""ONNX models run by onnxruntime, the only module that imports it.

onnxruntime's wheels for Linux report to their maker by default and leave a device id in the user's cache: this is
switched off before the import, unless the environment says ORT_DISABLE_TELEMETRY itself.
A session runs on CUDA if its device is and onnxruntime can, else on the CPU with as many threads as torch uses.
Weights outside the file ("external data") are read by onnxruntime, which refuses paths that leave the file's folder.
Errors: CheckpointError in one line that names the file, MemoryError where onnxruntime cannot allocate.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partialkd.errors import CheckpointError, PartialKDWarning
from partialkd.storage.listed_files import check_exported

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_LONGEST = 300  # characters of onnxruntime's own words in an error
_NO_MEMORY = ("bad_alloc", "failed to allocate", "out of memory")


class OnnxSession:
    """A loaded model. model: its file or its bytes; where: its name in errors. inputs, outputs: name, type, shape."""

    def __init__(self, model: Path | bytes, where: str, device: torch.device | None = None) -> None:
        self.where = where
        if isinstance(model, Path):
            check_exported(model, CheckpointError)
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take cores
        options.log_severity_level = 4  # what it logs comes again as an exception
        providers = _providers(runtime, device or torch.device("cpu"), where)
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

    def _failure(self, verb: str, error: Exception) -> Exception:
        said = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(words in said.lower() for words in _NO_MEMORY):
            return MemoryError(f"{self.where}: {said[:_LONGEST]}")
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        return CheckpointError(f"{self.where}: onnxruntime cannot {verb} it: {said}")


def _onnxruntime() -> Any:
    os.environ.setdefault(NO_TELEMETRY, "1")
    import onnxruntime

    return onnxruntime


def _providers(runtime: Any, device: torch.device, where: str) -> list[Any]:
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    elif device.type == "cuda":
        hint = "install onnxruntime-gpu in place of onnxruntime"
        warnings.warn(f"{where}: this onnxruntime runs on the CPU only, slowly; {hint}", PartialKDWarning, stacklevel=3)
    return providers
