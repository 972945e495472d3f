"""Time and memory of what is done with embeddings, at the sizes of the published sets. No network runs.

    python benchmarks/evaluation_scale.py [--only templates|search|pairs|distractors] [--out FILE]

templates    IJB-B: 227,630 images to 12,115 templates, scored on 8,010,270 pairs read from a text file
search       IJB-B 1:N: 20,000 probes in a gallery of 3,500
pairs        100,000 images of 10,000 people, everything with everything: TAR at FAR 1e-6
distractors  3,530 probes of 80 people among 1,000,000 distractors, from the network's embeddings on: rank-1, FAR 1e-6

Each in a process of its own; memory is its peak resident set, less what it held when its input was ready where said.
Made-up embeddings of D = 512. Seconds of one run: they are bounds to keep, not a comparison.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine
from prettytable import PrettyTable

from partialkd.data.formats.identification_folder import IdentificationSet
from partialkd.data.formats.ijb_folder import read_template_set
from partialkd.evaluate.all_pairs import BLOCK, all_pairs
from partialkd.evaluate.embedding import Images, embed_images
from partialkd.evaluate.identification import published_count, rank_shares, search, tpir_published, tpir_strict
from partialkd.evaluate.identification_protocol import identified, unit_rows
from partialkd.evaluate.template_protocol import FARS, Asked, score_templates
from partialkd.evaluate.templates import Setting
from partialkd.storage.atomic_files import write_json
from partialkd.world.world import World

DIM = 512
IMAGES, TEMPLATES, PAIRS = 227_630, 12_115, 8_010_270


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts, to try it")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


def rows_of(rng: np.random.Generator, who: np.ndarray, count: int) -> np.ndarray:
    """Unit rows (n, D) float32 of these people."""
    return around(rng, rng.standard_normal((count, DIM), dtype=np.float32)[who])


def around(rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """Unit rows (n, D) float32 near these."""
    rows = centres + 1.2 * rng.standard_normal(centres.shape, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def templates(scale: float, folder: Path) -> dict[str, Any]:
    rng, images, count, pairs = np.random.default_rng(0), *(int(scale * n) for n in (IMAGES, TEMPLATES, PAIRS))
    meta = folder / "set" / "meta"
    meta.mkdir(parents=True)
    (folder / "set" / "aligned").mkdir()
    template = np.concatenate([np.arange(count), rng.integers(0, count, images - count)])
    media = rng.integers(0, 5 * count, images)
    looks = " ".join(["50.0"] * 10)
    with (meta / "x_face_tid_mid.txt").open("w") as members, (meta / "x_name_5pts_score.txt").open("w") as scores:
        members.writelines(f"{n}.jpg {t} {m}\n" for n, (t, m) in enumerate(zip(template, media, strict=True)))
        scores.writelines(f"{n}.jpg {looks} 0.99\n" for n in range(images))
    first = rng.integers(0, count, pairs)
    table = np.stack([first, (first + rng.integers(1, count, pairs)) % count, np.zeros(pairs, dtype=np.int64)])
    table[1, : pairs // 800] = table[0, : pairs // 800]
    table[2, : pairs // 800] = 1
    np.savetxt(meta / "x_template_pair_label.txt", table.T, fmt="%d")
    del table, first
    centres, embeddings = rng.standard_normal((count, DIM), dtype=np.float32), np.empty((2, images, DIM), np.float32)
    for at in range(0, images, BLOCK):  # so that the most memory is that of scoring, not of making these
        part = slice(at, at + BLOCK)
        embeddings[:, part] = around(rng, centres[template[part]])
    start = time.perf_counter()
    found = read_template_set(folder / "set")
    read = time.perf_counter() - start
    results = score_templates(embeddings, found, Asked(settings=(Setting(),)))
    assert len(results["N1D1F1"]["verification"]["tar_at_far"]) == len(FARS)
    return {"seconds": time.perf_counter() - start, "of them reading": read, "pairs": pairs}


def one_to_many(scale: float, _: Path) -> dict[str, Any]:
    rng, probes, gallery = np.random.default_rng(1), int(20_000 * scale), int(3_500 * scale)
    who = rng.integers(0, gallery + gallery // 5, probes)
    rows, entries = (rows_of(rng, of, 2 * gallery).astype(np.float64) for of in (who, np.arange(gallery)))
    start = time.perf_counter()
    found = search(rows, entries, who, np.arange(gallery), published_count(probes, 0.1))
    rank_shares(found, (1, 5, 10)), tpir_strict(found, 0.01), tpir_published(found, 0.01)
    return {"seconds": time.perf_counter() - start, "probes": probes, "gallery": gallery}


def everything(scale: float, _: Path) -> dict[str, Any]:
    rng, images = np.random.default_rng(2), int(100_000 * scale)
    who = np.arange(images) // 10
    rows = rows_of(rng, who, images // 10)
    start = time.perf_counter()
    found = all_pairs(rows, who, (1e-6,))
    return {"seconds": time.perf_counter() - start, "impostor pairs": found.impostors, "tar": found.tar(1e-6)}


def distracted(scale: float, folder: Path) -> dict[str, Any]:
    rng, count = np.random.default_rng(3), int(1_000_000 * scale)
    who = np.arange(int(3_530 * scale)) % 80
    centres = np.concatenate([rng.standard_normal((80, DIM), dtype=np.float32), np.zeros((1, DIM), np.float32)])
    faces = [np.full((1, 1, 3), person, np.uint8) for person in range(81)]  # a face is the number of its centre
    face = lambda image: faces[who[image] if image < len(who) else 80]

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        numbers = (pixels[:, 0, 0, 0] * 127.5 + 127.5).round().long().numpy()
        return torch.from_numpy(around(rng, centres[numbers]))

    images = Images(len(who) + count, face, str, "making embeddings")
    rows = embed_images(embed, images, 1, 1024, World(), held=lambda some: unit_rows(some, flip=True)[None])[0]
    subjects = np.concatenate([who, np.full(count, -1)])
    listed = IdentificationSet(folder, [""] * len(rows), subjects, len(who), 0, 0)
    start = time.perf_counter()
    found = identified(rows, listed, (1,), (1e-6,), torch.device("cpu"))
    return {"seconds": time.perf_counter() - start, "impostors": found["impostors"], "rank-1": found["rank"]["1"]}


CASES: dict[str, Callable[[float, Path], dict[str, Any]]] = {
    "templates": templates, "search": one_to_many, "pairs": everything, "distractors": distracted,
}  # fmt: skip


def alone(name: str, scale: float) -> dict[str, Any]:
    """Run a case in this process -> its numbers and the most memory that the process held."""
    with tempfile.TemporaryDirectory() as folder:
        found = CASES[name](scale, Path(folder))
    return found | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def main() -> None:
    args = parse_args()
    result: dict[str, Any] = {"machine": machine(torch.device("cpu")), "scale": args.scale, "dim": DIM}
    table = PrettyTable(["case", "seconds", "peak GB"])
    for name in args.only:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result[name] = pool.apply(alone, (name, args.scale))
        table.add_row([name, f"{result[name]['seconds']:.1f}", f"{result[name]['peak_gb']:.2f}"])
        print(json.dumps({name: result[name]}), flush=True)
    print(table)
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
