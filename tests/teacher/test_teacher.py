"""Frozen teachers: what they are fed, what they must not do, what tells them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.teacher_cases import CONFIG, CPU, checkpoint, pictures
from partialkd.config import InputConfig, TeacherConfig
from partialkd.data.images.tensors import resize, to_tensor
from partialkd.errors import TeacherError
from partialkd.models import build_model
from partialkd.teacher.network import Teacher, open_teacher, wrap_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


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
