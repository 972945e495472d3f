"""The model card of a run: a folder in the layout of Hugging Face, with figures, data, licences, thresholds and hashes.

    README.md            the card: YAML that the hub reads, and prose
    config.json          models/model_folder.py
    model.safetensors    the network
    <exported files>     those of an export folder of the same network, where one is given

A figure is in the card only if the run has measured it. Licences are fields that a person fills: what is not given is
said to be unknown. Text that comes from elsewhere (names of sets, paths) is escaped.
Errors: ConfigError, CheckpointError naming the file; the folder is complete or not there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from partialkd.config import Config, ModelConfig
from partialkd.errors import CheckpointError, ConfigError, printable
from partialkd.evaluate.card import FARS, compact
from partialkd.evaluate.cells import between, share_cell, star
from partialkd.export.edge import REPORT
from partialkd.models.build import build_empty
from partialkd.models.model_folder import sha256_of, write_config
from partialkd.models.saved import MODEL, save_model
from partialkd.models.weights import put_weights
from partialkd.storage.atomic_files import new_folder, write_text

LICENCES = ("weights", "training data", "teacher")
# Identifiers of licences that the hub knows; others have to be "other", with a name.
HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unknown"),
)
UNKNOWN = "not stated"


@dataclass(frozen=True)
class Facts:
    """What a card is made of. fingerprint: of the network, which card and exports must be of."""

    state: dict[str, Tensor]
    model: ModelConfig
    image_size: int
    fingerprint: str
    run: Config | None
    result: dict[str, Any] | None  # of the run: result.json
    phase: str
    card: dict[str, Any] | None  # evaluate/card.py
    exported: Path | None
    licences: dict[str, str]


def write_model_folder(folder: Path, facts: Facts) -> None:
    """Write the folder, which must not be there or be empty."""
    report = _export_report(facts)
    network = build_empty(facts.model, facts.image_size)
    put_weights(network, facts.state, "the network", assign=True)
    with new_folder(folder) as hidden:
        save_model(hidden / MODEL, network, facts.model, facts.image_size)
        for name in _exported_files(report):
            shutil.copyfile(Path(facts.exported or ".") / name, hidden / name)
        more: dict[str, Any] = {"fingerprint": facts.fingerprint}
        if facts.card is not None:
            more["thresholds"] = compact(facts.card)
            more["threshold_faces"] = facts.card.get("faces")
        write_config(hidden, facts.model, facts.image_size, more)
        hashes = {path.name: sha256_of(path) for path in sorted(hidden.iterdir())}
        write_text(hidden / "README.md", readme(facts, report, hashes))


def readme(facts: Facts, report: dict[str, Any] | None, hashes: dict[str, str]) -> str:
    """Write the card's text."""
    parts = [_head(facts), _what(facts), _use(facts), _figures(facts), _thresholds(facts), _exports(report)]
    parts += [_data(facts), _licences(facts), _hashes(hashes)]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def _head(facts: Facts) -> str:
    licence = facts.licences.get("weights", "unknown")
    lines = ["---", "library_name: partialkd", "pipeline_tag: image-feature-extraction"]
    lines += ["tags:", "- face-recognition", "- knowledge-distillation"]
    known = licence.lower() in HUB_LICENCES
    lines += [f"license: {licence.lower()}"] if known else ["license: other", f"license_name: {json.dumps(licence)}"]
    return "\n".join([*lines, "---", ""])


def _what(facts: Facts) -> str:
    numbers = sum(parameter.numel() for parameter in build_empty(facts.model, facts.image_size).parameters())
    how = ""
    if facts.run is not None and facts.phase == "student":
        how = f" Trained by `{facts.run.student.method.name}` from a teacher of kind `{facts.run.teacher.source}`."
    return f"""# {printable(facts.model.name)}, {facts.model.embedding_dim} numbers

Embeds an aligned face of {facts.image_size} x {facts.image_size} pixels: two of one person have a high cosine.
{numbers:,} parameters.{how}"""


def _use(facts: Facts) -> str:
    size = facts.image_size
    return f"""## Use

```python
import partialkd
network = partialkd.load("folder")  # torch; (b, 3, {size}, {size}) float32 RGB, (pixel - 127.5) / 127.5
```

Faces are aligned by five landmarks to ArcFace's template, as those that it was trained on."""


def _figures(facts: Facts) -> str:
    if facts.result is None:
        return "## Figures\n\nNone were measured by the run."
    lines = ["## Figures", "", "| set | accuracy % | TAR % at FAR | pairs |", "|---|---|---|---|"]
    for name, rows in facts.result["sets"].items():
        if (found := rows.get(facts.phase)) is not None:
            intervals = found.get("interval", {})
            accuracy = share_cell(found["accuracy"], intervals.get("accuracy"))
            rates = "; ".join(
                _rate(far, rate, intervals, found.get("too_few_impostors", {}), found.get("impostors", 0))
                for far, rate in found["tar_at_far"].items()
            )
            lines.append(f"| {_cell(name)} | {accuracy} | {rates} | {found['pairs']} |")
    few = "A dash: too few pairs of two people to say; a star: fewer than ten times what that takes."
    return "\n".join([*lines, "", f"Brackets: 95 % by identity. {few}"])


def _rate(far: str, rate: float, intervals: dict[str, Any], few: dict[str, bool], impostors: int) -> str:
    if few.get(far):
        return f"- at {far}"
    mark = star(float(far), impostors) if impostors else ""  # of results that were kept before they were counted
    return f"{100 * rate:.2f}{mark}{between(intervals.get('tar_at_far', {}).get(far))} at {far}"


def _thresholds(facts: Facts) -> str:
    title = "## From which cosine on is it the same person?"
    if facts.card is None:
        return f"{title}\n\nNo thresholds were measured (`launch/evaluate.py --card`)."
    lines = [title, "", "| precision | images | " + " | ".join(f"FAR {far:g}" for far in FARS) + " |"]
    lines.append("|---" * (2 + len(FARS)) + "|")
    for precision, settings in facts.card["thresholds"].items():
        for setting, parts in settings.items():
            cells = [_threshold(parts["all"], far) for far in FARS]
            lines.append(f"| {_cell(precision)} | {_cell(setting)} | {' | '.join(cells)} |")
    faces = facts.card.get("faces", {})
    note = f"From all pairs of {faces.get('images')} images of `{_cell(str(faces.get('folder')))}`. A dash: too few "
    note += "pairs of two people; a star: fewer than ten times what that takes. "
    return "\n".join([*lines, "", f"{note}A threshold holds for faces like these, aligned like these."])


def _threshold(part: dict[str, Any], far: float) -> str:
    one = part["at_far"][f"{far:g}"]
    if one["too_few_impostors"]:
        return "-"
    return f"{one['threshold']:.3f}{star(far, part['impostors'])}{between(one['interval'], 1, 3)}"


def _exports(report: dict[str, Any] | None) -> str:
    if report is None:
        return ""
    rate = "| TAR % at FAR 1e-3 | of the network |"
    lines = ["## Files for other runtimes", "", f"| file | runtime | precision | least cosine {rate} input |"]
    lines.append("|---" * 7 + "|")
    for one in report["targets"]:
        if one["not_written"] is None:
            rates = [f"{100 * one[key]:.2f}" for key in ("tar", "tar_network")]
            cells = [
                one["files"][0],
                one["runtime"],
                one["precision"],
                f"{one['cosine_least']:.6f}",
                *rates,
                one["input"],
            ]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    precision = (
        "OpenVINO computes in bfloat16 where the processor can, and differs by 6e-2 then: set "
        "INFERENCE_PRECISION_HINT to f32."
    )
    return "\n".join(
        [*lines, "", f"Measured on {report['pictures']} pictures of `{_cell(report['set'])}`. {precision}"]
    )


def _data(facts: Facts) -> str:
    if facts.run is None:
        return "## Data\n\nUnknown: the network did not come from a run folder."
    data = facts.run.data
    what = f"`{_cell(_data_name(facts.run))}` (`{data.source}`), images of {data.image_size} pixels a side"
    return f"## Data\n\nTrained on {what}."


def _licences(facts: Facts) -> str:
    lines = ["## Licences", "", "| of | licence |", "|---|---|"]
    lines += [f"| {what} | {_cell(facts.licences.get(what, UNKNOWN))} |" for what in LICENCES]
    note = "What is trained from research data or from a teacher may be bound by their licences."
    return "\n".join([*lines, "", note])


def _hashes(hashes: dict[str, str]) -> str:
    lines = ["## SHA-256", "", "| file | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | `{value}` |" for name, value in hashes.items())])


def _data_name(run: Config) -> str:
    return Path(run.data.path).name or run.data.source


def _cell(text: object) -> str:
    """Make foreign text fit for a table's cell."""
    return printable(str(text)).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _export_report(facts: Facts) -> dict[str, Any] | None:
    if facts.exported is None:
        return None
    path = facts.exported / REPORT
    try:
        report = dict(json.loads(path.read_text(encoding="utf-8")))
        if report["fingerprint"] != facts.fingerprint:
            raise ConfigError(f"{path}: of another network: export this one anew")
        _exports(report)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not what export.py --to writes: {error}") from error
    return report


def _exported_files(report: dict[str, Any] | None) -> list[str]:
    names = [name for one in (report or {"targets": []})["targets"] for name in one["files"]]
    return [Path(name).name for name in names]
