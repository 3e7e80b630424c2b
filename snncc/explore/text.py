"""Two stages of a compile as text."""

from __future__ import annotations

from difflib import unified_diff

from snncc.ir import Graph, print_graph


def differences(before: Graph, after: Graph, locations: bool = True, context: int = 3) -> list[str]:
    """What a pass changed, as a unified diff of the two texts: lines that begin with ``-``, ``+`` or a space, under
    heads that begin with ``@@``. Empty where they are equal.

    Args:
        locations: whether lines have their source locations, which a pass that changes a node adds to.
        context: lines around each change.
    """
    old, new = (print_graph(graph, locations).splitlines() for graph in (before, after))
    return list(unified_diff(old, new, lineterm="", n=context))[2:]  # without the names of two files
