"""Run the default job, cut short, on the GPU at ZeRO stages 0 and 2, for gpu.py: do both end, and alike.

python benchmarks/gpu_job.py [--small] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from partialkd.storage.atomic_files import write_text

ROOT = Path(__file__).resolve().parents[1]
STAGES = (0, 2)
PHASES = ("teacher.train", "student", "alone")
SHORT = [
    "data.prepare.identities=12", "data.prepare.images_per_identity=8", "data.prepare.held_out_identities=6",
    "data.prepare.pairs=40", "teacher.train.model.width=0.25", "student.model.width=0.25", "alone.model.width=0.25",
    *(f"{phase}.global_batch=24" for phase in PHASES), *(f"{phase}.epochs=1" for phase in PHASES),
    *(f"{phase}.schedule.warmup_steps=1" for phase in PHASES),
    "evaluate.fars=[0.1]", "evaluate.folds=4",
]  # fmt: skip


def run(stage: int, folder: Path, small: bool) -> dict[str, Any]:
    """The job at one stage -> seconds and accuracies; RuntimeError with what it said last."""
    settings = [f"{phase}.zero_stage={stage}" for phase in PHASES]
    settings += [f"run.name=stage_{stage}", f"run.folder={folder / 'runs'}", f"data.path={folder / 'data'}"]
    settings += ["data.loader=jpeg", "dist.device=cuda", "run.tensorboard=false", *(SHORT if small else [])]
    program = [sys.executable, str(ROOT / "launch" / "train.py")]
    start = time.monotonic()
    done = subprocess.run(
        [*program, "configs/quickstart.toml", *settings], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"stage {stage}: {(done.stdout + done.stderr)[-1500:]}")
    result = json.loads((folder / "runs" / f"stage_{stage}" / "result.json").read_text(encoding="utf-8"))
    accuracy = {who: scores["accuracy"] for sets in result["sets"].values() for who, scores in sets.items()}
    return {"seconds": time.monotonic() - start, "accuracy": accuracy}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a job of seconds, for a rehearsal")
    parser.add_argument("--out", type=Path, help="write the JSON object here, not to the output")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            found[f"stage {stage}"] = run(stage, Path(folder), args.small)
            if args.out:
                write_text(args.out, json.dumps(found, indent=2) + "\n")
    if not args.out:
        print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
