"""Class centres sharded over ranks (DESIGN.md, section 2)."""

from partialkd.centres.engine import Centres, Contrast
from partialkd.centres.store import CentreStore

__all__ = ["CentreStore", "Centres", "Contrast"]
