"""A compile as plain data, for viewers and other programs. docs/record.md describes it; a change that a reader could
trip over raises the version."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from snncc.explore.text import differences
from snncc.ir import Diagnostic, Graph, Node, Param, print_graph
from snncc.ir.text import print_node
from snncc.ir.types import PerChannel, Source

SCHEMA = "snncc-record/1"


class Record(Protocol):
    """A graph after one pass: :class:`snncc.passes.base.StageRecord`."""

    @property
    def label(self) -> str: ...
    @property
    def graph(self) -> Graph: ...
    @property
    def seconds(self) -> float: ...
    @property
    def memory(self) -> int: ...
    @property
    def changed(self) -> bool: ...
    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]: ...
    @property
    def failed(self) -> bool: ...


Numbers = Mapping[str, Any]


def record(
    stages: Sequence[Record],
    numbers: Mapping[int, Mapping[str, Numbers]] | None = None,
    params: Mapping[Param, Numbers] | None = None,
    sources: bool = True,
    diagnostics: Sequence[Diagnostic] = (),
    **more: Any,
) -> dict[str, Any]:
    """The stages of a compile as plain data, which JSON can hold.

    Args:
        stages: every stage in order, the traced network first; none, if it could not be traced.
        numbers: by the index of a stage, and there by the name of a value: what was measured of it.
        params: what was measured of parameters.
        sources: put the text of the user's files in, where they can be read.
        diagnostics: all that was said.
        more: what else to say of the compile: the target, the options, the report.
    """
    places = _Places()
    described = [_stage(i, stages, places, (numbers or {}).get(i, {})) for i in range(len(stages))]
    said = (source.file for diagnostic in diagnostics for source in diagnostic.loc)
    files = _texts([*(place.file for place in places.known), *said]) if sources else {}
    return {
        "schema": SCHEMA,
        "network": stages[0].graph.name if stages else "",
        **more,
        "diagnostics": [d.to_json() for d in diagnostics],
        "places": [{"module": p.module, "file": p.file, "line": p.line} for p in places.known],
        "sources": files,
        "params": {param.digest: _numbers(measured) for param, measured in (params or {}).items()},
        "stages": described,
    }


class _Places:
    """The user's places, each once; nodes refer to them by number."""

    def __init__(self) -> None:
        self.known: dict[Source, int] = {}

    def __call__(self, place: Source) -> int:
        return self.known.setdefault(place, len(self.known))


def _stage(index: int, stages: Sequence[Record], places: _Places, numbers: Mapping[str, Numbers]) -> dict[str, Any]:
    here = stages[index]
    graph, before = here.graph, stages[index - 1].graph if index else None
    old = {} if before is None else before.by_name
    return {
        "index": index,
        "label": here.label,
        "pass": here.label.partition("{")[0],
        "stage": graph.stage.value,
        "seconds": here.seconds,
        "memory": here.memory,
        "changed": here.changed,
        "failed": here.failed,
        "nodes_changed": sum(old.get(node.name) != node for node in graph.nodes) if before is not None else 0,
        "nodes_removed": sum(name not in graph.by_name for name in old),
        "diagnostics": [d.to_json() for d in here.diagnostics],
        "outputs": list(graph.outputs),
        "nodes": [_node(graph, node, places, numbers.get(node.name)) for node in graph.nodes],
        "text": print_graph(graph, banner=here.label),
        "diff": [] if before is None else differences(before, graph, locations=False),
    }


def _node(graph: Graph, node: Node, places: _Places, numbers: Numbers | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": node.name,
        "op": node.op.mnemonic,
        "attributes": {f.name: _plain(getattr(node.op, f.name)) for f in fields(node.op)},
        "args": list(node.args),
        "type": {
            "shape": list(node.type.shape),
            "dtype": node.type.dtype,
            "domain": node.type.domain.value,
            "unit": _plain(node.type.unit),
        },
        "places": [places(source) for source in node.loc.sources],
        "passes": list(node.loc.passes),
        "text": print_node(graph, node, locations=False),
    }
    if node.place:
        described["place"] = node.place
    if numbers is not None:
        described["numbers"] = _numbers(numbers)
    return described


def _numbers(measured: Numbers) -> dict[str, Any]:
    return {name: _plain(value) for name, value in measured.items()}


def _plain(value: PerChannel | str | bool | tuple[int, ...] | list[int] | None) -> Any:
    """An attribute as JSON has it; a tensor by its name, shape, type and digest; numbers that JSON has not, as text."""
    if isinstance(value, Param):
        return {"param": value.name, "shape": list(value.shape), "dtype": value.dtype, "digest": value.digest}
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _texts(files: Iterable[str]) -> dict[str, str]:
    """The text of every file that can be read."""
    found = {file: _text(file) for file in dict.fromkeys(files) if file}
    return {file: text for file, text in found.items() if text is not None}


def _text(file: str) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):  # no file, or none of text
        return None
