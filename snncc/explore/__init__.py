"""The stages of a compile, for people and programs to look at: as text, as plain data, as a page, for other viewers."""

from snncc.explore.export import export, graphviz, model_explorer, write
from snncc.explore.html import page
from snncc.explore.record import SCHEMA, record
from snncc.explore.text import differences

__all__ = ["SCHEMA", "differences", "export", "graphviz", "model_explorer", "page", "record", "write"]
