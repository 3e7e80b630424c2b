"""compile and check: from a PyTorch model to a compiled one, or to everything that stands in the way."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from operator import length_hint
from typing import TYPE_CHECKING, Any

import numpy as np

from snncc.compilation import Compilation
from snncc.compiled import CompiledModel, as_arrays
from snncc.ir import CompileError, Diagnostic, Graph, SnnccError, Stage
from snncc.ir.diagnostics import errors, input_error, only_ours, render_all
from snncc.ir.ops import Lif
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Progress, StageRecord, most_held, no_progress, run_pipeline
from snncc.passes.calibrate import Calibrate
from snncc.readback import require
from snncc.selfcheck import Compile, SelfCheck
from snncc.targets import find
from snncc.targets.base import Options, Target

if TYPE_CHECKING:
    import torch

BATCH, BATCH_BYTES = 64, 8 << 20  # an array is fed in batches of so many samples or bytes, whichever is less
SAMPLE = 256  # samples that passes may measure on
EXAMPLE = 2  # samples that the traced graph is held against the model on


def compile(
    model: torch.nn.Module,
    target: str | Target = "reference",
    *,
    example_input: Any = None,
    calibration: Any = None,
    progress: Progress | bool | None = None,
    after: Callable[[StageRecord], None] = lambda record: None,
    **options: Any,
) -> CompiledModel:
    """Compile a trained network for a target. The model itself is left as it was.

    Args:
        model: the network, in any mode; it is compiled as it infers.
        target: a name out of :func:`snncc.targets`, or a target object.
        example_input: one batch (N, *shape), or a tuple of batches for several inputs; only its shape matters, and the
            first two samples, on which the traced graph is checked against the model. By default the first
            calibration batch.
        calibration: typical inputs: an array or tensor (N, *shape), or any iterable of batches, each an array, a
            tensor, or a tuple that starts with the inputs (labels behind them are ignored). Read once, as a stream.
        progress: True or False for progress bars; by default if a person is watching.
        after: called with every stage as it comes.
        options: see :class:`snncc.targets.base.Options`: timesteps, bias, encoding, reset, threshold, ...

    Raises:
        CompileError: the model cannot be compiled for this target; lists all reasons that were found.
        InputError: an argument that cannot be used.
    """
    chosen, asked = _target(target), Options.of(options)
    chosen.accept(asked)
    passes = chosen.passes(asked)
    context = Context(timesteps=asked.timesteps, progress=shown(progress))
    records = list[StageRecord]()

    def keep(record: StageRecord) -> None:
        records.append(record)
        after(record)

    def where() -> str:
        return f"pass {passes[len(records) - 1]}" if 0 < len(records) <= len(passes) else "compile"

    try:
        with only_ours(where, context.diagnostics):
            begin, held = time.perf_counter(), most_held()
            graph = _trace(model, example_input, calibration, context)
            seconds, memory = time.perf_counter() - begin, most_held() - held
            traced = StageRecord("trace", graph, seconds, diagnostics=tuple(context.diagnostics), memory=memory)
            _own_neurons(graph, chosen, asked, context)
            _run(chosen, asked, passes, graph, context, keep, traced)
            losses = _selfcheck(chosen, asked, passes, records, context)
            result = CompiledModel(chosen, asked, tuple(records), tuple(context.diagnostics), context.sample, losses)
            # What cannot be written, or is not what was simulated, is said now, not when it is saved.
            require(result, chosen.files(result.graph, asked))
    except CompileError as error:
        error.compilation = _until(error, chosen, asked, passes, records, context)
        raise
    return result


def _run(
    target: Target,
    options: Options,
    passes: Sequence[Pass],
    graph: Graph,
    context: Context,
    after: Callable[[StageRecord], None],
    traced: StageRecord | None = None,
) -> None:
    """Run the passes; where the network does not fit, with what the target proposes.

    Raises:
        CompileError: as :func:`run_pipeline`.
    """
    try:
        run_pipeline(passes, graph, context, after, traced)
    except CompileError as error:
        proposal = target.proposal(graph, options, errors(error.diagnostics))
        if proposal is None:
            raise
        context.report(proposal)
        raise CompileError([*error.diagnostics, proposal]) from None


def _selfcheck(
    target: Target, options: Options, passes: Sequence[Pass], records: Sequence[StageRecord], context: Context
) -> SelfCheck | None:
    """What the finished compile measures of itself; None: it was asked not to, or there is no data."""
    if not options.selfcheck or not context.sample:
        return None
    from snncc.engine import TorchEngine

    return Compile(target, options, passes, records, context).check(TorchEngine())


def _until(
    error: CompileError,
    target: Target,
    options: Options,
    passes: Sequence[Pass],
    records: Sequence[StageRecord],
    context: Context,
) -> Compilation:
    """A compile that ended with ``error``; the pass that did not finish stands last, with what it said."""
    said = [*context.diagnostics, *(d for d in error.diagnostics if d not in context.diagnostics)]
    if records and len(records) <= len(passes):
        before = {d for record in records for d in record.diagnostics}
        new = tuple(d for d in said if d not in before)
        label = str(passes[len(records) - 1])
        records = [*records, StageRecord(label, records[-1].graph, 0.0, False, new, failed=True)]
    return Compilation(target, options, tuple(records), tuple(said), context.sample)


class Checked(list[Diagnostic]):
    """What :func:`check` found: the diagnostics, and of hardware with cores in ``layers`` what each layer needs against
    what there is, as plain data (``target.fits``)."""

    layers: list[dict[str, Any]]

    def __init__(self, found: Iterable[Diagnostic], layers: list[dict[str, Any]]) -> None:
        super().__init__(found)
        self.layers = layers

    def __str__(self) -> str:
        """What the command line prints."""
        return "\n\n".join(render_all(self)) or "nothing stands in the way"


def check(
    model: torch.nn.Module,
    target: str | Target = "reference",
    *,
    example_input: Any = None,
    calibration: Any = None,
    **options: Any,
) -> Checked:
    """Everything that :func:`compile` would say, without raising: empty if nothing stands in the way.

    Without calibration data, the passes that need none are run: tracing, folding, and the target's limits.

    Returns:
        A list of diagnostics, with ``.layers``: of every layer, on hardware with cores, what it needs of each, whether
        it fits, and what to change if not.
    """
    context, records = Context(), list[StageRecord]()
    found: list[Diagnostic]
    try:
        with only_ours("check", context.diagnostics):
            chosen, asked = _target(target), Options.of(options)
            chosen.accept(asked)
            context.timesteps = asked.timesteps
            passes: list[Pass] = chosen.passes(asked)
            if calibration is None:
                at = next((i for i, p in enumerate(passes) if isinstance(p, Calibrate)), len(passes))
                passes = passes[:at]
            graph = _trace(model, example_input, calibration, context)
            _own_neurons(graph, chosen, asked, context)
            _run(chosen, asked, passes, graph, context, records.append)
            if calibration is not None:
                _selfcheck(chosen, asked, passes, records, context)
                chosen.files(records[-1].graph, asked)
        found = context.diagnostics
    except SnnccError as error:
        said = context.diagnostics
        found = [*said, *(d for d in error.diagnostics if d not in said)]
    folded = [record.graph for record in records if record.graph.stage is Stage.FOLDED]
    return Checked(found, chosen.fits(folded[-1], asked) if folded else [])


def _target(target: str | Target) -> Target:
    return find(target) if isinstance(target, str) else target


def _own_neurons(graph: Graph, target: Target, options: Options, context: Context) -> None:
    """A network that has spiking neurons itself is not converted.

    Raises:
        CompileError: the target does not take such; what its passes would say means nothing.
        InputError: an option is about the conversion.
    """
    own = [node for node in graph.nodes if isinstance(node.op, Lif)]
    if own and not target.spiking:
        for node in own:
            text = f"`{node.name}` is a spiking neuron of the network itself, which {target.name} does not take"
            hint = "compile for target='lynxi', or convert a network of ReLUs"
            context.report(Diagnostic("SNN035", text, node.loc, hint=hint))
        raise CompileError(context.diagnostics)
    plain = Options()
    for name in ("reset", "threshold", "percentile", "per", "v0") if own else ():
        if getattr(options, name) != getattr(plain, name):
            text = f"{name}={getattr(options, name)!r} means nothing to a network that has spiking neurons itself"
            raise input_error("SNN082", text, "leave it out: its neurons have that themselves")


def _trace(model: torch.nn.Module, example_input: Any, calibration: Any, context: Context) -> Graph:
    """The traced graph; fills the context's engine and calibration data.

    Raises:
        CompileError: with all diagnostics of the front end.
    """
    import torch

    from snncc.engine import TorchEngine
    from snncc.frontend import trace

    if not isinstance(model, torch.nn.Module):
        raise input_error("SNN089", f"the model is a {type(model).__name__}, not a torch.nn.Module")
    engine = TorchEngine()
    context.engine = engine
    batches, first = _peek(calibration)
    if example_input is None:
        if first is None:
            raise input_error(
                "SNN100", "neither example_input nor calibration data was given", "pass one batch of input"
            )
        example_input = first[: _arity(model)]  # a batch may have labels behind the inputs
    example = _example(model, example_input)

    def evaluate(graph: Graph, xs: list[Array]) -> list[Array]:
        values = engine.run(graph, *xs)
        return [values[name] for name in graph.outputs]

    graph, found = trace(model, example, name=type(model).__name__, evaluate=evaluate)
    context.diagnostics.extend(found)
    if graph is None or errors(found):
        raise CompileError(found)
    if first is not None:
        n = len(graph.inputs)
        sample = _inputs(_batch(calibration[:SAMPLE]) if _is_array(calibration) else first, n, graph)
        step = _batch_length(sample[0])
        starts = range(0, min(SAMPLE, len(sample[0])), step)
        context.sample = tuple(tuple(x[at : min(at + step, SAMPLE)] for x in sample) for at in starts)
        context.calibration = _Stream((_inputs(batch, n, graph) for batch in batches), _count(calibration))
    return graph


def _arity(model: torch.nn.Module) -> int:
    """How many inputs the model's forward must have."""
    taken = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in taken and p.default is p.empty for p in parameters))


def _example(model: torch.nn.Module, example_input: Any) -> tuple[torch.Tensor, ...]:
    """The example as tensors; floating-point numbers in the model's own precision, as numpy's are mostly doubles."""
    import torch

    tensors = (*model.parameters(), *model.buffers())
    precision = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    example = []
    for array in _batch(example_input, "SNN005", "the example input"):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = "the example input, by default the first calibration batch, holds values that are not finite"
            raise input_error("SNN074", message)
        if array.dtype.kind == "f":
            example.append(torch.from_numpy(array[:EXAMPLE].astype(np.float64)).to(precision))
        else:
            example.append(torch.from_numpy(array[:EXAMPLE].astype(array.dtype.newbyteorder("="))))
    return tuple(example)


def _peek(calibration: Any) -> tuple[Iterator[tuple[Array, ...]], tuple[Array, ...] | None]:
    """The batches as tuples of arrays, and the first of them (None: there is none)."""
    if calibration is None:
        return iter(()), None
    batches = map(_batch, _split(calibration))
    first = next(batches, None)
    if first is None:
        raise input_error("SNN011", "the calibration data is empty")
    return chain((first,), batches), first


class _Stream:
    """Batches that can be read once, and perhaps how many they are, for a progress bar."""

    def __init__(self, batches: Iterator[tuple[Array, ...]], count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        return self.batches

    def __length_hint__(self) -> int:
        return self.count


def _count(calibration: Any) -> int:
    """How many batches, 0 if that is not known."""
    return -(-len(calibration) // _batch_length(calibration)) if _is_array(calibration) else length_hint(calibration)


def _batch_length(data: Any) -> int:
    """How many samples of an array (N, *shape) make a batch: few, where they are large."""
    return max(1, min(BATCH, BATCH_BYTES // max(1, 4 * int(prod(data.shape[1:])))))


def _split(calibration: Any) -> Iterable[Any]:
    """An array or tensor as batches; an iterable as it is."""
    if _is_array(calibration):
        step = _batch_length(calibration)
        return (calibration[i : i + step] for i in range(0, len(calibration), step))
    if isinstance(calibration, str | bytes | Mapping) or not isinstance(calibration, Iterable):
        raise input_error(
            "SNN011",
            f"calibration data of type {type(calibration).__name__}",
            "pass an array (N, *shape), or an iterable of batches",
        )
    return calibration


def _is_array(data: Any) -> bool:
    return len(getattr(data, "shape", ())) > 0 and hasattr(data, "__getitem__")


def _batch(batch: Any, code: str = "SNN011", what: str = "a calibration batch") -> tuple[Array, ...]:
    """A batch as arrays of numbers; what cannot be such is an InputError."""
    if isinstance(batch, Mapping):
        raise input_error(code, f"{what} is a {type(batch).__name__}", "make it a tuple that starts with the inputs")
    try:
        arrays = as_arrays(batch)
    except (TypeError, ValueError) as error:  # ragged lists, tensors without values
        raise input_error(code, f"{what} cannot be made an array: {error}") from None
    if arrays and arrays[0].dtype.kind not in "biuf":
        raise input_error(code, f"{what} holds {arrays[0].dtype}, not numbers", "pass arrays or tensors (N, *shape)")
    return arrays


def _inputs(batch: tuple[Array, ...], n: int, graph: Graph) -> tuple[Array, ...]:
    """The inputs of a batch, without labels behind them, shapes checked."""
    if len(batch) < n:
        raise input_error("SNN011", f"the network has {n} inputs, a calibration batch {len(batch)}")
    for node, x in zip(graph.inputs, batch[:n], strict=True):
        if x.ndim < 1 or x.shape[1:] != node.type.shape:
            want = ", ".join(map(str, ("N", *node.type.shape)))
            raise input_error("SNN005", f"calibration data for `{node.name}` must have shape ({want}), got {x.shape}")
    return batch[:n]


def shown(progress: Progress | bool | None) -> Progress:
    """What reports long work: a bar if asked for (True) or, by default, if a person is watching."""
    if progress is None:
        progress = sys.stderr.isatty()
    if isinstance(progress, bool):
        return rich_progress if progress else no_progress
    return progress


def rich_progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """A progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, total=length_hint(items) or None, console=Console(stderr=True), transient=True)
