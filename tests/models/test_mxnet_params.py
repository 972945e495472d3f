"""MXNet parameter files without MXNet: what is read, and that every damage is an error that names the place."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from helpers.mxnet_arrays import TYPES, array, whole
from partialkd.errors import CheckpointError
from partialkd.models.mxnet.params import V1_MAGIC, V2_MAGIC, V3_MAGIC, read_params

VALUES = [(np.arange(6) - 2).reshape(2, 3).astype(kind) for kind in TYPES]
NAMES = [f"arg:{kind[-2:]}_größe" for kind in TYPES]


def write(folder: Path, data: bytes) -> Path:
    (folder / "model-0000.params").write_bytes(data)
    return folder / "model-0000.params"


@pytest.mark.parametrize("magic", [V1_MAGIC, V2_MAGIC, V3_MAGIC])
def test_every_type_and_version(tmp_path: Path, magic: int) -> None:
    found = read_params(write(tmp_path, whole([array(value, magic, device=2) for value in VALUES], NAMES)))
    assert list(found) == NAMES
    for value, read in zip(VALUES, found.values(), strict=True):
        assert read.dtype == value.dtype
        assert (read == value).all()
        assert not read.flags.writeable


ONE = np.ones((2, 2), "<f4")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an MXNet parameter file: it is empty"),
        (b"PK\x03\x04" * 9, "not an MXNet parameter file: must begin with 0x112"),
        (whole([array(ONE)], ["arg:a"], magic=0x113), "must begin with 0x112"),
        (whole([array(ONE)], ["arg:a"])[:70], r"byte 64: array 0 of shape \(2, 2\) needs 16 bytes, but the file ends"),
        (whole([array(ONE)], ["arg:a"]) + b"\0", "1 bytes too many at the end"),
        (whole([array(ONE), array(ONE)], ["arg:a", "arg:a"]), "names must differ, got 'arg:a' twice"),
        (whole([array(ONE)], []), "a name for each array, got 1 arrays, 0 names"),
        (whole([array(ONE, storage=1)], ["arg:a"]), r"array 0: must be dense \(storage type 0\), got storage type 1"),
        (whole([array(ONE, kind=7)], ["arg:a"]), "array 0: type flag must be in .*, got 7"),
        (whole([array(ONE, device=9)], ["arg:a"]), "array 0: device type must be in .*, got 9"),
        (whole([array(ONE, magic=2)], ["arg:a"]), "array 0: magic number must be 0xf993fac9 .*, got 0x2"),
        (whole([array(ONE[0, 0].reshape(()))], ["arg:a"]), "must have 1 to 32 dimensions, got 0"),
        (whole([array(np.ones((2, 0), "<f4"))], ["arg:a"]), r"dimensions must be positive, got \(2, 0\)"),
        (struct.pack("<QQQ", 0x112, 0, 1 << 60), "announces 1152921504606846976 arrays, but only 0 bytes follow"),
        (whole([], []) [:-8] + struct.pack("<QQ", 0, 1 << 60), "8 bytes too many at the end"),
        (
            struct.pack("<QQQIiiqqiii", 0x112, 0, 1, V2_MAGIC, 0, 2, 1 << 40, 1 << 40, 1, 0, 0) + bytes(64),
            r"array 0 of shape \(1099511627776, 1099511627776\) needs 4835703278458516698824704 bytes",
        ),
    ],
    ids=range(16),
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_params(path)
    assert str(raised.value).startswith(str(path))


def test_names_must_be_short_and_text(tmp_path: Path) -> None:
    good = whole([array(ONE)], ["arg:a"])
    with pytest.raises(CheckpointError, match="name 0: a name has at most 4096 bytes, got 5000"):
        read_params(write(tmp_path, good[:-13] + struct.pack("<Q", 5000) + bytes(5000)))
    with pytest.raises(CheckpointError, match="name 0: must be UTF-8"):
        read_params(write(tmp_path, good[:-1] + b"\xff"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.params: cannot be read: No such file"):
        read_params(tmp_path / "none.params")


def test_no_beginning_of_a_file_is_a_file(tmp_path: Path) -> None:
    data = whole([array(value) for value in VALUES], NAMES)
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            read_params(write(tmp_path, data[:length]))
    assert len(read_params(write(tmp_path, data))) == len(NAMES)


@pytest.mark.slow
def test_damaged_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """No other exception, no hang, no memory beyond the file: 2000 files with a few bytes replaced."""
    rng, refused = random.Random(5), 0
    good = whole([array(value) for value in VALUES], NAMES)
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        try:
            found = read_params(write(tmp_path, bytes(data)))
            assert sum(value.nbytes for value in found.values()) <= len(data)
        except CheckpointError:
            refused += 1
    assert 200 < refused < 2000
