"""Ways in which files are wrong: what is said, that nothing is written or run, and whether the run stops or goes on.

The tables of docs/data.md, "What each error means", have a line for each of these, which says what is said.
bad_files.py makes the files.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import bad_files as make
import error_table
import pytest

from partialkd.errors import CheckpointError, ConfigError, DataError, PartialKDError, TeacherError

RECORD = r"train\.rec: key 3 at byte \d+: "


@dataclass(frozen=True)
class Fault:
    """What is wrong, how such a file comes about, and what is said."""

    what: str
    maker: make.Maker
    says: str
    kind: type[PartialKDError] = DataError


def _laughs(depth: int) -> bytes:
    """Opcodes of a tuple of two of a tuple of two ...: its text, and its hash, would take for ever."""
    places = [number.to_bytes(4, "little") for number in range(depth)]
    return b")" + b"".join(b"r" + place + b"j" + place + b"\x86" for place in places)


# What is said of the image of a record; data.on_corrupt decides whether the run stops.
IMAGES = {
    "truncated JPEG": (make.encoded("JPEG")[:-300], "broken JPEG: Premature end of JPEG file"),
    "JPEG of two bytes": (b"\xff\xd8", "broken JPEG: "),
    "JPEG damaged in the middle": (make.damaged_middle(), "broken JPEG: Corrupt JPEG data"),
    "JPEG header says 8191 x 8191": (make.sized_jpeg(8191), "broken JPEG: "),
    "JPEG header says 16000 x 16000": (
        make.sized_jpeg(16000),
        "an image has at most 67108864 pixels, got 16000 x 16000",
    ),
    "JPEG header says 0 x 0": (make.sized_jpeg(0), "broken JPEG: "),
    "truncated CMYK JPEG": (make.encoded("JPEG", "CMYK")[:-300], "broken (JPEG|image): "),
    "truncated PNG": (make.encoded("PNG")[:-800], "broken image: "),
    "truncated WebP": (make.encoded("WEBP")[:-100], "broken image: "),
    "16-bit PNG": (make.deep(), "must be one image of 8 bits a channel, got PNG mode I;16"),
    "PNG with transparency": (make.transparent(), "the image has transparent pixels"),
    "animated WebP": (make.animated("WEBP"), "must be one image of 8 bits a channel, got WEBP"),
    "animated GIF": (make.animated("GIF"), r"not an image of PNG, JPEG, BMP, WEBP, TIFF \(starts with b'GIF"),
    "text": (b"no image", r"not an image of PNG, JPEG, BMP, WEBP, TIFF \(starts with b'no image'\)"),
    "1 x 1 pixels": (make.encoded("JPEG", size=1), "must be 32 x 32 pixels .*, got 1 x 1"),
    "another size": (make.encoded("JPEG", size=48), "must be 32 x 32 pixels .*, got 48 x 48"),
    "PNG of 8000 x 8000 without pixels": (make.png(8000, 8000, bytes(10)), "broken image: "),
    "PNG that says 2^31 x 2^31": (make.png(2**31 - 1, 2**31 - 1, b""), "broken image: Image size"),
    "PNG with 50 MB of text in 50 KB": (
        make.png(2, 2, bytes(14), (b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 1))),
        "broken image: Decompressed data too large",
    ),
}

# Odd, but good.
GOOD = {
    "grey JPEG": make.image(make.encoded("JPEG", "L")),
    "CMYK JPEG": make.image(make.encoded("JPEG", "CMYK")),
    "progressive JPEG": make.image(make.encoded("JPEG", progressive=True)),
    "grey PNG": make.image(make.encoded("PNG", "L")),
    "PNG with a palette": make.image(make.encoded("PNG", "P")),
    "PNG with an opaque alpha channel": make.image(make.encoded("PNG", "RGBA")),
    "the magic number in an image's bytes": make.image(make.encoded("JPEG") + b"\x0a\x23\xd7\xce" * 8),
    "1 x 1 pixels, with data.resize": make.image(make.encoded("JPEG", size=1), resize=True),
    "another size, with data.resize": make.image(make.encoded("JPEG", size=200), resize=True),
    "index in another order": make.spoilt("train.idx", lambda b: b"".join(reversed(b.splitlines(keepends=True)))),
    "index with the line ends of Windows": make.spoilt("train.idx", lambda b: b.replace(b"\n", b"\r\n")),
    "index without a last line end": make.spoilt("train.idx", lambda b: b[:-1]),
}

RECORDS = (
    Fault(
        "truncated .rec",
        make.spoilt("train.rec", lambda b: b[:-4000]),
        r"train\.rec: key \d at byte \d+: offset must be a multiple of 4 and leave room",
    ),
    Fault(
        ".rec cut inside its last record",
        make.spoilt("train.rec", lambda b: b[:-4]),
        r"train\.rec: key \d at byte \d+: .*\(truncated\)",
    ),
    Fault("empty .rec", make.spoilt("train.rec", lambda b: b""), r"train\.rec: key 0 at byte \d+: offset must be"),
    Fault("missing .rec", make.removed("train.rec"), r"train\.rec: cannot be read: No such file"),
    Fault("missing index", make.removed("train.idx"), r"train\.idx: cannot be read: No such file"),
    Fault(
        "index past the end",
        make.spoilt("train.idx", make.index_line(3, lambda at: at + 4 * 10**9)),
        f"{RECORD}offset must be",
    ),
    Fault(
        "index off by two bytes",
        make.spoilt("train.idx", make.index_line(3, lambda at: at + 2)),
        f"{RECORD}offset must be",
    ),
    Fault(
        "index in the middle of a record",
        make.spoilt("train.idx", make.index_line(3, lambda at: at + 8)),
        f"{RECORD}magic number is",
    ),
    Fault(
        "index of another .rec", make.index_of_another, r"train\.rec: key \d at byte \d+: (magic number|offset must)"
    ),
    Fault(
        "two index rows for one key",
        make.spoilt("train.idx", lambda b: b + b"3\t0\n"),
        r"train\.idx: key 3 occurs twice",
    ),
    Fault("empty index", make.spoilt("train.idx", lambda b: b""), r"train\.idx: no record in the index"),
    Fault(
        "text in the index",
        make.spoilt("train.idx", lambda b: b + b"a\tb\n"),
        r"train\.idx: line 10: must be two numbers, key and offset, got b'a",
    ),
    Fault(
        "index row cut short", make.spoilt("train.idx", lambda b: b + b"9"), r"train\.idx: line 10: must be two numbers"
    ),
    Fault(
        "index of one endless line",
        make.spoilt("train.idx", lambda b: b"7" * 10**7),
        r"train\.idx: line 1: must be two numbers",
    ),
    Fault(
        "index offset of 20 digits",
        make.spoilt("train.idx", make.index_line(3, lambda at: 10**19)),
        rf"{RECORD}offset must be|train\.idx: ",
    ),
    Fault("wrong magic number", make.at_third(make.word(0, 7)), f"{RECORD}magic number is 0x00000007"),
    Fault(
        "length beyond the file", make.at_third(make.word(1, (1 << 29) - 1)), f"{RECORD}the file ends inside the record"
    ),
    Fault(
        "length shorter than a header",
        make.at_third(make.word(1, 9)),
        f"{RECORD}record of 9 bytes is shorter than its 24-byte header",
    ),
    Fault("first part without a last one", make.at_third(make.word(1, 1 << 29 | 40)), f"{RECORD}magic number is"),
    Fault(
        "last part without a first one",
        make.at_third(make.word(1, 3 << 29 | 40)),
        f"{RECORD}points into the middle of a record",
    ),
    Fault(
        "record announces 2^32 - 1 labels",
        make.at_third(make.word(2, 2**32 - 1)),
        f"{RECORD}header announces 4294967295 labels",
    ),
    Fault("record without an image", make.empty_image, f"{RECORD}the record holds no image"),
    Fault(
        "label 0.5",
        make.labels(0.0, 0.5),
        r"key 1 at byte \d+: label must be an integer in \[0, 2\), got 0\.5 \(1 such",
    ),
    Fault(
        "label 3.5",
        make.labels(0.0, 3.5, 3.5),
        r"key 1 at byte \d+: label must be an integer in \[0, 2\), got 3\.5 \(2 such",
    ),
    Fault("label NaN", make.labels(0.0, float("nan")), r"label must be an integer in \[0, 2\), got nan"),
    Fault("label infinity", make.labels(0.0, float("inf")), r"label must be an integer in \[0, 2\), got inf"),
    Fault("label -1", make.labels(0.0, -1.0), r"label must be an integer in \[0, 2\), got -1\.0"),
    Fault("label = number of identities", make.labels(0.0, 2.0), r"label must be an integer in \[0, 2\), got 2\.0"),
    Fault(
        "label 2^24 + 1, rounded by float32",
        make.labels(0.0, 2.0**24 + 1),
        r"label must be an integer in \[0, 2\), got 16777216\.0",
    ),
    Fault(
        "several labels, the first one wrong",
        make.labels(0.0, (7.0, 1.0)),
        r"label must be an integer in \[0, 2\), got 7\.0",
    ),
    Fault(
        "header record announces more images",
        make.header(9.0, 12.0),
        r"train\.rec: header record announces image keys 1\.\.8, the index has 2",
    ),
    Fault(
        "header record with a half",
        make.header(2.5, 4.0),
        r"train\.rec: key 0: header record must give the key after the last image, got 2\.5",
    ),
    Fault(
        "header record NaN", make.header(float("nan"), 4.0), r"train\.rec: key 0: header record must give .*, got nan"
    ),
    Fault("property missing", make.removed("property"), "property: cannot be read: No such file"),
    Fault(
        "property of fewer identities",
        make.spoilt("property", lambda _: b"1,32,32"),
        r"label must be an integer in \[0, 1\), got 1\.0 \(3 such",
    ),
    Fault(
        "property of another size",
        make.spoilt("property", lambda _: b"2,48,48"),
        "property: images are 48 x 48, but data.image_size is 32",
    ),
    Fault(
        "property of junk",
        make.spoilt("property", lambda _: b"\xff\0"),
        "property: must be one line `classes,height,width`",
    ),
    Fault(
        "property of 10^30 identities",
        make.spoilt("property", lambda _: b"9" * 30 + b",32,32"),
        "property: numbers must be positive and classes at most",
    ),
    Fault(
        "property of 5000 digits",
        make.spoilt("property", lambda _: b"9" * 5000 + b",32,32"),
        "property: must be one line",
    ),
    Fault("label map of junk", make.identities_map(b"\xff\xfe"), r"map\.txt: cannot be read: "),
    Fault("label map without an identity", make.identities_map(b"0\t0\n"), r"map\.txt: has no line for identity '1'"),
    Fault(
        "label map with id 1.5",
        make.identities_map(b"0\t1.5\n1\t0\n"),
        r"map\.txt: line 1: must be identity<TAB>new id",
    ),
)

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
        r"lfw\.bin: .*must be bool or uint8, got a tuple",
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

TEACHERS = (
    Fault(
        "checkpoint that runs a command",
        make.checkpoint_that_runs(make.read_weights),
        r"r50\.pt: cannot be read as weights: it holds objects that are not tensors",
        CheckpointError,
    ),
    Fault(
        "classifier that runs a command",
        make.checkpoint_that_runs(make.read_matrix),
        r"r50\.pt: cannot be read: it holds objects that are not tensors",
        TeacherError,
    ),
    Fault("truncated checkpoint", make.truncated_checkpoint, r"r50\.pt: cannot be read as weights: ", CheckpointError),
    Fault(
        "truncated .safetensors",
        make.safetensors(lambda b: b[:-8]),
        r"r50\.safetensors: cannot be read as weights: .*",
        CheckpointError,
    ),
    Fault(
        ".safetensors header of 2^62 bytes",
        make.safetensors(lambda b: b"\0" * 7 + b"\x40" + b[8:]),
        r"r50\.safetensors: cannot be read as weights: .*header too large",
        CheckpointError,
    ),
    Fault(
        ".safetensors header of junk",
        make.safetensors(lambda b: b[:8] + b"\xff" + b[9:]),
        r"r50\.safetensors: cannot be read as weights: .*header",
        CheckpointError,
    ),
    Fault(
        "model.safetensors with another mean",
        make.model_metadata("mean", "0"),
        r"model\.safetensors: mean must be '127\.5', .*, got '0'",
        CheckpointError,
    ),
    Fault(
        "model.safetensors in blue, green, red",
        make.model_metadata("colour", "bgr"),
        r"model\.safetensors: colour must be 'rgb', .*, got 'bgr'",
        CheckpointError,
    ),
    Fault(
        "model.safetensors of an unknown network",
        make.model_metadata("model", "{}"),
        r"model\.safetensors: unreadable description: ",
        CheckpointError,
    ),
    Fault(
        "classifier .npy with objects",
        make.matrix("w.npy", make.pickled_npy()),
        r"w\.npy: cannot be read: ",
        TeacherError,
    ),
    Fault(
        "classifier .npy of 4 TB, in 100 bytes",
        make.matrix("w.npy", make.npy("(1000000, 1000000)")),
        r"w\.npy: cannot be read: mmap length",
        TeacherError,
    ),
    Fault(
        "classifier .npy of text",
        make.matrix("w.npy", make.npy("(2, 2)", "<U4", bytes(64))),
        r"w\.npy: cannot be read: ",
        TeacherError,
    ),
    Fault(
        "classifier .npy of complex numbers",
        make.matrix("w.npy", make.npy("(2, 2)", "<c8", bytes(32))),
        r"w\.npy: a classifier is a matrix of floating-point numbers",
        TeacherError,
    ),
    Fault(
        "classifier .npy with code in its header",
        make.matrix("w.npy", make.npy("__import__('os')")),
        r"w\.npy: cannot be read: ",
        TeacherError,
    ),
    Fault("empty classifier .npy", make.matrix("w.npy", b""), r"w\.npy: cannot be read: ", TeacherError),
    Fault("packed .npz as .npy", make.matrix("w.npy", make.npz()), r"w\.npy: cannot be read: ", TeacherError),
    Fault("packed .npz of 4 MB in 4 KB", make.matrix("w.npz", make.npz()), r"w\.npz: cannot be read: ", TeacherError),
    Fault(
        "classifier rows of junk", make.label_map(b"\xff"), r"rows\.txt: must hold one class id a line", TeacherError
    ),
    Fault(
        "classifier rows with id 1.5",
        make.label_map(b"0\n1.5\n2\n"),
        r"rows\.txt: must hold one class id a line: .*'1\.5'",
        TeacherError,
    ),
    Fault(
        "classifier rows with an id of 5000 digits",
        make.label_map(b"9" * 5000),
        r"rows\.txt: must hold one class id a line",
        TeacherError,
    ),
    Fault("ONNX of junk", make.onnx_teacher(b"no protobuf"), r"t\.onnx: onnxruntime cannot load it", TeacherError),
    Fault(
        "ONNX of junk, for a cache",
        make.onnx_teacher(b"no protobuf", only_described=True),
        r"t\.onnx: cannot be read as ONNX",
        TeacherError,
    ),
    Fault(
        "truncated ONNX",
        make.onnx_teacher(make.onnx_model()[:-1000]),
        r"t\.onnx: onnxruntime cannot load it",
        TeacherError,
    ),
    Fault(
        "ONNX for another size",
        make.onnx_teacher(make.onnx_model(48)),
        r"t\.onnx: input .* must be \(batch, 3, 32, 32\)",
        TeacherError,
    ),
    Fault(
        "ONNX, data outside its folder",
        make.onnx_teacher(make.onnx_model(place="../secret")),
        r"t\.onnx: onnxruntime cannot load it: .*escapes",
        TeacherError,
    ),
    Fault(
        "ONNX, data outside its folder, for a cache",
        make.onnx_teacher(make.onnx_model(place="../secret"), only_described=True),
        r"t\.onnx: external data must be a file in its folder, got '\.\./secret'",
        TeacherError,
    ),
    Fault(
        "ONNX, data at an absolute path",
        make.onnx_teacher(make.onnx_model(place="/dev/zero"), only_described=True),
        r"t\.onnx: external data must be a file in its folder, got '/dev/zero'",
        TeacherError,
    ),
    Fault(
        "ONNX, data by a link that leads out",
        make.onnx_teacher(make.onnx_model(place="link"), only_described=True),
        r"t\.onnx: external data must be a file in its folder, got 'link'",
        TeacherError,
    ),
    Fault(
        "empty MXNet .params",
        make.mxnet_params(b""),
        r"model\.params: not an MXNet parameter file: it is empty",
        CheckpointError,
    ),
    Fault(
        "truncated MXNet .params",
        make.mxnet_params((0x112).to_bytes(8, "little") + bytes(4)),
        r"model\.params: ",
        CheckpointError,
    ),
    Fault(
        "MXNet .params of 2^60 arrays",
        make.mxnet_params((0x112).to_bytes(8, "little") + bytes(8) + (2**60).to_bytes(8, "little")),
        r"model\.params: .*announces 1152921504606846976 arrays",
        CheckpointError,
    ),
    Fault(
        "teacher cache cut short",
        make.teacher_cache(lambda cache: make.os.truncate(cache / make.EMBEDDINGS, 40)),
        r"embeddings\.bin: must have 48 bytes, as the manifest says, got 40",
        TeacherError,
    ),
    Fault(
        "teacher cache with one bit changed",
        make.teacher_cache(make.flip_embedding),
        r"embeddings\.bin: records 0 to 2 are damaged",
        TeacherError,
    ),
    Fault(
        "teacher cache, manifest of junk",
        make.teacher_cache(lambda cache: make.put(cache / "manifest.json", "{")),
        r"manifest\.json: not a usable manifest",
        TeacherError,
    ),
)

FOLDERS_AND_TEXT = (
    Fault(
        "identity without an image",
        make.photographs(lambda p: (p / "empty").mkdir()),
        "empty: identity without an image",
    ),
    Fault(
        "text among photographs",
        make.photographs(lambda p: make.put(p / "person0" / "notes.txt", "x")),
        r"notes\.txt: not an image file \(by its name\)",
    ),
    Fault(
        "link in a circle among photographs",
        make.photographs(lambda p: (p / "person0" / "9.jpg").symlink_to("9.jpg")),
        r"person0/9\.jpg: not an image file",
    ),
    Fault(
        "folder in a circle",
        make.photographs(lambda p: (p / "person9").symlink_to(".")),
        "person9/person0: not an image file",
    ),
    Fault(
        "link to nothing",
        make.photographs(lambda p: (p / "person0" / "9.jpg").symlink_to("nothing")),
        r"person0/9\.jpg: not an image file",
    ),
    Fault(
        "pipe called .jpg",
        make.photographs(lambda p: make.os.mkfifo(p / "person0" / "9.jpg")),
        r"person0/9\.jpg: not an image file",
    ),
    Fault(
        "empty photograph",
        make.photographs(lambda p: make.put(p / "person0" / "1.jpg", b"")),
        r"person0/1\.jpg: the image is empty",
    ),
    Fault("folder without identities", make.photographs(make.emptied), "no <identity>/<image> in this folder"),
    Fault(
        "archive with ../",
        make.archive(("../anna/2.jpg", b"x")),
        r"faces\.tar: \.\./anna/2\.jpg: must be a file <identity>/<image>",
    ),
    Fault(
        "archive with an absolute path",
        make.archive(("/anna/2.jpg", b"x")),
        r"faces\.tar: /anna/2\.jpg: must be a file <identity>/<image>",
    ),
    Fault(
        "archive with a symbolic link",
        make.archive(make.member("anna/2.jpg", tarfile.SYMTYPE)),
        r"faces\.tar: anna/2\.jpg: must be a file",
    ),
    Fault(
        "archive with a hard link",
        make.archive(make.member("anna/2.jpg", tarfile.LNKTYPE)),
        r"faces\.tar: anna/2\.jpg: must be a file",
    ),
    Fault(
        "archive with a device",
        make.archive(make.member("anna/2.jpg", tarfile.CHRTYPE)),
        r"faces\.tar: anna/2\.jpg: must be a file",
    ),
    Fault(
        "archive with a member of 10^15 bytes",
        make.archive(tail=make.member("anna/2.jpg", tarfile.REGTYPE, 10**15).tobuf() + bytes(1024)),
        r"faces\.tar: anna/2\.jpg: a member has at most 268435456 bytes, its header says 10+",
    ),
    Fault(
        "archive that ends early",
        make.archive(tail=make.member("anna/2.jpg", tarfile.REGTYPE, 9000).tobuf() + bytes(1024)),
        r"faces\.tar: cannot be read: unexpected end of data",
    ),
    Fault(
        "archive with text",
        make.archive(("anna/notes.txt", b"x")),
        r"faces\.tar: anna/notes\.txt: not an image file \(by its name\)",
    ),
    Fault(
        "archive with a broken image",
        make.archive(("anna/2.jpg", b"\xff\xd8")),
        r"faces\.tar: .*anna/2\.jpg: broken JPEG",
    ),
    Fault("archive of junk", make.archive_file(b"junk" * 1000), r"faces\.tar: cannot be read: "),
    Fault("damaged .tar.gz", make.archive_file(b"\x1f\x8b\x08" + bytes(500)), r"faces\.tar: cannot be read: "),
    Fault("pairs without a header", make.pairs_csv(b"x,y,1\n"), r"pairs\.csv: line 1: must be a,b,same"),
    Fault("pairs with answer 2", make.pairs_csv(b"a,b,same\nx,y,2\n"), r"pairs\.csv: line 2: must be path,path,0 or 1"),
    Fault("pairs of junk", make.pairs_csv(b"\xff\xfe\0"), r"pairs\.csv: cannot be read: "),
    Fault(
        "pairs with a field of 200 KB",
        make.pairs_csv(b"a,b,same\n" + b"x" * 200_000 + b",y,1\n"),
        r"pairs\.csv: line 2: field larger",
    ),
    Fault("configuration of junk", make.config_file(b"\xff\xfe"), r"run\.toml: ", ConfigError),
    Fault("configuration that is no TOML", make.config_file(b"[run\nname = "), r"run\.toml: .*line 1", ConfigError),
    Fault(
        "configuration nested 10000 deep",
        make.config_file(b"a = " + b"[" * 10_000),
        r"run\.toml: values are nested too deep",
        ConfigError,
    ),
    Fault("metrics of junk", make.metrics(b"junk\n"), r"metrics\.jsonl, line 1: not a line of metrics"),
    Fault("metrics that are not text", make.metrics(b"\xff\n"), r"metrics\.jsonl: not a file of metrics"),
)


FAULTS = {fault.what: fault for fault in (*RECORDS, *BINS, *TEACHERS, *FOLDERS_AND_TEXT)}


def _there(folder: Path) -> dict[str, int]:
    """Every file, and its size."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


def _refused(fault: Fault, folder: Path) -> None:
    action = fault.maker(folder)
    before = _there(folder)
    with pytest.raises(fault.kind, match=fault.says) as caught:
        action()
    assert type(caught.value) is fault.kind
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert _there(folder) == before
    row = error_table.rows()[fault.what]
    assert error_table.says(row, str(caught.value), folder), f"docs/data.md says {row.says!r}, it is {caught.value}"


def test_there_are_enough() -> None:
    assert len(FAULTS) == len(RECORDS) + len(BINS) + len(TEACHERS) + len(FOLDERS_AND_TEXT)
    assert len(FAULTS) + len(IMAGES) >= 40


def test_the_documented_errors_are_these() -> None:
    then = dict.fromkeys(FAULTS, "stops") | dict.fromkeys(IMAGES, "stops, or goes on")
    assert {what: row.then for what, row in error_table.rows().items()} == then
    good = error_table.PAGE.read_text(encoding="utf-8").rpartition("Odd but good, and read: ")[2]
    assert good.strip() == f"{', '.join(GOOD)}."


def test_a_row_that_says_something_else_is_noticed(tmp_path: Path) -> None:
    row = error_table.Row("train.rec: key 3 at byte 6304: the image is empty", "stops")
    said = f"{tmp_path}/set/train.rec: key 3 at byte 77: the image is empty"
    assert error_table.says(row, said, tmp_path)
    for other in (f"{said}.", said.replace("key 3", "key 4"), said.replace("is empty", "is broken")):
        assert not error_table.says(row, other, tmp_path)
    assert not error_table.says(row._replace(says="the image is ..."), said, tmp_path)
    assert error_table.says(row._replace(says="train.rec: key 3 at byte 1: the ..."), said, tmp_path)
    ours = error_table.Row("r50.pt: cannot be read: it holds objects that are not tensors", "stops")
    assert not error_table.says(ours, "r50.pt: cannot be read: truncated", tmp_path)
    library = error_table.Row("train.rec: broken JPEG: premature end", "stops")
    assert error_table.says(library, "train.rec: broken JPEG: early end", tmp_path)


@pytest.mark.parametrize("what", FAULTS)
def test_it_stops_with_the_file_named_and_nothing_written(what: str, tmp_path: Path) -> None:
    _refused(FAULTS[what], tmp_path)


@pytest.mark.parametrize("what", IMAGES)
def test_an_image_stops_the_run_with_its_record_named(what: str, tmp_path: Path) -> None:
    content, says = IMAGES[what]
    _refused(Fault(what, make.image(content), RECORD + says), tmp_path)


@pytest.mark.parametrize("what", IMAGES)
def test_an_image_is_skipped_where_the_run_is_to_go_on(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = IMAGES[what]
    batches = make.image(content, on_corrupt="skip")(tmp_path)()
    assert [len(batch.images) for batch in batches] == [2, 2, 2]
    assert 2 not in [record for batch in batches for record in batch.records.tolist()]
    assert re.search(f"warning: rank 0: .*{RECORD}{says}.*; replaced by others", capsys.readouterr().err)


@pytest.mark.parametrize("what", GOOD)
def test_odd_but_good(what: str, tmp_path: Path) -> None:
    batches = GOOD[what](tmp_path)()
    assert sorted(record for batch in batches for record in batch.records.tolist()) == list(range(make.IMAGES))


def test_more_identities_than_float32_counts_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be in 1\.\.16777216 \(labels are float32\), got 16777217"):
        make.pack_records(tmp_path / "set", [(b"x", 0)], (1 << 24) + 1, make.SIZE)
    assert not list(tmp_path.iterdir())
