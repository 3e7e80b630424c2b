"""calibrate: what values activations take on the user's data, as the threshold of the neuron that will replace them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snncc.ir import Diagnostic, Graph, Node, PerChannel, Stage, ops
from snncc.ir.types import Array
from snncc.passes.base import Context, Pass, Relation
from snncc.passes.rewrite import Builder, rebuild

METHODS = ("max", "percentile", "mse")
CHUNK = 1 << 17  # values that are sorted into bins at a time


@dataclass(frozen=True)
class Calibrate(Pass):
    """Give every activation its threshold and every input its range.

    Attributes:
        method: "max"; "percentile" of all values; or "mse", which minimises the error of T steps,
            E(a - theta/T clip(floor(a T/theta + 1/2), 0, T))^2 (the rate that an IF neuron which starts at half its
            threshold reaches; Bu et al. 2022).
        percentile: of "percentile".
        per: "channel" or "layer".
    """

    method: str = "mse"
    percentile: float = 99.9
    per: str = "channel"
    name: ClassVar[str] = "calibrate"
    measures: ClassVar[bool] = True
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)
    relation: ClassVar[Relation] = Relation.EXACT

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown calibration method {self.method!r}; known: {', '.join(METHODS)}")
        if self.per not in ("channel", "layer"):
            raise ValueError(f"calibration is per channel or per layer, not per {self.per!r}")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile {self.percentile} is not in (0, 100]")

    def run(self, graph: Graph, context: Context) -> Graph:
        if context.calibration is None or context.engine is None:
            return graph  # lower-activations says which activations are left without a threshold
        wanted = {n.name for n in graph.nodes if isinstance(n.op, ops.Activation)}
        statistics: dict[str, Histogram] = {}
        thresholds: dict[str, Array] = {}
        ranges = {n.name: (np.inf, -np.inf) for n in graph.inputs}
        bad: dict[str, None] = {}  # a set in order
        last = False

        def visit(name: str, value: Array) -> None:
            if name not in ranges and name not in wanted:
                return
            if not np.isfinite(value).all():
                bad[name] = None
            elif name in ranges:
                low, high = ranges[name]
                ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
            else:
                histogram = statistics.pop(name, None) or Histogram(graph[name], self.per)
                histogram.add(value)
                if last:  # so that of a single batch no histogram is kept
                    thresholds[name] = histogram.threshold(self, context.timesteps)
                else:
                    statistics[name] = histogram

        batches = iter(context.progress(context.calibration, "calibrate"))
        batch = next(batches, None)
        if batch is None:
            context.report(Diagnostic("SNN011", "the calibration data is empty"))
            return graph
        while batch is not None:
            following = next(batches, None)
            last = following is None
            context.engine.values(graph, batch, visit)
            batch = following
        for name in bad:
            message = f"`{name}` takes values that are not finite on the calibration data"
            context.report(Diagnostic("SNN011", message, graph[name].loc))
        if bad:
            return graph

        def set_threshold(builder: Builder, node: Node, args: tuple[str, ...]) -> str | None:
            if node.name in ranges:
                low, high = ranges[node.name]
                return builder.copy(node, args, replace(node.op, low=low, high=high))  # type: ignore[call-arg]
            if node.name not in thresholds:
                return None
            theta = thresholds[node.name]
            threshold: PerChannel = float(theta[0])
            if len(theta) > 1:
                threshold = builder.store.put(f"{node.name}.threshold", theta)
            return builder.copy(node, args, replace(node.op, threshold=threshold))  # type: ignore[call-arg]

        return rebuild(graph, set_threshold)


class Histogram:
    """A histogram of positive values that grows with what it sees: (C, bins), each channel with a range of its own.

    Streaming, so that a data set of any size costs one small array per activation.
    """

    def __init__(self, node: Node, per: str) -> None:
        # Of a sequence of features (S, F), axis 0 is no channel.
        self.rows = node.type.shape[0] if per == "channel" and len(node.type.shape) != 2 else 1
        # A layer has millions of values for its one row; a channel's row is coarser but there are many.
        self.bins = 2048 if self.rows == 1 else 128
        self.counts = np.zeros((self.rows, self.bins), np.uint32)
        self.top = np.zeros(self.rows)  # the upper end of the last bin
        self.peak = np.zeros(self.rows)
        self.total = 0  # values per row, zeros and negative ones too

    def add(self, value: Array) -> None:
        """Count a batch (N, C, ...)."""
        if self.rows == 1:
            value = value.reshape(1, 1, -1)
        peak = value.max(axis=(0, *range(2, value.ndim))).astype(np.float64)
        size = value.size // self.rows
        self.total += size
        if self.total > np.iinfo(self.counts.dtype).max:
            self.counts = self.counts.astype(np.uint64)
        self.peak = np.maximum(self.peak, peak)
        self.top = np.where((self.top == 0) & (peak > 0), peak, self.top)
        while (grow := self.peak > self.top).any():
            pairs = self.counts[grow].reshape(-1, self.bins // 2, 2).sum(axis=2, dtype=self.counts.dtype)
            self.counts[grow] = np.pad(pairs, ((0, 0), (0, self.bins // 2)))
            self.top = np.where(grow, 2 * self.top, self.top)
        scale = np.divide(self.bins, self.top, out=np.zeros_like(self.top), where=self.top > 0)
        length = max(1, CHUNK // size)
        for at in range(0, self.rows, length):  # some rows at a time keep the temporaries small
            part = value[:, at : at + length].swapaxes(0, 1)
            part = part.reshape(len(part), -1)
            bins = np.minimum((part * scale[at : at + length, None]).astype(np.int64), self.bins - 1)
            bins[part <= 0] = self.bins  # one more bin for what is not counted
            bins += np.arange(len(part))[:, None] * (self.bins + 1)
            counts = np.bincount(bins.ravel(), minlength=len(part) * (self.bins + 1)).reshape(len(part), -1)
            self.counts[at : at + length] += counts[:, :-1].astype(self.counts.dtype)

    def threshold(self, options: Calibrate, timesteps: int) -> Array:
        """One threshold per row, as float32 would hold it. A row whose rule gives zero (it is hardly ever positive)
        gets its largest value; one that never saw a positive value the layer's: whatever it is, the neuron stays
        silent."""
        rule: dict[str, Callable[[], Array]] = {
            "max": lambda: self.peak,
            "percentile": lambda: self._percentile(options.percentile / 100),
            "mse": lambda: self._mse(timesteps),
        }
        theta = np.asarray(rule[options.method](), np.float32).astype(np.float64)
        largest = np.where(self.peak > 0, self.peak, float(self.peak.max(initial=0.0)) or 1.0)
        return np.where(theta > 0, theta, largest)

    def _percentile(self, q: float) -> Array:
        """The q-quantile of all values, negative ones as 0; linear within a bin."""
        below = self.total - self.counts.sum(axis=1, dtype=np.int64)  # zeros
        cumulative = below[:, None] + self.counts.cumsum(axis=1, dtype=np.int64)
        wanted = q * self.total
        index = np.minimum((cumulative < wanted).sum(axis=1), self.bins - 1)
        row = np.arange(self.rows)
        inside = self.counts[row, index]
        part = 1 - np.divide(cumulative[row, index] - wanted, inside, out=np.zeros(self.rows), where=inside > 0)
        value = np.minimum((index + np.clip(part, 0, 1)) * self.top / self.bins, self.peak)
        return np.where(wanted > below, value, 0.0)

    def _mse(self, timesteps: int, candidates: int = 128) -> Array:
        centre = ((np.arange(self.bins) + 0.5) / self.bins)[:, None]  # of the range's top
        theta = np.arange(1, candidates + 1) / candidates
        step = theta / timesteps
        error = (centre - step * np.clip(np.floor(centre / step + 0.5), 0, timesteps)) ** 2
        # Not by BLAS, whose threads go on spinning for a while and would slow down the engine's.
        best = np.einsum("rb,bc->rc", self.counts.astype(np.float64), error).argmin(axis=1)
        return np.asarray(theta[best] * self.top)
