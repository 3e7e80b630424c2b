"""What a compile did, to its end or until an error: its stages, and how people look at them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from snncc.ir import Diagnostic, Graph, MissingBytes, Node, Source, Stage, ops
from snncc.ir.diagnostics import errors, input_error, public
from snncc.ir.types import Array, Param
from snncc.passes.base import Progress, StageRecord, no_progress
from snncc.targets.base import Options, Target

BINS = 48  # of a histogram
WHOLE = 256  # integers of at most so many values have a bin each
FEW = 1 << 16  # values that a histogram is made of; of more, every n-th
OPERATIONS = 5e9  # multiplications of a stage that measuring it may take; sets the number of samples


@public
@dataclass(repr=False)
class Compilation:
    """The stages of a compile. Of one that failed, :attr:`snncc.CompileError.compilation`.

    Attributes:
        target: what it was compiled for.
        options: what was asked for.
        records: every stage, from the traced network on, with the pass that made it, its time and diagnostics.
        diagnostics: everything that was said.
        sample: the first calibration samples, on which values are measured (empty in a loaded model).
    """

    target: Target
    options: Options
    records: tuple[StageRecord, ...]
    diagnostics: tuple[Diagnostic, ...] = ()
    sample: Sequence[tuple[Array, ...]] = ()
    _numbers: dict[int, dict[str, dict[str, Any]]] | None = field(default=None, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        n = len(errors(self.diagnostics))
        return f"<compile for {self.target.name}: {len(self.records)} stages, {n} error{'s' * (n != 1)}>"

    @property
    def stages(self) -> dict[str, Graph]:
        """The last graph of each stage by its name: "ann", "folded", "snn", "int" and, on hardware, "mapped"."""
        return {record.graph.stage.value: record.graph for record in self.records}

    def record(
        self, sources: bool = True, numbers: bool = True, progress: Progress | bool | None = None
    ) -> dict[str, Any]:
        """Every stage as plain data that JSON can hold: nodes, types, units, places in your source, diagnostics, time
        and memory of each pass, and, of a fresh compile, what values are on calibration samples. See docs/record.md.

        Args:
            sources: put the text of your files in.
            numbers: measure, which runs every stage that changed anything on calibration samples.
            progress: as of :func:`snncc.compile`.

        Raises:
            InputError: the model was trained on since the compile, so what is measured would be another's (SNN073).
        """
        from snncc import __version__
        from snncc.explore import record

        return record(
            self.records,
            self._measured(progress) if numbers else {},
            self._param_numbers,
            sources,
            self.diagnostics,
            snncc=__version__,
            target=self.target.name,
            options=self.options.plain(),
            ok=not errors(self.diagnostics),
            **self._about(),
        )

    def _measured(self, progress: Progress | bool | None) -> dict[int, dict[str, dict[str, Any]]]:
        from snncc.api import shown

        if self._numbers is None:
            self._numbers = stage_numbers(self.records, self.sample, shown(progress))
        return self._numbers

    @cached_property
    def _param_numbers(self) -> dict[Param, dict[str, Any]]:
        return param_numbers(self.records)

    def _about(self) -> dict[str, Any]:
        """What the record says of the network on the target."""
        fits = list[dict[str, Any]]()
        if folded := self.stages.get(Stage.FOLDED.value):
            with suppress(MissingBytes):  # the stage was read from a folder without its weights
                fits = self.target.fits(folded, self.options)
        return {"report": [], "mapping": {}, "chip": {}, "fits": fits, "selfcheck": {}}

    def explore(self, path: str | Path, numbers: bool = True) -> Path:
        """Write the compile as one page that a browser shows without any network: every stage, from the lines of your
        source to the chip. See docs/explorer.md.

        Args:
            path: the file, which is replaced. It holds the text of your source files.
            numbers: as of :meth:`record`.

        Raises:
            InputError: as :meth:`record`.
        """
        from snncc.explore import page, write

        return write(Path(path), page(self.record(numbers=numbers)))

    def export(self, path: str | Path, stage: str | int | None = None) -> Path:
        """Write stages for another viewer, by the suffix of ``path``: ``.json`` for Google's Model Explorer (every
        stage), ``.dot`` for Graphviz or ``.mlir`` for Netron and MLIR's tools (one stage). See docs/exports.md.

        Args:
            stage: the name of a stage, or the index of a record; default: the last.

        Raises:
            InputError: another suffix, or no such stage.
        """
        from snncc.explore import export

        return export(self.records, Path(path), stage)

    def _repr_html_(self) -> str:
        """What Jupyter shows: the page, in a frame of its own that reaches nothing else."""
        from snncc.explore import page

        text = html.escape(page(self.record()), quote=True)
        return (
            '<iframe sandbox="allow-scripts allow-downloads" style="width:100%;height:720px;border:1px solid #8884"'
            f' title="snncc explorer" srcdoc="{text}"></iframe>'
        )


def unchanged(*graphs: Graph) -> None:
    """Hold the bytes of ``graphs`` against their digests: they may be the user's model's, and that may have been
    trained on since; or missing, in a model that was read from a folder.

    Raises:
        InputError: bytes are missing (SNN072) or changed (SNN073).
    """
    known = set[Param]()
    for graph in graphs:
        for param in graph.params():
            if param in known:
                continue
            known.add(param)
            if param not in graph.store:
                raise input_error(
                    "SNN072",
                    f"the weights of stage {graph.stage.value} are not here: {param.name!r} and maybe more",
                    "save with all_weights=True to have every stage's",
                )
            if not graph.store.verify(param):
                raise input_error(
                    "SNN073",
                    f"parameter {param.name!r} changed since the compile; stage {graph.stage.value} shares its memory",
                    "compile again, or compile a copy of the model",
                )


# --- numbers ---------------------------------------------------------------------------------------------------------


def stage_numbers(
    records: Sequence[StageRecord],
    sample: Sequence[tuple[Array, ...]],
    progress: Progress = no_progress,
    most: int = 16,
) -> dict[int, dict[str, dict[str, Any]]]:
    """By the index of each stage that changed anything, of every value run as a network on calibration samples: the
    range and size of its real values with a histogram, and the relative distance (2-norm) from the traced network's
    value that it stands for. Of large networks fewer samples, at least one.

    Raises:
        InputError: bytes changed since the compile (SNN073).
    """
    if not sample or not records:
        return {}
    unchanged(*(record.graph for record in records))
    import torch

    from snncc.engine import TorchEngine

    traced = records[0].graph
    work = sum(node.op.multiplications(node.type) for node in traced.nodes if isinstance(node.op, ops.Weighted))
    n = max(1, min(most, int(OPERATIONS // max(1, work))))
    engine, xs = TorchEngine(), [x[:n] for x in sample[0]]
    found: dict[int, dict[str, dict[str, Any]]] = {}
    first: dict[str, Array] = {}
    told = [i for i, stage in enumerate(records) if (not i or stage.changed) and not stage.failed]
    for i in progress(told, "measure every stage"):
        stage = records[i]
        rows, meant = found.setdefault(i, {}), stands_for(traced, stage.graph)

        def visit(
            name: str,
            value: Array,
            i: int = i,
            rows: dict[str, dict[str, Any]] = rows,
            meant: Mapping[str, str] = meant,
        ) -> None:
            size = float(np.linalg.norm(value))
            rows[name] = spread(value) | {"rms": size / value.size**0.5}
            if name in meant:
                rows[name]["of"] = meant[name]
            if not i:
                first[name] = value.copy()
                return
            was = first.get(meant.get(name, ""))
            if was is not None and was.shape == value.shape and (norm := float(np.linalg.norm(was))):
                rows[name]["error"] = float(np.linalg.norm(value - was)) / norm

        exact = stage.graph.stage in (Stage.INT, Stage.MAPPED)  # integers need not fit into float32
        engine.values(stage.graph, xs, visit, torch.float64 if exact else torch.float32)
    return found


def stands_for(traced: Graph, graph: Graph) -> dict[str, str]:
    """By the name of a node, the traced node whose value it has: the one of its name, or, if others were fused into it,
    the last of all that it comes from. Of several such nodes, what is last has the value; the others lead to it."""
    order = {node.name: i for i, node in enumerate(traced.nodes)}
    by_source: dict[Source, list[Node]] = {}
    for node in traced.nodes:
        for source in node.loc.sources:
            by_source.setdefault(source, []).append(node)
    found: dict[str, str] = {}
    for node in graph.nodes:
        sources = set(node.loc.sources)
        same = traced.by_name.get(node.name)
        if same is not None and set(same.loc.sources) == sources:
            found[node.name] = same.name
            continue
        origins = {o.name for source in sources for o in by_source.get(source, ()) if sources.issuperset(o.loc.sources)}
        if origins:
            found[node.name] = max(origins, key=order.__getitem__)
    has = {was: name for name, was in found.items() if name != was} | {
        was: was for name, was in found.items() if name == was
    }
    return {name: was for name, was in found.items() if has[was] == name}


def param_numbers(records: Sequence[StageRecord]) -> dict[Param, dict[str, Any]]:
    """Of every parameter whose bytes are here, and what they were when it was compiled: range, mean, part of zeros,
    histogram."""
    stores = {p: record.graph.store for record in records for p in record.graph.params() if p.size}
    values = {p: store[p] for p, store in stores.items() if p in store and store.verify(p)}
    return {p: spread(value) | {"mean": float(value.mean(dtype=np.float64))} for p, value in values.items()}


def spread(value: Array) -> dict[str, Any]:
    """Range, part of zeros, and a histogram over the range in equal bins: of few integers, a bin each."""
    low, high = float(value.min()), float(value.max())
    flat = value.reshape(-1)
    some = flat[:: -(-flat.size // FEW)]
    whole = value.dtype.kind in "iu" and high - low < WHOLE
    counts: list[int] = []
    if whole:
        counts = np.bincount(some.astype(np.int64) - int(low), minlength=int(high - low) + 1).tolist()
    elif np.isfinite(high - low) and high > low:
        bins = np.minimum((some.astype(np.float64) - low) * (BINS / (high - low)), BINS - 1)
        counts = np.bincount(bins.astype(np.int64), minlength=BINS).tolist()
    return {"min": low, "max": high, "zeros": float(1 - np.count_nonzero(value) / value.size), "histogram": counts}
