"""The graph: immutable nodes in topological order, one per value, at a stage of the compile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from typing import Any

import networkx as nx

from snncc.ir.ops import Encode, Input, Op
from snncc.ir.types import IDENTIFIER, Array, Loc, Param, Store, Type


class Stage(str, Enum):
    """The stages of a compile, in order. Their rules are in :mod:`snncc.ir.verify`."""

    ANN = "ann"
    FOLDED = "folded"
    SNN = "snn"
    INT = "int"
    MAPPED = "mapped"

    @property
    def spiking(self) -> bool:
        """Whether a graph at this stage runs over time steps."""
        return self in (Stage.SNN, Stage.INT, Stage.MAPPED)


@dataclass(frozen=True)
class Node:
    """One operation and its result. ``place``: where it runs on the chip, from the stage ``mapped`` on."""

    name: str
    op: Op
    args: tuple[str, ...]
    type: Type
    loc: Loc = Loc()
    place: str = ""

    def __post_init__(self) -> None:
        if not IDENTIFIER.match(self.name):
            raise ValueError(f"node name {self.name!r} is no identifier; see snncc.ir.types.identifier")


@dataclass(frozen=True)
class Graph:
    """A network. ``nodes`` are in topological order, inputs among them; ``outputs`` name nodes.

    ``store`` has the parameters' bytes; it is shared between stages and takes no part in comparison.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    stage: Stage = Stage.ANN
    name: str = "main"
    store: Store = field(default_factory=Store, compare=False, repr=False)

    def __repr__(self) -> str:
        """One line; :func:`snncc.ir.print_graph` gives all of it."""
        return f"<graph {self.name!r}: stage {self.stage.value}, {len(self.nodes)} nodes>"

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if isinstance(node.op, Input))

    @cached_property
    def users(self) -> dict[str, tuple[Node, ...]]:
        """The nodes that read each value (a node once, however often it reads)."""
        users: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for arg in dict.fromkeys(node.args):
                users[arg].append(node)
        return {name: tuple(nodes) for name, nodes in users.items()}

    def producers(self, node: Node) -> tuple[Node, ...]:
        return tuple(self.by_name[arg] for arg in node.args)

    def arg_types(self, node: Node) -> tuple[Type, ...]:
        return tuple(self.by_name[arg].type for arg in node.args)

    def params(self) -> Iterator[Param]:
        """Every parameter that the graph refers to, once."""
        seen: set[Param] = set()
        for node in self.nodes:
            unit = (node.type.unit,) if isinstance(node.type.unit, Param) else ()
            for param in (*(p for _, p in node.op.params()), *unit):
                if param not in seen:
                    seen.add(param)
                    yield param

    def value(self, param: Param) -> Array:
        return self.store[param]

    def to_networkx(self) -> nx.DiGraph[str]:
        """Values as nodes (attribute ``node``), an edge from each operand to its reader."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.name, node=node)
            graph.add_edges_from((arg, node.name) for arg in node.args)
        return graph

    def live(self) -> Graph:
        """Without nodes that no output needs; inputs and their encodings stay, since they are the user's signature."""
        needed = {*self.outputs, *(node.name for node in self.nodes if isinstance(node.op, Input | Encode))}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.args)
        return replace(self, nodes=tuple(node for node in self.nodes if node.name in needed))

    def canonical(self) -> tuple[Any, ...]:
        """What two graphs that do the same share: structure, attributes, types and bytes, without names or places
        in the user's source. Compare it for structural equality."""
        index = {node.name: i for i, node in enumerate(self.nodes)}

        def plain(value: Any) -> Any:
            return (value.shape, value.dtype, value.digest) if isinstance(value, Param) else value

        return (
            self.stage,
            tuple(
                (
                    node.op.mnemonic,
                    tuple((f.name, plain(getattr(node.op, f.name))) for f in fields(node.op)),
                    tuple(index[arg] for arg in node.args),
                    (node.type.shape, node.type.dtype, node.type.domain, plain(node.type.unit)),
                    node.place,
                )
                for node in self.nodes
            ),
            tuple(index[name] for name in self.outputs),
        )
