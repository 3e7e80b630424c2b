"""What every value and every state of a graph lies between: the one analysis that proofs of overflow, exact dtypes and
limits of integers read. Each operation bounds its own result (:meth:`snncc.ir.ops.Op.bounds`), and a state its numbers
(:meth:`snncc.ir.ops.Stateful.states`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from snncc.ir.graph import Graph
from snncc.ir.ops import Stateful
from snncc.ir.types import Range


@dataclass(frozen=True)
class Ranges:
    """Of a graph over so many time steps; integers count units.

    Attributes:
        values: of every value, by name.
        states: of every operation with a state, one range for each number that it keeps of a neuron.
    """

    values: dict[str, Range] = field(default_factory=dict)
    states: dict[str, tuple[Range, ...]] = field(default_factory=dict)


def ranges(graph: Graph, timesteps: int, given: Mapping[str, Range] | None = None) -> Ranges:
    """Walk the graph once.

    Args:
        timesteps: T. Values are bounded in each step, states over all.
        given: ranges that are known better, by name: what was really encoded, where the inputs' own are those of the
            calibration data.

    Raises:
        NotImplementedError: an operation that states no bounds, by its name.
    """
    known, found = given or {}, Ranges()
    for node in graph.nodes:
        xs = [found.values[arg] for arg in node.args]
        value = known.get(node.name)
        found.values[node.name] = node.op.bounds(xs, node.type, graph.store, timesteps) if value is None else value
        if isinstance(node.op, Stateful):
            found.states[node.name] = node.op.states(xs, node.type, graph.store, timesteps)
    return found
