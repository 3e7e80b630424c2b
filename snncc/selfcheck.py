"""The compile checks itself: what was made, run on the calibration sample and compared with the network.

Two figures are of the whole network: the integers **as a network** (every neuron by its transfer function: what T steps
tend to), and **simulated** for T steps. The rest is of each layer *alone*: it is fed what the network itself gives, so
nothing accumulates, and its loss is told apart. Let ``a`` be the network's activation, ``u`` the value of one spike in
every step, ``f(x)`` the integer layer's transfer function for values ``x`` of the layers before it, and ``y`` its
simulated mean output over T steps. All are relative to the size of ``a`` (2-norm, over neurons and samples):

- **clipping**: ``|a - min(a, u)|``, the threshold below the values.
- **rounding**: ``|f(a_before) - min(a, u)|``, of weights, biases and thresholds.
- **time**: ``|y - f(r)|``. The layers before it send evenly spaced spikes: those of one integrate-and-fire neuron each
  that starts at half its threshold and is driven by the network's activation in every step. ``r`` is the mean of these
  T steps. So what spikes that come unevenly and steps that are too few cost *in this layer* is seen, and not what
  they cost in those before it. A neuron that resets to zero is replaced by one that subtracts what its spike is worth.
- **reset**: ``|y_zero - y|``, how far the reset to zero leads from that; 0 of neurons that subtract.

Messages of sigma-delta neurons are exact in one step, so they neither clip nor lose by time. Inputs lose by rounding
(of a constant current) or by time (of a rate). Of a network that has spiking neurons itself, the network is its float
simulation for T steps: each layer is fed the spikes that this gives, and all that integers change is rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from snncc.ir import Diagnostic, Domain, Graph, InputError, Loc, Node, Severity, SnnccError, Stage, loihi, ops
from snncc.ir.diagnostics import errors
from snncc.ir.interp import encoded, real
from snncc.ir.types import Array, per_channel
from snncc.passes.base import Context, Pass, StageRecord
from snncc.passes.calibrate import Calibrate
from snncc.passes.calibrate_reset import spread
from snncc.targets.base import Options, Target

if TYPE_CHECKING:
    from snncc.engine import TorchEngine

# Beyond these, the compile warns. Chosen on calibration samples alone (benchmarks/selfcheck.py prints them): of the
# digits CNN on a Speck and of a ResNet-20, T = 4 to 64, an output error of 0.32 to 0.35 goes with 1.6 % of changed
# classes, and one of 0.5 to 0.57 with 13 to 14 %. Of outputs that are no scores, a fifth of their size is a convention.
CHANGED, ERROR, ERROR_PLAIN = 0.05, 0.4, 0.2
MARGIN = 0.8  # of a limit: what a hint has been tried to reach
TRIED, STEPS, TRIES = 16, 2**10, 4  # samples that a hint is tried on, the most time steps, and how often

CAUSES = ("clipping", "rounding", "time", "reset")
GRID = 2**12  # parts of a threshold by which the neurons that stand for the layers before are driven
LEAST, MOST, LAYERS = 16, 64, 4  # samples: of the whole network at least and at most; of each layer alone
WORK, LARGE = (
    2 * 10**9,
    4 * 10**10,
)  # multiplications that are always worth it, and those that the least samples may take


@dataclass(frozen=True)
class Figures:
    """How far outputs are from the network's.

    Attributes:
        error: the relative distance (2-norm) of the worst output.
        changed: the part of samples (of dense outputs, of positions) whose class changes in the worst output; None:
            the outputs have no classes.
    """

    error: float
    changed: float | None = None


def _excess(figures: Figures, samples: int) -> float:
    """The figures in terms of their limit. One sample alone, whose class changes, is none."""
    if figures.changed is None:
        return figures.error / ERROR_PLAIN
    return max(figures.error / ERROR, (figures.changed - 1 / samples) / CHANGED)


@dataclass(frozen=True)
class Layer:
    """What one layer loses (see the module), by the name of its activation, of an input's encoding, or of an output.

    Attributes:
        error: the relative error of its mean over T steps with all that comes from the layers before it, too.
        rate: mean spikes per neuron and step; None of what sends none.
    """

    name: str
    clipping: float = 0.0
    rounding: float = 0.0
    time: float = 0.0
    reset: float = 0.0
    error: float = 0.0
    rate: float | None = None


@dataclass(frozen=True)
class SelfCheck:
    """What the compile measured of itself on calibration samples.

    Attributes:
        timesteps: T.
        samples: how many samples the figures of the whole network are of.
        layer_samples: how many those of each layer alone are of.
        prepared: the network as it is converted, against the network as it was traced: what removing biases, or a ReLU
            for outputs that have to be spikes, costs.
        network: the integers as a network, whose neurons subtract; None of a network that has spiking neurons itself.
        simulated: T steps in the target's arithmetic. Both have the error against the network as it is converted, the
            classes against the traced one.
        layers: every layer in order.
        synops: mean synaptic operations of a sample, by layer of weights.
        balanced: whether thresholds were chosen for T steps (threshold="mse": the finer the steps, the less they clip).
    """

    timesteps: int
    samples: int
    layer_samples: int
    prepared: Figures
    network: Figures | None
    simulated: Figures
    layers: tuple[Layer, ...]
    synops: Mapping[str, float]
    balanced: bool = False

    def __repr__(self) -> str:
        done = self.simulated
        classes = "" if done.changed is None else f", {100 * done.changed:.1f}% of the classes change"
        return f"output off by {100 * done.error:.1f}%{classes}, on {self.samples} samples"

    @property
    def cause(self) -> str:
        """Of clipping, rounding, time and reset what costs most, over all layers. Thresholds that were chosen for T
        steps clip because these are few: with such, clipping beside a loss by time is part of that."""
        costs = {cause: sum(getattr(layer, cause) ** 2 for layer in self.layers) for cause in CAUSES}
        if self.balanced and costs["time"]:
            costs["time"] += costs.pop("clipping")
        return max(costs, key=costs.__getitem__)

    @property
    def exceeds(self) -> bool:
        """Whether the simulated outputs are beyond the limit."""
        return _excess(self.simulated, self.samples) > 1

    def worst(self, cause: str) -> list[Layer]:
        """The layers by what this costs them, the largest first."""
        return sorted(self.layers, key=lambda layer: -getattr(layer, cause))

    def __getitem__(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"cause": self.cause, "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> SelfCheck:
        """What :meth:`plain` gave."""
        plain = {field.name: data[field.name] for field in fields(cls)}
        for name in ("prepared", "network", "simulated"):
            plain[name] = None if data[name] is None else Figures(**data[name])
        plain["layers"] = tuple(Layer(**layer) for layer in data["layers"])
        return cls(**plain)


# --- one layer at a time ---------------------------------------------------------------------------------------------


def measured(before: Graph, after: Graph) -> dict[str, str]:
    """The values of ``after`` whose loss is measured, each with its name in ``before``: what stands for an activation
    (of a layer in parts, all of them together)."""
    kinds = ops.Lif if _own(before) else ops.Activation
    sent = (n.name for n in after.nodes if n.type.domain in (Domain.SPIKE, Domain.MESSAGE))
    return {name: name for name in sent if name in before.by_name and isinstance(before[name].op, kinds)}


def alone(graph: Graph, cuts: Iterable[str], given: str, subtract: bool = False) -> Graph:
    """The graph with every layer fed from outside: what reads a value of ``cuts`` reads ``NAME.given`` instead, which
    comes from a new input ``NAME.true`` in spikes a step (of messages, in messages).

    Args:
        given: "exact", the numbers themselves (to run as a network); "steps", evenly spaced spikes of them; "spikes",
            ready-made ones (T, N, *shape).
        subtract: replace neurons that reset to zero by such that subtract. Those of Lava read their bias, which these
            have not, from a new input ``NAME.bias``.
    """
    kept, nodes, renamed = set(cuts), list[Node](), dict[str, str]()
    for node in graph.nodes:
        node = replace(node, args=tuple(renamed.get(arg, arg) for arg in node.args))  # noqa: PLW2901
        if isinstance(node.op, ops.Encode) and given == "exact":
            node = replace(node, op=replace(node.op, method="rate"))  # noqa: PLW2901 (as a network, it rounds nothing)
        if subtract:
            nodes += (extra := list(_subtracting(graph, node)))[:-1]
            node = extra[-1]  # noqa: PLW2901
        nodes.append(node)
        if node.name in kept:
            nodes += _source(graph[node.name], given)
            renamed[node.name] = nodes[-1].name
    return replace(graph, nodes=tuple(nodes))


def _source(node: Node, given: str) -> Iterator[Node]:
    """An input, and what makes of it the values that stand for ``node``; the last of them has its type."""
    true, name, last = f"{node.name}.true", f"{node.name}.given", node.type
    source = ops.Input(last.shape)
    yield Node(true, source, (), source.infer((), _NO_STORE), node.loc)
    if given != "steps":
        yield Node(name, ops.Encode("rate" if given == "exact" else "spikes", dtype="i32"), (true,), last, node.loc)
        return
    message = last.domain is Domain.MESSAGE
    current = replace(last, domain=Domain.CURRENT, unit=1.0)
    encode = ops.Encode("constant", 1.0 if message else 1.0 / GRID, "i32")
    yield Node(f"{name}.current", encode, (true,), current, node.loc)
    neuron = loihi.Delta() if message else ops.If(GRID, GRID // 2)
    yield Node(name, neuron, (f"{name}.current",), last, node.loc)


def _subtracting(graph: Graph, node: Node) -> Iterator[Node]:
    """The node; if it resets to zero, one in its place that subtracts what its spike is worth, with its gain."""
    op = node.op
    if not _resets(node):
        yield node
        return
    x, (arg,), store = graph[graph[node.name].args[0]].type, node.args, graph.store
    threshold = np.asarray(per_channel(node.type.unit, store, 1)) / per_channel(x.unit, store, 1)
    threshold = np.broadcast_to(threshold, x.shape[:1])
    if isinstance(op, loihi.CubaLif) and op.bias is not None:
        name = f"{node.name}.bias"
        source = ops.Input(x.shape)
        yield Node(name, source, (), source.infer((), _NO_STORE))
        yield Node(f"{name}.current", ops.Encode(dtype="i32"), (name,), x)
        yield Node(f"{name}.sum", ops.Add(), (arg, f"{name}.current"), x)
        arg = f"{name}.sum"
    assert isinstance(op, ops.If | loihi.CubaLif)
    yield replace(node, op=ops.If(store.put(f"{node.name}.worth", threshold), op.v0), args=(arg,))


_NO_STORE: Any = None  # an input's type needs none


def _resets(node: Node) -> bool:
    """Whether the neuron resets to zero."""
    return isinstance(node.op, loihi.CubaLif) or (isinstance(node.op, ops.If) and node.op.reset == "zero")


class _Sums:
    """Relative distances by name, over batches."""

    def __init__(self) -> None:
        self.off: dict[tuple[str, str], float] = {}
        self.size: dict[str, float] = {}

    def add(self, name: str, cause: str, difference: Array) -> None:
        key = name, cause
        self.off[key] = self.off.get(key, 0.0) + float(np.square(difference, dtype=np.float64).sum())

    def of(self, name: str, value: Array) -> None:
        self.size[name] = self.size.get(name, 0.0) + float(np.square(value, dtype=np.float64).sum())

    def __call__(self, name: str, cause: str) -> float:
        off, size = self.off.get((name, cause), 0.0), self.size.get(name, 0.0)
        return sqrt(off / size) if size else sqrt(off)


class _Alone:
    """Measures each layer alone, batch by batch."""

    def __init__(self, before: Graph, after: Graph, engine: TorchEngine, timesteps: int) -> None:
        self.before, self.after, self.engine, self.timesteps = before, after, engine, timesteps
        self.cuts = measured(before, after)
        self.exact = alone(after, self.cuts, "exact", subtract=True)
        self.steps = alone(after, self.cuts, "steps")
        self.plain = alone(after, (), "steps", subtract=True)  # the whole network
        hard = any(map(_resets, after.nodes))
        self.subtracting = alone(after, self.cuts, "steps", subtract=True) if hard else self.steps
        self.encodes = {n.name: n for n in after.nodes if isinstance(n.op, ops.Encode)}
        self.scores = [name for name in after.outputs if name not in self.cuts]
        self.shown = dict(zip(after.outputs, before.outputs, strict=True))
        self.sums = _Sums()

    def add(self, xs: Sequence[Array]) -> None:
        """Measure a batch of inputs (N, *shape)."""
        graph, wanted = self.after, {*self.cuts.values(), *self.before.outputs}
        true = self.engine.run(self.before, *xs, record=wanted)
        inputs = dict(zip((n.name for n in graph.inputs), xs, strict=True))
        worth = {name: self._unit(name) for name in self.cuts}
        sent = {name: true[old] / worth[name] for name, old in self.cuts.items()}
        done = self._simulate(self.steps, inputs, sent, givens=True)
        soft = done if self.subtracting is self.steps else self._simulate(self.subtracting, inputs, sent)
        arrived = {name: done[f"{name}.given"] for name in self.cuts}
        rounded = dict(inputs)
        for name, value in encoded(graph, xs, self.timesteps).items():
            rounded[self.encodes[name].args[0]] = real(graph, name, value.mean(axis=0))
        transfer = self._network(inputs, sent)
        expected = self._network(rounded, arrived)
        for name, node in self.encodes.items():
            x = inputs[node.args[0]]
            self.sums.of(name, x)
            cause = "rounding" if node.op.method == "constant" else "time"  # type: ignore[attr-defined]
            self.sums.add(name, cause, rounded[node.args[0]] - x)
        for name, old in self.cuts.items():
            a, node = true[old], self.before[old]
            clipped = np.minimum(a, worth[name]) if graph[name].type.domain is Domain.SPIKE else a
            y = soft[name] * worth[name]
            for values in (transfer, expected) if isinstance(node.op, ops.QuantRelu) else ():
                # The network has steps of its own here, which transfer functions do not have.
                values[name] = node.op.evaluate([values[name]], node.type, self.before.store)
            self.sums.of(name, a)
            self.sums.add(name, "clipping", a - clipped)
            self.sums.add(name, "rounding", transfer[name] - clipped)
            self.sums.add(name, "time", y - expected[name])
            self.sums.add(name, "reset", done[name] * worth[name] - y)
        for name in self.scores:
            a = true[self.shown[name]]
            self.sums.of(name, a)
            self.sums.add(name, "rounding", transfer[name] - a)
            self.sums.add(name, "time", soft[name] - expected[name])
            self.sums.add(name, "reset", done[name] - soft[name])

    def network(self, xs: Sequence[Array]) -> list[Array]:
        """The outputs of the whole network without time."""
        import torch

        inputs = dict(zip((n.name for n in self.after.inputs), xs, strict=True))
        feeds, names = self._feeds(self.plain, inputs, {}), self.after.outputs
        found = self.engine.run(self.plain, *feeds, record=set(names), dtype=torch.float64)
        return [found[name] for name in names]

    def _unit(self, name: str) -> Array | float:
        return per_channel(self.after[name].type.unit, self.after.store, len(self.after[name].type.shape))

    def _feeds(self, graph: Graph, inputs: Mapping[str, Array], sent: Mapping[str, Array]) -> list[Array]:
        feeds = []
        for node in graph.inputs:
            what, _, kind = node.name.rpartition(".")
            if node.name in inputs:
                feeds.append(inputs[node.name])
            elif kind == "true":
                feeds.append(sent[what])
            else:
                op, n = self.after[what].op, len(next(iter(inputs.values())))
                assert isinstance(op, loihi.CubaLif)
                bias = np.asarray(loihi.bias_of(op.bias, graph.store, self.after[what].type)) / 2**loihi.SHIFT
                feeds.append(np.broadcast_to(bias, (n, *node.type.shape)))
        return feeds

    def _network(self, inputs: Mapping[str, Array], sent: Mapping[str, Array]) -> dict[str, Array]:
        """The real value of every layer as a network."""
        import torch

        names = [*self.cuts, *self.scores]
        return self.engine.run(self.exact, *self._feeds(self.exact, inputs, sent), record=names, dtype=torch.float64)

    def _simulate(
        self, graph: Graph, inputs: Mapping[str, Array], sent: Mapping[str, Array], givens: bool = False
    ) -> dict[str, Array]:
        """Spikes a step of every layer (all that messages add up to), and of what it was given; scores' real values."""
        names = [*self.cuts, *(f"{name}.given" for name in (self.cuts if givens else ()))]
        done = self.engine.simulate(graph, *self._feeds(graph, inputs, sent), timesteps=self.timesteps, record=names)
        found = {}
        for name, spikes in done.spikes.items():
            message = graph[name].type.domain is Domain.MESSAGE
            found[name] = spikes.sum(axis=0) if message else spikes.mean(axis=0)
        scores = dict(zip(graph.outputs, done.outputs, strict=True))
        return found | {name: scores[name] for name in self.scores}


def _own(graph: Graph) -> bool:
    """Whether the network has spiking neurons itself."""
    return any(isinstance(node.op, ops.Lif) for node in graph.nodes)


class _AloneSpiking:
    """The same of a network that has spiking neurons itself."""

    def __init__(self, before: Graph, after: Graph, engine: TorchEngine, timesteps: int) -> None:
        self.before, self.after, self.engine, self.timesteps = before, after, engine, timesteps
        self.cuts = measured(before, after)
        self.graph = alone(after, self.cuts, "spikes")
        self.scores = {n: old for n, old in zip(after.outputs, before.outputs, strict=True) if n not in self.cuts}
        self.encodes = {n.name: n for n in after.nodes if isinstance(n.op, ops.Encode)}
        self.sums = _Sums()

    def add(self, xs: Sequence[Array]) -> None:
        """Measure a batch of inputs (N, *shape)."""
        true = self.engine.simulate(self.before, *xs, timesteps=self.timesteps, record=list(self.cuts.values()))
        inputs = dict(zip((n.name for n in self.after.inputs), xs, strict=True))
        feeds = [
            inputs[n.name] if n.name in inputs else true.spikes[self.cuts[n.name.removesuffix(".true")]]
            for n in self.graph.inputs
        ]
        done = self.engine.simulate(self.graph, *feeds, timesteps=self.timesteps, record=list(self.cuts))
        for name, old in self.cuts.items():
            was = true.spikes[old].mean(axis=0)
            self.sums.of(name, was)
            self.sums.add(name, "rounding", done.spikes[name].mean(axis=0) - was)
        given, got = (
            dict(zip(g.outputs, d.outputs, strict=True)) for g, d in ((self.before, true), (self.graph, done))
        )
        for name, old in self.scores.items():
            self.sums.of(name, given[old])
            self.sums.add(name, "rounding", got[name] - given[old])
        for name, value in encoded(self.after, xs, self.timesteps).items():
            x = inputs[self.encodes[name].args[0]]
            self.sums.of(name, x)
            cause = "rounding" if self.encodes[name].op.method == "constant" else "time"  # type: ignore[attr-defined]
            self.sums.add(name, cause, real(self.after, name, value.mean(axis=0)) - x)


# --- the whole network -----------------------------------------------------------------------------------------------


class _Compared:
    """Outputs against the network's, over batches."""

    def __init__(self, count: int) -> None:
        self.sums, self.changed, self.of = [_Sums() for _ in range(count)], [0] * count, [0] * count

    def add(self, got: Sequence[Array], wanted: Sequence[Array], traced: Sequence[Array]) -> None:
        for i, (y, a, was) in enumerate(zip(got, wanted, traced, strict=True)):
            self.sums[i].of("", a)
            self.sums[i].add("", "", y - a)
            if classes(was):
                same = y.argmax(axis=1) == was.argmax(axis=1)
                self.changed[i] += int(same.size - same.sum())
                self.of[i] += same.size

    def figures(self) -> Figures:
        parts = [changed / of for changed, of in zip(self.changed, self.of, strict=True) if of]
        return Figures(max(sums("", "") for sums in self.sums), max(parts) if parts else None)


def classes(output: Array) -> bool:
    """Whether an output (N, *shape) can be scores of classes: (N, classes), or of dense outputs (N, classes, H, W)."""
    return output.ndim in (2, 4) and output.shape[1] > 1


def timed(graph: Graph) -> Graph:
    """The graph with inputs that are ready-made spikes made evenly: calibration data is their mean per step."""
    nodes = (
        replace(n, op=replace(n.op, method="rate")) if isinstance(n.op, ops.Encode) and n.op.method == "spikes" else n
        for n in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def samples(traced: Graph, sample: Sequence[tuple[Array, ...]], timesteps: int) -> int:
    """How many samples to simulate: about what calibrating on the whole sample costs, and of all but large networks at
    least :data:`LEAST`."""
    here, work = sum(len(batch[0]) for batch in sample), timesteps * _work(traced)
    return min(here, MOST, max(1, here // timesteps, WORK // work, min(LEAST, LARGE // work)))


def _work(graph: Graph) -> int:
    """Multiplications of a sample as a network."""
    found = sum(node.op.multiplications(node.type) for node in graph.nodes if isinstance(node.op, ops.Weighted))
    return max(1, found)


def measure(
    stages: Mapping[str, Graph],
    sample: Sequence[tuple[Array, ...]],
    timesteps: int,
    engine: TorchEngine,
    balanced: bool = False,
) -> SelfCheck | None:
    """Run the stages of a compile on calibration samples.

    Args:
        stages: by name; the last is of integers. Nothing is measured (None) if it is not, or without data.
        sample: batches of inputs, (N, *shape) each; a few samples, spread over all, are taken.
        timesteps: T.
        balanced: whether thresholds were chosen for T.

    Raises:
        OverflowError: the target's arithmetic does not hold what the sample gives.
        InputError: the input encoding cannot express the sample.
    """
    after = list(stages.values())[-1]
    if after.stage not in (Stage.INT, Stage.MAPPED) or not sample:
        return None
    traced, folded, snn = (stages[stage.value] for stage in (Stage.ANN, Stage.FOLDED, Stage.SNN))
    after, snn = timed(after), timed(snn)
    own = _own(after)
    before = snn if own else folded
    xs = spread(sample, samples(traced, sample, timesteps))
    layers: _Alone | _AloneSpiking
    layers = (_AloneSpiking if own else _Alone)(before, after, engine, timesteps)
    neurons = sum(after[name].type.size for name in layers.cuts)
    size = max(1, engine.memory // max(1, neurons * (timesteps + 16)))
    few = [x[np.arange(n := min(LAYERS, len(x))) * len(x) // n] for x in xs]
    for batch in _batches(few, max(1, size // 4)):
        layers.add(batch)
    prepared, network, simulated = (_Compared(len(after.outputs)) for _ in range(3))
    total, counts, synops = _Sums(), dict[str, int](), dict[str, float]()
    for batch in _batches(xs, size):
        n = len(batch[0])
        done = engine.simulate(after, *batch, timesteps=timesteps, record=list(layers.cuts))
        for name, count in done.counts.items():
            counts[name] = counts.get(name, 0) + count
        for name, operations in done.synops.items():
            synops[name] = synops.get(name, 0.0) + float(operations.sum())
        if isinstance(layers, _AloneSpiking):
            was = engine.simulate(before, *batch, timesteps=timesteps, record=list(layers.cuts))
            wanted: Sequence[Array] = was.outputs
            first, true = wanted, {name: was.spikes[name].mean(axis=0) for name in layers.cuts}
        else:
            true = engine.run(before, *batch, record={*layers.cuts.values(), *before.outputs})
            wanted = [true[name] for name in before.outputs]
            found = engine.run(traced, *batch, record=set(traced.outputs))
            first = [found[name] for name in traced.outputs]
            prepared.add(wanted, first, first)
            network.add(layers.network(batch), wanted, first)
        simulated.add(done.outputs, wanted, first)
        for name, old in layers.cuts.items():
            message = after[name].type.domain is Domain.MESSAGE
            sent = done.spikes[name].sum(axis=0) if message else done.spikes[name].mean(axis=0)
            total.of(name, true[old])
            total.add(name, "", (sent if own else real(after, name, sent)) - true[old])
        for name, y, a in zip(after.outputs, done.outputs, wanted, strict=True):
            if name not in layers.cuts:
                total.of(name, a)
                total.add(name, "", y - a)
        if not own:
            del true
    n, sums = len(xs[0]), layers.sums
    rows = []
    for node in after.nodes:
        if (name := node.name) not in sums.size:
            continue
        row = Layer(name, *(sums(name, cause) for cause in CAUSES))
        rate = counts[name] / (timesteps * n * node.type.size) if name in layers.cuts else None
        alike = row.rounding + row.time if isinstance(node.op, ops.Encode) else total(name, "")
        rows.append(replace(row, error=alike, rate=rate))
    means = {name: value / n for name, value in synops.items()}
    figures = None if own else network.figures()
    kept = Figures(0.0, 0.0 if simulated.figures().changed is not None else None) if own else prepared.figures()
    return SelfCheck(timesteps, n, len(few[0]), kept, figures, simulated.figures(), tuple(rows), means, balanced)


# --- what to say of it -----------------------------------------------------------------------------------------------


WORDS = {
    "clipping": "clipping: thresholds are below the values",
    "rounding": "rounding of weights, biases and thresholds",
    "time": "time: the steps are too few, and spikes come unevenly",
    "reset": "the reset to zero, which forgets what is above the threshold",
}


@dataclass(frozen=True)
class Compile:
    """What a compile did, to do parts of it again with other options."""

    target: Target
    options: Options
    passes: Sequence[Pass]
    records: Sequence[StageRecord]
    context: Context

    def check(self, engine: TorchEngine) -> SelfCheck | None:
        """Measure, and report what is beyond the limit as a warning (SNN046), or why nothing can be measured
        (SNN047)."""
        stages = {record.graph.stage.value: record.graph for record in self.records}
        steps, balanced = self.options.timesteps, self.options.threshold == "mse"
        try:
            found = measure(stages, self.context.sample, steps, engine, balanced)
        except (OverflowError, InputError) as error:
            words = error.diagnostics[0].message if isinstance(error, InputError) else str(error)
            text = f"the result could not be run on the calibration sample: {words}"
            hint = "choose fewer time steps or smaller widths, or calibrate with what the input encoding can express"
            self.context.report(Diagnostic("SNN047", text, severity=Severity.WARNING, hint=hint))
            return None
        if found is not None and found.exceeds:
            self.context.report(self._warning(found, engine))
        return found

    def _warning(self, found: SelfCheck, engine: TorchEngine) -> Diagnostic:
        after, share = self.records[-1].graph, found.simulated.changed
        dense = len(after[after.outputs[0]].type.shape) == 3
        text = f"simulated for {_steps(found.timesteps)} on {found.samples} calibration samples, "
        text += _says(found.simulated, dense)
        if found.network is not None:
            text += f"; the same integers as a network, without time: {_says(found.network, dense)}"
        whole = share is not None and _excess(Figures(0.0, share), found.samples) > 1
        limit, off = (CHANGED, share) if whole else (ERROR if share is not None else ERROR_PLAIN, found.simulated.error)
        amount = "of the classes" if whole else "of the output's size"
        if found.prepared.changed and 2 * found.prepared.changed > (share or 0.0):
            text += f". Before anything spikes, {found.prepared.changed:.0%} of the classes have changed already"
            stripped = self.options.bias == "strip"
            hint = (
                "choose bias='keep'" if stripped else "end the network with an activation: outputs must be spikes here"
            )
            loc = Loc()
        else:
            cause = found.cause
            worst = found.worst("time" if cause == "time" else cause)[:3]
            names = ", ".join(f"`{layer.name}` {getattr(layer, cause):.1%}" for layer in worst if getattr(layer, cause))
            text += f". What costs most is {WORDS[cause]} (each layer alone: {names})"
            hint, loc = self._remedy(found, cause, engine, dense), after[worst[0].name].loc
        assert off is not None
        return Diagnostic(
            "SNN046", text, loc, Severity.WARNING, hint, round(100 * limit, 1), round(100 * off, 1), f"% {amount}"
        )

    def _remedy(self, found: SelfCheck, cause: str, engine: TorchEngine, dense: bool) -> str:
        """What to do, tried on calibration samples."""
        before = _excess(found.simulated, found.samples)
        best: tuple[float, str, Figures] | None = None
        queue, work = self._options(cause, before), self._few * _work(self.records[0].graph)
        for _ in range(TRIES):
            if not queue:
                break
            changes = queue.pop(0)
            if changes.get("timesteps", self.options.timesteps) * work > LARGE:
                continue
            figures = self._tried(replace(self.options, **changes), engine)
            if figures is None:
                continue
            excess = _excess(figures, self._few)
            if best is None or excess < best[0]:
                best = excess, ", ".join(f"{name}={value!r}" for name, value in changes.items()), figures
            if excess <= MARGIN:
                break
            if "timesteps" in changes:
                queue += _more_steps(changes["timesteps"], excess)
        if best is None or best[0] >= 0.9 * before:
            return _OTHERWISE[cause]
        tried = f"choose {best[1]}: then {_says(best[2], dense)} (tried on {self._few} calibration samples)"
        return tried if best[0] <= 1 else f"{tried}; or {_OTHERWISE[cause]}"

    @property
    def _few(self) -> int:
        """Samples that a hint is tried on."""
        return min(TRIED, sum(len(batch[0]) for batch in self.context.sample))

    def _options(self, cause: str, excess: float) -> list[dict[str, Any]]:
        """Options that may help, the likeliest first."""
        o = self.options
        if cause == "time":
            return _more_steps(o.timesteps, excess)
        if cause == "clipping":
            return [{"threshold": "max"}] if o.threshold != "max" else []
        if cause == "reset":
            return [{"reset": "subtract"}]
        widths = [{"weight_bits": bits} for bits in (8, 12, 16) if bits > (o.weight_bits or 8)]
        return [*([{"per": "channel"}] if o.per == "layer" else []), *widths]

    def _tried(self, options: Options, engine: TorchEngine) -> Figures | None:
        """The figures of the integers with other options; None if the target does not take them."""
        few = [tuple(x[:BATCH] for x in self.context.sample[0])]
        context = Context(calibration=few, sample=few, engine=engine, timesteps=options.timesteps)
        stages = {record.graph.stage.value: record.graph for record in self.records}
        try:
            self.target.accept(options)
            passes = self.target.passes(options)
            pairs = enumerate(zip(self.passes, passes, strict=False))
            at = next((i for i, (old, new) in pairs if old != new or isinstance(new, Calibrate)), len(passes))
            graph = self.records[at].graph
            for p in passes[at:]:
                if graph.stage is Stage.INT:
                    break
                graph = p(graph, context)
            if errors(context.diagnostics) or graph.stage is not Stage.INT:
                return None
            xs = spread(self.context.sample, self._few)
            done = engine.simulate(timed(graph), *xs, timesteps=options.timesteps)
        except (SnnccError, OverflowError):
            return None
        compared = _Compared(len(graph.outputs))
        if _own(graph):
            wanted = engine.simulate(timed(stages[Stage.SNN.value]), *xs, timesteps=options.timesteps).outputs
            compared.add(done.outputs, wanted, wanted)
            return compared.figures()
        traced, folded = (stages[stage.value] for stage in (Stage.ANN, Stage.FOLDED))
        given, first = (engine.run(g, *xs, record=set(g.outputs)) for g in (folded, traced))
        compared.add(done.outputs, [given[n] for n in folded.outputs], [first[n] for n in traced.outputs])
        return compared.figures()


BATCH = 64  # samples that a hint calibrates on

_OTHERWISE = {
    "clipping": "calibrate with data like what is to come, and with threshold='max'",
    "rounding": "train with weights of few bits (quantization-aware), or with channels of similar size",
    "time": "choose more timesteps, or train the network for few of them (quantized activations)",
    "reset": "choose reset='subtract', or train without large sums",
}


def _more_steps(timesteps: int, excess: float) -> list[dict[str, Any]]:
    """The power of two of time steps that may do. Errors fall like 1/T, classes that change faster: like 1/T^2."""
    steps = max(2 * timesteps, ceil(timesteps * sqrt(excess) / MARGIN))
    steps = 1 << (steps - 1).bit_length()
    return [{"timesteps": steps}] if steps <= STEPS else []


def _steps(timesteps: int) -> str:
    return "one time step" if timesteps == 1 else f"{timesteps} time steps"


def _says(figures: Figures, dense: bool) -> str:
    off = f"the output is off by {figures.error:.1%} of its size"
    if figures.changed is None:
        return off
    what = "of the positions" if dense else "of the samples"
    return f"{figures.changed:.1%} {what} change their class, {off}"


def _batches(xs: Sequence[Array], size: int) -> Iterator[list[Array]]:
    yield from ([x[at : at + size] for x in xs] for at in range(0, len(xs[0]), size))
