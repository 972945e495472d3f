"""Ways in which verification sets are wrong, and what is said of each."""

from __future__ import annotations

import pickle

from helpers import bad_models as make
from helpers.bad_files import Fault


def _laughs(depth: int) -> bytes:
    """Opcodes of a tuple of two of a tuple of two ...: its text, and its hash, would take for ever."""
    places = [number.to_bytes(4, "little") for number in range(depth)]
    return b")" + b"".join(b"r" + place + b"j" + place + b"\x86" for place in places)


BINS = (
    Fault(
        ".bin that runs a command",
        make.bin_that_runs,
        r"lfw\.bin: .*the file asks for \w+\.system, which no verification set needs",
    ),
    Fault(
        "truncated .bin",
        make.bin_file(pickle.dumps(([b"x" * 99] * 2, [True]))[:60]),
        r"lfw\.bin: not a verification set: ",
    ),
    Fault("empty .bin", make.bin_file(b""), r"lfw\.bin: not a verification set: the file ends early"),
    Fault("text as .bin", make.bin_file(b"hello"), r"lfw\.bin: not a verification set: "),
    Fault(
        "odd number of images",
        make.bin_of(([b"a", b"b", b"c"], [True])),
        r"lfw\.bin: pairs need an even number of images, got 3",
    ),
    Fault(
        "more answers than pairs",
        make.bin_of(([b"a", b"b"], [True, False])),
        r"lfw\.bin: 2 images are 1 pairs, but there are 2 answers",
    ),
    Fault(
        "an image that is not bytes",
        make.bin_of(([b"a", 7], [True])),
        r"lfw\.bin: image 1: must be the bytes of an encoded image, got 7",
    ),
    Fault("an image without bytes", make.bin_of(([b"a", b""], [True])), r"lfw\.bin: image 1: must be the bytes"),
    Fault("answer 2", make.bin_of(([b"a", b"b"], [2])), r"lfw\.bin: pair 0: same must be true or false, got 2"),
    Fault("set without a pair", make.bin_of(([], [])), r"lfw\.bin: the set is empty"),
    Fault(
        "pickle with a memo of 2^31 places",
        make.bin_file(b"\x80\x02]r\xff\xff\xff\x7f."),
        r"lfw\.bin: must hold \(images, same\), got list",
    ),
    Fault(
        "pickle that announces 2^60 bytes",
        make.bin_file(b"\x80\x04\x8e" + (2**60).to_bytes(8, "little")),
        r"lfw\.bin: .*the file ends early: 1152921504606846976 bytes",
    ),
    Fault(
        "pickle that announces an array of 2^40",
        make.bin_file(b"\x80\x05\x96" + (2**40).to_bytes(8, "little")),
        r"lfw\.bin: .*the file ends early: 1099511627776 bytes",
    ),
    Fault(
        "pickle with a dictionary",
        make.bin_of({"images": []}),
        r"lfw\.bin: .*the opcode b'}', which no verification set needs",
    ),
    Fault(
        "pickle of 2^60 nested tuples, as image",
        make.bin_file(b"\x80\x02](" + _laughs(60) + b"K\x01e](\x88e\x86."),
        r"lfw\.bin: image 0: must be .*, got a tuple",
    ),
    Fault(
        "pickle of 2^60 nested tuples, as type",
        make.bin_file(b"\x80\x02cnumpy\ndtype\n" + _laughs(60) + b"\x85R."),
        r"lfw\.bin: .*must be bools or integers, got a tuple",
    ),
    Fault(
        "pickle that multiplies its bytes",
        make.bin_file(
            b"\x80\x02]c_codecs\nencode\nq\x00X\xe8\x03\0\0"
            + b"x" * 1000
            + b"X\x06\0\0\0latin1\x86q\x01R"
            + b"h\x00h\x01R" * 99
            + b"."
        ),
        r"lfw\.bin: .*the file encodes more bytes than it has",
    ),
)
