"""Names, shapes and figures of networks are the published ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.network_cases import small
from partialkd.config import ModelConfig
from partialkd.models import build_model
from partialkd.models.build import FAMILIES, build_empty
from partialkd.models.facelivt import fused_parameters

PUBLISHED = Path(__file__).parent / "published"

# Entries of the state_dict; parameters and multiply-adds at 112 x 112 in millions, with a tolerance of half the last
# digit published (AdaDistill: R50 and GDC; arcface_torch's model zoo: mobilefacenet-0.45G, ViT-T-1.5G, ViT-B-11G).
FIGURES: dict[str, tuple[int, float | None, tuple[float, float] | None]] = {
    "iresnet18": (187, None, None),
    "iresnet34": (331, None, None),
    "iresnet50": (475, 43.59, None),
    "iresnet100": (925, None, None),
    "iresnet200": (1807, None, None),
    "mobilefacenet": (333, None, (450, 15)),  # published with the normalisations' share, which is not counted here
    "mobilefacenet_large": (606, None, None),
    "mobilefacenet_gdc": (331, 1.199, (221, 0.5)),
    "vit_tiny": (150, None, (1500, 50)),
    "vit_small": (150, None, None),
    "vit_base": (282, None, (11_000, 500)),
    "ghostfacenet_v1_s1": (561, None, None),
    "ghostfacenet_v1_s2": (561, None, None),
    "ghostfacenet_v2_s1": (813, None, None),
    "ghostfacenet_v2_s2": (813, None, None),
    # otroshi/edgeface, README: operations, a multiply-add counted as two
    "edgeface_xxs": (160, 1.24, (94.72 / 2, 0.0047 * 94.72)),
    "edgeface_xs": (257, 1.77, (154.00 / 2, 0.005 * 154.00)),
    "edgeface_s": (257, 3.65, (306.12 / 2, 0.005 * 306.12)),
    "edgeface_base": (214, 18.23, (1398.83 / 2, 0.005 * 1398.83)),
    # novendrastywn/FaceLiVT, README; of l their definition gives others: 8.83 M and 331 M
    "facelivtv2_xs": (628, None, (90, 1)),
    "facelivtv2_s": (628, None, (179, 1.79)),
    "facelivtv2_m": (628, None, (258, 2.58)),
    # fdbtrs/mixfacenets, README; operations: test_mixfacenets_have_the_published_operations
    **{
        f"{kind}mixfacenet_{size}": (entries, parameters, None)
        for kind in ("", "shuffle")
        for size, entries, parameters in (("xs", 413, 1.04), ("s", 413, 3.07), ("m", 496, 3.95))
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


LISTED = sorted(path.stem for path in PUBLISHED.glob("*.txt") if path.stem != "digests")
DIGESTS = [
    tuple(line.split()) for line in (PUBLISHED / "digests.txt").read_text().splitlines() if not line.startswith("#")
]


@pytest.mark.parametrize("name", LISTED)
def test_state_dict_has_the_published_keys_and_shapes(name: str) -> None:
    lines = (PUBLISHED / f"{name}.txt").read_text().splitlines()[1:]
    published = dict(line.split(" ") for line in lines)
    state = build_empty(ModelConfig(name=name), 112).state_dict()
    assert {key: "x".join(map(str, value.shape)) or "scalar" for key, value in state.items()} == published


@pytest.mark.slow
@pytest.mark.parametrize(("name", "entries", "parameters", "digest"), DIGESTS, ids=[name for name, *_ in DIGESTS])
def test_keys_shapes_and_parameters_are_those_of_the_authors_definition(
    name: str, entries: str, parameters: str, digest: str
) -> None:
    model = build_empty(ModelConfig(name=name), 112)
    state = model.state_dict()
    lines = sorted(f"{key} {'x'.join(map(str, x.shape)) or 'scalar'}" for key, x in state.items())
    assert len(state) == int(entries)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(parameters)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == digest


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_published_size_and_cost(name: str) -> None:
    entries, parameters, cost = FIGURES[name]
    model = build_empty(ModelConfig(name=name), 112).eval()
    assert len(model.state_dict()) == entries
    if parameters is not None:
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert round(millions, len(str(parameters).split(".")[1])) == parameters
    if cost is not None:
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 112, 112, device="meta"))
        assert counter.get_total_flops() / 2e6 == pytest.approx(cost[0], abs=cost[1])


@pytest.mark.parametrize(
    ("name", "millions"), [("facelivtv2_xs", 2.97), ("facelivtv2_s", 4.62), ("facelivtv2_m", 7.02)]
)
def test_parameters_after_fusion_are_the_published_ones(name: str, millions: float) -> None:
    assert round(fused_parameters(build_empty(ModelConfig(name=name), 112)) / 1e6, 2) == millions


def test_every_configurable_network_is_built() -> None:
    assert set(FAMILIES) == set(FIGURES) | {name for name, *_ in DIGESTS}


def test_published_details_of_training() -> None:
    model = build_model(small("iresnet18"), 32)
    fixed = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["features.weight"]
    assert build_model(ModelConfig(name="iresnet18", width=0.25), 32).layer4[
        1
    ].conv1.weight.std().item() == pytest.approx(0.1, rel=0.02)
