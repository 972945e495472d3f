"""Checkpoints that any world size can load: what is in one, how it is written, found and read."""

from partialkd.checkpoint.folder import best, complete, newest, read_manifest, verify
from partialkd.checkpoint.load import load, load_newest
from partialkd.checkpoint.saver import Saver
from partialkd.checkpoint.snapshot import Snapshot

__all__ = ["Saver", "Snapshot", "best", "complete", "load", "load_newest", "newest", "read_manifest", "verify"]
