"""What a target of export owes: to write a network's ONNX graph as files of a runtime, and to run them there.

Shapes: pictures (b, S, S, 3) uint8 RGB -> rows (b, ...) float32, one per picture. How pixels become the file's input is
part of the target, for it is what whoever uses the file has to do: `takes` says it in words.
A target is tried on the network cut off after any layer as well (layers.py), whose only output is called "embeddings"
and has two dimensions; so a target asks nothing of the graph but that.
Errors: ExportError in one line that names the target, for a library that is missing or what it cannot convert or run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from partialkd.errors import CheckpointError, PartialKDError
from partialkd.models.onnx_session import switch_reports_off

LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99}  # of every picture, to the trained network's embedding
SPREAD = (0.5, 2.0)  # of the variance of embeddings, to the trained network's: outside, they have collapsed
MOST_TAR = 0.003  # by which the TAR may differ
FAR = 1e-3
INPUT, OUTPUT = "images", "embeddings"
ALWAYS = ("onnx", "onnxscript", "onnxruntime")  # libraries that every target begins with
_LONGEST = 300  # characters of a library's own words

Run = Callable[[np.ndarray], np.ndarray]


class ExportError(CheckpointError):
    """A network cannot be written for a runtime, or does not do there what it does here."""


@dataclass(frozen=True)
class Graph:
    """What a target is given. content: ONNX, "images" (any number, 3, S, S) -> "embeddings"."""

    content: bytes
    network: nn.Module  # the whole of it in torch, for converters that begin there
    image_size: int
    batch: int | None = None  # that files are to take, of targets that take any; None: any
    calibration: np.ndarray | None = None  # (n, S, S, 3) uint8 of the training set, where the target wants them
    last: str | None = None  # module of the network after which the graph is cut off


class Target(ABC):
    """A runtime and a precision."""

    name: str
    files: tuple[str, ...]  # first the one that a program is given
    precision = "fp32"
    modules: tuple[str, ...] = ()  # that must be importable, beside ALWAYS
    packages: tuple[str, ...] = ()  # that bring them
    runtime = "onnxruntime"  # package in which it is checked
    least = ""  # the oldest version of the runtime that was tried
    takes = "float32 (b, 3, S, S) RGB, (pixel - 127.5) / 127.5"
    any_batch = True
    calibrated = False
    least_size = 1  # pixels a side

    @abstractmethod
    def write(self, graph: Graph, folder: Path) -> None:
        """Write the files of a graph into a folder."""

    @abstractmethod
    def open(self, folder: Path, graph: Graph, threads: int = 1) -> Run:
        """Open these files in their runtime."""

    def running(self, folder: Path, graph: Graph, threads: int = 1) -> Run:
        """Open these files to run on any number of pictures, also where they take a fixed number."""
        run = self.open(folder, graph, threads)
        return in_batches(run, graph.batch) if graph.batch and self.any_batch else run

    def exacter(self) -> bool:
        """Whether the next `write` will be nearer to the network: asked where a bar was missed."""
        return False

    def notes(self) -> dict[str, Any]:
        """Say what else there is to know of what was written last."""
        return {}

    def check(self, image_size: int) -> None:
        """ExportError for what can be told before any work: a missing library, a size that it does not take."""
        switch_reports_off()  # insightface imports onnxruntime
        for module in (*ALWAYS, *self.modules):
            try:
                importlib.import_module(module)
            except ImportError as error:
                wanted = " ".join(self.packages if module in self.modules else ALWAYS)
                raise ExportError(
                    f"{self.name}: needs a library that is missing ({error}): pip install {wanted}"
                ) from None
        if image_size < self.least_size or (self.least_size > 1 and image_size % 16):
            rule = f"takes networks of {self.least_size} pixels a side or more, in sixteens"
            raise ExportError(f"{self.name}: {rule}, this one has {image_size}: leave it out of --to")

    def version(self) -> str:
        """Return the version of the runtime."""
        return importlib.metadata.version(self.runtime)

    @contextmanager
    def saying(self, verb: str) -> Iterator[None]:
        """Turn what a library raises into one line."""
        try:
            yield
        except PartialKDError as error:
            raise ExportError(f"{self.name}: {error}") from error
        except Exception as error:  # each library has errors of its own
            said = " ".join(str(error).split()) or type(error).__name__
            said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
            rule = f"{self.runtime} cannot {verb} this network"
            raise ExportError(f"{self.name}: {rule}, leave it out of --to: {said}") from error


def planes(pictures: np.ndarray) -> np.ndarray:
    """(b, S, S, 3) uint8 -> (b, 3, S, S) float32, (pixel - 127.5) / 127.5."""
    normalised = (pictures.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def one_by_one(run: Run) -> Run:
    """Run a file that takes one picture on any number of them."""
    return lambda pictures: np.concatenate([run(pictures[k : k + 1]) for k in range(len(pictures))])


def in_batches(run: Run, batch: int) -> Run:
    """Run a file that takes `batch` pictures on any number of them: the last are followed by repeats."""

    def padded(pictures: np.ndarray) -> np.ndarray:
        places = np.arange(-(-len(pictures) // batch) * batch).clip(max=len(pictures) - 1).reshape(-1, batch)
        return np.concatenate([run(pictures[part]) for part in places])[: len(pictures)]

    return padded
