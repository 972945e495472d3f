"""How far a pass has come: what fits on a line, what is said without a terminal, and what is not said at all."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from helpers.places import ROOT
from partialkd.world import passes
from partialkd.world.messages import begin
from partialkd.world.passes import Pass, counted, fitted, hours

PIECES = ["student 300/4000", "left 0:10:30", "5.2 steps/s", "epoch 3 loss 1.25 lr 0.1"]


@pytest.mark.parametrize(
    ("width", "wanted"),
    [
        (16, "student 300/4000"),
        (10, "student 30"),
        (28, "student 300/4000"),
        (30, f"student 300/4000 [#{10 * '-'}]"),
        (60, f"student 300/4000 [#{15 * '-'}] left 0:10:30 5.2 steps/s"),
        (84, f"student 300/4000 [#{14 * '-'}] left 0:10:30 5.2 steps/s epoch 3 loss 1.25 lr 0.1"),
        (200, f"student 300/4000 [###{37 * '-'}] left 0:10:30 5.2 steps/s epoch 3 loss 1.25 lr 0.1"),
    ],
)
def test_what_matters_most_is_what_stays(width: int, wanted: str) -> None:
    assert fitted(PIECES, 0.075, width) == wanted
    assert len(wanted) <= width


def test_an_unknown_number_has_no_bar() -> None:
    assert fitted(["listing 300", "for 0:00:12"], None, 60) == "listing 300 for 0:00:12"


def test_hours() -> None:
    assert [hours(seconds) for seconds in (0.4, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


class _Turn(threading.Event):
    """Time that passes only when a pass looks, so many seconds each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float, turns: int) -> None:
        super().__init__()
        self.now, self.seconds, self.turns, self.done = 0.0, seconds, turns, threading.Event()
        monkeypatch.setattr(passes.time, "monotonic", lambda: self.now)

    def wait(self, timeout: float | None = None) -> bool:
        if self.turns == 0 or self.is_set():
            self.done.set()
            return True
        self.turns -= 1
        self.now += self.seconds
        return False


def test_without_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 25 s with a look every 0.5 s, two lines; and one at the end."""
    begin()
    turn = _Turn(monkeypatch, 0.5, 50)
    going = Pass("drawing faces", 200, "images")
    going._over = turn
    going.add(50)
    with going:
        turn.done.wait()
    first, second, last = (line[20:] for line in capsys.readouterr().out.splitlines())
    assert first == "drawing faces 50/200 left 0:00:30 5 images/s"
    assert second == "drawing faces 50/200 left 0:01:00 2.5 images/s"
    assert last == "drawing faces: 50 images in 0:00:25, 2 images/s"


def test_a_short_pass_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    begin()
    assert list(counted("abc", "reading", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_items_are_counted_in_units(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Pass] = []
    monkeypatch.setattr(passes, "Pass", lambda *args: made.append(Pass(*args)) or made[-1])
    assert [len(batch) for batch in counted(["ab", "c"], "embedding", 3, "images", len)] == [2, 1]
    assert made[0].done == 3


SHOWN = """
import time
from partialkd.world.messages import begin
from partialkd.world import passes
passes.SHORT_S = 0.0
begin()
with passes.Pass("drawing faces", 200, "images") as going:
    for _ in range(10):
        time.sleep(0.1)
        going.add(5)
    print("a line of another", flush=True)
    time.sleep(0.5)
"""


UNFINISHED = (
    'import sys; sys.stdout.write("a line of another"); time.sleep(0.5); sys.stdout.write("\\n"); sys.stdout.flush()'
)


def _on_a_terminal(program: str = SHOWN, **environment: str) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, cwd=ROOT, env={**os.environ, **environment}
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            said += part
        assert process.wait(60) == 0
    os.close(ours)
    return said.decode()


@pytest.mark.slow
def test_a_bar_on_a_terminal_makes_way_for_lines() -> None:
    said = _on_a_terminal(TERM="xterm", COLUMNS="60")
    assert re.search(r"\r\x1b\[Kdrawing faces \d+/200 \[#*-+\] left 0:00:\d\d", said)
    assert "\r\x1b[Ka line of another\r\n" in said
    bars = [part for part in re.split(r"\r\x1b\[K|\r\n", said) if part.startswith("drawing faces ")]
    assert len(bars) > 2
    assert all(len(bar) < 60 for bar in bars)
    assert re.search(r"\d\d:\d\d:\d\d drawing faces: 50 images in 0:00:0\d, \S+ images/s\r\n$", said)


@pytest.mark.slow
def test_no_bar_is_drawn_over_a_line_that_is_not_at_its_end() -> None:
    """print() writes the text and its end one after the other, and the bar is drawn by a thread of its own."""
    said = _on_a_terminal(
        SHOWN.replace('print("a line of another", flush=True)', UNFINISHED), TERM="xterm", COLUMNS="60"
    )
    assert "\r\x1b[Ka line of another\r\n" in said


def test_a_bar_and_lines_never_stand_on_one_line() -> None:
    """The bar's thread and that of the lines write in turns, wherever the one is interrupted by the other."""
    said = _on_a_terminal(
        """
import sys
from partialkd.world.messages import begin
from partialkd.world import passes
passes.SHORT_S, passes._REDRAW_S = 0.0, 0.00001
begin()
sys.setswitchinterval(1e-6)
with passes.Pass("drawing faces", 2000, "images") as going:
    for index in range(2000):
        print(f"of another {index}", flush=True)
        going.add()
""",
        TERM="xterm",
        COLUMNS="60",
    )
    assert said.count("drawing faces") > 20
    lines = re.findall(r"(?<=\r\n)of another \d+(?=\r\n)", "\r\n" + said.replace("\r\x1b[K", "\r\n"))
    assert lines == [f"of another {index}" for index in range(2000)]


@pytest.mark.slow
def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    said = _on_a_terminal(TERM="dumb")
    assert "\x1b" not in said
    assert "a line of another" in said
