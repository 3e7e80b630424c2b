"""The bounds that passes are held to: they hold, they say something, and they catch passes that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from passes.build import Net, rng
from zoo import ZOO, build, example_input

from snncc.engine import TorchEngine
from snncc.frontend import trace
from snncc.ir import Graph, Node, Stage, ops, verify
from snncc.ir.types import Array
from snncc.passes.base import Context, Relation, run_pipeline
from snncc.passes.calibrate import Calibrate
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.lower_activations import LowerActivations
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.quantize import Quantize
from snncc.passes.relation import Difference, compare


@lru_cache
def stages(name: str) -> tuple[dict[str, Graph], Array]:
    x = example_input(ZOO[name].input_shape, batch=4)
    graph, _ = trace(build(name), (x,))
    assert graph is not None
    context = Context(calibration=[(x.numpy(),)], engine=TorchEngine(), timesteps=64)
    passes = [
        Canonicalize(), FoldBatchNorm(), Calibrate("max"), LowerActivations(), LowerPooling(),
        Quantize(weight_bits=12, threshold_bits=24),
    ]  # fmt: skip
    records = run_pipeline(passes, graph, context)
    return {r.label.split("{")[0]: r.graph for r in records}, x.numpy().astype(np.float64)


# --- not vacuous -----------------------------------------------------------------------------------------------------


# How much larger the bound may be than the answers, after 64 steps: absolute values of the weights multiply.
LOOSE = {"mlp": 0.5, "lenet_bn": 50.0}


@pytest.mark.parametrize("name", LOOSE)
def test_the_bound_of_rates_falls_with_time(name: str) -> None:
    graphs, x = stages(name)
    before, after = graphs["calibrate"], graphs["lower-pooling"]
    found = {}
    for timesteps in (16, 64):
        (difference,) = compare(before, after, Relation.RATE, x, timesteps=timesteps)
        assert difference.holds
        found[timesteps] = difference
    assert found[64].bound.max() < 0.4 * found[16].bound.max()
    assert found[64].error.max() < 0.4 * found[16].error.max()
    scale = np.abs(_answer(before, x)).max()
    assert found[64].bound.max() / scale < LOOSE[name]
    assert found[64].error.max() / scale < 0.1


@pytest.mark.parametrize("name", LOOSE)
def test_the_bound_of_rounding_falls_with_the_bits(name: str) -> None:
    graphs, x = stages(name)
    before = graphs["lower-pooling"]
    found = []
    for bits in (10, 16):
        after = Quantize(bits, bias_bits=32, threshold_bits=32, input_bits=16)(before)
        for relation in (Relation.BOUNDED, Relation.RATE):
            assert compare(before, after, relation, x)[0].holds
        found.append(compare(before, after, Relation.BOUNDED, x)[0])
    assert found[1].bound.max() < 0.1 * found[0].bound.max()
    assert found[1].error.max() < 0.1 * found[0].error.max()
    scale = np.abs(_answer(graphs["calibrate"], x)).max()
    assert found[1].bound.max() / scale < 10 * LOOSE[name]
    assert found[1].error.max() / scale < 0.02


def _answer(graph: Graph, x: Array) -> Array:
    (difference,) = compare(graph, _zero(graph), Relation.EXACT, x)
    return difference.error


def _zero(graph: Graph) -> Graph:
    """The same with an answer of zero: the difference to it is the answer."""
    node = graph[graph.outputs[0]]
    zero = graph.store.put("zero", np.zeros(node.type.shape[0], np.float32))
    silent = Node("silent", ops.Affine(zero), (node.name,), node.type)
    return replace(graph, nodes=(*graph.nodes, silent), outputs=("silent",))


def test_lossy_claims_nothing() -> None:
    graphs, x = stages("mlp")
    with pytest.raises(ValueError, match="claims no bound"):
        compare(graphs["trace"], graphs["canonicalize"], Relation.LOSSY, x)


def test_a_difference_is_told_in_numbers() -> None:
    assert str(Difference(np.array([0.1, 0.25]), np.array([0.5, 0.125]))) == "error 0.25, bound 0.5"
    assert not Difference(np.array([0.1, 0.25]), np.array([0.5, 0.125])).holds


# --- passes that are wrong -------------------------------------------------------------------------------------------


def change(graph: Graph, name: str, **fields: object) -> Graph:
    """The graph with fields of one operation replaced, types inferred anew."""
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        op = replace(node.op, **fields) if node.name == name else node.op  # type: ignore[arg-type]
        type = op.infer(tuple(nodes[arg].type for arg in node.args), graph.store)
        if op.free_unit and node.type.integer:
            type = replace(type, unit=node.type.unit)
        nodes[node.name] = replace(node, op=op, type=type)
    result = replace(graph, nodes=tuple(nodes.values()))
    verify(result)
    return result


def scale_channel(graph: Graph, name: str, factor: float) -> Graph:
    weight = graph.value(graph[name].op.weight).copy()  # type: ignore[attr-defined]
    weight[1] = weight[1] * factor if weight.dtype.kind == "f" else np.rint(weight[1] * factor)
    return change(graph, name, weight=graph.store.put("w", weight))


def drop_bias(graph: Graph, name: str) -> Graph:
    return change(graph, name, bias=None)


def next_threshold(graph: Graph, name: str) -> Graph:
    return change(graph, name, threshold=graph[name].op.threshold + 1)  # type: ignore[attr-defined]


def swap_units(graph: Graph, name: str, reader: str) -> Graph:
    """As if the reader took its input channels' units in the wrong order."""
    unit = graph.value(graph[name].type.unit)  # type: ignore[arg-type]
    weight = graph.value(graph[reader].op.weight)  # type: ignore[attr-defined]
    ratio = np.repeat(unit[::-1] / unit, weight.shape[1] // len(unit))
    return change(graph, reader, weight=graph.store.put("w", np.rint(weight * ratio).astype(weight.dtype)))


def double_unit(graph: Graph) -> Graph:
    """The answer is worth twice of what it should be."""
    last = graph.nodes[-1]
    unit = graph.store.put("u", 2 * graph.value(last.type.unit))  # type: ignore[arg-type]
    return replace(graph, nodes=(*graph.nodes[:-1], replace(last, type=replace(last.type, unit=unit))))


def net(stage: Stage) -> Graph:
    n = Net(2, 5, 5, stage=stage, low=0.0, high=1.0, encoding="rate")
    n.conv(rng().uniform(-0.3, 0.5, (3, 2, 2, 2)), [0.2, -0.1, 0.15], name="conv")
    if stage is Stage.FOLDED:
        n(ops.Relu(0.8), name="act")
        n(ops.AvgPool((2, 2), (2, 2)), name="pool")
    else:
        n(ops.If(n.store.put("t", np.array([0.8, 0.4, 1.6])), 0.0), name="act")
        n(ops.SumPool((2, 2), (2, 2), 0.25), name="pool")
    n(ops.Flatten(), name="flat")
    n.linear(rng(1).uniform(-0.3, 0.5, (4, 12)), [0.2, -0.1, 0.3, 0.4], name="fc")
    return n.graph()


X = rng(2).uniform(0, 1, (6, 2, 5, 5))


@pytest.mark.parametrize("name", ["conv", "fc"])
@pytest.mark.parametrize("wrong", [lambda g, n: scale_channel(g, n, 1.01), drop_bias])
def test_exact_catches(wrong: Callable[[Graph, str], Graph], name: str) -> None:
    graph = net(Stage.FOLDED)
    (right,) = compare(graph, graph, Relation.EXACT, X)
    assert right.holds
    (difference,) = compare(graph, wrong(graph, name), Relation.EXACT, X)
    assert not difference.holds


def test_exact_catches_spikes_at_the_wrong_time() -> None:
    """Where rates agree as transfer functions, but neurons start elsewhere."""
    graph = net(Stage.SNN)
    later = change(graph, "act", v0=-0.2)
    differences = compare(graph, later, Relation.EXACT, X, timesteps=8)
    assert [d.holds for d in differences] == [True, False]


WRONG: dict[str, Callable[[Graph], Graph]] = {
    "a channel is scaled": lambda g: scale_channel(g, "conv", 0.5),
    "a channel of the last layer is scaled": lambda g: scale_channel(g, "fc", 0.8),
    "a bias is dropped": lambda g: drop_bias(g, "conv"),
    "the last bias is dropped": lambda g: drop_bias(g, "fc"),
    "units are swapped": lambda g: swap_units(g, "conv", "fc"),
    "a unit is wrong": double_unit,
}


@pytest.mark.parametrize("relation", [Relation.BOUNDED, Relation.RATE])
@pytest.mark.parametrize("wrong", WRONG)
def test_bounds_catch(wrong: str, relation: Relation) -> None:
    graph = net(Stage.SNN)
    after = Quantize(weight_bits=10, threshold_bits=24)(graph)
    (right,) = compare(graph, after, relation, X, timesteps=256)
    assert right.holds
    (difference,) = compare(graph, WRONG[wrong](after), relation, X, timesteps=256)
    assert not difference.holds


def test_bounded_catches_a_threshold_that_is_off_by_one() -> None:
    """As a rate it is as good as any other, but as a function it clips elsewhere. Saturated neurons show it."""
    n = Net(2, stage=Stage.SNN, encoding="rate")
    n.linear(np.full((3, 2), 4.0), name="fc")
    n(ops.If(n.store.put("t", np.array([1.0, 2.0, 1.5]))), name="if")
    graph = n.graph()
    after = Quantize(weight_bits=6, min_bits=2)(graph)
    x = np.ones((1, 2))
    right, wrong = (compare(graph, g, Relation.BOUNDED, x)[0] for g in (after, next_threshold(after, "if")))
    assert right.holds
    assert not wrong.holds


def test_rates_say_when_a_threshold_is_too_small() -> None:
    """Saturated neurons hold what they cannot send: the bound holds, and does not fall with time."""
    n = Net(2, 5, 5, stage=Stage.FOLDED)
    n.conv(rng().uniform(-0.3, 0.5, (3, 2, 2, 2)), [0.2, -0.1, 0.15], name="conv")
    n(ops.Relu(3.0), name="act")
    graph = n.graph()
    right = LowerActivations()(graph)
    wrong = change(right, "act", threshold=0.3)
    bounds = {}
    for after in (right, wrong):
        for timesteps in (64, 256):
            (difference,) = compare(graph, after, Relation.RATE, X, timesteps=timesteps)
            assert difference.holds
            bounds[after is right, timesteps] = difference.bound.max()
    assert bounds[True, 256] < 0.4 * bounds[True, 64]
    assert bounds[False, 256] > 0.9 * bounds[False, 64]
