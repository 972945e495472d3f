"""Ways in which photographs, archives, lists, configurations and metrics are wrong, and what is said of each."""

from __future__ import annotations

import os
import tarfile

from helpers import bad_archives
from helpers import bad_files as make
from helpers.bad_files import Fault
from partialkd.errors import ConfigError

FOLDERS_AND_TEXT = (
    Fault(
        "identity without an image",
        bad_archives.photographs(lambda p: (p / "empty").mkdir()),
        "empty: identity without an image",
    ),
    Fault(
        "text among photographs",
        bad_archives.photographs(lambda p: make.put(p / "person0" / "notes.txt", "x")),
        r"notes\.txt: not an image file \(by its name\)",
    ),
    Fault(
        "link in a circle among photographs",
        bad_archives.photographs(lambda p: (p / "person0" / "9.jpg").symlink_to("9.jpg")),
        r"person0/9\.jpg: not an image file",
    ),
    Fault(
        "folder in a circle",
        bad_archives.photographs(lambda p: (p / "person9").symlink_to(".")),
        "person9/person0: not an image file",
    ),
    Fault(
        "link to nothing",
        bad_archives.photographs(lambda p: (p / "person0" / "9.jpg").symlink_to("nothing")),
        r"person0/9\.jpg: not an image file",
    ),
    Fault(
        "pipe called .jpg",
        bad_archives.photographs(lambda p: os.mkfifo(p / "person0" / "9.jpg")),
        r"person0/9\.jpg: not an image file",
    ),
    Fault(
        "empty photograph",
        bad_archives.photographs(lambda p: make.put(p / "person0" / "1.jpg", b"")),
        r"person0/1\.jpg: the image is empty",
    ),
    Fault(
        "folder without identities",
        bad_archives.photographs(bad_archives.emptied),
        "no <identity>/<image> in this folder",
    ),
    Fault(
        "archive with ../",
        bad_archives.archive(("../anna/2.jpg", b"x")),
        r"faces\.tar: \.\./anna/2\.jpg: must be a file <identity>/<image>",
    ),
    Fault(
        "archive with an absolute path",
        bad_archives.archive(("/anna/2.jpg", b"x")),
        r"faces\.tar: /anna/2\.jpg: must be a file <identity>/<image>",
    ),
    Fault(
        "archive with a symbolic link",
        bad_archives.archive(bad_archives.member("anna/2.jpg", tarfile.SYMTYPE)),
        r"faces\.tar: anna/2\.jpg: must be a file",
    ),
    Fault(
        "archive with a hard link",
        bad_archives.archive(bad_archives.member("anna/2.jpg", tarfile.LNKTYPE)),
        r"faces\.tar: anna/2\.jpg: must be a file",
    ),
    Fault(
        "archive with a device",
        bad_archives.archive(bad_archives.member("anna/2.jpg", tarfile.CHRTYPE)),
        r"faces\.tar: anna/2\.jpg: must be a file",
    ),
    Fault(
        "archive with a member of 10^15 bytes",
        bad_archives.archive(tail=bad_archives.member("anna/2.jpg", tarfile.REGTYPE, 10**15).tobuf() + bytes(1024)),
        r"faces\.tar: anna/2\.jpg: a member has at most 268435456 bytes, its header says 10+",
    ),
    Fault(
        "archive that ends early",
        bad_archives.archive(tail=bad_archives.member("anna/2.jpg", tarfile.REGTYPE, 9000).tobuf() + bytes(1024)),
        r"faces\.tar: cannot be read: unexpected end of data",
    ),
    Fault(
        "archive with text",
        bad_archives.archive(("anna/notes.txt", b"x")),
        r"faces\.tar: anna/notes\.txt: not an image file \(by its name\)",
    ),
    Fault(
        "archive with a broken image",
        bad_archives.archive(("anna/2.jpg", b"\xff\xd8")),
        r"faces\.tar: .*anna/2\.jpg: broken JPEG",
    ),
    Fault(
        "archive with a long name of 64 MB",
        bad_archives.compressed_archive(tarfile.GNUTYPE_LONGNAME),
        r"faces\.tar: cannot be read: the headers of a member take more than 1048576 bytes",
    ),
    Fault(
        "archive with an extended header of 64 MB",
        bad_archives.compressed_archive(tarfile.XHDTYPE),
        r"faces\.tar: cannot be read: the headers of a member take more than 1048576 bytes",
    ),
    Fault(
        "archive with a sparse file",
        bad_archives.archive(bad_archives.member("anna/2.jpg", tarfile.GNUTYPE_SPARSE)),
        r"faces\.tar: anna/2\.jpg: must be a file <identity>/<image>",
    ),
    Fault(
        "archive damaged in the middle",
        bad_archives.archive(("anna/2.jpg", b"x"), tail=b"junk" * 500),
        r"faces\.tar: cannot be read: invalid header",
    ),
    Fault("archive of junk", bad_archives.archive_file(b"junk" * 1000), r"faces\.tar: cannot be read: "),
    Fault("damaged .tar.gz", bad_archives.archive_file(b"\x1f\x8b\x08" + bytes(500)), r"faces\.tar: cannot be read: "),
    Fault("pairs without a header", bad_archives.pairs_csv(b"x,y,1\n"), r"pairs\.csv: line 1: must be a,b,same"),
    Fault(
        "pairs with answer 2",
        bad_archives.pairs_csv(b"a,b,same\nx,y,2\n"),
        r"pairs\.csv: line 2: must be path,path,0 or 1",
    ),
    Fault("pairs of junk", bad_archives.pairs_csv(b"\xfe\0"), r"pairs\.csv: line 1: must be UTF-8 text"),
    Fault(
        "pairs with a field of 200 KB",
        bad_archives.pairs_csv(b"a,b,same\n" + b"x" * 200_000 + b",y,1\n"),
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
