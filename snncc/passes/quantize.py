"""quantize: a float spiking network becomes integers. And the classical quantizers of weights, by name.

The integer grid follows the neurons, not the layers. All that adds up in one neuron's potential shares one unit s (the
real value of one integer step), per output channel; from ``weight * unit_in / s`` the integer weights follow, from
``bias / s`` the biases. With the threshold theta[c] of channel c, s[c] = theta[c] / K for one whole number K: the
threshold is K, *exactly*, in all channels, whatever its real value. K is the largest that lets every weight and bias
into its width. So a large threshold costs the weights nothing: it has a width of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Domain, Graph, Loc, Node, Param, PerChannel, Severity, Stage, Store, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild

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
        min_bits: warn where a layer's largest weight uses fewer bits than this, sign included.
    """

    weight_bits: int = 8
    bias_bits: int = 16
    threshold_bits: int = 16
    input_bits: int = 8
    v_min: int | None = None
    min_bits: int = 5
    name: ClassVar[str] = "quantize"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.SNN,)
    ensures: ClassVar[Stage] = Stage.INT
    relation: ClassVar[Relation] = Relation.BOUNDED

    def __post_init__(self) -> None:
        for name in ("weight_bits", "bias_bits", "threshold_bits", "input_bits"):
            if not 2 <= getattr(self, name) <= 32:
                raise ValueError(f"{name} must be 2 to 32, got {getattr(self, name)}")

    def run(self, graph: Graph, context: Context) -> Graph:
        return _Lowering(self, _with_rescales(graph), context).run()


def limit(bits: int) -> int:
    """The largest magnitude of a symmetric signed integer of ``bits``."""
    return (1 << (bits - 1)) - 1


def _int_dtype(bits: int) -> type[np.signedinteger]:
    return np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32


# --- groups ---------------------------------------------------------------------------------------------------------


def _tree_operand(graph: Graph, name: str) -> bool:
    """Whether the value's unit can be chosen by its only reader: a weighted sum, or a sum or pooling of such."""
    node = graph[name]
    if len(graph.users[name]) != 1 or name in graph.outputs or node.type.domain is not Domain.CURRENT:
        return False
    if isinstance(node.op, ops.Add):
        return True  # its own operands are made so by _with_rescales
    if isinstance(node.op, ops.SumPool):
        return _tree_operand(graph, node.args[0])
    return isinstance(node.op, ops.Weighted)


def _with_rescales(graph: Graph) -> Graph:
    """Give every operand of an addition or a neuron that has a unit of its own (spikes of a shortcut, a value with
    several readers) a weight of one: an ``affine``, which quantization then scales to the sum's unit."""

    def visit(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, ops.Add | ops.If):
            return None
        scaled = []
        for old, new in zip(node.args, args, strict=True):
            # `x + x` reads one value twice: as two operands.
            if _tree_operand(graph, old) and node.args.count(old) == 1:
                scaled.append(new)
                continue
            one = builder.store.put("one", np.ones(builder.type(new).shape[0], np.float32))
            scaled.append(builder.add(builder.unique(f"{old}.scale"), ops.Affine(one), (new,), node.loc))
        return builder.copy(node, tuple(scaled))

    return rebuild(graph, visit)


def _tree(graph: Graph, root: str) -> list[tuple[Node, float]]:
    """The nodes below ``root`` that share its unit, each with the factor by which pooling scales it on the way (a real
    value 1 at the node is ``factor`` at the root). The root is among them."""
    found = []
    todo = [(root, 1.0)]
    while todo:
        name, factor = todo.pop()
        node = graph[name]
        found.append((node, factor))
        if isinstance(node.op, ops.Add):
            todo += [(arg, factor) for arg in node.args]
        elif isinstance(node.op, ops.SumPool):
            todo.append((node.args[0], factor * node.op.scale))
    return found


class _Lowering:
    """Walks the graph once. A tree of currents is built when its reader (the root's) is reached: then the units of all
    that flows into it are known."""

    def __init__(self, options: Quantize, graph: Graph, context: Context) -> None:
        self.options, self.graph, self.context = options, graph, context
        self.builder = Builder(graph)
        self.store: Store = graph.store
        self.position = {node.name: i for i, node in enumerate(graph.nodes)}

    def run(self) -> Graph:
        graph = self.graph
        inner = {
            arg
            for n in graph.nodes
            if isinstance(n.op, ops.Add | ops.If) or (isinstance(n.op, ops.SumPool) and _tree_operand(graph, n.args[0]))
            for arg in n.args
            if _tree_operand(graph, arg)
        }
        for node in graph.nodes:
            if node.name in inner:
                continue  # built with its root
            if isinstance(node.op, ops.If):
                self._neuron(node, node.op)
            elif isinstance(node.op, ops.Weighted | ops.Add) or (
                isinstance(node.op, ops.SumPool) and node.args[0] in inner
            ):
                self._endpoint(node)
            elif isinstance(node.op, ops.Encode):
                self._encode(node, node.op)
            else:
                self.builder.copy(node, node.args)
        return replace(graph, nodes=tuple(self.builder.nodes.values()), stage=Stage.INT)

    # --- one group ---

    def _demands(self, tree: list[tuple[Node, float]], channels: int) -> tuple[Array, Array]:
        """(weights, biases): the largest real magnitude per root channel, (C,), of what must fit into their width."""
        weights, biases = np.zeros(channels), np.zeros(channels)
        for node, factor in tree:
            if isinstance(node.op, ops.Weighted):
                largest = np.zeros(channels)
                for rows, w in self._real_weights(node):
                    largest[rows] = np.abs(w, out=w).reshape(len(w), -1).max(axis=1)
                weights = np.maximum(weights, factor * largest)
                biases = np.maximum(biases, factor * np.abs(self._real_bias(node)))
        return weights, biases

    def _real_weights(self, node: Node) -> Iterator[tuple[slice, Array]]:
        """The real weights times the unit of the input, (O, ...), some rows at a time: the largest layers' in float64
        would take more memory than all that is kept of them."""
        op = node.op
        assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
        weight, x = self.store[op.weight], self.builder.type(node.args[0])
        unit = np.asarray(self.store[x.unit] if isinstance(x.unit, Param) else x.unit, np.float64)
        if unit.ndim and isinstance(op, ops.Conv2d):
            o, c = weight.shape[:2]
            unit = unit.reshape(op.groups, 1, c).repeat(o // op.groups, axis=1).reshape(o, c, 1, 1)
        elif unit.ndim and isinstance(op, ops.Linear):
            unit = unit[None]
        step = max(1, CHUNK * len(weight) // max(weight.size, 1))
        for at in range(0, len(weight), step):
            rows = slice(at, at + step)
            yield rows, weight[rows] * (unit[rows] if len(unit.shape) and len(unit) == len(weight) else unit)

    def _real_bias(self, node: Node) -> Array:
        op = node.op
        assert isinstance(op, ops.Weighted)
        return np.zeros(op.weight.shape[0]) if op.bias is None else self.store[op.bias].astype(np.float64)

    def _build(self, tree: list[tuple[Node, float]], unit: Array | float) -> None:
        """Build the nodes of a tree whose root has ``unit``, a scalar or one per channel."""
        for node, factor in sorted(tree, key=lambda item: self.position[item[0].name]):
            s = np.asarray(unit) / factor
            if not isinstance(node.op, ops.Weighted):
                self.builder.copy(node, node.args)
                continue
            op = node.op
            assert isinstance(op, ops.Conv2d | ops.Linear | ops.Affine)
            integers = np.empty(op.weight.shape, _int_dtype(self.options.weight_bits))
            step = np.broadcast_to(s, len(integers)).reshape(-1, *(1,) * (integers.ndim - 1))
            for rows, w in self._real_weights(node):
                integers[rows] = np.rint(np.divide(w, step[rows], out=w), out=w)
            self._check_bits(node, integers)
            name = op.weight.name if op.weight.name != "one" else f"{node.name}.weight"
            weight = self.store.put(name, integers, copy=False)
            bias = None
            if op.bias is not None:
                values = np.rint(self._real_bias(node) / s).astype(_int_dtype(self.options.bias_bits))
                bias = self.store.put(op.bias.name, values)
            self.builder.add(
                node.name, replace(op, weight=weight, bias=bias), node.args, node.loc, self._unit(node.name, s)
            )

    def _unit(self, name: str, value: Array) -> PerChannel:
        if value.ndim == 0 or (value == value.flat[0]).all():
            return float(value.flat[0])
        return self.store.put(f"{name}.unit", value)

    def _check_bits(self, node: Node, integers: Array) -> None:
        largest = max(int(integers.max(initial=0)), -int(integers.min(initial=0)))
        bits = largest.bit_length() + 1
        if bits < min(self.options.min_bits, self.options.weight_bits):
            if largest == 0 and not self.graph.value(node.op.weight).any():  # type: ignore[attr-defined]
                return  # all its real weights are zero, too
            self._warn(
                "SNN040",
                f"the weights of `{node.name}` are left with {bits} of {self.options.weight_bits} bits",
                node.loc,
                "something that adds up with them (a bias, a shortcut, another layer) is much larger",
            )

    def _warn(self, code: str, message: str, loc: Loc, hint: str = "") -> None:
        self.context.report(Diagnostic(code, message, loc, Severity.WARNING, hint))

    def _neuron(self, node: Node, op: ops.If) -> None:
        o = self.options
        tree = _tree(self.graph, node.args[0])
        channels = node.type.shape[0]
        theta = np.broadcast_to(self._array(op.threshold), channels)
        v0 = self._array(op.v0)
        weights, biases = self._demands(tree, channels)
        biases = np.maximum(biases, np.abs(v0))
        with np.errstate(divide="ignore"):
            most = np.minimum(limit(o.weight_bits) * theta / weights, limit(o.bias_bits) * theta / biases)
        k = np.floor(min(most.min(), limit(o.threshold_bits)))
        if k >= 1:
            unit = theta / k
        else:
            # Less than one weight step: the threshold gives way, and the unit of the spike says by how much.
            k = 1.0
            unit = np.maximum(theta, np.maximum(weights / limit(o.weight_bits), biases / limit(o.bias_bits)))
            self._warn(
                "SNN041",
                f"the threshold of `{node.name}` is below one step of its weights; it is raised to that step",
                node.loc,
                "calibrate per layer, or with more data",
            )
        if (unit == unit[0]).all():
            unit = unit[0]
        self._build(tree, unit)
        start = np.rint(v0 / unit)
        integer = replace(
            op,
            threshold=int(k),
            v0=int(start.flat[0])
            if (start == start.flat[0]).all()
            else self.store.put(f"{node.name}.v0", start.astype(np.int32)),
            v_min=o.v_min if op.v_min is None else int(np.ceil(op.v_min / np.max(unit))),
        )
        self.builder.add(node.name, integer, node.args, node.loc)

    def _endpoint(self, node: Node) -> None:
        """A tree of currents that ends in no neuron: its weights alone choose the unit, per channel."""
        tree = _tree(self.graph, node.name)
        weights, biases = self._demands(tree, node.type.shape[0])
        unit = np.maximum(weights / limit(self.options.weight_bits), biases / limit(self.options.bias_bits))
        unit = np.where(unit > 0, unit, unit.max(initial=0.0) or 1.0)
        self._build(tree, unit)

    def _encode(self, node: Node, op: ops.Encode) -> None:
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
            peak = max(abs(source.low or 0.0), abs(source.high or 0.0)) or 1.0
            unit = peak / limit(self.options.input_bits)
        self.builder.add(node.name, replace(op, unit=unit, dtype="i32"), node.args, node.loc)

    def _array(self, value: PerChannel) -> Array:
        return np.asarray(value if isinstance(value, float | int) else self.store[value], np.float64)


# --- the classical quantizers, by name ------------------------------------------------------------------------------


def quantize_array(x: Array, scheme: str, bits: int = 8, step: float | None = None) -> Array:
    """``x`` rounded to the grid of a named quantizer; real values in, real values out.

    - "step": ``round(x / step) * step``.
    - "k-bit": ``round((2^k - 1) x) / (2^k - 1)`` on [0, 1] (Zhou et al. 2016, "DoReFa-Net"); values of any range are
      first mapped to [0, 1] by ``x / (2 max|x|) + 1/2``, and back.
    - "affine": ``scale * (clip(round(x / scale) + zero, 0, 2^k - 1) - zero)`` with scale and zero point from the range
      of x, extended to contain 0 (Jacob et al. 2018).
    - "symmetric": ``scale * round(x / scale)``, scale = max|x| / (2^(k-1) - 1).
    - "lava": 8-bit weights of Loihi as lava-dl trains them: even integers from -256 to 254, in 1/64.

    Raises:
        ValueError: an unknown scheme, or a step that is missing or not positive.
    """
    x = np.asarray(x, np.float64)
    top = float(np.abs(x).max(initial=0.0)) or 1.0
    if scheme == "step":
        if step is None or step <= 0:
            raise ValueError(f"the scheme 'step' needs a positive step, got {step}")
        return np.rint(x / step) * step
    if scheme == "k-bit":
        levels = 2**bits - 1
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
            clipped = np.abs(graph.value(op.weight)).max() > 4 if self.scheme == "lava" else False
            if clipped:
                message = f"weights of `{node.name}` beyond +-4 are outside Lava's range; they are clipped to it"
                context.report(Diagnostic("SNN042", message, node.loc, Severity.WARNING, "scale the network's weights"))
            weight = builder.store.put(op.weight.name, value.astype(np.float32))
            return builder.copy(node, args, replace(op, weight=weight))

        return rebuild(graph, visit)
