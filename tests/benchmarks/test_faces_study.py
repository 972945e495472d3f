"""benchmarks/faces_study.py: nobody is on both sides, runs are made once, the page is that of the files."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import sys
import tarfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from helpers.places import ROOT
from partialkd.data.packing.face_drawing import draw_jpegs
from partialkd.evaluate.intervals import People
from partialkd.evaluate.verification import ScoredPairs
from partialkd.world.world import World


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield {name: importlib.import_module(f"faces_{name}") for name in ("data", "runs", "tables", "study")}
    sys.path.remove(str(ROOT / "benchmarks"))


# --------------------------------------------------------------------------------------------------- split


def names(first: int, count: int) -> list[str]:
    return [f"Person_{number:04d}" for number in range(first, first + count)]


def test_nobody_is_trained_on_and_evaluated(parts: dict[str, ModuleType]) -> None:
    data = parts["data"]
    pubfig = {name: ["1.jpg"] * 30 for name in names(0, 168)}
    lfw = {name: ["1.jpg"] * (1 + number % 3) for number, name in enumerate(names(64, 2000))}
    paired = set(names(64, 1500))
    split = data.split_of(pubfig, lfw, paired)
    train, held_out, evaluated = (set(split[key]) for key in ("train", "pubfig_held_out", "lfw_evaluated"))
    assert len(held_out) == data.HELD_OUT
    assert not train & (held_out | evaluated)
    assert train | held_out | evaluated == set(pubfig) | set(lfw)
    assert split == data.split_of(dict(reversed(pubfig.items())), lfw, paired)
    free = [name for name in paired - set(pubfig) if len(lfw[name]) > 1]
    assert sum(name in train for name in free) == len(free) // 2
    chosen = [set(data.identities_of(split, name)) for name in data.SETS]
    assert [len(one) for one in chosen] == [20, 120, 1000, len(train)]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    assert chosen[1] == set(split["pubfig_train"])


def test_pairs_of_held_out_people_are_distinct_and_of_both_kinds(parts: dict[str, ModuleType]) -> None:
    images = {name: [f"{number}.jpg" for number in range(25)] for name in names(0, 48)}
    pairs = parts["data"].pubfig_pairs(images)
    assert len({pair[:2] for pair in pairs}) == len(pairs) == 2 * parts["data"].PAIRS
    person = lambda image: image.partition("/")[0]
    assert all((person(first) == person(second)) == same for first, second, same in pairs)
    assert len({image for pair in pairs for image in pair[:2]}) <= 48 * parts["data"].EVALUATED
    assert [same for *_, same in pairs[:4]] == [True, False] * 2


# ---------------------------------------------------------------------------------------------------- runs


def test_every_case_is_a_configuration_that_parses(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    runs = parts["runs"]
    digests = {runs.settings_of(case) for case in runs.CASES.values()}
    assert len(digests) == len(runs.CASES)
    for case in runs.CASES.values():
        config = runs.config_of(case, 1, tmp_path, 5932)
        assert config.run.seed == 1
        assert (config.teacher.source == "none") == (case.method == runs.ALONE)
    planned = [(case.name, seed) for case, seed in runs.planned()]
    assert len(planned) == len(set(planned))
    assert {name for name, _ in planned} == set(runs.CASES)
    assert all((name, seed) in planned for name in runs.METHODS for seed in range(runs.SEEDS))
    assert [seed for _, seed in planned[: 2 * len(runs.CORE)]] == [0] * len(runs.CORE) + [1] * len(runs.CORE)


@pytest.mark.slow
def test_a_run_is_made_once(parts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From archives of drawn faces to the page, with embeddings drawn at random in the place of the teacher's."""
    data, runs, tables, study = (parts[name] for name in ("data", "runs", "tables", "study"))
    monkeypatch.setattr(data, "HELD_OUT", 4)
    monkeypatch.setattr(data, "PAIRS", 20)
    monkeypatch.setattr(runs, "BATCH", 16)
    faces, work = tmp_path / "faces", tmp_path / "work"
    write_faces(faces)
    study_data = data.StudyData(faces, work)
    split = study_data.prepare()
    listing = study_data.listing()
    random = np.random.default_rng(0)
    records = list(data.labelled(split, listing, "all"))
    np.savez(
        work / "train_all" / "teacher.npz",
        embeddings=random.normal(size=(len(records), data.DIM)).astype(np.float32),
        labels=np.array([label for _, label in records]),
    )
    short = {name: replace(case, steps=2, changes={**case.changes, "student.schedule.warmup_steps": 1})
             for name, case in runs.CASES.items()}  # fmt: skip
    monkeypatch.setattr(study, "planned", lambda: [(short[name], seed) for name in runs.CORE for seed in (0, 1)])
    args = Namespace(work=work, results=tmp_path / "results", case=None, next=2)
    with World.start() as world:
        for name in ("alone", "adadistill"):
            study.run(args, short[name], 0, world)
    made = {path.name for path in args.results.iterdir()}
    assert made == {"alone-0.json", "adadistill-0.json"}
    row = json.loads((args.results / "adadistill-0.json").read_text())
    assert row["steps"] == 2
    assert row["scores"].keys() == {"lfw", "pubfig"}
    left = {study.file_name(*one) for one in study.missing(args)}
    assert len(left) == 2 * len(runs.CORE) - 2
    assert not left & {"alone-0", "adadistill-0"}
    tables.compare(args.results, work)
    found = tables.Findings.read(args.results)
    gap = found.gap("adadistill", "alone", "lfw")
    assert gap["mean"] == pytest.approx(row["scores"]["lfw"]["auc"] - found.scores["alone"][0]["lfw"]["auc"], abs=1e-12)
    assert any("`adadistill`" in line for line in tables.methods(found))


def write_faces(folder: Path) -> None:
    """Archives of drawn faces by the names of the photographs, and a list of pairs."""
    people = {"pubfig": names(0, 8), "lfw": names(4, 40)}
    each = {"pubfig": 6, "lfw": 3}
    folder.mkdir()
    for tree, who in people.items():
        keys = [(int(name[-4:]), number) for name in who for number in range(each[tree])]
        with tarfile.open(folder / f"{tree}112.tar.gz", "w:gz") as archive:
            for (person, number), image in zip(keys, draw_jpegs(3, 48, keys), strict=True):
                entry = tarfile.TarInfo(f"Person_{person:04d}/{number}.jpg")
                entry.size = len(image)
                archive.addfile(entry, io.BytesIO(image))
    with (folder / "lfw_pairs.csv").open("w") as file:
        file.write("a,b,same\n")
        for one, other in zip(people["lfw"], people["lfw"][1:], strict=False):
            file.write(f"{one}/0.jpg,{one}/1.jpg,1\n{one}/1.jpg,{other}/2.jpg,0\n")


# --------------------------------------------------------------------------------------------------- tables


def test_earlier_comparisons_of_more_seeds_stay(parts: dict[str, ModuleType]) -> None:
    merged = parts["tables"].merged
    row = lambda seeds, value: {"one": "kd", "other": "alone", "set": "lfw", "seeds": seeds, "difference": value}
    assert merged([row([0, 1], 1.0)], [row([0], 2.0)]) == [row([0, 1], 1.0)]
    assert merged([row([0, 1], 1.0)], [row([1, 2], 2.0)]) == [row([1, 2], 2.0)]


def made_up(tables: ModuleType, better: float) -> Any:
    """Scores of two cases over three seeds, one of them better by so much."""
    random = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    first = random.integers(0, 60, 400)
    people = People(first, np.where(same, first, (first + 1 + random.integers(0, 58, 400)) % 60))
    pairs = {name: ScoredPairs(np.zeros(400), same, people) for name in tables.SETS}
    rows, kept = [], {}
    for case, shift in (("alone", 0.5), ("arcdistill", 0.5 + better)):
        for seed in range(3):
            cosines = random.normal(size=400) + shift * 2 * same
            kept[case, seed] = dict.fromkeys(tables.SETS, cosines)
            area = (cosines[same][:, None] > cosines[~same]).mean()
            rows.append({"case": case, "seed": seed, "scores": {name: {"auc": area} for name in tables.SETS}})
    return tables.Findings(rows, tables.comparisons(kept, pairs))


@pytest.mark.parametrize(("better", "answer"), [(1.0, "shown"), (-0.5, "contradicted"), (0.0, "not shown")])
def test_hypotheses_are_answered_by_both_intervals(parts: dict[str, ModuleType], better: float, answer: str) -> None:
    tables = parts["tables"]
    found = made_up(tables, better)
    assert tables.verdict(found.gap("arcdistill", "alone", "lfw"), "better") == answer
    lines = [line for line in tables.hypotheses(found) if "arcdistill` > `alone" in line]
    assert len(lines) == 2
    assert all(line.endswith(f"| {answer} |") for line in lines)
    assert "not answered" in tables.hypotheses(found)[2]


def test_the_page_is_that_of_the_files(parts: dict[str, ModuleType]) -> None:
    page, tables, study = (ROOT / "docs" / "study.md").read_text(encoding="utf-8"), parts["tables"], parts["study"]
    found = tables.Findings.read(study.RESULTS)
    assert tables.with_tables(page, found) == page
    for row in found.rows:
        case = parts["runs"].CASES[row["case"]]
        assert row["steps"] == case.steps
        assert row["settings"] == parts["runs"].settings_of(case)
        assert row.keys() >= {"commit", "device", "torch", "python", "processor_seconds"}


def test_the_script_says_how_it_is_used(parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["faces_study.py", "prepare"])
    with pytest.raises(SystemExit) as ended:
        parts["study"].main()
    assert ended.value.code == 2
