"""Landmarks as others wrote them: InsightFace's text, CSV with a header, shares of the image's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from partialkd.align.landmark_file import LandmarkFile
from partialkd.errors import DataError

TEN = [30.0, 40.0, 60.0, 40.0, 45.0, 60.0, 33.0, 75.0, 58.0, 75.0]
ROW = " ".join(f"{x:.1f}" for x in TEN)


def written(path: Path, text: str) -> LandmarkFile:
    path.write_text(text, encoding="utf-8")
    return LandmarkFile(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", f"anna/1.jpg {ROW}\n./bob/2.jpg\t{ROW} 0.99\n"),
        ("bom.txt", f"\ufeffanna/1.jpg {ROW}\r\nbob/2.jpg {ROW}\r\n\r\n"),
        ("a.csv", "path," + ",".join(f"ldmk_{k}" for k in range(10)) + f"\nanna/1.jpg,{ROW.replace(' ', ',')}\n"
                  f"bob/2.jpg,{ROW.replace(' ', ',')}\n"),
    ],
)  # fmt: skip
def test_forms(tmp_path: Path, name: str, text: str) -> None:
    found = written(tmp_path / name, text)
    assert found.names() == {"anna/1.jpg", "bob/2.jpg"}
    points = found.of("bob/2.jpg", 100, 100)
    assert points is not None
    np.testing.assert_array_equal(points, np.array(TEN).reshape(5, 2))
    assert found.of("nobody.jpg", 100, 100) is None


def test_names_written_otherwise_are_found_and_counted(tmp_path: Path) -> None:
    """In another Unicode form, case or file ending; a name that is there letter by letter comes first."""
    rows = {"Zoe\u0308/1.JPG": 1, "bob/2.png": 2, "bob/2.jpg": 3, "nobody.jpg": 4}
    found = written(tmp_path / "a.txt", "".join(f"{name} {' '.join([str(x)] * 10)}\n" for name, x in rows.items()))
    images = ["zo\u00eb/1.jpg", "bob/2.jpg"]
    assert found.match(images) == f"{tmp_path}/a.txt: 3 of 4 names found (2 written otherwise), not 'nobody.jpg'"
    points = [found.of(name, 9, 9) for name in images]
    assert [None if one is None else one[0, 0] for one in points] == [1, 3]
    with pytest.raises(DataError, match=r"a\.txt: 0 of 4 names found, not 'Zo.*': names no image of the folder, to w"):
        written(tmp_path / "a.txt", (tmp_path / "a.txt").read_text()).match(["dora.jpg"])


def test_shares_become_pixels(tmp_path: Path) -> None:
    shares = ",".join(str(x / 112) for x in TEN)
    found = written(tmp_path / "s.csv", "idx," + ",".join("xyxyxyxyxy") + f"\n0.jpg,{shares}\n")
    points = found.of("0.jpg", 224, 112)
    assert points is not None
    np.testing.assert_allclose(points, np.array(TEN).reshape(5, 2) * [2, 1] - 0.5)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "anna/1.jpg 1 2 3\n", "line 1: must be a path, ten coordinates"),
        ("a.txt", f"anna/1.jpg {ROW}\nbob/2.jpg {ROW.replace('60.0', 'x', 1)}\n", "line 2: coordinates must be finite"),
        ("a.txt", f"anna/1.jpg {ROW.replace('60.0', 'nan', 1)}\n", "line 1: coordinates must be finite"),
        ("a.txt", f"a.jpg {ROW}\na.jpg {ROW}\n", r"line 2: landmarks of a\.jpg stand there twice"),
        ("a.csv", "path,x\n", "line 1: must name a path column and ten coordinates, got 2 columns"),
        ("a.csv", "p," + ",".join("xyxyxyxyxy") + "\na.jpg,1,2\n", "line 2: must have 11 columns, got 3"),
        ("a.csv", "p," + ",".join("xyxyxyxyxy") + f"\n{'x' * 200_000}\n", "line 2: field larger than field limit"),
        ("a.txt", "\n", "no landmarks in it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        written(tmp_path / name, text)
