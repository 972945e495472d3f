"""What a start from weights saves: steps to the accuracy of a student from scratch, on drawn faces.

    python benchmarks/start_from_weights.py [--seeds 5] [--folder FOLDER] [--out FILE]

For each seed three students (arcface, one rank, 24 pixels) are trained and scored on the same pairs of other people:

- before: over OLD identities, for STEPS steps
- scratch: over those and half as many new ones, for STEPS steps; judged every 2 EVERY steps
- started: over the same, from the network and the centres of "before", the new centres from class means, for a third
  of the steps, at half the rate for all but the head and the centres; judged every EVERY steps

The accuracy to reach is that of "scratch" after its last step. Reached after: the first step at which "started" was
judged to have it. For a comparison the same of "scratch" itself, which may be earlier than its last step, and of
"before" alone, without a single step over the new identities. A judgement is noisy, and the first of several to get
somewhere more so: therefore also "started" after its last step minus "scratch" after its last, of accuracy and of AUC.
Means over the seeds with 95 % intervals (Student's t).

All is kept in FOLDER: what is finished there is not trained again, what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from measure import STUDENT_T, machine
from prettytable import PrettyTable

from partialkd.config import DistConfig
from partialkd.config.load import parse_config
from partialkd.run.job import run_job
from partialkd.storage.atomic_files import write_json
from partialkd.world.world import World

IDENTITIES, OLD, IMAGES, PAIRS = 90, 60, 16, 2000
STEPS, SHARE, BATCH, EVERY = 360, 3, 32, 40
MODEL = {"name": "iresnet18", "embedding_dim": 64, "width": 0.125, "depth": 0.5}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/start_from_weights"), help="of data and runs")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


def settings(
    folder: Path, name: str, seed: int, steps: int, identities: int, every: int = EVERY, **student: Any
) -> dict[str, Any]:
    """A run of so many steps over so many identities."""
    return {
        "run": {"name": f"{name}_{seed}", "folder": str(folder), "seed": seed, "checkpoint_every": 200,
                "keep_checkpoints": 1, "tensorboard": False},
        "data": {
            "path": str(folder / "data"), "image_size": 24, "loader": "jpeg", "workers": 1,
            "prepare": {"kind": "procedural", "identities": IDENTITIES, "images_per_identity": IMAGES,
                        "held_out_identities": 80, "pairs": PAIRS},
        },
        "student": {
            "model": MODEL, "method": {"name": "arcface", "scale": 16.0, "margin": {"m2": 0.0}},
            "epochs": steps / (identities * IMAGES // BATCH), "global_batch": BATCH,
            "schedule": {"name": "cosine", "warmup_steps": steps // 10}, **student,
        },
        "evaluate": {"sets": ["faces.bin"], "fars": [0.1], "every": every},
    }  # fmt: skip


def of_seed(folder: Path, seed: int, world: World) -> dict[str, Any]:
    """Accuracies of the three students, and after how many steps that of "scratch" was reached."""
    left_out = folder / "new.txt"
    left_out.write_text("\n".join(str(label) for label in range(OLD, IDENTITIES)))
    before = settings(folder, "before", seed, STEPS, OLD, 0)
    before["data"]["exclude_identities"] = str(left_out)
    given = str(folder / f"before_{seed}")
    start: dict[str, Any] = {
        "weights": given, "centres": {"weights": given, "label_map": "identity"},
        "optimizer": {"lr_factors": {"backbone": 0.5}},
    }  # fmt: skip
    runs = {
        "before": before,
        "scratch": settings(folder, "scratch", seed, STEPS, IDENTITIES, 2 * EVERY),
        "started": settings(folder, "started", seed, STEPS // SHARE, IDENTITIES, **start),
    }
    found = {name: accuracies(one, world) for name, one in runs.items()}
    aucs = {
        f"AUC of {name}": score(Path(one["run"]["folder"]) / one["run"]["name"], "auc") for name, one in runs.items()
    }
    aim = found["scratch"][-1][1]
    last = {name: steps[-1][1] for name, steps in found.items()}
    reached = {f"steps of {name}": first_reached(found[name], aim) for name in ("scratch", "started")}
    return {"seed": seed, **last, **aucs, **reached, "judged": {name: found[name] for name in ("scratch", "started")}}


def first_reached(judged: list[tuple[int, float]], aim: float) -> int | None:
    """Return the first step with at least this accuracy, None without one."""
    return next((step for step, accuracy in judged if accuracy >= aim), None)


def accuracies(tree: dict[str, Any], world: World) -> list[tuple[int, float]]:
    """Train, or take what is there -> (step, accuracy) of every judgement, the last of the finished student."""
    config = parse_config(tree)
    folder = Path(config.run.folder) / config.run.name
    if not (folder / "result.json").exists():
        run_job(config, world, "auto")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["accuracy/faces"] for line in lines if "accuracy/faces" in line}
    judged[max(line["step"] for line in lines)] = score(folder, "accuracy")
    return sorted(judged.items())


def score(folder: Path, name: str) -> float:
    """Of the finished student: "accuracy" or "auc"."""
    return float(json.loads((folder / "result.json").read_text())["sets"]["faces"]["student"][name])


def interval(values: list[float]) -> list[float | None]:
    """Return the mean, and half the length of its 95 % interval (None of a single value)."""
    if len(values) < 2:
        return [statistics.mean(values), None]
    factor = STUDENT_T[min(len(values) - 2, len(STUDENT_T) - 1)]
    return [statistics.mean(values), factor * statistics.stdev(values) / len(values) ** 0.5]


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    with World.start(DistConfig(device="cpu")) as world:
        rows = [of_seed(args.folder, seed, world) for seed in range(args.seeds)]
    shown = [key for key in rows[0] if key != "judged"]
    table = PrettyTable(shown)
    for row in rows:
        table.add_row([f"{row[key]:.4f}" if isinstance(row[key], float) else row[key] for key in shown])
    means = {name: interval([row[name] for row in rows]) for name in ("before", "scratch", "started")}
    for name, prefix in (("accuracy", ""), ("AUC", "AUC of ")):
        means[f"{name}, started - scratch"] = interval(
            [row[f"{prefix}started"] - row[f"{prefix}scratch"] for row in rows]
        )
    taken = [row["steps of started"] for row in rows]
    if all(taken):
        means["share of the steps"] = interval([steps / STEPS for steps in taken])
    print(table)
    for name, (mean, half) in means.items():
        print(f"{name}: {mean:.4f}" + (f" +- {half:.4f}" if half is not None else ""))
    if args.out:
        facts = {"steps": STEPS, "share": SHARE, "identities": IDENTITIES, "old": OLD, "images": IMAGES, "pairs": PAIRS}
        write_json(args.out, {"seeds": rows, "means": means, **facts, **machine(torch.device("cpu"))})


if __name__ == "__main__":
    main()
