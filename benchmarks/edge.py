"""The latency card: every target of export beside the others, in one run.

python benchmarks/edge.py runs/quickstart --to onnx,fp16,int8,openvino,opencv,ncnn --out edge_cpu.json

For each target and precision: milliseconds for one face (median and 95th percentile, one and two threads; all files in
turn, picture by picture), size of its files, peak memory that loading and running it takes beyond the imported runtime
(a process of its own, VmHWM after it was set back), and the accuracy and TAR at FAR 1e-3 on the named sets beside the
network's in torch; a folder of identities has no folds and so no accuracy, but many more pairs of two people.
Parameters and multiply-adds are counted (planner/network_cost.py). `--speed-only` leaves accuracy and TAR out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine

from partialkd.checkpoint.network import chosen
from partialkd.commands.export import described, run_config, set_of
from partialkd.errors import PartialKDError
from partialkd.export.base import Graph, Run, Target
from partialkd.export.edge import fitted
from partialkd.export.images import calibration_images
from partialkd.export.onnx import plain_network, to_onnx
from partialkd.export.parity import Judge, pictures_of, torch_run
from partialkd.export.targets import chosen_targets
from partialkd.models.network import Network
from partialkd.planner.network_cost import network_cost
from partialkd.storage.atomic_files import write_text

THREADS = (1, 2)
PEAK = """
import sys
from pathlib import Path
import numpy as np
from partialkd.export.base import Graph
from partialkd.export.targets import TARGETS
name, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
target = TARGETS[name]()
target.check(max(size, target.least_size))
graph = Graph(b"", None, size)
peak = lambda: int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
pictures = np.zeros((8, size, size, 3), np.uint8)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
run = target.open(folder, graph, 1)
for at in range(8):
    run(pictures[at : at + 1])
print(peak() - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--to", default="onnx,fp16,int8,opencv")
    parser.add_argument("--set", type=Path, nargs="+", help="of the first are the pictures that are timed")
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--runs", type=int, default=200, help="faces, one by one")
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    path = chosen(args.model)
    state, config, size = described(path)
    network, run = plain_network(state, config, size), run_config(path)
    sets = args.set or [set_of(run)]
    graph = Graph(to_onnx(network, {}), network, size, None, calibration_images(run, args.calibrate, size))
    pictures = pictures_of(sets[0], size)
    judges = {} if args.speed_only else {one.name: Judge(network, one, size) for one in sets}
    with tempfile.TemporaryDirectory() as work:
        written, left_out = write_all(chosen_targets(args.to), graph, Path(work), next(iter(judges.values()), None))
        found = {name: card(target, Path(work), graph, judges) for name, target in written.items()}
        for threads in THREADS:
            runs = {name: target.open(Path(work), graph, threads) for name, target in written.items()}
            for name, times in latencies(network, runs, pictures, args.runs, threads).items():
                found.setdefault(name, {})[f"ms_{threads}_threads"] = times
    cost = network_cost(config, size, 1, "fp32", training=False)
    facts = {
        **machine(torch.device("cpu")),
        "network": config.model_dump(mode="json"),
        "image_size": size,
        "parameters": cost.parameters,
        "multiply_adds": cost.flops // 2,
        "pictures": sets[0].name,
        "faces_timed": args.runs,
        "targets": found,
        "left_out": left_out,
    }
    facts["of_the_network"] = {name: {"tar": judge.tar, "accuracy": judge.accuracy} for name, judge in judges.items()}
    text = json.dumps(facts, indent=2)
    print(text)
    if args.out:
        write_text(args.out, text + "\n")


def write_all(
    targets: list[Target], graph: Graph, folder: Path, judge: Judge | None
) -> tuple[dict[str, Target], dict[str, str]]:
    """Write what can be written, as an export does -> it, and why the rest cannot."""
    written, left_out = {}, {}
    for target in targets:
        try:
            target.check(graph.image_size)
            if judge is None:
                target.write(graph, folder)
            else:
                fitted(target, graph, judge, folder)
            written[target.name] = target
        except PartialKDError as error:
            left_out[target.name] = str(error)
    return written, left_out


def card(target: Target, folder: Path, graph: Graph, judges: dict[str, Judge]) -> dict[str, Any]:
    found: dict[str, Any] = {"precision": target.precision, "runtime": f"{target.runtime} {target.version()}"}
    found["file_bytes"] = sum((folder / name).stat().st_size for name in target.files)
    command = [sys.executable, "-c", PEAK, target.name, str(folder), str(graph.image_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found["peak_kib"] = int(done.stdout.split()[-1])
    found |= target.notes()
    found["sets"] = {}
    for name, judge in judges.items():
        parity = judge.compare(target.open(folder, graph), target)
        found["sets"][name] = {**parity.facts(), "holds": parity.problem(target) is None}
    return found


def latencies(
    network: Network, runs: dict[str, Run], pictures: np.ndarray, count: int, threads: int
) -> dict[str, dict[str, float]]:
    """Milliseconds for one face: every file on each picture, in turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    everything = {"torch": torch_run(network), **runs}
    seconds: dict[str, list[float]] = {name: [] for name in everything}
    for at in range(-10, count):  # the first ten warm up
        picture = pictures[at % len(pictures)][None]
        for name, run in everything.items():
            start = time.perf_counter()
            run(picture)
            if at >= 0:
                seconds[name].append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(before)
    return {
        name: {"median": statistics.median(values), "p95": float(np.percentile(values, 95))}
        for name, values in seconds.items()
    }


if __name__ == "__main__":
    main()
