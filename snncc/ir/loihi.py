"""Loihi 2's neurons as operations, in the integer arithmetic of Lava's own fixed-point models, and delays.

A membrane potential's least significant bit is 1/64 of one unit of the synaptic sum. Sources: lava-nc 0.10.0, the
models tagged ``fixed_pt`` in lava/proc: lif/models.py (PyLifModelBitAcc), atrlif/models.py (PyATRLIFModelFixed) and
sdn/models.py. Time is the layer's own: the step of latency that every synapse has on the chip shows only where a graph
has ``delay`` operations (:mod:`snncc.frontend.netx`); compiled graphs run with windows that follow the wave of input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from snncc.ir.ops import OPS, ShapeError, Stateful, times
from snncc.ir.types import Array, Domain, Param, PerChannel, Range, Store, Type, per_channel

STATE = 2**23  # u and v have 24 bits, v saturates at STATE - 1
SUM = 2**29  # Lava adds in 32 bits, which two sums below this and their biases cannot leave
INT32 = 2**31 - 1  # what Lava's variables hold
SHIFT = 6  # synaptic sums and thresholds are shifted by so many bits into the state
UNITY = 2**12  # a decay of so much forgets all
V0 = (1 - STATE // 2**SHIFT, STATE // 2**SHIFT - 1)  # what v can start at


def bias_of(bias: Param | None, store: Store, type: Type) -> Array | float:
    """A neuron's bias such that it broadcasts over (N, *shape): given per channel (C,) or per neuron."""
    if bias is None:
        return 0.0
    value = store[bias].astype(np.float64)
    return value if value.shape == type.shape else value.reshape((-1,) + (1,) * (len(type.shape) - 1))


def _bias_range(bias: Param | None, store: Store, type: Type) -> Range:
    value = np.broadcast_to(bias_of(bias, store, type), type.shape).reshape(type.shape[0], -1)
    return Range(value.min(axis=1), value.max(axis=1))


def decay(x: Array, amount: int) -> Array:
    """``x`` less ``amount`` of its 4096 parts, rounded towards zero."""
    return np.asarray(np.trunc(x * (UNITY - amount) / UNITY))


def wrap(u: Array) -> Array:
    """A current within 24 bits: what goes over comes in at the other end, once, so far outside it stays outside."""
    need_state(_size(u))
    return np.asarray(np.where(u > STATE, u - 2 * STATE, np.where(u <= -STATE, u + 2 * STATE, u)))


def need_sums(most: float) -> None:
    """Refuse synaptic sums of up to ``most`` in size that Lava's connections do not hold."""
    if most >= STATE:
        raise OverflowError(f"synaptic sums of {most:.0f}, beyond the 24 bits that Lava's connections have")


def need_state(most: float) -> None:
    """Refuse currents and sums over time of up to ``most`` in size that may overflow in Lava, which does not tell."""
    if most >= SUM:
        raise OverflowError(f"a state of {most:.0f}, beyond 2**29: sums with it may leave the 32 bits that Lava has")


def _size(x: Array) -> float:
    return float(np.abs(x).max(initial=0.0))


def _need_whole(name: str, value: PerChannel | None, low: int, high: int, store: Store) -> None:
    """Raise ShapeError where ``value`` is not whole or outside ``low`` to ``high``."""
    if value is None or (isinstance(value, Param) and value not in store):  # read from text alone
        return
    numbers = np.asarray(store[value] if isinstance(value, Param) else value)
    if not ((numbers == np.rint(numbers)) & (low <= numbers) & (numbers <= high)).all():
        raise ShapeError(f"{name} must be whole and {low} to {high}")


class LoihiNeuron(Stateful):
    """A neuron with a state of 24-bit integers. Its spike's real value is free: the quantizer's choice."""

    free_unit: ClassVar[bool] = True
    bias: Param | None
    domain: ClassVar[Domain] = Domain.SPIKE
    ranges: ClassVar[dict[str, tuple[int, int]]] = {}  # of its other numbers, which are whole

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        if self.bias is not None and self.bias.shape not in (x.shape, x.shape[:1]):
            raise ShapeError(f"bias {self.bias.shape} is neither per channel nor per neuron of {x.shape}")
        if x.integer:
            _need_whole("bias", self.bias, -SUM, SUM, store)
        for name, (low, high) in self.ranges.items():
            value = getattr(self, name)
            if isinstance(value, Param) and value.shape != x.shape[:1]:
                raise ShapeError(f"{name} must have one value per channel for {x.shape}")
            _need_whole(name, value, low, high, store)
        return replace(x, domain=self.domain)


@dataclass(frozen=True)
class CubaLif(LoihiNeuron):
    """Current-based leaky integrate and fire with a reset to zero (Lava's LIF).

    ``u = wrap(decay(u, decay_u) + 64 x)``, ``v = clip(decay(v, decay_v) + u + bias)``, a spike where
    ``v > 64 threshold``, then ``v = 0``. Threshold and v0 count units of x, the bias (per channel or neuron) 1/64 of
    them. ``decay_u=4096, decay_v=0`` is integrate and fire.
    """

    threshold: int
    bias: Param | None = None
    decay_u: int = UNITY
    decay_v: int = 0
    v0: PerChannel = 0
    mnemonic: ClassVar[str] = "cuba_lif"
    ranges: ClassVar[dict[str, tuple[int, int]]] = {
        "threshold": (0, INT32),
        "decay_u": (0, UNITY),
        "decay_v": (0, UNITY),
        "v0": V0,
    }

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        x = xs[0] + np.asarray(bias_of(self.bias, store, out)) / 2**SHIFT
        return np.asarray(np.clip(x / (self.threshold + 1), 0.0, 1.0))

    def start(self, n: int, type: Type, store: Store) -> Array:
        """(N, 2, *shape): u and v."""
        state = np.zeros((n, 2, *type.shape))
        state[:, 1] = per_channel(self.v0, store, len(type.shape)) * 2.0**SHIFT
        return state

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        need_sums(_size(x))
        u = wrap(decay(state[:, 0], self.decay_u) + x * 2**SHIFT)
        v = decay(state[:, 1], self.decay_v) + u + bias_of(self.bias, store, type)
        v = np.clip(v, 1 - STATE, STATE - 1)
        spikes = v > self.threshold * 2**SHIFT
        return np.stack([u, np.where(spikes, 0.0, v)], axis=1), spikes.astype(np.float64)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return Range.of(0.0, 1.0, out)

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        v0, bias = np.asarray(per_channel(self.v0, store, 1)) * 2.0**SHIFT, _bias_range(self.bias, store, out)
        lasting = min(timesteps, UNITY / self.decay_u) if self.decay_u else timesteps  # a geometric series
        u = xs[0].times(2.0**SHIFT * lasting)
        u = u if lasting == 1 else u.or_zero
        rise = u + bias
        low = np.minimum(v0, 0.0) + timesteps * np.minimum(rise.low, 0.0)
        return u, Range.of(low, np.maximum(v0, self.threshold * 2.0**SHIFT) + np.maximum(rise.high, 0.0), out)


@dataclass(frozen=True)
class AtrLif(LoihiNeuron):
    """Integrate and fire with a subtractive reset (Lava's ATRLIF without its decays and threshold step).

    ``v = clip(v + wrap(64 x) + bias)``, a spike where ``v - r >= 64 theta``, then ``r += 128 theta``: an ``if`` with
    threshold ``2 theta`` that starts at ``theta + v0``. v itself is never reset: it holds all charge so far, within
    24 bits. Theta and v0 count units of x, the bias 1/64 of them.
    """

    theta: int
    bias: Param | None = None
    v0: PerChannel = 0
    mnemonic: ClassVar[str] = "atr_lif"
    ranges: ClassVar[dict[str, tuple[int, int]]] = {"theta": (1, INT32), "v0": V0}

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        x = xs[0] + np.asarray(bias_of(self.bias, store, out)) / 2**SHIFT
        return np.asarray(np.clip(x / (2 * self.theta), 0.0, 1.0))

    def start(self, n: int, type: Type, store: Store) -> Array:
        """(N, 2, *shape): v and r."""
        state = np.zeros((n, 2, *type.shape))
        state[:, 0] = per_channel(self.v0, store, len(type.shape)) * 2.0**SHIFT
        return state

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        need_sums(_size(x))
        v = state[:, 0] + wrap(x * 2.0**SHIFT) + bias_of(self.bias, store, type)
        v = np.clip(v, 1 - STATE, STATE - 1)
        spikes = (v - state[:, 1] >= self.theta * 2**SHIFT).astype(np.float64)
        return np.stack([v, state[:, 1] + spikes * (2 * self.theta * 2**SHIFT)], axis=1), spikes

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return Range.of(0.0, 1.0, out)

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        v0 = np.asarray(per_channel(self.v0, store, 1)) * 2.0**SHIFT
        rise = (xs[0].times(2.0**SHIFT) + _bias_range(self.bias, store, out)).or_zero.times(timesteps)
        v = Range.of(v0 + rise.low, v0 + rise.high, out)
        return v, Range.of(0.0, np.maximum(v.high, 0.0) + self.theta * 2.0**SHIFT, out)


# --- sigma-delta: messages carry changes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Delta(Stateful):
    """Sends how much its input changed, times ``scale``, where that is at least ``threshold``; else keeps it for later.
    A constant input is one message (Lava's Delta)."""

    threshold: int = 0
    scale: int = 1
    mnemonic: ClassVar[str] = "delta"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        _need_whole("threshold", self.threshold, 0, INT32, store)
        _need_whole("scale", self.scale, 1, INT32, store)
        if not x.integer and self.scale != 1:
            raise ShapeError("a scale among floats")
        return replace(x, domain=Domain.MESSAGE, unit=times(x.unit, 1.0 / self.scale, store) if x.integer else 1.0)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.asarray(xs[0] * self.scale)

    def start(self, n: int, type: Type, store: Store) -> Array:
        """(N, 2, *shape): the last input, and the change that was not sent."""
        return np.zeros((n, 2, *type.shape))

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        if type.integer:
            need_state(_size(x) * self.scale)
        change = x - state[:, 0] + state[:, 1]
        sent = np.where(np.abs(change) >= self.threshold, change, 0.0)
        return np.stack([x, change - sent], axis=1), np.asarray(sent * self.scale)

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        x, kept = xs[0], Range.of(-float(self.threshold), float(self.threshold), out)
        return ((x - x.or_zero) + kept).within(x).or_zero.times(self.scale)

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        return xs[0].or_zero, Range.of(-float(self.threshold), float(self.threshold), out)


def _add_up(sigma: Array, x: Array, type: Type) -> Array:
    if type.integer:
        need_sums(_size(x))
        need_state(_size(sigma + x))
    return np.asarray(sigma + x)


@dataclass(frozen=True)
class SigmaDelta(LoihiNeuron):
    """Adds up the changes of its input and sends the changes of its activation (Lava's SigmaDelta).

    ``sigma += x``, ``a = max(sigma + bias, 0)`` ("relu") or ``sigma + bias`` ("none"), ``d = a - last a + residue``;
    ``d`` is sent where ``|d| >= threshold``, else it stays as residue. A message is ``floor(d / 2**shift)``, worth
    ``2**shift`` units of x each. Bias and threshold count units of x. Where all input comes in one step, the sum of the
    messages is ``floor(a / 2**shift)`` exactly. In float stages the shift is 0.
    """

    bias: Param | None = None
    threshold: int = 0
    shift: int = 0
    activation: str = "relu"
    mnemonic: ClassVar[str] = "sigma_delta"
    free_unit: ClassVar[bool] = False
    domain: ClassVar[Domain] = Domain.MESSAGE
    ranges: ClassVar[dict[str, tuple[int, int]]] = {"threshold": (0, INT32), "shift": (0, 31)}

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        if self.activation not in ("relu", "none"):
            raise ShapeError(f"unknown activation {self.activation!r}; known: relu, none")
        out = super().infer(args, store)
        if not out.integer and self.shift:
            raise ShapeError("a shift among floats")
        return replace(out, unit=times(out.unit, 2.0**self.shift, store) if out.integer else 1.0)

    def _activation(self, sigma: Array, type: Type, store: Store) -> Array:
        a = sigma + bias_of(self.bias, store, type)
        return np.maximum(a, 0.0) if self.activation == "relu" else np.asarray(a)

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        a = self._activation(xs[0], out, store)
        return np.floor(a / 2**self.shift) if out.integer else a

    def start(self, n: int, type: Type, store: Store) -> Array:
        """(N, 3, *shape): sigma, the last activation, the residue."""
        return np.zeros((n, 3, *type.shape))

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        sigma = _add_up(state[:, 0], x, type)
        a = self._activation(sigma, type, store)
        change = a - state[:, 1] + state[:, 2]
        sent = np.where(np.abs(change) >= self.threshold, change, 0.0)
        message = np.floor(sent / 2**self.shift) if type.integer else sent
        return np.stack([sigma, a, change - sent], axis=1), message

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        _, a, kept = self.states(xs, out, store, timesteps)
        return ((a - a.or_zero) + kept).or_zero.times(2.0**-self.shift).map(np.floor if out.integer else np.asarray)

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        sigma = xs[0].or_zero.times(timesteps)
        a = sigma + _bias_range(self.bias, store, out)
        a = a.map(lambda end: np.maximum(end, 0.0)) if self.activation == "relu" else a
        return sigma, a.or_zero, Range.of(-float(self.threshold), float(self.threshold), out)


@dataclass(frozen=True)
class Sigma(LoihiNeuron):
    """Adds up the changes of its input and gives the sum (and the bias) in every step: a network's scores. Lava's Sigma
    has no bias."""

    bias: Param | None = None
    mnemonic: ClassVar[str] = "sigma"
    free_unit: ClassVar[bool] = False
    domain: ClassVar[Domain] = Domain.CURRENT

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return np.asarray(xs[0] + bias_of(self.bias, store, out))

    def start(self, n: int, type: Type, store: Store) -> Array:
        """The sum, without the bias."""
        return np.zeros((n, *type.shape))

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        sigma = _add_up(state, x, type)
        return sigma, np.asarray(sigma + bias_of(self.bias, store, type))

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return self.states(xs, out, store, timesteps)[0] + _bias_range(self.bias, store, out)

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        return (xs[0].or_zero.times(timesteps),)


# --- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delay(Stateful):
    """``y[t] = x[t - steps]``, and 0 before: ``steps`` for all, or per channel."""

    steps: int | Param = 1
    mnemonic: ClassVar[str] = "delay"

    def infer(self, args: tuple[Type, ...], store: Store) -> Type:
        (x,) = args
        if isinstance(self.steps, Param) and self.steps.shape != x.shape[:1]:
            raise ShapeError(f"one delay per channel for {x.shape}")
        _need_whole("steps", self.steps, 0, INT32, store)
        return x

    def amounts(self, type: Type, store: Store) -> Array:
        """The steps of every channel, int64 (C,)."""
        steps: Any = store[self.steps] if isinstance(self.steps, Param) else self.steps
        return np.broadcast_to(np.asarray(steps, np.int64), type.shape[:1])

    def evaluate(self, xs: list[Array], out: Type, store: Store) -> Array:
        return xs[0]

    def start(self, n: int, type: Type, store: Store) -> Array:
        """(N, D, *shape): the last D inputs, the newest first."""
        return np.zeros((n, int(self.amounts(type, store).max(initial=0)), *type.shape))

    def step(self, state: Array, x: Array, type: Type, store: Store) -> tuple[Array, Array]:
        known = np.concatenate([x[:, None], state], axis=1)
        channels = np.arange(type.shape[0])
        # Index arrays on both sides of the batch axis: their common axis, the channels, comes where they stand.
        return known[:, :-1], known[:, self.amounts(type, store), channels]

    def bounds(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> Range:
        return xs[0].or_zero

    def states(self, xs: Sequence[Range], out: Type, store: Store, timesteps: int) -> tuple[Range, ...]:
        return (xs[0].or_zero,)


OPS.update({op.mnemonic: op for op in (CubaLif, AtrLif, Delta, SigmaDelta, Sigma, Delay)})


# --- weights ---------------------------------------------------------------------------------------------------------


def synapse_weights(weights: Array) -> Array:
    """The weights that a dense layer of netx computes with, given those in its file: (O, I) whole numbers to int64.

    netx scales weights up until they fill 8 bits, Lava clips and truncates them, and scales the sums back. Weights of
    both signs within [-256, 254] and non-negative ones to 255 stay what they are. Else: of both signs, they are clipped
    to that range; of one sign, beyond it they all become 0; of none positive, the largest magnitude shrinks where it is
    a power of two, even to 0 or to half, and below -128 all become 0 if one is 0 and one odd. Sources: lava-dl 0.6.0,
    netx/utils.py (optimize_weight_bits); lava-nc 0.10.0, utils/weightutils.py (clip_weights, truncate_weights) and
    proc/dense/models.py (PyDenseModelBitAcc).

    Raises:
        ValueError: there are no such weights, with the reason.
    """
    w = np.asarray(weights).astype(np.int64)
    low, high = int(w.min()), int(w.max())
    if low == high == 0:
        raise ValueError("all weights are zero: netx fails to scale them")
    if low < 0 < high:
        w = np.clip(w, -256, 254)
        low, high = int(w.min()), int(w.max())
    signed = int(low < 0 <= high)  # for netx; Lava's own rule differs at high = 0
    scale = min(127 / high if high else np.inf, -128 / low) if signed else 255 / high if high > 0 else -256 / low
    up = int(np.floor(np.log2(scale))) + signed
    if up < 0:
        return np.zeros_like(w)  # numpy's shift by a negative number
    even = next(n for n in range(8, -1, -1) if not (w % 2**n).any()) - signed
    mixed = low < 0 < high
    cut = up + even + mixed
    if cut < 0:
        return np.zeros_like(w)
    sign = -1 if not mixed and low < 0 else 1
    scaled = np.clip(sign * w * 2**up, -256 if mixed else 0, 255)
    scaled = sign * ((scaled >> cut) << cut)
    if (scaled % 2**up).any():
        raise ValueError("the lowest weight becomes half a number, and Lava rounds sums down")
    return np.asarray(scaled >> up)
