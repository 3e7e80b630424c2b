"""check-bias: biases cost a chip energy every time step, and no vendor's tool says so. This pass does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, Severity, Stage, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild

POLICIES = ("error", "warn", "keep", "strip")
PER_LAYER = 16  # up to how many layers the cost of each one's biases is measured


@dataclass(frozen=True)
class CheckBias(Pass):
    """Report every layer with a bias: how many are not zero, and the operations that they cost each time step.

    Attributes:
        policy: "error" and "warn" report and change nothing; "keep" is silent; "strip" removes biases, and says what
            that costs on the calibration data.
        cost: whether the target pays for biases by the operation; where it does not, "warn" is no more than a note.
    """

    policy: str = "warn"
    cost: bool = True
    name: ClassVar[str] = "check-bias"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)  # before calibration, which must see what is left

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"unknown bias policy {self.policy!r}; known: {', '.join(POLICIES)}")

    @property
    def relation(self) -> Relation:  # type: ignore[override]
        """Reporting changes nothing; stripping is a change of parameters."""
        return Relation.BOUNDED if self.policy == "strip" else Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        biased = [n for n in graph.nodes if isinstance(n.op, ops.Weighted) and n.op.bias is not None]
        if not biased or self.policy == "keep":
            return graph
        if self.policy == "warn" and not self.cost:
            for node in biased:
                context.report(replace(self._report(graph, node, None), severity=Severity.NOTE, hint=""))
            return graph
        names = [n.name for n in biased]
        # One layer at a time is a run each: worth it while there are few.
        each = [_strip(graph, [name]) for name in names] if len(names) <= PER_LAYER else []
        stripped = _strip(graph, names)
        kept = _kept_classes(graph, [stripped, *each], context)
        for i, node in enumerate(biased):
            context.report(self._report(graph, node, kept[i + 1] if each and kept else None))
        if kept:
            n = sum(len(batch[0]) for batch in context.sample)
            text = f"without any bias, {100 * kept[0]:.1f} % of {n} calibration samples keep their class"
            context.report(Diagnostic("SNN020", text, severity=Severity.NOTE))
        return stripped if self.policy == "strip" else graph

    def _report(self, graph: Graph, node: Node, kept: float | None) -> Diagnostic:
        assert isinstance(node.op, ops.Weighted) and node.op.bias is not None
        nonzero = int(np.count_nonzero(graph.value(node.op.bias)))
        total = node.op.bias.size
        added = nonzero * (node.type.size // total)
        text = f"`{node.name}` has {nonzero} of {total} biases that are not zero: {added:,} additions per time step"
        if kept is not None:
            text += f"; without them {100 * kept:.1f} % of the calibration samples keep their class"
        if self.policy == "strip":
            return Diagnostic("SNN021", f"{text}. They are removed", node.loc, Severity.WARNING)
        severity = Severity.ERROR if self.policy == "error" else Severity.WARNING
        hint = "train with bias=False (a batch norm's shift becomes a bias, too), or choose bias='keep' or 'strip'"
        return Diagnostic("SNN020", text, node.loc, severity, hint)


def _strip(graph: Graph, names: list[str]) -> Graph:
    """Without the biases of the named layers."""

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        if node.name in names and isinstance(node.op, ops.Conv2d | ops.Linear | ops.Affine):
            return builder.copy(node, args, replace(node.op, bias=None))
        return None

    return rebuild(graph, visit)


def _kept_classes(before: Graph, after: list[Graph], context: Context) -> list[float]:
    """How much of the calibration sample keeps its class in each of ``after``; empty if there is nothing to run on."""
    if context.engine is None or not context.sample:
        return []
    engine = context.engine

    def classes(graph: Graph) -> Array:
        found: list[Array] = []

        def visit(name: str, value: Array) -> None:
            if name == graph.outputs[0]:
                found.append(value.reshape(len(value), -1).argmax(axis=1))

        for batch in context.sample:
            engine.values(graph, batch, visit)
        return np.concatenate(found)

    wanted = classes(before)
    return [float((classes(graph) == wanted).mean()) for graph in context.progress(after, "check biases")]
