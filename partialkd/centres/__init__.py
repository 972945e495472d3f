"""Class centres sharded over ranks (docs/flows.md)."""

from partialkd.centres.engine import Centres, Contrast
from partialkd.centres.store import CentreStore

__all__ = ["CentreStore", "Centres", "Contrast"]
