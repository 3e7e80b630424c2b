"""How two graphs differ, and by how much they may: the word of every pass, as numbers.

One bound serves all passes that are not exact. Let ``a`` be a value of the network before the pass and ``r`` the same
value after it (of spikes: the mean over T steps in real units). Every operation but a neuron is linear or does not
stretch differences (pooling, max), so

    |a' - r'| <= |W'| |a - r| + |W' - W| |a| + |b' - b|

with the weights W before and W' after. A neuron that subtracts its threshold keeps account of its charge: with the mean
input z, its mean output is r = z + h, h = (v_0 - v_T) / T, what it holds or overdrew at the end. To a ReLU's
a = max(z, 0) it differs by

    |max(r - h, 0) - r| = |h| if z >= 0, else r = max(z + h, 0)

whatever the order of the spikes: O(1/T) while potentials above zero stay bounded, for if z < 0, then r > 0 only by what
came in late.

A sigma-delta neuron differs from its activation by the rounding of its bias to a unit of its input, and of what it
sends to 2^shift of those: at most half of each, as half a message is added to the bias before the rest is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from snncc.ir import Graph, Node, ops
from snncc.ir.interp import Trace, real, run, simulate
from snncc.ir.loihi import Delta, Sigma, SigmaDelta, bias_of
from snncc.ir.types import Array, per_channel
from snncc.passes.base import Relation

# Parameters are stored as float32: relative rounding of the result of an exact pass, some operations deep.
ROUNDING = 1e-4
_HALF = 0.5 * (1 + 1e-6)


@dataclass(frozen=True)
class Difference:
    """Error and bound of every output value, (N, *shape)."""

    error: Array
    bound: Array

    @property
    def holds(self) -> bool:
        return bool((self.error <= self.bound).all())

    def __str__(self) -> str:
        return f"error {self.error.max():.3g}, bound {self.bound.max():.3g}"


def compare(before: Graph, after: Graph, relation: Relation, *xs: Array, timesteps: int = 16) -> list[Difference]:
    """Compare the outputs of two graphs on inputs (N, *shape) under a relation.

    EXACT and BOUNDED compare a spiking graph by its transfer function (every neuron a clipped ReLU); EXACT also demands
    the same spikes where both are spiking, and the network's outputs in every step where only ``after`` is. RATE
    compares the mean over ``timesteps`` of ``after`` to the network ``before``.

    Raises:
        ValueError: LOSSY, which claims nothing to compare.
    """
    if relation is Relation.LOSSY:
        raise ValueError("a lossy pass claims no bound")
    if relation is Relation.EXACT:
        pairs = [(run(before, *xs), run(after, *xs))]
        if before.stage.spiking and after.stage.spiking:
            pairs.append((_means(before, xs, timesteps), _means(after, xs, timesteps)))
        elif after.stage.spiking:
            steps = simulate(after, *xs, timesteps=timesteps).values
            pairs += [(pairs[0][0], {n: real(after, n, steps[n][t]) for n in after.outputs}) for t in range(timesteps)]
        return [
            Difference(np.abs(a[old] - b[new]), np.full(a[old].shape, ROUNDING * max(np.abs(a[old]).max(), 1.0)))
            for a, b in pairs
            for old, new in zip(before.outputs, after.outputs, strict=True)
        ]
    values = run(before, *xs)
    trace = simulate(after, *xs, timesteps=timesteps) if relation is Relation.RATE else None
    got = {n: trace.mean(n) for n in after.outputs} if trace else run(after, *xs)
    bounds = _bounds(before, after, values, trace, xs)
    return [
        Difference(np.abs(values[old] - got[new]), bounds[new] + ROUNDING * max(np.abs(values[old]).max(), 1.0))
        for old, new in zip(before.outputs, after.outputs, strict=True)
    ]


def _means(graph: Graph, xs: tuple[Array, ...], timesteps: int) -> dict[str, Array]:
    trace = simulate(graph, *xs, timesteps=timesteps)
    return {name: trace.mean(name) for name in graph.outputs}


def _bounds(
    before: Graph, after: Graph, values: dict[str, Array], trace: Trace | None, xs: tuple[Array, ...]
) -> dict[str, Array]:
    """The bound of every value of ``after``."""
    bound: dict[str, Array] = {}
    # What each value was before the pass: under its name, or, of a node that the pass put in, under its operand's.
    origin: dict[str, str] = {}
    for node in after.nodes:
        known = node.name in before.by_name
        origin[node.name] = node.name if known else origin[node.args[0]]
        x = [bound[arg] for arg in node.args]
        op = node.op
        if isinstance(op, ops.Input):
            bound[node.name] = np.zeros_like(values[origin[node.name]])
        elif isinstance(op, ops.Ones):
            bound[node.name] = np.zeros((len(x[0]), *node.type.shape))
        elif isinstance(op, ops.Encode):
            exact = values[origin[node.args[0]]]
            mean = (
                trace.mean(node.name) if trace else real(after, node.name, op.evaluate([exact], node.type, after.store))
            )
            if op.method == "constant" and node.type.integer:
                mean = np.rint(exact / op.unit) * op.unit
            bound[node.name] = np.abs(mean - exact)
        elif isinstance(op, ops.Weighted):
            was = before[node.name] if known else None
            bound[node.name] = _weighted(before, was, after, node, values[origin[node.args[0]]], x[0])
        elif isinstance(op, ops.If):
            gain = per_channel(op.gain, after.store, len(node.type.shape))
            if trace is None:
                bound[node.name] = x[0] * gain + _clip_change(before, after, node)
            else:
                start = op.start(len(x[0]), node.type, after.store)
                held = (start - trace.final[node.name]) / trace.timesteps
                if node.type.integer:
                    held = real(after, node.args[0], held)
                rate = trace.mean(node.name)
                # The float neuron rounds its input to its grid.
                grid = np.asarray(op.grid(node.type, after.store)) if not node.type.integer else 0.0
                bound[node.name] = (x[0] + grid) * gain + np.abs(np.maximum(rate - held * gain, 0.0) - rate)
        elif isinstance(op, ops.Lif):
            # A leak forgets: over time steps, nothing is claimed.
            bound[node.name] = _own_change(before, after, node, x[0]) if trace is None else np.full_like(x[0], np.inf)
        elif isinstance(op, Delta):
            bound[node.name] = x[0]
        elif isinstance(op, SigmaDelta | Sigma):
            bound[node.name] = x[0] + _sigma_delta_change(before, after, node)
        elif isinstance(op, ops.Pad):
            # Among integers, its value is rounded to a unit.
            wanted = before[node.name].op.value if known else op.value  # type: ignore[attr-defined]
            value = float(real(after, node.name, np.asarray(op.value))) if op.value else 0.0
            bound[node.name] = replace(op, value=abs(value - wanted)).evaluate(x, node.type, after.store)
        elif isinstance(op, ops.SumPool):
            scaled = replace(node.type, dtype="f64")  # bounds are real, so the sum takes its scale here, too
            bound[node.name] = op.evaluate(x, scaled, after.store)
        elif isinstance(op, ops.Activation):
            bound[node.name] = x[0]
        else:
            bound[node.name] = op.evaluate(x, node.type, after.store)
        old = before[node.name].op if known else None
        if isinstance(old, ops.QuantRelu):
            bound[node.name] = bound[node.name] + old.theta / old.levels  # its steps
    return bound


def real_weights(graph: Graph, node: Node) -> tuple[Array, Array]:
    """(weight, bias) of a weighted node in real numbers, float64; integer weights mean weight * unit_out / unit_in."""
    op = node.op
    assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
    weight = graph.value(op.weight).astype(np.float64)
    bias = np.zeros(len(weight)) if op.bias is None else graph.value(op.bias).astype(np.float64)
    if not node.type.integer:
        return weight, bias
    weight_step, bias_step = _steps(graph, node, weight)
    return weight * weight_step, bias * bias_step


def _steps(graph: Graph, node: Node, weight: Array) -> tuple[Array, Array]:
    """The real values of one step of an integer weight and of an integer bias; they broadcast over those."""
    store = graph.store
    unit_in, unit_out = graph[node.args[0]].type.unit, node.type.unit
    into = np.asarray(per_channel(unit_in, store, 1))
    if into.ndim and isinstance(node.op, ops.Weighted):
        into = ops.over_inputs(node.op, into)
    return np.asarray(per_channel(unit_out, store, weight.ndim)) / into, np.asarray(per_channel(unit_out, store, 1))


def _weighted(before: Graph, was: Node | None, after: Graph, node: Node, value: Array, bound: Array) -> Array:
    op = node.op
    assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
    weight, bias = real_weights(after, node)
    # A node that the pass put in scales by one.
    old_weight, old_bias = real_weights(before, was) if was is not None else (np.ones_like(weight), np.zeros_like(bias))
    changes = np.abs(weight - old_weight), np.abs(bias - old_bias)
    if node.type.integer and not (was is not None and was.type.integer):
        # What is off by more than half a step, or the last bit of an fp16 number, rounding does not explain.
        steps = zip(_steps(after, node, weight), (weight, bias), strict=True)
        halves = (np.maximum(_HALF * step, 2.0**-11 * np.abs(value)) for step, value in steps)
        changes = tuple(map(np.minimum, changes, halves))  # type: ignore[assignment]
    store = after.store
    through = replace(op, weight=store.put("abs", np.abs(weight)), bias=None)
    changed = replace(op, weight=store.put("abs", changes[0]), bias=store.put("abs", changes[1]))
    float_type = replace(node.type, dtype="f64")
    return through.evaluate([bound], float_type, store) + changed.evaluate([np.abs(value)], float_type, store)


def _clip_change(before: Graph, after: Graph, node: Node) -> Array | float:
    """How much the largest rate of a neuron changed, in real numbers: its unit is its threshold."""
    assert isinstance(node.op, ops.If)
    rank = len(node.type.shape)
    was = per_channel(before[node.name].type.unit, before.store, rank)
    change = np.abs(np.asarray(per_channel(node.type.unit, after.store, rank)) - was)
    if not node.type.integer or before[node.name].type.integer:
        return np.asarray(change)
    return _of_rounding(change, per_channel(node.op.gain, after.store, rank), after, node)


def _of_rounding(change: Array, gain: Array | float, after: Graph, node: Node) -> Array:
    """The part of a threshold's change that its rounding to a step explains; or all, where it was raised: of a few
    channels, or to one step. ``gain``: of the change, over the threshold's own."""
    assert isinstance(node.op, ops.If | ops.Lif)
    rank = len(node.type.shape)
    half = _HALF * per_channel(after[node.args[0]].type.unit, after.store, rank) * gain
    raised = (change > half).mean() <= 0.5 or np.max(per_channel(node.op.threshold, after.store, rank)) == 1
    return change if raised else np.minimum(change, half)


def _own_change(before: Graph, after: Graph, node: Node, x: Array) -> Array:
    """How much the rate of a network's own neuron changed, whose input is off by ``x``: both are in real numbers."""
    assert isinstance(node.op, ops.Lif)
    was = before[node.name].op
    assert isinstance(was, ops.Lif)
    rank = len(node.type.shape)
    thetas = (per_channel(op.threshold, g.store, rank) for op, g in ((was, before), (node.op, after)))
    units = (g[g[node.name].args[0]].type for g in (before, after))
    old, new = (
        np.asarray(theta * per_channel(type.unit, g.store, rank) if type.integer else theta)
        for theta, type, g in zip(thetas, units, (before, after), strict=True)
    )
    change = np.abs(new - old)
    if node.type.integer and not before[node.name].type.integer:
        change = _of_rounding(change, 1.0, after, node)
    return np.asarray((x + change) / np.minimum(old, new))


def _sigma_delta_change(before: Graph, after: Graph, node: Node) -> Array:
    """By how much the neuron may answer otherwise than before, in real numbers: broadcasts over (N, *shape)."""
    was = before[node.name]
    change = np.abs(_neuron_bias(after, node) - _neuron_bias(before, was))
    step = per_channel(after[node.args[0]].type.unit, after.store, len(node.type.shape))
    if node.type.integer and not was.type.integer:
        change = np.minimum(change, _HALF * step)  # more, rounding does not explain
    return np.asarray(change + _half_message(node) * step)


def _neuron_bias(graph: Graph, node: Node) -> Array:
    """The bias of a sigma-delta neuron in real numbers, without what rounds its messages."""
    assert isinstance(node.op, SigmaDelta | Sigma)
    step = per_channel(graph[node.args[0]].type.unit, graph.store, len(node.type.shape))
    return np.asarray((bias_of(node.op.bias, graph.store, node.type) - _half_message(node)) * step)


def _half_message(node: Node) -> int:
    """Half of what a message is worth, in units of the neuron's input; 0 if that is one."""
    return 2**node.op.shift // 2 if isinstance(node.op, SigmaDelta) else 0
