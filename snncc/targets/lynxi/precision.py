"""What the chip's fp16 costs: the program with every result rounded to fp16, beside the same in float32.

Inside an operation, a convolution's sum, say, float32 adds up; what leaves it is an fp16 number. Published is that
neurons are computed and stored in 16-bit floating point (BIDL_doc_en, neuron_simulation_toolkit.rst), not how the
chip's arithmetic units add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from snncc.ir import Graph, ops
from snncc.ir.interp import encoded
from snncc.ir.types import Array
from snncc.targets.lynxi.lower import Program, lower

if TYPE_CHECKING:
    import torch


SAMPLES = 16  # that are measured on
WORK = 2 * 10**10  # multiplications that measuring may take: some ten seconds


@dataclass(frozen=True)
class Loss:
    """What fp16 changes.

    Attributes:
        spikes: of every neuron, the part of its spikes that come in one arithmetic and not in the other: of all
            samples, steps and neurons.
        same_class: the part of the samples whose largest output is the same; by sums over time.
        overflow: neurons whose fp16 input was not finite.
        outputs: in fp16, of each output the mean over time of its real value, (N, *shape).
    """

    spikes: Mapping[str, float]
    same_class: float
    overflow: tuple[str, ...]
    outputs: tuple[Array, ...]


def compare(graph: Graph, xs: Sequence[Array], timesteps: int) -> Loss:
    """Run the program of an integer stage in both arithmetics, on inputs (N, *shape), or counts (T, N, *shape)."""
    import torch

    program, feeds = lower(graph, timesteps=timesteps), encoded(graph, xs, timesteps)
    exact, rounded = machines = [_Machine(program, precision) for precision in ("float32", "float16")]
    apart = dict.fromkeys(exact.neurons.values(), 0)
    totals: list[list[Array]] = [[], []]
    for t in range(timesteps):
        now = [torch.from_numpy(x[t if len(x) > 1 else 0].astype(np.float32)) for x in feeds.values()]
        for machine, total in zip(machines, totals, strict=True):
            y = machine.step(now)
            total[:] = [a + b for a, b in zip(total, y, strict=True)] if total else y
        for name in apart:
            apart[name] += int((exact.spikes[name] != rounded.spikes[name]).sum())
    spikes = {name: count / (timesteps * exact.spikes[name].numel()) for name, count in apart.items()}
    worth = [program.value(entry, "worth") for entry in program.network["outputs"]]
    scores = [[y * w / timesteps for y, w in zip(total, worth, strict=True)] for total in totals]
    first, second = (y[0].reshape(len(y[0]), -1).argmax(axis=1) for y in scores)
    return Loss(spikes, float((first == second).mean()), tuple(rounded.overflow), tuple(scores[1]))


def measure(graph: Graph, xs: Sequence[Array], timesteps: int) -> tuple[int, Loss | None]:
    """:func:`compare` on as many of the samples (N, *shape) as do not take long, and how many that are; None: not even
    one, or the inputs are spikes of many time steps, which samples are not."""
    ready_made = any(isinstance(n.op, ops.Encode) and n.op.method == "spikes" for n in graph.nodes)
    work = 2 * timesteps * max(size(graph)["operations"], 1)
    samples = 0 if ready_made else min(SAMPLES, len(xs[0]), WORK // work)
    if not samples:
        return 0, None
    return samples, compare(graph, [x[:samples] for x in xs], timesteps)


def size(graph: Graph) -> dict[str, int]:
    """The network against the chip: ``neurons``; ``synapses``, distinct weights; ``operations``, multiplications of a
    time step."""
    neurons = sum(n.type.size for n in graph.nodes if isinstance(n.op, ops.Activation | ops.If | ops.Lif))
    layers = [(n.op, n.type) for n in graph.nodes if isinstance(n.op, ops.Weighted)]
    return {
        "neurons": neurons,
        "synapses": sum(op.weight.size for op, _ in layers),
        "operations": sum(op.multiplications(out) for op, out in layers),
    }


class _Machine:
    """A program in one precision, with its states."""

    def __init__(self, program: Program, precision: str) -> None:
        from snncc.targets.lynxi import model

        module = model.build(program.network, program.arrays, precision)
        self.module = module.half().float() if precision == "float16" else module
        self.precision, self.model = precision, model
        self.neurons = {e["module"]: e["name"] for e in program.network["layers"] if e["kind"] == "neuron"}
        self.states: dict[str, torch.Tensor] = {}
        self.spikes: dict[str, torch.Tensor] = {}  # of the last step
        self.overflow: list[str] = []
        for key, name in self.neurons.items():
            self.module.get_submodule(key).register_forward_hook(self._watch(name))

    def _watch(self, name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_: Any, args: tuple[torch.Tensor, ...], spikes: torch.Tensor) -> None:
            self.spikes[name] = spikes
            if name not in self.overflow and not bool(args[0].isfinite().all()):
                self.overflow.append(name)

        return hook

    def step(self, xs: Sequence[torch.Tensor]) -> list[Array]:
        """One time step: every output in the program's numbers, float64 (N, *shape)."""
        import torch

        self.model.reset()
        self.model.STATES.update(self.states)
        with torch.no_grad(), _rounding(self.precision):  # no inference mode: torch cannot slice an input there
            y = self.module(*xs)
        self.states = dict(self.model.STATES)
        self.model.reset()
        return [part.double().numpy(force=True) for part in (y if isinstance(y, tuple) else (y,))]


def _rounding(precision: str) -> Any:
    """A context in which every operation's result is rounded to the precision, as numbers in float32."""
    from contextlib import nullcontext

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map

    def rounded(y: Any) -> Any:
        return y.half().float() if isinstance(y, torch.Tensor) and y.is_floating_point() else y

    class Rounding(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return tree_map(rounded, func(*args, **(kwargs or {})))

    mode: Any = Rounding
    return mode() if precision == "float16" else nullcontext()
