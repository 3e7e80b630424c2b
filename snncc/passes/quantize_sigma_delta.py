"""quantize-sigma-delta: a float network of sigma-delta neurons becomes integers.

As in :mod:`snncc.passes.quantize`, all that adds up in a neuron shares one unit, per output channel. Here it is free,
as it has no threshold to divide. A neuron rounds its sum to a message worth ``2**shift`` units, with one shift for all
channels: so a channel's unit also says how wide its messages are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, log2
from typing import ClassVar

import numpy as np

from snncc.ir import CompileError, Diagnostic, Graph, Node, Stage, Type
from snncc.ir.loihi import Sigma, SigmaDelta
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.quantize import Group, Lowering, Quantize, limit
from snncc.passes.rewrite import units_fit

HEADROOM = 2  # so many times the calibration data's sums fit into their width


@dataclass(frozen=True)
class QuantizeSigmaDelta(Pass):
    """Integer weights, biases, shifts and inputs within the given widths (bits, signed).

    How large values become is measured, on the sample of the calibration data. Units are so coarse that with values up
    to twice as large, what adds up in a neuron and each part of it, without and with the bias, stays within
    ``sum_bits``; a warning says where few bits are left for weights. That is no proof for every input, as ReLUs have no
    upper end: where a neuron's input leaves 24 bits, simulation raises an OverflowError.

    Neurons cut their messages off (``floor``). Half a message's worth in every bias makes that a rounding.

    Attributes:
        weight_bits: symmetric: -(2^(b-1) - 1) .. 2^(b-1) - 1.
        message_bits: of what neurons send, by the float network's values. Nothing is clipped: larger values are larger
            messages.
        input_bits: of the input, whose range :class:`snncc.passes.calibrate.Calibrate` found.
        sum_bits: of the sums, with their biases.
        min_bits: warn where most channels' largest weights use fewer bits than this, sign included.
        scale_bits: of the factors that bring a sum's operands to one unit; None: as weights. A shortcut's messages are
            worth much more than one weight, so with few bits here the other operands' weights lose some.
        per: units per "channel" or "layer": the latter where another axis than the channels is joined or summed along.
    """

    weight_bits: int = 8
    message_bits: int = 8
    input_bits: int = 8
    sum_bits: int = 24
    min_bits: int = 5
    scale_bits: int | None = None
    per: str = "channel"
    name: ClassVar[str] = "quantize-sigma-delta"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.SNN,)
    ensures: ClassVar[Stage] = Stage.INT
    relation: ClassVar[Relation] = Relation.BOUNDED

    def __post_init__(self) -> None:
        if self.per not in ("channel", "layer"):
            raise ValueError(f"units are per channel or per layer, not per {self.per!r}")
        for name in ("message_bits", "sum_bits"):
            if not 2 <= getattr(self, name) <= 24:
                raise ValueError(f"{name} must be 2 to 24, got {getattr(self, name)}")
        self.widths()

    def widths(self) -> Quantize:
        """The part that is quantize's: how weights and inputs become integers."""
        return Quantize(
            self.weight_bits,
            input_bits=self.input_bits,
            min_bits=self.min_bits,
            scale_bits=self.scale_bits,
            currents=False,
        )

    def run(self, graph: Graph, context: Context) -> Graph:
        return _Lowering(self, graph, context).run()


def _measure(graph: Graph, context: Context) -> dict[str, Array]:
    """The largest magnitude of every value per channel, (C,).

    Raises:
        CompileError: there is no data.
    """
    if context.engine is None or not context.sample:
        hint = "pass calibration=..., some batches of typical input"
        context.report(Diagnostic("SNN010", "the messages' sizes are not known: nothing was calibrated", hint=hint))
        raise CompileError(context.diagnostics)
    peaks: dict[str, Array] = {}

    def visit(name: str, value: Array) -> None:
        peak = np.abs(value).max(axis=(0, *range(2, value.ndim))).astype(np.float64)
        peaks[name] = np.maximum(peak, peaks.get(name, 0.0))

    for batch in context.sample:
        context.engine.values(graph, batch, visit)
    return peaks


class _Lowering(Lowering):
    def __init__(self, options: QuantizeSigmaDelta, graph: Graph, context: Context) -> None:
        super().__init__(options.widths(), graph, context)
        self.sigma_delta = options
        self.shifts: dict[str, int] = {}
        self.peaks = _measure(graph, context)
        for node in self.graph.nodes:
            if node.name in self.rescales:
                self.peaks[node.name] = self.peaks[node.args[0]]

    def run(self) -> Graph:
        # A group needs the units of what its layers read. Its last member comes behind all of that, its first may not.
        last = {id(self.groups[n.name]): n.name for n in self.graph.nodes if n.name in self.groups}
        order = {name: i for i, name in enumerate(self.graph.by_name)}
        for name in sorted(last.values(), key=order.__getitem__):
            with units_fit(self.graph[name], self.context):
                self._unit(name)
        return super().run()

    def _choose(self, group: Group) -> Array:
        """The unit of a group, and the shifts of the neurons that read it.

        With the finest unit that lets every weight, bias and sum into its width, some channels have wider messages than
        others: those whose sums are large for their weights. The shift gives the median channel the width asked for.
        Wider channels get a coarser unit, which costs their weights some bits; narrower ones stay."""
        o, shape = self.sigma_delta, group.members[0].type.shape
        c = shape[0]
        one = o.per == "layer" or len(shape) == 2  # axis 0 of a sequence of features is no channel

        def spread(value: Array) -> Array:
            return np.full(c, value.max()) if one else value

        sums = np.max([HEADROOM * self.peaks[n.name] / group.factor[n.name] for n in group.members], axis=0)
        for node in group.neurons:
            factor = group.factor[node.args[0]]
            bias = np.abs(self._bias(node)).reshape(c, -1).max(axis=1)
            sums = np.maximum(sums, (HEADROOM * self.peaks[node.args[0]] + bias) / factor)
        least = spread(np.maximum(self._demands(group, c, group.members)[0], sums / limit(o.sum_bits)))
        least = np.where(least > 0, least, least[least > 0].min(initial=least.max() or 1.0))
        unit = least
        for node in group.neurons:
            if isinstance(node.op, SigmaDelta):
                step = spread(self.peaks[node.name]) / (limit(o.message_bits) * group.factor[node.args[0]])
                alive = step > 0
                shift = max(0, floor(log2(np.median(step[alive] / least[alive])))) if alive.any() else 0
                unit = np.maximum(unit, step / 2.0**shift)
                self.shifts[node.name] = shift
        return np.asarray(unit[0]) if (unit == unit[0]).all() else unit

    def _type(self, name: str) -> Type:
        node = self.graph[name]
        if name not in self.builder.nodes and isinstance(node.op, SigmaDelta):
            return self._integer(node).infer((self._type(node.args[0]),), self.store)
        return super()._type(name)

    def _neuron(self, node: Node) -> None:
        self.builder.add(node.name, self._integer(node), node.args, node.loc)

    def _integer(self, node: Node) -> SigmaDelta | Sigma:
        """The neuron, its bias counted in units of its input."""
        op = node.op
        assert isinstance(op, SigmaDelta | Sigma)
        shift = self.shifts.get(node.name, 0)
        unit, bias = self._array(self._type(node.args[0]).unit), self._bias(node)
        if unit.ndim:
            unit = unit.reshape(-1, *(1,) * (bias.ndim - 1))
        integers = np.rint(bias / unit) + 2**shift // 2
        param = self.store.put(f"{node.name}.bias", integers.astype(np.int32)) if integers.any() else None
        return replace(op, bias=param, shift=shift) if isinstance(op, SigmaDelta) else replace(op, bias=param)

    def _bias(self, node: Node) -> Array:
        """Of a neuron, (C,) or per neuron."""
        assert isinstance(node.op, SigmaDelta | Sigma)
        bias = node.op.bias
        return np.zeros(node.type.shape[0]) if bias is None else self.store[bias].astype(np.float64)
