"""The engine against the reference interpreter: every spike, on random graphs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from strategies import graphs, inputs

from snncc.engine import TorchEngine, rules, simulate
from snncc.engine.neurons import NEURONS
from snncc.engine.simulate import fan_out
from snncc.ir import Domain, Graph, InputError, Node, Param, Stage, Store, Type, interp, loihi, ops, verify
from snncc.ir.types import Array, PerChannel, per_channel
from snncc.passes.rewrite import Builder, rebuild

ENGINE = TorchEngine()
seeds = st.integers(0, 2**32 - 1)
networks = st.sampled_from([Stage.ANN, Stage.FOLDED]).flatmap(graphs)
spiking = st.sampled_from([Stage.SNN, Stage.INT, Stage.MAPPED]).flatmap(lambda stage: graphs(stage, every=True))


def chain(stage: Stage, *steps: ops.Op | tuple[ops.Op, PerChannel], store: Store | None = None) -> Graph:
    """A graph of operations in a row, the first an input; with a unit where inference leaves it free."""
    store = store if store is not None else Store()
    nodes: list[Node] = []
    for i, step in enumerate(steps):
        op, unit = step if isinstance(step, tuple) else (step, None)
        args = (nodes[-1],) if nodes else ()
        type = op.infer(tuple(n.type for n in args), store)
        place = "core 0" if stage is Stage.MAPPED else ""
        type = type if unit is None else replace(type, unit=unit)
        nodes.append(Node(f"n{i}", op, tuple(n.name for n in args), type, place=place))
    graph = Graph(tuple(nodes), (nodes[-1].name,), stage, store=store)
    verify(graph)
    return graph


def assert_close(got: Array, want: Array, rtol: float) -> None:
    # A sum's rounding error is relative to its largest terms.
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * max(1.0, np.abs(want).max(initial=0.0)))


# --- over time steps -----------------------------------------------------------------------------------------------


@settings(max_examples=250)
@given(spiking, st.integers(1, 4), st.integers(1, 9), st.sampled_from([None, 1, 3]), seeds)
def test_equals_the_interpreter_in_every_spike(
    graph: Graph, n: int, timesteps: int, batch_size: int | None, seed: int
) -> None:
    xs = inputs(graph, n, timesteps, seed)
    want = interp.simulate(graph, *xs, timesteps=timesteps)
    got = ENGINE.simulate(graph, *xs, timesteps=timesteps, record="all", batch_size=batch_size, final=True)
    for name, value in want.values.items():
        integer, domain = graph[name].type.integer, graph[name].type.domain
        assert (name in got.spikes) == (domain is Domain.SPIKE or (domain is Domain.MESSAGE and integer))
        if name in got.spikes:
            np.testing.assert_array_equal(got.spikes[name], want.spikes(name))
            assert got.counts[name] == events(want, name).sum()
            assert got.rates[name] == pytest.approx(events(want, name).mean())
        elif integer:
            np.testing.assert_array_equal(got.values[name], value)
        else:
            assert_close(got.values[name], value, 1e-12)
    for node in graph.nodes:
        assert (node.name in got.final) == (type(node.op) in NEURONS)
        if isinstance(node.op, ops.If) or (node.name in got.final and node.type.integer):
            np.testing.assert_array_equal(got.final[node.name], want.final[node.name])
        elif node.name in got.final:
            assert_close(got.final[node.name], want.final[node.name], 1e-12)
        if isinstance(node.op, ops.Weighted) and node.args[0] in got.spikes:
            np.testing.assert_array_equal(got.synops[node.name], brute_force_synops(graph, node, want))
    for name, output in zip(graph.outputs, got.outputs, strict=True):
        assert_close(output, want.mean(name), 1e-12)
    assert got.output is got.outputs[0]


@settings(max_examples=150)
@given(
    graphs(Stage.SNN, every=True),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([1, 2**26]),
    seeds,
    st.booleans(),
)
def test_adapts_as_a_graph_with_these_gains_runs(
    graph: Graph, n: int, timesteps: int, memory: int, seed: int, more: bool
) -> None:
    """What spikes are found to be worth on the way, the neurons behind see."""
    factor, rates = 1.5 if more else 1.0, dict[str, Array]()

    def worth(name: str, rate: Array) -> Array:
        rates[name] = rate
        return np.ravel(per_channel(graph[name].type.unit, graph.store, 1)) * factor

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, ops.If):
            return None
        return builder.copy(node, args, replace(node.op, gain=ops.times(node.op.gain, factor, builder.store)))

    try:
        gained = rebuild(graph, visit)
    except ops.ShapeError:  # spikes of the input are among those that it joins
        reject()
    xs = inputs(graph, n, timesteps, seed)
    got = TorchEngine(memory=memory).adapt(graph.live(), xs, timesteps, worth)
    want = ENGINE.simulate(gained, *xs, timesteps=timesteps, record="spikes")
    assert list(rates) == [node.name for node in gained.nodes if isinstance(node.op, ops.If)]
    for name, rate in rates.items():
        np.testing.assert_allclose(rate * timesteps, want.spikes[name].sum(axis=0), rtol=0, atol=1e-9)
    for a, b in zip(got, want.outputs, strict=True):
        assert_close(a, b, 1e-12)


def events(trace: interp.Trace, name: str) -> Array:
    """How many spikes or messages every neuron sent in every step."""
    spikes = trace.spikes(name)
    return spikes != 0 if trace.graph[name].type.domain is Domain.MESSAGE else spikes


def brute_force_synops(graph: Graph, node: Node, trace: interp.Trace) -> Array:
    """One spike at a time through the interpreter's operation, with weights of one: what arrives is what it reached."""
    op = node.op
    assert isinstance(op, ops.Weighted)
    store = Store()
    ones = replace(op, weight=store.put("ones", np.ones(op.weight.shape)), bias=None)
    x = graph[node.args[0]].type
    places = np.eye(x.size).reshape(x.size, *x.shape)
    reached = ones.evaluate([places], node.type, store).reshape(x.size, -1).sum(axis=1)
    spikes = events(trace, node.args[0])
    return np.asarray((spikes.reshape(*spikes.shape[:2], -1) * reached).sum(axis=(0, 2)))


neurons = st.one_of(
    st.builds(
        loihi.CubaLif,
        st.sampled_from([0, 99, 2**17 - 1]),
        decay_u=st.sampled_from([0, loihi.UNITY]) | st.integers(0, loihi.UNITY),
        decay_v=st.just(0) | st.integers(0, loihi.UNITY),
        v0=st.just(0) | st.integers(*loihi.V0),
    ),
    st.builds(loihi.AtrLif, st.sampled_from([1, 99, 2**17 - 1]), v0=st.just(0) | st.integers(*loihi.V0)),
    st.builds(loihi.Delta, st.sampled_from([0, 2**20]), st.sampled_from([1, 64])),
    st.builds(
        loihi.SigmaDelta, st.none(), st.sampled_from([0, 2**20]), st.integers(0, 7), st.sampled_from(["relu", "none"])
    ),
    st.builds(loihi.Sigma),
)


@settings(max_examples=300)
@given(neurons, st.floats(0, 24), st.sampled_from([0, 2, 2**19, 2**29]), st.integers(1, 12), seeds)
def test_loihi_neurons_at_their_bounds(
    op: loihi.LoihiNeuron | loihi.Delta, size: float, biases: int, timesteps: int, seed: int
) -> None:
    """Currents that wrap, potentials that saturate, and what is refused."""
    rng, store = np.random.default_rng(seed), Store()
    if isinstance(op, loihi.LoihiNeuron):
        bias = store.put("bias", rng.integers(-biases, biases + 1, 4))
        op = replace(op, bias=bias)  # type: ignore[call-arg]
    signs = ops.Affine(store.put("w", np.array([1, 1, -1, -1], np.int8)))
    head = ops.Input((4,)), ops.Encode("spikes", 1.0, "i32"), (signs, 1.0)
    graph = chain(Stage.INT, *head, (op, 1.0) if op.free_unit else op, store=store)
    x = rng.integers(0, int(2**size), (timesteps, 2, 4), endpoint=True)
    x = np.where(rng.random(x.shape) < 0.1, min(int(2**size), 2**17), x)  # where currents begin to wrap
    try:
        want = interp.simulate(graph, x, timesteps=timesteps)
    except OverflowError as error:
        with pytest.raises(OverflowError, match="beyond"):
            ENGINE.simulate(graph, x, timesteps=timesteps)
        event("refused: " + str(error).split(", ")[1])
        return
    got = ENGINE.simulate(graph, x, timesteps=timesteps, record="all", final=True)
    fired = got.spikes if graph["n3"].type.domain in simulate.FIRED else got.values
    np.testing.assert_array_equal(fired["n3"], want.values["n3"])
    np.testing.assert_array_equal(got.final["n3"], want.final["n3"])


@pytest.mark.parametrize(
    ("op", "runs", "refused"),  # the constant input, and for how many steps
    [
        (loihi.CubaLif(1), (2**23 - 1, 200), (2**23, 1)),
        (loihi.CubaLif(1, decay_u=4095), (2**23 - 1, 1), (2**23 - 1, 2)),
        (loihi.CubaLif(1, decay_u=0), (2**22, 2), (2**22, 3)),
        (loihi.AtrLif(1), (2**23 - 1, 200), (2**23, 1)),
        (loihi.SigmaDelta(), (2**22, 127), (2**22, 128)),
        (loihi.Sigma(), (2**22, 127), (2**22, 128)),
        (loihi.Delta(scale=64), (2**23 - 1, 200), (2**23, 1)),
    ],
)
def test_refuses_what_the_interpreter_refuses(
    op: loihi.LoihiNeuron | loihi.Delta, runs: tuple[int, int], refused: tuple[int, int]
) -> None:
    head = ops.Input((1,)), ops.Encode("constant", 1.0, "i32")
    graph = chain(Stage.INT, *head, (op, 1.0) if op.free_unit else op)
    said = []
    for run in (interp.simulate, ENGINE.simulate):
        run(graph, np.array([[runs[0]]]), timesteps=runs[1])
        with pytest.raises(OverflowError, match="beyond") as error:
            run(graph, np.array([[refused[0]]]), timesteps=refused[1])
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("op", [loihi.CubaLif(2**17 - 1, v0=-1000), loihi.AtrLif(2**17 - 1, v0=-1000)])
def test_biases_beyond_float32(op: loihi.CubaLif | loihi.AtrLif) -> None:
    store = Store()
    op = replace(op, bias=store.put("b", np.array([2**24 + 1])))
    graph = chain(Stage.INT, ops.Input((1,)), ops.Encode("constant", 1.0, "i32"), (op, 1.0), store=store)
    got = ENGINE.simulate(graph, np.array([[1.0 - 2**17]]), timesteps=1, final=True)
    v = 64 * (1 - 2**17) - 64 * 1000 + 2**24 + 1
    assert got.final["n2"].ravel().tolist() == ([64 * (1 - 2**17), v] if isinstance(op, loihi.CubaLif) else [v, 0])


def test_messages_are_counted_where_they_are_not_zero() -> None:
    store = Store()
    graph = chain(
        Stage.INT,
        ops.Input((2,)),
        ops.Encode("spikes", 1.0, "i32"),
        loihi.Delta(scale=100),
        (ops.Linear(store.put("w", np.ones((3, 2), np.int8))), 1.0),
        loihi.SigmaDelta(activation="none"),
        store=store,
    )
    x = np.array([[[5, 0], [0, 0]], [[5, 1], [0, 0]], [[4, 0], [0, 2]]])
    got = ENGINE.simulate(graph, x, timesteps=3, record="spikes")
    assert got.spikes["n2"].tolist() == [[[500, 0], [0, 0]], [[0, 100], [0, 0]], [[-100, -100], [0, 200]]]
    assert got.counts == {"n1": 17, "n2": 5, "n4": 12}
    assert got.synops["n3"].tolist() == [12, 3]
    assert got.rates["n2"] == 5 / 12


def test_large_messages_are_recorded_as_they_are() -> None:
    pool = ops.SumPool((3, 3), (1, 1))
    encode = ops.Encode("constant", 1.0, "i32")
    graph = chain(Stage.INT, ops.Input((1, 3, 3)), encode, loihi.Delta(), pool)
    got = ENGINE.simulate(graph, np.full((1, 1, 3, 3), 2.0**28), timesteps=2, record="spikes").spikes
    assert got["n2"].dtype == np.int32
    assert got["n3"].ravel().tolist() == [9 * 2**28, 0]


@settings(max_examples=40)
@given(graphs(Stage.SNN, methods=("bernoulli",)), st.integers(2, 5), seeds)
def test_random_spikes_do_not_depend_on_the_split(graph: Graph, n: int, seed: int) -> None:
    xs = inputs(graph, n, 6, seed)
    whole = ENGINE.simulate(graph, *xs, timesteps=6, record="spikes")
    split = TorchEngine(memory=1).simulate(graph, *xs, timesteps=6, record="spikes")
    assert whole.counts == split.counts
    for name, spikes in whole.spikes.items():
        np.testing.assert_array_equal(split.spikes[name], spikes)


def small(stage: Stage, method: str = "constant") -> Graph:
    """Two layers of neurons on (2, 5, 5)."""
    store, integer = Store(), stage is not Stage.SNN
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Param:
        values = rng.standard_normal(shape)
        return store.put("w", (values * 40).astype(np.int8) if integer else (values * 0.4).astype(np.float32))

    unit = 0.01 if integer else None
    return chain(
        stage,
        ops.Input((2, 5, 5)),
        ops.Encode(method, 0.1, "i8" if integer else "f32"),
        (ops.Conv2d(weight(3, 2, 3, 3)), unit),
        ops.If(90 if integer else 0.6),
        ops.MaxPool((2, 2), (1, 1)),
        ops.Flatten(),
        (ops.Linear(weight(4, 12)), unit),
        ops.If(50 if integer else 0.4),
        store=store,
    )


X = np.random.default_rng(1).random((4, 2, 5, 5))


@pytest.mark.parametrize("stage", [Stage.SNN, Stage.INT, Stage.MAPPED])
def test_what_does_not_change_over_time_is_computed_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, int] = {}

    def spy(op: ops.Op, xs: list[torch.Tensor], out: Type, params: rules.Params) -> torch.Tensor:
        rows[op.mnemonic] = len(xs[0])
        return rules.evaluate(op, xs, out, params)

    monkeypatch.setattr(simulate, "evaluate", spy)
    result = ENGINE.simulate(small(stage), X, timesteps=6)
    assert rows == {"conv2d": 4, "max_pool": 24, "flatten": 24, "linear": 24}
    np.testing.assert_allclose(result.output, interp.simulate(small(stage), X, timesteps=6).mean("n7"))


def test_integers_run_in_the_smallest_exact_type() -> None:
    def run(weight: int, x: float) -> Array:
        store = Store()
        linear = ops.Linear(store.put("w", np.full((1, 3), weight, np.int32)), store.put("b", np.array([1], np.int32)))
        graph = chain(Stage.INT, ops.Input((3,)), ops.Encode("constant", 1.0, "i32"), (linear, 1.0), store=store)
        xs = np.full((1, 3), x)
        got = ENGINE.simulate(graph, xs, timesteps=2, record="all").values["n2"]
        np.testing.assert_array_equal(got, interp.simulate(graph, xs, timesteps=2).values["n2"])
        return got

    assert run(2, 3)[0, 0, 0] == 19
    assert run(1, 2**24 + 2)[0, 0, 0] == 3 * 2**24 + 7  # no float32
    assert run(2**30, 2**20 + 1)[0, 0, 0] == 3 * 2**30 * (2**20 + 1) + 1
    with pytest.raises(OverflowError, match=r"%n2: integers that may reach .* beyond 2\*\*53"):
        run(2**30, 2**23)


@pytest.mark.parametrize("threshold", [2**24 + 1, 3])
def test_integer_membranes_are_exact_over_many_steps(threshold: int) -> None:
    graph = chain(Stage.INT, ops.Input((1,)), ops.Encode("constant", 1.0, "i32"), ops.If(threshold))
    x = np.array([[2**22 + 1.0]])
    want = interp.simulate(graph, x, timesteps=9)
    got = ENGINE.simulate(graph, x, timesteps=9, record="all", final=True)
    np.testing.assert_array_equal(got.spikes["n2"], want.spikes("n2"))
    np.testing.assert_array_equal(got.final["n2"], want.final["n2"])


def test_integer_maxima_are_exact_over_many_steps() -> None:
    pool = ops.MaxPool((1, 2), (1, 1))
    graph = chain(Stage.INT, ops.Input((1, 1, 2)), ops.Encode("constant", 1.0, "i32"), pool)
    x = np.array([[[[2**22 + 1.0, 2**22 - 1.0]]]])
    got = ENGINE.simulate(graph, x, timesteps=9, record="all")
    assert got.values["n2"].ravel().tolist() == [2**22 + 1.0] * 9


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_leaky_membranes_are_float32_whatever_the_integers(decay: float, reset: str) -> None:
    """Beyond 2**24, where inputs and thresholds are rounded: as the interpreter does, operation by operation."""
    store = Store()
    theta = store.put("theta", np.array([2**24 + 1, 2**26 + 3, 3, 2**30 - 1], np.int32))
    head = ops.Input((4,)), ops.Encode("constant", 1.0, "i32")
    graph = chain(Stage.INT, *head, ops.Lif(theta, decay, reset), store=store)
    x = np.random.default_rng(0).integers(-(2**23), 2**26, (5, 4)) | 1
    want = interp.simulate(graph, x, timesteps=20)
    got = ENGINE.simulate(graph, x, timesteps=20, record="all", final=True)
    np.testing.assert_array_equal(got.spikes["n2"], want.spikes("n2"))
    np.testing.assert_array_equal(got.final["n2"], want.final["n2"])
    assert 0 < got.rates["n2"] < 1


def test_a_maximum_of_each_step_does_not_grow_with_time() -> None:
    """Sums over time would leave float32 in the third step, and what is exact at all in the last."""
    head = ops.Input((1, 1, 2)), ops.Encode("constant", 1.0, "i32")
    graph = chain(Stage.INT, *head, ops.MaxPool((1, 2), (1, 2), each_step=True))
    steps = simulate._Steps(graph, 2**40, rules.Params(graph.store, "cpu"), frozenset(), False)
    x = torch.full((1, 1, 1, 1, 2), 2.0**22)
    y = steps._result(graph["n2"], [x], simulate.Simulation(graph, 1))
    assert (y.dtype, y.flatten().tolist()) == (torch.float32, [2.0**22])


leaky = st.tuples(
    st.sampled_from([1.0, 0.75, 0.9, 1e-3]), st.sampled_from(["subtract", "zero"]), st.booleans(), st.integers(1, 3)
)


@settings(max_examples=100)
@given(
    st.sampled_from([Stage.SNN, Stage.INT, Stage.MAPPED]),
    st.sampled_from(["constant", "rate", "spikes"]),
    leaky,
    leaky,
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.integers(1, 2), st.booleans()),
    st.integers(1, 9),
    seeds,
)
def test_networks_of_leaky_neurons_equal_the_interpreter(
    stage: Stage,
    method: str,
    first: tuple[float, str, bool, int],
    second: tuple[float, str, bool, int],
    pool: tuple[int, int, int, int, bool],
    timesteps: int,
    seed: int,
) -> None:
    """As they are trained: a layer, neurons, a maximum of each step, a layer, neurons."""
    rng, store, integer = np.random.default_rng(seed), Store(), stage is not Stage.SNN

    def layer(inputs: int, outputs: int) -> tuple[ops.Op, PerChannel | None]:
        w, b = rng.standard_normal((outputs, inputs, 2, 2)) * 0.5, rng.standard_normal(outputs) * 0.3
        w, b = ((w * 90).astype(np.int8), (b * 90).astype(np.int32)) if integer else (np.float32(w), np.float32(b))
        return ops.Conv2d(store.put("w", w), store.put("b", b)), 0.01 if integer else None

    def neuron(decay: float, reset: str, per_channel: bool, channels: int) -> ops.Lif:
        theta = rng.integers(1, 150, channels) if integer else rng.uniform(0.01, 1.5, channels)
        theta = theta.astype(np.int32 if integer else np.float32)
        return ops.Lif(store.put("theta", theta) if per_channel else theta[0].item(), decay, reset)

    kernel, stride, padding, dilation, ceil_mode = pool
    size, pads, apart = (kernel, kernel), (min(padding, kernel // 2),) * 2, (dilation, dilation)
    graph = chain(
        stage,
        ops.Input((2, 8, 8)),
        ops.Encode(method, 0.01 if integer and method == "constant" else 1.0, "i32" if integer else "f32"),
        layer(2, first[3]),
        neuron(*first),
        ops.MaxPool(size, (stride, stride), pads, apart, ceil_mode, each_step=True),
        layer(first[3], second[3]),
        neuron(*second),
        store=store,
    )
    assert graph["n4"].type.domain is Domain.SPIKE
    x = rng.integers(0, 2, (timesteps, 3, 2, 8, 8)) if method == "spikes" else rng.random((3, 2, 8, 8))
    want = interp.simulate(graph, x, timesteps=timesteps)
    got = ENGINE.simulate(graph, x, timesteps=timesteps, record="spikes", final=True)
    for name in ("n3", "n4", "n6"):
        np.testing.assert_array_equal(got.spikes[name], want.spikes(name))
    for name in ("n3", "n6"):
        np.testing.assert_array_equal(got.final[name], want.final[name])
    event(f"fires: {0 < want.spikes('n6').mean() < 1}")


def test_bfloat16_for_training_does_not_touch_integers() -> None:
    store = Store()
    rng = np.random.default_rng(0)
    linear = ops.Linear(store.put("w", rng.integers(-7, 7, (256, 512)).astype(np.int8)))
    graph = chain(Stage.INT, ops.Input((512,)), ops.Encode("constant", 1.0, "i32"), (linear, 1.0), store=store)
    x = rng.integers(0, 3000, (256, 512))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        got = ENGINE.simulate(graph, x, timesteps=1)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(got.output, x @ store[linear.weight].T.astype(np.int64))


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_fan_out_counts_what_an_input_reaches(groups: int, dilation: int) -> None:
    store = Store()
    weight = store.put("w", np.ones((4, 2 // groups, 3, 2)))
    op = ops.Conv2d(weight, None, (2, 1), (1, 0, 0, 2), (dilation, dilation), groups)
    x = Type((2, 7, 6))
    out = op.infer((x,), store)
    grid = torch.zeros(1, *x.shape, dtype=torch.float64, requires_grad=True)
    padded = torch.nn.functional.pad(grid, (0, 2, 1, 0))
    y = torch.nn.functional.conv2d(padded, torch.ones(weight.shape).double(), None, (2, 1), 0, dilation, groups)
    y.sum().backward()
    assert grid.grad is not None
    reached = np.broadcast_to(fan_out(op, x, out), x.shape)
    np.testing.assert_array_equal(reached, grid.grad[0].numpy())


def test_records_what_is_asked_for() -> None:
    graph = small(Stage.INT, "rate")
    bare = ENGINE.simulate(graph, X, timesteps=3)
    assert not bare.spikes
    assert not bare.values
    assert not bare.final
    assert set(bare.counts) == {"n1", "n3", "n4", "n5", "n7"}
    assert set(bare.synops) == {"n2", "n6"}
    some = ENGINE.simulate(graph, X, timesteps=3, record=["n2", "n3"], final=True)
    assert set(some.spikes) == {"n3"}
    assert some.spikes["n3"].shape == (3, 4, 3, 3, 3)
    assert some.spikes["n3"].dtype == np.int8
    assert set(some.values) == {"n2"}
    assert set(some.final) == {"n3", "n7"}
    assert set(ENGINE.simulate(graph, X, timesteps=3, record="n3").spikes) == {"n3"}
    assert not ENGINE.simulate(graph, X, timesteps=3, record="spikes").values
    # Many spikes in a step do not fit a byte.
    many = ENGINE.simulate(graph, X * 2000, timesteps=3, record="n1").spikes["n1"]
    assert many.dtype == np.int32
    assert many.max() > 127
    with pytest.raises(InputError, match=r"there is no value .* to record"):
        ENGINE.simulate(graph, X, timesteps=3, record=["n2", "y", "n0"])


def test_progress_sees_every_batch() -> None:
    seen: list[tuple[list[int], str]] = []

    def progress(items: Iterable[int], what: str) -> Iterable[int]:
        seen.append((list(items), what))
        return seen[-1][0]

    ENGINE.simulate(small(Stage.SNN), X, timesteps=2, batch_size=3, progress=progress)
    assert seen == [([0, 3], "simulate")]


def test_refuses_what_cannot_run() -> None:
    graph = small(Stage.SNN)
    with pytest.raises(ValueError, match="stage folded has no time steps"):
        ENGINE.simulate(replace(graph, stage=Stage.FOLDED), X, timesteps=2)
    with pytest.raises(InputError, match="timesteps=0 is below 1"):
        ENGINE.simulate(graph, X, timesteps=0)
    with pytest.raises(InputError, match=r"shape \(N, 2, 5, 5\), got \(2, 5, 5\)"):
        ENGINE.simulate(graph, X[0], timesteps=2)
    with pytest.raises(InputError, match="hold 0 samples"):
        ENGINE.simulate(graph, X[:0], timesteps=2)


# --- as a network --------------------------------------------------------------------------------------------------


def collect(graph: Graph, xs: list[Array], dtype: torch.dtype) -> dict[str, Array]:
    values: dict[str, Array] = {}
    ENGINE.values(graph, xs, lambda name, value: values.update({name: value.copy()}), dtype)
    return values


@settings(max_examples=150)
@given(networks | spiking, st.integers(1, 3), seeds)
def test_values_equal_the_interpreters(graph: Graph, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    xs = [rng.standard_normal((n, *node.type.shape)) for node in graph.inputs]
    want = interp.run(graph, *xs)
    got = collect(graph, xs, torch.float64)
    assert list(got) == [node.name for node in graph.nodes]
    for name, value in want.items():
        assert_close(got[name], value, 1e-11)
    floors = (ops.Floor, ops.QuantRelu, loihi.SigmaDelta)
    if any(isinstance(node.op, floors) for node in graph.nodes):
        return  # float32 may fall on the other side of a step
    for name, value in collect(graph, xs, torch.float32).items():
        assert value.dtype == np.float32
        assert_close(value, want[name], 1e-5)


@settings(max_examples=30)
@given(networks, seeds)
def test_run_does_not_depend_on_the_split(graph: Graph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    xs = [rng.standard_normal((5, *node.type.shape)) for node in graph.inputs]
    whole, split = ENGINE.run(graph, *xs), TorchEngine(memory=1).run(graph, *xs)
    assert list(whole) == list(dict.fromkeys(graph.outputs))
    for name, value in whole.items():
        assert value.shape == (5, *graph[name].type.shape)
        np.testing.assert_allclose(split[name], value, rtol=1e-5, atol=1e-5)
    first = graph.nodes[0].name
    assert list(ENGINE.run(graph, *xs, record=[first])) == [first]


def test_the_stores_arrays_are_used_as_they_are() -> None:
    store = Store()
    param = store.put("w", np.ones((3, 4), np.float32))
    tensor = rules.Params(store, "cpu")(store[param], torch.float32)
    assert tensor.data_ptr() == store[param].ctypes.data
    backwards = store.put("w", np.arange(4.0)[::-1], copy=False)
    assert rules.Params(store, "cpu")(store[backwards], torch.float64).tolist() == [3, 2, 1, 0]


def test_every_operation_has_a_rule() -> None:
    assert rules.RULES.keys() == set(ops.OPS.values()) - {ops.Input}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from Linux's resource usage, in KiB")
def test_values_are_dropped_after_their_last_reader() -> None:
    # 40 values of 16 MiB each; three of them alive at a time, and what the interpreter itself takes.
    code = """
import resource, numpy as np
from snncc.engine import TorchEngine
from snncc.ir import Graph, Node, Type, ops
nodes = [Node("n0", ops.Input((2**22,)), (), Type((2**22,)))]
nodes += [Node(f"n{i}", ops.Relu(), (f"n{i - 1}",), nodes[0].type) for i in range(1, 40)]
graph, x = Graph(tuple(nodes), ("n39",)), np.zeros((1, 2**22), np.float32)
TorchEngine().values(Graph(graph.nodes[:2], ("n1",)), [x], lambda name, value: None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
TorchEngine().values(graph, [x], lambda name, value: None)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    # Else glibc keeps freed blocks of this size in its heap, as holes; more of them with torch 2.3.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert int(done.stdout) < 64
