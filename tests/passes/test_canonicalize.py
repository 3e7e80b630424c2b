"""canonicalize: every rule, before and expected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.build import Net, agree, apply, kinds, outputs, rng, same
from strategies import graphs, inputs
from zoo import SEQUENTIAL_ZOO, ZOO, build, example_input

from snncc.frontend import trace
from snncc.ir import Graph, Stage, ops
from snncc.passes.canonicalize import Canonicalize

PASS = Canonicalize()


def check(before: Net, expected: Net, *out: str, x: np.ndarray | None = None) -> Graph:
    """The pass makes ``expected`` of ``before``, and the same function."""
    graph = before.graph(*out)
    after = apply(PASS, graph)
    same(after, expected.graph(*out) if out and out[0] in expected.nodes else expected.graph())
    if x is None:
        x = rng(3).standard_normal((3, *graph.inputs[0].type.shape)) * 3
    agree(graph, after, x, rtol=1e-6)
    assert apply(PASS, after).nodes == after.nodes
    return after


# --- what does nothing -----------------------------------------------------------------------------------------------

NOTHING = {
    "identity": ops.Identity(),
    "dropout": ops.Dropout(0.3),
    "reshape": ops.Reshape((2, 4, 4)),
    "slice": ops.Slice((0, 0, 0), (2, 4, 4), (1, 1, 1)),
    "pad": ops.Pad((0, 0, 0), (0, 0, 0), "reflect"),
    "avg_pool": ops.AvgPool((1, 1), (1, 1), count_include_pad=False, ceil_mode=True),
    "avg_pool divided by 1": ops.AvgPool((1, 1), (1, 1), divisor=1),
    "adaptive_avg_pool": ops.AdaptiveAvgPool((4, 4)),
    "max_pool": ops.MaxPool((1, 1), (1, 1)),
    "clamp": ops.Clamp(),
    "concat": ops.Concat(0),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("last", [False, True])
def test_what_does_nothing_goes(name: str, last: bool) -> None:
    before, expected = Net(2, 4, 4), Net(2, 4, 4)
    for n in (before, expected):
        n(ops.Relu())
    before(NOTHING[name])
    for n in (before, expected):
        if not last:
            n(ops.AvgPool((2, 2), (2, 2)))
    check(before, expected)


def test_a_flatten_of_one_axis_goes() -> None:
    before, expected = Net(5), Net(5)
    before(ops.Flatten())
    for n in (before, expected):
        n.linear(np.ones((2, 5)))
    check(before, expected)


@pytest.mark.parametrize(
    "op",
    [
        ops.AvgPool((1, 1), (1, 1), divisor=3),
        ops.AvgPool((1, 1), (2, 2)),
        ops.MaxPool((1, 1), (2, 2)),
        ops.Slice((0, 0, 0), (2, 4, 4), (1, 2, 1)),
        ops.Pad((0, 1, 0), (0, -1, 0)),
        ops.Reshape((4, 4, 2)),
        ops.Floor(),
    ],
)
def test_what_does_something_stays(op: ops.Op) -> None:
    n, again = Net(2, 4, 4), Net(2, 4, 4)
    for net in (n, again):
        net(op)
    check(n, again)


def test_a_network_that_does_nothing_answers_its_input() -> None:
    n = Net(3)
    n(ops.Identity())
    n(ops.Dropout())
    after = apply(PASS, n.graph())
    assert after.outputs == ("x",)
    assert len(after.nodes) == 1


def test_biases_that_are_all_zero_go() -> None:
    before, expected = Net(2, 4, 4), Net(2, 4, 4)
    w, v, s = rng().standard_normal((3, 2, 3, 3)), rng(1).standard_normal((2, 12)), [2.0, 3.0]
    for n, zero in ((before, np.zeros), (expected, lambda k: None)):
        n.conv(w, zero(3))
        n(ops.Relu())
        n(ops.Flatten())
        n.linear(v, zero(2))
        n(ops.Relu())
        n.affine(s, zero(2))
    check(before, expected)


# --- activations -----------------------------------------------------------------------------------------------------

RELU6 = ops.Clamp(0.0, 6.0)
PAIRS = {
    "clamp from 0": ([ops.Clamp(0.0, None)], [ops.Relu()]),
    "clamp from int 0": ([ops.Clamp(0, None)], [ops.Relu()]),
    "relu relu": ([ops.Relu()] * 3, [ops.Relu()]),
    "relu clamp": ([ops.Relu(), ops.Clamp(None, 6.0)], [RELU6]),
    "relu hardtanh": ([ops.Relu(), ops.Clamp(-1.0, 1.0)], [ops.Clamp(0.0, 1.0)]),
    "relu relu6": ([ops.Relu(), RELU6], [RELU6]),
    "clamp relu": ([ops.Clamp(None, 6.0), ops.Relu()], [RELU6]),
    "hardtanh relu": ([ops.Clamp(-1.0, 1.0), ops.Relu()], [ops.Clamp(0.0, 1.0)]),
    "relu6 relu": ([RELU6, ops.Relu()], [RELU6]),
    "clamp from 0.5 relu": ([ops.Clamp(0.5, 2.0), ops.Relu()], [ops.Clamp(0.5, 2.0)]),
    "clamp max then min": ([ops.Clamp(None, 6.0), ops.Clamp(0.0, None)], [RELU6]),
    "clamp min then max": ([ops.Clamp(0.0, None), ops.Clamp(None, 6.0)], [RELU6]),
    "quant_relu relu": ([ops.QuantRelu(1.0, 4), ops.Relu()], [ops.QuantRelu(1.0, 4)]),
    "relu clamp from above": ([ops.Relu(), ops.Clamp(0.5, 2.0)], [ops.Relu(), ops.Clamp(0.5, 2.0)]),
    "relu clamp to below": ([ops.Relu(), ops.Clamp(None, -1.0)], [ops.Relu(), ops.Clamp(None, -1.0)]),
    "clamp to below relu": ([ops.Clamp(None, -1.0), ops.Relu()], [ops.Clamp(None, -1.0), ops.Relu()]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_activations_merge(name: str) -> None:
    before, expected = Net(6), Net(6)
    for n, chain in zip((before, expected), PAIRS[name], strict=True):
        n.linear(np.eye(6))
        for op in chain:
            n(op)
    check(before, expected)


def test_a_relu_that_another_node_reads_stays_for_it() -> None:
    before, expected = Net(6), Net(6)
    before(ops.Relu(), name="relu")
    before(ops.Clamp(-1.0, 1.0), name="clamp")
    before(ops.Add(), "relu", "clamp", name="sum")
    expected(ops.Relu(), name="relu")
    expected(ops.Clamp(0.0, 1.0), "x", name="clamp")
    expected(ops.Add(), "relu", "clamp", name="sum")
    check(before, expected)


MOVES = {
    "flatten": ops.Flatten(),
    "reshape": ops.Reshape((4, 9)),
    "slice": ops.Slice((0, 1, 0), (2, 5, 6), (1, 2, 1)),
    "max_pool": ops.MaxPool((2, 2), (2, 2), (1, 1)),
}
ACTIVATIONS = {"relu": ops.Relu(), "relu6": RELU6, "hardtanh": ops.Clamp(-1.0, 1.0), "qcfs": ops.QuantRelu(1.5, 4)}


def moved(op: ops.Op) -> ops.Op:
    return ops.Reshape((6, 12)) if isinstance(op, ops.Reshape) else op


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", MOVES)
def test_an_activation_moves_behind_its_layer(name: str, activation: str) -> None:
    before, expected = Net(2, 6, 6), Net(2, 6, 6)
    before(moved(MOVES[name]), name="move")
    before(ACTIVATIONS[activation], name="act")
    expected(ACTIVATIONS[activation], name="act")
    expected(moved(MOVES[name]), name="move")
    after = check(before, expected)
    assert [n.name for n in after.nodes] == ["x", "act", "move"]  # the names stay with the operations
    assert after["act"].loc.sources == before.nodes["act"].loc.sources


def test_an_activation_moves_through_several() -> None:
    before, expected = Net(2, 6, 6), Net(2, 6, 6)
    w = rng().standard_normal((3, 2, 3, 3))
    for n in (before, expected):
        n.conv(w)
        if n is expected:
            n(ops.Relu())
        n(ops.MaxPool((2, 2), (2, 2)))
        n(ops.Flatten())
        if n is before:
            n(ops.Relu())
    check(before, expected)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("output", [False, True])
def test_an_activation_leaves_what_others_read(name: str, output: bool) -> None:
    """Where the moved value is read elsewhere, or is an output, it stays as it was."""
    before = Net(2, 6, 6)
    before(moved(MOVES[name]), name="move")
    before(ops.Relu(), name="act")
    if not output:
        before(ops.Floor(), "move", name="other")
    outs = ("act", "move") if output else ("act", "other")
    graph = before.graph(*outs)
    after = apply(PASS, graph)
    agree(graph, after, rng().standard_normal((2, 2, 6, 6)))
    relu = next(n for n in after.nodes if isinstance(n.op, ops.Relu))
    assert relu.args == ("x",)
    assert sum(isinstance(n.op, type(MOVES[name])) for n in after.nodes) == 2


def test_an_activation_moves_into_every_branch_of_a_concat() -> None:
    before, expected = Net(2, 4, 4), Net(2, 4, 4)
    w = rng().standard_normal((3, 2, 1, 1))
    for n in (before, expected):
        a = n.conv(w, name="a")
        b = n.conv(-w, None, "x", name="b")
        if n is expected:
            a = n(ops.Relu(), "a")
            b = n(ops.Relu(), "b")
        n(ops.Concat(0), a, b)
        if n is before:
            n(ops.Relu())
    check(before, expected)


def test_two_activations_behind_one_flatten() -> None:
    before = Net(2, 4, 4)
    before(ops.Flatten(), name="flat")
    before(ops.Relu(), "flat", name="a")
    before(ops.Clamp(-1.0, 1.0), "flat", name="b")
    before(ops.Add(), "a", "b", name="sum")
    graph = before.graph()
    after = apply(PASS, graph)
    agree(graph, after, rng().standard_normal((2, 2, 4, 4)))
    assert all(n.args == ("x",) for n in after.nodes if isinstance(n.op, ops.Activation))


def test_an_activation_that_two_read_one_of_them_an_activation() -> None:
    """The name of the flatten must not change its meaning under the feet of the other reader."""
    n = Net(1, 2, 2)
    n(ops.Flatten(), name="flat")
    n(ops.Relu(), name="relu")
    n(ops.Clamp(0.0, 1.0), "relu", name="clamp")
    n(ops.Floor(), "relu", name="floor")
    n(ops.Add(), "clamp", "floor", name="sum")
    graph = n.graph("sum", "relu")
    x = np.array([[[[-1.0, 0.5], [2.5, 7.0]]]])
    agree(graph, apply(PASS, graph), x)


def test_a_chain_of_activations_and_moves() -> None:
    n = Net(1, 4, 4)
    n(ops.MaxPool((2, 2), (2, 2)), name="pool")
    n(ops.Clamp(-1.0, 3.0), name="clamp")
    n(ops.Flatten(), name="flat")
    n(ops.QuantRelu(2.0, 4), name="quant")
    n(ops.Floor(), "clamp", name="other")
    graph = n.graph("quant", "other", "flat")
    after = apply(PASS, graph)
    agree(graph, after, rng().standard_normal((3, 1, 4, 4)) * 3)
    same(apply(PASS, after), after)


# --- padding ---------------------------------------------------------------------------------------------------------


def padded(pad: ops.Pad) -> tuple[Graph, Graph]:
    n = Net(2, 5, 5)
    n(pad)
    n.conv(rng().standard_normal((3, 2, 3, 3)), padding=(1, 0, 0, 2), stride=(2, 1))
    return n.graph(), apply(PASS, n.graph())


def test_padding_merges_into_the_convolution() -> None:
    before, after = padded(ops.Pad((0, 1, 2), (0, 3, 0)))
    assert kinds(after) == ["conv2d"]
    assert after.nodes[-1].op.padding == (2, 3, 2, 2)
    assert [s.module for s in after.nodes[-1].loc] == ["conv2d2", "pad1"]
    agree(before, after, rng().standard_normal((2, 2, 5, 5)))


@pytest.mark.parametrize(
    "pad",
    [
        ops.Pad((0, 1, 1), (0, 1, 1), value=0.5),
        ops.Pad((0, 1, 1), (0, 1, 1), "reflect"),
        ops.Pad((0, 1, 1), (0, 1, 1), "replicate"),
        ops.Pad((0, 1, 1), (0, 1, 1), "circular"),
        ops.Pad((0, -1, 1), (0, 1, 1)),
        ops.Pad((1, 1, 1), (-1, 1, 1)),
    ],
)
def test_other_padding_stays(pad: ops.Pad) -> None:
    before, after = padded(pad)
    same(before, after)


def test_channel_padding_stays() -> None:
    n = Net(2, 5, 5)
    n(ops.Pad((0, 1, 1), (1, 1, 1)))
    n.conv(rng().standard_normal((3, 3, 3, 3)))
    same(apply(PASS, n.graph()), n.graph())


def test_padding_that_another_node_reads_stays_for_it() -> None:
    n = Net(1, 5, 5)
    n(ops.Pad((0, 1, 1), (0, 1, 1)), name="pad")
    n.conv(np.ones((1, 1, 3, 3)), None, "pad", name="a")
    n(ops.Relu(), "pad", name="b")
    graph = n.graph("a", "b")
    after = apply(PASS, graph)
    assert after["a"].args == ("x",)
    assert after["b"].args == ("pad",)
    agree(graph, after, rng().standard_normal((2, 1, 5, 5)))


# --- affine maps -----------------------------------------------------------------------------------------------------


def test_affine_maps_merge() -> None:
    before, expected = Net(2, 3, 3), Net(2, 3, 3)
    before.affine([2.0, 4.0], [1.0, -1.0], name="a")
    before.affine([0.5, 0.25], [3.0, 0.0], name="b")
    before.affine([2.0, 2.0], name="c")
    expected.affine([2.0, 2.0], [7.0, -0.5])
    after = check(before, expected)
    assert [s.module for s in after.nodes[-1].loc] == ["a", "b", "c"]


def test_an_affine_map_that_another_node_reads_is_not_merged() -> None:
    n = Net(2, 3, 3)
    n.affine([2.0, 4.0], name="a")
    n.affine([0.5, 0.25], name="b")
    n(ops.Relu(), "a", name="other")
    graph = n.graph("b", "other")
    same(apply(PASS, graph), graph)


def test_equal_adaptive_pooling_is_average_pooling() -> None:
    before, expected = Net(2, 6, 4), Net(2, 6, 4)
    before(ops.AdaptiveAvgPool((3, 1)))
    expected(ops.AvgPool((2, 4), (2, 4)))
    check(before, expected)
    n = Net(2, 6, 4)
    n(ops.AdaptiveAvgPool((4, 3)))
    same(apply(PASS, n.graph()), n.graph())


# --- quantized activations -------------------------------------------------------------------------------------------


def qcfs_paper(n: Net, theta: float, levels: int, shift: float) -> None:
    """clip(floor(x L/theta + shift), 0, L) theta/L."""
    n.scale(levels / theta, shift)
    n(ops.Floor())
    n(ops.Clamp(0.0, float(levels)))
    n.scale(theta / levels)


def qcfs_released(n: Net, theta: float, levels: int, shift: float) -> None:
    """As in the code that came with the paper: x/theta, clamp to [0, 1], floor(x L + shift)/L, times theta."""
    n.scale(1 / theta)
    n(ops.Clamp(0.0, 1.0))
    n.scale(levels, shift)
    n(ops.Floor())
    n.scale(1 / levels)
    n.scale(theta)


def qcfs_relu(n: Net, theta: float, levels: int, shift: float) -> None:
    """relu, min, then steps of theta/L."""
    n(ops.Relu())
    n(ops.Clamp(None, theta))
    n.scale(levels / theta)
    if shift:
        n.scale(1.0, shift)
    n(ops.Floor())
    n.scale(theta / levels)


def qcfs_behind(n: Net, theta: float, levels: int, shift: float) -> None:
    """Steps first, the range at the end."""
    n.scale(levels / theta, shift)
    n(ops.Floor())
    n.scale(theta / levels)
    n(ops.Clamp(None, theta))
    n(ops.Relu())


WAYS = [qcfs_paper, qcfs_released, qcfs_relu, qcfs_behind]


@pytest.mark.parametrize("shift", [0.5, 0.0])
@pytest.mark.parametrize("levels", [1, 4, 8, 255])
@pytest.mark.parametrize("theta", [1.0, 0.7, 3.3])
@pytest.mark.parametrize("way", WAYS)
def test_quantized_activations_are_recognized(way: object, theta: float, levels: int, shift: float) -> None:
    n = Net(2, 3, 3)
    n.conv(np.eye(2).reshape(2, 2, 1, 1), name="conv")
    way(n, theta, levels, shift)
    graph = n.graph()
    after = apply(PASS, graph)
    assert kinds(after) == ["conv2d", "quant_relu"]
    (op,) = (node.op for node in after.nodes if isinstance(node.op, ops.QuantRelu))
    assert (op.levels, op.shift) == (levels, shift)
    assert op.theta == pytest.approx(theta, rel=1e-6)
    x = rng().uniform(-theta, 2 * theta, (400, 2, 3, 3))
    # Away from the steps' edges, which float32 constants move.
    place = x * levels / theta + shift
    x = np.where(np.abs(place - np.rint(place)) < 1e-3, (np.floor(place) + 0.5 - shift) * theta / levels, x)
    if way is qcfs_relu and shift == 0:
        x = np.minimum(
            x, theta * (1 - 0.5 / levels)
        )  # at its end, written like this, rounding decides about the last step
    agree(graph, after, x, rtol=1e-5)
    same(apply(PASS, after), after)


@pytest.mark.parametrize("way", WAYS)
def test_other_scales_around_a_quantized_activation(way: object) -> None:
    """A scale before or behind it that is no part of it does not hide it."""
    for before, behind in ((0.5, None), (None, 3.0), (0.5, 3.0), (2.0, 0.5)):
        n = Net(2, 3, 3)
        if before:
            n.scale(before)
        way(n, 0.8, 4, 0.5)
        if behind:
            n.scale(behind)
        graph = n.graph()
        after = apply(PASS, graph)
        assert "floor" not in kinds(after)
        assert "quant_relu" in kinds(after)
        agree(graph, after, rng().uniform(-1, 3, (50, 2, 3, 3)), rtol=1e-5)


def test_the_places_of_all_steps_are_kept() -> None:
    n = Net(2, 3, 3)
    qcfs_released(n, 0.8, 4, 0.5)
    after = apply(PASS, n.graph())
    assert len(after.nodes[-1].loc.sources) == 6


NEAR_MISSES = {
    "scale per channel": lambda n: n.affine([4.0, 5.0]),
    "negative scale": lambda n: n.scale(-4.0, 0.5),
    "scale of zero": lambda n: n.scale(0.0, 0.5),
    "shift per channel": lambda n: n.affine([4.0, 4.0], [0.5, 0.25]),
    "shift of one": lambda n: n.scale(4.0, 1.0),
    "negative shift": lambda n: n.scale(4.0, -0.5),
    "another scale": lambda n: n.scale(5.0, 0.5),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_before_the_floor(name: str) -> None:
    """The steps of one are an activation by themselves; what does not belong to it stays as it was."""
    n = Net(2, 3, 3)
    NEAR_MISSES[name](n)
    n(ops.Floor())
    n(ops.Clamp(0.0, 4.0))
    n.scale(0.25)
    graph = n.graph()
    after = apply(PASS, graph)
    assert kinds(after) == ["affine", "quant_relu", "affine"]
    assert after.nodes[2].op == ops.QuantRelu(4.0, 4, 0.0)
    agree(graph, after, rng().uniform(-2, 3, (50, 2, 3, 3)))
    n = Net(2, 3, 3)  # and with the range before the floor, there is none
    n(ops.Clamp(0.0, 1.0))
    NEAR_MISSES[name](n)
    n(ops.Floor())
    n.scale(0.25)
    graph = n.graph()
    after = apply(PASS, graph)
    assert "floor" in kinds(after)
    agree(graph, after, rng().uniform(-2, 3, (50, 2, 3, 3)))


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 4.0), (1.0, 4.0), (0.0, 3.6), (0.0, 0.5), (None, 4.0), (0.0, None)],
)
def test_near_misses_of_the_range(low: float | None, high: float | None) -> None:
    """Not from 0, not to a whole number of steps, or without an end."""
    n = Net(2, 3, 3)
    n.scale(4.0, 0.5)
    n(ops.Floor())
    n(ops.Clamp(low, high))
    n.scale(0.25)
    graph = n.graph()
    after = apply(PASS, graph)
    assert "quant_relu" not in kinds(after)
    agree(graph, after, rng().uniform(-2, 3, (50, 2, 3, 3)))


def test_a_shift_behind_the_steps_is_no_part_of_it() -> None:
    n = Net(2, 3, 3)
    n.scale(4.0, 0.5)
    n(ops.Floor())
    n(ops.Clamp(0.0, 4.0))
    n.scale(0.25, 1.0)
    graph = n.graph()
    after = apply(PASS, graph)
    assert kinds(after) == ["affine", "quant_relu", "affine"]
    agree(graph, after, rng().uniform(-2, 3, (50, 2, 3, 3)))


@pytest.mark.parametrize("reader", ["affine", "floor", "clamp"])
@pytest.mark.parametrize("output", [False, True])
def test_steps_that_something_else_reads_are_kept(reader: str, output: bool) -> None:
    n = Net(2, 3, 3)
    n.scale(4.0, 0.5, name="affine")
    n(ops.Floor(), name="floor")
    n(ops.Clamp(0.0, 4.0), name="clamp")
    n.scale(0.25, name="end")
    if not output:
        n.conv(np.ones((1, 2, 1, 1)), None, reader, name="other")
    graph = n.graph("end", reader if output else "other")
    after = apply(PASS, graph)
    assert reader in after.by_name
    assert ("floor" in kinds(after)) == (reader == "floor")
    assert (
        after["end"].op.mnemonic == "affine"
    )  # the steps alone are an activation, in the end's own scale they are not
    agree(graph, after, rng().uniform(-2, 3, (50, 2, 3, 3)))


# --- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ZOO, *SEQUENTIAL_ZOO])
def test_a_second_run_changes_nothing(name: str) -> None:
    shape = {**ZOO, **SEQUENTIAL_ZOO}[name].input_shape
    graph, _ = trace(build(name), (example_input(shape, batch=1),))
    assert graph is not None
    once = apply(PASS, graph)
    twice = apply(PASS, once)
    assert all(a is b for a, b in zip(once.nodes, twice.nodes, strict=True))
    assert twice.outputs == once.outputs


@settings(max_examples=150, deadline=None)
@given(graph=graphs(Stage.ANN, 14), seed=st.integers(0, 99))
def test_generated_networks(graph: Graph, seed: int) -> None:
    """The same function, and a second run changes nothing."""
    once = apply(PASS, graph)
    assert apply(PASS, once) == once
    xs = inputs(graph, 2, 1, seed)
    for a, b in zip(outputs(graph, *xs), outputs(once, *xs), strict=True):
        # Floors turn rounding into steps: all but some values agree.
        scale = max(1.0, float(np.abs(a).max()))
        rough = any(isinstance(n.op, ops.Floor | ops.QuantRelu) for n in graph.nodes)
        assert rough or np.abs(a - b).max() <= 1e-4 * scale
