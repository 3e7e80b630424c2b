"""From a graph to the chip's layers: what each core computes, whether it may, and where it goes.

A layer is a weighted sum, the neuron behind it, and the pooling on the way to the next layer. The same reading serves
the network (before calibration, so that limits are told early) and the integer graph (for the configuration).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, Severity, Stage, ops
from snncc.ir.diagnostics import errors
from snncc.ir.types import Array, per_channel
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.place import Group, Place, place_groups
from snncc.targets.dynapcnn.chips import Chip, bias_words, kernel_words, neuron_words
from snncc.targets.dynapcnn.config import Config, CoreConfig, Destination, Readout

Shape = tuple[int, int, int]


@dataclass
class Layer:
    """One core's work. Shapes are (channels, height, width), ``output`` before pooling; pairs are (y, x)."""

    weighted: Node
    input: Shape
    output: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    pooling: int = 1
    neuron: Node | None = None
    nodes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.weighted.name

    @property
    def core(self) -> int:
        """Where it was placed (see :func:`core_name`)."""
        return int(self.weighted.place.removeprefix(CORE))

    def memory(self, graph: Graph) -> tuple[int, int, int]:
        """(kernel, neuron, bias) words needed of a core."""
        op = self.weighted.op
        assert isinstance(op, ops.Weighted)
        # A bias that is all zero drives nothing; after rounding to integers more of them are.
        biased = op.bias is not None and bool(graph.value(op.bias).any())
        return (
            kernel_words(self.input[0], self.output[0], max(self.kernel)),
            neuron_words(*self.output),
            bias_words(self.output[0], biased),
        )


class Reader:
    """Reads a sequential network into layers; ``diagnostics`` say what the chip cannot take."""

    def __init__(self, graph: Graph, chip: Chip) -> None:
        self.graph, self.chip = graph, chip
        self.layers: list[Layer] = []
        self._found: list[tuple[int, Diagnostic]] = []  # with the position of the node
        # The shape (c, h, w) of the feature map behind each value: a flattened one remembers it.
        self._maps: dict[str, Shape] = {}
        for node in graph.nodes:
            self._read(node)
        self._ends()
        self._memories()

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """What was found, layer by layer."""
        return [diagnostic for _, diagnostic in sorted(self._found, key=lambda found: found[0])]

    def _say(
        self, code: str, node: Node, text: str, hint: str = "", limit: float | None = None, found: float | None = None,
        quantity: str = "", severity: Severity = Severity.ERROR,
    ) -> None:  # fmt: skip
        message = f"`{node.name}`: {text}"
        said = Diagnostic(code, message, node.loc, severity, hint, limit, found, quantity)
        self._found.append((self.graph.nodes.index(node), said))

    # --- reading ---

    def _read(self, node: Node) -> None:
        op = node.op
        if len(self.graph.users[node.name]) > 1:
            readers = " and ".join(f"`{u.name}`" for u in self.graph.users[node.name])
            self._say("SNN061", node, f"{readers} both read it; this target takes sequential networks")
        if isinstance(op, ops.Input):
            self._maps[node.name] = _as_map(node.type.shape)
            if len(self.graph.inputs) > 1 and node != self.graph.inputs[0]:
                self._say("SNN061", node, "a second input; this target takes sequential networks")
            return
        if any(arg not in self._maps for arg in node.args):
            return  # something before it was refused
        shape = self._maps[node.args[0]]
        match op:
            case ops.Add() | ops.Concat():
                self._say(
                    "SNN061",
                    node,
                    f"{op.mnemonic} joins {len(node.args)} values; this target takes sequential networks",
                )
                return
            case ops.Conv2d() | ops.Linear() | ops.Affine():
                self._weighted(node, op, shape)
            case ops.Activation() | ops.If():
                self._neuron(node, shape)
            case ops.AvgPool() | ops.SumPool() | ops.AdaptiveAvgPool() | ops.MaxPool():
                self._pool(node, op, shape)
            case ops.Flatten():
                self._keep(node, shape)
            case ops.Reshape():
                to = shape if len(node.type.shape) == 1 else _as_map(node.type.shape)
                if self.layers and to != shape:
                    sizes = " to ".join(" x ".join(map(str, s)) for s in (shape, to))
                    self._say("SNN064", node, f"reshapes {sizes}, but a spike keeps its channel, row and column")
                self._keep(node, to)
            case ops.Encode():
                self._maps[node.name] = shape
            case _:
                self._say("SNN064", node, f"the chip has no {op.mnemonic}")

    def _keep(self, node: Node, shape: Shape) -> None:
        self._maps[node.name] = shape
        if self.layers:
            self.layers[-1].nodes.append(node.name)

    def _open(self) -> Layer | None:
        """The last layer, if it still waits for its neuron."""
        return self.layers[-1] if self.layers and self.layers[-1].neuron is None else None

    def _weighted(self, node: Node, op: ops.Conv2d | ops.Linear | ops.Affine, shape: Shape) -> None:
        if (open_layer := self._open()) is not None:
            self._say(
                "SNN032",
                node,
                f"no activation stands between it and `{open_layer.name}`; every core ends in spiking neurons",
                "put a ReLU between them, or merge the two layers into one",
            )
        if isinstance(op, ops.Conv2d):
            layer = self._conv(node, op, shape)
        elif isinstance(op, ops.Linear):
            # A linear layer is a convolution whose kernel is the whole feature map.
            if len(node.type.shape) != 1:
                self._say("SNN064", node, f"a linear layer along the last axis of {node.type.shape}", "flatten first")
                return
            layer = Layer(node, shape, (node.type.shape[0], 1, 1), shape[1:])
        else:
            layer = Layer(node, shape, shape, (1, 1))
        layer.nodes.append(node.name)
        self.layers.append(layer)
        self._maps[node.name] = layer.output
        self._geometry(layer)
        self._cut_edge(layer)

    def _conv(self, node: Node, op: ops.Conv2d, shape: Shape) -> Layer:
        top, bottom, left, right = op.padding
        c, h, w = node.type.shape
        if (top, left) != (bottom, right):
            self._say(
                "SNN052", node, f"padding {op.padding} (top, bottom, left, right) is not the same on opposite sides",
                "choose an odd kernel, or pad by a symmetric amount",
            )  # fmt: skip
        if op.dilation != (1, 1):
            self._say(
                "SNN062", node, f"dilation {op.dilation[0]} x {op.dilation[1]}; the chip has none",
                "use a dense kernel of the same reach", limit=1, found=max(op.dilation),
            )  # fmt: skip
        return Layer(node, shape, (c, h, w), op.weight.shape[2:], op.stride, (top, left))  # type: ignore[arg-type]

    def _geometry(self, layer: Layer) -> None:
        chip, node = self.chip, layer.weighted
        flat = isinstance(node.op, ops.Linear)
        what = "feature map in front of the linear layer" if flat else "kernel"
        hint = "pool or stride more before flattening" if flat else "use a smaller kernel"
        kh, kw = layer.kernel
        if kh != kw:
            self._say("SNN050", node, f"the {what} is {kh} x {kw}, not square", "the chip's kernels are square")
        if max(kh, kw) not in chip.kernel_sizes:
            limit = chip.kernel_sizes[-1]
            self._say(
                "SNN050", node, f"the {what} is {kh} x {kw}, the chip's kernels reach {limit} x {limit}", hint,
                limit, max(kh, kw), "rows or columns",
            )  # fmt: skip
        for stride in dict.fromkeys(layer.stride):
            if stride not in chip.strides:
                legal = ", ".join(map(str, chip.strides))
                self._say(
                    "SNN051", node, f"stride {stride}; the chip has {legal}", f"use one of {legal}",
                    max(s for s in chip.strides if s < stride), stride,
                )  # fmt: skip
        for padding in dict.fromkeys(layer.padding):
            if padding not in chip.paddings:
                most = chip.paddings[-1]
                self._say(
                    "SNN052", node, f"padding {padding}; the chip pads by up to {most}", "pad less",
                    most, padding, "rows or columns",
                )  # fmt: skip
        for which, n in (("input", layer.input[0]), ("output", layer.output[0])):
            if n not in chip.features:
                most = chip.features[-1]
                text = f"{n:,} {which} features, a core takes {most:,}"
                self._say("SNN054", node, text, "use fewer channels", most, n, "features")
        for which, size, legal_sizes in (
            ("input", max(layer.input[1:]), chip.input_sizes),
            ("output", max(layer.output[1:]), chip.output_sizes),
        ):
            if size not in legal_sizes:
                h, w = layer.input[1:] if which == "input" else layer.output[1:]
                before, most = "" if which == "input" else " before pooling", legal_sizes[-1]
                self._say(
                    "SNN055", node, f"its {which} is {h} x {w}{before}, a core takes {most} x {most}",
                    "use a smaller input or a larger stride", most, size, "rows or columns",
                )  # fmt: skip

    def _cut_edge(self, layer: Layer) -> None:
        """Warn where the pooling in front drops an edge that the chip does not: it pools by shifting coordinates, so
        that a spike of the edge goes to the row just outside of the target's input, which padding may make reachable.
        What the chip then does is documented nowhere."""
        if len(self.layers) < 2:
            return
        before = self.layers[-2]
        for what, i in (("rows", 0), ("columns", 1)):
            n, out = layer.input[i + 1], layer.output[i + 1]
            cut = before.output[i + 1] % before.pooling
            reached = (out - 1) * layer.stride[i] + layer.kernel[i] - layer.padding[i]
            if cut and reached > n:
                text = (
                    f"pooling {before.pooling} in front of it leaves {cut} of {before.output[i + 1]} {what} over. The "
                    f"chip may send their spikes to {what[:-1]} {n}, just outside of its input, and its padding lets "
                    "them through"
                )
                hint = "choose a size that the pooling divides, or leave out the padding; the simulation drops the edge"
                self._say("SNN053", layer.weighted, text, hint, severity=Severity.WARNING)

    def _neuron(self, node: Node, shape: Shape) -> None:
        layer = self._open()
        if layer is None:
            self._say("SNN064", node, "a neuron without a layer of weights in front of it")
            return
        layer.neuron = node
        self._keep(node, shape)

    def _pool(self, node: Node, op: ops.Op, shape: Shape) -> None:
        if isinstance(op, ops.MaxPool):
            self._say(
                "SNN031", node, "max pooling, which the chip does not have",
                "train with nn.AvgPool2d, or with a convolution of stride 2",
            )  # fmt: skip
        elif isinstance(op, ops.AdaptiveAvgPool):
            self._say(
                "SNN031", node, f"averages {shape[1]} x {shape[2]} to {op.output}, over windows of different sizes",
                "choose an output size that divides the input's",
            )  # fmt: skip
        elif isinstance(op, ops.AvgPool | ops.SumPool):
            self._sum_pool(node, op, shape)
        # What follows is checked all the same, with the shape that the pooling has.
        self._keep(node, node.type.shape)  # type: ignore[arg-type]

    def _sum_pool(self, node: Node, op: ops.AvgPool | ops.SumPool, shape: Shape) -> None:
        kh, kw = op.kernel
        if not self.layers:
            self._say(
                "SNN053", node, "pools the input, before any layer; only the sensor's events can be pooled there",
                "start with a convolution of that stride",
            )  # fmt: skip
            return
        if (open_layer := self._open()) is not None:
            self._say(
                "SNN053", node, f"pools the currents of `{open_layer.name}`; the chip pools spikes",
                "put the activation before the pooling",
            )  # fmt: skip
        layer = self.layers[-1]
        pooling = layer.pooling * max(kh, kw)
        if isinstance(op, ops.AvgPool) and (any(op.padding) or op.ceil_mode):
            self._say("SNN053", node, "pooling with padding or ceil_mode; the chip has neither", "pool without")
        if kh != kw or op.stride != op.kernel:
            self._say(
                "SNN053", node, f"window {kh} x {kw} with stride {op.stride[0]} x {op.stride[1]}",
                "the chip pools square windows side by side",
            )  # fmt: skip
        elif pooling not in self.chip.poolings:
            legal = ", ".join(map(str, self.chip.poolings))
            before = f" (after pooling {layer.pooling} already)" if layer.pooling > 1 else ""
            self._say(
                "SNN053", node, f"pooling {kh}{before}; the chip has {legal}", f"use one of {legal}",
                max((p for p in self.chip.poolings if p < pooling), default=1), pooling,
            )  # fmt: skip
        layer.pooling = pooling

    # --- the whole ---

    def _ends(self) -> None:
        if errors(self.diagnostics):
            return  # the ends of a network that was not read whole say nothing
        if len(self.graph.outputs) > 1:
            self._say("SNN061", self.graph[self.graph.outputs[1]], "a second output; this target has one")
        last = self.graph[self.graph.outputs[0]]
        if not self.layers:
            self._say("SNN064", last, "the network has no layer with weights")
        elif self.layers[-1].pooling > 1:
            self._say(
                "SNN061", last, "the network ends in pooling, but the output is read from a core before any pooling",
                "end in a linear layer or a convolution",
            )  # fmt: skip

    def _memories(self) -> None:
        cores = self.chip.cores
        names, codes = ("kernel", "neuron", "bias"), ("SNN056", "SNN057", "SNN058")
        advice = (
            "use fewer channels or a smaller kernel",
            "use fewer channels, or a larger stride",
            "use bias='strip'",
        )
        for layer in self.layers:
            needs = layer.memory(self.graph)
            left = [c.words for c in cores]  # cores that hold it so far
            for i, (code, what) in enumerate(zip(codes, names, strict=True)):
                holding = [core for core in left if needs[i] <= core[i]]
                if holding:
                    left = holding
                    continue
                most, rest = max(core[i] for core in left), ""
                grouped = what == "kernel" and getattr(layer.weighted.op, "groups", 1) > 1
                if grouped:
                    rest = " (its groups are expanded to a dense kernel, as the chip has none)"
                text = f"needs {needs[i]:,} words of {what} memory{rest}, the largest core has {most:,}"
                if len(left) < len(cores):
                    beside = " and ".join(f"{needs[j]:,} of {names[j]}" for j in range(i))
                    text = f"needs {needs[i]:,} words of {what} memory beside {beside} memory; "
                    text += f"the largest core with so much has {most:,}"
                self._say("SNN063" if grouped else code, layer.weighted, text, advice[i], most, needs[i], "words")
        if len(self.layers) > len(cores):
            extra = self.layers[len(cores)].weighted
            self._say(
                "SNN059", extra, f"layer {len(cores) + 1} of {len(self.layers)}; each takes a core of its own",
                "use fewer layers", len(cores), len(self.layers), "cores",
            )  # fmt: skip

    def places(self, layer: Layer) -> tuple[str, ...]:
        """The cores whose memories hold the layer."""
        needs = layer.memory(self.graph)
        return tuple(
            core_name(i)
            for i, core in enumerate(self.chip.cores)
            if all(n <= h for n, h in zip(needs, core.words, strict=True))
        )

    def groups(self) -> list[Group]:
        """What goes to one core together. Shape changes of the input belong to the core that reads them."""
        groups = [Group(la.name, tuple(la.nodes), self.places(la), la.weighted.loc) for la in self.layers]
        placed = {name for g in groups for name in g.nodes}
        first = [n.name for n in self.graph.nodes if n.name not in placed and not isinstance(n.op, _OUTSIDE)]
        if groups and first:
            groups[0] = replace(groups[0], nodes=(*first, *groups[0].nodes))
        return groups


_OUTSIDE = (ops.Input, ops.Encode)  # on the host


CORE = "core "


def core_name(index: int) -> str:
    """How a core is named as a place."""
    return f"{CORE}{index}"


def _as_map(shape: tuple[int, ...]) -> Shape:
    """A feature map (c, h, w) of any shape: what has fewer axes is channels of one pixel."""
    c, h, w = (*shape, 1, 1)[:3]
    return c, h, w


@dataclass(frozen=True)
class CheckLimits(Pass):
    """Hold the network against the chip, before anything is calibrated: geometry, memory, number of layers."""

    chip: Chip
    name: ClassVar[str] = "check-limits"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        """The same graph."""
        reader = Reader(graph, self.chip)
        for diagnostic in reader.diagnostics:
            context.report(diagnostic)
        if not errors(reader.diagnostics):
            place_groups(reader.groups(), context)
        return graph

    def __str__(self) -> str:
        return f"{self.name}{{chip={self.chip.name}}}"


@dataclass(frozen=True)
class PlaceOnCores(Place):
    """One layer to a core whose three memories hold it."""

    chip: Chip
    name: ClassVar[str] = "place"

    def run(self, graph: Graph, context: Context) -> Graph:
        """The graph with places; as it is if check-limits has said why there are none."""
        return graph if errors(context.diagnostics) else super().run(graph, context)

    def groups(self, graph: Graph, context: Context) -> list[Group]:
        """The layers, each with its pooling and shape changes."""
        reader = Reader(graph, self.chip)
        for diagnostic in reader.diagnostics:
            context.report(diagnostic)
        for layer in reader.layers:
            if (found := _potential(graph, layer, self.chip, context.timesteps)) is not None:
                context.report(found)
        return reader.groups()

    def __str__(self) -> str:
        return f"{self.name}{{chip={self.chip.name}}}"


def _potential(graph: Graph, layer: Layer, chip: Chip, timesteps: int) -> Diagnostic | None:
    """A warning where potentials may reach the end of their 16 bits: what happens there is undocumented.

    An event adds at most the largest weight and takes off the threshold if it is reached. So below the threshold before
    an event means below it afterwards as long as no weight is larger than it; what adds up without events is the bias.
    """
    op, neuron = layer.weighted.op, layer.neuron
    if neuron is None or not isinstance(neuron.op, ops.If) or not isinstance(op, ops.Weighted):
        return None
    assert isinstance(neuron.op.threshold, int)
    weight = int(graph.value(op.weight).max(initial=0))
    bias = 0 if op.bias is None else int(graph.value(op.bias).max(initial=0))
    top = neuron.op.threshold + weight + bias * timesteps
    most = chip.states[-1]
    why = ""
    if weight > neuron.op.threshold:
        why = f"its largest weight, {weight}, is above its threshold, {neuron.op.threshold}, and events add up"
    elif top > most:
        why = (
            f"threshold {neuron.op.threshold}, weight {weight} and {timesteps} times the bias {bias} add up to {top:,}"
        )
    if not why:
        return None
    return Diagnostic(
        "SNN065",
        f"`{layer.name}`: the potentials of its neurons may reach {most:,}, where the chip's arithmetic ends: {why}",
        layer.weighted.loc,
        Severity.WARNING,
        "calibrate with threshold='max', which gives larger thresholds, or compile for fewer time steps",
        limit=most if top > most else None,
        found=top if top > most else None,
    )


def to_config(graph: Graph, chip: Chip) -> Config:
    """The configuration of a mapped graph, its ranges and shapes not yet checked (``config.problems``)."""
    layers = Reader(graph, chip).layers
    indices = [layer.core for layer in layers]
    cores = []
    for i, layer in enumerate(layers):
        last = i + 1 == len(layers)
        assert layer.neuron is not None and isinstance(layer.neuron.op, ops.If)
        neuron = layer.neuron.op
        assert isinstance(neuron.threshold, int)
        initial = np.broadcast_to(per_channel(neuron.v0, graph.store, 3), layer.output)
        op = layer.weighted.op
        assert isinstance(op, ops.Weighted)
        cores.append(
            CoreConfig(
                index=indices[i],
                name=layer.name,
                input_shape=layer.input,
                output_shape=layer.output,
                kernel=layer.kernel[0],
                stride=layer.stride,
                padding=layer.padding,
                weights=_dense_kernel(graph, layer),
                biases=graph.value(op.bias).astype(np.int16) if op.bias is not None else None,
                threshold_high=neuron.threshold,
                threshold_low=int(neuron.v_min) if neuron.v_min is not None else chip.thresholds_low[0],
                initial=initial.astype(np.int32) if initial.any() else None,  # its range is for `problems` to check
                return_to_zero=neuron.reset == "zero",
                destinations=() if last else (Destination(indices[i + 1], layer.pooling),),
                monitor=last,
            )
        )
    return Config(chip, tuple(cores), (indices[0],), (Readout(indices[-1]),))


def _dense_kernel(graph: Graph, layer: Layer) -> Array:
    """The layer's weights as one dense kernel, int8 (O, C, k, k): groups expanded, a linear layer over its map."""
    op = layer.weighted.op
    assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
    weight = graph.value(op.weight)
    if isinstance(op, ops.Affine):
        return np.diag(weight)[:, :, None, None]
    if isinstance(op, ops.Linear):
        return weight.reshape(len(weight), *layer.input)
    if op.groups == 1:
        return weight
    o, c = weight.shape[:2]
    dense = np.zeros((o, c * op.groups, *weight.shape[2:]), weight.dtype)
    per_group = o // op.groups
    for g in range(op.groups):
        dense[g * per_group : (g + 1) * per_group, g * c : (g + 1) * c] = weight[g * per_group : (g + 1) * per_group]
    return dense
