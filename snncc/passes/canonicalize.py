"""canonicalize: one form for everything that can be written in several ways, before any other pass looks at it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, prod
from typing import ClassVar

import numpy as np

from snncc.ir import Graph, Node, Stage, ops
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Drop what does nothing (identity, dropout, no-op shapes), merge what is one thing (padding into convolutions,
    chains of affine maps, a quantized activation written out in steps), and put every activation directly behind the
    operation that it belongs to: shape changes, concatenation and max pooling commute with it."""

    name: ClassVar[str] = "canonicalize"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.ANN,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        graph = rebuild(graph, _drop)
        graph = _recognize_quant_relu(graph)
        while (moved := rebuild(graph, _visit)) != graph:
            graph = moved
        return graph


def _drop(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
    op = node.op
    if not args:
        return None
    x = builder.type(args[0])
    same = (
        isinstance(op, ops.Identity)
        or (isinstance(op, ops.Reshape | ops.Flatten | ops.Slice) and node.type.shape == x.shape)
        or (isinstance(op, ops.Pad) and not any((*op.before, *op.after)))
        or (isinstance(op, ops.AvgPool) and op.kernel == op.stride == (1, 1) and op.padding == (0, 0))
        or (isinstance(op, ops.Clamp) and op.low is None and op.high is None)
        or (isinstance(op, ops.Concat) and len(args) == 1)
    )
    return args[0] if same else None


def _visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
    """One step of the rules that look at a node and its operand."""
    op = node.op
    if not args:
        return None
    source = builder.nodes[args[0]]
    match op, source.op:
        case ops.Clamp(low=low, high=None), _ if low == 0:
            return builder.copy(node, args, ops.Relu(op.threshold))
        case ops.Relu(), ops.Relu() | ops.QuantRelu():
            return args[0]
        case (ops.Clamp(low=low), ops.Relu()) if low is None or low <= 0:
            if op.high is not None and op.high > 0:
                return builder.copy(node, source.args, ops.Clamp(0.0, op.high))
        case ops.Relu(), ops.Clamp(low=low, high=high):
            if high is None or high > 0:
                return builder.copy(node, source.args, ops.Clamp(max(low if low is not None else -inf, 0.0), high))
        case ops.Activation(), ops.Flatten() | ops.Reshape() | ops.Slice() | ops.MaxPool() | ops.Concat():
            # f(move(x)) = move(f(x)): f is elementwise and monotonic. Both keep their names if nothing else reads.
            alone = len(builder.source.users.get(source.name, ())) == 1 and source.name not in builder.source.outputs
            if alone:
                del builder.nodes[source.name]
            inner = []
            for i, arg in enumerate(source.args):
                name = node.name if i == 0 and alone else builder.unique(f"{node.name}.in")
                inner.append(builder.add(name, op, (arg,), node.loc))
            return builder.add(source.name if alone else node.name, source.op, tuple(inner), source.loc)
        case ops.Conv2d(), ops.Pad(mode="constant", value=0.0) if min(*source.op.before, *source.op.after) >= 0:
            (cb, hb, wb), (ca, ha, wa) = source.op.before, source.op.after
            if cb == ca == 0:
                top, bottom, left, right = op.padding
                merged = replace(op, padding=(top + hb, bottom + ha, left + wb, right + wa))
                return builder.add(node.name, merged, source.args, node.loc.merge(source.loc))
        case ops.Affine(), ops.Affine() if len(builder.source.users.get(args[0], ())) == 1:
            return _merge_affine(builder, node, op, source, source.op)
        case ops.AdaptiveAvgPool(), _:
            pool = as_avg_pool(op, source.type.shape)
            return builder.copy(node, args, pool) if pool is not None else None
    return None


def as_avg_pool(op: ops.AdaptiveAvgPool, shape: tuple[int, ...]) -> ops.AvgPool | None:
    """The same pooling with equal windows, where the output divides the input."""
    (h, w), (oh, ow) = shape[1:], op.output
    if h % oh or w % ow:
        return None
    kernel = (h // oh, w // ow)
    return ops.AvgPool(kernel, kernel)


def _merge_affine(builder: Builder, node: Node, outer: ops.Affine, source: Node, inner: ops.Affine) -> str:
    store = builder.store
    weight = store[outer.weight].astype(np.float64)
    bias = weight * (store[inner.bias] if inner.bias is not None else 0.0)
    bias = bias + (store[outer.bias] if outer.bias is not None else 0.0)
    merged = ops.Affine(
        store.put(f"{node.name}.weight", (weight * store[inner.weight]).astype(np.float32)),
        store.put(f"{node.name}.bias", bias.astype(np.float32)) if bias.any() else None,
    )
    return builder.add(node.name, merged, source.args, source.loc.merge(node.loc))


# --- quantized clip-floor-shift activations, written out in steps ---------------------------------------------------


def _recognize_quant_relu(graph: Graph) -> Graph:
    """Replace chains of affine maps and clamps around a floor that are ``c clip(floor(x/c + shift), 0, L)``.

    The chain before the floor is ``clip(a x + b, low, high)``, the one behind it ``c clip(y, low, high)``.
    """
    found: dict[str, tuple[ops.QuantRelu, str, list[Node]]] = {}
    for floor in graph.nodes:
        if not isinstance(floor.op, ops.Floor):
            continue
        # Backwards: the map so far takes this value v to clip(a v + b, low, high).
        a, b, low, high = 1.0, 0.0, -inf, inf
        chain, start = [floor], floor.args[0]
        while len(graph.users[start]) == 1 and (step := _scalar_step(graph, graph[start])):
            scale, shift, lo, hi = step
            low, high = max(low, a * lo + b), min(high, a * hi + b)
            a, b = a * scale, a * shift + b
            chain.insert(0, graph[start])
            start = graph[start].args[0]
        low, high = np.floor(low), np.floor(high)
        c, end = 1.0, floor
        while len(users := graph.users[end.name]) == 1 and (step := _scalar_step(graph, users[0])):
            scale, shift, lo, hi = step
            if shift != 0:
                break
            low, high, c = max(low, lo / c), min(high, hi / c), c * scale
            end = users[0]
            chain.append(end)
        if low == 0 and 1 <= high < inf and abs(a * c - 1) < 1e-5 and -1e-6 <= b < 1:
            levels = round(float(high))
            found[end.name] = (ops.QuantRelu(c * levels, levels, max(0.0, round(b, 6))), start, chain)

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        if node.name not in found:
            return None
        op, start, chain = found[node.name]
        return builder.add(node.name, op, (start,), chain[0].loc.merge(*(n.loc for n in chain[1:])))

    return rebuild(graph, visit) if found else graph


def _scalar_step(graph: Graph, node: Node) -> tuple[float, float, float, float] | None:
    """(scale, shift, low, high) of ``clip(x * scale + shift, low, high)`` if the node is such a map, scale > 0."""
    op = node.op
    if isinstance(op, ops.Relu):
        return 1.0, 0.0, 0.0, inf
    if isinstance(op, ops.Clamp):
        return 1.0, 0.0, -inf if op.low is None else op.low, inf if op.high is None else op.high
    if isinstance(op, ops.Affine):
        weight = graph.value(op.weight)
        bias = graph.value(op.bias) if op.bias is not None else np.zeros(1)
        if prod(weight.shape) and (weight == weight[0]).all() and (bias == bias[0]).all() and weight[0] > 0:
            return float(weight[0]), float(bias[0]), -inf, inf
    return None
