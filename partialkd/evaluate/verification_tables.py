"""Results of verification sets: tables for a person, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from prettytable import PrettyTable

from partialkd.evaluate.cells import between, rate_cell, share_cell
from partialkd.evaluate.intervals import mean_of_groups
from partialkd.evaluate.pairs import PairScores

Results = dict[str, dict[str, PairScores]]  # {set: {"teacher" | "student" | "alone" | ...: scores}}


def results_table(results: Results) -> PrettyTable:
    """One line a set and network; shares in per cent."""
    entries = [(name, who, scores) for name, networks in results.items() for who, scores in networks.items()]
    fars = list(dict.fromkeys(far for _, _, scores in entries for far in scores.tar_at_far))
    table = PrettyTable(
        ["set", "network", "accuracy %", "AUC", *(f"TAR % @ FAR {far}" for far in fars), "threshold", "pairs"]
    )
    table.align["set"] = table.align["network"] = "l"
    for name, who, scores in entries:
        accuracy = f"{100 * scores.accuracy:.2f} ± {100 * scores.accuracy_std:.2f}"
        accuracy += between(scores.interval.get("accuracy"))
        auc = f"{scores.auc:.4f}" + between(scores.interval.get("auc"), 1, 3)
        tars = [_tar(scores, far) for far in fars]
        table.add_row([name, who, accuracy, auc, *tars, f"{scores.threshold:.3f}", scores.pairs])
    return table


def _tar(scores: PairScores, far: str) -> str:
    if far not in scores.tar_at_far:
        return ""
    interval = scores.interval.get("tar_at_far", {}).get(far)
    if not scores.impostors:  # of results that were kept before they were counted
        return share_cell(scores.tar_at_far[far], interval)
    return rate_cell(scores.tar_at_far[far], interval, float(far), scores.impostors)


def results_dict(results: Results) -> dict[str, Any]:
    """The same as JSON: {"sets": {set: {network: {"accuracy": ..., "tar_at_far": {...}, ...}}}}."""
    return {"sets": {name: {who: asdict(scores) for who, scores in row.items()} for name, row in results.items()}}


def over_groups(scores: dict[str, PairScores]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and worst of each number over sets that are groups, as RFW's tables have them."""
    found = {}
    for key in ("accuracy", "auc"):
        values = {name: getattr(one, key) for name, one in scores.items()}
        found[key] = group_summary(values, {name: one.interval.get(key) for name, one in scores.items()})
    for far in next(iter(scores.values())).tar_at_far:
        values = {name: one.tar_at_far[far] for name, one in scores.items()}
        limits = {name: one.interval.get("tar_at_far", {}).get(far) for name, one in scores.items()}
        few = any(one.too_few_impostors.get(far, False) for one in scores.values())
        found[f"tar_at_far {far}"] = group_summary(values, limits) | {"too_few_impostors": few}
    return found


def group_summary(values: Mapping[str, float], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Mean, standard deviation and worst of a number over groups, with intervals of the mean and of the worst."""
    worst, numbers = min(values, key=lambda group: values[group]), np.array(list(values.values()))
    known = all(limits[group] is not None for group in values)
    mean = list(mean_of_groups([(value, limits[group]) for group, value in values.items()])) if known else None
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        "worst": worst,
        "worst_value": values[worst],
        "interval": {"mean": mean, "worst_value": limits[worst]},
    }


def groups_table(groups: dict[str, dict[str, Any]], name: str) -> PrettyTable:
    """One line a number, shares in per cent; a dash where a group has too few impostors."""
    table = PrettyTable([name, "mean %", "spread", "worst group", "worst %"])
    for key, one in groups.items():
        if one.get("too_few_impostors"):
            table.add_row([key, "-", "-", "-", "-"])
            continue
        cells = [share_cell(one[part], one["interval"][part]) for part in ("mean", "worst_value")]
        table.add_row([key, cells[0], f"{100 * one['std']:.2f}", one["worst"], cells[1]])
    return table


def differences_table(differences: dict[str, dict[str, Any]], one: str, other: str) -> PrettyTable:
    """One line a set: how many points the first network is better, with 95 % intervals."""
    columns = list(next(iter(differences.values())))
    table = PrettyTable([f"{one} - {other}, points", *columns])
    for name, found in differences.items():
        table.add_row([name, *(_difference(found[key]) for key in columns)])
    return table


def _difference(found: dict[str, Any]) -> str:
    if found.get("too_few_impostors"):
        return "-"
    return f"{100 * found['difference']:+.2f}{between(found['interval'], 100, 2)}"
