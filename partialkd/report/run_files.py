"""What a run's folder holds, read for a report: of a run that is finished, goes on, was stopped or has died.

Nothing but a folder with config.toml or metrics.jsonl is needed; what is missing is left out. The last line of
metrics.jsonl may be cut short: it is being written. Numbers that were not finite are None.
Errors: `ConfigError` for what is no run folder; `DataError` naming the file, and the line, that is something else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from partialkd.config import Config
from partialkd.config.load import parse_config, read_tree
from partialkd.context import METRICS, RESULT, SAVED_CONFIG, STARTS, TIMES
from partialkd.errors import ConfigError, DataError
from partialkd.evaluate.kept_pairs import kept_pairs, read_pairs
from partialkd.evaluate.pairs import PairScores
from partialkd.evaluate.verification import ScoredPairs
from partialkd.evaluate.verification_tables import Results
from partialkd.report.template_scores import TemplateScores, read_template_scores
from partialkd.world.messages import LOGS

NETWORKS = ("student", "alone", "teacher")  # in the order of tables and colours
MOST_WARNINGS = 200
_WARNING = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:warning|error): ")
Line = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """One run."""

    folder: Path
    tree: dict[str, Any]  # of config.toml
    config: Config | None  # None: not one of this version
    config_problem: str
    lines: dict[str, list[Line]]  # logged steps by phase
    judged: dict[str, list[Line]]  # scored checkpoints by phase
    result: dict[str, Any]  # {} until the run is finished
    starts: list[dict[str, Any]]
    times: list[dict[str, Any]]
    pairs: dict[str, dict[str, Path]]  # network -> set -> file
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the run is called."""
        named = self.tree.get("run", {})
        name = named.get("name") if isinstance(named, dict) else None
        return str(name or self.folder.resolve().name)

    @property
    def seed(self) -> int:
        """Its seed."""
        named = self.tree.get("run", {})
        seed = named.get("seed", 0) if isinstance(named, dict) else 0
        return seed if isinstance(seed, int) else 0

    @property
    def begun_again(self) -> bool:
        """Whether it was started once more after it had ended, as to be longer; its result is of before."""
        ended, begun = self.result.get("ended"), self.starts[-1].get("time") if self.starts else None
        return isinstance(ended, str) and isinstance(begun, str) and begun > ended

    @cached_property
    def scores(self) -> Results:
        """Set -> network -> scores: of the result, before that of the pairs that are there."""
        found: Results = {}
        if self.result:
            for name, networks in self.result["sets"].items():
                found[name] = {who: _scores(one, self.folder / RESULT) for who, one in networks.items()}
        elif self.config is not None:
            for who, sets in self.pairs.items():
                for name, path in sets.items():
                    found.setdefault(name, {})[who] = read_pairs(path).scores(self.config.evaluation)
        return {name: dict(sorted(row.items(), key=lambda item: network_order(item[0]))) for name, row in found.items()}

    @cached_property
    def templates(self) -> dict[str, dict[str, TemplateScores]]:
        """Set -> network -> scores by templates."""
        return read_template_scores(self.folder)

    def pairs_of(self, name: str) -> dict[str, ScoredPairs]:
        """Network -> its pairs of a set, in the order of `NETWORKS`."""
        order = sorted(self.pairs, key=network_order)
        return {who: read_pairs(self.pairs[who][name]) for who in order if name in self.pairs[who]}


def network_order(network: str) -> tuple[int, str]:
    """The place of a network in tables: those of `NETWORKS` first."""
    return (NETWORKS.index(network) if network in NETWORKS else len(NETWORKS)), network


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: not a folder")
    if not any((folder / name).is_file() for name in (SAVED_CONFIG, METRICS)):
        raise ConfigError(f"{folder}: not a run's folder: it holds neither {SAVED_CONFIG} nor {METRICS}")
    tree, config, problem = _configuration(folder / SAVED_CONFIG)
    lines, judged = _lines(folder / METRICS)
    result = _json(folder / RESULT)
    if result and not _is_result(result):
        raise DataError(f"{folder / RESULT}: not the result of a run: must hold scores by set and network")
    starts, times = (_listed(folder / name) for name in (STARTS, TIMES))
    warnings = _warnings(folder / LOGS)
    return RunFiles(folder, tree, config, problem, lines, judged, result, starts, times, kept_pairs(folder), warnings)


def _configuration(path: Path) -> tuple[dict[str, Any], Config | None, str]:
    if not path.is_file():
        return {}, None, f"{path.name} is not there"
    tree = read_tree(path)
    try:
        return tree, parse_config(tree, path.name), ""
    except ConfigError as error:  # of another version, or it names a variable that is not set here
        return tree, None, str(error).split("\n")[0]


def _lines(path: Path) -> tuple[dict[str, list[Line]], dict[str, list[Line]]]:
    """Read metrics.jsonl -> logged steps by phase, scored checkpoints by phase."""
    logged: dict[str, list[Line]] = {}
    judged: dict[str, list[Line]] = {}
    if not path.is_file():
        return logged, judged
    try:
        texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a file of metrics: {error}") from error
    for number, text in enumerate(texts, start=1):
        if text.endswith("\n"):  # else it is being written
            line = _line(text, f"{path}, line {number}")
            (logged if "loss" in line else judged).setdefault(line["phase"], []).append(line)
    return logged, judged


def _line(text: str, where: str) -> Line:
    try:
        line = json.loads(text)
        if not isinstance(line["phase"], str) or type(line["step"]) is not int or not 0 <= line["step"] < 2**53:
            raise ValueError("phase must be text, and step a whole number")
        others = {key: value for key, value in line.items() if key not in ("phase", "step", "epoch", "time")}
        wrong = [key for key, value in others.items() if isinstance(value, bool) or not isinstance(value, _NUMBER)]
        if wrong:
            raise ValueError(f"{wrong[0]} must be a number or null")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: not a line of metrics: {error!r}") from error
    return {key: _finite(value) for key, value in line.items()}


_NUMBER = (int, float, type(None))


_LARGEST = 1e300  # of numbers that can be drawn


def _finite(value: Any) -> Any:
    """JSON as Python reads it may hold NaN, infinity, and whole numbers of any length."""
    return None if isinstance(value, int | float) and not abs(value) < _LARGEST else value


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON of a run: {error}") from error
    return found


def _is_result(result: dict[str, Any]) -> bool:
    sets = result.get("sets")
    return isinstance(sets, dict) and all(isinstance(row, dict) and row for row in sets.values())


def _listed(path: Path) -> list[dict[str, Any]]:
    starts = _json(path).get("starts", [])
    if not isinstance(starts, list) or not all(isinstance(one, dict) for one in starts):
        raise DataError(f"{path}: must hold a list of starts")
    return starts


def _scores(one: Any, path: Path) -> PairScores:
    try:
        scores = PairScores(**one)
        if not all(isinstance(x, int | float) for x in (scores.accuracy, scores.auc, scores.threshold, scores.pairs)):
            raise TypeError("scores must be numbers")
    except TypeError as error:
        raise DataError(f"{path}: not the scores of a network: {error}") from error
    return scores


def _warnings(folder: Path) -> list[str]:
    """What the ranks warned of, in the order of time; a line that several ranks said counts once."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob("rank_*.log")):
        with path.open(encoding="utf-8", errors="backslashreplace") as stream:
            for line in stream:
                if _WARNING.match(line) and len(found) < MOST_WARNINGS:
                    found[line.rstrip("\n")] = None
    return sorted(found)
