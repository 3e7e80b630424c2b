"""place: the pass around the matching (which has its own tests)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from passes.build import Net, apply, codes, same

from snncc.ir import CompileError, Graph, Stage, VerifyError, ops
from snncc.passes.base import Context, run_pipeline
from snncc.passes.place import Group, Place


def net() -> Graph:
    n = Net(2, 4, 4, stage=Stage.INT)
    for name in ("a", "b", "c"):
        weight = n.param(np.ones((2, 2, 1, 1)), np.int8)
        n(ops.Conv2d(weight), name=f"{name}.conv", unit=1.0)
        n(ops.If(3), name=f"{name}.if")
    return n.graph()


@dataclass(frozen=True)
class Cores(Place):
    """A layer and its neuron to one core; ``legal``: a letter for each core that each layer fits."""

    legal: tuple[tuple[str, ...], ...] = (("core 0", "core 1"), ("core 0",), ("core 2", "core 1"))

    def groups(self, graph: Graph, context: Context) -> list[Group]:
        layers = [[n for n in graph.nodes if n.name.startswith(f"{letter}.")] for letter in "abc"]
        return [
            Group(nodes[0].name, tuple(n.name for n in nodes), legal, nodes[0].loc)
            for nodes, legal in zip(layers, self.legal, strict=True)
        ]


def test_every_node_of_a_group_gets_its_place() -> None:
    graph = net()
    after = apply(Cores(), graph)
    assert after.stage is Stage.MAPPED
    cores = {"x": "", "x.encode": "", "a": "core 1", "b": "core 0", "c": "core 2"}
    for node in after.nodes:
        assert node.place == cores[node.name if node.name in cores else node.name[0]]
        if node.place:
            assert node.loc.passes == ("place",)
        else:
            assert node is graph[node.name]
    expected = apply(Cores((("core 1",), ("core 0",), ("core 2",))), graph)
    same(after, expected)


def test_without_a_placement_the_layers_in_the_way_are_named() -> None:
    context = Context()
    with pytest.raises(VerifyError, match="no place is assigned"):
        Cores((("core 0",), ("core 0",), ("core 1", "core 2")))(net(), context)
    assert codes(context) == ["SNN060"]
    (found,) = context.diagnostics
    assert "`a.conv`, `b.conv`" in found.message
    assert "c.conv" not in found.message
    assert (found.limit, found.found) == (1, 2)
    assert [s.module for s in found.loc] == ["a.conv", "b.conv"]


def test_the_pipeline_raises_the_users_error() -> None:
    with pytest.raises(CompileError) as caught:
        run_pipeline([Cores(((), ("core 0",), ("core 1",)))], net(), Context())
    assert [d.code for d in caught.value.diagnostics] == ["SNN060"]
    assert "`a.conv` fits nowhere" in str(caught.value)
