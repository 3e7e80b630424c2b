"""What a network may cost on a Speck chip: an estimate from published figures, not a measurement.

No source that could be read says what a synaptic operation costs. `PER_SYNOP` is our own conclusion from a published
table, from 10 to 240 pJ: what follows from it is an order of magnitude. How the layers share the energy of processing
takes less: that the power is proportional to the synaptic operations (`PROPORTIONAL`). Left out of the estimate: the
slow clock's updates (biases) and the host's interface, of which there is no figure; and the pixels (see `FIGURES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_YAO = (
    "M. Yao, O. Richter et al., Spike-based dynamic computing with asynchronous sensing-computing neuromorphic chip, "
    "Nature Communications 15:4464 (2024), table 1"
)
_SINABS = "sinabs 3.1.3, docs/speck/notebooks/power_monitoring.ipynb: output of a run on a Speck2fDevKit"


@dataclass(frozen=True)
class Figure:
    """A figure from `low` to `high`, or one that we found nowhere (None). `derived`: our conclusion from the source."""

    what: str
    low: float | None
    high: float | None
    unit: str
    source: str
    derived: bool = False


# Table 1 of Yao et al., Speck: total power in mW, and 10^6 spikes. Three data sets, a usual and a sparser network each.
_RUNS = ((9.5, 1.0), (16.1, 2.9), (46.8, 3.3), (3.8, 0.4), (7.3, 1.2), (12.3, 1.5))
_WINDOW = 0.54  # s, the time window of a sample (note to the table)
# How many neurons a spike reaches in its network, 32C3S1-32C3S2-32C3S1-AP4-32FC: with stride 1, with stride 2, linear.
_FAN_OUTS = (32 * 3 * 3, 32 * 3 * 3 // 4, 32)

REST = Figure("power of the processor at rest", 0.42, 0.42, "mW", f"{_YAO}, column rest power")
_PER_SPIKE = [(total - 0.42) * _WINDOW / spikes for total, spikes in _RUNS]  # nJ
PER_SPIKE = Figure(
    "energy of a spike, all synaptic operations in it",
    min(_PER_SPIKE),
    max(_PER_SPIKE),
    "nJ",
    f"{_YAO}: (total power - rest power) * 540 ms / spikes, if those are of one sample, the input's among them",
    derived=True,
)
PER_SYNOP = Figure(
    "energy of a synaptic operation",
    1000 * min(_PER_SPIKE) / max(_FAN_OUTS),
    1000 * max(_PER_SPIKE) / min(_FAN_OUTS),
    "pJ",
    f"{PER_SPIKE.source}; over the fan-outs of its network, {max(_FAN_OUTS)} to {min(_FAN_OUTS)}",
    derived=True,
)
PROPORTIONAL = (
    "C. Caccavella et al., Low-power event-based face detection with asynchronous neuromorphic hardware, "
    "arXiv:2312.14261 (2023), abstract: 'the power consumption of the chip is directly proportional to the number of "
    "synaptic operations'"
)
# What was looked for. Whole networks are here to hold an estimate against.
FIGURES: tuple[Figure, ...] = (
    REST,
    Figure("idle power, track RAM", 51.7, 51.7, "uW", _SINABS),
    Figure("idle power, track logic", 367.0, 367.0, "uW", _SINABS),
    Figure("idle power, track IO", 61.7, 61.7, "uW", _SINABS),
    Figure("idle power, pixels, digital", 78.9, 78.9, "uW", _SINABS),
    Figure("idle power, pixels, analog", 610.9, 610.9, "uW", _SINABS),
    Figure("total power of a five-layer network on gestures and gait", 3.8, 46.8, "mW", _YAO),
    Figure(
        "power of an eye tracker, end to end", 2.89, 4.8, "mW",
        "P. Bonazzi et al., Retina: low-power eye tracking with event camera and spiking hardware, CVPR workshops "
        "2024, abstract",
    ),
    PER_SPIKE,
    PER_SYNOP,
    Figure("energy of a synaptic operation, measured", None, None, "pJ", "not published in what could be read"),
    Figure("energy of an update by the slow clock", None, None, "pJ", "not published in what could be read"),
    Figure("energy of an event from or to the host", None, None, "nJ", "not published in what could be read"),
)  # fmt: skip


def estimate(
    synops: Mapping[str, npt.NDArray[Any]], seconds: float, per_synop: Figure = PER_SYNOP
) -> list[dict[str, Any]]:
    """What samples may cost: by layer, at rest, and all.

    Args:
        synops: of every layer, the synaptic operations of each sample, (N,), such as `EventRun.synops`.
        seconds: how long a sample takes on the chip, time steps times their length.
        per_synop: another figure for a synaptic operation in pJ, say measured on the user's own chip.

    Returns:
        A row a layer, one for "at rest" and one for "all", each a mean over samples: `layer`; `synops`; `share` of the
        synaptic operations, and so of what processing costs; `energy_low` and `energy_high` in uJ, `power_low` and
        `power_high` in mW, by the bounds of the figure; `source`.

    Raises:
        ValueError: a time that is not above 0, or a figure without a value.
    """
    if not seconds > 0 or per_synop.low is None or per_synop.high is None or REST.low is None or REST.high is None:
        raise ValueError(f"an estimate needs a time above 0 s and a figure, got {seconds} s and {per_synop}")
    mean = {layer: float(np.mean(counts)) for layer, counts in synops.items()}
    total = sum(mean.values())
    source = f"estimate: {per_synop.what}, {per_synop.low:.3g} to {per_synop.high:.3g} {per_synop.unit}"
    source += f" ({'derived from ' if per_synop.derived else ''}{per_synop.source})"

    def row(layer: str, count: float, low: float, high: float, source: str) -> dict[str, Any]:
        power = {"power_low": low / seconds / 1000, "power_high": high / seconds / 1000}
        return {"layer": layer, "synops": count, "energy_low": low, "energy_high": high, **power, "source": source}

    rows = [row(layer, n, n * per_synop.low / 1e6, n * per_synop.high / 1e6, source) for layer, n in mean.items()]
    rows.append(row("at rest", 0.0, REST.low * seconds * 1000, REST.high * seconds * 1000, REST.source))
    low, high = (sum(each[key] for each in rows) for key in ("energy_low", "energy_high"))
    rows.append(row("all", total, low, high, "the sum"))
    return [{**each, "share": each["synops"] / total if total else 0.0} for each in rows]
