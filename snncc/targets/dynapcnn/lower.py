"""From a graph to the chip's layers: what each core computes, whether it may, and where its spikes go.

A layer is a weighted operation and the neuron behind it; what it reads are wires: spikes of other layers, or of the
input, pooled on their way and laid side by side as channels. The same reading serves the network (before calibration,
so that limits are told early), the integer graph (to place it) and the mapped one (for the configuration).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

import numpy as np

from snncc.ir import Diagnostic, Domain, Graph, Node, Severity, Stage, ops
from snncc.ir.diagnostics import errors, unknown
from snncc.ir.types import Array, per_channel
from snncc.passes.canonicalize import divisors
from snncc.passes.fuse_linear import Shape, as_map, is_host_layout, ungrouped
from snncc.targets.dynapcnn.chips import Chip, bias_words, kernel_words, neuron_words
from snncc.targets.dynapcnn.config import (
    Config,
    CoreConfig,
    Destination,
    HostBias,
    InputRoute,
    Monitor,
    Readout,
    Sensor,
)
from snncc.targets.dynapcnn.placement import Demand

Pair = tuple[int, int]
CORE = "core "  # how a core is named as a place: "core 3"


@dataclass(frozen=True)
class Wire:
    """Spikes on their way into a layer: of ``source``, a neuron, or a layout of an input if ``host``; ``shape`` is what
    the source sends, ``pooling`` by how much rows and columns shrink."""

    source: str
    shape: Shape
    pooling: int = 1
    scale: float = 1.0  # that the pooling has in the graph
    host: bool = False

    @property
    def size(self) -> Pair:
        """Height and width of what arrives."""
        return self.shape[1] // self.pooling, self.shape[2] // self.pooling


@dataclass(frozen=True)
class Fit:
    """How the chip's square kernel, with one padding for opposite sides, holds a kernel of any shape: at ``at`` (y, x)
    within ``kernel`` rows and columns, zeros around it."""

    kernel: int
    stride: Pair
    padding: Pair
    at: Pair


@dataclass
class Layer:
    """One layer. Shapes are (channels, height, width), pairs (y, x).

    Attributes:
        node: the weighted operation; of a relay that picks rows and columns, the slice.
        wires: what it reads, in order of channels.
        firsts: the first channel of each wire in the input of the core.
        input: the shape that the core sees.
        kernel: rows and columns that a window spans, dilation included.
        offset: of the first window; negative in padding.
        neuron: what fires.
        fit: how the chip does it, None if it cannot.
    """

    node: Node
    wires: tuple[Wire, ...]
    firsts: tuple[int, ...]
    input: Shape
    output: Shape
    kernel: Pair
    stride: Pair = (1, 1)
    offset: Pair = (0, 0)
    neuron: Node | None = None
    fit: Fit | None = None
    nodes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def sends(self) -> str:
        """Under which name others read its spikes."""
        return self.neuron.name if self.neuron is not None else self.node.name

    @property
    def core(self) -> int:
        """Where it was placed."""
        return int(self.node.place.removeprefix(CORE))

    def words(self, channels: int, biased: bool) -> tuple[int, int, int]:
        """(kernel, neuron, bias) memory for so many of its output channels."""
        side = self.fit.kernel if self.fit is not None else max(self.kernel)
        return (
            kernel_words(self.input[0], channels, side),
            neuron_words(channels, *self.output[1:]),
            bias_words(channels, biased),
        )


def has_bias(graph: Graph, node: Node) -> bool:
    """Whether a bias is there that is not zero: others drive nothing, and after rounding more of them are."""
    op = node.op
    return isinstance(op, ops.Weighted) and op.bias is not None and bool(graph.value(op.bias).any())


def fit(layer: Layer, chip: Chip) -> Fit | None:
    """The smallest square kernel of the chip that computes the layer, or None.

    Along each axis, with input n, output m, window k from the offset o on and stride s: a padding p and a kernel size
    K such that the rows o..o+k-1 lie within -p..K-p-1, and the chip's output size, floor((n + 2p - K) / s) + 1, is m.
    Of a single output the stride is free, which gives room for odd differences.
    """
    for size in chip.kernel_sizes:
        axes = []
        for i in (0, 1):
            n, m, o, k = layer.input[i + 1], layer.output[i + 1], layer.offset[i], layer.kernel[i]
            strides = chip.strides if m == 1 else [s for s in chip.strides if s == layer.stride[i]]
            ways = [
                (p, s)
                for p, s in product(chip.paddings, strides)
                if o + p >= 0 and o + p + k <= size and (n + 2 * p - size) // s + 1 == m and n + 2 * p >= size
            ]
            axes.append(ways)
        if all(axes):
            (py, sy), (px, sx) = (ways[0] for ways in axes)
            return Fit(size, (sy, sx), (py, px), (layer.offset[0] + py, layer.offset[1] + px))
    return None


class Reader:
    """Reads a graph into layers; ``diagnostics`` say what the chip cannot take."""

    def __init__(self, graph: Graph, chip: Chip) -> None:
        self.graph, self.chip = graph, chip
        self.layers: list[Layer] = []
        self.wires: dict[str, tuple[Wire, ...]] = {}  # of values that are spikes
        self._sums: set[str] = set()  # values that are no spikes, but what a neuron adds up
        self._open: dict[str, Layer] = {}  # layers that wait for their neuron, by the value that it has to read
        self._found: list[tuple[int, Diagnostic]] = []  # with the position of the node
        for node in graph.nodes:
            self._read(node)
        self._ends()

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
        if is_host_layout(self.graph, node):
            if not (isinstance(op, ops.Input) and self.graph.stage.spiking):  # the encoding stands for it
                self.wires[node.name] = (Wire(node.name, as_map(node.type.shape), host=True),)
            return
        if isinstance(op, ops.Activation | ops.If):
            self._neuron(node)
            return
        if isinstance(op, ops.Weighted) and any(arg in self._open for arg in node.args):
            before = self._open[node.args[0]].name
            self._say(
                "SNN032", node, f"no activation stands between it and `{before}`; every core ends in spiking neurons",
                "put a ReLU between them, or merge the two layers into one",
            )  # fmt: skip
        if isinstance(op, ops.Flatten | ops.Reshape) and node.args[0] in self._open:
            self._open[node.name] = self._open[node.args[0]]
            self._open[node.name].nodes.append(node.name)
            self._sums.add(node.name)
            return
        if missing := [arg for arg in node.args if arg not in self.wires]:
            if not isinstance(op, ops.Weighted) and not self._sums.isdisjoint(missing):
                self._other(node)
            return  # something before it was refused
        wires = tuple(wire for arg in node.args for wire in self.wires[arg])
        match op:
            case ops.Conv2d() | ops.Linear() | ops.Affine():
                self._weighted(node, op, wires)
            case ops.AvgPool() | ops.SumPool() | ops.AdaptiveAvgPool() | ops.MaxPool():
                self._pool(node, op, wires)
            case ops.Flatten():
                self.wires[node.name] = wires
            case ops.Reshape():
                to, shape = as_map(node.type.shape), (sum(w.shape[0] for w in wires), *wires[0].size)
                if len(node.type.shape) > 1 and to != shape:
                    sizes = " to ".join(" x ".join(map(str, s)) for s in (shape, to))
                    text = f"reshapes {sizes}, but a spike keeps its channel, row and column"
                    hint = (
                        "flatten instead; or, where channels become more and pixels fewer, a convolution with a stride"
                    )
                    self._say("SNN064", node, text, hint)
                    return
                self.wires[node.name] = wires
            case ops.Concat() if op.axis == 0 and len({w.size for w in wires}) == 1:
                self.wires[node.name] = wires
            case ops.Slice() if len(wires) == 1 and wires[0].pooling == 1:
                self._pick(node, op, wires[0])
            case _:
                self._other(node)

    def _other(self, node: Node) -> None:
        """What no core does."""
        if isinstance(node.op, ops.Add | ops.Concat):
            text = f"{node.op.mnemonic} joins {len(node.args)} values that no core can read together"
            self._say("SNN061", node, text, "bring them to one size, and let a weighted layer read the result")
        else:
            hint = "bring maps to one size by pooling or a stride" if isinstance(node.op, ops.Slice) else ""
            self._say("SNN064", node, f"the chip has no {node.op.mnemonic}", hint)

    def _add(self, layer: Layer) -> None:
        self.layers.append(layer)
        layer.nodes.append(layer.name)
        layer.fit = fit(layer, self.chip)
        self._geometry(layer)
        self._cut_edge(layer)

    def _weighted(self, node: Node, op: ops.Conv2d | ops.Linear | ops.Affine, wires: tuple[Wire, ...]) -> None:
        what = "a linear layer along the last axis" if isinstance(op, ops.Linear) else "a factor for each channel"
        if len(node.type.shape) == 2 or (isinstance(op, ops.Linear) and len(node.type.shape) != 1):
            self._say("SNN064", node, f"{what} of {node.type.shape}", "flatten first")
            return
        if isinstance(op, ops.Affine) and as_map(node.type.shape) != (sum(w.shape[0] for w in wires), *wires[0].size):
            hint = "put the batch norm in front of the flattening, or a linear layer in its place"
            self._say("SNN064", node, f"{what} of a flattened map, whose pixels are channels here", hint)
            return
        wires = self._fed_alike(wires)
        output, kernel, stride, offset = as_map(node.type.shape), (1, 1), (1, 1), (0, 0)
        if isinstance(op, ops.Conv2d):
            kernel = tuple((k - 1) * d + 1 for k, d in zip(op.weight.shape[2:], op.dilation, strict=True))  # type: ignore[assignment]
            stride, offset = op.stride, (-op.padding[0], -op.padding[2])
        elif isinstance(op, ops.Linear):  # a convolution whose kernel is the whole feature map
            wires = self._laid_out(wires)
            if len({w.size for w in wires}) > 1:
                self._other(node)
                return
            kernel = wires[0].size
        firsts = self._firsts(op, wires)
        channels = max(first + w.shape[0] for first, w in zip(firsts, wires, strict=True))
        layer = Layer(node, wires, firsts, (channels, *wires[0].size), output, kernel, stride, offset)
        self._open[node.name] = layer
        self._sums.add(node.name)
        self._add(layer)

    def _fed_alike(self, wires: tuple[Wire, ...]) -> tuple[Wire, ...]:
        """On most chips a core gets all channels from cores, or all from the host (see config.problems): an input that
        is read beside spikes comes through a relay."""
        if self.chip.adds or len({w.host for w in wires}) == 1:
            return wires
        for wire in wires:
            if wire.host and wire.source not in {layer.sends for layer in self.layers}:
                node = self.graph[wire.source]
                self._add(Layer(node, (replace(wire, pooling=1),), (0,), wire.shape, wire.shape, (1, 1)))
        return tuple(replace(w, host=False) for w in wires)

    def _laid_out(self, wires: tuple[Wire, ...]) -> tuple[Wire, ...]:
        """What a linear layer reads, flat inputs laid out as maps by the host: in the size of the other wires, or else
        so that they do not take more channels than a core has."""
        if not all(w.size == (1, 1) for w in wires if w.host):
            return wires
        sizes = [w.size for w in wires if not w.host][:1] or [(k, k) for k in (1, 2, 4, 8, 16)]

        def channels(wire: Wire, size: Pair) -> int:
            return -(-wire.shape[0] // prod(size)) if wire.host else wire.shape[0]

        most = self.chip.features[-1]
        size = next((s for s in sizes if sum(channels(w, s) for w in wires) <= most), sizes[-1])
        return tuple(replace(w, shape=(channels(w, size), *size)) if w.host else w for w in wires)

    def _firsts(self, op: ops.Op, wires: Sequence[Wire]) -> tuple[int, ...]:
        """Where in the core's input each wire's channels begin. Wires with the same weights can share theirs on a chip
        whose cores add up what comes to one place."""
        firsts, at, known = [], 0, dict[bytes, int]()
        integers = self.graph.stage in (Stage.INT, Stage.MAPPED)
        blocks = list(self._blocks(op, wires)) if self.chip.adds and len(wires) > 1 and integers else []
        for i, wire in enumerate(wires):
            key = blocks[i].tobytes() if blocks else b""
            if blocks and key in known and not wire.host:
                firsts.append(known[key])
                continue
            firsts.append(at)
            known[key] = at
            at += wire.shape[0]
        return tuple(firsts)

    def _blocks(self, op: ops.Op, wires: Sequence[Wire]) -> Iterator[Array]:
        """The dense weights (O, C, h, w) of each wire."""
        assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
        weight, at = self.graph.value(op.weight), 0
        if isinstance(op, ops.Affine):
            weight = np.diag(weight)[:, :, None, None]
        elif isinstance(op, ops.Conv2d):
            weight = ungrouped(weight, op.groups)
        else:
            total = sum(prod((w.shape[0], *w.size)) for w in wires)
            weight = np.pad(weight, ((0, 0), (0, total - weight.shape[1])))  # what the host lays out may be larger
        for wire in wires:
            n = wire.shape[0] * (prod(wire.size) if isinstance(op, ops.Linear) else 1)
            block = weight[:, at : at + n]
            yield block.reshape(len(weight), wire.shape[0], *wire.size) if isinstance(op, ops.Linear) else block
            at += n

    def kernel(self, layer: Layer) -> Array:
        """The layer's weights as the core holds them, int8 (O, C, K, K)."""
        op, held = layer.node.op, layer.fit
        assert held is not None and isinstance(op, ops.Weighted)
        dense = np.zeros((layer.output[0], layer.input[0], held.kernel, held.kernel), np.int8)
        dy, dx = op.dilation if isinstance(op, ops.Conv2d) else (1, 1)
        (y, x), (kh, kw) = held.at, layer.kernel
        for first, block in zip(layer.firsts, self._blocks(op, layer.wires), strict=True):
            dense[:, first : first + block.shape[1], y : y + kh : dy, x : x + kw : dx] = block
        return dense

    def _pick(self, node: Node, op: ops.Slice, wire: Wire) -> None:
        """A slice of spikes takes a core: a relay that passes on every n-th row and column."""
        if op.start[0] or op.step[0] != 1 or op.stop != (wire.shape[0], *wire.size):
            self._other(node)
            return
        (_, *start), (_, *step) = op.start, op.step
        offset, stride = (start[0], start[1]), (step[0], step[1])
        output = as_map(node.type.shape)
        self._add(Layer(node, (wire,), (0,), (wire.shape[0], *wire.size), output, (1, 1), stride, offset))
        self.wires[node.name] = (Wire(node.name, output),)

    def _neuron(self, node: Node) -> None:
        layer = self._open.pop(node.args[0], None)
        if layer is None or layer.neuron is not None:
            if node.args[0] in self.wires or layer is not None:
                self._say("SNN064", node, "a neuron without a layer of weights of its own in front of it")
            return
        layer.neuron = node
        layer.nodes.append(node.name)
        self.wires[node.name] = (Wire(node.name, layer.output),)

    # --- what a layer may be ---

    def _geometry(self, layer: Layer) -> None:
        chip, node = self.chip, layer.node
        for which, n in (("input", layer.input[0]), ("output", layer.output[0])):
            if n not in chip.features and (which == "input" or n > chip.features[-1] * len(chip.cores)):
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
                fold = next(n for n in (2 << i for i in range(32)) if -(-size // n) <= most)
                hint = f"use a stride of {max(layer.stride) * fold}, or an input {fold} times smaller"
                if which == "input":
                    hint = f"begin with nn.AvgPool2d({fold}), which the host computes" if layer.wires[0].host else ""
                    hint = hint or f"let the layers before it stride by {fold} more"
                text = f"its {which} is {h} x {w}{before}, a core takes {most} x {most}"
                self._say("SNN055", node, text, hint, most, size, "rows or columns")
        if layer.fit is None:
            self._misfit(layer)

    def _misfit(self, layer: Layer) -> None:
        """Say which of its numbers no kernel of the chip has room for."""
        chip, node, (kh, kw) = self.chip, layer.node, layer.kernel
        flat = isinstance(node.op, ops.Linear)
        what = "feature map in front of the linear layer" if flat else "kernel"
        dilated = isinstance(node.op, ops.Conv2d) and node.op.dilation != (1, 1)
        most, spread = chip.kernel_sizes[-1], " with its dilation" if dilated else ""
        said = len(self._found)
        if max(kh, kw) > most:
            hint = f"use kernels that span at most {most} x {most}, with all layers up to the next activation"
            if flat:
                fold = next(n for n in (2 << i for i in range(32)) if max(kh, kw) // n <= most)
                hint = f"let the layers before it stride by {fold} more"
                if layer.wires[0].pooling * fold in chip.poolings:
                    hint = f"pool by {fold} more before flattening, to {kh // fold} x {kw // fold}"
            elif dilated and (k := max(node.op.weight.shape[2:])) <= most:  # type: ignore[attr-defined]
                hint = f"use a dilation of at most {(most - 1) // (k - 1)}, or a smaller kernel"
            text = f"the {what} is {kh} x {kw}{spread}, the largest kernel {most} x {most}"
            self._say("SNN062" if dilated else "SNN050", node, text, hint, most, max(kh, kw), "rows or columns")
        for m, stride in zip(layer.output[1:], layer.stride, strict=True):
            if m > 1 and stride not in chip.strides:
                legal = ", ".join(map(str, chip.strides))
                below = max(s for s in chip.strides if s < stride)
                self._say(
                    "SNN051", node, f"stride {stride}; the chip has {legal}", f"use one of {legal}", below, stride
                )
                break
        for offset in layer.offset:
            if -offset not in chip.paddings and offset < 0:
                self._say(
                    "SNN052", node, f"padding {-offset}; the chip pads by up to {chip.paddings[-1]}",
                    f"pad by at most {chip.paddings[-1]}",
                    chip.paddings[-1], -offset, "rows or columns",
                )  # fmt: skip
                break
        if len(self._found) == said:
            sizes = " to ".join(f"{h} x {w}" for _, h, w in (layer.input, layer.output))
            text = (
                f"its {what} of {kh} x {kw}{spread}, from {sizes}, is no square kernel with equal padding on both sides"
            )
            self._say("SNN050", node, text, "choose a kernel whose sides are both odd or both even")

    def _cut_edge(self, layer: Layer) -> None:
        """Warn where the pooling in front drops an edge that the chip does not: it pools by shifting coordinates, so
        that a spike of the edge goes to the row just outside of the target's input, which padding may make reachable.
        What the chip then does is documented nowhere."""
        for wire, (what, i) in product(layer.wires, (("rows", 0), ("columns", 1))):
            n, out = wire.size[i], layer.output[i + 1]
            cut = wire.shape[i + 1] % wire.pooling
            reached = (out - 1) * layer.stride[i] + layer.kernel[i] + layer.offset[i]
            if cut and reached > n and not wire.host:
                text = (
                    f"pooling {wire.pooling} in front of it leaves {cut} of {wire.shape[i + 1]} {what} over. The "
                    f"chip may send their spikes to {what[:-1]} {n}, just outside of its input, and its padding lets "
                    "them through"
                )
                hint = "choose a size that the pooling divides, or leave out the padding; the simulation drops the edge"
                self._say("SNN053", layer.node, text, hint, severity=Severity.WARNING)

    def _pool(self, node: Node, op: ops.Op, wires: tuple[Wire, ...]) -> None:
        if isinstance(op, ops.MaxPool):
            self._say(
                "SNN031", node, "max pooling, which the chip does not have",
                "train with nn.AvgPool2d, or with a convolution of stride 2",
            )  # fmt: skip
        elif isinstance(op, ops.AdaptiveAvgPool):
            size = node.type.shape[1:]
            self._say(
                "SNN031", node, f"averages to {size[0]} x {size[1]}, over windows of different sizes",
                divisors(self.graph.arg_types(node)[0].shape[1:]),
            )  # fmt: skip
        elif isinstance(op, ops.AvgPool | ops.SumPool):
            kh, kw = op.kernel
            legal = ", ".join(map(str, self.chip.poolings))
            if isinstance(op, ops.AvgPool) and (any(op.padding) or op.ceil_mode):
                hint = "use ceil_mode=False, and count_include_pad=True where there is padding"
                self._say("SNN053", node, "pooling with padding or ceil_mode; the chip has neither", hint)
            elif kh != kw or op.stride != op.kernel:
                text = f"window {kh} x {kw} with stride {op.stride[0]} x {op.stride[1]}"
                self._say("SNN053", node, text, f"pool square windows side by side, of {legal}")
            else:
                for wire in wires:
                    self._poolable(node, wire, kh)
            scale = op.scale if isinstance(op, ops.SumPool) else 1.0
            wires = tuple(replace(w, pooling=w.pooling * kh, scale=w.scale * scale) for w in wires)
        # What follows is checked all the same, with the shape that the pooling has.
        if len(wires) == 1 and wires[0].size != node.type.shape[1:]:
            shape = as_map(node.type.shape)
            wires = (replace(wires[0], shape=shape, pooling=1),)
        self.wires[node.name] = wires

    def _poolable(self, node: Node, wire: Wire, window: int) -> None:
        pooling, legal, n = wire.pooling * window, self.chip.poolings, max(wire.size)
        if wire.host or pooling in legal:
            return
        before = f" (after pooling {wire.pooling} already)" if wire.pooling > 1 else ""
        text = (
            f"averages {window} x {window}{before}; spikes can be pooled by {', '.join(map(str, legal))} on their way, "
        )
        text += "and no kernel behind it has room for that"
        most = max(p for p in legal if wire.pooling * p in legal)
        less = [p for p in legal if 1 < p <= most and p < window and n // p <= self.chip.kernel_sizes[-1]]
        hint = "leave it out, and let a layer in front of it stride by 2 or 4 instead"
        if less:
            h, w = wire.size
            sizes = (f"by {p}, {h} x {w} to {h // p} x {w // p}" for p in reversed(less))
            hint = f"pool less: {', or '.join(sizes)}"
        self._say("SNN053", node, text, hint, max((p for p in legal if p < pooling), default=1), pooling)

    # --- the whole ---

    def _ends(self) -> None:
        if errors(self.diagnostics):
            return  # the ends of a network that was not read whole say nothing
        for layer in self.layers:
            if layer.neuron is None and isinstance(layer.node.op, ops.Weighted):
                self._say("SNN064", layer.node, "no neuron stands behind it", "end in a ReLU")
        for name in dict.fromkeys(self.graph.outputs):
            node, wires = self.graph[name], self.wires.get(name, ())
            if not self.layers:
                self._say("SNN064", node, "the network has no layer with weights")
            elif any(wire.pooling > 1 for wire in wires):
                text = "the network ends in pooling, but the output is read from a core before any pooling"
                self._say("SNN061", node, text, "end in a linear layer or a convolution")
            elif not wires and node.name not in self._sums:
                self._say("SNN064", node, "no core computes the output")
            elif any(wire.host for wire in wires):
                self._say("SNN061", node, "the output is an input as it is")


def demands(reader: Reader, readout: bool = False) -> list[Demand]:
    """What the layers ask of a placement. ``readout``: what is an output goes to the readout block, too."""
    found, graph = [], reader.graph
    ends = {wire.source for name in graph.outputs for wire in reader.wires.get(name, ())}
    for layer in reader.layers:
        biased = has_bias(graph, layer.node)
        reads = tuple("" if wire.host else wire.source for wire in layer.wires)
        exits = int(readout and layer.sends in ends)
        step = reader.chip.readout.step if exits and reader.chip.readout else 1  # see _to_readout

        def words(n: int, layer: Layer = layer, biased: bool = biased, step: int = step) -> tuple[int, int, int]:
            return layer.words((n - 1) * step + 1, biased)

        found.append(Demand(layer.sends, layer.output[0], words, layer.output[1:], reads, exits))
    return found


def to_config(graph: Graph, chip: Chip, sensor: Sensor | None = None, readout: bool = False,
              monitor: Sequence[str] = ()) -> Config:  # fmt: skip
    """The configuration of a mapped graph, its ranges and shapes not yet checked (``config.problems``).

    Args:
        sensor: the chip's own pixels instead of the host.
        readout: send the outputs to the chip's readout block.
        monitor: neurons, or layers of weights, whose spikes the chip is to report, beside the outputs'.
    """
    reader = Reader(graph, chip)
    layers = {layer.sends: layer for layer in reader.layers}

    # Which of the network's neurons each core's are: a split layer is a concatenation of its parts.
    def tiles(name: str) -> Iterator[tuple[int, int]]:
        at = 0
        for wire in reader.wires[name]:
            yield layers[wire.source].core, at
            at += wire.shape[0]

    wanted = {*graph.outputs, *monitored(graph, monitor)}
    watched = [node.name for node in graph.nodes if node.name in wanted]
    monitors = [Monitor(name, core, first) for name in watched for core, first in tiles(name)]
    reads: dict[str, list[Destination]] = {name: [] for name in layers}
    routes, ones = [], list[HostBias]()
    index = {n.name: i for i, n in enumerate(graph.inputs)}
    for layer in layers.values():
        for wire, first in zip(layer.wires, layer.firsts, strict=True):
            if wire.host and isinstance(graph[wire.source].op, ops.Ones):
                rows, columns = (tuple(range(n)) for n in wire.shape[1:])
                ones.append(HostBias(layer.core, first, 1, rows, columns))
            elif wire.host:
                routes.append(
                    InputRoute(layer.core, wire.shape, wire.pooling, first, index[_input_of(graph, wire.source)])
                )
            else:
                reads[wire.source].append(Destination(layer.core, wire.pooling, first))
    step = chip.readout.step if readout and chip.readout else 1
    readouts = [Readout(core, first, step, i) for i, name in enumerate(graph.outputs) for core, first in tiles(name)]
    seen = {m.core for m in monitors} | {r.core for r in readouts}
    made = [
        _biased_by_host(reader, layer, _core(reader, layer, tuple(reads[layer.sends]), layer.core in seen), sensor)
        for layer in layers.values()
    ]
    cores = [core for core, _ in made]
    if readout:
        starts = {r.core: r.first for r in readouts}
        cores = [_to_readout(core, starts[core.index], chip) if core.index in starts else core for core in cores]
        monitors = [m for m in monitors if m.core not in starts]  # their channels are not the layer's any more
    shapes = tuple(node.type.shape for node in graph.inputs)
    biases = (*ones, *(bias for _, bias in made if bias is not None))
    return Config(chip, tuple(cores), tuple(routes), tuple(readouts), shapes, sensor, tuple(monitors), biases)


def monitored(graph: Graph, wanted: Sequence[str]) -> set[str]:
    """The neurons that are meant by names of neurons or of their layers of weights, in a mapped graph.

    Raises:
        InputError: a name that is neither.
    """
    spikes = [n.name for n in graph.nodes if isinstance(n.op, ops.If | ops.Concat) and n.type.domain is Domain.SPIKE]
    found = set()
    for name in wanted:
        split = f"{name}.0" in graph.by_name  # then the name itself is the parts' concatenation, or of no node
        node = graph.by_name.get(f"{name}.0" if split and name not in graph.by_name else name)
        while node is not None and not isinstance(node.op, ops.If) and node.name not in spikes:
            node = next(iter(graph.users[node.name]), None)
        if node is None:
            raise unknown("SNN084", "layer", name, spikes, "to monitor")
        found.add(node.name.removesuffix(".0") if split else node.name)
    return found


def _input_of(graph: Graph, name: str) -> str:
    while not isinstance(graph[name].op, ops.Input):
        name = graph[name].args[0]
    return name


def _core(reader: Reader, layer: Layer, destinations: tuple[Destination, ...], monitor: bool) -> CoreConfig:
    graph, op = reader.graph, layer.node.op
    assert layer.neuron is not None and layer.fit is not None
    neuron = layer.neuron.op
    assert isinstance(op, ops.Weighted) and isinstance(neuron, ops.If) and isinstance(neuron.threshold, int)
    initial = np.broadcast_to(per_channel(neuron.v0, graph.store, 3), layer.output)
    lowest = reader.chip.thresholds_low
    return CoreConfig(
        index=layer.core,
        name=layer.name,
        input_shape=layer.input,
        output_shape=layer.output,
        kernel=layer.fit.kernel,
        stride=layer.fit.stride,
        padding=layer.fit.padding,
        weights=reader.kernel(layer),
        biases=graph.value(op.bias).astype(np.int16) if op.bias is not None else None,
        threshold_high=neuron.threshold,
        threshold_low=int(neuron.v_min) if neuron.v_min is not None else lowest[0],
        initial=initial.astype(np.int32) if initial.any() else None,  # its range is for `problems` to check
        return_to_zero=neuron.reset == "zero",
        destinations=destinations,
        monitor=monitor,
    )


MOST_BIAS_CHANNELS = 4  # biases up to four times a weight's range


def _biased_by_host(
    reader: Reader, layer: Layer, core: CoreConfig, sensor: Sensor | None
) -> tuple[CoreConfig, HostBias | None]:
    """The core with its biases as weights of channels in which the host sends one event to every window: neurons fire
    at events only, so a bias that the clock adds would wait for one.

    As many channels as 8-bit weights make the largest bias of. The core's own clock stays where not all that it reads
    comes from the host, or its kernel memory has no room.
    """
    if not core.leaks or core.biases is None or sensor is not None or not all(wire.host for wire in layer.wires):
        return core, None
    count, (channels, height, width) = -(-int(np.abs(core.biases).max()) // 127), core.input_shape
    words = kernel_words(channels + count, core.output_shape[0], core.kernel)
    most = reader.chip.cores[layer.core].kernel_words
    if count > MOST_BIAS_CHANNELS or channels + count not in reader.chip.features or words > most:
        return core, None
    along_y, along_x = (
        _tiles(core.input_shape[i + 1], core.output_shape[i + 1], core.kernel, core.stride[i], core.padding[i])
        for i in (0, 1)
    )
    if along_y is None or along_x is None:
        return core, None
    (y_taps, rows), (x_taps, columns) = along_y, along_x
    parts = np.zeros((core.output_shape[0], count, core.kernel, core.kernel), np.int8)
    for i in range(count):  # floor((b + i) / n) for i < n add up to b
        parts[:, i, y_taps, x_taps] = ((core.biases.astype(np.int64) + i) // count)[:, None, None]
    weights = np.concatenate([core.weights, parts], axis=1)
    core = replace(core, input_shape=(channels + count, height, width), weights=weights, biases=None)
    return core, HostBias(core.index, channels, count, rows, columns)


def _tiles(n: int, m: int, kernel: int, stride: int, padding: int) -> tuple[slice, tuple[int, ...]] | None:
    """Along an axis of n pixels, m windows: the widest run of taps, and the fewest pixels, such that each window sees
    just one of these pixels through these taps; None where padding leaves no such."""
    for width in range(kernel, 0, -1):
        for first in range(kernel - width + 1):
            pixels, done = [], 0  # windows so far
            while done < m:
                # A pixel that window `done` sees through the last tap that it can, but no window before.
                low, high = (done - 1) * stride - padding + first + width, done * stride - padding + first + width - 1
                pixel = min(high, n - 1)
                if pixel < max(low, done * stride - padding + first, 0):
                    break
                pixels.append(pixel)
                done = (pixel + padding - first) // stride + 1
            else:
                return slice(first, first + width), tuple(pixels)
    return None


def _to_readout(core: CoreConfig, first: int, chip: Chip) -> CoreConfig:
    """The last layer as the readout block wants it: class i is channel step * i, the others have no weights.

    Source: sinabs, tutorial 'using the readout layer'; datasheet 2.5.
    """
    assert chip.readout is not None
    channels = (core.output_shape[0] - 1) * chip.readout.step + 1

    def spread(array: Array | None) -> Array | None:
        if array is None:
            return None
        wide = np.zeros((channels, *array.shape[1:]), array.dtype)
        wide[:: chip.readout.step] = array  # type: ignore[union-attr]
        return wide

    weights = spread(core.weights)
    assert weights is not None
    return replace(
        core,
        output_shape=(channels, *core.output_shape[1:]),
        weights=weights,
        biases=spread(core.biases),
        initial=spread(core.initial),
        destinations=(*core.destinations, Destination(chip.readout.layer, 1, first * chip.readout.step)),
    )
