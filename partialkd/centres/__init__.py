"""Class centres sharded over ranks (docs/flows.md)."""

from partialkd.centres.contrast import Contrast
from partialkd.centres.engine import Centres, CentresState
from partialkd.centres.store import CentreStore

__all__ = ["CentreStore", "Centres", "CentresState", "Contrast"]
