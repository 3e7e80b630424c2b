"""The target: passes, forms and files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from snncc.ir import Graph
from snncc.ir.diagnostics import input_error
from snncc.ir.types import Array
from snncc.passes.base import Pass
from snncc.passes.calibrate import Calibrate
from snncc.passes.calibrate_reset import CalibrateReset
from snncc.passes.canonicalize import Canonicalize
from snncc.passes.check_bias import CheckBias
from snncc.passes.fold_batch_norm import FoldBatchNorm
from snncc.passes.lower_activations import LowerActivations
from snncc.passes.lower_pooling import LowerPooling
from snncc.passes.quantize import Quantize
from snncc.targets.base import Options, Target, Written, WrittenGraph
from snncc.targets.lynxi.check import (
    FP16,
    KA200,
    MOST_INPUT,
    MOST_PER_AXIS,
    MOST_PER_PLANE,
    CheckLimits,
    CheckLyngor,
    tensors,
)
from snncc.targets.lynxi.evidence import MOST_AXES
from snncc.targets.lynxi.lower import OUTER_LOOP, UNROLLED, Program, lower
from snncc.targets.lynxi.precision import measure, size

if TYPE_CHECKING:
    import torch

BATCHES = (1, 2, 4, 7, 14, 28)  # BIDL_doc_en, model_multi_batch_inference_APU.rst
CLAIM = "emits the published lyngor contract; not compiled by lyngor here"
WIDTH = 24  # bits: float32 holds all integers up to 2**WIDTH
RESOLUTION = 2**10  # of potentials in thresholds: fp16 has it from one to two thresholds


@dataclass(frozen=True, repr=False)
class Lynxi(Target):
    """Lynxi KA200 / HP300: the published contract of its compiler lyngor, which is on no registry."""

    name: str = "lynxi"
    summary: str = f"KA200 (Lynxi); {CLAIM}"
    takes: ClassVar[Mapping[str, Sequence[Any] | None]] = {
        "form": (None, OUTER_LOOP, UNROLLED), "monitor": None, "batch": None, "oversize": None,
    }  # fmt: skip
    spiking: ClassVar[bool] = True
    run_flags: ClassVar[Mapping[str, str]] = {
        "timesteps": "--timesteps",
        "executor": "--executor",
        "model": "--model",
        "device": "--device",
    }

    def passes(self, options: Options) -> list[Pass]:
        """From the traced graph to integers that fp16 holds."""
        hard = options.reset == "zero"
        v0 = options.v0 if options.v0 is not None else 0.0 if hard else 0.5
        return [
            Canonicalize(),
            FoldBatchNorm(ones=False),
            CheckLimits(options.oversize),
            CheckBias(options.bias, cost=False),
            Calibrate(options.threshold, options.percentile, options.per),
            LowerActivations(options.encoding or "constant", options.reset, v0, seed=options.seed),
            LowerPooling(),
            *([CalibrateReset()] if hard else []),
            Quantize(
                options.weight_bits or WIDTH,
                bias_bits=WIDTH,
                threshold_bits=WIDTH - 1,
                input_bits=10,  # the rest of an input layer's bits is its weights'
                scale_bits=WIDTH,
                least_bits=8,
                significant=11,  # of an fp16 number
                inner_max=2**12,
                resolution=RESOLUTION,
                current_max=max(2**12, 3 * 2 ** (WIDTH - 2) // options.timesteps),  # and a threshold: up to 2**WIDTH
            ),
            CheckLyngor(options.form or OUTER_LOOP, options.batch, options.monitor),
        ]

    def accept(self, options: Options) -> None:
        """Also refuse what the arithmetic cannot hold, and batches that lyngor is not known to take."""
        super().accept(options)
        if (options.weight_bits or 12) > 12:
            text = f"weight_bits={options.weight_bits}: an fp16 number holds 12, with the sign"
            raise input_error("SNN082", text, "leave it out")
        if options.form != UNROLLED and options.batch not in BATCHES:
            raise input_error(
                "SNN082",
                f"batch={options.batch}: of one time step, lyngor takes {', '.join(map(str, BATCHES))}",
                "choose one of them, or form='unrolled'",
            )

    def environments(self, graph: Graph, options: Options) -> tuple[str, ...]:
        """Where run.py finds onnxruntime. Lynxi's own runtime is where the user has it."""
        return ("onnxruntime",)

    def files(self, graph: Graph, options: Options) -> dict[str, str | bytes]:
        """The network in plain data, as TorchScript and as an ONNX step, and what compiles and runs it.

        Raises:
            InputError: onnx is missing, which writes the step.
        """
        from snncc.targets.lynxi import model, onnx_step

        program = _lower(graph, options)
        network, script = io.BytesIO(), io.BytesIO()
        np.savez(network, **{name: _compact(array) for name, array in program.arrays.items()})  # type: ignore[arg-type]
        module = model.build(program.network, program.arrays)
        model.trace(module, model.example(program.network), script)
        step = program if program.network["form"] == OUTER_LOOP else _lower(graph, replace(options, form=OUTER_LOOP))
        return {
            "network.json": json.dumps(program.network, indent=1) + "\n",
            "network.npz": network.getvalue(),
            "network.pt": script.getvalue(),
            "step.onnx": onnx_step.write(step),
            **{name: _text(name) for name in ("model.py", "compile_lynxi.py", "run.py")},
        }

    def read_back(self, files: Mapping[str, str | bytes]) -> dict[str, Written | WrittenGraph]:
        """The module, the TorchScript and the ONNX step."""
        from snncc.targets.lynxi import readback

        return readback.read_back(files)

    def modules(self, graph: Graph, options: Options) -> torch.nn.Module:
        """The network as a plain torch module of what lyngor is known to take, see :mod:`snncc.targets.lynxi.model`."""
        from snncc.targets.lynxi import model

        program = _lower(graph, options)
        return model.build(program.network, program.arrays)

    def measured(self, graph: Graph, options: Options, xs: Sequence[Array]) -> dict[str, dict[str, Any]]:
        """Of every neuron, the part of its spikes that fp16 changes."""
        _, loss = measure(graph, xs, options.timesteps)
        return {} if loss is None else {name: {"fp16_differs": part} for name, part in loss.spikes.items()}

    def limits(self) -> dict[str, Any]:
        """What is published of the chip and its compiler."""
        return {
            **KA200,
            "axes": MOST_AXES,
            "values_per_axis": MOST_PER_AXIS,
            "bytes_per_plane": MOST_PER_PLANE,
            "input_bytes": MOST_INPUT,
            "batches": list(BATCHES),
            "precision": "fp16",
        }

    def rooms(self, graph: Graph, options: Options) -> dict[str, Any]:
        """One chip, which is not divided into cores that a program sees."""
        found = size(graph)
        memories = [
            {"name": what, "used": found[what], "size": KA200[what], "unit": ""} for what in ("neurons", "synapses")
        ]
        return {"name": "KA200", "rooms": [{"name": "KA200", "place": "", "cores": 1, "memories": memories}]}

    def mapping(self, graph: Graph, options: Options) -> dict[str, Any]:
        """The form, the size against one chip, and every tensor's bytes."""
        found, all_tensors = size(graph), tensors(graph)
        return {
            "claim": CLAIM,
            "form": options.form or OUTER_LOOP,
            "timesteps": options.timesteps,
            "batch": options.batch,
            "neurons": found["neurons"],
            "neurons_used": found["neurons"] / KA200["neurons"],
            "synapses": found["synapses"],
            "synapses_used": found["synapses"] / KA200["synapses"],
            "operations_per_step": found["operations"],
            "weight_bytes": found["synapses"] * FP16,
            "state_bytes": sum(t["bytes"] for t in all_tensors if t["op"] in ("if", "lif")),
            "tensors": all_tensors,
        }


def _lower(graph: Graph, options: Options) -> Program:
    return lower(graph, options.form or OUTER_LOOP, options.timesteps, options.batch, options.monitor)


def _compact(array: Array) -> Array:
    """In fp16, if that is exact."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if (half == array).all() else array


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
