"""Find where a centre step makes the host wait for the GPU, by torch's own detector.

    python benchmarks/host_waits.py [--kind fixed ema trainable] [--backend chunked ...] [--classes 200000] [--json]
                                    [--out FILE]

After three steps, which may wait (a first use is measured, learnt, compiled), one more runs in which torch raises an
error where the host would wait. docs/centres.md says that none does.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from centre_step import KINDS, engine_step, make_inputs, make_store
from measure import machine
from rivals import as_step

from partialkd.storage.atomic_files import write_text

WARM_UP = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--backend", nargs="+", default=["chunked", "graphed", "gemm", "fused", "auto"])
    parser.add_argument("--store", default="bf16")
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a GPU")
    return args


def waits(args: argparse.Namespace, kind: str, backend: str) -> str | None:
    """Say where a step waits; None: nowhere."""
    device, case = torch.device("cuda"), as_step(args, kind, backend)
    store = make_store(case, device)
    step = engine_step(case, store, make_inputs(case, store, device), None)
    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "partialkd" in frame.filename] or frames
        return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error).partition(chr(10))[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def main() -> int:
    args = parse_args()
    result: dict[str, Any] = {**machine(torch.device("cuda")), "store": args.store, "classes": args.classes}
    cases = [(kind, backend) for kind in args.kind for backend in args.backend]
    result["waits"] = {f"{kind}, {backend}": waits(args, kind, backend) for kind, backend in cases}
    if args.out:
        write_text(args.out, json.dumps(result, indent=2) + "\n")
    if args.json:
        print(json.dumps(result))
    else:
        for name, where in result["waits"].items():
            print(f"{name}: {where or 'does not wait'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
