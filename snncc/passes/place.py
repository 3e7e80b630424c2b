"""place: layers to cores. A bipartite matching, so a placement is found whenever one exists."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
from networkx.algorithms import bipartite

from snncc.ir import Diagnostic, Graph, Loc, Stage
from snncc.passes.base import Context, Pass, Relation


@dataclass(frozen=True)
class Group:
    """Nodes that go to one place together, and the places that can hold them."""

    name: str
    nodes: tuple[str, ...]
    places: tuple[str, ...]
    loc: Loc


@dataclass(frozen=True)
class Place(Pass):
    """Assign groups of nodes to places, one group to a place. A target says what its groups and places are."""

    name: ClassVar[str] = "place"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.INT,)
    ensures: ClassVar[Stage] = Stage.MAPPED
    relation: ClassVar[Relation] = Relation.EXACT

    @abstractmethod
    def groups(self, graph: Graph, context: Context) -> list[Group]:
        """The groups of ``graph``; every node but inputs and encodings belongs to one."""

    def run(self, graph: Graph, context: Context) -> Graph:
        """The graph with ``place`` set on every node of a group."""
        groups = self.groups(graph, context)
        places = place_groups(groups, context)
        if places is None:
            return graph
        where = {node: places[g.name] for g in groups for node in g.nodes}
        return replace(graph, nodes=tuple(replace(n, place=where.get(n.name, "")) for n in graph.nodes))


def place_groups(groups: Sequence[Group], context: Context) -> dict[str, str] | None:
    """The place of each group by its name, or None with a diagnostic that names the groups in each other's way."""
    places = match({g.name: g.places for g in groups})
    if isinstance(places, dict):
        return places
    stuck = [g for g in groups if g.name in places.items]
    names = ", ".join(f"`{g.name}`" for g in stuck)
    need = f"need one of {', '.join(places.places)}" if places.places else "fit nowhere"
    context.report(
        Diagnostic(
            "SNN060",
            f"no placement exists: {names} all {need}" if len(stuck) > 1 else f"no placement exists: {names} {need}",
            stuck[0].loc.merge(*(g.loc for g in stuck[1:])),
            hint="make one of these layers smaller, so that it fits somewhere else",
            limit=len(places.places),
            found=len(stuck),
            quantity="places",
        )
    )
    return None


@dataclass(frozen=True)
class Conflict:
    """Why no matching exists: ``items`` have only ``places`` between them, which are fewer (Hall's theorem)."""

    items: tuple[str, ...]
    places: tuple[str, ...]


def match(choices: Mapping[str, tuple[str, ...]]) -> dict[str, str] | Conflict:
    """One place for each item out of its choices, no place twice; or the smallest set of items found that is too many
    for its places. Maximum matching by Hopcroft and Karp (1973), networkx's."""
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    items = [("item", name) for name in choices]
    graph.add_nodes_from(items)
    for name, legal in choices.items():
        graph.add_edges_from((("item", name), ("place", p)) for p in legal)
    matching = bipartite.hopcroft_karp_matching(graph, items)
    unmatched = [item for item in items if item not in matching]
    if not unmatched:
        return {name: matching["item", name][1] for name in choices}

    def reach(start: tuple[str, str]) -> set[str]:
        """All items on alternating paths from an unmatched one: together they have one place too few."""
        found, todo = {start}, [start]
        while todo:
            for place in graph[todo.pop()]:
                owner = matching.get(place)
                if owner is not None and owner not in found:
                    found.add(owner)
                    todo.append(owner)
        return {name for _, name in found}

    stuck = min((reach(item) for item in unmatched), key=len)
    names = tuple(name for name in choices if name in stuck)
    places = {p for name in names for p in choices[name]}
    order = dict.fromkeys(p for name in choices for p in choices[name])
    return Conflict(names, tuple(p for p in order if p in places))
