"""lower-activations and spiking-output: neurons, encodings, and what cannot spike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.build import Net, Numpy, agree, apply, codes, kinds, outputs, rng, same
from strategies import graphs, inputs

from snncc.ir import CompileError, Graph, Param, Severity, Stage, ops
from snncc.ir.interp import simulate
from snncc.passes.base import Context
from snncc.passes.calibrate import Calibrate
from snncc.passes.lower_activations import LowerActivations, SpikingOutput
from snncc.passes.quantize import Quantize


def lower(n: Net, *out: str, **options: Any) -> Graph:
    context = Context()
    after = apply(LowerActivations(**options), n.graph(*out), context)
    assert not codes(context)
    assert after.stage is Stage.SNN
    return after


def errors(n: Net, **options: Any) -> Context:
    context = Context()
    apply(LowerActivations(**options), n.graph(), context)
    assert all(d.severity is Severity.ERROR for d in context.diagnostics)
    return context


def folded(*shape: int, **options: Any) -> Net:
    return Net(*shape, stage=Stage.FOLDED, **options)


# --- neurons ---------------------------------------------------------------------------------------------------------


def test_the_expected_graph() -> None:
    w, v = rng().standard_normal((3, 2, 3, 3)), rng(1).standard_normal((2, 27))
    n = folded(2, 5, 5, low=0.0, high=1.0)
    thetas = n.store.put("t", np.array([0.5, 1.0, 2.0]))
    n.conv(w, [1, 2, 3])
    n(ops.Relu(thetas))
    n(ops.Flatten())
    n.linear(v)
    n(ops.Clamp(0.0, 6.0, threshold=5.0))
    expected = Net(2, 5, 5, stage=Stage.SNN, low=0.0, high=1.0)
    expected.conv(w, [1, 2, 3])
    expected(
        ops.If(expected.store.put("t", np.array([0.5, 1.0, 2.0])), expected.store.put("v", np.array([0.25, 0.5, 1.0])))
    )
    expected(ops.Flatten())
    expected.linear(v)
    expected(ops.If(5.0, 2.5))
    after = lower(n)
    same(after, expected.graph())
    assert [node.name for node in after.nodes][:2] == ["x", "x.encode"]
    assert after["x.encode"].loc.sources == n.nodes["x"].loc.sources
    assert after["x"] is n.nodes["x"]


@pytest.mark.parametrize("v0", [0.0, 0.5, 0.25, -1.0])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("v_min", [None, 0.0, -2.0])
def test_options_of_the_neuron(v0: float, reset: str, v_min: float | None) -> None:
    n = folded(3)
    thetas = n.store.put("t", np.array([0.5, 1.0, 2.0]))
    n(ops.Relu(4.0), name="layer")
    n(ops.Relu(thetas), name="channel")
    after = lower(n, v0=v0, reset=reset, v_min=v_min)
    layer, channel = after["layer"].op, after["channel"].op
    assert isinstance(channel.v0, Param)
    assert layer == ops.If(4.0, 4.0 * v0, reset, None if v_min is None else 4.0 * v_min)
    assert isinstance(channel, ops.If)
    assert channel.threshold == thetas
    np.testing.assert_allclose(after.value(channel.v0), np.array([0.5, 1.0, 2.0]) * v0)
    assert channel.v_min == (None if v_min is None else 0.5 * v_min)  # of the smallest threshold: none is passed


@pytest.mark.parametrize("op", [ops.Relu(2.0), ops.Clamp(0.0, 6.0, 2.0), ops.Clamp(0.0, 1.0, 2.0)])
def test_activations_take_their_calibrated_threshold(op: ops.Op) -> None:
    n = folded(3)
    n(op, name="act")
    assert lower(n)["act"].op == ops.If(2.0, 1.0)


@pytest.mark.parametrize(("theta", "levels", "shift"), [(1.0, 4, 0.5), (0.7, 8, 0.5), (2.5, 4, 0.0), (1.5, 1, 0.5)])
def test_a_quantized_activation_is_met_exactly_after_its_levels(theta: float, levels: int, shift: float) -> None:
    """With a constant input and T = L, the spikes are the activation's steps: no calibration, no error."""
    n = folded(6)
    n.linear(rng().standard_normal((40, 6)), rng(1).standard_normal(40) * 0.3, name="fc")
    n(ops.QuantRelu(theta, levels, shift, threshold=99.0), name="quant")
    n.linear(rng(2).standard_normal((5, 40)), rng(3).standard_normal(5), name="out")
    graph = n.graph()
    x = rng(4).standard_normal((50, 6)).astype(np.float32)
    after = lower(n)
    trace = simulate(after, x, timesteps=levels)
    (wanted,) = outputs(graph, x)
    np.testing.assert_allclose(trace.mean("out"), wanted, rtol=1e-9, atol=1e-12)
    steps = np.clip(np.floor(outputs(n.graph("fc"), x)[0] * levels / theta + shift), 0, levels)
    np.testing.assert_array_equal(trace.spikes("quant").sum(axis=0), steps)
    assert len(np.unique(steps)) == levels + 1


def test_a_quantized_activation_is_met_exactly_at_its_edges() -> None:
    """On a dyadic grid half of all values lie on an edge of a step, and nothing rounds."""
    n = folded(1)
    n(ops.QuantRelu(2.0, 8, 0.5), name="quant")
    x = np.arange(-40, 80)[:, None] / 32
    trace = simulate(lower(n), x, timesteps=8)
    np.testing.assert_array_equal(trace.mean("quant"), outputs(n.graph(), x)[0])


# --- what cannot spike -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (ops.Clamp(-1.0, 1.0, 1.0), "clamp with the lower bound -1)"),
        (ops.Clamp(0.5, 1.0, 1.0), "clamp with the lower bound 0.5)"),
        (ops.Clamp(None, 1.0, 1.0), "clamp without a lower bound)"),
        (ops.Floor(), "floor)"),
    ],
)
def test_activations_that_no_spikes_stand_for(op: ops.Op, words: str) -> None:
    n = folded(3)
    n(op, name="act")
    context = errors(n)
    assert codes(context) == ["SNN030"]
    assert words in context.diagnostics[0].message
    assert context.diagnostics[0].loc.sources[0].module == "act"
    assert context.diagnostics[0].hint


def test_without_calibration_every_activation_is_named() -> None:
    n = folded(3)
    for op in (ops.Relu(), ops.Clamp(0.0, 6.0)):
        n(op)
    n(ops.QuantRelu(1.0, 4))
    context = Context()
    with pytest.raises(Exception, match="does not belong in stage snn"):
        apply(LowerActivations(), n.graph(), context)
    assert codes(context) == ["SNN010", "SNN010"]
    assert [d.loc.sources[0].module for d in context.diagnostics] == ["relu1", "clamp2"]


def test_spikes_worth_different_amounts_cannot_be_joined_inside_a_map() -> None:
    n = folded(2, 3, 3)
    a, b = n(ops.Relu(1.0), "x"), n(ops.Relu(2.0), "x")
    n(ops.Concat(1), a, b, name="cat")
    context = Context()
    with pytest.raises(CompileError) as caught:
        LowerActivations()(n.graph(), context)
    assert [d.code for d in caught.value.diagnostics] == ["SNN032"]
    assert "`cat`" in str(caught.value)
    n = folded(2, 3, 3)
    a, b = n(ops.Relu(1.0), "x"), n(ops.Relu(1.0), "x")
    n(ops.Concat(1), a, b)
    assert kinds(lower(n)) == ["encode", "if", "if", "concat"]


def test_spikes_worth_different_amounts_cannot_change_channels() -> None:
    n = folded(2, 3, 3)
    n(ops.Relu(n.store.put("t", np.array([1.0, 2.0]))))
    n(ops.Reshape((3, 6)), name="shape")
    with pytest.raises(CompileError, match="SNN032"):
        LowerActivations()(n.graph())
    n = folded(2, 3, 3)
    n(ops.Relu(1.0))
    n(ops.Reshape((3, 6)))
    assert kinds(lower(n)) == ["encode", "if", "reshape"]


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["rate", "bernoulli"])
def test_rates_are_of_the_largest_input(encoding: str) -> None:
    n = folded(3, low=0.0, high=4.0)
    n(ops.Relu(1.0))
    after = lower(n, encoding=encoding, seed=7)
    assert after["x.encode"].op == ops.Encode(encoding, 4.0, seed=7)


@pytest.mark.parametrize("encoding", ["constant", "spikes"])
def test_currents_and_ready_made_spikes_count_as_they_are(encoding: str) -> None:
    n = folded(3, low=-1.0, high=4.0)
    n(ops.Relu(1.0))
    assert lower(n, encoding=encoding)["x.encode"].op == ops.Encode(encoding, 1.0)


def test_an_input_of_zeros() -> None:
    n = folded(3, low=0.0, high=0.0)
    n(ops.Relu(1.0))
    assert lower(n, encoding="rate")["x.encode"].op == ops.Encode("rate", 1.0)


@pytest.mark.parametrize("encoding", ["rate", "bernoulli"])
def test_rates_cannot_be_negative(encoding: str) -> None:
    n = folded(3, low=-0.25, high=1.0)
    n(ops.Relu(1.0))
    context = errors(n, encoding=encoding)
    assert codes(context) == ["SNN012"]
    assert "-0.25" in context.diagnostics[0].message


def test_rates_need_the_inputs_range() -> None:
    n = folded(3)
    n(ops.Relu(1.0))
    assert codes(errors(n, encoding="rate")) == ["SNN010"]


def test_an_input_that_is_an_output_and_several_readers() -> None:
    n = folded(3, low=0.0, high=1.0)
    n(ops.Relu(1.0), "x", name="a")
    n(ops.Relu(1.0), "x", name="b")
    after = lower(n, "a", "x", "b")
    assert after.outputs == ("a", "x.encode", "b")
    assert kinds(after) == ["encode", "if", "if"]


# --- spiking-output --------------------------------------------------------------------------------------------------


def spiking(n: Net, *out: str) -> tuple[Graph, list[str]]:
    context = Context()
    after = apply(SpikingOutput(), n.graph(*out), context)
    assert all(d.severity is Severity.NOTE for d in context.diagnostics)
    return after, codes(context)


def test_scores_get_a_relu() -> None:
    n, expected = folded(3), folded(3)
    for net in (n, expected):
        net.linear(np.eye(3), name="fc")
    expected(ops.Relu())
    after, said = spiking(n)
    same(after, expected.graph())
    assert said == ["SNN033"]
    assert after.outputs == ("fc.relu",)
    assert after["fc"] is n.nodes["fc"]
    assert after["fc.relu"].loc.sources == n.nodes["fc"].loc.sources


@pytest.mark.parametrize(
    "chain",
    [
        [ops.Relu()],
        [ops.Clamp(0.0, 6.0)],
        [ops.QuantRelu(1.0, 4)],
        [ops.Relu(), ops.Flatten()],
        [ops.Relu(), ops.AvgPool((2, 2), (2, 2)), ops.Flatten()],
        [ops.Relu(), ops.MaxPool((2, 2), (2, 2)), ops.Reshape((2, 4))],
        [ops.Relu(), ops.AdaptiveAvgPool((1, 1))],
        [ops.Relu(), ops.Pad((0, 1, 1), (0, 1, 1)), ops.Slice((0, 0, 0), (1, 4, 4), (1, 1, 1))],
    ],
)
def test_outputs_that_spike_stay(chain: list[ops.Op]) -> None:
    n = folded(2, 4, 4)
    for op in chain:
        n(op)
    after, said = spiking(n)
    assert said == []
    assert after == n.graph()


def test_outputs_behind_what_does_not_spike() -> None:
    n = folded(2, 4, 4)
    relu = n(ops.Relu())
    n(ops.Add(), relu, relu, name="sum")
    n(ops.Concat(0), relu, "x", name="cat")
    n(ops.Concat(0), relu, relu, name="spikes")
    after, said = spiking(n, "sum", "cat", "spikes")
    assert said == ["SNN033", "SNN033"]
    assert after.outputs == ("sum.relu", "cat.relu", "spikes")


def test_the_relu_stands_behind_the_layer_in_front_of_shape_changes() -> None:
    n, expected = folded(2, 4, 4), folded(2, 4, 4)
    for net in (n, expected):
        net.conv(rng().standard_normal((3, 2, 4, 4)), name="conv")
    expected(ops.Relu())
    for net in (n, expected):
        net(ops.Slice((1, 0, 0), (3, 1, 1), (1, 1, 1)))
        net(ops.Flatten(), name="flat")
    after, said = spiking(n)
    same(after, expected.graph())
    assert said == ["SNN033"]
    assert after.outputs == ("flat",)


@pytest.mark.parametrize("outer", [True, False])
def test_readers_inside_keep_the_raw_value(outer: bool) -> None:
    """Whether they read the output itself, or what stands before its change of shape."""
    n = folded(3, 1, 1)
    n.conv(-np.eye(3).reshape(3, 3, 1, 1), name="conv")
    n(ops.Flatten(), name="flat")
    if outer:
        n.linear(np.eye(3), name="next")
    else:
        n.conv(np.eye(3).reshape(3, 3, 1, 1), None, "conv", name="next")
    graph = n.graph("flat", "next")
    after, said = spiking(n, "flat", "next")
    assert said == ["SNN033", "SNN033"]
    x = np.array([1.0, -2.0, 3.0]).reshape(1, 3, 1, 1)
    for before, now in zip(outputs(graph, x), outputs(after, x), strict=True):
        np.testing.assert_array_equal(now, np.maximum(before, 0.0))
        np.testing.assert_array_equal(now.ravel(), [0.0, 2.0, 0.0])


def test_an_output_given_twice_gets_one_relu() -> None:
    n = folded(3)
    n.linear(np.eye(3), name="fc")
    after, said = spiking(n, "fc", "fc")
    assert after.outputs == ("fc.relu", "fc.relu")
    assert said == ["SNN033"]


def test_lowered_scores_are_spikes_behind_quantization_too() -> None:
    n = folded(3, low=0.0, high=1.0)
    n.linear(np.eye(3))
    after, _ = spiking(n)
    (output,) = after.outputs
    n = folded(3, low=0.0, high=1.0)
    n.linear(np.eye(3))
    n(ops.Relu(1.0), name=output)
    integer = Quantize()(lower(n))
    assert integer[output].op.mnemonic == "if"


@settings(max_examples=150, deadline=None)
@given(graph=graphs(Stage.FOLDED, 12), per=st.sampled_from(["layer", "channel"]), seed=st.integers(0, 99))
def test_any_graph_is_lowered_or_refused(graph: Graph, per: str, seed: int) -> None:
    """Its activations never beyond what calibration saw, so its transfer functions are the network's."""
    xs = inputs(graph, 2, 1, seed)
    context = Context(calibration=[tuple(xs)], engine=Numpy())
    calibrated = apply(Calibrate("max", per=per), graph, context)
    after: Graph | None
    try:
        after = apply(LowerActivations(), calibrated, context)
    except CompileError:
        after = None
    assert set(codes(context)) <= {"SNN030", "SNN032"}
    assert (after is None) == ("SNN032" in codes(context))
    if after is None:
        return
    if not context.diagnostics and not any(isinstance(n.op, ops.QuantRelu) for n in graph.nodes):
        agree(graph, after, *xs)
    simulate(after, *xs, timesteps=3)


# --- networks that have spiking neurons themselves -------------------------------------------------------------------


def test_spiking_neurons_of_the_networks_own_are_left_as_they_are() -> None:
    n = folded(2, 6, 6, low=0.0, high=1.0)
    n.conv(rng().standard_normal((3, 2, 3, 3)))
    n(ops.Lif(0.75, 0.5, "zero"))
    n(ops.MaxPool((2, 2), (2, 2)))
    expected = Net(2, 6, 6, stage=Stage.SNN, low=0.0, high=1.0)
    expected.conv(rng().standard_normal((3, 2, 3, 3)))
    expected(ops.Lif(0.75, 0.5, "zero"))
    expected(ops.MaxPool((2, 2), (2, 2), each_step=True))
    same(lower(n), expected.graph())


def test_a_network_is_converted_or_made_of_spiking_neurons() -> None:
    n = folded(3)
    n(ops.Lif(1.0))
    n.linear(np.eye(3))
    n(ops.Relu(1.0))
    assert codes(errors(n)) == ["SNN035"]
