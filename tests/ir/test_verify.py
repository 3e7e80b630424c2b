"""Every rule of every stage, broken once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import any_graph

from snncc.ir import (
    Domain,
    Graph,
    Loc,
    Node,
    Param,
    Source,
    Stage,
    Store,
    Type,
    VerifyError,
    loihi,
    ops,
    parse,
    print_graph,
    verify,
)
from snncc.ir.ops import ShapeError
from snncc.ir.verify import SPECS, problems

STORE = Store()
W = STORE.put("w", np.ones((3, 2, 2, 2), np.float32))
W8 = STORE.put("w", np.ones((3, 2, 2, 2), np.int8))
UNITS = STORE.put("units", np.array([1.0, 2.0]))


def values(*dims: int) -> Param:
    return STORE.put("p", np.ones(dims, np.float32))


def build(stage: Stage, *steps: ops.Op, unit: float | Param = 1.0) -> Graph:
    """An input (2, 4, 4) and operations in a row."""
    nodes = [Node("x", ops.Input((2, 4, 4)), (), Type((2, 4, 4)))]
    for i, op in enumerate(steps):
        type = op.infer((nodes[-1].type,), STORE)
        type = replace(type, unit=unit) if op.free_unit and type.integer else type
        place = "core 1" if stage is Stage.MAPPED and not isinstance(op, ops.Encode) else ""
        nodes.append(Node(f"n{i}", op, (nodes[-1].name,), type, Loc((Source(f"net.{i}"),)), place))
    return Graph(tuple(nodes), (nodes[-1].name,), stage, store=STORE)


ANN = build(Stage.ANN, ops.Conv2d(W), ops.Relu(), ops.Flatten())
SNN = build(Stage.SNN, ops.Encode("rate"), ops.Conv2d(W), ops.If(1.0))
INT = build(Stage.INT, ops.Encode("rate", dtype="i8"), ops.Conv2d(W8), ops.If(3), unit=0.5)
SIGMA_DELTA = build(Stage.SNN, ops.Encode(), loihi.Delta(), loihi.SigmaDelta(), loihi.Sigma())
MAPPED = replace(build(Stage.MAPPED, ops.Encode("rate", dtype="i8"), ops.Conv2d(W8), ops.If(3), unit=0.5))


def broken(graph: Graph, name: str, /, **changes: Any) -> Graph:
    """``graph`` with one node changed."""
    nodes = (replace(node, **changes) if node.name == name else node for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def other(graph: Graph, name: str, /, **changes: Any) -> Graph:
    """``graph`` with one node's type changed."""
    return broken(graph, name, type=replace(graph[name].type, **changes))


def test_what_is_broken_below_was_whole() -> None:
    for graph in (ANN, SNN, INT, MAPPED, SIGMA_DELTA):
        verify(graph)


def test_a_loihi_neurons_unit_is_free() -> None:
    for unit in (0.5, UNITS):
        verify(other(broken(INT, "n2", op=loihi.CubaLif(3)), "n2", unit=unit))


@pytest.mark.parametrize(
    ("graph", "node", "message"),
    [
        (replace(SNN, stage=Stage.FOLDED), "n0", "operation encode does not belong in stage folded"),
        (
            broken(replace(ANN, stage=Stage.FOLDED), "n1", op=ops.Identity()),
            "n1",
            "identity does not belong in stage folded",
        ),
        (broken(SNN, "n2", op=ops.Relu()), "n2", "operation relu does not belong in stage snn"),
        (broken(INT, "n1", op=ops.AvgPool((2, 2), (2, 2))), "n1", "avg_pool does not belong in stage int"),
        (broken(SNN, "n2", op=loihi.CubaLif(1)), "n2", "operation cuba_lif does not belong in stage snn"),
        (broken(SNN, "n2", op=loihi.AtrLif(1)), "n2", "operation atr_lif does not belong in stage snn"),
        (broken(SNN, "n2", op=loihi.Delay(1)), "n2", "operation delay does not belong in stage snn"),
        (broken(ANN, "n1", op=loihi.Sigma()), "n1", "operation sigma does not belong in stage ann"),
        (other(ANN, "n1", domain=Domain.MESSAGE), "n1", "a message value in stage ann"),
        (broken(INT, "n2", op=loihi.Delta(scale=2)), "n2", 'domain = "message", unit = 0.25'),
        (other(broken(INT, "n2", op=loihi.SigmaDelta()), "n2", domain=Domain.MESSAGE), "n2", "unit = 0.5"),
        (broken(INT, "n2", op=loihi.CubaLif(-1)), "n2", "threshold must be whole"),
        (broken(ANN, "n1", args=("n0", "n0")), "n1", "relu takes 1 operands, has 2"),
        (broken(ANN, "n1", op=ops.Add()), "n1", "add takes 2 operands, has 1"),
        (broken(ANN, "n1", op=ops.Concat(), args=()), "n1", "concat takes one or more operands, has 0"),
        (broken(ANN, "n1", args=("n2",)), "n1", "operand %n2 is not defined before its use"),
        (broken(ANN, "n1", args=("nowhere",)), "n1", "operand %nowhere is not defined before its use"),
        (broken(ANN, "n1", name="n0"), "n0", "the name is taken"),
        (other(ANN, "x", domain=Domain.SPIKE), "x", "an input is real"),
        (other(SNN, "n1", domain=Domain.REAL), "n1", "a real value after the encoding"),
        (broken(SNN, "n2", args=("x",)), "n2", "encode ops, and nothing else, read inputs"),
        (broken(SNN, "n2", op=ops.Encode()), "n2", "encode ops, and nothing else, read inputs"),
        (other(ANN, "n1", domain=Domain.SPIKE), "n1", "a spike value in stage ann"),
        (other(ANN, "n1", dtype="i32"), "n1", "dtype i32 in stage ann"),
        (other(INT, "n1", dtype="f32"), "n1", "dtype f32 in stage int"),
        (broken(INT, "n1", op=ops.Conv2d(W)), "n1", "weight is f32 in stage int"),
        (broken(SNN, "n1", op=ops.Conv2d(W8)), "n1", "weight is i8 in stage snn"),
        (broken(INT, "n1", op=ops.Conv2d(W8, values(3))), "n1", "bias is f32 in stage int"),
        (broken(MAPPED, "n1", place=""), "n1", "no place is assigned"),
        (broken(ANN, "n0", op=ops.Conv2d(W, groups=2)), "n0", "conv2d takes 4 channels, got shape (2, 4, 4)"),
        (other(ANN, "n1", shape=(3, 3)), "n1", "type is tensor<3x3xf32>, but the operation gives tensor<3x3x3xf32>"),
        (other(ANN, "n1", dtype="f64"), "n1", "type is tensor<3x3x3xf64>, but the operation gives"),
        (other(SNN, "n2", unit=2.0), "n2", "unit = 2.0 : f64}>, but the operation gives"),
        (other(INT, "n2", domain=Domain.CURRENT), "n2", 'domain = "current", unit = 1.5'),
        (other(INT, "n0", unit=UNITS), "n0", "but the operation gives"),
    ],
)
def test_a_broken_rule_is_shown_in_its_line(graph: Graph, node: str, message: str) -> None:
    with pytest.raises(VerifyError) as error:
        verify(graph, "after some-pass")
    (diagnostic,) = [d for d in error.value.diagnostics if message in d.message]
    head, *context = diagnostic.message.split("\n")
    assert head.endswith("(after some-pass)")
    (marked,) = [line for line in context if line.startswith(">>> ")]
    assert marked.startswith(f">>> %{node} = ")
    assert len(context) > 1
    assert diagnostic.code == "SNN090"
    assert diagnostic.loc in [n.loc for n in graph.nodes if n.name == node]
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (replace(ANN, outputs=()), "the graph has no output"),
        (replace(ANN, outputs=("n2", "y")), "output %y is not defined"),
        (replace(SNN, outputs=("x",)), "output %x is an input"),
    ],
)
def test_broken_outputs(graph: Graph, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(graph)


def test_everything_is_said_at_once() -> None:
    graph = broken(other(ANN, "n1", shape=(1,)), "n0", args=("y",))
    with pytest.raises(VerifyError) as error:
        verify(replace(graph, outputs=("z",)))
    assert len(error.value.diagnostics) == 4


IMAGE, FLAT, LINE = Type((2, 4, 4)), Type((8,)), Type((2, 4))
COUNTS = Type((2, 4, 4), "i8", Domain.SPIKE, 0.5)
COLOURED = replace(COUNTS, unit=UNITS)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (ops.Reshape((5,)), (FLAT,), r"cannot reshape \(8,\) \(8 values\) to \(5,\)"),
        (ops.Reshape((4, 8)), (replace(COLOURED, shape=(3, 4, 4)),), "cannot reshape"),
        (ops.Reshape((1, 32)), (COLOURED,), "channels have units of their own"),
        (ops.Pad((1,), (1,)), (LINE,), "pad names 1 axes"),
        (ops.Pad((1,), (1,), "mirror"), (FLAT,), "unknown padding mode 'mirror'"),
        (ops.Pad((-4,), (-4,)), (FLAT,), "gives"),
        (ops.Pad((-1, 0, 0), (0, 0, 0)), (COLOURED,), "negative padding of channels"),
        (ops.Pad((1, 0, 0), (0, 0, 0), value=0.5), (COUNTS,), "padding 0.5 among integers"),
        (ops.Slice((0,), (1,), (1,)), (LINE,), "slice names 1 axes"),
        (ops.Slice((2,), (2,), (1,)), (FLAT,), "is empty"),
        (ops.Slice((4,), (0,), (-1,)), (FLAT,), "not all positive"),
        (ops.Concat(1), (FLAT,), "no axis 1"),
        (ops.Concat(), (FLAT, LINE), "cannot concatenate"),
        (ops.Concat(1), (IMAGE, Type((3, 4, 4))), "cannot concatenate"),
        (ops.Concat(1), (COUNTS, COLOURED), "different units along an axis other than the channels"),
        (ops.Add(), (FLAT, LINE), r"cannot add \(8,\) and \(2, 4\)"),
        (ops.Add(), (COUNTS, COLOURED), "cannot add integers of different units"),
        (ops.Conv2d(W), (FLAT,), "conv2d takes 3 axes besides the batch"),
        (ops.Conv2d(values(3, 2)), (IMAGE,), "a weight of 4 axes"),
        (ops.Conv2d(W), (Type((3, 4, 4)),), "conv2d takes 2 channels"),
        (ops.Conv2d(values(3, 1, 1, 1), groups=2), (IMAGE,), "3 output channels in 2 groups"),
        (ops.Conv2d(W, values(2)), (IMAGE,), "bias must have 3 values"),
        (ops.Conv2d(W, dilation=(4, 1)), (IMAGE,), "is larger than its input"),
        (ops.Linear(values(8)), (FLAT,), "linear takes a matrix"),
        (ops.Linear(values(3, 7)), (FLAT,), "linear takes 7 features"),
        (ops.Linear(values(3, 8), values(8)), (FLAT,), "bias must have 3 values"),
        (ops.Affine(values(3)), (IMAGE,), "one value per channel"),
        (ops.BatchNorm(values(2), values(3)), (IMAGE,), "batch norm of 3 channels"),
        (ops.AvgPool((2, 2), (2, 2)), (FLAT,), "avg_pool takes 3 axes"),
        (ops.AvgPool((5, 2), (2, 2)), (IMAGE,), "pooling window .* is larger"),
        (ops.AvgPool((2, 2), (2, 2), (2, 0)), (IMAGE,), "padding over half the window"),
        (ops.AdaptiveAvgPool((1, 1)), (FLAT,), "adaptive_avg_pool takes 3 axes"),
        (ops.SumPool((2, 2), (2, 2)), (FLAT,), "sum_pool takes 3 axes"),
        (ops.SumPool((5, 5), (2, 2)), (IMAGE,), "pooling window .* is larger"),
        (ops.MaxPool((2, 2), (2, 2)), (FLAT,), "max_pool takes 3 axes"),
        (ops.MaxPool((5, 5), (2, 2)), (IMAGE,), "pooling window .* is larger"),
        (ops.MaxPool((2, 2), (2, 2), (2, 2)), (IMAGE,), "padding over half the window"),
        (ops.MaxPool((2, 2), (2, 2), (1, 1), (5, 1)), (IMAGE,), "lies in its padding"),
        (ops.Encode("morse"), (IMAGE,), "unknown encoding 'morse'; known: constant, rate, bernoulli, spikes"),
        (ops.Encode(dtype="i4"), (IMAGE,), "unknown dtype 'i4'"),
        (ops.Encode(unit=0.0), (IMAGE,), "not positive"),
        (ops.If(1.0, reset="soft"), (IMAGE,), "unknown reset 'soft'"),
        (ops.If(1.0, gain=values(3)), (IMAGE,), "one value per channel"),
        (ops.If(values(3)), (IMAGE,), "one value per channel"),
        (ops.If(0.0), (IMAGE,), "threshold is not positive"),
        (ops.If(STORE.put("t", np.array([1.0, -1.0]))), (IMAGE,), "threshold is not positive"),
        (ops.If(float("inf")), (IMAGE,), "threshold is not finite"),
        (ops.If(1.0, v_min=float("-inf")), (IMAGE,), "v_min is not finite"),
        (ops.If(1.5), (COUNTS,), "threshold of an integer neuron is not whole"),
        (ops.If(1, v0=0.5), (COUNTS,), "v0 of an integer neuron is not whole"),
        (ops.Lif(1.0, reset="soft"), (IMAGE,), "unknown reset 'soft'"),
        (ops.Lif(1.0, decay=0.0), (IMAGE,), "decay 0.0 is not above 0"),
        (ops.Lif(1.0, decay=1.5), (IMAGE,), "decay 1.5 is not above 0"),
        (ops.Lif(values(3)), (IMAGE,), "one value per channel"),
        (ops.Lif(-1.0), (IMAGE,), "threshold is not positive and finite"),
        (ops.Lif(float("inf")), (IMAGE,), "threshold is not positive and finite"),
        (ops.Lif(1.5), (COUNTS,), "threshold of an integer neuron is not whole"),
    ],
)
def test_operands_that_do_not_fit(op: ops.Op, args: tuple[Type, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer(args, STORE)


@settings(max_examples=100)
@given(any_graph)
def test_no_stage_takes_another_domain_of_numbers(graph: Graph) -> None:
    integer = SPECS[graph.stage].integer
    for stage in Stage:
        if SPECS[stage].integer != integer:
            assert problems(replace(graph, stage=stage))


def test_text_without_bytes_verifies_as_far_as_that_goes() -> None:
    graph = build(Stage.INT, ops.Encode("rate", dtype="i8"), ops.Conv2d(W8), ops.If(3), unit=UNITS)
    assert not problems(parse(print_graph(build(Stage.SNN, ops.Encode(), ops.If(UNITS)))))
    assert not problems(parse(print_graph(graph)))


def test_the_same_units_under_other_names_are_the_same() -> None:
    again = STORE.put("other_name", np.array([1.0, 2.0]))
    assert again != UNITS
    assert ops.Add().infer((COLOURED, replace(COLOURED, unit=again)), STORE).unit == UNITS
    verify(other(build(Stage.SNN, ops.Encode(), ops.If(UNITS)), "n1", unit=again))
