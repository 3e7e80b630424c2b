"""fold-batch-norm: batch norms disappear into the weights next to them, exactly, eps included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, Param, Severity, Stage, Store, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch norms and other per-channel affine maps.

    Into the convolution or linear layer before, if nothing else reads it; else into those behind, through average
    poolings without padding; else the map stays, as an ``affine`` of its own, and a note says so.

    A shift in front of zero padding is no bias, as there is none of it in the padding. It becomes a convolution of a
    channel of ones, padded with zeros as well:

        conv(pad(a x + b)) = conv_a(pad(x)) + conv_b(pad(1)),  conv_a with W a over inputs, conv_b with their sum of W b

    Attributes:
        ones: whether there may be such channels; else the map stays in front of the padding.
    """

    ones: bool = True
    name: ClassVar[str] = "fold-batch-norm"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.ANN,)
    ensures: ClassVar[Stage] = Stage.FOLDED
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            return _through_pooling(builder, node, args) or _into_consumer(builder, node, args, self.ones)

        folded = rebuild(rebuild(graph, _into_producer), visit)
        for node in folded.nodes:
            if isinstance(node.op, ops.Affine):
                context.report(
                    Diagnostic(
                        "SNN034",
                        f"`{node.name}` scales {node.type.shape[0]} channels, and no layer beside it can take that: "
                        "it stays a layer of its own",
                        node.loc,
                        Severity.NOTE,
                        "put batch norm directly behind a convolution or linear layer that nothing else reads",
                    )
                )
        return folded


def _scale_shift(op: ops.Op, store: Store) -> tuple[Array, Array] | None:
    if isinstance(op, ops.BatchNorm):
        return op.scale_shift(store)
    if isinstance(op, ops.Affine):
        scale = store[op.weight].astype(np.float64)
        return scale, np.zeros_like(scale) if op.bias is None else store[op.bias].astype(np.float64)
    return None


def _put(store: Store, name: str, value: Array) -> Param:
    return store.put(name, value.astype(np.float32, copy=False), copy=False)


def _bias(store: Store, name: str, value: Array) -> Param | None:
    return _put(store, name, value) if value.any() else None


def _into_producer(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
    """Fold backwards: W' = scale W, b' = scale b + shift. What cannot becomes an affine."""
    store = builder.store
    affine = _scale_shift(node.op, store)
    if affine is None:
        return None
    scale, shift = affine
    producer = builder.nodes[args[0]]
    op = producer.op
    source = builder.source
    # The producer in the old graph: its own name, or the batch norm's that was folded into it a moment ago.
    alone = len(source.users[node.args[0]]) == 1 and node.args[0] not in source.outputs
    per_output = isinstance(op, ops.Conv2d) or (isinstance(op, ops.Linear) and len(node.type.shape) == 1)
    if not (alone and (per_output or isinstance(op, ops.Affine))):
        if isinstance(node.op, ops.Affine):
            return None
        alone_op = ops.Affine(_put(store, f"{node.name}.weight", scale), _bias(store, f"{node.name}.bias", shift))
        return builder.add(node.name, alone_op, args, node.loc)
    assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
    old = store[op.weight]
    # In float64, rounded once to float32, without a float64 copy of the whole.
    weight = np.empty(old.shape, np.float32)
    np.multiply(old, scale.reshape(-1, *(1,) * (old.ndim - 1)), out=weight, dtype=np.float64, casting="same_kind")
    bias = shift if op.bias is None else scale * store[op.bias] + shift
    folded = replace(op, weight=_put(store, op.weight.name, weight), bias=_bias(store, f"{producer.name}.bias", bias))
    return builder.add(producer.name, folded, producer.args, producer.loc.merge(node.loc))


def _through_pooling(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
    """An average of shifted values is the shifted average, where no padding is averaged: pool first, so that a layer
    behind can take the map."""
    op = node.op
    if not isinstance(op, ops.AvgPool | ops.AdaptiveAvgPool) or not isinstance(builder.nodes[args[0]].op, ops.Affine):
        return None
    if isinstance(op, ops.AvgPool) and (any(op.padding) or op.ceil_mode or op.divisor):
        return None
    behind = [user.op for user in builder.source.users[node.name]]
    if not behind or not all(isinstance(user, ops.Conv2d | ops.Linear | ops.Flatten | type(op)) for user in behind):
        return None
    affine = builder.nodes[args[0]]
    pooled = builder.add(builder.unique(f"{node.name}.pool"), op, affine.args, node.loc)
    return builder.add(node.name, affine.op, (pooled,), affine.loc.merge(node.loc))


def _into_consumer(builder: Builder, node: Node, args: tuple[str, ...], ones: bool) -> str | None:
    """Fold forwards: W' = W scale (over inputs), b' = b + W shift; through a flatten in between."""
    op = node.op
    if not isinstance(op, ops.Conv2d | ops.Linear):
        return None
    source, flat = builder.nodes[args[0]], None
    if isinstance(op, ops.Linear) and isinstance(source.op, ops.Flatten):
        source, flat = builder.nodes[source.args[0]], source
    if not isinstance(source.op, ops.Affine) or (isinstance(op, ops.Linear) and len(node.type.shape) != 1):
        return None
    store = builder.store
    scale_shift = _scale_shift(source.op, store)
    assert scale_shift is not None
    scale, shift = scale_shift
    weight = store[op.weight].astype(np.float64)
    padded = isinstance(op, ops.Conv2d) and any(op.padding) and bool(shift.any())
    if padded and not ones:
        return None
    if flat is not None:
        repeats = weight.shape[1] // len(scale)
        scale, shift = np.repeat(scale, repeats), np.repeat(shift, repeats)
    scale, shift = ops.over_inputs(op, scale), ops.over_inputs(op, shift)
    if padded:
        assert isinstance(op, ops.Conv2d)
        inner = replace(op, weight=_put(store, op.weight.name, weight * scale))
        scaled = builder.add(
            builder.unique(f"{node.name}.scaled"), inner, (source.args[0],), node.loc.merge(source.loc)
        )
        shifts = _put(store, f"{node.name}.shift", (weight * shift).sum(axis=1, keepdims=True))
        one = _ones(builder, source)
        shift_op = replace(op, weight=shifts, bias=None, groups=1)
        shifted = builder.add(builder.unique(f"{node.name}.shift"), shift_op, (one,), source.loc.merge(node.loc))
        return builder.add(node.name, ops.Add(), (scaled, shifted), node.loc.merge(source.loc))
    bias = (weight * shift).sum(axis=tuple(range(1, weight.ndim)))
    if op.bias is not None:
        bias = bias + store[op.bias]
    folded = replace(
        op, weight=_put(store, op.weight.name, weight * scale), bias=_bias(store, f"{node.name}.bias", bias)
    )
    operand = source.args[0]
    if flat is not None:
        operand = builder.add(builder.unique(flat.name), ops.Flatten(), (operand,), flat.loc)
    return builder.add(node.name, folded, (operand,), node.loc.merge(source.loc))


def _ones(builder: Builder, source: Node) -> str:
    """Ones of the size of ``source``; one node for all of a size."""
    op = ops.Ones((source.type.shape[1], source.type.shape[2]))
    there = (node.name for node in builder.nodes.values() if node.op == op)
    return next(there, None) or builder.add(
        builder.unique(f"{source.name}.ones"), op, (builder.source.inputs[0].name,), source.loc
    )
