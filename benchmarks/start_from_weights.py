"""What a start from weights saves: steps to the accuracy of a student from scratch, on drawn faces.

    python benchmarks/start_from_weights.py [--seeds 5] [--folder FOLDER] [--out FILE]

For each seed three students (arcface, one rank, 32 pixels) are trained and scored on the same pairs of other people:

- before: over 60 identities, for STEPS steps
- scratch: over those and 20 new ones, for STEPS steps
- started: over the same 80 with the network and the centres of "before", the new centres from class means, for a third
  of the steps, at a quarter of the rate for all but the head and the centres

All is kept in FOLDER: what is finished there is not trained again, what was stopped goes on. Reached: the accuracy of
"started" is at least that of "scratch".
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from measure import machine
from prettytable import PrettyTable

from partialkd.config import DistConfig
from partialkd.config.load import parse_config
from partialkd.run.job import run_job
from partialkd.storage.atomic_files import write_json
from partialkd.world.world import World

IDENTITIES, NEW, IMAGES, PAIRS = 80, 20, 24, 1500
STEPS, SHARE, BATCH = 180, 3, 48
MODEL = {"name": "mobilefacenet_gdc", "embedding_dim": 64, "width": 0.5, "depth": 0.5}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/start_from_weights"), help="of data and runs")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


def settings(folder: Path, name: str, seed: int, steps: int, images: int, **student: Any) -> dict[str, Any]:
    """A run of so many steps over so many images."""
    return {
        "run": {"name": f"{name}_{seed}", "folder": str(folder), "seed": seed, "checkpoint_every": 50,
                "keep_checkpoints": 1, "tensorboard": False},
        "data": {
            "path": str(folder / "data"), "image_size": 32, "loader": "jpeg", "workers": 1,
            "prepare": {"kind": "procedural", "identities": IDENTITIES, "images_per_identity": IMAGES,
                        "held_out_identities": 80, "pairs": PAIRS},
        },
        "student": {
            "model": MODEL, "method": {"name": "arcface", "scale": 16.0, "margin": {"m2": 0.0}},
            "epochs": steps / (images // BATCH), "global_batch": BATCH,
            "schedule": {"name": "cosine", "warmup_steps": steps // 10}, **student,
        },
        "evaluate": {"sets": ["faces.bin"], "fars": [0.1]},
    }  # fmt: skip


def of_seed(folder: Path, seed: int, world: World) -> dict[str, Any]:
    """Accuracies of the three students."""
    left_out = folder / "new.txt"
    left_out.write_text("\n".join(str(label) for label in range(IDENTITIES - NEW, IDENTITIES)))
    before = settings(folder, "before", seed, STEPS, (IDENTITIES - NEW) * IMAGES)
    before["data"]["exclude_identities"] = str(left_out)
    given = str(folder / f"before_{seed}")
    start = {
        "weights": given, "centres": {"weights": given, "label_map": "identity"},
        "optimizer": {"lr_factors": {"backbone": 0.25}},
    }  # fmt: skip
    whole = IDENTITIES * IMAGES
    runs = {
        "before": before,
        "scratch": settings(folder, "scratch", seed, STEPS, whole),
        "started": settings(folder, "started", seed, STEPS // SHARE, whole, **start),
    }
    return {"seed": seed, **{name: accuracy(one, world) for name, one in runs.items()}}


def accuracy(tree: dict[str, Any], world: World) -> float:
    """Train, or take what is there."""
    result = Path(tree["run"]["folder"]) / tree["run"]["name"] / "result.json"
    found = json.loads(result.read_text()) if result.exists() else run_job(parse_config(tree), world, "auto")
    return found["sets"]["faces"]["student"]["accuracy"]


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    with World.start(DistConfig(device="cpu")) as world:
        rows = [of_seed(args.folder, seed, world) for seed in range(args.seeds)]
    table = PrettyTable(["seed", "before", f"scratch, {STEPS} steps", f"started, {STEPS // SHARE} steps", "reached"])
    for row in rows:
        row["reached"] = row["started"] >= row["scratch"]
        table.add_row([f"{x:.4f}" if isinstance(x, float) else x for x in row.values()])
    print(table)
    if args.out:
        facts = {"steps": STEPS, "share": SHARE, "identities": IDENTITIES, "new": NEW, "pairs": PAIRS}
        write_json(args.out, {"seeds": rows, **facts, **machine(torch.device("cpu"))})


if __name__ == "__main__":
    main()
