"""Start from weights: network and centres of another run, identities added and removed, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from helpers.jobs import job
from helpers.ranks import run
from helpers.started_jobs import DIM, alone, named, start, started
from partialkd.centres import CentreStore
from partialkd.checkpoint.network import checkpoint_network
from partialkd.models.saved import open_model, read_metadata
from partialkd.run.first_centres import make_store
from partialkd.training.trainer import Trainer
from partialkd.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


NEW = {"anew", "person03b", "zed"}


def whole_store(world: World, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Centres of all ranks and the network before the first step, and the names of the classes."""
    from partialkd.config.load import parse_config
    from partialkd.run.begin import prepare_job
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


@pytest.mark.slow
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


@pytest.mark.slow
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
