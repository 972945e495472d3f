"""Both loaders: the plan's records in order, equal to each other, exact from any step, errors that name the record."""

from __future__ import annotations

import gc
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.images.decode import decode, encode_jpeg, to_tensor
from partialkd.data.loading.loader import open_loader
from partialkd.data.loading.ordered import Loader
from partialkd.data.order.plan import BatchCut, Plan, SequentialPlan, TrainingPlan
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import Source
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import ConfigError, DataError

SIZE, RECORDS, CLASSES = 32, 45, 9
LOADERS = ["jpeg", "dali"]
CPU = torch.device("cpu")


def _picture(number: int, size: int = SIZE) -> np.ndarray:
    """Smooth in both directions, unlike its mirror image, in colour."""
    y, x = np.mgrid[0:size, 0:size] / size
    planes = [255 * x, 120 + 100 * np.sin(5 * y + number), 200 * y * x + number]
    return np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _pack(folder: Path, change: Callable[[int, bytes], bytes] = lambda _, image: image) -> Path:
    images = ((change(n, encode_jpeg(_picture(n), 90)), n * CLASSES // RECORDS) for n in range(RECORDS))
    pack_records(folder, images, CLASSES, SIZE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InsightFace folder with header and identity records; some PNG among the JPEG."""
    return _pack(
        tmp_path_factory.mktemp("loaders") / "set", lambda n, image: _png(_picture(n)) if n % 7 == 3 else image
    )


def _open(
    loader: str, path: Path, plan: Plan | None = None, source: Source | None = None, **settings: object
) -> Loader:
    data = DataConfig(path=str(path), loader=loader, image_size=SIZE, **settings)  # type: ignore[arg-type]
    source = source or open_source(data)
    plan = plan or TrainingPlan(len(source), BatchCut(8), seed=2, flip=True, grey=0.3)
    return open_loader(data, source, plan, CPU)


def _assert_equal(ours: FaceBatch, theirs: FaceBatch, tolerance: float = 0.0) -> None:
    assert all(torch.equal(getattr(ours, key), getattr(theirs, key)) for key in ("labels", "records", "flipped"))
    torch.testing.assert_close(ours.images, theirs.images, atol=tolerance, rtol=0)


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_are_what_the_plan_says(loader: str, folder: Path) -> None:
    source = RecordIOSource(folder)
    plan = TrainingPlan(len(source), BatchCut(8), seed=2, flip=True, grey=0.3)
    batches = list(_open(loader, folder, plan).epoch(1))
    assert len(batches) == plan.micro_steps == 5
    kinds = set()
    for step, batch in enumerate(batches):
        assert (batch.images.dtype, batch.images.shape) == (torch.float32, (8, 3, SIZE, SIZE))
        assert (batch.labels.dtype, batch.records.dtype, batch.flipped.dtype) == (torch.int64, torch.int64, torch.bool)
        indices = plan.indices(1, step)
        np.testing.assert_array_equal(batch.records.numpy(), indices)
        greys = plan.greys(1, indices)
        for row, index in enumerate(indices.tolist()):
            encoded, label = source.read(index)
            assert batch.labels[row] == label == index * CLASSES // RECORDS
            pixels = decode(encoded, "image").astype(np.float64)
            if batch.flipped[row]:
                pixels = pixels[:, ::-1]
            if greys[row]:
                pixels = np.repeat(pixels @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)
            expected = torch.from_numpy(((pixels - 127.5) / 127.5).transpose(2, 0, 1))
            torch.testing.assert_close(batch.images[row].double(), expected, atol=1e-6, rtol=0)
            kinds.add((bool(batch.flipped[row]), bool(greys[row])))
    assert len(kinds) == 4  # with and without either


@pytest.mark.parametrize("resize", [False, True])
def test_dali_equals_jpeg(resize: bool, folder: Path) -> None:
    jpeg, dali = (_open(loader, folder, resize=resize) for loader in LOADERS)
    for epoch in range(2):
        for ours, theirs in zip(jpeg.epoch(epoch), dali.epoch(epoch), strict=True):
            _assert_equal(ours, theirs, tolerance=1e-6)


def _lying(number: int) -> bytes:
    """Pictures of every format, to be turned in every way that EXIF knows."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = number % 8 + 1
    Image.fromarray(_picture(number)).save(file, ("JPEG", "PNG", "WEBP", "TIFF")[number // 8 % 4], exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("resize", [False, True])
def test_both_loaders_turn_pictures_upright(resize: bool, tmp_path: Path) -> None:
    folder = _pack(tmp_path / "lying", lambda n, _: _lying(n))
    jpeg, dali = (_open(loader, folder, SequentialPlan(RECORDS, 9, 0, 1), resize=resize) for loader in LOADERS)
    batches = zip(jpeg.epoch(0), dali.epoch(0), strict=True)
    for ours, theirs in batches:
        _assert_equal(ours, theirs, tolerance=1e-6)
        for row, number in enumerate(ours.records.tolist()):
            upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(_lying(number)))).convert("RGB"))
            torch.testing.assert_close(ours.images[row], to_tensor([upright], SIZE)[0])


@pytest.mark.parametrize("loader", LOADERS)
def test_pictures_that_are_not_square_are_refused_not_squeezed(loader: str, tmp_path: Path) -> None:
    oblong = encode_jpeg(np.zeros((SIZE, SIZE + 8, 3), np.uint8))
    folder = _pack(tmp_path / "set", lambda n, image: oblong if n == 20 else image)
    for resize in (False, True):
        with pytest.raises(DataError, match=r"key 21 at byte \d+: must be square \(docs/data\.md .*\), got 40 x 32"):
            list(_open(loader, folder, resize=resize).epoch(0))


def test_resize_brings_mixed_sizes_to_one(tmp_path: Path) -> None:
    """Each image by itself, as `to_tensor` does, in both loaders; mirrored and grey ones among them."""
    folder = _pack(tmp_path / "mixed", lambda n, image: encode_jpeg(_picture(n, 24 + 4 * (n % 5))))
    source = RecordIOSource(folder)
    for loader in LOADERS:
        for batch in _open(loader, folder, resize=True).epoch(0):
            greys = TrainingPlan(RECORDS, BatchCut(8), seed=2, flip=True, grey=0.3).greys(0, batch.records.numpy())
            for row, index in enumerate(batch.records.tolist()):
                alone = to_tensor([decode(source.read(index)[0], "")], SIZE, batch.flipped[[row]].numpy(), greys[[row]])
                torch.testing.assert_close(batch.images[row], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("loader", LOADERS)
def test_start_in_the_middle_is_exact(loader: str, folder: Path) -> None:
    whole = list(_open(loader, folder).epoch(3))
    fresh = _open(loader, folder)
    for start in (0, 2, 4, 5):
        rest = list(fresh.epoch(3, start))
        assert len(rest) == 5 - start
        for ours, theirs in zip(rest, whole[start:], strict=True):
            _assert_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"start must be in \[0, 5\], got 6"):
        fresh.epoch(3, 6)


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_stay_valid_after_the_epoch(loader: str, folder: Path) -> None:
    batches = list(_open(loader, folder).epoch(0))
    copies = [batch.images.clone() for batch in batches]
    list(_open(loader, folder).epoch(1))
    gc.collect()
    for batch, copy in zip(batches, copies, strict=True):
        assert torch.equal(batch.images, copy)


@pytest.mark.parametrize("loader", LOADERS)
def test_sequential_plan_gives_short_and_empty_last_batches(loader: str, folder: Path) -> None:
    seen = []
    for rank in range(3):
        plan = SequentialPlan(RECORDS, 7, rank, 3)
        batches = list(_open(loader, folder, plan).epoch(0))
        assert len(batches) == 3
        assert [len(batch) for batch in batches] == [len(plan.indices(0, step)) for step in range(3)]
        assert all(batch.images.shape == (len(batch), 3, SIZE, SIZE) for batch in batches)
        seen += torch.cat([batch.records for batch in batches]).tolist()
    assert sorted(seen) == list(range(RECORDS))
    assert len(plan.indices(0, 2)) == 0


@pytest.mark.parametrize("loader", LOADERS)
def test_files_without_header_record_and_with_several_labels(loader: str, tmp_path: Path) -> None:
    """What InsightFace writes for its largest sets, and label lists of length two in front of an image."""
    with open_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        for key in range(6):
            labels = (float(key // 2), 0.0) if key % 2 else float(key // 2)
            writer.write(key, pack_payload(labels, key, encode_jpeg(_picture(key))))
    (tmp_path / "property").write_text(f"3,{SIZE},{SIZE}\n")
    (batch,) = _open(loader, tmp_path, SequentialPlan(6, 6, 0, 1)).epoch(0)
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(
        batch.images[5], to_tensor([decode(encode_jpeg(_picture(5)), "image")], SIZE)[0], atol=1e-6, rtol=0
    )


def _truncated(image: bytes) -> bytes:
    return image[: len(image) // 2]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "broken JPEG"),
        (lambda _: b"not an image at all", "not an image"),
        (lambda _: encode_jpeg(_picture(0, 40)), "must be 32 x 32 pixels.*got 40 x 40"),
    ],
)
def test_a_bad_record_is_named_where_it_stands(
    loader: str, damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    folder = _pack(tmp_path / "bad", lambda n, image: damage(image) if n == 29 else image)
    batches = _open(loader, folder, SequentialPlan(RECORDS, 8, 0, 1)).epoch(0)
    for step in range(3):
        assert next(batches).records.tolist() == list(range(8 * step, 8 * step + 8))
    with pytest.raises(DataError, match=rf"train\.rec: key 30 at byte \d+: {message}"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


class _Unplugged(SyntheticSource):
    """A disk that goes away."""

    error: Exception = OSError(5, "Input/output error")

    def read(self, index: int) -> tuple[bytes, int]:
        if index == 29:
            raise self.error
        return super().read(index)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("error", [_Unplugged.error, ZeroDivisionError("a mistake in our code")])
def test_an_error_of_the_disk_names_the_record(loader: str, error: Exception, tmp_path: Path) -> None:
    """Any other exception comes out as it is, at the same place."""
    source = _Unplugged(CLASSES, RECORDS, SIZE)
    source.error = error
    batches = _open(loader, tmp_path, SequentialPlan(RECORDS, 8, 0, 1), source).epoch(0)
    for step in range(3):
        assert next(batches).records[0] == 8 * step
    ours = isinstance(error, OSError)
    message = r"synthetic image 29: cannot be read: .*Input/output error" if ours else "a mistake in our code"
    with pytest.raises(DataError if ours else ZeroDivisionError, match=message):
        next(batches)


def _tasks() -> int:
    """Threads of this process, Python's and the libraries'."""
    return len(os.listdir("/proc/self/task"))


def _settled() -> int:
    """Count the tasks once their number has stood still for a tenth of a second."""
    counts = list(range(-10, 0))
    while len(set(counts)) > 1:
        counts = [*counts[1:], _tasks()]
        time.sleep(0.01)
    return counts[-1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("end", ["closed", "loader closed", "dropped", "failed"])
def test_an_abandoned_iterator_leaves_no_threads(loader: str, end: str, folder: Path, tmp_path: Path) -> None:
    source = _Unplugged(CLASSES, RECORDS, SIZE) if end == "failed" else None
    opened = _open(loader, folder, SequentialPlan(RECORDS, 8, 0, 1), source, workers=3)
    list(_open(loader, folder).epoch(0))  # what libraries start once and keep
    gc.collect()  # pipelines of earlier tests end now, not between the two counts
    before = _settled()
    batches: Any = opened.epoch(0)
    next(batches)
    assert _tasks() > before
    if end == "failed":
        with pytest.raises(DataError):
            list(batches)
    elif end == "closed":
        batches.close()
    elif end == "loader closed":
        opened.close()
    else:
        batches = None
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("partialkd-data")]
    for _ in range(1000):  # a joined thread may still be on its way out
        if _tasks() <= before:
            break
        time.sleep(0.01)
    assert _tasks() <= before


@pytest.mark.parametrize("loader", LOADERS)
def test_reading_ahead_is_bounded(loader: str, tmp_path: Path) -> None:
    class Counting(SyntheticSource):
        started = 0

        def read(self, index: int) -> tuple[bytes, int]:
            self.started += 1
            return super().read(index)

    source = Counting(CLASSES, 400, SIZE)
    plan = SequentialPlan(400, 4, 0, 1)
    batches = _open(loader, tmp_path, plan, source, workers=2).epoch(0)
    for taken in range(1, 11):
        next(batches)
        # jpeg: at most `workers` micro-steps beyond the one handed over; DALI holds two more
        assert source.started <= 4 * (taken + (2 if loader == "jpeg" else 4))


def test_without_dali_the_key_to_change_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "partialkd.data.loading.dali", raising=False)
    with pytest.raises(ConfigError, match=r'data\.loader: must be "jpeg" where DALI is not installed'):
        _open("dali", folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loader", LOADERS)
def test_cuda_gives_the_same_batches(loader: str, folder: Path) -> None:
    pytest.importorskip("nvidia.dali" if loader == "dali" else "simplejpeg")
    data = DataConfig(path=str(folder), loader=loader, image_size=SIZE)  # type: ignore[arg-type]
    source = open_source(data)
    plan = TrainingPlan(len(source), BatchCut(8), seed=2, flip=True, grey=0.3)
    on_cuda = open_loader(data, source, plan, torch.device("cuda"))
    for ours, theirs in zip(on_cuda.epoch(0), _open("jpeg", folder, plan).epoch(0), strict=True):
        assert ours.images.device.type == ours.labels.device.type == "cuda"
        assert torch.equal(ours.records, theirs.records)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        tolerance = 1e-6 if loader == "jpeg" else 6 / 127.5  # nvJPEG rounds otherwise
        torch.testing.assert_close(ours.images.cpu(), theirs.images, atol=tolerance, rtol=0)
