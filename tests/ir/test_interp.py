"""The reference interpreter, the encodings and the store. What the operations compute is held to torch's answers in
tests/engine/test_ops.py; nothing here imports torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import any_graph, graphs, inputs

from snncc.ir import Domain, Graph, InputError, Loc, Node, Source, Stage, Store, Type, interp, ops, verify
from snncc.ir.encode import encode
from snncc.ir.types import Array, MissingBytes

seeds = st.integers(0, 2**32 - 1)


def chain(stage: Stage, *steps: ops.Op) -> Graph:
    store = Store()
    nodes: list[Node] = []
    for i, op in enumerate(steps):
        args = nodes[-1:]
        nodes.append(Node(f"n{i}", op, tuple(n.name for n in args), op.infer(tuple(n.type for n in args), store)))
    graph = Graph(tuple(nodes), (nodes[-1].name,), stage, store=store)
    verify(graph)
    return graph


# --- neurons and maxima over time ----------------------------------------------------------------------------------


def fire(x: list[float], op: ops.If, grid: float) -> tuple[list[int], float]:
    """Integrate and fire, one neuron, in plain Python: (spikes, final potential)."""
    v, spikes = op.v0, []
    assert isinstance(v, float | int)
    assert isinstance(op.threshold, float | int)
    for current in x:
        v += round(current / grid) * grid
        spikes.append(int(v >= op.threshold))
        if spikes[-1]:
            v = v - op.threshold if op.reset == "subtract" else 0.0
        if op.v_min is not None and v < op.v_min:
            v = op.v_min
    return spikes, v


def leak(x: list[float], op: ops.Lif) -> tuple[list[int], float]:
    """Leaky integrate and fire, one neuron, an operation at a time: (spikes, final potential)."""
    f = np.float32
    v, spikes = f(0), []
    for current in x:
        v = f(v + f(current))
        spikes.append(int(v >= f(op.threshold)))  # type: ignore[arg-type]
        if spikes[-1]:
            v = f(v - f(op.threshold)) if op.reset == "subtract" else f(0)  # type: ignore[arg-type]
        v = f(v * f(op.decay))
    return spikes, float(v)


@settings(max_examples=100)
@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=12),
    st.builds(
        ops.Lif,
        st.sampled_from([1.0, 0.5, 0.7, 3.0]),
        st.sampled_from([1.0, 0.5, 0.9, 1e-3]),
        st.sampled_from(["subtract", "zero"]),
    ),
)
def test_leaky_integrate_and_fire(x: list[float], op: ops.Lif) -> None:
    state, spikes = op.start(1, Type((1,)), Store()), []
    for current in x:
        state, y = op.step(state, np.array([[current]]), Type((1,)), Store())
        spikes.append(int(y[0, 0]))
    assert (spikes, float(state[0, 0])) == leak(x, op)


def test_a_leak_by_hand() -> None:
    """Tau = 2, hard reset: 0.75 and half of it again reach 1; what is left of a spike is nothing."""
    graph = chain(Stage.SNN, ops.Input((1,)), ops.Encode(), ops.Lif(1.0, 0.5, "zero"))
    trace = interp.simulate(graph, np.array([[0.75], [0.5], [1.0]]), timesteps=4)
    assert trace.values["n2"][..., 0].T.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
    soft = chain(Stage.SNN, ops.Input((1,)), ops.Encode(), ops.Lif(1.0, 0.5, "subtract"))
    trace = interp.simulate(soft, np.array([[1.5]]), timesteps=3)
    assert trace.values["n2"][..., 0].T.tolist() == [[1, 1, 1]]
    assert float(trace.final["n2"][0, 0]) == 0.4375  # ((0.5 / 2 + 0.5) / 2 + 0.5) / 2


def test_leaky_thresholds_per_channel() -> None:
    """0.5 a step, halved after each: 0.5, 0.75, 0.875 and on below 1."""
    store = Store()
    theta = store.put("theta", np.array([0.5, 0.75, 1.0], np.float32))
    op = ops.Lif(theta, 0.5, "subtract")
    type = op.infer((Type((3, 2), "f32", Domain.CURRENT),), store)
    state, spikes = op.start(1, type, store), []
    for _ in range(3):
        state, y = op.step(state, np.full((1, 3, 2), 0.5), type, store)
        spikes.append(y[0, :, 1].tolist())
    assert spikes == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert state[0, :, 0].tolist() == [0.0, 0.25, 0.4375]
    assert op.evaluate([np.full((1, 3, 2), 0.6)], type, store)[0, :, 0].tolist() == [1.0, 0.6 / 0.75, 0.6]


def test_what_a_leaky_neurons_spike_is_worth() -> None:
    """One, whatever the threshold and the unit that its input counts; before there are spikes, nothing changes."""
    op = ops.Lif(3)
    assert op.infer((Type((2,), "i32", Domain.CURRENT, 0.25),), Store()) == Type((2,), "i32", Domain.SPIKE, 1.0)
    assert op.infer((Type((2,), "f32", Domain.CURRENT),), Store()) == Type((2,), "f32", Domain.SPIKE, 1.0)
    assert op.infer((Type((2,)),), Store()) == Type((2,))


def test_a_maximum_of_each_step() -> None:
    """Two neurons that fire in turn: one spike a step, and one in all that counts so far know."""
    x = np.zeros((4, 1, 1, 1, 2))
    x[::2, ..., 0], x[1::2, ..., 1] = 1, 1
    found = []
    for each_step in (True, False):
        pool = ops.MaxPool((1, 2), (1, 2), each_step=each_step)
        graph = chain(Stage.SNN, ops.Input((1, 1, 2)), ops.Encode("spikes"), pool)
        found.append(interp.simulate(graph, x, timesteps=4).values["n2"].flatten().tolist())
    assert found == [[1, 1, 1, 1], [1, 0, 1, 0]]


@settings(max_examples=100)
@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=12),
    st.builds(
        ops.If,
        st.sampled_from([1.0, 0.5, 0.7, 3.0]),
        st.sampled_from([0.0, 0.35, -0.2]),
        st.sampled_from(["subtract", "zero"]),
        st.sampled_from([None, 0.0, -0.5]),
    ),
)
def test_float_neuron(x: list[float], op: ops.If) -> None:
    type = op.infer((Type((1,), "f32", Domain.CURRENT),), Store())
    exponent = {1.0: 0, 0.5: -1, 0.7: -1, 3.0: 1}[float(str(op.threshold))]
    spikes, v = fire(x, op, 2.0 ** (exponent - 24))
    state, got = op.start(1, type, Store()), []
    for current in x:
        state, y = op.step(state, np.array([[current]]), type, Store())
        got.append(y.item())
    assert got == [spike * op.threshold for spike in spikes]  # a float spike has the value of the threshold
    assert state.item() == v


@settings(max_examples=100)
@given(
    st.lists(st.integers(-300, 300), min_size=1, max_size=12),
    st.builds(
        ops.If,
        st.integers(1, 200),
        st.integers(-20, 20),
        st.sampled_from(["subtract", "zero"]),
        st.sampled_from([None, 0, -50]),
    ),
)
def test_integer_neuron(x: list[int], op: ops.If) -> None:
    graph = chain(Stage.INT, ops.Input((1,)), ops.Encode("constant", 0.25, "i32"), op)
    assert graph["n2"].type.unit == 0.25 * float(str(op.threshold))
    spikes, v = fire([float(i) for i in x], op, 1.0)
    state, got = op.start(1, graph["n2"].type, graph.store), []
    for current in x:
        state, y = op.step(state, np.array([[float(current)]]), graph["n2"].type, graph.store)
        got.append(y.item())
    assert got == spikes
    assert state.item() == v


def test_thresholds_and_potentials_per_channel() -> None:
    store = Store()
    theta, v0 = store.put("theta", np.array([1.0, 2.0])), store.put("v0", np.array([0.5, 0.0]))
    op = ops.If(theta, v0)
    type = op.infer((Type((2, 3), "f32", Domain.CURRENT),), store)
    assert type.unit == theta
    state, y = op.step(op.start(4, type, store), np.full((4, 2, 3), 0.5), type, store)
    assert y[:, 0].tolist() == [[1.0] * 3] * 4
    assert y[:, 1].tolist() == [[0.0] * 3] * 4
    assert state[0, :, 0].tolist() == [0.0, 0.5]


def test_a_gain_is_what_a_spike_is_worth() -> None:
    store = Store()
    gain = store.put("gain", np.array([1.5, 2.0]))
    x = np.full((1, 2), 1.25)
    floats, integers = Type((2,), "f32", Domain.CURRENT), Type((2,), "i32", Domain.CURRENT, 0.25)
    for op in (ops.If(0.5, gain=gain), ops.If(0.5, reset="zero", gain=gain)):
        type = op.infer((floats,), store)
        assert store[type.unit].tolist() == [0.75, 1.0]  # type: ignore[index]
        state, y = op.step(op.start(1, type, store), x, type, store)
        assert y.tolist() == [[0.75, 1.0]]
        assert state.tolist() == [[0.75, 0.75]] if op.reset == "subtract" else [[0.0, 0.0]]  # without the gain
        assert op.evaluate([x], type, store).tolist() == [[0.75, 1.0]]
    op = ops.If(2, gain=1.5)
    type = op.infer((integers,), store)
    assert type.unit == 0.75
    assert op.step(op.start(1, type, store), x, type, store)[1].tolist() == [[0.0, 0.0]]
    assert op.step(op.start(1, type, store), 2 * x, type, store)[1].tolist() == [[1.0, 1.0]]


@given(seeds, st.sampled_from([1, 2, 7]))
def test_no_spike_hangs_on_the_order_of_summation(seed: int, scale: int) -> None:
    terms = np.random.default_rng(seed).standard_normal(9) / scale
    terms = np.append(terms, 1.0 - terms.sum())  # the threshold, but for the last bit
    op = ops.If(1.0)
    type = op.infer((Type((1,), "f32", Domain.CURRENT),), Store())
    for order in (terms, terms[::-1], np.sort(terms)):
        _, y = op.step(op.start(1, type, Store()), np.array([[sum(order)]]), type, Store())
        assert y.item() == 1.0


@settings(max_examples=50)
@given(seeds, st.integers(0, 1), st.booleans())
def test_the_maximum_over_time_is_that_of_the_counts_so_far(seed: int, padding: int, ceil_mode: bool) -> None:
    spikes = np.random.default_rng(seed).integers(0, 2, (6, 2, 3, 5, 5)).astype(np.float64)
    pool = ops.MaxPool((2, 2), (2, 2), (padding, padding), (1, 1), ceil_mode)
    graph = chain(Stage.INT, ops.Input((3, 5, 5)), ops.Encode("spikes", dtype="i8"), pool)
    sent = interp.simulate(graph, spikes, timesteps=6).values["n2"]
    for t in range(6):
        most = pool.evaluate([spikes[: t + 1].sum(axis=0)], graph["n2"].type, graph.store)
        np.testing.assert_array_equal(sent[: t + 1].sum(axis=0), most)


# --- graphs --------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(graphs(Stage.INT), seeds)
def test_shapes_keep_real_values_whatever_the_units(graph: Graph, seed: int) -> None:
    xs = inputs(graph, 2, 3, seed)
    trace = interp.simulate(graph, *xs, timesteps=3)
    shapes = (ops.Reshape, ops.Flatten, ops.Slice, ops.Concat, ops.Pad, ops.SumPool, ops.Add)
    for node in graph.nodes:
        if not isinstance(node.op, shapes) or (isinstance(node.op, ops.Pad) and node.op.value):
            continue
        real = [interp.real(graph, arg, trace.values[arg][0]) for arg in node.args]
        want = node.op.evaluate(real, replace(node.type, dtype="f32"), graph.store)
        np.testing.assert_allclose(interp.real(graph, node.name, trace.values[node.name][0]), want, atol=1e-9)


@settings(max_examples=50)
@given(any_graph)
def test_canonical_form_sees_what_is_done_and_not_how_it_is_called(graph: Graph) -> None:
    names = {node.name: f"renamed.{i}" for i, node in enumerate(graph.nodes)}
    nodes = tuple(
        replace(n, name=names[n.name], args=tuple(names[a] for a in n.args), loc=Loc((Source("m", "f", 1),), ("p",)))
        for n in graph.nodes
    )
    renamed = replace(graph, nodes=nodes, outputs=tuple(names[o] for o in graph.outputs), name="other")
    assert renamed != graph
    assert renamed.canonical() == graph.canonical()
    assert replace(graph, outputs=(*graph.outputs, graph.outputs[0])).canonical() != graph.canonical()
    first = graph.nodes[0]
    changed = replace(first, type=replace(first.type, dtype="f64"))
    assert replace(graph, nodes=(changed, *graph.nodes[1:])).canonical() != graph.canonical()


def test_canonical_form_sees_the_bytes() -> None:
    def network(name: str, value: float) -> Graph:
        store = Store()
        op = ops.Affine(store.put(name, np.full(2, value, np.float32)))
        return Graph((Node("y", op, ("y",), Type((2,))),), ("y",), store=store)

    assert network("a", 1.0).canonical() == network("b", 1.0).canonical()
    assert network("a", 1.0).canonical() != network("a", 2.0).canonical()


def test_neurons_reach_their_transfer_function() -> None:
    graph = chain(Stage.SNN, ops.Input((50,)), ops.Encode(), ops.If(0.7, 0.35))
    x = np.linspace(-1, 2, 50)[None]
    trace = interp.simulate(graph, x, timesteps=64)
    want = interp.run(graph, x)["n2"]
    np.testing.assert_array_equal(want, np.clip(x, 0, 0.7))
    assert np.abs(trace.mean("n2") - want).max() <= 0.7 / 64
    assert trace.spikes("n2").max() == 1
    assert trace.values["n1"].shape == (64, 1, 50)


def test_integers_count_units() -> None:
    graph = chain(Stage.INT, ops.Input((1, 2, 2)), ops.Encode("rate", 0.5, "i8"), ops.SumPool((2, 2), (2, 2), 0.25))
    x = np.full((1, 1, 2, 2), 0.5)
    trace = interp.simulate(graph, x, timesteps=4)
    assert trace.values["n2"].ravel().tolist() == [4.0] * 4
    assert graph["n2"].type.unit == 0.125
    assert trace.mean("n2").item() == 0.5 == interp.run(graph, x)["n2"].item()


@pytest.mark.parametrize(
    ("xs", "message"),
    [
        ((), "the network has 1 inputs, got 0"),
        ((np.ones((2, 2)), np.ones((2, 2))), "the network has 1 inputs, got 2"),
        ((np.ones(2),), r"input 'n0' must have shape \(N, 2\), got \(2,\)"),
        ((np.ones((1, 3)),), r"must have shape \(N, 2\), got \(1, 3\)"),
        ((np.ones((0, 2)),), "hold 0 samples"),
        ((np.ones((1, 2), complex),), "holds complex128, not numbers"),
        ((np.array([["a", "b"]]),), "holds <U1, not numbers"),
        ((np.array([[1.0, np.nan]]),), "not finite"),
    ],
)
def test_inputs_that_do_not_fit(xs: tuple[Array, ...], message: str) -> None:
    graph = chain(Stage.SNN, ops.Input((2,)), ops.Encode(), ops.If(1.0))
    with pytest.raises(InputError, match=message):
        interp.simulate(graph, *xs, timesteps=2)


def test_each_input_has_the_axes_of_its_own_encoding() -> None:
    two = [Node(name, ops.Input((2,)), (), Type((2,))) for name in ("a", "b")]
    encoders = [ops.Encode("spikes"), ops.Encode()]
    for op, x in zip(encoders, two[:2], strict=True):
        two.append(Node(f"e_{x.name}", op, (x.name,), op.infer((x.type,), Store())))
    two.append(Node("y", ops.Add(), ("e_a", "e_b"), Type((2,), "f32", Domain.CURRENT)))
    graph = Graph(tuple(two), ("y",), Stage.SNN)
    verify(graph)
    y = interp.simulate(graph, np.ones((4, 3, 2)), np.full((3, 2), 0.5), timesteps=4).values["y"]
    assert y.tolist() == np.full((4, 3, 2), 1.5).tolist()
    with pytest.raises(InputError, match="hold 2 and 3 samples"):
        interp.simulate(graph, np.ones((4, 3, 2)), np.ones((2, 2)), timesteps=4)
    with pytest.raises(InputError, match=r"input 'a' must have shape \(T, N, 2\)"):
        interp.simulate(graph, np.ones((3, 2)), np.ones((3, 2)), timesteps=4)


def test_what_cannot_be_simulated() -> None:
    graph = chain(Stage.FOLDED, ops.Input((1,)), ops.Relu())
    with pytest.raises(ValueError, match="stage folded has no time steps"):
        interp.simulate(graph, np.ones((1, 1)), timesteps=1)
    graph = chain(Stage.INT, ops.Input((1,)), ops.Encode("constant", 1.0, "i64"))
    with pytest.raises(InputError, match="timesteps=0 is below 1"):
        interp.simulate(graph, np.ones((1, 1)), timesteps=0)
    with pytest.raises(OverflowError, match=r"%n1: integers beyond 2\*\*53"):
        interp.simulate(graph, np.full((1, 1), 2.0**53), timesteps=1)


# --- encodings -----------------------------------------------------------------------------------------------------


@given(st.floats(0, 3), st.integers(1, 40), st.sampled_from([1.0, 0.3]))
def test_rate_is_evenly_spaced(x: float, timesteps: int, unit: float) -> None:
    counts = encode(ops.Encode("rate", unit), np.array([[x]]), timesteps, integer=True).ravel()
    rate = x / unit
    assert counts.sum() == np.floor(rate * timesteps + 0.5)
    running = np.cumsum(counts)
    assert np.all(np.abs(running - rate * np.arange(1, timesteps + 1)) <= 0.5 + 1e-9)
    assert set(counts) <= {np.floor(rate), np.ceil(rate)} | {np.rint(rate)}
    real = encode(ops.Encode("rate", unit), np.array([[x]]), timesteps, integer=False).ravel()
    np.testing.assert_array_equal(real, counts * unit)


def test_bernoulli_is_seeded() -> None:
    x = np.random.default_rng(0).random((3, 40)) * 0.5
    op = ops.Encode("bernoulli", 0.5, seed=7)
    counts = encode(op, x, 400, integer=True)
    assert set(np.unique(counts)) == {0.0, 1.0}
    np.testing.assert_array_equal(encode(op, x, 400, integer=True), counts)
    assert (encode(replace(op, seed=8), x, 400, integer=True) != counts).any()
    assert np.abs(counts.mean(axis=0) - x / 0.5).max() < 5 * 0.5 / np.sqrt(400)
    assert encode(op, np.array([[0.5]]), 9, integer=False).ravel().tolist() == [0.5] * 9


def test_constant_and_ready_made_spikes() -> None:
    x = np.array([[0.25, -1.3, 0.75]])
    assert encode(ops.Encode(unit=0.5), x, 2, integer=False).tolist() == [x.tolist()] * 2
    # Half way to even.
    assert encode(ops.Encode(unit=0.5), x, 2, integer=True).tolist() == [[[0.0, -3.0, 2.0]]] * 2
    spikes = np.array([[[0, 3]], [[1, 0]]])
    assert encode(ops.Encode("spikes", 0.5), spikes, 2, integer=True).tolist() == spikes.tolist()
    assert encode(ops.Encode("spikes", 0.5), spikes, 2, integer=False).tolist() == (spikes * 0.5).tolist()


@pytest.mark.parametrize(
    ("method", "x", "code", "message"),
    [
        ("constant", [[np.inf]], "SNN074", "not finite"),
        ("rate", [[0.5, -0.1]], "SNN012", "'rate' cannot express the negative input -0.1"),
        ("bernoulli", [[-1]], "SNN012", "negative input -1"),
        ("bernoulli", [[1.5]], "SNN012", "at most one spike a step; the input 1.5 is above 1"),
        ("spikes", [[[1]]], "SNN074", "spikes for 1 time steps, but 2 were asked for"),
        ("spikes", [[[1]], [[0.5]]], "SNN012", "whole numbers"),
        ("spikes", [[[1]], [[-1]]], "SNN012", "not negative"),
    ],
)
def test_what_an_encoding_cannot_express(method: str, x: list[object], code: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        encode(ops.Encode(method), np.array(x), 2, integer=True)
    assert error.value.diagnostics[0].code == code


# --- parameters ----------------------------------------------------------------------------------------------------


def test_a_digest_is_of_dtype_shape_and_bytes() -> None:
    store = Store()
    x = np.arange(6, dtype=np.int32)
    one = store.put("a", x)
    assert store.put("b", x).digest == one.digest
    assert store.put("a", x.astype(np.int64)).digest != one.digest
    assert store.put("a", x.view(np.float32)).digest != one.digest
    assert store.put("a", x.reshape(2, 3)).digest != one.digest
    assert store.put("a", x[::-1][::-1]).digest == one.digest
    assert store.put("a", x.reshape(2, 3).T).digest == store.put("a", x.reshape(2, 3).T.copy()).digest
    scalar = store.put("s", np.float32(3))
    assert scalar.shape == ()
    assert store[scalar].item() == 3
    assert store.put("e", np.zeros((0, 2))).size == 0
    assert (one.size, one.nbytes) == (6, 24)


def test_parameters_do_not_change() -> None:
    store = Store()
    mine = np.ones(3, np.float32)
    copied = store.put("copied", mine)
    mine[0] = 5
    assert store[copied].tolist() == [1, 1, 1]
    assert store.verify(copied)
    with pytest.raises(ValueError, match="read-only"):
        store[copied][0] = 2
    shared = store.put("shared", mine, copy=False)
    assert np.shares_memory(store[shared], mine)
    assert store.verify(shared)
    mine[1] = 7
    assert not store.verify(shared)


def test_what_a_store_does_not_take() -> None:
    store = Store()
    for bad in (np.ones(2, bool), np.ones(2, np.float16), np.array(["a"]), np.ones(2, ">f4")):
        with pytest.raises(TypeError, match=r"the IR holds f32, f64, i8"):
            store.put("bad", bad)
    assert store.put("1 bad/name", np.ones(1)).name == "_1_bad_name"
    missing = Store().put("w", np.zeros(1))
    assert missing not in store
    with pytest.raises(MissingBytes, match=r"the bytes of parameter 'w' .* are not here"):
        store[missing]


def test_the_ir_imports_no_torch() -> None:
    code = "import sys, snncc.ir, snncc.ir.interp; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
