"""The program `partialkd`: one table of its commands, each of which is also a script of launch/.

`partialkd COMMAND ...` does what `python launch/COMMAND.py ...` does, from any folder. Under torchrun:
`torchrun --nproc-per-node=N --no-python partialkd COMMAND ...`. A command is imported when it is called, so that the
list of them is there at once.
Exit status: that of the command; 2 where it is none of these.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from partialkd import __version__
from partialkd.errors import printable
from partialkd.world.command import CommandParser, command
from partialkd.world.messages import Stream
from partialkd.world.parent_death import die_with_launcher

WRONG_USE = 2


@dataclass(frozen=True)
class Entry:
    """A command: what it does, in a line, and where it says how far it is."""

    does: str
    progress: Stream = "stderr"  # stdout: there is no other result on it


# Name -> partialkd/commands/NAME.py, with main(arguments) -> exit status; launch/NAME.py runs it too.
COMMANDS = {
    "train": Entry("train what a configuration describes", "stdout"),
    "doctor": Entry("is this machine, and every rank of a launch, fit for a run"),
    "submit": Entry("hand runs to Slurm, one or an array of them"),
    "plan": Entry("will it fit, how many identities would, what does a step cost at least"),
    "embed": Entry("keep a teacher's embeddings of the training data", "stdout"),
    "evaluate": Entry("score a network on verification sets, templates, identification"),
    "report": Entry("the page of a run, finished or not"),
    "compare": Entry("runs side by side, with paired intervals; tables for papers"),
    "export": Entry("write a network as ONNX and for other runtimes, checked in each"),
    "model_card": Entry("write a run's network as a folder to publish"),
    "audit": Entry("look through a data set by its teacher's embeddings"),
    "align": Entry("photographs to aligned faces"),
    "pack": Entry("pack images as what training reads, or take such data apart"),
    "make_bin": Entry("build a verification set (.bin), or take one apart"),
    "make_templates": Entry("make a small set of templates from aligned faces"),
    "import_arcface": Entry("configurations and runs of InsightFace's arcface_torch as ours"),
    "import_mxnet": Entry("an MXNet teacher as a network of this project"),
}


def run(name: str, arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one command as a process's only work -> exit status.

    arguments: its command line (default: the process's); program: what its help calls it (default: the script's name).
    """
    die_with_launcher()

    def body() -> int:
        CommandParser.program = program
        status: int = importlib.import_module(f"partialkd.commands.{name}").main(arguments)
        return status

    return command(body, progress=COMMANDS[name].progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the command line names -> exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if words[:1] == ["--version"]:
        print(__version__)
        return 0
    if not words:
        print(usage(), file=sys.stderr)
        return WRONG_USE
    name = words[0].replace("-", "_")
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else "partialkd --help lists them"
        print(f"error: no command {printable(words[0])}; {meant}", file=sys.stderr)
        return WRONG_USE
    return run(name, words[1:], f"partialkd {name}")


def usage() -> str:
    """List the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {entry.does}" for name, entry in COMMANDS.items()]
    about = "Distils large face-recognition teachers into small students, with class centres sharded over ranks."
    ask = "partialkd COMMAND --help shows the options of a command, with examples."
    return "\n".join(["usage: partialkd COMMAND ...", "", about, "", *lines, "", ask])
