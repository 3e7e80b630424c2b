"""calibrate: thresholds against numpy on the raw data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from passes.build import Net, Numpy, apply, codes, rng

from snncc.engine import TorchEngine
from snncc.ir import Graph, Param, Stage, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Engine
from snncc.passes.calibrate import Calibrate, Histogram

C = 5
METHODS = ["max", "percentile", "mse"]


def net(*shape: int) -> Graph:
    """The activations are the input's: ``relu`` takes x, which has no layer before it."""
    n = Net(*shape, stage=Stage.FOLDED)
    n(ops.Relu(), name="relu")
    return n.graph()


def calibrate(graph: Graph, batches: Any, method: str = "max", engine: Engine | None = None, **options: Any) -> Graph:
    context = Context(calibration=batches, engine=engine or Numpy(), timesteps=16)
    after = apply(Calibrate(method, **options), graph, context)
    assert not context.diagnostics
    return after


def thresholds(graph: Graph, name: str = "relu") -> Array:
    value = graph[name].op.threshold  # type: ignore[attr-defined]
    assert value is not None
    return np.atleast_1d(graph.value(value) if isinstance(value, Param) else np.asarray(value))


def data(*shape: int, seed: int = 0) -> Array:
    """Some channels much larger than others; float32, as an engine would give."""
    scale = np.exp(np.arange(shape[1]) - 2.0).reshape(1, -1, *(1,) * (len(shape) - 2))
    return (rng(seed).standard_normal(shape) * scale).astype(np.float32)


def rows(x: Array, per: str) -> Array:
    return x.swapaxes(0, 1).reshape(x.shape[1], -1) if per == "channel" else x.reshape(1, -1)


def error(row: Array, theta: float, t: int) -> float:
    """Of the rates of T steps, as in the class's text."""
    a = np.maximum(row.astype(np.float64), 0)
    return float(((a - theta / t * np.clip(np.floor(a * t / theta + 0.5), 0, t)) ** 2).sum())


# --- the statistics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(64, C, 6, 6), (300, C)])
def test_max_is_exact(shape: tuple[int, ...], per: str) -> None:
    x = data(*shape)
    theta = thresholds(calibrate(net(*shape[1:]), [(x,)], "max", per=per))
    np.testing.assert_array_equal(theta, rows(x, per).max(axis=1))


@pytest.mark.parametrize("q", [50.5, 90, 99, 99.9, 100])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_percentile_is_right_within_a_bin(per: str, q: float) -> None:
    x = data(128, C, 6, 6)
    theta = thresholds(calibrate(net(C, 6, 6), [(x,)], "percentile", percentile=q, per=per))
    bins = 2048 if per == "layer" else 128
    for got, row in zip(theta, rows(x, per), strict=True):
        wanted = np.percentile(np.maximum(row, 0), q, method="inverted_cdf")
        assert abs(got - (wanted or row.max())) <= row.max() / bins  # zero is no threshold
        assert got <= row.max()


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_mse_is_near_the_best(per: str) -> None:
    """Near the least error that any threshold has on the raw data."""
    x = data(64, C, 6, 6)
    theta = thresholds(calibrate(net(C, 6, 6), [(x,)], "mse", per=per))
    for got, row in zip(theta, rows(x, per), strict=True):
        least = min(error(row, t, 16) for t in np.linspace(0.02, 1.05, 400) * row.max())
        assert error(row, got, 16) <= 1.03 * least
        assert got <= row.max() * (1 + 1e-6)


def test_mse_clips_outliers() -> None:
    x = np.full((1000, 1), 1.0, np.float32)
    x[:, 0] = rng().uniform(0, 1, 1000)
    x[0] = 20.0
    assert 0.8 < thresholds(calibrate(net(1), [(x,)], "mse"))[0] < 21.0
    many = np.tile(x, (100, 1))
    many[1:, 0] = np.minimum(many[1:, 0], 1.0)
    assert 0.8 < thresholds(calibrate(net(1), [(many,)], "mse", per="layer"))[0] < 1.6


def test_mse_depends_on_the_time_steps() -> None:
    """The more steps, the finer they are, and the larger the threshold may be."""
    x = np.abs(rng().standard_normal((20000, 1))).astype(np.float32)
    found = []
    for t in (2, 8, 64):
        context = Context(calibration=[(x,)], engine=Numpy(), timesteps=t)
        found.append(thresholds(apply(Calibrate("mse"), net(1), context))[0])
    assert found[0] < found[1] < found[2] <= x.max()


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("order", ["as it is", "growing", "shrinking"])
def test_a_stream_is_as_good_as_one_batch(order: str, per: str) -> None:
    x = data(120, C, 4, 4)
    if order != "as it is":
        x = x[np.argsort(np.abs(x).reshape(len(x), -1).max(axis=1))]
        x = x[::-1] if order == "shrinking" else x
    batches = [(b,) for b in np.array_split(x, 17)]
    graph = net(C, 4, 4)
    bins = 2048 if per == "layer" else 128
    np.testing.assert_array_equal(
        thresholds(calibrate(graph, batches, "max", per=per)), thresholds(calibrate(graph, [(x,)], "max", per=per))
    )
    stream = thresholds(calibrate(graph, batches, "percentile", percentile=97, per=per))
    for got, row in zip(stream, rows(x, per), strict=True):
        wanted = np.percentile(np.maximum(row, 0), 97, method="inverted_cdf")
        assert abs(got - wanted) <= 2 * row.max() / bins  # the range may have doubled
    stream = thresholds(calibrate(graph, batches, "mse", per=per))
    for got, row in zip(stream, rows(x, per), strict=True):
        least = min(error(row, t, 16) for t in np.linspace(0.02, 1.05, 200) * row.max())
        assert error(row, got, 16) <= (1.02 if per == "layer" else 1.1) * least


def test_a_range_may_grow_by_any_factor() -> None:
    x = np.array([1e-6, 1.0, 1e6], np.float32)
    histogram = Histogram(net(1)["relu"], "channel")
    for value in x:
        histogram.add(value.reshape(1, 1))
    assert histogram.peak[0] == x[-1]
    assert histogram.counts.sum() == 3
    assert histogram.top[0] >= x[-1]
    assert histogram.counts[0, 0] == 2


def test_counts_beyond_32_bits() -> None:
    histogram = Histogram(net(1)["relu"], "layer")
    histogram.add(np.ones((1, 1), np.float32))
    histogram.counts[:] = 0
    histogram.counts[0, -1] = histogram.total = 2**32 - 1  # as after very much data
    histogram.add(np.ones((2, 1), np.float32))
    assert histogram.counts[0, -1] == 2**32 + 1
    assert histogram.threshold(Calibrate("percentile", 50), 16)[0] == pytest.approx(1.0, rel=1e-3)


def test_a_generator_is_consumed_once() -> None:
    seen: list[int] = []

    def stream() -> Iterator[tuple[Array]]:
        for i in range(4):
            seen.append(i)
            yield (data(8, C, seed=i),)

    whole = np.concatenate([data(8, C, seed=i) for i in range(4)])
    after = calibrate(net(C), stream(), "max")
    assert seen == [0, 1, 2, 3]
    np.testing.assert_array_equal(thresholds(after), whole.max(axis=0))
    assert (after["x"].op.low, after["x"].op.high) == (whole.min(), whole.max())  # type: ignore[attr-defined]


def test_progress_is_told_of_every_batch() -> None:
    told: list[Any] = []

    def progress(items: Any, what: str) -> Any:
        told.append(what)
        for item in items:
            told.append(len(item[0]))
            yield item

    batches = [(data(n, C),) for n in (3, 4, 5)]
    context = Context(calibration=iter(batches), engine=Numpy(), progress=progress)
    apply(Calibrate(), net(C), context)
    assert told == ["calibrate", 3, 4, 5]


# --- what is odd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_dead_channels_get_the_layers_largest(method: str) -> None:
    x = data(50, C, 3, 3)
    x[:, 1] = 0.0
    x[:, 3] = -np.abs(x[:, 3])
    theta = thresholds(calibrate(net(C, 3, 3), [(x,)], method))
    assert (theta > 0).all()
    np.testing.assert_array_equal(theta[[1, 3]], x.max())
    assert theta[0] <= x[:, 0].max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_a_dead_layer_gets_one(method: str, per: str) -> None:
    theta = thresholds(calibrate(net(C), [(-np.ones((9, C)),)], method, per=per))
    assert (theta == 1.0).all()


def test_a_channel_that_is_rarely_positive_gets_its_own_largest() -> None:
    """Its percentile is 0, which is no threshold; the layer's largest value would leave nothing of it."""
    x = np.zeros((5000, 2), np.float32)
    x[:, 0] = 100.0
    x[7, 1] = 0.25
    theta = thresholds(calibrate(net(2), [(x,)], "percentile", percentile=99.0))
    np.testing.assert_allclose(theta, [100.0, 0.25], rtol=1 / 128)


@pytest.mark.parametrize("method", METHODS)
def test_tiny_activations_keep_a_positive_threshold(method: str) -> None:
    x = np.full((4, 2), 1e-45, np.float32)
    theta = thresholds(calibrate(net(2), [(x,)], method))
    assert (theta > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_data_that_is_not_finite(bad: float) -> None:
    n = Net(2, stage=Stage.FOLDED)
    n.linear([[1.0, 0.0], [0.0, 1.0]], name="fc")
    n(ops.Relu(), name="relu")
    graph = n.graph()
    for batches in ([(np.array([[1.0, 1e39]]),)], [(np.ones((2, 2)),), (np.array([[1.0, 1e39]]),)]):

        class Overflow:
            """As float32 would: what is beyond its range is not finite."""

            def values(self, graph: Graph, xs: Sequence[Array], visit: Any) -> None:
                for name in ("x", "fc", "relu"):
                    visit(name, xs[0] if name == "x" else np.where(xs[0] > 1e38, bad, xs[0]))

        context = Context(calibration=batches, engine=Overflow())
        after = apply(Calibrate(), graph, context)
        assert codes(context) == ["SNN011"]
        assert "`relu`" in context.diagnostics[0].message
        assert context.diagnostics[0].loc.sources[0].module == "relu"
        assert after is graph


def test_all_values_that_are_not_finite_are_named_in_order() -> None:
    n = Net(1, stage=Stage.FOLDED)
    for i in range(6):
        n(ops.Clamp(0.0, 1e9), name=f"relu{i}")

    class Bad:
        def values(self, graph: Graph, xs: Sequence[Array], visit: Any) -> None:
            for node in graph.nodes:
                visit(node.name, np.full((1, 1), np.nan))

    context = Context(calibration=[(np.ones((1, 1)),)], engine=Bad())
    apply(Calibrate(), n.graph(), context)
    assert [d.message.split("`")[1] for d in context.diagnostics] == ["x", *(f"relu{i}" for i in range(6))]


@pytest.mark.parametrize("batches", [[], iter(())])
def test_empty_data(batches: Any) -> None:
    graph = net(C)
    context = Context(calibration=batches, engine=Numpy())
    assert apply(Calibrate(), graph, context) is graph
    assert codes(context) == ["SNN011"]


def test_without_data_or_engine_nothing_is_done() -> None:
    graph = net(C)
    for context in (Context(), Context(engine=Numpy()), Context(calibration=[(data(4, C),)])):
        assert Calibrate()(graph, context) is graph
        assert not context.diagnostics


# --- the graph -------------------------------------------------------------------------------------------------------


def test_every_activation_and_input_is_calibrated_and_nothing_else() -> None:
    n = Net(4, 6, 6, stage=Stage.FOLDED)
    n.conv(rng().standard_normal((3, 4, 3, 3)), [1, 2, 3], name="conv")
    n(ops.Clamp(0.0, 6.0), name="relu6")
    n(ops.Flatten(), name="flat")
    n.linear(rng().standard_normal((5, 48)), name="fc")
    n(ops.QuantRelu(2.0, 4), name="quant")
    graph = n.graph()
    x = data(20, 4, 6, 6)
    after = calibrate(graph, [(x,)], "max", engine=TorchEngine())
    for name in ("conv", "flat", "fc"):
        assert after[name] is graph[name]
    for name in ("x", "relu6", "quant"):
        assert after[name].loc.passes == ("calibrate",)
    assert after["x"].op == ops.Input((4, 6, 6), float(x.min()), float(x.max()))
    assert thresholds(after, "relu6").shape == (3,)
    assert thresholds(after, "quant").shape == (5,)
    assert (thresholds(after, "relu6") <= 6).all()


def test_per_layer_thresholds_are_numbers() -> None:
    after = calibrate(net(C, 2, 2), [(data(9, C, 2, 2),)], "max", per="layer")
    assert isinstance(after["relu"].op.threshold, float)  # type: ignore[attr-defined]


def test_of_a_sequence_of_features_the_first_axis_is_no_channel() -> None:
    """A linear layer behind it sums along the last one: thresholds must not differ along the first."""
    x = data(30, 4, 7)
    after = calibrate(net(4, 7), [(x,)], "max")
    assert after["relu"].op.threshold == x.max()  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_both_engines_give_one_result(method: str, per: str) -> None:
    n = Net(3, 6, 6, stage=Stage.FOLDED)
    n.conv(rng().standard_normal((4, 3, 3, 3)))
    n(ops.Relu(), name="relu")
    x = data(40, 3, 6, 6)
    a, b = (thresholds(calibrate(n.graph(), [(x,)], method, engine=e, per=per)) for e in (Numpy(), TorchEngine()))
    np.testing.assert_allclose(a, b, rtol=2e-2 if method == "mse" else 1e-3)
