"""Exports for other viewers: every node and every edge of the graph is in them, and no others; and any name is text."""

from __future__ import annotations

import json
import re
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from strategies import any_graph, any_hostile_graph, hostile_text
from torch import nn
from zoo import ZOO, build, example_input

import snncc
from snncc.explore.export import LIGHT, export, graphviz, model_explorer, write
from snncc.ir import Diagnostic, Domain, Graph, InputError, Node, Severity, Source, Type, ops, parse, print_graph
from snncc.ir.graph import Stage
from snncc.ir.ops import OPS
from snncc.ir.types import Loc
from snncc.passes.base import StageRecord

LONG = "x" * 10_000
NAMES = ["</script><b>&amp;", "quotes\"'`", "back\\slash\\N\\", "new\nline\r\t\0", "\u202eright to left", "עברית", LONG]
needs_dot = pytest.mark.browser  # where Graphviz is, too


@lru_cache
def stages(name: str) -> tuple[StageRecord, ...]:
    x = example_input(ZOO[name].input_shape, 8, seed=1).numpy()
    return snncc.compile(build(name), calibration=x, timesteps=4).records


def record(graph: Graph, label: str = "trace") -> StageRecord:
    return StageRecord(label, graph, 0.5, True)


def edges(graph: Graph) -> Counter[tuple[str, str]]:
    return Counter((arg, node.name) for node in graph.nodes for arg in node.args)


def relu(name: str = "y", place: str = "", network: str = "main", loc: Loc = Loc()) -> Graph:
    """The smallest network: input and ReLU."""
    x = Node("x", ops.Input((2, 3)), (), Type((2, 3)))
    return Graph((x, Node(name, ops.Relu(), ("x",), x.type, loc, place)), (name,), Stage.MAPPED, network)


@lru_cache
def hostile() -> tuple[StageRecord, ...]:
    """A network whose modules have the worst names."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in NAMES:
        block = nn.Sequential(nn.Linear(4, 4))
        block.add_module(f"{name}_relu", nn.ReLU())
        model.add_module(name, block)
    return snncc.compile(model, calibration=np.ones((4, 4), np.float32), bias="keep").records


# --- DOT, read strictly ----------------------------------------------------------------------------------------------


@dataclass
class Drawing:
    """What DOT text says."""

    name: str = ""
    nodes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    modules: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of nodes: the labels of their clusters
    clusters: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    edges: list[tuple[str, str, dict[str, list[str]]]] = field(default_factory=list)


TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<word>[A-Za-z_]\w*|\d+)|(?P<mark>->|[{}\[\],;=+]))')


class Reader:
    """A reader of the DOT that is written here, and of no other: what Graphviz would guess at is refused. Strings are
    given as their lines."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            assert match, text[at : at + 60]
            assert len(match.group().encode()) < 16_000  # Graphviz reads no longer strings
            self.tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            at = match.end()
        self.tokens.reverse()

    def take(self, *wanted: str) -> str:
        _, token = self.tokens.pop()
        assert not wanted or token in wanted, (token, wanted)
        return token

    def next(self, token: str) -> bool:
        if self.tokens[-1][1] == token:
            self.tokens.pop()
            return True
        return False

    def string(self) -> list[str]:
        text = ""
        while True:
            kind, token = self.tokens.pop()
            assert kind == "string", token
            text += token[1:-1]
            if not self.next("+"):
                break
        assert re.fullmatch(r'(?:[^\\]|\\[\\n"])*', text), text  # no other escape: \N would be the node's name
        assert not re.search(r"&(?!amp;)", text), text
        plain = re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)
        return plain.replace("&amp;", "&").split("\n")

    def attributes(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        self.take("[")
        while True:
            kind, name = self.tokens.pop()
            assert kind == "word"
            assert name not in found
            self.take("=")
            found[name] = [self.take()] if self.tokens[-1][0] == "word" else self.string()
            if self.take(",", "]") == "]":
                return found

    def drawing(self) -> Drawing:
        drawing = Drawing()
        self.take("digraph")
        (drawing.name,) = self.string()
        self.take("{")
        self.body(drawing, ())
        assert self.tokens == []
        return drawing

    def body(self, drawing: Drawing, inside: tuple[str, ...]) -> None:
        while not self.next("}"):
            if self.tokens[-1][1] in ("graph", "node", "edge"):
                kind, found = self.take(), self.attributes()
                self.take(";")
                if kind == "graph" and inside:
                    assert drawing.clusters.setdefault("/".join(inside), found) == found
            elif self.next("subgraph"):
                (name,) = self.string()
                assert name.startswith("cluster_")
                self.take("{")
                path = tuple(name.removeprefix("cluster_").split("/"))
                assert path[:-1] == inside
                self.body(drawing, path)
            else:
                (name,) = self.string()
                if self.next("->"):
                    (reader,) = self.string()
                    found = {} if self.tokens[-1][1] == ";" else self.attributes()
                    drawing.edges.append((name, reader, found))
                else:
                    assert name not in drawing.nodes
                    drawing.nodes[name], drawing.modules[name] = self.attributes(), inside
                self.take(";")


def read(text: str) -> Drawing:
    text.encode()  # no lone surrogates
    assert all(c.isprintable() or c == "\n" for c in text)
    return Reader(text).drawing()


# --- structure -------------------------------------------------------------------------------------------------------


def assert_drawn(graph: Graph) -> Drawing:
    drawing = read(graphviz(graph))
    assert list(drawing.nodes) == [node.name for node in graph.nodes]
    assert Counter((a, b) for a, b, _ in drawing.edges) == edges(graph)
    for node in graph.nodes:
        found, inside = drawing.nodes[node.name], drawing.modules[node.name]
        op, name, shape = found["label"]
        assert op == node.op.mnemonic
        assert node.name == ".".join((*inside, name)) or "…" in name or ".." in node.name
        assert shape == "x".join([*map(str, node.type.shape), node.type.dtype])
        assert found["fillcolor"] == [LIGHT[node.type.domain]]
        ends = node in graph.inputs or node.name in graph.outputs
        assert found["penwidth"] == ["2" if ends else "1"]
        assert found["tooltip"][0] == f"{node.op.mnemonic} {node.name}"
        assert f"result domain: {node.type.domain.value}" in found["tooltip"]
    for a, b, found in drawing.edges:
        changes = graph[a].type.shape != graph[b].type.shape
        shape = "x".join([*map(str, graph[a].type.shape), graph[a].type.dtype])
        assert found == ({"label": [" " + shape]} if changes else {})
    return drawing


def pairs(items: list[dict[str, str]]) -> dict[str, str]:
    found = {item["key"]: item["value"] for item in items}
    assert len(found) == len(items)
    assert all(set(item) == {"key", "value"} and isinstance(item["value"], str) for item in items)
    return found


def assert_explored(records: tuple[StageRecord, ...]) -> dict[str, Any]:
    data = model_explorer(records)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == {"label", "graphs", "graphSorting"}
    ids = [graph["id"] for graph in data["graphs"]]
    assert ids == sorted(set(ids))
    for found, here in zip(data["graphs"], records, strict=True):
        graph = here.graph
        assert set(found) == {"id", "nodes", "groupNodeAttributes"}
        assert [node["id"] for node in found["nodes"]] == [node.name for node in graph.nodes]
        layers = {""}
        for said, node in zip(found["nodes"], graph.nodes, strict=True):
            assert said["label"] == node.op.mnemonic
            assert said["incomingEdges"] == [
                {"sourceNodeId": arg, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
                for i, arg in enumerate(node.args)
            ]
            tags = [(item["id"], pairs(item["attrs"])) for item in said["inputsMetadata"]]
            assert tags == [(str(i), {"__tensor_tag": arg}) for i, arg in enumerate(node.args)]
            (output,) = said["outputsMetadata"]
            assert output["id"] == "0"
            about = pairs(output["attrs"])
            assert (about["__tensor_tag"], about["domain"]) == (node.name, node.type.domain.value)
            shape = "x".join([*map(str, node.type.shape), node.type.dtype])
            assert about["tensor_shape"] == f"tensor<{shape}>"
            attributes = pairs(said["attrs"])
            assert attributes["result type"] == shape
            assert set(attributes) >= {f.name for f in fields(node.op) if getattr(node.op, f.name) is not None}
            assert attributes.get("chip place", "") == node.place
            assert ("network output" in attributes) == (node.name in graph.outputs)
            parts = said["namespace"].split("/") if said["namespace"] else []
            assert all(parts)
            layers |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
        assert set(found["groupNodeAttributes"]) == layers
    return data


@pytest.mark.parametrize("name", ZOO)
def test_all_of_the_zoo_is_in_the_exports(name: str) -> None:
    records = stages(name)
    data = assert_explored(records)
    for found, here in zip(data["graphs"], records, strict=True):
        drawing = assert_drawn(here.graph)
        assert {n["id"]: n["namespace"] for n in found["nodes"]} == {n: "/".join(p) for n, p in drawing.modules.items()}


@settings(max_examples=100)
@given(any_graph)
def test_any_graph_is_in_the_exports(graph: Graph) -> None:
    assert_drawn(graph)
    assert_explored((record(graph),))


@settings(max_examples=200)
@given(any_hostile_graph)
def test_any_graph_with_any_text_is_in_the_exports(graph: Graph) -> None:
    assert_drawn(graph)
    assert_explored((record(graph),))


def test_modules_are_layers() -> None:
    records = stages("resnet18")
    data, drawing = model_explorer(records), read(graphviz(records[-1].graph))
    assert [graph["id"] for graph in data["graphs"]][:3] == ["000 trace", "001 canonicalize", "002 fold-batch-norm"]
    assert data["graphs"][-1]["id"] == "007 quantize"
    assert (data["label"], data["graphSorting"]) == ("ResNet", "name_asc")
    nodes = {node["id"]: node for node in data["graphs"][-1]["nodes"]}
    assert nodes["stages.1.0.downsample.0"]["namespace"] == "stages/1/0/downsample"
    assert nodes["conv1"]["namespace"] == ""
    assert drawing.modules["stages.1.0.downsample.0"] == ("stages", "1", "0", "downsample")
    assert drawing.clusters["stages/1/0"]["label"] == ["0"]
    assert drawing.clusters["stages/1/0"]["tooltip"] == ["stages.1.0"]
    groups = data["graphs"][-1]["groupNodeAttributes"]
    inside = [node for node in records[-1].graph.nodes if node.name.startswith("stages.1.0.")]
    size = sum(p.size for p in {p for node in inside for _, p in node.op.params()})
    assert groups["stages/1/0"] == {"operations": str(len(inside)), "parameters": str(size)}
    assert groups[""]["pass"] == records[-1].label
    attributes = pairs(nodes["stages.1.0.conv1"]["attrs"])
    node = records[-1].graph["stages.1.0.conv1"]
    (first, *_) = node.loc.sources
    assert attributes["source lines"].startswith(f"{first.file}:{first.line} ({first.module})")
    assert attributes["by passes"] == ", ".join(node.loc.passes)
    assert attributes["stride"] == "2, 2"


def test_what_a_pass_adds_is_in_the_module_of_its_node() -> None:
    """Also where a module is called as a node is."""
    type, last = Type((2,)), Loc((Source("features.1"),))
    nodes = (
        Node("features", ops.Input((2,)), (), type),
        Node("features.0", ops.Relu(), ("features",), type, Loc((Source("features.0"),))),
        Node("features.0.pad", ops.Identity(), ("features.0",), type),
        Node("features.0.pad.copy", ops.Identity(), ("features.0.pad",), type),
        Node("features.1", ops.Relu(), ("features.0.pad.copy",), type, last),
        Node("gone.copy", ops.Identity(), ("features.1",), type),
    )
    graph = Graph(nodes, ("gone.copy",))
    expected = [(), ("features",), ("features",), ("features",), ("features",), ("gone",)]
    assert list(assert_drawn(graph).modules.values()) == expected
    plain = replace(graph, nodes=(replace(nodes[0], name="x"), replace(nodes[1], name="x.encode", args=("x",))))
    assert list(assert_drawn(replace(plain, outputs=("x.encode",))).modules.values()) == [(), ()]


def test_attributes_of_operations_have_names_of_one_word() -> None:
    """So none hides what is said besides."""
    assert all(" " not in f.name for op in OPS.values() for f in fields(op))


def test_what_is_said_of_a_stage() -> None:
    said = Diagnostic("SNN020", "a bias", severity=Severity.NOTE)
    (graph,) = model_explorer([StageRecord("a{b=1}", relu(), 0.5, True, (said, said), 7)])["graphs"]
    about = graph["groupNodeAttributes"][""]
    assert (graph["id"], about["pass"], about["seconds"], about["changed"]) == ("000 a", "a{b=1}", "0.5", "yes")
    assert (about["inputs"], about["outputs"], about["operations"]) == ("x", "y", "2")
    assert about["diagnostics"] == "note[SNN020]: a bias\nnote[SNN020]: a bias"
    assert model_explorer([]) == {"label": "", "graphs": [], "graphSorting": "name_asc"}


def test_every_domain_has_its_colour() -> None:
    assert set(LIGHT) == set(Domain)
    assert len(set(LIGHT.values())) == len(Domain)


# --- names of any kind -----------------------------------------------------------------------------------------------


def shown(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@settings(max_examples=300)
@given(hostile_text, hostile_text.filter(bool))
@example("</script>", LONG)
@example("\\", "\\N")
@example("&lt;&amp;", "\u202e&#10;")
@example(LONG + '"', "\\" * 10_000)
def test_any_text_is_whole_in_the_exports(name: str, place: str) -> None:
    graph = relu(network=name, place=place, loc=Loc((Source(name, name, 3),), (name,)))
    drawing = assert_drawn(graph)
    assert drawing.name == shown(name)
    assert f"chip place: {shown(place)}" in drawing.nodes["y"]["tooltip"]
    assert f"by passes: {shown(name)}" in drawing.nodes["y"]["tooltip"]
    data = assert_explored((record(graph),))
    about = pairs(data["graphs"][0]["nodes"][1]["attrs"])
    assert (data["label"], about["chip place"], about["by passes"]) == (name, place, name)
    assert about["source lines"] == (f"{name}:3 ({name})" if name else "")


def test_long_names_are_shortened_where_they_are_drawn() -> None:
    graph = relu(f"{LONG}a.{LONG}")
    drawing = assert_drawn(graph)
    (node,) = (found for name, found in drawing.nodes.items() if name != "x")
    assert node["label"][1] == "x" * 19 + "…" + "x" * 20
    assert node["tooltip"][0] == f"relu {LONG}a.{LONG}"
    assert drawing.clusters[f"{LONG}a"]["label"] == ["x" * 19 + "…" + "x" * 19 + "a"]
    assert drawing.clusters[f"{LONG}a"]["tooltip"] == [f"{LONG}a"]
    # Model Explorer draws titles whole; two that begin alike stay two.
    two = [model_explorer([record(relu(f"{LONG}{end}.y"))])["graphs"][0]["nodes"][1] for end in "ab"]
    assert two[0]["namespace"] != two[1]["namespace"]
    assert all(len(node["namespace"]) < 100 and node["id"].startswith(LONG) for node in two)


def test_modules_with_the_worst_names() -> None:
    assert_explored(hostile())
    for here in hostile():
        assert_drawn(here.graph)


# --- Graphviz --------------------------------------------------------------------------------------------------------


def assert_svg(graph: Graph) -> None:
    """Graphviz draws every node and every edge, without a word, as XML."""
    done = subprocess.run(["dot", "-Tsvg"], input=graphviz(graph).encode(), capture_output=True, check=True)
    assert done.stderr == b""
    svg = "{http://www.w3.org/2000/svg}"
    kinds: dict[str, list[str]] = {"node": [], "edge": [], "cluster": []}
    for group in ET.fromstring(done.stdout).iter(f"{svg}g"):
        if group.get("class") in kinds:
            kinds[group.get("class", "")].append(group.findtext(f"{svg}title") or "")
    assert sorted(kinds["node"]) == sorted(node.name for node in graph.nodes)
    assert Counter(kinds["edge"]) == Counter(f"{a}->{b}" for a, b in edges(graph).elements())
    assert len(kinds["cluster"]) == len(read(graphviz(graph)).clusters)


@needs_dot
@pytest.mark.parametrize("name", ZOO)
def test_graphviz_draws_the_zoo(name: str) -> None:
    for graph in {here.graph.stage: here.graph for here in stages(name)}.values():
        assert_svg(graph)


@needs_dot
def test_graphviz_draws_the_worst_names() -> None:
    assert_svg(hostile()[-1].graph)
    for name in [*NAMES, "\ud800\udc80"]:
        assert_svg(relu(network=name, place=name, loc=Loc((Source(name, name, 3),), (name,))))


@needs_dot
@settings(max_examples=25, deadline=None)
@given(any_hostile_graph)
def test_graphviz_draws_any_graph(graph: Graph) -> None:
    assert_svg(graph)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_suffix_says_for_which_viewer(tmp_path: Path) -> None:
    records = stages("mlp")
    last, snn = records[-1].graph, next(r.graph for r in reversed(records) if r.graph.stage is Stage.SNN)
    path = export(records, tmp_path / "net.json")
    assert path == tmp_path / "net.json"
    assert json.loads(path.read_text(encoding="utf-8")) == model_explorer(records)
    for suffix in ".dot", ".gv", ".DOT":
        assert export(records, tmp_path / f"net{suffix}").read_text(encoding="utf-8") == graphviz(last)
    mlir = tmp_path / "net.mlir"
    assert export(records, mlir).read_text(encoding="utf-8") == print_graph(last, banner=records[-1].label)
    assert parse(export(records, mlir, "snn").read_text(encoding="utf-8")) == snn
    assert parse(export(records, mlir, 0).read_text(encoding="utf-8")) == records[0].graph
    assert parse(export(records, mlir, -1).read_text(encoding="utf-8")) == last
    assert sorted(file.suffix for file in tmp_path.iterdir()) == sorted({".json", ".dot", ".gv", ".DOT", ".mlir"})


@pytest.mark.parametrize(
    ("name", "stage", "message", "hint"),
    [
        ("net.svg", None, "path='net.svg' has no suffix that a viewer is known for", ".json, .dot, .gv, .mlir"),
        ("net", None, "path='net' has no suffix that a viewer is known for", "choose one of"),
        ("net.json", "int", ".json is of every stage, not of 'int' alone", "choose it in the viewer"),
        ("net.dot", "mapped", "there is no stage 'mapped'", "choose one of ann, folded, snn, int"),
        ("net.mlir", 8, "there is no stage 8", "choose one from 0 to 7"),
        ("net.mlir", -9, "there is no stage -9", "choose one from 0 to 7"),
    ],
)
def test_what_cannot_be_exported(tmp_path: Path, name: str, stage: str | int | None, message: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        export(stages("mlp"), tmp_path / name, stage)
    (found,) = error.value.diagnostics
    code = "SNN070" if "suffix" in message else "SNN083" if "every" in message else "SNN085"
    assert (found.code, found.message) == (code, message)
    assert hint in found.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", [None, 0, "ann"])
def test_no_stages(tmp_path: Path, stage: str | int | None) -> None:
    with pytest.raises(InputError, match="there is no stage"):
        export([], tmp_path / "net.dot", stage)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ours = tmp_path / "net.dot", tmp_path / "plain"
    path.write_text("before", encoding="utf-8")
    ours.write_text("", encoding="utf-8")
    with monkeypatch.context() as patch:

        def full(self: Path, data: bytes) -> int:
            with self.open("wb") as file:
                file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            export(stages("mlp"), path)
    assert path.read_text(encoding="utf-8") == "before"
    assert sorted(tmp_path.iterdir()) == [path, ours]
    old = tmp_path / "old"
    old.hardlink_to(path)
    export(stages("mlp"), path)
    assert old.read_text(encoding="utf-8") == "before"  # nothing was written into the old file
    assert path.read_text(encoding="utf-8").startswith("digraph")
    assert path.stat().st_mode == ours.stat().st_mode  # not its owner's alone
    with pytest.raises(OSError, match="nowhere"):
        write(tmp_path / "nowhere" / "net.dot", "")


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_documentation_names_every_suffix_and_colour() -> None:
    text = (Path(__file__).parents[2] / "docs/exports.md").read_text(encoding="utf-8")
    assert all(f"`{suffix}`" in text for suffix in (".json", ".dot", ".gv", ".mlir"))
    assert all(domain.value in text for domain in Domain)
