"""fold-batch-norm: where a norm goes, and that the numbers are the exact ones, rounded once to float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.build import Net, agree, apply, codes, kinds, rng, same
from strategies import graphs, inputs

from snncc.ir import Graph, Severity, Stage, ops
from snncc.ir.types import Array
from snncc.passes.base import Context
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.fold_batch_norm import FoldBatchNorm

C = 4


def exact(weight: Array, bias: npt.ArrayLike, norm: dict[str, Array | float]) -> tuple[Array, Array]:
    """The folded weight and bias, in float64, from Ioffe and Szegedy's formula."""
    gamma, beta = norm.get("weight", np.ones(C)), norm.get("bias", np.zeros(C))
    sigma = np.sqrt(np.asarray(norm["var"], np.float32).astype(np.float64) + norm.get("eps", 1e-5))
    scale = np.asarray(gamma, np.float32).astype(np.float64) / sigma
    mean, beta = (np.asarray(v, np.float32).astype(np.float64) for v in (norm["mean"], beta))
    w = np.asarray(weight, np.float32).astype(np.float64)
    b = np.asarray(bias, np.float32).astype(np.float64)
    return w * scale.reshape(-1, *(1,) * (w.ndim - 1)), (b - mean) * scale + beta


def statistics(seed: int = 0, affine: bool = True, var: npt.ArrayLike | None = None) -> dict[str, Array | float]:
    r = rng(seed)
    norm: dict[str, Array | float] = {
        "mean": r.standard_normal(C),
        "var": r.uniform(0.1, 3, C) if var is None else np.asarray(var),
    }
    if affine:
        norm |= {"weight": r.uniform(-2, 2, C), "bias": r.standard_normal(C)}
    return norm


def snn034(context: Context) -> list[str]:
    assert all(d.severity is Severity.NOTE for d in context.diagnostics)
    return codes(context)


def fold(graph: Graph, notes: int = 0) -> Graph:
    context = Context()
    after = apply(FoldBatchNorm(), graph, context)
    assert after.stage is Stage.FOLDED
    assert "batch_norm" not in kinds(after)
    assert snn034(context) == ["SNN034"] * notes
    shapes = [(3, *node.type.shape) for node in graph.inputs]
    agree(graph, after, *(rng(9).standard_normal(s) for s in shapes), rtol=2e-6)
    return after


def layer(n: Net, kind: str, bias: bool) -> tuple[Array, Array]:
    r = rng(5)
    b = r.standard_normal(C) if bias else None
    if kind == "linear":
        w = r.standard_normal((C, 6))
        n.linear(w, b, name="layer")
    else:
        groups = {"conv": 1, "grouped": 2, "depthwise": 4}[kind]
        w = r.standard_normal((C, 4 // groups, 3, 3))
        n.conv(w, b, name="layer", groups=groups, padding=(1, 1, 1, 1))
    return w, np.zeros(C) if b is None else b


# --- behind a layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise", "linear"])
def test_a_norm_behind_a_layer(kind: str, bias: bool, affine: bool) -> None:
    n = Net(6) if kind == "linear" else Net(4, 5, 5)
    w, b = layer(n, kind, bias)
    norm = statistics(affine=affine)
    n.norm(**norm, name="norm")
    after = fold(n.graph())
    assert kinds(after) == [n.nodes["layer"].op.mnemonic]
    assert after.outputs == ("layer",)
    weight, shift = exact(w, b, norm)
    op = after["layer"].op
    np.testing.assert_array_equal(after.value(op.weight), weight.astype(np.float32))
    np.testing.assert_allclose(after.value(op.bias), shift, rtol=1e-7, atol=1e-7)
    assert [s.module for s in after["layer"].loc] == ["layer", "norm"]


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1e-12])
def test_eps_counts_where_the_variance_is_tiny(eps: float) -> None:
    """Of a variance of 1e-12 under eps 1e-5, leaving eps out is wrong by a factor of 3000, and a sloppy place of it by
    up to 41 %: sqrt(v + eps) against sqrt(v) + sqrt(eps)."""
    n = Net(6)
    w, b = layer(n, "linear", True)
    norm = statistics(var=[1e-12, 1e-5, 0.0, 1.0]) | {"eps": eps}
    n.norm(**norm)
    after = apply(FoldBatchNorm(), n.graph())
    weight, shift = exact(w, b, norm)
    op = after["layer"].op
    np.testing.assert_allclose(after.value(op.weight), weight, rtol=1e-7)
    np.testing.assert_allclose(after.value(op.bias), shift, rtol=1e-6)


def test_a_norm_that_does_not_shift_leaves_no_bias() -> None:
    n = Net(6)
    layer(n, "linear", False)
    n.norm(np.zeros(C), np.ones(C))
    assert fold(n.graph())["layer"].op.bias is None


def test_a_chain_of_norms() -> None:
    n = Net(4, 5, 5)
    w, b = layer(n, "conv", True)
    first, second = statistics(1), statistics(2)
    n.norm(**first)
    n.norm(**second)
    after = fold(n.graph())
    assert kinds(after) == ["conv2d"]
    weight, shift = exact(*exact(w, b, first), second)
    np.testing.assert_allclose(after.value(after["layer"].op.weight), weight, rtol=3e-7)
    np.testing.assert_allclose(after.value(after["layer"].op.bias), shift, rtol=1e-6, atol=1e-6)


def test_an_affine_map_behind_a_layer_folds_too() -> None:
    n = Net(4, 5, 5)
    _, b = layer(n, "conv", True)
    n.affine([1, 2, 3, 4], [5, 6, 7, 8])
    after = fold(n.graph())
    assert kinds(after) == ["conv2d"]
    np.testing.assert_allclose(
        after.value(after["layer"].op.bias), b * [1, 2, 3, 4] + [5, 6, 7, 8], rtol=1e-6, atol=1e-6
    )


def test_the_expected_graph() -> None:
    before, expected = Net(2, 3, 3), Net(2, 3, 3, stage=Stage.FOLDED)
    before.conv([[[[1.0]], [[2.0]]]], [3.0])
    before.norm([1.0], [4.0], [6.0], [0.5], eps=0.0)
    before(ops.Relu())
    expected.conv([[[[3.0]], [[6.0]]]], [6.5])
    expected(ops.Relu())
    same(fold(before.graph()), expected.graph())


def test_two_readers_keep_the_layer() -> None:
    """What something else reads must not change."""
    n = Net(4, 5, 5)
    w, _ = layer(n, "conv", False)
    n.norm(**statistics(), name="norm")
    n(ops.Relu(), "layer", name="other")
    n(ops.Add(), "norm", "other", name="sum")
    after = fold(n.graph(), notes=1)
    np.testing.assert_array_equal(after.value(after["layer"].op.weight), w.astype(np.float32))
    assert after["norm"].op.mnemonic == "affine"
    assert after["other"] is n.nodes["other"]


def test_an_output_keeps_the_layer() -> None:
    n = Net(4, 5, 5)
    w, _ = layer(n, "conv", False)
    n.norm(**statistics(), name="norm")
    after = fold(n.graph("norm", "layer"), notes=1)
    np.testing.assert_array_equal(after.value(after["layer"].op.weight), w.astype(np.float32))


def test_two_norms_behind_one_layer() -> None:
    n = Net(4, 5, 5)
    layer(n, "conv", False)
    n.norm(**statistics(1), name="a")
    norm = statistics(2)
    n.norm(norm["mean"], norm["var"], norm["weight"], norm["bias"], "layer", name="b")
    after = fold(n.graph("a", "b"), notes=2)
    assert kinds(after) == ["conv2d", "affine", "affine"]


def test_a_norm_behind_a_norm_that_is_read_twice() -> None:
    """The first folds into the layer; the second must not follow it there."""
    n = Net(4, 5, 5)
    layer(n, "conv", True)
    n.norm(**statistics(1), name="a")
    norm = statistics(2)
    n.norm(norm["mean"], norm["var"], norm["weight"], norm["bias"], "a", name="b")
    n(ops.Add(), "a", "b")
    after = fold(n.graph(), notes=1)
    assert kinds(after) == ["conv2d", "affine", "add"]


def test_a_norm_behind_a_sum_stays() -> None:
    n = Net(4, 5, 5)
    a = n(ops.Relu())
    n(ops.Add(), a, "x")
    n.norm(**statistics(), name="norm")
    after = fold(n.graph(), notes=1)
    assert kinds(after) == ["relu", "add", "affine"]
    assert after["norm"].loc.passes == ("fold-batch-norm",)


def test_a_linear_layer_on_several_axes_does_not_take_a_norm() -> None:
    """Its features are the last axis, the norm's channels the first."""
    n = Net(4, 6)
    n.linear(rng().standard_normal((4, 6)))
    n.norm(**statistics())
    assert kinds(fold(n.graph(), notes=1)) == ["linear", "affine"]


def test_affine_maps_that_stay_are_the_same_nodes() -> None:
    n = Net(4, 5, 5)
    n(ops.Relu())
    n.affine([1, 2, 3, 4], [5, 6, 7, 8], name="map")
    n(ops.Relu())
    graph = n.graph()
    context = Context()
    after = apply(FoldBatchNorm(), graph, context)
    assert all(a is b for a, b in zip(graph.nodes, after.nodes, strict=True))
    assert codes(context) == ["SNN034"]
    assert context.diagnostics[0].loc.sources[0].module == "map"


# --- before a layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_before_a_convolution_without_padding(bias: bool, groups: int) -> None:
    n = Net(4, 5, 5)
    n(ops.Relu())
    n.norm(**statistics(), name="norm")
    w = rng(1).standard_normal((8, 4 // groups, 3, 3))
    n.conv(w, rng(2).standard_normal(8) if bias else None, groups=groups, stride=(2, 1), name="conv")
    after = fold(n.graph())
    assert kinds(after) == ["relu", "conv2d"]
    assert [s.module for s in after["conv"].loc] == ["conv", "norm"]


def test_a_norm_without_a_shift_before_padding() -> None:
    n = Net(4, 5, 5)
    n.norm(np.zeros(C), [1, 2, 3, 4], [2, 3, 4, 5])
    n.conv(rng().standard_normal((3, 4, 3, 3)), padding=(1, 0, 0, 1))
    assert kinds(fold(n.graph())) == ["conv2d"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_norm_with_a_shift_before_padding_becomes_ones(groups: int) -> None:
    """The padding is of zeros behind the norm: a folded bias would shift it, too."""
    n = Net(4, 5, 5)
    n.norm(**statistics(), name="norm")
    n.conv(rng().standard_normal((4, 4 // groups, 3, 3)), padding=(0, 2, 0, 1), groups=groups)
    after = fold(n.graph())
    assert sorted(kinds(after)) == ["add", "conv2d", "conv2d", "ones"]
    kept = apply(FoldBatchNorm(ones=False), n.graph(), Context())
    assert kinds(kept) == ["affine", "conv2d"]
    assert kept.nodes[-1] is n.nodes["conv2d2"]


def test_a_norm_behind_which_several_layers_and_a_pooling_read() -> None:
    n = Net(4, 6, 6)
    norm = n.norm(**statistics(), name="norm")
    a = n.conv(rng().standard_normal((3, 4, 3, 3)), padding=(1, 1, 1, 1))
    n(ops.AvgPool((2, 2), (1, 1)), norm)
    b = n.conv(rng(1).standard_normal((3, 4, 2, 2)), padding=(1, 1, 1, 1))
    n(ops.Add(), a, b)
    after = fold(n.graph())
    assert kinds(after).count("ones") == 2
    assert "affine" not in kinds(after)


@pytest.mark.parametrize("flatten", [True, False])
def test_a_norm_before_a_linear_layer(flatten: bool) -> None:
    n = Net(C, 2, 3) if flatten else Net(C)
    n(ops.Relu())
    n.norm(**statistics())
    if flatten:
        n(ops.Flatten(), name="flat")
    n.linear(rng().standard_normal((5, C * 6 if flatten else C)), rng(1).standard_normal(5))
    after = fold(n.graph())
    assert kinds(after) == (["relu", "flatten", "linear"] if flatten else ["relu", "linear"])


def test_a_norm_on_the_input() -> None:
    n = Net(C, 5, 5)
    n.norm(**statistics())
    n.conv(rng().standard_normal((3, 4, 3, 3)))
    assert kinds(fold(n.graph())) == ["conv2d"]


def test_a_norm_before_several_layers_folds_into_each() -> None:
    n = Net(4, 5, 5)
    n(ops.Relu())
    n.norm(**statistics(), name="norm")
    n.conv(rng().standard_normal((3, 4, 3, 3)), name="a")
    n.conv(rng(1).standard_normal((3, 4, 3, 3)), None, "norm", name="b")
    n(ops.Add(), "a", "b")
    assert kinds(fold(n.graph())) == ["relu", "conv2d", "conv2d", "add"]


def test_a_norm_that_one_of_several_readers_takes_as_ones() -> None:
    n = Net(4, 5, 5)
    n(ops.Relu())
    n.norm(**statistics(), name="norm")
    n.conv(rng().standard_normal((3, 4, 1, 1)), name="a")
    n.conv(rng(1).standard_normal((3, 4, 3, 3)), None, "norm", padding=(1, 1, 1, 1), name="b")
    n(ops.Add(), "a", "b")
    after = fold(n.graph())
    assert sorted(kinds(after)) == ["add", "add", "conv2d", "conv2d", "conv2d", "ones", "relu"]


def test_a_norm_between_two_layers_goes_to_the_first() -> None:
    n = Net(4, 5, 5)
    layer(n, "conv", True)
    n.norm(**statistics())
    n.conv(rng(1).standard_normal((3, 4, 3, 3)), name="second")
    after = fold(n.graph())
    assert kinds(after) == ["conv2d", "conv2d"]
    assert after["second"].op is n.nodes["second"].op


def test_a_flatten_that_others_read_stays_for_them() -> None:
    n = Net(C, 2, 3)
    n.norm(**statistics())
    n(ops.Flatten(), name="flat")
    n.linear(rng().standard_normal((5, C * 6)), name="a")
    n(ops.Relu(), "flat", name="b")
    after = fold(n.graph("a", "b"), notes=1)
    assert sorted(kinds(after)) == ["affine", "flatten", "flatten", "linear", "relu"]


@settings(max_examples=150, deadline=None)
@given(graph=graphs(Stage.ANN, 14), seed=st.integers(0, 99))
def test_any_graph_stays_the_same_function(graph: Graph, seed: int) -> None:
    after = apply(FoldBatchNorm(), apply(Canonicalize(), graph))
    assert not {"batch_norm", "identity", "dropout"} & set(kinds(after))
    if not any(isinstance(n.op, ops.Floor | ops.QuantRelu) for n in graph.nodes):  # rounding would become steps
        agree(graph, after, *inputs(graph, 2, 1, seed), rtol=1e-4)
