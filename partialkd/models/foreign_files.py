"""Messages on files of weights that cannot be used: what the file is instead, and what to do.

Nothing here unpickles or runs anything.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

_INSTEAD = "save the module's state_dict, or an ONNX file"
_NO_SCRIPT = f"it is a TorchScript archive, which holds code and is not run: {_INSTEAD}"
_NO_PROGRAM = f"it is an archive of torch.export, which is not run: {_INSTEAD}"


def why_unreadable(error: Exception, path: Path | None = None) -> str:
    """Say in one line why `path` could not be read, without torch's advice to unpickle whatever is in the file."""
    found = _what_it_is(path) if path is not None else None
    if found is not None:
        return found
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error):
        return "it holds objects that are not tensors; they may be code, and are not unpickled"
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r" at 0x[0-9a-f]+>", ">", line)  # where an object lay in memory says nothing


def _what_it_is(path: Path) -> str | None:
    """Recognise a file of another kind by its beginning or its list of members."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError:
        return None  # the error itself says so
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: get that with git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page: what was downloaded was not the file itself"
    return _kind_of_archive(path) if start.startswith(b"PK\x03\x04") else None


def _kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    if "constants.pkl" in members:
        return _NO_SCRIPT
    return _NO_PROGRAM if "archive_format" in members or "archive_version" in members else None


def strange_kind(tensor: Tensor) -> str | None:
    """Say why a tensor of a file cannot be a parameter as it is; None for a dense one of real numbers."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.is_meta:
        return "without values (meta)"
    return f"of complex numbers ({tensor.dtype})" if tensor.is_complex() else None
