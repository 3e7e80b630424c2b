"""The target: passes, forms and files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from snncc.ir import CompileError, Diagnostic, Graph
from snncc.ir.diagnostics import input_error
from snncc.ir.loihi import SHIFT, STATE
from snncc.ir.ranges import Ranges
from snncc.ir.types import Array
from snncc.passes.base import Pass
from snncc.passes.calibrate import Calibrate
from snncc.passes.calibrate_reset import CalibrateReset
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.check_bias import CheckBias
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.lower_activations import LowerActivations, SpikingOutput
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.lower_sigma_delta import LowerSigmaDelta
from snncc.passes.quantize import Quantize
from snncc.passes.quantize_sigma_delta import QuantizeSigmaDelta
from snncc.targets.base import Options, Target, Written, WrittenGraph
from snncc.targets.lava import netx, readback
from snncc.targets.lava.loihi2 import LOIHI2, NAMES, Partition, PlaceOnCores, partition
from snncc.targets.lava.lower import (
    LIMIT,
    AbsorbAffine,
    CheckSynapses,
    LowerNeurons,
    SeparateCurrents,
    charges,
    longest,
    sums,
)
from snncc.targets.lava.program import Program

LARGEST = (STATE - 1) >> SHIFT  # of thresholds, currents and charges, in units of the synaptic sum
THETA = 2**12 - 1  # lava-nc, atrlif/models.py: theta_0 has 12 bits; a threshold is twice that
RUNNER = ("run.py", "processes/snncc_processes.py")


@dataclass(frozen=True, repr=False)
class Lava(Target):
    """Loihi 2 through Intel's Lava: as a netx `.net` file, or as a graph of `lava.proc` processes.

    Neurons: ``neuron="if"`` with ``reset="subtract"`` (the default: Lava's ATRLIF) or ``reset="zero"`` (LIF, the only
    one that netx has); ``neuron="sigma-delta"`` computes the quantized network itself, in messages that carry numbers.
    """

    name: str = "lava"
    summary: str = "Loihi 2 (Intel); equals Lava's CPU simulation spike for spike"
    takes: ClassVar[Mapping[str, Sequence[Any] | None]] = {
        "neuron": ("if", "sigma-delta"),
        "form": (None, "netx", "process"),
        "oversize": None,
    }
    run_flags: ClassVar[Mapping[str, str]] = {
        "timesteps": "--timesteps",
        "record": "--record",
        "hardware": "--hardware",
    }

    def accept(self, options: Options) -> None:
        """Also refuse options that exclude each other."""
        super().accept(options)
        if (options.weight_bits or 8) > 8:
            text = f"weight_bits={options.weight_bits}: the chip's weights have 8 bits"
            raise input_error("SNN082", text, "leave it out")
        if options.neuron == "if" and options.form == "netx" and options.reset != "zero":
            raise input_error(
                "SNN083",
                "form='netx' with reset='subtract': netx has no neurons that subtract their threshold",
                "choose reset='zero', or form='process'",
            )
        if options.neuron == "sigma-delta":
            plain = Options()
            wrong = [n for n in ("reset", "threshold", "v0") if getattr(options, n) != getattr(plain, n)]
            wrong += ["encoding"] if options.encoding not in (None, "constant") else []
            for name in wrong:
                text = f"{name}={getattr(options, name)!r} means nothing to sigma-delta neurons"
                raise input_error("SNN083", text, "they have no thresholds and no reset, and take constant inputs")

    def passes(self, options: Options) -> list[Pass]:
        """From the traced graph to cores."""
        return _sigma_delta(options) if options.neuron == "sigma-delta" else _integrate_and_fire(options)

    def beyond(self, graph: Graph, found: Ranges, timesteps: int) -> Iterator[tuple[str, str, str]]:
        """Sums wrap around, and potentials saturate, at 24 bits."""
        for name, size in sums(graph, found).items():
            text = f"what flows into `{name}` in one step may reach {size:,.0f}, and wraps around at {LIMIT:,}"
            yield "sum", name, text
        for name, size in charges(graph, found).items():
            yield "state", name, f"the potentials of `{name}` may reach {size:,.0f}, and saturate at {LIMIT:,}"

    def environments(self, graph: Graph, options: Options) -> tuple[str, ...]:
        """lava-dl's for netx; for processes lava-nc is enough."""
        return ("lava",) if self._form(_read(graph)[0], options)[0] == "netx" else ("lava", "lava-nc")

    def files(self, graph: Graph, options: Options) -> dict[str, str | bytes]:
        """The program in its form, and what runs it.

        Raises:
            CompileError: the form that was asked for cannot hold the network.
            InputError: h5py is missing, which writes netx files.
        """
        program, _ = _read(graph)
        form, _ = self._form(program, options)
        files: dict[str, str | bytes] = {name: _text(name) for name in RUNNER}
        arrays: dict[str, Array] = {}
        files["network.json"] = (
            json.dumps(_description(program, form, options, arrays, longest(graph, MOST_STEPS)), indent=1) + "\n"
        )
        if form == "netx":
            files["network.net"] = netx.write(program)
        else:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            files["network.npz"] = buffer.getvalue()
        return files

    def read_back(self, files: Mapping[str, str | bytes]) -> dict[str, Written | WrittenGraph]:
        """The netx file, or the processes."""
        return readback.read_back(files)

    def _form(self, program: Program, options: Options) -> tuple[str, str]:
        """The form, and why it was chosen.

        Raises:
            CompileError: netx was asked for and cannot hold the network.
        """
        why = list(netx.misfits(program))
        if options.form == "netx" and why:
            loc = program.graph[program.outputs[0]].loc
            hint = "choose form='process', or leave it out"
            raise CompileError(
                [Diagnostic("SNN067", f"netx cannot hold this network: {text}", loc, hint=hint) for text in why]
            )
        if options.form is not None:
            return options.form, "asked for"
        return ("process", f"netx cannot hold it: {why[0]}") if why else ("netx", "netx can hold it")

    def limits(self) -> dict[str, Any]:
        """The chip's."""
        return asdict(LOIHI2)

    def usage(self, graph: Graph, options: Options) -> dict[str, dict[str, Any]]:
        """Per layer: neurons, synapses and cores."""
        return _read(graph)[1].usage()

    def rooms(self, graph: Graph, options: Options) -> dict[str, Any]:
        """The cores of every population, and how full the fullest of them is in percent."""
        cores = _read(graph)[1].mapping()
        rooms = [
            {
                "name": row["place"],
                "place": row["place"],
                "cores": row["cores"],
                "memories": [
                    {"name": NAMES[name], "used": fill, "size": 100, "unit": "%"} for name, fill in row["fill"].items()
                ],
            }
            for row in cores["populations"]
        ]
        return {"name": cores["chip"], "note": cores["basis"], "rooms": rooms}

    def mapping(self, graph: Graph, options: Options) -> dict[str, Any]:
        """The form and why, and the partition over cores and chips."""
        program, cores = _read(graph)
        form, why = self._form(program, options)
        return {"form": form, "why": why, "latency": program.latency, **cores.mapping()}


def _integrate_and_fire(options: Options) -> list[Pass]:
    bits = options.weight_bits or 8
    hard = options.reset == "zero"
    v0 = options.v0 if options.v0 is not None else 0.0 if hard else 0.5
    # ATRLIF's potential holds all charge so far: one spike a step must fit for all steps.
    most = LARGEST if hard else min(LARGEST // (options.timesteps + 1), 2 * THETA)
    return [
        Canonicalize(),
        FoldBatchNorm(),
        CheckSynapses(),
        SpikingOutput(direct=True),
        SeparateCurrents(),
        AbsorbAffine(),
        Canonicalize(),  # activations behind a concatenation go in front of it, now that nothing is between
        CheckBias(options.bias, cost=False),
        Calibrate(options.threshold, options.percentile, options.per),
        LowerActivations(options.encoding or "constant", options.reset, v0, seed=options.seed),
        *([CalibrateReset()] if hard else []),
        LowerPooling(),  # what no synapse computes, check-synapses has said
        # Biases: 13 bits of mantissa with the exponent 6 count whole units, as in netx.
        Quantize(
            bits,
            bias_bits=13,
            threshold_bits=18,
            scale_bits=15,
            threshold_max=most,
            threshold_step=1 if hard else 2,
            current_max=LARGEST - 2**12,  # and a bias
            state_bits=18,
            # A product of weight and input has to fit under the threshold, which for ATRLIF has some 12 bits.
            input_bits=8 if hard else 6,
            currents=False,
        ),
        LowerNeurons(),
        PlaceOnCores(oversize=options.oversize),
    ]


def _sigma_delta(options: Options) -> list[Pass]:
    return [
        Canonicalize(),
        FoldBatchNorm(ones=False),
        CheckSynapses(signed=True),
        CheckBias(options.bias, cost=False),
        Calibrate("max", per=options.per),
        LowerSigmaDelta(),
        LowerPooling(),
        QuantizeSigmaDelta(options.weight_bits or 8, scale_bits=14, per=options.per),
        PlaceOnCores(oversize=options.oversize),
    ]


@lru_cache(maxsize=1)  # one compile asks several times
def _read(graph: Graph) -> tuple[Program, Partition]:
    program = Program(graph)
    return program, partition(program)


MOST_STEPS = int(Options.RANGES["timesteps"][2])


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _description(program: Program, form: str, options: Options, arrays: dict[str, Array], most: int) -> dict[str, Any]:
    """network.json; fills ``arrays``, which go into network.npz under the names that it gives. ``most``: time steps for
    which all potentials are proved to fit."""

    def keep(name: str, array: Array) -> str:
        arrays[name] = array
        return name

    return {
        "format": 1,
        "snncc": version("snncc"),
        "form": form,
        "timesteps": options.timesteps,
        "longest": max(options.timesteps, most),
        "latency": program.latency,
        "inputs": [{"name": n, "shape": list(s), "message_bits": b} for n, s, b in program.inputs],
        **({"pulses": {"name": Program.PULSES, "messages": program.pulses}} if program.pulses else {}),
        "populations": [
            {
                "name": p.name,
                "kind": p.kind,
                "shape": list(p.shape),
                "depth": p.depth,
                "parameters": p.parameters,
                "arrays": {what: keep(f"population{i}.{what}", array) for what, array in p.arrays.items()},
            }
            for i, p in enumerate(program.populations)
        ],
        **({} if form == "netx" else {"connections": _connections(program, keep)}),
        "outputs": list(program.outputs),
    }


def _connections(program: Program, keep: Callable[[str, Array], str]) -> list[dict[str, Any]]:
    described = []
    for i, connection in enumerate(program.connections):
        names = ("source", "destination", "kind", "shape", "message_bits", "delay", "exponent")
        data = {name: getattr(connection, name) for name in names} | connection.geometry
        for what in ("weight", "rows", "columns", "values"):
            if (array := getattr(connection, what)) is not None:
                data[what] = keep(f"connection{i}.{what}", array)
        described.append(data)
    return described
