"""lower-pooling: averages become sums of spikes, whose unit takes the divisor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, Stage, ops
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.canonicalize import as_avg_pool, divisors
from snncc.passes.rewrite import Builder, rebuild, units_fit


@dataclass(frozen=True)
class LowerPooling(Pass):
    """Turn average pooling into sum pooling: a window's spikes are only passed on, each worth 1/n of what it was.

    Attributes:
        max_pool: "keep" (simulators can count; see :class:`snncc.ir.ops.MaxPool`) or "error" (hardware cannot).
    """

    max_pool: str = "keep"
    name: ClassVar[str] = "lower-pooling"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.SNN,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            op = node.op
            if isinstance(op, ops.MaxPool) and self.max_pool == "error":
                context.report(
                    Diagnostic(
                        "SNN031",
                        f"`{node.name}` is max pooling, which the chip does not have",
                        node.loc,
                        hint="train with nn.AvgPool2d, or with a convolution of stride 2",
                    )
                )
            if isinstance(op, ops.AdaptiveAvgPool):
                exact = as_avg_pool(op, builder.type(args[0]).shape)
                if exact is None:
                    size = " x ".join(map(str, builder.type(args[0]).shape[1:]))
                    context.report(
                        Diagnostic(
                            "SNN031",
                            f"`{node.name}` averages over windows of different sizes ({size} to {op.output})",
                            node.loc,
                            hint=divisors(builder.type(args[0]).shape[1:]),
                        )
                    )
                    return None
                op = exact
            with units_fit(node, context):  # a sum of spikes is spikes again, with units that an average did not have
                new = self._sum_pool(builder, node, args, op, context) if isinstance(op, ops.AvgPool) else None
                return builder.copy(node, args) if new is None else new

        return rebuild(graph, visit)

    def _sum_pool(
        self, builder: Builder, node: Node, args: tuple[str, ...], op: ops.AvgPool, context: Context
    ) -> str | None:
        x = builder.type(args[0])
        counts = op.counts(x.shape, node.type.shape)
        if (counts != counts.flat[0]).any():
            context.report(
                Diagnostic(
                    "SNN031",
                    f"`{node.name}` divides its windows by different numbers ({counts.min():g} to {counts.max():g})",
                    node.loc,
                    hint="use ceil_mode=False, and count_include_pad=True where there is padding",
                )
            )
            return None
        # How far the last window reaches, as ceil_mode may reach beyond the padding.
        reach = [(n - 1) * s + k for n, s, k in zip(node.type.shape[1:], op.stride, op.kernel, strict=True)]
        after = [max(0, r - n - p) for r, n, p in zip(reach, x.shape[1:], op.padding, strict=True)]
        (source,) = args
        if any((*op.padding, *after)):
            pad = ops.Pad((0, *op.padding), (0, *after))
            source = builder.add(builder.unique(f"{node.name}.pad"), pad, args, node.loc)
        pool = ops.SumPool(op.kernel, op.stride, 1.0 / float(np.asarray(counts).flat[0]))
        return builder.add(node.name, pool, (source,), node.loc)
