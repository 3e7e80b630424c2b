"""The spiking graph IR. Imports no torch: types, ops, graph, text, verify and interp are numpy and networkx alone."""

from snncc.ir.diagnostics import CompileError, Diagnostic, InputError, Severity, SnnccError
from snncc.ir.graph import Graph, Node, Stage
from snncc.ir.text import parse, print_graph
from snncc.ir.types import Domain, Loc, MissingBytes, Param, PerChannel, Source, Store, Type
from snncc.ir.verify import VerifyError, verify

__all__ = [
    "CompileError",
    "Diagnostic",
    "Domain",
    "Graph",
    "InputError",
    "Loc",
    "MissingBytes",
    "Node",
    "Param",
    "PerChannel",
    "Severity",
    "SnnccError",
    "Source",
    "Stage",
    "Store",
    "Type",
    "VerifyError",
    "parse",
    "print_graph",
    "verify",
]
