"""The stages of a compile for other viewers: Google's Model Explorer, Graphviz, and what reads MLIR. docs/exports.md
says how to open each."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from snncc.explore.record import Record
from snncc.ir import Domain, Graph, Node, Param, Source, Type, print_graph
from snncc.ir.diagnostics import input_error, unknown, wrong_value
from snncc.ir.ops import Input
from snncc.ir.types import identifier

MODEL_EXPLORER, DOT, MLIR = (".json",), (".dot", ".gv"), (".mlir",)
LIGHT = {
    Domain.REAL: "#ffffff",
    Domain.CURRENT: "#cfe3fa",
    Domain.SPIKE: "#ffd9a8",
    Domain.MESSAGE: "#e3d1f5",
}
STRONG = {Domain.REAL: "#78909c", Domain.CURRENT: "#1e88e5", Domain.SPIKE: "#ef6c00", Domain.MESSAGE: "#8e24aa"}
ENDS = "#d32f2f"  # the network's inputs and outputs
LONGEST = 40  # characters of a name in a drawing; the whole name is in the tooltip
WIDEST = 200  # characters of a module's name in Model Explorer, which has no tooltips
PIECE = 3000  # characters: Graphviz reads no string of more than 16384 bytes, but sums of strings


def export(stages: Sequence[Record], path: Path, stage: str | int | None = None) -> Path:
    """Write stages for another viewer; by the suffix of ``path``: ``.json`` all of them for Model Explorer, ``.dot`` or
    ``.gv`` one for Graphviz, ``.mlir`` one as text. The file is written whole or not at all, over what was there.

    Args:
        stages: every stage in order, the traced network first.
        path: the file.
        stage: "ann", "folded", "snn", "int" or "mapped" (the last of that name), or the index of a stage; the last if
            None. Not with ``.json``.

    Returns:
        ``path``.

    Raises:
        InputError: another suffix (SNN070), or no such stage (SNN085).
        OSError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    known = (*MODEL_EXPLORER, *DOT, *MLIR)
    if suffix not in known:
        raise wrong_value("path", path.name, "has no suffix that a viewer is known for", known)
    if suffix in MODEL_EXPLORER:
        if stage is not None:
            hint = "leave the stage out, and choose it in the viewer; .dot and .mlir are of one stage"
            raise input_error("SNN083", f"{suffix} is of every stage, not of {stage!r} alone", hint)
        text = json.dumps(model_explorer(stages), allow_nan=False)
    else:
        chosen = _chosen(stages, stage)
        text = graphviz(chosen.graph) if suffix in DOT else print_graph(chosen.graph, banner=chosen.label)
    return write(path, text)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, text in UTF-8, whole or not at all; one that is replaced leaves its permissions. Returns ``path``;
    raises OSError where it cannot be written."""
    # A folder of its own, since a file made by tempfile would be its owner's alone.
    with tempfile.TemporaryDirectory(prefix=".snncc-", dir=path.parent) as folder:
        fresh = Path(folder) / "new"
        fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
        with suppress(FileNotFoundError):
            shutil.copymode(path, fresh)
        fresh.replace(path)
    return path


def _chosen(stages: Sequence[Record], stage: str | int | None) -> Record:
    if isinstance(stage, str):
        by_name = {here.graph.stage.value: here for here in stages}
        if stage in by_name:
            return by_name[stage]
        raise unknown("SNN085", "stage", stage, by_name)
    index = -1 if stage is None else stage
    if not -len(stages) <= index < len(stages):
        hint = f"choose one from 0 to {len(stages) - 1}" if stages else ""
        raise input_error("SNN085", "there is no stage" + ("" if stage is None else f" {stage}"), hint)
    return stages[index]


# --- what both say ---------------------------------------------------------------------------------------------------


def _modules(graph: Graph) -> dict[str, tuple[str, ...]]:
    """The path of every node's module, by the node's name: the name without its last part. What a pass puts beside a
    node is called after it (``conv1.pad``), and belongs to the same module as the node."""
    holders = set[str]()  # the user's modules that have others in them
    for module in {source.module for node in graph.nodes for source in node.loc}:
        parts = identifier(module).split(".")
        holders.update(".".join(parts[:n]) for n in range(1, len(parts)))
    paths = {}
    for node in graph.nodes:
        path = node.name.rpartition(".")[0]
        while path in graph.by_name and path not in holders:
            path = path.rpartition(".")[0]
        paths[node.name] = tuple(part for part in path.split(".") if part)
    return paths


def _shape(type: Type | Param) -> str:
    return "x".join((*map(str, type.shape), type.dtype))


def _text(value: Any) -> str:
    """An attribute of an operation."""
    if isinstance(value, Param):
        return f"{value.name}: {_shape(value)}, {value.digest}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def _place(source: Source) -> str:
    where = f"{source.file}:{source.line}" if source.file else ""
    return f"{where} ({source.module})" if where and source.module else where or source.module


def _described(graph: Graph, node: Node) -> Iterator[tuple[str, str]]:
    """What is to be said of a node besides its name and operands. No attribute of an operation has a name of two
    words."""
    for f in fields(node.op):
        if (value := getattr(node.op, f.name)) is not None:
            yield f.name, _text(value)
    yield "result type", _shape(node.type)
    yield "result domain", node.type.domain.value
    yield "result unit", _text(node.type.unit)
    if node.place:
        yield "chip place", node.place
    if node.loc.sources:
        yield "source lines", ", ".join(map(_place, node.loc.sources))
    if node.loc.passes:
        yield "by passes", ", ".join(node.loc.passes)
    if node.name in graph.outputs:
        yield "network output", ", ".join(str(i) for i, name in enumerate(graph.outputs) if name == node.name)


# --- Model Explorer --------------------------------------------------------------------------------------------------


def model_explorer(stages: Sequence[Record]) -> dict[str, Any]:
    """The stages as a graph collection of Google's Model Explorer, which JSON can hold: a graph for each stage, with
    the modules as layers. Nodes have the same id in every stage, by which the viewer pairs them.

    Source of the format: ``GraphCollection`` in Model Explorer's ``input_graph.ts`` and ``graph_builder.py``; what it
    makes of ``tensor_shape`` and ``__tensor_tag`` is in its ``graph_processor.ts`` and ``utils.ts``.
    """
    return {
        "label": stages[0].graph.name if stages else "",
        "graphs": [_graph(f"{i:03} {_pass(here)}", here) for i, here in enumerate(stages)],
        "graphSorting": "name_asc",
    }


def _pass(here: Record) -> str:
    return here.label.partition("{")[0]


def _graph(id: str, here: Record) -> dict[str, Any]:
    graph = here.graph
    modules = {name: tuple(map(_layer, path)) for name, path in _modules(graph).items()}
    return {
        "id": id,
        "nodes": [_node(graph, node, "/".join(modules[node.name])) for node in graph.nodes],
        "groupNodeAttributes": {"": _about(here), **_groups(graph, modules)},
    }


def _layer(part: str) -> str:
    """A layer's title, which the viewer draws whole: of a name that no screen holds, its begin and a digest."""
    if len(part) <= WIDEST:
        return part
    return f"{part[:LONGEST]}~{hashlib.sha256(part.encode()).hexdigest()[:16]}"


def _node(graph: Graph, node: Node, module: str) -> dict[str, Any]:
    output = {"__tensor_tag": node.name, "tensor_shape": f"tensor<{_shape(node.type)}>"}
    output |= {"domain": node.type.domain.value, "unit": _text(node.type.unit)}
    ends = isinstance(node.op, Input) or node.name in graph.outputs
    return {
        "id": node.name,
        "label": node.op.mnemonic,
        "namespace": module,
        "attrs": _pairs(dict(_described(graph, node))),
        "incomingEdges": [
            {"sourceNodeId": arg, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
            for i, arg in enumerate(node.args)
        ],
        "inputsMetadata": [{"id": str(i), "attrs": _pairs({"__tensor_tag": arg})} for i, arg in enumerate(node.args)],
        "outputsMetadata": [{"id": "0", "attrs": _pairs(output)}],
        # Borders alone, since the viewer's text turns white in its dark theme.
        "style": {"borderColor": ENDS if ends else STRONG[node.type.domain]},
    }


def _pairs(attributes: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in attributes.items()]


def _about(here: Record) -> dict[str, str]:
    """What the viewer shows of a stage where no node is chosen."""
    graph = here.graph
    about = {
        "network": graph.name,
        "stage": graph.stage.value,
        "pass": here.label,
        "changed": "yes" if here.changed else "no",
        "seconds": f"{here.seconds:.3g}",
        "operations": str(len(graph.nodes)),
        "parameters": _parameters(graph.nodes),
        "inputs": ", ".join(node.name for node in graph.inputs),
        "outputs": ", ".join(graph.outputs),
    }
    if here.diagnostics:
        about["diagnostics"] = "\n".join(f"{d.severity.value}[{d.code}]: {d.message}" for d in here.diagnostics)
    return about


def _groups(graph: Graph, modules: dict[str, tuple[str, ...]]) -> dict[str, dict[str, str]]:
    """By namespace: how many operations and parameters a module has, those of its own modules among them."""
    inside: dict[str, list[Node]] = {}
    for node in graph.nodes:
        module = modules[node.name]
        for n in range(1, len(module) + 1):
            inside.setdefault("/".join(module[:n]), []).append(node)
    return {name: {"operations": str(len(nodes)), "parameters": _parameters(nodes)} for name, nodes in inside.items()}


def _parameters(nodes: Iterable[Node]) -> str:
    """How many numbers the operations have as tensors, each tensor once."""
    return str(sum(param.size for param in {param for node in nodes for _, param in node.op.params()}))


# --- Graphviz --------------------------------------------------------------------------------------------------------


def graphviz(graph: Graph) -> str:
    """A stage as DOT: a box for each node, with its operation, name and shape, in the colour of its domain; the modules
    as nested clusters; the network's inputs and outputs with a red border. An edge is labelled with the shape that goes
    along it where its reader's is another. Everything that is known of a node is in its tooltip.

    Source of the syntax: https://graphviz.org/doc/info/lang.html
    """
    title = f"{graph.name} ({graph.stage.value})"
    lines = [
        f"digraph {_quoted(graph.name)} {{",
        f"  graph [{_list(label=_quoted(_short(title)), tooltip=_quoted(title), labelloc='t', fontname='Helvetica')}];",
        f"  node [{_list(shape='box', style=_quoted('rounded,filled'), fontname='Helvetica', fontsize='11')}];",
        f"  edge [{_list(fontname='Helvetica', fontsize='9', color=_quoted(STRONG[Domain.REAL]))}];",
    ]
    modules = _modules(graph)
    here: tuple[str, ...] = ()
    # Nodes stay in the order of the graph, so a cluster may be left and opened again: to Graphviz it is the same one.
    for node in graph.nodes:
        module = modules[node.name]
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(here, module, strict=False)))
        lines += [f"{_indent(n)}}}" for n in range(len(here), common, -1)]
        for n in range(common + 1, len(module) + 1):
            label = _list(label=_quoted(_short(module[n - 1])), tooltip=_quoted(".".join(module[:n])))
            lines.append(f"{_indent(n)}subgraph {_quoted('cluster_' + '/'.join(module[:n]))} {{")
            lines.append(f"{_indent(n + 1)}graph [{label}, labeljust=l, color={_quoted(STRONG[Domain.REAL])}];")
        lines.append(f"{_indent(len(module) + 1)}{_quoted(node.name)} [{_box(graph, node, module)}];")
        here = module
    lines += [f"{_indent(n)}}}" for n in range(len(here), 0, -1)]
    for node in graph.nodes:
        for arg in graph.producers(node):
            changes = arg.type.shape != node.type.shape
            label = f" [label={_quoted(' ' + _shape(arg.type))}]" if changes else ""
            lines.append(f"  {_quoted(arg.name)} -> {_quoted(node.name)}{label};")
    return "\n".join([*lines, "}", ""])


def _indent(depth: int) -> str:
    return "  " * depth


def _list(**attributes: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in attributes.items())


def _box(graph: Graph, node: Node, module: tuple[str, ...]) -> str:
    name = node.name.removeprefix(".".join(module) + ".")
    tooltip = [f"{node.op.mnemonic} {node.name}", *(f"{key}: {value}" for key, value in _described(graph, node))]
    ends = isinstance(node.op, Input) or node.name in graph.outputs
    return _list(
        label=_quoted(node.op.mnemonic, _short(name), _shape(node.type)),
        fillcolor=_quoted(LIGHT[node.type.domain]),
        color=_quoted(ENDS if ends else STRONG[node.type.domain]),
        penwidth="2" if ends else "1",
        tooltip=_quoted(*tooltip),
    )


def _short(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def _quoted(*lines: str) -> str:
    """A string of DOT of these lines. Control characters, what turns the direction of text, and lone surrogates stand
    as their escapes in Python: XML, which Graphviz writes, cannot hold them."""
    text = "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)
    return '"' + '" + "'.join(_escaped(text[i : i + PIECE]) for i in range(0, max(len(text), 1), PIECE)) + '"'


def _escaped(text: str) -> str:
    # Graphviz reads entities of HTML in every text.
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
