"""Every format of others is read as the same images packed in .rec: order, batches, positions, losses, errors."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.format_cases import CLASSES, SIZE, WRITERS, Images, drawn, write_records
from helpers.jobs import job
from helpers.ranks import run
from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.orders import make_order
from partialkd.data.order.plan import BatchCut
from partialkd.data.order.readahead import make_plan
from partialkd.data.sources import index_cache
from partialkd.data.sources.open import SOURCES, open_source
from partialkd.data.sources.source import Source
from partialkd.world.world import World

OURS = {"recordio", "folder"}


@pytest.fixture(scope="module")
def images() -> Images:
    return drawn()


@pytest.fixture(scope="module")
def paths(images: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("formats")
    return {"recordio": write_records(root / "recordio", images)} | {
        name: write(root / name, images) for name, write in WRITERS.items()
    }


def data_of(paths: dict[str, Path], name: str, tmp_path: Path, **keys: Any) -> DataConfig:
    return DataConfig(
        path=str(paths[name]), source=name, image_size=SIZE, index_cache=str(tmp_path / "cache"), workers=1, **keys
    )


def batches(data: DataConfig, source: Source, loader: str = "jpeg") -> list[FaceBatch]:
    """Seven batches of a rank of two, from the second step of epoch 1 on: over the end of the epoch."""
    data = data.model_copy(update={"loader": loader})
    plan = make_plan(data, source, make_order(data, source, 8, 3), BatchCut(8, 1, 1, 2), 3)
    opened = open_loader(data, source, plan, torch.device("cpu"))
    opened.load_state({"epoch": 1, "samples": 16})
    found = iter(opened)
    some = [next(found) for _ in range(7)]
    opened.close()
    return some


def test_every_format_is_tried() -> None:
    assert set(WRITERS) == set(SOURCES) - OURS


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_images_in_the_same_order(
    name: str, images: Images, paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read fresh, from the kept index, in a spawned process, and by threads."""
    data = data_of(paths, name, tmp_path)
    first = open_source(data)
    assert (len(first), first.num_classes, first.sizes) == (len(images), CLASSES, (len(images),))
    monkeypatch.setattr(index_cache, "_keep", lambda *_: pytest.fail("looked through again"))
    kept = open_source(data)
    assert kept.fingerprint == first.fingerprint
    for source in (first, kept, pickle.loads(pickle.dumps(kept))):
        assert [source.read(index) for index in range(len(source))] == images
        assert source.labels().tolist() == [label for _, label in images]
        assert source.labels(5, 30).tolist() == [label for _, label in images[5:30]]
        source.readahead(3, 30)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(kept.read, [*range(len(images))] * 4)) == images * 4
    assert str(paths[name]) in kept.name(7) or str(tmp_path) in kept.name(7)
    with pytest.raises(IndexError):
        kept.read(len(images))


@pytest.mark.parametrize("loader", ["jpeg", "dali"])
@pytest.mark.parametrize("name", WRITERS)
def test_batches_are_those_of_records(name: str, loader: str, paths: dict[str, Path], tmp_path: Path) -> None:
    """Bit for bit, going on in the middle of an epoch, over its end."""
    expected = batches(data := data_of(paths, "recordio", tmp_path), open_source(data), loader)
    found = batches(data := data_of(paths, name, tmp_path), open_source(data), loader)
    for mine, theirs in zip(found, expected, strict=True):
        for part in ("images", "labels", "records", "flipped"):
            assert torch.equal(getattr(mine, part), getattr(theirs, part))


def _losses(world: World, settings: dict[str, Any], names: list[str], tmp_path: Path) -> list[Any]:
    """The result of a short job on each format; its losses are in metrics.jsonl."""
    found = []
    for name, path in names:
        run_name = f"on_{name}"
        data = {**settings["data"], "source": name, "path": path}
        job(world, {**settings, "data": data, "run": {**settings["run"], "name": run_name}})
        lines = (tmp_path / run_name / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_losses_are_those_of_records(paths: dict[str, Path], tmp_path: Path) -> None:
    model = {"name": "mobilefacenet_gdc", "embedding_dim": 16, "width": 0.25, "depth": 0.5}
    method = {"name": "arcface", "scale": 16.0}
    settings = {
        "run": {"name": "x", "folder": str(tmp_path), "log_every": 1, "tensorboard": False},
        "data": {"image_size": SIZE, "workers": 1, "index_cache": str(tmp_path / "cache")},
        "student": {"model": model, "method": method, "epochs": 1, "global_batch": 8, "max_steps": 3},
    }
    names = [(name, str(path)) for name, path in paths.items()]
    losses = run(_losses, 1, settings, names, tmp_path)[0]
    assert len(losses[0]) == 3
    assert all(losses[0])
    assert all(found == losses[0] for found in losses)


def _opened_together(world: World, data: DataConfig) -> tuple[str, list[str]]:
    source = world.together(lambda: open_source(data))
    return source.fingerprint, sorted(path.name for path in Path(data.index_cache or "").glob("parquet-*"))


@pytest.mark.slow
@pytest.mark.distributed
def test_parquet_is_written_out_once_by_all_ranks(paths: dict[str, Path], tmp_path: Path) -> None:
    found = run(_opened_together, 2, data_of(paths, "parquet", tmp_path))
    assert found[0] == found[1]
    assert len(found[0][1]) == 1
    assert not list((tmp_path / "cache").glob(".*.partial"))
