"""What every operation that keeps no state does to torch tensors (B, *shape), B being samples, or time steps times
samples; of neurons and maxima, which keep one, what they do in a network. The rules of :mod:`snncc.ir.ops`, fast."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snncc.ir import loihi, ops
from snncc.ir.types import Array, PerChannel, Store, Type, per_channel

_COLUMNS = 2**25  # bytes for the columns of a float64 convolution: more takes longer, too


@dataclass(frozen=True)
class Params:
    """A store's arrays as tensors."""

    store: Store
    device: str

    def __call__(self, array: Array, dtype: torch.dtype) -> Tensor:
        """``array`` on the device; without a copy where dtype and device agree."""
        if any(stride < 0 for stride in array.strides):  # torch has none
            array = array.copy()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing here writes
            return torch.from_numpy(array).to(self.device, dtype)

    def weights(self, op: ops.Weighted, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return self(self.store[op.weight], dtype), None if op.bias is None else self(self.store[op.bias], dtype)

    def channels(self, value: PerChannel, type: Type, dtype: torch.dtype) -> Tensor:
        """``value`` such that it broadcasts over (..., *type.shape)."""
        return self(np.asarray(per_channel(value, self.store, len(type.shape)), np.float64), dtype)


def _pad(op: ops.Pad, x: Tensor, out: Type, params: Params) -> Tensor:
    for axis, (before, after) in enumerate(zip(op.before, op.after, strict=True), start=1):
        grow = (max(before, 0), max(after, 0))
        if op.mode == "constant":
            x = F.pad(x, (0, 0) * (x.ndim - 1 - axis) + grow, value=op.value)
        elif any(grow):
            # Numpy's padding of the indices does every mode, axis and amount; torch's does some of each.
            index = np.pad(np.arange(x.shape[axis]), grow, mode=op.NUMPY_MODES[op.mode])  # type: ignore[call-overload]
            x = x.index_select(axis, torch.from_numpy(index).to(x.device))
        x = x.narrow(axis, max(-before, 0), out.shape[axis - 1])
    return x


def _conv2d(op: ops.Conv2d, x: Tensor, out: Type, params: Params) -> Tensor:
    weight, bias = params.weights(op, x.dtype)
    top, bottom, left, right = op.padding
    even = top == bottom and left == right

    def convolve(x: Tensor) -> Tensor:
        x = x if even else F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, op.stride, (top, left) if even else 0, op.dilation, op.groups)

    # On CPUs, torch would unroll all of a float64 batch into columns at once.
    size = max(1, _COLUMNS // (8 * x.shape[1] * prod(op.weight.shape[2:]) * prod(out.shape[1:])))
    if x.dtype != torch.float64 or len(x) <= size:
        return convolve(x)
    y = x.new_empty((len(x), *out.shape))
    for at in range(0, len(x), size):
        y[at : at + size] = convolve(x[at : at + size])
    return y


def _affine(op: ops.Affine, x: Tensor, out: Type, params: Params) -> Tensor:
    y = x * params.channels(op.weight, out, x.dtype)
    return y if op.bias is None else y + params.channels(op.bias, out, x.dtype)


def _batch_norm(op: ops.BatchNorm, x: Tensor, out: Type, params: Params) -> Tensor:
    shape = (-1,) + (1,) * (len(out.shape) - 1)
    scale, shift = (params(v, x.dtype).reshape(shape) for v in op.scale_shift(params.store))
    return x * scale + shift


def _avg_pool(op: ops.AvgPool, x: Tensor, out: Type, params: Params) -> Tensor:
    rest = op.padding, op.ceil_mode, op.count_include_pad, op.divisor or None
    return F.avg_pool2d(x, op.kernel, op.stride, *rest)


def _sum_pool(op: ops.SumPool, x: Tensor, out: Type, params: Params) -> Tensor:
    total = F.avg_pool2d(x, op.kernel, op.stride, divisor_override=1)
    return total if out.integer else total * op.scale


def _quant_relu(op: ops.QuantRelu, x: Tensor, out: Type, params: Params) -> Tensor:
    return (x * (op.levels / op.theta) + op.shift).floor().clamp(0, op.levels) * (op.theta / op.levels)


def _encode(op: ops.Encode, x: Tensor, out: Type, params: Params) -> Tensor:
    y = x / op.unit if out.integer else x
    return y.round() if out.integer and op.method == "constant" else y


def _transfer(op: ops.If, x: Tensor, out: Type, params: Params) -> Tensor:
    theta = params.channels(op.threshold, out, x.dtype)
    y = x.clamp(min=0).minimum(theta)
    return y / theta if out.integer else y * params.channels(op.gain, out, x.dtype)


def bias(op: loihi.LoihiNeuron, out: Type, params: Params, dtype: torch.dtype) -> Tensor:
    """A Loihi neuron's bias such that it broadcasts over (..., *out.shape)."""
    return params(np.asarray(loihi.bias_of(op.bias, params.store, out), np.float64), dtype)


def _cuba_lif(op: loihi.CubaLif, x: Tensor, out: Type, params: Params) -> Tensor:
    x = x + bias(op, out, params, x.dtype) / 2.0**loihi.SHIFT
    return (x / (op.threshold + 1)).clamp(0, 1)


def _atr_lif(op: loihi.AtrLif, x: Tensor, out: Type, params: Params) -> Tensor:
    x = x + bias(op, out, params, x.dtype) / 2.0**loihi.SHIFT
    return (x / (2 * op.theta)).clamp(0, 1)


def _sigma_delta(op: loihi.SigmaDelta, x: Tensor, out: Type, params: Params) -> Tensor:
    a = x + bias(op, out, params, x.dtype)
    a = a.relu() if op.activation == "relu" else a
    return (a / 2.0**op.shift).floor() if out.integer else a


# What an operation does with its operand (of concat and add: with all of them).
RULES: dict[type[ops.Op], Callable[[Any, Any, Type, Params], Tensor]] = {
    ops.Ones: lambda op, x, out, params: x.new_full((len(x), *out.shape), float(op.count if out.integer else 1)),
    ops.Identity: lambda op, x, out, params: x,
    ops.Dropout: lambda op, x, out, params: x,
    ops.Reshape: lambda op, x, out, params: x.reshape(-1, *out.shape),
    ops.Flatten: lambda op, x, out, params: x.reshape(-1, *out.shape),
    ops.Pad: _pad,
    ops.Slice: lambda op, x, out, params: x[(slice(None), *map(slice, op.start, op.stop, op.step))],
    ops.Concat: lambda op, xs, out, params: torch.cat(xs, dim=op.axis + 1),
    ops.Add: lambda op, xs, out, params: xs[0] + xs[1],
    ops.Conv2d: _conv2d,
    ops.Linear: lambda op, x, out, params: F.linear(x, *params.weights(op, x.dtype)),
    ops.Affine: _affine,
    ops.BatchNorm: _batch_norm,
    ops.AvgPool: _avg_pool,
    ops.AdaptiveAvgPool: lambda op, x, out, params: F.adaptive_avg_pool2d(x, op.output),
    ops.SumPool: _sum_pool,
    ops.MaxPool: lambda op, x, out, params: F.max_pool2d(
        x, op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode
    ),
    ops.Relu: lambda op, x, out, params: x.relu(),
    ops.Clamp: lambda op, x, out, params: x.clamp(
        -inf if op.low is None else op.low, inf if op.high is None else op.high
    ),
    ops.QuantRelu: _quant_relu,
    ops.Floor: lambda op, x, out, params: x.floor(),
    ops.Encode: _encode,
    ops.If: _transfer,
    ops.Lif: lambda op, x, out, params: (x / params.channels(op.threshold, out, x.dtype)).clamp(0, 1),
    loihi.CubaLif: _cuba_lif,
    loihi.AtrLif: _atr_lif,
    loihi.Delta: lambda op, x, out, params: x * op.scale,
    loihi.SigmaDelta: _sigma_delta,
    loihi.Sigma: lambda op, x, out, params: x + bias(op, out, params, x.dtype),
    loihi.Delay: lambda op, x, out, params: x,
}


def evaluate(op: ops.Op, xs: list[Tensor], out: Type, params: Params) -> Tensor:
    """The result for operands ``xs``, whose type is ``out``."""
    return RULES[type(op)](op, xs[0] if op.arity == 1 else xs, out, params)
