"""What `launch/evaluate.py` does beside verification sets: templates, identification, everything against everything."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prettytable import PrettyTable
from torch import Tensor

from partialkd.commands.results import unwritable
from partialkd.data.formats.identification_folder import read_identification_set
from partialkd.data.formats.ijb_folder import read_template_set
from partialkd.data.images.decode import DECODING
from partialkd.data.sources.cvlface_folder import METADATA
from partialkd.data.sources.cvlface_templates import read_cvlface
from partialkd.data.sources.cvlface_tinyface import read_cvlface_identification
from partialkd.errors import ConfigError
from partialkd.evaluate import card
from partialkd.evaluate import identification_protocol as identification
from partialkd.evaluate import template_protocol as templates
from partialkd.evaluate.embedding import Embed, Held, Images, Kept, embed_images, look_at
from partialkd.storage.atomic_files import write_json
from partialkd.storage.checksum import crc32, hexadecimal
from partialkd.world.world import World

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Network:
    """The network that is judged."""

    name: str
    embed: Embed
    image_size: int
    fingerprint: str

    def at(self, precision: str, device: torch.device) -> Network:
        """Return the same network, computing in this precision."""
        if precision == "fp32":
            return self

        def embed(images: Tensor) -> Tensor:
            with torch.autocast(device.type, PRECISIONS[precision]):
                return self.embed(images)

        return replace(self, embed=embed, fingerprint=f"{self.fingerprint} {precision}")


@dataclass(frozen=True)
class Judged:
    """Results of one set: for the JSON file, and as tables."""

    kind: str
    folder: str
    results: dict[str, Any]
    tables: list[PrettyTable]


def add_protocols(parser: argparse.ArgumentParser) -> None:
    """Add the options that name sets of these kinds."""
    group = parser.add_argument_group("other protocols (docs/evaluation.md says how their folders look)")
    add = group.add_argument
    add("--templates", nargs="+", default=[], metavar="FOLDER", help="IJB-B, IJB-C: 1:1 and 1:N of templates")
    add("--identify", nargs="+", default=[], metavar="FOLDER", help="probes in a gallery (TinyFace), or distractors")
    add("--all-pairs", nargs="+", default=[], metavar="FOLDER", help="identities: every image with every other (MFR)")
    add("--card", metavar="FILE", help="thresholds from the one folder of --all-pairs, with intervals, as JSON there")
    precisions = "of the card (default fp32; the others: autocast); an ONNX file has one, its own"
    add("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help=precisions)
    add("--keep", metavar="FOLDER", help="keep embeddings there; a pass that was killed is gone on with")


def opened(options: argparse.Namespace) -> list[_Opened]:
    """Read the lists of all sets named, before anything is embedded."""
    found: list[_Opened] = []
    found += [_Templates(Path(folder), options) for folder in options.templates]
    found += [_Identification(Path(folder), options) for folder in options.identify]
    found += [_Everything(Path(folder), options) for folder in options.all_pairs]
    _check_names(found)
    return found


def _check_names(sets: list[_Opened]) -> None:
    """ConfigError for two sets of a kind whose results would have one name."""
    seen: dict[tuple[str, str], Path] = {}
    for one in sets:
        if (other := seen.setdefault((one.kind, one.name), one.folder)) is not one.folder:
            rule = "results are named by the folder's last part, rename one or judge by them one after the other"
            raise ConfigError(f"{other} and {one.folder} are both called {one.name!r}: {rule}")


def _kept_name(folder: Path, kind: str, network: Network) -> str:
    _, _, precision = network.fingerprint.partition(" ")
    return "_".join(part for part in (folder.resolve().name, kind, precision) if part)


def check_card(options: argparse.Namespace) -> None:
    """ConfigError for a card that cannot be made."""
    if options.card is None:
        return
    if len(options.all_pairs) != 1:
        raise ConfigError(f"--card needs one folder of identities: --all-pairs FOLDER, got {len(options.all_pairs)}")
    if set(options.precision) != {"fp32"} and str(options.file).endswith(".onnx"):
        named = " ".join(options.precision)
        raise ConfigError(f"--precision {named}: an ONNX file computes as it was written; make a card of each file")
    if problem := unwritable(Path(options.card)):
        raise ConfigError(f"--card {options.card}: {problem}")


class _Opened(ABC):
    """A set whose lists were read."""

    kind: str

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.name = folder.resolve().name if folder.name in ("", "..") else folder.name

    @abstractmethod
    def images(self, image_size: int) -> Images:
        """List the images as a network of this input size sees them."""

    @abstractmethod
    def of(self) -> dict[str, Any]:
        """Say what kept embeddings are of, beside the network."""

    def held(self, embeddings: np.ndarray) -> np.ndarray:
        """Make what is scored, (k, b, D), of the embeddings (2, b, D) of some images and their mirror images."""
        return embeddings

    @abstractmethod
    def score(self, embeddings: Any, name: str, world: World) -> Judged:
        """Score what is held of all images, (k, n, D)."""

    def judge(self, network: Network, world: World) -> Judged | None:
        """Collective. Embed the images, and score them on rank 0 -> the results there, None elsewhere."""
        rows = self.embedded(network, world, self.held)
        scored: list[Judged] = []
        world.on_main(lambda: scored.append(self.score(rows, network.name, world)))
        return scored[0] if scored else None

    def embedded(self, network: Network, world: World, held: Held = np.asarray) -> np.ndarray:
        """Collective -> what is held of all images on every rank: (2, n, D), or (k, n, D) of what `held` makes."""
        keep = self.options.keep
        facts = {"network": network.fingerprint, "image_size": network.image_size, "decoding": DECODING}
        described = {**facts, **self.of()}
        kept = Kept(Path(keep) / _kept_name(self.folder, self.kind, network), described) if keep else None
        images = self.images(network.image_size)
        return embed_images(network.embed, images, network.image_size, self.options.batch, world, kept, held)


class _Templates(_Opened):
    kind = "templates"

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        super().__init__(folder, options)
        self.found = read_cvlface(folder) if (folder / METADATA).exists() else read_template_set(folder)
        templates.check_set(self.found, self._asked())

    def _asked(self) -> templates.Asked:
        return templates.Asked(fars=self.options.fars or templates.FARS)

    def images(self, image_size: int) -> Images:
        return templates.faces_of(self.found, image_size)

    def of(self) -> dict[str, Any]:
        return templates.facts_of(self.found)

    def score(self, embeddings: Any, name: str, world: World) -> Judged:  # noqa: ARG002 (one signature for all)
        results = templates.score_templates(embeddings, self.found, self._asked())
        tables = [templates.verification_table(results, name)] if self.found.pairs is not None else []
        tables += [templates.identification_table(results, name)] if self.found.probes is not None else []
        return Judged(self.kind, self.name, results, tables)


class _Listed(_Opened):
    """A folder of aligned faces."""

    names: list[str]
    stored: Callable[[int], bytes] | None = None

    @property
    def fars(self) -> Sequence[float]:
        return self.options.fars or identification.FARS

    def images(self, image_size: int) -> Images:
        return identification.faces_below(self.folder, self.names, image_size, self.options.resize, self.stored)

    def of(self) -> dict[str, Any]:
        return {"images": len(self.names), "list": hexadecimal(crc32("\n".join(self.names).encode()))}

    def held(self, embeddings: np.ndarray) -> np.ndarray:
        """Unit rows (1, b, D): of a million images half the memory."""
        return identification.unit_rows(embeddings, self.options.flip)[None]

    def score(self, embeddings: Any, name: str, world: World) -> Judged:
        results = self.scored(embeddings[0], world)
        shown = results if self.kind == "all_pairs" else {name: results}
        return Judged(self.kind, self.name, results, [identification.shares_table(shown, self.name)])

    @abstractmethod
    def scored(self, rows: Any, world: World) -> dict[str, Any]:
        """Score unit rows (n, D) of the images."""


class _Identification(_Listed):
    kind = "identification"

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        super().__init__(folder, options)
        self.found = (read_cvlface_identification if (folder / METADATA).exists() else read_identification_set)(folder)
        self.names, self.stored = list(self.found.names), self.found.stored
        identification.check_identification(self.found, self.fars)

    def scored(self, rows: Any, world: World) -> dict[str, Any]:
        return identification.identified(rows, self.found, identification.RANKS, self.fars, world.device)


class _Everything(_Listed):
    kind = "all_pairs"

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        super().__init__(folder, options)
        self.names, self.identities, self.groups = identification.read_identities(folder)
        loosest = max([*self.fars, *(card.FARS if options.card else ())])
        identification.check_all_pairs(folder, self.identities, self.groups, loosest)

    def scored(self, rows: Any, world: World) -> dict[str, Any]:
        return identification.everything(rows, self.identities, self.groups, self.fars, world.device)


def look_at_opened(sets: list[_Opened], image_size: int, world: World) -> None:
    """Collective. Look at the headers of all images of all sets, before the first is embedded."""
    for one in sets:
        look_at(one.images(image_size), world)


def judged(sets: list[_Opened], network: Network, world: World, show: Callable[[Judged], None]) -> dict[str, Any]:
    """Collective. Judge a network on each set, show each when it is done -> for JSON, on rank 0.

    {kind: {folder: {network: results}}}
    """
    results: dict[str, Any] = {}
    for one in sets:
        found = one.judge(network, world)
        if found is not None:
            show(found)
            results.setdefault(found.kind, {})[found.folder] = {network.name: found.results}
    return results


def make_card(sets: list[_Opened], options: argparse.Namespace, network: Network, world: World) -> PrettyTable | None:
    """Collective. Write the threshold card of a network -> its table, on rank 0."""
    (folder,) = (one for one in sets if isinstance(one, _Everything))
    found = {}
    for precision in options.precision:
        rows = folder.embedded(network.at(precision, world.device), world)
        make = lambda rows=rows: card.thresholds(rows, folder.identities, folder.groups, world.device)
        found[precision] = world.on_main(make)
    facts = {"format": card.FORMAT, "model": network.name, "fingerprint": network.fingerprint}
    whole = {**facts, "faces": {"folder": folder.name, **folder.of()}, "thresholds": found}
    world.on_main(lambda: write_json(Path(options.card), whole))
    return card.table_of(whole) if world.is_main else None
