"""canonicalize: one form for everything that can be written in several ways, before any other pass looks at it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import inf, isclose, prod
from typing import ClassVar

import numpy as np

from snncc.ir import Graph, Node, Param, Stage, ops
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Drop what does nothing (identity, dropout, no-op shapes), merge what is one thing (padding into convolutions,
    chains of affine maps, a quantized activation written out in steps), and put every activation directly behind the
    operation that it belongs to: shape changes, concatenation and max pooling commute with it."""

    name: ClassVar[str] = "canonicalize"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.ANN, Stage.FOLDED)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        graph = rebuild(graph, _drop)
        # A quantized activation may show only after others have moved.
        while (simpler := rebuild(rebuild(_recognize_quant_relu(graph), _visit), _drop)) != graph:
            graph = simpler
        return graph


def _drop(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
    op = node.op
    if not args:
        return None
    x = builder.type(args[0])
    point = isinstance(op, ops.AvgPool | ops.MaxPool) and op.kernel == op.stride == (1, 1) and op.padding == (0, 0)
    same = (
        isinstance(op, ops.Identity)
        or (isinstance(op, ops.Reshape | ops.Flatten | ops.Slice) and node.type.shape == x.shape)
        or (isinstance(op, ops.Pad) and not any((*op.before, *op.after)))
        or (point and not (isinstance(op, ops.AvgPool) and op.divisor > 1))
        or (isinstance(op, ops.Clamp) and op.low is None and op.high is None)
        or (isinstance(op, ops.Concat) and len(args) == 1)
    )
    if isinstance(op, ops.Conv2d | ops.Linear | ops.Affine) and _is_zero(builder, op.bias):
        return builder.copy(node, args, replace(op, bias=None))
    return args[0] if same else None


def _is_zero(builder: Builder, param: Param | None) -> bool:
    return param is not None and not builder.store[param].any()


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
            if args != node.args:
                return None  # the operand just changed: what its name stands for, too; the next round sees it
            alone = len(builder.source.users[source.name]) == 1 and source.name not in builder.source.outputs
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


def divisors(size: tuple[int, ...]) -> str:
    """What to do where an adaptive pooling of a map of ``size`` has windows of different sizes."""
    ways = (", ".join(str(n) for n in range(1, side + 1) if side % n == 0) for side in dict.fromkeys(size))
    return f"choose an output size that divides the input's: one of {', by one of '.join(ways)}"


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
    """Replace chains of affine maps and clamps around a floor that are ``c clip(floor(x/c + shift), 0, L)``."""
    found: dict[str, tuple[ops.QuantRelu, list[Node]]] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Floor) and (match := _quant_relu(graph, node)):
            found[match[1][-1].name] = match

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        if node.name not in found:
            return None
        op, chain = found[node.name]
        return builder.add(node.name, op, chain[0].args, chain[0].loc.merge(*(n.loc for n in chain[1:])))

    return rebuild(graph, visit) if found else graph


def _quant_relu(graph: Graph, floor: Node) -> tuple[ops.QuantRelu, list[Node]] | None:
    """The activation that stands around ``floor``, and its nodes: the longest chain that is one.

    The chain before the floor is ``clip(a x + b, low, high)``, the one behind it ``c clip(y, low, high)``.
    """
    befores, before, (a, b, low, high) = [], [floor], (1.0, 0.0, -inf, inf)
    while True:
        befores.append((before, a, b, low, high))
        start = before[0].args[0]
        if len(graph.users[start]) > 1 or start in graph.outputs or not (step := _scalar_step(graph, graph[start])):
            break
        scale, shift, lo, hi = step
        low, high = max(low, a * lo + b), min(high, a * hi + b)
        a, b, before = a * scale, a * shift + b, [graph[start], *before]
    after: list[Node] = []
    afters, (c, least, most) = [], (1.0, -inf, inf)
    while True:
        afters.append((after, c, least, most))
        end = after[-1].name if after else floor.name
        users = graph.users[end]
        if len(users) != 1 or end in graph.outputs or not (step := _scalar_step(graph, users[0])) or step[1] != 0:
            break
        scale, _, lo, hi = step
        least, most, c = max(least, lo / c), min(most, hi / c), c * scale
        after = [*after, users[0]]
    best: tuple[ops.QuantRelu, list[Node]] | None = None
    for (before, a, b, low, high), (after, c, least, most) in product(befores, afters):
        top = min(_whole(high), most)
        clipped = max(_whole(low), least) == 0 and 1 - _NOISE <= top < inf and _whole(top) == np.rint(top)
        if (
            clipped
            and abs(a * c - 1) < _NOISE
            and -_NOISE < b < 1
            and (best is None or len(best[1]) < len(before + after))
        ):
            levels = round(top)
            best = ops.QuantRelu(c * levels, levels, max(0.0, round(b, 6))), [*before, *after]
    return best


_NOISE = 1e-6  # relative; constants of the network went through float32


def _whole(value: float) -> float:
    """The floor; of a value that is a whole number but for rounding, that number."""
    nearest = float(np.rint(value))
    return nearest if isclose(value, nearest, rel_tol=_NOISE, abs_tol=_NOISE) else float(np.floor(value))


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
