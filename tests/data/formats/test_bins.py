"""Verification sets: every dialect of .bin is read, anything else in a pickle is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from partialkd.data.formats.verification_bin import read_bin, write_bin
from partialkd.errors import DataError

IMAGES = [b"\xff\xd8" + bytes([k]) * 300 + "é".encode() for k in range(5)] + [b"\xff\xd8\n'\\short"]
SAME = [True, False, True]


def check(path: Path) -> None:
    got = read_bin(path)
    assert got.name == "lfw"
    assert list(got.images) == IMAGES
    assert got.same.dtype == bool
    assert got.same.tolist() == SAME


def test_written_set_is_read_by_us_and_by_plain_pickle(tmp_path: Path) -> None:
    write_bin(tmp_path / "lfw.bin", IMAGES, np.array(SAME))
    check(tmp_path / "lfw.bin")
    with (tmp_path / "lfw.bin").open("rb") as file:  # as InsightFace's verification.py does
        assert pickle.load(file, encoding="bytes") == (IMAGES, SAME)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("answers", ["list", "scalars", "array", "numbers"])
def test_pickles_of_python_3(tmp_path: Path, protocol: int, answers: str) -> None:
    forms = {"list": SAME, "scalars": list(np.array(SAME)), "array": np.array(SAME), "numbers": [1, 0, 1]}
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, forms[answers]), protocol))
    check(tmp_path / "lfw.bin")


@pytest.mark.parametrize("protocol", [2, 4])
def test_older_numpy_names(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps((IMAGES, list(np.array(SAME))), protocol)
    older = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    older = older.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    assert older != data
    unframed = b"\x80\x04" + older[11:] if protocol == 4 else older  # a frame's length would no longer agree
    (tmp_path / "lfw.bin").write_bytes(unframed)
    check(tmp_path / "lfw.bin")


def test_images_as_arrays_of_bytes(tmp_path: Path) -> None:
    for protocol in range(6):
        images = [np.frombuffer(image, np.uint8) for image in IMAGES]
        (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, SAME), protocol))
        check(tmp_path / "lfw.bin")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("shape", [(-1, 1), (1, -1), (1, -1, 1)])
def test_images_as_older_opencv_encoded_them(tmp_path: Path, protocol: int, shape: tuple[int, ...]) -> None:
    for order in "CF":
        images = [np.asarray(np.frombuffer(image, np.uint8).reshape(shape), order=order) for image in IMAGES]
        (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, SAME), protocol))
        check(tmp_path / "lfw.bin")


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", ["?", "u1", "i1", "<u2", ">i2", "<i4", ">u4", "<i8", ">i8", "u8"])
def test_answers_as_integers_of_any_width(tmp_path: Path, protocol: int, kind: str) -> None:
    answers = np.array(SAME).astype(kind)
    for form in (answers, answers[:, None], list(answers), list(answers[:, None]), tuple(answers)):
        (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, form), protocol))
        check(tmp_path / "lfw.bin")
    if kind not in ("?", "u1", "i1"):
        wrong = answers * 256  # one byte of it is a 1
        (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, wrong), protocol))
        with pytest.raises(DataError, match="pair 0: same must be true or false, got 256"):
            read_bin(tmp_path / "lfw.bin")


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", ["f8", "S3", "O", "M8[s]", "c16"])
def test_other_arrays_are_refused(tmp_path: Path, protocol: int, kind: str) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, np.zeros(3, kind)), protocol))
    with pytest.raises(DataError, match=r"lfw\.bin: not a verification set: "):
        read_bin(tmp_path / "lfw.bin")


def test_shapes_that_are_not_that_of_the_bytes_are_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(([np.frombuffer(image, np.uint8)[:, None] for image in IMAGES], SAME), 2)
    length = b"M" + len(IMAGES[0]).to_bytes(2, "little") + b"K\x01\x86"  # the shape (n, 1)
    assert whole.count(length) >= 1
    for other in (b"M\xff\xffK\x01\x86", b"K\x01K\x01\x86", b"M" + length[1:3] + b"K\x02\x86", b"NK\x01\x86"):
        (tmp_path / "lfw.bin").write_bytes(whole.replace(length, other))
        with pytest.raises(DataError, match=r"lfw\.bin: not a verification set: numpy values (must have|of shape)"):
            read_bin(tmp_path / "lfw.bin")


def python_2_pickle(protocol: int) -> bytes:
    """What Python 2's cPickle writes: byte strings as S (0) or T/U (2), bools as I01 (0) or opcodes (2)."""
    if protocol == 0:
        strings = b"".join(b"S" + repr(image)[1:].encode() + b"\na" for image in IMAGES)
        bools = b"".join(b"I01\na" if same else b"I00\na" for same in SAME)
        return b"((l" + strings + b"(l" + bools + b"t."
    strings = b"".join(
        (b"U" + bytes([len(image)]) if len(image) < 256 else b"T" + len(image).to_bytes(4, "little")) + image
        for image in IMAGES
    )
    bools = b"".join(b"\x88" if same else b"\x89" for same in SAME)
    return b"\x80\x02](" + strings + b"e](" + bools + b"e\x86."


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_of_python_2(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "lfw.bin").write_bytes(python_2_pickle(protocol))
    check(tmp_path / "lfw.bin")


# ------------------------------------------------------------------------------------------------- refusals


class Run:
    """Pickles as a call."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, getattr, pickle.loads, np.load, bytearray])
def test_code_is_refused(tmp_path: Path, function: object, protocol: int) -> None:
    marker = tmp_path / "was-run"
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, [Run(function, f"touch {marker}")]), protocol))
    with pytest.raises(DataError, match=r"lfw\.bin: not a verification set: the file asks for \w+\.\w+, which no"):
        read_bin(tmp_path / "lfw.bin")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",  # another encoding
        b"c__builtin__\nbytes\n(I1000000000\ntR.",  # a gigabyte of zeros
        b"cnumpy\ndtype\n(S'O8'\ntR.",  # an array of objects
        b"cnumpy.core.multiarray\nscalar\n(S'b1'\nS'x'\ntR.",  # not a type
        b"c_codecs\nencode\n(N}S'__defaults__'\nNstb.",  # tries to change the function it was given
        b"cpartialkd.data.bins\nread_bin\n(S'/etc/passwd'\ntR.",
        b"\x80\x04\x8c\x07numpy.f\x8c\x04load\x93.",
        b"Pid\n.",  # persistent id
        b"\x80\x02\x82\x01.",  # extension registry
        b"",
        b"no pickle at all",
        pickle.dumps((IMAGES, SAME))[:-20],
    ],
)
def test_malformed_pickle(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "lfw.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"lfw\.bin: not a verification set: "):
        read_bin(tmp_path / "lfw.bin")
    write_bin(tmp_path / "lfw.bin", IMAGES, SAME)
    check(tmp_path / "lfw.bin")  # and the reader is none the worse


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES[:5], SAME), "pairs need an even number of images, got 5"),
        ((IMAGES, SAME[:2]), "6 images are 3 pairs, but there are 2 answers"),
        ((IMAGES[:4], SAME), "4 images are 2 pairs, but there are 3 answers"),
        (([], []), "the set is empty"),
        ((["text", *IMAGES[1:]], SAME), "image 0: must be the bytes of an encoded image, got 'text'"),
        (([*IMAGES[:5], b""], SAME), "image 5: must be the bytes"),
        ((IMAGES, [True, 2, True]), "pair 1: same must be true or false, got 2"),
        ((IMAGES, 3), "images and answers must be lists, got 3"),
        ((IMAGES, [True, None, True]), "pair 1: same must be true or false, got None"),
        (
            (IMAGES, {"same": SAME}),
            "not a verification set: the file uses the opcode .*, which no",
        ),
        (IMAGES, r"must hold \(images, same\), got list"),
        (7, r"must hold \(images, same\), got int"),
    ],
)
def test_wrong_content(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"lfw\.bin: " + message):
        read_bin(tmp_path / "lfw.bin")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lfw\.bin: cannot be read: No such file"):
        read_bin(tmp_path / "lfw.bin")


@pytest.mark.parametrize(("images", "same"), [(IMAGES[:5], SAME), (IMAGES, SAME[:1]), ([], [])])
def test_writer_refuses_what_the_reader_would(tmp_path: Path, images: list[bytes], same: list[bool]) -> None:
    with pytest.raises(DataError, match=r"lfw\.bin: "):
        write_bin(tmp_path / "lfw.bin", images, same)
    assert list(tmp_path.iterdir()) == []
