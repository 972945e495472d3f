"""RecordIO: bytes against a hand-made file, reads from threads, forks and spawned processes, every corruption named."""

from __future__ import annotations

import multiprocessing
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from partialkd.data.formats.record_index import read_index
from partialkd.data.formats.recordio import MAGIC, RecordReader, open_writer, pack_payload, unpack_payload
from partialkd.errors import DataError
from partialkd.storage.atomic_files import replacing

M = struct.pack("<I", MAGIC)


def write(folder: Path, payloads: dict[int, bytes]) -> RecordReader:
    with open_writer(folder / "a.rec", folder / "a.idx") as writer:
        for key, payload in payloads.items():
            writer.write(key, payload)
    return RecordReader(folder / "a.rec", folder / "a.idx")


def walk(data: bytes) -> list[bytes]:
    """An independent sequential reader of the format: every record's payload."""
    at, records, parts = 0, [], []
    while at < len(data):
        magic, word = struct.unpack_from("<II", data, at)
        assert magic == MAGIC
        length = word & 0x1FFFFFFF
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + (length + 3) // 4 * 4
        if word >> 29 in (0, 3):
            records.append(M.join(parts))
            parts = []
    assert not parts
    return records


def test_bytes_of_a_record_in_three_parts(tmp_path: Path) -> None:
    write(tmp_path, {5: b"abcd" + M + M + b"xyz"})
    part = lambda kind, body: M + struct.pack("<I", kind << 29 | len(body)) + body
    assert (tmp_path / "a.rec").read_bytes() == part(1, b"abcd") + part(2, b"") + part(3, b"xyz") + b"\0"
    assert (tmp_path / "a.idx").read_bytes() == b"5\t0\n"


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"x",
        b"12345678",
        M,
        M * 3,
        b"abcd" + M,
        M + b"abc",
        b"a" + M + b"bcd" + M,
        b"ab" + M + b"cd" + M,
        M[:3] * 9,
    ],
)
def test_any_payload_comes_back(tmp_path: Path, image: bytes) -> None:
    reader = write(tmp_path, {1: pack_payload(7.0, 1, image), 2: pack_payload((1.0, 2.0), 2, image)})
    for position, expected in enumerate([[7.0], [1.0, 2.0]]):
        labels, got = reader.read(position)
        assert got == image
        assert labels.tolist() == expected
    assert walk((tmp_path / "a.rec").read_bytes()) == [reader.payload(0), reader.payload(1)]


def test_header_fields_are_where_the_format_has_them() -> None:
    assert pack_payload(3, 9, b"I") == struct.pack("<IfQQ", 0, 3.0, 9, 0) + b"I"
    assert pack_payload((4, 0.5), 9, b"I") == struct.pack("<IfQQff", 2, 0.0, 9, 0, 4.0, 0.5) + b"I"


def test_index_is_sorted_by_key(tmp_path: Path) -> None:
    reader = write(tmp_path, {9: pack_payload(0, 9, b"nine"), 0: pack_payload(0, 0, b"none")})
    assert reader.keys.tolist() == [0, 9]
    assert [reader.read(position)[1] for position in (0, 1)] == [b"none", b"nine"]


def random_payloads(n: int) -> dict[int, bytes]:
    """Labels of every kind; the magic in images and, as a key, inside the header itself."""
    rng = np.random.default_rng(0)
    payloads = {}
    for key in [*range(n), MAGIC]:
        count = int(rng.integers(0, 4))
        labels = [float(x) for x in rng.normal(size=count)] if count else float(key % 1000)
        image = rng.bytes(int(rng.integers(0, 90))) + (M * int(rng.integers(0, 3)) if key % 3 == 0 else b"")
        payloads[key] = pack_payload(labels, key, image)
    return payloads


def test_headers_in_one_pass_equal_single_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partialkd.data.formats.recordio._SCAN_CHUNK", 64)  # several chunks, the last one shorter
    reader = write(tmp_path, random_payloads(500))
    headers = reader.headers()
    for position in range(len(reader)):
        labels, image = reader.read(position)
        assert headers.labels[position] == labels[0]
        assert headers.image_bytes[position] == len(image)
        assert headers.flags[position] == struct.unpack_from("<I", reader.payload(position))[0]


def _read_all(reader: RecordReader) -> list[bytes]:
    return [reader.payload(position) for position in range(len(reader))]


def _answer(reader: RecordReader, pipe: multiprocessing.connection.Connection) -> None:
    pipe.send(_read_all(reader))


def test_threads_read_the_same(tmp_path: Path) -> None:
    payloads = random_payloads(300)
    reader = write(tmp_path, payloads)
    with ThreadPoolExecutor(8) as pool:
        assert all(got == list(payloads.values()) for got in pool.map(lambda _: _read_all(reader), range(16)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_the_same(tmp_path: Path, method: str) -> None:
    payloads = random_payloads(50)
    reader = write(tmp_path, payloads)
    context = multiprocessing.get_context(method)
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_answer, args=(reader, theirs)))
        processes[-1].start()
        pipes.append(ours)
    assert _read_all(reader) == list(payloads.values())
    assert all(pipe.recv() == list(payloads.values()) for pipe in pipes)
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_file_that_changed_is_not_opened_again(tmp_path: Path) -> None:
    state = pickle.dumps(write(tmp_path, {1: pack_payload(0, 1, b"abc")}))
    (tmp_path / "a.rec").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.rec: the file changed"):
        pickle.loads(state)


# ------------------------------------------------------------------------------------------------ corruption


def corrupt(folder: Path, at: int, data: bytes, truncate: int | None = None) -> None:
    content = bytearray((folder / "a.rec").read_bytes())
    content[at : at + len(data)] = data
    (folder / "a.rec").write_bytes(content[:truncate])


THREE = {1: pack_payload(0, 1, b"first"), 2: pack_payload(1, 2, b"abcd" + M + b"ef"), 3: pack_payload(2, 3, b"last")}
OFFSETS = (0, 40, 40 + 8 + 28 + 8 + 4)  # the second record is in two parts
WORD = struct.Struct("<I").pack


@pytest.mark.parametrize(
    ("at", "data", "truncate", "message"),
    [
        (0, b"\0", None, "key 1 at byte 0: magic number is 0xced72300 at byte 0, not 0xced7230a"),
        (40, b"\0", None, "key 2 at byte 40: magic number"),
        (40 + 36, b"\0", None, "key 2 at byte 40: magic number is 0xced72300 at byte 76"),
        (4, WORD(2 << 29 | 29), None, "key 1 at byte 0: points into the middle of a record"),
        (4, WORD(3 << 29 | 29), None, "key 1 at byte 0: points into the middle of a record"),
        (4, WORD(9), None, "key 1 at byte 0: record of 9 bytes is shorter than its 24-byte header"),
        (4, WORD(1 << 28), None, r"key 1 at byte 0: the file ends inside the record \(truncated\)"),
        (8, WORD(3), None, "key 1 at byte 0: header announces 3 labels, record has only 29 bytes"),
        (40 + 36 + 4, WORD(2), None, "key 2 at byte 40: the record breaks off after 1 parts"),
        (0, b"", -1, r"key 3 at byte 88: the file ends inside the record \(truncated\)"),
        (0, b"", 100, "key 3 at byte 88: offset must be a multiple of 4 and leave room"),
        (0, b"", 0, "key 1 at byte 0: offset must be"),
    ],
)
def test_corrupt_file(tmp_path: Path, at: int, data: bytes, truncate: int | None, message: str) -> None:
    reader = write(tmp_path, THREE)
    assert tuple(reader.offsets) == OFFSETS
    corrupt(tmp_path, at, data, truncate)
    with pytest.raises(DataError, match=r"a\.rec: " + message):
        RecordReader(tmp_path / "a.rec", tmp_path / "a.idx").headers()


def test_record_that_continues_past_the_end(tmp_path: Path) -> None:
    write(tmp_path, {2: THREE[2]})
    corrupt(tmp_path, 0, b"", 8 + 28)
    with pytest.raises(DataError, match=r"key 2 at byte 0: the file ends inside the record"):
        RecordReader(tmp_path / "a.rec", tmp_path / "a.idx").read(0)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "no record in the index"),
        (b"1\t0\nx\t40\n", "line 2: must be two numbers, key and offset, got b'x\\\\t40'"),
        (b"1\t0\n2\t4.5\n", "line 2: must be two numbers"),
        (b"1\t0\n2\n", "line 2: must be two numbers"),
        (b"1\t0\t7\n2\t40\n", "line 1: must be two numbers"),
        (b"1\t0\n2\t-4\n", "line 2: must be two numbers"),
        (b"1\t0\n\n2\t40\n", "line 2: must be two numbers"),
        (b"1\t0\n1\t40\n", "key 1 occurs twice"),
        (b"\x93NUMPY\0\xff", "line 1: must be two numbers"),
    ],
)
def test_corrupt_index(tmp_path: Path, index: bytes, message: str) -> None:
    (tmp_path / "a.idx").write_bytes(index)
    with pytest.raises(DataError, match=r"a\.idx: " + message):
        read_index(tmp_path / "a.idx")


@pytest.mark.parametrize("offset", [2, 44 * 100, 99999999999999999999])
def test_index_of_another_file(tmp_path: Path, offset: int) -> None:
    write(tmp_path, THREE)
    (tmp_path / "a.idx").write_text(f"1\t0\n8\t{offset}\n")
    with pytest.raises(DataError, match=r"a\.rec: key 8 at byte \d+: offset must be a multiple of 4"):
        RecordReader(tmp_path / "a.rec", tmp_path / "a.idx")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.idx: cannot be read: No such file"):
        RecordReader(tmp_path / "a.rec", tmp_path / "a.idx")
    (tmp_path / "a.idx").write_text("1\t0\n")
    with pytest.raises(DataError, match=r"a\.rec: cannot be read: No such file"):
        RecordReader(tmp_path / "a.rec", tmp_path / "a.idx")


def test_unpack_of_a_short_payload() -> None:
    with pytest.raises(DataError, match="here: record of 3 bytes"):
        unpack_payload(b"abc", "here")


# --------------------------------------------------------------------------------------------------- writing


def test_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with open_writer(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
            writer.write(1, b"x" * 100)
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_nothing_appears_under_its_name_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with replacing(tmp_path / "a", tmp_path / "b") as (a, b):
        a.write(b"new")
        b.write(b"new")
        a.flush()
        assert (tmp_path / "a").read_text() == "old"
        assert not (tmp_path / "b").exists()
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["new", "new"]


def test_key_written_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="key 1 was written twice"):
        write_twice(tmp_path)
    assert list(tmp_path.iterdir()) == []


def write_twice(folder: Path) -> None:
    with open_writer(folder / "a.rec", folder / "a.idx") as writer:
        writer.write(1, b"x" * 24)
        writer.write(1, b"y" * 24)
