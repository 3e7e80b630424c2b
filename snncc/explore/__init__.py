"""The stages of a compile, for people and programs to look at: as text, and as plain data."""

from snncc.explore.record import SCHEMA, record
from snncc.explore.text import differences

__all__ = ["SCHEMA", "differences", "record"]
