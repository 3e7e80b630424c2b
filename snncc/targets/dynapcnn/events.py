"""The chip's own arithmetic, event by event, from a `Config` alone: what a board computes from the events of its input.

The step-wise simulation adds up all that reaches a neuron in a time step and lets it fire once. A chip takes each event
by itself: a neuron may fire at every one, what comes later finds it changed, and what nothing reaches is silent. The
rules (sources: datasheet 3.2.4.6, as this project's notes have it; of the slow clock, sinabs' `leak_neuron.ipynb`):

- An event (channel, y, x) updates every neuron whose window covers that pixel, in the order y, x, channel: v += w; if
  v >= threshold_high, one spike, then v -= threshold_high (or v = 0 with return_to_zero); then v = max(v,
  threshold_low).
- A spike is one event at each destination, in their order, at (channel + feature_shift, y // pooling, x // pooling).
  In the remainder of a pooling that is outside of the map: it is dropped, and counted in `EventRun.dropped`.
- At the start of a time step the slow clock ticks once: v += bias, not below threshold_low. No neuron fires at a tick,
  whatever its potential: no source says that one would, none that it would not.
- Potentials have 16 bits. What the chip does beyond them is not documented: here it is an OverflowError.

In which order the events of several cores meet is undocumented too, and asynchronous. Two extremes of it:

- depth-first: all that follows from a spike is done before the next spike of the same event, and all that follows from
  an event of the host before the host's next. As if the host were slow.
- breadth-first: the events of a time step stand in one queue, the host's first. As if the host sent them all at once.

They differ only where a core is reached on ways through more and through fewer cores. In a chain each core gets its
events in the order in which the one before gave them, however long they are under way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from snncc.ir.diagnostics import input_error, unknown, wrong_value
from snncc.targets.dynapcnn.config import Config, ConfigError, CoreConfig, problems

Array = npt.NDArray[Any]
Order = Literal["depth-first", "breadth-first"]

# In place of an event: there is none; it is outside of the map; the readout block has it, which we do not simulate.
_NONE, _DROPPED = -1, -2


@dataclass(frozen=True, eq=False)
class EventRun:
    """What the cores did with N samples. The keys are the cores' names, see `names`.

    Attributes:
        outputs: of every output of the network, spikes (N, C, H, W) as the readouts count them.
        counts: all spikes of every core, (N, C, H, W).
        spikes: of the cores that were to be recorded, spikes in each time step (T, N, C, H, W).
        events: events that every core took, (N,).
        synops: neurons that they updated, (N,).
        ticked: neurons that the slow clock updated besides, in each sample.
        lowest: the lowest potential of any neuron, before it was raised to threshold_low.
        highest: the highest potential, before a spike was taken off.
        dropped: events in the remainder of a pooling, (N,), by edge ("conv1 -> conv2"); edges that dropped none are
            left out.
    """

    outputs: tuple[Array, ...]
    counts: dict[str, Array]
    spikes: dict[str, Array]
    events: dict[str, Array]
    synops: dict[str, Array]
    ticked: dict[str, int]
    lowest: dict[str, int]
    highest: dict[str, int]
    dropped: dict[str, Array]


def simulate(
    config: Config,
    xs: Sequence[Array],
    order: Order = "depth-first",
    record: Iterable[str] = (),
    threads: int | None = None,
) -> EventRun:
    """Run spike counts through the chip, one sample after the other, each from the initial potentials.

    The host first sends its biases, then the spikes of a time step input by input, each in `host_order`; a count of n
    is n events, every one on all ways of its input in turn.

    Args:
        xs: of every input of the network, whole spike counts (T, N, *shape).
        record: names of cores whose spikes are kept step by step.
        threads: how many samples run at the same time; by default one for each of the machine's processors.

    Raises:
        ConfigError: a configuration that `problems` finds fault with.
        InputError: counts, an order or names that do not fit, or no numba.
        OverflowError: potentials beyond 16 bits.
    """
    tables = _Tables(config)
    if len(xs) != len(config.input_shapes):
        raise input_error("SNN074", f"{len(config.input_shapes)} inputs are needed, {len(xs)} given")
    for x, shape in zip(xs, config.input_shapes, strict=True):
        if (
            x.dtype.kind not in "biu"
            or x.shape != (*xs[0].shape[:2], *shape)
            or (x.dtype.kind == "i" and (x < 0).any())
        ):
            raise input_error("SNN074", f"an input is {x.dtype} {x.shape}, not counts from 0 on, (T, N, *{shape})")
    steps, samples = xs[0].shape[:2]
    turn = np.concatenate([host_order(shape) + i for shape, i in zip(config.input_shapes, tables.firsts, strict=True)])
    sent = np.concatenate([x.reshape(steps, samples, -1) for x in xs], axis=2).swapaxes(0, 1)[..., turn].reshape(-1)
    (at,) = np.nonzero(sent)
    step, place = np.divmod(np.repeat(at, sent[at].astype(np.int64)), len(turn))
    step, place, _ = tables.with_biases(step, turn[place], np.zeros(len(step), np.int64), samples * steps)
    return _run(tables, step, place, (samples, steps), order, record, threads)[0]


def host_order(shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """In which order the host sends the events of a time step: the places of an input (C, H, W), or (F,), in C order.

    By rows and columns with their bits reversed, all channels of a pixel together: first every second pixel of every
    second row, and so on. A window then gets its share of each part of the events, and what has come so far is near
    what all will be; row by row, sums would run far beyond it and fire neurons that nothing can silence again.
    """
    _, height, width = size = shape if len(shape) == 3 else (1, 1, prod(shape))
    _, y, x = np.indices(size)
    key = np.zeros(size, np.int64)
    for bit in range(max(height, width).bit_length()):
        key = key << 2 | (y >> bit & 1) << 1 | x >> bit & 1
    return np.argsort(key.ravel(), kind="stable")


def simulate_events(
    config: Config, t: Array, x: Array, y: Array, p: Array, tick_us: int | None = None
) -> tuple[EventRun, tuple[Array, ...]]:
    """Run a stream of events through the chip, depth-first: a sensor's, as the only input of the network.

    Args:
        t: times from 0 on in microseconds, in order.
        x, y, p: columns, rows and channels (polarities) in the input's map.
        tick_us: the slow clock's period in microseconds, its first tick is at 0. None: it does not run.

    Returns:
        The run, with N = 1; and of every output its spikes in order, rows (t, channel, y, x) of integers. The chip's
        own latency is left out: a spike has the time of the event that it follows from.

    Raises:
        What `simulate` raises.
    """
    tables = _Tables(config, clock=tick_us is not None)
    if len(config.input_shapes) != 1 or (tick_us is not None and tick_us < 1):
        raise input_error("SNN074", "a stream of events needs a network with one input, and a period of 1 us or more")
    place = _places(t, x, y, p, config.input_shapes[0])
    step = t // (tick_us or (int(t[-1]) + 1 if len(t) else 1))
    if tick_us is not None:
        step, place, t = tables.with_biases(step, place, t, int(step[-1]) + 1 if len(t) else 1, tick_us)
    heard = {tables.names[readout.core] for readout in config.readouts}
    span = (1, int(step[-1]) + 1 if len(t) else 1)
    run, cause, neuron = _run(tables, step, place, span, "depth-first", heard, threads=1)
    time, outputs = np.repeat(t, (tables.ways[place] >= 0).sum(axis=1))[cause], []
    for output, shape in enumerate(config.output_shapes):
        rows = [np.zeros((0, 4), np.int64)]
        for readout in (readout for readout in config.readouts if readout.output == output):
            own = tables.slice(readout.core)
            spiked = (neuron >= own.start) & (neuron < own.stop)
            pixel, channel = np.divmod(neuron[spiked] - own.start, tables.cores[readout.core].output_shape[0])
            channel = readout.first + channel // readout.step
            rows.append(np.stack([time[spiked], channel, *np.divmod(pixel, shape[2])], axis=1))
        found = np.concatenate(rows)
        outputs.append(found[np.lexsort(found.T[::-1])])
    return run, tuple(outputs)


def to_counts(
    t: Array, x: Array, y: Array, p: Array, shape: tuple[int, ...], timesteps: int, step_us: int
) -> npt.NDArray[np.int32]:
    """A stream of events, as of `simulate_events`, as spike counts (T, 1, *shape) for `simulate`: those of step i come
    from i * step_us to (i + 1) * step_us; what is later than the last is left out. InputError if outside of `shape`."""
    flat = (t // step_us * prod(shape) + _places(t, x, y, p, shape))[t < timesteps * step_us]
    return np.bincount(flat, minlength=timesteps * prod(shape)).reshape(timesteps, 1, *shape).astype(np.int32)


def names(config: Config) -> dict[int, str]:
    """How an `EventRun` names the cores, by their index: by the user's layer, and by core where several share one."""
    used = [core.name for core in config.cores]
    return {c.index: c.name if used.count(c.name) == 1 else f"{c.name} (core {c.index})" for c in config.cores}


# --- a configuration as tables --------------------------------------------------------------------------------------


class _Tables:
    """What `_kernel` reads. Cores are numbered in the order of the configuration.

    All neurons are one array, core after core, each [y][x][channel]; so are all weights, each [channel in][y][x]
    [channel out] with the taps in the order of `_taps`. Then the neurons that an event updates in one row of the map
    lie side by side, and their weights too.
    """

    def __init__(self, config: Config, clock: bool = True) -> None:
        if found := problems(config):
            raise ConfigError(found)
        self.config, self.names = config, names(config)
        self.cores = {core.index: core for core in config.cores}
        self.number = {core.index: i for i, core in enumerate(config.cores)}
        self.ends = np.cumsum([prod(core.output_shape) for core in config.cores])
        count, side = len(config.cores), max(max(core.input_shape[1:]) for core in config.cores)
        slots = max(1, *(len(core.destinations) for core in config.cores))
        self.start, self.biases = np.zeros((2, self.ends[-1]), np.int32)
        self.targets = np.full((self.ends[-1], slots), _NONE, np.int32)  # the event that a spike is at each destination
        # Of each core: what lies between two rows of the map (neurons; weights), weights of a channel, both thresholds,
        # the reset, whether the slow clock counts, its first neuron and the next core's.
        self.geometry = np.zeros((count, 9), np.int64)
        # Of each core and row: the first neuron of the rows that it reaches, how many rows, the first weight. Of each
        # column what is to be added for it: neurons, how many of them in a row, weights.
        self.rows, self.columns = np.zeros((2, count, side, 3), np.int64)
        weights, used = list[Array](), 0
        for i, core in enumerate(config.cores):
            own, (f, height, width), k = self.slice(core.index), core.output_shape, core.kernel
            self.geometry[i, :3] = width * f, k * f, k * k * f
            self.geometry[i, 3:6] = core.threshold_high, core.threshold_low, core.return_to_zero
            self.geometry[i, 6:] = core.leaks and clock, own.start, own.stop
            rows, columns = (_reached(core, axis) for axis in (0, 1))
            self.rows[i, : len(rows)] = rows * [width * f, 1, k * f] + [own.start, 0, used]
            self.columns[i, : len(columns)] = columns * f
            y_taps, x_taps = (_taps(k, stride) for stride in core.stride)
            weights.append(core.weights.transpose(1, 2, 3, 0)[:, y_taps][:, :, x_taps].astype(np.int8).ravel())
            used += weights[-1].size
            if core.initial is not None:
                self.start[own] = core.initial.transpose(1, 2, 0).ravel()
            if core.biases is not None:
                self.biases[own] = np.tile(core.biases, height * width)
            for slot, to in enumerate(core.destinations):
                if to.layer in self.cores:  # else the readout block, which counts what a monitor shows
                    events = self._arrivals(core.output_shape, to.layer, to.pooling, to.feature_shift)
                    self.targets[own, slot] = events.transpose(1, 2, 0).ravel()
        self.weights = np.concatenate(weights)
        # Of every element of the network's inputs, one after the other: the events that the host sends for a spike.
        ways, most = (
            list[Array](),
            max(sum(r.index == i for r in config.inputs) for i in range(len(config.input_shapes))),
        )
        for i, shape in enumerate(config.input_shapes):
            ways.append(np.full((prod(shape), most), _NONE, np.int32))
            for way, r in enumerate(r for r in config.inputs if r.index == i):
                events = self._arrivals(r.shape, r.core, r.pooling, r.feature_shift)
                ways[-1][:, way] = events.ravel()[: prod(shape)]
        self.firsts = np.cumsum([0, *(prod(shape) for shape in config.input_shapes)])[:-1]
        inputs = np.concatenate(ways)
        # Then one more element for each event of the host's biases.
        biases = [
            self.number[b.core] << 24 | channel << 14 | y << 7 | x
            for b in config.host_biases
            for channel in range(b.first, b.first + b.count)
            for y in b.rows
            for x in b.columns
        ]
        self.biased = np.arange(len(inputs), len(inputs) + len(biases))
        more = np.full((len(biases), inputs.shape[1]), _NONE, np.int32)
        more[:, 0] = biases
        self.ways = np.concatenate([inputs, more])

    def with_biases(
        self, step: Array, place: Array, t: Array, steps: int, tick_us: int = 0
    ) -> tuple[Array, Array, Array]:
        """What the host sends, its time steps, places and times, with its biases at the start of each of ``steps``."""
        first = np.repeat(np.arange(steps), len(self.biased))
        step = np.concatenate([first, step])
        place = np.concatenate([np.tile(self.biased, steps), place])
        t = np.concatenate([first * tick_us, t])
        turn = np.argsort(step, kind="stable")
        return step[turn], place[turn], t[turn]

    def slice(self, core: int) -> slice:
        """The neurons of a core."""
        end = int(self.ends[self.number[core]])
        return slice(end - prod(self.cores[core].output_shape), end)

    def maps(self, neurons: Array, core: int) -> Array:
        """What a core has of an array over all neurons (..., neurons), as its map (..., C, H, W)."""
        f, height, width = self.cores[core].output_shape
        own = neurons[..., self.slice(core)]
        return np.moveaxis(own.reshape(*own.shape[:-1], height, width, f), -1, -3)

    def _arrivals(self, shape: tuple[int, ...], core: int, pooling: int, shift: int) -> Array:
        """Of every element of a map, the event that its spike is at a core: 4 bits for the core, 10 for the channel, 7
        for y, 7 for x (no chip has more)."""
        channel, y, x = np.indices(shape)
        channel, y, x = channel + shift, y // pooling, x // pooling
        _, height, width = self.cores[core].input_shape
        event = self.number[core] << 24 | channel << 14 | y << 7 | x
        return np.where((y < height) & (x < width), event, _DROPPED)


def _taps(kernel: int, stride: int) -> list[int]:
    """The order of a kernel's taps along an axis: those through which windows side by side see one pixel are side by
    side."""
    return [tap for phase in range(stride) for tap in reversed(range(phase, kernel, stride))]


def _reached(core: CoreConfig, axis: int) -> Array:
    """For every coordinate of the input along y or x: the first window that covers it, how many do, and the place in
    `_taps` of the tap through which the first does."""
    kernel, stride = core.kernel, core.stride[axis]
    at = np.arange(core.input_shape[1 + axis]) + core.padding[axis]
    first = np.maximum(0, -((kernel - 1 - at) // stride))
    count = np.maximum(0, np.minimum(core.output_shape[1 + axis] - 1, at // stride) - first + 1)
    place = np.argsort(_taps(kernel, stride))[np.where(count > 0, at - first * stride, 0)]
    return np.stack([first, count, place], axis=1)


def _places(t: Array, x: Array, y: Array, p: Array, shape: tuple[int, ...]) -> Array:
    """Where in an input of `shape` the events of a stream are, in C order."""
    _, height, width = size = (*shape, 1, 1)[:3]
    ends = zip(("t", "p", "y", "x"), (t, p, y, x), (np.inf, *size), strict=True)
    for name, values, end in ends:
        if values.shape != (len(t),) or values.dtype.kind not in "biu" or (values < 0).any() or (values >= end).any():
            raise input_error("SNN074", f"{name} of the events must be {len(t)} integers from 0 to below {end}")
    if (np.diff(t) < 0).any():
        raise input_error("SNN074", "the events are not in the order of their times")
    return (p.astype(np.int64) * height + y) * width + x


# --- running --------------------------------------------------------------------------------------------------------


def _run(
    tables: _Tables,
    step: Array,
    place: Array,
    span: tuple[int, int],
    order: str,
    record: Iterable[str],
    threads: int | None,
) -> tuple[EventRun, Array, Array]:
    """Run spikes of the host: of each its time step (those of the samples count on) and its place in `tables.ways`.

    Gives the run; and of every recorded spike, the number of the host's event that it follows from, and the neuron.
    """
    config, (samples, timesteps), recorded = tables.config, span, frozenset(record)
    if order not in ("depth-first", "breadth-first"):
        raise wrong_value("order", order, "is unknown", ("depth-first", "breadth-first"))
    if strange := recorded - set(tables.names.values()):
        raise unknown("SNN084", "core", min(strange), tables.names.values(), "to record")
    kernel, ways = _compiled(), tables.ways[place]
    host = ways[ways >= 0]
    sent = np.bincount(step, (ways >= 0).sum(axis=1), samples * timesteps)
    bounds = np.concatenate([[0], np.cumsum(sent)]).astype(np.int64)
    keep = np.array([name in recorded for name in tables.names.values()])
    extremes = np.array([[part.min(), part.max()] for part in np.split(tables.start, tables.ends[:-1])], np.int64)
    ranges = np.tile(extremes, (samples, 1, 1))
    counts = np.zeros((samples, len(tables.start)), np.int32)
    events, synops = np.zeros((2, samples, len(keep)), np.int64)
    dropped = np.zeros((samples, len(keep), tables.targets.shape[1]), np.int64)

    def part(first: int, last: int) -> Array:
        log: Array = kernel(
            host, bounds, first, last, timesteps, order == "depth-first", tables.geometry, tables.rows, tables.columns,
            tables.weights, tables.targets, tables.biases, tables.start, keep, counts, events, synops, dropped, ranges,
        )  # fmt: skip
        return log

    workers = max(1, min(threads or os.cpu_count() or 1, samples))
    ends = np.linspace(0, samples, min(4 * workers, samples) + 1, dtype=int).tolist()  # some samples take longer
    with ThreadPoolExecutor(workers) as pool:
        logs = [np.zeros(0, np.int64), *pool.map(part, ends[:-1], ends[1:])]
    extremes = np.concatenate([extremes[None], ranges])
    _check_width(tables, extremes)
    cause, neuron = np.divmod(np.concatenate(logs), len(tables.start))

    outputs = tuple(np.zeros((samples, *shape), np.int64) for shape in config.output_shapes)
    for readout in config.readouts:
        for channel, spiked in enumerate(np.moveaxis(tables.maps(counts, readout.core), 1, 0)):
            outputs[readout.output][:, readout.first + channel // readout.step] += spiked
    spikes = dict[str, Array]()
    for index, name in tables.names.items():
        if name in recorded:
            own = tables.slice(index)
            mine = (neuron >= own.start) & (neuron < own.stop)
            sample, at = np.divmod(np.searchsorted(bounds, cause[mine], side="right") - 1, timesteps)
            dense = np.zeros((timesteps, samples, len(tables.start)), np.int32)
            np.add.at(dense, (at, sample, neuron[mine]), 1)
            spikes[name] = tables.maps(dense, index)
    edges = {
        f"{tables.names[core.index]} -> {tables.names[to.layer]}": dropped[:, i, slot]
        for i, core in enumerate(config.cores)
        for slot, to in enumerate(core.destinations)
        if to.layer in tables.cores
    }
    lost = np.repeat(step // max(1, timesteps), (ways == _DROPPED).sum(axis=1))
    edges["host"] = np.bincount(lost, minlength=samples)
    by_name = list(tables.names.values())
    run = EventRun(
        outputs,
        counts={name: tables.maps(counts, index) for index, name in tables.names.items()},
        spikes=spikes,
        events=dict(zip(by_name, events.T, strict=True)),
        synops=dict(zip(by_name, synops.T, strict=True)),
        ticked={name: timesteps * int(g[6] * (g[8] - g[7])) for name, g in zip(by_name, tables.geometry, strict=True)},
        lowest=dict(zip(by_name, extremes[..., 0].min(axis=0).tolist(), strict=True)),
        highest=dict(zip(by_name, extremes[..., 1].max(axis=0).tolist(), strict=True)),
        dropped={edge: count for edge, count in edges.items() if count.any()},
    )
    return run, cause, neuron


def _check_width(tables: _Tables, extremes: Array) -> None:
    """Raise OverflowError if a potential left the 16 bits."""
    width = np.iinfo(np.int16)
    beyond = [
        f"{name}: {low:,}..{high:,}"
        for name, low, high in zip(
            tables.names.values(), extremes[..., 0].min(axis=0), extremes[..., 1].max(axis=0), strict=True
        )
        if low < width.min or high > width.max
    ]
    if beyond:
        what = "a potential leaves its 16 bits, and what the chip then does is not documented"
        raise OverflowError(f"{what} ({'; '.join(beyond)}; legal is {width.min:,}..{width.max:,})")


@cache
def _compiled() -> Callable[..., Array]:
    """`_kernel` as machine code, kept on disk from one process to the next where there is a folder for it."""
    try:
        import numba
    except ImportError:
        hint = "install snncc with the extra dynapcnn: pip install 'snncc[dynapcnn]'"
        raise input_error("SNN101", "the simulation of single events needs numba", hint) from None
    try:
        compiled: Callable[..., Array] = numba.njit(nogil=True, cache=True)(_kernel)
    except RuntimeError:  # no folder for the cache can be written
        compiled = numba.njit(nogil=True)(_kernel)
    return compiled


def _kernel(
    host: Array, bounds: Array, first: int, last: int, timesteps: int, depth_first: bool, geometry: Array, rows: Array,
    columns: Array, weights: Array, targets: Array, biases: Array, start: Array, keep: Array, counts: Array,
    events: Array, synops: Array, dropped: Array, ranges: Array,
) -> Array:  # fmt: skip
    """Run the samples from `first` to below `last`. `host` are the events, `bounds` where those of each time step of
    each sample begin. Fills the arrays from `counts` on. Gives, of each spike of the cores in `keep`, the number of the
    host's event that it follows from * neurons + the neuron's.

    What an event does in its own core does not depend on what follows from it, as there are no cycles. So an event is
    done at once, and those that it causes go on a stack (depth-first) or into a queue.
    """
    neurons, slots = targets.shape
    v, pending, log, logged = start.copy(), np.empty(4096, np.int32), np.empty(4096, np.int64), 0
    for sample in range(first, last):
        v[:] = start
        sound = True
        for step in range(sample * timesteps, (sample + 1) * timesteps):
            if not sound:
                break
            for core in range(len(geometry)):
                if geometry[core, 6]:
                    low, own = np.int32(geometry[core, 4]), v[geometry[core, 7] : geometry[core, 8]]
                    bias = biases[geometry[core, 7] : geometry[core, 8]]
                    least, most = np.int32(2**31 - 1), np.int32(-(2**31))
                    for i in range(len(own)):
                        u = np.int32(own[i] + bias[i])
                        own[i] = max(u, low)
                        least, most = min(least, u), max(most, u)
                    ranges[sample, core, 0] = min(ranges[sample, core, 0], least)
                    ranges[sample, core, 1] = max(ranges[sample, core, 1], most)
                    if least < -(2**15) or most >= 2**15:
                        sound = False
            at, head, size = bounds[step], 0, 0
            while sound:
                if head == size:  # the host's next event, or all of this time step
                    taken = bounds[step + 1] - at
                    if taken == 0:
                        break
                    if depth_first:
                        taken = 1
                    if taken > len(pending):
                        pending = np.empty(2 * taken, np.int32)
                    pending[:taken] = host[at : at + taken]
                    at, head, size = at + taken, 0, taken
                if depth_first:
                    size -= 1
                    event = pending[size]
                else:
                    event = pending[head]
                    head += 1
                core, channel, y, x = event >> 24, event >> 14 & 1023, event >> 7 & 127, event & 127
                high, low = np.int32(geometry[core, 3]), np.int32(geometry[core, 4])
                reached, length = rows[core, y, 1], columns[core, x, 1]
                weight = rows[core, y, 2] + columns[core, x, 2] + channel * geometry[core, 2]
                events[sample, core] += 1
                synops[sample, core] += reached * length
                for k in range(reached):
                    row = reached - 1 - k if depth_first else k  # a stack gives back last what came first
                    base = rows[core, y, 0] + columns[core, x, 0] + row * geometry[core, 0]
                    taps = weight + row * geometry[core, 1]
                    own, w = v[base : base + length], weights[taps : taps + length]
                    least, most = np.int32(2**31 - 1), np.int32(-(2**31))
                    for i in range(length):
                        u = np.int32(own[i] + w[i])
                        own[i] = u
                        least, most = min(least, u), max(most, u)
                    ranges[sample, core, 0] = min(ranges[sample, core, 0], least)
                    ranges[sample, core, 1] = max(ranges[sample, core, 1], most)
                    if least < -(2**15) or most >= 2**15:
                        sound = False
                    if least < low:
                        for i in range(length):
                            own[i] = max(own[i], low)
                    if most < high:
                        continue
                    if size + length * slots > len(pending):
                        grown = np.empty(2 * (size + length * slots), np.int32)
                        grown[:size] = pending[:size]
                        pending = grown
                    for j in range(length):
                        i = length - 1 - j if depth_first else j
                        if own[i] < high:
                            continue
                        own[i] = 0 if geometry[core, 5] else own[i] - high
                        counts[sample, base + i] += 1
                        if keep[core]:
                            if logged == len(log):
                                log = np.concatenate((log, np.empty_like(log)))
                            log[logged] = (at - 1) * neurons + base + i
                            logged += 1
                        for s in range(slots):
                            slot = slots - 1 - s if depth_first else s
                            target = targets[base + i, slot]
                            if target >= 0:
                                pending[size] = target
                                size += 1
                            elif target == _DROPPED:
                                dropped[sample, core, slot] += 1
    return log[:logged].copy()
