"""The fused kernels against float64, for a GPU and, as a program of its own, for Triton's interpreter.

TRITON_INTERPRET must be set before Triton is imported, which is why test_kernels.py starts this file: it runs every
case once on the CPU and prints {case: {what: relative error}}. What a kernel leaves unwritten is NaN here: torch's
deterministic mode fills new memory with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from helpers.kernel_cases import ADAMW_LR, CASES, DECAY, LR, Case, Make, build, error, fused, loop_bounds, terms_of
from partialkd.centres.rounding import Draw
from partialkd.centres.row_filter import RowFilter
from partialkd.centres.row_optimizers import RowAdamW, RowSGD
from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import Queries
from partialkd.centres.sweeps.chunked import ChunkedSweep
from partialkd.centres.sweeps.fused import FusedSweep
from partialkd.centres.sweeps.tiles import Tiles
from partialkd.centres.sweeps.tuner import Tuner


def check_sums(case: Case, device: torch.device, seed: int = 1, sweep: Make = fused) -> dict[str, float]:
    store, queries = build(case, device, seed)
    total, partition = sweep(case).sums(store, queries)
    unit = store.unit.double()
    terms, _, _ = terms_of(unit, queries, case.scale)
    wanted = terms @ unit
    slope, right = (o / z.clamp_min(1e-30)[:, None] for o, z in ((total.double(), partition), (wanted, terms.sum(1))))
    whole = float((slope - right).norm() / right.norm().clamp_min(1e-30))
    return {"Z": error(partition, terms.sum(1)), "O": error(total, wanted), "gradient": whole}


def check_move(case: Case, device: torch.device, seed: int = 2, sweep: Make = fused) -> dict[str, float]:
    """The gradient is what the momentum, or else the centre, has taken in."""
    store, queries = build(case, device, seed)
    optimizer = RowSGD(store, case.momentum, DECAY)
    old = store.read(slice(None)).double()
    unit = store.unit.double()
    partition = terms_of(unit, queries, case.scale)[0].sum(1).clamp_min(1e-30)
    n = case.samples
    weight = (case.scale / n * (0.5 + torch.rand(n, device=device)) / partition).float()
    target = -case.scale / n * torch.rand(n, device=device)
    centre = old.clone().requires_grad_()
    terms, cosine, own = terms_of(torch.nn.functional.normalize(centre), queries, case.scale)
    loss = (weight.double()[:, None] * terms).sum() / case.scale + (target.double()[:, None] * cosine * own).sum()
    (gradient,) = torch.autograd.grad(loss, centre)
    before = torch.zeros_like(old)
    if case.momentum:
        before = (
            torch.randn(old.shape, device=device).double().float().double() * float(gradient.abs().amax())
            if len(old)
            else old
        )
        store.moments["momentum"].copy_(before)
        before = store.moments["momentum"].double()
    untouched = {"unit": store.unit.clone(), "length": store.length.clone(), "momentum": before.clone()}
    sweep(case).move(store, [(queries, weight, target)], optimizer, LR)
    kept = queries.filter.keep(0, len(old))
    step = case.momentum * before + gradient + DECAY * old
    moved = old - LR * step
    now = store.moments["momentum"].double() if case.momentum else (old - store.read(slice(None)).double()) / LR
    got = now - case.momentum * before - DECAY * old
    left = (store.unit[~kept] != untouched["unit"][~kept]).any() | (
        store.length[~kept] != untouched["length"][~kept]
    ).any()
    if case.momentum:
        left |= (now[~kept] != untouched["momentum"][~kept]).any()
    scale = float(gradient.norm(dim=1).amax()) if len(old) else 1.0
    whole = float((got - gradient)[kept].norm() / gradient[kept].norm()) if kept.any() else 0.0
    lengths = store.unit[kept].double().norm(dim=1)
    return {
        "gradient": whole,
        "worst row": float((got - gradient)[kept].norm(dim=1).amax() / scale) if kept.any() else 0.0,
        "centre": error(store.read(slice(None))[kept], moved[kept]),
        "unit": float((lengths - 1).abs().amax()) if len(lengths) else 0.0,
        "length": error(store.length[kept], moved[kept].norm(dim=1)),
        "rows that should stay": float(left),
    }


def check_adamw(
    case: Case, device: torch.device, seed: int = 5, sweep: Make = fused, second: Any = "row"
) -> dict[str, float]:
    """Three steps of fresh batches by the kernel, against `RowAdamW` chunk by chunk on a float64 store.

    Every third row has a past. bfloat16 rows have bfloat16 moments, both rounded stochastically: the interpreter cuts
    off what should be rounded to nearest. `centre`, `unit`, `length`: of the worst row, others of all.
    """
    store, _ = build(case, device, seed)
    dense = CentreStore.empty(store.shard, store.num_classes, case.dim, torch.float64, device)
    betas, eps = (case.momentum, 0.999), 1e-8
    rules = [RowAdamW(rows, betas, eps, DECAY, second, rows.unit.dtype) for rows in (store, dense)]
    past = torch.arange(case.rows, device=device) % 3 == 0
    store.moments["first"][past] = 1e-3 * torch.randn_like(store.moments["first"][past])
    store.moments["second"][past], store.moments["count"][past] = 1e-6, 500
    dense.load_state(store.state())
    dense.unit.copy_(store.unit)
    dense.moments = {name: value.double() for name, value in store.moments.items()}
    before, kept = {name: value.clone() for name, value in store.state().items()}, torch.zeros_like(past)
    old, n = store.read(slice(None)).double(), case.samples
    for step in range(3):
        _, queries = build(case, device, seed + step)
        exact = Queries(queries.embeddings.double(), queries.owned, queries.row, queries.filter)
        partition = terms_of(dense.unit, queries, case.scale)[0].sum(1).clamp_min(1e-30)
        weight = (case.scale / n * (0.5 + torch.rand(n, device=device)) / partition).float()
        target = -case.scale / n * torch.rand(n, device=device)
        with store.rounding(Draw(seed=7, step=step)):
            sweep(case).move(store, [(queries, weight, target)], rules[0], ADAMW_LR)
        ChunkedSweep(case.scale).move(dense, [(exact, weight.double(), target.double())], rules[1], ADAMW_LR)
        kept |= queries.filter.keep(0, case.rows)
    now, wanted = store.read(slice(None))[kept], dense.read(slice(None))[kept]
    pairs = {name: (store.moments[name][kept], dense.moments[name][kept]) for name in dense.moments}
    pairs["way"] = (now.double() - old[kept], wanted - old[kept])
    whole = {name: error(a.reshape(1, -1), b.reshape(1, -1)) for name, (a, b) in pairs.items()}
    lengths, after = store.unit[kept].double().norm(dim=1), store.state()
    return {
        **whole,
        "centre": error(now, wanted),
        "unit": error(lengths, torch.ones_like(lengths)),
        "length": error(store.length[kept], dense.length[kept]),
        "rows that should stay": float(any((after[key] != value)[~kept].any() for key, value in before.items())),
    }


def check_tiles(device: torch.device) -> dict[str, float]:
    """Every way to cut one problem, empty splits among them, against float64."""
    from partialkd.centres.sweeps import sum_kernel as kernels

    case = Case()
    store, queries = build(case, device, 3)
    own = torch.where(queries.owned, queries.row, -1).to(torch.int32)
    terms, _, _ = terms_of(store.unit.double(), queries, case.scale)
    found = {}
    for tiles in (Tiles(16, 16, 4, 1), Tiles(16, 64, 4, 1), Tiles(64, 16, 4, 1), Tiles(128, 128, 4, 1)):
        for splits in (1, 2, 3, 7, 20):
            args = (store.unit, queries.embeddings, own, None, case.scale, 0.0)
            total, partition = kernels.sums(*args, tiles, splits)
            found[f"{tiles}, {splits}"] = max(error(total, terms @ store.unit.double()), error(partition, terms.sum(1)))
    return found


def check_repeats(device: torch.device) -> dict[str, float]:
    """Bits that differ between two runs."""
    case = CASES["sampled"]
    first, second = (FusedSweep(64.0).sums(*build(case, device, 4)) for _ in range(2))
    return {name: float((a != b).sum()) for name, a, b in zip("OZ", first, second, strict=True)}


def check_rounding(device: torch.device) -> dict[str, float]:
    """Rounded stochastically, values are the neighbours of what they should be, and on average the value itself."""
    n, dim, drawn = 400, 64, []
    queries = Queries(
        torch.zeros(1, dim, device=device),
        torch.zeros(1, dtype=torch.bool, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
        RowFilter(n, torch.zeros(0, dtype=torch.int64, device=device)),
    )
    nothing = torch.zeros(1, device=device)
    for step, backwards in ((3, False), (3, True), (4, False)):
        store = CentreStore.empty(range(50, 50 + n), 1000, dim, torch.bfloat16, device)
        store.write(slice(None), torch.ones(n, dim, device=device))
        store.ids = torch.arange(50 + n, 50, -1, device=device) - 1 if backwards else None
        optimizer = RowSGD(store, 1.0, 0.0)
        store.moments["momentum"].fill_(-1e-3)
        store.moments["momentum"][:, ::2] = 2e-3  # steps far below the spacing of bfloat16 at 1/8, 2^-10
        exact = 1 / 8 * store.length[:, None] - 0.3 * store.moments["momentum"]
        exact = exact / exact.norm(dim=1, keepdim=True)
        with store.rounding(Draw(seed=7, step=step)):
            FusedSweep(64.0).move(store, [(queries, nothing, nothing)], optimizer, LR)
        drawn.append(store.unit.float())
    off = (drawn[0] - exact).abs()
    means = [
        (part - wanted).mean().abs() / off.mean()
        for part, wanted in zip((drawn[0][:, ::2], drawn[0][:, 1::2]), (exact[:, ::2], exact[:, 1::2]), strict=True)
    ]
    return {
        "bias": float(max(means)),
        "more than one neighbour": float((off > 2.0**-10).any()),
        "other bits for the same class": float(not torch.equal(drawn[0], drawn[1].flip(0))),
        "same at another step": float((drawn[0] == drawn[2]).float().mean()) * 0.1,
        "same in all rows": float((drawn[0] == drawn[0][:1]).float().mean()) * 0.1,
    }


def check_engine(device: torch.device) -> dict[str, float]:
    """Whole steps of methods, by `centres.backend`, among them what has no kernel: AdamW, several micro-steps."""
    from helpers import centre_cases as whole
    from helpers import dense
    from partialkd.world.world import World

    found = {}
    for name, settings in (
        ("arcface", {}), ("arcface", {"optimizer": whole.ADAMW}), ("arcface", {"splits": 2}), ("arcface", {"steps": 3}),
        ("ada_weighted", {}), ("arcdistill", {}), ("margindistillation", {}),
    ):  # fmt: skip
        p = whole.problem(classes=40)
        p = dense.Problem(*(value.to(device) for value in vars(p).values()))
        got = whole.one_step(
            World(device=device), name, p, {"backend": "fused", "products": "fp32", "dtype": torch.float32, **settings}
        )
        wanted = whole.expected(name, p, whole.SCALE, settings.get("optimizer", whole.SGD), settings.get("steps", 1))
        gradient = torch.cat(got["gradient"]) / len(got["gradient"])
        found[f"{name} {settings}"] = max(
            error(got["loss"].mean()[None], wanted[0][None]),
            error(gradient, wanted[1]),
            error(got["centres"], wanted[2]),
        )
    return found


def check_measured(device: torch.device, path: Path) -> dict[str, float]:
    """What `auto` compares before it measures: 1 where it finds that the kernels do not agree with the chunked path."""
    from partialkd.centres.sweeps import fastest as measured

    found = {}
    for name in ("tails", "scale 30", "scale 128", "duplicates", "sampled"):
        measured.TUNING_ROWS = measured.LEAST_ROWS = 30
        store, queries = build(CASES[name], device, 6)
        scale, n = CASES[name].scale, CASES[name].samples
        clock = iter([2.0, 1.0] * 3)  # chunked, fused
        sweep = measured.FastestSweep(
            ChunkedSweep(scale), {"fused": FusedSweep(scale)}, Tuner(path / name), lambda run, clock=clock: next(clock)
        )
        partition = sweep.sums(store, queries)[1].clamp_min(1e-30)
        batch = (queries, scale / n / partition, torch.full_like(partition, -scale / n / 2))
        for kind in ("sgd", "adamw"):
            store.moments.clear()
            betas = (0.9, 0.999)
            rule = RowSGD(store, 0.9, DECAY) if kind == "sgd" else RowAdamW(store, betas, 1e-8, DECAY, "row")
            sweep.move(store, [batch], rule, ADAMW_LR)
        found[name] = 3.0 - list(json.loads((path / name).read_text()).values()).count("fused")
    return found


def poisoned() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def main() -> None:
    cpu = torch.device("cpu")
    loop_bounds()
    poisoned()
    found = {f"sums, {name}": check_sums(case, cpu) for name, case in CASES.items()}
    found |= {f"move, {name}": check_move(case, cpu) for name, case in CASES.items()}
    found |= {f"adamw, {name}": check_adamw(case, cpu) for name, case in CASES.items()}
    found |= {
        "tiles": check_tiles(cpu),
        "repeats": check_repeats(cpu),
        "rounding": check_rounding(cpu),
        "engine": check_engine(cpu),
    }
    torch.use_deterministic_algorithms(False)  # with them `auto` measures nothing
    with TemporaryDirectory() as folder:
        found["measured"] = check_measured(cpu, Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
