"""Make a training folder of real images: identities from a .tar or folder, pairs as a verification set beside them.

Training: `<identity>/<image>` files, less the excluded identities and those with too few images, at most
`max_identities` of the rest by name; packed as RecordIO, class ids in the order of the identities' sorted names.
Pairs: a CSV `a,b,same` in fold order, paths inside `pairs_images`. Pairs with an identity of the training set are left
out, and how many is in the manifest's facts; `max_pairs` then takes evenly from the positive and from the negative
ones, the order of folds kept. Written to <name of the CSV>.bin.
With `data.resize` what is not of `data.image_size` is brought there now, once; otherwise another size is an error.
A folder made before is used again if the settings are equal and the inputs are what they were, wherever they lie now
(inputs.py).
Errors: `ConfigError` for contradicting keys; `DataError` naming the archive and member, or the CSV and line.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.config import ArchiveConfig, DataConfig
from partialkd.data.formats.image_tree import list_images, read_images
from partialkd.data.formats.insightface_folder import check_names
from partialkd.data.formats.name_lookup import NameLookup
from partialkd.data.formats.pair_lists import ListedPair, read_csv
from partialkd.data.formats.text_file import read_lines
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.images.decode import DECODING, RESIZE, Wanted, decode
from partialkd.data.images.encode import sized
from partialkd.data.packing.inputs import fingerprints, input_changes
from partialkd.data.packing.pack import PackOptions, pack
from partialkd.errors import ConfigError, DataError
from partialkd.storage.made_folder import make_once, setting_changes
from partialkd.world.passes import counted

LOG = logging.getLogger(__name__)
PREPARATION = 1  # raised when the same settings give other files
INPUTS = ("images", "exclude_identities", "pairs_images", "pairs")


def pack_archive(config: ArchiveConfig, data: DataConfig, folder: Path) -> dict[str, Any]:
    """Make the folder, or find it made; returns its facts (images, identities, pairs, what was left out)."""
    if (config.pairs is None) != (config.pairs_images is None):
        raise ConfigError("data.prepare.pairs and data.prepare.pairs_images must be given together")
    made_from = {
        "preparation": PREPARATION,
        "decoding": DECODING,
        "image_size": data.image_size,
        "resize": data.resize,
        **config.model_dump(),
    }

    def fill(new: Path, facts: dict[str, Any]) -> None:
        facts["inputs"] = fingerprints(_inputs(made_from))
        identities = _pack_training(config, data, new, facts)
        if config.pairs is not None and config.pairs_images is not None:
            pairs = _choose_pairs(read_csv(Path(config.pairs)), identities, config, facts)
            _write_pairs(pairs, Path(config.pairs_images), data, new / f"{Path(config.pairs).stem}.bin")
            facts["pairs"] = {f"{Path(config.pairs).stem}.bin": len(pairs)}

    return make_once(folder, made_from, fill, _changes)


def _changes(there: dict[str, Any], here: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Say what differs from a folder made before; one of earlier versions does not say its decoding, nor all inputs."""
    without = lambda tree: {key: value for key, value in tree.items() if key not in INPUTS}
    prints = facts.get("inputs") or {key: {"bytes": size} for key, size in facts.get("input_bytes", {}).items()}
    settings = setting_changes({"decoding": DECODING, **without(there)}, without(here))
    return settings + input_changes(_inputs(there), _inputs(here), prints, names=("pairs",))


def _inputs(made_from: dict[str, Any]) -> dict[str, str | None]:
    return {key: made_from.get(key) for key in INPUTS}


# ---------------------------------------------------------------------------------------------- training


def _pack_training(config: ArchiveConfig, data: DataConfig, new: Path, facts: dict[str, Any]) -> set[str]:
    """Write the records; returns the identities in them."""
    found = list_images(Path(config.images))
    identities = _choose_identities(found, config, facts)
    try:
        check_names(identities, len(identities))
    except DataError as error:
        raise DataError(f"{config.images}: {error}") from error
    wanted = [f"{identity}/{image}" for identity in identities for image in found[identity]]
    extracted = new / "extracted"
    images = counted(read_images(Path(config.images), wanted), "reading the archive", len(wanted), "images")
    for number, (path, encoded) in enumerate(images):
        if number == 0:  # before the whole archive has been read
            decode(encoded, f"{config.images}: {path}", wanted=Wanted(data.image_size, data.resize))
        (extracted / path).parent.mkdir(parents=True, exist_ok=True)
        (extracted / path).write_bytes(encoded)
    size = data.image_size if data.resize else None
    try:
        options = PackOptions(size=size, size_option=RESIZE, workers=data.workers)
        facts["images"], _ = pack(extracted, new, options)
    except DataError as error:
        first, *others = str(error).split("\n")
        raise DataError(f"{config.images}: {first}", *others) from error
    facts["identities"] = len(identities)
    shutil.rmtree(extracted)
    return set(identities)


def _choose_identities(found: dict[str, list[str]], config: ArchiveConfig, facts: dict[str, Any]) -> list[str]:
    excluded = _excluded(Path(config.exclude_identities), found, facts) if config.exclude_identities else set()
    allowed = sorted(found.keys() - excluded)
    enough = [identity for identity in allowed if len(found[identity]) >= config.min_images]
    chosen = enough[: config.max_identities]
    facts["left_out_identities"] = {
        "excluded": len(found) - len(allowed),
        "too_few_images": len(allowed) - len(enough),
        "over_max_identities": len(enough) - len(chosen),
    }
    if not chosen:
        raise DataError(f"{config.images}: no identity is left of {len(found)}: {facts['left_out_identities']}")
    return chosen


def _excluded(path: Path, found: dict[str, list[str]], facts: dict[str, Any]) -> set[str]:
    """Find the identities of the exclude list that the archive has."""
    lookup = NameLookup(found)
    there = {lookup.find(line.strip()) for _, line in read_lines(path)} - {None}
    facts["exclude_list"] = lookup.counts()
    if not there:
        LOG.warning(f"{lookup.summary(path)}: nobody is left out")
    return {identity for identity in there if identity is not None}


# ------------------------------------------------------------------------------------------------- pairs


def _choose_pairs(
    pairs: list[ListedPair], trained: set[str], config: ArchiveConfig, facts: dict[str, Any]
) -> list[ListedPair]:
    """Choose pairs without the training set's identities, at most `max_pairs`."""
    lookup = NameLookup(trained)
    known = {identity: lookup.find(identity) for pair in pairs for identity in _identities(pair)}
    unseen = [pair for pair in pairs if not any(known[identity] for identity in _identities(pair))]
    chosen = _thin(unseen, config.max_pairs) if config.max_pairs else unseen
    facts["left_out_pairs"] = {
        "identity_in_training": len(pairs) - len(unseen),
        "over_max_pairs": len(unseen) - len(chosen),
    }
    if not chosen:
        raise DataError(f"{config.pairs}: no pair is left of {len(pairs)}: {facts['left_out_pairs']}")
    return chosen


def _thin(pairs: list[ListedPair], limit: int) -> list[ListedPair]:
    """Keep at most `limit`, evenly from the positive and from the negative ones, in the order they had."""
    if len(pairs) <= limit:
        return pairs
    keep: list[int] = []
    for same in (True, False):
        places = [place for place, pair in enumerate(pairs) if pair.same is same]
        share = round(limit * len(places) / len(pairs)) if same else limit - len(keep)
        keep += [places[at * len(places) // share] for at in range(share)]
    return [pairs[place] for place in sorted(keep)]


def _write_pairs(pairs: list[ListedPair], images: Path, data: DataConfig, out: Path) -> None:
    order = [path for pair in pairs for path in (pair.first, pair.second)]
    wanted = Wanted(data.image_size, data.resize)
    read = counted(read_images(images, set(order)), "reading the pairs", len(set(order)), "images")
    encoded = {path: sized(image, f"{images}: {path}", wanted) for path, image in read}
    write_bin(out, [encoded[path] for path in order], np.array([pair.same for pair in pairs]))


def _identities(pair: ListedPair) -> tuple[str, str]:
    return pair.first.partition("/")[0], pair.second.partition("/")[0]
