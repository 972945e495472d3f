"""Both loaders: the plan's records in order, equal to each other, exact from any step."""

from __future__ import annotations

import gc
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from helpers.loader_cases import CLASSES, LOADERS, RECORDS, SIZE, assert_equal, open_one, pack, picture
from partialkd.config import DataConfig
from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.images.tensors import to_tensor
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, SequentialPlan, TrainingPlan
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.open import open_source
from partialkd.errors import ConfigError, DataError


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_are_what_the_plan_says(loader: str, folder: Path) -> None:
    source = RecordIOSource(folder)
    plan = TrainingPlan(len(source), BatchCut(8), seed=2, flip=True, grey=0.3)
    batches = list(open_one(loader, folder, plan).epoch(1))
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
    jpeg, dali = (open_one(loader, folder, resize=resize) for loader in LOADERS)
    for epoch in range(2):
        for ours, theirs in zip(jpeg.epoch(epoch), dali.epoch(epoch), strict=True):
            assert_equal(ours, theirs, tolerance=1e-6)


def _lying(number: int) -> bytes:
    """Pictures of every format, to be turned in every way that EXIF knows."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = number % 8 + 1
    Image.fromarray(picture(number)).save(file, ("JPEG", "PNG", "WEBP", "TIFF")[number // 8 % 4], exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("resize", [False, True])
def test_both_loaders_turn_pictures_upright(resize: bool, tmp_path: Path) -> None:
    folder = pack(tmp_path / "lying", lambda n, _: _lying(n))
    jpeg, dali = (open_one(loader, folder, SequentialPlan(RECORDS, 9, 0, 1), resize=resize) for loader in LOADERS)
    batches = zip(jpeg.epoch(0), dali.epoch(0), strict=True)
    for ours, theirs in batches:
        assert_equal(ours, theirs, tolerance=1e-6)
        for row, number in enumerate(ours.records.tolist()):
            upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(_lying(number)))).convert("RGB"))
            torch.testing.assert_close(ours.images[row], to_tensor([upright], SIZE)[0])


@pytest.mark.parametrize("loader", LOADERS)
def test_pictures_that_are_not_square_are_refused_not_squeezed(loader: str, tmp_path: Path) -> None:
    oblong = encode_jpeg(np.zeros((SIZE, SIZE + 8, 3), np.uint8))
    folder = pack(tmp_path / "set", lambda n, image: oblong if n == 20 else image)
    for resize in (False, True):
        with pytest.raises(DataError, match=r"key 21 at byte \d+: must be square \(docs/data\.md .*\), got 40 x 32"):
            list(open_one(loader, folder, resize=resize).epoch(0))


def test_resize_brings_mixed_sizes_to_one(tmp_path: Path) -> None:
    """Each image by itself, as `to_tensor` does, in both loaders; mirrored and grey ones among them."""
    folder = pack(tmp_path / "mixed", lambda n, image: encode_jpeg(picture(n, 24 + 4 * (n % 5))))
    source = RecordIOSource(folder)
    for loader in LOADERS:
        for batch in open_one(loader, folder, resize=True).epoch(0):
            greys = TrainingPlan(RECORDS, BatchCut(8), seed=2, flip=True, grey=0.3).greys(0, batch.records.numpy())
            for row, index in enumerate(batch.records.tolist()):
                alone = to_tensor([decode(source.read(index)[0], "")], SIZE, batch.flipped[[row]].numpy(), greys[[row]])
                torch.testing.assert_close(batch.images[row], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("loader", LOADERS)
def test_start_in_the_middle_is_exact(loader: str, folder: Path) -> None:
    whole = list(open_one(loader, folder).epoch(3))
    fresh = open_one(loader, folder)
    for start in (0, 2, 4, 5):
        rest = list(fresh.epoch(3, start))
        assert len(rest) == 5 - start
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"start must be in \[0, 5\], got 6"):
        fresh.epoch(3, 6)


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_stay_valid_after_the_epoch(loader: str, folder: Path) -> None:
    batches = list(open_one(loader, folder).epoch(0))
    copies = [batch.images.clone() for batch in batches]
    list(open_one(loader, folder).epoch(1))
    gc.collect()
    for batch, copy in zip(batches, copies, strict=True):
        assert torch.equal(batch.images, copy)


@pytest.mark.parametrize("loader", LOADERS)
def test_sequential_plan_gives_short_and_empty_last_batches(loader: str, folder: Path) -> None:
    seen = []
    for rank in range(3):
        plan = SequentialPlan(RECORDS, 7, rank, 3)
        batches = list(open_one(loader, folder, plan).epoch(0))
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
            writer.write(key, pack_payload(labels, key, encode_jpeg(picture(key))))
    (tmp_path / "property").write_text(f"3,{SIZE},{SIZE}\n")
    (batch,) = open_one(loader, tmp_path, SequentialPlan(6, 6, 0, 1)).epoch(0)
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(
        batch.images[5], to_tensor([decode(encode_jpeg(picture(5)), "image")], SIZE)[0], atol=1e-6, rtol=0
    )


def test_without_dali_the_key_to_change_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "partialkd.data.loading.dali", raising=False)
    with pytest.raises(ConfigError, match=r'data\.loader: must be "jpeg" where DALI is not installed'):
        open_one("dali", folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loader", LOADERS)
def test_cuda_gives_the_same_batches(loader: str, folder: Path) -> None:
    pytest.importorskip("nvidia.dali" if loader == "dali" else "simplejpeg")
    data = DataConfig(path=str(folder), loader=loader, image_size=SIZE)  # type: ignore[arg-type]
    source = open_source(data)
    plan = TrainingPlan(len(source), BatchCut(8), seed=2, flip=True, grey=0.3)
    on_cuda = open_loader(data, source, plan, torch.device("cuda"))
    for ours, theirs in zip(on_cuda.epoch(0), open_one("jpeg", folder, plan).epoch(0), strict=True):
        assert ours.images.device.type == ours.labels.device.type == "cuda"
        assert torch.equal(ours.records, theirs.records)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        tolerance = 1e-6 if loader == "jpeg" else 6 / 127.5  # nvJPEG rounds otherwise
        torch.testing.assert_close(ours.images.cpu(), theirs.images, atol=tolerance, rtol=0)
