"""Input encodings: one rule in numpy that the reference interpreter and the fast engine both call, so that they see
the same spikes."""

from __future__ import annotations

import numpy as np

from snncc.ir.diagnostics import input_error
from snncc.ir.ops import Encode
from snncc.ir.types import Array


def encode(op: Encode, x: Array, timesteps: int, integer: bool) -> Array:
    """``x`` over time.

    Args:
        op: the encoding.
        x: real values (N, ...); of method "spikes", counts (T, N, ...).
        timesteps: T.
        integer: whether the result counts units (an integer stage) or is real.

    Returns:
        float64 (T, N, ...).

    Raises:
        InputError: values that the encoding cannot express (negative, not finite, not whole).
    """
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise input_error("SNN074", "the input holds values that are not finite")
    if op.method == "constant":
        # Half way cases to even: the rule of np.rint and of every vendor's float-to-integer conversion we emit for.
        value = np.rint(x / op.unit) if integer else x
        return np.broadcast_to(value, (timesteps, *x.shape))
    if op.method == "spikes":
        if len(x) != timesteps:
            raise input_error("SNN074", f"spikes for {len(x)} time steps, but {timesteps} were asked for")
        if (x < 0).any() or (x != np.rint(x)).any():
            raise input_error("SNN012", "spike input must hold counts: whole numbers, not negative")
        return x if integer else x * op.unit
    if (x < 0).any():
        raise input_error(
            "SNN012",
            f"the encoding {op.method!r} cannot express the negative input {x.min():.4g}",
            "shift the input to be positive, or use encoding='constant' where the target takes it",
        )
    rate = x / op.unit  # spikes per step; above 1, several fall into one step
    if op.method == "rate":
        # Evenly spaced, and after T steps round(rate * T) spikes: the start of half a spike turns floor into round.
        t = np.arange(timesteps + 1).reshape((-1,) + (1,) * x.ndim)
        counts = np.diff(np.floor(rate * t + 0.5), axis=0)
    else:
        if (rate > 1).any():
            raise input_error(
                "SNN012",
                f"Bernoulli encoding sends at most one spike a step; the input {x.max():.4g} is above {op.unit:.4g}",
                "calibrate with data that covers the input's range",
            )
        counts = (np.random.default_rng(op.seed).random((timesteps, *x.shape)) < rate).astype(np.float64)
    return counts if integer else counts * op.unit
