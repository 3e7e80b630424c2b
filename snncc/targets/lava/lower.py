"""From a network to Loihi 2's neurons: what the chip has no way to do is said early, currents get one neuron each, and
integrate-and-fire neurons become Lava's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, Severity, Stage, ops
from snncc.ir.loihi import SHIFT, STATE, AtrLif, CubaLif
from snncc.ir.ranges import Ranges, ranges
from snncc.ir.types import Array, Param
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.lower_sigma_delta import currents_read, sums_of
from snncc.passes.rewrite import Builder, rebuild


@dataclass(frozen=True)
class CheckSynapses(Pass):
    """Report what no connection between neurons can do, before anything is calibrated.

    Attributes:
        signed: whether neurons can send values of either sign (sigma-delta), so that layers may follow each other
            without an activation.
    """

    signed: bool = False
    name: ClassVar[str] = "check-synapses"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        """The same graph."""
        only_relus = all(  # what sigma-delta neurons take
            isinstance(node.op, ops.Relu) or not isinstance(node.op, ops.Activation | ops.Floor | ops.MaxPool)
            for node in graph.nodes
        )
        for node in graph.nodes:
            if isinstance(node.op, ops.MaxPool):
                text = f"`{node.name}` is max pooling, which no synapse computes"
                hint = "train with nn.AvgPool2d, or with a convolution of stride 2"
                context.report(Diagnostic("SNN031", text, node.loc, hint=hint))
            elif isinstance(node.op, ops.Pad) and node.op.value:
                text = f"`{node.name}` pads with {node.op.value:g}; where no neuron is, nothing can be sent"
                context.report(Diagnostic("SNN052", text, node.loc, hint="pad with 0"))
        for node, layer in [] if self.signed else currents_read(graph):
            text = f"no activation stands between `{node.name}` and `{layer}`: spikes cannot carry its sums"
            hint = "put a ReLU between them, or merge the two layers"
            if only_relus:
                hint += ", or choose neuron='sigma-delta'"
            context.report(Diagnostic("SNN032", text, node.loc, hint=hint))
        if not any(isinstance(n.op, ops.Weighted) for n in graph.nodes):
            text = "the network has no layer with weights"
            context.report(Diagnostic("SNN064", text, graph[graph.outputs[0]].loc))
        return graph


@dataclass(frozen=True)
class SeparateCurrents(Pass):
    """Give every activation sums of its own: what several read is computed for each.

    On the chip it is so anyway, as synapses end at a neuron. Every neuron then has a grid of integers of its own, so
    that one threshold serves all its channels: Lava's neurons have one number for it.
    """

    name: ClassVar[str] = "separate-currents"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        sums = sums_of(graph)

        def own(builder: Builder, name: str, by: str, done: dict[str, str]) -> str:
            """The sum ``name`` for the activation ``by`` alone: itself, if nobody else reads anything of it."""
            node = graph[name]
            if name not in sums:
                return name
            if name not in done:
                args = tuple(own(builder, arg, by, done) for arg in node.args)
                alone = len(graph.users[name]) == 1 and name not in graph.outputs and args == node.args
                done[name] = name if alone else builder.add(builder.unique(f"{name}.to.{by}"), node.op, args, node.loc)
            return done[name]

        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, ops.Activation):
                return None
            return builder.copy(node, (own(builder, node.args[0], node.name, {}),))

        return rebuild(graph, visit)


@dataclass(frozen=True)
class AbsorbAffine(Pass):
    """Move factors and shifts per channel (a batch norm behind a sum or a concatenation, as in DenseNet) into the
    layers that the sum comes from. After separate-currents these serve one activation alone, so they can take them."""

    name: ClassVar[str] = "absorb-affine"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        sums = sums_of(graph)

        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            op = node.op
            if not isinstance(op, ops.Affine) or node.args[0] not in sums:
                return None
            scale = graph.value(op.weight).astype(np.float64)
            shift = np.zeros_like(scale) if op.bias is None else graph.value(op.bias).astype(np.float64)
            new = _Absorb(builder, sums.keys(), node).into(node.args[0], args[0], scale, shift)
            if new is None:
                text = f"the factors of `{node.name}` cannot be moved into the layers before it"
                hint = "put the batch norm directly behind a layer, a sum or a concatenation of channels"
                context.report(Diagnostic("SNN032", text, node.loc, hint=hint))
            return new

        return rebuild(graph, visit)


# With how many axes the first one of a layer's result is its channels.
_CHANNELS = {ops.Conv2d: (3,), ops.Linear: (1,), ops.Affine: (1, 3)}


@dataclass(frozen=True)
class _Absorb:
    """Builds ``scale * value + shift`` without the affine operation ``by``."""

    builder: Builder
    sums: Collection[str]
    by: Node

    def into(self, name: str, now: str, scale: Array, shift: Array) -> str | None:
        """The new value's name; None where the factors cannot go.

        Args:
            name: the value in the old graph.
            now: the same in the new one, built already.
            scale, shift: (C,) each.
        """
        node, store = self.builder.nodes[now], self.builder.store
        op, old = node.op, self.builder.source[name]
        if name not in self.sums:
            weight, bias = store.put("weight", scale.astype(np.float32)), store.put("bias", shift.astype(np.float32))
            return self._add(now, ops.Affine(weight, bias), now)

        def below(i: int, scale: Array, shift: Array) -> str | None:
            return self.into(old.args[i], node.args[i], scale, shift)

        match op:
            case ops.Conv2d() | ops.Linear() | ops.Affine() if len(node.type.shape) in _CHANNELS[type(op)]:
                if isinstance(op, ops.Affine) and old.args[0] in self.sums:
                    return None  # it could not go either
                rows = scale.reshape(-1, *(1,) * (len(op.weight.shape) - 1))
                before = 0.0 if op.bias is None else store[op.bias].astype(np.float64)
                weight = store.put(op.weight.name, (store[op.weight] * rows).astype(np.float32))
                bias = store.put(f"{op.weight.name}.shift", (before * scale + shift).astype(np.float32))
                return self._add(now, replace(op, weight=weight, bias=bias), *node.args)
            case ops.Add():
                return self._add(now, op, below(0, scale, shift), below(1, scale, np.zeros_like(shift)))
            case ops.Concat(axis=0):
                ends = np.cumsum([self.builder.type(arg).shape[0] for arg in node.args])[:-1]
                parts = zip(np.split(scale, ends), np.split(shift, ends), strict=True)
                return self._add(now, op, *(below(i, *part) for i, part in enumerate(parts)))
            case ops.AvgPool(padding=(0, 0), ceil_mode=False, divisor=0) | ops.AdaptiveAvgPool():
                return self._add(now, op, below(0, scale, shift))
        return None

    def _add(self, now: str, op: ops.Op, *args: str | None) -> str | None:
        found = tuple(arg for arg in args if arg is not None)
        title = self.builder.unique(f"{now}.{self.by.name}")
        loc = self.builder.nodes[now].loc.merge(self.by.loc)
        return self.builder.add(title, op, found, loc) if len(found) == len(args) else None


@dataclass(frozen=True)
class LowerNeurons(Pass):
    """Replace integrate-and-fire neurons by Lava's: LIF where the reset is to zero, ATRLIF where it subtracts.

    Biases move from the layers, where every current has its own, into the neurons, where the chip has them.
    """

    name: ClassVar[str] = "lower-neurons"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.INT,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        constant, fixed = _at_rest(graph), _fixed(graph)

        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            op = node.op
            if isinstance(op, ops.Add) and node.args[0] != node.args[1]:
                moving = [new for old, new in zip(node.args, args, strict=True) if old not in fixed]
                if len(moving) == 1:  # what is the same in every step is in the neurons' biases
                    return moving[0]
            if isinstance(op, ops.Conv2d | ops.Linear | ops.Affine) and op.bias is not None:
                return builder.copy(node, args, replace(op, bias=None))
            if not isinstance(op, ops.If):
                return None
            assert isinstance(op.threshold, int), "separate-currents left one threshold for all channels"
            bias = _bias(builder, node, constant[node.args[0]])
            theta, odd = divmod(op.threshold, 2)
            if op.reset == "zero":
                new: ops.Op = CubaLif(op.threshold - 1, bias, v0=op.v0)  # strictly greater
            else:
                assert not odd, "quantize was asked for even thresholds"
                new = AtrLif(theta, bias, _minus(builder, node, theta))
            return builder.add(node.name, new, args, node.loc, node.type.unit)

        result = rebuild(graph, visit)
        _check_state(result, context)
        return result


def _fixed(graph: Graph) -> set[str]:
    """The values that follow from ones alone."""
    fixed: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, ops.Ones) or (
            node.args and not isinstance(node.op, ops.If) and fixed.issuperset(node.args)
        ):
            fixed.add(node.name)
    return fixed


def _at_rest(graph: Graph) -> dict[str, Array]:
    """What flows into every neuron while nothing is sent: the biases, wherever they come from. (*shape) by value."""
    rest: dict[str, Array] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Input | ops.Encode | ops.If):
            rest[node.name] = np.zeros((1, *node.type.shape))
        else:
            rest[node.name] = node.op.evaluate([rest[arg] for arg in node.args], node.type, graph.store)
    return {name: value[0] for name, value in rest.items()}


def _bias(builder: Builder, node: Node, current: Array) -> Param | None:
    """A neuron's bias in 1/64 of a unit: per channel (C,) if it is the same in a channel, else per neuron."""
    if not current.any():
        return None
    rows = current.reshape(len(current), -1)
    value = rows[:, 0] if (rows == rows[:, :1]).all() else current
    return builder.store.put(f"{node.name}.bias", (value * 2**SHIFT).astype(np.int32))


def _minus(builder: Builder, node: Node, theta: int) -> int | Param:
    """ATRLIF's initial potential: it starts at theta of its own accord."""
    assert isinstance(node.op, ops.If)
    v0 = node.op.v0
    if isinstance(v0, Param):
        return builder.store.put(f"{node.name}.v0", (builder.store[v0] - theta).astype(np.int32))
    return int(v0) - theta


LIMIT = (STATE - 1) >> SHIFT  # of sums and potentials, in units of the synaptic sum


def sums(graph: Graph, found: Ranges) -> dict[str, float]:
    """The largest magnitude of what may flow into a neuron in one step, for those where that wraps around."""
    sizes = {n.name: found.values[n.args[0]].size for n in graph.nodes if isinstance(n.op, CubaLif | AtrLif)}
    return {name: size for name, size in sizes.items() if size > LIMIT}


def charges(graph: Graph, found: Ranges) -> dict[str, float]:
    """The largest magnitude of the charge that may add up over all steps, in units of the synaptic sum, for neurons
    where 24 bits may not hold it. A reset to zero forgets what saturates above the threshold."""
    sizes: dict[str, float] = {}
    for node in graph.nodes:
        if isinstance(node.op, CubaLif):
            sizes[node.name] = -found.states[node.name][1].hull[0]
        elif isinstance(node.op, AtrLif):
            sizes[node.name] = found.states[node.name][0].size
    return {name: size / 2**SHIFT for name, size in sizes.items() if size / 2**SHIFT > LIMIT}


def longest(graph: Graph, most: int) -> int:
    """The largest number of time steps, up to ``most``, for which no potential leaves 24 bits, whatever the input
    within the calibrated range. Charges grow by the same amount in each step."""
    one, two = (ranges(graph, timesteps) for timesteps in (1, 2))
    for node in graph.nodes:
        if isinstance(node.op, CubaLif | AtrLif):
            at = 0 if isinstance(node.op, AtrLif) else 1
            (a, b), top = (found.states[node.name][at] for found in (one, two)), LIMIT * 2.0**SHIFT
            ends = [(-a.low, -b.low)] if at else [(-a.low, -b.low), (a.high, b.high)]
            for first, second in ends:
                rise = second - first
                with np.errstate(divide="ignore", invalid="ignore"):
                    steps = np.where(rise > 0, (top - first) // rise + 1, np.where(first <= top, most, 0))
                most = min(most, int(steps.min()))
    return most


def _check_state(graph: Graph, context: Context) -> None:
    """Say where 24 bits may not be enough. Simulation and Lava do the same then; but it is no longer the network."""
    found = ranges(graph, context.timesteps)
    for name, total in sums(graph, found).items():
        text = f"what flows into `{name}` in one step may reach {total:,.0f}, and wraps around at {LIMIT:,}"
        hint = "calibrate with data that covers the input's range, or choose fewer weight_bits"
        loc = graph[name].loc
        context.report(Diagnostic("SNN065", text, loc, Severity.WARNING, hint, limit=LIMIT, found=total))
    if unproved := charges(graph, found):
        worst = max(unproved, key=lambda name: unproved[name])
        names = ", ".join(f"`{name}`" for name in list(unproved)[:3]) + (", ..." if len(unproved) > 3 else "")
        text = (
            f"the potentials of {len(unproved)} layers ({names}) are not proved to stay within 24 bits: if all input "
            f"came at once in each of {context.timesteps} steps, those of `{worst}` would reach {unproved[worst]:,.0f} "
            f"of {LIMIT:,}, where they saturate, here and on the chip"
        )
        context.report(Diagnostic("SNN065", text, graph[worst].loc, Severity.NOTE, limit=LIMIT, found=unproved[worst]))
