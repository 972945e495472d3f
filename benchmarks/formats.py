"""Every format that is read against .rec: the same JPEG bytes, the same order, on the same cores.

    python benchmarks/formats.py [--cores 2] [--images 2048] [--batch 128] [--runs 7] [--json] [--out FILE]

The images: procedural faces as JPEG of quality 95 (as benchmarks/loaders.py draws them), written in each format. In one
process bound to `cores` cores, with as many decoding threads, whole passes in random order run in turn, .rec before
and after each of the others. A rate of 1.0 is that of .rec: the median over the turns of
(seconds of .rec, mean of the two passes around) / (seconds of the other), once in seconds of the processor and once by
the clock. On a machine shared with others the first says more.

Also: the time of the processor for one read without decoding, and what one image costs where a row group of Parquet is
read for it (the reason why Parquet is written out once).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import pyarrow
import pyarrow.parquet
import torch
from loaders import pack
from measure import machine
from prettytable import PrettyTable

from partialkd.config import DataConfig
from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.packing.pack import PackOptions
from partialkd.data.packing.pack import pack as pack_as
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import Source

CPU, SIZE = torch.device("cpu"), 112
ROW_GROUP = 100  # rows, as `datasets` writes images


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    if args.images < args.batch:
        parser.error(f"--images must be at least --batch ({args.batch}), got {args.images}")
    return args


def write_all(root: Path, images: int) -> tuple[dict[str, Path], int]:
    """Write the set in every format -> paths by `data.source`, mean bytes of an image."""
    mean_bytes = pack(root / "rec", images, "420")
    source = open_source(DataConfig(path=str(root / "rec")))
    content = [source.read(index) for index in range(len(source))]
    pack_as(root / "rec", root / "tar", PackOptions(to="webdataset", shard_images=1000), "recordio")
    opened = lmdb.open(str(root / "lmdb"), subdir=False, map_size=1 << 40)
    with opened as file, file.begin(write=True) as to:
        for number, item in enumerate(content):
            to.put(b"%d" % number, msgpack.packb(item))
        to.put(b"__keys__", msgpack.packb([b"%d" % number for number in range(images)]))
    rows = pyarrow.array([{"bytes": image, "path": None} for image, _ in content])
    table = pyarrow.table({"image": rows, "label": [label for _, label in content]})
    with pyarrow.ipc.new_stream(str(root / "table.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    pyarrow.parquet.write_table(table, root / "table.parquet", row_group_size=ROW_GROUP)
    (root / "im2rec").mkdir()
    with open_writer(root / "im2rec" / "a.rec", root / "im2rec" / "a.idx") as records:
        for number, (image, label) in enumerate(content):
            records.write(number, pack_payload(label, number, image))
    return {
        "recordio": root / "rec", "im2rec": root / "im2rec", "lmdb": root / "lmdb", "arrow": root / "table.arrow",
        "parquet": root / "table.parquet", "webdataset": root / "tar",
    }, mean_bytes  # fmt: skip


class Pass:
    """Reads whole epochs of one format; every call is the next epoch."""

    def __init__(self, form: str, path: Path, args: argparse.Namespace, cache: Path) -> None:
        self.data = DataConfig.model_validate(
            {"path": str(path), "source": form, "workers": args.cores, "index_cache": str(cache)}
        )
        self.source = open_source(self.data)
        self.plan = TrainingPlan(len(self.source), BatchCut(args.batch), seed=0, flip=True)

    def seconds(self, epoch: int) -> tuple[float, float]:
        """Read one epoch -> seconds of the processor, seconds by the clock."""
        start = time.process_time(), time.perf_counter()
        for _ in open_loader(self.data, self.source, self.plan, CPU).epoch(epoch):
            pass
        return time.process_time() - start[0], time.perf_counter() - start[1]


def ratios(passes: dict[str, Pass], runs: int) -> dict[str, dict[str, float]]:
    """Rates relative to .rec, the passes in turn."""
    found: dict[str, list[tuple[float, float]]] = {form: [] for form in passes if form != "recordio"}
    for one in passes.values():
        one.seconds(0)
    for epoch in range(1, runs + 1):
        before = passes["recordio"].seconds(epoch)
        for form, values in found.items():
            between, after = passes[form].seconds(epoch), passes["recordio"].seconds(epoch)
            values.append(((before[0] + after[0]) / 2 / between[0], (before[1] + after[1]) / 2 / between[1]))
            before = after
    return {
        form: {"processor": statistics.median(p for p, _ in values), "clock": statistics.median(c for _, c in values)}
        for form, values in found.items()
    }


def microseconds(act: Callable[[int], Any], count: int) -> float:
    """Median over five passes of the processor's time for one call."""
    found = []
    for _ in range(5):
        start = time.process_time()
        for index in range(count):
            act(index * 7919 % count)
        found.append((time.process_time() - start) / count * 1e6)
    return statistics.median(found)


def row_group_read(path: Path) -> Callable[[int], bytes]:
    file = pyarrow.parquet.ParquetFile(path)
    return lambda row: file.read_row_group(row // ROW_GROUP, ["image"])["image"][row % ROW_GROUP]["bytes"].as_py()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    torch.set_num_threads(args.cores)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        paths, mean_bytes = write_all(root, args.images)
        passes = {form: Pass(form, path, args, root / "cache") for form, path in paths.items()}
        check([one.source for one in passes.values()])
        reads = {form: microseconds(one.source.read, args.images) for form, one in passes.items()}
        reads["one image out of a row group of Parquet"] = microseconds(row_group_read(paths["parquet"]), 200)
        rates = ratios(passes, args.runs)
    return {
        "images": args.images, "batch": args.batch, "cores": args.cores, "runs": args.runs, "mean_bytes": mean_bytes,
        "rate_of_rec": rates, "read_microseconds": reads, "row_group": ROW_GROUP, "load_average": os.getloadavg()[0],
        **machine(CPU),
    }  # fmt: skip


def check(sources: list[Source]) -> None:
    """Every format gives the same bytes and class ids."""
    for index in range(len(sources[0])):
        if len({source.read(index) for source in sources}) != 1:
            raise SystemExit(f"image {index} is not the same in all formats")


def table_of(result: dict[str, Any]) -> str:
    table = PrettyTable(["format", "rate of .rec, processor", "by the clock", "one read, microseconds"])
    for form, read in result["read_microseconds"].items():
        rate = result["rate_of_rec"].get(form)
        table.add_row([form, *(f"{rate[key]:.3f}" if rate else "" for key in ("processor", "clock")), f"{read:.1f}"])
    return str(table)


def main() -> None:
    args = parse_args()
    result = measure(args)
    print(json.dumps(result) if args.json else table_of(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
