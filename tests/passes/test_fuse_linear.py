"""Before and after of fuse-linear, rule by rule; and that it is exact, complete and done once on all networks."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.build import Net, apply, codes, kinds, rng, same
from zoo import GRAPH_ZOO, SEQUENTIAL_ZOO, ZOO, build, example_input, random_model

from snncc.frontend import trace
from snncc.ir import Diagnostic, Graph, Stage, ops
from snncc.ir.types import Array
from snncc.passes import fuse_linear
from snncc.passes.base import Context, Relation
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.fuse_linear import FuseLinear
from snncc.passes.lower_activations import SpikingOutput
from snncc.passes.relation import compare

FUSE = FuseLinear((1, 2, 4))


def net(*shape: int, **options: Any) -> Net:
    return Net(*shape, stage=Stage.FOLDED, **options)


def whole(*shape: int, seed: int = 0) -> Array:
    """Weights that are small whole numbers, none zero, so that their sums and products are exact in float32."""
    return rng(seed).choice([-3, -2, -1, 1, 2, 3], shape).astype(np.float32)


def eye(n: int, size: int = 1) -> Array:
    """A kernel that copies: ones in the middle."""
    kernel = np.zeros((n, n, size, size), np.float32)
    kernel[range(n), range(n), size // 2, size // 2] = 1
    return kernel


def fuse(graph: Graph, p: FuseLinear = FUSE, said: tuple[str, ...] = ()) -> Graph:
    """The graph after the pass, which is exact, says ``said``, and changes nothing the second time."""
    context = Context()
    after = apply(p, graph, context)
    assert tuple(codes(context)) == said
    check(graph, after, p, complete=not said)
    return after


def check(graph: Graph, after: Graph, p: FuseLinear = FUSE, complete: bool = True) -> None:
    xs = [rng(i).standard_normal((2, *node.type.shape)) for i, node in enumerate(graph.inputs)]
    for difference in compare(graph, after, Relation.EXACT, *xs):
        assert difference.holds, difference
    assert apply(p, after) == after
    if complete:
        in_form(after)


def in_form(graph: Graph) -> None:
    """Every activation reads one weighted operation, which nothing else reads."""
    layers = [graph[node.args[0]] for node in graph.nodes if isinstance(node.op, ops.Activation)]
    assert all(isinstance(node.op, ops.Weighted) and len(graph.users[node.name]) == 1 for node in layers)


def said(graph: Graph, p: FuseLinear = FUSE) -> Diagnostic:
    context = Context()
    apply(p, graph, context)
    (found,) = context.diagnostics
    return found


# --- sums -----------------------------------------------------------------------------------------------------------


def test_a_residual_sum_reads_both_with_w_and_one() -> None:
    before, after = net(2, 5, 5), net(2, 5, 5)
    a, b, c = whole(3, 2, 3, 3), whole(3, 3, 3, 3, seed=1), whole(3, 3, 3, 3, seed=2)
    for n in before, after:
        n.conv(a, [1, 2, 3], padding=(1,) * 4)
        n(ops.Relu(), name="h")
        n.conv(b, padding=(1,) * 4)
        n(ops.Relu(), name="g")
    before.conv(c, [4, 5, 6], "g", padding=(1,) * 4, name="c")
    before(ops.Add(), "c", "h", name="sum")
    before(ops.Relu(), name="out")
    after(ops.Concat(), "g", "h")
    after.conv(np.concatenate([c, eye(3, 3)], axis=1), [4, 5, 6], padding=(1,) * 4)
    after(ops.Relu())
    found = fuse(before.graph())
    same(found, after.graph())
    assert [n.name for n in found.nodes][-3:] == ["c.in", "c", "out"]  # the layer keeps its name, and its places
    assert [s.module for s in found["c"].loc] == ["c", "sum"]


def test_a_sum_of_activations_in_front_of_a_layer_doubles_its_weights() -> None:
    before, after, w = net(2, 4, 4), net(2, 4, 4), whole(3, 2, 3, 3)
    for n in before, after:
        n(ops.Relu(), n.conv(whole(2, 2, 1, 1, seed=1), None, "x"), name="a")
        n(ops.Relu(), n.conv(whole(2, 2, 1, 1, seed=2), None, "x"), name="b")
    before(ops.Add(), "a", "b")
    before.conv(w, [1, 0, 2])
    before(ops.Relu())
    after(ops.Concat(), "a", "b")
    after.conv(np.concatenate([w, w], axis=1), [1, 0, 2])
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_biases_add_up_and_zeros_drop_out() -> None:
    before, after = net(1, 2, 2), net(1, 2, 2)
    before.conv([[[[2.0]]]], [3.0], "x", name="a")
    before.conv([[[[5.0]]]], [-1.0], "x", name="b")
    before(ops.Relu(), before(ops.Add(), "a", "b"))
    after.conv([[[[7.0]]]], [2.0])
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())
    before.conv([[[[1.0]]]], [-2.0], "x", name="c")
    before(ops.Relu(), before(ops.Add(), before(ops.Add(), "a", "b"), "c"))
    assert fuse(before.graph())["a"].op.bias is None  # type: ignore[attr-defined]


def test_one_source_read_in_several_ways_is_read_once() -> None:
    before, after = net(2, 4, 4), net(2, 4, 4)
    three, one = whole(3, 2, 3, 3), whole(3, 2, 1, 1, seed=1)
    a, b = before.conv(three, None, "x", padding=(1,) * 4), before.conv(one, None, "x")
    before(ops.Relu(), before(ops.Add(), a, b))
    kernel = three.copy()
    kernel[:, :, 1:2, 1:2] += one
    after.conv(kernel, padding=(1,) * 4)
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_an_activation_added_to_itself() -> None:
    before, after = net(2, 3, 3), net(2, 3, 3)
    for n in before, after:
        n(ops.Relu(), n.conv(whole(2, 2, 1, 1)), name="a")
    before(ops.Relu(), before(ops.Add(), "a", "a"))
    after(ops.Relu(), after.conv(2 * eye(2), None, "a"))
    same(fuse(before.graph()), after.graph())


def test_a_layer_that_two_activations_read_is_there_twice() -> None:
    before, after, w = net(2, 3, 3), net(2, 3, 3), whole(3, 2, 2, 2)
    before.conv(w, [1, 2, 3], name="conv")
    before(ops.Clamp(0.0, 2.0), "conv", name="a")
    before(ops.Relu(), "conv", name="b")
    for op in ops.Clamp(0.0, 2.0), ops.Relu():
        after(op, after.conv(w, [1, 2, 3], "x"), name="b" if op == ops.Relu() else "a")
    found = fuse(before.graph("a", "b"))
    same(found, after.graph("a", "b"))
    assert found["a"].args == ("conv",) and found["b"].args == ("conv_1",)


def test_a_layer_that_is_an_output_too_stays() -> None:
    n = net(2, 3, 3)
    n.conv(whole(3, 2, 2, 2), name="conv")
    n(ops.Relu(), "conv", name="a")
    found = fuse(n.graph("conv", "a"))
    assert found.outputs == ("conv", "a") and found["a"].args == ("conv_1",)


# --- one after the other --------------------------------------------------------------------------------------------


def test_a_layer_behind_a_layer() -> None:
    """3 (1 s0 + 2 s1 + 1) + 4 (1 s1 + 2 s2 + 1) + 2 = 3 s0 + 10 s1 + 8 s2 + 9."""
    before, after = net(1, 1, 6), net(1, 1, 6)
    before.conv([[[[1.0, 2.0]]]], [1.0], name="small")
    before.conv([[[[3.0, 4.0]]]], [2.0], stride=(1, 2), name="strided")
    before(ops.Relu())
    after.conv([[[[3.0, 10.0, 8.0]]]], [9.0], stride=(1, 2))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_strides_and_dilations_multiply() -> None:
    """Windows of 3 rows, 2 apart, over every other row: rows 0, 4 and 8."""
    before, after = net(1, 12, 1), net(1, 12, 1)
    before.conv([[[[2.0]]]], stride=(2, 1))
    before.conv([[[[1.0], [3.0], [5.0]]]], dilation=(2, 1))
    before(ops.Relu())
    kernel = np.zeros((1, 1, 9, 1), np.float32)
    kernel[0, 0, ::4, 0] = 2, 6, 10
    after.conv(kernel, stride=(2, 1))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_groups_become_dense() -> None:
    before, after = net(4, 3, 3), net(4, 3, 3)
    w, one = whole(4, 1, 3, 3), whole(2, 4, 1, 1, seed=1)
    before.conv(w, groups=4)
    before.conv(one)
    before(ops.Relu())
    dense = np.zeros((4, 4, 3, 3), np.float32)
    dense[range(4), range(4)] = w[:, 0]
    after.conv(np.einsum("om,mcij->ocij", one[:, :, 0, 0], dense))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_a_padding_that_sees_only_zeros() -> None:
    """Without a bias, 1 x 1 in front of a padded layer changes nothing outside of the map."""
    before, after = net(2, 4, 4), net(2, 4, 4)
    one, three = whole(3, 2, 1, 1), whole(2, 3, 3, 3, seed=1)
    before.conv(one)
    before.conv(three, [1, 2], padding=(1, 0, 1, 1))
    before(ops.Relu())
    after.conv(np.einsum("omij,mc->ocij", three, one[:, :, 0, 0]), [1, 2], padding=(1, 0, 1, 1))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


@pytest.mark.parametrize("second", ["conv", "dilated", "pad", "pool"])
@pytest.mark.parametrize(
    ("first", "why"),
    [
        ({"weight": whole(2, 2, 1, 1), "bias": [0, 1]}, "where the bias before would be needed"),
        ({"weight": whole(2, 2, 3, 3), "padding": (1,) * 4}, "windows over the edge of its input"),
    ],
)
def test_a_padding_that_sees_more_is_refused(first: dict[str, Any], why: str, second: str) -> None:
    n = net(2, 4, 4)
    n.conv(**first, name="one")
    if second == "conv":
        n.conv(whole(2, 2, 3, 3), padding=(1,) * 4, name="two")
    elif second == "dilated":  # its window reaches one row too far, if only because it is spread
        n.conv(whole(2, 2, 2, 1), padding=(0, 1, 0, 0), dilation=(3, 1), name="two")
    elif second == "pad":
        n(ops.Pad((0, 1, 0), (0, 0, 0)), name="two")
    else:
        n(ops.AvgPool((2, 2), (1, 1), (1, 1)), name="two")
    n(ops.Relu())
    graph = n.graph()
    fuse(graph, said=("SNN032",))
    found = said(graph)
    assert found.message.startswith("`two`: no activation stands between it and `one`") and why in found.message
    assert [s.module for s in found.loc] == ["two"]


@pytest.mark.parametrize("bias", [None, [0, 0]])
def test_padding_in_front_of_windows_that_end_at_the_edge(bias: list[int] | None) -> None:
    """The layer before has a padding too, but its windows in the second one's lie all outside of its input."""
    n = net(2, 5, 5)
    n.conv(whole(2, 2, 1, 1), bias, stride=(2, 2))
    n.conv(whole(2, 2, 3, 3, seed=1), padding=(1,) * 4)
    n(ops.Relu())
    assert kinds(fuse(n.graph())) == ["conv2d", "relu"]


# --- affine, activations without a layer ----------------------------------------------------------------------------


def test_an_affine_scales_the_rows() -> None:
    before, after, w = net(2, 3, 3), net(2, 3, 3), whole(2, 2, 2, 2)
    before.conv(w, [1, 2])
    before.affine([3, -1], [1, 1])
    before(ops.Relu())
    after.conv(w * np.array([3, -1]).reshape(2, 1, 1, 1), [4, -1])
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


@pytest.mark.parametrize("shape", [(2, 4, 4), (6,)])
def test_an_activation_without_a_layer_gets_one_of_ones(shape: tuple[int, ...]) -> None:
    before, after = net(*shape), net(*shape)
    before(ops.Relu(), "x", name="a")
    before(ops.Clamp(0.0, 1.0), "a", name="b")
    for op in ops.Relu(), ops.Clamp(0.0, 1.0):
        after.affine(np.ones(shape[0]))
        after(op)
    same(fuse(before.graph()), after.graph())


def test_an_activation_of_pooled_spikes() -> None:
    before, after = net(2, 4, 4), net(2, 4, 4)
    for n in before, after:
        n(ops.Relu(), n.conv(whole(2, 2, 1, 1)))
        n(ops.AvgPool((2, 2), (2, 2)))
    before(ops.Relu())
    after.affine([1, 1])
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


# --- average pooling ------------------------------------------------------------------------------------------------


def pooled(op: ops.Op, size: int = 4, first: bool = True) -> Net:
    """Pooling behind a ReLU, or behind a layer, in front of a layer."""
    n = net(2, size, size)
    n.conv(2 * eye(2), name="first")
    if first:
        n(ops.Relu())
    n(op, name="pool")
    n.conv(whole(3, 2, 1, 1), name="last")
    n(ops.Relu())
    return n


@pytest.mark.parametrize("window", [2, 4])
def test_a_pooling_that_spikes_can_do_on_their_way_is_a_wire(window: int) -> None:
    graph = pooled(ops.AvgPool((window,) * 2, (window,) * 2)).graph()
    assert apply(FUSE, graph) is graph
    assert "avg_pool" not in kinds(fuse(graph, FuseLinear()))  # for a target that cannot


def test_poolings_by_2_twice_are_one_by_4_but_not_by_8() -> None:
    n = net(1, 8, 8)
    n(ops.Relu(), n.conv([[[[1.0]]]]), name="a")
    for name in "pqr":
        n(ops.AvgPool((2, 2), (2, 2)), name=name)
    n(ops.Relu(), n.conv([[[[3.0]]]], None, "q"), name="b")
    n(ops.Relu(), n.conv([[[[64.0]]]], None, "r", name="c"))
    found = fuse(n.graph("b", n.last))
    assert found["b"].args == n.nodes["b"].args
    assert found[found["c"].args[0]].op == ops.AvgPool((4, 4), (4, 4))
    np.testing.assert_array_equal(found.value(found["c"].op.weight), np.full((1, 1, 2, 2), 16))  # type: ignore[attr-defined]


def test_the_part_of_a_pooling_that_spikes_can_do_needs_no_kernel() -> None:
    for window, way, rest in ((6, 2, 3), (12, 4, 3), (8, 4, 2), (9, 1, 9)):
        found = fuse(pooled(ops.AvgPool((window, window), (window, window)), 2 * window).graph())
        pools = [node.op.kernel for node in found.nodes if isinstance(node.op, ops.AvgPool)]
        layer = found["last"].op
        assert pools == [(way, way)] * (way > 1)
        assert isinstance(layer, ops.Conv2d) and (*layer.weight.shape[2:], *layer.stride) == (rest,) * 4


@pytest.mark.parametrize(
    ("op", "size", "kernel", "stride", "padding"),
    [
        (ops.AvgPool((3, 3), (3, 3)), 6, (3, 3), (3, 3), 0),  # no legal size
        (ops.AvgPool((2, 2), (1, 1)), 4, (2, 2), (1, 1), 0),  # windows that overlap
        (ops.AvgPool((3, 3), (2, 2), (1, 1)), 5, (3, 3), (2, 2), 1),  # with padding that counts
        (ops.AvgPool((2, 1), (2, 1)), 4, (2, 1), (2, 1), 0),  # not square
        (ops.AvgPool((7, 7), (7, 7)), 7, (7, 7), (1, 1), 0),  # global: of one window the stride is no matter
    ],
)
def test_other_poolings_go_into_the_kernel(
    op: ops.AvgPool, size: int, kernel: tuple[int, int], stride: tuple[int, int], padding: int
) -> None:
    before, after = pooled(op, size), net(2, size, size)
    after(ops.Relu(), after.conv(2 * eye(2)))
    window = np.full((1, 1, *kernel), np.float32(1 / np.prod(kernel)), np.float64)
    after.conv(whole(3, 2, 1, 1) * window, stride=stride, padding=(padding,) * 4)
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_a_pooling_of_currents_goes_into_the_kernel() -> None:
    """An activation behind the pooling: conv - pool - ReLU is a convolution with the pooling's stride."""
    before, after, w = net(1, 6, 6), net(1, 6, 6), whole(2, 1, 3, 3)
    before.conv(w, [4, 8])
    before(ops.AvgPool((2, 2), (2, 2)))
    before(ops.Relu())
    kernel = np.zeros((2, 1, 4, 4))
    for y, x in np.ndindex(2, 2):
        kernel[:, :, y : y + 3, x : x + 3] += w / 4
    after.conv(kernel, [4, 8], stride=(2, 2))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


@pytest.mark.parametrize(
    "op",
    [
        ops.AvgPool((2, 2), (2, 2), (1, 1), count_include_pad=False),
        ops.AvgPool((3, 3), (2, 2), ceil_mode=True),
        ops.MaxPool((2, 2), (2, 2)),
        ops.AdaptiveAvgPool((3, 3)),
    ],
)
def test_what_is_not_linear_alike_everywhere_stays(op: ops.Op) -> None:
    """Windows of several sizes, and maxima: whoever takes the graph says whether it can do them."""
    graph = pooled(op).graph()
    assert apply(FUSE, graph) is graph
    behind = fuse(pooled(op, first=False).graph())
    assert kinds(behind) == ["conv2d", op.mnemonic, "conv2d", "relu"]


@pytest.mark.parametrize("divisor", [1, 2])
def test_a_pooling_with_a_divisor_of_its_own(divisor: int) -> None:
    before, after = pooled(ops.AvgPool((2, 2), (2, 2), divisor=divisor)), net(2, 4, 4)
    after(ops.Relu(), after.conv(2 * eye(2)))
    after(ops.Relu(), after.conv(whole(3, 2, 1, 1).repeat(2, 2).repeat(2, 3) / divisor, stride=(2, 2)))
    same(fuse(before.graph()), after.graph())
    n = net(1, 2, 2)
    n.conv([[[[1.0]]]], [3.0])
    n(ops.AvgPool((2, 2), (2, 2), divisor=divisor))
    n(ops.Relu())
    found = fuse(n.graph())
    np.testing.assert_array_equal(found.value(found.nodes[1].op.bias), [3 * 4 / divisor])  # type: ignore[attr-defined]


@pytest.mark.parametrize("strided_first", [False, True])
def test_a_pooling_aligns_with_a_stride(strided_first: bool) -> None:
    """conv(pool(h)) + conv of stride 2 (h): the pooling goes into the first kernel."""
    before, after = net(2, 4, 4), net(2, 4, 4)
    one, two = whole(3, 2, 1, 1), whole(3, 2, 2, 2, seed=1)
    for n in before, after:
        n(ops.Relu(), n.conv(whole(2, 2, 1, 1, seed=2)), name="h")
    a = before.conv(one, None, before(ops.AvgPool((2, 2), (2, 2)), "h"))
    b = before.conv(two, None, "h", stride=(2, 2))
    before(ops.Relu(), before(ops.Add(), *((b, a) if strided_first else (a, b))))
    after.conv(one / 4 + two, None, "h", stride=(2, 2))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_a_pooling_serves_all_who_read_it() -> None:
    n = net(1, 4, 4)
    n(ops.Relu(), n.conv([[[[1.0]]]], None, "x"), name="h")
    n(ops.Relu(), n.conv([[[[1.0]]]], None, "x", stride=(2, 2)), name="g")
    n(ops.AvgPool((2, 2), (2, 2)), "h", name="pool")
    n(ops.Relu(), n.conv([[[[2.0]]]], None, "pool"), name="out")
    n(ops.Relu(), n(ops.Add(), n.conv([[[[3.0]]]], None, "pool"), "g"), name="out2")
    found = fuse(n.graph("out", "out2"))
    assert kinds(found).count("avg_pool") == 1


def test_a_stride_over_a_pooling_does_not_align_with_none() -> None:
    """Spikes are pooled, or every other row and column of them is taken, not both."""
    n = net(1, 8, 8)
    n(ops.Relu(), n.conv([[[[1.0]]]], None, "x"), name="h")
    n(ops.Relu(), n.conv([[[[1.0]]]], None, "x", stride=(4, 4)), name="g")
    a = n.conv([[[[2.0]]]], None, n(ops.AvgPool((2, 2), (2, 2)), "h"), stride=(2, 2))
    n(ops.Relu(), n(ops.Add(), a, "g"), name="out")
    fuse(n.graph(), said=("SNN061",))


def test_a_pooling_that_cuts_an_edge_does_not_align() -> None:
    n = net(1, 5, 5)
    n(ops.Relu(), n.conv([[[[1.0]]]]), name="h")
    a = n.conv([[[[1.0]]]], None, n(ops.AvgPool((2, 2), (2, 2)), "h"))
    b = n.conv(whole(1, 1, 2, 2), None, "h", stride=(2, 2))
    n(ops.Relu(), n(ops.Add(), a, b), name="out")
    fuse(n.graph(), said=("SNN061",))


# --- slices and padding ---------------------------------------------------------------------------------------------


def test_a_slice_is_a_stride() -> None:
    """Rows 0, 2, .. and columns 1, 3, ..: the first column of each window gets no weight."""
    before, after, w = net(3, 6, 6), net(3, 6, 6), whole(4, 2, 1, 1)
    before(ops.Slice((0, 0, 1), (3, 6, 6), (2, 2, 2)))
    before.conv(w)
    before(ops.Relu())
    kernel = np.zeros((4, 3, 1, 2), np.float32)
    kernel[:, ::2, :, 1:] = w
    after.conv(kernel, stride=(2, 2))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_a_slice_cuts_off_windows() -> None:
    """The last column that is left out must not come back as another window."""
    n = net(1, 4, 8)
    n(ops.Slice((0, 0, 0), (1, 4, 5), (1, 1, 1)))
    n(ops.Relu(), n.conv([[[[2.0]]]]))
    (layer,) = (m for m in fuse(n.graph()).nodes if isinstance(m.op, ops.Conv2d))
    assert layer.type.shape == (1, 4, 5)


def shortcut(n: Net, option: str) -> None:
    """The second half of a block that halves the map; its shortcut is a strided layer, or (A) a slice and zeros."""
    n(ops.Relu(), n.conv(whole(2, 1, 1, 1)), name="h")
    n(ops.Relu(), n.conv(whole(4, 2, 3, 3, seed=1), None, "h", stride=(2, 2), padding=(1, 1, 1, 1)), name="g")
    n.conv(whole(4, 4, 3, 3, seed=2), [1, 2, 3, 4], "g", padding=(1,) * 4, name="main")
    if option == "layer":
        n.conv(whole(4, 2, 1, 1, seed=3), [1, 1, 1, 1], "h", stride=(2, 2), name="short")
    else:
        n(ops.Slice((0, 0, 0), (2, 6, 6), (1, 2, 2)), "h")
        n(ops.Pad((1, 0, 0), (1, 0, 0)), name="short")
    n(ops.Relu(), n(ops.Add(), "main", "short"), name="out")


@pytest.mark.parametrize("option", ["layer", "A"])
def test_where_two_strides_meet_spikes_are_sliced(option: str) -> None:
    before, after = net(1, 6, 6), net(1, 6, 6)
    shortcut(before, option)
    after(ops.Relu(), after.conv(whole(2, 1, 1, 1)), name="h")
    after(ops.Relu(), after.conv(whole(4, 2, 3, 3, seed=1), stride=(2, 2), padding=(1, 1, 1, 1)), name="g")
    piece = after(ops.Slice((0, 0, 0), (2, 6, 6), (1, 2, 2)), "h")
    after(ops.Concat(), "g", piece)
    kernel, bias = np.zeros((4, 6, 3, 3), np.float32), np.arange(1, 5)
    kernel[:, :4] = whole(4, 4, 3, 3, seed=2)
    if option == "layer":
        kernel[:, 4:, 1:2, 1:2] = whole(4, 2, 1, 1, seed=3)
        bias += 1
    else:  # the two channels of h are the two in the middle
        kernel[[1, 2], [4, 5], 1, 1] = 1
    after.conv(kernel, bias, padding=(1,) * 4)
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_a_slice_serves_all_who_read_it() -> None:
    n = net(1, 6, 6)
    shortcut(n, "A")
    n.conv(whole(4, 4, 3, 3, seed=5), None, "g", padding=(1,) * 4, name="other")
    n(ops.Relu(), n(ops.Add(), "other", "short"), name="out2")
    found = fuse(n.graph("out", "out2"))
    assert kinds(found).count("slice") == 1


def test_a_larger_kernel_of_another_stride_needs_every_phase() -> None:
    n = net(1, 4, 4)
    n(ops.Relu(), n.conv([[[[1.0]]]]), name="h")
    n(ops.Relu(), n.conv([[[[1.0]]]], None, "h", stride=(2, 2)), name="g")
    a, b = n.conv(whole(2, 1, 1, 1), None, "g"), n.conv(np.ones((2, 1, 2, 2)), None, "h", stride=(2, 2))
    n(ops.Relu(), n(ops.Add(), a, b))
    found = fuse(n.graph())
    assert kinds(found).count("slice") == 4
    assert sorted(m.op.start for m in found.nodes if isinstance(m.op, ops.Slice)) == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1),
    ]  # fmt: skip


def test_phases_of_different_sizes_are_refused() -> None:
    """Of 5 rows, 3 are even and 2 odd: a kernel that reads both has no map of one size. One that reads the even has."""
    for size, said in ((1, ()), (3, ("SNN061",))):
        n = net(1, 5, 5)
        n(ops.Relu(), n.conv([[[[1.0]]]], None, "x"), name="h")
        n(ops.Relu(), n.conv([[[[1.0]]]], None, "h", stride=(2, 2)), name="g")
        a = n.conv(whole(1, 1, size, size), None, "h", stride=(2, 2), padding=(size // 2,) * 4)
        n(ops.Relu(), n(ops.Add(), a, "g"), name="out")
        fuse(n.graph(), said=said)


def test_strides_that_cannot_meet_are_refused() -> None:
    n = net(1, 12, 12)
    n(ops.Relu(), n.conv([[[[1.0]]]]), name="h")
    n(ops.Relu(), n.conv([[[[1.0]]]], None, "x", stride=(2, 2)), name="g")
    a = n.conv([[[[1.0]]]], None, "h", stride=(3, 3))
    b = n.conv([[[[1.0]]]], None, "g", stride=(2, 2), padding=(1, 0, 1, 0))
    n(ops.Relu(), n(ops.Add(), a, b, name="sum"), name="out")
    graph = n.graph()
    after = fuse(graph, said=("SNN061",))
    assert after.canonical() == graph.canonical()
    found = said(graph)
    assert "`out` adds up what cannot be read by one kernel: `g` 6 x 6, `h` 12 x 12, with strides 2x2 and 3x3" in (
        found.message
    )
    assert [s.module for s in found.loc] == ["sum", "out"]


def test_what_is_refused_leaves_its_layers_to_others_as_they_are() -> None:
    """A layer keeps its name for the sum that stays, although another activation has it fused."""
    n = net(1, 12, 12)
    n(ops.Relu(), n.conv([[[[1.0]]]]), name="h")
    n.conv([[[[1.0]]]], [1.0], "h", stride=(3, 3), name="a")
    n.conv([[[[2.0]]]], None, "a", name="b")
    n(ops.Relu(), n(ops.Add(), "a", "b"), name="fits")
    n.conv(whole(1, 1, 2, 2), None, "x", stride=(2, 2), name="c")
    n(ops.Relu(), "c", name="g")
    d = n.conv([[[[1.0]]]], None, "g", stride=(2, 2), padding=(1, 0, 1, 0))
    n(ops.Relu(), n(ops.Add(), "b", d), name="stuck")
    fuse(n.graph("fits", "stuck"), said=("SNN061",))


@pytest.mark.parametrize("channels", [0, 2])
def test_zeros_around_a_map_are_padding(channels: int) -> None:
    before, after, w = net(1, 3, 3), net(1, 3, 3), whole(2, 1 + channels, 3, 3)
    before(ops.Pad((channels, 1, 0), (0, 1, 2)))
    before.conv(w)
    before(ops.Relu())
    after.conv(w[:, channels:], padding=(1, 1, 0, 2))
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


@pytest.mark.parametrize("how", [{"mode": "reflect"}, {"value": 1.0}])
def test_other_padding_is_no_kernel(how: dict[str, Any]) -> None:
    n = net(1, 4, 4)
    n(ops.Relu(), n.conv([[[[1.0]]]]))
    n(ops.Pad((0, 1, 1), (0, 1, 1), **how))
    n(ops.Relu(), n.conv(whole(1, 1, 3, 3)))
    graph = n.graph()
    assert apply(FUSE, graph) is graph


# --- concatenations and linear layers -------------------------------------------------------------------------------


def test_currents_side_by_side() -> None:
    before, after = net(2, 4, 4), net(2, 4, 4)
    a, b = whole(1, 2, 3, 3), whole(2, 2, 1, 1, seed=1)
    before.conv(a, [1], "x", padding=(1,) * 4, name="a")
    before.conv(b, None, "x", name="b")
    before(ops.Relu(), before(ops.Concat(), "a", "b"))
    kernel = np.zeros((3, 2, 3, 3), np.float32)
    kernel[:1], kernel[1:, :, 1:2, 1:2] = a, b
    after.conv(kernel, [1, 0, 0], padding=(1,) * 4)
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_new_channels_of_zeros_have_no_bias() -> None:
    before, after, w = net(1, 2, 2), net(1, 2, 2), whole(2, 1, 1, 1)
    before.conv(w, [1, 2])
    before(ops.Pad((1, 0, 0), (1, 0, 0)))
    before(ops.Relu())
    after.conv(np.pad(w, ((1, 1), (0, 0), (0, 0), (0, 0))), [0, 1, 2, 0])
    after(ops.Relu())
    same(fuse(before.graph()), after.graph())


def test_channels_that_move_are_no_copy() -> None:
    """A shift of channels, of the same number: every one becomes its neighbour."""
    before, after = net(3, 2, 2), net(3, 2, 2)
    for n in before, after:
        n(ops.Relu(), n.conv(whole(3, 3, 1, 1)))
    before(ops.Slice((1, 0, 0), (3, 2, 2), (1, 1, 1)))
    before(ops.Relu(), before(ops.Pad((0, 0, 0), (1, 0, 0))))
    after(ops.Relu(), after.conv(np.eye(3, k=1).reshape(3, 3, 1, 1)))
    same(fuse(before.graph()), after.graph())


def test_maps_one_below_the_other_are_no_kernel() -> None:
    n = net(1, 2, 2)
    for name in "ab":
        n(ops.Relu(), n.conv(whole(2, 1, 1, 1), None, "x"), name=name)
    n(ops.Concat(1), "a", "b")
    n(ops.Relu(), n.conv(whole(1, 2, 3, 1)))
    graph = n.graph()
    assert apply(FUSE, graph) is graph


def two_maps(pooling: int = 1) -> Net:
    n = net(1, 4, 4)
    n(ops.Relu(), n.conv(whole(2, 1, 1, 1), None, "x"), name="a")
    n(ops.Relu(), n.conv(whole(3, 1, 1, 1, seed=1), None, "x"), name="b")
    n(ops.Flatten(), "a", name="fa")
    if pooling > 1:
        n(ops.AvgPool((pooling,) * 2, (pooling,) * 2), "b")
    n(ops.Flatten(), name="fb") if pooling > 1 else n(ops.Flatten(), "b", name="fb")
    return n


def test_flattened_maps_of_one_size_are_a_wire() -> None:
    n = two_maps()
    n(ops.Concat(), "fa", "fb")
    n(ops.Relu(), n.linear(whole(4, 80)))
    graph = n.graph()
    assert apply(FUSE, graph) is graph


def test_flattened_maps_of_two_sizes_are_brought_to_one() -> None:
    before, after, w = two_maps(2), two_maps(), whole(4, 44)
    before(ops.Concat(), "fa", "fb")
    before(ops.Relu(), before.linear(w, [1, 2, 3, 4]))
    after(ops.Concat(), "fa", "fb")
    spread = w[:, 32:].reshape(4, 3, 2, 2).repeat(2, axis=2).repeat(2, axis=3) / 4
    after(ops.Relu(), after.linear(np.concatenate([w[:, :32], spread.reshape(4, -1)], axis=1), [1, 2, 3, 4]))
    found = fuse(before.graph())
    same(found, after.graph())


def test_a_linear_layer_over_a_sum_of_flattened_maps() -> None:
    before, after, w = net(1, 2, 2), net(1, 2, 2), whole(3, 8)
    for n in before, after:
        n(ops.Relu(), n.conv(whole(2, 1, 1, 1), None, "x"), name="a")
        n(ops.Relu(), n.conv(whole(2, 1, 1, 1, seed=1), None, "x"), name="b")
        n(ops.Flatten(), "a", name="fa")
        n(ops.Flatten(), "b", name="fb")
    before(ops.Relu(), before.linear(w, None, before(ops.Add(), "fa", "fb")))
    after(ops.Relu(), after.linear(np.concatenate([w, w], axis=1), None, after(ops.Concat(), "fa", "fb")))
    same(fuse(before.graph()), after.graph())


def test_a_linear_layer_behind_layers() -> None:
    before, after = net(2, 2, 2), net(2, 2, 2)
    one, w, v = whole(3, 2, 1, 1), whole(4, 12, seed=1), whole(2, 4, seed=2)
    before.conv(one, [1, 2, 3])
    before(ops.Flatten())
    before.linear(w, [1, 0, 0, 0])
    before(ops.Relu(), before.linear(v, [1, 1]))
    after(ops.Flatten())
    over = np.einsum("omp,mc->ocp", w.reshape(4, 3, 4), one[:, :, 0, 0]).reshape(4, 8)
    bias = w.reshape(4, 3, 4).sum(2) @ [1, 2, 3] + [1, 0, 0, 0]
    after(ops.Relu(), after.linear(v @ over, v @ bias + 1))
    same(fuse(before.graph()), after.graph())


def test_a_pooled_map_in_front_of_a_linear_layer() -> None:
    """What lies beside the map, and rows that no window takes, have no weight."""
    before, after, w = net(1, 5, 5), net(1, 5, 5), whole(2, 4)
    for n in before, after:
        n(ops.Relu(), n.conv(eye(1)), name="h")
    before(ops.AvgPool((3, 3), (3, 3), (1, 1)))
    before(ops.Flatten())
    before(ops.Relu(), before.linear(9 * w))
    over = np.zeros((2, 5, 5))
    for y, x in np.ndindex(2, 2):
        over[:, max(3 * y - 1, 0) : 3 * y + 2, max(3 * x - 1, 0) : 3 * x + 2] = w[:, 2 * y + x].reshape(2, 1, 1)
    after(ops.Flatten())
    after(ops.Relu(), after.linear(over.reshape(2, 25)))
    found = fuse(before.graph())
    np.testing.assert_allclose(found.value(found.nodes[-2].op.weight), over.reshape(2, 25), rtol=1e-6)  # type: ignore[attr-defined]
    assert kinds(found) == kinds(after.graph())


def test_a_flat_input_beside_a_map_fits_any_size() -> None:
    """Whoever feeds the input lays it out."""
    n = net(1, 4, 4)
    n(ops.Relu(), n.conv(whole(2, 1, 1, 1)), name="h")
    n(ops.Flatten(), "x", name="flat")
    n(ops.Concat(), n(ops.Flatten(), "h"), "flat")
    n.linear(whole(3, 48), name="fc")
    plain = n.graph(n(ops.Relu(), "fc"))
    assert apply(FUSE, plain) is plain
    n.linear(whole(2, 3, seed=1), None, "fc")
    after = fuse(n.graph(n(ops.Relu())))
    assert kinds(after) == ["conv2d", "relu", "flatten", "flatten", "concat", "linear", "relu"]
    assert [m.type.shape for m in after.nodes if isinstance(m.op, ops.Linear)] == [(2,)]


def test_a_vector_read_as_a_map() -> None:
    n = net(6)
    n(ops.Relu(), n.linear(whole(4, 6)), name="h")
    n(ops.Reshape((4, 1, 1)))
    graph = n.graph(n(ops.Relu(), n.conv(whole(2, 4, 1, 1))))
    assert apply(FUSE, graph) is graph


def test_a_linear_layer_along_the_last_axis_is_none() -> None:
    n = net(1, 4, 4)
    n(ops.Relu(), n.conv(whole(2, 1, 1, 1)))
    n(ops.Reshape((2, 16)))
    n.linear(whole(3, 16), name="fc")
    n(ops.Relu())
    assert "fc" in fuse(n.graph()).by_name


def test_flattened_maps_that_differ_are_not_added() -> None:
    """12 values of both, but of 2 + 1 maps and of one."""
    n = net(1, 2, 2)
    for name, channels in (("a", 2), ("b", 1), ("c", 3)):
        n(ops.Relu(), n.conv(whole(channels, 1, 1, 1), None, "x"))
        n(ops.Flatten(), name=name)
    n(ops.Add(), n(ops.Concat(), "a", "b"), "c", name="sum")
    n(ops.Relu(), n.linear(whole(2, 12)))
    graph = n.graph()
    fuse(graph, said=("SNN032",))
    assert "the maps that they flatten differ" in said(graph).message


def test_an_activation_of_a_flattened_sum_stays() -> None:
    """Canonicalize puts it in front of the flattening."""
    n = net(2, 3, 3)
    n(ops.Add(), n.conv(whole(2, 2, 1, 1)), "x")
    n(ops.Relu(), n(ops.Flatten()))
    graph = n.graph()
    assert apply(FUSE, graph) is graph


@pytest.mark.parametrize("shape", [(2, 8), (4, 2, 2), (16, 1, 1)])
def test_other_layouts_are_none(shape: tuple[int, ...]) -> None:
    """Rows that become channels: a source of its own, which the target has to take or leave."""
    n = net(1, 4, 4)
    n(ops.Relu(), n.conv(whole(1, 1, 1, 1)))
    n(ops.Flatten())
    n(ops.Reshape(shape), name="rows")
    n(ops.Relu(), "rows")
    assert "rows" in fuse(n.graph()).by_name


# --- what stays, and what is too much --------------------------------------------------------------------------------


def test_a_graph_in_form_is_the_same_object() -> None:
    n = net(2, 8, 8)
    n(ops.Relu(), n.conv(whole(4, 2, 3, 3), [1, 2, 3, 4], padding=(1,) * 4, stride=(2, 2)), name="a")
    n(ops.AvgPool((2, 2), (2, 2)), name="pa")
    n(ops.Relu(), n.conv(whole(4, 4, 3, 3), None, "pa", groups=1, dilation=(2, 2), padding=(2,) * 4), name="b")
    n(ops.Concat(), "pa", "b", "pa")
    n(ops.Clamp(0.0, 2.0), n.conv(whole(3, 12, 1, 1)), name="c")
    n(ops.Flatten())
    n(ops.Relu(), n.linear(whole(5, 12)))
    graph = n.graph()
    assert apply(FUSE, graph) is graph


def test_kernels_that_nobody_could_hold_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_linear, "LARGEST", 100)
    n = net(2, 6, 6)
    n.conv(whole(2, 2, 3, 3), name="one")
    n.conv(whole(2, 2, 5, 5)[:, :, :4, :4], name="two")
    found = said(n.graph(n(ops.Relu())))
    assert found.code == "SNN032" and "together they have a kernel of 2 x 6 x 6" in found.message
    n = net(2, 8, 8)
    n.conv(whole(2, 2, 5, 5), None, "x", padding=(2,) * 4, name="five")
    n.conv(whole(2, 2, 3, 3), None, "x", stride=(1, 1), padding=(1,) * 4, name="three")
    n(ops.Relu(), n(ops.Add(), "five", "three", name="sum"))
    monkeypatch.setattr(fuse_linear, "LARGEST", 99)
    found = said(n.graph())
    assert found.code == "SNN050" and "make one kernel of 2 x 5 x 5" in found.message


# --- all networks ---------------------------------------------------------------------------------------------------


def prepared(model: Any, shape: tuple[int, ...], batch: int = 1) -> tuple[Graph, Array]:
    x = example_input(shape, batch)
    graph, _ = trace(model, (x,))
    assert graph is not None
    for p in (Canonicalize(), FoldBatchNorm(), SpikingOutput()):
        graph = p(graph)
    return graph, x.numpy().astype(np.float64)


def hold(graph: Graph, *xs: Array, p: FuseLinear = FUSE) -> list[str]:
    """Run the pass, hold it to its word, and give what it refused."""
    context = Context()
    after = apply(p, graph, context)
    for difference in compare(graph, after, Relation.EXACT, *xs):
        assert difference.holds, difference
    assert apply(p, after) == after
    if not context.diagnostics:
        in_form(after)
    return codes(context)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [*ZOO, *SEQUENTIAL_ZOO, *GRAPH_ZOO])
def test_the_zoo(name: str) -> None:
    graph, x = prepared(build(name), (ZOO | SEQUENTIAL_ZOO | GRAPH_ZOO)[name].input_shape)
    assert hold(graph, x) == []


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_generated_networks(seed: int) -> None:
    model, shape = random_model(np.random.default_rng(seed))
    graph, x = prepared(model, shape, batch=2)
    assert hold(graph, x) == []


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), poolings=st.sampled_from([(1,), (1, 2, 4)]))
def test_generated_linear_operations(seed: int, poolings: tuple[int, ...]) -> None:
    graph = linear_operations(np.random.default_rng(seed))
    x = rng(seed).standard_normal((2, *graph.inputs[0].type.shape))
    assert set(hold(graph, x, p=FuseLinear(poolings))) <= {"SNN032", "SNN061"}


def linear_operations(r: np.random.Generator) -> Graph:
    """Linear operations of every kind upon one another, an activation here and there."""

    def pick(*options: Any) -> Any:
        return options[int(r.integers(len(options)))]

    def normal(*shape: int) -> Array:
        return r.standard_normal(shape)

    n = net(*(int(r.integers(low, high)) for low, high in ((1, 4), (2, 9), (2, 9))))
    maps, flats, heads = ["x"], list[str](), list[str]()

    def shape(name: str) -> tuple[int, ...]:
        return n.nodes[name].type.shape

    def add(kind: str, v: str) -> str:
        c, h, w = shape(v)
        match kind:
            case "conv":
                groups, k = pick(1, 1, c), (pick(1, 2, 3), pick(1, 2, 3))
                options: dict[str, Any] = {"padding": (k[0] // 2,) * 2 + (k[1] // 2,) * 2}
                if pick(0, 1):
                    padding = pick((0,) * 4, tuple(int(p) for p in r.integers(0, 3, 4)))
                    stride, dilation = (pick(1, 1, 2), pick(1, 1, 2, 3)), (pick(1, 1, 2), pick(1, 1, 2))
                    options = {"padding": padding, "stride": stride, "dilation": dilation}
                o = groups * pick(1, 2)
                return n.conv(normal(o, c // groups, *k), pick(None, None, normal(o)), v, groups=groups, **options)
            case "pool":
                k = pick((2, 2), (2, 2), (4, 4), (3, 3), (2, 1), (h, w))
                pad = pick((0, 0), (0, 0), (k[0] // 2, k[1] // 2))
                return n(
                    ops.AvgPool(k, pick(k, k, (1, 1), (2, 2)), pad, pick(False, False, True), pick(True, False)), v
                )
            case "slice":
                stop = tuple(m - pick(0, 0, 1) for m in (c, h, w))
                start, step = (tuple(pick(a, a, b) for _ in stop) for a, b in ((0, 1), (1, 2)))
                return n(ops.Slice(start, stop, step), v)
            case "pad":
                return n(ops.Pad((pick(0, 2), pick(0, 1, -1), pick(0, 1)), (pick(0, 1), 0, pick(0, 1, -1))), v)
            case "add":
                return n(ops.Add(), v, pick(*(m for m in maps if shape(m) == (c, h, w))))
            case "concat":
                return n(ops.Concat(), v, pick(*(m for m in maps if shape(m)[1:] == (h, w))))
            case "affine":
                return n.affine(normal(c), pick(None, normal(c)), v)
            case "linear":
                flats.append(n(ops.Flatten(), v))
                a, b = pick(*flats), pick(*flats)
                both = n(pick(ops.Add(), ops.Concat()) if shape(a) == shape(b) else ops.Concat(), a, b)
                n.linear(normal(3, shape(pick(a, both))[0]), pick(None, normal(3)), n.last if n.last != both else both)
                return n(ops.Reshape((3, 1, 1)), pick(n.last, n(ops.Relu())))
        heads.append(n(ops.Relu(), v))
        return heads[-1]

    every = ("conv", "conv", "conv", "pool", "slice", "pad", "add", "add", "concat", "affine", "linear", "relu", "relu")
    for _ in range(int(r.integers(2, 9))):
        with suppress(ops.ShapeError):  # kernels larger than the map and the like
            maps.append(add(pick(*every), pick(*maps)))
    return n.graph(*heads, add("relu", maps[-1]))
