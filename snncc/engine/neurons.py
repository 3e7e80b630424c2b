"""Neurons over time, one operation for all steps: each equal to its ``step`` in :mod:`snncc.ir`, operation by
operation, as no rounding may differ.

Every function takes the input x (T, N, *shape), or (1, N, *shape) where it is the same in every step, and gives
(result (T, N, *shape), state after the last step as ``step`` has it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snncc.engine.rules import Params, bias
from snncc.ir import loihi, ops
from snncc.ir.loihi import SHIFT, STATE, UNITY
from snncc.ir.types import Type

Result = tuple[Tensor, Tensor]


def _inputs(x: Tensor, timesteps: int) -> Iterator[tuple[int, Tensor]]:
    yield from ((t, x[t if len(x) > 1 else 0]) for t in range(timesteps))


# The loops over time write into tensors that are there: new ones in every step would cost more than what is computed.


def _if(op: ops.If, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    theta = params.channels(op.threshold, type, x.dtype)
    grid = params(np.asarray(op.grid(type, params.store), np.float64), x.dtype)
    spike = torch.ones_like(theta) if type.integer else theta * params.channels(op.gain, type, x.dtype)
    v = params.channels(op.v0, type, x.dtype).expand(x.shape[1:]).clone()
    y, fires = x.new_empty((timesteps, *x.shape[1:])), torch.empty_like(v, dtype=torch.bool)
    for t, now in _inputs(x, timesteps):
        v += now if type.integer else (now / grid).round_() * grid
        torch.ge(v, theta, out=fires)
        torch.mul(fires, spike, out=y[t])
        if op.reset == "zero":
            v.masked_fill_(fires, 0.0)
        else:
            v -= fires * theta
        if op.v_min is not None:
            v.clamp_(min=op.v_min)
    return y, v


def _lif(op: ops.Lif, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    theta = params.channels(op.threshold, type, torch.float64).float()
    decay = float(np.float32(op.decay))
    v = torch.zeros_like(x[0], dtype=torch.float32)
    y, fires = x.new_empty((timesteps, *x.shape[1:])), torch.empty_like(v, dtype=torch.bool)
    for t, now in _inputs(x.float(), timesteps):
        v += now
        y[t] = torch.ge(v, theta, out=fires)
        if op.reset == "zero":
            v.masked_fill_(fires, 0.0)
        else:
            v -= fires * theta
        if op.decay != 1:
            v *= decay
    return y, v


def _current(x: Tensor) -> Tensor:
    """A synaptic sum in the state's least significant bits, within 24 of them."""
    size = _size(x)
    loihi.need_sums(size)
    return x * 2.0**SHIFT if size * 2.0**SHIFT < STATE else _wrap(x * 2.0**SHIFT)


def _unclipped(v: Tensor, x: Tensor, b: Tensor) -> float:
    """For how many steps a potential cannot reach the ends of its 24 bits, whatever the order of its input."""
    step = _size(x) + _size(b)
    return (STATE - 1 - _size(v)) // step if step else inf


def _size(x: Tensor) -> float:
    low, high = torch.aminmax(x)
    return max(-float(low), float(high))


def _wrap(u: Tensor) -> Tensor:
    size = _size(u)
    if size < STATE:
        return u
    loihi.need_state(size)
    return torch.where(u > STATE, u - 2 * STATE, torch.where(u <= -STATE, u + 2 * STATE, u))


def _decay(x: Tensor, amount: int) -> Tensor:
    return x if amount == 0 else (x * (UNITY - amount) / UNITY).trunc_()


def _cuba_lif(op: loihi.CubaLif, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    b, threshold = bias(op, type, params, x.dtype), op.threshold * 2**SHIFT
    v = (params.channels(op.v0, type, x.dtype) * 2**SHIFT).expand(x.shape[1:]).clone()
    u = torch.zeros_like(v)
    y, fires = x.new_empty((timesteps, *x.shape[1:])), torch.empty_like(v, dtype=torch.bool)
    forgets = op.decay_u == UNITY
    if not forgets:
        loihi.need_sums(_size(x))
    x = _current(x) if forgets else x * 2.0**SHIFT
    unclipped = _unclipped(v, x, b) if forgets else 0
    for t, now in _inputs(x, timesteps):
        u = now if forgets else _wrap(_decay(u, op.decay_u) + now)
        v = _decay(v, op.decay_v) if op.decay_v else v
        v += u
        v += b
        if t >= unclipped:
            v.clamp_(1 - STATE, STATE - 1)
        y[t] = torch.gt(v, threshold, out=fires)
        v.masked_fill_(fires, 0.0)
    return y, torch.stack([u, v], dim=1)


def _atr_lif(op: loihi.AtrLif, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    b, theta = bias(op, type, params, x.dtype), op.theta * 2**SHIFT
    v = (params.channels(op.v0, type, x.dtype) * 2**SHIFT).expand(x.shape[1:]).clone()
    r, above = torch.zeros_like(v), torch.empty_like(v)
    y, fires = x.new_empty((timesteps, *x.shape[1:])), torch.empty_like(v, dtype=torch.bool)
    x = _current(x)
    unclipped = _unclipped(v, x, b)
    for t, now in _inputs(x, timesteps):
        v += now
        v += b
        if t >= unclipped:
            v.clamp_(1 - STATE, STATE - 1)
        torch.sub(v, r, out=above)
        y[t] = torch.ge(above, theta, out=fires)
        r.add_(y[t], alpha=2 * theta)
    return y, torch.stack([v, r], dim=1)


def _delta(op: loihi.Delta, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    if type.integer:
        loihi.need_state(_size(x) * op.scale)
    y, rest = _changes(x, timesteps, op.threshold)
    return y * op.scale, torch.stack([x[-1], rest], dim=1)


def _changes(a: Tensor, timesteps: int, threshold: int) -> Result:
    """What changes by at least ``threshold`` in each step, and what is left of the changes."""
    a = a.expand(timesteps, *a.shape[1:])
    if threshold == 0:
        return torch.cat([a[:1], a[1:] - a[:-1]]), torch.zeros_like(a[0])
    y, last, rest = a.new_empty(a.shape), torch.zeros_like(a[0]), torch.zeros_like(a[0])
    for t, now in _inputs(a, timesteps):
        change = now - last + rest
        y[t] = change.masked_fill(change.abs() < threshold, 0.0)
        last, rest = now, change - y[t]
    return y, rest


def _sums(x: Tensor, timesteps: int, type: Type) -> Tensor:
    sigma = x.expand(timesteps, *x.shape[1:]).cumsum(0)
    if type.integer:
        loihi.need_sums(_size(x))
        loihi.need_state(_size(sigma))
    return sigma


def _sigma_delta(op: loihi.SigmaDelta, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    sigma = _sums(x, timesteps, type)
    a = sigma + bias(op, type, params, x.dtype)
    a = a.relu() if op.activation == "relu" else a
    y, rest = _changes(a, timesteps, op.threshold)
    return (y / 2**op.shift).floor() if type.integer else y, torch.stack([sigma[-1], a[-1], rest], dim=1)


def _sigma(op: loihi.Sigma, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    sigma = _sums(x, timesteps, type)
    return sigma + bias(op, type, params, x.dtype), sigma[-1]


def _delay(op: loihi.Delay, x: Tensor, timesteps: int, type: Type, params: Params) -> Result:
    x = x.expand(timesteps, *x.shape[1:])
    amounts = op.amounts(type, params.store)
    most = int(amounts.max(initial=0))
    known = torch.cat([torch.zeros_like(x[:1]).expand(most, *x.shape[1:]), x])  # the step t is at t + most
    y = torch.empty_like(x)
    for amount in np.unique(amounts):
        channels = torch.from_numpy(np.flatnonzero(amounts == amount)).to(x.device)
        y[:, :, channels] = known[most - amount : most - amount + timesteps, :, channels]
    return y, known[len(known) - most :].flip(0).transpose(0, 1)


NEURONS: dict[type[ops.Op], Callable[[Any, Tensor, int, Type, Params], Result]] = {
    ops.If: _if,
    ops.Lif: _lif,
    loihi.CubaLif: _cuba_lif,
    loihi.AtrLif: _atr_lif,
    loihi.Delta: _delta,
    loihi.SigmaDelta: _sigma_delta,
    loihi.Sigma: _sigma,
    loihi.Delay: _delay,
}
