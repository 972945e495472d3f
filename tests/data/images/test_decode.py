"""Decoding against Pillow; normalisation, flip, grey and resize against their definitions."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from helpers.bad_images import many_scans
from partialkd.data.images.decode import Wanted, decode, image_size
from partialkd.data.images.encode import encode_jpeg, sized
from partialkd.data.images.orientation import orientation
from partialkd.data.images.tensors import to_pixels, to_tensor
from partialkd.errors import DataError


def photo(height: int = 40, width: int = 30, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return (np.asarray(small).astype(int) + rng.integers(-8, 9, (height, width, 3))).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"quality": 95}, {"subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_pixels_equal_pillows(mode: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(photo(41, 33)).convert(mode), "JPEG", **options)
    got = decode(data, "here")
    assert (got.shape, got.dtype) == ((41, 33, 3), np.uint8)
    np.testing.assert_array_equal(got, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_lossless_formats(fmt: str, mode: str) -> None:
    image = Image.fromarray(photo()).convert(mode)
    np.testing.assert_array_equal(decode(encoded(image, fmt), "here"), np.asarray(image.convert("RGB")))


def test_webp_and_opaque_alpha() -> None:
    pixels = photo()
    np.testing.assert_array_equal(decode(encoded(pixels, "WEBP", lossless=True), "here"), pixels)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels).convert("RGBA"), "PNG"), "here"), pixels)


@pytest.mark.parametrize(("fmt", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")])
def test_decoding_into_an_array_of_the_right_size(fmt: str, mode: str) -> None:
    data = encoded(Image.fromarray(photo()).convert(mode), fmt)
    out = np.full((40, 30, 4), 77, np.uint8)
    got = decode(data, "here", out)
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(got, decode(data, "here"))
    other = np.full((30, 40, 4), 77, np.uint8)
    np.testing.assert_array_equal(decode(data, "here", other), got)
    assert (other == 77).all()


def with_hole() -> bytes:
    image = Image.fromarray(photo()).convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, 0))
    return encoded(image, "PNG")


def animation() -> bytes:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(2)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


def deep_png(colour: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel; colour 2: RGB, 4: grey and alpha, 6: RGB and alpha."""
    rows = b"".join(b"\0" + bytes([18, 52] * 8 * channels) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = [
        struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def deep_tiff() -> bytes:
    """A TIFF of 16 bits a channel, RGB, not compressed."""
    shorts = {256: 8, 257: 8, 259: 1, 262: 2, 277: 3, 278: 8}
    bits_at = 8 + 2 + 12 * 9 + 4
    longs = {273: bits_at + 6, 279: 8 * 8 * 6}
    entries = {tag: (3, 1, value) for tag, value in shorts.items()} | {tag: (4, 1, at) for tag, at in longs.items()}
    entries[258] = (3, 3, bits_at)
    tags = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + tags + struct.pack("<I3H", 0, 16, 16, 16) + bytes(8 * 8 * 6)


JPEG = encoded(photo(), "JPEG")
PNG = encoded(photo(), "PNG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty"),
        (b"just text", r"not an image of PNG.* \(starts with b'just tex'\)"),
        (encoded(photo(), "GIF"), "not an image of PNG"),
        (JPEG[:-40], "broken JPEG: Premature end"),
        (JPEG[:20], "broken JPEG"),
        (b"\xff\xd8", "broken JPEG"),
        (PNG[: len(PNG) // 2], "broken image"),
        (PNG[:60] + b"\0\0\0\0" + PNG[64:], "broken image"),
        (encoded(np.zeros((8, 8), np.uint16), "PNG"), "must be one image of 8 bits a channel, got PNG mode I;16"),
        (deep_png(2, 3), "must be one image of 8 bits a channel, got PNG mode RGB of 16 bits"),
        (deep_png(4, 2), "must be one image of 8 bits a channel, got PNG mode RGBA of 16 bits"),
        (deep_png(6, 4), "must be one image of 8 bits a channel, got PNG mode RGBA of 16 bits"),
        (deep_tiff(), "must be one image of 8 bits a channel, got TIFF mode RGB of 16 bits"),
        (with_hole(), "the image has transparent pixels"),
        (animation(), "must be one image"),
        (encoded(Image.new("1", (9000, 9000)), "PNG"), "an image has at most 67108864 pixels, got 9000 x 9000"),
        (encoded(Image.new("L", (9000, 9000)), "JPEG"), "an image has at most 67108864 pixels, got 9000 x 9000"),
    ],
)
def test_what_cannot_be_decoded(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"train\.rec key 7: " + message):
        decode(data, "train.rec key 7")


def test_encoded_jpeg_is_close_to_the_image() -> None:
    pixels = photo()
    back = decode(encode_jpeg(pixels[:, ::-1][:, ::-1], 95), "here")
    assert (
        np.abs(back.astype(int) - pixels).mean() < 4
    )  # noise costs quality 95 about 3 levels; a shifted or swapped image, tens
    assert len(encode_jpeg(pixels, 50)) < len(encode_jpeg(pixels, 95))


def test_sizes_are_checked_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    square = [encoded(photo(30, 30), form) for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")]
    oblong = encoded(photo(30, 31), "JPEG")
    for data in square:
        assert decode(data, "here", wanted=Wanted(30)).shape == (30, 30, 3)
        assert image_size(data, "here") == (30, 30)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("pixels were decoded"))
    monkeypatch.setattr("PIL.Image.Image.convert", lambda *_, **__: pytest.fail("pixels were decoded"))
    for data in square:
        with pytest.raises(DataError, match=r"here: must be 24 x 24 pixels \(--size brings every .*\), got 30 x 30"):
            decode(data, "here", wanted=Wanted(24, option="--size"))
    for resize in (False, True):
        with pytest.raises(DataError, match=r"here: must be square \(docs/data\.md .*\), got 31 x 30"):
            decode(oblong, "here", wanted=Wanted(24, resize))


def test_scans_of_a_jpeg_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scan is a pass over all pixels: in 200 KB there is room for thousands."""
    assert decode(many_scans(100), "here").shape == (32, 32, 3)
    with pytest.raises(DataError, match="here: a JPEG of 32 x 32 pixels has at most 100 scans, got 101"):
        decode(many_scans(101), "here")
    monkeypatch.setattr("partialkd.data.images.decode.MAX_SCANNED", 32 * 32 * 16)
    assert decode(many_scans(16), "here").shape == (32, 32, 3)
    with pytest.raises(DataError, match="has at most 16 scans, got 17"):
        decode(many_scans(17), "here")


# ------------------------------------------------------------------------------------------------ orientation


def lying(form: str, how: int, image: np.ndarray | None = None, mode: str = "RGB") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = how
    options = {"lossless": True} if form == "WEBP" else {}
    return encoded(Image.fromarray(photo() if image is None else image).convert(mode), form, exif=exif, **options)


@pytest.mark.parametrize("how", range(1, 9))
@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB"), ("TIFF", "RGB")]
)
def test_pictures_are_turned_upright_in_every_format(form: str, mode: str, how: int) -> None:
    data = lying(form, how, mode=mode)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data, "here"), expected)
    assert image_size(data, "here") == expected.shape[1::-1]
    out = np.zeros((*expected.shape[:2], 4), np.uint8)
    assert np.shares_memory(decode(data, "here", out), out)
    np.testing.assert_array_equal(out[..., :3], expected)


def test_pictures_that_lie_are_encoded_anew_upright() -> None:
    square = photo(30, 30)
    assert sized(upright := lying("JPEG", 1, square), "here", Wanted(30)) == upright
    for form in ("JPEG", "PNG", "WEBP"):
        made = sized(data := lying(form, 6, square), "here", Wanted(30))
        plain = np.asarray(Image.open(io.BytesIO(made)).convert("RGB"))
        assert np.abs(plain.astype(int) - decode(data, "here")).mean() < 4
        assert decode(made, "here").shape == (30, 30, 3)


def test_an_exif_note_that_cannot_be_read_is_none() -> None:
    data = lying("JPEG", 6)
    at = data.index(b"Exif\0\0") + 6
    for damage in (b"XX*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\0", b"II*\0" + bytes(20)):
        damaged = data[:at] + damage + data[at + len(damage) :]
        assert decode(damaged, "here").shape == (40, 30, 3)
    for how in (0, 9, 65535):
        assert orientation(lying("JPEG", how)) == 1


# ------------------------------------------------------------------------------------------------ to_tensor


def batch() -> np.ndarray:
    return np.stack([photo(32, 32, seed) for seed in range(4)])


def expected(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images.astype(np.float32).transpose(0, 3, 1, 2) - 127.5) / 127.5)


def test_normalisation_of_arrays_lists_and_tensors() -> None:
    images = batch()
    before = images.copy()
    for form in (images, list(images), torch.from_numpy(images)):
        got = to_tensor(form, 32)
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected(before), rtol=0, atol=0)
    np.testing.assert_array_equal(images, before)
    extremes = np.array([[[[0, 255, 0]]]], dtype=np.uint8)
    assert to_tensor(extremes, 1).flatten().tolist() == [-1.0, 1.0, -1.0]


def test_a_fourth_channel_is_not_looked_at() -> None:
    four = np.concatenate([batch(), np.full((4, 32, 32, 1), 9, np.uint8)], axis=3)
    flips, grey = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert torch.equal(to_tensor(four, 32, flips, grey), to_tensor(batch(), 32, flips, grey))
    assert torch.equal(to_tensor(torch.from_numpy(four), 20), to_tensor(batch(), 20))


def test_flip_mirrors_the_chosen_images() -> None:
    images = batch()
    got = to_tensor(images, 32, flips=np.array([True, False, False, True]))
    images[[0, 3]] = images[[0, 3], :, ::-1]
    torch.testing.assert_close(got, expected(images), rtol=0, atol=0)


def test_grey_equals_pillows_luma_on_three_channels() -> None:
    images = batch()
    got = to_tensor(images, 32, grey=np.array([False, True, False, True])) * 127.5 + 127.5
    assert torch.equal(got[1, 0], got[1, 1])
    assert torch.equal(got[1, 0], got[1, 2])
    for number in (1, 3):
        luma = np.asarray(Image.fromarray(images[number]).convert("L")).astype(np.float32)
        torch.testing.assert_close(got[number, 0], torch.from_numpy(luma), rtol=0, atol=0.51)
    torch.testing.assert_close(got[[0, 2]], expected(images[[0, 2]]) * 127.5 + 127.5)


def test_grey_image_stays_what_it_is() -> None:
    images = np.repeat(batch()[..., :1], 3, axis=3)
    torch.testing.assert_close(to_tensor(images, 32, grey=np.ones(4, bool)), expected(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [16, 21, 48])
def test_resize_equals_pillows_bilinear(size: int) -> None:
    image = photo(32, 40)
    theirs = np.asarray(Image.fromarray(image).resize((size, size), Image.BILINEAR)).astype(np.float32)
    got = to_tensor([image], size)[0] * 127.5 + 127.5
    torch.testing.assert_close(got, torch.from_numpy(theirs.transpose(2, 0, 1)), rtol=0, atol=1.01)
    pixels = to_pixels(image, size)
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    torch.testing.assert_close(expected(pixels[None])[0] * 127.5 + 127.5, got, rtol=0, atol=0.501)


def test_images_of_different_sizes_do_not_depend_on_the_batch() -> None:
    images = [photo(32, 32), photo(50, 32), photo(20, 20), photo(50, 32, 1)]
    flips, grey = np.array([True, True, False, False]), np.array([False, True, True, False])
    together = to_tensor(images, 32, flips, grey)
    assert together.shape == (4, 3, 32, 32)
    for k, image in enumerate(images):
        alone = to_tensor([image], 32, flips[k : k + 1], grey[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=0)


def test_empty_batch() -> None:
    assert to_tensor([], 32).shape == (0, 3, 32, 32)
    assert to_tensor(np.empty((0, 32, 32, 3), np.uint8), 32, np.empty(0, bool), np.empty(0, bool)).shape == (
        0,
        3,
        32,
        32,
    )


@pytest.mark.gpu
def test_device_agrees_with_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    flips, grey = np.array([True, False, True, False]), np.array([True, True, False, False])
    for images, size in ((batch(), 32), (batch(), 20), ([photo(50, 32), photo(20, 20), photo(), photo()], 32)):
        cuda = to_tensor(images, size, flips, grey, "cuda")
        assert cuda.is_cuda
        torch.testing.assert_close(cuda.cpu(), to_tensor(images, size, flips, grey), rtol=0, atol=1e-4)
