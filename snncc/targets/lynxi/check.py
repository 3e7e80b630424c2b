"""check-lyngor: what stands between the network and Lynxi's compiler and chip, by what is published of them; and what
fp16 costs, measured on calibration samples."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar

import numpy as np

from snncc.ir import Diagnostic, Domain, Graph, Loc, Node, Severity, Stage, ops
from snncc.ir.diagnostics import errors, unknown
from snncc.passes.base import Context, Pass, Relation
from snncc.targets.lynxi.evidence import MOST_AXES, conformance
from snncc.targets.lynxi.lower import EXACT, LARGEST, OUTER_LOOP, Program, lower
from snncc.targets.lynxi.precision import measure, size

# Of network inputs and outputs [B, D2, D1, D0]: BIDL_doc_en, neuron_simulation_toolkit.rst.
MOST_PER_AXIS = 4095
MOST_PER_PLANE = 256 * 1024  # bytes of D1 x D0
MOST_INPUT = 6 * 1024 * 1024  # bytes, all inputs together
FP16 = 2  # bytes
# Lynxi's figures for one KA200: what it holds of a dense, and of a sparse network.
KA200 = {"neurons": 250_000, "synapses": 25_000_000, "sparse_neurons": 2_000_000, "sparse_synapses": 2_000_000_000}


@dataclass(frozen=True)
class CheckLimits(Pass):
    """Report what breaks a published limit of shapes and sizes. The graph is left as it is.

    Attributes:
        oversize: more neurons or synapses than a chip holds are a warning, not an error.
    """

    oversize: bool = False
    name: ClassVar[str] = "check-limits"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        for node in graph.nodes:
            self._axes(node, context)
        self._tensors(graph, context)
        self._size(graph, context)
        return graph

    def _axes(self, node: Node, context: Context) -> None:
        found = 1 + len(node.type.shape)
        if found > MOST_AXES:
            message = f"`{node.name}` has {found} axes with the batch, no tensor may have more than {MOST_AXES}"
            hint = "keep values (N, C, H, W)"
            context.report(
                Diagnostic("SNN064", message, node.loc, hint=hint, limit=MOST_AXES, found=found, quantity="axes")
            )
        if isinstance(node.op, ops.Pad) and node.op.mode != "constant":
            before, after = node.op.before, node.op.after
            if len(before) != 3 or before[0] or after[0] or min(*before, *after) < 0:
                message = f"`{node.name}` pads by copies ({node.op.mode}) along an axis that torch has no operation for"
                hint = "pad images only along height and width"
                context.report(Diagnostic("SNN064", message, node.loc, hint=hint))

    def _tensors(self, graph: Graph, context: Context) -> None:
        """What the host sends and receives."""
        total = 0
        for what, nodes in (("input", graph.inputs), ("output", [graph[name] for name in graph.outputs])):
            for node in nodes:
                shape = node.type.shape
                if max(shape, default=1) > MOST_PER_AXIS:
                    text = f"the {what} `{node.name}` has an axis of {max(shape):,} values"
                    hint = "make it smaller, or reshape it in the network's first layer"
                    _warn(context, "SNN055", text, node, MOST_PER_AXIS, max(shape), "values", hint)
                plane = prod(shape[-2:]) * FP16
                if plane > MOST_PER_PLANE:
                    text = f"the {what} `{node.name}` has planes of {plane:,} bytes in fp16"
                    _warn(context, "SNN055", text, node, MOST_PER_PLANE, plane, "bytes", "make height or width smaller")
                total += node.type.size * FP16 if what == "input" else 0
        if total >= MOST_INPUT:
            text = f"the inputs have {total:,} bytes in fp16"
            _warn(context, "SNN055", text, graph.inputs[0], MOST_INPUT, total, "bytes", "make the input smaller")

    def _size(self, graph: Graph, context: Context) -> None:
        found = size(graph)
        for what, code in (("neurons", "SNN057"), ("synapses", "SNN056")):
            limit, most = KA200[what], KA200[f"sparse_{what}"]
            if found[what] > limit:
                one = f"one KA200 holds {limit:,} of a dense one ({most:,} of a sparse one)"
                text = f"the network has {found[what]:,} {what}, {one}"
                times = ceil(10 * found[what] / limit) / 10
                hint = (
                    f"make it {times:,} times smaller, or split it into several models: lyngor takes one chip at a "
                    "time; oversize=True writes it as it is, for simulation"
                )
                severity = Severity.WARNING if self.oversize else Severity.ERROR
                context.report(Diagnostic(code, text, Loc(), severity, hint, limit, found[what], what))


@dataclass(frozen=True)
class CheckLyngor(Pass):
    """Report what the program has that is in no published model, and what fp16 costs it. The graph is left as it is.

    Attributes:
        form: of the program, "outer-loop" or "unrolled".
        batch: samples at once.
        monitor: neurons that become outputs.
    """

    form: str = OUTER_LOOP
    batch: int = 1
    monitor: tuple[str, ...] = ()
    name: ClassVar[str] = "check-lyngor"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.INT,)
    relation: ClassVar[Relation] = Relation.EXACT

    def run(self, graph: Graph, context: Context) -> Graph:
        if not self._monitored(graph, context) or errors(context.diagnostics):
            return graph  # there is no program to look at
        program = lower(graph, self.form, context.timesteps, self.batch, self.monitor)
        self._numbers(graph, program, context)
        self._operations(graph, program, context)
        self._precision(graph, context)
        return graph

    def _monitored(self, graph: Graph, context: Context) -> bool:
        neurons = [n.name for n in graph.nodes if isinstance(n.op, ops.If | ops.Lif)]
        for name in self.monitor:
            if name not in neurons:
                context.report(*unknown("SNN084", "neuron", name, neurons, "to monitor").diagnostics)
        return set(self.monitor) <= set(neurons)

    def _numbers(self, graph: Graph, program: Program, context: Context) -> None:
        """What may not be exact in float32, or not be held by fp16, by a bound on every value."""
        inexact: dict[str, float] = {}
        for node in graph.nodes:
            if isinstance(node.op, ops.Input):
                continue
            value, state = program.bounds[node.name], program.states.get(node.name, (0.0,))
            most = max(map(abs, (*value, *state)))
            if most > EXACT and not isinstance(node.op, ops.Lif):
                inexact[node.name] = most
            scaled = [program.scales[node.name] * end for end in value]
            scaled += [program.scales.get(node.args[0], 1.0) * end for end in state]
            if (most := max(map(abs, scaled))) > LARGEST:
                text = f"`{node.name}` may reach {most:,.0f}, more than fp16 holds"
                hint = (
                    "calibrate with more data, or compile for fewer time steps; compiled.report shows what fp16 changes"
                )
                _warn(context, "SNN068", text, node, LARGEST, most, "", hint)
        if inexact:
            name = max(inexact, key=lambda name: inexact[name])
            count = f" (and of {len(inexact) - 1} values more)" if len(inexact) > 1 else ""
            text = (
                f"by a bound, integers of `{name}`{count} may exceed 2**24: there, executors' float32 sums could differ"
            )
            hint = "only sums near the bound do; an activation between linear layers, or fewer time steps, lower it"
            context.report(
                Diagnostic("SNN068", text, graph[name].loc, Severity.NOTE, hint, limit=EXACT, found=inexact[name])
            )

    def _operations(self, graph: Graph, program: Program, context: Context) -> None:
        """The traced program against what is known of lyngor."""
        from snncc.targets.lynxi import model

        places = {module: graph[owner].loc for module, owner in program.owners.items()}
        module = model.build(program.network, program.arrays, "float16")
        for found in conformance(module, model.example(program.network), places):
            context.report(found)

    def _precision(self, graph: Graph, context: Context) -> None:
        """What fp16 changes on calibration samples."""
        if not context.sample:
            return
        samples, loss = measure(graph, context.sample[0], context.timesteps)
        if loss is None:
            text = "what fp16 costs was not measured: it takes too long, or inputs have time steps of their own"
            hint = "snncc.targets.lynxi.fp16(compiled, x) measures it"
            context.report(Diagnostic("SNN068", text, severity=Severity.NOTE, hint=hint))
            return
        for name in loss.overflow:
            text = f"in fp16 the input of `{name}` is not finite on calibration samples"
            hint = "compile for fewer time steps, or with another threshold"
            context.report(Diagnostic("SNN068", text, graph[name].loc, hint=hint))
        differ = np.mean(list(loss.spikes.values())) if loss.spikes else 0.0
        if not differ and loss.same_class == 1:
            return
        same = f"{loss.same_class:.0%} of {samples} calibration samples keep their class"
        text = f"in fp16, {differ:.2%} of the spikes are others than in float32; {same}"
        severity = Severity.WARNING if loss.same_class < 0.9 else Severity.NOTE
        context.report(Diagnostic("SNN068", text, severity=severity))


def _warn(
    context: Context, code: str, text: str, node: Node, limit: float, found: float, quantity: str, hint: str
) -> None:
    context.report(Diagnostic(code, text, node.loc, Severity.WARNING, hint, limit, found, quantity))


def tensors(graph: Graph) -> list[dict[str, Any]]:
    """What the chip computes in a step: every value's shape, and its bytes in fp16."""
    return [
        {"name": n.name, "op": n.op.mnemonic, "shape": list(n.type.shape), "bytes": n.type.size * FP16}
        for n in graph.nodes
        if n.type.domain is not Domain.REAL
    ]
