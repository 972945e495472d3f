"""Ways in which records and their images are wrong, and what is said of each."""

from __future__ import annotations

import zlib

from helpers import bad_files as make
from helpers import bad_images
from helpers.bad_files import RECORD, Fault

# What is said of the image of a record; data.on_corrupt decides whether the run stops.
IMAGES = {
    "truncated JPEG": (bad_images.encoded("JPEG")[:-300], "broken JPEG: Premature end of JPEG file"),
    "JPEG of two bytes": (b"\xff\xd8", "broken JPEG: "),
    "JPEG damaged in the middle": (bad_images.damaged_middle(), "broken JPEG: Corrupt JPEG data"),
    "JPEG header says 8191 x 8191": (bad_images.sized_jpeg(8191), "must be 32 x 32 pixels .*, got 8191 x 8191"),
    "JPEG header says 16000 x 16000": (
        bad_images.sized_jpeg(16000),
        "an image has at most 67108864 pixels, got 16000 x 16000",
    ),
    "JPEG header says 0 x 0": (bad_images.sized_jpeg(0), "broken JPEG: "),
    "truncated CMYK JPEG": (bad_images.encoded("JPEG", "CMYK")[:-300], "broken (JPEG|image): "),
    "truncated PNG": (bad_images.encoded("PNG")[:-800], "broken image: "),
    "truncated WebP": (bad_images.encoded("WEBP")[:-100], "broken image: "),
    "16-bit PNG": (bad_images.deep(), "must be one image of 8 bits a channel, got PNG mode I;16"),
    "PNG with transparency": (bad_images.transparent(), "the image has transparent pixels"),
    "animated WebP": (bad_images.animated("WEBP"), "must be one image of 8 bits a channel, got WEBP"),
    "animated GIF": (bad_images.animated("GIF"), r"not an image of PNG, JPEG, BMP, WEBP, TIFF \(starts with b'GIF"),
    "text": (b"no image", r"not an image of PNG, JPEG, BMP, WEBP, TIFF \(starts with b'no image'\)"),
    "1 x 1 pixels": (bad_images.encoded("JPEG", size=1), "must be 32 x 32 pixels .*, got 1 x 1"),
    "another size": (bad_images.encoded("JPEG", size=48), "must be 32 x 32 pixels .*, got 48 x 48"),
    "an image that is not square": (bad_images.oblong(32, 40), "must be square .*, got 40 x 32"),
    "JPEG of 800 scans": (bad_images.many_scans(800), "a JPEG of 32 x 32 pixels has at most 100 scans, got 800"),
    "PNG of 8000 x 8000 without pixels": (
        bad_images.png(8000, 8000, bytes(10)),
        "must be 32 x 32 pixels .*, got 8000 x 8000",
    ),
    "PNG that says 2^31 x 2^31": (bad_images.png(2**31 - 1, 2**31 - 1, b""), "broken image: Image size"),
    "PNG with 50 MB of text in 50 KB": (
        bad_images.png(2, 2, bytes(14), (b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 1))),
        "broken image: Decompressed data too large",
    ),
}

# Odd, but good.
GOOD = {
    "grey JPEG": make.image(bad_images.encoded("JPEG", "L")),
    "CMYK JPEG": make.image(bad_images.encoded("JPEG", "CMYK")),
    "progressive JPEG": make.image(bad_images.encoded("JPEG", progressive=True)),
    "grey PNG": make.image(bad_images.encoded("PNG", "L")),
    "PNG with a palette": make.image(bad_images.encoded("PNG", "P")),
    "PNG with an opaque alpha channel": make.image(bad_images.encoded("PNG", "RGBA")),
    "the magic number in an image's bytes": make.image(bad_images.encoded("JPEG") + b"\x0a\x23\xd7\xce" * 8),
    "1 x 1 pixels, with data.resize": make.image(bad_images.encoded("JPEG", size=1), resize=True),
    "another size, with data.resize": make.image(bad_images.encoded("JPEG", size=200), resize=True),
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
    Fault("property missing", make.removed("property"), "property: is missing; .* By its records: `2,32,32`"),
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
        "property: line 1: must be UTF-8 text, got byte 0xff",
    ),
    Fault(
        "property of 10^30 identities",
        make.spoilt("property", lambda _: b"9" * 30 + b",32,32"),
        "property: numbers must be positive and classes at most",
    ),
    Fault(
        "property of 5000 digits",
        make.spoilt("property", lambda _: b"9" * 5000 + b",32,32"),
        "property: must begin with a line `classes,height,width`, got '9",
    ),
    Fault(
        "label map of junk", make.identities_map(b"0\t0\n\xff"), r"map\.txt: line 2: must be UTF-8 text, got byte 0xff"
    ),
    Fault("label map in UTF-16", make.identities_map("0\t0".encode("utf-16")), r"map\.txt: is text in UTF-16"),
    Fault(
        "label map with a zero byte", make.identities_map(b"0\t0\n1\t\0"), r"map\.txt: line 2: must be text, got a zero"
    ),
    Fault("label map without an identity", make.identities_map(b"0\t0\n"), r"map\.txt: has no line for identity '1'"),
    Fault(
        "label map with id 1.5",
        make.identities_map(b"0\t1.5\n1\t0\n"),
        r"map\.txt: line 1: must be identity<TAB>new id",
    ),
)
