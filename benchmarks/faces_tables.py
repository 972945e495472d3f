"""Paired comparisons of the study on real faces, and the tables of docs/study.md made of the result files alone."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from faces_data import SIZE, sets_folder
from faces_runs import (
    ALONE,
    AT_LARGER,
    AT_LONGER,
    CASES,
    CORE,
    LONG,
    METHODS,
    RECIPES,
    ROOT,
    SCALE_16,
    config_of,
    file_name,
    larger,
    longer,
)  # fmt: skip
from measure import difference

from partialkd.config import EvaluateConfig
from partialkd.evaluate.intervals import auc_difference
from partialkd.evaluate.verification import ScoredPairs, pairs_of_sets
from partialkd.storage.atomic_files import write_json
from partialkd.world.world import World

PAGE, COMPARISONS = ROOT / "docs" / "study.md", "comparisons.json"
SETS = ("lfw", "pubfig")
HYPOTHESES = (  # one, other, whether "better" or "equal" is expected
    ("vanilla_l2", ALONE, "better"),
    ("arcdistill", ALONE, "better"),
    ("arcdistill", "vanilla_l2", "equal"),
    ("adadistill_alpha", "arcdistill", "better"),
    ("adadistill", "adadistill_alpha", "better"),
    ("margindistillation", ALONE, "better"),
)
SAME = "adadistill, all grey, teacher sees the same", "arcdistill with cosine, all grey, teacher sees the same"
SEES = tuple((name.replace("the same", "clean"), name) for name in SAME)
AXIS = (ALONE, "arcdistill", "adadistill", "cosine alone")

Tree = dict[str, Any]


# ------------------------------------------------------------------------------------------------- comparing


def compared_with() -> list[tuple[str, str]]:
    """All comparisons that the page has: (one, other)."""
    small = [name for name in CASES if name not in AT_LARGER + AT_LONGER]
    pairs = [(name, ALONE) for name in small]
    pairs += [(one, other) for one, other, _ in HYPOTHESES]
    pairs += [(name, CASES[name].method) for name in small if name not in METHODS]
    pairs += [(name, larger(other)) for other in (ALONE, "alone, scale 16", *RECIPES) for name in AT_LARGER]
    pairs += [(name, longer(other)) for other in LONG for name in AT_LONGER]
    pairs += SEES
    pairs += [(larger(one), larger(other)) for one, other, _ in HYPOTHESES]
    return list(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))


def compare(results: Path, work: Path) -> None:
    """Write the paired differences of all that has run and whose pairs' cosines are in `work`; earlier ones stay."""
    rows = read_rows(results)
    sets = tuple(str(sets_folder(work, SIZE) / f"{name}.bin") for name in SETS)
    size = config_of(CASES[ALONE], 0, work, 10**4).data.image_size
    with World.start() as world:  # whose images the pairs are of: no network is needed for that
        pairs = pairs_of_sets(lambda images: images.flatten(1), EvaluateConfig(sets=sets), size, False, world)
    cosines = lambda row: work / "cosines" / f"{file_name(CASES[row['case']], row['seed'])}.npz"
    kept = {(row["case"], row["seed"]): np.load(cosines(row)) for row in rows if cosines(row).exists()}
    path = results / COMPARISONS
    earlier = json.loads(path.read_text(encoding="utf-8"))["comparisons"] if path.exists() else []
    write_json(path, {"comparisons": merged(earlier, comparisons(kept, pairs))})


def merged(earlier: list[Tree], later: list[Tree]) -> list[Tree]:
    """Of each comparison the one of more seeds, of two alike the later; in the order of the cases."""
    found: dict[tuple[str, str, str], Tree] = {}
    for row in [*earlier, *later]:
        key = (row["one"], row["other"], row["set"])
        if key not in found or len(row["seeds"]) >= len(found[key]["seeds"]):
            found[key] = row
    wanted = [(*pair, name) for pair in compared_with() for name in SETS]
    return [found[key] for key in wanted if key in found]


def comparisons(kept: dict[tuple[str, int], Any], pairs: dict[str, ScoredPairs]) -> list[Tree]:
    """kept: cosines by set of (case, seed) -> a row for each comparison and set."""
    found = []
    for one, other in compared_with():
        seeds = sorted({seed for case, seed in kept if case == one} & {seed for case, seed in kept if case == other})
        for name, scored in pairs.items() if seeds else ():
            ones, others = (np.stack([kept[case, seed][name] for seed in seeds]) for case in (one, other))
            mean, interval = auc_difference(ones, others, scored.same, scored.people)
            found.append({"one": one, "other": other, "set": name, "seeds": seeds,
                          "difference": mean, "by identity": list(interval)})  # fmt: skip
    return found


# --------------------------------------------------------------------------------------------------- reading


def read_rows(results: Path) -> list[Tree]:
    """Results of the runs, in the order of the cases."""
    files = [path for path in results.glob("*.json") if path.name != COMPARISONS]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    order = {name: number for number, name in enumerate(CASES)}
    return sorted((row for row in rows if row["case"] in order), key=lambda row: (order[row["case"]], row["seed"]))


class Findings:
    """What the result files say."""

    def __init__(self, rows: list[Tree], compared: list[Tree]) -> None:
        self.rows = rows
        self.scores: dict[str, dict[int, Tree]] = {}
        for row in rows:
            self.scores.setdefault(row["case"], {})[row["seed"]] = row["scores"]
        self.by_identity = {(one["one"], one["other"], one["set"]): one for one in compared}

    @classmethod
    def read(cls, results: Path) -> Findings:
        path = results / COMPARISONS
        compared = json.loads(path.read_text(encoding="utf-8"))["comparisons"] if path.exists() else []
        return cls(read_rows(results), compared)

    def mean(self, case: str, name: str) -> float:
        return statistics.mean(one[name]["auc"] for one in self.scores[case].values())

    def gap(self, one: str, other: str, name: str) -> Tree | None:
        """The difference of two cases on a set, with both intervals; None where no seed has run of both."""
        seeds = sorted(self.scores.get(one, {}).keys() & self.scores.get(other, {}).keys())
        found = self.by_identity.get((one, other, name))
        if not seeds or found is None or found["seeds"] != seeds:
            return None
        values = ([self.scores[case][seed][name]["auc"] for seed in seeds] for case in (one, other))
        return {**difference(*values), "by identity": found["by identity"], "seeds": len(seeds)}


def verdict(gap: Tree | None, expected: str) -> str:
    """Answer a hypothesis by both intervals."""
    if gap is None or gap["half_width"] is None:
        return "not answered: fewer than two seeds"
    low, high = gap["by identity"]
    above = gap["mean"] > gap["half_width"] and low > 0
    below = gap["mean"] < -gap["half_width"] and high < 0
    if expected == "equal":
        inside = abs(gap["mean"]) <= gap["half_width"] and low <= 0 <= high
        return "contradicted" if above or below else "not contradicted" if inside else "not shown"
    return "shown" if above else "contradicted" if below else "not shown"


def shown(gap: Tree | None) -> str:
    """Points: the difference ± by seed [by identity]."""
    if gap is None:
        return ""
    seeds = "" if gap["half_width"] is None else f" ± {100 * gap['half_width']:.1f}"
    low, high = gap["by identity"]
    return f"{100 * gap['mean']:+.1f}{seeds} [{100 * low:+.1f}, {100 * high:+.1f}]"


# ---------------------------------------------------------------------------------------------------- tables


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _against(found: Findings, names: Iterable[str], other: Callable[[str], str], title: str) -> list[str]:
    """AUC of cases on both sets, best on both together first, and their differences to another."""
    there = [name for name in names if name in found.scores]
    there.sort(key=lambda name: -sum(found.mean(name, one) for one in SETS))
    head = ["", "seeds", *(cell for one in SETS for cell in (f"{one} AUC %", title))]
    rows = []
    for name in there:
        cells = []
        for one in SETS:
            cells += [f"{100 * found.mean(name, one):.1f}", shown(found.gap(name, other(name), one))]
        rows.append([f"`{name}`", str(len(found.scores[name])), *cells])
    return table(head, rows)


def methods(found: Findings) -> list[str]:
    return _against(found, METHODS, lambda _: ALONE, "- alone")


def hypotheses(found: Findings) -> list[str]:
    return _answers(found, str)


def _answers(found: Findings, case_of: Callable[[str], str]) -> list[str]:
    """Answer the hypotheses by the cases that `case_of` names."""
    rows = []
    for number, (one, other, expected) in enumerate(HYPOTHESES, 1):
        for name in SETS:
            gap = found.gap(case_of(one), case_of(other), name)
            sign = ">" if expected == "better" else "="
            rows.append([f"{number}. `{one}` {sign} `{other}`", name, shown(gap), verdict(gap, expected)])
    return table(["", "set", "difference", "answer"], rows)


def identities(found: Findings) -> list[str]:
    """AUC by the number of identities trained on."""
    sizes = ("20", "120", "1000", "all")
    rows = []
    for method in AXIS:
        for name in SETS:
            cases = [method if size == "all" else f"{method}, {size} identities" for size in sizes]
            cells = [f"{100 * found.mean(case, name):.1f} ({len(found.scores[case])})" if case in found.scores else ""
                     for case in cases]  # fmt: skip
            if any(cells):
                rows.append([f"`{method}`", name, *cells])
    return table(["", "set", "20", "120", "1000", "2354"], rows)


def methods_at_64_pixels(found: Findings) -> list[str]:
    return _against(found, map(larger, METHODS), lambda _: larger(ALONE), "- alone")


def hypotheses_at_64_pixels(found: Findings) -> list[str]:
    return _answers(found, larger)


def ablations(found: Findings) -> list[str]:
    names = [name for name in CASES if name not in METHODS + AT_LARGER + AT_LONGER and "identities" not in name]
    names = [name for name in names if "all grey" not in name]
    return _against(found, names, lambda name: CASES[name].method, "- its method as above")


def teacher_sees(found: Findings) -> list[str]:
    clean = dict(SEES)
    return _against(found, clean, lambda name: clean[name], "- teacher sees the same")


def alone_at_scale_16(found: Findings) -> list[str]:
    names = map(larger, (*SCALE_16, *CORE, "alone, scale 16", "alone, scale 8"))
    return _against(found, names, lambda _: larger("alone, scale 16"), "- `alone, scale 16, 64 px`")


def default_at_64_pixels(found: Findings) -> list[str]:
    return _to_beat(found, AT_LARGER, tuple(map(larger, RECIPES)))


def default_longer(found: Findings) -> list[str]:
    return _to_beat(found, AT_LONGER, tuple(name for name in map(longer, RECIPES) if name in AT_LONGER))


def _to_beat(found: Findings, names: Iterable[str], recipes: Iterable[str]) -> list[str]:
    """Cases against the best of the recipes as published."""
    there = [name for name in recipes if name in found.scores]
    if not there:
        return []
    best = max(there, key=lambda name: sum(found.mean(name, one) for one in SETS))
    return _against(found, names, lambda _: best, f"- `{best}`")


TABLES = (
    methods_at_64_pixels, hypotheses_at_64_pixels, alone_at_scale_16, default_at_64_pixels, methods, hypotheses,
    identities, ablations, teacher_sees, default_longer,
)  # fmt: skip


def with_tables(page: str, found: Findings) -> str:
    """Put every table between its marks."""
    for make in TABLES:
        mark = f"<!-- {make.__name__} -->"
        pattern = re.compile(rf"{mark}\n.*?<!-- end -->", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"the page has no {mark}")
        body = "\n".join([mark, *make(found), "<!-- end -->"])
        page = pattern.sub(lambda _, body=body: body, page)  # type: ignore[misc]
    return page
