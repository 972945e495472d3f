"""What devices have, as their makers say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What a device has, as its maker says."""

    memory: float  # bytes that a program can have
    flops: float  # dense bfloat16 products, flop/s
    link: float  # to other devices, bytes/s
    host: float  # PCIe, one way, bytes/s


DEVICES = {
    "a100-40": Device(42e9, 312e12, 300e9, 32e9),
    "a100-80": Device(85e9, 312e12, 300e9, 32e9),
    "h100-80": Device(85e9, 989e12, 450e9, 64e9),
    "h200": Device(150e9, 989e12, 450e9, 64e9),
    "l40s": Device(48e9, 362e12, 32e9, 32e9),
    "rtx4090": Device(25e9, 165e12, 32e9, 32e9),
}
# What torch calls them has these words; the first that fits.
_WORDS = {
    ("H200",): "h200",
    ("H100", "HBM3"): "h100-80",
    ("A100", "80GB"): "a100-80",
    ("A100", "40GB"): "a100-40",
    ("L40S",): "l40s",
    ("RTX 4090",): "rtx4090",
}


def device_named(name: str) -> Device | None:
    """Find a device by the name that torch has for it; None: one that is not listed."""
    return next((DEVICES[key] for words, key in _WORDS.items() if all(word in name for word in words)), None)
