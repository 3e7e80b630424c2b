"""The range analysis: everything that is simulated lies within what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.build import Net
from strategies import graphs, inputs

from snncc.ir import Graph, Stage, Store, Type, interp, loihi, ops
from snncc.ir.ranges import ranges
from snncc.ir.types import Array, Range

spiking = st.sampled_from([Stage.SNN, Stage.INT, Stage.MAPPED]).flatmap(lambda stage: graphs(stage, every=True))
networks = st.sampled_from([Stage.ANN, Stage.FOLDED]).flatmap(graphs)


def seen(value: Array, batches: int) -> Range:
    """What values (batch axes, *shape) lie between, of every channel."""
    rows = np.moveaxis(value, batches, 0).reshape(value.shape[batches], -1)
    return Range(rows.min(axis=1), rows.max(axis=1))


def assert_within(value: Array, batches: int, bound: Range, what: str) -> None:
    found = seen(value, batches)
    slack = 1e-9 * (1.0 + np.maximum(np.abs(bound.low), np.abs(bound.high)))
    assert (found.low >= bound.low - slack).all(), what
    assert (found.high <= bound.high + slack).all(), what


@settings(max_examples=120, deadline=None)
@given(spiking, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_every_step_is_within(graph: Graph, timesteps: int, seed: int) -> None:
    xs = inputs(graph, 3, timesteps, seed)
    known = {name: seen(x, 2) for name, x in interp.encoded(graph, xs, timesteps).items()}
    found = ranges(graph, timesteps, known)
    trace = interp.simulate(graph, *xs, timesteps=timesteps)
    for name, value in trace.values.items():
        assert_within(value, 2, found.values[name], f"{name}: {graph[name].op}")
    for name, final in trace.final.items():
        bounds = found.states[name]
        numbers = [final] if len(bounds) == 1 else [final[:, i] for i in range(len(bounds))]
        if isinstance(graph[name].op, loihi.Delay):  # the last inputs
            numbers = [final[:, i] for i in range(final.shape[1])]
            bounds = bounds * len(numbers)
        elif isinstance(graph[name].op, ops.MaxPool):
            numbers = [final] if final.ndim else []
        for number, bound in zip(numbers, bounds, strict=False):
            assert_within(number, 1, bound, f"state of {name}: {graph[name].op}")


@settings(max_examples=120, deadline=None)
@given(networks, st.integers(0, 2**32 - 1))
def test_every_value_of_a_network_is_within(graph: Graph, seed: int) -> None:
    xs = inputs(graph, 3, 1, seed)
    known = {node.name: seen(x, 1) for node, x in zip(graph.inputs, xs, strict=True)}
    found = ranges(graph, 1, known)
    for name, value in interp.run(graph, *xs).items():
        assert_within(value, 1, found.values[name], f"{name}: {graph[name].op}")


@pytest.mark.parametrize("kind", ops.OPS.values())
def test_every_operation_states_its_bounds(kind: type[ops.Op]) -> None:
    assert kind.bounds is not ops.Op.bounds
    if issubclass(kind, ops.Stateful):
        assert kind.states is not ops.Stateful.states


@dataclass(frozen=True)
class Triple(ops.Elementwise):
    """One that says nothing of its range."""

    mnemonic: ClassVar[str] = "triple"


@dataclass(frozen=True)
class Told(Triple):
    """One that does."""

    def bounds(self, xs: object, out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].times(3.0)  # type: ignore[index, no-any-return]


def test_no_operation_passes_unseen() -> None:
    for op in Triple(), Told():
        n = Net(2, stage=Stage.SNN, low=-1.0, high=5.0)
        n(op, name="three")
        graph = Graph(tuple(n.nodes.values()), ("three",), Stage.SNN, store=n.store)
        if type(op) is Triple:
            with pytest.raises(NotImplementedError, match=r"Triple\.bounds"):
                ranges(graph, 8)
        else:
            assert ranges(graph, 8).values["three"].hull == (-3.0, 15.0)


def test_ranges_by_hand() -> None:
    n = Net(2, stage=Stage.INT, low=-1.0, high=1.0, unit=0.25)
    weight, bias = n.param([[2, -1], [3, 0]], np.int8), n.param([1, -2], np.int16)
    n(ops.Linear(weight, bias), name="fc")
    n(ops.If(5, 2, "subtract"), name="if")
    found = ranges(n.graph(), 10)
    assert found.values["x.encode"].hull == (-4.0, 4.0)
    np.testing.assert_array_equal(found.values["fc"].low, [-11, -14])
    np.testing.assert_array_equal(found.values["fc"].high, [13, 10])
    assert found.values["if"].hull == (0.0, 1.0)
    (v,) = found.states["if"]
    np.testing.assert_array_equal(v.low, [-110, -140])
    np.testing.assert_array_equal(v.high, [5 + 10 * (13 - 5) + 13, 5 + 10 * (10 - 5) + 10])
