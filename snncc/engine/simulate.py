"""The fast simulator, equal to the reference interpreter (:mod:`snncc.ir.interp`) in every spike.

It runs one operation at a time over all time steps, so time is a second batch axis for all that keeps no state; what is
the same in every step (a constant input, and what follows from it before the first neuron) is computed once. Float
stages run in float64, and neurons round their input to the same grid. Integer stages run in float32 where no sum that
the data and weights allow reaches 2**24, else in float64 below 2**53: exact in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snncc.engine.neurons import NEURONS
from snncc.engine.rules import Params, evaluate
from snncc.ir import loihi, ops
from snncc.ir.diagnostics import unknown, wrong_value
from snncc.ir.graph import Graph, Node
from snncc.ir.interp import EXACT, check_input, encoded
from snncc.ir.types import Array, Domain, Type, per_channel

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

_EXACT32 = 2.0**24
FIRED = (Domain.SPIKE, Domain.MESSAGE)  # what neurons send: counted, and recorded as "spikes"


@dataclass
class Simulation:
    """What a spiking network did in T time steps on N samples.

    Attributes:
        outputs: of every output of the graph, the mean over time of its real value (N, *shape), float64.
        spikes: of recorded spike values, whole numbers of spikes (T, N, *shape), int8, int32 or int64; of integer
            messages, what they carry.
        values: of other recorded values, float64 (T, N, *shape) as the stage holds them (integers count units).
        final: neurons' membrane potentials after the last step (N, *shape), float64, if asked for.
        counts: all spikes or messages of every value that neurons send, over time, samples and neurons.
        synops: of every weighted operation that spikes go into, its synaptic operations (N,) over all steps: a spike
            counts once for every output position and channel that it reaches.
    """

    graph: Graph
    timesteps: int
    outputs: tuple[Array, ...] = ()
    spikes: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    final: dict[str, Array] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    synops: dict[str, Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = ", ".join(str(y.shape) for y in self.outputs)
        kept = f", {len(self.spikes) + len(self.values)} values recorded" if self.spikes or self.values else ""
        return f"<simulation of {self.graph.name!r}: T = {self.timesteps}, outputs {shapes}{kept}>"

    @property
    def output(self) -> Array:
        """The first output: (N, classes) scores."""
        return self.outputs[0]

    @property
    def rates(self) -> dict[str, float]:
        """Mean spikes per neuron and time step of every spike value."""
        steps = self.timesteps * len(self.output)
        return {name: count / (steps * self.graph[name].type.size) for name, count in self.counts.items()}


def _schedule(graph: Graph) -> Iterator[tuple[Node, list[str]]]:
    """The nodes in order, each with the values that nothing needs after it."""
    last = {arg: node.name for node in graph.nodes for arg in (node.name, *node.args)}
    dead: dict[str, list[str]] = {}
    for name, reader in last.items():
        dead.setdefault(reader, []).append(name)
    yield from ((node, dead.get(node.name, [])) for node in graph.nodes)


# --- time steps ----------------------------------------------------------------------------------------------------


def _largest(value: Array) -> float:
    return float(np.abs(value.astype(np.float64)).max(initial=0.0))


def _exact_float32(device: str) -> bool:
    """Whether float32 sums of small integers are exact. GPUs may take TF32 or Winograd's algorithm for them; CPUs take
    bfloat16 if the user's program allows it for training."""
    if device != "cpu":
        return False
    mkldnn: Any = torch.backends.mkldnn
    if not hasattr(mkldnn, "conv"):  # torch < 2.9
        return torch.get_float32_matmul_precision() == "highest"
    return all(backend.fp32_precision in ("ieee", "none") for backend in (mkldnn.matmul, mkldnn.conv))


def fan_out(op: ops.Weighted, x: Type, out: Type) -> Array:
    """How many outputs every element of ``x`` reaches; broadcasts over (..., *x.shape)."""
    if not isinstance(op, ops.Conv2d):
        return np.asarray(op.weight.shape[0] if isinstance(op, ops.Linear) else 1)
    axes = []
    for i in (0, 1):
        starts = np.arange(out.shape[i + 1])[:, None] * op.stride[i] - op.padding[2 * i]
        reached = (starts + np.arange(op.weight.shape[i + 2]) * op.dilation[i]).ravel()
        inside = reached[(reached >= 0) & (reached < x.shape[i + 1])]
        axes.append(np.bincount(inside, minlength=x.shape[i + 1]))
    return np.multiply.outer(*axes) * (op.weight.shape[0] // op.groups)


@dataclass(frozen=True)
class _Steps:
    """Runs one batch. Values are (T, N, *shape), or (1, N, *shape) where they are the same in every step."""

    graph: Graph
    timesteps: int
    params: Params
    record: frozenset[str]
    final: bool

    def run(self, encoded: dict[str, Array]) -> Simulation:
        result = Simulation(self.graph, self.timesteps)
        live: dict[str, Tensor] = {}
        fired: dict[str, Tensor] = {}  # spikes over all steps, (N, *shape)
        means: dict[str, Array] = {}
        for node, dead in _schedule(self.graph):
            if not isinstance(node.op, ops.Input):
                if isinstance(node.op, ops.Encode):
                    x = encoded[node.name]
                    y = self.params(x, self._dtype(node, _largest(x)))
                else:
                    y = self._result(node, [live[arg] for arg in node.args], result)
                live[node.name] = y
                if node.type.domain in FIRED:
                    events = y if node.type.domain is Domain.SPIKE else (y != 0).to(y.dtype)
                    # Whole numbers of spikes add up exactly in the type that they have.
                    total = events.sum(0, dtype=None if node.type.integer else torch.float64).double()
                    total *= self.timesteps // len(y)
                    fired[node.name] = self._counts(node, total)
                    result.counts[node.name] = int(fired[node.name].sum())
                if isinstance(node.op, ops.Weighted) and node.args[0] in fired:
                    fan = self.params(fan_out(node.op, self.graph[node.args[0]].type, node.type), torch.float64)
                    operations = (fired[node.args[0]] * fan).flatten(1).sum(1)
                    result.synops[node.name] = operations.long().numpy(force=True)
                if node.name in self.record:
                    self._keep(node, y, result)
                if node.name in self.graph.outputs:
                    mean = (y.sum(0, dtype=torch.float64) / len(y)).numpy(force=True)
                    unit = per_channel(node.type.unit, self.graph.store, len(node.type.shape))
                    means[node.name] = mean * unit if node.type.integer else mean
                del y
            for name in dead:
                live.pop(name, None)
                fired.pop(name, None)
        result.outputs = tuple(means[name] for name in self.graph.outputs)
        return result

    def _result(self, node: Node, xs: list[Tensor], result: Simulation) -> Tensor:
        op, dtype = node.op, self._dtype(node, self._bound(node, xs))
        if type(op) in NEURONS:
            y, state = NEURONS[type(op)](op, xs[0].to(dtype), self.timesteps, node.type, self.params)
            if self.final:
                result.final[node.name] = state.double().numpy(force=True)
            return y
        growing = isinstance(op, ops.MaxPool) and not op.each_step
        steps = self.timesteps if growing else max(map(len, xs))
        xs = [x.to(dtype).expand(steps, *x.shape[1:]) for x in xs]
        xs = [x.cumsum(0) for x in xs] if growing else xs
        y = evaluate(op, [x.flatten(0, 1) for x in xs], node.type, self.params)
        y = y.reshape(*xs[0].shape[:2], *node.type.shape)
        # A spike whenever the maximum of the counts so far has grown: ops.MaxPool.step.
        return torch.cat([y[:1], y[1:] - y[:-1]]) if growing else y

    def _bound(self, node: Node, xs: list[Tensor]) -> float:
        """Of an integer operation: what no sum on the way to its result exceeds in size."""
        if not node.type.integer:
            return 0.0
        op, store = node.op, self.graph.store
        largest = [max(abs(float(v)) for v in torch.aminmax(x)) for x in xs]
        if isinstance(op, ops.Weighted):
            row = np.abs(store[op.weight].astype(np.float64)).reshape(op.weight.shape[0], -1).sum(1).max()
            return largest[0] * float(row) + (_largest(store[op.bias]) if op.bias is not None else 0.0)
        if isinstance(op, loihi.CubaLif | loihi.AtrLif):
            size = loihi.STATE + largest[0] * 2.0**loihi.SHIFT
            size += 0.0 if op.bias is None else _largest(store[op.bias])
            if isinstance(op, loihi.AtrLif):
                # r rises by 128 theta, from where it is 64 theta below v. (Far below 0, v - r may round: no matter.)
                return max(size, loihi.STATE + op.theta * 2.0**loihi.SHIFT)
            # A current that lasts may grow, and decays multiply it.
            return size if (op.decay_u, op.decay_v) == (loihi.UNITY, 0) else max(size, loihi.SUM) * loihi.UNITY
        if isinstance(op, loihi.Delta | loihi.SigmaDelta | loihi.Sigma):
            offset = 0.0 if isinstance(op, loihi.Delta) or op.bias is None else _largest(store[op.bias])
            times = op.scale if isinstance(op, loihi.Delta) else self.timesteps
            return 2 * (largest[0] * times + offset)
        if isinstance(op, ops.If):
            v0, theta = (_largest(np.asarray(per_channel(v, store, 1))) for v in (op.v0, op.threshold))
            return max(v0, abs(op.v_min or 0)) + self.timesteps * (largest[0] + theta)
        if isinstance(op, ops.Lif):
            return largest[0]  # its potential is a float32 of its own
        if isinstance(op, ops.Pad):
            return max(largest[0], abs(op.value))
        if isinstance(op, ops.SumPool):
            return largest[0] * prod(op.kernel)
        if isinstance(op, ops.MaxPool) and not op.each_step:
            return largest[0] * self.timesteps
        return sum(largest) if isinstance(op, ops.Add) else max(largest)

    def _dtype(self, node: Node, bound: float) -> torch.dtype:
        """The smallest exact type."""
        if bound >= EXACT:
            raise OverflowError(f"%{node.name}: integers that may reach {bound:.3g}, beyond 2**53")
        small = node.type.integer and bound < _EXACT32 and _exact_float32(self.params.device)
        return torch.float32 if small else torch.float64

    def _counts(self, node: Node, x: Tensor) -> Tensor:
        """Whole numbers of spikes: a float spike has the value of its unit."""
        return x if node.type.integer else (x / self.params.channels(node.type.unit, node.type, x.dtype)).round()

    def _keep(self, node: Node, y: Tensor, result: Simulation) -> None:
        y = y.expand(self.timesteps, *y.shape[1:])
        if node.type.domain is Domain.SPIKE or (node.type.domain is Domain.MESSAGE and node.type.integer):
            y, largest = self._counts(node, y), max(abs(float(v)) for v in torch.aminmax(y))
            narrow = next(d for d in (torch.int8, torch.int32, torch.int64) if largest <= torch.iinfo(d).max)
            result.spikes[node.name] = y.to(narrow).numpy(force=True)
        else:
            result.values[node.name] = y.double().numpy(force=True)


# --- the engine ----------------------------------------------------------------------------------------------------


def _join(parts: list[Array], axis: int = 0) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def recorded(graph: Graph, record: Iterable[str] | str) -> frozenset[str]:
    """The names of values that are meant by names, "spikes" or "all"."""
    known = {n.name: n.type.domain for n in graph.nodes if not isinstance(n.op, ops.Input)}
    if record in ("all", "spikes"):
        return frozenset(name for name, domain in known.items() if record == "all" or domain in FIRED)
    names = frozenset([record] if isinstance(record, str) else record)
    if names - known.keys():
        raise unknown("SNN084", "value", min(names - known.keys()), known, "to record")
    return names


@dataclass(frozen=True)
class TorchEngine:
    """Runs graphs. ``memory``: bytes that the values of one batch may take, by estimate; what takes more is split into
    batches, which changes no result."""

    device: str = "cpu"
    memory: int = 2**26  # larger batches take longer: they leave the caches

    def values(
        self, graph: Graph, xs: Sequence[Array], visit: Callable[[str, Array], None], dtype: torch.dtype = torch.float32
    ) -> None:
        """Run ``graph`` as a network (of neurons, the transfer function) on inputs (N, *shape), and call
        ``visit(name, value)`` for every value in order, in real numbers. A value is dropped after its last reader."""
        with torch.inference_mode():
            self._network(graph, check_input(graph, xs), visit, dtype)

    def run(
        self, graph: Graph, *xs: Array, record: Iterable[str] = (), dtype: torch.dtype = torch.float32
    ) -> dict[str, Array]:
        """The real values of the outputs, or of the values in ``record``, for inputs (N, *shape)."""
        parts: dict[str, list[Array]] = {name: [] for name in list(record) or graph.outputs}
        feeds = check_input(graph, xs)
        size = self._batch_size(graph, dtype.itemsize)
        with torch.inference_mode():
            for at in range(0, len(feeds[0]), size):
                batch = [x[at : at + size] for x in feeds]
                self._network(graph, batch, lambda name, y: parts[name].append(y) if name in parts else None, dtype)
        return {name: _join(values) for name, values in parts.items()}

    def simulate(
        self,
        graph: Graph,
        *xs: Array,
        timesteps: int,
        record: Iterable[str] | str | None = None,
        batch_size: int | None = None,
        final: bool = False,
        progress: Progress | None = None,
    ) -> Simulation:
        """Run a spiking stage over time.

        Args:
            xs: the inputs, (N, *shape) each; of the encoding "spikes", counts (T, N, *shape).
            timesteps: T.
            record: names of values to keep, or "all", or "spikes": all spike values.
            batch_size: samples that run at a time; by default as many as fit :attr:`memory`.
            final: whether to keep the neurons' last membrane potentials.
            progress: wraps the loop over batches, see :mod:`snncc.passes.base`.

        Raises:
            InputError: inputs, timesteps or names that do not fit the graph.
            OverflowError: integers that may reach 2**53.
        """
        if not graph.stage.spiking:
            raise ValueError(f"stage {graph.stage.value} has no time steps; use values or run")
        if timesteps < 1:
            raise wrong_value("timesteps", timesteps, "is below 1")
        feeds = encoded(graph, xs, timesteps)
        steps = _Steps(graph, timesteps, Params(graph.store, self.device), recorded(graph, record or ()), final)
        width = 4 if any(node.type.integer for node in graph.nodes) else 8
        size = batch_size or self._batch_size(graph, timesteps * width)
        starts: Iterable[int] = range(0, next(iter(feeds.values())).shape[1], size)
        with torch.inference_mode():
            parts = [
                steps.run({name: x[:, at : at + size] for name, x in feeds.items()})
                for at in (starts if progress is None else progress(starts, "simulate"))
            ]

        def joined(field: str, axis: int) -> dict[str, Array]:
            return {name: _join([getattr(p, field)[name] for p in parts], axis) for name in getattr(parts[0], field)}

        return Simulation(
            graph,
            timesteps,
            outputs=tuple(_join([p.outputs[i] for p in parts]) for i in range(len(graph.outputs))),
            spikes=joined("spikes", 1),
            values=joined("values", 1),
            final=joined("final", 0),
            counts={name: sum(p.counts[name] for p in parts) for name in parts[0].counts},
            synops=joined("synops", 0),
        )

    def adapt(
        self, graph: Graph, xs: Sequence[Array], timesteps: int, worth: Callable[[str, Array], Array]
    ) -> list[Array]:
        """Simulate a float spiking stage with what a spike stands for yet to be found: every neuron runs on all samples
        before those behind it do.

        What one operation alone reads is computed when that needs it, batch by batch. The rest is kept up to its last
        reader: spikes take T x N bytes per neuron.

        Args:
            xs: the inputs, as of :meth:`simulate`.
            timesteps: T.
            worth: called with the name of every ``if``, in order, and its mean spikes per step (N, *shape). Gives the
                real value of one of its spikes from there on, (C,) or (1,).

        Returns:
            The mean over time of every output, (N, *shape).
        """
        feeds = encoded(graph, xs, timesteps)
        steps = _Steps(graph, timesteps, Params(graph.store, self.device), frozenset(), False)
        unused = Simulation(graph, timesteps)
        size = self._batch_size(graph, timesteps * 8)
        starts = range(0, next(iter(feeds.values())).shape[1], size)
        reads = Counter(arg for node in graph.nodes for arg in node.args)
        passing = {
            node.name
            for node in graph.nodes
            if reads[node.name] == 1 and not isinstance(node.op, ops.Encode | ops.If) and node.name not in graph.outputs
        }
        when = {node.name: i for i, node in enumerate(graph.nodes)}  # it is computed
        for node in reversed(graph.nodes):
            if node.name in passing:
                when[node.name] = when[graph.users[node.name][0].name]
        last = dict(when)
        for node in graph.nodes:
            for arg in node.args:
                last[arg] = max(last[arg], when[node.name])
        kept: dict[str, list[Tensor]] = {}  # (T or 1, samples, *shape) by batch; of neurons, whether they fired
        value: dict[str, Tensor] = {}  # of one spike

        def real(name: str, batch: int) -> Tensor:
            if name in value:
                return kept[name][batch] * value[name]
            return kept[name][batch] if name in kept else compute(graph[name], batch)

        def compute(node: Node, batch: int) -> Tensor:
            if isinstance(node.op, ops.Encode):
                at = starts[batch]
                return steps.params(feeds[node.name][:, at : at + size], torch.float64)
            y = steps._result(node, [real(arg, batch) for arg in node.args], unused)
            return y != 0 if isinstance(node.op, ops.If) else y

        with torch.inference_mode():
            for i, node in enumerate(graph.nodes):
                if isinstance(node.op, ops.Input) or node.name in passing:
                    continue
                kept[node.name] = [compute(node, batch) for batch in range(len(starts))]
                if isinstance(node.op, ops.If):
                    rate = torch.cat([y.sum(0) for y in kept[node.name]]).numpy(force=True) / timesteps
                    one = worth(node.name, rate).reshape(-1, *(1,) * (len(node.type.shape) - 1))
                    value[node.name] = steps.params(one, torch.float64)
                for name in [name for name in kept if last[name] <= i and name not in graph.outputs]:
                    del kept[name]
            means = [torch.cat([real(name, i).mean(0) for i in range(len(starts))]) for name in graph.outputs]
        return [mean.numpy(force=True) for mean in means]

    def _network(
        self, graph: Graph, xs: Sequence[Array], visit: Callable[[str, Array], None], dtype: torch.dtype
    ) -> None:
        params, inputs = Params(graph.store, self.device), iter(xs)
        live: dict[str, Tensor] = {}
        for node, dead in _schedule(graph):
            if isinstance(node.op, ops.Input):
                y = params(next(inputs), dtype)
            else:
                y = evaluate(node.op, [live[arg] for arg in node.args], node.type, params)
            live[node.name] = y
            y = y * params.channels(node.type.unit, node.type, dtype) if node.type.integer else y
            visit(node.name, y.numpy(force=True))
            del y
            for name in dead:
                del live[name]

    def _batch_size(self, graph: Graph, itemsize: int) -> int:
        live = most = 0
        for node, dead in _schedule(graph):
            live += node.type.size
            most = max(most, live)
            live -= sum(graph[name].type.size for name in dead)
        return max(1, self.memory // (most * itemsize))
