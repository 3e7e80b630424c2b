"""The target: passes, limits and files for every chip of the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from snncc.ir import CompileError, Diagnostic, Graph, SnnccError, ops
from snncc.ir.diagnostics import errors, input_error, wrong_value
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass
from snncc.passes.calibrate import Calibrate
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.check_bias import CheckBias
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.fuse_linear import FuseLinear
from snncc.passes.lower_activations import LowerActivations, SpikingOutput
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.quantize import Quantize
from snncc.targets.base import Events, Options, Target, Written, WrittenGraph
from snncc.targets.dynapcnn.chips import Chip
from snncc.targets.dynapcnn.config import Config, Sensor, problems, to_json
from snncc.targets.dynapcnn.decode import decode
from snncc.targets.dynapcnn.lower import Reader, to_config
from snncc.targets.dynapcnn.mapping import SIZES, CheckLimits, InsertRelays, PlaceOnCores, changes
from snncc.targets.dynapcnn.placement import capacity
from snncc.targets.dynapcnn.power import estimate
from snncc.targets.dynapcnn.sensor import parse
from snncc.targets.dynapcnn.widths import propose


@dataclass(frozen=True, repr=False)
class Dynapcnn(Target):
    """A chip of SynSense's DYNAP-CNN family. Weights 8 bits, biases 16; inputs and outputs are spikes."""

    chip: Chip
    takes: ClassVar[Mapping[str, Sequence[Any] | None]] = {  # spikes, not a constant current
        "encoding": (None, "rate", "bernoulli", "spikes"),
        **dict.fromkeys(("monitor", "cores", "sensor", "readout")),
    }
    run_flags: ClassVar[Mapping[str, str]] = {
        "device": "--device", "timestep_us": "--timestep-us", "record": "--record",
    }  # fmt: skip

    @property
    def name(self) -> str:  # type: ignore[override]
        """The chip's."""
        return self.chip.name

    @property
    def summary(self) -> str:  # type: ignore[override]
        """One line for listings."""
        proof = "validated by samna 0.7.1.0" if self.chip.validated else "no validator on the registry"
        return f"{len(self.chip.cores)} cores (SynSense); {proof}"

    def accept(self, options: Options) -> None:
        """Refuse what the chip cannot honour."""
        super().accept(options)
        if options.cores is not None and len(set(options.cores)) != max(1, len(options.cores)):
            raise wrong_value("cores", options.cores, "does not name one or more cores, each once")
        for core in options.cores or ():
            if not 0 <= core < len(self.chip.cores):
                last = len(self.chip.cores) - 1
                raise input_error("SNN082", f"cores={options.cores!r}: {self.name} has the cores 0 to {last}")
        if options.readout and self.chip.readout is None:
            raise input_error("SNN082", f"{self.name} has no readout block that can be used", "leave out readout")
        if options.sensor is not None and options.encoding not in (None, "spikes"):
            message = f"encoding={options.encoding!r}: what the sensor sends are spikes"
            raise input_error("SNN083", message, "leave encoding out, or use encoding='spikes'")

    def passes(self, options: Options) -> list[Pass]:
        """From the traced graph to cores."""
        bits = options.weight_bits or 8
        if bits > 8:
            raise input_error("SNN082", f"weight_bits={bits}: the chip's weights have 8 bits", "leave it out")
        # Half a threshold would round the rates of steps. Event by event, sums overshoot on their way, which does much
        # of that (benchmarks/dynapcnn_events.py).
        v0 = 0.125 if options.v0 is None else options.v0
        encoding = options.encoding or ("rate" if options.sensor is None else "spikes")
        place = self.place(options)
        return [
            Canonicalize(),
            FoldBatchNorm(),
            SpikingOutput(),
            CheckBias(options.bias),
            FuseLinear(self.chip.poolings, self.chip.kernel_sizes[-1], self.chip.strides),
            CheckLimits(**vars(place)),
            Calibrate(options.threshold, options.percentile, options.per),
            LowerActivations(encoding, options.reset, v0, seed=options.seed),
            LowerPooling(),  # what the chip cannot pool, check-limits has said
            # What happens at the ends of 16 bits is undocumented: potentials keep away from them.
            Quantize(
                bits,
                bias_bits=16,
                threshold_bits=16,
                equalize=True,
                potentials=(self.chip.states[0], self.chip.states[-1]),
            ),
            InsertRelays(self.chip),
            place,
        ]

    def place(self, options: Options) -> PlaceOnCores:
        """The placement pass."""
        return PlaceOnCores(self.chip, options.cores, options.sensor, options.readout)

    def environments(self, graph: Graph, options: Options) -> tuple[str, ...]:
        """Samna's."""
        return ("samna",)

    def lacks(self) -> str:
        """The samna on the registry is from before some chips."""
        return "" if self.chip.validated else f"samna 0.7.1.0, which `make sdk` builds, does not know {self.name}"

    def config(self, graph: Graph, options: Options) -> Config:
        """The configuration of a mapped graph.

        Raises:
            CompileError: what the chip cannot do and no pass has said; nothing that samna would wrap gets out.
            InputError: a name to monitor that is none.
        """
        sensor = None if options.sensor is None else self.sensor(graph, options)
        config = to_config(graph, self.chip, sensor, options.readout, options.monitor)
        if found := problems(config):
            locs = {layer.name: layer.node.loc for layer in Reader(graph, self.chip).layers}
            raise CompileError([Diagnostic("SNN066", p.text, locs.get(p.core_name, Diagnostic.loc)) for p in found])
        return config

    def sensor(self, graph: Graph, options: Options) -> Sensor:
        """What the option ``sensor`` means for the network's input."""
        assert options.sensor is not None
        return parse(options.sensor, graph.inputs[0].type.shape, self.chip)

    def files(self, graph: Graph, options: Options) -> dict[str, str | bytes]:
        """The configuration for samna and the runner that validates and deploys it. Raises as :meth:`config`."""
        runner = Path(__file__).with_name("run.py").read_text(encoding="utf-8")
        return {"config.json": to_json(self.config(graph, options)), "run.py": runner}

    def read_back(self, files: Mapping[str, str | bytes]) -> dict[str, Written | WrittenGraph]:
        """The configuration as the graph of its cores."""
        text = files["config.json"]
        graph = decode(text if isinstance(text, str) else text.decode())
        names = {n.name: n.place for n in graph.nodes if isinstance(n.op, ops.If)}
        every = {n.args[0]: n.op.step[0] for n in graph.nodes if isinstance(n.op, ops.Slice) and n.args[0] in names}
        return {"config.json": WrittenGraph(graph, names, every)}

    def simulate_events(
        self, graph: Graph, options: Options, xs: Sequence[Array], order: str, record: Sequence[str]
    ) -> Events:
        """The chip's arithmetic, "depth-first" or "breadth-first" (:mod:`snncc.targets.dynapcnn.events`)."""
        from snncc.targets.dynapcnn import events

        # The readout block is not simulated; without it, channels are the network's.
        config, reader = self.config(graph, replace(options, readout=False)), Reader(graph, self.chip)
        cores = {layer.sends: layer.name for layer in reader.layers}
        neurons = {
            name: [cores[w.source] for w in wires] for name, wires in reader.wires.items() if wires[0].source in cores
        }
        kept = dict.fromkeys(core for name in record for core in neurons.get(name, ()))
        run = events.simulate(config, xs, order, kept)  # type: ignore[arg-type]

        def gathered(parts: Mapping[str, Array], name: str, axis: int) -> Array:
            whole = np.concatenate([parts[core] for core in neurons[name]], axis)
            return whole.reshape(*whole.shape[:axis], *graph[name].type.shape)

        own = [n.name for n in graph.nodes if n.name in neurons and isinstance(n.op, ops.If | ops.Concat)]
        own = [name for name in own if all(w.pooling == 1 for w in reader.wires[name])]
        return Events(
            tuple(o.reshape(len(o), *graph[n].type.shape) for n, o in zip(graph.outputs, run.outputs, strict=True)),
            {name: gathered(run.counts, name, 1) for name in own},
            {name: gathered(run.spikes, name, 2) for name in record if name in own},
            {layer.name: run.synops[layer.name] for layer in reader.layers},
        )

    def power(self, synops: Mapping[str, Array], seconds: float) -> list[dict[str, Any]]:
        """An order of magnitude (:mod:`snncc.targets.dynapcnn.power` has the figures and their sources)."""
        return estimate(synops, seconds)

    def limits(self) -> dict[str, Any]:
        """The chip's cores and legal values: lists, or ranges as their smallest and largest value."""
        data = asdict(self.chip)
        return {
            name: {"min": value.start, "max": value[-1]} if isinstance(value, range) else value
            for name, value in data.items()
            if name not in ("name", "samna_module", "samna_configuration", "key_style", "neuron_major")
        }

    def fits(self, graph: Graph, options: Options) -> list[dict[str, Any]]:
        """Per layer: the words that it needs of each memory (`kernel`, `neuron`, `bias`), how many of its `channels`
        each core `holds`, the `cores` that a placement of all gives it, and the `change` with which one would do."""
        reader = Reader(graph, self.chip)
        if not reader.layers or not all(layer.fit for layer in reader.layers):
            return []
        search = self.place(options).search(reader)
        plan = search.plan() if len(search.demands) <= len(search.cores) else None
        rows = []
        for layer, demand in zip(reader.layers, search.demands, strict=True):
            needs = dict(zip(("kernel", "neuron", "bias"), demand.words(demand.channels), strict=True))
            rows.append(
                {
                    "layer": layer.name,
                    "source": str(layer.node.loc),
                    "channels": demand.channels,
                    **needs,
                    "holds": [capacity(demand, core) for core in self.chip.cores],
                    "cores": [part.core for part in plan.parts[demand.name]] if plan else [],
                    "change": changes(layer, self.chip),
                }
            )
        return rows

    def proposal(self, graph: Graph, options: Options, found: Sequence[Diagnostic]) -> Diagnostic | None:
        """Widths of all layers with which they fit, found with the passes that found that they do not; or that no
        widths help, and what does."""
        fan_out = [d for d in found if d.code == "SNN061" and d.limit == self.chip.destinations]
        others = {d.code for d in found if d not in fan_out} - SIZES
        if not fan_out and not any(d.code in SIZES for d in found):
            return None
        passes = self.passes(options)
        front = passes[: next(i for i, p in enumerate(passes) if isinstance(p, CheckLimits))]
        place = self.place(options)

        def read(graph: Graph) -> tuple[Reader, set[str]]:
            context = Context(timesteps=options.timesteps)
            for p in front:
                graph = p(graph, context)
            reader = Reader(graph, self.chip)
            return reader, {d.code for d in errors([*context.diagnostics, *reader.diagnostics])}

        def fits(graph: Graph) -> bool:
            try:
                reader, said = read(graph)
            except SnnccError:
                return False
            if not said <= others or not all(layer.fit for layer in reader.layers):
                return False
            search = place.search(reader)
            return len(search.demands) <= len(search.cores) and search.plan() is not None

        def why(graph: Graph) -> list[Diagnostic]:
            context = Context()
            with suppress(SnnccError):
                reader, _ = read(graph)
                if all(layer.fit for layer in reader.layers):
                    place.plan(reader, context)
            return context.diagnostics

        return propose(graph, self.chip.name, fits, why)

    def rooms(self, graph: Graph, options: Options) -> dict[str, Any]:
        """Every core of the chip, with its memories in words."""
        used = {core.index: core.memory for core in self.config(graph, options).cores}
        rooms = []
        for i, core in enumerate(self.chip.cores):
            words = zip(("kernel", "neuron", "bias"), used.get(i, (0, 0, 0)), core.words, strict=True)
            memories = [{"name": name, "used": n, "size": size, "unit": "words"} for name, n, size in words]
            rooms.append({"name": f"core {i}", "place": f"core {i}", "cores": 1, "memories": memories})
        return {"name": self.name, "rooms": rooms}

    def usage(self, graph: Graph, options: Options) -> dict[str, dict[str, Any]]:
        """Per layer: its core, and the words of each memory it uses and leaves free."""
        table: dict[str, dict[str, Any]] = {}
        for core in self.config(graph, options).cores:
            sizes = dict(zip(("kernel", "neuron", "bias"), self.chip.cores[core.index].words, strict=True))
            row: dict[str, Any] = {"core": core.index}
            for (what, size), n in zip(sizes.items(), core.memory, strict=True):
                row |= {f"{what}_used": n, f"{what}_free": size - n}
            table[core.name] = row
        return table
