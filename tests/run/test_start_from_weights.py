"""Start from weights: network and centres of another run, identities added and removed, resume, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.jobs import job
from helpers.ranks import run
from helpers.started_jobs import DIM, MODEL, SIZE, made, named, start
from partialkd.centres import CentreStore
from partialkd.checkpoint.network import checkpoint_network
from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError, ConfigError, DataError, PartialKDError
from partialkd.models import build_model
from partialkd.models.saved import open_model, read_metadata
from partialkd.run.first_centres import make_store
from partialkd.training.trainer import Trainer
from partialkd.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
ARCFACE = {"name": "arcface", "scale": 16.0}


def alone(folder: Path, name: str, data: str = "data", **student: Any) -> dict[str, Any]:
    """Settings of a student without teacher over a folder of identities."""
    settings = named(folder, name)
    settings["data"]["path"] = str(folder / data)
    settings["teacher"] = {}
    settings["run"]["checkpoint_every"] = 1
    settings["student"] |= {"method": ARCFACE, **student}
    return settings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over 12 identities, and data in which one is gone and three are new, at other class ids."""
    folder = tmp_path_factory.mktemp("start")
    made(folder)
    shutil.copytree(folder / "data", folder / "more")
    shutil.rmtree(folder / "more" / "person04")
    for name, source in (("anew", "person00"), ("person03b", "person05"), ("zed", "person07")):
        shutil.copytree(folder / "more" / source, folder / "more" / name)
    run(job, 2, alone(folder, "done"))
    return folder


NEW = {"anew", "person03b", "zed"}


def started(place: Path, name: str, **student: Any) -> dict[str, Any]:
    centres = {"weights": str(place / "runs" / "done"), "label_map": "names", **student.pop("centres", {})}
    return alone(place, name, "more", **{"weights": str(place / "runs" / "done"), **student, "centres": centres})


def whole_store(world: World, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Centres of all ranks and the network before the first step, and the names of the classes."""
    from partialkd.config.load import parse_config
    from partialkd.run.job import prepare_job
    from partialkd.world.stop_signals import StopSignals

    with StopSignals() as stop:
        job = prepare_job(parse_config(settings), world, "never", stop)
    phase, begin = job.context.config.student, job.checked.starts["student"]
    store = make_store(job.context, phase, None, start=begin)
    trainer = Trainer("student", phase, job.context, store, None, start=begin)
    network = trainer.student.network().state_dict() | dict(trainer.student.engine.module.named_buffers())
    trainer.close()
    parts = world.gather_objects({key: x.clone() for key, x in store.tensors().items()})
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return whole, network, [name for _, _, name in job.context.source.origins()]


def old_rows(place: Path) -> dict[str, dict[str, Tensor]]:
    """What the finished run has saved of each identity."""
    files = sorted((place / "runs" / "done" / "student" / "centres" / "centres").glob("*.safetensors"))
    pieces = [load_file(file) for file in files]
    names = [f"person{k:02d}" for k in range(12)]
    return {name: {key: torch.cat([p[key] for p in pieces])[k] for key in pieces[0]} for k, name in enumerate(names)}


def class_mean(place: Path, name: str) -> Tensor:
    network, _, _ = open_model(place / "runs" / "done" / "student" / "model.safetensors")
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted((place / "more" / name).iterdir())])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    with torch.no_grad():
        return torch.nn.functional.normalize(network(images)).mean(0)


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_that_stay_are_bit_equal_and_new_ones_class_means(size: int, place: Path) -> None:
    """From two ranks to one, two and three; 14 identities, of which 11 were there."""
    ranks = run(whole_store, size, started(place, f"first{size}"))
    whole, _, names = ranks[0]
    old, lengths = old_rows(place), []
    for label, name in enumerate(names):
        if name in NEW:
            mean = class_mean(place, name)
            torch.testing.assert_close(whole["unit"][label], mean / mean.norm(), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(whole["unit"][label], old[name]["unit"])
            assert torch.equal(whole["length"][label], old[name]["length"])
            lengths.append(whole["length"][label])
    for label, name in enumerate(names):
        if name in NEW:
            torch.testing.assert_close(whole["length"][label], torch.stack(lengths).mean())
    saved = load_file(place / "runs" / "done" / "student" / "model.safetensors")
    for _, found, _ in ranks:
        assert all(torch.equal(found[key], saved[key]) for key in saved)  # so embeddings are equal, too


@pytest.mark.distributed
def test_new_rows_may_be_random_and_a_checkpoint_and_other_precisions_serve(place: Path) -> None:
    last = max((place / "runs" / "done" / "student" / "checkpoints").iterdir())
    centres = {"new_identities": "random", "weights": str(last), "store": "bf16"}
    ((whole, network, names),) = run(whole_store, 1, started(place, "random", centres=centres, weights=str(last)))
    old = old_rows(place)
    for label, name in enumerate(names):
        if name in NEW:
            assert float(whole["length"][label]) == pytest.approx(0.01 * DIM**0.5, rel=0.7)
        else:
            torch.testing.assert_close(whole["unit"][label].float(), old[name]["unit"], rtol=0.01, atol=1e-3)
    expected = checkpoint_network(last)[0].state_dict()
    assert all(torch.equal(network[key], expected[key]) for key in expected)


def in_this_process(settings: dict[str, Any]) -> CentreStore:
    begun = start(settings)
    return make_store(begun.context, begun.context.config.student, None, start=begun.checked.starts["student"])


def test_a_matrix_and_a_written_map_serve_too(place: Path) -> None:
    """Rows of a classifier, two of them unused, in an order of their own."""
    rows = np.load(place / "rows.npy")
    lines = [f"{row}\t{'-1' if row in (3, 7) else f'person{11 - row:02d}'}" for row in range(12)]
    (place / "map.txt").write_text("\n".join(lines).replace("person04", "-1"))
    centres = {"weights": str(place / "rows.npy"), "label_map": str(place / "map.txt")}
    store = in_this_process(started(place, "matrix", centres=centres))
    names = sorted(path.name for path in (place / "more").iterdir())
    for row in (0, 1, 2, 4, 5, 6, 8, 9, 10, 11):
        label = f"person{11 - row:02d}"
        if label != "person04":
            torch.testing.assert_close(store.read(slice(None))[names.index(label)], torch.from_numpy(rows[row]))


def test_moving_averages_start_from_rows_too(place: Path) -> None:
    settings = alone(place, "averages", weights=str(place / "t.safetensors"))
    settings["teacher"] = named(place, "x")["teacher"]
    settings["student"] |= {"method": {"name": "adadistill", "scale": 16.0, "initial_centres": "random"}}
    settings["student"]["centres"] = {"weights": str(place / "rows.npy"), "label_map": "identity"}
    store = in_this_process(settings)
    torch.testing.assert_close(store.read(slice(None)), torch.from_numpy(np.load(place / "rows.npy")))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_goes_on_without_the_files_it_started_from(place: Path) -> None:
    """Moved or gone they are not needed; changed, or another start, they are refused."""
    shutil.copytree(place / "runs" / "done", place / "given")
    paths = {"weights": str(place / "given"), "centres": {"weights": str(place / "given"), "label_map": "names"}}
    settings = alone(place, "goes_on", "more", ema_decay=0.5, freeze_steps=1, max_steps=1, **paths)
    run(job, 2, settings)
    longer = alone(place, "goes_on", "more", ema_decay=0.5, freeze_steps=1, max_steps=2, **paths)
    (place / "given").rename(place / "moved")
    moved = str(place / "moved")
    for settings in (longer, {**longer, "student": {**longer["student"], "weights": moved, "max_steps": 3}}):
        result = run(job, 1, settings, "auto", False, True)[0]
    assert result["identities"] == 14
    model = place / "runs" / "goes_on" / "student" / "model.safetensors"
    said = json.loads(read_metadata(model)["made_from"])
    assert len(said["weights"]) == len(said["centres.weights"]) == 64
    newest = max((model.parent / "checkpoints").iterdir())
    log = (place / "runs" / "goes_on" / "logs" / "rank_0.log").read_text()
    assert "student: the moving average of its weights (ema_decay) is what is scored, kept and exported" in log
    average, raw = checkpoint_network(newest)[0].state_dict(), load_file(newest / "student.safetensors")
    exported = load_file(model)
    assert all(torch.equal(average[key], exported[key]) for key in exported)
    assert any(not torch.equal(raw[f"param.{key}"], exported[key]) for key in exported if f"param.{key}" in raw)
    other = {**longer, "student": {**longer["student"], "weights": str(place / "t.safetensors"), "max_steps": 3}}
    with pytest.raises(Exception, match=r"was made by another job, with weights = '"):
        run(job, 1, other, "auto")
    without = {**longer, "student": {**longer["student"], "weights": None, "freeze_steps": 0, "max_steps": 3}}
    with pytest.raises(Exception, match=r"freeze_steps|weights"):
        run(job, 1, without, "auto")


# ---------------------------------------------------------------------------------------------------- bad input


def network_file(place: Path, file: str, **changes: Any) -> Path:
    model = build_model(ModelConfig.model_validate({**MODEL, **changes}), SIZE)
    save_file(model.state_dict(), place / file)
    return place / file


def without_a_key(place: Path) -> Path:
    state = load_file(network_file(place, "whole.safetensors"))
    del state[next(key for key in state if key.endswith("linear.weight"))]
    save_file(state, place / "part.safetensors")
    return place / "part.safetensors"


def with_nan(place: Path) -> Path:
    state = load_file(network_file(place, "whole.safetensors"))
    key = next(key for key in state if key.endswith("linear.weight"))
    state[key] = torch.full_like(state[key], float("nan"))
    save_file(state, place / "nan.safetensors")
    return place / "nan.safetensors"


def pickled(place: Path) -> Path:
    torch.save({"state_dict": Path("x")}, place / "objects.pt")
    return place / "objects.pt"


def array(place: Path, rows: np.ndarray) -> Path:
    np.save(place / "bad.npy", rows)
    return place / "bad.npy"


def mapped(place: Path, *lines: str) -> Path:
    listed = [f"{row}\tperson{row:02d}" if row != 4 else "4\t-1" for row in range(12)]
    (place / "bad_map.txt").write_text("\n".join([*listed[: len(listed) - len(lines)], *lines]))
    return place / "bad_map.txt"


NETWORKS = {
    "a key that is missing": (without_a_key, r"part\.safetensors: does not fit the network: 1 keys missing: \S+"),
    "another network": (
        lambda place: network_file(place, "r18.safetensors", name="iresnet18", width=1.0, depth=1.0, embedding_dim=512),
        r"r18\.safetensors: does not fit the network: .*; it looks like iresnet18$",
    ),
    "another head": (
        lambda place: network_file(place, "head.safetensors", embedding_dim=2 * DIM),
        r"head\.safetensors: does not fit the network: \d keys of another shape: \S+ \(32, ",
    ),
    "NaN": (with_nan, r"nan\.safetensors: NaN or infinity in \S*linear\.weight$"),
    "objects": (pickled, r"objects\.pt: cannot be read as weights: it holds objects that are not tensors"),
    "nothing": (lambda place: place / "nowhere.pt", r"nowhere\.pt: no such file$"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_that_do_not_fit_are_one_line(kind: str, place: Path) -> None:
    make, said = NETWORKS[kind]
    with pytest.raises(CheckpointError, match=rf"^student\.weights: \S*{said}") as caught:
        start(alone(place, "refused", weights=str(make(place))))
    assert "\n" not in str(caught.value)
    assert not (place / "runs" / "refused").exists()


ROWS = {
    "another dimension": (np.ones((12, DIM + 1)), "identity", r"bad\.npy: rows must have 16 numbers .*, got 17$"),
    "NaN": (np.full((12, DIM), np.nan), "identity", r"bad\.npy: holds rows that are not finite: row 0, .* 7 more$"),
    "zeros": (np.zeros((12, DIM)), "identity", r"bad\.npy: holds rows that are zero: row 0, "),
    "more rows than classes": (np.ones((15, DIM)), "identity", r'"identity": row k .* 15 rows and 14 classes'),
    "no names": (np.ones((12, DIM)), "names", r'"names": no class_ids\.txt of a run says whose rows these are'),
    "an unknown row": (np.ones((12, DIM)), ("12\t-1",), r"line 12: there is no row '12': they are 0 to 11$"),
    "a row twice": (np.ones((12, DIM)), ("3\t-1",), r"line 12: row 3 is listed twice$"),
    "a class twice": (np.ones((12, DIM)), ("11\tperson02",), r"line 12: class 3 has two rows, 2 and 11$"),
    "an unknown name": (np.ones((12, DIM)), ("11\tnobody",), r"line 12: must give a class id below 14, .*'nobody'$"),
    "a row left out": (np.ones((13, DIM)), (), r"has no line for row 12 \(1 such rows; -1: not used\)$"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_centres_that_do_not_fit_are_one_line(kind: str, place: Path) -> None:
    rows, label_map, said = ROWS[kind]
    label_map = label_map if isinstance(label_map, str) else str(mapped(place, *label_map))
    centres = {"weights": str(array(place, rows.astype(np.float32))), "label_map": label_map}
    with pytest.raises(
        (CheckpointError, DataError), match=rf"^student\.centres\.(weights|label_map): .*{said}"
    ) as found:
        start(started(place, "refused", centres=centres))
    assert "\n" not in str(found.value)
    assert not (place / "runs" / "refused").exists()


def test_a_run_does_not_start_from_its_own_folder(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"^student\.weights: must not lie in the run's own folder"):
        start(started(place, "done"))
    assert (place / "runs" / "done" / "student").is_dir()


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"centres": {"label_map": None}}, "student.centres.label_map: is required with weights"),
        ({"weights": None}, 'student.centres.new_identities: must be "random" without weights'),
        (
            {"weights": None, "centres": {"new_identities": "random"}, "freeze_steps": 2},
            "student.freeze_steps: must be 0",
        ),
        ({"method": {"name": "arcdistill"}}, "student.centres.weights: must be left out with arcdistill"),
        ({"ema_decay": 1.0}, "student.ema_decay: must be less than 1"),
        ({"optimizer": {"lr_factors": {"neck": 1.0}}}, "student.optimizer.lr_factors.neck"),
    ],
)
def test_keys_that_do_not_go_together_are_named(student: dict[str, Any], said: str, place: Path) -> None:
    settings = started(place, "refused")
    centres = settings["student"]["centres"] | student.pop("centres", {})
    settings["student"] |= {**student, "centres": centres}
    settings["teacher"] = named(place, "x")["teacher"]
    with pytest.raises(PartialKDError) as caught:
        start(settings)
    assert said in str(caught.value)


@pytest.mark.distributed
def test_a_factor_on_the_rate_of_centres_is_of_centres_alone(place: Path) -> None:
    """After one step of plain SGD, decay included, a row has moved by as much more; at 0 none has moved at all."""
    rows, networks = {}, {}
    for factor in (0.0, 0.5, 1.0):
        optimizer = {"momentum": 0.0, "lr": 0.1, "lr_factors": {"centres": factor}}
        name = f"factor{factor}"
        run(job, 1, alone(place, name, optimizer=optimizer, max_steps=1))
        folder = place / "runs" / name / "student"
        (saved,) = (load_file(file) for file in (folder / "centres" / "centres").glob("*.safetensors"))
        rows[factor] = saved["unit"].double() * saved["length"].double()[:, None]
        networks[factor] = load_file(folder / "model.safetensors")
    random = CentreStore.random(range(12), 12, DIM, torch.float32, torch.device("cpu"), 0)
    assert torch.equal(rows[0.0], random.unit.double() * random.length.double()[:, None])
    moved = {factor: rows[factor] - rows[0.0] for factor in (0.5, 1.0)}
    assert moved[1.0].abs().max() > 1e-4
    torch.testing.assert_close(2 * moved[0.5], moved[1.0], rtol=1e-3, atol=1e-7)
    for factor in (0.5, 1.0):
        assert all(torch.equal(x, networks[0.0][key]) for key, x in networks[factor].items())
