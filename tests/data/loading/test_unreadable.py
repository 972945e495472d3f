"""data.on_corrupt: unreadable records are replaced alike by both loaders, counted, named, and too many end the run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.ranks import run
from partialkd.centres.store import CentreStore
from partialkd.config import DataConfig
from partialkd.counter_random import hash64
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.images.tensors import to_tensor
from partialkd.data.loading.loader import open_loader
from partialkd.data.loading.ordered import Loader
from partialkd.data.order.plan import BatchCut, Plan, SequentialPlan, TrainingPlan
from partialkd.data.sources.open import open_source
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import DataError
from partialkd.teacher.centres import class_means
from partialkd.world.messages import begin
from partialkd.world.shard import shard_of
from partialkd.world.world import World

SIZE, RECORDS, CLASSES, SEED = 32, 40, 8, 2
LOADERS = ["jpeg", "dali"]
CPU = torch.device("cpu")
BAD = (5, 17, 31, 32)  # records


@pytest.fixture(autouse=True)
def _messages() -> None:
    begin()


def _picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def _file(number: int, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_picture(number)).save(file, form, **options)
    return file.getvalue()


def _middle_of(jpeg: bytes) -> bytes:
    """Damaged in its middle only: libjpeg goes on, with a warning."""
    half = len(jpeg) // 2
    return jpeg[:half] + bytes(30) + jpeg[half + 30 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda jpeg: jpeg[: len(jpeg) // 2],
    "middle": _middle_of,
    "no image": lambda _: b"not an image at all",
    "another size": lambda _: encode_jpeg(np.zeros((40, 40, 3), np.uint8)),
    "animation": lambda _: _file(0, "WEBP", save_all=True, append_images=[Image.fromarray(_picture(1))]),
}


def _pack(folder: Path, bad: tuple[int, ...] = BAD, damage: str = "truncated") -> Path:
    images = (encode_jpeg(_picture(n), 90) for n in range(RECORDS))
    changed = (DAMAGE[damage](image) if n in bad else image for n, image in enumerate(images))
    pack_records(folder, ((image, n * CLASSES // RECORDS) for n, image in enumerate(changed)), CLASSES, SIZE)
    return folder


def _open(loader: str, folder: Path, plan: Plan | None = None, most: int = 100) -> Loader:
    data = DataConfig(path=str(folder), loader=loader, image_size=SIZE, on_corrupt="skip", max_corrupt=most)  # type: ignore[arg-type]
    return open_loader(data, open_source(data), plan or _plan(), CPU)


def _plan(rank: int = 0, world_size: int = 1, accumulation: int = 1) -> TrainingPlan:
    return TrainingPlan(RECORDS, BatchCut(8, accumulation, rank, world_size), SEED, flip=True, grey=0.3)


def _replacement(epoch: int, record: int, bad: tuple[int, ...] = BAD) -> int:
    """As the docstring of unreadable.py has it."""
    draws = (int(hash64(SEED, 3, epoch, record, attempt)[0] % np.uint64(RECORDS)) for attempt in range(100))
    return record if record not in bad else next(draw for draw in draws if draw not in bad)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_others_take_their_place(loader: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, plan = _pack(tmp_path / "set", damage=damage), _plan()
    opened = _open(loader, folder)
    for epoch in (0, 1):
        batches = list(opened.epoch(epoch))
        assert [len(batch) for batch in batches] == [8] * plan.micro_steps
        for step, batch in enumerate(batches):
            wanted = [_replacement(epoch, record) for record in plan.indices(epoch, step).tolist()]
            records = np.array(wanted)
            assert batch.records.tolist() == wanted
            assert batch.labels.tolist() == [record * CLASSES // RECORDS for record in wanted]
            assert batch.flipped.tolist() == plan.flips(epoch, records).tolist()
            images = [decode(encode_jpeg(_picture(record), 90), "image") for record in wanted]
            expected = to_tensor(images, SIZE, plan.flips(epoch, records), plan.greys(epoch, records))
            torch.testing.assert_close(batch.images, expected, atol=2e-6, rtol=0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(BAD)  # each once, not once an epoch
    assert all(f"key {record + 1} at byte" in "\n".join(said) for record in BAD)
    assert all("train.rec" in line and "replaced by others" in line for line in said)
    opened.close()
    said = capsys.readouterr().err
    assert said.endswith(" warning: rank 0: 4 records could not be read and were replaced by others\n")


@pytest.mark.parametrize("loader", LOADERS)
def test_position_ranks_and_accumulation_change_nothing(loader: str, tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set")
    whole = list(_open(loader, folder).epoch(1))
    (resumed, *_) = _open(loader, folder).epoch(1, 3)
    assert torch.equal(resumed.records, whole[3].records)
    assert torch.equal(resumed.images, whole[3].images)
    parts = [list(_open(loader, folder, _plan(rank, 2, 2)).epoch(1)) for rank in (0, 1)]
    records = [part[step].records for step in range(len(parts[0])) for part in parts]
    assert torch.equal(torch.cat(records), torch.cat([batch.records for batch in whole]))


@pytest.mark.parametrize("loader", LOADERS)
def test_more_than_the_limit_end_the_run(loader: str, tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set")
    assert len(list(_open(loader, folder, most=4).epoch(0))) == RECORDS // 8
    rule = r"\(4 records cannot be read by rank 0, data\.max_corrupt allows 3\)"
    with pytest.raises(DataError, match=rf"train\.rec: key \d+ at byte \d+: broken JPEG.*{rule}"):
        list(_open(loader, folder, most=3).epoch(0))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_set_without_a_readable_record_ends(loader: str, tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set", bad=tuple(range(RECORDS)))
    with pytest.raises(DataError, match="100 records drawn in its place cannot be read either"):
        list(_open(loader, folder).epoch(0))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pass_in_order_leaves_them_out(loader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = (*range(8, 12), 20, *range(36, 40))  # the whole third batch and the last
    folder = _pack(tmp_path / "set", bad)
    batches = list(_open(loader, folder, SequentialPlan(RECORDS, 4, 0, 1)).epoch(0))
    wanted = [[r for r in range(start, start + 4) if r not in bad] for start in range(0, RECORDS, 4)]
    assert [batch.records.tolist() for batch in batches] == wanted
    assert [tuple(batch.images.shape) for batch in batches] == [(len(part), 3, SIZE, SIZE) for part in wanted]
    assert capsys.readouterr().err.count("left out (") == len(bad)


def test_a_batch_in_order_may_lose_all_its_records(tmp_path: Path) -> None:
    folder = _pack(tmp_path / "set", tuple(range(RECORDS)))
    for loader in LOADERS:
        batches = list(_open(loader, folder, SequentialPlan(RECORDS, 4, 0, 1)).epoch(0))
        assert [len(batch) for batch in batches] == [0] * 10


def _means(world: World, folder: Path) -> torch.Tensor:
    store = CentreStore.empty(shard_of(CLASSES, world.rank, world.size), CLASSES, RECORDS, torch.float32, CPU)
    batches = _open("jpeg", folder, SequentialPlan(RECORDS, 7, world.rank, world.size)).epoch(0)
    embed = lambda batch: torch.nn.functional.one_hot(batch.records, RECORDS).float()
    class_means(store, batches, embed, 7, world, str)
    return torch.where(store.seen[:, None], store.unit * store.length[:, None], torch.nan)


@pytest.mark.slow
@pytest.mark.distributed
def test_class_means_are_of_the_records_that_can_be_read(tmp_path: Path) -> None:
    bad = (0, 1, 2, 3, 4, 11)  # class 0 has none left
    means = torch.cat(run(_means, 2, _pack(tmp_path / "set", bad)))
    assert means[0].isnan().all()
    for label in range(1, CLASSES):
        kept = [record for record in range(label * 5, label * 5 + 5) if record not in bad]
        assert means[label].nonzero().flatten().tolist() == kept
        torch.testing.assert_close(means[label, kept], torch.full((len(kept),), 1 / len(kept)))


class _Unplugged(SyntheticSource):
    """A disk with bad places."""

    def read(self, index: int) -> tuple[bytes, int]:
        if index in BAD:
            raise OSError(5, "Input/output error")
        return super().read(index)


@pytest.mark.parametrize("loader", LOADERS)
def test_what_the_disk_does_not_give_is_replaced_too(loader: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(path="", loader=loader, image_size=SIZE, on_corrupt="skip")  # type: ignore[arg-type]
    batches = list(open_loader(data, _Unplugged(CLASSES, RECORDS, SIZE), _plan(), CPU).epoch(0))
    assert not set(torch.cat([batch.records for batch in batches]).tolist()) & set(BAD)
    assert capsys.readouterr().err.count("cannot be read: [Errno 5] Input/output error; replaced by others") == len(BAD)


def test_a_damaged_middle_is_known_to_be_taken_by_libjpeg() -> None:
    """What the loaders differ in with "stop": our decoder is strict where libjpeg, and DALI, only warn."""
    jpeg = _middle_of(encode_jpeg(_picture(0), 90))
    with pytest.raises(DataError, match="broken JPEG: Corrupt JPEG data"):
        decode(jpeg, "image")
    with Image.open(io.BytesIO(jpeg)) as image:
        assert np.array(image).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("damage", ["animation", "transparent", "deep"])
@pytest.mark.parametrize("loader", LOADERS)
def test_with_stop_both_loaders_refuse_the_same_files(loader: str, damage: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    clear = np.dstack([_picture(0), np.full((SIZE, SIZE), 100, np.uint8)])
    Image.fromarray(clear if damage == "transparent" else _picture(0).astype(np.uint16)[..., 0]).save(file, "PNG")
    image = DAMAGE["animation"](b"") if damage == "animation" else file.getvalue()
    pack_records(tmp_path / "set", [(image, 0), (image, 1)], 2, SIZE)
    data = DataConfig(path=str(tmp_path / "set"), loader=loader, image_size=SIZE)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"key 1 at byte 0: (the image has transparent|must be one image of 8 bits)"):
        list(open_loader(data, open_source(data), SequentialPlan(1, 1, 0, 1), CPU).epoch(0))
