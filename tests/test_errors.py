"""Foreign strings in messages: visible, on one line, and whole sentences of ours keep their lines."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from partialkd.config.load import parse_config
from partialkd.data.packing.pack import SKIPPED, PackError, PackOptions, pack
from partialkd.errors import ConfigError, DataError, printable
from partialkd.world.world import World

HOSTILE = "\x1b[2J\x1b]0;x\x07\nerror: all is well\r\u202egpj\udcff\ud800\x9b31m"
SHOWN = r"\x1b[2J\x1b]0;x\x07\nerror: all is well\r\u202egpj\xff\ud800\x9b31m"


def test_what_a_terminal_would_obey_is_shown_as_an_escape() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable(SHOWN) == SHOWN


@pytest.mark.parametrize("name", ["Zoë Kravitz", "李 小龙", "نازنین می\u200cخواهد", "a\\b", "it's"])
def test_names_of_people_stay_as_they_are(name: str) -> None:
    assert printable(name) == name


def test_an_error_is_printable_whoever_raises_it() -> None:
    error = DataError(f"data/{HOSTILE}: no image")
    assert str(error) == f"data/{SHOWN}: no image"
    assert str(DataError(f"more: {error}")) == f"more: data/{SHOWN}: no image"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_lines_of_our_own_stay_lines() -> None:
    """Of these lines two name unknown keys, two missing sections."""
    with pytest.raises(ConfigError) as caught:
        parse_config({"run": {"name": "a", "a\nb": 1, "c": 2}}, origin="my\n.toml")
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [r"my\n.toml"] * 4
    with pytest.raises(ConfigError) as again:
        World().together(lambda: parse_config({"run": {"name": "a", "a\nb": 1, "c": 2}}, origin="my\n.toml"))
    assert str(again.value) == str(caught.value)


def test_lists_of_names_have_one_line_a_name(tmp_path: Path) -> None:
    """A file name in a list of what was left out must not pass for another line of it."""
    for name, content in (("good.png", None), ("b\x1b[2J\nc.png", b"not an image")):
        path = tmp_path / "in" / "ann" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (16, 16)).save(path)
        else:
            path.write_bytes(content)
    with pytest.raises(PackError) as caught:
        pack(tmp_path / "in", tmp_path / "out", PackOptions(workers=1))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(r"ann/b\x1b[2J\nc.png: ")
    pack(tmp_path / "in", tmp_path / "out", PackOptions(workers=1, skip_unreadable=True))
    assert (tmp_path / "out" / SKIPPED).read_text().splitlines()[0].startswith("ann/b\\x1b[2J\\nc.png\t")
