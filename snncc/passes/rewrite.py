"""Rebuilding a graph node by node: what every rewriting pass shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from snncc.ir import CompileError, Diagnostic, Graph, Loc, Node, PerChannel, Type
from snncc.ir.ops import Op, ShapeError
from snncc.passes.base import Context


class Builder:
    """Collects the nodes of a new graph. Types are inferred; names stay unique."""

    def __init__(self, source: Graph) -> None:
        self.source, self.store = source, source.store
        self.nodes: dict[str, Node] = {}
        # Names that copied nodes will want, so that a new node never takes one.
        self._reserved = {node.name for node in source.nodes}

    def unique(self, name: str) -> str:
        candidate, n = name, 1
        while candidate in self.nodes or candidate in self._reserved:
            candidate, n = f"{name}_{n}", n + 1
        return candidate

    def type(self, name: str) -> Type:
        return self.nodes[name].type

    def add(
        self, name: str, op: Op, args: tuple[str, ...], loc: Loc, unit: PerChannel | None = None, place: str = ""
    ) -> str:
        """Add a node and return its name. ``unit``: the unit of an integer result that inference leaves free."""
        type = op.infer(tuple(self.nodes[arg].type for arg in args), self.store)
        if unit is not None:
            type = replace(type, unit=unit)
        node = Node(name, op, args, type, loc, place)
        # A node that did not change stays the same object, so that stages share it and its location is not touched.
        old = self.source.by_name.get(name)
        self.nodes[name] = old if old == node else node
        return name

    def copy(self, node: Node, args: tuple[str, ...], op: Op | None = None) -> str:
        """Add ``node`` as it is, with new operands (and perhaps a new operation); its free unit stays."""
        op = op if op is not None else node.op
        unit = node.type.unit if op.free_unit and node.type.integer else None
        return self.add(node.name, op, args, node.loc, unit, node.place)


def rebuild(graph: Graph, visit: Callable[[Builder, Node, tuple[str, ...]], str | None]) -> Graph:
    """A new graph from ``visit(builder, node, args)`` for every node in order, ``args`` being the new operands.

    ``visit`` returns the new name of the node's value; None stands for ``builder.copy(node, args)``. Nodes that
    nothing needs any more are dropped.
    """
    builder = Builder(graph)
    names: dict[str, str] = {}
    for node in graph.nodes:
        args = tuple(names[arg] for arg in node.args)
        new = visit(builder, node, args)
        names[node.name] = builder.copy(node, args) if new is None else new
    outputs = tuple(names[name] for name in graph.outputs)
    return replace(graph, nodes=tuple(builder.nodes.values()), outputs=outputs).live()


@contextmanager
def units_fit(node: Node, context: Context) -> Iterator[None]:
    """Where units arise: an operation may not take values whose units differ as they do.

    Raises:
        CompileError: that, with all that was reported so far; there is no going on without the value.
    """
    try:
        yield
    except ShapeError as error:
        message = f"`{node.name}` ({node.op.mnemonic}) mixes spikes that are worth different amounts: {error}"
        hint = "calibrate per layer (per='layer'); join values along their channels only"
        context.report(Diagnostic("SNN032", message, node.loc, hint=hint))
        raise CompileError(context.diagnostics) from None
