"""The repository as a whole: thin entry points, no traces of one machine, safe loading, sound scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.commands.console import COMMANDS

MACHINE_PATH = re.compile(r"(?:^|[^\w.])/(?:work|farm|root|home)/")
INDEX_ADDRESS = re.compile(r"--(?:extra-)?index-url|https?://[\w.-]*/simple")
UNSAFE_LOAD = re.compile(r"\bpickle\.loads?\(|\btorch\.load\((?!.*weights_only=True)")


def tracked() -> list[Path]:
    """Text files of the repository; from the folder itself where it is not a git checkout."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in names if name]
    else:
        paths = [path for part in ("partialkd", "launch", "tests", "configs") for path in (ROOT / part).rglob("*")]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:1024]]


FILES = tracked()
SCRIPTS = [".ci/run", "launch/slurm/train.sbatch"]
SCRIPTS += [str(path.relative_to(ROOT)) for part in ("launch", "containers") for path in (ROOT / part).glob("*.sh")]


def lines_with(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_machine_paths_and_no_registry_addresses() -> None:
    others = [path for path in FILES if path != Path(__file__)]
    assert len(others) > 20
    assert not lines_with(MACHINE_PATH, others)
    assert not lines_with(INDEX_ADDRESS, others)


def test_nothing_is_unpickled_unchecked() -> None:
    code = [path for path in FILES if path.suffix == ".py" and path.is_relative_to(ROOT / "partialkd")]
    code += [path for path in FILES if path.suffix == ".py" and path.is_relative_to(ROOT / "launch")]
    assert not lines_with(UNSAFE_LOAD, code)


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE_PATH, "cd /ho" + "me/anna/project"),
        (INDEX_ADDRESS, "pip install --extra-index" + "-url X"),
        (UNSAFE_LOAD, "x = torch.load(path)"),
        (UNSAFE_LOAD, "torch.load(path, weights_only=False)"),
        (UNSAFE_LOAD, "pickle.loads(data)"),
    ],
)
def test_the_patterns_find_what_they_forbid(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


def test_entry_points_are_thin() -> None:
    """Parse, load, start, run: everything else can be imported and tested."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "launch").glob("*.py")}
    assert lengths
    assert all(length < 40 for length in lengths.values()), lengths


def test_every_entry_point_is_a_command() -> None:
    """The table of the program `partialkd` has them all, each is what its module says, and there is no other."""
    scripts = {path.stem: path.read_text() for path in (ROOT / "launch").glob("*.py")}
    assert set(scripts) == set(COMMANDS)
    for name, text in scripts.items():
        assert f'raise SystemExit(run("{name}"))' in text
        assert (ROOT / "partialkd" / "commands" / f"{name}.py").is_file()


def test_no_entry_point_hides_a_library() -> None:
    """torchrun puts launch/ first on sys.path: launch/onnx.py would be what `import onnx` finds."""
    names = {path.stem for path in (ROOT / "launch").glob("*.py")}
    top_level = {path.name for path in Path(pytest.__file__).parent.parent.glob("*")}
    assert not names & {name.removesuffix(".py") for name in top_level}


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["launch/local.sh", "launch/node.sh", "launch/slurm/train.sbatch"])
def test_torchrun_knows_its_options(script: str) -> None:
    from torch.distributed.run import get_args_parser

    text = (ROOT / script).read_text()
    call = text[text.index("--nproc-per-node") - 60 : text.index("launch/train.py", text.index("--nproc-per-node"))]
    options = set(re.findall(r"(?<= )--[a-z-]+", call))
    assert {"--nproc-per-node", "--signals-to-handle"} <= options
    # Else each start leaves a folder torchelastic_* behind; world/launcher.py asks for it itself.
    assert "partialkd.world.launcher" in text or "--log-dir=/dev/null" in call
    assert options <= set(get_args_parser()._option_string_actions)


def test_torch_is_pinned_exactly_and_once() -> None:
    pins = lines_with(re.compile(r"^torch\b"), [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"])
    assert len(pins) == 1
    assert re.fullmatch(r"requirements\.txt:\d+: torch==[\d.]+", pins[0])


def test_the_licence_and_whose_ideas_these_are() -> None:
    """The notice names files that exist, and every file of a published network or method."""
    assert "Apache License\n" in (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert 'license = { text = "Apache-2.0" }' in (ROOT / "pyproject.toml").read_text()
    notice = (ROOT / "THIRD_PARTY.md").read_text()
    named = re.findall(r"`(partialkd/[\w/.]+)`", notice)
    assert len(named) > 10
    assert all((ROOT / path).exists() for path in named)
    sources = re.compile(r"arXiv:\d{4}\.\d{5}")
    for room in ("models", "methods"):
        for path in (ROOT / "partialkd" / room).glob("*.py"):
            assert set(sources.findall(path.read_text())) <= set(sources.findall(notice)), path
