"""List the combinations that centre_step.py measures, in which precision each multiplies, and what rules one out."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from measure import free_bytes
from pydantic import ValidationError

from partialkd.centres.store import DTYPES
from partialkd.centres.sweeps.products import effect_of_setting, rounds
from partialkd.config import CentresConfig

FACTS = ("kind", "backend", "store", "memory", "products", "classes", "batch", "dim", "sample_rate", "term")
MULTIPLIED = 1 << 18  # rows, at most, that the floor's products are measured with


def cases(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Make one namespace per combination, with a single value of every option."""
    names = ("kind", "classes", "store", "sample_rate", "memory", "backend", "products")
    each = itertools.product(*(getattr(args, name) for name in names))
    return [argparse.Namespace(**{**vars(args), **dict(zip(names, values, strict=True))}) for values in each]


def facts_of(args: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(args, key) for key in FACTS}


def name_of(one: dict[str, Any]) -> str:
    """Name a combination in a table."""
    term = "" if one["term"] == "none" else f" and {one['term']}"
    return f"{one['kind']}{term}, {one['store']} on {one['memory']}, {one['backend']}, products {one['products']}"


def rounded(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether the step multiplies bfloat16 numbers."""
    cuda = device.type == "cuda"
    return args.backend != "reference" and rounds(args.products, cuda) and (cuda or effect_of_setting() == "rounds")


def centres_config(args: argparse.Namespace) -> CentresConfig:
    names = ("sample_rate", "store", "memory", "backend", "products", "chunk_rows")
    return CentresConfig.model_validate({name: getattr(args, name) for name in names})


def refused(args: argparse.Namespace) -> str | None:
    """Reason for which the configuration refuses this combination; None: it does not."""
    if args.term != "none" and args.memory == "host" and args.kind != "fixed":
        return "the teacher's centres are kept beside the student's, on the device"
    if args.kind == "trainable" and args.store == "int8":
        return "int8 rows are for centres that no gradient moves"
    try:
        centres_config(args)
    except ValidationError as error:
        return "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
    return None


def without_room(args: argparse.Namespace, device: torch.device) -> str | None:
    """Name the memory that is too small for the centres, their windows and what the floor multiplies with."""
    row = args.dim * (DTYPES[args.store].itemsize + 4 * (args.kind == "trainable")) + 9
    cpu = torch.device("cpu")
    needs = {cpu: 0, device: 4 * (2 * args.dim + args.batch) * min(args.classes, MULTIPLIED)}
    needs[cpu if args.memory == "host" else device] += args.classes * row * (2 if args.term != "none" else 1)
    if args.memory == "host":
        needs[device] += int(2 * args.sample_rate * args.classes * (row + 8))
    for place, need in needs.items():
        if need > free_bytes(place):
            return f"needs {need / 1e9:.1f} GB of {place.type}, {free_bytes(place) / 1e9:.1f} GB are free"
    return None


def reference_fits(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether there is room for eight tensors of logits, and for two of rows, six where centres move."""
    logits, rows = args.classes * args.batch, args.classes * args.dim
    if args.term not in ("none", "logit_kd"):
        return False  # nobody has a usual one
    more = 0 if args.term == "none" else 6 * logits + rows
    return 4 * (8 * logits + rows * (2 if args.kind == "fixed" else 6) + more) < free_bytes(device)
