"""quantize: a float spiking network becomes integers. And the classical quantizers of weights, by name.

The integer grid follows the neurons, not the layers. All that adds up in one neuron's potential shares one unit s (the
real value of one integer step), per output channel; from ``weight * unit_in / s`` the integer weights follow, from
``bias / s`` the biases. With the threshold theta[c] of channel c, s[c] = theta[c] / K for one whole number K: the
threshold is K, *exactly*, in all channels, whatever its real value. K is the largest that lets every weight and bias
into its width. So a large threshold costs the weights nothing: it has a width of its own. (Tiny thresholds would: of
channels that hardly ever fire, they are raised.)

A current that several read (a residual stream; two neurons behind one layer) makes one group of all that adds up in
any of them. There, the smallest threshold is exact, the others are rounded to the grid, and their spikes' units say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isclose, log2, prod
from typing import ClassVar

import networkx as nx
import numpy as np

from snncc.ir import Diagnostic, Domain, Graph, Loc, Node, Param, PerChannel, Severity, Stage, Store, Type, ops
from snncc.ir.interp import EXACT
from snncc.ir.loihi import Sigma, SigmaDelta
from snncc.ir.ranges import ranges
from snncc.ir.types import Array, Range
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild, units_fit

NEURONS = (ops.If, ops.Lif, SigmaDelta, Sigma)  # where currents end
ACTIVE = 0.2  # the mean square of rates, by which roundings of weights add up: not all inputs are active
CHUNK = 1 << 18  # weights that are handled at a time in float64


@dataclass(frozen=True)
class Quantize(Pass):
    """Integer weights, biases, thresholds and inputs within the given widths (bits, signed).

    Attributes:
        weight_bits: symmetric: -(2^(b-1) - 1) .. 2^(b-1) - 1.
        bias_bits: of biases and initial potentials.
        threshold_bits: of thresholds.
        input_bits: of a constant input current.
        v_min: floor of the potentials in integer steps, where the hardware has one and the network sets none.
        min_bits: warn where most channels' largest weights use fewer bits than this, sign included.
        scale_bits: of the factors that bring a sum's operands to one unit; None: as weights. A shortcut's spikes are
            worth much more than one weight, so with few bits here the other operands' weights lose some.
        threshold_max: a limit of thresholds that is no power of two, beside ``threshold_bits``.
        threshold_step: thresholds are multiples of this.
        current_max: what no neuron's input may exceed in one step, by a bound: all that is excited at once. Biases
            then fit into their bits with all that add up in a neuron, too.
        state_bits: of initial potentials; None: as biases.
        equalize: weigh the bits that weights lose to the channel whose weights are largest, in thresholds, against the
            resolution that this channel loses if its threshold is raised (cross-layer equalization).
        least_bits: that every layer's largest weight keeps, even if sums may then exceed ``current_max`` or
            ``inner_max``: they are bounds, far from what ever comes; None: nothing may.
        significant: bits of weights and biases, from the highest that is not 0: what a floating-point number holds.
            Then the channels of an output without neurons share their unit.
        inner_max: what no sum may exceed in one step, by a bound, that only other layers read, without a neuron
            between. Integers multiply from layer to layer, so what these have, the next ones lose.
        resolution: thresholds are at most this, times the largest integer that their neuron's layers read.
        potentials: the lowest and highest potential, for hardware that fires event by event and adds biases on a clock:
            no more is reached, by a bound, in all time steps, if no weight is larger than the threshold.
        currents: layers may read what is not sent by neurons: then all that is concatenated is brought to like units.
    """

    weight_bits: int = 8
    bias_bits: int = 16
    threshold_bits: int = 16
    input_bits: int = 8
    v_min: int | None = None
    min_bits: int = 5
    scale_bits: int | None = None
    threshold_max: int | None = None
    threshold_step: int = 1
    current_max: int | None = None
    state_bits: int | None = None
    equalize: bool = False
    least_bits: int | None = None
    significant: int | None = None
    inner_max: int | None = None
    resolution: int | None = None
    potentials: tuple[int, int] | None = None
    currents: bool = True
    name: ClassVar[str] = "quantize"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.SNN,)
    ensures: ClassVar[Stage] = Stage.INT
    relation: ClassVar[Relation] = Relation.BOUNDED

    def __post_init__(self) -> None:
        for name in ("weight_bits", "scale_bits", "bias_bits", "threshold_bits", "input_bits", "state_bits"):
            if getattr(self, name) is not None and not 2 <= getattr(self, name) <= 32:
                raise ValueError(f"{name} must be 2 to 32, got {getattr(self, name)}")

    def run(self, graph: Graph, context: Context) -> Graph:
        result = Lowering(self, graph, context).run()
        _check_growth(result, context)
        return result


def limit(bits: int) -> int:
    """The largest magnitude of a symmetric signed integer of ``bits``."""
    return (1 << (bits - 1)) - 1


def _int_dtype(bits: int) -> type[np.signedinteger]:
    return np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32


# --- groups ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Group:
    """Currents that share a unit, the real value of one integer step: weighted sums, sums of them and their poolings.
    The unit of a member is ``factor`` times the group's: poolings scale. ``neurons`` read members."""

    members: list[Node]
    factor: dict[str, float]
    neurons: list[Node]
    unit: Array | None = None  # scalar or per channel; once it is chosen
    threshold: float = 0.0  # K of the neuron with the smallest threshold; 0: no neuron reads
    consistent: bool = True


def _is_current(graph: Graph, name: str) -> bool:
    """Whether the value belongs to a group."""
    node = graph[name]
    if isinstance(node.op, ops.SumPool):
        return node.type.domain is Domain.CURRENT and _is_current(graph, node.args[0])
    return isinstance(node.op, ops.Weighted | ops.Add)


def _joins(graph: Graph, reader: Node, name: str, apart: set[str]) -> bool:
    """Whether the operand ``name`` is of its reader's group, a sum's, or can be read by a neuron as it is."""
    pooled = isinstance(graph[name].op, ops.SumPool)
    shared = len(graph.users[name]) > 1 or name in graph.outputs
    return _is_current(graph, name) and not (reader.name in apart and (shared or pooled))


def _with_rescales(graph: Graph, apart: set[str], currents: bool) -> Graph:
    """Give every operand of a sum or a neuron that has a unit of its own (such as the spikes of a shortcut) a weight of
    one: an ``affine``, which quantization then scales to the group's unit. The sums ``apart`` give one to operands that
    others read, or that may pool such, too.

    Where ``currents`` can be read by layers, what is concatenated gets one as well. A spike is the integer 1, an input
    some hundred, a sum many more: a layer that reads more than one kind has one scale of weights, and those of the
    larger integers would be left without bits."""
    kinds: dict[str, set[str]] = {}  # of what a value consists, moved or pooled
    for node in graph.nodes:
        cut = isinstance(node.op, (*NEURONS, ops.Encode, ops.Input, ops.Ones))
        parts = {"sum"} if _is_current(graph, node.name) else {node.type.domain.value} if cut else set[str]()
        kinds[node.name] = parts or parts.union(*(kinds[arg] for arg in node.args))

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        summed = ["sum" in kinds[arg] for arg in node.args]
        mixed = (
            currents and isinstance(node.op, ops.Concat) and len(set().union(*(kinds[arg] for arg in node.args))) > 1
        )
        if not mixed and not isinstance(node.op, ops.Add | ops.If | ops.Lif | SigmaDelta):
            return None
        scaled = []
        for old, new, is_sum in zip(node.args, args, summed, strict=True):
            if is_sum if mixed else _joins(graph, node, old, apart):
                scaled.append(new)
                continue
            one = builder.store.put("one", np.ones(builder.type(new).shape[0], np.float32))
            scaled.append(builder.add(builder.unique(f"{old}.scale"), ops.Affine(one), (new,), node.loc))
        return builder.copy(node, tuple(scaled))

    return rebuild(graph, visit)


def _groups(graph: Graph) -> dict[str, Group]:
    """The group of every current, by its name. Sums are of operands that join them."""
    joined: nx.Graph[str] = nx.Graph()
    for node in graph.nodes:
        if _is_current(graph, node.name):
            joined.add_node(node.name)
            if not isinstance(node.op, ops.Weighted):
                scale = node.op.scale if isinstance(node.op, ops.SumPool) else 1.0
                joined.add_edges_from((arg, node.name, {"scale": scale, "to": node.name}) for arg in node.args)
    groups: dict[str, Group] = {}
    for node in graph.nodes:
        if node.name in joined and node.name not in groups:
            group = Group([], {node.name: 1.0}, [])
            for a, b in nx.bfs_edges(joined, node.name):
                edge = joined.edges[a, b]
                group.factor[b] = group.factor[a] * (edge["scale"] if edge["to"] == b else 1 / edge["scale"])
            for a, b, edge in joined.subgraph(group.factor).edges(data=True):
                ratio = edge["scale"] if edge["to"] == b else 1 / edge["scale"]
                group.consistent &= isclose(group.factor[b], group.factor[a] * ratio, rel_tol=1e-9)
            groups.update(dict.fromkeys(group.factor, group))
        if node.name in groups:
            groups[node.name].members.append(node)
        elif isinstance(node.op, NEURONS) and node.args[0] in groups:
            groups[node.args[0]].neurons.append(node)
    return groups


def _grouped(graph: Graph, currents: bool) -> tuple[Graph, dict[str, Group]]:
    """The graph with rescales, and its groups, none of which needs its own unit to choose it, or is pooled and added to
    itself."""
    apart: set[str] = set()
    while True:
        scaled = _with_rescales(graph, apart, currents)
        groups = _groups(scaled)
        needs: nx.DiGraph[int] = nx.DiGraph()
        for name, group in groups.items():
            if isinstance(scaled[name].op, ops.Weighted):
                needs.add_edges_from((id(group), id(other)) for other in _reads(scaled, groups, scaled[name].args[0]))
        parts = nx.strongly_connected_components(needs)
        circles = {g for part in parts for g in part if len(part) > 1 or needs.has_edge(g, g)}
        stuck = {
            name
            for name, group in groups.items()
            if isinstance(scaled[name].op, ops.Add) and (id(group) in circles or not group.consistent)
        }
        if stuck <= apart:
            return scaled, groups
        apart |= stuck


def _reads(graph: Graph, groups: dict[str, Group], name: str) -> Iterator[Group]:
    """The groups whose unit the unit of ``name`` depends on. Spikes have that of their neuron."""
    node = graph[name]
    if name in groups:
        yield groups[name]
    elif node.type.domain is Domain.CURRENT:
        for arg in node.args:
            yield from _reads(graph, groups, arg)


class Lowering:
    """Walks the graph once. The unit of a group is chosen when its first member is reached."""

    def __init__(self, options: Quantize, graph: Graph, context: Context) -> None:
        self.options, self.context = options, context
        self.graph, self.groups = _grouped(graph, options.currents)
        self.builder = Builder(self.graph)
        self.store: Store = graph.store
        self.rescales = {node.name for node in self.graph.nodes} - graph.by_name.keys()

    def run(self) -> Graph:
        for node in self.graph.nodes:
            with units_fit(node, self.context):
                if node.name in self.groups:
                    self._member(node)
                elif isinstance(node.op, NEURONS):
                    self._neuron(node)
                elif isinstance(node.op, ops.Encode):
                    self.builder.add(node.name, self._encoding(node, node.op), node.args, node.loc)
                elif isinstance(node.op, ops.Ones):
                    self.builder.add(node.name, self._ones(node, node.op), node.args, node.loc)
                elif isinstance(node.op, ops.Pad) and node.op.value:
                    self._pad(node, node.op)
                else:
                    self.builder.copy(node, node.args)
        return replace(self.graph, nodes=tuple(self.builder.nodes.values()), stage=Stage.INT)

    # --- units ---

    def _type(self, name: str) -> Type:
        """The integer type of a value, perhaps before it is built."""
        if name in self.builder.nodes:
            return self.builder.type(name)
        node = self.graph[name]
        if node.type.domain is Domain.SPIKE:
            return replace(node.type, dtype="i32")  # a spike is worth its threshold
        if name in self.groups:
            return replace(node.type, dtype="i32", unit=self._put_unit(name, self._unit(name)))
        op = self._encoding(node, node.op) if isinstance(node.op, ops.Encode) else node.op
        op = self._ones(node, op) if isinstance(op, ops.Ones) else op
        return op.infer(tuple(self._type(arg) for arg in node.args), self.store)

    def _unit(self, name: str) -> Array:
        """The unit of a member of a group."""
        group = self.groups[name]
        if group.unit is None:
            group.unit = self._choose(group)
        return np.asarray(group.unit * group.factor[name])

    def _choose(self, group: Group) -> Array:
        """The unit of a group: the finest that lets every weight, bias, threshold and initial potential into its width.
        A whole fraction of the (smallest) threshold, if neurons read the group; else per channel what weights ask.

        A few channels with tiny thresholds (they hardly ever fire) would leave all others without bits: where most
        would fall below ``min_bits``, those thresholds are raised instead."""
        o = self.options
        shape = group.members[0].type.shape
        weights, biases, kept = self._demands(group, shape[0], group.members)
        thetas, states = self._thetas(group, shape[0]), np.zeros(shape[0])
        for node in group.neurons:
            if isinstance(node.op, ops.If):
                states = np.maximum(states, np.abs(self._array(node.op.v0)) / group.factor[node.args[0]])
        least = np.maximum(weights, states / limit(o.state_bits or o.bias_bits))
        if o.potentials is not None:
            least = np.maximum(least, self._reached(group, thetas, states))
        if o.current_max is not None:
            currents, biases = self._sums(group, shape[0])
            least = np.maximum(least, np.minimum(currents / o.current_max, kept))
        least = np.maximum(least, biases / self._limit(o.bias_bits))
        if thetas:
            most_theta = self._most_theta
            if o.resolution is not None:
                weighted = [node for node in group.members if isinstance(node.op, ops.Weighted)]
                most_theta = min(
                    most_theta, o.resolution * max(1, *(int(self._most(node.args[0])) for node in weighted))
                )
            least = np.maximum(least, np.max(thetas, axis=0) / (most_theta // o.threshold_step * o.threshold_step))
            theta = min(thetas, key=lambda t: float(t.min()))
            most = theta / least * (1 + 1e-12)  # a rounding must not cost a step of K
            k = most.min()
            if (theta != theta[0]).any():
                bits = min(o.min_bits, o.weight_bits - 2)
                k = max(k, np.median(most) * 2.0 ** (bits - 2) / limit(o.least_bits or o.weight_bits))
                k = max(k, self._equal(group, most)) if o.equalize else k
            group.threshold = max(np.floor(k / o.threshold_step), 1.0) * o.threshold_step
            unit = np.where(most >= group.threshold, theta / group.threshold, least)
        else:
            inner = not group.factor.keys() & set(self.graph.outputs)
            if (top := o.inner_max if inner else o.current_max) is not None:
                least = np.maximum(least, np.minimum(self._sums(group, shape[0])[0] / top, kept))
            least = self._shared(group, least, weights)
            unit = np.where(least > 0, least, least.max(initial=0.0) or 1.0)
            # A sequence of features has no channels. And where weights have exponents of their own, scores can be such
            # that they compare as they are.
            if len(shape) == 2 or (o.significant is not None and not inner):
                unit = np.full_like(unit, unit.max())
        return np.asarray(unit.flat[0]) if (unit == unit.flat[0]).all() else unit

    @property
    def _most_theta(self) -> int:
        o = self.options
        return min(limit(o.threshold_bits), o.threshold_max or limit(o.threshold_bits))

    def _thetas(self, group: Group, channels: int) -> list[Array]:
        """The thresholds of each neuron that reads the group, (C,), in the group's real numbers."""
        found = []
        for node in group.neurons:
            assert isinstance(node.op, ops.If | ops.Lif)
            found.append(np.broadcast_to(self._array(node.op.threshold) / group.factor[node.args[0]], channels))
        return found

    def _demands(self, group: Group, channels: int, members: Sequence[Node]) -> tuple[Array, Array, Array]:
        """Per channel, (C,), by members of a group: the finest unit that lets every weight into its width, the largest
        real bias, and the coarsest unit that leaves every layer its ``least_bits``."""
        weights, biases, kept = np.zeros(channels), np.zeros(channels), np.full(channels, np.inf)
        least = self.options.least_bits
        for node in members:
            if isinstance(node.op, ops.Weighted):
                bias = np.abs(self._real_bias(node))
                largest = np.zeros(len(bias))
                for rows, w in self._real_weights(node):
                    largest[rows] = np.abs(w, out=w).reshape(len(w), -1).max(axis=1)
                    if self._fixed(node):
                        bias[rows] += w.reshape(len(w), -1).sum(axis=1) * self._most(node.args[0])
                if _along_last(node):  # all channels share the weights
                    largest, bias = largest.max(), bias.max()
                factor = group.factor[node.name]
                weights = np.maximum(weights, largest / (factor * self._limit(self._width(node))))
                biases = np.maximum(biases, bias / factor)
                if least is not None:
                    kept = np.minimum(kept, np.where(largest > 0, largest, np.inf) / (factor * limit(least)))
        return weights, biases, kept

    def _shared(self, group: Group, least: Array, finest: Array) -> Array:
        """Per channel, (C,): the unit of a group that layers read. ``least`` is the finest for the group itself, and
        ``finest`` what its weights alone ask. But its integers are multiplied with weights, and a threshold has to hold
        the products: where its bits are too few for all, the group and each layer up to the neurons get an equal share.
        """
        width = min(self._width(node) for node in group.members if isinstance(node.op, ops.Weighted))
        typical, lost = _median(least), 0.0
        own = log2(limit(width) * _median(finest) / typical) if finest.any() else 0.0
        for reader in self._readers(group) if own > 0 else ():
            room, layers = self._room(reader, typical)
            full = log2(limit(min(self._width(reader), self.options.significant or self._width(reader))))
            lost = max(lost, min(full - room, (own - room) / (layers + 1), own))
        return np.asarray(least * 2.0**lost)

    def _readers(self, group: Group) -> list[Node]:
        """The layers that read a group, directly or where it was moved, pooled or concatenated."""
        seen, found, todo = set(group.factor), list[Node](), [*group.members]
        while todo:
            for user in self.graph.users[todo.pop().name]:
                if user.name not in seen and not isinstance(user.op, NEURONS):
                    seen.add(user.name)
                    (found if isinstance(user.op, ops.Weighted) else todo).append(user)
        return found

    def _room(self, node: Node, unit: float) -> tuple[float, int]:
        """The bits that are left for the weights of a layer that reads a current of this unit; where no neuron reads
        the layer, for those of the last one up to a neuron, if the layers between have all of theirs. And how many
        layers these are."""
        op, group = node.op, self.groups[node.name]
        assert isinstance(op, ops.Weighted)
        weight = self.store[op.weight]
        rows = np.array([np.abs(w).max(initial=0) for w in weight], np.float64) * unit / group.factor[node.name]
        bias = np.abs(self._real_bias(node)) / group.factor[node.name]
        if _along_last(node):  # all channels share the weights
            rows, bias = (np.full(node.type.shape[0], values.max()) for values in (rows, bias))
        others = [n for n in group.members if n.name != node.name and not self._reads_current(n)]
        weights, biases, _ = self._demands(group, len(rows), others)
        biases = np.maximum(biases, bias)
        step = np.maximum(weights, biases / self._limit(self.options.bias_bits))
        if not group.neurons:
            typical = _median(np.maximum(step, rows / limit(self._width(node))))
            behind = [self._room(reader, typical) for reader in self._readers(group)] if typical else []
            used = (rows > 0) & (step > 0)
            own = log2(_median(rows[used] / step[used])) if used.any() else inf
            return min([(own, 1), *((room, layers + 1) for room, layers in behind)])
        thetas = self._thetas(group, len(rows))
        step = np.maximum(step, np.max(thetas, axis=0) / self._most_theta)
        theta = np.min(thetas, axis=0)
        used = (theta > 0) & (step > 0)
        # A threshold is the same number in all channels.
        room = rows[used] / theta[used] * (theta[used] / step[used]).min(initial=inf)
        return (log2(_median(room)) if room.any() else inf), 1

    def _equal(self, group: Group, most: Array) -> float:
        """The threshold, in steps, with the smallest expected error of the rates; ``most`` (C,) is what each channel
        could have without raising its own threshold, by m = max(1, K / most).

        A rate of T steps is rounded to thresholds / T, a weight to thresholds / K, and F active inputs add up F
        roundings: per channel m^2 (1 / T^2 + F / K^2), relative to its threshold (Nagel et al. 2019, "Data-Free
        Quantization Through Weight Equalization and Bias Correction", balance the ranges of channels in this way, by
        weights alone).
        """
        fan_in = sum(n.op.weight.size / len(most) for n in group.members if isinstance(n.op, ops.Weighted))
        steps = np.geomspace(most.min(), most.max(), 64)
        raised = np.maximum(1.0, steps[:, None] / most) ** 2
        error = raised.mean(axis=1) * (1 / self.context.timesteps**2 + ACTIVE * fan_in / steps**2)
        return float(steps[error.argmin()])

    def _reached(self, group: Group, thetas: list[Array], states: Array) -> Array:
        """Per channel, (C,): the finest unit with which no potential leaves its range. Below the threshold before an
        event means no more than that plus a weight during it; what adds up beside events is the bias, T times."""
        o, steps = self.options, self.context.timesteps
        assert o.potentials is not None
        rise = np.zeros(len(states))
        for node in group.members:
            if isinstance(node.op, ops.Weighted):
                bias = self._real_bias(node) / group.factor[node.name]
                rise = rise + (bias.max() if _along_last(node) else bias)  # all channels share those along an axis
        top = np.max([*thetas, states], axis=0) + steps * np.maximum(rise, 0)
        rounding = np.where(rise > 0, steps / 2, 0)  # half a unit in every step
        high, low = o.potentials[1] - limit(o.weight_bits) - rounding, -o.potentials[0] - limit(o.weight_bits)
        # Where rounding alone may go beyond, no unit helps, and whoever takes the network has to say so.
        return np.asarray(np.maximum(np.where(high > 0, top / np.maximum(high, 1), 0.0), states / low))

    def _floor(self, group: Group) -> int | None:
        """The lowest potential in units; below it there must be room for one weight, or one bias."""
        o = self.options
        if o.potentials is None:
            return o.v_min
        built = [self.builder.nodes[node.name].op for node in group.members]
        biases = [self.store[op.bias] for op in built if isinstance(op, ops.Weighted) and op.bias is not None]
        most = max((-int(bias.min(initial=0)) for bias in biases), default=0)
        return o.potentials[0] + max(most, limit(o.weight_bits))

    def _sums(self, group: Group, channels: int) -> tuple[Array, Array]:
        """Per channel, (C,), in the group's real numbers: what the neurons' input cannot exceed in a step, and how much
        of that are biases."""
        times = self._times(group)
        currents, biases = np.zeros(channels), np.zeros(channels)
        for node in group.members:
            if isinstance(node.op, ops.Weighted):
                bias = np.abs(self._real_bias(node))
                total = np.zeros(len(bias))
                for rows, w in self._real_weights(node):
                    total[rows] = np.abs(w, out=w).reshape(len(w), -1).sum(axis=1)
                total *= self._most(node.args[0])
                if _along_last(node):
                    total, bias = total.max(), bias.max()
                scale = times[node.name] / group.factor[node.name]
                currents = currents + (total + bias) * scale
                biases = biases + (bias + total if self._fixed(node) else bias) * scale
        return currents, biases

    def _times(self, group: Group) -> dict[str, float]:
        """How often an integer of each member is added into one that a neuron reads; without neurons, anyone else."""
        times = dict.fromkeys(group.factor, 0.0)
        ends = [node.args[0] for node in group.neurons] or [
            node.name
            for node in group.members
            if node.name in self.graph.outputs or any(u.name not in times for u in self.graph.users[node.name])
        ]
        times.update(dict.fromkeys(ends, 1.0))
        for node in reversed(group.members):
            for arg in node.args:
                if arg in times:
                    area = prod(node.op.kernel) if isinstance(node.op, ops.SumPool) else 1
                    times[arg] += times[node.name] * area
        return times

    def _most(self, name: str) -> float:
        """What no integer of a value that layers read exceeds in a step: 1 of spikes."""
        node = self.graph[name]
        if isinstance(node.op, ops.Encode):
            source = self.graph[node.args[0]].op
            assert isinstance(source, ops.Input)
            constant = node.op.method == "constant"
            return limit(self.options.input_bits) if constant else max(1.0, ceil(_peak(source) / node.op.unit))
        if isinstance(node.op, ops.If | ops.Lif):
            return 1.0
        if isinstance(node.op, ops.Ones):
            return float(self._ones(node, node.op).count)
        built = self.builder.nodes[name].op if name in self.builder.nodes else None
        if isinstance(built, ops.Weighted):
            rows = np.abs(self.store[built.weight].astype(np.int64)).reshape(built.weight.shape[0], -1).sum(axis=1)
            bias = 0 if built.bias is None else np.abs(self.store[built.bias].astype(np.int64))
            return float((rows * self._most(node.args[0]) + bias).max())
        if isinstance(node.op, ops.Weighted):  # its integers are yet to be made
            steps, rows = self._unit(name), np.zeros(node.op.weight.shape[0])
            for at, w in self._real_weights(node):
                rows[at] = np.abs(w, out=w).reshape(len(w), -1).sum(axis=1)
            return float(((rows * self._most(node.args[0]) + np.abs(self._real_bias(node))) / steps).max())
        together = sum if isinstance(node.op, ops.Add) else max
        area = prod(node.op.kernel) if isinstance(node.op, ops.SumPool) else 1
        return area * together(self._most(arg) for arg in node.args)

    def _width(self, node: Node) -> int:
        """The bits of the node's weights."""
        o = self.options
        return o.scale_bits if o.scale_bits is not None and node.name in self.rescales else o.weight_bits

    def _real_weights(self, node: Node) -> Iterator[tuple[slice, Array]]:
        """The real weights times the unit of the input, (O, ...), some rows at a time: the largest layers' in float64
        would take more memory than all that is kept of them."""
        op = node.op
        assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
        weight, x = self.store[op.weight], self._type(node.args[0])
        unit = np.asarray(self.store[x.unit] if isinstance(x.unit, Param) else x.unit, np.float64)
        if unit.ndim and _along_last(node):
            raise ops.ShapeError(f"it sums along the last axis of {x.shape}, units lie along the first")
        if unit.ndim:
            unit = ops.over_inputs(op, unit)
        step = max(1, CHUNK * len(weight) // max(weight.size, 1))
        for at in range(0, len(weight), step):
            rows = slice(at, at + step)
            yield (
                rows,
                weight[rows].astype(np.float64) * (unit[rows] if unit.ndim and len(unit) == len(weight) else unit),
            )

    def _real_bias(self, node: Node) -> Array:
        op = node.op
        assert isinstance(op, ops.Weighted)
        return np.zeros(op.weight.shape[0]) if op.bias is None else self.store[op.bias].astype(np.float64)

    def _put_unit(self, name: str, value: Array) -> PerChannel:
        return self.store.put(f"{name}.unit", value) if value.ndim else float(value)

    # --- nodes ---

    def _member(self, node: Node) -> None:
        op, s = node.op, self._unit(node.name)
        if not isinstance(op, ops.Conv2d | ops.Linear | ops.Affine):
            self.builder.copy(node, node.args)
            return
        if s.ndim and _along_last(node):
            raise ops.ShapeError("its channels share their weights, but not their threshold")
        width = self._width(node)
        most = self._limit(width)
        integers = np.empty(op.weight.shape, _int_dtype(width))
        step = np.broadcast_to(s, len(integers)).reshape(-1, *(1,) * (integers.ndim - 1))
        clipped = False
        for rows, w in self._real_weights(node):
            self._round(np.divide(w, step[rows], out=w))
            # Where the input's unit was rounded after this one was chosen (a group reads its own neurons' spikes).
            clipped |= bool(max(w.max(initial=0), -w.min(initial=0)) > most)
            integers[rows] = np.clip(w, -most, most, out=w)
        if clipped:
            self._warn("SNN042", f"weights of `{node.name}` are clipped to {width} bits", node.loc)
        self._check_bits(node, integers)
        name = f"{node.name}.weight" if node.name in self.rescales else op.weight.name
        weight = self.store.put(name, integers, copy=False)
        bias = None
        if op.bias is not None:
            values = self._real_bias(node) / s
            self._round(values)
            bias = self.store.put(op.bias.name, values.astype(_int_dtype(self.options.bias_bits)))
        unit = self._put_unit(node.name, s)
        self.builder.add(node.name, replace(op, weight=weight, bias=bias), node.args, node.loc, unit)

    def _limit(self, bits: int) -> int:
        """The largest integer of so many bits that has no more significant ones than there are."""
        rest = max(0, bits - 1 - (self.options.significant or bits))
        return limit(bits) >> rest << rest

    def _round(self, x: Array) -> None:
        """Round to whole numbers, in place, and to as many significant bits as there are."""
        np.rint(x, out=x)
        if self.options.significant is not None:
            mantissa, exponent = np.frexp(x)
            np.rint(np.ldexp(mantissa, self.options.significant), out=mantissa)
            np.ldexp(mantissa, exponent - self.options.significant, out=x)

    def _check_bits(self, node: Node, integers: Array) -> None:
        rows = integers.reshape(len(integers), -1)
        largest = np.maximum(
            rows.max(axis=1, initial=0).astype(np.int64), -rows.min(axis=1, initial=0).astype(np.int64)
        )
        used = self.graph.value(node.op.weight).reshape(rows.shape).any(axis=1)  # type: ignore[attr-defined]
        if not used.any():
            return  # all real weights are zero, too
        bits = int(np.median(largest[used])).bit_length() + 1
        if bits < min(self.options.min_bits, self._width(node)):
            self._warn(
                "SNN040",
                f"the weights of `{node.name}` are left with {bits} of {self._width(node)} bits",
                node.loc,
                "something that adds up with them (a bias, a shortcut, another layer) is much larger",
            )

    def _warn(self, code: str, message: str, loc: Loc, hint: str = "") -> None:
        self.context.report(Diagnostic(code, message, loc, Severity.WARNING, hint))

    def _neuron(self, node: Node) -> None:
        op = node.op
        assert isinstance(op, ops.If | ops.Lif)
        unit = self._array(self.builder.type(node.args[0]).unit)
        theta, group = self._array(op.threshold), self.groups[node.args[0]]
        k, rounding = np.maximum(np.rint(theta / unit), 1), 0.5001 * unit
        if len(group.neurons) == 1:  # the unit was chosen for this one: K is one number, and exact where not raised
            k, rounding = np.asarray(group.threshold), 1e-9 * theta
        raised = np.broadcast_to(k * unit > theta + rounding, node.type.shape[:1])
        if raised.any():
            # The threshold gives way, and the unit of the spike says by how much.
            self._warn(
                "SNN041",
                f"the thresholds of {raised.sum()} of {len(raised)} channels of `{node.name}` are too small for the "
                "grid of its weights; they are raised",
                node.loc,
                "calibrate per layer, or with more data",
            )

        def whole(what: str, value: Array) -> PerChannel:
            if (value == value.flat[0]).all():
                return int(value.flat[0])
            return self.store.put(f"{node.name}.{what}", value.astype(np.int32))

        integer: ops.Op = replace(op, threshold=whole("threshold", k))
        if isinstance(integer, ops.If):
            integer = replace(
                integer,
                v0=whole("v0", np.rint(self._array(integer.v0) / unit)),
                v_min=self._floor(group) if integer.v_min is None else int(np.ceil(integer.v_min / unit.max())),
            )
        self.builder.add(node.name, integer, node.args, node.loc)

    def _pad(self, node: Node, op: ops.Pad) -> None:
        """Padding with a value: of a current, a whole number of units."""
        x = self.builder.type(node.args[0])
        if isinstance(x.unit, Param) or x.domain is Domain.SPIKE:
            raise ops.ShapeError(f"no number of them is the padding {op.value:g}")
        self.builder.copy(node, node.args, replace(op, value=float(np.rint(op.value / x.unit))))

    def _encoding(self, node: Node, op: ops.Encode) -> ops.Encode:
        unit = op.unit
        if op.method == "constant":
            source = self.graph[node.args[0]].op
            assert isinstance(source, ops.Input)
            if source.high is None or source.low is None:
                self.context.report(
                    Diagnostic(
                        "SNN010",
                        f"the range of input `{node.args[0]}` is not known",
                        node.loc,
                        hint="pass calibration=..., some batches of typical input",
                    )
                )
            unit = _peak(source) / limit(self.options.input_bits)
        return replace(op, unit=unit, dtype="i32")

    def _ones(self, node: Node, op: ops.Ones) -> ops.Ones:
        """Beside a constant input ones are as large as its integers, so that their weights have one scale."""
        return replace(op, count=limit(self.options.input_bits)) if node.type.domain is Domain.CURRENT else op

    def _reads_current(self, node: Node) -> bool:
        return any(self.graph[arg].type.domain is Domain.CURRENT for arg in node.args)

    def _fixed(self, node: Node) -> bool:
        """Whether the layer gives the same in every step, as a bias does: what hardware may have one for."""
        return isinstance(self.graph[node.args[0]].op, ops.Ones)

    def _array(self, value: PerChannel) -> Array:
        return np.asarray(value if isinstance(value, float | int) else self.store[value], np.float64)


def _along_last(node: Node) -> bool:
    """Whether this is a linear layer on values of several axes: its outputs are not the channels."""
    return isinstance(node.op, ops.Linear) and len(node.type.shape) > 1


def _median(values: Array) -> float:
    """Of those that are not 0; 0 if all are."""
    return float(np.median(values[values > 0])) if values.any() else 0.0


def _peak(source: ops.Input) -> float:
    """The largest magnitude of the input."""
    return max(abs(source.low or 0.0), abs(source.high or 0.0)) or 1.0


def _check_growth(graph: Graph, context: Context) -> None:
    """Report the first integers that may not be exact any more: layers without neurons between them multiply."""
    unknown = [n for n in graph.inputs if isinstance(n.op, ops.Input) and n.op.high is None]  # no calibration
    found = ranges(graph, context.timesteps, {node.name: Range.of(-1.0, 1.0, node.type) for node in unknown})
    for node in graph.nodes:
        held = found.states.get(node.name, ()) if not isinstance(node.op, ops.Lif) else ()  # a float32 of its own
        most = max(value.size for value in (found.values[node.name], *held))
        if node.type.integer and most >= EXACT:
            message = f"the integers of `{node.name}` may reach {most:.3g}, more than can be exact"
            hint = "put an activation between linear layers, or choose fewer weight_bits"
            context.report(Diagnostic("SNN042", message, node.loc, hint=hint, limit=EXACT, found=most))
            return


# --- the classical quantizers, by name ------------------------------------------------------------------------------


def quantize_array(x: Array, scheme: str, bits: int = 8, step: float | None = None) -> Array:
    """``x`` rounded to the grid of a named quantizer; real values in, real values out.

    - "step": ``round(x / step) * step``.
    - "k-bit": ``round((2^k - 1) x) / (2^k - 1)`` on [0, 1] (Zhou et al. 2016, "DoReFa-Net"); values that are not all
      in there are first mapped to it by ``x / (2 max|x|) + 1/2``, and back.
    - "affine": ``scale * (clip(round(x / scale) + zero, 0, 2^k - 1) - zero)`` with scale and zero point from the range
      of x, extended to contain 0 (Jacob et al. 2018).
    - "symmetric": ``scale * round(x / scale)``, scale = max|x| / (2^(k-1) - 1).
    - "lava": 8-bit weights of Loihi as lava-dl trains them: even integers from -256 to 254, in 1/64.

    Raises:
        ValueError: an unknown scheme, a step that is missing or not positive, or too few bits for the scheme.
    """
    x = np.asarray(x, np.float64)
    if bits < (2 if scheme == "symmetric" else 1):
        raise ValueError(f"the scheme {scheme!r} needs more than {bits} bits")
    top = float(np.abs(x).max(initial=0.0)) or 1.0
    if scheme == "step":
        if step is None or step <= 0:
            raise ValueError(f"the scheme 'step' needs a positive step, got {step}")
        return np.rint(x / step) * step
    if scheme == "k-bit":
        levels = 2**bits - 1
        if x.min(initial=0.0) >= 0 and x.max(initial=0.0) <= 1:
            return np.asarray(np.rint(levels * x) / levels)
        return np.asarray((np.rint(levels * (x / (2 * top) + 0.5)) / levels - 0.5) * 2 * top)
    if scheme == "affine":
        low, high = min(float(x.min(initial=0.0)), 0.0), max(float(x.max(initial=0.0)), 0.0)
        scale = (high - low) / (2**bits - 1) or 1.0
        zero = np.rint(-low / scale)
        return np.asarray(scale * (np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1) - zero))
    if scheme == "symmetric":
        scale = top / limit(bits)
        return np.asarray(scale * np.rint(x / scale))
    if scheme == "lava":
        return np.asarray(np.clip(2 * np.rint(x * 64 / 2), -256, 254) / 64)
    raise ValueError(f"unknown quantizer {scheme!r}; known: step, k-bit, affine, symmetric, lava")


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round the weights of a network to the grid of a named quantizer (:func:`quantize_array`); they stay float.

    To see what a grid costs, or for networks that were trained for one.
    """

    scheme: str = "symmetric"
    bits: int = 8
    step: float | None = None
    name: ClassVar[str] = "quantize-weights"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED, Stage.SNN)
    relation: ClassVar[Relation] = Relation.BOUNDED

    def run(self, graph: Graph, context: Context) -> Graph:
        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            op = node.op
            if not isinstance(op, ops.Conv2d | ops.Linear):
                return None
            value = quantize_array(graph.value(op.weight), self.scheme, self.bits, self.step)
            if self.scheme == "lava" and (np.abs(value - graph.value(op.weight)) > 1 / 64).any():
                message = f"weights of `{node.name}` outside Lava's range, -4 to 254/64, are clipped to it"
                context.report(Diagnostic("SNN042", message, node.loc, Severity.WARNING, "scale the network's weights"))
            weight = builder.store.put(op.weight.name, value.astype(np.float32))
            return builder.copy(node, args, replace(op, weight=weight))

        return rebuild(graph, visit)
