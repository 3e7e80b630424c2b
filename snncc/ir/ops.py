"""The operations: frozen dataclasses with typed attributes, shape inference and an evaluation rule in numpy.

Shapes are without the batch axis; evaluation works on float64 arrays (N, ...). Float values are real, integer values
count units (see :class:`snncc.ir.types.Type`). Pooling and convolution follow PyTorch's definitions
(torch.nn.functional: conv2d, avg_pool2d, max_pool2d, adaptive_avg_pool2d).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from math import ceil, floor, inf, log2, prod
from typing import Any, ClassVar

import numpy as np

from snncc.ir.types import DTYPES, Array, Domain, Param, PerChannel, Range, Store, Type, per_channel

Pair = tuple[int, int]


class ShapeError(ValueError):
    """Operands that do not fit an operation."""


@dataclass(frozen=True)
class Op:
    """Base of all operations."""

    mnemonic: ClassVar[str] = ""
    arity: ClassVar[int | None] = 1  # None: one or more
    # Linear operations scale integers freely: their result's unit is the quantizer's choice, not inferred.
    free_unit: ClassVar[bool] = False

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        """The result's type. Raises ShapeError."""
        raise NotImplementedError(f"{type(self).__name__}.infer")

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        """The result for operands (N, ...), as a network: of neurons, the transfer function."""
        raise NotImplementedError(f"{type(self).__name__}.evaluate")

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        """What the result lies between in each of so many time steps, for operands that lie between ``xs``. There is no
        default: what is not bounded cannot be proved."""
        raise NotImplementedError(f"{type(self).__name__}.bounds")

    def params(self) -> Iterator[tuple[str, Param]]:
        """The tensors that the operation refers to, by attribute."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Param):
                yield field.name, value


class Stateful(Op):
    """An operation that keeps a state between time steps."""

    def start(self, n: int, type: Type, store: Store) -> Array:
        """The state before the first step, for a batch of ``n``."""
        raise NotImplementedError

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        """(state, result) after one time step with input ``x``."""
        raise NotImplementedError

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        """What its numbers lie between, those on the way from a step to the next included: one range for each that
        :meth:`start` lists along its second axis, or one. Where 24 bits saturate, what they would be without."""
        raise NotImplementedError(f"{type(self).__name__}.states")


# --- helpers -------------------------------------------------------------------------------------------------------


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def _need_rank(x: Type, rank: int, what: str) -> None:
    _need(len(x.shape) == rank, f"{what} takes {rank} axes besides the batch, got shape {x.shape}")


def _after_linear(x: Type, shape: tuple[int, ...]) -> Type:
    domain = Domain.REAL if x.domain is Domain.REAL else Domain.CURRENT
    return Type(shape, "i32" if x.integer else x.dtype, domain)


def _map_unit(x: Type, store: Store, suffix: str, rule: Any) -> PerChannel:
    """A per-channel unit under a change of the channel axis; scalars stay."""
    if not isinstance(x.unit, Param):
        return x.unit
    return store.put(x.unit.name + suffix, rule(store[x.unit]))


def times(unit: PerChannel, factor: PerChannel, store: Store) -> PerChannel:
    """The product of two scalars-or-per-channel values."""
    if not isinstance(unit, Param) and not isinstance(factor, Param):
        return float(unit) * float(factor)
    if not isinstance(factor, Param) and factor == 1:
        return unit
    if not isinstance(unit, Param) and unit == 1:
        return factor
    name = unit.name if isinstance(unit, Param) else factor.name if isinstance(factor, Param) else "unit"
    left, right = (np.asarray(store[v] if isinstance(v, Param) else v, np.float64) for v in (unit, factor))
    return store.put(name, left * right)


def same_unit(a: PerChannel, b: PerChannel) -> bool:
    """Whether two units are the same numbers, whatever their names."""
    return a.digest == b.digest if isinstance(a, Param) and isinstance(b, Param) else a == b


def pool_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, dilation: int = 1) -> int:
    """PyTorch's output size of a pooling window along one axis."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    n = (ceil(span / stride) if ceil_mode else floor(span / stride)) + 1
    # The last window must start inside the input or its left padding.
    return n - 1 if ceil_mode and (n - 1) * stride >= size + padding else n


def windows(x: Array, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Array:
    """A view (N, C, Ho, Wo, kh, kw) of all windows over x (N, C, H, W)."""
    kh, kw = ((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _regroup(x: Range, out: Type) -> Range:
    """The range under a change of shape in C order."""
    old, new = len(x.low), out.shape[0] if out.shape else 1
    if new % old == 0:
        return x.map(lambda end: np.repeat(end, new // old))
    if old % new == 0:
        return Range(x.low.reshape(new, -1).min(axis=1), x.high.reshape(new, -1).max(axis=1))
    return Range.of(*x.hull, out)


def _sums(up: Array, down: Array, low: Array, high: Array) -> Range:
    """Of products with weights above zero, ``up``, and below, ``down``, (O, C); the operands broadcast over these."""
    with np.errstate(invalid="ignore"):
        parts = [[np.where(w == 0, 0.0, w * end).sum(axis=1) for w in (up, down)] for end in (low, high)]
    (up_low, down_low), (up_high, down_high) = parts
    return Range(up_low + down_high, up_high + down_low)


# --- inputs and shapes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input(Op):
    """What the user feeds: real values. ``low`` and ``high``: the range on the calibration data, once known."""

    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None
    mnemonic: ClassVar[str] = "input"
    arity: ClassVar[int | None] = 0

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        return Type(self.shape)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        """Those of the calibration data, and zero: nobody holds a user to them."""
        return Range.of(-inf if self.low is None else self.low, inf if self.high is None else self.high, out).or_zero


@dataclass(frozen=True)
class Ones(Op):
    """1 everywhere, (1, *size), whatever the operand, which gives the number of samples alone: an input of the network.

    A convolution of it is a bias of every pixel, which is smaller where a window lies in the zero padding: what the
    shift of a normalisation in front of a padded convolution adds. In time steps it is a spike in each of them, beside
    a constant input a constant. Of integers it is ``count``, whose unit is 1 / count.
    """

    size: Pair
    count: int = 1
    mnemonic: ClassVar[str] = "ones"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(min(self.size) > 0, f"ones of {self.size}")
        _need(self.count > 0, f"ones of count {self.count}")
        return Type((1, *self.size), "i32" if x.integer else x.dtype, x.domain, 1.0 / self.count if x.integer else 1.0)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.full((len(xs[0]), *out.shape), float(self.count if out.integer else 1))

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return Range.of(*2 * (float(self.count if out.integer else 1),), out)


class Elementwise(Op):
    """Keeps shape and type of its operand."""

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        return args[0]


@dataclass(frozen=True)
class Identity(Elementwise):
    """``x``."""

    mnemonic: ClassVar[str] = "identity"

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return xs[0]

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0]


@dataclass(frozen=True)
class Dropout(Identity):
    """Dropout at inference: the identity. Kept in the traced stage so that it shows the user's network."""

    p: float = 0.5
    mnemonic: ClassVar[str] = "dropout"


@dataclass(frozen=True)
class Reshape(Op):
    """Any change of shape in C order, without the batch axis."""

    shape: tuple[int, ...]
    mnemonic: ClassVar[str] = "reshape"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(prod(self.shape) == x.size, f"cannot reshape {x.shape} ({x.size} values) to {self.shape}")
        if isinstance(x.unit, Param):
            repeats, rest = divmod(self.shape[0], x.shape[0]) if self.shape else (0, 1)
            _need(rest == 0, f"cannot reshape {x.shape} to {self.shape}: channels have units of their own")
            return replace(x, shape=self.shape, unit=_map_unit(x, store, ".flat", lambda u: np.repeat(u, repeats)))
        return replace(x, shape=self.shape)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return xs[0].reshape(len(xs[0]), *out.shape)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return _regroup(xs[0], out)


@dataclass(frozen=True)
class Flatten(Op):
    """(C, H, W) to (C*H*W,), in C order."""

    mnemonic: ClassVar[str] = "flatten"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        return Reshape((args[0].size,)).infer(args, store)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return xs[0].reshape(len(xs[0]), *out.shape)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return _regroup(xs[0], out)


@dataclass(frozen=True)
class Pad(Op):
    """Padding of any axes: ``before`` and ``after`` per axis; mode constant, reflect, replicate or circular."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    mode: str = "constant"
    value: float = 0.0
    mnemonic: ClassVar[str] = "pad"
    NUMPY_MODES: ClassVar[dict[str, str]] = {
        "constant": "constant",
        "reflect": "reflect",
        "replicate": "edge",
        "circular": "wrap",
    }

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(len(self.before) == len(self.after) == len(x.shape), f"pad names {len(self.before)} axes of {x.shape}")
        _need(self.mode in self.NUMPY_MODES, f"unknown padding mode {self.mode!r}")
        shape = tuple(b + s + a for b, s, a in zip(self.before, x.shape, self.after, strict=True))
        _need(not x.integer or float(self.value).is_integer(), f"padding {self.value} among integers")
        _need(min(shape, default=1) > 0, f"padding {x.shape} gives {shape}")
        if isinstance(x.unit, Param):
            width = (self.before[0], self.after[0])
            _need(min(width) >= 0, "negative padding of channels with units of their own")
            # A channel copied from another one brings its unit.
            mode: Any = "edge" if self.mode == "constant" else self.NUMPY_MODES[self.mode]
            return replace(x, shape=shape, unit=_map_unit(x, store, ".pad", lambda u: np.pad(u, width, mode=mode)))
        return replace(x, shape=shape)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        pads = [(0, 0), *((max(b, 0), max(a, 0)) for b, a in zip(self.before, self.after, strict=True))]
        kwargs: dict[str, Any] = {"constant_values": self.value} if self.mode == "constant" else {}
        y = np.pad(xs[0], pads, mode=self.NUMPY_MODES[self.mode], **kwargs)  # type: ignore[call-overload]
        # A negative amount crops, as torch's does.
        ends = zip(self.before, self.after, y.shape[1:], strict=True)
        crop = [slice(max(-b, 0), n - max(-a, 0)) for b, a, n in ends]
        return np.asarray(y[(slice(None), *crop)])

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        (x,) = xs
        channels = replace(self, before=self.before[:1], after=self.after[:1])
        moved = x.map(lambda end: channels.evaluate([end[None]], out, store)[0])
        inside = any(amount > 0 for amount in (*self.before[1:], *self.after[1:]))
        return moved.within(Range.of(self.value, self.value, out)) if inside and self.mode == "constant" else moved


@dataclass(frozen=True)
class Slice(Op):
    """``x[start:stop:step]`` along every axis; steps are positive, bounds within the shape."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: tuple[int, ...]
    mnemonic: ClassVar[str] = "slice"

    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b, s) for a, b, s in zip(self.start, self.stop, self.step, strict=True))

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(len(self.start) == len(x.shape), f"slice names {len(self.start)} axes of {x.shape}")
        _need(min(self.step, default=1) > 0, f"steps {self.step} are not all positive")
        shape = tuple(len(range(n)[s]) for n, s in zip(x.shape, self._slices(), strict=True))
        _need(min(shape, default=1) > 0, f"slice of {x.shape} is empty: {shape}")
        return replace(x, shape=shape, unit=_map_unit(x, store, ".slice", lambda u: u[self._slices()[0]]))

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.asarray(xs[0][(slice(None), *self._slices())])

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].map(lambda end: end[self._slices()[0]])


@dataclass(frozen=True)
class Concat(Op):
    """Concatenation along ``axis`` (0: channels)."""

    axis: int = 0
    mnemonic: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        first = args[0]
        _need(0 <= self.axis < len(first.shape), f"no axis {self.axis} in shape {first.shape}")
        for x in args[1:]:
            same = len(x.shape) == len(first.shape) and all(
                a == b or i == self.axis for i, (a, b) in enumerate(zip(x.shape, first.shape, strict=True))
            )
            _need(same, f"cannot concatenate {first.shape} and {x.shape} along axis {self.axis}")
        shape = tuple(sum(x.shape[i] for x in args) if i == self.axis else n for i, n in enumerate(first.shape))
        domains = {x.domain for x in args}
        domain = domains.pop() if len(domains) == 1 else Domain.CURRENT
        unit: PerChannel = first.unit
        if domain is Domain.CURRENT and not first.integer:
            unit = 1.0
        elif self.axis:
            same = all(same_unit(x.unit, first.unit) for x in args)
            _need(same, "concatenation of different units along an axis other than the channels")
        elif isinstance(unit, Param) or any(x.unit != unit for x in args):
            parts = [store[x.unit] if isinstance(x.unit, Param) else np.full(x.shape[0], x.unit) for x in args]
            unit = store.put("concat.unit", np.concatenate(parts))
        widest = max((x.dtype for x in args), key=lambda name: DTYPES[name].itemsize)
        return Type(shape, widest, domain, unit)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.concatenate(xs, axis=self.axis + 1)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        if self.axis:
            return reduce(Range.within, xs)
        return Range(np.concatenate([x.low for x in xs]), np.concatenate([x.high for x in xs]))


@dataclass(frozen=True)
class Add(Op):
    """The sum of two values of one shape (and, of integers, of one unit)."""

    mnemonic: ClassVar[str] = "add"
    arity: ClassVar[int | None] = 2

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        a, b = args
        _need(a.shape == b.shape, f"cannot add {a.shape} and {b.shape}")
        if a.integer:
            # Computed in two ways (a pooling's unit takes its scale), one unit may differ in its last bits.
            one = same_unit(a.unit, b.unit) or np.allclose(
                per_channel(a.unit, store, 1), per_channel(b.unit, store, 1), rtol=1e-12, atol=0.0
            )
            _need(one, f"cannot add integers of different units: {a.unit} and {b.unit}")
            return Type(a.shape, "i32", Domain.CURRENT, a.unit)
        return _after_linear(a, a.shape)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.asarray(xs[0] + xs[1])

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0] + xs[1]


# --- linear operations ---------------------------------------------------------------------------------------------


class Weighted(Op):
    """An operation with ``weight`` and ``bias``, linear in its operand. Integer weights mean
    ``weight * unit_out / unit_in`` (see :class:`snncc.ir.types.Type`)."""

    free_unit: ClassVar[bool] = True
    weight: Param
    bias: Param | None

    def multiplications(self, out: Type) -> int:
        """How many it takes to compute a result of type ``out``, of one sample."""
        return out.size * prod(self.weight.shape[1:])

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        weight = store[self.weight].astype(np.float64)
        bias = np.zeros(len(weight)) if self.bias is None else store[self.bias].astype(np.float64)
        # With zero, in whatever order the products are added up, no sum on the way leaves the range.
        return self._weigh(xs[0].or_zero, np.maximum(weight, 0.0), np.minimum(weight, 0.0), bias, out)

    def _weigh(self, x: Range, up: Array, down: Array, bias: Array, out: Type) -> Range:
        """The range of the weighted sum; ``up`` are the weights above zero, ``down`` those below, (O, ...)."""
        raise NotImplementedError(f"{type(self).__name__}._weigh")


@dataclass(frozen=True)
class Conv2d(Weighted):
    """2-D convolution of (C, H, W). weight (O, C/groups, kh, kw), bias (O,), padding (top, bottom, left, right)."""

    weight: Param
    bias: Param | None = None
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    mnemonic: ClassVar[str] = "conv2d"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need_rank(x, 3, "conv2d")
        _need(len(self.weight.shape) == 4, f"conv2d takes a weight of 4 axes, got {self.weight.shape}")
        o, c, kh, kw = self.weight.shape
        _need(x.shape[0] == c * self.groups, f"conv2d takes {c * self.groups} channels, got shape {x.shape}")
        _need(o % self.groups == 0, f"{o} output channels in {self.groups} groups")
        _need(self.bias is None or self.bias.shape == (o,), f"bias must have {o} values")
        top, bottom, left, right = self.padding
        (sy, sx), (dy, dx) = self.stride, self.dilation
        h = (x.shape[1] + top + bottom - dy * (kh - 1) - 1) // sy + 1
        w = (x.shape[2] + left + right - dx * (kw - 1) - 1) // sx + 1
        _need(h > 0 and w > 0, f"kernel {kh} x {kw} (dilation {self.dilation}) is larger than its input {x.shape}")
        return _after_linear(x, (o, h, w))

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        top, bottom, left, right = self.padding
        x = np.pad(xs[0], ((0, 0), (0, 0), (top, bottom), (left, right)))
        weight = store[self.weight].astype(np.float64)
        o, c, kh, kw = weight.shape
        view = windows(x, (kh, kw), self.stride, self.dilation)
        n, _, h, w = view.shape[:4]
        g = self.groups
        columns = view.reshape(n, g, c, h, w, kh, kw).transpose(1, 0, 3, 4, 2, 5, 6).reshape(g, n * h * w, -1)
        y = columns @ weight.reshape(g, o // g, -1).transpose(0, 2, 1)
        y = y.reshape(g, n, h, w, o // g).transpose(1, 0, 4, 2, 3).reshape(n, o, h, w)
        return y if self.bias is None else y + store[self.bias][:, None, None]

    def _weigh(self, x: Range, up: Array, down: Array, bias: Array, out: Type) -> Range:
        up, down = up.sum(axis=(2, 3)), down.sum(axis=(2, 3))
        low, high = (over_inputs(self, end)[:, :, 0, 0] for end in (x.low, x.high))
        return _sums(up, down, low, high) + Range(bias, bias)


@dataclass(frozen=True)
class Linear(Weighted):
    """Matrix product along the last axis: (..., F) to (..., O). weight (O, F), bias (O,)."""

    weight: Param
    bias: Param | None = None
    mnemonic: ClassVar[str] = "linear"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(len(self.weight.shape) == 2, f"linear takes a matrix, got weight {self.weight.shape}")
        o, f = self.weight.shape
        _need(len(x.shape) > 0 and x.shape[-1] == f, f"linear takes {f} features, got shape {x.shape}")
        _need(self.bias is None or self.bias.shape == (o,), f"bias must have {o} values")
        return _after_linear(x, (*x.shape[:-1], o))

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        y = xs[0] @ store[self.weight].astype(np.float64).T
        return np.asarray(y if self.bias is None else y + store[self.bias])

    def _weigh(self, x: Range, up: Array, down: Array, bias: Array, out: Type) -> Range:
        if len(out.shape) == 1:
            return _sums(up, down, x.low, x.high) + Range(bias, bias)
        # A channel's features share its range.
        rows = zip(up.sum(axis=1), down.sum(axis=1), bias, strict=True)
        return reduce(Range.within, (x.times(w) + x.times(v) + Range.of(b, b, out) for w, v, b in rows))


@dataclass(frozen=True)
class Affine(Weighted):
    """``x * weight + bias`` per channel; weight (C,), bias (C,)."""

    weight: Param
    bias: Param | None = None
    mnemonic: ClassVar[str] = "affine"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        for param in (self.weight, self.bias):
            _need(param is None or param.shape == x.shape[:1], f"one value per channel for {x.shape}")
        return _after_linear(x, x.shape)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        rank = len(out.shape)
        y = xs[0] * per_channel(self.weight, store, rank)
        return np.asarray(y if self.bias is None else y + per_channel(self.bias, store, rank))

    def _weigh(self, x: Range, up: Array, down: Array, bias: Array, out: Type) -> Range:
        return x.times(up + down) + Range(bias, bias)


def over_inputs(op: Weighted, values: Array) -> Array:
    """One value per channel of the operand, (C,), laid out so that it broadcasts over ``op.weight``."""
    if isinstance(op, Conv2d):
        o, c = op.weight.shape[:2]
        # Output o of group g reads channels g*c ... g*c + c - 1.
        return values.reshape(op.groups, 1, c).repeat(o // op.groups, axis=1).reshape(o, c, 1, 1)
    return values[None] if isinstance(op, Linear) else values


@dataclass(frozen=True)
class BatchNorm(Op):
    """Inference of batch norm: ``(x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe & Szegedy 2015)."""

    mean: Param
    var: Param
    weight: Param | None = None
    bias: Param | None = None
    eps: float = 1e-5
    mnemonic: ClassVar[str] = "batch_norm"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        for _, param in self.params():
            _need(param.shape == x.shape[:1], f"batch norm of {param.shape[0]} channels, got shape {x.shape}")
        return x

    def scale_shift(self, store: Store) -> tuple[Array, Array]:
        """(scale, shift), float64 (C,): the same operation as ``x * scale + shift``."""
        scale = 1.0 / np.sqrt(store[self.var].astype(np.float64) + self.eps)
        if self.weight is not None:
            scale = scale * store[self.weight]
        shift = -store[self.mean].astype(np.float64) * scale
        return scale, shift if self.bias is None else shift + store[self.bias]

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        scale, shift = (v.reshape((-1,) + (1,) * (len(out.shape) - 1)) for v in self.scale_shift(store))
        return np.asarray(xs[0] * scale + shift)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        scale, shift = self.scale_shift(store)
        y = xs[0].times(scale)
        return Range(y.low + shift, y.high + shift)


# --- pooling -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AvgPool(Op):
    """Average pooling of (C, H, W). ``divisor`` 0: the window's size (see torch's divisor_override)."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int = 0
    mnemonic: ClassVar[str] = "avg_pool"

    def _output(self, x: Type) -> tuple[int, int, int]:
        _need_rank(x, 3, self.mnemonic)
        h, w = (
            pool_size(x.shape[i + 1], self.kernel[i], self.stride[i], self.padding[i], self.ceil_mode) for i in (0, 1)
        )
        _need(h > 0 and w > 0, f"pooling window {self.kernel} is larger than its input {x.shape}")
        _need(all(2 * p <= k for p, k in zip(self.padding, self.kernel, strict=True)), "padding over half the window")
        return x.shape[0], h, w

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        return _after_linear(args[0], self._output(args[0]))

    def _fit(self, x: Array, out: tuple[int, ...], value: float, padding: Pair) -> Array:
        """``x`` padded with ``value`` to exactly what ``out`` windows cover."""
        (ph, pw), pads = padding, []
        for size, n, k, s, p in zip(x.shape[2:], out[-2:], self.kernel, self.stride, (ph, pw), strict=True):
            pads.append((p, max(0, (n - 1) * s + k - size - p)))
        return np.pad(x, ((0, 0), (0, 0), *pads), constant_values=value)

    def counts(self, shape: tuple[int, ...], out: tuple[int, ...]) -> Array:
        """The divisor of every window, (Ho, Wo)."""
        if self.divisor:
            return np.full(out[-2:], float(self.divisor))
        ones = np.ones((1, 1, *shape[-2:]))
        if self.count_include_pad:
            # The user's padding counts, what ceil_mode adds beyond it does not.
            ones = np.pad(ones, ((0, 0), (0, 0), *((p, p) for p in self.padding)), constant_values=1.0)
            ones = self._fit(ones, out, 0.0, (0, 0))
        else:
            ones = self._fit(ones, out, 0.0, self.padding)
        counts: Array = windows(ones, self.kernel, self.stride)[0, 0, : out[-2], : out[-1]].sum(axis=(-2, -1))
        return counts

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        sums = windows(self._fit(xs[0], out.shape, 0.0, self.padding), self.kernel, self.stride)
        total = sums[:, :, : out.shape[1], : out.shape[2]].sum(axis=(-2, -1))
        return np.asarray(total / self.counts(xs[0].shape, out.shape))

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        x = xs[0].or_zero if any(self.padding) or self.ceil_mode or self.divisor else xs[0]
        return x.times(prod(self.kernel) / self.divisor) if self.divisor else x


@dataclass(frozen=True)
class AdaptiveAvgPool(Op):
    """Average pooling to ``output`` whatever the input; windows differ in size where it does not divide."""

    output: Pair
    mnemonic: ClassVar[str] = "adaptive_avg_pool"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        _need_rank(args[0], 3, self.mnemonic)
        return _after_linear(args[0], (args[0].shape[0], *self.output))

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        x = xs[0]
        for axis, n in zip((2, 3), self.output, strict=True):
            size = x.shape[axis]
            bounds = [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
            x = np.stack([x.take(range(a, b), axis=axis).mean(axis=axis) for a, b in bounds], axis=axis)
        return x

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0]


@dataclass(frozen=True)
class SumPool(Op):
    """Sum of a window of (C, H, W), no padding. The sum's real value is multiplied by ``scale``: integer values and
    spikes are only counted, and their unit takes the scale. Average pooling is a sum with scale 1/(kh*kw)."""

    kernel: Pair
    stride: Pair
    scale: float = 1.0
    mnemonic: ClassVar[str] = "sum_pool"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need_rank(x, 3, self.mnemonic)
        h, w = (pool_size(x.shape[i + 1], self.kernel[i], self.stride[i], 0, False) for i in (0, 1))
        _need(h > 0 and w > 0, f"pooling window {self.kernel} is larger than its input {x.shape}")
        counted = x.integer or x.domain is Domain.SPIKE
        unit = times(x.unit, self.scale, store) if counted else 1.0
        return replace(x, shape=(x.shape[0], h, w), unit=unit)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        total = windows(xs[0], self.kernel, self.stride).sum(axis=(-2, -1))
        return np.asarray(total if out.integer else total * self.scale)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].times(prod(self.kernel) * (1.0 if out.integer else self.scale))


@dataclass(frozen=True)
class MaxPool(Stateful):
    """Maximum of a window of (C, H, W).

    Over time steps of spikes it is the maximum of the *counts so far*: it sends a spike whenever that maximum grows,
    so the rate out is the largest rate in (a maximum of each step's spikes would be larger). ``each_step``: it is the
    maximum of each step, as in networks that were trained with spikes.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    each_step: bool = False
    mnemonic: ClassVar[str] = "max_pool"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need_rank(x, 3, self.mnemonic)
        h, w = (
            pool_size(x.shape[i + 1], self.kernel[i], self.stride[i], self.padding[i], self.ceil_mode, self.dilation[i])
            for i in (0, 1)
        )
        _need(h > 0 and w > 0, f"pooling window {self.kernel} is larger than its input {x.shape}")
        _need(all(2 * p <= k for p, k in zip(self.padding, self.kernel, strict=True)), "padding over half the window")
        for size, n, k, s, p, d in zip(
            x.shape[1:], (h, w), self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            reached = np.arange(n)[:, None] * s - p + np.arange(k) * d
            inside = ((reached >= 0) & (reached < size)).any(axis=1)
            _need(bool(inside.all()), f"a pooling window {self.kernel} lies in its padding {self.padding}")
        return replace(x, shape=(x.shape[0], h, w))

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        pads = []
        for i in (0, 1):
            reach = (out.shape[i + 1] - 1) * self.stride[i] + self.dilation[i] * (self.kernel[i] - 1) + 1
            pads.append((self.padding[i], max(0, reach - xs[0].shape[i + 2] - self.padding[i])))
        x = np.pad(xs[0], ((0, 0), (0, 0), *pads), constant_values=-np.inf)
        y = windows(x, self.kernel, self.stride, self.dilation)
        return np.asarray(y[:, :, : out.shape[1], : out.shape[2]].max(axis=(-2, -1)))

    # State: the sums so far of the inputs; the sum of what was sent is their maximum.
    def start(self, n: int, type: Type, store: Store) -> Array:
        return np.zeros(())

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        if self.each_step:
            return state, self.evaluate([x], type, store)
        state = np.broadcast_to(state, x.shape)
        now = state + x
        return now, self.evaluate([now], type, store) - self.evaluate([state], type, store)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[
            0
        ]  # a maximum of sums grows by no more than the largest of what is added, and no less than the smallest

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        return (Range.of(0.0, 0.0, out) if self.each_step else xs[0].or_zero.times(timesteps),)


# --- activations ---------------------------------------------------------------------------------------------------


class Activation(Elementwise):
    """An activation that a neuron can replace. ``threshold``: the value that calibration found for it."""

    threshold: PerChannel | None


@dataclass(frozen=True)
class Relu(Activation):
    """``max(x, 0)``."""

    threshold: PerChannel | None = None
    mnemonic: ClassVar[str] = "relu"

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.maximum(xs[0], 0.0)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].map(lambda end: np.maximum(end, 0.0))


@dataclass(frozen=True)
class Clamp(Activation):
    """``min(max(x, low), high)``: ReLU6, hardtanh, clamp. An absent bound is infinite."""

    low: float | None = None
    high: float | None = None
    threshold: PerChannel | None = None
    mnemonic: ClassVar[str] = "clamp"

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.clip(xs[0], -np.inf if self.low is None else self.low, np.inf if self.high is None else self.high)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].map(lambda end: self.evaluate([end], out, store))


@dataclass(frozen=True)
class QuantRelu(Activation):
    """Quantized clip-floor-shift activation ``theta/L clip(floor(x L/theta + shift), 0, L)`` (QCFS, Bu et al. 2022)."""

    theta: float
    levels: int
    shift: float = 0.5
    threshold: PerChannel | None = None
    mnemonic: ClassVar[str] = "quant_relu"

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        steps = np.clip(np.floor(xs[0] * (self.levels / self.theta) + self.shift), 0, self.levels)
        return np.asarray(steps * (self.theta / self.levels))

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].map(lambda end: self.evaluate([end], out, store))


@dataclass(frozen=True)
class Floor(Elementwise):
    """The largest whole number not above x: part of quantized activations that are written out in steps."""

    mnemonic: ClassVar[str] = "floor"

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.floor(xs[0])

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].map(np.floor)


# --- spiking -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encode(Op):
    """Real values to time steps (see :mod:`snncc.ir.encode`). One spike stands for ``unit``; of the constant
    encoding, one integer step does."""

    method: str = "constant"
    unit: float = 1.0
    dtype: str = "f32"
    seed: int = 0
    mnemonic: ClassVar[str] = "encode"
    METHODS: ClassVar[tuple[str, ...]] = ("constant", "rate", "bernoulli", "spikes")

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(self.method in self.METHODS, f"unknown encoding {self.method!r}; known: {', '.join(self.METHODS)}")
        _need(self.dtype in DTYPES, f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        _need(0 < self.unit < inf, f"the unit {self.unit} is not positive and finite")
        if self.method == "constant":
            unit = self.unit if self.dtype.startswith("i") else 1.0
            return Type(x.shape, self.dtype, Domain.CURRENT, unit)
        return Type(x.shape, self.dtype, Domain.SPIKE, self.unit)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        if not out.integer:
            return xs[0]
        y = xs[0] / self.unit
        return np.asarray(np.rint(y) if self.method == "constant" else y)  # the same in every step, so on average too

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        (x,) = xs
        unit = 1.0 if out.integer else self.unit
        if self.method == "constant":
            return x.times(1.0 / self.unit).map(np.rint) if out.integer else x
        if self.method == "bernoulli":
            return Range.of(0.0, unit, out)
        if self.method == "spikes":  # what is given are counts, of which one is no surprise
            return Range.of(0.0, unit, out).within(x.times(unit)).map(lambda end: np.maximum(end, 0.0))
        most = x.times(1.0 / self.unit)
        return Range(np.maximum(np.floor(most.low), 0.0), np.maximum(np.ceil(most.high), 0.0)).times(unit)


@dataclass(frozen=True)
class If(Stateful):
    """Integrate and fire: ``v += x``; a spike where ``v >= threshold``; then ``v -= threshold`` (reset "subtract")
    or ``v = 0`` ("zero"); then ``v = max(v, v_min)``. At most one spike per step. A spike stands for the threshold
    times ``gain``: a reset to zero forgets what lay above the threshold, and calibration makes up for that on average.

    Float neurons first round ``x`` to a grid of 2**-24 of the threshold (next lower power of two): what reaches them is
    a sum, whose last bit depends on the order of summation, and no spike may.
    """

    threshold: PerChannel
    v0: PerChannel = 0.0
    reset: str = "subtract"
    v_min: float | int | None = None
    gain: PerChannel = 1.0
    mnemonic: ClassVar[str] = "if"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(self.reset in ("subtract", "zero"), f"unknown reset {self.reset!r}; known: subtract, zero")
        for value in (self.threshold, self.v0, self.gain):
            _need(not isinstance(value, Param) or value.shape == x.shape[:1], f"one value per channel for {x.shape}")
        given: dict[str, PerChannel | None] = {
            "threshold": self.threshold, "v0": self.v0, "v_min": self.v_min, "gain": self.gain,
        }  # fmt: skip
        for name, number in given.items():
            if number is None or (isinstance(number, Param) and number not in store):  # read from text alone
                continue
            numbers = np.asarray(store[number] if isinstance(number, Param) else number)
            _need(bool(np.isfinite(numbers).all()), f"{name} is not finite")
            _need(name not in ("threshold", "gain") or bool((numbers > 0).all()), f"{name} is not positive")
            whole = name == "gain" or not x.integer or bool((numbers == np.rint(numbers)).all())
            _need(whole, f"{name} of an integer neuron is not whole")
        unit = times(x.unit if x.integer else 1.0, self.threshold, store)
        return replace(x, domain=Domain.SPIKE, unit=times(unit, self.gain, store))

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        theta = per_channel(self.threshold, store, len(out.shape))
        y = np.clip(xs[0], 0.0, theta)
        return np.asarray(y / theta if out.integer else y * per_channel(self.gain, store, len(out.shape)))

    def grid(self, out: Type, store: Store) -> Array | float:
        """The resolution of the membrane potential: 1 of integers, else 2**-24 of the threshold."""
        if out.integer:
            return 1.0
        theta = self.threshold
        if not isinstance(theta, Param):
            return 2.0 ** (floor(log2(theta)) - 24)
        return np.asarray(np.exp2(np.floor(np.log2(per_channel(theta, store, len(out.shape)))) - 24))

    def start(self, n: int, type: Type, store: Store) -> Array:
        v0 = per_channel(self.v0, store, len(type.shape))
        return np.broadcast_to(v0, (n, *type.shape)).astype(np.float64)

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        theta = per_channel(self.threshold, store, len(type.shape))
        grid = self.grid(type, store)
        v = state + np.rint(x / grid) * grid
        spikes = v >= theta
        v = v - spikes * theta if self.reset == "subtract" else np.where(spikes, 0.0, v)
        if self.v_min is not None:
            v = np.maximum(v, self.v_min)
        return v, np.asarray(spikes * (1.0 if type.integer else theta * per_channel(self.gain, store, len(type.shape))))

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        gain = per_channel(self.gain, store, 1) if not out.integer else 1.0
        worth = gain * per_channel(self.threshold, store, 1) if not out.integer else 1.0
        return Range.of(0.0, worth, out)

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        (x,) = xs
        theta, v0 = (np.asarray(per_channel(value, store, 1), np.float64) for value in (self.threshold, self.v0))
        grid = 0.0 if out.integer else theta * 2.0**-24
        x = x + Range.of(-grid, grid, out)
        more = 0.0 if self.reset == "zero" else timesteps * np.maximum(x.high - theta, 0.0)
        low = np.minimum(v0, 0.0) + timesteps * np.minimum(x.low, 0.0)
        if self.v_min is not None:
            low = np.maximum(low, np.minimum(np.minimum(v0, 0.0), self.v_min) + np.minimum(x.low, 0.0))
        return (Range.of(low, np.maximum(v0, theta) + more + np.maximum(x.high, 0.0), out),)


@dataclass(frozen=True)
class Lif(Stateful):
    """A spiking neuron of the user's own network, leaky integrate and fire: ``v += x``; a spike, worth 1, where
    ``v >= threshold``; then ``v -= threshold`` (reset "subtract") or ``v = 0`` ("zero"); then ``v *= decay``. It starts
    at 0, which is where the leak goes to.

    Integrate and fire has the decay 1. What others write as a reset potential, an input that decays by ``1 / tau``, or
    a leak before the input is this neuron as well: potentials count from the reset potential, and in multiples of tau.

    Each of its operations is rounded to float32, in integer stages, too, as decays leave no whole numbers. So whoever
    computes with IEEE numbers finds the same spikes.
    """

    threshold: PerChannel
    decay: float = 1.0
    reset: str = "subtract"
    mnemonic: ClassVar[str] = "lif"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need(self.reset in ("subtract", "zero"), f"unknown reset {self.reset!r}; known: subtract, zero")
        _need(0 < self.decay <= 1, f"the decay {self.decay} is not above 0 and at most 1")
        theta = self.threshold
        _need(not isinstance(theta, Param) or theta.shape == x.shape[:1], f"one value per channel for {x.shape}")
        if not isinstance(theta, Param) or theta in store:
            values = np.asarray(store[theta] if isinstance(theta, Param) else theta)
            with np.errstate(over="ignore"):
                single = values.astype(np.float32)  # what it computes with
            _need(bool(np.isfinite(single).all() and (single > 0).all()), "threshold is not positive and finite")
            whole = not x.integer or bool((values == np.rint(values)).all())
            _need(whole, "threshold of an integer neuron is not whole")
        # Until inputs are encoded, nothing is a spike: stage ``ann`` shows the user's network.
        return x if x.domain is Domain.REAL else replace(x, domain=Domain.SPIKE, unit=1.0)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        # The rate that integrate and fire tends to; of a leak no bound is claimed.
        return np.clip(xs[0] / per_channel(self.threshold, store, len(out.shape)), 0.0, 1.0)

    def start(self, n: int, type: Type, store: Store) -> Array:
        return np.zeros((n, *type.shape))

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        theta = np.asarray(per_channel(self.threshold, store, len(type.shape))).astype(np.float32)
        v = state.astype(np.float32) + x.astype(np.float32)
        spikes = v >= theta
        v = v - np.where(spikes, theta, np.float32(0)) if self.reset == "subtract" else np.where(spikes, 0, v)
        return (v * np.float32(self.decay)).astype(np.float64), spikes.astype(np.float64)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return Range.of(0.0, 1.0, out)

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        (x,), theta = xs, np.asarray(per_channel(self.threshold, store, 1), np.float64)
        x = x.or_zero.times(1 + timesteps * 2.0**-23)  # float32 rounds
        lasting = timesteps if self.decay == 1 else min(timesteps, 1 / (1 - self.decay))  # a geometric series
        more = 0.0 if self.reset == "zero" else lasting * np.maximum(x.high - theta, 0.0)
        return (Range.of(lasting * x.low, theta + more + x.high, out),)


OPS: dict[str, type[Op]] = {
    op.mnemonic: op
    for op in (
        Input, Ones, Identity, Dropout, Reshape, Flatten, Pad, Slice, Concat, Add, Conv2d, Linear, Affine, BatchNorm,
        AvgPool, AdaptiveAvgPool, SumPool, MaxPool, Relu, Clamp, QuantRelu, Floor, Encode, If, Lif,
    )
}  # fmt: skip
