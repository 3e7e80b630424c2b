"""calibrate-reset: thresholds, and what a spike stands for, of neurons that reset to zero.

A reset to zero forgets what a potential has above its threshold. How much that is depends on how the input comes: a few
large spikes at once lose more than the same charge spread over time. So it is measured. Neuron by neuron, each runs on
the spikes that those before it really send, and the value of its own (threshold times gain) becomes the one with which
its rate is nearest to the network's activation, by least squares per channel.

The threshold trades one error for another. A high one gives finer rates, but few and large spikes, of which the next
layer loses more; a low one clips, but fires more evenly. What counts depends on the depth of the network and on T, and
the error of each layer does not tell: so all thresholds get the one factor that is best for the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, PerChannel, Severity, Stage, ops
from snncc.ir.ops import times
from snncc.ir.types import Array, per_channel
from snncc.passes.base import Context, Engine, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild, units_fit

MEMORY = 2**30  # bytes for the network's activations


@dataclass(frozen=True)
class CalibrateReset(Pass):
    """Set threshold and gain of every neuron that resets to zero. It takes one float simulation of the samples per
    factor, whatever the depth.

    Attributes:
        factors: of the calibrated thresholds, to choose from; initial potentials, which follow them, get it, too.
        samples: how many samples of the calibration data to use; of a large network less, as :data:`MEMORY` allows.
    """

    factors: tuple[float, ...] = (0.5, 1.0, 1.4)
    samples: int = 64
    name: ClassVar[str] = "calibrate-reset"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.SNN,)
    relation: ClassVar[Relation] = Relation.LOSSY

    def run(self, graph: Graph, context: Context) -> Graph:
        neurons = {node.name: node.type.size for node in graph.nodes if _resets_to_zero(node)}
        if not neurons or context.engine is None or not context.sample:
            return graph  # without data, lower-activations has said what is missing
        if any(isinstance(n.op, ops.Encode) and n.op.method == "spikes" for n in graph.nodes):
            text = (
                "calibration data has no time steps, so what resets to zero lose on ready-made spikes is not measured"
            )
            context.report(Diagnostic("SNN011", text, severity=Severity.NOTE))
            return graph
        xs = spread(context.sample, min(self.samples, MEMORY // (4 * sum(neurons.values()))))
        wanted: dict[str, Array] = {}
        names = neurons.keys() | set(graph.outputs)
        context.engine.values(graph, xs, lambda name, y: wanted.update({name: y}) if name in names else None)
        tried = []
        for factor in context.progress(self.factors, "calibrate resets"):
            gains, error = _fit(_changed(graph, factor, {}, context), xs, wanted, context.engine, context.timesteps)
            tried.append((error, factor, gains))
        _, factor, gains = min(tried, key=lambda result: result[0])
        return _changed(graph, factor, gains, context)


def _resets_to_zero(node: Node) -> bool:
    return isinstance(node.op, ops.If) and node.op.reset == "zero"


def spread(batches: Sequence[tuple[Array, ...]], most: int) -> list[Array]:
    """At most so many samples of every input, at least one; from everywhere, as data is often sorted by class."""
    whole = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    n = max(1, min(len(whole[0]), most))
    return [x[np.arange(n) * len(x) // n] for x in whole]


def _changed(graph: Graph, factor: float, gains: Mapping[str, PerChannel], context: Context) -> Graph:
    """The graph with the thresholds of all neurons that reset to zero times ``factor``, and with these gains."""

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str:
        op = node.op
        if isinstance(op, ops.If) and op.reset == "zero":
            theta, v0 = (times(value, factor, builder.store) for value in (op.threshold, op.v0))
            op = replace(op, threshold=theta, v0=v0, gain=gains.get(node.name, 1.0))
        with units_fit(node, context):
            return builder.copy(node, args, op)

    return rebuild(graph, visit)


def _fit(
    graph: Graph, xs: list[Array], wanted: dict[str, Array], engine: Engine, timesteps: int
) -> tuple[dict[str, PerChannel], float]:
    """The gains by neuron, and the relative squared error of the outputs with them."""
    gains: dict[str, PerChannel] = {}

    def worth(name: str, rate: Array) -> Array:
        node, store = graph[name], graph.store
        unit = np.asarray(per_channel(node.type.unit, store, len(node.type.shape)))  # the threshold: no gain is in yet
        if not _resets_to_zero(node):
            return unit.reshape(-1)
        gain = _gain(wanted[name], rate * unit, per_layer=unit.ndim == 0)
        gains[name] = float(gain[0]) if unit.ndim == 0 else store.put(f"{name}.gain", gain)
        return unit.reshape(-1) * gain

    outputs = engine.adapt(graph, xs, timesteps, worth)
    pairs = [(y, wanted[name]) for name, y in zip(graph.outputs, outputs, strict=True)]
    return gains, sum(float(((y - a) ** 2).sum() / max((a**2).sum(), 1e-30)) for y, a in pairs)


def _gain(wanted: Array, got: Array, per_layer: bool) -> Array:
    """The factor of ``got`` (N, C, ...) that leaves the least squared error to ``wanted``: (C,), or (1,) per layer.
    Silent channels get the layer's."""
    axes = (0, *range(2, got.ndim))
    over, under = (wanted * got).sum(axis=axes), (got * got).sum(axis=axes)
    layer = over.sum() / under.sum() if over.any() else 1.0
    return np.asarray([layer]) if per_layer else np.divide(over, under, out=np.full_like(over, layer), where=over > 0)
