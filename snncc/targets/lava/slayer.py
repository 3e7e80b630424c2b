"""A compiled network as SLAYER's blocks, for people who go on training it with lava-dl.

Runs where lava-dl is installed, and only there. Source of SLAYER's arithmetic: lava-dl 0.6.0, lava/lib/dl/slayer
(block/, synapse/layer.py, neuron/{base,cuba,norm,sigma_delta}.py, neuron/dynamics/leaky_integrator.py, axon/delta.py,
dendrite/sigma.py). It computes in float32, with our integers times a power of two: exactly, as far as sums and parts of
sums stay within 24 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from snncc.ir import CompileError, Diagnostic, Graph, ops
from snncc.ir.diagnostics import input_error
from snncc.ir.encode import encode
from snncc.ir.interp import check_input
from snncc.ir.loihi import SHIFT, STATE, UNITY, CubaLif, Delta, Sigma, SigmaDelta
from snncc.targets.base import Options
from snncc.targets.lava.netx import BIAS, misfits
from snncc.targets.lava.program import Connection, Program

if TYPE_CHECKING:
    import torch

SCALE = 2**SHIFT  # SLAYER's weights, thresholds and biases are integers over 64
FINE = SCALE**2  # its potentials and messages, integers over 4096


class Compiled(Protocol):
    """What is needed of a :class:`snncc.CompiledModel`."""

    options: Options

    @property
    def graph(self) -> Graph: ...


def blocks(compiled: Compiled) -> list[torch.nn.Module]:
    """The network as blocks of ``slayer.block.cuba`` or ``slayer.block.sigma_delta``: Input, then Conv, Dense, Flatten.

    ``torch.nn.Sequential(*blocks(compiled))`` takes what :func:`encoded` gives, (N, *shape, T), and sends what the
    layers of :meth:`snncc.CompiledModel.simulate` send, (N, *shape, T), exactly, block by block; in training mode, too.
    Messages of sigma-delta neurons count 1/4096 here; the last block sends changes of the scores, which add up to them.

    The blocks have ``delay_shift=False``: time is each layer's own. With True, SLAYER's default for ``cuba``, a block's
    spikes come one step later than those of the one before, and biases act from step 0 on. Potentials do not saturate
    in SLAYER; here and on the chip they do, at 24 bits (SNN065 in ``compiled.diagnostics`` names layers that are not
    proved to stay within).

    Weights (8 bits) and biases (13 bits of CUBA neurons) are parameters, quantized in every forward pass, with SLAYER's
    straight-through gradients. Average pooling is part of the next layer's kernel, and trained as such. ``export_hdf5``
    of CUBA blocks writes what the emitted `.net` file has; netx has no neurons for the sigma-delta ones.

    Raises:
        CompileError: SNN067, what SLAYER's blocks cannot hold: soft reset, initial potentials, all that is no sequence.
        InputError: SNN080, lava-dl is not installed.
    """
    program = Program(compiled.graph)
    _check(program)
    try:
        from lava.lib.dl import slayer
    except ImportError as error:
        raise input_error(
            "SNN080",
            f"SLAYER's blocks need lava-dl: {error}",
            "`python -m snncc.sdk build lava` builds an environment with it, into which snncc can be installed",
        ) from None
    import torch

    shape = program.inputs[0][1]
    made: list[torch.nn.Module] = []
    for population in program.populations:
        op = compiled.graph[population.name].op
        if isinstance(op, Delta):
            made.append(_delta(slayer, op))
            continue
        made = made or [slayer.block.cuba.Input(None, delay_shift=False)]
        connection = _into(program, population.name)[0]
        if connection.kind == "dense" and len(shape) > 1:
            made.append(slayer.block.cuba.Flatten())
        made.append(_block(slayer, op, connection, _bias(compiled.graph, population.name)))
        shape = population.shape
    if len(shape) > len(compiled.graph[compiled.graph.outputs[0]].type.shape):
        made.append(slayer.block.cuba.Flatten())
    with torch.no_grad():  # blocks learn their shapes from what they see; without these they cannot be exported
        torch.nn.Sequential(*made)(torch.zeros(1, *program.inputs[0][1], 1))
    return made


def encoded(compiled: Compiled, x: Any, timesteps: int | None = None) -> torch.Tensor:
    """Input as the blocks take it: in the integers that :meth:`snncc.CompiledModel.simulate` makes of it.

    Args:
        x: real (N, *shape), or counts (T, N, *shape) if compiled with encoding="spikes".
        timesteps: T; by default the one compiled for.

    Returns:
        float32 (N, *shape, T).

    Raises:
        InputError: input that does not fit, or that the encoding cannot express.
    """
    import torch

    (x,) = check_input(compiled.graph, (np.asarray(x),), timed=True)
    (op,) = (node.op for node in compiled.graph.nodes if isinstance(node.op, ops.Encode))
    steps = compiled.options.timesteps if timesteps is None else timesteps
    return torch.from_numpy(np.moveaxis(encode(op, x, steps, integer=True), 0, -1).astype(np.float32))


# --- what can be held -----------------------------------------------------------------------------------------------


def _check(program: Program) -> None:
    """Raise CompileError where the blocks would compute, or export, another network."""
    soft = any(population.kind == "atr_lif" for population in program.populations)
    hint = "compile with reset='zero'" if soft else "compiled.save() writes it as a graph of Lava processes"
    loc = program.graph[program.outputs[0]].loc
    found = [
        Diagnostic("SNN067", f"SLAYER's blocks cannot hold this network: {text}", loc, hint=hint)
        for text in _misfits(program)
    ]
    if found:
        raise CompileError(found)


def _misfits(program: Program) -> Iterator[str]:
    """Why the blocks cannot hold the program; nothing if they can."""
    graph = program.graph
    if any(population.kind == "delta" for population in program.populations):
        yield from _sigma_delta_misfits(program)
    else:
        yield from misfits(program)
    for population in program.populations:
        if (rows := _bias(graph, population.name)) is not None and (rows != rows[:, :1]).any():
            yield f"it has one bias per channel, `{population.name}` has one per neuron"


def _sigma_delta_misfits(program: Program) -> Iterator[str]:
    graph, before = program.graph, program.inputs[0][0]
    if len(program.inputs) > 1 or program.outputs != (program.populations[-1].name,):
        yield "it has one input, and one output, its last layer"
    for node in graph.nodes:
        if isinstance(node.op, ops.Encode) and node.op.method != "constant":
            yield f"its input is constant: SLAYER rounds negative changes otherwise, as in encoding={node.op.method!r}"
    for population in program.populations:
        name, op, connections = population.name, graph[population.name].op, _into(program, population.name)
        if [c.source for c in connections] != [before] or connections[0].kind == "sparse":
            yield f"it is a sequence, each layer reads the one before; `{name}` does not, or not through one layer"
        if isinstance(op, SigmaDelta) and op.activation != "relu":
            yield f"SLAYER rounds negative messages otherwise, which `{name}` sends, as no ReLU is there"
        if getattr(op, "threshold", 0):
            yield f"its neurons send every change, those of `{name}` do not"
        before = name


def _into(program: Program, name: str) -> list[Connection]:
    """What ends at a population, but for pulses, which bring biases."""
    return [connection for connection in program.into(name) if connection.source != Program.PULSES]


def _bias(graph: Graph, name: str) -> Any:
    """A neuron's bias in its own units, (channels, 1 or neurons of a channel), or None."""
    bias = getattr(graph[name].op, "bias", None)
    return None if bias is None else graph.value(bias).reshape(len(graph.value(bias)), -1)


# --- blocks ---------------------------------------------------------------------------------------------------------


def _delta(slayer: Any, op: Delta) -> torch.nn.Module:
    """What sends the changes of the input."""
    block = slayer.block.sigma_delta.Input({"threshold": 0.0, "activation": _identity})
    block.pre_hook_fx = partial(_times, factor=op.scale / FINE)
    return block  # type: ignore[no-any-return]


def _block(slayer: Any, op: ops.Op, connection: Connection, bias: Any) -> torch.nn.Module:
    """A layer of weights and its neurons."""
    import torch

    neuron: dict[str, Any]
    if isinstance(op, CubaLif):
        family, unit, bias_unit, bias_range = slayer.block.cuba, 1 / SCALE, 1 / SCALE, BIAS
        bias = None if bias is None else bias >> SHIFT
        neuron = {
            "threshold": op.threshold / SCALE,
            "current_decay": op.decay_u / UNITY,
            "voltage_decay": op.decay_v / UNITY,
        }
    else:
        assert isinstance(op, SigmaDelta | Sigma)
        # Messages are rounded down to 1/4096: with such weights, where ours are shifted.
        unit = 1.0 if isinstance(op, Sigma) else 2.0**-op.shift
        family, bias_unit, bias_range = slayer.block.sigma_delta, unit / FINE, range(1 - STATE, STATE)
        neuron = {
            "threshold": 0.0,
            "activation": _identity if isinstance(op, Sigma) else torch.nn.functional.relu,
        }
    if bias is not None:
        neuron["norm"] = slayer.neuron.norm.MeanOnlyBatchNorm
    quantized = partial(_quantized, quantize=slayer.utils.quantize, netx=isinstance(op, CubaLif))
    weight = connection.weight
    assert weight is not None
    options = {"neuron_params": neuron, "pre_hook_fx": partial(quantized, unit=unit, low=-128, high=127)}
    if connection.kind == "dense":
        block = family.Dense(in_neurons=weight.shape[1], out_neurons=len(weight), delay_shift=False, **options)
    else:
        g = connection.geometry
        block = family.Conv(
            in_features=g["input_shape"][0],
            out_features=len(weight),
            kernel_size=weight.shape[2:],
            stride=g["stride"],
            padding=g["padding"],
            dilation=g["dilation"],
            groups=g["groups"],
            delay_shift=False,
            **options,
        )
    parameter = block.synapse.weight
    parameter.data = torch.from_numpy(weight * unit).to(parameter.dtype).reshape(parameter.shape)
    if isinstance(op, CubaLif):
        # A spike comes where v > threshold; SLAYER asks whether v >= threshold + 2.4e-6, in float32, where the two are
        # the same from 64 on. Potentials are whole numbers of 1/4096: half of one is exact as far as 24 bits go.
        block.neuron.tau_rho = block.neuron._threshold = block.neuron._threshold + 0.5 / FINE
    if bias is not None:
        # SLAYER's bias is minus the mean that its batch norm subtracts: here a parameter, not a running mean.
        norm = block.neuron.norm
        norm.num_features, norm.update = len(bias), False
        norm.pre_hook_fx = partial(quantized, unit=bias_unit, low=-bias_range[-1], high=-bias_range[0])
        norm.running_mean = torch.nn.Parameter(torch.from_numpy(-bias[:, 0] * bias_unit).to(parameter.dtype))
    assert isinstance(block, torch.nn.Module)
    return block


# SLAYER's hooks are called with descale=True by its export, for the integers. Named functions, as blocks are copied.


def _quantized(
    x: torch.Tensor, descale: bool = False, *, quantize: Any, unit: float, low: int, high: int, netx: bool
) -> torch.Tensor:
    if descale and not netx:
        message = "netx files cannot hold these sigma-delta neurons: netx shifts all messages by 6 bits"
        raise input_error("SNN067", message, "compiled.save() writes the network that was compiled as Lava processes")
    whole: torch.Tensor = quantize(x, step=unit).clamp(low * unit, high * unit)
    return whole / unit if descale else whole


def _times(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x
