"""lower-sigma-delta: in every time step the network's own outputs; biases in the neurons; refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from passes.build import Net, apply, codes, kinds, rng, same
from strategies import graphs, inputs

from snncc.ir import Domain, Graph, Node, Stage, ops
from snncc.ir.interp import run, simulate
from snncc.ir.loihi import Delta, Sigma, SigmaDelta
from snncc.passes.base import Context, Relation
from snncc.passes.lower_sigma_delta import LowerSigmaDelta
from snncc.passes.relation import compare
from snncc.passes.rewrite import Builder, rebuild


def folded(*shape: int) -> Net:
    return Net(*shape, stage=Stage.FOLDED)


def spiking(n: Net, *shape: int) -> Net:
    """What a network of the same store becomes, up to the messages of its input."""
    s = Net(*shape, stage=Stage.SNN, store=n.store)
    s(Delta(), name="x.delta")
    return s


def lower(graph: Graph) -> Graph:
    context = Context()
    after = apply(LowerSigmaDelta(), graph, context)
    assert codes(context) == []
    assert after.stage is Stage.SNN
    holds(graph, after)
    return after


def holds(before: Graph, after: Graph, seed: int = 0) -> None:
    """Every step answers what the network does; layers read what neurons sent; only neurons share a current."""
    xs = inputs(before, 2, 3, seed)
    wanted, trace = run(before, *xs), simulate(after, *xs, timesteps=3)
    for old, new in zip(before.outputs, after.outputs, strict=True):
        scale = max(1.0, *(np.abs(v).max(initial=0) for v in wanted.values()))
        np.testing.assert_allclose(
            trace.values[new], np.broadcast_to(wanted[old], trace.values[new].shape), 1e-5, 1e-6 * scale
        )
    for node in after.nodes:
        if isinstance(node.op, ops.Weighted):
            assert is_sent(after, node.args[0]), f"{node.name} reads a current"
            assert node.op.bias is None
        readers = after.users[node.name]
        if not is_sent(after, node.name) and len(readers) > 1 and not isinstance(node.op, ops.Input | ops.Encode):
            assert all(isinstance(r.op, SigmaDelta | Sigma) for r in readers), f"{node.name} is shared"


def is_sent(graph: Graph, name: str) -> bool:
    """Whether neurons sent the value, perhaps through changes of shape and pooling."""
    node = graph[name]
    if isinstance(node.op, ops.Weighted | ops.Add | Sigma | ops.Encode | ops.Input):
        return False
    return node.type.domain is Domain.MESSAGE or all(is_sent(graph, arg) for arg in node.args)


# --- before and expected ---------------------------------------------------------------------------------------------

W1, B1 = rng(1).standard_normal((3, 2, 3, 3)), [0.5, -1.0, 0.0]
W2, B2 = rng(2).standard_normal((4, 3, 1, 1)), [0.25, -0.5, 0.75, 1.0]


def test_a_chain() -> None:
    n = folded(2, 6, 6)
    n.conv(W1, B1, name="c1")
    n(ops.Relu(3.0), name="r1")
    n(ops.AvgPool((2, 2), (2, 2)), name="pool")
    n(ops.Flatten(), name="flat")
    w = rng(3).standard_normal((4, 12))
    n.linear(w, B2, name="fc")
    s = spiking(n, 2, 6, 6)
    s.conv(W1)
    s(SigmaDelta(s.param(B1)))
    s(ops.AvgPool((2, 2), (2, 2)))
    s(ops.Flatten())
    s.linear(w)
    s(Sigma(s.param(B2)))
    after = lower(n.graph())
    same(after, s.graph())
    assert [m.name for m in after.nodes] == [
        "x", "x.encode", "x.encode.delta", "c1", "r1", "pool", "flat", "fc", "fc.sigma",
    ]  # fmt: skip


def test_biases_go_through_sums_and_pooling() -> None:
    n = folded(2, 6, 6)
    n.conv(W1, B1, "x", name="c1")
    n.conv(W1, [1.0, 1.0, 1.0], "x", name="c2")
    n(ops.Add(), "c1", "c2")
    n(ops.AvgPool((2, 2), (2, 2), divisor=2))
    n(ops.Relu())
    s = spiking(n, 2, 6, 6)
    a, b = s.conv(W1, None, "x.delta"), s.conv(W1, None, "x.delta")
    s(ops.Add(), a, b)
    s(ops.AvgPool((2, 2), (2, 2), divisor=2))
    s(SigmaDelta(s.param([3.0, 0.0, 2.0])))
    s(Sigma())
    same(lower(n.graph()), s.graph())


def test_a_shortcut_is_added_in_messages() -> None:
    n = folded(3, 4, 4)
    n.conv(rng(1).standard_normal((3, 3, 1, 1)), B1, name="c1")
    n(ops.Relu(), name="r1")
    n.conv(rng(2).standard_normal((3, 3, 1, 1)), B1, name="c2")
    n(ops.Add(), "r1", "c2")
    n(ops.Relu())
    s = spiking(n, 3, 4, 4)
    s.conv(rng(1).standard_normal((3, 3, 1, 1)))
    r = s(SigmaDelta(s.param(B1)))
    c = s.conv(rng(2).standard_normal((3, 3, 1, 1)))
    s(ops.Add(), r, c)
    s(SigmaDelta(s.param(B1)))
    s(Sigma())
    same(lower(n.graph()), s.graph())


def test_layers_without_activation_between_them_get_a_neuron() -> None:
    """A linear bottleneck with a residual sum: the first bottleneck's current has two readers, which need messages."""
    n = folded(2, 6, 6)
    n.conv(W1, B1, name="narrow")
    n.conv(rng(2).standard_normal((3, 3, 1, 1)), [1.0, 2.0, 3.0], name="wide")
    n(ops.Add(), "narrow", "wide", name="sum")
    n.conv(W2, name="next")
    s = spiking(n, 2, 6, 6)
    s.conv(W1)
    m = s(SigmaDelta(s.param(B1), activation="none"))
    c = s.conv(rng(2).standard_normal((3, 3, 1, 1)))
    s(ops.Add(), m, c)
    s(SigmaDelta(s.param([1.0, 2.0, 3.0]), activation="none"))
    s.conv(W2)
    s(Sigma())
    after = lower(n.graph())
    same(after, s.graph())
    assert [m.name for m in after.nodes if isinstance(m.op, SigmaDelta)] == ["narrow.messages", "sum.messages"]


def test_neurons_share_a_current_and_each_has_its_bias() -> None:
    n = folded(2, 6, 6)
    n.conv(W1, B1, name="c1")
    n(ops.Relu(), name="r1")
    n.conv(W2, None, "c1", name="c2")
    s = spiking(n, 2, 6, 6)
    c = s.conv(W1)
    r = s(SigmaDelta(s.param(B1)), c)
    m = s(SigmaDelta(s.param(B1), activation="none"), c)
    last = s.conv(W2, None, m)
    outputs = (s(Sigma(s.param(B1)), c), s(Sigma(), r), s(Sigma(), last))
    after = lower(n.graph("c1", "r1", "c2"))
    same(after, s.graph(*outputs))


@pytest.mark.parametrize("pool", [ops.AvgPool((2, 2), (2, 2)), ops.SumPool((2, 2), (2, 2), 0.25)])
def test_a_sum_or_a_pooling_shares_no_current(pool: ops.Op) -> None:
    n = folded(2, 6, 6)
    n.conv(W1, B1, name="c1")
    n(pool, name="p")
    n(ops.Relu(), "c1", name="r")
    after = lower(n.graph("p", "r"))
    assert after["p"].args == ("c1.messages",)
    assert after["r"].args == ("c1",)


@pytest.mark.parametrize("pool", [ops.AvgPool((2, 2), (2, 2), (1, 1)), ops.AvgPool((3, 3), (2, 2), ceil_mode=True)])
def test_only_messages_are_padded(pool: ops.AvgPool) -> None:
    n = folded(2, 6, 6)
    n.conv(W1, B1)
    n(pool, name="p")
    n(ops.Relu())
    assert lower(n.graph())["p"].args[0].endswith(".messages")


def test_shapes_pass_messages_and_scores() -> None:
    """Of a current, its messages; except in front of an output, where nothing is to be rounded."""
    n = folded(2, 6, 6)
    n.conv(W1, B1, name="c1")
    n(ops.Flatten(), name="flat")
    n(ops.Slice((2,), (9,), (3,)), name="slice")
    n.linear(np.eye(3), name="fc")
    s = spiking(n, 2, 6, 6)
    c = s.conv(W1)
    s(SigmaDelta(s.param(B1), activation="none"), c)
    s(ops.Flatten())
    s(ops.Slice((2,), (9,), (3,)))
    f = s.linear(np.eye(3))
    s(Sigma(s.param(B1)), c)
    first = s(ops.Flatten())
    second = s(Sigma(), f)
    after = lower(n.graph("flat", "fc"))
    same(after, s.graph(first, second))
    after = lower(n.graph("slice"))
    assert kinds(after) == ["encode", "delta", "conv2d", "sigma", "flatten", "slice"]


def test_padding_with_a_value_is_a_bias_of_each_neuron() -> None:
    n = folded(2, 5, 5)
    n(ops.Pad((0, 1, 1), (0, 1, 1), value=2.0), name="pad")
    n.conv(W1, B1, name="c1")
    n(ops.Relu(), name="r")
    after = lower(n.graph())
    assert after["pad"].op == ops.Pad((0, 1, 1), (0, 1, 1))
    neuron = after["r"].op
    assert isinstance(neuron, SigmaDelta) and neuron.bias is not None
    assert neuron.bias.shape == (3, 5, 5)
    np.testing.assert_allclose(after.value(neuron.bias)[:, 1:-1, 1:-1], np.array(B1).reshape(3, 1, 1) * np.ones((3, 3)))


def test_biases_along_the_last_axis() -> None:
    n = folded(2, 3, 4)
    n(ops.Reshape((2, 12)))
    n.linear(rng(1).standard_normal((2, 12)), [0.5, -1.0], name="fc")
    n(ops.Relu(), name="r")
    neuron = lower(n.graph())["r"].op
    assert isinstance(neuron, SigmaDelta) and neuron.bias is not None
    np.testing.assert_array_equal(n.store[neuron.bias], [[0.5, -1.0], [0.5, -1.0]])


def test_averages_of_equal_biases_stay_per_channel() -> None:
    """0.1 nine times, and divided by nine, is not 0.1 in every window."""
    n = folded(2, 9, 9)
    n.conv(np.ones((1, 2, 1, 1)), [0.1])
    n(ops.AvgPool((3, 3), (1, 1)))
    n(ops.AvgPool((7, 7), (1, 1)))
    n(ops.Relu(), name="r")
    neuron = lower(n.graph())["r"].op
    assert isinstance(neuron, SigmaDelta) and neuron.bias is not None
    np.testing.assert_array_equal(n.store[neuron.bias], np.array([0.1], np.float32))


def test_an_output_that_is_the_input() -> None:
    n = folded(3)
    n(ops.Relu())
    s = spiking(n, 3)
    s(SigmaDelta())
    outputs = (s(Sigma(), "x.delta"), s(Sigma(), "sigma_delta3"))
    same(lower(n.graph("x", n.last)), s.graph(*outputs))


def test_two_inputs() -> None:
    n = folded(3)
    n(ops.Input((3,)), name="y")
    n(ops.Add(), "x", "y")
    assert kinds(lower(n.graph())) == ["encode", "delta", "encode", "delta", "add", "sigma"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [ops.Clamp(0.0, 6.0), ops.Clamp(-1.0, 1.0), ops.QuantRelu(1.0, 4), ops.Floor()])
def test_other_activations_are_refused(op: ops.Op) -> None:
    n = folded(3)
    n(op, name="act")
    context = Context()
    apply(LowerSigmaDelta(), n.graph(), context)
    assert codes(context) == ["SNN030"]
    (found,) = context.diagnostics
    assert f"`act` ({op.mnemonic})" in found.message
    assert "ReLU" in found.hint
    assert found.loc == n.nodes["act"].loc


def test_max_pooling_is_refused() -> None:
    n = folded(2, 6, 6)
    n(ops.MaxPool((2, 2), (2, 2)), name="pool")
    context = Context()
    apply(LowerSigmaDelta(), n.graph(), context)
    assert codes(context) == ["SNN031"]
    assert "`pool`" in context.diagnostics[0].message
    assert "AvgPool2d" in context.diagnostics[0].hint


def test_everything_that_stands_in_the_way_is_told_at_once() -> None:
    n = folded(2, 6, 6)
    n(ops.Clamp(0.0, 6.0))
    n(ops.MaxPool((2, 2), (2, 2)))
    n(ops.Floor())
    context = Context()
    LowerSigmaDelta()(n.graph(), context)
    assert codes(context) == ["SNN030", "SNN031", "SNN030"]


# --- generated networks ----------------------------------------------------------------------------------------------


def possible(graph: Graph) -> Graph:
    """The graph with what sigma-delta neurons have: any activation as ReLU, maxima as averages."""

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        op = node.op
        if isinstance(op, ops.MaxPool):
            if op.dilation != (1, 1):
                reject()
            return builder.copy(node, args, ops.AvgPool(op.kernel, op.stride, op.padding, op.ceil_mode))
        return builder.copy(node, args, ops.Relu()) if isinstance(op, ops.Activation | ops.Floor) else None

    return rebuild(graph, visit)


@settings(max_examples=200, deadline=None)
@given(graph=graphs(Stage.FOLDED, most=12), seed=st.integers(0, 999))
def test_generated_networks(graph: Graph, seed: int) -> None:
    before = possible(graph)
    context = Context()
    after = LowerSigmaDelta()(before, context)
    assert codes(context) == []
    holds(before, after, seed)


# --- the tests can fail ----------------------------------------------------------------------------------------------


def shared_current(after: Graph) -> Graph:
    """A sum reads a current that a neuron reads, too."""
    nodes = [Node(n.name, n.op, ("c1", n.args[1]), n.type) if n.name == "sum" else n for n in after.nodes]
    return Graph(tuple(nodes), after.outputs, after.stage, store=after.store)


def lost_bias(after: Graph) -> Graph:
    nodes = [Node(n.name, SigmaDelta(), n.args, n.type) if n.name == "r" else n for n in after.nodes]
    return Graph(tuple(nodes), after.outputs, after.stage, store=after.store)


@pytest.mark.parametrize("wrong", [shared_current, lost_bias])
def test_what_is_wrong_shows(wrong: Callable[[Graph], Graph]) -> None:
    n = folded(2, 6, 6)
    n.conv(W1, B1, name="c1")
    n(ops.Relu(), name="r")
    n(ops.Add(), "c1", "r", name="sum")
    before = n.graph()
    with pytest.raises(AssertionError):
        holds(before, wrong(lower(before)))


def test_exact_is_every_step() -> None:
    """A bias that is added in every step does not show in the network that a graph stands for."""
    n = folded(2, 6, 6)
    n.conv(W1, B1)
    n(ops.Relu())
    s = spiking(n, 2, 6, 6)
    s.conv(W1, B1)
    s(SigmaDelta())
    s(Sigma())
    x = rng(3).standard_normal((2, 2, 6, 6))
    assert all(d.holds for d in compare(n.graph(), lower(n.graph()), Relation.EXACT, x, timesteps=3))
    found = compare(n.graph(), s.graph(), Relation.EXACT, x, timesteps=3)
    assert [d.holds for d in found] == [True, True, False, False]
