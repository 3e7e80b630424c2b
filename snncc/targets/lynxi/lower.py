"""From a spiking stage to what Lynxi's compiler takes: the layers of a plain network in floating point.

Exactly, from the integer stage: every integer n of a value becomes the number n * scale, where the scale is a power of
two. So nothing is rounded, in float32 below 2**24 integers, and weights of 11 significant bits are fp16 numbers, too.
Spikes are ones; a neuron's current and potential get the scale that brings its threshold to between 1/2 and 1, or below
where a reset needs that. A potential counts from where it starts, so that its state is 0 at first, as that of the
published programs is.

Of the float stage, currents keep their real values, and spikes, which are worth their unit, become ones as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil, floor, log2, prod
from typing import Any

import networkx as nx
import numpy as np

from snncc.ir import Domain, Graph, Node, Param, PerChannel, Stage, ops
from snncc.ir.ranges import ranges
from snncc.ir.types import Array, identifier, per_channel

EXACT = 2.0**24  # float32 holds all whole numbers up to it
FINEST = 24  # fp16's smallest number is 2**-24
LARGEST = 65504.0  # fp16's largest
LOWEST, HIGHEST = -100.0, 31744.0  # what the custom operations leave alone: see model.py
OUTER_LOOP, UNROLLED = "outer-loop", "unrolled"


@dataclass(frozen=True)
class Program:
    """A network as network.json and network.npz hold it.

    Attributes:
        network: plain data; ``layers`` in order, each with its kind, inputs, shape without batch, and names of arrays.
        arrays: by these names, float32.
        bounds: of every value of the graph, what its integers lie between in each step.
        states: of every neuron, the same of its potential, in all steps.
        scales: of every value, the largest number that stands for one integer.
        owners: the node of the graph that each module is of, by the modules' names.
    """

    network: dict[str, Any]
    arrays: dict[str, Array]
    bounds: dict[str, tuple[float, float]]
    states: dict[str, tuple[float, float]]
    scales: dict[str, float]
    owners: dict[str, str]

    def value(self, entry: Mapping[str, Any], what: str) -> Array:
        """A number of a layer or output; or one for each channel, such that it broadcasts over (N, *shape)."""
        value = entry[what]
        if not isinstance(value, str):
            return np.asarray(value, np.float64)
        return self.arrays[value].astype(np.float64).reshape(-1, *[1] * (len(entry["shape"]) - 1))


def lower(
    graph: Graph, form: str = OUTER_LOOP, timesteps: int = 32, batch: int = 1, monitor: Sequence[str] = ()
) -> Program:
    """The program of a spiking stage.

    Args:
        form: "outer-loop", one time step; or "unrolled", all of them.
        timesteps: T; of an outer loop, what bounds hold for.
        batch: samples at once.
        monitor: neurons whose spikes become outputs, beside the graph's.
    """
    return _Lowering(graph, form, timesteps, batch, tuple(dict.fromkeys(monitor))).run()


def is_static(graph: Graph) -> dict[str, bool]:
    """Of every value, whether it is the same in every time step."""
    static: dict[str, bool] = {}
    for node in graph.nodes:
        changing = isinstance(node.op, ops.Stateful) and not (isinstance(node.op, ops.MaxPool) and node.op.each_step)
        if isinstance(node.op, ops.Encode):
            static[node.name] = node.op.method == "constant"
        else:
            static[node.name] = not changing and all(static[arg] for arg in node.args)
    return static


def _most(value: PerChannel, graph: Graph) -> float:
    return float(np.abs(np.asarray(graph.store[value] if isinstance(value, Param) else value, np.float64)).max())


class _Lowering:
    def __init__(self, graph: Graph, form: str, timesteps: int, batch: int, monitor: tuple[str, ...]) -> None:
        self.graph, self.form, self.timesteps, self.batch, self.monitor = graph, form, timesteps, batch, monitor
        found = ranges(graph, timesteps)
        self.bounds = {name: value.hull for name, value in found.values.items()}
        self.states = {name: state[0].hull for name, state in found.states.items()}
        self.static = is_static(graph)
        self.exact = graph.stage is not Stage.SNN
        self.exponents = _exponents(graph, self.states) if self.exact else {}
        self.scale: dict[str, Array] = {}  # scalar, or per channel
        self.layers: list[dict[str, Any]] = []
        self.arrays: dict[str, Array] = {}
        self.owners: dict[str, str] = {}
        self.repeated: dict[str, str] = {}

    def run(self) -> Program:
        inputs = []
        for node in self.graph.nodes:
            if isinstance(node.op, ops.Input):
                continue
            if isinstance(node.op, ops.Encode):
                entry = {"name": node.name, "shape": list(node.type.shape), "constant": self.static[node.name]}
                inputs.append(entry | {"argument": identifier(node.args[0].replace(".", "_"))})
                # Of ready-made spikes, the host sends how many.
                real = not self.exact and not self.static[node.name]
                self.scale[node.name] = np.asarray(1.0 / node.op.unit if real else 1.0)
            else:
                self._node(node)
        outputs = []
        for name in (*self.graph.outputs, *self.monitor):
            shape = list(self.graph[name].type.shape)
            source = self._over_time(name) if self.form == UNROLLED else name
            scale, unit = self.scale[name], self.graph[name].type.unit if self.exact else 1.0
            worth = np.asarray(per_channel(unit, self.graph.store, 1)) / scale  # the real value of a number
            numbers = {"scale": self._number(name, "scale", scale), "worth": self._number(name, "worth", worth)}
            outputs.append({"name": source, "value": name, "shape": shape, **numbers})
        network = {
            "format": 1,
            "snncc": version("snncc"),
            "form": self.form,
            "timesteps": self.timesteps,
            "batch": self.batch,
            "inputs": inputs,
            "layers": self.layers,
            "outputs": outputs,
            "scores": len(self.graph.outputs),
        }
        scales = {name: float(scale.max()) for name, scale in self.scale.items()}
        return Program(network, self.arrays, self.bounds, self.states, scales, self.owners)

    # --- writing ---

    def _add(self, node: Node, kind: str, inputs: tuple[str, ...], **attributes: Any) -> None:
        self._insert(node.name, node.name, kind, inputs, node.type.shape, **attributes)

    def _insert(
        self, name: str, owner: str, kind: str, inputs: tuple[str, ...], shape: Sequence[int], **attributes: Any
    ) -> str:
        """A layer of the node ``owner``, and its name; its module's name is one that Python takes."""
        module = identifier(name.replace(".", "_"))
        while module in self.owners:
            module += "_"
        self.owners[module] = owner
        entry = {"name": name, "kind": kind, "inputs": list(inputs), "shape": list(shape), "module": module}
        self.layers.append(entry | attributes)
        return name

    def _free(self, name: str) -> str:
        """``name``, or one like it that no value of the graph has."""
        return self._free(f"{name}_") if name in self.graph.by_name else name

    def _keep(self, name: str, array: Array) -> str:
        self.arrays[name] = np.ascontiguousarray(array, dtype=np.float32)
        return name

    def _number(self, name: str, what: str, value: Array) -> float | str:
        """A number, or the name of an array of one for each channel."""
        return float(value) if value.ndim == 0 else self._keep(f"{name}.{what}", value)

    def _over_time(self, name: str) -> str:
        """The value in every time step, where it is computed once."""
        if not self.static[name]:
            return name
        if name not in self.repeated:
            shape = self.graph[name].type.shape
            self.repeated[name] = self._insert(self._free(f"{name}.repeated"), name, "repeat", (name,), shape)
        return self.repeated[name]

    # --- nodes ---

    def _node(self, node: Node) -> None:
        op, args = node.op, node.args
        if self.form == UNROLLED and not self.static[node.name]:
            args = tuple(map(self._over_time, args))
        into = self.scale[node.args[0]]
        self.scale[node.name] = into
        if isinstance(op, ops.Weighted):
            self._weighted(node, op, args, into)
        elif isinstance(op, ops.If | ops.Lif):
            self._neuron(node, op, args, into)
        elif isinstance(op, ops.Add):
            self._add(node, "add", args)
        elif isinstance(op, ops.Concat):
            self._concat(node, op, args)
        elif isinstance(op, ops.SumPool):
            self._sum_pool(node, op, args, into)
        elif isinstance(op, ops.AvgPool):
            attributes = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor")
            self._add(node, "avg_pool", args, **{name: getattr(op, name) for name in attributes})
        elif isinstance(op, ops.AdaptiveAvgPool):
            self._add(node, "adaptive_avg_pool", args, output=op.output)
        elif isinstance(op, ops.MaxPool):
            names = ("kernel", "stride", "padding", "dilation", "ceil_mode")
            shape = list(self.graph[node.args[0]].type.shape)
            kind = "max_pool" if op.each_step else "max_of_counts"
            self._add(node, kind, args, input_shape=shape, **{name: getattr(op, name) for name in names})
        elif isinstance(op, ops.Flatten | ops.Reshape):
            if into.ndim:
                self.scale[node.name] = np.repeat(into, node.type.shape[0] // len(into))
            self._add(node, "flatten" if len(node.type.shape) == 1 else "reshape", args)
        elif isinstance(op, ops.Pad):
            if into.ndim:
                self.scale[node.name] = _padded(op, into)
            value = op.value * float(into.max()) if op.value else 0.0
            self._add(node, "pad", args, before=op.before, after=op.after, mode=op.mode, value=value)
        else:
            assert isinstance(op, ops.Slice)
            if into.ndim:
                self.scale[node.name] = into[op.start[0] : op.stop[0] : op.step[0]]
            self._add(node, "slice", args, start=op.start, stop=op.stop, step=op.step)

    def _weighted(self, node: Node, op: ops.Weighted, args: tuple[str, ...], into: Array) -> None:
        out = 2.0 ** -self.exponents.get(node.name, 0)
        self.scale[node.name] = np.asarray(out)
        over = ops.over_inputs(op, into) if into.ndim else into
        weight = self.graph.value(op.weight).astype(np.float64) * (out / over)
        attributes: dict[str, Any] = {"weight": self._keep(f"{node.name}.weight", weight)}
        if op.bias is not None:
            attributes["bias"] = self._keep(f"{node.name}.bias", self.graph.value(op.bias) * out)
        if isinstance(op, ops.Conv2d):
            top, bottom, left, right = op.padding
            if (top, left) != (bottom, right):
                args, top, left = self._pad_before(node, args, op.padding), 0, 0
            self._add(
                node, "conv", args, stride=op.stride, padding=(top, left), dilation=op.dilation, groups=op.groups,
                **attributes,
            )  # fmt: skip
        else:
            self._add(node, "linear" if isinstance(op, ops.Linear) else "scale", args, **attributes)

    def _pad_before(self, node: Node, args: tuple[str, ...], padding: tuple[int, int, int, int]) -> tuple[str, ...]:
        """The operand with a padding that a convolution of torch's does not have: unlike before and after."""
        top, bottom, left, right = padding
        channels, height, width = self.graph[node.args[0]].type.shape
        shape = (channels, height + top + bottom, width + left + right)
        pads = {"before": (0, top, left), "after": (0, bottom, right), "mode": "constant", "value": 0.0}
        return (self._insert(self._free(f"{node.name}.padded"), node.name, "pad", args, shape, **pads),)

    def _neuron(self, node: Node, op: ops.If | ops.Lif, args: tuple[str, ...], scale: Array) -> None:
        def number(value: PerChannel) -> Array:
            return np.asarray(per_channel(value, self.graph.store, 1), np.float64) * scale

        theta = number(op.threshold)
        v0 = number(op.v0) if isinstance(op, ops.If) else np.asarray(0.0)
        subtract = op.reset == "subtract"
        low, high = (end * float(scale) for end in self.states[node.name])
        fits = low > LOWEST and high < HIGHEST
        unit = 1.0 if self.exact else per_channel(node.type.unit, self.graph.store, 1)
        self.scale[node.name] = 1.0 / np.asarray(unit)
        threshold, rest = np.asarray(theta - v0), np.asarray(0.0 - v0)
        self._add(
            node,
            "neuron",
            args,
            threshold=self._number(node.name, "threshold", threshold),
            amount=self._number(node.name, "amount", theta) if subtract else None,
            rest=0.0 if subtract else self._number(node.name, "rest", rest),
            decay=op.decay if isinstance(op, ops.Lif) else 1.0,
            custom=not subtract and threshold.ndim == 0 and fits,
        )

    def _concat(self, node: Node, op: ops.Concat, args: tuple[str, ...]) -> None:
        scales = [self.scale[arg] for arg in node.args]
        if any(scale.ndim or scale != scales[0] for scale in scales):
            if op.axis:
                raise ops.ShapeError("its operands have scales of their own, along another axis than the channels")
            sizes = [self.graph[arg].type.shape[0] for arg in node.args]
            scales = [np.broadcast_to(scale, size) for scale, size in zip(scales, sizes, strict=True)]
            self.scale[node.name] = np.concatenate(scales)
        self._add(node, "concat", args, axis=op.axis + 1)

    def _sum_pool(self, node: Node, op: ops.SumPool, args: tuple[str, ...], into: Array) -> None:
        area, counts = prod(op.kernel), self.exact or node.type.domain is Domain.SPIKE
        average = op.scale * area == 1
        # An average over 2^k values is exact, and Lynxi's own users have it. A current's scale is its neuron's.
        if (area & (area - 1) == 0 and counts and node.name not in self.exponents) or (average and not counts):
            self.scale[node.name] = into if not counts else into / area if self.exact else into / (area * op.scale)
            plain = {"padding": (0, 0), "ceil_mode": False, "count_include_pad": True, "divisor": 0}
            self._add(node, "avg_pool", args, kernel=op.kernel, stride=op.stride, **plain)
            return
        if not self.exact and counts:  # the unit of spikes takes the pooling's scale
            self.scale[node.name] = into / op.scale
        channels = node.type.shape[0]
        weight = np.full((channels, 1, *op.kernel), 1.0 if counts else op.scale)
        shape = {"stride": op.stride, "padding": (0, 0), "dilation": (1, 1), "groups": channels}
        self._add(node, "conv", args, weight=self._keep(f"{node.name}.weight", weight), **shape)


def _padded(op: ops.Pad, scale: Array) -> Array:
    width = (op.before[0], op.after[0])
    mode: Any = "edge" if op.mode == "constant" else op.NUMPY_MODES[op.mode]
    return np.pad(scale, width, mode=mode) if max(width) else scale


def _exponents(graph: Graph, states: dict[str, tuple[float, float]]) -> dict[str, int]:
    """Of every weighted sum, and of sums and poolings of such, e: its integers are multiplied by 2**-e. What adds up in
    one neuron has one. It brings the neuron's threshold to between 1/2 and 1; or below, as far as a potential that
    custom operations reset needs to stay in their range."""
    joined: nx.Graph[str] = nx.Graph()
    for node in graph.nodes:
        inside = [arg for arg in node.args if arg in joined]
        if isinstance(node.op, ops.Weighted):
            joined.add_node(node.name)
        elif isinstance(node.op, ops.Add) or (isinstance(node.op, ops.SumPool) and inside):
            joined.add_edges_from((arg, node.name) for arg in inside)
    exponents = {}
    for component in nx.connected_components(joined):
        neurons = [n for name in component for n in graph.users[name] if isinstance(n.op, ops.If | ops.Lif)]
        widths = [_most(op.weight, graph) for name in component if isinstance(op := graph[name].op, ops.Weighted)]
        least = ceil(log2(max([_theta(n, graph) for n in neurons] or widths) or 1.0))
        for low, high in (states[n.name] for n in neurons if getattr(n.op, "reset", "") == "zero"):
            least = max(least, floor(log2(max(low / LOWEST, high / HIGHEST, 1.0))) + 1)
        exponents.update(dict.fromkeys(component, min(FINEST, least)))
    return exponents


def _theta(node: Node, graph: Graph) -> float:
    assert isinstance(node.op, ops.If | ops.Lif)
    return _most(node.op.threshold, graph)
