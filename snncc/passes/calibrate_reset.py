"""calibrate-reset: what a spike stands for where neurons reset to zero, measured on what really reaches them.

A reset to zero forgets what a potential has above its threshold. How much that is depends on how the input comes: a few
large spikes lose more than many small ones. So it is measured: the neurons are taken in order, each is run on the
spikes that the ones before it really send, and the value of its spike (threshold times gain) becomes the one with which
its mean output is nearest to the network's activation, by least squares per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, PerChannel, Severity, Stage, Type, ops
from snncc.ir.types import Array, Param
from snncc.passes.base import Context, Engine, Pass, Relation


@dataclass(frozen=True)
class CalibrateReset(Pass):
    """Set the gain of every neuron that resets to zero.

    Attributes:
        samples: how many samples of the calibration data are used.
    """

    samples: int = 64
    name: ClassVar[str] = "calibrate-reset"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.SNN,)
    relation: ClassVar[Relation] = Relation.LOSSY

    def run(self, graph: Graph, context: Context) -> Graph:
        """One simulation of every neuron, on its own input: the cost is that of simulating the network once."""
        neurons = [n for n in graph.nodes if isinstance(n.op, ops.If) and n.op.reset == "zero"]
        if not neurons or context.engine is None or not context.sample:
            return graph  # without data, lower-activations has said what is missing
        if any(isinstance(n.op, ops.Encode) and n.op.method == "spikes" for n in graph.nodes):
            text = (
                "calibration data has no time steps, so what resets to zero lose on ready-made spikes is not measured"
            )
            context.report(Diagnostic("SNN011", text, severity=Severity.NOTE))
            return graph
        xs = _first(context, self.samples)
        wanted = _activations(graph, context.engine, xs)
        counts: dict[str, Array] = {}  # spikes (T, N, *shape) of the neurons so far
        feeds = dict(zip((n.name for n in graph.inputs), xs, strict=True))
        nodes = {n.name: n for n in graph.nodes}
        current = graph
        for node in context.progress([n for n in graph.nodes if isinstance(n.op, ops.If)], "calibrate resets"):
            assert isinstance(node.op, ops.If)
            counts[node.name] = _fire(current, node, counts, feeds, context)
            if node.op.reset == "zero":
                gain = _gain(graph, node, wanted.pop(node.name), counts[node.name].mean(axis=0))
                nodes[node.name] = replace(node, op=replace(node.op, gain=gain))
            current = _inferred(replace(current, nodes=tuple(nodes.values())))
            for name in [n for n in counts if not _needed(graph, n, node.name)]:
                del counts[name]
        return current


def _first(context: Context, most: int) -> list[Array]:
    """The first samples of every input."""
    return [np.concatenate(parts)[:most] for parts in zip(*context.sample, strict=True)]


def _activations(graph: Graph, engine: Engine, xs: list[Array]) -> dict[str, Array]:
    """What the network's activations are, up to the calibrated thresholds: (N, *shape) by neuron."""
    found: dict[str, Array] = {}
    names = {n.name for n in graph.nodes if isinstance(n.op, ops.If)}
    engine.values(graph, xs, lambda name, y: found.update({name: y.copy()}) if name in names else None)
    return found


def _fire(graph: Graph, neuron: Node, counts: dict[str, Array], feeds: dict[str, Array], context: Context) -> Array:
    """The spikes (T, N, *shape) of ``neuron`` on what the neurons before it sent: it is simulated alone, with the
    layers in front of it."""
    part: dict[str, Node] = {}
    values: list[Array] = []

    def take(name: str) -> None:
        if name in part:
            return
        node = graph[name]
        if isinstance(node.op, ops.If):
            # What it sent, as input: counts, times what one of them stands for.
            shape, store = node.type.shape, graph.store
            raw, sent = f"{name}.raw", f"{name}.sent"
            part[raw] = Node(raw, ops.Input(shape), (), Type(shape))
            encode = ops.Encode("spikes")
            part[sent] = Node(sent, encode, (raw,), encode.infer((part[raw].type,), store))
            unit = store[node.type.unit] if isinstance(node.type.unit, Param) else np.full(shape[0], node.type.unit)
            scale = ops.Affine(store.put(f"{name}.unit", unit.astype(np.float64)))
            part[name] = Node(name, scale, (sent,), scale.infer((part[sent].type,), store))
            values.append(counts[name])
            return
        for arg in node.args:
            take(arg)
        if isinstance(node.op, ops.Input):
            values.append(feeds[name])
        part[name] = node

    for arg in neuron.args:
        take(arg)
    part[neuron.name] = neuron
    alone = _inferred(replace(graph, nodes=tuple(part.values()), outputs=(neuron.name,)))
    assert context.engine is not None
    return context.engine.spikes(alone, values, context.timesteps, neuron.name)


def _gain(graph: Graph, node: Node, wanted: Array, rate: Array) -> PerChannel:
    """The gain per channel with which ``rate * threshold * gain`` is nearest to the activation; 1 of silent ones."""
    assert isinstance(node.op, ops.If)
    theta, axes = node.op.threshold, (0, *range(2, wanted.ndim))
    over, under = (wanted * rate).sum(axis=axes, dtype=np.float64), (rate * rate).sum(axis=axes, dtype=np.float64)
    under *= graph.value(theta) if isinstance(theta, Param) else theta
    gain = np.divide(over, under, out=np.ones_like(over), where=(under > 0) & (over > 0))
    return graph.store.put(f"{node.name}.gain", gain)


def _inferred(graph: Graph) -> Graph:
    """The graph with the types that follow from its operations: units change with thresholds and gains."""
    types: dict[str, Type] = {}
    nodes = []
    for node in graph.nodes:
        types[node.name] = node.op.infer(tuple(types[arg] for arg in node.args), graph.store)
        nodes.append(replace(node, type=types[node.name]))
    return replace(graph, nodes=tuple(nodes))


def _needed(graph: Graph, name: str, done: str) -> bool:
    """Whether a neuron behind ``done`` still reads the spikes of ``name``, perhaps through pooling and the like."""
    order = {n.name: i for i, n in enumerate(graph.nodes)}

    def readers(name: str) -> Iterator[str]:
        for user in graph.users[name]:
            if isinstance(user.op, ops.If):
                yield user.name
            else:
                yield from readers(user.name)

    return any(order[reader] > order[done] for reader in readers(name))
