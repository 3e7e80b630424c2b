"""Graphs by hand, for the passes' unit tests: before and expected, compared by structure. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from snncc.ir import Graph, Loc, Node, Param, PerChannel, Source, Stage, Store, ops, print_graph, verify
from snncc.ir.interp import run
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass


class Net:
    """A graph that grows. A call adds a node that reads the last value, or those named, and returns its name.

    Every node has a place of its own in the user's program, called like the node.
    """

    def __init__(
        self,
        *shape: int,
        stage: Stage = Stage.ANN,
        low: float | None = None,
        high: float | None = None,
        encoding: str = "constant",
        unit: float = 1.0,
        store: Store | None = None,
    ) -> None:
        self.stage, self.store = stage, store if store is not None else Store()
        self.nodes: dict[str, Node] = {}
        self.last = self(ops.Input(shape, low, high), name="x")
        if stage.spiking:
            self(ops.Encode(encoding, unit, "i32" if stage is Stage.INT else "f32"), "x", name="x.encode")

    def __call__(self, op: ops.Op, *args: str, name: str = "", unit: PerChannel | None = None) -> str:
        name = name or f"{op.mnemonic}{len(self.nodes)}"
        args = () if op.arity == 0 else args or (self.last,)
        type = op.infer(tuple(self.nodes[arg].type for arg in args), self.store)
        type = type if unit is None else replace(type, unit=unit)
        self.nodes[name] = Node(name, op, args, type, Loc((Source(name, "net.py", len(self.nodes) + 1),)))
        self.last = name
        return name

    def param(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> Param:
        return self.store.put("p", np.asarray(values, dtype))

    def _bias(self, bias: npt.ArrayLike | None) -> Param | None:
        return None if bias is None else self.param(bias)

    def conv(
        self, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None, *args: str, name: str = "", **options: Any
    ) -> str:
        return self(ops.Conv2d(self.param(weight), self._bias(bias), **options), *args, name=name)

    def linear(self, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None, *args: str, name: str = "") -> str:
        return self(ops.Linear(self.param(weight), self._bias(bias)), *args, name=name)

    def affine(self, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None, *args: str, name: str = "") -> str:
        return self(ops.Affine(self.param(weight), self._bias(bias)), *args, name=name)

    def scale(self, weight: float, bias: float = 0.0, *args: str, name: str = "") -> str:
        """``x * weight + bias``, the same for every channel, as the front end writes it."""
        n = self.nodes[args[0] if args else self.last].type.shape[0]
        return self.affine(np.full(n, weight), np.full(n, bias) if bias else None, *args, name=name)

    def norm(
        self,
        mean: npt.ArrayLike,
        var: npt.ArrayLike,
        weight: npt.ArrayLike | None = None,
        bias: npt.ArrayLike | None = None,
        *args: str,
        eps: float = 1e-5,
        name: str = "",
    ) -> str:
        op = ops.BatchNorm(self.param(mean), self.param(var), self._bias(weight), self._bias(bias), eps)
        return self(op, *args, name=name)

    def graph(self, *outputs: str) -> Graph:
        """The graph so far, verified."""
        graph = Graph(tuple(self.nodes.values()), outputs or (self.last,), self.stage, store=self.store)
        verify(graph)
        return graph


def apply(p: Pass, graph: Graph, context: Context | None = None) -> Graph:
    """Run a pass, and see that it is pure."""
    nodes, text = graph.nodes, print_graph(graph)
    after = p(graph, context)
    assert graph.nodes is nodes
    assert print_graph(graph) == text
    return after


def same(graph: Graph, expected: Graph) -> None:
    """Assert that two graphs do the same: the structure, the attributes, the bytes."""
    if graph.canonical() != expected.canonical():
        raise AssertionError(f"{print_graph(graph, locations=False)}\nis not\n{print_graph(expected, locations=False)}")


def kinds(graph: Graph) -> list[str]:
    """The operations behind the input, in order."""
    return [node.op.mnemonic for node in graph.nodes if not isinstance(node.op, ops.Input)]


def codes(context: Context) -> list[str]:
    return [d.code for d in context.diagnostics]


def outputs(graph: Graph, *xs: Array) -> list[Array]:
    """What the network answers."""
    values = run(graph, *xs)
    return [values[name] for name in graph.outputs]


def agree(before: Graph, after: Graph, *xs: Array, rtol: float = 1e-5) -> None:
    """Assert that two networks answer the same."""
    for a, b in zip(outputs(before, *xs), outputs(after, *xs), strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * max(1e-30, float(np.abs(a).max())))


class Numpy:
    """The reference interpreter as the engine that passes run graphs on."""

    def values(self, graph: Graph, xs: Sequence[Array], visit: Any) -> None:
        for name, value in run(graph, *xs).items():
            visit(name, value)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
