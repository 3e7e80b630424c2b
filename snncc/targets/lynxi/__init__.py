"""Lynxi's KA200: what its compiler lyngor is known to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from snncc.targets.lynxi.evidence import conformance
from snncc.targets.lynxi.precision import Loss, compare


def fp16(compiled: Any, x: Any, timesteps: int | None = None) -> Loss:
    """What the chip's fp16 changes of a network compiled for it, on inputs of your own.

    Args:
        compiled: a :class:`snncc.CompiledModel` for this target.
        x: inputs (N, *shape), arrays or tensors; for several a tuple.
        timesteps: T; by default the one compiled for.
    """
    xs = [np.asarray(part) for part in (x if isinstance(x, Sequence) else (x,))]
    steps = compiled.options.timesteps if timesteps is None else timesteps
    return compare(compiled.graph, xs, steps)


__all__ = ["Loss", "conformance", "fp16"]
