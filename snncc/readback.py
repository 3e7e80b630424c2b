"""What was written, read back and held against the last stage: what is emitted must be what is simulated.

Each form that a target writes (:meth:`snncc.targets.base.Target.read_back`) is read by code that shares nothing with
what wrote it, and then run, in two ways:

- *One step from chosen states.* Every potential starts where the neuron just fires, or just does not, given what
  arrives. One sample has all inputs at their largest and all neurons firing; in the others, both are drawn at random.
  So every weight, bias, threshold, reset and wire has its part in what is sent and in the potentials afterwards, which
  must be equal, at the price of a single time step.
- *From the start, over time*, on given inputs: spikes of every neuron in every step, and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from snncc.ir import CompileError, Diagnostic, Graph, Node, ops, parse
from snncc.ir.diagnostics import OURS
from snncc.ir.interp import encoded
from snncc.ir.loihi import SHIFT, UNITY, AtrLif, CubaLif, Delta, Sigma, SigmaDelta, bias_of
from snncc.ir.ranges import ranges
from snncc.ir.types import Array, Loc, Param, Range, Store, per_channel
from snncc.targets.base import Written, WrittenGraph

if TYPE_CHECKING:
    from snncc.compiled import CompiledModel

OVER_TIME = 2 * 10**8  # multiplications of all time steps of one sample, up to which a compile simulates them
SAMPLES, FEW = 8, 2  # of the step from chosen states; of a network of more than OVER_TIME multiplications a step

NEURONS = (ops.If, ops.Lif, CubaLif, AtrLif, Delta, SigmaDelta, Sigma)
Files = Mapping[str, str | bytes]
Step = tuple[dict[str, Array], tuple[Array, ...], dict[str, Array]]


@dataclass(frozen=True)
class Mismatch:
    """One way in which a written file is not the last stage.

    Attributes:
        file: its name in the folder.
        layer: the neuron or output of the last stage; "" of the file as a whole.
        message: what is different.
        loc: the layer's place in the user's source.
    """

    file: str
    layer: str
    message: str
    loc: Loc = Loc()

    def __str__(self) -> str:
        return f"{self.file}{f', `{self.layer}`' if self.layer else ''}: {self.message}"


def check_written(
    compiled: CompiledModel,
    xs: Sequence[Array] | None = None,
    timesteps: int | None = None,
    files: Files | None = None,
    most: float = math.inf,
) -> list[Mismatch]:
    """Read back everything that a compiled model writes, and hold it against its last stage.

    The text and tensors of the last stage must be the graph itself. Every form of the target is run for one step from
    chosen states and, if ``xs`` are given, over time: spikes, states and outputs are compared exactly.

    Args:
        compiled: the model.
        xs: inputs (N, *shape), or counts (T, N, *shape) of the encoding "spikes"; None: only the step from chosen
            states, and of a form with all steps unrolled those steps on a random input.
        timesteps: T of the run over time; by default the one compiled for, which an unrolled form takes in any case.
        files: the target's files and those of the last stage by name, as :func:`written` gives them (the default).
        most: multiplications that the run of one form over time may take; what takes more takes one step only.

    Returns:
        What differs, the first difference of each file; empty if nothing does.
    """
    files = written(compiled) if files is None else files
    graph, found = compiled.graph, _reparsed(compiled, files)
    try:
        forms = compiled.target.read_back(files)
    except Exception as error:  # noqa: BLE001 (bytes that say nothing fail in many ways)
        return [*found, Mismatch(", ".join(_forms(files)), "", f"cannot be read back: {_said(error)}")]
    steps, samples = timesteps or compiled.options.timesteps, len(xs[0]) if xs else 1
    for name, form in forms.items():
        both = _Comparison(graph, name, _GraphForm(form) if isinstance(form, WrittenGraph) else form)
        work = both.form.cost * steps * samples * _operations(graph)
        found += both.differences(xs if work <= most else None, timesteps, compiled.options.timesteps)
    return found


def written(compiled: CompiledModel) -> dict[str, str | bytes]:
    """The files of a folder that hold the last stage: its text, its tensors, and the target's own."""
    return {**compiled.last_stage(), **compiled.target.files(compiled.graph, compiled.options)}


def require(compiled: CompiledModel, files: Files) -> None:
    """What a compile does: the step from chosen states in any case, and one calibration sample over time where that
    takes a form no more than :data:`OVER_TIME` multiplications.

    Raises:
        CompileError: SNN092, with everything that differs.
    """
    ready_made = any(isinstance(n.op, ops.Encode) and n.op.method == "spikes" for n in compiled.graph.nodes)
    xs = [x[:1] for x in compiled.sample[0]] if compiled.sample and not ready_made else None
    found = check_written(compiled, xs, files={**compiled.last_stage(), **files}, most=OVER_TIME)
    if found:
        raise CompileError([Diagnostic("SNN092", f"{m}", m.loc, hint=OURS) for m in found])


def _operations(graph: Graph) -> int:
    return sum(n.op.multiplications(n.type) for n in graph.nodes if isinstance(n.op, ops.Weighted))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _forms(files: Files) -> list[str]:
    return [name for name in files if not name.endswith((".py", ".mlir", ".safetensors"))]


def _reparsed(compiled: CompiledModel, files: Files) -> list[Mismatch]:
    """The last stage's text with the tensors of its file must be the last stage."""
    from safetensors.numpy import load

    text, weights = (next(name for name in files if name.endswith(end)) for end in (".mlir", ".safetensors"))
    content, lines = files[weights], files[text]
    assert isinstance(content, bytes) and isinstance(lines, str)
    try:
        store = Store()
        for key, array in load(content).items():
            name, _, digest = key.partition("$")
            if store.put(name, array, copy=False).digest != digest:
                return [Mismatch(weights, "", f"the tensor {name!r} is not what its digest says")]
        graph = parse(lines, store)
        missing = [param.name for param in graph.params() if param not in store]
    except Exception as error:  # noqa: BLE001
        return [Mismatch(text, "", f"cannot be read back: {_said(error)}")]
    if missing:
        return [Mismatch(weights, "", f"it has no tensor {missing[0]!r}")]
    if graph == compiled.graph:
        return []
    wrong = (a.name for a, b in zip(compiled.graph.nodes, graph.nodes, strict=False) if a != b)
    return [Mismatch(text, next(wrong, ""), "the text says another operation or another type")]


class _GraphForm(Written):
    """A graph that takes steps; stateless operations by the engine's rules, states by those of the operations."""

    def __init__(self, form: WrittenGraph) -> None:
        from snncc.engine.rules import Params

        self.graph, self.names, self.every = form.graph, form.names, form.every
        self.params = Params(form.graph.store, "cpu")

    def start(self, n: int) -> dict[str, Array]:
        graph = self.graph
        return {
            self.names.get(node.name, node.name): self.own(node, node.op.start(n, node.type, graph.store))
            for node in graph.nodes
            if isinstance(node.op, ops.Stateful)
        }

    def own(self, node: Node, values: Array) -> Array:
        """The channels (axis 1) that are the last stage's."""
        every = self.every.get(node.name)
        return values if every is None else values[:, ::every]

    def step(self, xs: Sequence[Array], states: Mapping[str, Array]) -> Step:
        def state(name: str, node: Node, x: Array) -> Array:
            assert isinstance(node.op, ops.Stateful)
            whole = node.op.start(len(x), node.type, self.graph.store)
            if name in states:
                self.own(node, whole)[...] = states[name]
            return whole

        return self.walk(xs, state)

    def walk(self, xs: Sequence[Array], state: Any) -> Step:
        """A step, of states that ``state(name, node, what arrives)`` gives."""
        import torch

        from snncc.engine.rules import evaluate

        given, store = iter(xs), self.graph.store
        live, after, sent = dict[str, Array](), dict[str, Array](), dict[str, Array]()
        for node in self.graph.nodes:
            op = node.op
            if isinstance(op, ops.Input):
                continue
            if isinstance(op, ops.Encode):
                live[node.name] = np.asarray(next(given), np.float64)
                continue
            ys = [live[arg] for arg in node.args]
            if isinstance(op, ops.Stateful):
                name = self.names.get(node.name, node.name)
                kept, y = op.step(state(name, node, ys[0]), ys[0], node.type, store)
                after[name], sent[name] = self.own(node, kept), self.own(node, np.asarray(y))
                if np.count_nonzero(y) != np.count_nonzero(sent[name]):
                    raise ValueError(f"{node.name}: a channel that nobody counts is not silent")
            else:
                with torch.inference_mode():
                    tensors = [torch.from_numpy(np.ascontiguousarray(y)) for y in ys]
                    y = evaluate(op, tensors, node.type, self.params).numpy()
            live[node.name] = np.asarray(y)
        return sent, tuple(live[name] for name in self.graph.outputs), after


@dataclass
class _Comparison:
    """The last stage and one form."""

    graph: Graph
    file: str
    form: Written

    def __post_init__(self) -> None:
        self.neurons = [n for n in self.graph.nodes if isinstance(n.op, NEURONS)]
        self.last = _GraphForm(WrittenGraph(self.graph, {}))

    def differences(self, xs: Sequence[Array] | None, timesteps: int | None, compiled_for: int) -> list[Mismatch]:
        """The first difference, where there is one."""
        try:
            return self.worth() or self.levels() or self.step() or self.run(xs, timesteps, compiled_for)
        except Exception as error:  # noqa: BLE001 (wrong numbers fail in many ways)
            return [Mismatch(self.file, "", f"cannot be run: {_said(error)}")]

    # --- the comparisons ---

    def worth(self) -> list[Mismatch]:
        """The real value of each output's integers, where the file says it."""
        for name, worth in zip(self.graph.outputs, self.form.worth, strict=False):
            unit = np.asarray(per_channel(self.graph[name].type.unit, self.graph.store, 1), np.float64)
            if not np.allclose(worth, unit, rtol=2**-23, atol=0):  # of each channel, they are float32
                return [self.differ(self.graph[name], "the real value of what it gives")]
        return []

    def levels(self) -> list[Mismatch]:
        """Thresholds, where the file has them as numbers, and the potentials before the first step."""
        units, told = self.units(), self.form.thresholds()
        begin, mine = self.last.start(1), self.form.start(1)
        for node in self.neurons:
            if (key := self.key(told, node)) is not None and isinstance(node.op, ops.If | ops.Lif):
                ours = np.asarray(per_channel(node.op.threshold, self.graph.store, 1), np.float64) * units[node.name]
                if not (ours.reshape(-1) == told[key].reshape(-1)).all():
                    return [self.differ(node, "its threshold")]
            key = self.key(mine, node)
            if key is not None and not _same(begin[node.name] * units[node.name], mine[key]):
                return [self.differ(node, "the potential that it starts from")]
        return []

    def step(self) -> list[Mismatch]:
        """One step from chosen states."""
        if self.form.stateless:
            return []
        samples = SAMPLES if _operations(self.graph) <= OVER_TIME else FEW
        rng = np.random.default_rng(0)
        xs = [_input(self.graph, node, samples, rng) for node in self.graph.nodes if isinstance(node.op, ops.Encode)]
        chosen: dict[str, Array] = {}

        def state(name: str, node: Node, x: Array) -> Array:
            chosen[name] = _state(self.graph, node, x, rng)
            return chosen[name]

        sent, outputs, after = self.last.walk(xs, state)
        units, mine = self.units(), self.form.start(1)
        given = {}
        for node in self.neurons:
            key = self.key(mine, node)
            if key is not None:  # else the form does not name it; what it sends shows behind it
                given[key] = _like(chosen[node.name] * units[node.name], mine[key])
        spikes, theirs, states = self.form.step(xs, given)
        for node in self.neurons:
            sends, keeps, unit = self.key(spikes, node), self.key(states, node), units[node.name]
            wrong = ""
            if sends is not None and not _same(sent[node.name], spikes[sends]):
                wrong = "what it sends"
            elif keeps is not None and not _same(after[node.name] * unit, states[keeps]):
                wrong = "its potential after a step"
            if wrong:
                return [] if self.inexact(xs, chosen) else [self.differ(node, wrong)]
        for name, ours, other in zip(self.graph.outputs, outputs, theirs, strict=False):
            if not _same(ours, other):
                return [] if self.inexact(xs, chosen) else [self.differ(self.graph[name], "the output")]
        return self.unseen(spikes) or self.count(theirs)

    def run(self, xs: Sequence[Array] | None, timesteps: int | None, compiled_for: int) -> list[Mismatch]:
        """From the start over time; of an unrolled form its own number of steps, on a random input if none is given."""
        from snncc.engine import TorchEngine

        if xs is None and not self.form.stateless:
            return []
        steps = compiled_for if self.form.stateless or timesteps is None else timesteps
        if xs is None:
            xs = self.typical(steps)
        feeds = encoded(self.graph, xs, steps)
        spikes, theirs = self.form.run(list(feeds.values()), steps)
        names = [n.name for n in self.neurons]
        done = TorchEngine().simulate(self.graph, *xs, timesteps=steps, record={*names, *self.graph.outputs})
        series = {**done.values, **done.spikes}
        for node in self.neurons:
            key = self.key(spikes, node)
            if key is not None and not _same(series[node.name], spikes[key], timed=True):
                return [] if self.inexact_run(series) else [self.differ(node, "what it sends over time")]
        for name, other in zip(self.graph.outputs, theirs, strict=False):
            if not _same(series[name], other, timed=True):
                return [] if self.inexact_run(series) else [self.differ(self.graph[name], "the output over time")]
        return self.unseen(spikes) or self.count(theirs)

    # --- helpers ---

    def units(self) -> dict[str, float]:
        """What a unit of each neuron's potential is in the form's numbers."""
        named = self.form.units({n.name: _largest(n.op, self.graph) for n in self.neurons})
        return {n.name: named.get(n.name, 1.0) for n in self.neurons}

    def key(self, values: Mapping[str, Any], node: Node) -> str | None:
        """The name that a form has for a neuron: its own, or its place."""
        return next((key for key in (node.name, node.place) if key in values), None)

    def differ(self, node: Node, what: str) -> Mismatch:
        return Mismatch(self.file, node.name, f"{what} is not what the last stage says", node.loc)

    def unseen(self, sent: Mapping[str, Any]) -> list[Mismatch]:
        """Neurons of which a form that tells of all says nothing."""
        missing = [node for node in self.neurons if self.key(sent, node) is None]
        return [Mismatch(self.file, node.name, "it is missing", node.loc) for node in missing[:1] if self.form.whole]

    def count(self, outputs: Sequence[Array]) -> list[Mismatch]:
        if len(outputs) >= len(self.graph.outputs):
            return []
        return [Mismatch(self.file, "", f"it has {len(outputs)} outputs, the network {len(self.graph.outputs)}")]

    def typical(self, steps: int) -> list[Array]:
        """One sample of random real inputs within the range that was calibrated."""
        rng, xs = np.random.default_rng(0), []
        for node in self.graph.nodes:
            if isinstance(node.op, ops.Encode):
                drawn = _input(self.graph, node, FEW, rng)[1:]
                counts = node.op.method == "spikes"
                xs.append(np.broadcast_to(drawn, (steps, *drawn.shape)) if counts else drawn * node.op.unit)
        return xs

    def inexact(self, xs: Sequence[Array], states: Mapping[str, Array]) -> bool:
        """Whether sums may go beyond the integers that the form's arithmetic holds: then nothing is claimed of it."""
        if self.form.exact >= 2.0**53:
            return False
        most = max([float(np.abs(x).max(initial=0)) for x in (*xs, *states.values())])
        return most >= self.form.exact or self._sums(xs) >= self.form.exact

    def inexact_run(self, series: Mapping[str, Array]) -> bool:
        if self.form.exact >= 2.0**53:
            return False
        rng = np.random.default_rng(0)
        xs = [_input(self.graph, node, 1, rng) for node in self.graph.nodes if isinstance(node.op, ops.Encode)]
        return self._sums(xs) >= self.form.exact

    def _sums(self, xs: Sequence[Array]) -> float:
        """Upper bound on the sums of one step."""
        given = iter(xs)
        known = {
            n.name: Range.of(x.min(initial=0.0), x.max(initial=0.0), n.type)
            for n in self.graph.nodes
            if isinstance(n.op, ops.Encode)
            for x in [next(given)]
        }
        return max(value.size for value in ranges(self.graph, 1, known).values.values())


def _same(ours: Array, other: Array, timed: bool = False) -> bool:
    """Equal, whatever axes a form gives its neurons."""
    axes = 2 if timed else 1
    return ours.size == other.size and bool(
        (ours.reshape(*ours.shape[:axes], -1) == other.reshape(*ours.shape[:axes], -1)).all()
    )


def _like(state: Array, other: Array) -> Array:
    return state.reshape(len(state), *other.shape[1:])


def _largest(op: ops.Op, graph: Graph) -> float:
    """A neuron's threshold; of per channel ones the largest. 1 where it has none that a unit could be told from."""
    value = getattr(op, "threshold", 1.0) if isinstance(op, ops.If | ops.Lif) else 1.0
    return float(np.max(graph.value(value))) if isinstance(value, Param) else float(value)


def _input(graph: Graph, node: Node, n: int, rng: np.random.Generator) -> Array:
    """Whole numbers (N, *shape) that the host may send: the first sample the largest, the others any."""
    source, op = graph[node.args[0]].op, node.op
    assert isinstance(source, ops.Input) and isinstance(op, ops.Encode)
    high, low = (float(np.rint((end or 0.0) / op.unit)) for end in (source.high, source.low))
    if op.method != "constant":
        high, low = 1.0 if op.method == "bernoulli" else max(1.0, high), 0.0
    x = rng.integers(int(min(low, 0)), int(max(high, 1)), (n, *node.type.shape), endpoint=True).astype(np.float64)
    x[0] = max(high, 1.0)
    return x


def _state(graph: Graph, node: Node, x: Array, rng: np.random.Generator) -> Array:
    """A state from which a neuron to which ``x`` (N, *shape) comes fires (the first sample), or, drawn at random, just
    fires, fires with more than its threshold, just does not fire, or is held at its lowest potential."""
    op, type, store = node.op, node.type, graph.store
    draw = rng.random(type.size * len(x)).reshape(x.shape if x.shape[1:] == type.shape else (len(x), *type.shape))
    draw[0] /= 2
    fires = draw < 0.5
    assert isinstance(op, ops.Stateful)
    if isinstance(op, ops.If):
        theta = per_channel(op.threshold, store, len(type.shape))
        over = (draw * 8 % 1 < 0.5) * np.floor(rng.random(x.shape) * theta)  # what a reset to zero forgets
        wanted = np.where(fires, theta + over, theta - 1.0)
        if op.v_min is not None:
            wanted = np.where(draw > 0.9, op.v_min - 1.0, wanted)
        return np.asarray(wanted - x)
    if isinstance(op, ops.Lif):
        theta = per_channel(op.threshold, store, len(type.shape))
        return np.asarray((theta - ~fires * rng.random(x.shape) * theta - x).astype(np.float32), np.float64)
    if isinstance(op, CubaLif) and (op.decay_u, op.decay_v) == (UNITY, 0):
        wanted = (op.threshold * 2.0**SHIFT) + fires
        return np.stack([np.zeros_like(x), wanted - x * 2.0**SHIFT - bias_of(op.bias, store, type)], axis=1)
    if isinstance(op, AtrLif):
        r = np.rint(rng.random(x.shape)) * 2 * op.theta * 2**SHIFT
        v = r + op.theta * 2.0**SHIFT - ~fires - x * 2.0**SHIFT - bias_of(op.bias, store, type)
        return np.stack([v, r], axis=1)
    if isinstance(op, SigmaDelta):
        sigma = rng.integers(-64, 64, x.shape).astype(np.float64)
        a = sigma + x + bias_of(op.bias, store, type)
        a = np.maximum(a, 0.0) if op.activation == "relu" else a
        message = np.where(fires, 1.0, np.floor(draw * 4) - 3) * max(2.0**op.shift, op.threshold)
        return np.stack([sigma, a - message, np.zeros_like(x)], axis=1)
    if isinstance(op, Delta):
        change = np.where(fires, 1.0, np.floor(draw * 4) - 3) * max(1.0, op.threshold)
        return np.stack([x - change, np.zeros_like(x)], axis=1)
    if isinstance(op, Sigma):
        return rng.integers(-64, 64, x.shape).astype(np.float64)
    return op.start(len(x), type, store)
