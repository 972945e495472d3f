"""What launch/audit.py finds: identities known to be in both of two sets of photographs, wrong labels planted.

    python benchmarks/audit.py --photographs FOLDER --keep FOLDER [--each 60 12] [--out FILE]
    python benchmarks/audit.py --run runs/quickstart --keep FOLDER [--out FILE]

photographs  FOLDER holds pubfig112.tar.gz and lfw112.tar.gz (<identity>/<image>), pubfig_identities_in_lfw.txt and
             sface_128d.onnx. PubFig is the training data, everybody of LFW is evaluated: which PubFig identities are
             found among them, and which of these are not in the list. --each: images of an identity, of either set.
run          the data and the teacher of a finished run of the default job: 2 % of the images get another identity's
             label; which of them are found, and what else. The teacher has been trained on the right labels.

Embeddings are kept in --keep, piece by piece: a run that was killed goes on. On the CPU; no timing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine

from partialkd.config import InputConfig, TeacherConfig
from partialkd.config.load import load_config
from partialkd.data.formats.image_tree import list_images, read_images
from partialkd.data.images.decode import decode
from partialkd.data.sources.open import open_source
from partialkd.evaluate.embedding import Images, Kept, embed_images
from partialkd.report.audit import Audit, with_mirrored
from partialkd.storage.atomic_files import write_json
from partialkd.teacher.network import Teacher, open_teacher
from partialkd.world.world import World

CPU, WRONG = torch.device("cpu"), 0.02


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    parser.add_argument("--run", type=Path, metavar="FOLDER")
    parser.add_argument("--each", type=int, nargs=2, default=(60, 12))
    parser.add_argument("--keep", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, help="also write the JSON object here, beside what is in it")
    return parser.parse_args()


def embedded(teacher: Teacher, count: int, read: Callable[[int], bytes], keep: Path) -> np.ndarray:
    """Unit rows (count, D) of encoded images, each of an image with its mirror image."""
    name = lambda number: f"{keep.name}: image {number}"
    images = Images(count, lambda number: decode(read(number), name(number)), name, f"embedding {keep.name}")
    kept = Kept(keep, {"network": teacher.fingerprint, "images": count})
    rows = embed_images(teacher.embed, images, teacher.image_size, 16, World(), kept)
    return with_mirrored(*rows).astype(np.float32)


class Tree:
    """Some images of each identity of an archive, in memory."""

    def __init__(self, path: Path, each: int) -> None:
        listed = list_images(path)
        self.names = list(listed)
        some = {name: images[:: max(1, len(images) // each)][:each] for name, images in listed.items()}
        chosen = [f"{name}/{image}" for name, images in some.items() for image in images]
        number = {name: at for at, name in enumerate(self.names)}
        self.labels = np.array([number[image.partition("/")[0]] for image in chosen])
        found = dict(read_images(path, chosen))
        self.images = [found[image] for image in chosen]


def photographs(folder: Path, each: tuple[int, int], keep: Path) -> dict[str, Any]:
    accepts = InputConfig(size=112, mean=0.0, std=1.0)
    config = TeacherConfig(source="onnx", path=str(folder / "sface_128d.onnx"), embedding_dim=128, input=accepts)
    teacher = open_teacher(config, 112, CPU)
    audits = []
    for name, most in zip(("pubfig112", "lfw112"), each, strict=True):
        tree = Tree(folder / f"{name}.tar.gz", most)
        rows = embedded(teacher, len(tree.images), tree.images.__getitem__, keep / name)
        audits.append((tree, Audit(rows, tree.labels, len(tree.names))))
    (trained, audit), (evaluated, other) = audits
    findings = audit.evaluated(other.means)
    known = set((folder / "pubfig_identities_in_lfw.txt").read_text().split())
    pairs = [(trained.names[one.label], evaluated.names[one.other]) for one in findings]
    right = {name for name, who in pairs if name == who}
    return {
        "images": [len(trained.images), len(evaluated.images)],
        "known": len(known),
        "found": len(right & known),
        "missed": sorted(known - right),
        "others": [f"{name} = {who}" for name, who in pairs if name != who or name not in known],
        "threshold": findings[0].threshold,
        "suspicions within": {name: _counts(one) for name, one in (("pubfig", audit), ("lfw", other))},
    }


def _counts(audit: Audit) -> dict[str, int]:
    kinds = [one.kind for one in audit.findings()]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def planted(run: Path, keep: Path) -> dict[str, Any]:
    config = load_config(run / "config.toml")
    source = open_source(config.data)
    path = str(run / "teacher" / "model.safetensors")
    teacher = open_teacher(TeacherConfig(source="checkpoint", path=path), config.data.image_size, CPU)
    rows = embedded(teacher, len(source), lambda index: source.read(index)[0], keep / "drawn")
    results = [_planted(rows, source.labels().astype(np.int64), source.num_classes, seed) for seed in range(5)]
    return {"images": len(source), "wrong": WRONG, "seeds": results}


def _planted(rows: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(labels), int(WRONG * len(labels)), replace=False)
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    found = [one.images[0] for one in Audit(rows, labels, classes).findings() if one.kind == "wrong label"]
    hits = len(set(found) & set(wrong.tolist()))
    return {"precision": hits / max(len(found), 1), "recall": hits / len(wrong)}


def _parts(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    if args.photographs:
        yield "photographs", photographs(args.photographs, tuple(args.each), args.keep)
    if args.run:
        yield "drawn", planted(args.run, args.keep)


def main() -> None:
    args = parse_args()
    before = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for name, found in _parts(args):
        before |= {name: found | {"machine": machine(CPU)}}
        print(json.dumps({name: found}, indent=2), flush=True)
    if args.out:
        write_json(args.out, before)


if __name__ == "__main__":
    main()
