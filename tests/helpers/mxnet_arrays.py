"""Arrays as MXNet's .params files hold them."""

from __future__ import annotations

import struct

import numpy as np

from partialkd.models.mxnet.params import V1_MAGIC, V2_MAGIC

TYPES = ["<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8"]


def array(
    values: np.ndarray, magic: int = V2_MAGIC, device: int = 1, storage: int = 0, kind: int | None = None
) -> bytes:
    """One array as NDArray::Save of MXNet writes it."""
    kind = TYPES.index(values.dtype.str.replace("|", "")) if kind is None else kind
    head = struct.pack("<I", magic) + (b"" if magic == V1_MAGIC else struct.pack("<i", storage))
    shape = struct.pack(f"<i{values.ndim}q", values.ndim, *values.shape)
    return head + shape + struct.pack("<iii", device, 0, kind) + values.tobytes()


def whole(arrays: list[bytes], names: list[str], magic: int = 0x112) -> bytes:
    texts = [struct.pack("<Q", len(name.encode())) + name.encode() for name in names]
    head = struct.pack("<QQQ", magic, 0, len(arrays))
    return head + b"".join(arrays) + struct.pack("<Q", len(names)) + b"".join(texts)
