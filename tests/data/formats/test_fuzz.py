"""RecordIO and .bin readers on arbitrary bytes and on valid files with bytes changed: they read, or raise DataError.

The examples are the same at every run. Memory is held to a few megabytes, most of them the piece in
which an index is read: no number in a file is believed before there are as many bytes. An example takes milliseconds;
one that is still reading after half a minute is broken off and fails.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fuzzing import CHANGES, WORDS, Change, Hang, bounded, changed, read_or_refuse
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.record_index import read_index
from partialkd.data.formats.recordio import MAGIC, RecordReader, open_writer, pack_payload
from partialkd.data.formats.verification_bin import read_bin, write_bin
from partialkd.data.sources.insightface import RecordIOSource


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def valid(place: Path) -> dict[str, bytes]:
    """A set with header and identity records, several labels, and a record in three parts; a .bin of every dialect."""
    magic = MAGIC.to_bytes(4, "little")
    images = [b"image%d" % n * 5 for n in range(4)] + [b"abcd" + magic + b"efgh" + magic]
    pack_records(place / "valid", ((image, n // 3) for n, image in enumerate(images)), 2, 32)
    with open_writer(place / "many.rec", place / "many.idx") as writer:
        for key, image in enumerate(images):
            writer.write(3 * key + 1, pack_payload((float(key % 2), 0.5) if key % 2 else 0.0, key, image))
    files = {name: (place / "valid" / f"train.{name}").read_bytes() for name in ("rec", "idx")}
    files |= {f"many.{name}": (place / f"many.{name}").read_bytes() for name in ("rec", "idx")}
    write_bin(place / "set.bin", images[:4], [True, False])
    files["bin"] = (place / "set.bin").read_bytes()
    answers = np.array([True, False])
    for protocol in (0, 2, 5):
        arrays = [np.frombuffer(image, np.uint8) for image in images[:4]]
        files[f"bin.{protocol}"] = pickle.dumps((arrays, answers if protocol else list(answers)), protocol)
    columns = [np.frombuffer(image, np.uint8)[:, None] for image in images[:4]]
    files["bin.columns"] = pickle.dumps((columns, answers.astype(">i8")), 2)
    return files


def _read_records(folder: Path) -> None:
    source = RecordIOSource(folder)
    labels = source.labels()
    assert ((labels >= 0) & (labels < source.num_classes)).all()
    for index in range(len(source)):
        image, label = source.read(index)
        assert image
        assert label == labels[index]


def _records(place: Path, rec: bytes, idx: bytes) -> None:
    folder = place / "set"
    folder.mkdir(exist_ok=True)
    (folder / "train.rec").write_bytes(rec)
    (folder / "train.idx").write_bytes(idx)
    (folder / "property").write_text("2,32,32\n")
    read_or_refuse(lambda: _read_records(folder))


def _bin(place: Path, content: bytes) -> None:
    (place / "fuzzed.bin").write_bytes(content)
    read_or_refuse(lambda: read_bin(place / "fuzzed.bin"))


@pytest.mark.slow
@bounded
@given(st.sampled_from(["rec", "many.rec"]), CHANGES)
def test_changed_records(place: Path, valid: dict[str, bytes], name: str, changes: list[Change]) -> None:
    _records(place, changed(valid[name], changes), valid[name.replace("rec", "idx")])


@bounded
@given(st.sampled_from(["rec", "many.rec"]), CHANGES)
def test_changed_index(place: Path, valid: dict[str, bytes], name: str, changes: list[Change]) -> None:
    _records(place, valid[name], changed(valid[name.replace("rec", "idx")], changes))


@bounded
@given(st.lists(st.tuples(st.integers(-2, 10), st.one_of(st.integers(-8, 600), st.integers(2**31, 2**70))), max_size=9))
def test_any_index(place: Path, valid: dict[str, bytes], rows: list[tuple[int, int]]) -> None:
    _records(place, valid["rec"], b"".join(b"%d\t%d\n" % row for row in rows))


@bounded
@given(st.lists(WORDS, max_size=40), st.binary(max_size=60))
def test_any_words(place: Path, words: list[int], rest: bytes) -> None:
    rec = b"".join(word.to_bytes(4, "little") for word in (MAGIC, *words)) + rest
    _records(place, rec, b"0\t0\n1\t8\n2\t16\n")


@bounded
@given(st.binary(max_size=200))
def test_any_bytes_as_index_or_records(place: Path, content: bytes) -> None:
    (place / "any").write_bytes(content)
    (place / "any.idx").write_bytes(b"5\t0\n")
    read_or_refuse(lambda: read_index(place / "any"))
    read_or_refuse(lambda: RecordReader(place / "any", place / "any.idx").headers())


@bounded
@given(st.sampled_from(["bin", "bin.0", "bin.2", "bin.5", "bin.columns"]), CHANGES)
def test_changed_bin(place: Path, valid: dict[str, bytes], name: str, changes: list[Change]) -> None:
    _bin(place, changed(valid[name], changes))


@bounded
@given(st.binary(max_size=300))
def test_any_bytes_as_bin(place: Path, content: bytes) -> None:
    _bin(place, content)


OPCODES = [getattr(pickle, name) for name in dir(pickle) if name.isupper() and isinstance(getattr(pickle, name), bytes)]
ARGUMENTS = st.one_of(
    st.just(b""),
    WORDS.map(lambda word: word.to_bytes(4, "little")),
    st.binary(max_size=9),
    st.sampled_from(
        [b"numpy\ndtype\n", b"_codecs\nencode\n", b"numpy._core.multiarray\n_reconstruct\n", b"0\n", b"7\n"]
    ),
)


@pytest.mark.slow
@settings(bounded, max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(OPCODES), ARGUMENTS), max_size=30))
def test_any_opcodes_as_bin(place: Path, program: list[tuple[bytes, bytes]]) -> None:
    _bin(place, b"".join(code + argument for code, argument in program) + b".")


def test_a_hang_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.fuzzing.HANGS_S", 1)

    def hang() -> None:
        while True:
            pass

    with pytest.raises(Hang, match="still reading after 1 s"):
        read_or_refuse(hang)


def test_what_was_changed_is_read_when_whole(place: Path, valid: dict[str, bytes]) -> None:
    """Else the tests above could pass for the wrong reason."""
    for name in ("rec", "many.rec"):
        (place / "set" / "train.rec").write_bytes(valid[name])
        (place / "set" / "train.idx").write_bytes(valid[name.replace("rec", "idx")])
        _read_records(place / "set")
    for name in ("bin", "bin.0", "bin.2", "bin.5", "bin.columns"):
        (place / "whole.bin").write_bytes(valid[name])
        assert read_bin(place / "whole.bin").same.tolist() == [True, False]
