"""Random graphs of every stage, for hypothesis. Valid by construction: their types come from `infer`, and `verify`
passes them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from math import prod, sqrt
from typing import Any

import numpy as np
from hypothesis import strategies as st

from snncc.ir import Domain, Graph, Loc, Node, Param, PerChannel, Source, Stage, Store, Type, loihi, ops, verify
from snncc.ir.types import Array

Draw = Callable[[st.SearchStrategy[Any]], Any]
MOST = 700  # elements of a value; larger results are not added
STEPS = 16  # nothing refuses integers for being too large in so many steps of what `inputs` gives


class Draft:
    """A graph that grows node by node from drawn numbers."""

    def __init__(self, draw: Draw, stage: Stage, every: bool) -> None:
        self.draw, self.stage, self.store = draw, stage, Store()
        self.nodes: dict[str, Node] = {}
        self.largest: dict[str, float] = {}  # of integers: what no value exceeds in size
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.integer = stage in (Stage.INT, Stage.MAPPED)
        self.gains = every or self.integer

    def type(self, name: str) -> Type:
        return self.nodes[name].type

    def add(self, op: ops.Op, *args: str, unit: PerChannel | None = None) -> str | None:
        """The new node's name; None if the operation does not fit, or gives too much."""
        try:
            type = op.infer(tuple(self.type(arg) for arg in args), self.store)
        except ops.ShapeError:
            return None
        largest = self.bound(op, [self.largest[arg] for arg in args]) if self.integer else 0.0
        if type.size > MOST or largest > 2**45:
            return None
        type = type if unit is None else replace(type, unit=unit)
        name = f"{op.mnemonic}_{len(self.nodes)}"
        place = "core 0" if self.stage is Stage.MAPPED else ""
        self.nodes[name] = Node(name, op, args, type, place=place)
        self.largest[name] = largest
        return name

    def bound(self, op: ops.Op, largest: list[float]) -> float:
        """What no value of ``op``'s result exceeds in size, where none of its operands' exceeds ``largest``; infinite
        where it may be refused."""
        x, bias = max(largest, default=0.0), getattr(op, "bias", None)
        offset = 0.0 if bias is None else float(np.abs(self.store[bias]).max())
        if isinstance(op, ops.Encode):
            return 100.0
        if isinstance(op, ops.Weighted):
            weights = self.store[op.weight].reshape(op.weight.shape[0], -1).astype(np.float64)
            return x * float(np.abs(weights).sum(axis=1).max()) + offset
        if isinstance(op, ops.Add | ops.SumPool | ops.MaxPool | ops.Pad):
            times = {"add": 2, "sum_pool": 9, "max_pool": 2 * STEPS, "pad": 1}[op.mnemonic]
            return max(x * times, 2.0)
        if isinstance(op, loihi.LoihiNeuron | loihi.Delta):
            leaky = isinstance(op, loihi.CubaLif) and op.decay_u < loihi.UNITY  # a current may grow in every step
            if x >= loihi.STATE / 2 or (leaky and x * 2**loihi.SHIFT * STEPS >= loihi.SUM):
                return float("inf")
            sent = {"sigma_delta": 2 * (x * STEPS + offset) + 1, "sigma": x * STEPS + offset}
            return 2 * x * op.scale if isinstance(op, loihi.Delta) else sent.get(op.mnemonic, 1.0)
        return 1.0 if isinstance(op, ops.If | ops.Lif) else x

    def weight(self, *shape: int) -> Param:
        if self.integer:
            return self.store.put("weight", self.rng.integers(-128, 128, shape).astype(np.int8))
        scale = 1 / sqrt(prod(shape[1:], start=1))
        return self.store.put("weight", (self.rng.standard_normal(shape) * scale).astype(np.float32))

    def bias(self, channels: int) -> Param | None:
        if self.draw(st.booleans()):
            return None
        values = self.rng.standard_normal(channels)
        return self.store.put("bias", (values * 50).astype(np.int32) if self.integer else values.astype(np.float32))

    def unit(self, channels: int) -> PerChannel | None:
        """The unit of a linear operation's integers."""
        if not self.integer:
            return None
        per_channel = self.store.put("unit", self.rng.uniform(0.01, 1.0, channels))
        return self.draw(st.sampled_from([0.125, 0.3, 1.0, per_channel]))

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return (self.draw(st.integers(low, high)), self.draw(st.integers(low, high)))

    def amounts(self, n: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.draw(st.integers(low, high)) for _ in range(n))


# --- one function per operation: (draft, operand) -> name of the new value, or None -----------------------------------


def _reshape(d: Draft, x: str) -> str | None:
    shape = d.type(x).shape
    return d.add(ops.Reshape((shape[0], prod(shape[1:]))), x)


def _pad(d: Draft, x: str) -> str | None:
    n = len(d.type(x).shape)
    # Units of their own and negative amounts of channels exclude each other; infer refuses them then.
    before, after = d.amounts(n, -1, 2), d.amounts(n, -1, 2)
    mode = d.draw(st.sampled_from(sorted(ops.Pad.NUMPY_MODES)))
    value = d.draw(st.sampled_from([0.0, 1.0, -2.0])) if d.type(x).domain is not Domain.SPIKE else 0.0
    return d.add(ops.Pad(before, after, mode, value), x)


def _slice(d: Draft, x: str) -> str | None:
    shape = d.type(x).shape
    start = tuple(d.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(d.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    return d.add(ops.Slice(start, stop, d.amounts(len(shape), 1, 3)), x)


def _concat(d: Draft, x: str) -> str | None:
    others = [n for n in d.nodes if d.nodes[n].type.shape == d.type(x).shape and d.type(n).domain is not Domain.REAL]
    others = others if d.stage.spiking else [n for n in d.nodes if d.type(n).shape == d.type(x).shape]
    return d.add(ops.Concat(d.draw(st.integers(0, len(d.type(x).shape) - 1))), x, d.draw(st.sampled_from([x, *others])))


def _add(d: Draft, x: str) -> str | None:
    others = [n for n in d.nodes if not (d.stage.spiking and d.type(n).domain is Domain.REAL)]
    return d.add(ops.Add(), x, d.draw(st.sampled_from([x, *others])))


def _conv2d(d: Draft, x: str) -> str | None:
    shape = d.type(x).shape
    groups = d.draw(st.sampled_from([g for g in (1, 2, 3, 4) if shape[0] % g == 0]))
    out = groups * d.draw(st.integers(1, 3))
    op = ops.Conv2d(
        d.weight(out, shape[0] // groups, *d.pair(1, 3)),
        d.bias(out),
        d.pair(1, 3),
        (*d.pair(0, 2), *d.pair(0, 2)),
        d.pair(1, 2),
        groups,
    )
    return d.add(op, x, unit=d.unit(out))


def _linear(d: Draft, x: str) -> str | None:
    shape, out = d.type(x).shape, d.draw(st.integers(1, 5))
    channels = out if len(shape) == 1 else shape[0]
    return d.add(ops.Linear(d.weight(out, shape[-1]), d.bias(out)), x, unit=d.unit(channels))


def _affine(d: Draft, x: str) -> str | None:
    channels = d.type(x).shape[0]
    return d.add(ops.Affine(d.weight(channels), d.bias(channels)), x, unit=d.unit(channels))


def _batch_norm(d: Draft, x: str) -> str | None:
    c = d.type(x).shape[0]
    var = d.store.put("var", d.rng.uniform(0.5, 2.0, c).astype(np.float32))
    weight = d.draw(st.sampled_from([None, d.weight(c)]))
    return d.add(ops.BatchNorm(d.weight(c), var, weight, d.bias(c), d.draw(st.sampled_from([1e-5, 1e-3]))), x)


def _avg_pool(d: Draft, x: str) -> str | None:
    ceil_mode, count_include_pad = d.draw(st.booleans()), d.draw(st.booleans())
    divisor = d.draw(st.sampled_from([0, 0, 3]))
    return d.add(ops.AvgPool(d.pair(1, 3), d.pair(1, 3), d.pair(0, 1), ceil_mode, count_include_pad, divisor), x)


def _sum_pool(d: Draft, x: str) -> str | None:
    return d.add(ops.SumPool(d.pair(1, 3), d.pair(1, 3), d.draw(st.sampled_from([1.0, 0.25, 1 / 9]))), x)


def _max_pool(d: Draft, x: str) -> str | None:
    ceil, each_step = d.draw(st.booleans()), d.draw(st.booleans())
    op = ops.MaxPool(d.pair(1, 3), d.pair(1, 3), d.pair(0, 1), d.pair(1, 2), ceil, each_step)
    return d.add(op, x)


def _if(d: Draft, x: str) -> str | None:
    channels = d.type(x).shape[0]
    reset = d.draw(st.sampled_from(["subtract", "zero"]))
    if d.integer:
        thetas = d.store.put("threshold", d.rng.integers(1, 400, channels).astype(np.int32))
        threshold = d.draw(st.sampled_from([1, 100, thetas]))
        v0 = d.draw(st.sampled_from([0, 17, d.store.put("v0", d.rng.integers(-9, 99, channels).astype(np.int32))]))
        v_min = d.draw(st.sampled_from([None, 0, -100]))
    else:
        thetas = d.store.put("threshold", d.rng.uniform(0.05, 2.0, channels).astype(np.float32))
        threshold = d.draw(st.sampled_from([1.0, 0.7, 0.001, thetas]))
        v0 = d.draw(st.sampled_from([0.0, 0.35, d.store.put("v0", d.rng.uniform(-0.5, 0.5, channels))]))
        v_min = d.draw(st.sampled_from([None, 0.0, -0.3]))
    gains = [1.0, 1.25, d.store.put("gain", d.rng.uniform(0.9, 1.5, channels))]
    gain = d.draw(st.sampled_from(gains)) if d.gains else 1.0
    return d.add(ops.If(threshold, v0, reset, v_min, gain), x)


def _lif(d: Draft, x: str) -> str | None:
    channels = d.type(x).shape[0]
    if d.integer:
        thetas = d.store.put("threshold", d.rng.integers(1, 400, channels).astype(np.int32))
        threshold = d.draw(st.sampled_from([1, 100, thetas]))
    else:
        thetas = d.store.put("threshold", d.rng.uniform(0.05, 2.0, channels).astype(np.float32))
        threshold = d.draw(st.sampled_from([1.0, 0.7, thetas]))
    decay, reset = d.draw(st.sampled_from([1.0, 0.5, 0.9, 0.001])), d.draw(st.sampled_from(["subtract", "zero"]))
    return d.add(ops.Lif(threshold, decay, reset), x)


def _neuron_bias(d: Draft, x: str) -> Param | None:
    """Per channel or per neuron."""
    shape = d.type(x).shape
    chosen = d.draw(st.sampled_from([None, shape[:1], shape]))
    if chosen is None:
        return None
    values = d.rng.standard_normal(chosen)
    return d.store.put("bias", (values * 3000).astype(np.int32) if d.integer else values.astype(np.float32))


def _v0(d: Draft, x: str) -> PerChannel:
    per_channel = d.store.put("v0", d.rng.integers(-99, 999, d.type(x).shape[0]).astype(np.int32))
    return d.draw(st.sampled_from([0, 17, per_channel]))


def _cuba_lif(d: Draft, x: str) -> str | None:
    threshold = d.draw(st.sampled_from([0, 9, 300, 20_000]))
    decay_u, decay_v = (d.draw(st.sampled_from([usual, usual, 0, 1, 1300, 4095, 4096])) for usual in (4096, 0))
    op = loihi.CubaLif(threshold, _neuron_bias(d, x), decay_u, decay_v, _v0(d, x))
    return d.add(op, x, unit=d.unit(d.type(x).shape[0]))


def _atr_lif(d: Draft, x: str) -> str | None:
    op = loihi.AtrLif(d.draw(st.sampled_from([1, 50, 3000])), _neuron_bias(d, x), _v0(d, x))
    return d.add(op, x, unit=d.unit(d.type(x).shape[0]))


def _least(d: Draft) -> int:
    """The least change that is sent. Of floats, a last bit would decide which is."""
    return d.draw(st.sampled_from([0, 1, 20, 500])) if d.integer else 0


def _delta(d: Draft, x: str) -> str | None:
    return d.add(loihi.Delta(_least(d), d.draw(st.sampled_from([1, 2, 64])) if d.integer else 1), x)


def _sigma_delta(d: Draft, x: str) -> str | None:
    shift = d.draw(st.sampled_from([0, 1, 6])) if d.integer else 0
    activation = d.draw(st.sampled_from(["relu", "none"]))
    return d.add(loihi.SigmaDelta(_neuron_bias(d, x), _least(d), shift, activation), x)


def _sigma(d: Draft, x: str) -> str | None:
    return d.add(loihi.Sigma(_neuron_bias(d, x)), x)


def _delay(d: Draft, x: str) -> str | None:
    per_channel = d.store.put("steps", d.rng.integers(0, 5, d.type(x).shape[0]).astype(np.int32))
    return d.add(loihi.Delay(d.draw(st.sampled_from([0, 1, 3, per_channel]))), x)


def _activation(d: Draft, x: str) -> str | None:
    low, high = d.draw(st.sampled_from([(None, None), (0.0, 6.0), (-1.0, 1.0), (None, 0.5), (0.25, None)]))
    return d.add(d.draw(st.sampled_from([ops.Relu(), ops.Clamp(low, high), ops.QuantRelu(1.5, 4), ops.Floor()])), x)


def _through(d: Draft, x: str) -> str | None:
    return d.add(d.draw(st.sampled_from([ops.Identity(), ops.Dropout(0.1)])), x)


def _flatten(d: Draft, x: str) -> str | None:
    return d.add(ops.Flatten(), x)


def _adaptive(d: Draft, x: str) -> str | None:
    return d.add(ops.AdaptiveAvgPool(d.pair(1, 4)), x)


SHAPES = [_pad, _slice, _concat, _add]
SPATIAL = [_conv2d, _conv2d, _sum_pool, _max_pool]  # need (C, H, W)
AVERAGES = [_avg_pool, _adaptive]
ACTIVATIONS = [_activation, _activation]
SIGMA_DELTA = [_delta, _sigma_delta, _sigma]
LOIHI = [_cuba_lif, _cuba_lif, _atr_lif, _delay, *SIGMA_DELTA]
# Of each stage: what serves every shape, and what serves (C, H, W) besides.
MAKERS = {
    Stage.ANN: ([*ACTIVATIONS, _lif, _batch_norm, _affine, _linear, _through, *SHAPES], [*SPATIAL, *AVERAGES]),
    Stage.FOLDED: ([*ACTIVATIONS, _affine, _linear, *SHAPES], [*SPATIAL, *AVERAGES]),
    Stage.SNN: ([_if, _if, _lif, _affine, _linear, *SHAPES], [*SPATIAL, *AVERAGES]),
    Stage.INT: ([_if, _if, _lif, _affine, _linear, *SHAPES, *LOIHI], SPATIAL),
    Stage.MAPPED: ([_if, _if, _lif, _affine, _linear, *SHAPES, *LOIHI], SPATIAL),
}


@st.composite
def graphs(
    draw: Draw,
    stage: Stage,
    most: int = 10,
    methods: tuple[str, ...] = ops.Encode.METHODS,
    every: bool = False,
) -> Graph:
    """A graph of ``stage`` with up to ``most`` operations between its one or two inputs and its outputs; ``methods``:
    the encodings of a spiking one; ``every``: at the stage snn, too, with sigma-delta neurons among others, and with
    gains: what no pass makes."""
    d = Draft(draw, stage, every)
    method = draw(st.sampled_from(methods))
    image, small = (st.tuples(st.integers(1, 4), st.integers(n, 7), st.integers(n, 7)) for n in (3, 1))
    shape = draw(st.one_of(image, image, image, small, st.tuples(st.integers(1, 9))))
    heads = []
    for _ in range(draw(st.integers(1, 2))):
        head = d.add(ops.Input(shape))
        assert head is not None
        if stage.spiking:
            unit = draw(st.sampled_from([1.0, 0.3, 0.015625]))
            head = d.add(ops.Encode(method, unit, "i8" if d.integer else "f32", draw(st.integers(0, 9))), head)
            assert head is not None
        heads.append(head)
    x = heads[0]
    for _ in range(draw(st.integers(1, most))):
        anywhere, spatial = MAKERS[stage]
        anywhere = [*anywhere, *SIGMA_DELTA] if every and stage is Stage.SNN else anywhere
        flat = len(d.type(x).shape) < 3
        new = draw(st.sampled_from(anywhere if flat else [*spatial, *anywhere, _reshape, _flatten]))(d, x)
        # Mostly on from the last value, sometimes from an earlier one.
        values = [n for n in d.nodes if not (stage.spiking and isinstance(d.nodes[n].op, ops.Input))]
        x = new or x if draw(st.integers(0, 3)) else draw(st.sampled_from(values))
    outputs = (x,) if draw(st.booleans()) else (x, next(reversed(d.nodes)))
    graph = Graph(tuple(d.nodes.values()), outputs, stage, store=d.store)
    verify(graph)
    return graph


any_graph = st.sampled_from(list(Stage)).flatmap(lambda stage: graphs(stage, every=True))


def inputs(graph: Graph, n: int, timesteps: int, seed: int) -> list[Array]:
    """Arrays that ``graph`` takes: within what its encodings can express."""
    rng = np.random.default_rng(seed)
    arrays = []
    for node in graph.inputs:
        encoder = next((user.op for user in graph.users[node.name] if isinstance(user.op, ops.Encode)), None)
        x = rng.standard_normal((n, *node.type.shape))
        if encoder is not None and encoder.method == "spikes":
            x = rng.integers(0, 3, (timesteps, n, *node.type.shape)).astype(np.float64)
        elif encoder is not None and encoder.method != "constant":
            x = rng.random(x.shape) * encoder.unit * (2.5 if encoder.method == "rate" else 1.0)
        elif encoder is not None and encoder.dtype == "i8":
            x = rng.uniform(-100, 100, x.shape) * encoder.unit
        arrays.append(x)
    return arrays


# --- what only text must bear ----------------------------------------------------------------------------------------

hostile_text = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(categories=["Cs", "Cc", "Lo", "Po"]), max_size=6),  # lone surrogates among them
    st.sampled_from(
        ["", '"', "\\", '\\"', "\n", "// -----", '")', "loc(unknown)", "\\0A", "\u2028", "%x", "\0", "é\udc80"]
    ),
)
hostile_float = st.one_of(
    st.floats(allow_nan=False),
    st.sampled_from(
        [-0.0, 5e-324, -5e-324, 1e-05, 1e16, 1e22, float("inf"), float("-inf"), 1.7976931348623157e308, 0.1]
    ),
)
sources = st.builds(Source, hostile_text, hostile_text, st.integers(0, 2**31 - 1))
locs = st.builds(Loc, st.lists(sources, max_size=3).map(tuple), st.lists(hostile_text, max_size=3).map(tuple))
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,6}", fullmatch=True) | st.sampled_from(
    ["loc", "module", "func.return", "tensor", "x", "x.arg", "_", "_0", "e5", "f32", "true", "dense_resource"]
)
_FREE = {  # float attributes that no type depends on
    "input": ("low", "high"),
    "dropout": ("p",),
    "pad": ("value",),
    "batch_norm": ("eps",),
    "relu": ("threshold",),
    "clamp": ("low", "high", "threshold"),
    "quant_relu": ("theta", "shift"),
}


@st.composite
def hostile_graphs(draw: Draw, stage: Stage) -> Graph:
    """A graph of ``stage`` whose names, places, locations and numbers try the text form."""
    graph = draw(graphs(stage, most=5, every=True))
    fresh = draw(st.lists(names, min_size=len(graph.nodes), max_size=len(graph.nodes), unique=True))
    new = dict(zip((n.name for n in graph.nodes), fresh, strict=True))
    nodes = []
    for node in graph.nodes:
        op: ops.Op = node.op
        free = {} if node.type.integer else {f: draw(hostile_float) for f in _FREE.get(op.mnemonic, ())}
        place = draw(hostile_text.filter(bool)) if node.place else ""
        args = tuple(new[arg] for arg in node.args)
        nodes.append(Node(new[node.name], replace(op, **free), args, node.type, draw(locs), place))
    outputs = tuple(new[o] for o in graph.outputs)
    hostile = replace(graph, nodes=tuple(nodes), outputs=outputs, name=draw(hostile_text))
    verify(hostile)
    return hostile


any_hostile_graph = st.sampled_from(list(Stage)).flatmap(hostile_graphs)


def assert_same_bits(a: Graph, b: Graph) -> None:
    """Equality that tells -0.0 from 0.0 and 1 from 1.0 in the operations' attributes."""
    for left, right in zip(a.nodes, b.nodes, strict=True):
        for f in fields(left.op):
            assert repr(getattr(left.op, f.name)) == repr(getattr(right.op, f.name))
