"""Read and write RecordIO files of MXNet (.rec with its .idx) without MXNet.

Format, all little-endian: a record is one part, or several where its payload held the magic number on a 4-byte
boundary (the magic is cut out there and put back by the reader). A part is magic, a length word (3 bits: 0 whole,
1 first, 2 middle, 3 last; 29 bits: bytes), the bytes, zeros up to a multiple of 4. A payload is a header
(flag uint32, label float32, id uint64, id2 uint64), `flag` more float32 labels when flag > 0, then the image.
The .idx is text, `key<TAB>offset` per line.

A reader holds offsets (n,) int64 sorted by key, and keys only where they are not consecutive; it reads with `pread`:
safe from several threads, after a fork, and pickled to spawned processes (which open the file again).
Errors: `DataError` with file, key and byte offset.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from partialkd.data.formats.record_index import read_index
from partialkd.data.ordered_threads import in_order
from partialkd.errors import DataError, Where
from partialkd.storage.atomic_files import replacing
from partialkd.storage.launcher_notes import note_mapped
from partialkd.storage.open_file import OpenFile
from partialkd.world.passes import counted

MAGIC = 0xCED7230A
MAX_PART = (1 << 29) - 1  # bytes: what 29 bits of the length word can say
WHOLE, FIRST, MIDDLE, LAST = range(4)
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_USUAL = 1 << 13  # bytes of a record read at once: most images of 112 x 112 pixels are shorter
_SCAN_CHUNK = 1 << 16  # records a thread looks at in one go
READAHEAD = 1 << 17  # bytes: Linux cuts longer wishes down to its read-ahead window, 128 KiB as it comes
READAHEAD_MOST = 1 << 30  # bytes: neighbours by key that lie further apart are no run
_SCAN_THREADS = 8  # of a cold file: they wait for the disk, not for a core


@dataclass(frozen=True)
class Headers:
    """Holds what `RecordReader.headers` found in each record, in the order of keys."""

    flags: np.ndarray  # (n,) uint32: 0, or the number of labels in front of the image
    labels: np.ndarray  # (n,) float32: the first label
    last: np.ndarray  # (n,) float32: the last label, which is the first where there is one
    image_bytes: np.ndarray  # (n,) int64: 0 in header and identity records


def pack_payload(labels: float | Sequence[float], key: int, image: bytes = b"") -> bytes:
    """Pack header, labels and image as one payload; several labels set flag to their number."""
    if not isinstance(labels, Sequence):
        return _HEADER.pack(0, labels, key, 0) + image
    return _HEADER.pack(len(labels), 0.0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + image


def unpack_payload(payload: bytes, where: str | Where) -> tuple[np.ndarray, bytes]:
    """Unpack a payload -> labels (1,) or (flag,) float32, image bytes."""
    if len(payload) < _HEADER.size:
        raise DataError(f"{where}: record of {len(payload)} bytes is shorter than its {_HEADER.size}-byte header")
    flag, label, _, _ = _HEADER.unpack_from(payload)
    if flag == 0:
        return np.array([label], dtype=np.float32), payload[_HEADER.size :]
    start = _HEADER.size + 4 * flag
    if len(payload) < start:
        raise DataError(f"{where}: header announces {flag} labels, record has only {len(payload)} bytes")
    return np.frombuffer(payload, "<f4", flag, _HEADER.size).astype(np.float32), payload[start:]


class RecordReader(OpenFile):
    """Reads the records of a .rec by position in the sorted keys of its .idx; without one, in the order of the file."""

    def __init__(self, rec: Path, idx: Path | None) -> None:
        self.numbers: range | np.ndarray
        if idx is None:
            super().__init__(rec)
            self.offsets = self._walked()
            self.numbers = range(len(self.offsets))
            return
        self.numbers, self.offsets = read_index(Path(idx))
        super().__init__(rec)
        for chunk in self._chunks():
            offsets = self.offsets[chunk]
            wrong = (offsets % 4 != 0) | (offsets > self.size - _PART.size - _HEADER.size)
            if wrong.any():
                position = chunk.start + int(np.argmax(wrong))
                rule = f"offset must be a multiple of 4 and leave room for a record in a file of {self.size} bytes"
                raise DataError(f"{self.where(position)}: {rule} (a truncated file, or the index of another one)")

    @classmethod
    def parsed(cls, rec: Path, numbers: range | np.ndarray, offsets: np.ndarray) -> RecordReader:
        """Make a reader of an index that was read and checked before."""
        reader = cls.__new__(cls)
        reader.numbers, reader.offsets = numbers, offsets
        OpenFile.__init__(reader, rec)
        return reader

    def _walked(self) -> np.ndarray:
        """Go from record to record -> offsets (n,) int64."""
        offsets, at = array("q"), 0
        while at < self.size:
            part = self.bytes_at(at, _PART.size)
            magic, word = _PART.unpack(part) if len(part) == _PART.size else (0, 0)
            if magic != MAGIC or at + _PART.size + (word & MAX_PART) > self.size:
                raise DataError(f"{self.path}: no whole record at byte {at} (truncated, or not a .rec file)")
            if word >> 29 in (WHOLE, FIRST):
                offsets.append(at)
            at += _PART.size + ((word & MAX_PART) + 3) // 4 * 4
        if not offsets:
            raise DataError(f"{self.path}: holds no record")
        return np.frombuffer(offsets, np.int64)

    @property
    def keys(self) -> np.ndarray:
        """Return the keys (n,) int64 ascending."""
        numbers = self.numbers
        return np.arange(numbers.start, numbers.stop) if isinstance(numbers, range) else numbers

    def key(self, position: int) -> int:
        return int(self.numbers[position])

    def _chunks(self) -> Iterator[slice]:
        return (slice(at, min(at + _SCAN_CHUNK, len(self))) for at in range(0, len(self), _SCAN_CHUNK))

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, position: int) -> str:
        """Name a record for error messages: file, key and byte offset."""
        return f"{self.path}: key {self.numbers[position]} at byte {self.offsets[position]}"

    def payload(self, position: int) -> bytes:
        """Read the whole payload of a record, its parts joined."""
        at = int(self.offsets[position])
        kind, part, at = self._part(position, at)
        if kind == WHOLE:
            return part
        if kind != FIRST:
            raise DataError(f"{self.where(position)}: points into the middle of a record")
        parts = [part]
        while kind != LAST:
            kind, part, at = self._part(position, at)
            if kind not in (MIDDLE, LAST):
                raise DataError(f"{self.where(position)}: the record breaks off after {len(parts)} parts")
            parts.append(part)
        return _MAGIC_BYTES.join(parts)

    def read(self, position: int) -> tuple[np.ndarray, bytes]:
        """Read labels (1,) or (flag,) float32 and image bytes of a record."""
        return unpack_payload(self.payload(position), Where(self.where, position))

    def _part(self, position: int, at: int) -> tuple[int, bytes, int]:
        read = os.pread(self._fd, _USUAL, at)
        if len(read) < _PART.size:
            raise DataError(f"{self.where(position)}: the file ends inside the record (truncated)")
        magic, word = _PART.unpack_from(read)
        if magic != MAGIC:
            raise DataError(f"{self.where(position)}: magic number is {magic:#010x} at byte {at}, not {MAGIC:#010x}")
        length = word & MAX_PART
        part, missing = read[_PART.size : _PART.size + length], _PART.size + length - len(read)
        if missing > 0:
            # pread reserves all the memory it is asked for: a wrong length is not to cost half a gigabyte
            part += os.pread(self._fd, min(missing, max(self.size - at, 0)), at + len(read))
        if len(part) < length:
            raise DataError(f"{self.where(position)}: the file ends inside the record (truncated)")
        return word >> 29, part, at + _PART.size + (length + 3) // 4 * 4

    def headers(self) -> Headers:
        """Read flag, first label and image size of every record, in one vectorised pass over a memory map."""
        parts = [found for _, found in self.scan()]
        names = ("flags", "labels", "last", "image_bytes")
        return Headers(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def scan(self) -> Iterator[tuple[int, Headers]]:
        """Read the same in pieces, each with the position of its first record, a few pieces at a time."""
        self.check_whole()
        mapped = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)  # unmapped with the last view of it
        note_mapped(self.path)
        words = np.frombuffer(mapped, "<u4", self.size // 4)
        scanned = in_order(lambda chunk: self._scan(words, chunk), self._chunks(), _SCAN_THREADS)
        doing = f"reading the headers of {self.path.name}"
        read = counted(scanned, doing, len(self), "records", lambda found: found[0].stop - found[0].start)
        yield from ((chunk.start, headers) for chunk, headers in read)

    def first_header(self) -> Headers:
        """Read what `headers` says of the first record."""
        payload = self.payload(0)
        labels, image = unpack_payload(payload, self.where(0))
        flag = np.array(_HEADER.unpack_from(payload)[:1], np.uint32)
        return Headers(flag, labels[:1], labels[-1:], np.array([len(image)], np.int64))

    def _scan(self, words: np.ndarray, chunk: slice) -> Headers:
        self.check_whole()
        at = self.offsets[chunk] // 4
        kind, length = words[at + 1] >> 29, (words[at + 1] & MAX_PART).astype(np.int64)
        flags, several = words[at + 2], kind == FIRST
        image = length - _HEADER.size - 4 * flags.astype(np.int64)
        fits = self.offsets[chunk] + _PART.size + length <= self.size
        good = (words[at] == MAGIC) & (several | ((kind == WHOLE) & (image >= 0))) & fits
        if not good.all():
            position = chunk.start + int(np.argmin(good))
            self.read(position)  # raises what exactly is wrong
            raise DataError(f"{self.where(position)}: record is not valid")
        first_of_many = words[np.minimum(at + 8, len(words) - 1)]
        labels = np.where(flags > 0, first_of_many, words[at + 3]).view(np.float32)
        last_of_many = words[np.minimum(at + 7 + flags, len(words) - 1)]
        last = np.where(flags > 0, last_of_many, words[at + 3]).view(np.float32)
        for row in np.flatnonzero(several).tolist():
            payload, where = self.payload(chunk.start + row), self.where(chunk.start + row)
            values, encoded = unpack_payload(payload, where)
            flags[row], image[row] = _HEADER.unpack_from(payload)[0], len(encoded)
            labels[row], last[row] = values[0], values[-1]
        return Headers(flags, labels, last, image)

    def readahead(self, start: int, stop: int) -> None:
        """Have the system read the records start..stop-1 into its page cache, where they lie one after the other."""
        begin, last = int(self.offsets[start]), int(self.offsets[stop - 1])
        following = int(self.offsets[stop]) if stop < len(self) else self.size
        end = min(following if following > last else self.size, last + READAHEAD)  # images are not larger
        if begin < end <= begin + READAHEAD_MOST:
            self.will_need(begin, end, READAHEAD)


class RecordWriter:
    """Appends records to an open .rec and remembers where; `open_writer` makes one."""

    def __init__(self, rec: IO[bytes]) -> None:
        self._rec, self._at = rec, 0
        self._keys, self._offsets = array("q"), array("q")

    def write(self, key: int, payload: bytes) -> None:
        """Append one record (`pack_payload` makes the payload)."""
        if len(payload) > MAX_PART:
            raise DataError(f"key {key}: a record holds at most {MAX_PART} bytes, got {len(payload)}")
        self._keys.append(key)
        self._offsets.append(self._at)
        self._at += write_record(self._rec, payload)

    def renumber(self, shift: int) -> None:
        """Add `shift` to the keys of the records written so far."""
        self._keys = array("q", (np.asarray(self._keys) + shift).tobytes())

    def index_lines(self) -> Iterator[bytes]:
        """Give the lines of the .idx, by key."""
        order = np.argsort(self._keys, kind="stable").tolist()
        for position, following in pairwise(order):
            if self._keys[position] == self._keys[following]:
                raise DataError(f"key {self._keys[position]} was written twice")
        for position in order:
            yield b"%d\t%d\n" % (self._keys[position], self._offsets[position])


@contextmanager
def open_writer(rec: Path, idx: Path) -> Iterator[RecordWriter]:
    """Open a writer of `rec`; it and its index appear under their names when the `with` block ends well."""
    with replacing(Path(rec), Path(idx)) as (rec_file, idx_file):
        writer = RecordWriter(rec_file)
        yield writer
        idx_file.writelines(writer.index_lines())


def write_record(file: IO[bytes], payload: bytes) -> int:
    """Write one record, cut where the magic stands on a 4-byte boundary; returns the bytes written."""
    cuts, at = [], payload.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            cuts.append(at)
        at = payload.find(_MAGIC_BYTES, at + 4 - at % 4)
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    written = 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        last = number == len(cuts)
        kind = (LAST if last else MIDDLE) if number else (WHOLE if last else FIRST)
        padding = bytes(-(end - start) % 4)
        written += file.write(_PART.pack(MAGIC, kind << 29 | (end - start)) + payload[start:end] + padding)
    return written
