"""What several runs say side by side: scores over seeds, differences with paired intervals, settings that differ.

Runs whose configurations differ in nothing but the seed (and where they are kept, and what they tell) are one recipe;
its runs are its seeds. A second run of a seed, a copy or one of other code, is no further seed: it begins a recipe of
its own. All networks are compared with the first network of the first recipe, the baseline:

by identity   each run with the baseline's run of the same seed (else with its first), on the same pairs: evaluate/
              intervals.py; the mean over seeds of the differences, with the interval of one pair of runs
by seed       recipes with two or more seeds in common: the mean of the differences of accuracy over these seeds, with
              Student's interval

A set's pairs must be the same in all runs, and some set must be in all of them: else a ConfigError names the runs.
Sets of templates (template_scores.py) have columns of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from partialkd.config import EvaluateConfig
from partialkd.errors import ConfigError
from partialkd.evaluate.kept_pairs import read_pairs
from partialkd.evaluate.verification import compared
from partialkd.report.run_files import RunFiles, read_run
from partialkd.report.settings import NAMES, differences, flat_settings

SEED = "run.seed"
# No part of a recipe: where a run is kept, and what it tells of itself.
FREE = (
    SEED, *NAMES, "run.log_every", "run.log_level", "run.report", "run.tensorboard", "run.wandb", "run.profile_steps",
    "run.profile_ranks",
)  # fmt: skip
# 97.5 % quantiles of Student's t by degrees of freedom; above the last, that of the normal distribution is near enough.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
# In the order of the papers' columns.
PAPER_SETS = {
    "lfw": "LFW", "cfp_fp": "CFP-FP", "agedb_30": "AgeDB-30", "calfw": "CALFW", "cplfw": "CPLFW", "ijbb": "IJB-B",
    "ijbc": "IJB-C",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Runs that differ in their seeds alone."""

    name: str
    runs: tuple[RunFiles, ...]


@dataclass(frozen=True)
class Column:
    """What networks are compared by: accuracy on a set of pairs or, with a FAR, TAR on a set of templates."""

    name: str  # of the set
    far: float | None = None

    @property
    def title(self) -> str:
        """The set, and the FAR."""
        return self.name if self.far is None else f"{self.name} TAR@{self.far:g}"

    def value(self, run: RunFiles, who: str) -> float | None:
        """A share in [0, 1] of a run's network; None where it was not judged so."""
        if self.far is not None:
            found = run.templates.get(self.name, {}).get(who)
            return found.published.get(self.far) if found else None
        scores = run.scores.get(self.name, {}).get(who)
        return scores.accuracy if scores else None

    def values(self, recipe: Recipe, who: str) -> list[float]:
        """Those of the runs that have one."""
        found = (self.value(run, who) for run in recipe.runs)
        return [value for value in found if value is not None]

    def interval(self, run: RunFiles, who: str) -> tuple[float, float] | None:
        """Of 95 %, by identity."""
        if self.far is not None:
            return run.templates[self.name][who].interval[self.far]
        limits = run.scores[self.name][who].interval.get("accuracy")
        return (limits[0], limits[1]) if limits else None


@dataclass(frozen=True)
class Difference:
    """How much better a recipe's network is than the baseline's, in one column; shares in [0, 1]."""

    mean: float
    by_identity: tuple[float, float] | None  # None also of templates, whose pairs' scores are not kept
    by_seed: tuple[float, float] | None
    seeds: int  # that both have


@dataclass(frozen=True)
class Comparison:
    """Several runs."""

    recipes: tuple[Recipe, ...]
    columns: tuple[Column, ...]
    networks: tuple[str, ...]
    settings: dict[str, list[str]]  # key -> its value in each recipe

    @property
    def sets(self) -> list[str]:
        """The sets of pairs."""
        return [column.name for column in self.columns if column.far is None]

    @property
    def rows(self) -> list[tuple[Recipe, str]]:
        """Every network of every recipe that was scored."""
        pairs = [(recipe, who) for recipe in self.recipes for who in self.networks]
        return [(recipe, who) for recipe, who in pairs if any(column.values(recipe, who) for column in self.columns)]

    def label(self, run: RunFiles) -> str:
        """What a run is called in figures: its name, or its folder where two have one name."""
        names = [other.name for recipe in self.recipes for other in recipe.runs]
        return run.name if names.count(run.name) == 1 else str(run.folder)

    def best(self, column: Column) -> tuple[Recipe, str] | None:
        """Whose mean is the highest; of teachers only where there is nothing else, for who learns is compared."""
        judged = [row for row in self.rows if column.values(*row)]
        rows = [row for row in judged if row[1] != "teacher"] or judged
        return max(rows, key=lambda row: mean(column.values(*row)), default=None)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of one."""
    return stdev(values) if len(values) > 1 else None


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """Read runs, each once; ConfigError for one that is named twice, or that has no scores."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise ConfigError(f"{folder}: the same run as {seen[folder.resolve()]}")
        seen[folder.resolve()] = folder
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if not run.scores and not run.templates and not run.lines:
            raise ConfigError(f"{run.folder}: has neither scores nor logged steps yet")
    return runs


def compare(runs: Sequence[RunFiles]) -> Comparison:
    """Put runs side by side."""
    recipes = _recipes(runs)
    sets = list(dict.fromkeys(name for run in runs for name in run.scores))
    _check_sets(runs, sets)
    judged = [who for run in runs for rows in (run.scores, run.templates) for row in rows.values() for who in row]
    networks = tuple(dict.fromkeys(judged))
    settings = differences([recipe.runs[0] for recipe in recipes], FREE)
    columns = [*(Column(name) for name in sets), *_template_columns(runs)]
    names = in_paper_order(list(dict.fromkeys(column.name for column in columns)))
    columns.sort(key=lambda column: names.index(column.name))
    return Comparison(tuple(recipes), tuple(columns), networks, settings)


def _template_columns(runs: Sequence[RunFiles]) -> list[Column]:
    """Every set of templates at every FAR; ConfigError for one name of different sets."""
    found: dict[Column, None] = {}
    sizes: dict[str, tuple[tuple[int, int], RunFiles]] = {}
    for run in runs:
        for name, row in run.templates.items():
            for one in row.values():
                pairs, first = sizes.setdefault(name, (one.pairs, run))
                if pairs != one.pairs:
                    rule = f"the set {name!r} is not of the same pairs of templates in both"
                    raise ConfigError(f"{first.folder} and {run.folder}: {rule}")
                found.update(dict.fromkeys(Column(name, far) for far in one.published))
    return sorted(found, key=lambda column: (column.name, -(column.far or 0)))


def _recipes(runs: Sequence[RunFiles]) -> list[Recipe]:
    groups: dict[tuple[object, ...], list[RunFiles]] = {}
    for run in runs:
        settings = tuple(sorted((key, value) for key, value in flat_settings(run).items() if key not in FREE))
        same = settings or (("folder", str(run.folder)),)
        again = sum(run.seed in {other.seed for other in group} for key, group in groups.items() if key[0] == same)
        groups.setdefault((same, again), []).append(run)
    names = [_name(group) for group in groups.values()]
    return [
        Recipe(name if names.count(name) == 1 else f"{name} ({group[0].folder})", tuple(sorted(group, key=_seed)))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _seed(run: RunFiles) -> int:
    return run.seed


def _name(group: Sequence[RunFiles]) -> str:
    first = group[0].name
    return first if len(group) == 1 else f"{first} and {len(group) - 1} more seed{'s' if len(group) > 2 else ''}"


def _check_sets(runs: Sequence[RunFiles], sets: Sequence[str]) -> None:
    """A set of one name that is not the same pairs must not stand in one column; some set must be shared."""
    scored = [run for run in runs if run.scores]
    if len(scored) > 1 and not set.intersection(*(set(run.scores) for run in scored)):
        said = "; ".join(f"{run.folder}: {', '.join(run.scores)}" for run in scored)
        raise ConfigError(f"these runs have no evaluation set in common: {said}")
    for name in sets:
        digests: dict[str, RunFiles] = {}
        for run in runs:
            if digest := _digest(run, name):
                digests.setdefault(digest, run)
        if len(digests) > 1:
            one, other, *_ = digests.values()
            raise ConfigError(f"{one.folder} and {other.folder}: the set {name!r} is not of the same pairs in both")


def _digest(run: RunFiles, name: str) -> str | None:
    """What a set's pairs are, as far as the run has kept them."""
    path = next((sets[name] for sets in run.pairs.values() if name in sets), None)
    if path is None:
        return None
    pairs = read_pairs(path)
    arrays = (pairs.same, pairs.people.first, pairs.people.second)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def in_paper_order(sets: Sequence[str]) -> list[str]:
    """The papers' sets first, in their order, then the others in theirs."""
    known = list(PAPER_SETS)
    place = lambda name: known.index(plain(name)) if plain(name) in known else len(known)
    return sorted(sets, key=place)


def plain(name: str) -> str:
    """A set's name as the papers' table has it: `AgeDB-30` and `agedb_30` are one."""
    squeezed = name.lower().replace("-", "_").replace(" ", "_")
    return {"cfpfp": "cfp_fp", "agedb30": "agedb_30", "agedb": "agedb_30", "ijb_b": "ijbb", "ijb_c": "ijbc"}.get(
        squeezed, squeezed
    )


def difference(comparison: Comparison, recipe: Recipe, who: str, column: Column) -> Difference | None:
    """Compare a network of a recipe with the baseline; None of the baseline, and without numbers of both."""
    base, base_who = comparison.rows[0]
    if (recipe, who) == (base, base_who):
        return None
    found = [(run, other, column.value(run, who), column.value(other, base_who))
             for run in recipe.runs for other in [_partner(run, base)]]  # fmt: skip
    both = [(a, b, one - other) for a, b, one, other in found if one is not None and other is not None]
    if not both:
        return None
    same_seed = [apart for a, b, apart in both if a.seed == b.seed]
    paths = [(a.pairs.get(who, {}).get(column.name), b.pairs.get(base_who, {}).get(column.name)) for a, b, _ in both]
    folds = (recipe.runs[0].config.evaluate if recipe.runs[0].config else EvaluateConfig()).folds
    by_identity = _by_identity(paths, folds) if column.far is None else None
    return Difference(mean(apart for *_, apart in both), by_identity, t_interval(same_seed), len(same_seed))


def _partner(run: RunFiles, base: Recipe) -> RunFiles:
    return next((other for other in base.runs if other.seed == run.seed), base.runs[0])


def _by_identity(paths: Sequence[tuple[Path | None, Path | None]], folds: int) -> tuple[float, float] | None:
    """The mean of the paired intervals: people are the same for every seed, so that seeds do not narrow it."""
    limits, config = [], EvaluateConfig(folds=folds, fars=())
    for one, other in paths:
        if one is None or other is None:
            return None
        limits.append(compared(read_pairs(one), read_pairs(other), config)["accuracy"]["interval"])
    return mean(low for low, _ in limits), mean(high for _, high in limits)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of 95 % of a mean; None of fewer than two values."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    half = (T[freedom - 1] if freedom <= len(T) else 1.96 + 2.6 / freedom) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half
