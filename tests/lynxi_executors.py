"""Runs a network compiled for Lynxi in what executes it outside of our own engine: what tests of the target share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import snncc
from snncc.ir.types import Array
from snncc.targets.lynxi import lower, model, onnx_step
from snncc.targets.lynxi.lower import Program


def program(compiled: snncc.CompiledModel) -> Program:
    o = compiled.options
    return lower.lower(compiled.graph, o.form or lower.OUTER_LOOP, o.timesteps, o.batch, o.monitor)


def step_program(compiled: snncc.CompiledModel) -> Program:
    """One time step, whatever form was asked for."""
    o = compiled.options
    return lower.lower(compiled.graph, lower.OUTER_LOOP, o.timesteps, monitor=o.monitor)


def encoded(compiled: snncc.CompiledModel, xs: Sequence[Array], timesteps: int) -> list[Array]:
    """The inputs in whole numbers, float32 (T or 1, N, *shape)."""
    found = []
    for node, coded in zip(compiled.graph.inputs, compiled._encoded(tuple(xs), timesteps), strict=True):
        constant = coded.ndim == 1 + len(node.type.shape)
        found.append((coded[None] if constant else coded).astype(np.float32))
    return found


def by_torch(module: Any, compiled: snncc.CompiledModel, xs: Sequence[Array], timesteps: int) -> list[Array]:
    """The outputs of every time step, in the graph's integers (T, N, *shape), of a module in its form: one that was
    built, or TorchScript."""
    made = program(compiled)
    network = made.network
    coded = encoded(compiled, xs, timesteps)
    n = coded[0].shape[1]
    model.reset()
    with torch.no_grad():
        if network["form"] == lower.UNROLLED:
            folded = [torch.from_numpy(x.reshape(-1, *x.shape[2:])) for x in coded]
            answers = [_tuple(module(*folded))]
        else:
            answers = [
                _tuple(module(*(torch.from_numpy(x[t if len(x) > 1 else 0]) for x in coded))) for t in range(timesteps)
            ]
    model.reset()
    whole = [torch.cat([answer[i] for answer in answers]).double().numpy() for i in range(len(answers[0]))]
    return [
        y.reshape(timesteps, n, *entry["shape"]) / made.value(entry, "scale")
        for y, entry in zip(whole, network["outputs"], strict=True)
    ]


def _tuple(y: Any) -> tuple[torch.Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def by_script(compiled: snncc.CompiledModel, xs: Sequence[Array], timesteps: int) -> list[Array]:
    """The same of the TorchScript file, read back."""
    return by_torch(script(compiled), compiled, xs, timesteps)


def script(compiled: snncc.CompiledModel) -> torch.jit.ScriptModule:
    content = compiled.target.files(compiled.graph, compiled.options)["network.pt"]
    assert isinstance(content, bytes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return torch.jit.load(io.BytesIO(content))


def by_onnxruntime(
    compiled: snncc.CompiledModel, xs: Sequence[Array], timesteps: int, precision: str = "float32"
) -> list[Array]:
    """The same of the ONNX step."""
    import onnxruntime

    made = step_program(compiled)
    session = onnxruntime.InferenceSession(onnx_step.write(made, precision), providers=["CPUExecutionProvider"])
    coded = [x.astype(precision) for x in encoded(compiled, xs, timesteps)]
    n = coded[0].shape[1]
    names = [output.name for output in session.get_outputs()]
    feeds = {
        f"{name}.state": np.zeros((n, *shape), precision) for name, shape in onnx_step.states(made.network).items()
    }
    rows: list[list[Array]] = [[] for _ in made.network["outputs"]]
    for t in range(timesteps):
        for entry, x in zip(made.network["inputs"], coded, strict=True):
            feeds[entry["name"]] = x[t if len(x) > 1 else 0]
        results = dict(zip(names, session.run(None, feeds), strict=True))
        for row, entry in zip(rows, made.network["outputs"], strict=True):
            row.append(results[f"{entry['value']}.output"].astype(np.float64) / made.value(entry, "scale"))
        feeds |= {f"{n.removesuffix('.next')}.state": y for n, y in results.items() if n.endswith(".next")}
    return [np.stack(row) for row in rows]


def by_simulate(compiled: snncc.CompiledModel, xs: Sequence[Array], timesteps: int) -> list[Array]:
    """What our engine says of the same values: whole numbers (T, N, *shape)."""
    names = [*compiled.graph.outputs, *compiled.options.monitor]
    done = compiled.simulate(tuple(xs), timesteps, record=names)
    return [np.asarray(done.spikes[name] if name in done.spikes else done.values[name], np.float64) for name in names]


def neurons(compiled: snncc.CompiledModel) -> list[str]:
    """The names of all neurons."""
    return [n.name for n in compiled.graph.nodes if n.op.mnemonic in ("if", "lif")]


def monitored(network: Any, x: Array, **options: Any) -> snncc.CompiledModel:
    """The network compiled for Lynxi, so that every neuron is an output as well."""
    options = {"selfcheck": False, **options}
    first = snncc.compile(network, "lynxi", calibration=x, **options)
    return snncc.compile(network, "lynxi", calibration=x, monitor=neurons(first), **options)
