"""lower-activations: a network becomes a spiking one. Activations turn into integrate-and-fire neurons, inputs are
encoded in time; and spiking-output, which gives a network's scores a neuron where the hardware has nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from snncc.ir import Diagnostic, Graph, Node, PerChannel, Severity, Stage, Store, ops
from snncc.ir.ops import times
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild, units_fit


@dataclass(frozen=True)
class SpikingOutput(Pass):
    """Put a ReLU behind every output that has no activation: for hardware whose outputs are spikes.

    Attributes:
        direct: whether outputs must be activations themselves, at most reshaped; else pooled, sliced and joined ones
            are taken as they are.
    """

    direct: bool = False
    name: ClassVar[str] = "spiking-output"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.LOSSY

    def run(self, graph: Graph, context: Context) -> Graph:
        bare = set()  # values that get a ReLU
        for name in graph.outputs:
            node = graph[name]
            if _is_activated(graph, node, self.direct):
                continue
            if not _is_activated(graph, node):
                text = f"output `{name}` has no activation: the chip answers with spikes, so scores below 0 read as 0"
                context.report(Diagnostic("SNN033", text, node.loc, Severity.NOTE))
            # In front of shape changes, directly behind the layer: canonicalize's form. Nobody else must read that.
            alone = not graph.users[name]
            while alone and isinstance(node.op, ops.Flatten | ops.Reshape | ops.Slice):
                alone = _read_once(graph, node.args[0])
                node = graph[node.args[0]] if alone else node
            bare.add(node.name)
        builder, read, shown = Builder(graph), dict[str, str](), dict[str, str]()
        for node in graph.nodes:
            read[node.name] = shown[node.name] = builder.copy(node, tuple(read[arg] for arg in node.args))
            if node.name in bare:
                relu = builder.add(builder.unique(f"{node.name}.relu"), ops.Relu(), (node.name,), node.loc)
                (shown if node.name in graph.outputs else read)[node.name] = relu
        outputs = tuple(shown[name] for name in graph.outputs)
        return replace(graph, nodes=tuple(builder.nodes.values()), outputs=outputs)


def _read_once(graph: Graph, name: str) -> bool:
    return len(graph.users[name]) == 1 and name not in graph.outputs


def _is_activated(graph: Graph, node: Node, direct: bool = False) -> bool:
    """Whether the value is an activation's, perhaps reshaped and, unless ``direct``, pooled, sliced and joined."""
    if isinstance(node.op, ops.Activation):
        return True
    pools = (ops.AvgPool, ops.AdaptiveAvgPool, ops.SumPool, ops.MaxPool)
    moves = (ops.Flatten, ops.Reshape, *(() if direct else (ops.Slice, ops.Pad, ops.Concat, *pools)))
    return isinstance(node.op, moves) and all(_is_activated(graph, p, direct) for p in graph.producers(node))


@dataclass(frozen=True)
class LowerActivations(Pass):
    """Replace activations by IF neurons and encode the inputs.

    A network that has spiking neurons itself keeps them, and its maxima are of each step.

    A neuron's threshold is the activation's calibrated value, so that one spike a step stands for it; it starts at
    ``v0`` of the threshold (1/2 turns the rate's floor into a rounding: Bu et al. 2022, "Optimized Potential
    Initialization"). A quantized activation brings both itself.

    Attributes:
        encoding: see :class:`snncc.ir.ops.Encode`.
        reset: "subtract" or "zero".
        v0: the initial potential in thresholds.
        v_min: floor of the potential in thresholds, or None.
    """

    encoding: str = "constant"
    reset: str = "subtract"
    v0: float = 0.5
    v_min: float | None = None
    seed: int = 0
    name: ClassVar[str] = "lower-activations"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    ensures: ClassVar[Stage] = Stage.SNN

    @property
    def relation(self) -> Relation:  # type: ignore[override]
        """A reset to zero forgets what lay above the threshold, a floor what lay below: no bound in T is left."""
        return Relation.RATE if self.reset == "subtract" and self.v_min is None else Relation.LOSSY

    def run(self, graph: Graph, context: Context) -> Graph:
        spiking = any(isinstance(node.op, ops.Lif) for node in graph.nodes)

        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str:
            with units_fit(node, context):
                new = self._own(builder, node, args, context) if spiking else None
                if new is None:
                    new = self._lower(builder, node, args, context)
                return builder.copy(node, args) if new is None else new

        return rebuild(graph, visit)

    def _own(self, builder: Builder, node: Node, args: tuple[str, ...], context: Context) -> str | None:
        """Of a network that has spiking neurons itself: what is not lowered as any other network's."""
        if isinstance(node.op, ops.MaxPool):
            return builder.copy(node, args, replace(node.op, each_step=True))
        if isinstance(node.op, ops.Activation):
            text = f"`{node.name}` is an activation ({node.op.mnemonic}) in a network that has spiking neurons itself"
            hint = "make it a spiking neuron, too, and train with it: it would have to be converted, they must not be"
            context.report(Diagnostic("SNN035", text, node.loc, hint=hint))
        return None

    def _lower(self, builder: Builder, node: Node, args: tuple[str, ...], context: Context) -> str | None:
        op = node.op
        if isinstance(op, ops.Input):
            return self._encode(builder, node, op, context)
        if isinstance(op, ops.QuantRelu):
            return self._neuron(builder, node, args, op.theta, op.shift * op.theta)
        threshold = op.threshold if isinstance(op, ops.Activation) else 1.0
        if not is_spikes(op):
            bound = ""
            if isinstance(op, ops.Clamp):
                bound = " without a lower bound" if op.low is None else f" with the lower bound {op.low:g}"
            context.report(
                Diagnostic(
                    "SNN030",
                    f"`{node.name}` ({op.mnemonic}{bound}) takes values that spikes cannot stand for",
                    node.loc,
                    hint="train with ReLU, ReLU6 or another activation that is 0 for negative input",
                )
            )
            # A neuron all the same: the passes behind this one have more to say.
        elif not isinstance(op, ops.Activation):
            return None
        elif threshold is None:
            context.report(
                Diagnostic(
                    "SNN010",
                    f"`{node.name}` has no threshold: nothing was calibrated",
                    node.loc,
                    hint="pass calibration=..., some batches of typical input",
                )
            )
        if threshold is None:
            return None
        return self._neuron(builder, node, args, threshold, times(threshold, self.v0, builder.store))

    def _neuron(
        self, builder: Builder, node: Node, args: tuple[str, ...], threshold: PerChannel, v0: PerChannel
    ) -> str:
        v_min = None if self.v_min is None else self.v_min * _smallest(threshold, builder.store)
        return builder.add(node.name, ops.If(threshold, v0, self.reset, v_min), args, node.loc)

    def _encode(self, builder: Builder, node: Node, op: ops.Input, context: Context) -> str:
        name = builder.copy(node, ())
        high, low = op.high, op.low
        if self.encoding in ("rate", "bernoulli"):
            if low is not None and low < 0:
                context.report(
                    Diagnostic(
                        "SNN012",
                        f"input `{node.name}` goes down to {low:.4g}, but a rate cannot be negative",
                        node.loc,
                        hint="move the normalisation into the network (x * a + b as its first layer), "
                        "or use encoding='constant' where the target takes it",
                    )
                )
            if high is None:
                context.report(
                    Diagnostic(
                        "SNN010",
                        f"the range of input `{node.name}` is not known",
                        node.loc,
                        hint="pass calibration=..., some batches of typical input",
                    )
                )
        # Of ready-made spikes one counts one; else the largest input seen is one spike a step.
        unit = high if self.encoding in ("rate", "bernoulli") and high is not None and high > 0 else 1.0
        op_encode = ops.Encode(self.encoding, unit, seed=self.seed)
        return builder.add(builder.unique(f"{node.name}.encode"), op_encode, (name,), node.loc)


def is_spikes(op: ops.Op) -> bool:
    """Whether spikes can stand for the operation's values, if it is an activation; of another, nothing is said."""
    return not isinstance(op, ops.Floor) and not (isinstance(op, ops.Clamp) and (op.low != 0 or op.high is None))


def _smallest(value: PerChannel, store: Store) -> float:
    return float(value) if isinstance(value, float | int) else float(store[value].min())
