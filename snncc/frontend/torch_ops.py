"""What the compiler knows of torch: one table, in which each operation stands once under all its spellings.

A handler's parameters are named and ordered as torch's, so that Python's own binding takes positional and keyword
arguments alike and refuses options that are not there. It gets the user's tensors as :class:`Value`, constants as they
are, and returns a Value or plain Python; in-place spellings are derived from it.
"""

# ruff: noqa: D103 (the handlers are documented by torch)
from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import isfinite, prod
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snncc.frontend.recorder import Recorder, Refused, Value
from snncc.ir import ops
from snncc.ir.ops import Pair, ShapeError

Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True)
class Entry:
    """``inplace``: this spelling changes its first operand."""

    handler: Handler
    inplace: bool = False


# By function, and by name of methods.
TABLE: dict[Any, Entry] = {}


def handles(*targets: Any, inplace: Sequence[Any] = ()) -> Callable[[H], H]:
    """Register a handler for functions and for methods (by name)."""

    def register(handler: H) -> H:
        TABLE.update({target: Entry(handler) for target in targets})
        TABLE.update({target: Entry(handler, inplace=True) for target in inplace})
        return handler

    return register


# Layers whose forward is followed into; it calls functions of the table.
LAYERS = (
    nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.AvgPool2d,
    nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)  # fmt: skip

_RELU = "train with ReLU: a spiking neuron computes that, and no smooth or two-sided activation"
_LOGITS = "return what goes into it (the logits): the largest stays the largest"
_STATIC = "normalise with running statistics: batch norm in eval mode can be folded into the layer before"
_CONV2D = "use 2-d convolutions, with a height of 1 for sequences"
# What to do instead, by name of module, function or method, lower case without underscores.
HINTS: dict[str, str] = {
    **dict.fromkeys(
        (
            "leakyrelu", "gelu", "sigmoid", "tanh", "silu", "elu", "selu", "celu", "mish", "prelu", "rrelu", "softplus",
            "hardswish", "hardsigmoid", "logsigmoid", "softsign", "tanhshrink", "glu", "hardshrink", "softshrink",
            "exp", "abs", "sqrt", "square", "pow", "log",
        ),
        _RELU,
    ),
    **dict.fromkeys(("softmax", "logsoftmax", "softmax2d", "softmin"), _LOGITS),
    **dict.fromkeys(
        ("layernorm", "groupnorm", "instancenorm1d", "instancenorm2d", "localresponsenorm", "rmsnorm"), _STATIC
    ),
    **dict.fromkeys(("conv1d", "conv3d"), _CONV2D),
    "convtranspose2d": "use nn.Conv2d; only convolutions that do not enlarge the map have a spiking equal",
    "adaptivemaxpool2d": "use MaxPool2d or AdaptiveAvgPool2d",
    "maxpool2dwithindices": "use the maxima alone: return_indices=False",
    "dataparallel": "pass the network inside: model.module",
    "distributeddataparallel": "pass the network inside: model.module",
    "embedding": "embed before the network, and pass the result as its input",
    "recursivescriptmodule": "pass the module that it was made from",
    "permute": "keep the axes in the order (N, C, H, W)",
    "transpose": "keep the axes in the order (N, C, H, W)",
    "upsample": "only pooling and convolutions change the map's size",
    "interpolate": "resize the data before the network",
}  # fmt: skip


def hint(name: str) -> str:
    """What to do instead of the module, function or method ``name``."""
    return HINTS.get(name.rpartition(".")[2].replace("_", "").lower(), "")


# --- the batch axis ------------------------------------------------------------------------------------------------


class BatchSize:
    """The size of the batch axis, or a multiple of it. The compiled network takes any batch, so it is no number: asking
    for one is reported, and answered by that of a batch of one, which breaks least of what follows."""

    def __init__(self, report: Callable[[str], None], factor: int = 1) -> None:
        self._report, self.factor = report, factor

    def times(self, factor: int) -> BatchSize:
        return BatchSize(self._report, self.factor * factor)

    def __index__(self) -> int:
        self._report("the size of the batch is used as a number")
        return self.factor

    __int__ = __index__

    def __float__(self) -> float:
        return float(self.__index__())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "N" if self.factor == 1 else f"{self.factor}*N"

    def __hash__(self) -> int:
        return hash(self.factor)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BatchSize):
            return self.factor == other.factor
        # No size is 0 or negative: no need to ask.
        return isinstance(other, int) and other > 0 and self.__index__() == other

    def __mul__(self, other: Any) -> Any:
        return self.times(other) if type(other) is int else self.__index__() * other

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, BatchSize) and self.factor % other.factor == 0:
            return self.factor // other.factor
        if type(other) is int and other and self.factor % other == 0:
            return BatchSize(self._report, self.factor // other)
        return self.__index__() // other

    def __truediv__(self, other: Any) -> Any:
        return self.factor / other.factor if isinstance(other, BatchSize) else self.__index__() / other


def _number(name: str) -> Callable[[BatchSize, Any], Any]:
    swap = name.startswith("r")
    rule = getattr(operator, name.removeprefix("r"))
    return lambda self, other: rule(other, self.__index__()) if swap else rule(self.__index__(), other)


for _name in ("add", "radd", "sub", "rsub", "mod", "rfloordiv", "rtruediv", "lt", "le", "gt", "ge"):
    setattr(BatchSize, f"__{_name}__", _number(_name))


# --- helpers -------------------------------------------------------------------------------------------------------


def _pair(value: int | Sequence[int]) -> Pair:
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise Refused(f"expected one or two whole numbers, got {value!r}")
    return int(values[0]), int(values[1])


def _axis(dim: int, rank: int) -> int:
    """The axis ``dim`` of a tensor whose unbatched rank is ``rank``, counted without the batch axis."""
    axis = dim + rank + 1 if dim < 0 else dim
    if not 0 <= axis <= rank:
        raise ShapeError(f"there is no axis {dim} in a tensor with {rank + 1} axes")
    if axis == 0:
        raise Refused("works along the batch axis", "a spiking network sees one sample at a time; keep axis 0 as it is")
    return axis - 1


def _constant(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise Refused(f"{what} must be a constant of the model, not computed from the input")
    return value


def _channels(t: Recorder, x: Value, value: Any) -> Tensor:
    """The constant ``value`` as one number per channel of ``x``, if broadcasting over ``x`` amounts to that."""
    shape = t.shape(x)
    if not shape:
        raise Refused("arithmetic with a constant on a tensor without channels")
    if not isinstance(value, Tensor | np.ndarray | np.generic | float | int):
        raise ShapeError(f"arithmetic with a {type(value).__name__}")
    constant = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    full = (1,) * (len(shape) + 1 - constant.dim()) + tuple(constant.shape)
    if len(full) == len(shape) + 1 and full[0] != 1:
        raise Refused(f"a constant of shape {tuple(constant.shape)} differs from sample to sample")
    if np.broadcast_shapes(full, (1, *shape)) != (1, *shape):
        raise Refused(f"a constant of shape {tuple(constant.shape)} enlarges a tensor of shape (N, {_join(shape)})")
    if any(n != 1 for n in full[2:]):
        raise Refused(
            f"a constant of shape {tuple(constant.shape)} has more than one value per channel of (N, {_join(shape)})",
            "only scalars and one value per channel can be compiled",
        )
    return constant if full[1:] == (shape[0],) == constant.shape else constant.reshape(-1).expand(shape[0])


def _join(shape: Iterable[int]) -> str:
    return ", ".join(map(str, shape))


def _affine(t: Recorder, x: Value, weight: Any = 1.0, bias: Any = None) -> Value:
    shift = None if bias is None else t.param(_channels(t, x, bias), "bias")
    return t.new(ops.Affine(t.param(_channels(t, x, weight), "weight"), shift), x)


def _broadcast(t: Recorder, x: Value, shape: tuple[int, ...]) -> Value:
    """Repeat ``x`` along its axes of size 1."""
    after = tuple(n - m for n, m in zip(shape, t.shape(x), strict=True))
    return t.new(ops.Pad((0,) * len(after), after, "replicate"), x) if any(after) else x


def _optional(t: Recorder, tensor: Any, what: str) -> Any:
    return None if tensor is None else t.param(_constant(tensor, what), what)


# --- layers with weights -------------------------------------------------------------------------------------------


@handles(F.conv2d, torch.conv2d)
def conv2d(
    t: Recorder, input: Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Value:  # fmt: skip
    weight = _constant(weight, "the weight")
    if weight.dim() != 4:
        raise ShapeError(f"the weight of a 2-d convolution has 4 axes, not {tuple(weight.shape)}")
    dilation, stride = _pair(dilation), _pair(stride)
    if padding == "same":
        if stride != (1, 1):
            raise ShapeError("padding='same' goes with stride 1 alone")
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        y, x = (0, 0) if padding == "valid" else _pair(padding)
        pads = (y, y, x, x)
    op = ops.Conv2d(t.param(weight, "weight"), _optional(t, bias, "bias"), stride, pads, dilation, groups)
    return t.new(op, input)


@handles(F.linear)
def linear(t: Recorder, input: Value, weight: Any, bias: Any = None) -> Value:
    weight = _constant(weight, "the weight")
    if weight.dim() != 2:
        raise ShapeError(f"the weight of a linear layer has 2 axes, not {tuple(weight.shape)}")
    return t.new(ops.Linear(t.param(weight, "weight"), _optional(t, bias, "bias")), input)


@handles(operator.matmul, torch.matmul, torch.mm, "matmul", "mm")
def matmul(t: Recorder, input: Any, other: Any) -> Value:
    if not isinstance(input, Value) or not isinstance(other, Tensor) or other.dim() != 2:
        raise Refused("multiplies with anything but a constant matrix", "for weights use nn.Linear or F.linear")
    return linear(t, input, other.t())


@handles(F.batch_norm)
def batch_norm(
    t: Recorder, input: Value, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Value:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise Refused(
            "normalises with the statistics of the batch", "train with track_running_stats=True", code="SNN007"
        )
    if (_constant(running_var, "the variance") < 0).any():
        name = t.label(running_var, "running_var")
        raise Refused(f"{int((running_var < 0).sum())} values of the variance `{name}` are negative", code="SNN003")
    mean, var = t.param(_constant(running_mean, "the mean"), "running_mean"), t.param(running_var, "running_var")
    return t.new(ops.BatchNorm(mean, var, _optional(t, weight, "weight"), _optional(t, bias, "bias"), eps), input)


@handles(torch.batch_norm)
def torch_batch_norm(
    t: Recorder, input: Value, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool,
) -> Value:  # fmt: skip
    return batch_norm(t, input, running_mean, running_var, weight, bias, training, momentum, eps)


# --- activations ---------------------------------------------------------------------------------------------------


@handles(F.relu, torch.relu, "relu", inplace=(F.relu_, torch.relu_, "relu_"))
def relu(t: Recorder, input: Value) -> Value:
    return t.new(ops.Relu(), input)


@handles(torch.clamp, torch.clip, "clamp", "clip", inplace=(torch.clamp_, torch.clip_, "clamp_", "clip_"))
def clamp(t: Recorder, input: Value, min: Any = None, max: Any = None) -> Value:
    bounds = []
    for bound in (min, max):
        if isinstance(bound, Value) or (isinstance(bound, Tensor) and bound.numel() != 1):
            raise Refused("the bounds must be numbers")
        value = None if bound is None else float(bound)
        bounds.append(value if value is None or isfinite(value) else None)
    return t.new(ops.Relu() if bounds == [0.0, None] else ops.Clamp(*bounds), input)


@handles(torch.clamp_min, "clamp_min", inplace=(torch.clamp_min_, "clamp_min_"))
def clamp_min(t: Recorder, input: Value, min: Any) -> Value:
    return clamp(t, input, min)


@handles(torch.clamp_max, "clamp_max", inplace=(torch.clamp_max_, "clamp_max_"))
def clamp_max(t: Recorder, input: Value, max: Any) -> Value:
    return clamp(t, input, None, max)


@handles(F.relu6)
def relu6(t: Recorder, input: Value) -> Value:
    return clamp(t, input, 0, 6)


@handles(F.hardtanh, inplace=(F.hardtanh_,))
def hardtanh(t: Recorder, input: Value, min_val: float = -1.0, max_val: float = 1.0) -> Value:
    return clamp(t, input, min_val, max_val)


@handles(F.threshold, torch.threshold, inplace=(torch.threshold_,))
def threshold(t: Recorder, input: Value, threshold: float, value: float) -> Value:
    if threshold != 0 or value != 0:
        raise Refused(f"threshold {threshold} with value {value}", "only (0, 0), which is ReLU", "SNN007")
    return relu(t, input)


@handles(torch.floor, "floor", inplace=(torch.floor_, "floor_"))
def floor(t: Recorder, input: Value) -> Value:
    return t.new(ops.Floor(), input)


@handles(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def dropout(t: Recorder, input: Value, p: float = 0.5, training: bool = True) -> Value:
    if training and p:
        raise Refused("drops values at random, also in eval mode", "pass training=self.training", "SNN007")
    return t.view(input, ops.Dropout(p))  # torch gives the same tensor back


@handles(torch.dropout)
def torch_dropout(t: Recorder, input: Value, p: float, train: bool) -> Value:
    return dropout(t, input, p, train)


# --- pooling -------------------------------------------------------------------------------------------------------


@handles(F.avg_pool2d)
def avg_pool2d(
    t: Recorder, input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    kernel = _pair(kernel_size)
    window = (kernel, _pair(stride) if stride else kernel, _pair(padding))  # an empty stride is the kernel's
    return t.new(ops.AvgPool(*window, bool(ceil_mode), bool(count_include_pad), divisor_override or 0), input)


@handles(F.max_pool2d, torch.max_pool2d)
def max_pool2d(
    t: Recorder, input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    kernel = _pair(kernel_size)
    window = (kernel, _pair(stride) if stride else kernel, _pair(padding), _pair(dilation))
    return t.new(ops.MaxPool(*window, bool(ceil_mode)), input)


@handles(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(t: Recorder, input: Value, output_size: Any) -> Value:
    shape = t.shape(input)
    sizes = (output_size,) * 2 if output_size is None or isinstance(output_size, int) else output_size
    return t.new(
        ops.AdaptiveAvgPool(_pair([s if n is None else n for n, s in zip(sizes, shape[-2:], strict=True)])), input
    )


@handles(torch.mean, "mean")
def mean(t: Recorder, input: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    shape = t.shape(input)
    if dtype is not None:
        raise Refused("another dtype than the input's", code="SNN007")
    dims = range(len(shape) + 1) if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
    axes = {_axis(d, len(shape)) for d in dims}
    if not shape or 0 in axes or len(shape) > 3:
        raise Refused(f"a mean over axes {sorted(a + 1 for a in axes)}", "only means over the map, (2, 3), are pooling")
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    result = kept if keepdim else tuple(n for i, n in enumerate(shape) if i not in axes)
    if len(shape) == 2:
        input = t.new(ops.Reshape((*shape, 1)), input)
    kernel = (shape[1] if 1 in axes else 1, shape[2] if 2 in axes else 1)
    pooled = t.new(ops.AvgPool(kernel, kernel), input)
    return _reshaped(t, pooled, result)


# --- arithmetic ----------------------------------------------------------------------------------------------------


@handles(operator.add, torch.add, "add", "__add__", inplace=(operator.iadd, "add_", "__iadd__"))
def add(t: Recorder, input: Any, other: Any, alpha: float = 1) -> Value:
    if not isinstance(input, Value):
        if alpha == 1:
            return add(t, other, input)
        return _affine(t, other, alpha, input)
    if not isinstance(other, Value):
        return _affine(t, input, bias=other if alpha == 1 else other * alpha)
    a, b = t.shape(input), t.shape(other)
    if alpha != 1:
        other = _affine(t, other, alpha)
    if a != b and len(a) == len(b) and all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True)):
        full = tuple(map(max, a, b))
        input, other = _broadcast(t, input, full), _broadcast(t, other, full)
    return t.new(ops.Add(), input, other)


@handles(
    operator.sub, torch.sub, torch.subtract, "sub", "subtract", "__sub__", inplace=(operator.isub, "sub_", "__isub__")
)
def sub(t: Recorder, input: Any, other: Any, alpha: float = 1) -> Value:
    if isinstance(input, Value) and not isinstance(other, Value):
        return add(t, input, -other * alpha)
    return add(t, input, other, alpha=-alpha)


@handles(torch.rsub, "rsub", "__rsub__")
def rsub(t: Recorder, input: Any, other: Any, alpha: float = 1) -> Value:
    return sub(t, other, input, alpha)


@handles(operator.mul, torch.mul, torch.multiply, "mul", "multiply", inplace=(operator.imul, "mul_", "__imul__"))
def mul(t: Recorder, input: Any, other: Any) -> Value:
    if isinstance(input, Value) and isinstance(other, Value):
        raise Refused("multiplies two activations", "spiking neurons add; a product with a constant can be compiled")
    return _affine(t, input, other) if isinstance(input, Value) else _affine(t, other, input)


@handles(operator.truediv, torch.div, torch.true_divide, "div", "true_divide", inplace=(operator.itruediv, "div_"))
def div(t: Recorder, input: Any, other: Any, rounding_mode: str | None = None) -> Value:
    if isinstance(other, Value):
        raise Refused("divides by an activation", "a division by a constant can be compiled")
    if rounding_mode is not None:
        raise Refused(f"rounding_mode={rounding_mode!r}", code="SNN007")
    if not torch.as_tensor(other).all():
        raise Refused("divides by zero", code="SNN003")
    return _affine(t, input, 1.0 / (other.double() if isinstance(other, Tensor) else other))


@handles(operator.neg, torch.neg, torch.negative, "neg", "negative", inplace=("neg_",))
def neg(t: Recorder, input: Value) -> Value:
    return _affine(t, input, -1.0)


# --- shapes --------------------------------------------------------------------------------------------------------


def _reshaped(t: Recorder, input: Value, shape: tuple[int, ...], exact: bool = True) -> Value:
    if shape == t.shape(input):
        return t.view(input, exact=exact)
    return t.view(input, ops.Flatten() if len(shape) == 1 else ops.Reshape(shape), exact=exact)


def _resize(t: Recorder, input: Value, sizes: Sequence[Any], exact: bool) -> Value:
    hint = "keep the batch as axis 0: x.view(x.size(0), -1), x.flatten(1)"
    old = t.shape(input)
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = sizes[0]
    batch, rest = (sizes[0], list(sizes[1:])) if len(sizes) else (None, [])
    if not (batch == -1 if type(batch) is int else isinstance(batch, BatchSize) and batch.factor == 1):
        raise Refused(f"a reshape to {tuple(sizes)} mixes the batch axis with others", hint)
    if not all(type(n) is int for n in rest):
        raise Refused(f"a reshape to {tuple(sizes)}", hint)
    if -1 in rest:
        known = -prod(rest)
        if rest.count(-1) > 1 or batch == -1 or not known or prod(old) % known:
            raise ShapeError(f"cannot reshape (N, {_join(old)}) to {tuple(sizes)}")
        rest[rest.index(-1)] = prod(old) // known
    if prod(rest) != prod(old) and batch == -1:
        raise Refused(f"a reshape of (N, {_join(old)}) to {tuple(sizes)} mixes the batch axis with others", hint)
    return _reshaped(t, input, tuple(rest), exact)


@handles("view")
def view(t: Recorder, input: Value, *size: Any) -> Value:
    return _resize(t, input, size, exact=True)


@handles(torch.reshape, "reshape")
def reshape(t: Recorder, input: Value, *sizes: Any, shape: Any = ()) -> Value:
    return _resize(t, input, shape or sizes, exact=False)


@handles(torch.flatten, "flatten")
def flatten(t: Recorder, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    shape = t.shape(input)
    first, last = _axis(start_dim, len(shape)), _axis(end_dim, len(shape))
    if first > last:
        raise ShapeError(f"cannot flatten from axis {start_dim} to axis {end_dim}")
    return _reshaped(t, input, (*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]), exact=False)


@handles(torch.unflatten, "unflatten")
def unflatten(t: Recorder, input: Value, dim: int, sizes: Sequence[int]) -> Value:
    shape, axis = t.shape(input), _axis(dim, len(t.shape(input)))
    new, known = list(sizes), abs(prod(sizes)) or 1
    if -1 in new:
        new[new.index(-1)] = shape[axis] // known
    if prod(new) != shape[axis]:
        raise ShapeError(f"cannot unflatten axis {dim} of (N, {_join(shape)}) to {tuple(sizes)}")
    return _reshaped(t, input, (*shape[:axis], *new, *shape[axis + 1 :]))


@handles(torch.squeeze, "squeeze")
def squeeze(t: Recorder, input: Value, dim: Any = None) -> Value:
    shape = t.shape(input)
    if dim is None:
        raise Refused("squeeze() of all axes also takes the batch axis of a batch of one", "name the axes: squeeze(-1)")
    axes = {_axis(d, len(shape)) for d in ((dim,) if isinstance(dim, int) else dim)}
    return _reshaped(t, input, tuple(n for i, n in enumerate(shape) if n != 1 or i not in axes))


@handles(torch.unsqueeze, "unsqueeze")
def unsqueeze(t: Recorder, input: Value, dim: int) -> Value:
    shape = t.shape(input)
    axis = _axis(dim, len(shape) + 1)
    return _reshaped(t, input, (*shape[:axis], 1, *shape[axis:]))


@handles(torch.cat, torch.concat, torch.concatenate)
def cat(t: Recorder, tensors: Sequence[Any], dim: int = 0) -> Value:
    values = [x for x in tensors if isinstance(x, Value)]
    if len(values) != len(tensors):
        raise Refused("joins activations and constants", "zeros for new channels can be written with F.pad")
    return t.new(ops.Concat(_axis(dim, len(t.shape(values[0])))), *values)


@handles(torch.chunk, "chunk")
def chunk(t: Recorder, input: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    n = t.shape(input)[_axis(dim, len(t.shape(input)))]
    return split(t, input, -(-n // chunks), dim)


@handles(torch.split, "split")
def split(t: Recorder, input: Value, split_size_or_sections: Any, dim: int = 0) -> tuple[Value, ...]:
    shape = t.shape(input)
    axis, sizes = _axis(dim, len(shape)), split_size_or_sections
    ends = list(range(sizes, shape[axis], sizes)) if isinstance(sizes, int) else list(accumulate(sizes))[:-1]
    if not isinstance(sizes, int) and sum(sizes) != shape[axis]:
        raise ShapeError(f"cannot split {shape[axis]} into {list(sizes)}")
    parts = [slice(a, b) for a, b in pairwise([0, *ends, shape[axis]])]
    return tuple(getitem(t, input, (*[slice(None)] * (axis + 1), part)) for part in parts)


@handles(F.pad)
def pad(t: Recorder, input: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    rank = len(t.shape(input))
    if len(pad) % 2 or len(pad) > 2 * rank + 2:
        raise ShapeError(f"{len(pad)} paddings for {rank + 1} axes")
    before, after = list(reversed(pad[::2])), list(reversed(pad[1::2]))
    fill = [0] * (rank + 1 - len(before))
    before, after = fill + before, fill + after
    if before[0] or after[0]:
        raise Refused("pads the batch axis")
    less = [tuple(max(-n, 0) for n in ends[1:]) for ends in (before, after)]
    more = [tuple(max(n, 0) for n in ends[1:]) for ends in (before, after)]
    cuts = any(map(any, less))
    if not cuts or any(map(any, more)):
        input = t.new(ops.Pad(more[0], more[1], mode, float(value or 0)), input)
    if not cuts:
        return input
    stop = tuple(n - cut for n, cut in zip(t.shape(input), less[1], strict=True))
    return t.new(ops.Slice(less[0], stop, (1,) * rank), input)  # a negative amount cuts off


@handles(operator.getitem)
def getitem(t: Recorder, input: Value, index: Any) -> Value:
    shape = t.shape(input)
    indices = list(index) if isinstance(index, tuple) else [index]
    if not all(i is None or i is ... or type(i) is int or isinstance(i, slice) for i in indices):
        raise Refused("indexing with tensors or lists", "use slices with fixed bounds")
    if ... in indices:
        at = indices.index(...)
        named = sum(i is not None and i is not ... for i in indices)
        indices[at : at + 1] = [slice(None)] * (len(shape) + 1 - named)
    indices += [slice(None)] * (len(shape) + 1 - sum(i is not None for i in indices))
    whole = (slice(None), slice(0, None), slice(None, None, 1), slice(0, None, 1))
    if indices[0] not in whole:
        raise Refused("indexes the batch axis", "a spiking network sees one sample at a time: x[:, ...]")
    bounds: list[tuple[int, int, int]] = []
    result: list[int] = []
    for i in indices[1:]:
        if i is None:
            result.append(1)
            continue
        if len(bounds) == len(shape):
            raise ShapeError(f"too many indices for (N, {_join(shape)})")
        n = shape[len(bounds)]
        if isinstance(i, slice):
            if not all(v is None or type(v) is int for v in (i.start, i.stop, i.step)):
                raise Refused("slice bounds that are not fixed")
            bounds.append(i.indices(n))
            result.append(len(range(*bounds[-1])))
        else:
            if not -n <= i < n:
                raise ShapeError(f"index {i} is out of range for an axis of {n}")
            bounds.append((i % n, i % n + 1, 1))
    if any(b != (0, n, 1) for b, n in zip(bounds, shape, strict=True)):
        starts, stops, steps = (tuple(values) for values in zip(*bounds, strict=True))
        input = t.view(input, ops.Slice(starts, stops, steps))
    return _reshaped(t, input, tuple(result))


# --- what changes nothing ------------------------------------------------------------------------------------------


@handles(torch.clone, "clone")
def clone(t: Recorder, input: Value, memory_format: Any = None) -> Value:
    return t.own(t.read(input))


@handles(torch.detach, "detach", "requires_grad_")
def detach(t: Recorder, input: Value, requires_grad: bool = True) -> Value:
    return t.view(input)


@handles("contiguous")
def contiguous(t: Recorder, input: Value, memory_format: Any = None) -> Value:
    result = t.view(input, exact=False)
    result.exact = result.exact and memory_format is None
    return result


@handles("to", "float", "double", "cpu", "cuda", "type_as")
def to(t: Recorder, input: Value, *args: Any, **kwargs: Any) -> Value:
    for option in (*args, *kwargs.values()):
        if isinstance(option, torch.dtype) and option not in (torch.float32, torch.float64):
            raise Refused(
                f"a conversion to {option}", "the compiled network is float32 until it is quantized", "SNN007"
            )
    # The same tensor or a copy, as its dtype and device happen to be: neither is tracked, so take it for either.
    result = t.view(input)
    result.exact = False
    return result
