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
        return replace(
            graph, nodes=tuple(replace(n, place=where[n.name]) if n.name in where else n for n in graph.nodes)
        )


def place_groups(groups: Sequence[Group], context: Context) -> dict[str, str] | None:
    """The place of each group by its name, or None with a diagnostic for each set of groups in each other's way."""
    left = list(groups)
    while not isinstance(places := match({g.name: g.places for g in left}), dict):
        stuck = [g for g in left if g.name in places.items]
        names = ", ".join(f"`{g.name}`" for g in stuck)
        need = f"all need one of {', '.join(places.places)}" if len(stuck) > 1 else "fits nowhere"
        context.report(
            Diagnostic(
                "SNN060",
                f"no placement exists: {names} {need}",
                stuck[0].loc.merge(*(g.loc for g in stuck[1:])),
                hint="make one of these layers smaller, so that it fits somewhere else",
                limit=len(places.places),
                found=len(stuck),
                quantity="places",
            )
        )
        left = [g for g in left if g not in stuck]
    return places if len(left) == len(groups) else None


@dataclass(frozen=True)
class Conflict:
    """Why no matching exists: ``items`` have only ``places`` between them, which are fewer."""

    items: tuple[str, ...]
    places: tuple[str, ...]


def match(choices: Mapping[str, Sequence[str]]) -> dict[str, str] | Conflict:
    """One place for each item out of its choices, no place twice; or a set of items that is too many for its places.

    Of all matchings the first in order: the first item gets its first choice that leaves room for the others, and so
    on. Maximum matching by Hopcroft and Karp (1973), networkx's.
    """
    names = list(choices)
    places = list(dict.fromkeys(p for legal in choices.values() for p in legal))
    # Whole numbers as nodes: the order of strings in a set changes from run to run. Items are negative.
    legal = {-1 - i: [places.index(p) for p in choices[name]] for i, name in enumerate(names)}
    matching = _maximum(legal)
    free = [item for item in legal if item not in matching]
    if free:
        stuck = min((_reach(legal, matching, item) for item in free), key=len)
        reachable = {p for item in stuck for p in legal[item]}
        return Conflict(
            tuple(name for i, name in enumerate(names) if -1 - i in stuck),
            tuple(place for i, place in enumerate(places) if i in reachable),
        )
    for item, wanted in legal.items():
        for place in wanted:
            fixed = {**legal, item: [place]}
            if len(_maximum(fixed)) == 2 * len(fixed):
                legal = fixed
                break
    return {name: places[legal[-1 - i][0]] for i, name in enumerate(names)}


def _maximum(legal: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """A maximum matching, in both directions."""
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(legal)
    graph.add_edges_from((item, place) for item, wanted in legal.items() for place in wanted)
    return dict(bipartite.hopcroft_karp_matching(graph, list(legal)))


def _reach(legal: Mapping[int, Sequence[int]], matching: Mapping[int, int], start: int) -> set[int]:
    """All items on alternating paths from an unmatched one: together they have one place too few (Hall's theorem)."""
    found, todo = {start}, [start]
    while todo:
        for place in legal[todo.pop()]:
            owner = matching[place]  # every place that is reached is taken, or the matching were not maximum
            if owner not in found:
                found.add(owner)
                todo.append(owner)
    return found
