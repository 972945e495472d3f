"""Frozen teachers: what they are fed, what they must not do, which ones are refused; a real one on real faces."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.places import FACES
from partialkd.config import InputConfig, ModelConfig, TeacherConfig
from partialkd.data.images.decode import decode, resize, to_tensor
from partialkd.errors import TeacherError
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.teacher.network import Teacher, open_teacher, orthonormal, wrap_teacher

CPU = torch.device("cpu")
CONFIG = ModelConfig(name="mobilefacenet_gdc", width=0.125, depth=0.3, embedding_dim=16)


pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """With running statistics of its own, in eval mode."""
    torch.manual_seed(0)
    model = build_model(CONFIG, 32)
    with torch.no_grad():
        model(pictures(8, seed=9))
    return model.eval()


def checkpoint(path: Path, **changes: object) -> TeacherConfig:
    settings = {"source": "checkpoint", "path": str(path), "model": CONFIG, "input": InputConfig(size=32)}
    return TeacherConfig.model_validate({**settings, **changes})


# ------------------------------------------------------------------------------------------------- its input


class Echo(nn.Module):
    """Emits the pixels it was given."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def echoing(accepts: InputConfig, image_size: int) -> Teacher:
    return Teacher(Echo(), accepts, image_size, CPU, None, "echo", "echo")


def test_a_foreign_input_format_is_produced_from_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    ours = to_tensor(pixels, 32)
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    raw = echoing(InputConfig(size=32, mean=0.0, std=1.0), 32).embed(ours).view(5, 3, 32, 32)
    torch.testing.assert_close(raw.double(), wanted, rtol=0, atol=3e-5)
    bgr = echoing(InputConfig(size=32, mean=100.0, std=50.0, colour="bgr"), 32).embed(ours).view(5, 3, 32, 32)
    torch.testing.assert_close(bgr.double(), (wanted[:, [2, 1, 0]] - 100) / 50, rtol=0, atol=1e-5)
    assert torch.equal(echoing(InputConfig(size=32), 32).embed(ours).view_as(ours), ours)


@pytest.mark.parametrize(("data", "declared"), [(48, 32), (32, 48)])
def test_images_of_another_size_are_resized_as_the_data_is(data: int, declared: int) -> None:
    images = pictures(3, data)
    got = echoing(InputConfig(size=declared), data).embed(images).view(3, 3, declared, declared)
    torch.testing.assert_close(got, resize(images, declared))
    assert echoing(InputConfig(size=declared), data).embed(images[:0]).shape == (0, 3 * declared**2)


# -------------------------------------------------------------------------------------------------- frozen


def test_embedding_leaves_no_trace(network: nn.Module) -> None:
    teacher = wrap_teacher(network, 32, CPU)
    before = teacher.buffers_digest()
    with torch.autocast("cpu", torch.bfloat16):  # of the student: must not reach the teacher
        embeddings = teacher.embed(pictures(4).requires_grad_())
    torch.testing.assert_close(embeddings, network(pictures(4)))
    assert not embeddings.requires_grad
    assert teacher.buffers_digest() == before
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert teacher.embedding_dim == 16


def test_in_bfloat16_it_is_another_teacher(network: nn.Module) -> None:
    """By its fingerprint too; its embeddings are float32, and near the others."""
    plain, half = (wrap_teacher(network, 32, CPU, precision=precision) for precision in ("fp32", "bf16"))
    assert plain.fingerprint != half.fingerprint
    got, wanted = half.embed(pictures(4)), plain.embed(pictures(4))
    assert got.dtype == torch.float32
    assert 1e-4 < float((got - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize("source", ["onnx", "records", "none"])
def test_precision_is_that_of_networks_of_ours(source: str) -> None:
    settings = {"path": "t.onnx", "embedding_dim": 8} if source == "onnx" else {}
    with pytest.raises(ValueError, match=f'precision must be "fp32" with source = "{source}", got "bf16"'):
        TeacherConfig.model_validate({"source": source, "precision": "bf16", **settings})


def test_a_loss_may_keep_its_embeddings(network: nn.Module) -> None:
    """And what hooks see inside, once it is told so."""
    teacher, seen = wrap_teacher(network, 32, CPU), []
    teacher.network.conv1.register_forward_hook(lambda _, __, given: seen.append(given))
    student = torch.ones(4, 16, requires_grad=True)
    (student * teacher.embed(pictures(4))).sum().backward()
    assert seen.pop().is_inference()
    teacher.show_maps()
    teacher.embed(pictures(4))
    assert not seen.pop().is_inference()


def test_wrapping_copies_and_leaves_the_model_alone(network: nn.Module) -> None:
    model = build_model(CONFIG, 32)
    model.load_state_dict(network.state_dict())
    teacher = wrap_teacher(model, 32, CPU)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(pictures(8)).sum().backward()
    nn.init.zeros_(model.conv1.conv.weight)
    torch.testing.assert_close(teacher.embed(pictures(2)), network(pictures(2)))


def test_training_mode_and_changed_buffers_are_noticed(network: nn.Module) -> None:
    teacher = wrap_teacher(network, 32, CPU)
    teacher.network.train()
    with pytest.raises(TeacherError, match="training mode"):
        teacher.embed(pictures(2))
    teacher = wrap_teacher(network, 32, CPU)
    digest = teacher.buffers_digest()
    teacher.network.conv1.train()  # only a part: its BatchNorm would follow the data
    with pytest.raises(TeacherError, match="buffers changed"):
        teacher.embed(pictures(2))
    assert teacher.buffers_digest() != digest


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_an_embedding_does_not_depend_on_its_batch(network: nn.Module, threads: int) -> None:
    """Bit for bit, on the CPU: any size, any place, any company."""
    torch.set_num_threads(threads)
    teacher, images = wrap_teacher(network, 32, CPU), pictures(21)
    alone = torch.cat([teacher.embed(images[i : i + 1]) for i in range(21)])
    for size in (2, 5, 16, 17, 21):
        assert torch.equal(torch.cat([teacher.embed(part) for part in images.split(size)]), alone)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher.embed(images[order]), alone[order])


# ------------------------------------------------------------------------------------------------ projection


@pytest.mark.parametrize(("rows", "columns"), [(16, 4), (4, 16), (8, 8)])
def test_projection_is_orthonormal_and_fixed(rows: int, columns: int) -> None:
    basis = orthonormal(rows, columns)
    assert basis.shape == (rows, columns)
    assert basis.dtype == torch.float32
    product = basis.T @ basis if rows >= columns else basis @ basis.T
    torch.testing.assert_close(product, torch.eye(min(rows, columns)), rtol=0, atol=1e-6)
    assert torch.equal(basis, orthonormal(rows, columns))


def test_projection_has_the_written_down_values() -> None:
    """Gram-Schmidt in plain Python over the same normal numbers: what any machine must arrive at."""
    numbers = np.random.RandomState(20240701).standard_normal((5, 3)).tolist()
    columns: list[list[float]] = []
    for column in zip(*numbers, strict=True):
        rest = list(column)
        for _ in range(2):
            for done in columns:
                overlap = sum(a * b for a, b in zip(rest, done, strict=True))
                rest = [a - overlap * b for a, b in zip(rest, done, strict=True)]
        length = sum(a * a for a in rest) ** 0.5
        columns.append([a / length for a in rest])
    torch.testing.assert_close(orthonormal(5, 3), torch.tensor(columns).T, rtol=0, atol=1e-6)


def test_embeddings_and_classifier_rows_are_projected_alike(network: nn.Module) -> None:
    plain, projected, wider = (wrap_teacher(network, 32, CPU, to) for to in (None, 8, 64))
    raw = plain.embed(pictures(5))
    assert (projected.embedding_dim, wider.embedding_dim) == (8, 64)
    torch.testing.assert_close(projected.embed(pictures(5)), raw @ orthonormal(16, 8))
    torch.testing.assert_close(projected.project(raw), projected.embed(pictures(5)))
    assert plain.project(raw) is raw
    torch.testing.assert_close(wider.project(raw) @ wider.project(raw).T, raw @ raw.T, rtol=1e-4, atol=1e-4)
    with pytest.raises(TeacherError, match=r"rows must be \(n, 16\).*\(3, 8\)"):
        projected.project(torch.zeros(3, 8))


def test_fingerprint_tells_teachers_apart(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "a.pt")
    changed = {key: value + (key == "conv1.bn.running_mean") for key, value in network.state_dict().items()}
    torch.save(changed, tmp_path / "b.pt")
    configs = [
        checkpoint(tmp_path / "a.pt"),
        checkpoint(tmp_path / "b.pt"),
        checkpoint(tmp_path / "a.pt", project_to=8),
        checkpoint(tmp_path / "a.pt", input=InputConfig(size=32, mean=0.0)),
    ]
    fingerprints = [open_teacher(config, 32, CPU).fingerprint for config in configs]
    assert len(set(fingerprints)) == 4
    assert open_teacher(configs[0], 32, CPU).fingerprint == fingerprints[0]
    assert open_teacher(configs[0], 48, CPU).fingerprint != fingerprints[0]  # other images reach the network
    assert all(len(fingerprint) == 64 for fingerprint in fingerprints)


# ----------------------------------------------------------------------------------------------- checkpoints


def test_checkpoint_teachers_open(network: nn.Module, tmp_path: Path) -> None:
    expected = network(pictures(3))
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "t.pth")
    save_model(tmp_path / "t.safetensors", network, CONFIG, 32)
    described = TeacherConfig(source="checkpoint", path=str(tmp_path / "t.safetensors"))
    for config in (checkpoint(tmp_path / "t.pth"), checkpoint(tmp_path / "t.safetensors"), described):
        teacher = open_teacher(config, 32, "cpu")
        # The same weights; a product's last bits hang on memory layout and threads, on some processors.
        torch.testing.assert_close(teacher.embed(pictures(3)), expected, rtol=1e-5, atol=1e-6)
        teacher.check(pictures(3))
    assert open_teacher(described, 48, CPU).embed(pictures(2, 48)).shape == (2, 16)  # the file knows its 32 pixels


def test_checkpoints_that_do_not_fit_are_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_model(path, network, CONFIG, 32)
    other = CONFIG.model_copy(update={"name": "iresnet18"})
    bare = tmp_path / "bare.safetensors"
    save_file(network.state_dict(), bare)
    cases = [
        (checkpoint(tmp_path / "absent.pt"), "no such file"),
        (checkpoint(path, model=other), "does not fit the network"),
        (checkpoint(path, input=InputConfig(size=64)), "instead of"),
        (checkpoint(path, model=None, input=InputConfig(size=64)), "32 pixels, but teacher.input.size is 64"),
        (checkpoint(path, embedding_dim=32), "teacher.embedding_dim is 32, but the network emits 16"),
        (checkpoint(bare, model=None), "does not describe its network"),
        (TeacherConfig(), "teacher.source must be"),
    ]
    for config, message in cases:
        with pytest.raises(TeacherError, match=message):
            open_teacher(config, 32, CPU)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("output_layer.linear.weight", float("nan"), "2 of 2 embeddings hold NaN or infinity"),
        ("output_layer.linear.weight", float("inf"), "NaN or infinity"),
        ("conv1.bn.weight", 0.0, "same embedding for every image"),
        ("output_layer.linear.weight", 0.0, "same embedding|zeros"),
    ],
)
def test_useless_teachers_are_refused(network: nn.Module, tmp_path: Path, key: str, value: float, message: str) -> None:
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state[key].fill_(value)
    torch.save(state, tmp_path / "t.pt")
    with pytest.raises(TeacherError, match=message):
        open_teacher(checkpoint(tmp_path / "t.pt"), 32, CPU)


class Fragile(nn.Module):
    """Breaks on dark images only."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return torch.where(means < -0.9, torch.nan, means)


class Shifting(nn.Module):
    """Emits another dimension for dark images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : 10 if images.amin() < -1 else 4]


def test_check_sees_what_the_data_does_to_the_teacher() -> None:
    fragile = wrap_teacher(Fragile(), 32, CPU)
    fragile.check(pictures(2))
    with pytest.raises(TeacherError, match="1 of 5 embeddings hold NaN"):
        fragile.check(torch.cat([pictures(2), -torch.ones(1, 3, 32, 32)]))
    with pytest.raises(TeacherError, match=r"shape \(3, 4\), got \(3, 10\)"):
        wrap_teacher(Shifting(), 32, CPU).check(-2 * torch.ones(1, 3, 32, 32))
    with pytest.raises(TeacherError, match=r"must emit \(b, D\) embeddings, got \(16, 3, 32, 32\) for 16"):
        wrap_teacher(nn.Identity(), 32, CPU)


# ------------------------------------------------------------------------------------------------ real faces


@pytest.mark.slow
@pytest.mark.faces
def test_real_teacher_tells_real_people_apart() -> None:
    if not (FACES / "sface_128d.onnx").is_file():
        pytest.skip(f"no real faces in {FACES}")
    with (FACES / "lfw_pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    same = [pair for pair in pairs if pair["same"] == "1"][:12]
    different = [pair for pair in pairs if pair["same"] == "0"][:12]
    names = sorted({pair[side] for pair in same + different for side in "ab"})
    images = lfw_images(set(names))
    config = TeacherConfig(
        source="onnx",
        path=str(FACES / "sface_128d.onnx"),
        embedding_dim=128,
        input=InputConfig(size=112, mean=0.0, std=1.0),
    )
    teacher = open_teacher(config, 112, CPU)
    batch = to_tensor([decode(images[name], name) for name in names], 112)
    teacher.check(batch[:4])
    rows = dict(zip(names, nn.functional.normalize(teacher.embed(batch)), strict=True))
    scores = [[float(rows[pair["a"]] @ rows[pair["b"]]) for pair in group] for group in (same, different)]
    assert np.mean(scores[0]) > np.mean(scores[1]) + 0.3
    assert sum(high > low for high in scores[0] for low in scores[1]) >= 0.95 * 144


def lfw_images(names: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(FACES / "lfw112.tar.gz") as archive:
        for member in archive:
            key = member.name.removeprefix("./")
            match = next((name for name in (key, key.partition("/")[2]) if name in names), None)
            if match is not None:
                content = archive.extractfile(member)
                assert content is not None
                found[match] = io.BytesIO(content.read()).getvalue()
    return found
