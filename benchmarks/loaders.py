"""Ways to read the same training file, side by side, on one core and on two; and what a GPU would need.

    python benchmarks/loaders.py [--cores 1 2] [--images 4096] [--batch 128] [--subsampling 420] [--json] [--out FILE]

The files: procedural faces as JPEG of quality 95 (4:2:0, what InsightFace's packing gives; 4:4:4, what ours gives) in
an InsightFace folder. Each number of cores is a process of its own, bound to those cores; its ways run in turn
over whole passes in random order, at `cores` threads or processes. Rates are medians, and those of the fastest pass: on
a machine shared with others the one that was least disturbed.

- libjpeg: libjpeg-turbo alone, over images in memory: the most that any loader on it can reach.
- jpeg, dali: our loaders (`data.loader`) with the CPU as device: (b, 3, S, S) float32, mirrored, normalised.
- jpeg to bytes: the part of `jpeg` that is left for the CPU where a CUDA device normalises.
- dali reader: DALI's own reader of RecordIO over an index of the images alone, then as in `dali`. Its order is a
  shuffled buffer, and it cannot start in the middle of an epoch of ours.
- pillow: torch's DataLoader with `cores` processes, Pillow, and the usual per-image transformations.

What a GPU would need: images/s = 1 / sum of FLOPs / (peak x utilisation) over the networks; FLOPs of an image are
3 x the forward pass (forward and backward) of the student and 1 x that of the teacher, unless its embeddings are
cached. Cores = images/s / `jpeg to bytes` on one core. The utilisations are assumptions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import simplejpeg
import torch
from loading_ways import CPU, SIZE, WAYS
from measure import interleaved_seconds, machine, medians
from prettytable import PrettyTable
from torch.utils.flop_counter import FlopCounterMode

from partialkd.config import ModelConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.decode import decode
from partialkd.data.packing.face_drawing import draw_jpegs
from partialkd.models.build import build_empty

DRAWN, CLASSES = 512, 64
PEAK = 989e12  # FLOP/s of an H200 in bfloat16 without sparsity, from its data sheet
# Assumed shares of the peak: depthwise convolutions are bound by memory.
UTILISATION = {"mobilefacenet": 0.05, "iresnet18": 0.35, "iresnet50": 0.35, "iresnet100": 0.35}
NEEDS = (("mobilefacenet", "iresnet100"), ("mobilefacenet", None), ("iresnet18", "iresnet100"), ("iresnet18", None))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--subsampling", choices=["420", "444"], default="420")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # what the processes of one number of cores get
    args = parser.parse_args()
    if max(args.cores) > os.cpu_count():
        parser.error(f"--cores must be at most {os.cpu_count()} on this machine, got {max(args.cores)}")
    if args.images < args.batch:
        parser.error(f"--images must be at least --batch ({args.batch}), got {args.images}")
    return args


def pack(folder: Path, images: int, subsampling: str) -> int:
    """Faces, some of them many times -> mean bytes of an image."""
    keys = [(number // 8, number % 8) for number in range(min(images, DRAWN))]
    drawn = [decode(image, "a drawing") for image in draw_jpegs(0, SIZE, keys)]
    encoded = [simplejpeg.encode_jpeg(face, quality=95, colorsubsampling=subsampling) for face in drawn]
    pack_records(folder, ((encoded[n % len(encoded)], n * CLASSES // images) for n in range(images)), CLASSES, SIZE)
    return round(sum(len(image) for image in encoded) / len(encoded))


def on_cores(args: argparse.Namespace, cores: int) -> dict[str, dict[str, float]]:
    """In the process bound to `cores` cores: "median" and "best" images/s of every way."""
    torch.set_num_threads(cores)
    passes: dict[str, Callable[[], Any]] = {way: WAYS[way](args, cores) for way in args.ways}
    images = args.images // args.batch * args.batch
    seconds = interleaved_seconds(passes, args.runs, CPU)
    return {
        "median": {way: images / value for way, value in medians(seconds).items()},
        "best": {way: images / min(values) for way, values in seconds.items()},
    }


def bound(args: argparse.Namespace, folder: Path, cores: int) -> dict[str, dict[str, float]]:
    """`on_cores` in a new process that has these cores only from its start on."""
    mine = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, __file__, "--folder", str(folder), "--cores", str(cores), "--ways", *args.ways]
    for key in ("images", "batch", "runs"):
        command += [f"--{key}", str(getattr(args, key))]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, mine),
        env={**os.environ, "OMP_NUM_THREADS": str(cores)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def forward_flops(name: str) -> float:
    """FLOPs of one image, two a multiply-add."""
    model = build_empty(ModelConfig(name=name), SIZE).eval()  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return float(counter.get_total_flops())


def needs(per_core: float | None) -> list[dict[str, Any]]:
    """What an H200 would take, by the formula above."""
    rows = []
    for student, teacher in NEEDS:
        flops = {student: 3 * forward_flops(student)} | ({teacher: forward_flops(teacher)} if teacher else {})
        seconds = sum(count / (PEAK * UTILISATION[network]) for network, count in flops.items())
        row = {"student": student, "teacher": teacher, "flops": flops, "images_per_second": 1 / seconds}
        rows.append(row | {"cores": 1 / seconds / per_core if per_core else None})
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "faces"
        mean_bytes = pack(folder, args.images, args.subsampling)
        rates = {str(cores): bound(args, folder, cores) for cores in args.cores}
    return {
        "images": args.images,
        "batch": args.batch,
        "image_size": SIZE,
        "subsampling": args.subsampling,
        "mean_bytes": mean_bytes,
        "runs": args.runs,
        "images_per_second": {cores: found["median"] for cores, found in rates.items()},
        "best_images_per_second": {cores: found["best"] for cores, found in rates.items()},
        "peak_flops": PEAK,
        "utilisation": UTILISATION,
        "needs": needs(rates["1"]["median"].get("jpeg to bytes") if "1" in rates else None),
        "load_average": os.getloadavg()[0],
        **machine(CPU),
    }


def tables_of(result: dict[str, Any]) -> str:
    rates, best = result["images_per_second"], result["best_images_per_second"]
    table = PrettyTable(["images/s, median (best)", *(f"{cores} core(s)" for cores in rates)])
    for way in next(iter(rates.values())):
        table.add_row([way, *(f"{rates[cores][way]:.0f} ({best[cores][way]:.0f})" for cores in rates)])
    needed = PrettyTable(["student", "teacher", "GFLOP an image", "images/s of an H200", "cores"])
    for row in result["needs"]:
        cores, flops = f"{row['cores']:.1f}" if row["cores"] else "", sum(row["flops"].values()) / 1e9
        needed.add_row(
            [row["student"], row["teacher"] or "cached", f"{flops:.2f}", f"{row['images_per_second']:.0f}", cores]
        )
    return f"{table}\n{needed}"


def main() -> None:
    args = parse_args()
    if args.folder:
        print(json.dumps(on_cores(args, args.cores[0])))
        sys.stdout.flush()
        os._exit(0)  # DataLoader's processes need not be waited for
    result = measure(args)
    print(json.dumps(result) if args.json else tables_of(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
