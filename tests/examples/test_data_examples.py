"""docs/extending.md, a record format and a loader: made in a copy of the package, which is then run."""

from __future__ import annotations

import json
import zipfile
from typing import Any, get_args

import numpy as np
import pytest

from helpers.examples import copy_with, python
from partialkd.config import DataConfig, PartConfig
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import LOADERS
from partialkd.data.sources.open import SOURCES

READ = """
import json, sys
import torch
from pathlib import Path
from partialkd.config import DataConfig
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.orders import make_order
from partialkd.data.order.plan import BatchCut
from partialkd.data.order.readahead import make_plan
from partialkd.data.sources.open import open_source
from partialkd.errors import DataError

def read(**keys):
    data = DataConfig.model_validate({"image_size": 16, "grey": 0.5, "augment": {"crop": 0.5}, **keys})
    source = open_source(data)
    plan = make_plan(data, source, make_order(data, source, 4, 1), BatchCut(4, 2), 1)
    loader = open_loader(data, source, plan, torch.device("cpu"))
    loader.load_state({"epoch": 1, "samples": 4})
    batches = iter(loader)
    some = [next(batches) for _ in range(10)]  # every record at least once
    rows = [[b.labels.tolist(), b.records.tolist(), b.flipped.tolist(), b.images.sum((1, 2, 3)).tolist()] for b in some]
    return {"rows": rows, "state": loader.state(), "names": source.names.known(), "images": [b.images for b in some]}

def alike(one, other):
    close = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.pop("images"), other.pop("images"), strict=True))
    return close and [row[:3] for row in one["rows"]] == [row[:3] for row in other["rows"]]

def refusal(act):
    try:
        act()
    except DataError as error:
        return str(error)

root = Path(sys.argv[1])
folder, packed = {"path": str(root / "images"), "source": "folder"}, {"path": str(root / "images.zip"), "source": "zip"}
whole, threads, plain = read(**folder), read(**packed), read(**packed, loader="plain")
parts = read(parts=(folder, packed), loader="plain")
torn, other = {**packed, "path": str(root / "torn.zip")}, {**packed, "path": str(root / "images" / "a" / "0.jpg")}
print(json.dumps({
    "zip": alike(dict(whole), dict(threads)), "plain": alike(dict(threads), dict(plain)),
    "names": threads["names"], "state": plain["state"], "classes": max(max(row[0]) for row in parts["rows"]),
    "torn": refusal(lambda: read(**torn, loader="plain")), "no zip": refusal(lambda: read(**other)),
    "skipped": len(read(**torn, loader="plain", on_corrupt="skip")["rows"]),
}))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program says that reads a folder, a .zip of the same, one with a damaged image, and both together."""
    root = tmp_path_factory.mktemp("examples")
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(root / "images.zip", "w") as whole, zipfile.ZipFile(root / "torn.zip", "w") as torn:
        for identity in "abc":
            (root / "images" / identity).mkdir(parents=True)
            for number in range(4):
                picture = encode_jpeg(noise.integers(0, 256, (16, 16, 3), np.uint8), 95)
                (root / "images" / identity / f"{number}.jpg").write_bytes(picture)
                whole.writestr(f"{identity}/{number}.jpg", picture)
                torn.writestr(f"{identity}/{number}.jpg", picture[:40] if (identity, number) == ("b", 1) else picture)
    package = copy_with(["A record format", "A loader"], root / "copy")
    return json.loads(python(package, READ, root))


@pytest.mark.slow
def test_the_format_gives_what_the_folder_gives(said: dict[str, Any]) -> None:
    """From a position in mid-epoch on: same records, labels and mirrors, same pixels; also beside another data set."""
    assert said["zip"]
    assert said["names"] == ["a", "b", "c"]
    assert said["classes"] == 5  # three identities each


@pytest.mark.slow
def test_the_loader_gives_what_the_others_give(said: dict[str, Any]) -> None:
    assert said["plain"]
    assert said["state"] == {"epoch": 2, "samples": 12}


@pytest.mark.slow
def test_what_cannot_be_read_is_named_or_replaced(said: dict[str, Any]) -> None:
    assert "torn.zip: b/1.jpg: " in said["torn"]
    assert "0.jpg: not a zip file that can be read" in said["no zip"]
    assert said["skipped"] == 10


@pytest.mark.slow
def test_every_name_of_the_configuration_has_its_row() -> None:
    def names(section: Any, key: str) -> set[str]:
        return set(get_args(section.model_fields[key].annotation))

    assert names(PartConfig, "source") == set(SOURCES) == names(DataConfig, "source") - {"synthetic"}
    assert names(DataConfig, "loader") == set(LOADERS)
