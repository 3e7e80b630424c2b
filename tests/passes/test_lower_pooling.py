"""lower-pooling: averages become sums, the same in value and in every spike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.build import Net, agree, apply, codes, kinds, rng, same
from strategies import graphs, inputs

from snncc.ir import CompileError, Graph, Severity, Stage, ops
from snncc.ir.interp import simulate
from snncc.passes.base import Context
from snncc.passes.lower_pooling import LowerPooling


def pooled(op: ops.Op, spikes: bool = True, channels: bool = False) -> Net:
    """conv, (neurons,) the pooling, neurons."""
    n = Net(2, 6, 6, stage=Stage.SNN)
    n.conv(rng().standard_normal((3, 2, 1, 1)), [0.1, 0.2, -0.1])
    theta = n.store.put("t", np.array([0.5, 0.75, 2.0])) if channels else 0.7
    if spikes:
        n(ops.If(theta, 0.0), name="spikes")
    n(op, name="pool")
    n(ops.If(0.3, 0.15), name="after")
    return n


def lower(n: Net, policy: str = "keep") -> tuple[Graph, list[str]]:
    context = Context()
    after = apply(LowerPooling(policy), n.graph(), context)
    return after, codes(context)


POOLS = {
    "plain": (ops.AvgPool((2, 2), (2, 2)), 1 / 4, None),
    "oblong, overlapping": (ops.AvgPool((3, 2), (1, 2)), 1 / 6, None),
    "rest at the edge": (ops.AvgPool((4, 4), (3, 3)), 1 / 16, None),
    "padding": (ops.AvgPool((3, 3), (2, 2), (1, 1)), 1 / 9, ((0, 1, 1), (0, 0, 0))),
    "padding at both sides": (ops.AvgPool((4, 4), (2, 2), (1, 1)), 1 / 16, ((0, 1, 1), (0, 1, 1))),
    "padding at one side": (ops.AvgPool((2, 4), (2, 2), (1, 0)), 1 / 8, ((0, 1, 0), (0, 1, 0))),
    "padding, uneven": (ops.AvgPool((4, 4), (4, 4), (1, 1)), 1 / 16, ((0, 1, 1), (0, 1, 1))),
    "ceil_mode without rest": (ops.AvgPool((2, 2), (2, 2), ceil_mode=True), 1 / 4, None),
    "ceil_mode with a divisor": (ops.AvgPool((4, 4), (4, 4), ceil_mode=True, divisor=5), 1 / 5, ((0, 0, 0), (0, 2, 2))),
    "divisor": (ops.AvgPool((2, 2), (2, 2), divisor=3), 1 / 3, None),
    "divisor 1": (ops.AvgPool((2, 2), (2, 2), divisor=1), 1.0, None),
    "padding that does not count, with a divisor": (
        ops.AvgPool((3, 3), (3, 3), (1, 1), count_include_pad=False, divisor=2), 1 / 2, ((0, 1, 1), (0, 0, 0)),
    ),
    "adaptive": (ops.AdaptiveAvgPool((2, 3)), 1 / 6, None),
    "global": (ops.AdaptiveAvgPool((1, 1)), 1 / 36, None),
}  # fmt: skip


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_averages_become_sums(name: str, spikes: bool, channels: bool) -> None:
    op, scale, padding = POOLS[name]
    n = pooled(op, spikes=spikes, channels=channels)
    before = n.graph()
    after, said = lower(n)
    assert said == []
    kind = ["encode", "conv2d", *(["if"] if spikes else []), *(["pad"] if padding else []), "sum_pool", "if"]
    assert kinds(after) == kind
    pool = after["pool"].op
    assert isinstance(pool, ops.SumPool)
    assert pool.scale == scale
    if padding:
        assert after[after["pool"].args[0]].op == ops.Pad(*padding)
        assert after["pool.pad"].loc.sources == n.nodes["pool"].loc.sources
    x = rng(1).uniform(-1, 2, (3, 2, 6, 6))
    agree(before, after, x, rtol=1e-12)
    a, b = simulate(before, x, timesteps=12), simulate(after, x, timesteps=12)
    np.testing.assert_array_equal(a.values["after"], b.values["after"])
    np.testing.assert_allclose(a.mean("pool"), b.mean("pool"), rtol=1e-12, atol=1e-15)
    if spikes:  # the sum only counts: each spike is worth less
        counts = b.spikes("pool")
        assert (counts >= 0).all()
        assert counts.max() > 1
    for unchanged in ("x.encode", "conv2d2"):
        assert after[unchanged] is before[unchanged]


UNEVEN = {
    "padding that does not count": ops.AvgPool((3, 3), (3, 3), (1, 1), count_include_pad=False),
    "ceil_mode with a rest": ops.AvgPool((4, 4), (4, 4), ceil_mode=True),
    "ceil_mode with a rest beyond the padding": ops.AvgPool((3, 3), (3, 3), (1, 1), ceil_mode=True),
    "adaptive": ops.AdaptiveAvgPool((4, 6)),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_windows_that_differ_are_refused(name: str) -> None:
    n = pooled(UNEVEN[name])
    after, said = lower(n)
    assert said == ["SNN031"]
    same(after, n.graph())
    context = Context()
    LowerPooling()(n.graph(), context)
    (found,) = context.diagnostics
    assert found.severity is Severity.ERROR
    assert "`pool`" in found.message
    assert found.loc.sources[0].module == "pool"


def test_max_pooling() -> None:
    n = pooled(ops.MaxPool((2, 2), (2, 2)))
    for policy, wanted in (("keep", []), ("error", ["SNN031"])):
        after, said = lower(n, policy)
        assert said == wanted
        same(after, n.graph())


def test_every_pooling_is_named() -> None:
    n = Net(2, 6, 6, stage=Stage.SNN)
    n(ops.If(1.0))
    n(ops.MaxPool((2, 2), (1, 1)), name="a")
    n(ops.AvgPool((2, 2), (2, 2), ceil_mode=True), name="b")
    n(ops.MaxPool((2, 2), (1, 1)), name="c")
    _, said = lower(n, "error")
    assert said == ["SNN031"] * 3


def test_sums_worth_different_amounts_cannot_be_joined_inside_a_map() -> None:
    """Averages could: they are real values. Sums are counts, and a count has one unit."""
    n = Net(2, 6, 6, stage=Stage.SNN)
    a, b = n(ops.If(1.0), "x.encode"), n(ops.If(2.0), "x.encode")
    for value in (a, b):
        n(ops.AvgPool((2, 2), (2, 2)), value, name=f"{value}.pool")
    n(ops.Concat(1), f"{a}.pool", f"{b}.pool", name="cat")
    with pytest.raises(CompileError, match="`cat`") as caught:
        LowerPooling()(n.graph())
    assert [d.code for d in caught.value.diagnostics] == ["SNN032"]


def test_a_sum_keeps_units_per_channel() -> None:
    n = pooled(ops.AvgPool((2, 2), (2, 2)), channels=True)
    after, _ = lower(n)
    unit = after["pool"].type.unit
    np.testing.assert_array_equal(after.value(unit), np.array([0.5, 0.75, 2.0]) / 4)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(graph=graphs(Stage.SNN, 10), seed=st.integers(0, 99))
def test_any_graph_stays_the_same(graph: Graph, seed: int) -> None:
    context = Context()
    graph = graph.live()
    try:
        after = apply(LowerPooling(), graph, context)
    except CompileError:
        assert codes(context)[-1] == "SNN032"
        return
    assert set(codes(context)) <= {"SNN031"}
    left = {"avg_pool", "adaptive_avg_pool"} & set(kinds(after))
    assert bool(left) == bool(context.diagnostics)
    xs = inputs(graph, 2, 4, seed)
    a, b = simulate(graph, *xs, timesteps=4), simulate(after, *xs, timesteps=4)
    for name in graph.outputs:
        if not isinstance(graph[name].op, ops.Input):
            scale = max(1.0, float(np.abs(a.values[name]).max()))
            np.testing.assert_allclose(a.values[name], b.values[name], rtol=1e-9, atol=1e-9 * scale)
