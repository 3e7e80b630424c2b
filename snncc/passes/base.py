"""What a pass is, and the pipeline that runs a list of them with verification, timing and a record of every stage."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar, Protocol

from snncc.ir import CompileError, Diagnostic, Graph, Severity, SnnccError, Stage, VerifyError, verify
from snncc.ir.diagnostics import errors
from snncc.ir.types import Array


class Relation(str, Enum):
    """How a pass's result relates to its input. :mod:`snncc.passes.relation` holds every pass to its word."""

    EXACT = "exact"  # the same function, up to rounding of the parameters to float32
    BOUNDED = "bounded"  # differs as a network by no more than the rounding of its parameters explains
    RATE = "rate"  # the mean over T steps differs from the network by what neurons still hold, which is O(1/T)
    LOSSY = "lossy"  # no bound is claimed; the compile report measures the loss


class Engine(Protocol):
    """The part of the fast engine that passes need; given to them, since passes import no torch."""

    def values(self, graph: Graph, xs: Sequence[Array], visit: Callable[[str, Array], None]) -> None:
        """Run a graph as a network on inputs (N, ...) and call ``visit(name, value)`` for every value, in order. The
        values are dropped as soon as nothing needs them any more."""

    def adapt(
        self, graph: Graph, xs: Sequence[Array], timesteps: int, worth: Callable[[str, Array], Array]
    ) -> list[Array]:
        """Simulate a float spiking graph on inputs (N, ...), neuron by neuron on all samples. ``worth(name, rate)`` is
        told every neuron's mean spikes per step (N, *shape), in order, and gives the real value of one of its spikes
        from there on, (C,) or (1,). The mean of every output over time, (N, *shape)."""


class Progress(Protocol):
    """Reports long work; the command line shows a bar."""

    def __call__(self, items: Iterable[Any], what: str) -> Iterable[Any]: ...


def no_progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Report nothing."""
    return items


@dataclass
class Context:
    """What a run of the pipeline gives its passes.

    Attributes:
        diagnostics: where passes report.
        calibration: batches of the user's data, each a tuple of input arrays (N, ...). May be a stream that can be
            read only once: that is calibrate's.
        sample: its first batches, for passes that measure something.
        engine: runs graphs fast.
        timesteps: T that the result is meant for.
    """

    diagnostics: list[Diagnostic] = field(default_factory=list)
    calibration: Iterable[tuple[Array, ...]] | None = None
    sample: Sequence[tuple[Array, ...]] = ()
    engine: Engine | None = None
    timesteps: int = 32
    progress: Progress = no_progress

    def report(self, diagnostic: Diagnostic) -> None:
        if diagnostic not in self.diagnostics:
            self.diagnostics.append(diagnostic)


@dataclass(frozen=True)
class Pass:
    """Base of all passes: a frozen dataclass whose fields are its options.

    A pass is pure: it takes a graph and returns one, and reports through the context. It states the stages that it
    takes, the stage that it gives (None: the same) and how its result relates to its input.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[Stage, ...]] = ()
    ensures: ClassVar[Stage | None] = None
    relation: ClassVar[Relation] = Relation.EXACT
    measures: ClassVar[bool] = False  # runs the network on all calibration data

    def run(self, graph: Graph, context: Context) -> Graph:
        """The graph after this pass."""
        raise NotImplementedError(f"{type(self).__name__}.run")

    def __call__(self, graph: Graph, context: Context | None = None) -> Graph:
        """Run the pass between two verifications.

        Raises:
            VerifyError: the graph breaks its stage's rules, before or after.
            ValueError: the graph is not at a stage that this pass takes.
        """
        if graph.stage not in self.requires:
            stages = " or ".join(s.value for s in self.requires)
            raise ValueError(f"pass {self.name} takes stage {stages}, not {graph.stage.value}")
        verify(graph, f"before {self.name}")
        result = self.run(graph, context if context is not None else Context())
        if self.ensures is not None:
            result = replace(result, stage=self.ensures)
        if result != graph:
            old = {id(node) for node in graph.nodes}
            nodes = (n if id(n) in old else replace(n, loc=n.loc.through(self.name)) for n in result.nodes)
            result = replace(result, nodes=tuple(nodes))
        verify(result, f"after {self.name}")
        return result

    def __str__(self) -> str:
        """``name{option=value ...}``, options that are not the default."""
        given = [f"{f.name}={getattr(self, f.name)!s}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name}{{{' '.join(given)}}}" if given else self.name

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cls.name):
            raise TypeError(f"pass name {cls.name!r} is not kebab-case")


@dataclass(frozen=True)
class StageRecord:
    """The graph after one pass, and what the pass took and said.

    Attributes:
        seconds: how long it took.
        memory: bytes by which it raised the most that the process ever held; 0 where the system does not say.
        failed: the pass could not finish; the graph is the one that it was given.
    """

    label: str
    graph: Graph
    seconds: float = 0.0
    changed: bool = True
    diagnostics: tuple[Diagnostic, ...] = ()
    memory: int = 0
    failed: bool = False


def run_pipeline(
    passes: Sequence[Pass],
    graph: Graph,
    context: Context,
    after: Callable[[StageRecord], None] = lambda record: None,
    traced: StageRecord | None = None,
) -> list[StageRecord]:
    """Run ``passes`` in order; the record of every stage, the traced graph first.

    ``after`` is called with each record as it comes (print, dump, time).
    ``traced``: the record of ``graph``, where there is more to say of it.

    A pass that reports an error goes on as far as it can, so that one run finds everything that stands in the way. Only
    what runs the calibration data is not begun behind an error.

    Raises:
        CompileError: some pass reported an error; with all diagnostics.
    """
    records = [traced or StageRecord("trace", graph)]
    after(records[0])
    for p in passes:
        known = list(context.diagnostics)
        if p.measures and errors(known):
            break  # what check says in seconds need not wait for all the data
        begin, held = time.perf_counter(), most_held()
        try:
            result = p(graph, context)
        except SnnccError as error:
            if not errors(context.diagnostics):
                raise
            # What could not be lowered was said; there is no going on from here.
            if not isinstance(error, VerifyError):
                _report_elsewhere(context, error.diagnostics)
            break
        finally:
            _drop_repeated(context, known)
        seconds = time.perf_counter() - begin
        new = tuple(context.diagnostics[len(known) :])
        records.append(StageRecord(str(p), result, seconds, result != graph, new, most_held() - held))
        after(records[-1])
        graph = result
    if errors(context.diagnostics):
        raise CompileError(context.diagnostics)
    return records


def most_held() -> int:
    """The most memory that the process has held so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # getrusage(2): kilobytes on Linux, bytes on macOS


def _report_elsewhere(context: Context, found: Iterable[Diagnostic]) -> None:
    """Report what is not said of a place that was refused already: that would only be its consequence."""
    refused = {d.loc.sources for d in errors(context.diagnostics)}
    for diagnostic in found:
        if not diagnostic.loc.sources or diagnostic.loc.sources not in refused:
            context.report(diagnostic)


def _drop_repeated(context: Context, known: list[Diagnostic]) -> None:
    """Drop what an earlier pass said of the same place; of errors, also in other words with the same code. Behind an
    error, only errors count: what else is said is of a network that will be another when they are mended."""
    said = {(d.code, d.loc.sources, d.message) for d in known}
    failed = errors(known)
    refused = {(d.code, d.loc.sources) for d in failed if d.loc.sources}
    context.diagnostics[len(known) :] = [
        d
        for d in context.diagnostics[len(known) :]
        if (d.code, d.loc.sources, d.message) not in said
        and not (d.severity is Severity.ERROR and (d.code, d.loc.sources) in refused)
        and (d.severity is Severity.ERROR or not failed)
    ]
