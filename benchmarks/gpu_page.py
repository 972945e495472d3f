"""The page of what gpu.py has found: a verdict per target, then the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Found = dict[str, dict[str, Any]]  # results by item
Verdict = tuple[bool | None, str]  # met or not, None: not known; the figure

EXTRA_MB = 256
# docs/centres.md has the same sentences.
TARGETS: dict[str, Callable[[Found], Verdict]] = {}


def target(sentence: str) -> Callable[[Callable[[Found], Verdict]], Callable[[Found], Verdict]]:
    """Add a target."""

    def put(judge: Callable[[Found], Verdict]) -> Callable[[Found], Verdict]:
        TARGETS[sentence] = judge
        return judge

    return put


def page(device: str, results: Found, names: list[str], rehearsal: bool) -> str:
    """Write the page: device, results by item, names of all items."""
    lines = [f"# {'A rehearsal of the GPU run' if rehearsal else 'What a GPU said'}: {device}", ""]
    if rehearsal:
        lines += [
            "Small sizes: it shows that every item runs and what the page looks like. Its figures mean nothing.",
            "",
        ]
    facts = next(iter(results.values()), {})
    shown = ("torch", "python", "cuda", "commit")
    lines += [", ".join(f"{key} {facts[key]}" for key in shown if facts.get(key)), ""]
    lines += ["| target | met | figure |", "|---|---|---|"]
    for sentence, judge in TARGETS.items():
        met, figure = _judged(judge, results)
        said = "?" if met is None else "judged" if rehearsal else "yes" if met else "**no**"
        lines.append(f"| {sentence} | {said} | {_cell(figure)} |")
    lines += ["", "| item | what became of it | seconds |", "|---|---|---|"]
    for name in names:
        one = results.get(name)
        said = f"{one['status']} {one['said'].strip().splitlines()[-1] if one['said'].strip() else ''}" if one else ""
        lines.append(
            f"| {name} | {_cell(said.strip()) or 'not run'} | {one['took']:.0f} |" if one else f"| {name} | not run | |"
        )
    for part in (_steps, _rivals, _waits, _end_to_end, _job):
        lines += ["", *part(results)] if any(part(results)) else []
    return "\n".join(lines) + "\n"


def _judged(judge: Callable[[Found], Verdict], results: Found) -> Verdict:
    try:
        return judge(results)
    except (KeyError, ValueError, TypeError):  # an item is not there, or was cut off before what is asked for
        return None, "not measured"


def _cell(text: str) -> str:
    """Make text harmless within a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")[:160]


def _measured(results: Found, *items: str) -> list[dict[str, Any]]:
    return [one for item in items for one in (results.get(item, {}).get("found") or {}).get("measurements", [])]


def _best(ones: Iterable[dict[str, Any]], key: str) -> dict[str, Any]:
    return min(ones, key=lambda one: one[key])


def _of(results: Found, item: str, kinds: tuple[str, ...], store: str = "bf16") -> Iterator[list[dict[str, Any]]]:
    """Give the measurements of each kind; ValueError where there are none."""
    for kind in kinds:
        ones = [one for one in _measured(results, item) if one["kind"] == kind and one["store"] == store]
        if not ones:
            raise ValueError(kind)
        yield ones


# ------------------------------------------------------------------------------------------------- targets


@target("every test that needs a GPU passes")
def _tests(results: Found) -> Verdict:
    found = results["tests"]["found"]
    names = f": {', '.join(found['names'][:3])}" if found["names"] else ""
    said = f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped{names}"
    return found["failed"] == 0 and found["passed"] > 0, said


def _over(results: Found, kinds: tuple[str, ...], most: float) -> Verdict:
    best = [_best(ones, "over_floor") for ones in _of(results, "1m", kinds)]
    said = ", ".join(f"{one['kind']} {one['over_floor']:.2f} ({one['backend']})" for one in best)
    return all(one["over_floor"] <= most for one in best), said


@target("fixed and moving centres, 1 M classes, bf16: at most 1.25 of the plain products")
def _fixed_over(results: Found) -> Verdict:
    return _over(results, ("fixed", "ema"), 1.25)


@target("trainable centres, 1 M classes, bf16: at most 1.4 of the plain products")
def _trainable_over(results: Found) -> Verdict:
    return _over(results, ("trainable",), 1.4)


@target("at least 2 times faster than the materialised step, 125 k classes")
def _faster(results: Found) -> Verdict:
    kinds = ("fixed", "ema", "trainable")
    best = [max(one["speedup"] for one in ones if "speedup" in one) for ones in _of(results, "125k", kinds)]
    said = ", ".join(f"{kind} {one:.2f}" for kind, one in zip(kinds, best, strict=True))
    return min(best) >= 2, said


@target("faster than every other library that is installed, 125 k classes")
def _fastest(results: Found) -> Verdict:
    met, said = True, []
    for one in results["rivals"]["found"]["measurements"]:
        ours = {name: got["seconds"] for name, got in one["found"].items() if name.startswith("ours")}
        others = {name: got["seconds"] for name, got in one["found"].items() if name not in (*ours, "materialised")}
        if others:
            rival = min(others, key=lambda name: others[name])
            met &= min(ours.values()) <= others[rival]
            said.append(f"{one['kind']}: {others[rival] / min(ours.values()):.2f} times as fast as {rival}")
    absent = {name for one in results["rivals"]["found"]["measurements"] for name in one["absent"]}
    missing = f"; absent: {', '.join(sorted(absent))}" if absent else ""
    return (met if said else None), "; ".join(said) + missing


@target(f"a step needs at most {EXTRA_MB} MB beside the store, and no more at 8 M classes than at 1 M")
def _memory(results: Found) -> Verdict:
    large, met, said = _measured(results, "8m"), True, []
    for one in large:
        (few,) = [o for o in _measured(results, "1m") if all(o[k] == one[k] for k in ("kind", "backend", "store"))]
        extra, before = one["peak_extra_bytes"], few["peak_extra_bytes"]
        met &= extra <= EXTRA_MB * 1e6 and extra <= 1.1 * before
        said.append(f"{one['kind']} {before / 1e6:.0f}, {extra / 1e6:.0f} MB")
    return (met if said else None), "; ".join(said) or "not measured"


@target("auto is within a twentieth of the fastest backend, 1 M classes")
def _auto(results: Found) -> Verdict:
    ratios = {}
    for ones in _of(results, "1m", ("fixed", "ema", "trainable")):
        (auto,) = [one for one in ones if one["backend"] == "auto"]
        ratios[auto["kind"]] = auto["seconds"] / _best(ones, "seconds")["seconds"]
    return max(ratios.values()) <= 1.05, ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())


@target("no step of the centres makes the host wait")
def _no_wait(results: Found) -> Verdict:
    waiting = {name: where for name, where in results["waits"]["found"]["waits"].items() if where}
    return not waiting, "; ".join(f"{name}: {where}" for name, where in waiting.items()) or "none"


@target("kept teacher embeddings make the step faster")
def _cached(results: Found) -> Verdict:
    speedup = results["end_to_end"]["found"]["speedup"]
    return speedup > 1, f"{speedup:.2f} times"


@target("the default job ends at ZeRO stages 0 and 2, accuracies within 0.03")
def _alike(results: Found) -> Verdict:
    first, second = (results["job"]["found"][f"stage {stage}"]["accuracy"] for stage in (0, 2))
    off = max(abs(first[who] - second[who]) for who in first)
    return off <= 0.03, f"{off:.3f} at most between them"


# ------------------------------------------------------------------------------------------------- figures


def _steps(results: Found) -> Iterator[str]:
    items = [name for name, one in results.items() if (one.get("found") or {}).get("measurements") and name != "rivals"]
    if not items:
        return
    yield "| item | centres | classes | backend | ms | of the products | faster than materialised | extra MB |"
    yield "|---|---|---|---|---|---|---|---|"
    for item in items:
        for one in _measured(results, item):
            what = f"{one['kind']}, {one['store']} on {one['memory']}, rate {one['sample_rate']:g}"
            faster = f"{one['speedup']:.2f}" if "speedup" in one else ""
            figures = [f"{1000 * one['seconds']:.2f}", f"{one['over_floor']:.2f}", faster, _megabytes(one)]
            yield _row([item, f"{what}, products {one['products']}", one["classes"], one["backend"], *figures])
        for one in results[item]["found"].get("left_out", []):
            yield _row([item, f"{one['kind']}, {one['store']}", one["classes"], one["backend"], one["why"], "", "", ""])


def _rivals(results: Found) -> Iterator[str]:
    measurements = _measured(results, "rivals")
    if not measurements:
        return
    yield "| W | way | ms | faster than materialised | extra MB | gradient off by |"
    yield "|---|---|---|---|---|---|"
    for one in measurements:
        for name, got in one["found"].items():
            off = f"{got['off']:.1e}" if "off" in got else ""
            figures = [f"{1000 * got['seconds']:.2f}", f"{got['faster_than_materialised']:.2f}", _megabytes(got), off]
            yield _row([one["kind"], name, *figures])
        for name, why in one["absent"].items():
            yield _row([one["kind"], name, "absent", why, "", ""])


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(_cell(str(cell)) for cell in cells)} |"


def _megabytes(one: dict[str, Any]) -> str:
    return f"{one['peak_extra_bytes'] / 1e6:.0f}"


def _waits(results: Found) -> Iterator[str]:
    found = (results.get("waits", {}).get("found") or {}).get("waits", {})
    for name, where in found.items():
        yield f"- {name}: {_cell(where) if where else 'the host does not wait'}"


def _end_to_end(results: Found) -> Iterator[str]:
    found = results.get("end_to_end", {}).get("found") or {}
    for name, rate in found.get("images_per_second", {}).items():
        parts = ", ".join(f"{part} {1000 * seconds:.1f}" for part, seconds in found["seconds"][name].items())
        yield f"- teacher {name}: {rate:.0f} images/s; ms of a step with clocks: {parts}"


def _job(results: Found) -> Iterator[str]:
    for stage, one in (results.get("job", {}).get("found") or {}).items():
        accuracy = ", ".join(f"{who} {value:.3f}" for who, value in one["accuracy"].items())
        yield f"- the default job at {stage}: {one['seconds']:.0f} s, {accuracy}"
