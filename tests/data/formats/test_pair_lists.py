"""Pair lists as published, each against pairs written down by hand; what is wrong in them is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.pair_cases import LFW, write
from partialkd.data.formats.pair_lists import FORMS, read_pair_list
from partialkd.errors import DataError


def triples(form: str, path: Path, **options: str) -> list[tuple[str, str, bool]]:
    return [(pair.first, pair.second, pair.same) for pair in read_pair_list(form, path, **options)]  # type: ignore[arg-type]


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
