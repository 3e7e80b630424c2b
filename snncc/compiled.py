"""The result of a compile: its stages, its report, how it runs, and the folder that holds all of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from snncc import sdk
from snncc.compilation import Compilation, unchanged
from snncc.ir import (
    Diagnostic,
    Graph,
    InputError,
    Param,
    Severity,
    Stage,
    Store,
    loihi,
    ops,
    parse,
    print_graph,
)
from snncc.ir.diagnostics import guarded, input_error, public, unknown
from snncc.ir.interp import check_input, encoded
from snncc.ir.ranges import ranges
from snncc.ir.types import Array, Loc, Range, Source, per_channel
from snncc.passes.base import Progress, StageRecord
from snncc.selfcheck import CAUSES, SelfCheck
from snncc.targets.base import Options

if TYPE_CHECKING:
    import torch

    from snncc.engine import Simulation
    from snncc.readback import Mismatch

FORMAT = 1  # of the folder; raised when an older reader would misread it
MANIFEST, WEIGHTS, STAGES, EXPLORER = "manifest.json", "weights.safetensors", "stages", "explorer.html"


@dataclass(frozen=True)
class Validation:
    """What the vendor's validator answered."""

    valid: bool
    message: str
    version: str


class Report(list[dict[str, Any]]):
    """A row per layer, as plain data; printed, a table of a page: of many layers, those that lose or take most.

    Attributes:
        title: of the table.
        cores: whether memories are told core by core, and not here.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], title: str = "", cores: bool = False) -> None:
        super().__init__(rows)
        self.title, self.cores = title, cores

    def __repr__(self) -> str:
        from snncc.console import plain, report_table

        return plain(lambda width: report_table(self, width))

    __str__ = __repr__


@public
@dataclass(repr=False)
class CompiledModel(Compilation):
    """A network compiled for a target: all stages of :class:`snncc.compilation.Compilation`, the last of which runs.

    Attributes:
        selfcheck: what it loses against the network, measured when it was compiled; None: that was turned off, or there
            was no calibration data.
    """

    selfcheck: SelfCheck | None = None
    _saved_report: list[dict[str, Any]] | None = field(default=None, repr=False)

    @property
    def graph(self) -> Graph:
        """The last stage."""
        return self.records[-1].graph

    def __repr__(self) -> str:
        layers = sum(isinstance(node.op, ops.Weighted) for node in self.graph.nodes)
        loses = "" if self.selfcheck is None else f"; {self.selfcheck!r}"
        return f"<{self.graph.name} on {self.target.name}: {layers} layers, T = {self.options.timesteps}{loses}>"

    def _about(self) -> dict[str, Any]:
        chip = self.target.rooms(self.graph, self.options)
        check = {} if self.selfcheck is None else self.selfcheck.plain()
        return super()._about() | {"report": self.report, "mapping": self.mapping, "chip": chip, "selfcheck": check}

    # --- running ---

    def simulate(
        self,
        x: Any,
        timesteps: int | None = None,
        *,
        stage: str | None = None,
        record: Iterable[str] | str | None = None,
        progress: Progress | None = None,
        order: str | None = None,
        **engine: Any,
    ) -> Simulation:
        """Run in the target's own integer arithmetic, on the fast engine.

        Args:
            x: real inputs (N, *shape), or counts (T, N, *shape) if compiled with encoding="spikes"; for several inputs
                a tuple. Arrays or tensors.
            timesteps: T; by default the one compiled for.
            stage: another stage to run: "snn" (float) or "int".
            record: names of values to keep, "spikes" or "all".
            progress: wraps the loop over batches.
            order: not step by step but event by event, on hardware that works so: the order in which events are taken,
                "depth-first" or "breadth-first" on the DYNAP-CNN family.
            engine: more arguments of :meth:`snncc.engine.TorchEngine.simulate`.

        Returns:
            A Simulation: ``.output`` (N, classes), ``.spikes``, ``.rates``, ``.synops``.
        """
        from snncc.engine import TorchEngine

        graph = self._stage(stage)
        steps = self._steps(timesteps)
        if not graph.stage.spiking:
            raise input_error("SNN086", f"stage {graph.stage.value!r} has no time steps", "use network(x, stage=...)")
        if order is not None:
            if graph is not self.graph or engine:
                raise input_error("SNN083", f"order={order!r} is of the last stage, and takes no other arguments")
            return self._events(as_arrays(x), steps, record, order)
        xs = as_arrays(x)
        if graph is self.graph:
            self._prove(xs, steps)
        try:
            return TorchEngine().simulate(graph, *xs, timesteps=steps, record=record, progress=progress, **engine)
        except OverflowError as error:
            hint = "choose smaller inputs, or fewer time steps"
            raise input_error(
                "SNN044", f"with this input, numbers grow beyond what can be exact: {error}", hint
            ) from None

    def _steps(self, timesteps: int | None) -> int:
        """T, by default the one compiled for."""
        return self.options.timesteps if timesteps is None else replace(self.options, timesteps=timesteps).timesteps

    def _prove(self, xs: tuple[Array, ...], timesteps: int) -> None:
        """Refuse more time steps, or larger inputs, than were compiled for, if the target's numbers may not hold them.

        Raises:
            InputError: SNN043 for the time steps, SNN044 for the inputs.
        """
        compiled_for = self.options.timesteps
        known = dict(zip(self.graph.inputs, check_input(self.graph, xs, timed=True), strict=True))
        given = {n.name: Range.of(x.min(initial=0.0), x.max(initial=0.0), n.type) for n, x in known.items()}
        usual = {node.name: node.op.bounds([], node.type, self.graph.store, 1) for node in known}
        larger = any(given[name].size > max(usual[name].size, 1.0) for name in given)
        if timesteps <= compiled_for and not larger:
            return
        beyond, graph = self.target.beyond, self.graph
        said = {(kind, name) for kind, name, _ in beyond(graph, ranges(graph, compiled_for), compiled_for)}
        for kind, name, text in beyond(graph, ranges(graph, timesteps, given), timesteps):
            if timesteps <= compiled_for and (kind == "state" or (kind, name) in said):
                continue  # the compile has warned, or did not know all inputs
            if timesteps > compiled_for:
                words = f"{timesteps} time steps, where {compiled_for} were compiled for: {text}"
                raise input_error("SNN043", words, f"compile with timesteps={timesteps}")
            low, high = max(given.values(), key=lambda x: x.size).hull
            words = f"inputs from {low:.4g} to {high:.4g}, larger than what was compiled for: {text}"
            raise input_error("SNN044", words, "calibrate with data that covers the inputs, or scale them")

    def _events(
        self, xs: tuple[Array, ...], timesteps: int | None, record: Iterable[str] | str | None, order: str
    ) -> Simulation:
        """The simulation event by event."""
        from snncc.engine import Simulation, recorded

        steps = self._steps(timesteps)
        names = [] if record is None else sorted(recorded(self.graph, record))
        coded = self._encoded(xs, steps)
        done = self.target.simulate_events(self.graph, self.options, coded, order, names)
        scores = (self._scores(name, n, steps) for name, n in zip(self.graph.outputs, done.outputs, strict=True))
        totals = {name: int(n.sum()) for name, n in done.counts.items()}
        return Simulation(self.graph, steps, tuple(scores), dict(done.spikes), counts=totals, synops=dict(done.synops))

    def compare_events(
        self,
        x: Any,
        timesteps: int | None = None,
        order: str = "depth-first",
        timestep_us: int = 1000,
        events: Simulation | None = None,
    ) -> dict[str, Any]:
        """How far the step-wise simulation and the one event by event are apart on real input.

        Args:
            timestep_us: the length of a time step on the chip, for the power.
            events: ``simulate(x, timesteps, order=order, record="spikes")``, where that was done already.

        Returns:
            Plain data: ``layers``, a row for each layer's neurons (:func:`snncc.engine.compare.differences`);
            ``same_class``, the part of the samples that get one class from both; ``timesteps``, ``samples``, ``order``;
            ``power``, what the events' synaptic operations may cost by layer (``target.power``).
        """
        from snncc.engine.compare import differences, same_class

        neurons = [n.name for n in self.graph.nodes if _is_neuron(n.op)]
        step = self.simulate(x, timesteps, record=neurons)
        events = events or self.simulate(x, timesteps, record=neurons, order=order)
        sums = ({name: done.spikes[name].sum(axis=0, dtype=np.int64) for name in neurons} for done in (step, events))
        same = same_class(step.output, events.output)
        return {
            "order": order,
            "timesteps": step.timesteps,
            "samples": len(same),
            "same_class": float(same.mean()),
            "layers": differences(*sums),
            "power": self.target.power(events.synops, events.timesteps * timestep_us * 1e-6),
        }

    def _scores(self, name: str, counts: Array, timesteps: int) -> Array:
        """The real value of an output per time step from its spikes (N, *shape)."""
        unit = per_channel(self.graph[name].type.unit, self.graph.store, counts.ndim - 1)
        return np.asarray(counts * unit / timesteps)

    def _encoded(self, xs: tuple[Array, ...], timesteps: int) -> list[Array]:
        """The inputs in whole numbers as hardware takes them: (T, N, *shape), or (N, *shape) of a constant current."""
        feeds, coded = encoded(self.graph, xs, timesteps), []
        for node in self.graph.inputs:
            (encode,) = self.graph.users[node.name]
            assert isinstance(encode.op, ops.Encode)
            x = feeds[encode.name]
            if np.abs(x).max(initial=0.0) >= 2**31:
                raise input_error(
                    "SNN044", f"the input {node.name!r} is beyond the 32 bits that the hardware takes", "scale it"
                )
            x = x.astype(np.int32)
            coded.append(x[0] if encode.op.method == "constant" else x)
        return coded

    def modules(self, stage: str | None = None) -> torch.nn.Module:
        """The network as a plain torch module, of what the hardware's own compiler takes: the one that is written.

        Args:
            stage: "snn" for the network in float, with its own weights; by default the last, which equals
                :meth:`simulate` spike for spike.

        Raises:
            InputError: the target is not given torch modules.
        """
        module: torch.nn.Module = self.target.modules(self._stage(stage), self.options)
        return module

    def network(self, x: Any, stage: str = "folded") -> Array:
        """Scores (N, classes) of a stage run as a network, without time: "ann", "folded", or of a spiking stage what
        its rates tend to. T time steps give less: :meth:`simulate`; :attr:`selfcheck` has both figures."""
        import torch

        from snncc.engine import TorchEngine

        graph = self._stage(stage)
        exact = graph.stage in (Stage.INT, Stage.MAPPED)  # integers need not fit into float32
        dtype = torch.float64 if exact else torch.float32
        return TorchEngine().run(graph, *as_arrays(x), dtype=dtype)[graph.outputs[0]]

    def _stage(self, name: str | None) -> Graph:
        if name is None:
            return self.graph
        if name not in self.stages:
            raise unknown("SNN085", "stage", name, self.stages)
        graph = self.stages[name]
        if graph is not self.graph:  # the first stages share the model's memory; the last has its own
            unchanged(graph)
        return graph

    def verify(self, x: Any = None, timesteps: int | None = None) -> list[Mismatch]:
        """Read back what is written, and hold it against :meth:`simulate`: :func:`snncc.readback.check_written`.

        Args:
            x: as of :meth:`simulate`; None: one time step from chosen states only.
            timesteps: T; by default the one compiled for.

        Returns:
            What differs; empty if nothing does.
        """
        from snncc.readback import check_written

        return check_written(self, None if x is None else as_arrays(x), timesteps)

    def validate(self, python: str | Path | None = None) -> Validation:
        """Ask the vendor's own validator, in the vendor's own Python (never in this process).

        Args:
            python: an interpreter with the vendor's SDK; by default ``SNNCC_<SDK>_PYTHON``, else ``make sdk``'s.

        Raises:
            InputError: no such environment (SNN080), or its runner could not answer (SNN081).
        """
        with tempfile.TemporaryDirectory() as folder:
            out = self._emitted(Path(folder), python, "--validate", "--json")
        answer = json.loads(out.splitlines()[-1])
        return Validation(bool(answer["valid"]), answer["message"], answer["version"])

    def run(
        self,
        x: Any,
        timesteps: int | None = None,
        *,
        python: str | Path | None = None,
        record: Iterable[str] | str | None = None,
        **options: Any,
    ) -> Simulation:
        """Run in the vendor's runtime or on its hardware, through the emitted runner.

        Args:
            x: as of :meth:`simulate`.
            timesteps: T; by default the one compiled for.
            python: as of :meth:`validate`.
            record: names of neurons whose spikes to keep, or "spikes": all; where the runner can.
            options: the runner's own, see ``target.run_flags``: the board and the length of a time step, say.

        Returns:
            A Simulation with ``.outputs``, and ``.spikes`` of what was recorded.

        Raises:
            InputError: no environment, no board, an option that the runner does not have, or input that does not fit.
        """
        from snncc.engine import Simulation

        flags = self.target.run_flags
        asked = {**({"record": record} if record is not None else {}), **options}
        for name in asked:
            if name not in flags or name == "timesteps":
                raise unknown("SNN079", "option", name, flags, f"of {self.target.name}'s runner")
        self._runner(python)  # that there is one is said before anything about the input
        steps = self._steps(timesteps)
        self._prove(as_arrays(x), steps)
        arrays = {f"x{i}": coded for i, coded in enumerate(self._encoded(as_arrays(x), steps))}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.savez(folder / "input.npz", **arrays)  # type: ignore[arg-type]
            arguments = ["--json", "--input", "input.npz", "--output", "output.npz"]
            arguments += [flags["timesteps"], str(steps)] if "timesteps" in flags else []
            for key, wanted in asked.items():
                if key == "record" and not isinstance(wanted, str):
                    wanted = ",".join(wanted)  # noqa: PLW2901
                if wanted is True:
                    arguments.append(flags[key])
                elif wanted is not None and wanted is not False:
                    path = isinstance(wanted, os.PathLike)  # the runner works in a folder of its own
                    arguments += [flags[key], str(Path(wanted).absolute() if path else wanted)]
            self._emitted(folder, python, *arguments)
            with np.load(folder / "output.npz", allow_pickle=False) as file:
                counts = [file[f"counts{i}"].astype(np.float64) for i in range(len(self.graph.outputs))]
                spikes = {key.partition("/")[2]: file[key] for key in file.files if key.startswith("spikes/")}
        shapes = {name: self.graph[name].type.shape for name in {*self.graph.outputs, *spikes}}
        outputs = [
            self._scores(name, n.reshape(len(n), *shapes[name]), steps)
            for name, n in zip(self.graph.outputs, counts, strict=True)
        ]
        spikes = {name: s.reshape(*s.shape[:2], *shapes[name]) for name, s in spikes.items()}
        return Simulation(self.graph, steps, outputs=tuple(outputs), spikes=spikes)

    def _emitted(self, folder: Path, python: str | Path | None, *arguments: str) -> str:
        """Write the target's files and run its runner; what it printed."""
        files, names, interpreter = self._runner(python)
        _write_files(folder, files)
        line = [str(interpreter), "run.py", *arguments]
        try:
            done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        except OSError as error:
            raise input_error("SNN080", f"{interpreter} cannot be run as the Python of {names[0]}: {error}") from None
        if done.returncode not in (0, 1) or not done.stdout.strip():
            lines = (done.stderr + done.stdout).strip().splitlines()
            last = lines[-1] if lines else f"exit status {done.returncode}"
            with suppress(ValueError, KeyError, TypeError):  # else they are not the runner's own words
                last = json.loads(last)["message"]
            raise input_error("SNN081", f"{names[0]}: {last}")
        return done.stdout

    def _runner(self, python: str | Path | None) -> tuple[dict[str, str | bytes], tuple[str, ...], Path]:
        """The target's files with their run.py, the environments that it can use, and the interpreter of one."""
        names = self.target.environments(self.graph, self.options)
        try:
            found = (sdk.find(name, python) for name in names)
            interpreter = next((path for path in found if path is not None), None)
        except sdk.SdkError as error:
            raise input_error("SNN080", str(error)) from None
        built = [sdk.ENVIRONMENTS[name].python for name in names]
        if (lacks := self.target.lacks()) and interpreter in (None, *built):
            hint = "name an interpreter whose SDK does: python=..., or --python; simulate needs none"
            raise input_error("SNN080", lacks, hint)
        files = self._files
        if "run.py" not in files or not names:
            raise input_error("SNN080", f"target {self.target.name} has no vendor runtime; use simulate")
        if interpreter is None:
            raise input_error(
                "SNN080",
                f"no environment with {' or '.join(names)} was found",
                f"`make sdk` or `python -m snncc.sdk build {names[0]}` builds it; or name an interpreter that has it",
            )
        return files, names, interpreter

    @property
    def _files(self) -> dict[str, str | bytes]:
        return self.target.files(self.graph, self.options)

    @cached_property
    def mapping(self) -> dict[str, Any]:
        """What the whole network takes of the hardware, and what was chosen for it, as plain data."""
        return self.target.mapping(self.graph, self.options)

    # --- the report ---

    @cached_property
    def report(self) -> Report:
        """A row per layer of weights, as plain data: what it is, what it takes of the hardware, and what the self-check
        measured of it: rate, synaptic operations per sample, conversion error (the relative distance, in the 2-norm,
        between the neurons' mean output and the network's activation), and what of that it loses itself, by clipping,
        rounding, time and reset (:mod:`snncc.selfcheck`). Printed, it is a table."""
        title, cores = f"{self.graph.name} on {self.target.name}", bool(self.target.limits().get("cores"))
        return Report(self._rows() if self._saved_report is None else self._saved_report, title, cores)

    def _rows(self) -> list[dict[str, Any]]:
        graph, usage = self.graph, self.target.usage(self.graph, self.options)
        rows = []
        for node in graph.nodes:
            if not isinstance(node.op, ops.Weighted):
                continue
            neuron = self._neuron(node.name)
            weight = graph.value(node.op.weight)
            row: dict[str, Any] = {
                "layer": node.name,
                "op": node.op.mnemonic,
                "source": str(node.loc),
                "shape": list(node.type.shape),
                "weights": int(weight.size),
                "largest_weight": int(np.abs(weight).max(initial=0)),
                "biases": self._biases(node.op) + (0 if neuron is None else self._biases(graph[neuron].op)),
                "neurons": 0 if neuron is None else graph[neuron].type.size,
            }
            if neuron is not None:
                op = graph[neuron].op
                row["neuron"] = neuron
                threshold = 2 * op.theta if isinstance(op, loihi.AtrLif) else getattr(op, "threshold", None)
                if threshold is not None and not isinstance(threshold, Param):
                    row["threshold"] = threshold
            unit = node.type.unit
            row["scale"] = float(graph.value(unit).mean()) if isinstance(unit, Param) else float(unit)
            own = self._own_measures.get(neuron or "", {})
            rows.append(row | usage.get(node.name, {}) | self._measured_layer(node.name) | own)
        return rows

    def _biases(self, op: ops.Op) -> int:
        """How many biases other than zero an operation has: a layer, or on Loihi the neurons behind it."""
        bias = getattr(op, "bias", None)
        return int(np.count_nonzero(self.graph.value(bias))) if isinstance(bias, Param) else 0

    def _neuron(self, name: str) -> str | None:
        """The neuron that a layer's currents go to, through sums and pooling."""
        while len(users := self.graph.users[name]) == 1:
            name = users[0].name
            if _is_neuron(users[0].op):
                return name
            if isinstance(users[0].op, ops.Weighted):
                return None
        return None

    def _measured_layer(self, name: str) -> dict[str, Any]:
        """What the self-check measured of a layer of weights and the neuron behind it."""
        found, row = self.selfcheck, dict[str, Any]()
        if found is None:
            return row
        if name in found.synops:
            row["synops"] = found.synops[name]
        known = {layer.name: layer for layer in found.layers}
        neuron = self._neuron(name)
        if neuron is not None and neuron not in known:  # of a layer in parts, what stands for all of them
            neuron = next((user.name for user in self.graph.users[neuron] if user.name in known), None)
        layer = known.get(name if neuron is None else neuron)
        if layer is None:
            return row
        row |= {} if layer.rate is None else {"rate": layer.rate}
        return row | {"error": layer.error} | {cause: getattr(layer, cause) for cause in CAUSES}

    @cached_property
    def _own_measures(self) -> dict[str, dict[str, Any]]:
        """What only the target's arithmetic shows, by neuron."""
        if self.selfcheck is None or any(
            n.op.method == "spikes" for n in self.graph.nodes if isinstance(n.op, ops.Encode)
        ):
            return {}
        return self.target.measured(self.graph, self.options, tuple(x[:16] for x in self.sample[0]))

    # --- the folder ---

    def save(self, folder: str | Path, *, all_weights: bool = False, explorer: bool = True) -> Path:
        """Write the folder, whole or not at all. One that snncc wrote before is replaced; any other is refused.

        Args:
            folder: where.
            all_weights: write the parameters of every stage, not only the last; the other stages can then be run, too.
            explorer: write ``explorer.html``, the page of :meth:`explore`, which holds the text of your source; without
                numbers if the model was trained on since.

        Raises:
            InputError: the place is taken (SNN075), weights are missing (SNN072: this model was itself read from a
                folder without them), or were changed since the compile (SNN073).
        """
        final = Path(folder).absolute()
        _replaceable(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as name:
            fresh, old = Path(name) / "new", Path(name) / "old"
            (fresh / STAGES).mkdir(parents=True)
            self._write(fresh, all_weights)
            if explorer:
                try:
                    self.explore(fresh / EXPLORER)
                except InputError:  # the model was trained on since: what would be measured is another network
                    self.explore(fresh / EXPLORER, numbers=False)
            self._write_manifest(fresh)
            # Two renames: at no moment is there a half-written folder under the name.
            try:
                if os.path.lexists(final):
                    final.rename(old)
                fresh.rename(final)
            except BaseException:
                if os.path.lexists(old) and not os.path.lexists(final):
                    old.rename(final)
                raise
        return final

    def _write(self, folder: Path, all_weights: bool) -> None:
        from safetensors.numpy import save

        for i, record in enumerate(self.records):
            text = print_graph(record.graph, banner=record.label)
            (folder / STAGES / f"{i:03}_{_pass_name(record.label)}.mlir").write_text(text, encoding="utf-8")
        wanted = [r.graph for r in self.records] if all_weights else [self.graph]
        (folder / WEIGHTS).write_bytes(save(_tensors(wanted)))  # its own file would be its owner's alone
        _write_files(folder, self._files)

    def last_stage(self) -> dict[str, str | bytes]:
        """The last stage as :meth:`save` writes it: its text and its tensors, by the names of their files."""
        from safetensors.numpy import save

        label = f"{len(self.records) - 1:03}_{_pass_name(self.records[-1].label)}"
        text = print_graph(self.graph, banner=self.records[-1].label)
        return {f"{STAGES}/{label}.mlir": text, WEIGHTS: save(_tensors([self.graph]))}

    def _write_manifest(self, folder: Path) -> None:
        manifest = self._manifest()
        manifest["files"] = {
            str(p.relative_to(folder).as_posix()): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    def _manifest(self) -> dict[str, Any]:
        from snncc import __version__

        graph = self.graph
        encodings = {n.args[0]: n.op for n in graph.nodes if isinstance(n.op, ops.Encode)}
        inputs = []
        for node in graph.inputs:
            entry: dict[str, Any] = {"name": node.name, "shape": list(node.type.shape)}
            if (op := encodings.get(node.name)) is not None:
                entry |= {"encoding": op.method, "unit": op.unit, "seed": op.seed}
            inputs.append(entry)
        return {
            "format": FORMAT,
            "snncc": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "target": self.target.name,
            "network": graph.name,
            "stage": graph.stage.value,
            "options": self.options.plain(),
            "inputs": inputs,
            "outputs": [{"name": name, "shape": list(graph[name].type.shape)} for name in graph.outputs],
            "passes": [{"label": r.label, "seconds": round(r.seconds, 6), "changed": r.changed} for r in self.records],
            "diagnostics": [d.to_json() for d in self.diagnostics],
            "mapping": self.mapping,
            "selfcheck": None if self.selfcheck is None else self.selfcheck.plain(),
            "report": self.report,
        }


def _is_neuron(op: ops.Op) -> bool:
    """Whether the operation stands for an activation of the network."""
    return isinstance(op, ops.If | ops.Lif | loihi.CubaLif | loihi.AtrLif | loihi.SigmaDelta)


def _tensors(graphs: Iterable[Graph]) -> dict[str, Array]:
    """Every parameter once, by its name in the text and its digest."""
    tensors: dict[str, Array] = {}
    names: dict[str, str] = {}
    for graph in graphs:
        unchanged(graph)
        for param in graph.params():
            # The key is the name that the text has; equal bytes are written once.
            tensors.setdefault(param.digest, graph.value(param))
            names[param.digest] = param.name
    # Their library wants at least one axis in memory order; a scalar tensor has none and is fine.
    return {f"{names[d]}${d}": np.ascontiguousarray(a) for d, a in tensors.items()}


def _write_files(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _replaceable(final: Path) -> None:
    """Refuse to write over what snncc did not write: a folder is replaced as a whole, with all that is in it."""
    if not os.path.lexists(final) or (final.is_dir() and not any(final.iterdir())):
        return
    try:
        manifest = json.loads((final / MANIFEST).read_text(encoding="utf-8"))
        known = {MANIFEST, *manifest["files"]}
        ours = "snncc" in manifest
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise input_error("SNN075", f"{final} exists and was not written by snncc", "choose another folder")
    there = (str(p.relative_to(final).as_posix()) for p in final.rglob("*") if p.is_symlink() or not p.is_dir())
    if foreign := sorted(set(there) - known):
        few = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        message = f"{final} holds what snncc did not write, and would be replaced: {few}"
        raise input_error("SNN075", message, "move these files away, or choose another folder")


def _pass_name(label: str) -> str:
    return label.partition("{")[0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_arrays(x: Any) -> tuple[Array, ...]:
    """What a user passes as input, as numpy arrays: an array or tensor, or a tuple or list of those."""
    return tuple(map(_as_array, x if isinstance(x, tuple | list) else (x,)))


def _as_array(x: Any) -> Array:
    if not hasattr(x, "detach"):  # a tensor has it; so torch is not imported to find out
        return np.asarray(x)
    x = x.detach().cpu()
    if x.is_floating_point() and x.element_size() < 4:
        x = x.float()  # numpy has no bfloat16
    return np.asarray(x.numpy())


@guarded
def load(folder: str | Path) -> CompiledModel:
    """Read a folder that :meth:`CompiledModel.save` wrote.

    Every file is held against its digest first. Stages but the last can be looked at, and run if their weights were
    saved (``all_weights``).

    Raises:
        InputError: no such folder or not one of ours (SNN071), files missing (SNN072) or changed (SNN073).
    """
    from snncc.targets import find

    path = Path(folder)
    if not path.is_dir():
        raise input_error("SNN071", f"there is no folder {path}")
    if not (path / MANIFEST).is_file():
        raise input_error("SNN072", f"{path} has no {MANIFEST}: not a folder of snncc, or one cut short")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files, version = dict(manifest["files"]), manifest["format"]
        outside = [name for name in files if not _inside(name)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise input_error("SNN071", f"{path / MANIFEST} cannot be read: {error}") from None
    if version != FORMAT:
        raise input_error("SNN071", f"{path} has format {version}; this snncc reads {FORMAT}")
    if outside:
        raise input_error("SNN071", f"{path / MANIFEST} names a file that is not in the folder: {outside[0]!r}")
    found = [
        Diagnostic("SNN072", f"{path / name} is missing")
        if not (path / name).is_file()
        else Diagnostic("SNN073", f"{path / name} is not what was written: its digest changed")
        for name, digest in files.items()
        if not (path / name).is_file() or _sha256(path / name) != digest
    ]
    if found:
        raise InputError(found)
    store = _read_weights(path / WEIGHTS)
    texts = sorted(name for name in files if name.startswith(f"{STAGES}/"))
    try:
        records = []
        for name, entry in zip(texts, manifest["passes"], strict=True):
            graph = parse((path / name).read_text(encoding="utf-8"), store)
            records.append(StageRecord(entry["label"], graph, entry["seconds"], entry["changed"]))
        diagnostics = tuple(map(_diagnostic, manifest["diagnostics"]))
        options, report = Options.of(manifest["options"]), list(manifest["report"])
        losses = None if manifest.get("selfcheck") is None else SelfCheck.of(manifest["selfcheck"])
        target = find(manifest["target"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path / MANIFEST} is not what snncc writes: {type(error).__name__}: {error}"
        raise input_error("SNN071", message) from None
    if not records:
        raise input_error("SNN071", f"{path / MANIFEST} names no stages")
    for param in records[-1].graph.params():
        if param not in store:
            raise input_error("SNN072", f"{path / WEIGHTS} has no tensor {param.name!r}, which the last stage needs")
    return CompiledModel(target, options, tuple(records), diagnostics, selfcheck=losses, _saved_report=report)


def _inside(name: str) -> bool:
    """Whether a manifest's name of a file stays in the folder, on any system."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name)


def _read_weights(path: Path) -> Store:
    """The tensors of a file, each held against its digest."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    store = Store()
    try:
        for key, array in load_file(path).items():
            name, _, digest = key.partition("$")
            if store.put(name, array, copy=False).digest != digest:
                raise input_error("SNN073", f"tensor {name!r} in {path} does not match its digest")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise input_error("SNN071", f"{path} cannot be read: {error}") from None
    return store


def _diagnostic(data: dict[str, Any]) -> Diagnostic:
    """What :meth:`Diagnostic.to_json` wrote."""
    sources = tuple(Source(s["module"], s["file"], s["line"]) for s in data["locations"])
    amounts = {name: data[name] for name in ("limit", "found", "quantity") if name in data}
    severity = Severity(data["severity"])
    return Diagnostic(data["code"], data["message"], Loc(sources), severity, data["hint"], **amounts)
