"""How far two simulations of one network are apart: the step-wise one and, say, one event by event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from snncc.ir.types import Array


def differences(step: Mapping[str, Array], events: Mapping[str, Array]) -> list[dict[str, Any]]:
    """How far the spikes of a step-wise simulation and of an event-driven one are apart, layer by layer.

    Args:
        step, events: spikes of every neuron by layer, (N, *shape); a layer that one of them lacks is left out.

    Returns:
        A row a layer: `layer`; `step` and `events`, all spikes of either; `difference`, by how many spikes a neuron
        differs in a sample, in the mean; `mean`, how many it has in the step-wise simulation; and `correlation`,
        Pearson's, of neurons' spikes (None where one side is constant).
    """
    rows = []
    for name in (name for name in step if name in events):
        a, b = (np.asarray(side[name], np.float64).ravel() for side in (step, events))
        row: dict[str, Any] = {"layer": name, "step": int(a.sum()), "events": int(b.sum())}
        row |= {"difference": float(np.abs(a - b).mean()), "mean": float(a.mean())}
        rows.append({**row, "correlation": float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else None})
    return rows


def same_class(step: Array, events: Array) -> Array:
    """Of every sample, whether the scores (N, *shape) of both sides are largest at the same place: (N,). Of equals the
    first counts."""
    a, b = (scores.reshape(len(scores), -1).argmax(axis=1) for scores in (step, events))
    return np.asarray(a == b)
