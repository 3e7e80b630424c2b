"""Lava's network files: `.net`, HDF5, written by SLAYER and loaded by netx, as graphs of stage ``int``.

A graph computes what ``lava.lib.dl.netx.hdf5.Network`` does on Lava's CPU simulation (Loihi2SimCfg, "fixed_pt"), step
by step in hardware time: every synapse has one step of latency, biases act from step 0. What netx does wrong is done
wrong here as well, with a warning. Sources: lava-dl 0.6.0, netx/hdf5.py, netx/utils.py and netx/blocks/process.py;
lava-nc 0.10.0, proc/{lif,sdn,dense,conv}. Shapes are (C, H, W) here, (W, H, C) in Lava.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from snncc.ir import Diagnostic, Graph, InputError, Loc, Node, Severity, Source, Stage, Store
from snncc.ir.diagnostics import errors, input_error, wrong_value
from snncc.ir.loihi import SHIFT, SUM, UNITY, CubaLif, Delay, Delta, LoihiNeuron, Sigma, SigmaDelta, synapse_weights
from snncc.ir.ops import Add, Affine, Conv2d, Encode, Flatten, Input, Linear, Op, ShapeError
from snncc.ir.types import Array, Param, identifier

_MOST_DELAY = 62
# Fields that say what others say as well, or that only training reads.
_REDUNDANT = {"inFeatures", "outFeatures", "inChannels", "outChannels", "kernelSize", "scaleRho", "tauRho", "theta"}
# Fields that netx does not read, with the one value that says what it does.
_FIXED: dict[str, object] = {"wgtExp": 0, "refDelay": 1, "gradedSpike": False, "activation": b"relu"}


def read_netx(
    path: str | os.PathLike[str],
    *,
    num_layers: int | None = None,
    spike_exp: int = 6,
    input_shape: tuple[int, int, int] | None = None,
) -> tuple[Graph, list[Diagnostic]]:
    """Read a `.net` file.

    The graph's value ``layer_<i>`` is what the neurons of the file's layer i send; the last one is the output. What to
    feed depends on the first layer:

    - An input layer with neurons: images x (N, *shape), real. In every step the neurons get ``rint(x * weight) + bias``
      of that layer (64 and 0 where the file has none), CUBA as ``bias_mant``, SDNN as ``a_in``. (Lava holds
      ``bias_mant`` in 16 bits, and wraps; the graph does not.)
    - Else: spikes (T, N, *shape), 0 or 1; or larger numbers, which netx takes with its option ``input_message_bits``.

    All samples start anew, as after a compile in Lava: there is no counterpart of netx's ``reset_interval``.

    Args:
        num_layers: read so many layers, counted as netx does: input and flatten are layers as well.
        spike_exp: netx's option of that name, for SDNN: a message of ``2**spike_exp`` is a change by 1.
        input_shape: (C, H, W), for a file without an input layer that starts with a convolution. Where the file says
            the shape, the file is right.

    Returns:
        The graph, and warnings: what netx ignores or changes.

    Raises:
        InputError: the file, or something in it, cannot be read, by us or by netx: everything that was found.
    """
    if num_layers is not None and num_layers < 1:
        raise wrong_value("num_layers", num_layers, "is below 1")
    if not 0 <= spike_exp <= 16:
        raise wrong_value("spike_exp", spike_exp, "is not from 0 to 16")
    try:
        import h5py
    except ImportError:
        raise input_error("SNN101", "reading .net files takes h5py", "pip install 'snncc[lava]'") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise input_error("SNN071", f"{os.fspath(path)} is no HDF5 file: {error}") from None
    reader = _Reader(Store(), spike_exp)
    with file:
        groups = file.get("layer")
        if not isinstance(groups, h5py.Group) or not groups:
            raise input_error("SNN071", f"{os.fspath(path)} is no .net file: it has no layers in a group `layer`")
        layers = [reader.layer(groups, i) for i in range(min(len(groups), num_layers or len(groups)))]
    if not errors(reader.found):
        graph = reader.graph([layer for layer in layers if layer], input_shape, identifier(Path(path).stem))
        if graph is not None:
            return graph, reader.found
    raise InputError(reader.found)


class _Refused(Exception):
    """Why a layer cannot be read: code, message and hint of its diagnostic."""


# --- fields ----------------------------------------------------------------------------------------------------------


class _Fields:
    """A layer's or neuron's group. Knows which of its fields were read."""

    def __init__(self, group: Any, index: int, name: str) -> None:
        self.group, self.index, self.name = group, index, name
        self.read: set[str] = set()
        self.cut: list[str] = []  # the fields that lost fractions

    def __contains__(self, field: str) -> bool:
        return field in self.group

    def inner(self, field: str, name: str) -> _Fields:
        self.read.add(field)
        if not hasattr(self.group[field], "keys"):
            raise _Refused("SNN071", f"`{field}` of {self.name} is no group")
        return _Fields(self.group[field], self.index, name)

    def raw(self, field: str) -> Array:
        self.read.add(field)
        if not hasattr(self.group.get(field), "dtype"):
            raise _Refused("SNN071", f"{self.name} has no array `{field}`")
        try:
            return np.asarray(self.group[field][()])
        except OSError as error:
            raise _Refused("SNN071", f"`{field}` of {self.name} cannot be read: {error}") from None

    def text(self, field: str) -> str:
        values = self.raw(field).reshape(-1).tolist()
        if len(values) != 1 or not isinstance(values[0], bytes):
            raise _Refused("SNN071", f"`{field}` of {self.name} is no text")
        return values[0].decode("ascii", "replace")

    def whole(self, field: str) -> Array:
        """Whole numbers, int64."""
        values = self.raw(field)
        if values.dtype.kind not in "biuf" or not values.size:
            raise _Refused("SNN071", f"`{field}` of {self.name} holds no numbers")
        if not np.isfinite(values).all():
            raise _Refused("SNN003", f"`{field}` of {self.name} holds values that are not finite")
        if np.abs(values.astype(np.float64)).max() >= 2**31:
            raise _Refused("SNN066", f"`{field}` of {self.name} goes beyond 32 bits")
        whole = values.astype(np.int64)
        if (whole != values).any():
            if field not in ("weight", "bias", "delay"):
                raise _Refused("SNN071", f"`{field}` of {self.name} is not whole: {values.tolist()}")
            self.cut.append(field)
        return whole

    def number(self, field: str, low: int = 0, high: int = 2**31 - 1) -> int:
        values = self.whole(field)
        if values.size != 1:
            raise _Refused("SNN071", f"`{field}` of {self.name} holds {values.size} numbers, not one")
        if not low <= values.item() <= high:
            raise _Refused("SNN066", f"`{field}` of {self.name} is {values.item()}, not within {low} to {high}")
        return int(values.item())

    def pair(self, field: str, low: int) -> tuple[int, int]:
        """(vertical, horizontal), each at least ``low``."""
        values = self.whole(field)
        if values.shape not in ((), (2,)) or values.min() < low:
            raise _Refused("SNN071", f"`{field}` of {self.name} is {values.tolist()}, not one or two sizes")
        y, x = np.broadcast_to(values, 2).tolist()
        return y, x

    def shape(self) -> tuple[int, ...]:
        values = self.whole("shape")
        if values.ndim != 1 or values.min() < 1:
            raise _Refused("SNN071", f"`shape` of {self.name} is {values.tolist()}, not a list of sizes")
        return tuple(values.tolist())

    def ignored(self) -> Iterator[str]:
        """What the fields that were not read say, where netx does something else."""
        for name in sorted(set(self.group) - self.read - _REDUNDANT):
            values = self.raw(name).reshape(-1).tolist() if hasattr(self.group[name], "dtype") else []
            if name not in _FIXED or values != [_FIXED[name]]:
                yield f"`{name}`{f' = {values[0]}' if len(values) == 1 else ''}"


# --- layers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A layer as operations: the sum of what all ``paths``, each a chain from the layer's input, give goes to the
    neuron."""

    index: int
    kind: str
    takes: tuple[int, ...] = ()  # the shape of its input, where it says it
    shape: tuple[int, ...] = ()
    paths: tuple[tuple[Op, ...], ...] = ()
    neuron: LoihiNeuron | Delta | None = None


@dataclass(frozen=True)
class _Reader:
    """Makes operations of fields, their parameters in ``store``, and collects what is ``found``."""

    store: Store
    spike_exp: int
    found: list[Diagnostic] = field(default_factory=list)

    def warn(self, index: int, code: str, message: str, hint: str = "") -> None:
        self.found.append(Diagnostic(code, message, _loc(index), Severity.WARNING, hint))

    def layer(self, groups: Any, index: int) -> _Layer | None:
        """The layer of that number; None, and a diagnostic, if it is refused."""
        rules = {"input": self._input, "flatten": self._flatten, "conv": self._conv, "dense": self._dense}
        try:
            if str(index) not in groups:
                raise _Refused("SNN071", f"layer {index} is missing; the file has {', '.join(groups)}")
            fields = _Fields(groups, index, "the file").inner(str(index), f"layer {index}")
            kind = fields.text("type")
            if kind not in rules:
                hint = f"num_layers={index} reads what is before it" if index else ""
                raise _Refused("SNN001", f"layer {index} is of the type `{kind}`, which is not read", hint)
            layer = rules[kind](fields)
            self._left_out(fields)
            return layer
        except _Refused as refused:
            code, message, *hints = refused.args
            self.found.append(Diagnostic(code, message, _loc(index), hint="".join(hints)))
            return None

    def _left_out(self, fields: _Fields) -> None:
        """Warn of what was read and does not show in the result, or was not read."""
        for text in fields.ignored():
            self.warn(fields.index, "SNN007", f"netx ignores {text} of {fields.name}, and so does the graph")
        for name in fields.cut:
            self.warn(fields.index, "SNN066", f"netx cuts the fractions of `{name}` of {fields.name}")

    def _put(self, name: str, array: Array) -> Param:
        return self.store.put(name, array.astype(np.int32))

    def _flatten(self, fields: _Fields) -> _Layer:
        fields.read.add("shape")
        return _Layer(fields.index, "flatten")

    def _input(self, fields: _Fields) -> _Layer:
        if fields.index:
            raise _Refused("SNN001", f"{fields.name} is an input layer, but not the first")
        shape = fields.shape() if "shape" in fields or "neuron" in fields else ()
        if "neuron" not in fields:
            return _Layer(0, "input", shape)
        if len(shape) not in (1, 3):
            raise _Refused("SNN005", f"{fields.name} has shape {shape}: netx connects one axis or three")
        weight = fields.number("weight", low=1) if "weight" in fields else 64
        bias = np.full(shape[:1], fields.number("bias", -(2**15), 2**15 - 1) if "bias" in fields else 0)
        path: tuple[Op, ...] = (Encode("constant", 1 / weight, "i32"),)
        neuron = self._neuron(fields, bias, first=True)
        if isinstance(neuron, Delta) and bias.any():
            path += (Affine(self._put("ones", np.ones_like(bias)), self._put("bias", bias)),)
        return _Layer(0, "input", shape, shape, (path,), neuron)

    def _conv(self, fields: _Fields) -> _Layer:
        shape, weight = fields.shape(), fields.whole("weight")
        if len(shape) != 3 or weight.ndim not in (4, 5) or weight.shape[4:] not in ((), (1,)):
            message = f"{fields.name} has shape {shape} and a weight {weight.shape}, not (C, H, W) and (O, I, H, W)"
            raise _Refused("SNN005", message)
        weight = weight.reshape(weight.shape[:4])
        stride, padding, dilation = fields.pair("stride", 1), fields.pair("padding", 0), fields.pair("dilation", 1)
        groups = fields.number("groups", 1)
        # lava-nc 0.10.0, proc/conv/models.py, has them as int8: 128 groups are -128, whose sums are all zero.
        most = max(*stride, *padding, *dilation, groups, *weight.shape[2:])
        if most > 127:
            message = f"{fields.name} has a kernel, stride, padding, dilation or groups of {most}, which Lava wraps"
            raise _Refused("SNN066", message, "Lava's convolution takes them up to 127")
        self._warn_wide(fields, weight)
        (py, px), bias = padding, self._bias(fields, shape)
        op = Conv2d(self._put("weight", weight), None, stride, (py, py, px, px), dilation, groups)
        return _Layer(fields.index, "conv", (), shape, ((op, Delay(1)),), self._neuron(fields, bias))

    def _dense(self, fields: _Fields) -> _Layer:
        shape = (prod(fields.shape()),)
        if "weight" in fields and hasattr(fields.group["weight"], "keys"):
            raise _Refused("SNN001", f"{fields.name} has complex weights, which are not read")
        stored = fields.whole("weight")
        if stored.ndim == 1 and stored.size % shape[0] == 0:
            stored = stored.reshape(shape[0], -1)
        if stored.ndim != 2 or stored.shape[0] != shape[0]:
            raise _Refused("SNN005", f"the weight of {fields.name} has shape {stored.shape}, not ({shape[0]}, inputs)")
        try:
            weight = synapse_weights(stored)
        except ValueError as error:
            raise _Refused("SNN066", f"the weights of {fields.name} do not run: {error}") from None
        changed = np.argwhere(weight != stored)
        if len(changed):
            at = tuple(changed[0])
            message = f"netx changes {len(changed)} of the {weight.size} weights of {fields.name}"
            hint = f"{stored[at]} becomes {weight[at]}; the graph has the weights that Lava computes with"
            self.warn(fields.index, "SNN066", message, hint)
        self._warn_wide(fields, weight)
        paths, bias = self._paths(weight, self._delays(fields, weight.shape)), self._bias(fields, shape)
        return _Layer(fields.index, "dense", weight.shape[1:], shape, paths, self._neuron(fields, bias))

    def _warn_wide(self, fields: _Fields, weight: Array) -> None:
        """A synapse has 8 bits: a magnitude or, of both signs, a small or an even number (lava-nc 0.10.0,
        proc/dense/process.py, sign_mode)."""
        low, high = weight.min(), weight.max()
        if low < 0 < high:
            odd = (weight % 2).any()
            fits = (-128 if odd else -256) <= low and high <= (127 if odd else 254)
        else:
            fits = max(-low, high) <= 255
        if not fits:
            message = f"the weights of {fields.name}, from {low} to {high}, take more than 8 bits"
            self.warn(fields.index, "SNN066", message, "Lava's simulation computes with them; the chip cannot")

    def _delays(self, fields: _Fields, shape: tuple[int, ...]) -> Array:
        """Steps per weight, (O, I)."""
        if "delay" not in fields:
            return np.zeros(shape, np.int64)
        delays = fields.whole("delay")
        if delays.max() > _MOST_DELAY:
            message = f"{fields.name} has a delay of {delays.max()} steps, which netx clamps to {_MOST_DELAY}"
            self.warn(fields.index, "SNN066", message)
            delays = delays.clip(0, _MOST_DELAY)
        if delays.min() < 0:
            raise _Refused("SNN066", f"{fields.name} has a delay of {delays.min()} steps")
        if delays.shape == shape[:1]:  # where outputs are as many as inputs, netx takes the outputs
            delays = delays[:, None]
        elif delays.shape not in ((), shape[1:], shape):
            raise _Refused("SNN005", f"the delays of {fields.name} have shape {delays.shape}, its weights {shape}")
        return np.broadcast_to(delays, shape)

    def _paths(self, weight: Array, delays: Array) -> tuple[tuple[Op, ...], ...]:
        """One delay for all, per output or per input where that says it all; else a product per amount of delay."""
        product, steps = Linear(self._put("weight", weight)), 1 + delays
        if (steps == steps[0, 0]).all():
            return ((product, Delay(int(steps[0, 0]))),)
        if (steps == steps[:, :1]).all():
            return ((product, Delay(self._put("delay", steps[:, 0]))),)
        if (steps == steps[:1]).all():
            return ((Delay(self._put("delay", steps[0])), product),)
        return tuple(
            (Linear(self._put("weight", np.where(steps == amount, weight, 0))), Delay(int(amount)))
            for amount in np.unique(steps)
        )

    # --- neurons -------------------------------------------------------------------------------------------------

    def _bias(self, fields: _Fields, shape: tuple[int, ...]) -> Array | None:
        """Per channel or, if it must be, per neuron."""
        if "bias" not in fields:
            return None
        bias, lavas = fields.whole("bias"), shape[::-1]
        # Of neurons (W, H, C), netx takes their shape, or what starts with C values and spreads over them.
        try:
            if len(shape) == 3 and bias.shape != lavas and bias.shape[:1] != lavas[-1:]:
                raise ValueError("netx looks at the first axis")
            bias = np.broadcast_to(bias, lavas).T
        except ValueError:
            message = f"the bias of {fields.name} has shape {bias.shape}, its neurons are (W, H, C) {lavas}"
            raise _Refused("SNN005", message) from None
        channels = bias.reshape(shape[0], -1)[:, 0]
        return channels if (channels == bias.T).all() else bias

    def _neuron(self, fields: _Fields, bias: Array | None, first: bool = False) -> LoihiNeuron | Delta:
        """``first``: an input layer's, all that gets input is the bias or, of SDNN, ``a_in``."""
        if "neuron" not in fields:
            if fields.text("type") == "conv":
                raise _Refused("SNN071", f"{fields.name} has no neuron")
            message = (
                f"{fields.name} has no neuron: netx's default adds up all input in its current u, and never spikes"
            )
            self.warn(fields.index, "SNN007", message)
            return self._cuba(fields, bias, 2**17, 0, UNITY)  # netx/hdf5.py: vThMant = 1 << 18 - 1
        neuron = fields.inner("neuron", f"the neuron of {fields.name}")
        kind = neuron.text("type")
        if "messageBits" in neuron:
            raise _Refused("SNN001", f"{neuron.name} has `messageBits`, on which netx fails")
        result: LoihiNeuron | Delta
        if kind in ("LOIHI", "CUBA"):
            threshold = neuron.number("vThMant")
            decay_u, decay_v = (neuron.number(f"{name}Decay", 0, UNITY) for name in "iv")
            # An input neuron's current stays 0; here it carries the image, which must not stay in it.
            result = self._cuba(fields, bias, threshold, UNITY if first else decay_u, decay_v)
        elif kind == "SDNN":
            result = self._sdnn(neuron, bias, first)
        else:
            raise _Refused("SNN001", f"{neuron.name} is of the type `{kind}`, which is not read")
        self._left_out(neuron)
        return result

    def _cuba(self, fields: _Fields, bias: Array | None, threshold: int, decay_u: int, decay_v: int) -> CubaLif:
        if bias is None or not bias.any():
            return CubaLif(threshold, None, decay_u, decay_v)
        wrapped = bias.astype(np.int16)
        changed = np.argwhere(wrapped != bias)
        if len(changed):
            at = tuple(changed[0])
            message = f"{fields.name} has a bias of {bias[at]}, which Lava wraps to {wrapped[at]}"
            self.warn(fields.index, "SNN066", message, "bias_mant has 16 bits in Lava, 13 on the chip")
        return CubaLif(threshold, self._put("bias", wrapped * 2.0**SHIFT), decay_u, decay_v)

    def _sdnn(self, neuron: _Fields, bias: Array | None, first: bool) -> LoihiNeuron | Delta:
        if "sigma_output" in neuron and not first:
            neuron.read |= {"sigma_output", "vThMant"}
            if bias is not None:
                raise _Refused("SNN001", f"{neuron.name} is a sigma output with a bias, on which netx fails")
            return Sigma()
        scale = 2 ** (self.spike_exp + SHIFT)
        threshold = neuron.number("vThMant", 0, (2**31 - 1) // scale)
        if first:
            return Delta(threshold, 2**self.spike_exp)
        if bias is None or not bias.any():
            return SigmaDelta(None, threshold * scale, SHIFT)
        if np.abs(bias).max() * scale > SUM:
            raise _Refused("SNN066", f"{neuron.name} has a bias of {np.abs(bias).max()}, beyond what Lava holds")
        return SigmaDelta(self._put("bias", bias * scale), threshold * scale, SHIFT)

    # --- the graph -----------------------------------------------------------------------------------------------

    def graph(self, layers: list[_Layer], shape: tuple[int, ...] | None, name: str) -> Graph | None:
        """The layers as one graph, for an input of ``shape`` where they do not say it. None, and a diagnostic, if they
        do not fit."""
        nodes: list[Node] = []

        def add(name: str, op: Op, *args: Node) -> Node:
            type = op.infer(tuple(arg.type for arg in args), self.store)
            type = replace(type, unit=1.0) if op.free_unit else type
            nodes.append(Node(name, op, tuple(arg.name for arg in args), type, _loc(i)))
            return nodes[-1]

        i, blocks = layers[0].index, [layer for layer in layers if layer.neuron is not None]
        try:
            if not blocks:
                raise ShapeError("no layer with neurons was read")
            shape = layers[0].takes or shape or blocks[0].takes
            if not shape:
                raise ShapeError("the file does not say the shape of its input: pass input_shape=(C, H, W)")
            x = add("input", Input(shape))
            fed = blocks[0].kind != "input"
            if fed:
                x = add("encode", Encode("spikes", 1.0, "i32"), x)
            flatten = False
            for layer in layers:
                i = layer.index
                flatten |= layer.kind == "flatten"  # waits for a dense layer, even past a convolution
                if layer.neuron is None:
                    continue
                if layer.kind == "dense":
                    wide = len(x.type.shape) > 1
                    # What the user feeds is connected by nobody, so netx does not look at its shape.
                    if flatten != wide and not fed:
                        raise ShapeError(f"netx fails to {'flatten' if flatten else 'connect'} neurons {x.type.shape}")
                    x = add(f"layer_{i}.flatten", Flatten(), x) if wide else x
                    flatten = False
                ends = []
                for k, path in enumerate(layer.paths):
                    end = x
                    for op in path:
                        end = add(f"layer_{i}.{op.mnemonic}{f'_{k}' if k else ''}", op, end)
                    ends.append(end)
                x = ends[0]
                for k, end in enumerate(ends[1:], start=1):
                    x = add(f"layer_{i}.add_{k}", Add(), x, end)
                if x.type.shape != layer.shape:
                    raise ShapeError(f"the shape given is {layer.shape}, the shape computed {x.type.shape}")
                x, fed = add(f"layer_{i}", layer.neuron, x), False
        except ShapeError as error:
            self.found.append(Diagnostic("SNN005", f"layer {i}: {error}", _loc(i)))
            return None
        return Graph(tuple(nodes), (x.name,), Stage.INT, name, self.store)


def _loc(index: int) -> Loc:
    return Loc((Source(f"layer/{index}"),))
