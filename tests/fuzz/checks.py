"""What must hold of every compile: an error of ours that says why, or a result that is the network and stays it."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz.network import Case
from lynxinets import reset

import snncc
from snncc.compiled import CompiledModel
from snncc.engine import TorchEngine
from snncc.ir import Graph, InputError, Node, Severity, SnnccError, Stage, interp, ops
from snncc.ir.types import Array
from snncc.passes.base import Relation
from snncc.passes.relation import compare
from snncc.selfcheck import ERROR, ERROR_PLAIN

INTERNAL = ("SNN006", "SNN090", "SNN091", "SNN092")  # that say it was ours
WARNS = ("SNN046", "SNN047")  # that the numbers are far off
TAKEN = ("SNN021", "SNN033")  # that something was taken away: biases, outputs below 0
BITS = ("SNN040", "SNN041", "SNN042", "SNN065", "SNN068")  # that widths cost something
ROUNDED, MORE = 0.3, 4.0  # of the output's size, by 8-bit weights; than a plain rounding
SLACK = 2.0  # of other data over calibration data, on which the limits stand
SECONDS = 30  # of a case
LARGE = 1e6  # values beyond which float32 loses what the relations claim
ENGINE = TorchEngine()
N, FEW = 6, 2  # samples that are simulated; those for the interpreter
LEAST = 8  # calibration samples, from which on others are expected to be like them


@dataclass(frozen=True)
class Finding:
    """What is wrong. One with the same ``kind`` and ``where`` is the same, when a case is made smaller.

    Attributes:
        kind: an exception that is not ours ("foreign") or says that it is our fault ("internal"), "hang", or the check
            that does not hold ("model", "pass", "rounding", "engine", "batch", "nan", "steps", "written", "reload",
            "silent").
        where: what raised it, or the pass, or the code.
        text: the numbers.
    """

    kind: str
    where: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.where}): {self.text}"

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.where


@dataclass
class Outcome:
    """Attributes:
    refused: the codes of a compile that ended with ours.
    seconds: by phase.
    """

    refused: tuple[str, ...] = ()
    finding: Finding | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def compiled(self) -> bool:
        return not self.refused and self.finding is None


class Wrong(Exception):
    """A check that does not hold."""

    def __init__(self, kind: str, where: str, text: str = "") -> None:
        self.finding = Finding(kind, where, " ".join(text.split())[:400])
        super().__init__(str(self.finding))


class Hang(BaseException):
    """Time is up; nothing catches it by accident."""


def examine(case: Case, seconds: float = SECONDS) -> Outcome:
    """Compile a case and hold the result to all that it claims."""
    outcome = Outcome()
    try:
        with _limit(seconds), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            _examine(case, outcome)
    except Wrong as wrong:
        outcome.finding = wrong.finding
    except Hang:
        outcome.finding = Finding("hang", "", f"more than {seconds:g} s")
    except Exception as error:  # noqa: BLE001 (what we look for)
        outcome.finding = _foreign(error)
    return outcome


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        faulthandler.dump_traceback_later(
            2 * seconds, exit=True, file=nowhere
        )  # what no signal stops, ends its process
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _foreign(error: Exception) -> Finding:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/snncc/" in f.filename]
    at = f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "outside"
    kind = "refused after compile" if isinstance(error, SnnccError) else "foreign"
    return Finding(kind, f"{type(error).__name__} in {at}", " ".join(str(error).split())[:400])


def _examine(case: Case, outcome: Outcome) -> None:
    clock = _Clock(outcome.seconds)
    with clock("build"):
        model, xs = case.model(), case.batch(N, case.seed + 1)
    with clock("compile"):
        sample = case.batch(case.samples, case.seed)
        try:
            compiled = snncc.compile(model, _target(case.target), calibration=[tuple(sample)], **dict(case.options))
        except SnnccError as error:
            outcome.refused = tuple(dict.fromkeys(d.code for d in error.diagnostics if d.severity is Severity.ERROR))
            _ours(error)
            if not outcome.refused:
                raise Wrong("foreign", "an error without a diagnostic", str(error)) from None
    if outcome.refused:
        with clock("check"):
            snncc.check(model, _target(case.target), example_input=tuple(x[:FEW] for x in sample), **dict(case.options))
        return
    check = _Check(case, model, compiled, sample, xs)
    for name, held in check.all():
        with clock(name):
            held()


def _ours(error: SnnccError) -> None:
    """Of what says that it is our fault, the exception behind it tells which."""
    for diagnostic in error.diagnostics:
        if diagnostic.code in INTERNAL:
            cause = error.__cause__
            where = _foreign(cause).where if isinstance(cause, Exception) else diagnostic.code
            raise Wrong("internal", where, diagnostic.message)


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class _Check:
    def __init__(
        self, case: Case, model: torch.nn.Module, compiled: CompiledModel, sample: list[Array], xs: list[Array]
    ) -> None:
        self.case, self.model, self.compiled, self.sample, self.xs = case, model, compiled, sample, xs
        self.steps: int = compiled.options.timesteps
        encodes = [n.op for n in compiled.graph.nodes if isinstance(n.op, ops.Encode)]
        self.own = any(isinstance(n.op, ops.Lif) for n in compiled.stages["ann"].live().nodes)  # spiking neurons
        self.constant = all(op.method == "constant" for op in encodes)
        self.ready_made = any(op.method == "spikes" for op in encodes)
        self.random = any(op.method == "bernoulli" for op in encodes)
        # Fresh samples, if calibration has seen enough to expect them, and the encoding can express them.
        if case.samples < LEAST or any(op.method in ("rate", "bernoulli") for op in encodes):
            self.xs = [np.concatenate([x] * N)[:N] for x in sample]

    def all(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("model", self.network), ("passes", self.passes), ("rounding", self.rounding), ("engine", self.engine),
            ("batch", self.batches), ("steps", self.more_steps), ("written", self.written), ("reload", self.reloaded),
            ("silent", self.silent),
        ]  # fmt: skip

    # --- the checks ---

    def network(self) -> None:
        """The traced network is the model, on other samples than those that it was traced with."""
        self.truth = self.by_torch(self.xs)
        if self.truth is None or (self.own and not self.constant):
            return
        if self.own:  # a last bit may decide about a spike
            got, limit = self.outputs_of("snn"), 0.1
        else:
            got, limit = self.outputs_of("ann"), 3e-2 if self.case.precision == "half" else 1e-3
        for i, (mine, theirs) in enumerate(zip(got, self.truth, strict=True)):
            if mine.shape != theirs.shape:
                raise Wrong("model", "shape", f"output {i} has shape {mine.shape}, torch's {theirs.shape}")
            if (off := _off(mine, theirs)) > limit:
                raise Wrong("model", "value", f"output {i} is off by {off:.3g} of its size")

    def passes(self) -> None:
        """Every pass keeps its word."""
        records, passes = self.compiled.records, self.compiled.target.passes(self.compiled.options)
        xs = [x[:FEW] for x in self.sample]
        if not self.moderate:
            return
        for p, before, after in zip(passes, records[:-1], records[1:], strict=True):
            timed = after.graph.stage.spiking and (self.ready_made or self.own)
            if p.relation is Relation.LOSSY or not after.changed or timed:
                continue
            holds = compare(before.graph, after.graph, p.relation, *xs, timesteps=min(self.steps, 8))
            for i, found in enumerate(holds):
                if not found.holds:
                    raise Wrong("pass", p.name, f"output {i}: {p}: {found}")

    def rounding(self) -> None:
        """Integers of usual widths lose no more than a plain rounding of each weight, if nothing is said of bits."""
        stages, said = self.compiled.stages, {d.code for d in self.compiled.diagnostics}
        if self.own or not self.moderate or said & {*BITS} or self.compiled.options.weight_bits is not None:
            return
        if "snn" not in stages or "int" not in stages:
            return
        graphs = stages["snn"], stages["int"], _rounded(stages["snn"])
        inputs = self.sample, self.sample, _coded(stages["int"], self.sample)
        values = [ENGINE.run(g, *xs, dtype=torch.float64) for g, xs in zip(graphs, inputs, strict=True)]
        for i in range(len(graphs[0].outputs)):
            true, found, plain = (v[g.outputs[i]] for g, v in zip(graphs, values, strict=True))
            off, least = _off(found, true), _off(plain, true)
            if off > max(ROUNDED, MORE * least):
                raise Wrong("rounding", "int", f"output {i} is off by {off:.3g}, plainly rounded by {least:.3g}")

    def engine(self) -> None:
        """The engine gives the interpreter's spikes."""
        steps = min(self.steps, 8)
        xs = [x[:steps] if self.ready_made else x for x in self.inputs(FEW)]
        self.compare_engine(self.compiled.graph, xs, steps)

    def compare_engine(self, graph: Graph, xs: list[Array], steps: int) -> None:
        got = ENGINE.simulate(graph, *xs, timesteps=steps, record="all")
        want = interp.simulate(graph, *xs, timesteps=steps)
        for name, value in want.values.items():
            spikes = name in got.spikes
            mine, theirs = (got.spikes[name], want.spikes(name)) if spikes else (got.values[name], value)
            if not (np.array_equal(mine, theirs) if graph[name].type.integer else _off(mine, theirs) < 1e-9):
                raise Wrong("engine", graph[name].op.mnemonic, f"{name}, {steps} time steps")

    def batches(self) -> None:
        """A sample gives the same alone and among others."""
        self.whole = self.simulate(self.inputs(N), self.steps)
        for output in self.whole:
            if not np.isfinite(output).all() and self.truth is not None:
                raise Wrong("nan", "simulate", "torch's output is finite")
        if self.random:
            return
        for at in (slice(0, 1), slice(1, 4)):
            part = self.simulate(self.inputs(N, at), self.steps)
            for mine, whole in zip(part, self.whole, strict=True):
                if not np.array_equal(mine, whole[at], equal_nan=True):
                    raise Wrong("batch", "simulate", f"samples {at.start} to {at.stop} of {N} alone give other outputs")

    def more_steps(self) -> None:
        """More and fewer steps than compiled for: the engine stays the interpreter, and the error does not grow."""
        if self.ready_made:
            return
        graph = self.compiled.graph
        for steps in {1, 2 * self.steps} if self.steps <= 8 else {3}:
            with suppress(InputError):  # so it says that it cannot
                self.compare_engine(graph, self.inputs(FEW), steps)
        try:
            long = self.simulate(self.inputs(N), 4 * self.steps)
        except InputError:
            return
        if self.truth is None or self.own or self.random or any(map(_leaky, graph.nodes)):
            return
        folded = self.compiled.stages["folded"]
        wanted, seen = self.expected(folded, self.xs), self.expected(folded, self.sample)
        for a, b, truth, usual in zip(self.whole, long, wanted, seen, strict=True):
            before, after = _off(a, truth, usual), _off(b, truth, usual)
            if after > max(2 * before, SLACK * ERROR):
                raise Wrong(
                    "steps",
                    "more",
                    f"the error is {before:.3g} at T = {self.steps}, and {after:.3g} at four times as many",
                )

    def written(self) -> None:
        """What is written is what is simulated."""
        found = self.compiled.verify(tuple(self.inputs(FEW)))
        if found:
            raise Wrong("written", found[0].file.split("/")[-1], str(found[0]))

    def reloaded(self) -> None:
        """The folder gives the same network, and the report and the page can be made."""
        with tempfile.TemporaryDirectory() as folder:
            loaded = snncc.load(self.compiled.save(Path(folder) / "net", explorer=self.case.seed % 8 == 0))
        repr(self.compiled), str(self.compiled.report)
        again = self.simulate(self.inputs(N), self.steps, loaded)
        for mine, other in zip(again, self.whole, strict=True):
            if not np.array_equal(mine, other, equal_nan=True):
                raise Wrong("reload", "simulate", "a loaded model gives other outputs")
        if loaded.graph != self.compiled.graph:
            raise Wrong("reload", "graph", "the last stage is another")

    def silent(self) -> None:
        """The self-check's figure is what simulation gives; where it does not warn, other data are near the network,
        too. What is converted may differ from what was traced, if something says so."""
        if self.ready_made:
            self.counted()
        if self.truth is None or self.ready_made:
            return
        said = {d.code for d in self.compiled.diagnostics}
        before = self.compiled.stages["snn" if self.own else "folded"]
        claimed = self.compiled.selfcheck
        if claimed is not None:
            given = [x[: claimed.samples] for x in self.sample]
            found = zip(self.simulate(given, self.steps), self.expected(before, given), strict=True)
            off = max(_off(mine, theirs) for mine, theirs in found)
            if abs(off - claimed.simulated.error) > 0.01 * off + 1e-3:
                raise Wrong("silent", "self-check", f"it says {claimed.simulated.error:.4g} where there is {off:.4g}")
        if said & {*WARNS}:
            return
        wanted, seen = self.expected(before, self.xs), self.expected(before, self.sample)
        steps = any(isinstance(node.op, ops.Floor | ops.QuantRelu) for node in before.nodes)
        beyond = any(np.abs(new).max() > 1.2 * np.abs(old).max() for new, old in zip(wanted, seen, strict=True))
        if steps or beyond:  # calibration data said nothing about the like
            return
        for i, (mine, theirs, usual) in enumerate(zip(self.whole, wanted, seen, strict=True)):
            classes = mine.ndim in (2, 4) and mine.shape[1] > 1
            limit = SLACK * (ERROR if classes else ERROR_PLAIN)
            if (off := _off(mine, theirs, usual)) > limit:
                raise Wrong("silent", "simulated", f"output {i} is off by {off:.3g} of its size; said: {sorted(said)}")
        if self.own or said & {*TAKEN}:
            return
        for i, (folded, traced) in enumerate(zip(wanted, self.outputs_of("ann"), strict=True)):
            if (off := _off(folded, traced)) > 0.1:
                raise Wrong("silent", "prepared", f"output {i} before conversion is off by {off:.3g} of the network's")

    def counted(self) -> None:
        """Of ready-made spikes, also of several in a step, integers give what floats give."""
        said, xs = {d.code for d in self.compiled.diagnostics}, self.inputs(N)
        few = self.steps < 8  # a last bit may decide about a spike
        if few or said & {*BITS, *WARNS} or self.compiled.options.weight_bits is not None or not self.moderate:
            return
        for mine, theirs in zip(self.whole, self.expected(self.compiled.stages["snn"], xs), strict=True):
            if (off := _off(mine, theirs)) > ROUNDED:
                raise Wrong("silent", "counts", f"integers are off by {off:.3g} of what floats give")

    # --- helpers ---

    @property
    def moderate(self) -> bool:
        """Whether the network's numbers are of a size at which float32 holds what is claimed."""
        if self.own:
            return self.truth is not None
        graph = self.compiled.stages["ann"]
        values = ENGINE.run(graph, *self.sample, record={n.name for n in graph.nodes})
        return all(np.isfinite(v).all() and np.abs(v).max(initial=0) < LARGE for v in values.values())

    def by_torch(self, xs: list[Array]) -> list[Array] | None:
        """The model's outputs; None if not finite, or if they need as many steps as there are."""
        precision = next((p.dtype for p in self.model.parameters()), torch.float32)
        tensors = [torch.from_numpy(x).to(precision) for x in xs]
        with torch.no_grad():
            reset(self.model)
            runs = [_tuple(self.model(*(t.clone() for t in tensors))) for _ in range(self.steps if self.own else 1)]
        outputs = [torch.stack(values).double().mean(0).numpy() for values in zip(*runs, strict=True)]
        return outputs if all(np.isfinite(out).all() for out in outputs) else None

    def outputs_of(self, stage: str) -> list[Array]:
        return self.expected(self.compiled.stages[stage], self.xs)

    def expected(self, graph: Graph, xs: list[Array]) -> list[Array]:
        """What a stage that is no hardware gives: as a network, or its own neurons' spikes over time."""
        if graph.stage is Stage.SNN:
            return list(ENGINE.simulate(graph, *xs, timesteps=self.steps).outputs)
        values = ENGINE.run(graph, *xs, record=set(graph.outputs))
        return [values[name] for name in graph.outputs]

    def inputs(self, n: int, at: slice = slice(None)) -> list[Array]:
        """Fresh samples; of ready-made spikes, some counts."""
        if not self.ready_made:
            return [x[:n][at] for x in self.xs]
        rng = np.random.default_rng(self.case.seed)
        counts = (rng.poisson(0.3, (self.steps, N, *shape)) for shape in self.case.inputs)
        return [x[:, :n][:, at] for x in counts]

    def simulate(self, xs: list[Array], steps: int, model: CompiledModel | None = None) -> tuple[Array, ...]:
        return (model or self.compiled).simulate(tuple(xs), timesteps=steps).outputs


_target = cache(snncc.targets.find)


def _tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _off(mine: Array, theirs: Array, usual: Array | None = None) -> float:
    """The distance (2-norm), relative to the size, at least to what is usual for so many values."""
    mine, theirs = mine.astype(np.float64), theirs.astype(np.float64)
    size, off = float(np.linalg.norm(theirs)), float(np.linalg.norm(mine - theirs))
    if usual is not None:
        size = max(size, float(np.linalg.norm(usual)) * (theirs.size / usual.size) ** 0.5)
    return off if off == 0 else off / size if size else float("inf") if off > 1e-6 else 0.0


def _rounded(graph: Graph) -> Graph:
    """With each weight rounded to 8 bits, of the largest that leads to its channel."""

    def plain(node: Node) -> Node:
        if not isinstance(node.op, ops.Conv2d | ops.Linear | ops.Affine):
            return node
        weight = graph.value(node.op.weight).astype(np.float64)
        step = np.abs(weight).reshape(len(weight), -1).max(axis=1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
        rounded = np.where(step > 0, np.rint(weight / np.where(step > 0, step, 1)) * step, 0.0)
        return replace(node, op=replace(node.op, weight=graph.store.put("rounded", rounded)))

    return replace(graph, nodes=tuple(map(plain, graph.nodes)))


def _coded(graph: Graph, xs: Sequence[Array]) -> list[Array]:
    """Inputs as a constant encoding rounds them."""
    units = {n.args[0]: n.op.unit for n in graph.nodes if isinstance(n.op, ops.Encode) and n.op.method == "constant"}
    named = zip((n.name for n in graph.inputs), xs, strict=True)
    return [np.rint(x / units[name]) * units[name] if name in units else x for name, x in named]


def _leaky(node: Any) -> bool:
    return isinstance(node.op, ops.Lif)
