"""The passes that put a network on the chip's cores: limits, relays, and the placement with what it splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, InputError, Loc, Node, Param, PerChannel, Severity, Stage, ops
from snncc.ir.diagnostics import errors
from snncc.ir.types import Range, per_channel
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.fuse_linear import ungrouped
from snncc.passes.rewrite import Builder, rebuild
from snncc.targets.dynapcnn.chips import Chip, kernel_words, neuron_words
from snncc.targets.dynapcnn.lower import CORE, Layer, Reader, Wire, demands
from snncc.targets.dynapcnn.placement import Conflict, Plan, Search, capacity
from snncc.targets.dynapcnn.sensor import parse

MEMORIES = (("kernel", "SNN056"), ("neuron", "SNN057"), ("bias", "SNN058"))
ADVICE = ("use fewer channels or a smaller kernel", "use fewer channels, or a larger stride", "use bias='strip'")
# What fewer channels may mend.
SIZES = {"SNN054", "SNN056", "SNN057", "SNN058", "SNN059", "SNN060", "SNN063"}


@dataclass(frozen=True)
class OnChip:
    """What the passes share that place.

    Attributes:
        chip: with its cores and limits.
        cores: those that may be taken; None: all.
        sensor: the option, if the chip's pixels feed it: those reach two cores, as any core does.
        readout: whether the outputs go to the readout block, too.
    """

    chip: Chip
    cores: tuple[int, ...] | None = None
    sensor: str | None = None
    readout: bool = False

    def search(self, reader: Reader) -> Search:
        """The placement problem of a network."""
        taken = self.cores if self.cores is not None else tuple(range(len(self.chip.cores)))
        reached = None if self.sensor is None else self.chip.destinations
        return Search(demands(reader, self.readout), self.chip, taken, reached)

    def plan(self, reader: Reader, context: Context) -> Plan | None:
        """The best placement, or None with diagnostics."""
        search = self.search(reader)
        wanted, taken = search.demands, search.cores
        layers = {layer.sends: layer for layer in reader.layers}
        alone = [d for d in wanted if not search.options(d)]
        for d in alone:
            context.report(_too_large(layers[d.name], search))
        if len(wanted) > len(taken):
            context.report(_too_many(reader.layers, len(taken)))
        if alone or len(wanted) > len(taken):
            return None
        found = search.run()
        if isinstance(found, Plan):
            return found
        context.report(_conflict(found, search, layers))
        return None

    def __str__(self) -> str:
        cores = "" if self.cores is None else f" cores={','.join(map(str, self.cores))}"
        return f"{self.name}{{chip={self.chip.name}{cores}}}"  # type: ignore[attr-defined]


def _too_many(layers: Sequence[Layer], most: int) -> Diagnostic:
    """More layers than cores, with those that only pass spikes on."""
    extra, over = layers[most], len(layers) - most
    text = f"`{extra.name}`: layer {most + 1} of {len(layers)}; each takes a core of its own"
    passing = [layer for layer in layers if isinstance(layer.node.op, ops.Slice)]
    hint = f"use {over} fewer layer{'s' * (over > 1)}"
    if passing:
        names = ", ".join(f"`{layer.wires[0].source}`" for layer in passing)
        text += (
            f". {len(passing)} of them only pass{'es' * (len(passing) == 1)} on every n-th row and column of {names}, "
        )
        text += "where a branch has a stride that the branch it meets has not"
        hint += ". Pooling by averages needs no core: in a shortcut, nn.AvgPool2d in front of a 1 x 1 convolution "
        hint += "instead of its stride"
    return Diagnostic("SNN059", text, extra.node.loc, Severity.ERROR, hint, most, len(layers), "cores")


def _too_large(layer: Layer, search: Search) -> Diagnostic:
    """Why a layer fits no core, nor all of them together."""
    (demand,) = (d for d in search.demands if d.name == layer.sends)
    needs, left = demand.words(demand.channels), [search.chip.cores[i].words for i in search.cores]
    held = sum(capacity(demand, search.chip.cores[i]) for i in search.cores)
    if held:
        all_cores = f"even split over all {len(search.cores)} cores, {held:,} of its {demand.channels:,} channels fit"
    else:
        all_cores = "not even one of its output channels fits anywhere"
    for i, (what, code) in enumerate(MEMORIES):
        holding = [words for words in left if needs[i] <= words[i]]
        if holding:
            left = holding
            continue
        most, rest = max(words[i] for words in left), ""
        grouped = what == "kernel" and getattr(layer.node.op, "groups", 1) > 1
        if grouped:
            rest = " (its groups are expanded to a dense kernel, as the chip has none)"
        text = f"needs {needs[i]:,} words of {what} memory{rest}, the largest core has {most:,}"
        if len(left) < len(search.cores):
            beside = " and ".join(f"{needs[j]:,} of {MEMORIES[j][0]}" for j in range(i))
            text = f"needs {needs[i]:,} words of {what} memory beside {beside} memory; "
            text += f"the largest core with so much has {most:,}"
        return Diagnostic(
            "SNN063" if grouped else code, f"`{layer.name}`: {text}; {all_cores}", layer.node.loc, Severity.ERROR,
            ADVICE[i], most, needs[i], "words",
        )  # fmt: skip
    text = f"`{layer.name}`: {all_cores}"
    return Diagnostic("SNN054", text, layer.node.loc, Severity.ERROR, "use fewer channels", 1024, demand.channels)


def changes(layer: Layer, chip: Chip) -> str:
    """With what a layer would fit a core that fits none, each change by itself; empty if it fits, or by none."""
    (c, *_), (o, h, w) = layer.input, layer.output
    k = layer.fit.kernel if layer.fit is not None else max(layer.kernel)

    def fits(c: int, o: int, h: int, w: int, k: int) -> bool:
        needs = kernel_words(c, o, k), neuron_words(o, h, w)
        return any(all(n <= has for n, has in zip(needs, core.words, strict=False)) for core in chip.cores)

    if fits(c, o, h, w, k):
        return ""
    ways = [
        (f"{n:,} instead of {o:,} output channels" for n in range(o - 1, 0, -1) if fits(c, n, h, w, k)),
        (f"{n:,} instead of {c:,} input channels" for n in range(c - 1, 0, -1) if fits(n, o, h, w, k)),
        (f"an output of {n} x {n} instead of {h} x {w}" for n in range(max(h, w) - 1, 0, -1) if fits(c, o, n, n, k)),
        (f"a kernel of {n} x {n} instead of {k} x {k}" for n in range(k - 1, 0, -1) if fits(c, o, h, w, n)),
    ]
    found = [first for way in ways if (first := next(way, None)) is not None]
    return f"with {', or '.join(found)}" if found else ""


def _conflict(found: Conflict, search: Search, layers: Mapping[str, Layer]) -> Diagnostic:
    stuck = [layers[name] for name in found.layers]
    names = ", ".join(f"`{layer.name}`" for layer in stuck)
    loc = stuck[0].node.loc.merge(*(layer.node.loc for layer in stuck[1:]))
    cores = f"core{'s' * (len(found.cores) > 1)} {', '.join(map(str, found.cores))}"
    least = {d.name: sum(search.options(d)[0]) for d in search.demands}
    if found.fan_out:
        text = f"no placement exists: {names} fit, but not with the relays that it takes to reach all who read them"
        text += f"; a core has {search.chip.destinations} destinations"
        if search.from_input is not None and len(stuck) == 1:
            text = f"no placement exists: {names} would have to be split over more cores than the sensor reaches"
        hint = "let fewer layers read one output, or make the layers that do smaller, so that they are not split"
        relays, taken = search.least()
        if relays and (over := taken - len(search.cores)) > 0:
            read = ", ".join(f"{n} relays for `{layers[name].name}`" for name, n in relays.items())
            text += f"; with {read} they take {taken} cores"
            them = "it" if len(relays) == 1 else "them"
            hint = f"let {over} fewer layers read {them}, or make layers smaller that are split"
        return Diagnostic("SNN061", text, loc, hint=hint, limit=search.chip.destinations, found=None)
    split = [f"`{layer.name}` {least[layer.sends]}" for layer in stuck if least[layer.sends] > 1]
    need = f"all need one of {cores}" if len(stuck) > 1 else f"does not fit on {cores}"
    if split:
        need = f"together need more than {cores} (split over cores: at least {', '.join(split)})"
    hint, asked = "use fewer channels in these layers", [d for d in search.demands if d.name in found.layers]
    if any(d.words(1)[2] for d in asked) and not all(search.chip.cores[i].bias_words for i in search.cores):
        need += ", as only some cores have memory for biases"
        hint = "train these layers with bias=False (a batch norm's shift becomes a bias, too), or choose bias='strip'"
    return Diagnostic(
        "SNN060", f"no placement exists: {names} {need}", loc, Severity.ERROR, hint, len(found.cores),
        max(len(found.cores) + 1, sum(least[layer.sends] for layer in stuck)), "cores",
    )  # fmt: skip


@dataclass(frozen=True)
class CheckLimits(OnChip, Pass):
    """Hold the network against the chip, before anything is calibrated: geometry, memory, number of layers."""

    name: ClassVar[str] = "check-limits"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        """The same graph."""
        reader = Reader(graph, self.chip)
        for diagnostic in reader.diagnostics:
            context.report(diagnostic)
        self._ones(reader, context)
        if reader.layers and all(layer.fit for layer in reader.layers):
            self.plan(reader, context)
        if self.sensor is not None:
            self._pixels(reader, context)
        if self.readout:
            self._classes(graph, context)
        return graph

    def _ones(self, reader: Reader, context: Context) -> None:
        """Say what a channel of ones costs: the host sends it, which no sensor does."""
        for layer in reader.layers:
            for wire in layer.wires:
                node = reader.graph[wire.source]
                if not wire.host or not isinstance(node.op, ops.Ones):
                    continue
                events = wire.shape[1] * wire.shape[2]
                text = f"`{layer.name}` pads what a shift was added to: a channel of ones carries the shift"
                if self.sensor is not None:
                    hint = "leave out the shift (x * a alone), the padding of this layer, or the sensor"
                    message = f"{text}, which the host has to send, and the sensor cannot"
                    context.report(Diagnostic("SNN036", message, layer.node.loc, hint=hint))
                else:
                    message = f"{text}, for which the host sends {events:,} events in every time step"
                    hint = "train without the shift, or without padding in this layer, to save them"
                    context.report(Diagnostic("SNN036", message, layer.node.loc, Severity.NOTE, hint))

    def _classes(self, graph: Graph, context: Context) -> None:
        """Report outputs that the readout block has no room for."""
        block = self.chip.readout
        if block is None:
            return
        for name in graph.outputs[1:]:
            message = f"`{name}`: a second output; the readout block takes one"
            context.report(Diagnostic("SNN061", message, graph[name].loc, hint="leave out readout"))
        last = graph[graph.outputs[0]]
        if (classes := last.type.shape[0]) > block.classes:
            context.report(
                Diagnostic(
                    "SNN061", f"`{last.name}` has {classes} classes, the readout block {block.classes}", last.loc,
                    Severity.ERROR, "leave out readout", block.classes, classes, "classes",
                )
            )  # fmt: skip

    def _pixels(self, reader: Reader, context: Context) -> None:
        """Report an input that the sensor cannot be, or that is read in a way that it cannot send."""
        graph = reader.graph
        shape = graph.inputs[0].type.shape
        for layer in reader.layers:
            hosts = [wire for wire in layer.wires if wire.host]
            if hosts and (len(layer.wires) > 1 or hosts[0].pooling > 1 or hosts[0].shape != shape):
                message = f"`{layer.name}`: reads the input pooled, flattened or beside other values; the sensor only "
                message += "sends its pixels as they are"
                hint = "start with a convolution that nothing stands in front of; the sensor itself can pool"
                context.report(Diagnostic("SNN061", message, layer.node.loc, hint=hint))
        if len(graph.inputs) > 1:
            message = f"`{graph.inputs[1].name}`: a second input; the sensor is one"
            context.report(Diagnostic("SNN061", message, graph.inputs[1].loc))
        assert self.sensor is not None
        try:
            parse(self.sensor, graph.inputs[0].type.shape, self.chip)
        except InputError as error:
            for diagnostic in error.diagnostics:
                context.report(diagnostic)


@dataclass(frozen=True)
class InsertRelays(Pass):
    """Give what spikes cannot do on their way a core that passes them on: a kernel of ones, and neurons that answer
    each spike with one. A slice picks rows and columns by the relay's stride; and where the chip lets no core read the
    host beside other cores, the input comes through a relay, too."""

    chip: Chip
    name: ClassVar[str] = "insert-relays"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.INT,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        wires, made = Reader(graph, self.chip).wires, dict[str, str]()  # the relays of what the host sends

        def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            if isinstance(node.op, ops.Slice) and _to_the_end(node.op, graph[node.args[0]]) and node.args[0] in wires:
                return _sliced(builder, node, node.op, args)
            hosts = [all(w.host for w in wires.get(arg, ())) for arg in node.args]
            if self.chip.adds or not isinstance(node.op, ops.Concat) or all(hosts) or not any(hosts):
                return None
            relayed = [
                self._input(builder, node, wires[old], new, made, context) if host and old in wires else new
                for old, new, host in zip(node.args, args, hosts, strict=True)
            ]
            return builder.copy(node, tuple(relayed))

        return rebuild(graph, visit)

    def _input(
        self, builder: Builder, node: Node, wires: tuple[Wire, ...], value: str, made: dict[str, str], context: Context
    ) -> str:
        """``value`` of the host through relays, its pooling behind them."""
        parts, rank = [], len(builder.type(value).shape)
        for wire in wires:
            text = f"`{wire.source}` is read beside spikes of cores, and {self.chip.name} needs a core to pass it on; "
            text += "of several spikes of one pixel in one time step, the step-wise simulation passes on one"
            context.report(Diagnostic("SNN061", text, node.loc, Severity.NOTE))
            if wire.source not in made:
                made[wire.source] = relayed(builder, wire.source, node.loc)
            parts.append(arrives(builder, made[wire.source], wire, rank, node.loc))
        if len(parts) == 1:
            return parts[0]
        return builder.add(builder.unique(f"{value}.relayed"), ops.Concat(), tuple(parts), node.loc)


def _to_the_end(op: ops.Slice, source: Node) -> bool:
    """Whether a slice of a map leaves out no row or column behind those that it takes, which a stride would read."""
    axes = zip(op.start[1:], op.stop[1:], op.step[1:], source.type.shape[1:], strict=True)
    return len(op.stop) == 3 and all(len(range(a, b, step)) == len(range(a, n, step)) for a, b, step, n in axes)


def _sliced(builder: Builder, node: Node, op: ops.Slice, args: tuple[str, ...]) -> str:
    (first, y, left), (every, sy, sx), x = op.start, op.step, builder.type(args[0])
    channels = np.arange(x.shape[0])[first : op.stop[0] : every]
    depthwise = len(channels) == x.shape[0]
    kernel = np.zeros((len(channels), 1 if depthwise else x.shape[0], y + 1, left + 1), np.int8)
    kernel[np.arange(len(channels)), 0 if depthwise else channels, y, left] = 1  # the last weight is the slice's
    weight = builder.store.put(f"{node.name}.one", kernel)
    conv = ops.Conv2d(weight, None, (sy, sx), groups=x.shape[0] if depthwise else 1)
    one = builder.add(builder.unique(f"{node.name}.copy"), conv, args, node.loc, x.unit)
    return builder.add(node.name, ops.If(1, v_min=-1), (one,), node.loc)


def relayed(builder: Builder, name: str, loc: Loc, place: str = "") -> str:
    """The spikes ``name`` passed on by neurons of their own, each for each."""
    x = builder.type(name)
    one = builder.store.put("one", np.ones(x.shape[0], np.int8))
    copy = builder.add(builder.unique(f"{name}.copy"), ops.Affine(one), (name,), loc, x.unit, place)
    return builder.add(builder.unique(f"{name}.relay"), ops.If(1, v_min=-1), (copy,), loc, None, place)


def arrives(builder: Builder, name: str, wire: Wire, rank: int, loc: Loc, place: str = "") -> str:
    """Spikes ``name`` pooled as the wire is, and flattened if they have more axes than ``rank``; made once."""
    window = (wire.pooling, wire.pooling)
    steps: list[tuple[str, ops.Op]] = []
    if wire.pooling > 1:
        steps.append((f"{name}.pool{wire.pooling}", ops.SumPool(window, window, wire.scale)))
    if len(builder.type(name).shape) > rank:
        steps.append((f"{name}.flat{wire.pooling}", ops.Flatten()))
    for new, op in steps:
        old = builder.nodes.get(new)
        same = old is not None and (old.op, old.args) == (op, (name,))
        name = new if same else builder.add(builder.unique(new), op, (name,), loc, None, place)
    return name


@dataclass(frozen=True)
class PlaceOnCores(OnChip, Pass):
    """Every layer on a core, or by channels on several, with the relays that this takes."""

    name: ClassVar[str] = "place"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.INT,)
    ensures: ClassVar[Stage] = Stage.MAPPED
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        """The graph with places; as it is if there are none, which is said."""
        if errors(context.diagnostics):
            return graph
        reader = Reader(graph, self.chip)
        for diagnostic in reader.diagnostics:
            context.report(diagnostic)
        if errors(reader.diagnostics) or (plan := self.plan(reader, context)) is None:
            return graph
        for layer in reader.layers:
            if (found := potential(graph, layer, self.chip, context.timesteps)) is not None:
                context.report(found)
        return _Mapping(graph, reader, plan, self).run()


class _Mapping:
    """Builds the mapped graph: layers in their parts, and what they read through relays."""

    def __init__(self, graph: Graph, reader: Reader, plan: Plan, options: OnChip) -> None:
        self.graph, self.reader, self.plan, self.options = graph, reader, plan, options
        self.builder = Builder(graph)
        self.by_node = {name: layer for layer in reader.layers for name in layer.nodes}
        self.split: dict[str, list[str]] = {}  # the neurons of each part of a layer that is in parts
        self.copies: dict[tuple[str, int | None, int], str] = {}  # relays by layer, part and number
        self.parents: dict[tuple[str, int], int] = {}  # which relay of the layer each relay reads, -1: the layer
        self.via = {name: self._tree(name) for name in plan.relays}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            layer = self.by_node.get(node.name)
            if layer is None:
                self._add(node.name, node.op, node.args, node.loc, self._place(node.args) or "host", node)
            elif node.name == layer.sends:
                self._layer(layer)
                self._relays(layer)
        nodes = tuple(self.builder.nodes.values())
        return replace(self.graph, nodes=nodes, stage=Stage.MAPPED).live()

    def _add(self, name: str, op: ops.Op, args: tuple[str, ...], loc: Loc, place: str, like: Node | None = None) -> str:
        outside = isinstance(op, ops.Input | ops.Encode)
        unit = like.type.unit if like is not None and op.free_unit else None
        return self.builder.add(name, op, args, loc, unit, "" if outside else place)

    def _place(self, args: tuple[str, ...]) -> str:
        """Where values on their way are: with those who send them."""
        places = dict.fromkeys(p for arg in args for p in self.builder.nodes[arg].place.split(", ") if p)
        return ", ".join(places)

    # --- layers ---

    def _layer(self, layer: Layer) -> None:
        parts = self.plan.parts[layer.sends]
        if len(parts) == 1:
            place = f"{CORE}{parts[0].core}"
            for name in layer.nodes:
                node = self.graph[name]
                args = (self._read(layer, 0),) if node is layer.node else node.args
                self._add(name, node.op, args, node.loc, place, node)
            return
        assert layer.neuron is not None
        names = []
        for i, part in enumerate(parts):
            place, rows = f"{CORE}{part.core}", slice(part.first, part.first + part.channels)
            x = self._read(layer, i)
            for name in layer.nodes:
                node = self.graph[name]
                op = self._rows(node.op, rows)
                new = self.builder.unique(f"{name}.{i}")
                unit = self._some(node.type.unit, rows) if op.free_unit else None
                x = self.builder.add(new, op, (x,), node.loc, unit, place)
            names.append(x)
        self.split[layer.sends] = names
        self._add(layer.sends, ops.Concat(), tuple(names), layer.neuron.loc, self._place(tuple(names)))

    def _rows(self, op: ops.Op, rows: slice) -> ops.Op:
        """The operation for some of its output channels only."""
        store = self.graph.store
        if isinstance(op, ops.Conv2d | ops.Linear | ops.Affine):
            weight = store[op.weight]
            if isinstance(op, ops.Conv2d) and op.groups > 1:
                op, weight = replace(op, groups=1), ungrouped(weight, op.groups)
            if isinstance(op, ops.Affine):  # of all channels of the input, some go through
                dense = np.diag(weight)[rows, :, None, None]
                bias = None if op.bias is None else self._some(op.bias, rows)
                return ops.Conv2d(store.put(op.weight.name, dense), bias)  # type: ignore[arg-type]
            bias = None if op.bias is None else self._some(op.bias, rows)
            return replace(op, weight=store.put(op.weight.name, weight[rows]), bias=bias)  # type: ignore[arg-type]
        if isinstance(op, ops.If):
            return replace(op, v0=self._some(op.v0, rows), threshold=self._some(op.threshold, rows))
        return op

    def _some(self, value: PerChannel, rows: slice) -> PerChannel:
        if not isinstance(value, Param):
            return value
        return self.graph.store.put(value.name, self.graph.store[value][rows])

    # --- what layers read ---

    def _read(self, layer: Layer, part: int) -> str:
        """The value that part of a layer reads: as it stands in the graph, unless some of it comes by a relay."""
        (x,) = layer.node.args
        relays = [
            self.via[w.source][layer.sends, part, i] if w.source in self.via else -1 for i, w in enumerate(layer.wires)
        ]
        if all(relay < 0 for relay in relays):
            return x
        rank, found = len(self.graph[x].type.shape), []
        for wire, relay in zip(layer.wires, relays, strict=True):
            found += [
                arrives(self.builder, name, wire, rank, layer.node.loc, self._place((name,)))
                for name in self._sources(wire, relay)
            ]
        if len(found) == 1:
            return found[0]
        name = self.builder.unique(f"{layer.name}.in" if part == 0 else f"{layer.name}.{part}.in")
        return self._add(name, ops.Concat(), tuple(found), layer.node.loc, self._place(tuple(found)))

    def _sources(self, wire: Wire, relay: int) -> list[str]:
        if relay < 0 or wire.host:
            return [wire.source]
        whole = self.copies.get((wire.source, None, relay))
        if whole is not None:
            return [whole]
        return [self.copies[wire.source, i, relay] for i in range(len(self.plan.parts[wire.source]))]

    # --- relays ---

    def _tree(self, name: str) -> dict[tuple[str, int, int], int]:
        """By which relay of the layer each of its readers (layer, part, wire) is reached, -1: by none. The relays stand
        near the root, so that the ways are short."""
        relays = self.plan.relays[name]
        count = sum(relay.part == relays[0].part for relay in relays)
        readers = [
            (layer.sends, part, i)
            for layer in self.reader.layers
            for i, wire in enumerate(layer.wires)
            if wire.source == name and not wire.host
            for part in range(len(self.plan.parts[layer.sends]))
        ]
        room = self.options.chip.destinations
        exits = int(self.options.readout and name in self._ends())
        free = {-1: room - exits, **dict.fromkeys(range(count), room)}
        for relay in range(count):
            parent = next(p for p in (-1, *range(relay)) if free[p])
            self.parents[name, relay] = parent
            free[parent] -= 1
        found = {}
        for reader in readers:
            relay = next(p for p in free if free[p])
            free[relay] -= 1
            found[reader] = relay
        return found

    def _ends(self) -> set[str]:
        return {wire.source for name in self.graph.outputs for wire in self.reader.wires[name]}

    def _relays(self, layer: Layer) -> None:
        numbers: dict[int | None, int] = {}
        for relay in self.plan.relays.get(layer.sends, ()):
            number = numbers.get(relay.part, 0)
            numbers[relay.part] = number + 1
            parent = self.parents[layer.sends, number]
            if parent >= 0:
                x = self.copies[layer.sends, relay.part, parent]
            else:
                x = layer.sends if relay.part is None else self.split[layer.sends][relay.part]
            loc, place = self.graph[layer.sends].loc, f"{CORE}{relay.core}"
            self.copies[layer.sends, relay.part, number] = relayed(self.builder, x, loc, place)


EVENTS = 2**31  # more than any potential gets


def bound(graph: Graph, layer: Layer, timesteps: int) -> tuple[int, int] | None:
    """The lowest and the highest value that a potential of the layer can take in ``timesteps`` on the chip, or None
    where there is none.

    An event adds a weight w and, if that reaches the threshold, takes it off: so as long as no weight is larger than
    the threshold, events lift no potential that has reached it, and v < max(v0, threshold) + w. Ticks of the leak clock
    add the bias, T times, without a spike. Downwards, the floor is applied after every event and tick.
    """
    op, neuron = layer.node.op, layer.neuron
    assert isinstance(op, ops.Weighted) and neuron is not None and isinstance(neuron.op, ops.If)
    store = graph.store
    weights = store[op.weight].reshape(op.weight.shape[0], -1).astype(np.int64)
    biases = np.zeros(len(weights), np.int64) if op.bias is None else store[op.bias].astype(np.int64)
    one = Range(np.minimum(weights.min(axis=1), biases), weights.max(axis=1))  # of one event, or tick downwards
    if (one.high > per_channel(neuron.op.threshold, store, 1)).any():
        return None
    ((low, high),) = (v.hull for v in neuron.op.states([one], neuron.type, store, EVENTS))
    return int(low), int(high + timesteps * biases.max(initial=0))


def potential(graph: Graph, layer: Layer, chip: Chip, timesteps: int) -> Diagnostic | None:
    """A warning where potentials may leave their 16 bits: what happens there is undocumented."""
    found, most, least = bound(graph, layer, timesteps), chip.states[-1], chip.states[0]
    if found is not None and least <= found[0] and found[1] <= most:
        return None
    why, top = "", None
    if found is None:
        assert isinstance(layer.node.op, ops.Weighted) and layer.neuron is not None
        weight = int(graph.value(layer.node.op.weight).max(initial=0))
        theta = layer.neuron.op.threshold  # type: ignore[attr-defined]
        why = f"its largest weight, {weight}, is above its threshold, {theta}, and events add up"
    else:
        top = found[1] if found[1] > most else found[0]
        why = f"with its biases over {timesteps} time steps they may reach {top:,}"
    return Diagnostic(
        "SNN065",
        f"`{layer.name}`: the potentials of its neurons may leave {least:,} to {most:,}, where the chip's arithmetic "
        f"ends: {why}",
        layer.node.loc,
        Severity.WARNING,
        "calibrate with threshold='max', which gives larger thresholds, or compile for fewer time steps",
        limit=None if top is None else most if top > most else least,
        found=top,
    )
