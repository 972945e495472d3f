"""What rounding does to centres and to a step: the errors that docs/centres.md states. No timing.

    python benchmarks/rounding.py [--json] [--out FILE]

- stores: centres of D = 512 go towards a teacher's by steps of a moving average, in float32 and in each narrow store,
  rounded stochastically or to nearest. way: share of float32's movement, along its direction. error: of the centre,
  relative to its length.
- products: one step of ArcFace with trained centres (2000 classes, D = 128, 48 samples, float32 store) with float32
  and with bfloat16 products, against the same step in float64: relative errors of the loss, of the gradient of the
  embeddings, and of the way that the centres moved. On a CPU without bfloat16 products both are float32.

On the CPU; the seeds are fixed. Numbers may differ in their last digit between processors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import machine
from prettytable import PrettyTable
from torch import Tensor

from partialkd.centres import Centres, CentreStore
from partialkd.centres.rounding import Draw
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.centres.store import DTYPES
from partialkd.config import CentresConfig, OptimizerConfig
from partialkd.methods.margins import arc_margin, margin_softmax
from partialkd.storage.atomic_files import write_json
from partialkd.world.world import World

CPU = torch.device("cpu")
ALL = slice(None)
WALKS = ((300, 1e-4), (3000, 1e-4), (3000, 1e-3), (3000, 1e-1))  # steps, share of the distance a step
ROWS, WALKED_DIM = 200, 512
CLASSES, DIM, SAMPLES, MARGIN = 2000, 128, 48, 0.5
SCALES = (30.0, 64.0, 128.0)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


def walked(name: str, stochastic: bool, steps: int, share: float, start: Tensor, towards: Tensor) -> Tensor:
    """Where centres (n, D) of this store are after the moving average's steps."""
    store = CentreStore.empty(range(len(start)), len(start), start.shape[1], DTYPES[name], CPU)
    store.write(ALL, start)
    for step in range(steps):
        centre = store.read(ALL)
        with store.rounding(Draw(1, step)) if stochastic else nullcontext():
            store.write(ALL, centre + share * (towards - centre))
    return store.read(ALL)


def stores() -> Iterator[dict[str, Any]]:
    """Errors of each walk in each narrow store."""
    torch.manual_seed(0)
    start, towards = F.normalize(torch.randn(2, ROWS, WALKED_DIM), dim=2)
    for steps, share in WALKS:
        exact = walked("fp32", False, steps, share, start, towards)
        for stochastic in (True, False):
            for name in ("bf16", "int8"):
                got = walked(name, stochastic, steps, share, start, towards)
                way = ((got - start) * (exact - start)).sum() / (exact - start).square().sum()
                error = (got - exact).norm() / exact.norm()
                rounding = "stochastic" if stochastic else "nearest"
                yield {
                    "steps": steps, "share": share, "store": name, "rounding": rounding,
                    "way": way.item(), "error": error.item(),
                }  # fmt: skip


def stepped(products: str, dtype: torch.dtype, scale: float) -> dict[str, Tensor]:
    """Loss, gradient (N, D) of the embeddings and way (C, D) of the centres, in float64."""
    torch.manual_seed(0)
    centres, x = torch.randn(CLASSES, DIM) * 0.01, torch.randn(SAMPLES, DIM)
    labels = torch.randint(CLASSES, (SAMPLES,))
    x += 30 * centres[labels]  # neither random nor learned: cosines with the own centre of about 0.3
    store = CentreStore.empty(range(CLASSES), CLASSES, DIM, dtype, CPU)
    store.write(ALL, centres.to(dtype))
    before = store.read(ALL).double()
    config = CentresConfig(products=products)  # type: ignore[arg-type]
    optimizer = make_row_optimizer(store, OptimizerConfig())
    engine = Centres(store, World(device=CPU), scale, config, optimizer=optimizer)
    embeddings = x.to(dtype).requires_grad_()
    found = engine.contrast(embeddings, labels)
    loss = margin_softmax(found.negative, arc_margin(found.target, MARGIN), scale)
    loss.backward()
    engine.step(0.1)
    assert embeddings.grad is not None
    return {"loss": loss.detach(), "gradient": embeddings.grad, "way": store.read(ALL).double() - before}


def products() -> Iterator[dict[str, Any]]:
    """Errors of a step at each scale."""
    for scale in SCALES:
        exact = stepped("fp32", torch.float64, scale)
        for name in ("fp32", "bf16"):
            got = stepped(name, torch.float32, scale)
            errors = {key: ((got[key] - value).norm() / value.norm()).item() for key, value in exact.items()}
            yield {"scale": scale, "products": name, **errors}


def table_of(rows: list[dict[str, Any]]) -> PrettyTable:
    table = PrettyTable(list(rows[0]))
    table.add_rows([[f"{x:.3g}" if isinstance(x, float) else x for x in row.values()] for row in rows])
    return table


def main() -> None:
    args = parse_args()
    result = {"stores": list(stores()), "products": list(products()), **machine(CPU)}
    if args.out:
        write_json(args.out, result)
    print(json.dumps(result) if args.json else f"{table_of(result['stores'])}\n{table_of(result['products'])}")


if __name__ == "__main__":
    main()
