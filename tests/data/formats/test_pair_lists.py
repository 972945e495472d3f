"""Pair lists as published, each against pairs written down by hand; sets built from them and taken apart again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.places import FACES, ROOT
from partialkd.commands.make_bin import main
from partialkd.config import ArchiveConfig, DataConfig
from partialkd.data.formats.pair_lists import FORMS, read_pair_list
from partialkd.data.formats.verification_bin import read_bin, write_bin
from partialkd.data.images.decode import decode, encode_jpeg
from partialkd.data.packing.prepare import prepare
from partialkd.data.packing.verification_sets import build_bin, extract_bin
from partialkd.errors import DataError

LFW = (
    "2\t2\nAnn\t1\t2\nBob\t2\t3\nAnn\t1\tBob\t1\nCay\t1\tBob\t2\n"
    "Cay\t1\t2\nDee\t1\t12\nAnn\t2\tDee\t1\nBob\t1\tCay\t2\n"
)


def triples(form: str, path: Path, **options: str) -> list[tuple[str, str, bool]]:
    return [(pair.first, pair.second, pair.same) for pair in read_pair_list(form, path, **options)]  # type: ignore[arg-type]


def write(folder: Path, text: str, name: str = "pairs.txt") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode())
    return folder / name


def test_lfw(tmp_path: Path) -> None:
    expected = [
        ("Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", True),
        ("Bob/Bob_0002.jpg", "Bob/Bob_0003.jpg", True),
        ("Ann/Ann_0001.jpg", "Bob/Bob_0001.jpg", False),
        ("Cay/Cay_0001.jpg", "Bob/Bob_0002.jpg", False),
        ("Cay/Cay_0001.jpg", "Cay/Cay_0002.jpg", True),
        ("Dee/Dee_0001.jpg", "Dee/Dee_0012.jpg", True),
        ("Ann/Ann_0002.jpg", "Dee/Dee_0001.jpg", False),
        ("Bob/Bob_0001.jpg", "Cay/Cay_0002.jpg", False),
    ]
    assert triples("lfw", write(tmp_path, LFW)) == expected
    assert triples("lfw", write(tmp_path, LFW.replace("\n", "\r\n").replace("\t", " "))) == expected
    other = triples("lfw", tmp_path / "pairs.txt", names="{name}/{number}.png")
    assert other[5] == ("Dee/1.png", "Dee/12.png", True)


def test_lfw_of_one_fold(tmp_path: Path) -> None:
    path = write(tmp_path, "1\nAnn 1 2\nAnn 1 Bob 1\n")
    assert [same for _, _, same in triples("lfw", path)] == [True, False]


@pytest.mark.parametrize("form", ["calfw", "cplfw"])
def test_two_lines_a_pair(tmp_path: Path, form: str) -> None:
    """Positive pairs first with their fold, then negative ones with 0: ten folds of both kinds come out."""
    lines = [f"P{k}_{i}.jpg {k // 2 + 1}" for k in range(20) for i in (1, 2)]
    lines += [f"{name}{k}_1.jpg 0" for k in range(20) for name in "QR"]
    got = triples(form, write(tmp_path, "\n".join(lines) + "\n"))
    assert len(got) == 40
    for fold in range(10):
        here, k = got[4 * fold : 4 * fold + 4], 2 * fold
        assert here == [
            (f"P{k}_1.jpg", f"P{k}_2.jpg", True),
            (f"P{k + 1}_1.jpg", f"P{k + 1}_2.jpg", True),
            (f"Q{k}_1.jpg", f"R{k}_1.jpg", False),
            (f"Q{k + 1}_1.jpg", f"R{k + 1}_1.jpg", False),
        ]


def cfp(folder: Path) -> Path:
    """Protocol of 3 persons, two frontal images and one profile image each, two folds."""
    write(
        folder,
        "".join(f"{k + 1} ../Data/Images/{k // 2:03d}/frontal/{k % 2}.jpg\n" for k in range(6)),
        "Pair_list_F.txt",
    )
    write(folder, "".join(f"{k + 1} ../Data/Images/{k:03d}/profile/0.jpg\n" for k in range(3)), "Pair_list_P.txt")
    for kind, fold, same, different in [
        ("FP", "01", "1,1\n", "1,2\n"),
        ("FP", "02", "4,2\n", "6,1\n"),
        ("FF", "01", "1,2\n", "1,3\n"),
        ("FF", "02", "5,6\n", "2,6\n"),
    ]:
        write(folder, same, f"Split/{kind}/{fold}/same.txt")
        write(folder, different, f"Split/{kind}/{fold}/diff.txt")
    return folder


def test_cfp(tmp_path: Path) -> None:
    protocol = cfp(tmp_path / "Protocol")
    assert triples("cfp-fp", protocol) == [
        ("Data/Images/000/frontal/0.jpg", "Data/Images/000/profile/0.jpg", True),
        ("Data/Images/000/frontal/0.jpg", "Data/Images/001/profile/0.jpg", False),
        ("Data/Images/001/frontal/1.jpg", "Data/Images/001/profile/0.jpg", True),
        ("Data/Images/002/frontal/1.jpg", "Data/Images/000/profile/0.jpg", False),
    ]
    assert triples("cfp-ff", protocol)[2] == ("Data/Images/002/frontal/0.jpg", "Data/Images/002/frontal/1.jpg", True)


@pytest.mark.parametrize("text", ["x/a.jpg y/b.jpg 1\n\nx/a.jpg c.jpg 0\n", "1 x/a.jpg y/b.jpg\n0 x/a.jpg c.jpg\n"])
def test_paths_with_a_label(tmp_path: Path, text: str) -> None:
    assert triples("paths", write(tmp_path, text)) == [("x/a.jpg", "y/b.jpg", True), ("x/a.jpg", "c.jpg", False)]


def test_csv(tmp_path: Path) -> None:
    text = 'a,b,same\n"x, y/a.jpg",b.jpg,1\na.jpg,b.jpg,0\n'
    assert triples("csv", write(tmp_path, text)) == [("x, y/a.jpg", "b.jpg", True), ("a.jpg", "b.jpg", False)]


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("lfw", "", "line 1: must be `folds count` or `count`, got ''"),
        ("lfw", "ten 300\n", "line 1: must be `folds count` or `count`, got 'ten 300'"),
        ("lfw", "1 2\nAnn 1 2\nAnn 1 Bob 1\n", r"the header announces 1 x 2 x 2 pairs, got 2 lines after it"),
        ("lfw", "1 1\nAnn 1 Bob 1\nAnn 1 2\n", "line 2: must be `name i j` .*, got 'Ann 1 Bob 1'"),
        ("lfw", "1 1\nAnn 1 2\n\nAnn 1 Bob\n", "line 4: must be `name i name j` .*, got 'Ann 1 Bob'"),
        ("lfw", "1 1\nAnn 1 x\nAnn 1 Bob 1\n", "line 2: must be `name i j`"),
        ("lfw", "1 1\nAnn 1 1\nAnn 1 Bob 1\n", "line 2: Ann/Ann_0001.jpg is paired with itself"),
        ("lfw", "1 1\n.. 1 2\nAnn 1 Bob 1\n", r"line 2: must be a path inside .*, got '\.\./\.\._0001.jpg'"),
        ("calfw", "a.jpg 1\nb.jpg 1\nc.jpg 0\n", r"line 3: two lines are a pair, got an odd number of lines \(3\)"),
        ("calfw", "a.jpg 1\nb.jpg 2\n", "line 2: both lines of a pair must have one number, got 1 and 2"),
        ("cplfw", "a.jpg 1\nb.jpg\n", "line 2: must be `file number`, got 'b.jpg'"),
        ("cplfw", "a.jpg -1\nb.jpg -1\n", "line 1: must be `file number`, got 'a.jpg -1'"),
        ("paths", "a.jpg b.jpg 2\n", "line 1: must be `path path label` or `label path path`, got 'a.jpg b.jpg 2'"),
        ("paths", "a.jpg b.jpg\n", "line 1: must be `path path label`"),
        ("paths", "a.jpg b.jpg 1\nb.jpg a.jpg 1\n", "line 2: b.jpg and a.jpg are a pair in .*: line 1 already"),
        ("paths", "a.jpg b.jpg 1\nb.jpg a.jpg 0\n", "line 2: b.jpg and a.jpg have the other answer in .*: line 1"),
        ("paths", "a.jpg ../b.jpg 1\n", r"line 1: must be a path inside the image folder, got '\.\./b.jpg'"),
        ("paths", "/etc/a.jpg b.jpg 1\n", "line 1: must be a path inside the image folder, got '/etc/a.jpg'"),
        ("paths", "a\\b.jpg b.jpg 1\n", "line 1: must be a path inside the image folder"),
        ("paths", "\n \n", "no pair in the list"),
        ("csv", "a.jpg,b.jpg,1\n", "line 1: must be a,b,same, got 'a.jpg,b.jpg,1'"),
        ("csv", "a,b,same\na.jpg,b.jpg,yes\n", "line 2: must be path,path,0 or 1"),
        ("csv", "a,b,same\n" + "x" * 200_000 + ",b.jpg,1\n", "line [12]: field larger than field limit"),
        ("lfw", "9" * 5000 + "\n", "line 1: must be `folds count` or `count`"),
        ("csv", "a,b,same\n,b.jpg,1\n", "line 2: must be a path inside the image folder, got ''"),
        ("mat", "", "the form of the list must be in .*, got 'mat'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, form: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_pair_list(form, write(tmp_path, text))
    assert str(raised.value).startswith(str(tmp_path / "pairs.txt"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("Pair_list_F.txt", "2 ../Data/a.jpg\n", r"Pair_list_F\.txt: line 1: must be `1 \.\./path`, got '2 "),
        ("Pair_list_F.txt", "1 ../../a.jpg\n", r"Pair_list_F\.txt: line 1: must be a path inside the image folder"),
        ("Pair_list_P.txt", "1 Data/a.jpg\n", r"Pair_list_P\.txt: line 1: must be `1 \.\./path`"),
        ("Split/FP/02/same.txt", "1,1\n7,1\n", r"02/same\.txt: line 2: must be `i,j` with i in 1\.\.6 and j in 1\.\.3"),
        ("Split/FP/02/diff.txt", "1 2\n", r"02/diff\.txt: line 1: must be `i,j`"),
    ],
)
def test_what_is_wrong_in_cfp_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    write(cfp(tmp_path), text, name)
    with pytest.raises(DataError, match=message):
        read_pair_list("cfp-fp", tmp_path)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    for form in FORMS:
        with pytest.raises(DataError, match=r"none.*(cannot be read|must hold one folder per fold)"):
            read_pair_list(form, tmp_path / "none")
    (cfp(tmp_path) / "Split" / "FF").rename(tmp_path / "other")
    with pytest.raises(DataError, match="FF: must hold one folder per fold"):
        read_pair_list("cfp-ff", tmp_path)


def test_repeats_may_be_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jpg b.jpg 1\nb.jpg a.jpg 1\na.jpg a.jpg 1\n")
    assert len(read_pair_list("paths", path, allow_duplicates=True)) == 3
    with pytest.raises(DataError, match="have the other answer"):
        read_pair_list("paths", write(tmp_path, "a.jpg b.jpg 1\nb.jpg a.jpg 0\n"), allow_duplicates=True)


# ------------------------------------------------------------------------------------------- sets


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ann/1.jpg ... Dee/3.jpg of 16 x 16 pixels, all different."""
    rng = np.random.RandomState(0)
    for name in ("Ann", "Bob", "Cay", "Dee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in (1, 2, 3, 12):
            pixels = rng.randint(0, 256, (16, 16, 3)).astype(np.uint8)
            (tmp_path / "images" / name / f"{number}.jpg").write_bytes(encode_jpeg(pixels))
    return tmp_path / "images"


NAMES = "{name}/{number}.jpg"


def test_built_set_holds_the_files_bytes(tmp_path: Path, images: Path) -> None:
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    assert build_bin(pairs, images, tmp_path / "lfw.bin", 16) == 8
    got = read_bin(tmp_path / "lfw.bin")
    assert got.same.tolist() == [True, True, False, False] * 2
    expected = [(images / path).read_bytes() for pair in pairs for path in (pair.first, pair.second)]
    assert list(got.images) == expected


def test_taken_apart_and_built_again_it_is_the_same_file(tmp_path: Path, images: Path) -> None:
    build_bin(read_pair_list("lfw", write(tmp_path, LFW), NAMES), images, tmp_path / "lfw.bin", 16)
    assert extract_bin(tmp_path / "lfw.bin", tmp_path / "apart") == (9, 8)
    again = read_pair_list("csv", tmp_path / "apart" / "pairs.csv")
    build_bin(again, tmp_path / "apart", tmp_path / "again.bin", 16)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "lfw.bin").read_bytes()
    assert (tmp_path / "apart" / "images" / "00.jpg").read_bytes() == (images / "Ann" / "1.jpg").read_bytes()


def test_a_set_of_equal_images_and_repeated_pairs_is_built_again_too(tmp_path: Path, images: Path) -> None:
    """No image with itself, and no pair twice, in the list that is written; no image more often than that needs."""
    a, b, c = ((images / name).read_bytes() for name in ("Ann/1.jpg", "Bob/1.jpg", "Cay/1.jpg"))
    pairs = [(a, a), (a, b), (b, a), (a, a), (c, b), (c, c), (b, b), (a, b)]
    same = [True, False, False, True, False, True, True, True]  # one has two answers
    write_bin(tmp_path / "odd.bin", [image for pair in pairs for image in pair], same)
    assert extract_bin(tmp_path / "odd.bin", tmp_path / "apart") == (9, 8)  # a, b, c and six copies
    again = read_pair_list("csv", tmp_path / "apart" / "pairs.csv")
    assert build_bin(again, tmp_path / "apart", tmp_path / "again.bin", 16) == 8
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "odd.bin").read_bytes()


def test_size_is_checked_or_made(tmp_path: Path, images: Path) -> None:
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    with pytest.raises(
        DataError, match=r"images/\w+/\d+\.jpg: must be 24 x 24 pixels \(--resize brings .* got 16 x 16"
    ):
        build_bin(pairs, images, tmp_path / "a.bin", 24)
    assert not (tmp_path / "a.bin").exists()
    build_bin(pairs, images, tmp_path / "a.bin", 24, resize=True)
    assert {decode(image, "").shape for image in read_bin(tmp_path / "a.bin").images} == {(24, 24, 3)}
    build_bin(pairs, images, tmp_path / "any.bin", None)


def test_missing_and_broken_images(tmp_path: Path, images: Path) -> None:
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    (images / "Dee" / "12.jpg").write_bytes(b"\xff\xd8 not a photograph")
    with pytest.raises(DataError, match=r"images/Dee/12\.jpg: broken JPEG"):
        build_bin(pairs, images, tmp_path / "a.bin", 16)
    (images / "Dee" / "12.jpg").unlink()
    with pytest.raises(DataError, match=r"pairs\.txt: line 7: no image Dee/12\.jpg in .*images"):
        build_bin(pairs, images, tmp_path / "a.bin", 16)
    assert not (tmp_path / "a.bin").exists()


def test_nothing_is_overwritten_or_half_written(tmp_path: Path, images: Path) -> None:
    write_bin(tmp_path / "odd.bin", [b"GIF89a", (images / "Ann" / "1.jpg").read_bytes()], [True])
    with pytest.raises(DataError, match=r"odd\.bin: image 0: not a known image format \(starts with b'GIF89a'\)"):
        extract_bin(tmp_path / "odd.bin", tmp_path / "apart")
    with pytest.raises(DataError, match="already exists"):
        extract_bin(tmp_path / "odd.bin", images)
    pairs = read_pair_list("lfw", write(tmp_path, LFW), NAMES)
    with pytest.raises(DataError, match="already exists"):
        build_bin(pairs, images, tmp_path / "odd.bin", 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "odd.bin", "pairs.txt"]


@pytest.mark.slow
def test_command(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", "lfw", str(write(tmp_path, LFW)), str(images), str(tmp_path / "lfw.bin"), "--image-size", "16"]
    assert main(build) == 1
    assert "line 2: no image Ann/Ann_0001.jpg" in capsys.readouterr().err
    assert main([*build, "--names", NAMES]) == 0
    assert "lfw.bin: 8 pairs, 4 of one person" in capsys.readouterr().out
    script = ROOT / "launch" / "make_bin.py"
    arguments = [sys.executable, script, "extract", tmp_path / "lfw.bin", tmp_path / "apart"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'apart'}: 9 images, 8 pairs in pairs.csv\n")


@pytest.mark.faces
@pytest.mark.slow
def test_real_lfw_is_what_preparation_makes(tmp_path: Path) -> None:
    """pairs.txt in LFW's own form, written from the CSV, gives the set that `data.prepare` makes from the CSV."""
    folder = FACES
    if not (folder / "lfw112.tar.gz").exists():
        pytest.skip(f"no real faces in {folder} (PARTIALKD_FACES)")
    archive, table = folder / "lfw112.tar.gz", folder / "lfw_pairs.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    text = "10\t300\n"
    for first, second, same in rows:
        (one, i), (two, j) = (path.removesuffix(".jpg").split("/") for path in (first, second))
        text += f"{one}\t{int(i)}\t{int(j)}\n" if same == "1" else f"{one}\t{int(i)}\t{two}\t{int(j)}\n"
    pairs = read_pair_list("lfw", write(tmp_path, text), "{name}/{number:04d}.jpg")
    assert len(pairs) == 6000
    build_bin(pairs, archive, tmp_path / "lfw.bin")
    images = tmp_path / "training" / "nobody"
    images.mkdir(parents=True)
    (images / "0.jpg").write_bytes(read_bin(tmp_path / "lfw.bin").images[0])
    settings = {"images": str(images.parent), "pairs_images": str(archive), "pairs": str(table)}
    prepare(DataConfig(path=str(tmp_path / "made"), prepare=ArchiveConfig(kind="archive", **settings)))
    assert (tmp_path / "lfw.bin").read_bytes() == (tmp_path / "made" / "lfw_pairs.bin").read_bytes()


def test_a_first_row_over_two_lines_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('"a\nb",c,1\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs.csv: line 2: must be a,b,same"):
        read_pair_list("csv", path)


@pytest.mark.parametrize(
    "names",
    ["{name.__class__}", "{name", "{0}", "{name[0]}", "{number:0999999999d}", "{number:.99f}", "{name!r}", "{name:5d}",
     "{number:{name}}", "{other}"],
)  # fmt: skip
def test_a_pattern_of_names_is_looked_at_before_it_is_used(tmp_path: Path, names: str) -> None:
    with pytest.raises(DataError, match=r"pairs\.txt: names must be a pattern like '{name}/{name}_{number:04d}\.jpg'"):
        read_pair_list("lfw", write(tmp_path, LFW), names)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("build", "csv", "none.csv", "images", "a.bin"), "none.csv: cannot be read: No such file or directory"),
        (("build", "csv", "pairs.csv", "none", "a.bin"), "none: cannot be read: No such file or directory"),
        (("build", "csv", "pairs.csv", "images", "file/a.bin"), "file: File exists"),
        (("build", "csv", "pairs.csv", "images", f"{'a' * 300}.bin"), "File name too long"),
        (("build", "csv", "pipes.csv", "images", "a.bin"), "pipes.csv: line 2: no image pipe in "),
        (("extract", "none.bin", "out"), "none.bin: cannot be read: No such file or directory"),
        (("extract", "images", "out"), "images: cannot be read: Is a directory"),
        (("extract", "a.bin", "file/out"), "file/out: cannot be written: File exists"),
    ],
)
def test_the_command_says_one_line(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "pairs.csv").write_text("a,b,same\nAnn/1.jpg,Ann/2.jpg,1\n")
    (tmp_path / "pipes.csv").write_text("a,b,same\nAnn/1.jpg,pipe,1\n")
    os.mkfifo(images / "pipe")
    if arguments[0] == "extract":
        image = (images / "Ann" / "1.jpg").read_bytes()
        write_bin(tmp_path / "a.bin", [image, image], [True])
    before = sorted(tmp_path.rglob("*"))
    kept = 2 if arguments[0] == "build" else 1
    size = ["--image-size", "16"] if arguments[0] == "build" else []
    assert main([*arguments[:kept], *(str(tmp_path / one) for one in arguments[kept:]), *size]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("size", ["0", "-5", "1000000000"])
def test_sizes_have_bounds(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    (tmp_path / "pairs.csv").write_text("a,b,same\nAnn/1.jpg,Ann/2.jpg,1\n")
    arguments = [str(tmp_path / "pairs.csv"), str(images), str(tmp_path / "a.bin"), "--image-size", size, "--resize"]
    assert main(["build", "csv", *arguments]) == 1
    assert capsys.readouterr().err == f"error: --image-size must be in 16..512, got {size}\n"


def test_sllfw_has_two_lines_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "pair_SLLFW.txt"
    path.write_text("Ann/Ann_0001.jpg\nAnn/Ann_0002.jpg\nBo/Bo_0001.jpg\r\nCy/Cy_0003.jpg\n")
    found = read_pair_list("sllfw", path)
    assert [(one.first, one.second, one.same) for one in found] == [
        ("Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", True), ("Bo/Bo_0001.jpg", "Cy/Cy_0003.jpg", False),
    ]  # fmt: skip
    path.write_text("Ann/Ann_0001.jpg\nAnn/Ann_0002.jpg\nBo/Bo_0001.jpg\n")
    with pytest.raises(DataError, match="line 3: must be the first of two lines of a pair, got no second one"):
        read_pair_list("sllfw", path)
    path.write_text("Ann/Ann_0001.jpg\nAnn 2\n")
    with pytest.raises(DataError, match="line 2: must be `<name>/<file>`, got 'Ann 2'"):
        read_pair_list("sllfw", path)


def test_rfw_has_no_line_before_its_pairs(tmp_path: Path) -> None:
    path = tmp_path / "African_pairs.txt"
    path.write_text("m.01\t1\t3\nm.01\t2\tm.0b\t4\n")
    found = read_pair_list("rfw", path)
    assert [pair[:3] for pair in found] == [
        ("m.01/m.01_0001.jpg", "m.01/m.01_0003.jpg", True), ("m.01/m.01_0002.jpg", "m.0b/m.0b_0004.jpg", False),
    ]  # fmt: skip
    path.write_text("m.01\t1\t3\nm.01\t2\n")
    with pytest.raises(DataError, match=r"African_pairs.txt: line 2: must be `name i name j`"):
        read_pair_list("rfw", path)
    path.write_text("1\t1\nanna\t1\t2\nanna\t1\tbob\t2\n")
    assert read_pair_list("xqlfw", path) == read_pair_list("lfw", path)
