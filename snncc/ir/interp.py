"""The reference interpreter: every stage, in numpy, float64, one rule per operation. Slow and plain on purpose: it is
what everything else is measured against. Integers are exact, as they stay below 2**53 (checked)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from snncc.ir.diagnostics import input_error, wrong_value
from snncc.ir.encode import encode
from snncc.ir.graph import Graph
from snncc.ir.ops import Encode, Input, Stateful
from snncc.ir.types import Array, per_channel

EXACT = 2.0**53


def real(graph: Graph, name: str, value: Array) -> Array:
    """The real value of ``value``, an array (..., *shape) of the graph's value ``name``."""
    type = graph[name].type
    return value * per_channel(type.unit, graph.store, len(type.shape)) if type.integer else value


def counts(graph: Graph, name: str, value: Array) -> Array:
    """Spikes as whole numbers, whatever the stage: a float spike has the value of its unit."""
    type = graph[name].type
    return value if type.integer else np.rint(value / per_channel(type.unit, graph.store, len(type.shape)))


def check_input(graph: Graph, xs: Sequence[Array], timed: bool = False) -> list[Array]:
    """The inputs as float64 arrays, checked: (N, *shape) each, with one N; if ``timed``, those of the encoding "spikes"
    are (T, N, *shape)."""
    if len(xs) != len(graph.inputs):
        raise input_error("SNN005", f"the network has {len(graph.inputs)} inputs, got {len(xs)}")
    arrays = [np.asarray(x) for x in xs]
    samples = set()
    for node, x in zip(graph.inputs, arrays, strict=True):
        encoders = [user.op for user in graph.users[node.name]]
        axes = ("T", "N") if timed and any(isinstance(e, Encode) and e.method == "spikes" for e in encoders) else ("N",)
        if x.ndim != len(axes) + len(node.type.shape) or x.shape[len(axes) :] != node.type.shape:
            want = ", ".join(map(str, (*axes, *node.type.shape)))
            raise input_error("SNN005", f"input {node.name!r} must have shape ({want}), got {x.shape}")
        if not (np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_) or np.iscomplexobj(x):
            raise input_error("SNN074", f"input {node.name!r} holds {x.dtype}, not numbers")
        samples.add(x.shape[len(axes) - 1])
    if len(samples) > 1 or 0 in samples:
        raise input_error("SNN005", f"the inputs hold {' and '.join(map(str, sorted(samples)))} samples")
    return [x.astype(np.float64) for x in arrays]


def encoded(graph: Graph, xs: Sequence[Array], timesteps: int) -> dict[str, Array]:
    """What every ``encode`` of a spiking stage gives, by its name: (T, N, *shape), or (1, N, *shape) where it is the
    same in every step. Of all samples at once: random spikes must not depend on how a batch is split.

    Args:
        xs: the inputs, (N, *shape) each; of the encoding "spikes", counts (T, N, *shape).
    """
    feeds = dict(zip((n.name for n in graph.inputs), check_input(graph, xs, timed=True), strict=True))
    return {
        node.name: encode(op, feeds[node.args[0]], 1 if op.method == "constant" else timesteps, node.type.integer)
        for node in graph.nodes
        if isinstance(op := node.op, Encode)
    }


def run(graph: Graph, *xs: Array) -> dict[str, Array]:
    """Run ``graph`` as a network: of a spiking stage, every neuron by its transfer function (its rate as T grows).

    Args:
        xs: the inputs, (N, *shape) each.

    Returns:
        Every value in real numbers, (N, *shape), by name.
    """
    feeds = dict(zip((n.name for n in graph.inputs), check_input(graph, xs), strict=True))
    raw: dict[str, Array] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            raw[node.name] = feeds[node.name]
        else:
            raw[node.name] = node.op.evaluate([raw[arg] for arg in node.args], node.type, graph.store)
    return {name: real(graph, name, value) for name, value in raw.items()}


@dataclass
class Trace:
    """What happened over T steps: ``values[name]`` (T, N, *shape) as the stage holds them, ``final[name]`` the states
    (N, *shape) that neurons ended with."""

    graph: Graph
    timesteps: int
    values: dict[str, Array] = field(default_factory=dict)
    final: dict[str, Array] = field(default_factory=dict)

    def spikes(self, name: str) -> Array:
        """Whole numbers of spikes, (T, N, *shape)."""
        return counts(self.graph, name, self.values[name])

    def mean(self, name: str) -> Array:
        """The real value that the steps add up to, per step: (N, *shape)."""
        return real(self.graph, name, self.values[name].mean(axis=0))


def simulate(graph: Graph, *xs: Array, timesteps: int) -> Trace:
    """Run a spiking stage step by step.

    Args:
        xs: the inputs, (N, *shape) each; of the encoding "spikes", counts (T, N, *shape).
        timesteps: T.
    """
    if not graph.stage.spiking:
        raise ValueError(f"stage {graph.stage.value} has no time steps; use run")
    if timesteps < 1:
        raise wrong_value("timesteps", timesteps, "is below 1")
    feeds = encoded(graph, xs, timesteps)
    trace = Trace(graph, timesteps)
    rows: dict[str, list[Array]] = {n.name: [] for n in graph.nodes if not isinstance(n.op, Input)}
    n = next(iter(feeds.values())).shape[1] if feeds else 1
    for t in range(timesteps):
        now: dict[str, Array] = {}
        for node in graph.nodes:
            if isinstance(node.op, Input):
                continue
            if isinstance(node.op, Encode):
                x = feeds[node.name]
                y = x[t if len(x) > 1 else 0]
            elif isinstance(node.op, Stateful):
                if t == 0:
                    trace.final[node.name] = node.op.start(n, node.type, graph.store)
                state, y = node.op.step(trace.final[node.name], now[node.args[0]], node.type, graph.store)
                trace.final[node.name] = state
            else:
                y = node.op.evaluate([now[arg] for arg in node.args], node.type, graph.store)
            if node.type.integer and np.abs(y).max(initial=0.0) >= EXACT:
                raise OverflowError(f"%{node.name}: integers beyond 2**53")
            now[node.name] = y
            rows[node.name].append(y)
    trace.values = {name: np.stack(values) for name, values in rows.items()}
    return trace
