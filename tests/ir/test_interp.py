"""The reference interpreter, the encodings and the store. What the operations compute is held to torch's answers in
tests/engine/test_ops.py; here nothing imports torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import any_graph, graphs, inputs

from snncc.ir import Domain, Graph, InputError, Loc, Node, Source, Stage, Store, Type, interp, ops, parse, print_graph, verify
from snncc.ir.encode import encode
from snncc.ir.types import Array, MissingBytes

seeds = st.integers(0, 2**32 - 1)


def chain(stage: Stage, *steps: ops.Op, store: Store | None = None) -> Graph:
    store = store if store is not None else Store()
    nodes: list[Node] = []
    for i, op in enumerate(steps):
        args = nodes[-1:]
        nodes.append(Node(f"n{i}", op, tuple(n.name for n in args), op.infer(tuple(n.type for n in args), store)))
    graph = Graph(tuple(nodes), (nodes[-1].name,), stage, store=store)
    verify(graph)
    return graph


# --- neurons -------------------------------------------------------------------------------------------------------


def fire(x: list[float], theta: float, v: float, reset: str, v_min: float | None, grid: float) -> tuple[list[float], float]:
    """Integrate and fire, one neuron, in plain Python."""
    out = []
    for current in x:
        v += round(current / grid) * grid
        if v >= theta:
            out.append(1.0)
            v = v - theta if reset == "subtract" else 0.0
        else:
            out.append(0.0)
        if v_min is not None and v < v_min:
            v = v_min
    return out, v


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=12),
    st.sampled_from([1.0, 0.5, 0.7, 3.0]),
    st.sampled_from([0.0, 0.35, -0.2]),
    st.sampled_from(["subtract", "zero"]),
    st.sampled_from([None, 0.0, -0.5]),
)
def test_float_neuron(x: list[float], theta: float, v0: float, reset: str, v_min: float | None) -> None:
    graph = chain(Stage.SNN, ops.Input((1,)), ops.Encode("spikes"), ops.Affine(*[None]) if False else ops.If(theta, v0, reset, v_min))
    op, type, store = graph["n2"].op, graph["n2"].type, graph.store
    assert isinstance(op, ops.If)
    grid = 2.0 ** (np.frexp(theta)[1] - 1 - 24)
    want, v = fire(x, theta, v0, reset, v_min, grid)
    state, got = op.start(1, type, store), []
    for current in x:
        state, y = op.step(state, np.array([[current]]), type, store)
        got.append(float(y[0, 0]))
    assert got == [spike * theta for spike in want]
    assert state[0, 0] == v
