"""Commands that README, docs and the headers of configurations tell people to type."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from torch.distributed.run import get_args_parser

from helpers.places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:(?:make|python|torchrun|sbatch|docker)\b|partialkd [a-z])")
PLACEHOLDERS = {"...", "CONFIG", "section.key=value"}
# What an earlier command of the page has written -> what is read in its place.
WRITTEN_BEFORE = {"ms1mv3_r50.toml": "configs/ms1mv2_arcface.toml"}
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


class Command(NamedTuple):
    """One command line and the page it stands on."""

    page: str
    words: tuple[str, ...]


def commands_in(text: str, page: str) -> list[Command]:
    """Command lines of a text: lines that go on after a backslash are one, `&&` separates two, comments are dropped."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not STARTS.match(line.strip()):
            continue
        words: list[str] = []
        for word in [*shlex.split(line.strip(), comments=True), "&&"]:
            if word == "&&":
                found.append(Command(page, tuple(words)))
                words = []
            else:
                words.append(word)
    return [Command(page, as_script(words)) for page, words in found if STARTS.match(" ".join(words))]


def as_script(words: tuple[str, ...]) -> tuple[str, ...]:
    """`partialkd NAME ...`, also under torchrun, as the script of launch/ that is the same command."""
    if words[0] == "partialkd":
        return ("python", f"launch/{words[1].replace('-', '_')}.py", *words[2:])
    if words[0] == "torchrun" and "--no-python" in words:
        at = words.index("--no-python")
        assert words[at + 1] == "partialkd"
        return (*words[:at], f"launch/{words[at + 2].replace('-', '_')}.py", *words[at + 3 :])
    return words


def all_commands() -> list[Command]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            found += commands_in(block, page.name)
    for config in sorted((ROOT / "configs").rglob("*.toml")):
        header = re.match(r"(?:#.*\n)+", config.read_text(encoding="utf-8"))
        assert header, f"{config.name} begins without the command that runs it"
        text = re.sub(r"^# ?", "", header[0], flags=re.MULTILINE)
        found += commands_in(re.sub(r" {2,}\(.*\)$", "", text, flags=re.MULTILINE), config.name)
    return list({command.words: command for command in found}.values())


COMMANDS = all_commands()


def arguments_of(command: Command) -> list[str]:
    """What a training or a pass of the teacher is started with: configuration, overrides, options."""
    words = [word for word in command.words if not re.fullmatch(r"[A-Z_]+=\d+", word)]
    if words[0] == "make":
        assert words[1] in MAKE_TARGETS, f"make {words[1]}"
        given = [word.removeprefix("ARGS=") for word in words[2:]]
        return shlex.split(given[0]) if given and words[1] == "train" else []
    if words[0] == "python":
        return words[2:]
    parsed = get_args_parser().parse_args(words[1:])
    assert (ROOT / parsed.training_script).is_file()
    return list(parsed.training_script_args)


def starts_training(command: Command) -> bool:
    words = [word for word in command.words if "=" not in word or word.startswith("--")]
    return words[0] in ("make", "torchrun") or words[:2] == ["python", "launch/train.py"]


TRAININGS = [command for command in COMMANDS if starts_training(command)]
OTHERS = [command for command in COMMANDS if command.words[0] == "python" and not starts_training(command)]


def name_of(command: Command) -> str:
    return f"{command.page}: {' '.join(command.words)}"[:90]
