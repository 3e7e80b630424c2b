"""calibrate-reset: gains and thresholds by hand, and what they are worth on networks with shortcuts and branches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from passes.build import Net, apply, rng
from zoo import ZOO, build, example_input

import snncc
from snncc.engine import TorchEngine
from snncc.ir import Graph, Param, Severity, Stage, ops
from snncc.ir.types import Array, per_channel
from snncc.passes import calibrate_reset
from snncc.passes.base import Context
from snncc.passes.calibrate_reset import CalibrateReset
from snncc.passes.quantize import Quantize

ENGINE = TorchEngine()


def net(theta: float | Sequence[float] = (1.0, 1.0), reset: str = "zero", encoding: str = "constant") -> Net:
    """Two neurons, one a channel, that get the input."""
    n = Net(2, stage=Stage.SNN, encoding=encoding)
    n.scale(1.0, name="layer")
    threshold = theta if isinstance(theta, float) else n.param(theta, np.float64)
    n(ops.If(threshold, ops.times(threshold, 0.25, n.store), reset), name="neuron")
    return n


def calibrate(graph: Graph, *xs: Array, timesteps: int = 12, **options: object) -> Graph:
    context = Context(sample=[xs], engine=ENGINE, timesteps=timesteps)
    after = apply(CalibrateReset(**options), graph, context)  # type: ignore[arg-type]
    assert not context.diagnostics
    return after


def numbers(graph: Graph, name: str, attribute: str) -> Array:
    value = getattr(graph[name].op, attribute)
    return np.atleast_1d(graph.value(value) if isinstance(value, Param) else np.asarray(value))


def error(graph: Graph, wanted: Array, x: Array, timesteps: int) -> float:
    return float(((ENGINE.simulate(graph, x, timesteps=timesteps).output - wanted) ** 2).sum())


# --- gains -----------------------------------------------------------------------------------------------------------


def test_the_gain_makes_up_for_what_a_reset_forgets() -> None:
    """From 0.25, 0.3 a step reaches 1 after 3 steps, from 0 after 4: 3 spikes in 12, and each must stand for 1.2 to
    give 0.3. Steps of 0.5 lose nothing but the start: 6 spikes."""
    x = np.array([[0.3, 0.5]])
    after = calibrate(net().graph(), x, factors=(1.0,))
    np.testing.assert_array_equal(numbers(after, "neuron", "threshold"), [1.0, 1.0])
    np.testing.assert_allclose(numbers(after, "neuron", "gain"), [1.2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(numbers(after, "neuron", "v0"), [0.25, 0.25])
    np.testing.assert_allclose(ENGINE.simulate(after, x, timesteps=12).output, x, rtol=1e-6)


def test_the_gain_is_of_least_squares() -> None:
    x = rng().uniform(-0.2, 1.3, (40, 2))
    graph = net((1.0, 0.8)).graph()
    after = calibrate(graph, x, factors=(1.0,))
    rate = ENGINE.simulate(graph, x, timesteps=12).output
    for c in range(2):
        best = np.linalg.lstsq(rate[:, c : c + 1], np.clip(x[:, c], 0, (1.0, 0.8)[c]), rcond=None)[0]
        np.testing.assert_allclose(numbers(after, "neuron", "gain")[c], best[0], rtol=1e-5)


def test_one_threshold_for_a_layer_gets_one_gain() -> None:
    """Channels that stay alike in what their spikes are worth, as sums along them need."""
    x = rng().uniform(-0.2, 1.3, (40, 2))
    graph = net(1.0).graph()
    after = calibrate(graph, x, factors=(1.0,))
    rate = ENGINE.simulate(graph, x, timesteps=12).output
    best = np.linalg.lstsq(rate.reshape(-1, 1), np.clip(x, 0, 1).ravel(), rcond=None)[0]
    assert isinstance(after["neuron"].op.gain, float)  # type: ignore[attr-defined]
    np.testing.assert_allclose(numbers(after, "neuron", "gain"), best, rtol=1e-5)


def test_neurons_behind_are_fitted_to_what_reaches_them() -> None:
    """The second neuron's input is the first one's spikes with their gain: of evenly timed input it loses nothing."""
    n = net()
    n.scale(1.0, name="next")
    n(ops.If(n.param([1.2, 1.0], np.float64), 0.0, "zero"), name="second")
    x = np.array([[0.3, 0.5]])
    after = calibrate(n.graph(), x, factors=(1.0,))
    np.testing.assert_allclose(numbers(after, "neuron", "gain"), [1.2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(numbers(after, "second", "gain"), [1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(ENGINE.simulate(after, x, timesteps=12).output, x, rtol=1e-6)


def test_a_silent_channel_gets_the_layers_gain() -> None:
    after = calibrate(net().graph(), np.array([[0.3, -1.0]]), factors=(1.0,))
    np.testing.assert_allclose(numbers(after, "neuron", "gain"), [1.2, 1.2], rtol=1e-6)
    after = calibrate(net().graph(), np.array([[-1.0, -1.0]]), factors=(1.0,))
    np.testing.assert_array_equal(numbers(after, "neuron", "gain"), [1.0, 1.0])


# --- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timesteps", "expected"), [(4, 0.6), (32, 1.4)])
def test_the_factor_is_the_best_for_the_outputs(timesteps: int, expected: float) -> None:
    """The more steps, the finer rates are worth."""
    n = Net(6, stage=Stage.SNN)
    for i, channels in enumerate((8, 8)):
        n.linear(rng(i).standard_normal((channels, n.nodes[n.last].type.size)) / 2, name=f"fc{i}")
        n(ops.If(n.param(np.full(channels, 2.0), np.float64), 0.5, "zero"), name=f"neuron{i}")
    n.linear(rng(5).standard_normal((4, 8)), name="out")
    graph, x = n.graph(), rng(9).standard_normal((60, 6))
    wanted = ENGINE.run(graph, x)["out"]
    factors = (0.3, 0.6, 1.0, 1.4, 3.0)
    single = [calibrate(graph, x, timesteps=timesteps, factors=(f,)) for f in factors]
    errors = [error(g, wanted, x, timesteps) for g in single]
    after = calibrate(graph, x, timesteps=timesteps, factors=factors)
    best = int(np.argmin(errors))
    assert after.canonical() == single[best].canonical()
    for name in ("neuron0", "neuron1"):
        np.testing.assert_allclose(numbers(after, name, "threshold"), 2.0 * factors[best])
        np.testing.assert_allclose(numbers(after, name, "v0"), 0.5 * factors[best])
    assert factors[best] == expected


# --- what it runs on -------------------------------------------------------------------------------------------------


def test_nothing_is_done_without_data_or_such_neurons() -> None:
    x = np.array([[0.3, 0.5]])
    graph = net(reset="subtract").graph()
    assert calibrate(graph, x) is graph
    graph = net().graph()
    for context in (Context(), Context(engine=ENGINE), Context(sample=[(x,)])):
        assert CalibrateReset()(graph, context) is graph


def test_neurons_that_subtract_stay_among_others() -> None:
    n = net(reset="subtract")
    n.scale(1.0, name="next")
    n(ops.If(1.0, 0.0, "zero"), name="second")
    graph = n.graph()
    after = calibrate(graph, np.array([[0.3, 0.5]]))
    assert after["neuron"] is graph["neuron"]
    assert after["second"].op != graph["second"].op


def test_samples_come_from_everywhere_and_as_many_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted data: of 8 samples, 4 say what half of them says."""
    x = np.repeat([[0.3, 0.5], [0.45, 0.5]], 4, axis=0)
    context = Context(sample=[(x[:5],), (x[5:],)], engine=ENGINE, timesteps=12)
    every = CalibrateReset((1.0,))(net().graph(), context)
    few = CalibrateReset((1.0,), samples=4)(net().graph(), context)
    np.testing.assert_allclose(numbers(few, "neuron", "gain"), numbers(every, "neuron", "gain"))
    monkeypatch.setattr(calibrate_reset, "MEMORY", 4 * 2 * 4 + 7)
    seen = []

    class Counting(TorchEngine):
        def values(self, graph, xs, visit, *rest):  # type: ignore[no-untyped-def]
            seen.append(len(xs[0]))
            super().values(graph, xs, visit, *rest)

    context.engine = Counting()
    CalibrateReset((1.0,))(net().graph(), context)
    assert seen == [4]


def test_ready_made_spikes_are_not_measured() -> None:
    """The data says how many there are, but not when."""
    graph = net(encoding="spikes").graph()
    context = Context(sample=[(np.array([[0.25, 0.5]]),)], engine=ENGINE)
    assert CalibrateReset()(graph, context) is graph
    assert [(d.code, d.severity) for d in context.diagnostics] == [("SNN011", Severity.NOTE)]


# --- on to integers --------------------------------------------------------------------------------------------------


def test_integers_keep_the_gain_in_the_unit_of_their_spikes() -> None:
    n = net((1.0, 0.5))
    n.linear([[0.5, -0.25], [1.0, 1.0]], name="out")
    x = rng(3).integers(0, 128, (50, 2)) / 127
    n.nodes["x"] = Net(2, stage=Stage.SNN, low=0.0, high=1.0, store=n.store).nodes["x"]
    before = calibrate(n.graph(), x)
    after = apply(Quantize(weight_bits=16, bias_bits=32), before, Context())
    gain = numbers(before, "neuron", "gain")
    np.testing.assert_array_equal(numbers(after, "neuron", "gain"), gain)
    unit = np.asarray(per_channel(after["layer"].type.unit, after.store, 1))
    got = np.asarray(per_channel(after["neuron"].type.unit, after.store, 1))
    np.testing.assert_allclose(got, unit * numbers(after, "neuron", "threshold") * gain, rtol=1e-12)
    np.testing.assert_allclose(got, numbers(before, "neuron", "threshold") * gain, rtol=1e-12)
    a, b = (ENGINE.simulate(graph, x, timesteps=12).output for graph in (before, after))
    np.testing.assert_allclose(a, b, atol=1e-2)


@pytest.mark.parametrize("name", ["resnet_a", "inception", "mobilenet"])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_the_outputs_are_nearer_to_the_networks(name: str, per: str) -> None:
    x = np.asarray(example_input(ZOO[name].input_shape, 16, seed=1))
    model = snncc.compile(build(name), calibration=x, timesteps=8, reset="zero", bias="keep", per=per)
    labels = [r.label for r in model.records]
    at = labels.index("calibrate-reset")
    before, after, last = (model.records[i].graph for i in (at - 1, at, -1))
    wanted = ENGINE.run(before, x)[before.outputs[0]]
    errors = [error(graph, wanted, x, 8) for graph in (before, after, last)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.7 * errors[0]
