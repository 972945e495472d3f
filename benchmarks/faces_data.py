"""Who of LFW and PubFig is trained on and who is evaluated, the files of both, and the teacher's embeddings.

Split, by name, the same everywhere: `HELD_OUT` persons of PubFig are evaluated, the others trained on. Of LFW the
persons that PubFig has too go where PubFig puts them; those in none of the official pairs are trained on, and half of
the others that have two images or more. Nobody is on both sides. One person's images of both sets are one identity.
Of a person at most `MOST` images of each set are trained on.

  split.json                who is where
  train_<set>/              RecordIO of `SIZE` pixels per side; teacher.npz, teacher_of_grey.npz: a row for each record
  train_all_64/, sets_64/   the same of `LARGER` pixels per side
  sets/lfw.bin              the official pairs, in their order, without those of a person that is trained on
  sets/pubfig.bin           `PAIRS` pairs of one person and as many of two, of the held-out persons of PubFig
  teacher/<number>.npy      embeddings of `PIECE` training images of 112 pixels per side, not mirrored
  teacher_of_grey/          the same of images made grey
Errors: those of the parts that read the archives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from partialkd.config import TeacherConfig
from partialkd.counter_random import hash64
from partialkd.data.formats.image_tree import list_images, read_images
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.pair_lists import read_csv
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.images.decode import Wanted, decode
from partialkd.data.images.encode import sized
from partialkd.data.images.tensors import to_tensor
from partialkd.storage.atomic_files import replacing, write_json
from partialkd.teacher.ensemble import open_teacher

SIZE, LARGER = 32, 64  # pixels per side that students see: all of them, and those of the hypotheses once more
TEACHER_SIZE, DIM = 112, 128
HELD_OUT = 48  # persons of PubFig that nobody is trained on
MOST = {"pubfig": 24, "lfw": 8}  # images of a person in training
EVALUATED = 20  # images of each held-out person of PubFig
PAIRS = 3000  # of one person, and as many of two
SETS = ("20", "120", "1000", "all")  # training sets by their number of identities, each within the next
TRAINED = (*((name, SIZE) for name in SETS), ("all", LARGER))  # training sets and their pixels per side
TEACHER, OF_GREY = "teacher", "teacher_of_grey"
TEACHERS = (TEACHER, OF_GREY)  # its embeddings of the images as they are, and made grey
PIECE = 256

Split = dict[str, list[str]]


def shuffled(names: Iterable[str], salt: int) -> list[str]:
    """Order names by a hash of their letters: the same on every machine, whatever else is in the list."""
    words = lambda name: int(hash64(salt, *name.encode())[0])
    return sorted(names, key=lambda name: (words(name), name))


def split_of(pubfig: dict[str, list[str]], lfw: dict[str, list[str]], paired: set[str]) -> Split:
    """Deal out persons: images by person of both sets, `paired` those in official pairs -> names of each group."""
    held_out = set(shuffled(pubfig, 1)[:HELD_OUT])
    both = set(pubfig) - held_out
    free = {name for name in lfw if name not in pubfig}
    several = shuffled((name for name in free & paired if len(lfw[name]) > 1), 2)
    halves, single = several[: len(several) // 2], shuffled(free - paired, 3)
    order = shuffled(both, 4) + halves + single
    return {
        "train": order,
        "pubfig_train": sorted(both),
        "pubfig_held_out": sorted(held_out),
        "lfw_evaluated": sorted(set(lfw) - set(order)),
    }


def identities_of(split: Split, name: str) -> list[str]:
    """Name the identities of a training set, sorted."""
    most = {"20": 20, "120": len(split["pubfig_train"]), "1000": 1000, "all": len(split["train"])}[name]
    return sorted(split["train"][:most])


def train_folder(work: Path, name: str, size: int) -> Path:
    """Where a training set lies."""
    return work / f"train_{name}{_larger(size)}"


def sets_folder(work: Path, size: int) -> Path:
    """Where the verification sets lie."""
    return work / f"sets{_larger(size)}"


def _larger(size: int) -> str:
    return "" if size == SIZE else f"_{size}"


def images_of(trees: dict[str, dict[str, list[str]]], identity: str) -> list[tuple[str, str]]:
    """List the training images of an identity: (set, path in its archive)."""
    found = []
    for tree, most in MOST.items():
        names = shuffled(trees[tree].get(identity, ()), 5)[:most]
        found += [(tree, f"{identity}/{name}") for name in sorted(names)]
    return found


class StudyData:
    """The files of the study, made where they are not there."""

    def __init__(self, faces: Path, work: Path) -> None:
        self.faces, self.work = faces, work
        self.archives = {"pubfig": faces / "pubfig112.tar.gz", "lfw": faces / "lfw112.tar.gz"}

    def prepare(self) -> Split:
        """Make split, verification sets and records; quick where they are there."""
        path = self.work / "split.json"
        missing = [one for one in TRAINED if not (train_folder(self.work, *one) / "train.rec").exists()]
        if path.exists() and not missing:
            return dict(json.loads(path.read_text(encoding="utf-8"))["split"])
        trees = {name: list_images(archive) for name, archive in self.archives.items()}
        listed = read_csv(self.faces / "lfw_pairs.csv")
        person = lambda image: image.partition("/")[0]
        paired = {person(image) for pair in listed for image in (pair.first, pair.second)}
        split = split_of(trees["pubfig"], trees["lfw"], paired)
        pairs = {
            "lfw": [
                (pair.first, pair.second, pair.same)
                for pair in listed
                if not {person(pair.first), person(pair.second)} & set(split["train"])
            ],
            "pubfig": pubfig_pairs({name: trees["pubfig"][name] for name in split["pubfig_held_out"]}),
        }
        for size in (SIZE, LARGER):
            sets_folder(self.work, size).mkdir(parents=True, exist_ok=True)
            for name, some in pairs.items():
                self._write_pairs(name, some, size)
        listing = {name: images_of(trees, name) for name in split["train"]}
        for name, size in missing:
            self._write_training(split, listing, name, size)
        counts = {name: len(some) for name, some in pairs.items()}
        write_json(path, {"split": split, "images": listing, "pairs": counts})
        return split

    def listing(self) -> dict[str, list[tuple[str, str]]]:
        """Training images (set, path) of each identity."""
        images = json.loads((self.work / "split.json").read_text(encoding="utf-8"))["images"]
        return {name: [(tree, path) for tree, path in some] for name, some in images.items()}

    def _read(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        wanted, found = list(wanted), {}
        for tree, archive in self.archives.items():
            paths = [path for one, path in wanted if one == tree]
            found.update({(tree, path): image for path, image in read_images(archive, paths)} if paths else {})
        return found

    def _write_pairs(self, name: str, pairs: list[tuple[str, str, bool]], size: int) -> None:
        places = [(name, image) for pair in pairs for image in pair[:2]]
        small = {at: reduced(image, at, size) for at, image in self._read(set(places)).items()}
        path = sets_folder(self.work, size) / f"{name}.bin"
        write_bin(path, [small[at] for at in places], [pair[2] for pair in pairs])

    def _write_training(self, split: Split, listing: dict[str, list[tuple[str, str]]], name: str, size: int) -> None:
        chosen = identities_of(split, name)
        read = self._read({at for person in chosen for at in listing[person]})
        records = (
            (reduced(read[at], at, size), label) for label, person in enumerate(chosen) for at in listing[person]
        )
        pack_records(train_folder(self.work, name, size), records, len(chosen), size, chosen, plain=False)

    # ------------------------------------------------------------------------------------------------- teacher

    def embed(self, pieces: int | None = None) -> int:
        """Embed at most `pieces` pieces more -> how many are missing; with none missing, write the teacher's files."""
        listing = self.listing()
        order = [at for person in json.loads((self.work / "split.json").read_text())["split"]["train"]
                 for at in listing[person]]  # fmt: skip
        parts = [order[start : start + PIECE] for start in range(0, len(order), PIECE)]
        path = lambda name, number: self.work / name / f"{number:04d}.npy"
        missing = [(name, number) for name in TEACHERS for number in range(len(parts))
                   if not path(name, number).exists()]  # fmt: skip
        todo = missing[:pieces]
        if todo:
            images = self._read({at for _, number in todo for at in parts[number]})
            teacher = open_teacher(teacher_config(self.faces), TEACHER_SIZE, "cpu")
            for name, number in todo:
                pixels = [decode(images[at], at[1], wanted=Wanted(TEACHER_SIZE)) for at in parts[number]]
                grey = np.full(len(pixels), name == OF_GREY)
                rows = [
                    teacher.embed(to_tensor(pixels[at : at + 32], TEACHER_SIZE, grey=grey[at : at + 32]))
                    for at in range(0, len(pixels), 32)
                ]
                path(name, number).parent.mkdir(exist_ok=True)
                with replacing(path(name, number)) as (file,):
                    np.save(file, torch.cat(rows).numpy())
        if len(missing) > len(todo):
            return len(missing) - len(todo)
        split = self.prepare()
        for kind in TEACHERS:
            every = np.concatenate([np.load(path(kind, number)) for number in range(len(parts))])
            rows_of = dict(zip(order, every, strict=True))
            for name, size in TRAINED:
                out = train_folder(self.work, name, size) / f"{kind}.npz"
                self._write_rows(out, list(labelled(split, listing, name)), rows_of)
        return 0

    def _write_rows(
        self, out: Path, records: list[tuple[tuple[str, str], int]], rows: dict[tuple[str, str], np.ndarray]
    ) -> None:
        if not out.exists():
            with replacing(out) as (file,):
                labels = np.array([label for _, label in records])
                np.savez(file, embeddings=np.stack([rows[at] for at, _ in records]), labels=labels)


def labelled(
    split: Split, listing: dict[str, list[tuple[str, str]]], name: str
) -> Iterator[tuple[tuple[str, str], int]]:
    """Give the images of a training set with their class ids, in the order of its records."""
    for label, person in enumerate(identities_of(split, name)):
        for at in listing[person]:
            yield at, label


def teacher_config(faces: Path) -> TeacherConfig:
    """SFace, as its makers say that it is fed."""
    fed = {"size": TEACHER_SIZE, "mean": 0.0, "std": 1.0, "colour": "rgb"}
    tree = {"source": "onnx", "path": str(faces / "sface_128d.onnx"), "embedding_dim": DIM, "input": fed}
    return TeacherConfig.model_validate(tree)


def pubfig_pairs(images: dict[str, list[str]]) -> list[tuple[str, str, bool]]:
    """Draw pairs of one person and of two, in turns, each pair once."""
    random = np.random.default_rng(0)
    names = sorted(images)
    chosen = {name: sorted(shuffled(images[name], 6)[:EVALUATED]) for name in names}
    drawn: dict[bool, dict[tuple[str, str], None]] = {True: {}, False: {}}
    for same, pairs in drawn.items():
        while len(pairs) < PAIRS:
            who = [names[random.integers(len(names))]] * 2 if same else random.choice(names, 2, replace=False).tolist()
            first, second = (f"{name}/{chosen[name][random.integers(len(chosen[name]))]}" for name in who)
            if first != second:
                pairs[min(first, second), max(first, second)] = None
    return [(*pair, same) for two in zip(*drawn.values(), strict=True) for pair, same in zip(two, drawn, strict=True)]


def reduced(image: bytes, at: tuple[str, str], size: int) -> bytes:
    """Bring an image to the student's size, as JPEG."""
    small: bytes = sized(image, "/".join(at), Wanted(size, resize=True))
    return small
