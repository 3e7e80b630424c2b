"""check-bias: biases cost a chip energy every time step, and no vendor's tool says so. This pass does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, PerChannel, Severity, Stage, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild

POLICIES = ("error", "warn", "keep", "strip", "fold")
PER_LAYER = 16  # up to how many layers the cost of each one's biases is measured


@dataclass(frozen=True)
class CheckBias(Pass):
    """Report every layer with a bias: how many are not zero, and the operations that they cost each time step.

    Attributes:
        policy: "error" and "warn" report and change nothing; "keep" is silent; "strip" removes biases, and says what
            that costs on the calibration data; "fold" moves them into the neurons' initial potential,
            ``v0 + T * b``: over T steps the same charge, given at once, so no operation is left to pay for.
        cost: whether the target pays for biases by the operation; where it does not, "warn" is no more than a note.
    """

    policy: str = "warn"
    cost: bool = True
    name: ClassVar[str] = "check-bias"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"unknown bias policy {self.policy!r}; known: {', '.join(POLICIES)}")

    @property
    def requires(self) -> tuple[Stage, ...]:  # type: ignore[override]
        """Folding needs neurons; everything else comes before calibration, which must see what is left."""
        return (Stage.SNN,) if self.policy == "fold" else (Stage.FOLDED,)

    @property
    def relation(self) -> Relation:  # type: ignore[override]
        """Reporting changes nothing; stripping is a change of parameters; folding keeps the charge over T steps."""
        return {"strip": Relation.BOUNDED, "fold": Relation.RATE}.get(self.policy, Relation.EXACT)

    def run(self, graph: Graph, context: Context) -> Graph:
        biased = [n for n in graph.nodes if isinstance(n.op, ops.Weighted) and n.op.bias is not None]
        if not biased or self.policy == "keep":
            return graph
        if self.policy == "fold":
            return _fold(graph, context)
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
        hint = (
            "train with bias=False (a batch norm's shift becomes a bias, too), or choose bias='keep', 'fold' or 'strip'"
        )
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


def _fold(graph: Graph, context: Context) -> Graph:
    """Move biases into ``v0`` of the neuron that alone reads them."""
    extra: dict[str, Array] = {}  # neuron -> charge per step and channel
    done: set[str] = set()

    def collect(node: Node) -> tuple[Array, list[str]] | None:
        """The bias per channel that reaches ``node``'s only reader, and the layers it comes from."""
        if len(graph.users[node.name]) > 1 or node.name in graph.outputs:
            return None
        if isinstance(node.op, ops.Add):
            found = [part for part in map(collect, graph.producers(node)) if part is not None]
            total = np.sum([part[0] for part in found], axis=0) if found else None
            return (total, [name for part in found for name in part[1]]) if total is not None else None
        # Of a linear layer on several axes, the bias belongs to the last one: it is not per channel.
        per_channel = not isinstance(node.op, ops.Linear) or len(node.type.shape) == 1
        if isinstance(node.op, ops.Weighted) and node.op.bias is not None and per_channel:
            return graph.value(node.op.bias).astype(np.float64), [node.name]
        return None

    for node in graph.nodes:
        if isinstance(node.op, ops.If) and (found := collect(graph[node.args[0]])) is not None:
            extra[node.name], names = found
            done.update(names)
    for node in graph.nodes:
        if isinstance(node.op, ops.Weighted) and node.op.bias is not None:
            if node.name in done:
                text = f"biases of `{node.name}` are given as {context.timesteps} steps' charge at the start"
                context.report(Diagnostic("SNN022", text, node.loc, Severity.NOTE))
            else:
                message = f"biases of `{node.name}` reach no neuron of their own, so they cannot be folded; they stay"
                context.report(Diagnostic("SNN020", message, node.loc, Severity.WARNING))

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        if node.name in done:
            assert isinstance(node.op, ops.Conv2d | ops.Linear | ops.Affine)
            return builder.copy(node, args, replace(node.op, bias=None))
        if node.name in extra:
            assert isinstance(node.op, ops.If)
            v0 = _as_array(builder, node.op.v0) + context.timesteps * extra[node.name]
            return builder.copy(node, args, replace(node.op, v0=builder.store.put(f"{node.name}.v0", v0)))
        return None

    return rebuild(graph, visit)


def _as_array(builder: Builder, value: PerChannel) -> Array:
    return np.asarray(value if isinstance(value, float | int) else builder.store[value], np.float64)
