"""lower-sigma-delta: a network becomes one of sigma-delta neurons, which send how their activation changes. With a
constant input nothing changes after the first step: every neuron sends once, and what it sends is its activation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Loc, Node, Param, Stage, ops
from snncc.ir.loihi import Delta, Sigma, SigmaDelta
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.lower_activations import is_spikes
from snncc.passes.rewrite import Builder

_MOVES = (ops.Reshape, ops.Flatten, ops.Slice, ops.Pad, ops.Concat)
_POOLS = (ops.AvgPool, ops.AdaptiveAvgPool, ops.SumPool)


@dataclass(frozen=True)
class LowerSigmaDelta(Pass):
    """Replace ReLUs by sigma-delta neurons, put a delta behind every input and a sigma before every output. In every
    time step, the outputs are the network's.

    What flows between neurons are changes, so a bias must not flow in every step. It goes into the neuron, through sums
    and poolings: a neuron's bias is what would reach it if no message did. It is per channel, or per neuron where it
    differs within a channel (where a value that is not 0 was padded).

    Layers read messages. Where one would read a current, a neuron without activation stands in between; integers would
    grow from layer to layer without it. One stands, too, where a sum or a pooling reads a current that has other
    readers: so the currents that add up in a neuron form a tree, and the unit of its integers depends on no neuron
    behind it.
    """

    name: ClassVar[str] = "lower-sigma-delta"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    ensures: ClassVar[Stage] = Stage.SNN
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        if any(isinstance(node.op, ops.Ones) for node in graph.nodes):
            raise ValueError("ones do not change, so no message carries them: fold batch norms with ones=False")
        return _Lowering(graph, context).run()


def sums_of(graph: Graph) -> dict[str, str]:
    """The values that are sums of layers, perhaps pooled and moved about, and no activation's; with one such layer."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Weighted | ops.Add):
            found[node.name] = node.name
        elif not isinstance(node.op, ops.Activation) and (layers := [found[arg] for arg in node.args if arg in found]):
            found[node.name] = layers[0]
    return found


def currents_read(graph: Graph) -> list[tuple[Node, str]]:
    """The layers that read a sum of layers, without an activation between, and one layer of it: spikes cannot carry
    such. A factor for each channel goes into the layers before it."""
    known = sums_of(graph)
    layers = (node for node in graph.nodes if isinstance(node.op, ops.Conv2d | ops.Linear))
    return [(node, known[arg]) for node in layers for arg in node.args[:1] if arg in known]


def _pads(op: ops.Op) -> bool:
    """Whether lower-pooling may have to pad in front of this pooling. Only messages can be padded."""
    return isinstance(op, ops.AvgPool) and (any(op.padding) or op.ceil_mode)


class _Lowering:
    """Walks the graph once. A value of the network becomes a current or messages; a current's messages come into being
    when something needs them."""

    def __init__(self, graph: Graph, context: Context) -> None:
        self.graph, self.context = graph, context
        self.builder = Builder(graph)
        self.currents: set[str] = set()  # values of the network that are currents, under their names
        self.messages: dict[str, str] = {}  # value of the network -> its messages
        # Whether integrate-and-fire neurons would do.
        self.integrates = all(is_spikes(node.op) for node in graph.nodes) and not currents_read(graph)
        self.constants: dict[str, Array] = {}  # of currents and messages: what they leave out, (1, *shape); absent: 0

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self._lower(node)
        outputs = tuple(self._output(self.graph[name]) for name in self.graph.outputs)
        return replace(self.graph, nodes=tuple(self.builder.nodes.values()), outputs=outputs).live()

    def _lower(self, node: Node) -> None:
        op = node.op
        if isinstance(op, ops.Input):
            x = self.builder.copy(node, ())
            x = self.builder.add(self.builder.unique(f"{x}.encode"), ops.Encode(), (x,), node.loc)
            self.messages[node.name] = self.builder.add(self.builder.unique(f"{x}.delta"), Delta(), (x,), node.loc)
        elif isinstance(op, ops.Activation | ops.Floor):
            if not isinstance(op, ops.Relu):
                self._refuse_activation(node)  # and a neuron all the same: the passes behind this one have more to say
            self.messages[node.name] = self._neuron(node.name, "relu", node.args[0], node.loc)
        elif isinstance(op, ops.Weighted):
            self.currents.add(self._linear(node, (self._message(node.args[0]),)))
        elif isinstance(op, ops.Add):
            self.currents.add(self._linear(node, tuple(map(self._operand, node.args))))
        elif isinstance(op, _POOLS) and not _pads(op) and (x := self._operand(node.args[0])) in self.currents:
            self.currents.add(self._linear(node, (x,)))
        else:
            if isinstance(op, ops.MaxPool):
                self._refuse_max_pool(node)
            self.messages[node.name] = self._linear(node, tuple(map(self._message, node.args)))

    def _output(self, node: Node) -> str:
        """The real values, which a sigma adds up. Shapes change behind it: what it reads is not rounded to messages."""
        if isinstance(node.op, _MOVES):
            args = tuple(self._output(producer) for producer in self.graph.producers(node))
            return self.builder.add(self.builder.unique(f"{node.name}.scores"), node.op, args, node.loc)
        x = self._source(node.name)
        name = self.builder.unique(f"{node.name}.sigma")
        return self.builder.add(name, Sigma(self._bias(x, name)), (x,), node.loc)

    # --- forms of a value ---

    def _source(self, name: str) -> str:
        """What a neuron reads for the value ``name``."""
        return name if name in self.currents else self.messages[name]

    def _operand(self, name: str) -> str:
        """What a sum or a pooling reads: a current only if nothing else reads that."""
        alone = len(self.graph.users[name]) == 1 and name not in self.graph.outputs
        return self._source(name) if alone else self._message(name)

    def _message(self, name: str) -> str:
        if name not in self.messages:
            neuron = self.builder.unique(f"{name}.messages")
            self.messages[name] = self._neuron(neuron, "none", name, self.graph[name].loc)
        return self.messages[name]

    # --- nodes ---

    def _linear(self, node: Node, args: tuple[str, ...]) -> str:
        """The node without what it adds by itself."""
        op = node.op
        known = [self.constants.get(arg) for arg in args]
        if any(c is not None for c in known) or (isinstance(op, ops.Pad) and op.value):
            zeros = (np.zeros((1, *self.builder.type(arg).shape)) for arg in args)
            both = [z if c is None else c for c, z in zip(known, zeros, strict=True)]
            self.constants[node.name] = op.evaluate(both, node.type, self.graph.store)
        elif isinstance(op, ops.Weighted) and op.bias is not None:
            bias = self.graph.value(op.bias).astype(np.float64)
            if not isinstance(op, ops.Linear):  # whose outputs lie along the last axis
                bias = bias.reshape(-1, *(1,) * (len(node.type.shape) - 1))
            self.constants[node.name] = np.broadcast_to(bias, (1, *node.type.shape))
        if isinstance(op, ops.Conv2d | ops.Linear | ops.Affine):
            op = replace(op, bias=None)
        elif isinstance(op, ops.Pad):
            op = replace(op, value=0.0)
        return self.builder.add(node.name, op, args, node.loc)

    def _neuron(self, name: str, activation: str, value: str, loc: Loc) -> str:
        x = self._source(value)
        return self.builder.add(name, SigmaDelta(self._bias(x, name), activation=activation), (x,), loc)

    def _bias(self, x: str, name: str) -> Param | None:
        """What the neuron ``name`` has to add to ``x``."""
        if x not in self.constants or not self.constants[x].any():
            return None
        value = self.constants[x][0]
        rows = value.reshape(len(value), -1)
        # Averages of equal numbers differ in their last bits.
        same = np.ptp(rows, axis=1).max() <= 1e-9 * np.abs(rows).max()
        return self.graph.store.put(f"{name}.bias", (rows[:, 0] if same else value).astype(np.float32))

    # --- what cannot be ---

    def _refuse_activation(self, node: Node) -> None:
        text = f"`{node.name}` ({node.op.mnemonic}) is an activation that sigma-delta neurons do not have"
        hint = "train with ReLU"
        if self.integrates:
            hint += ", or choose integrate-and-fire neurons, by leaving neuron='sigma-delta' out"
        self.context.report(Diagnostic("SNN030", text, node.loc, hint=hint))

    def _refuse_max_pool(self, node: Node) -> None:
        self.context.report(
            Diagnostic(
                "SNN031",
                f"`{node.name}` is max pooling, which changes cannot go through",
                node.loc,
                hint="train with nn.AvgPool2d, or with a convolution of stride 2",
            )
        )
